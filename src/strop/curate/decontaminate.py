"""What training must not see leaves the pool: rows that are a benchmark's problem, quote it, or nearly are it.

Three ways, each complete (no hashing that may miss a pair): equal after folding; a run of words shared with a benchmark's
problem; overlap of word 3-grams. A row whose numbers and signs are others is a new problem: it stays, and is listed with
its match for a reader to judge. Numbers are the same where they are equal, or where the one problem's are a stretch of
the other's, because a quotation with an instruction behind it is still the problem. Answers are not compared: to leave
out too much costs a row, to leave out too little costs the benchmark. Knows no file; `tools.against` holds the benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from strop.config.curation import DecontaminateStage
from strop.curate import grams
from strop.curate.fold import fold, fold_answer, marks_apart
from strop.curate.rows import Fate, Outcome, Tools

__all__ = ["Index", "decontaminate", "extends", "index", "look"]

KINDS = ("exact", "near", "words")
NEAR_NGRAM = 3
WHOLE = 0.25  # overlap, or share of the shorter problem's runs, from which a row is a benchmark's problem with something added
FEWEST_MARKS = 3  # numbers and signs that make a stretch of another problem's more than chance
MOST_LISTED = 300
SHOWN = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The benchmarks, as every process that compares rows with them needs them. Rows are those of `tools.against`."""

    settings: DecontaminateStage
    marks: tuple[str, ...]
    exact: Mapping[str, int]  # key of `fold` to the first row that has it
    sets: grams.Sets  # 3-grams of each row
    rare: np.ndarray  # sorted 3-grams, of each row so many of its rarest that a near problem must have one of them
    rare_owner: np.ndarray
    runs: np.ndarray  # sorted n-grams
    run_owner: np.ndarray
    num_runs: np.ndarray  # of each row


def decontaminate(rows: pa.Table, settings: DecontaminateStage, tools: Tools) -> Outcome:
    """Drops what a benchmark holds, and lists what only its numbers tell from a benchmark's problem."""
    against = index(tools.against, settings)
    found = tools.measure(look, rows, against, what="comparing with benchmarks")
    match, kind, overlap = (found[name].to_numpy() for name in ("match", "kind", "overlap"))
    same = found["same"].to_numpy(zero_copy_only=False)
    ids = tools.against["id"].to_pylist()

    def says(row: int) -> str:
        share = {
            "exact": "",
            "near": f", overlap {overlap[row]:.2f}",
            "words": f", {overlap[row]:.0%} of the shorter one's words in runs",
        }
        return ids[match[row]] + share[KINDS[kind[row]]]

    reasons = {
        "exact": "benchmark: exact", "near": "benchmark: near", "words": f"benchmark: {settings.ngram} words in a row",
    }  # fmt: skip
    dropped = {
        row: Fate(reason=reasons[KINDS[kind[row]]], detail=says(row))
        for row in np.flatnonzero((match >= 0) & same).tolist()
    }
    apart = np.flatnonzero((match >= 0) & ~same)
    answers, theirs = rows["answer"], tools.against["answer"]
    as_well = np.array(
        [fold_answer(answers[i].as_py()) == fold_answer(theirs[int(match[i])].as_py()) for i in apart.tolist()], bool
    )
    order = apart[np.lexsort((apart, -overlap[apart], kind[apart], ~as_well))][:MOST_LISTED]
    listed = [_listed(rows, row, tools.against, int(match[row]), KINDS[kind[row]], says(row)) for row in order.tolist()]
    notes = (
        f"{len(dropped)} rows are or quote one of {len(ids)} benchmark problems.",
        f"{len(apart)} rows are as close to a benchmark problem and stay, because their numbers or signs are others; "
        f"{as_well.sum()} of these have its answer and are worth a look"
        + (f"; {len(listed)} of them are listed." if len(apart) > len(listed) else "."),
    )
    return Outcome(dropped=dropped, listed=tuple(listed), notes=notes)


def index(against: pa.Table, settings: DecontaminateStage) -> Index:
    """What `look` compares rows with. The order of the benchmarks' rows decides which of two equal matches is named."""
    folded = [fold(prompt) for prompt in against["prompt"].to_pylist()]
    words = [f.words for f in folded]
    sets = grams.ngrams(words, NEAR_NGRAM, shorter=True)
    runs = grams.ngrams(words, settings.ngram, shorter=False)
    rare, rare_owner = _rare(sets, settings.jaccard)
    by_hash = np.argsort(runs.hashes, kind="stable")
    exact: dict[str, int] = {}
    for row, f in enumerate(folded):
        if f.key:
            exact.setdefault(f.key, row)
    return Index(
        settings=settings, marks=tuple(f.marks for f in folded), exact=exact, sets=sets, rare=rare, rare_owner=rare_owner,
        runs=runs.hashes[by_hash], run_owner=np.repeat(np.arange(len(runs)), runs.sizes)[by_hash], num_runs=runs.sizes,
    )  # fmt: skip


