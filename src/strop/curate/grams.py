"""Sets of word n-grams as arrays, how much two of them overlap, and MinHash signatures that find which might.

Knows numbers only: rows of words become rows of hashes, flat with offsets, so that a million problems fit in memory and
no loop in Python runs over pairs. Overlaps are exact (up to collisions of 32-bit hashes within one pair of problems,
about one pair in a million); signatures only propose. They come from rensa, whose numbers may change with its
version: what is then proposed differs a little, what is found of it stays right. Read by
`duplicates` and `decontaminate`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, UInt64

from strop.record import UserError

__all__ = ["Sets", "banding", "bands", "hash_text", "mix", "ngrams", "overlaps", "shared"]

SEED = 20_24  # of the signatures: a constant, so that a rerun proposes the same pairs
FOUND = 0.98  # of the pairs that overlap just as much as asked: the share that signatures must propose
_PAIRS_AT_ONCE = 1 << 16
_FACTOR, _MIX_1, _MIX_2 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets:
    """Sets of hashes: set i is `hashes[offsets[i]:offsets[i + 1]]`, without repeats, in rising order."""

    hashes: np.ndarray  # uint32 or uint64
    offsets: np.ndarray  # int64, one more than there are sets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> Sets:
        """The sets of these rows, in this order."""
        sizes = self.sizes[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], sizes)
        return Sets(hashes=self.hashes[places], offsets=offsets)

    def arrow(self) -> pa.LargeListArray:
        """A column of a table, which `of` reads."""
        return pa.LargeListArray.from_arrays(pa.array(self.offsets, pa.int64()), pa.array(self.hashes))

    def narrow(self) -> Sets:
        """The same with the upper 32 bits of each hash: half the memory."""
        return Sets(hashes=(self.hashes >> np.uint64(32)).astype(np.uint32), offsets=self.offsets)

    @staticmethod
    def of(column: pa.ChunkedArray) -> Sets:
        sizes = pc.list_value_length(column).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        return Sets(hashes=pc.list_flatten(column).to_numpy(), offsets=np.concatenate([[0], np.cumsum(sizes)]))  # pyright: ignore[reportAttributeAccessIssue]


@functools.lru_cache(maxsize=1 << 18)
def hash_text(text: str) -> int:
    """64 bits of a text, the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def mix(hashes: UInt64[np.ndarray, "*N"]) -> UInt64[np.ndarray, "*N"]:
    """Spreads 64 bits over all 64 (splitmix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * _MIX_1
    hashes = (hashes ^ (hashes >> np.uint64(27))) * _MIX_2
    return hashes ^ (hashes >> np.uint64(31))


def ngrams(rows: Sequence[Sequence[str]], size: int, *, shorter: bool) -> Sets:
    """The set of n-grams of each row of words, as 64-bit hashes; of a row shorter than `size` all its words where
    `shorter`, else nothing.

    >>> sets = ngrams([["a", "b", "a", "b"], ["a"], []], 2, shorter=True)
    >>> sets.sizes.tolist(), ngrams([["a"]], 2, shorter=False).sizes.tolist()
    ([2, 1, 0], [0])
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    words = np.fromiter(map(hash_text, itertools.chain.from_iterable(rows)), np.uint64, int(lengths.sum()))
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    grams = np.zeros(len(words), np.uint64)
    padded = np.concatenate([words, np.zeros(size, np.uint64)])
    left = np.repeat(starts + lengths, lengths) - np.arange(len(words))  # words from here to the row's end
    for offset in range(size):
        following = np.where(left > offset, padded[offset : offset + len(words)], np.uint64(0))
        grams = mix(grams * _FACTOR + following + np.uint64(1))
    row = np.repeat(np.arange(len(rows)), lengths)
    first = np.arange(len(words)) == np.repeat(starts, lengths)
    keep = (left >= size) | (first & shorter)
    return _sets(row[keep], grams[keep], len(rows))


def _sets(row: np.ndarray, hashes: np.ndarray, num: int) -> Sets:
    order = np.lexsort((hashes, row))
    row, hashes = row[order], hashes[order]
    new = np.ones(len(row), bool)
    new[1:] = (row[1:] != row[:-1]) | (hashes[1:] != hashes[:-1])
    counts = np.bincount(row[new], minlength=num)
    return Sets(hashes=hashes[new], offsets=np.concatenate([[0], np.cumsum(counts)]))


