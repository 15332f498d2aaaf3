"""Knights and Knaves solved in sentences: suppose, follow what is said, turn back at a contradiction, conclude.

The way it goes can be found from the puzzle alone, without knowing how it ends: whoever's role is known is believed or
disbelieved, whatever that settles is written down, and only where nothing follows is somebody supposed to be a knight, the
first person who is open. What turns out to contradict itself is given up, so the conclusion is proved. Knows statements as
`tasks.knights` does; whose puzzle it is, and how the answer is to be given, is the business of `solvers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from strop.tasks.knights import knight_worlds, solve, true_worlds

__all__ = ["MOST_PEOPLE", "explain", "is_statement", "phrase"]

MOST_PEOPLE = 12  # a set of worlds is an integer of 2^people bits
MOST_DEPTH = 8  # of statements inside statements
LITERALS, NAMES = ("telling-truth", "lying"), {"->": "implies", "<=>": "iff"}
JOINED = {"and": "{} and {}", "or": "{} or {}", "implies": "if {} then {}", "iff": "{} if and only if {}"}

Statement = Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    names: Sequence[str]
    said: Sequence[str]  # the claims in words
    claims: Sequence[int]  # the worlds in which each is true
    roles: tuple[str, str]  # who tells the truth and who lies, with their article


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is known: the worlds that are left (none: a contradiction), and whose claim has been used."""

    left: int
    heard: frozenset[int]


def is_statement(value: Any, num_people: int, depth: int = MOST_DEPTH) -> bool:
    """Whether a value out of a data set is a statement that can be read: everybody in it exists, every word is known."""
    if depth == 0 or not isinstance(value, list | tuple) or not value or not isinstance(value[0], str):
        return False
    op, parts = NAMES.get(value[0], value[0]), value[1:]
    if op in LITERALS:
        return len(parts) == 1 and type(parts[0]) is int and 0 <= parts[0] < num_people
    return (
        op in ("not", *JOINED)
        and len(parts) == (1 if op == "not" else 2)
        and all(is_statement(part, num_people, depth - 1) for part in parts)
    )


def phrase(statement: Statement, names: Sequence[str], roles: tuple[str, str] = ("a knight", "a knave")) -> str:
    """A statement in words; what lies inside another one stands in brackets where it has parts of its own.

    >>> phrase(("->", ("telling-truth", 0), ("not", ("and", ("lying", 0), ("lying", 1)))), ["A", "B"])
    'if A is a knight then it is not so that (A is a knave and B is a knave)'
    """
    word, *parts = statement
    op = str(NAMES.get(word, word))
    if op in LITERALS:
        return f"{names[parts[0]]} is {roles[op == 'lying']}"
    if op == "not" and parts[0][0] in LITERALS:
        return f"{names[parts[0][1]]} is not {roles[parts[0][0] == 'lying']}"
    inner = [phrase(part, names, roles) for part in parts]
    inner = [text if part[0] in (*LITERALS, "not") else f"({text})" for part, text in zip(parts, inner, strict=True)]
    return f"it is not so that {inner[0]}" if op == "not" else JOINED[op].format(*inner)


def explain(
    statements: Sequence[Statement], names: Sequence[str], roles: tuple[str, str] = ("a knight", "a knave")
) -> list[str] | None:
    """The reasoning, a line for each thing supposed and one for the conclusion; None unless there is exactly one solution.

    Statement i is made by person i.

    >>> print("\\n".join(explain([("lying", 1), ("iff", ("telling-truth", 0), ("telling-truth", 1))], ["A", "B"])))
    Suppose A is a knight. Then A tells the truth: B is a knave. B lies, and it is false that A is a knight if and only if B is a knight. Nothing contradicts this.
    So A is a knight and B is a knave.
    """
    num = len(names)
    if len(solutions := solve(statements, num)) != 1:
        return None
    puzzle = Puzzle(
        names=names, said=[phrase(s, names, roles) for s in statements], roles=roles,
        claims=[true_worlds(s, num) for s in statements],
    )  # fmt: skip
    _, lines = _search(puzzle, State(left=(1 << (1 << num)) - 1, heard=frozenset()), "")
    facts = [f"{name} is {roles[not knight]}" for name, knight in zip(names, solutions[0], strict=True)]
    return [*lines, f"So {_listed(facts)}."]


