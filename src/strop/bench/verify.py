"""`verify`: verdicts a second over real completions, against plain math-verify, and how often the two disagree.

Cases are completions of a run (its recorded rollouts) and solutions of benchmark files, each held against its own
answer and against that of the next problem. Plain math-verify parses and compares in one process; ours runs the same
way, and once more through the pool of killable processes that training uses, which also gets texts made to hang.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from strop.bench import ceiling
from strop.bench.alternate import Turn, alternate, median, ratios
from strop.bench.result import Result, seconds_of
from strop.bench.worker import Link, Side, command
from strop.config import Section
from strop.record import Task, UserError, read_rollouts
from strop.rewards.math import MATHEMATICAL

__all__ = ["Settings", "cases", "ours", "plain", "pool", "run"]

Case = tuple[str, str]  # gold, text
SHOWN = 40  # disagreements kept in the result
HOSTILE = [
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{\sum_{k=1}^{10^{12}} \sin(k^2)}",
    r"\boxed{\int_0^1 x^{x^x} dx}",
    r"\boxed{((10^{10})!)!}",
    r"\boxed{" + "(" * 400 + "x" + ")" * 400 + "}",
    r"\boxed{x^{" * 60 + "2" + "}}" * 60,
    "\\boxed{" + " + ".join(f"\\sqrt[{i}]{{x^{i}}}" for i in range(2, 200)) + "}",
]


class Settings(Section):
    model: str = "smollm2-135m"
    """At whose shapes the ceilings are measured."""
    run: str = "runs/quickstart"
    """A run directory whose completions are judged."""
    data: str = "data/eval"
    """A folder of JSONL files with `answer` and, where there is one, `solution`."""
    max_cases: int = 3000
    """Drawn from all that is found."""
    workers: int = 2
    """Verifier processes of the pool."""
    timeout_s: float = 2.0
    """The pool's deadline for one verdict."""


def run(settings: Settings, *, pairs: int, say: Callable[[str], None]) -> Result:
    """Verdicts a second; `agree_frac` is the share of cases on which a side says what ours says."""
    found_cases, notes = cases(settings)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "cases.json"
        scratch.write_text(json.dumps(found_cases))
        values = {"settings": settings.model_dump(), "cases": str(scratch)}
        sides = {
            name: stack.enter_context(Side(name, command(f"strop.bench.verify:{function}", values), peer=peer))
            for name, function, peer in (
                ("strop", "ours", False), ("strop pool", "pool", False), ("math-verify", "plain", True),
            )
        }  # fmt: skip
        machine = stack.enter_context(ceiling.side(settings.model))
        turns = [*(Turn(name=name, side=side) for name, side in sides.items()), ceiling.bandwidth(machine)]
        found = alternate(turns, pairs=pairs, say=say, title=f"{len(found_cases)} cases")
        hostile = sides["strop pool"].ask(hostile=True)
        notes += [f"Left out: {side.why}." for side in sides.values() if side.why]
    assert hostile is not None
    notes.append(
        f"{len(HOSTILE)} texts made to hang a verifier were all judged in {hostile['seconds']:.1f} s "
        f"(deadline {settings.timeout_s:g} s each): {', '.join(hostile['reasons'])}."
    )
    names = [name for name in sides if name in found]
    rows = []
    for name in names:
        agree = np.equal(found[name][0]["correct"], found["strop"][0]["correct"])
        row = {
            "side": name,
            "verdicts_per_s": len(found_cases) / median(found[name]),
            "agree_frac": float(agree.mean()),
        }
        rows.append(row | (ratios(found, name, ["strop"]) if name == "math-verify" else {}))
    details = _disagreements(found_cases, found) if "math-verify" in found else []
    return Result(
        rows=rows, samples=seconds_of(found), notes=notes, details=details,
        ceilings=ceiling.figures({"memory": found["bandwidth"]}),
    )  # fmt: skip


