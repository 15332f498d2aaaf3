"""One problem, several answers: which one is kept, or that none is.

Knows rows by number, their sources and their answers, and asks a verifier whether two answers are one value; not how a
verifier works. Nothing here depends on the order of rows: answers are joined symmetrically, and a tie is a tie. Read by
`curate.verifiable`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa

from strop.curate.rows import Fate
from strop.curate.table import taken

__all__ = ["Group", "read_groups", "settle", "suspects"]

MAX_ANSWERS = (
    12  # of one problem; more are no misprint but a problem without its text ("Solve:"), and pairs grow as the square
)

Gold = tuple[str, str]  # verifier and answer
Accepts = Callable[[Sequence[tuple[Gold, Gold]]], Sequence[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rows of one problem, of which at least two are written differently in their answers."""

    rows: tuple[int, ...]
    sources: tuple[str, ...]
    golds: tuple[Gold, ...]


def suspects(problems: np.ndarray, answers: np.ndarray) -> list[np.ndarray]:
    """The places of equal problems (by number) with unequal answers (by number); a list of places for each problem."""
    if len(problems) == 0:
        return []
    order = np.lexsort((answers, problems))
    starts = np.flatnonzero(np.r_[True, problems[order][1:] != problems[order][:-1]])
    ends = np.r_[starts[1:], len(order)]
    ordered = answers[order]  # within a problem the first answer is the least, the last the greatest
    differ = ordered[starts] != ordered[ends - 1]
    return [order[start:end] for start, end in zip(starts[differ], ends[differ], strict=True)]


def read_groups(rows: pa.Table, places: Sequence[np.ndarray], same_problem: Callable[[str], str]) -> list[Group]:
    """The rows at these places, taken apart again where two problems shared a number by chance."""
    groups = []
    every = np.unique(np.concatenate([np.zeros(0, np.int64), *places]))
    columns = rows.select(["source", "prompt", "answer", "verifier"])
    read = dict(zip(every.tolist(), (row for part in taken(columns, every) for row in part.to_pylist()), strict=True))
    for place in places:
        by_text: dict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
        for i in place.tolist():
            row = read[i]
            by_text[same_problem(row["prompt"])].append((i, row))
        for members in by_text.values():
            golds = tuple((row["verifier"], row["answer"]) for _, row in members)
            if len(set(golds)) > 1:
                sources = tuple(row["source"] for _, row in members)
                groups.append(Group(rows=tuple(i for i, _ in members), sources=sources, golds=golds))
    return groups


def settle(groups: Sequence[Group], how: str, accepts: Accepts) -> tuple[dict[int, Fate], int]:
    """The rows that go, and how many problems had answers of different value.

    Every source has one vote, for the answer that most of its rows give; the answer with most votes stays where `how` is
    "settle". Where none leads, or `how` is "drop", all rows of the problem go.
    """
    values = _values(groups, accepts)
    dropped: dict[int, Fate] = {}
    num = 0
    for group, value in zip(groups, values, strict=True):
        kinds = [value[gold] for gold in group.golds]
        if len(set(kinds)) == 1:
            continue
        num += 1
        kept = _elected(group.sources, kinds) if how == "settle" and len(set(group.golds)) <= MAX_ANSWERS else None
        for i, kind in zip(group.rows, kinds, strict=True):
            if kept is None:
                dropped[i] = Fate(reason="conflicting answers", detail=_told(group, kinds, set(kinds) - {kind}))
            elif kind != kept:
                dropped[i] = Fate(reason="outvoted answer", detail=_told(group, kinds, {kept}))
    return dropped, num


def _values(groups: Sequence[Group], accepts: Accepts) -> list[dict[Gold, Gold]]:
    """Of each group, for each way of writing, the one that stands for all of equal value.

    Two are joined where either is accepted for the other, and so are those that a third one joins.
    """
    asked: list[tuple[int, Gold, Gold]] = []
    for number, group in enumerate(groups):
        golds = sorted(set(group.golds))
        if len(golds) <= MAX_ANSWERS:
            asked += [(number, *pair) for a, b in combinations(golds, 2) for pair in ((a, b), (b, a))]
    joined = [{gold: gold for gold in group.golds} for group in groups]
    distinct = sorted({(a, b) for _, a, b in asked})
    told = dict(zip(distinct, accepts(distinct), strict=True))
    for number, a, b in asked:
        if told[a, b]:
            first, second = sorted((joined[number][a], joined[number][b]))
            joined[number] = {gold: first if least == second else least for gold, least in joined[number].items()}
    return joined


def _elected(sources: Sequence[str], kinds: Sequence[Gold]) -> Gold | None:
    """The answer that most sources vote for; None where two are level. A source that is split evenly does not vote."""
    by_source: dict[str, Counter[Gold]] = defaultdict(Counter)
    for source, kind in zip(sources, kinds, strict=True):
        by_source[source][kind] += 1
    votes = (_leader(counts) for counts in by_source.values())
    return _leader(Counter(vote for vote in votes if vote is not None))


def _leader(counts: Counter[Gold]) -> Gold | None:
    first_two = counts.most_common(2)
    if not first_two or (len(first_two) == 2 and first_two[0][1] == first_two[1][1]):
        return None
    return first_two[0][0]


def _told(group: Group, kinds: Sequence[Gold], others: Iterable[Gold]) -> str:
    """The other answers, and the sources that give them: "'12' in amc, dapo; '13' in numina"."""
    told = []
    for other in sorted(others)[:3]:
        sources = sorted({source for source, kind in zip(group.sources, kinds, strict=True) if kind == other})
        told.append(f"{other[1][:60]!r} in {', '.join(sources[:5])}")
    return "; ".join(told)
