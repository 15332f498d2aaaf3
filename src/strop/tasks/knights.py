"""The generator `knights`: Knights and Knaves, with exactly one solution each, found by brute force.

Knights tell the truth, knaves lie, and who is which follows from what they say. Statements are nested tuples as in the
public data sets of such puzzles: ("telling-truth", 1), ("not", s), ("and", s, t), with people numbered from 0. A change
to what the generator gives for one seed raises the version in the source's name (a test pins the first tasks).
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator

from strop.config import Section
from strop.record import Task, seed_of
from strop.settings import check_settings

__all__ = ["Knights", "in_words", "open_knights", "reason_out", "solve"]

Statement = Sequence[Any]
LISTABLE = 100_000  # raw puzzles up to which all are listed
LITERALS, PAIRS = ("telling-truth", "lying"), ("and", "or", "implies", "iff")
_ALIASES = {"->": "implies", "<=>": "iff"}
_PEOPLE = ("Amelia", "Ben", "Clara", "David", "Ella", "Felix", "Grace", "Henry", "Iris", "Jack", "Kate", "Liam")  # fmt: skip


class KnightsSettings(Section):
    people: list[int] = Field(default=[2, 3], min_length=1)
    """Number of people; with a list each puzzle draws one of them."""
    statements: list[Literal["telling-truth", "lying", "not", "and", "or", "implies", "iff"]] = Field(
        default=["telling-truth", "lying", "not", "and", "or", "implies", "iff"], min_length=1
    )
    """Kinds of statement, drawn evenly."""
    names: Literal["letters", "people"] = "letters"
    """A, B, C, or first names."""

    @field_validator("people", mode="before")
    @classmethod
    def _one_or_many(cls, people: Any) -> Any:
        return [people] if isinstance(people, int) else people

    @field_validator("people")
    @classmethod
    def _in_range(cls, people: list[int]) -> list[int]:
        if not all(2 <= num <= len(_PEOPLE) for num in people):
            raise ValueError(f"each number of people is from 2 to {len(_PEOPLE)}")
        return people


@functools.cache
def knight_worlds(person: int, num_people: int) -> int:
    """The worlds in which a person is a knight. A set of worlds is an integer: bit w for world w, and in world w person
    i is a knight where bit i of w is set."""
    return sum(1 << world for world in range(1 << num_people) if world >> person & 1)


def true_worlds(statement: Statement, num_people: int) -> int:
    """The worlds in which a statement is true.

    >>> bin(true_worlds(("and", ("telling-truth", 0), ("lying", 1)), 2))  # world 1 alone: person 0 is the only knight
    '0b10'
    """
    everything = (1 << (1 << num_people)) - 1
    op, *parts = statement
    op = _ALIASES.get(op, op)
    if op in LITERALS:
        worlds = knight_worlds(parts[0], num_people)
        return worlds if op == "telling-truth" else everything ^ worlds
    left, *rest = (true_worlds(part, num_people) for part in parts)
    match op:
        case "not":
            return everything ^ left
        case "and":
            return left & rest[0]
        case "or":
            return left | rest[0]
        case "implies":
            return everything ^ left | rest[0]
        case "iff":
            return everything ^ left ^ rest[0]
    raise ValueError(f"{op!r} is no kind of statement")


def solve(statements: Sequence[Statement], num_people: int) -> list[tuple[bool, ...]]:
    """Every way to be knights (True) and knaves such that exactly the knights' statements are true.

    Statement i is made by person i.

    >>> solve([("lying", 1), ("iff", ("telling-truth", 0), ("telling-truth", 1))], 2)
    [(True, False)]
    """
    fits = (1 << (1 << num_people)) - 1
    for person, statement in enumerate(statements):
        fits &= ~(true_worlds(statement, num_people) ^ knight_worlds(person, num_people))
    return [tuple(bool(w >> i & 1) for i in range(num_people)) for w in range(1 << num_people) if fits >> w & 1]


def _literal_text(statement: Statement, names: Sequence[str]) -> str:
    op, *parts = statement
    negated = op == "not"
    op, person = parts[0] if negated else (op, parts[0])
    return f"{names[person]} is {'not ' * negated}a {'knight' if op == 'telling-truth' else 'knave'}"


def in_words(statement: Statement, names: Sequence[str]) -> str:
    """A statement as a person would say it.

    >>> in_words(("implies", ("telling-truth", 0), ("not", ("lying", 1))), ["A", "B"])
    'if A is a knight then B is not a knave'
    """
    op, *parts = statement
    if op not in PAIRS:
        return _literal_text(statement, names)
    left, right = (_literal_text(part, names) for part in parts)
    if op == "implies":
        return f"if {left} then {right}"
    return f"{left} {'if and only if' if op == 'iff' else op} {right}"


def reason_out(statements: Sequence[Statement], names: Sequence[str]) -> list[str]:
    """The worked solution: suppose, person by person, knight before knave, and turn back at the first contradiction.

    A line names what is supposed and the claim that breaks it; the last line is the solution. A person is supposed
    only when nobody before has been caught out, so that no line is longer than it need be.

    >>> print("\\n".join(reason_out([("lying", 1), ("iff", ("telling-truth", 0), ("telling-truth", 1))], ["A", "B"])))
    A knight, B knight: A's claim is false, but A is a knight.
    A knight, B knave: A's claim is true, B's claim is false. It fits.
    """
    num, lines = len(names), []
    claims = [true_worlds(s, num) for s in statements]

    def suppose(world: list[bool]) -> bool:
        """Whether a solution starts with `world`; writes the lines on the way."""
        supposed = ", ".join(f"{name} {_kind(w)}" for name, w in zip(names, world, strict=False))
        left = (1 << (1 << num)) - 1  # the worlds that start like this one
        for i, knight in enumerate(world):
            left &= knight_worlds(i, num) if knight else ~knight_worlds(i, num)
        for name, knight, claim in zip(names, world, claims, strict=False):
            if left & claim == (0 if knight else left):  # settled, and the wrong way
                lines.append(f"{supposed}: {name}'s claim is {_truth(not knight)}, but {name} is a {_kind(knight)}.")
                return False
        if len(world) == num:
            said = ", ".join(f"{name}'s claim is {_truth(w)}" for name, w in zip(names, world, strict=True))
            lines.append(f"{supposed}: {said}. It fits.")
            return True
        return suppose([*world, True]) or suppose([*world, False])

    suppose([])
    return lines


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def _kind(knight: bool) -> str:
    return "knight" if knight else "knave"


def _truth(value: bool) -> str:
    return "true" if value else "false"


@dataclass(frozen=True, slots=True)
class Knights:
    """Puzzles with exactly one solution; the answer reads "A: knight, B: knave".

    >>> pool = open_knights("knights", {"people": 2}, "tasks.island", print)
    >>> pool.task([("lying", 1), ("lying", 0)], ["A", "B"]) is None  # either one may be the knave: two solutions
    True
    >>> pool.task([("lying", 1), ("iff", ("telling-truth", 0), ("telling-truth", 1))], ["A", "B"]).answer
    'A: knight, B: knave'
    """

    settings: KnightsSettings
    endless: bool = True
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def stream(self, split: str, seed: int) -> Iterator[Task | None]:
        """Random puzzles for ever; None where the solutions are not exactly one."""
        rng = random.Random(seed_of("knights", split, seed))
        while True:
            num = rng.choice(self.settings.people)
            statements = [self.draw_statement(person, num, rng) for person in range(num)]
            yield self.task(statements, self._names(num, rng))

    def every(self, split: str) -> Iterator[Task]:
        """Each puzzle once, where there are not too many to list."""
        by_num = {
            num: [self.sayable(person, num) for person in range(num)] for num in sorted(set(self.settings.people))
        }
        if sum(math.prod(map(len, sayable)) for sayable in by_num.values()) > LISTABLE:
            return
        for num, sayable in by_num.items():
            for statements in itertools.product(*sayable):
                names = self._names(num, random.Random(seed_of("knights", repr(statements))))
                if task := self.task(statements, names):
                    yield task

    def key(self, task: Task) -> str:
        """The statements alone: other names make no other puzzle, nor (for 2 or 3 people) another order of speaking."""
        statements = task.meta["statements"]
        num = len(statements)
        if num > 3:  # with more people two draws are hardly ever the same puzzle in another order
            return f"knights {statements}"
        return "knights " + min(
            str([_renamed(statements[old], order) for old in sorted(range(num), key=order.__getitem__)])
            for order in itertools.permutations(range(num))
        )

    def task(self, statements: Sequence[Statement], names: Sequence[str]) -> Task | None:
        """The task of one puzzle; None unless it has exactly one solution."""
        if len(solutions := solve(statements, len(names))) != 1:
            return None
        said = " ".join(
            f'{name} says: "{_sentence(in_words(s, names))}"' for name, s in zip(names, statements, strict=True)
        )
        answer = ", ".join(f"{name}: {_kind(w)}" for name, w in zip(names, solutions[0], strict=True))
        form = ", ".join(f"{name}: ..." for name in names)
        return Task.make(
            source="knights@1",
            prompt=f"Knights always tell the truth, knaves always lie. {said} Who is a knight and who is a knave? "
            f"Answer with \\boxed{{{form}}}.",
            answer=answer,
            verifier="knights",
            meta={
                "level": len(names),
                "statements": [_as_lists(s) for s in statements],
                "solution": "\n".join([*reason_out(statements, names), f"\\boxed{{{answer}}}"]),
            },
        )

    def _names(self, num: int, rng: random.Random) -> list[str]:
        return rng.sample(_PEOPLE, num) if self.settings.names == "people" else list("ABCDEFGHIJKL"[:num])

    def draw_statement(self, speaker: int, num: int, rng: random.Random) -> Statement:
        """What one of `num` people may say: kinds evenly; a claim of two parts speaks of two different people."""
        kind = rng.choice(self.settings.statements)
        if kind in PAIRS:
            one, other = rng.sample(range(num), 2)
            return (kind, rng.choice(_literals(one)), rng.choice(_literals(other)))
        person = rng.choice([p for p in range(num) if p != speaker])
        if kind == "not":
            return ("not", (rng.choice(LITERALS), person))
        return (kind, person)

    def sayable(self, speaker: int, num: int) -> list[Statement]:
        """Everything that `draw_statement` can give."""
        others = [p for p in range(num) if p != speaker]
        out: list[Statement] = []
        for kind in sorted(set(self.settings.statements)):
            if kind in PAIRS:
                pairs = itertools.permutations(range(num), 2)
                out += [(kind, x, y) for a, b in pairs for x in _literals(a) for y in _literals(b)]
            elif kind == "not":
                out += [("not", (literal, p)) for literal in LITERALS for p in others]
            else:
                out += [(kind, p) for p in others]
        return out


def _literals(person: int) -> list[Statement]:
    plain: list[Statement] = [(op, person) for op in LITERALS]
    return plain + [("not", literal) for literal in plain]


def _renamed(statement: Statement, order: Sequence[int]) -> Statement:
    op, *parts = statement
    return [op, *(order[part] if isinstance(part, int) else _renamed(part, order) for part in parts)]


def _as_lists(statement: Statement) -> list[Any]:
    return [_as_lists(part) if isinstance(part, tuple) else part for part in statement]


def open_knights(source: str, settings: Mapping[str, Any], where: str, say: Callable[[str], None]) -> Knights:
    return Knights(check_settings(KnightsSettings, settings, where))