def _rare(sets: grams.Sets, jaccard: float) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, owners), sorted: of each set its rarest floor((1 - t) size) + 1.

    A set that overlaps by t lacks at most (1 - t) of this one's members, so it has one of these; and because they are
    the rarest, few others do (prefix filtering, Chaudhuri et al. 2006).
    """
    _, which, counts = np.unique(sets.hashes, return_inverse=True, return_counts=True)
    row = np.repeat(np.arange(len(sets)), sets.sizes)
    order = np.lexsort((sets.hashes, counts[which], row))
    place = np.arange(len(order)) - np.repeat(sets.offsets[:-1], sets.sizes)
    wanted = np.floor((1 - jaccard) * sets.sizes + 1e-9).astype(np.int64) + 1
    kept = order[place < np.repeat(wanted, sets.sizes)]
    kept = kept[np.argsort(sets.hashes[kept], kind="stable")]
    return sets.hashes[kept], row[kept]


# --- row by row -------------------------------------------------------------------------------------------------------


def look(rows: pa.Table, against: Index) -> pa.Table:
    """Of each row the benchmark row that it matches best (-1: none), how (a place in KINDS), how much, and whether the
    numbers are the same. A match with the same numbers goes before one without, then by kind, then by overlap."""
    folded = [fold(prompt) for prompt in rows["prompt"].to_pylist()]
    words = [f.words for f in folded]
    hits: list[tuple[int, int, int, float]] = []  # row, kind, benchmark row, overlap
    hits += [(i, 0, against.exact[f.key], 1.0) for i, f in enumerate(folded) if f.key in against.exact]
    hits += _near(grams.ngrams(words, NEAR_NGRAM, shorter=True), against)
    hits += _runs(grams.ngrams(words, against.settings.ngram, shorter=False), against)
    best: dict[int, tuple[bool, int, float, int]] = {}
    for row, kind, match, overlap in hits:
        mine, theirs = folded[row].marks, against.marks[match]
        same = mine == theirs or (overlap >= WHOLE and extends(mine, theirs))
        rank = (not same, kind, -overlap, match)
        best[row] = min(rank, best.get(row, rank))
    nothing = (True, 0, 0.0, -1)
    ranks = [best.get(row, nothing) for row in range(len(rows))]
    return pa.table(
        {
            "match": pa.array([rank[3] for rank in ranks], pa.int32()),
            "kind": pa.array([rank[1] for rank in ranks], pa.int8()),
            "overlap": pa.array([-rank[2] for rank in ranks], pa.float64()),
            "same": pa.array([not rank[0] for rank in ranks], pa.bool_()),
        }
    )


def _near(sets: grams.Sets, against: Index) -> list[tuple[int, int, int, float]]:
    row, match, _ = grams.shared(sets, against.rare, against.rare_owner)
    overlap = grams.overlaps(sets, row, against.sets, match)
    near = overlap >= against.settings.jaccard
    return [(int(i), 1, int(k), float(o)) for i, k, o in zip(row[near], match[near], overlap[near], strict=True)]


def _runs(sets: grams.Sets, against: Index) -> list[tuple[int, int, int, float]]:
    row, match, count = grams.shared(sets, against.runs, against.run_owner)
    share = count / np.minimum(sets.sizes[row], against.num_runs[match])
    return [(int(i), 2, int(k), float(s)) for i, k, s in zip(row, match, share, strict=True)]


def extends(one: str, other: str) -> bool:
    """Are the numbers and signs of the one (at least `FEWEST_MARKS`) a stretch of the other's?

    >>> extends("2 + 3", "2 + 3 100"), extends("100 2 + 3", "2 + 3"), extends("2 + 3", "2 + 4")
    (True, True, False)
    """
    short, long = sorted((one, other), key=len)
    return short.count(" ") + 1 >= FEWEST_MARKS and f" {short} " in f" {long} "


def _listed(rows: pa.Table, row: int, against: pa.Table, match: int, kind: str, says: str) -> Mapping[str, Any]:
    prompt, other = rows["prompt"][row].as_py(), against["prompt"][match].as_py()
    return {
        "id": rows["id"][row].as_py(), "other": against["id"][match].as_py(), "kind": kind, "match": says,
        "apart": f"numbers or signs: {marks_apart(fold(prompt).marks, fold(other).marks)}",
        "prompt": prompt[:SHOWN], "other_prompt": other[:SHOWN],
    }  # fmt: skip
