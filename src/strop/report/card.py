"""The data card of a curated set as one HTML file that needs nothing else: where every row went, and what is in the rest.

Reads what `curate.run` left in a folder (summary.json, recipe.yaml, train.parquet, heldout.parquet, fates.parquet, listed/)
and decides nothing. Holds no time and no machine: the same data gives the same card. What a row says is hostile, so the
template escapes everything and the page forbids itself scripts and any request.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

import strop
from strop.disk import write_text
from strop.record import UserError
from strop.report import charts, words

__all__ = ["render", "run"]

KEPT_IN = ("train", "heldout")  # what `fates.parquet` calls the end of a row that is kept
SHOWN = 5  # rows of each stage, and pairs of each list
MOST_BARS = 12  # of a histogram of names; the rest are one bar
LENGTHS = (50, 100, 200, 400, 800, 1600, 3200)  # characters, upper ends
NUM_RATES = 8  # bars of the histogram of pass rates
NAMED = {
    "topic": "Topic",
    "subject": "Subject",
    "level": "Level",
    "language": "Language",
}  # columns with a bar for each value


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One histogram: a row of a table for each bar."""

    title: str
    note: str
    axis: Markup
    rows: tuple[tuple[str, int, Markup], ...]  # label, count, mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stage in the funnel."""

    name: str
    rows_out: int
    dropped: Mapping[str, int]
    mark: Markup
    notes: Sequence[str]
    samples: Sequence[Mapping[str, Any]]
    listed: int
    pairs: Sequence[Mapping[str, str]]

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())


def run(folder: Path, out: Path | None = None) -> Path:
    """Writes the card of a curated set and returns where it is (`card.html` in the folder unless told).

    Raises UserError where `folder` holds no finished curation, DiskFull if there is no room.
    """
    out = out or folder / "card.html"
    write_text(out, render(folder))
    return out


def render(folder: Path) -> str:
    """The card as text."""
    summary = _summary(folder)
    rows = {name: pq.read_table(folder / f"{name}.parquet") for name in summary["rows"]}
    samples = _samples(folder / "fates.parquet")
    total = summary["stages"][0]["rows_in"]
    scale = charts.Scale.over([0, total], zero=True, whole=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: words.visible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in words.__all__:
        environment.filters[name] = getattr(words, name)
    page = environment.get_template("card.html.j2").render(
        name=folder.resolve().name,
        summary=summary,
        total=total,
        kept=sum(summary["rows"].values()),
        steps=[_step(folder, stage, samples, scale) for stage in summary["stages"]],
        funnel_axis=charts.axis(scale, charts.tick_label),
        top=charts.bar(float(total), None, scale, "base"),
        histograms=_histograms(rows),
        licences=_counts(part.column("licence") for part in rows.values()),
        recipe=(folder / "recipe.yaml").read_text(encoding="utf-8"),
        version=strop.__version__,
    )
    return page.lstrip()


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not summary.get("finished") or not (folder / "fates.parquet").is_file():
        raise UserError(f"{folder} holds no finished curation; strop curate RECIPE --out {folder} makes one")
    return summary


# --- the funnel -------------------------------------------------------------------------------------------------------


def _step(
    folder: Path, stage: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]], scale: charts.Scale
) -> Step:
    name = stage["name"]
    return Step(
        name=name, rows_out=stage["rows_out"], dropped=stage["dropped"], notes=stage["notes"], listed=stage["listed"],
        mark=charts.bar(float(stage["rows_out"]), None, scale, "rl"), samples=samples.get(name, []),
        pairs=_pairs(folder / "listed" / f"{name}.jsonl"),
    )  # fmt: skip


