"""Real problems (generated ones where no data is at hand), and rows planted beside them: the same in another layout or in
other words, and others that differ in one digit or one sign."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from strop.curate.rows import SCHEMA, Tools
from strop.record import content_hash
from strop.watch import Watch

DATA = Path(os.environ.get("STROP_DATA", Path(__file__).parents[2] / "shared" / "data"))
WORDS = [
    "circle", "triangle", "integer", "positive", "number", "train", "apple", "garden", "river", "value", "sum",
    "product", "digits", "remainder", "divided", "area", "perimeter", "square", "length", "side", "point", "line",
    "plane", "average", "speed", "hours", "market", "farmer", "buys", "sells", "each", "week", "total", "price",
    "green", "yellow", "marbles", "bag", "drawn", "chosen", "probability", "ordered", "pairs", "sequence", "term",
    "polynomial", "roots", "real", "function", "graph",
]  # fmt: skip

Row = tuple[str, str]  # problem and answer


def problems(num: int, seed: int = 0) -> list[Row]:
    """Problems of the pool, of 12 words and more; each once."""
    path = DATA / "train" / "deepscaler_40k.jsonl.gz"
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        found = {row["problem"]: str(row["answer"]) for row in rows if len(row["problem"].split()) >= 12}
        return random.Random(seed).sample(sorted(found.items()), num)
    return generated(num, seed)


def generated(num: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    found = []
    for i in range(num):
        words = rng.choices(WORDS, k=rng.randrange(12, 60))
        for place in range(0, len(words), 6):
            words[place] = f"${rng.choice('xyzabn')} {rng.choice('+-')} {rng.randrange(2, 900)}$"
        found.append((" ".join(["Find the", *words]) + ".", str(i)))
    return found


# --- plants -----------------------------------------------------------------------------------------------------------


def layout(text: str, rng: random.Random) -> str:
    """The same problem as another file has it."""
    changes: list[Callable[[str], str]] = [
        lambda t: t.replace(r"\frac", r"\dfrac"),
        lambda t: re.sub(r"(?<![\\$])\$([^$]+)\$(?!\$)", r"\\( \1 \\)", t),
        lambda t: t.replace(r"\left", "").replace(r"\right", ""),
        lambda t: t.replace(r"\le ", r"\leq ").replace(r"\ge ", r"\geq "),
        lambda t: t.replace(" ", "  ").replace("\n", " "),
        lambda t: re.sub(r"([_^])(\w)(?!\w)", r"\1{\2}", t),
        lambda t: t.replace(",", ", ") if not re.search(r"\d,\d", t) else t,
    ]
    for change in rng.sample(changes, 4):
        text = change(text)
    return text[:1].lower() + text[1:] + "\n"


def reworded(text: str, rng: random.Random) -> str | None:
    """One word in prose replaced, or two neighbours in another order; None where there is no prose."""
    places = [
        m for m in re.finditer(r"(?<=[a-z,] )([a-z]{3,9}) ([a-z]{3,9})(?= [a-z])", text) if not _number_word(m[0])
    ]
    if not places:
        return None
    found = rng.choice(places)
    new = rng.choice([f"{found[2]} {found[1]}", f"certain {found[2]}", f"{found[1]} given {found[2]}", found[2]])
    return text[: found.start()] + new + text[found.end() :]


def other_digit(text: str, rng: random.Random) -> str | None:
    places = [m.start() for m in re.finditer(r"\d", text)]
    if not places:
        return None
    at = rng.choice(places)
    return text[:at] + str((int(text[at]) + rng.randrange(1, 9)) % 9 + (text[at] == "0")) + text[at + 1 :]


def other_sign(text: str, rng: random.Random) -> str | None:
    places = [m.start() for m in re.finditer(r"(?<=[\w}) ])[+<>](?=[\w\\( ])|(?<=[\d}) ])-(?=[\d\\( ])", text)]
    if not places:
        return None
    at = rng.choice(places)
    return text[:at] + {"+": "-", "-": "+", "<": ">", ">": "<"}[text[at]] + text[at + 1 :]


def _number_word(text: str) -> bool:
    from strop.curate.fold import fold

    return bool(fold(text).marks)


# --- tables -----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], source: str = "pool", **more: str) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"id": f"{source}/{content_hash(p, a)}", "source": source, "prompt": p, "answer": a, "verifier": "math",
             "licence": "", "meta": "{}"} | more
            for p, a in rows
        ],
        schema=SCHEMA,
    )  # fmt: skip


def tools(against: pa.Table | None = None) -> Tools:
    def measure(function: Callable[..., pa.Table], rows: pa.Table, settings: Any, *, what: str) -> pa.Table:
        return pa.concat_tables([function(rows.slice(at, 500), settings) for at in range(0, max(len(rows), 1), 500)])

    return Tools(
        measure=measure, watch=Watch(open(os.devnull, "w")), seed=0,
        against=SCHEMA.empty_table() if against is None else against, folder=Path("unused"),
    )  # fmt: skip
