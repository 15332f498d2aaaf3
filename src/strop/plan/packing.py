"""How rollouts of given lengths lie in packed rows: how many places, queries, keys and pairs a pass computes with.

The arithmetic of `batch.split` and `attention.pack_layout` on lengths alone, without tokens and tensors (a test compares
them). Read by `memory` and `time`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

__all__ = ["Number", "Packed", "pack", "split"]

Number = int | float  # what a forecast adds up: counts and measures alike

Group = tuple[int, Sequence[int]]  # tokens of a prompt behind what all begin with, and of its completions that are fed


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One packed row; paddings of blocks count where they are computed with."""

    places: int
    predicted: int  # tokens whose log-probabilities are wanted
    queries: int  # over the rows of all blocks
    keys: int
    pairs: int  # of a query and a key

    @property
    def keeps_keys(self) -> bool:
        """Whether gathered keys are kept for the backward (`attention.KEPT_KEYS`)."""
        return self.keys <= 4 * self.places


def pack(groups: Sequence[Group], prefix: int = 0) -> Packed:
    """A prefix and the groups behind it.

    >>> pack([(2, [2, 1])], prefix=1)  # the example of `attention.pack_layout`
    Packed(places=6, predicted=5, queries=6, keys=18, pairs=28)
    """
    branches = [(prefix, prefix)] if prefix else []  # own tokens, and all that they may see
    for prompt, lengths in groups:
        if len(lengths) == 1:
            branches.append((prompt + lengths[0], prefix + prompt + lengths[0]))
            continue
        branches.append((prompt, prefix + prompt))
        branches += [(length, prefix + prompt + length) for length in lengths]
    branches = sorted((b for b in branches if b[0]), key=lambda b: b[0].bit_length())
    queries = keys = pairs = 0
    for _, listed in groupby(branches, key=lambda b: b[0].bit_length()):
        alike = list(listed)
        rows, most_q, most_k = len(alike), max(own for own, _ in alike), max(seen for _, seen in alike)
        queries, keys, pairs = queries + rows * most_q, keys + rows * most_k, pairs + rows * most_q * most_k
    return Packed(
        places=prefix + sum(prompt + sum(lengths) for prompt, lengths in groups),
        predicted=sum(sum(lengths) + len(lengths) for _, lengths in groups), queries=queries, keys=keys, pairs=pairs,
    )  # fmt: skip


def split(groups: Sequence[tuple[int, Sequence[int]]], prefix: int, most: int) -> Iterator[Packed]:
    """The micro-batches of groups (whole prompt, tokens of each completion) of at most `most` places each.

    >>> [row.places for row in split([(10, [9, 9, 9])], 4, 28)]
    [26, 18]
    """
    batch: list[tuple[int, list[int]]] = []
    used = prefix
    for prompt, lengths in groups:
        rest, waiting = prompt - prefix, [max(0, n - 1) for n in lengths]
        while waiting:
            fits, cost = 0, rest
            while fits < len(waiting) and cost + waiting[fits] <= most - used:
                cost += waiting[fits]
                fits += 1
            if not fits and batch:
                yield _row(batch, prefix)
                batch, used = [], prefix
                continue
            fits = max(fits, 1)
            batch.append((rest, waiting[:fits]))
            used += rest + sum(waiting[:fits])
            waiting = waiting[fits:]
    if batch:
        yield _row(batch, prefix)


def _row(batch: Sequence[Group], prefix: int) -> Packed:
    """`collate` shares what all prompts of the row begin with, where there are several."""
    if len(batch) > 1:
        return pack(batch, prefix)
    rest, fed = batch[0]
    return pack([(prefix + rest, fed)])
