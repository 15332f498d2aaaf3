"""One problem, one row: exact duplicates, then near ones, inside a source and across sources.

Exact is what folding leaves equal (`fold`); near is a Jaccard overlap of word n-grams. Both need equal numbers and signs,
and near ones equal answers too: "find the largest" and "find the smallest" share nearly every word. Pairs that only
these keep apart are listed for a reader. Which row stays does not depend on the order of rows: one with a worked
solution first, then by source, then by hash of content. Knows no file and no benchmark.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from strop.config.curation import DuplicatesStage
from strop.curate import grams, near
from strop.curate.fold import fold, fold_answer, marks_apart
from strop.curate.rows import Fate, Outcome, Tools

__all__ = ["duplicates", "look"]

EXACT, OTHER_ANSWER, NEAR = "exact duplicate", "exact duplicate with another answer", "near duplicate"
MOST_LISTED = 300  # pairs
SHOWN = 400  # characters of a problem in the list

_answer = functools.lru_cache(maxsize=1 << 16)(fold_answer)


def look(rows: pa.Table, settings: DuplicatesStage) -> pa.Table:
    """What of each row decides: `key` and `marks` (hashes of `fold`), its n-grams, its signature, a worked solution."""
    folded = [fold(prompt) for prompt in rows["prompt"].to_pylist()]
    # where nothing is left of a problem ("?!"), only the very same text is the same
    keys = [f.key or "\0" + prompt.strip() for f, prompt in zip(folded, rows["prompt"].to_pylist(), strict=True)]
    sets = grams.ngrams([f.words for f in folded], settings.ngram, shorter=True)
    num, long = grams.banding(settings.jaccard, settings.permutations)
    signatures = grams.bands(sets, num, long)
    return pa.table(
        {
            "key": pa.array([grams.hash_text(key) for key in keys], pa.uint64()),
            "marks": pa.array([grams.hash_text(f.marks) for f in folded], pa.uint64()),
            "solved": pa.array([_has_solution(meta) for meta in rows["meta"].to_pylist()], pa.bool_()),
            "grams": sets.narrow().arrow(),
            "bands": pa.FixedSizeListArray.from_arrays(pa.array(signatures.ravel()), num),
        }
    )


def duplicates(rows: pa.Table, settings: DuplicatesStage, tools: Tools) -> Outcome:
    """Drops all but one row of each problem. Raises UserError where the library for signatures is missing."""
    found = tools.measure(look, rows, settings, what="finding duplicates")
    order = _by_preference(rows, found)
    pool = _Pool(rows, order)
    dropped: dict[int, Fate] = {}

    marks = found["marks"].to_numpy()[order]
    problem = grams.mix(found["key"].to_numpy()[order] ^ grams.mix(marks))
    _, first, which = np.unique(problem, return_index=True, return_inverse=True)
    keeper = first[which]
    for row in np.flatnonzero(keeper != np.arange(len(keeper))).tolist():
        dropped[int(order[row])] = pool.exact(row, int(keeper[row]))

    sets = grams.Sets.of(found["grams"])
    left = np.flatnonzero((keeper == np.arange(len(keeper))) & (sets.sizes[order] > 0))  # by preference
    sets = sets.take(order[left])
    bands = pc.list_flatten(found["bands"]).to_numpy().reshape(len(rows), found["bands"].type.list_size)[order[left]]  # pyright: ignore[reportAttributeAccessIssue]
    num_exact = len(dropped)
    result = near.settle(sets, bands, marks[left], settings.jaccard, lambda a, b: pool.equal_answers(left[a], left[b]))
    for row in np.flatnonzero(result.keeper >= 0).tolist():
        kept = int(left[result.keeper[row]])
        dropped[int(order[left[row]])] = Fate(reason=NEAR, detail=f"{pool.id(kept)}, overlap {result.overlap[row]:.2f}")

    stays = result.keeper < 0
    pairs, overlap = near.look_alikes(sets, bands, marks[left], np.flatnonzero(stays), settings.jaccard)
    by_answer = stays[result.refused].all(axis=1)
    pairs = np.concatenate([pairs, result.refused[by_answer]])
    overlap = np.concatenate([overlap, result.refused_overlap[by_answer]])
    best = np.lexsort((pairs[:, 1], pairs[:, 0], -overlap))[:MOST_LISTED]
    listed = tuple(pool.apart(*left[pairs[i]].tolist(), float(overlap[i])) for i in best.tolist())  # pyright: ignore[reportCallIssue]
    notes = [
        f"{num_exact} rows repeat a problem exactly, {len(dropped) - num_exact} nearly (overlap of {settings.ngram}-grams "
        f"at least {settings.jaccard:g}, equal numbers, signs and answers; {result.compared} pairs compared).",
        f"At least {len(pairs)} pairs of rows are as near and stay, because a number, a sign or the answer differs"
        + (f"; {len(listed)} of them are listed." if len(pairs) > len(listed) else "."),
    ]
    if result.crowded:
        notes.append(
            f"{result.crowded} rows are in groups too large to compare every pair; a near duplicate may remain there."
        )
    return Outcome(dropped=dropped, listed=listed, notes=tuple(notes))


class _Pool:
    """The rows in order of preference, for what is asked of few of them."""

    def __init__(self, rows: pa.Table, order: np.ndarray) -> None:
        self._rows, self._order = rows, order

    def _value(self, column: str, row: int) -> str:
        return self._rows[column][int(self._order[row])].as_py()

    def id(self, row: int) -> str:
        return self._value("id", row)

    def equal_answers(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        which, places = np.unique(np.concatenate([left, right]), return_inverse=True)
        answers = self._rows["answer"].take(pa.array(self._order[which])).to_pylist()
        codes = np.array([grams.hash_text(_answer(answer)) for answer in answers], np.uint64)[places]
        return codes[: len(left)] == codes[len(left) :]

    def exact(self, row: int, kept: int) -> Fate:
        here, there = self._value("answer", row), self._value("answer", kept)
        if here == there or _answer(here) == _answer(there):
            return Fate(reason=EXACT, detail=self.id(kept))
        return Fate(
            reason=OTHER_ANSWER, detail=f"{self.id(kept)}, which says {_cut(there, 60)!r}, not {_cut(here, 60)!r}"
        )

    def apart(self, row: int, other: int, overlap: float) -> Mapping[str, Any]:
        """Two rows that stay though they are near, and what keeps them apart."""
        prompts = self._value("prompt", row), self._value("prompt", other)
        marks = fold(prompts[0]).marks, fold(prompts[1]).marks
        if marks[0] != marks[1]:
            why = f"numbers or signs: {marks_apart(*marks)}"
        else:
            why = f"answers: {_cut(self._value('answer', row), 60)!r} or {_cut(self._value('answer', other), 60)!r}"
        return {
            "id": self.id(row), "other": self.id(other), "overlap": round(overlap, 3), "apart": why,
            "prompt": _cut(prompts[0], SHOWN), "other_prompt": _cut(prompts[1], SHOWN),
        }  # fmt: skip


def _by_preference(rows: pa.Table, found: pa.Table) -> np.ndarray:
    by = pa.table(
        {"unsolved": pc.invert(found["solved"]), **{name: rows[name] for name in ("source", "id", "licence", "meta")}}  # pyright: ignore[reportAttributeAccessIssue]
    )
    return pc.sort_indices(by, [(name, "ascending") for name in by.column_names]).to_numpy().astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]


def _has_solution(meta: str) -> bool:
    if '"solution"' not in meta:
        return False
    solution = json.loads(meta).get("solution")
    return isinstance(solution, str) and bool(solution.strip())


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