# --- overlaps ---------------------------------------------------------------------------------------------------------


def overlaps(a: Sets, left: np.ndarray, b: Sets, right: np.ndarray) -> Float[np.ndarray, "*N"]:
    """Jaccard overlap of set `left[i]` of `a` with set `right[i]` of `b`, exact; 0 where both are empty.

    >>> sets = ngrams([list("abcd"), list("abcx"), []], 1, shorter=True)
    >>> overlaps(sets, np.array([0, 0, 2]), sets, np.array([1, 0, 2])).tolist()
    [0.6, 1.0, 0.0]
    """
    found = [
        _overlaps(a.take(left[i : i + _PAIRS_AT_ONCE]), b.take(right[i : i + _PAIRS_AT_ONCE]))
        for i in range(0, len(left), _PAIRS_AT_ONCE)
    ]
    return np.concatenate(found) if found else np.zeros(0)


def _overlaps(a: Sets, b: Sets) -> np.ndarray:
    keys = np.concatenate([_by_row(a), _by_row(b)])
    keys.sort()
    both = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(32)
    common = np.bincount(both.astype(np.int64), minlength=len(a))
    return common / np.maximum(a.sizes + b.sizes - common, 1)


def _by_row(sets: Sets) -> np.ndarray:
    """Row above, the upper 32 bits of the hash below (all of a 32-bit hash)."""
    wide = sets.hashes.dtype == np.uint64
    low = sets.hashes >> np.uint64(32) if wide else sets.hashes.astype(np.uint64)
    return np.repeat(np.arange(len(sets), dtype=np.uint64) << np.uint64(32), sets.sizes) | low


def shared(sets: Sets, known: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(set, owner, count): how many hashes each set shares with each owner; `known` is sorted, `owners[i]` owns `known[i]`.

    >>> known, owners = np.array([3, 5, 5], np.uint64), np.array([0, 0, 1])
    >>> one = Sets(hashes=np.array([3, 5, 9], np.uint64), offsets=np.array([0, 3]))
    >>> [part.tolist() for part in shared(one, known, owners)]
    [[0, 0], [0, 1], [2, 1]]
    """
    begin, end = np.searchsorted(known, sets.hashes, "left"), np.searchsorted(known, sets.hashes, "right")
    hits = end - begin
    rows = np.repeat(np.repeat(np.arange(len(sets)), sets.sizes), hits)
    places = np.arange(hits.sum()) + np.repeat(begin - np.concatenate([[0], np.cumsum(hits)])[:-1], hits)
    pairs, counts = np.unique(rows * (int(owners.max(initial=0)) + 1) + owners[places], return_counts=True)
    return *np.divmod(pairs, int(owners.max(initial=0)) + 1), counts  # type: ignore[return-value]


# --- signatures -------------------------------------------------------------------------------------------------------


def banding(jaccard: float, permutations: int) -> tuple[int, int]:
    """(bands, rows of each): the longest bands that agree somewhere for `FOUND` of the pairs that overlap by `jaccard`.

    A pair with overlap s shares one of b bands of r rows with probability 1 - (1 - s^r)^b.

    >>> banding(0.8, 128), banding(1.0, 128), banding(0.5, 128)
    ((18, 7), (1, 128), (42, 3))
    """
    fits = [
        rows
        for rows in range(1, permutations + 1)
        if 1 - (1 - jaccard**rows) ** (permutations // rows) >= FOUND or rows == 1
    ]
    return permutations // fits[-1], fits[-1]


def bands(sets: Sets, num: int, rows: int) -> UInt64[np.ndarray, "N num"]:
    """MinHash signatures of `num` bands; equal numbers in a column propose a pair. Raises UserError without rensa."""
    if not len(sets):
        return np.zeros((0, num), np.uint64)
    try:
        import rensa
    except ImportError as error:
        raise UserError("finding near duplicates needs rensa: pip install 'strop[curate]'") from error
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(  # pyright: ignore[reportAttributeAccessIssue]
        np.ascontiguousarray(sets.hashes), sets.offsets.astype(np.uint64), num * rows, SEED
    )
    signatures = np.array(matrix.to_rows(), np.uint64).reshape(len(sets), num, rows)
    found = np.zeros((len(sets), num), np.uint64)
    for row in range(rows):
        found = mix(found * _FACTOR + signatures[:, :, row] + np.uint64(1))
    return found
