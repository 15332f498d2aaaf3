"""Which rows are held out, and which are trained on: by hash, by shares of difficulty, or so many of each source.

Knows hashes, pass rates and counts. Held-out rows come first and depend on the rows alone, neither on the seed nor on how
many are trained on; then the training rows are taken in the order of a hash with the seed, so that a larger set holds the
smaller one. What cannot be had in the number asked for is taken as far as there is of it, and a note says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64

from strop.config.curation import MixtureStage
from strop.curate.rows import Fate, Outcome, Tools
from strop.record import UserError, content_hash, seed_of

__all__ = ["look", "mixture"]

BANDS = ("easy", "middle", "hard")
FOUND = pa.schema([
    ("problem", pa.int64()), ("row", pa.int64()), ("drawn", pa.int64()), ("pass_rate", pa.float64()),
])  # fmt: skip


def mixture(rows: pa.Table, settings: MixtureStage, tools: Tools) -> Outcome:
    """Rows held out get meta `split: heldout`; those that are neither held out nor trained on are "not drawn".

    The same problem under another answer or source is never on both sides. Raises UserError where shares are asked for and
    a row has no pass rate.
    """
    found = tools.measure(look, rows, tools.seed, what="what a mixture asks of a row")
    problem, row, drawn, rate = (found[name].combine_chunks().to_numpy(zero_copy_only=False) for name in FOUND.names)
    notes: list[str] = []
    heldout, twins = _held_out(problem, row, settings.heldout, notes)
    dropped = dict.fromkeys(twins.tolist(), Fate(reason="the problem of a held-out row"))
    free = np.ones(len(rows), bool)
    free[heldout] = free[twins] = False
    order = np.flatnonzero(free)[np.lexsort((row[free], drawn[free]))]  # free rows, as they are taken
    parts, targets = _parts(rows, order, rate.astype(np.float64), settings)
    for name, places in parts.items():
        taken = _take(name, len(places), targets, notes)
        dropped |= dict.fromkeys(places[taken:].tolist(), Fate(reason="not drawn", detail=name))
    trained = len(order) - sum(fate.reason == "not drawn" for fate in dropped.values())
    notes.append(f"{trained:,} rows to train on and {len(heldout):,} held out, of {len(rows):,}")
    if empty := [name for name in targets if name not in parts]:
        notes += [f"asked for {targets[name]:,} rows of {name!r}, and there are none" for name in empty]
    return Outcome(
        dropped=dropped, changed={place: {"split": "heldout"} for place in heldout.tolist()}, notes=tuple(notes)
    )


def look(rows: pa.Table, seed: int) -> pa.Table:
    """Of each row: hashes of its problem, of itself, and of itself with the seed; its pass rate, null where it has none."""
    found: dict[str, list[Any]] = {name: [] for name in FOUND.names}
    columns = (rows[name].to_pylist() for name in ("source", "prompt", "answer", "meta"))
    for source, prompt, answer, meta in zip(*columns, strict=True):
        found["problem"].append(int(content_hash(prompt, ""), 16) >> 1)
        found["row"].append(seed_of(source, prompt, answer))
        found["drawn"].append(seed_of(seed, "mixture", source, prompt, answer))
        found["pass_rate"].append(_rate(meta))
    return pa.table(found, schema=FOUND)


def _rate(meta: str) -> float | None:
    """The pass rate in a row's JSON; None for what is no share.

    >>> _rate('{"pass_rate": 0.25}'), _rate('{"pass_rate": "much"}'), _rate('{"pass_rate": true}'), _rate("")
    (0.25, None, None, None)
    """
    if "pass_rate" not in meta:
        return None
    value = json.loads(meta).get("pass_rate")
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if known else None


# --- who goes where ---------------------------------------------------------------------------------------------------


def _held_out(
    problem: Int64[np.ndarray, " N"], row: Int64[np.ndarray, " N"], num: int, notes: list[str]
) -> tuple[Int64[np.ndarray, " H"], Int64[np.ndarray, " T"]]:
    """Places of the rows with the lowest problem hashes, one a problem; and of the other rows of these problems."""
    order = np.lexsort((row, problem))
    first = np.append(True, np.diff(problem[order]) != 0)[: len(order)]  # of each problem
    chosen = order[first][:num]
    if len(chosen) < num:
        notes.append(f"asked for {num:,} held-out problems, there are {len(chosen):,}, so none is left to train on")
    is_held = np.isin(problem, problem[chosen])
    is_held[chosen] = False
    return chosen, np.flatnonzero(is_held)


def _parts(
    rows: pa.Table, order: Int64[np.ndarray, " F"], rate: Float64[np.ndarray, " N"], settings: MixtureStage
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The rows that may be trained on, by band or source and in the order they are taken; how many of each are wanted.

    A part without a number is not wanted at all, except where there are no numbers.
    """
    if settings.by_source:
        sources = np.array(rows["source"].to_pylist(), dtype=object)[order]
        names = sorted(set(sources.tolist()))
        return {name: order[sources == name] for name in names}, dict(settings.by_source)
    if not settings.shares:
        return {"rows": order}, {"rows": len(order) if settings.size is None else settings.size}
    if (unknown := int(np.isnan(rate).sum())) > 0:
        place = int(np.flatnonzero(np.isnan(rate))[0])
        raise UserError(
            f"shares of easy, middle and hard need a pass rate, and {unknown:,} of {len(rate):,} rows have none, such as "
            f"{rows['id'][place].as_py()}; add a stage that does difficulty, or ask by_source"
        )
    is_in = _bands(rate[order], settings)
    parts = {name: order[is_in[name]] for name in BANDS}
    return parts, _targets(settings, {name: len(places) for name, places in parts.items()})


def _bands(rate: Float64[np.ndarray, " F"], settings: MixtureStage) -> dict[str, Bool[np.ndarray, " F"]]:
    easy, hard = rate >= settings.easy_from, rate < settings.hard_below
    return {"easy": easy, "middle": ~easy & ~hard, "hard": hard}


def _targets(settings: MixtureStage, there_are: Mapping[str, int]) -> dict[str, int]:
    """Rows of each band; without a size as many as all shares can be met with.

    Of what rounding leaves over the bands with the largest remainders get one each.

    >>> _targets(MixtureStage(do="mixture", size=10, easy=0.15, hard=0.85), {"easy": 1, "middle": 9, "hard": 99})
    {'easy': 2, 'middle': 0, 'hard': 8}
    >>> _targets(MixtureStage(do="mixture", easy=0.25, hard=0.75), {"easy": 50, "middle": 9, "hard": 99})
    {'easy': 33, 'middle': 0, 'hard': 99}
    """
    shares = settings.shares
    size = settings.size
    if size is None:
        size = int(min(there_are[name] / share for name, share in shares.items()) + 1e-9)
    exact = {name: size * shares.get(name, 0.0) for name in BANDS}
    targets = {name: int(wanted + 1e-9) for name, wanted in exact.items()}
    by_remainder: Sequence[str] = sorted(BANDS, key=lambda name: targets[name] - exact[name])
    for name in by_remainder[: size - sum(targets.values())]:
        targets[name] += 1
    return targets


def _take(name: str, there_are: int, targets: Mapping[str, int], notes: list[str]) -> int:
    """How many of a part are taken; `notes` hears of a shortage."""
    wanted = targets.get(name, 0)
    if wanted > there_are:
        what = {"rows": "rows"}.get(name, f"{name} ones" if name in BANDS else f"rows of {name!r}")
        notes.append(f"asked for {wanted:,} {what}, there are {there_are:,}")
    return min(wanted, there_are)
