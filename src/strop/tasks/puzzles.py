"""The generator `arithmetic`: chains of integers with +, - and *, their exact answers and worked solutions.

A pure function of a random generator and the settings; which task goes into which split is decided in `__init__.py`.
A change to what it gives for one seed raises the version in the source's name (a test pins the first tasks).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from strop.config import Count, Section
from strop.record import Task, seed_of
from strop.settings import check_settings

__all__ = ["Arithmetic", "open_arithmetic"]

LISTABLE = 300_000  # raw chains up to which all are listed

# A level is a shorthand for settings; each of them may be set as well and then wins. Levels 1 to 5 share no task.
LEVELS: dict[int, dict[str, Any]] = {
    1: {"terms": [2, 3], "low": 1, "high": 9, "ops": ["+", "-"]},
    2: {"terms": [4], "low": 1, "high": 9, "ops": ["+", "-"]},
    3: {"terms": [5, 6], "low": 1, "high": 9, "ops": ["+", "-"]},
    4: {"terms": [2], "low": 10, "high": 99, "ops": ["+", "-"]},
    5: {"terms": [3, 4], "low": 10, "high": 99, "ops": ["+", "-"]},
    6: {"terms": [3, 4], "low": 2, "high": 12, "ops": ["+", "-", "*"]},
}


class ArithmeticSettings(Section):
    level: int = 1
    """Shorthand for terms, low, high and ops: one-digit chains of 2 or 3 (1), 4 (2), 5 or 6 (3), two-digit pairs (4) and
    chains (5), chains with products (6)."""
    terms: list[Count] = Field(min_length=1)
    """Number of operands; with a list each task draws one of them."""
    low: int = Field(ge=0)
    """Smallest operand."""
    high: int = Field(ge=0)
    """Largest operand."""
    ops: list[Literal["+", "-", "*"]] = Field(min_length=1)
    """Operations between operands, drawn evenly; "*" binds first, as usual."""
    nonnegative: bool = True
    """No result on the way is below zero."""
    wording: str = "Compute {expression}."
    """The prompt; {expression} stands for the chain."""
    style: Literal["steps", "lines", "digits", "rewrite"] = "steps"
    """The worked solution: an equation per operation (`4 + 7 = 11. 11 - 3 = 8.`), the same one a line, with tens and
    ones apart, or the chain written again after each operation (`= 11 - 3 = 8`)."""
    spaced: bool = True
    """Spaces around operations, in prompt and solution."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_level(cls, data: dict[str, Any]) -> dict[str, Any]:
        level = data.get("level", 1)
        if level not in LEVELS:
            raise ValueError(f"level is one of {', '.join(map(str, LEVELS))}, not {level!r}")
        data = {**LEVELS[level], **data}
        if isinstance(data["terms"], int):
            data["terms"] = [data["terms"]]
        if isinstance(data["ops"], str):
            data["ops"] = [op for op in data["ops"] if op not in " ,"]
        return data

    @field_validator("wording")
    @classmethod
    def _has_expression(cls, wording: str) -> str:
        if wording.count("{expression}") != 1:
            raise ValueError("it holds {expression} once, where the chain is to stand")
        return wording

    @model_validator(mode="after")
    def _refuse(self) -> ArithmeticSettings:
        if min(self.terms) < 2:
            raise ValueError("terms is 2 or more: a chain has two operands at least")
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation on the way: `left op right = result`, and the chain that is left with the result in its place."""

    left: int
    op: str
    right: int
    result: int
    rest: str


def work_out(numbers: Sequence[int], ops: Sequence[str]) -> list[Step]:
    """The operations in the order they are done: products first, then from left to right.

    >>> [(s.left, s.op, s.right, s.result, s.rest) for s in work_out([2, 3, 4], ["+", "*"])]
    [(3, '*', 4, 12, '2 + 12'), (2, '+', 12, 14, '14')]
    """
    values, signs, steps = list(numbers), list(ops), []
    for turn in ("*", "+-"):
        at = 0
        while at < len(signs):
            if signs[at] not in turn:
                at += 1
                continue
            left, op, right = values[at], signs.pop(at), values.pop(at + 1)
            values[at] = left * right if op == "*" else left + right if op == "+" else left - right
            steps.append(Step(left=left, op=op, right=right, result=values[at], rest=chain_text(values, signs)))
    return steps


def chain_text(numbers: Sequence[int], ops: Sequence[str]) -> str:
    return str(numbers[0]) + "".join(f" {op} {n}" for op, n in zip(ops, numbers[1:], strict=True))


def equations(step: Step, style: str) -> list[str]:
    """A step in writing: one equation, or with `digits` (both operands of two digits or more) tens, ones, and both.

    >>> equations(work_out([52, 38], ["-"])[0], "digits")
    ['50 - 30 = 20', '2 - 8 = -6', '20 - 6 = 14']
    """
    left, op, right = step.left, step.op, step.right
    if style != "digits" or op == "*" or min(left, right) < 10:
        return [f"{left} {op} {right} = {step.result}"]
    sign = 1 if op == "+" else -1
    tens, ones = left // 10 * 10 + sign * (right // 10 * 10), left % 10 + sign * (right % 10)
    return [
        f"{left // 10 * 10} {op} {right // 10 * 10} = {tens}",
        f"{left % 10} {op} {right % 10} = {ones}",
        f"{tens} {'+' if ones >= 0 else '-'} {abs(ones)} = {step.result}",
    ]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Chains such as "Compute 4 + 7 - 3.", with the answer and one equation per operation.

    >>> pool = open_arithmetic("arithmetic", {"terms": 3, "high": 9}, "tasks.easy", print)
    >>> task = pool.task([4, 7, 3], ["+", "-"])
    >>> task.prompt, task.answer, task.meta["solution"]
    ('Compute 4 + 7 - 3.', '8', '4 + 7 = 11. 11 - 3 = 8. \\\\boxed{8}')
    """

    settings: ArithmeticSettings
    endless: bool = True
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def stream(self, split: str, seed: int) -> Iterator[Task | None]:
        """Random chains for ever; None where a result on the way would be negative."""
        s, rng = self.settings, random.Random(seed_of("arithmetic", split, seed))
        while True:
            num = rng.choice(s.terms)
            numbers = [rng.randint(s.low, s.high) for _ in range(num)]
            yield self.task(numbers, [rng.choice(s.ops) for _ in range(num - 1)])

    def every(self, split: str) -> Iterator[Task]:
        """Each chain once, where there are not too many to list."""
        s = self.settings
        operands, terms = range(s.low, s.high + 1), sorted(set(s.terms))
        if sum(len(operands) ** num * len(set(s.ops)) ** (num - 1) for num in terms) > LISTABLE:
            return
        for num in terms:
            for numbers in itertools.product(operands, repeat=num):
                for ops in itertools.product(sorted(set(s.ops)), repeat=num - 1):
                    if task := self.task(numbers, ops):
                        yield task

    def key(self, task: Task) -> str:
        """The chain; where all is added or all is multiplied, in whatever order: 48 + 27 is no new problem after 27 + 48."""
        expression = task.meta["expression"]
        words = expression.split()
        if len(set(words[1::2])) == 1 and words[1] in "+*":
            expression = f" {words[1]} ".join(sorted(words[::2]))
        return f"arithmetic {expression}"

    def task(self, numbers: Sequence[int], ops: Sequence[str]) -> Task | None:
        """The task of one chain; None where the settings forbid a negative result that it has."""
        s, steps = self.settings, work_out(numbers, ops)
        if s.nonnegative and min(step.result for step in steps) < 0:
            return None
        expression = chain_text(numbers, ops)
        answer, digits = str(steps[-1].result), len(str(max(numbers)))
        return Task.make(
            source="arithmetic@2",
            prompt=s.wording.replace("{expression}", self._spaced(expression)),
            answer=answer,
            verifier="number",
            meta={
                "level": f"{len(numbers)} terms, {digits} digit{'s' * (digits > 1)}",
                "expression": expression,
                "solution": self._solution(steps),
            },
        )

    def _solution(self, steps: Sequence[Step]) -> str:
        style, box = self.settings.style, f"\\boxed{{{steps[-1].result}}}"
        if style == "rewrite":
            return f"{self._spaced(' '.join(f'= {step.rest}' for step in steps))}\n{box}"
        written = [self._spaced(equation) for step in steps for equation in equations(step, style)]
        if style == "lines":
            return "\n".join([*written, box])
        return " ".join([*(equation + "." for equation in written), box])

    def _spaced(self, text: str) -> str:
        return text if self.settings.spaced else text.replace(" ", "")


def open_arithmetic(source: str, settings: Mapping[str, Any], where: str, say: Callable[[str], None]) -> Arithmetic:
    return Arithmetic(check_settings(ArithmeticSettings, settings, where))
