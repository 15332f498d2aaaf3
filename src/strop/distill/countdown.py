"""Countdown solved backwards: which number came last, and what must the others make then?

Knows numbers, a target and chains ((a op b) op c) ...; every puzzle of reasoning-gym's `countdown` was made as such a chain, so
one is always found there. Whose puzzle it is, and how the answer is to be given, is the business of `solvers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Chain", "explain", "find"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """`first`, then each operation with its number, from left to right.

    >>> Chain(first=3, rest=(("+", 4), ("*", 2), ("-", 5))).expression
    '(3 + 4) * 2 - 5'
    """

    first: int
    rest: tuple[tuple[str, int], ...]

    @property
    def expression(self) -> str:
        text, is_sum = str(self.first), False
        for op, number in self.rest:
            text = f"({text}) {op} {number}" if is_sum and op in "*/" else f"{text} {op} {number}"
            is_sum = op in "+-"
        return text

    @property
    def values(self) -> list[int]:
        """The result after each operation; the last is the target."""
        out = [self.first]
        for op, number in self.rest:
            out.append({"+": out[-1] + number, "-": out[-1] - number, "*": out[-1] * number}.get(op, out[-1] // number))
        return out[1:]


def find(numbers: Sequence[int], target: int) -> Chain | None:
    """A chain over all the numbers, each once, with whole numbers on the way; None where there is none.

    One without negative numbers on the way is looked for first.

    >>> find([3, 25, 17, 6], 470).expression
    '(25 + 3) * 17 - 6'
    >>> find([2, 2], 5) is None
    True
    """
    for negative in (False, True):
        if (chain := _search(tuple(sorted(numbers)), target, negative, set())) is not None:
            return chain
    return None


def _search(
    numbers: tuple[int, ...], target: int, negative: bool, hopeless: set[tuple[tuple[int, ...], int]]
) -> Chain | None:
    """Which of the numbers came last; what it leaves for the others is a smaller puzzle of the same kind."""
    if len(numbers) == 1:
        return Chain(first=target, rest=()) if numbers[0] == target else None
    if (numbers, target) in hopeless:
        return None
    for place, last in enumerate(numbers):
        if last in numbers[:place]:
            continue
        others = numbers[:place] + numbers[place + 1 :]
        for op, before in _before(target, last):
            if (negative or before >= 0) and (found := _search(others, before, negative, hopeless)) is not None:
                return Chain(first=found.first, rest=(*found.rest, (op, last)))
    hopeless.add((numbers, target))
    return None


def _before(target: int, last: int) -> Iterator[tuple[str, int]]:
    """What must have been there, by the operation that then led to the target."""
    yield "+", target - last
    yield "-", target + last
    if last and target % last == 0:
        yield "*", target // last
    if last:
        yield "/", target * last


def explain(chain: Chain, numbers: Sequence[int]) -> list[str]:
    """The way back from the target, and the result; the numbers in the order of the puzzle.

    >>> print("\\n".join(explain(Chain(first=3, rest=(("+", 4), ("*", 2))), [2, 3, 4])))
    Work back from 14.
    14 = 7 * 2, so 3 and 4 must make 7.
    7 = 3 + 4.
    Forwards: 3 + 4 = 7. 7 * 2 = 14.
    """
    values, left = [chain.first, *chain.values], list(numbers)
    lines = [f"Work back from {values[-1]}."]
    for place in range(len(chain.rest) - 1, -1, -1):
        op, number = chain.rest[place]
        left.remove(number)
        rest = f", so {_listed(left)} must make {values[place]}" if place else ""
        lines.append(f"{values[place + 1]} = {values[place]} {op} {number}{rest}.")
    done = [f"{v} {op} {n} = {w}." for v, (op, n), w in zip(values[:-1], chain.rest, values[1:], strict=True)]
    return [*lines, f"Forwards: {' '.join(done)}"]


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
