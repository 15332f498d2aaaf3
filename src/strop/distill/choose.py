"""Which of a teacher's answers are learned from, and what became of each of the others.

Pure functions over judged rollouts. An answer is kept where it is right, whole, in one language and no loop; of those a task
has, the shortest, the most different or all; of the tasks, no more easy ones than a balance allows. Knows no teacher and no file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from strop.metrics import groups_of
from strop.record import Rollout, Stop, Task, UserError
from strop.rewards.language import SCRIPTS, language_share
from strop.rewards.shaping import repetition_value

__all__ = ["DEFAULT_MOST", "Chosen", "Fate", "Keep", "Rules", "choose", "distance", "pass_rate"]

Keep = Literal["shortest", "diverse", "all"]
DEFAULT_MOST: dict[str, int | None] = {"shortest": 1, "diverse": 4, "all": None}  # answers of a task
LANGUAGE_FRAC = 0.98  # of an answer's words; below it, languages are mixed
NGRAM_WORDS, REPEATED_FRAC = 20, 0.3  # an answer with more than this share of its runs of words said before is a loop
SHINGLE_WORDS = 3  # runs of words that two answers are compared by
EASY, HARD = 0.75, 0.25  # pass rates above the one, and up to the other, as in a stage's curriculum
# A letter of a script without spaces is a word, as every sign is.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]")


class Fate(StrEnum):
    """What became of one answer. The first that applies."""

    KEPT = "kept"
    UNSOLVED = "unsolved"  # a solver knows no way to solve the task
    TRUNCATED = "truncated"  # cut by the token limit, right or not
    UNSCORABLE = "unscorable"  # the verifier failed
    WRONG = "wrong"
    LANGUAGE = "language"  # words of another script than the language's
    REPETITIVE = "repetitive"
    REPEATED = "repeated"  # word for word another answer to the same task
    LONGER = "longer"  # than those kept
    SIMILAR = "similar"  # to those kept, more than others are
    SURPLUS = "surplus"  # the task has as many as it may
    EASY = "easy"  # right, but of a task that the balance left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is kept."""

    keep: Keep = "shortest"
    most: int | None = 1  # answers of a task; None: no limit
    balance: bool = True
    language: str = "en"

    def __post_init__(self) -> None:
        if self.language not in SCRIPTS:
            raise UserError(f"--language {self.language} is not known; it is one of {', '.join(sorted(SCRIPTS))}")
        if self.most is not None and self.most < 1:
            raise UserError("--max-per-task is 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The fate of every answer, in their order, and of what was kept the answers by task, best first."""

    fates: list[Fate]
    kept: list[list[Rollout]]
    rates: dict[str, float | None]  # by task id; None: no answer could be judged


def choose(rollouts: Sequence[Rollout], rules: Rules) -> Chosen:
    """What `rules` keep of judged answers; `kept` is in the order in which tasks come."""
    fates = {id(r): _own_fate(r, rules.language) for r in rollouts}
    groups = groups_of(rollouts)
    rates = {group[0].task.id: pass_rate(group) for group in groups}
    kept = []
    for group in groups:
        fit = [r for r in group if fates[id(r)] is Fate.KEPT]
        chosen, left = _of_task(fit, rules)
        fates |= {id(r): fate for r, fate in left}
        kept += [chosen] if chosen else []
    if rules.balance:
        dropped = _beyond_balance([answers[0].task for answers in kept], rates)
        fates |= {id(r): Fate.EASY for answers in kept for r in answers if r.task.id in dropped}
        kept = [answers for answers in kept if answers[0].task.id not in dropped]
    return Chosen(fates=[fates[id(r)] for r in rollouts], kept=kept, rates=rates)


# --- one answer -------------------------------------------------------------------------------------------------------


def _own_fate(rollout: Rollout, language: str) -> Fate:
    """What an answer's own text and verdict make of it; KEPT where nothing is wrong with it."""
    if rollout.stop is Stop.GIVEN and not rollout.text:
        return Fate.UNSOLVED
    if rollout.truncated:
        return Fate.TRUNCATED
    if not rollout.scorable:
        return Fate.UNSCORABLE
    if not rollout.correct:
        return Fate.WRONG
    share = language_share(rollout.text, language)
    if share is not None and share < LANGUAGE_FRAC:
        return Fate.LANGUAGE
    return Fate.REPETITIVE if repeated_frac(rollout.text) > REPEATED_FRAC else Fate.KEPT


def words(text: str) -> list[str]:
    """
    >>> words("So x = 2, 所以")
    ['So', 'x', '=', '2', ',', '所', '以']
    """
    return _WORD.findall(text)


def repeated_frac(text: str) -> float:
    """The share of a text's runs of NGRAM_WORDS words that it has had before, in [0, 1]; 0 for a shorter text.

    Words, not tokens: a server does not say which tokens it chose.

    >>> repeated_frac("so it is. " * 20) > 0.8, repeated_frac(" ".join(map(str, range(100))))
    (True, 0.0)
    """
    number: dict[str, int] = {}
    ids = np.array([number.setdefault(word, len(number)) for word in words(text)], dtype=np.int32)
    return abs(repetition_value(ids, NGRAM_WORDS, -1.0))


# --- the answers of one task ------------------------------------------------------------------------------------------


def _of_task(fit: Sequence[Rollout], rules: Rules) -> tuple[list[Rollout], list[tuple[Rollout, Fate]]]:
    """The answers kept of one task, and the fate of its others."""
    first: dict[str, Rollout] = {}
    for r in fit:
        first.setdefault(" ".join(r.text.split()), r)
    distinct = list(first.values())
    if rules.keep == "shortest":
        ordered, fate = sorted(distinct, key=_length), Fate.LONGER
    elif rules.keep == "diverse":
        ordered, fate = _spread(sorted(distinct, key=_length)), Fate.SIMILAR
    else:
        ordered, fate = distinct, Fate.SURPLUS
    kept, left = ordered[: rules.most], [] if rules.most is None else ordered[rules.most :]
    again = [r for r in fit if all(r is not other for other in distinct)]
    return kept, [(r, fate) for r in left] + [(r, Fate.REPEATED) for r in again]


def _length(rollout: Rollout) -> tuple[int, int, int]:
    """Tokens; of equally many characters, then the number of the sample, so that the order is one."""
    return rollout.num_sampled, len(rollout.text), rollout.sample


def _spread(by_length: Sequence[Rollout]) -> list[Rollout]:
    """The shortest, then again and again the one whose nearest neighbour among those before it is farthest."""
    left, out = list(by_length), []
    nearest = [1.0] * len(left)
    while left:
        place = int(np.argmax(nearest)) if out else 0
        out.append(left.pop(place))
        nearest.pop(place)
        nearest = [min(d, distance(r.text, out[-1].text)) for d, r in zip(nearest, left, strict=True)]
    return out


def distance(one: str, other: str) -> float:
    """How different two answers are, in [0, 1]: 1 - the Jaccard overlap of their runs of SHINGLE_WORDS words.

    >>> distance("2 + 3 = 5", "2 + 3 = 5"), distance("2 + 3 = 5", "so 7 less 2"), distance("a b c d", "a b c e")
    (0.0, 1.0, 0.6666666666666667)
    """
    a, b = _shingles(one), _shingles(other)
    return 1 - len(a & b) / len(a | b) if a | b else 0.0


def _shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return (
        {tuple(found[i : i + SHINGLE_WORDS]) for i in range(max(1, len(found) - SHINGLE_WORDS + 1))} if found else set()
    )


# --- the tasks --------------------------------------------------------------------------------------------------------


def pass_rate(group: Iterable[Rollout]) -> float | None:
    """How often a task is passed: what its data say (meta.pass_rate, of the model that is to learn), else right answers among
    those judged here. None where there is neither."""
    group = list(group)
    said = group[0].task.meta.get("pass_rate")
    if isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said <= 1:
        return float(said)
    judged = [r.correct for r in group if r.scorable]
    return sum(judged) / len(judged) if judged else None


def _beyond_balance(tasks: Sequence[Task], rates: Mapping[str, float | None]) -> set[str]:
    """The easy tasks that are more than either other bin holds: as many stay as the fuller of the two has.

    Easy is passed more than 3 times in 4, hard at most once in 4. Where all are easy nothing is cut: there is nothing to
    balance. The easiest go first, and of equally easy ones those that a hash says.
    """
    bins = Counter(_bin(rates[task.id]) for task in tasks)
    room = max(bins["hard"], bins["medium"])
    easy = sorted(
        (task for task in tasks if _bin(rates[task.id]) == "easy"), key=lambda task: (rates[task.id], task.content)
    )
    return {task.id for task in easy[room:]} if room else set()


def _bin(rate: float | None) -> str:
    return "easy" if rate is None or rate > EASY else "hard" if rate <= HARD else "medium"
