"""Which of many sets are near one another, and which of them stay, at a cost that grows with their number and no faster.

Knows sets, bands of signatures and tags; not what a problem is. Rows come in order of preference: of two that are near
the earlier stays, and nothing goes except for a row that stays and that it is near to itself, so a chain A~B~C loses B
and keeps C where A and C are not near. A bucket that holds thousands (a template, a common instruction) is not compared
pair by pair: each row meets its neighbours and the first of the bucket, and what is left after a round meets others in
the next. Read by `duplicates`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from strop.curate.grams import Sets, mix, overlaps

__all__ = ["Near", "look_alikes", "settle"]

WINDOW = 16  # rows of a bucket that a row is compared with; smaller buckets are compared whole
CROWD = 1000  # rows of a bucket from which it is only the next two, and the first
ROUNDS = 8
LOOKS = 400_000  # pairs that `look_alikes` compares at most

Same = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of pairs of near rows (left, right): which are one problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """`keeper[i]` is the earlier row that i repeats, -1 where it stays; `refused` are near pairs that were not the same."""

    keeper: np.ndarray  # int64 [N]
    overlap: np.ndarray  # float [N], with the keeper
    refused: np.ndarray  # int64 [M, 2]
    refused_overlap: np.ndarray  # float [M]
    compared: int
    crowded: int  # rows of the first round in buckets that were not compared whole


def settle(sets: Sets, bands: np.ndarray, tags: np.ndarray, jaccard: float, same: Same) -> Near:
    """Every row's earlier near row of equal tag (the first that stays), found through `bands` [N, B]."""
    known, refused = _Pairs(), _Pairs()
    alive = np.arange(len(sets))
    crowded = compared = 0
    keeper = np.full(len(sets), -1)
    seen = np.zeros(0, np.uint64)
    for round_ in range(ROUNDS):
        found = 0
        was_crowded = 0
        for proposed, crowd in _proposals(bands, alive, tags):
            was_crowded = max(was_crowded, crowd)
            new = proposed[~_within(proposed, seen)]
            seen = _rising(np.concatenate([seen, new]))
            left, right, overlap = _near(sets, new, jaccard)
            compared += len(new)
            one = same(left, right) if len(left) else np.zeros(0, bool)
            known.add(left[one], right[one], overlap[one])
            refused.add(left[~one], right[~one], overlap[~one])
            found += int(one.sum())
        crowded = was_crowded if round_ == 0 else crowded
        keeper = _first_that_stays(len(sets), known)
        alive = np.flatnonzero(keeper < 0)
        if not found or not was_crowded:
            break
    return Near(
        keeper=keeper, overlap=known.overlap_of(keeper), refused=refused.pairs, refused_overlap=refused.overlaps,
        compared=compared, crowded=crowded,
    )  # fmt: skip


def look_alikes(
    sets: Sets, bands: np.ndarray, tags: np.ndarray, rows: np.ndarray, jaccard: float
) -> tuple[np.ndarray, np.ndarray]:
    """(pairs [M, 2], overlaps [M]) of `rows` that are near and differ in their tags: those that meet within `LOOKS`
    comparisons, each row with the next of its bucket."""
    found, budget = [np.zeros(0, np.uint64)], LOOKS
    for band in range(bands.shape[1]):
        order, bucket = _buckets(bands[rows, band], bands[rows, (band + 1) % bands.shape[1]])
        order = rows[order]
        for step in (1, 2, 3):
            here = np.flatnonzero(bucket[step:] == bucket[:-step])
            apart = here[tags[order[here]] != tags[order[here + step]]][: max(0, budget)]
            budget -= len(apart)
            found.append(_pack(order[apart], order[apart + step]))
    left, right, overlap = _near(sets, _rising(np.concatenate(found)), jaccard)
    return np.stack([left, right], axis=1), overlap


# --- proposals --------------------------------------------------------------------------------------------------------