def _samples(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Of the rows that each stage dropped a few, the reasons in turn, in the order of a hash, which no order of rows moves."""
    fates = pq.read_table(path)
    hashed: dict[str, dict[str, dict[str, tuple[str, int]]]] = {}
    columns = (fates.column(name).to_pylist() for name in ("stage", "reason", "id"))
    for place, (stage, reason, row_id) in enumerate(zip(*columns, strict=True)):
        if stage not in KEPT_IN:
            of_reason = hashed.setdefault(stage, {}).setdefault(reason, {})
            of_reason.setdefault(row_id, (sha256(f"card {row_id}".encode()).hexdigest(), place))
    shown = {}
    for stage, by_reason in hashed.items():
        turns = [
            (turn, reason, place)
            for reason, rows in by_reason.items()
            for turn, (_, place) in enumerate(sorted(rows.values())[:SHOWN])
        ]
        places = [place for _, _, place in sorted(turns)[:SHOWN]]
        shown[stage] = fates.take(pa.array(places, pa.int64())).to_pylist()
    return shown


def _pairs(path: Path) -> list[dict[str, str]]:
    """The first lines of what a stage listed, every value as text."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, SHOWN)]
    return [{key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()} for row in rows]


# --- what is in it ----------------------------------------------------------------------------------------------------


def _histograms(rows: Mapping[str, pa.Table]) -> list[Bars]:
    found = [_bars("Source", "", _counts(part.column("source") for part in rows.values()))]
    found.append(_lengths(part.column("prompt") for part in rows.values()))
    with_rates = [part.column("pass_rate") for part in rows.values() if "pass_rate" in part.column_names]
    if with_rates:
        found.append(_rates(with_rates))
    for key, title in NAMED.items():
        if parts := [part.column(key) for part in rows.values() if key in part.column_names]:
            found.append(_bars(title, "", _counts(parts)))
    return found


def _counts(columns: Iterable[pa.ChunkedArray]) -> list[tuple[str, int]]:
    """Values with how often they occur, most common first; what is not stated is so called."""
    counts: Counter[str] = Counter()
    for column in columns:
        for found in column.value_counts().to_pylist():
            value = found["values"]
            counts["not stated" if value in (None, "") else str(value)] += found["counts"]
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _bars(title: str, note: str, counts: Sequence[tuple[str, int]], *, ordered: bool = False) -> Bars:
    """A bar for each; of many names the last are one."""
    if not ordered and len(counts) > MOST_BARS:
        rest = counts[MOST_BARS - 1 :]
        counts = [*counts[: MOST_BARS - 1], (f"{len(rest)} others", sum(num for _, num in rest))]
    scale = charts.Scale.over([num for _, num in counts], zero=True, whole=True, count=4)
    drawn = tuple((label, num, charts.bar(float(num), None, scale, "rl")) for label, num in counts)
    return Bars(title=title, note=note, axis=charts.axis(scale, charts.tick_label), rows=drawn)


def _lengths(columns: Iterable[pa.ChunkedArray]) -> Bars:
    counts: Counter[int] = Counter()
    total = num = 0
    for column in columns:
        for length in map(len, column.to_pylist()):
            counts[sum(length > end for end in LENGTHS)] += 1
            total, num = total + length, num + 1
    starts = (0, *LENGTHS)
    labels = [
        *(f"{low + 1:,} to {high:,}" for low, high in zip(starts, LENGTHS, strict=False)),
        f"over {LENGTHS[-1]:,}",
    ]
    note = f"characters of the problem; mean {words.count(total / num)}" if num else "characters of the problem"
    return _bars("Length", note, [(label, counts[place]) for place, label in enumerate(labels)], ordered=True)


def _rates(columns: Iterable[pa.ChunkedArray]) -> Bars:
    """Pass rates from the hardest to the easiest; an end belongs to the bar above it, 1 to the last."""
    counts: Counter[int] = Counter()
    for column in columns:
        counts.update(min(NUM_RATES - 1, int(rate * NUM_RATES)) for rate in column.to_pylist() if rate is not None)
    labels = [f"{100 * i / NUM_RATES:.3g}% to {100 * (i + 1) / NUM_RATES:.3g}%" for i in range(NUM_RATES)]
    rows = [(label, counts[place]) for place, label in enumerate(labels)]
    return _bars("Difficulty", "share of the model's own answers that are right", rows, ordered=True)