def cases(settings: Settings) -> tuple[list[Case], list[str]]:
    """Distinct (gold, text) pairs of the run and the data folder, and notes on what was not there."""
    found: dict[Case, None] = {}
    notes = []
    files = sorted(Path(settings.run).glob("rollouts/**/*.parquet"))
    if not files:
        notes.append(f"No completions of a run: {settings.run} has no recorded rollouts (--set run=RUN).")
    for file in files:
        found |= {(r.task.answer, r.text): None for r in read_rollouts(file) if r.task.verifier in MATHEMATICAL}
    benchmarks = sorted(Path(settings.data).glob("*.jsonl"))
    if not benchmarks:
        notes.append(f"No benchmark solutions: {settings.data} has no JSONL files (--set data=DIR).")
    for file in benchmarks:
        found |= dict.fromkeys(_benchmark(file))
    if not found:
        raise UserError(f"nothing to judge: {' '.join(notes)}")
    order = np.random.default_rng(0).permutation(len(found))[: settings.max_cases]
    every = list(found)
    return [every[i] for i in order], notes


def _benchmark(file: Path) -> list[Case]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = [row for row in rows if row.get("answer")]
    golds = [str(row["answer"]) for row in rows]
    texts = [str(row.get("solution") or f"The answer is \\boxed{{{row['answer']}}}.") for row in rows]
    return [*zip(golds, texts, strict=True), *zip(golds[1:] + golds[:1], texts, strict=True)]


def _disagreements(found_cases: list[Case], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    both = zip(found_cases, found["strop"][0]["correct"], found["math-verify"][0]["correct"], strict=True)
    return [
        {"gold": gold, "text_end": text[-160:], "strop": bool(own), "math_verify": bool(other)}
        for (gold, text), own, other in both
        if own != other
    ][:SHOWN]


# --- the sides --------------------------------------------------------------------------------------------------------


def ours(values: Mapping[str, Any], link: Link) -> None:
    from strop.rewards import algebra, math

    found = json.loads(Path(values["cases"]).read_text())
    caches = [f for room in (algebra, math) for f in vars(room).values() if isinstance(f, functools._lru_cache_wrapper)]
    while link.wait() is not None:
        for cache in caches:  # a round must not profit from the one before
            cache.cache_clear()
        link.done(correct=[int(math.grade(gold, text).correct) for gold, text in found])


def plain(values: Mapping[str, Any], link: Link) -> None:
    from math_verify import parse, verify

    found = json.loads(Path(values["cases"]).read_text())
    while link.wait() is not None:
        link.done(correct=[int(verify(parse(f"\\boxed{{{gold}}}"), parse(text))) for gold, text in found])


def pool(values: Mapping[str, Any], link: Link) -> None:
    """A new pool every round, because a `Scorer` remembers its verdicts; its start does not count."""
    from strop.rewards import Scorer

    def pairs(found: list[Any]) -> list[tuple[Task, str]]:
        made = [
            Task.make(source="bench", prompt=str(i), answer=gold, verifier="math") for i, (gold, _) in enumerate(found)
        ]
        return [(task, text) for task, (_, text) in zip(made, found, strict=True)]

    settings = Settings.model_validate(values["settings"])
    judged = pairs(json.loads(Path(values["cases"]).read_text()))
    while (request := link.wait()) is not None:
        with Scorer(workers=settings.workers, timeout_s=settings.timeout_s) as scorer:
            scorer.verify(pairs([("1", f"\\boxed{{{i}}}") for i in range(64)]))  # until every worker has started
            started = time.perf_counter()
            verdicts = scorer.verify(pairs([("5", text) for text in HOSTILE]) if request.get("hostile") else judged)
            link.done(
                seconds=time.perf_counter() - started, correct=[int(v.correct) for v in verdicts],
                reasons=[v.reason.value for v in verdicts],
            )  # fmt: skip