def _search(puzzle: Puzzle, state: State, opening: str) -> tuple[bool, list[str]]:
    """Whether a solution is left, and the lines that lead to it or to the contradiction; `opening` begins the first."""
    state, sentences = _follow(puzzle, state)
    lines = [f"{opening}{' '.join(sentences)}".strip()]
    while state.left and (person := _first_open(puzzle, state)) is not None:
        name, knight = puzzle.names[person], _knight(puzzle, person)
        tried = State(left=state.left & knight, heard=state.heard)
        also = " also that" if opening else ""
        suppose = f"Suppose{also} {name} is {puzzle.roles[0]}{_then(puzzle, state.left, tried.left, person)}. Then "
        fits, more = _search(puzzle, tried, suppose)
        lines += more
        if fits:
            return True, [line for line in lines if line]
        other = state.left & ~knight
        lines.append(f"So {name} is {puzzle.roles[1]}{_then(puzzle, state.left, other, person)}.")
        state, sentences = _follow(puzzle, State(left=other, heard=state.heard))
        lines[-1] = " ".join([lines[-1], *sentences])
    lines[-1] += " Nothing contradicts this." if state.left else ""
    return state.left != 0, [line for line in lines if line]


def _follow(puzzle: Puzzle, state: State) -> tuple[State, list[str]]:
    """What follows without supposing anything, until nothing more does or a contradiction is there."""
    sentences: list[str] = []
    while state.left:
        settled = [
            i
            for i, claim in enumerate(puzzle.claims)
            if i not in state.heard
            and (_truth(state.left, claim) is not None or _truth(state.left, _knight(puzzle, i)) is not None)
        ]
        if not settled:
            break
        left, sentence = _hear(puzzle, state.left, settled[0])
        state = State(left=left, heard=state.heard | {settled[0]})
        sentences.append(sentence)
    return state, sentences


def _hear(puzzle: Puzzle, left: int, person: int) -> tuple[int, str]:
    """The worlds that one person's claim leaves, where the role or the claim is settled, and the sentence that says why."""
    name, said, claim, knight = (
        puzzle.names[person],
        puzzle.said[person],
        puzzle.claims[person],
        _knight(puzzle, person),
    )
    role, truth = _truth(left, knight), _truth(left, claim)
    if role is None:
        after = left & (knight if truth else ~knight)
        is_so = f"is {_word(truth)}, so {name} is {puzzle.roles[not truth]}{_then(puzzle, left, after, person)}"
        return after, f"What {name} says, that {said}, {is_so}."
    after = left & (claim if role else ~claim)
    speaks = f"{name} tells the truth" if role else f"{name} lies"
    if not after:
        return 0, f"{speaks}, but it is {_word(truth)} that {said}: a contradiction."
    if truth is not None:
        return after, f"{speaks}, and it is {_word(truth)} that {said}."
    what, new = said if role else f"it is false that {said}", _new(puzzle, left, after)
    return after, f"{speaks}: {what}" + (f", so {_listed(new)}." if new and new != [what] else ".")


def _knight(puzzle: Puzzle, person: int) -> int:
    return knight_worlds(person, len(puzzle.names))


def _new(puzzle: Puzzle, before: int, after: int, but: int | None = None) -> list[str]:
    """The roles that are settled in the worlds `after` and were not in those `before`, but for one person's."""
    return [
        f"{name} is {puzzle.roles[not _truth(after, _knight(puzzle, i))]}"
        for i, name in enumerate(puzzle.names)
        if i != but and _truth(before, _knight(puzzle, i)) is None and _truth(after, _knight(puzzle, i)) is not None
    ]


def _then(puzzle: Puzzle, before: int, after: int, person: int) -> str:
    """What one person's role settles of the others, by what is known of them already."""
    new = _new(puzzle, before, after, person)
    return f", and then {_listed(new)}" if new else ""


def _truth(left: int, worlds: int) -> bool | None:
    """Whether something is true in all worlds that are left (True), in none (False), or open (None)."""
    return True if left & worlds == left else False if not left & worlds else None


def _first_open(puzzle: Puzzle, state: State) -> int | None:
    return next((i for i in range(len(puzzle.names)) if _truth(state.left, _knight(puzzle, i)) is None), None)


def _word(truth: bool | None) -> str:
    return "true" if truth else "false"


def _listed(facts: Sequence[str]) -> str:
    return facts[0] if len(facts) == 1 else f"{', '.join(facts[:-1])} and {facts[-1]}"