def _proposals(bands: np.ndarray, alive: np.ndarray, tags: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Of each band, the packed pairs of rows with equal tags that it proposes, and the rows in buckets too large for all."""
    num = bands.shape[1]
    spread = mix(tags[alive])
    for band in range(num):
        keys = mix(bands[alive, band] ^ spread)
        order, bucket = _buckets(keys, bands[alive, (band + 1) % num])
        if not len(order):
            continue
        rows = alive[order]
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))
        sizes = np.diff(starts, append=len(rows))
        size = np.repeat(sizes, sizes)
        first = np.repeat(np.minimum.reduceat(rows, starts), sizes)
        large = (size > WINDOW + 1) & (rows != first)
        pairs = [_pack(first[large], rows[large])]
        for step in range(1, min(WINDOW, int(sizes.max()) - 1) + 1):
            here = np.flatnonzero(bucket[step:] == bucket[:-step])
            here = here[(size[here] <= CROWD) | (step <= 2)]
            pairs.append(_pack(rows[here], rows[here + step]))
        yield _rising(np.concatenate(pairs)), int(sizes[sizes > WINDOW + 1].sum())


def _buckets(keys: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, bucket of each) of the rows whose key another row has, bucket by bucket; in a bucket by `second`, so that
    those that agree twice are neighbours."""
    order = np.argsort(keys, kind="stable")
    equal = keys[order[1:]] == keys[order[:-1]]
    member = np.zeros(len(keys), bool)
    member[1:] |= equal
    member[:-1] |= equal
    order = order[member]
    order = order[np.lexsort((order, second[order], keys[order]))]
    new = np.ones(len(order), bool)
    new[1:] = keys[order[1:]] != keys[order[:-1]]
    return order, np.cumsum(new) - 1


def _rising(values: np.ndarray) -> np.ndarray:
    """Sorted, each once (numpy's own `unique` hashes 64-bit integers, ten times as slow on millions)."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _pack(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.minimum(a, b).astype(np.uint64), np.maximum(a, b).astype(np.uint64)
    return (low << np.uint64(32)) | high


def _within(values: np.ndarray, rising: np.ndarray) -> np.ndarray:
    places = np.searchsorted(rising, values)
    inside = places < len(rising)
    inside[inside] = rising[places[inside]] == values[inside]
    return inside


def _near(sets: Sets, packed: np.ndarray, jaccard: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(left, right, overlap) of the pairs that overlap enough; sets whose sizes alone forbid it are not compared."""
    left = (packed >> np.uint64(32)).astype(np.int64)
    right = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
    sizes = sets.sizes
    small, large = np.minimum(sizes[left], sizes[right]), np.maximum(sizes[left], sizes[right])
    possible = small >= jaccard * large
    left, right = left[possible], right[possible]
    overlap = overlaps(sets, left, sets, right)
    near = overlap >= jaccard
    return left[near], right[near], overlap[near]


# --- who stays --------------------------------------------------------------------------------------------------------


class _Pairs:
    """A growing list of near pairs, earlier row first."""

    def __init__(self) -> None:
        self.pairs = np.zeros((0, 2), np.int64)
        self.overlaps = np.zeros(0)

    def add(self, left: np.ndarray, right: np.ndarray, overlap: np.ndarray) -> None:
        pairs = np.concatenate([self.pairs, np.stack([left, right], axis=1)])
        overlap = np.concatenate([self.overlaps, overlap])
        order = np.lexsort((pairs[:, 0], pairs[:, 1]))  # by the later row, then by the earlier
        self.pairs, self.overlaps = pairs[order], overlap[order]

    def overlap_of(self, keeper: np.ndarray) -> np.ndarray:
        found = np.zeros(len(keeper))
        chosen = keeper[self.pairs[:, 1]] == self.pairs[:, 0]
        found[self.pairs[chosen, 1]] = self.overlaps[chosen]
        return found


def _first_that_stays(num: int, known: _Pairs) -> np.ndarray:
    keeper = [-1] * num
    for left, right in zip(known.pairs[:, 0].tolist(), known.pairs[:, 1].tolist(), strict=True):
        if keeper[right] < 0 and keeper[left] < 0:
            keeper[right] = left
    return np.array(keeper, np.int64)
