"""What a model's samples say before it is trained: does it answer, what does it reach in k tries, what could RL learn from?

Pure functions over the samples of one evaluation. Knows nothing of where they lie; what to do about the figures is said
by `gate`, and how they are shown by `words`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from strop import stats
from strop.lengths import OUTCOMES, Outcome, outcome
from strop.metrics import vote
from strop.probe import text
from strop.probe.answers import MEASURES, by_task, right
from strop.record import Rollout

__all__ = ["GROUPS", "Before", "Behaviour", "Chain", "Reflection", "Signal", "Spoken", "measure", "signal_of"]

GROUPS = (4, 8, 16)  # rollouts a task that an RL step may take
RARE_FRAC = 0.05  # of a task's samples; a task that fewer solve is looked at for guessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Share of tasks whose group of so many rollouts is neither all right nor all wrong: a gradient without it is 0."""

    group: int
    frac: stats.Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """Keywords among the answers of one outcome."""

    num_answers: int
    answers: stats.Estimate | None  # share of them that hold one; None: there are no such answers
    per_1000_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflection:
    """What answers that hold one of a list's keywords are worth."""

    keywords: str  # name of the list
    answers: stats.Estimate  # share of answers that hold one
    tasks_frac: float  # share of tasks with at least one such answer
    acc_with: stats.Estimate | None  # None: there are no such answers
    acc_without: stats.Estimate | None
    gain: (
        stats.Estimate | None
    )  # with minus without, within tasks that have both: what difficulty explains is out of it
    num_paired: int  # tasks with both
    by_outcome: dict[Outcome, Spoken]  # answers that could be judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """One of the four cognitive behaviours by its pattern: approximate."""

    name: str
    answers: stats.Estimate  # share of answers in which it occurs
    per_answer: float  # times


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A right answer to a task that is hardly ever solved: was it reasoned or guessed?"""

    task: str
    prompt: str
    gold: str
    num_right: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The report of one model on one set of tasks."""

    num_tasks: int
    num_samples: int  # of each task
    rates: dict[str, stats.Estimate]  # keys of MEASURES
    pass_at: list[stats.PassAt]
    majority_at: list[stats.PassAt]
    headroom: stats.Estimate  # pass@n - pass@1 at all n samples
    signals: list[Signal]
    voting_tries: int
    voting: stats.Estimate  # maj@k - pass@1 for these k tries
    mean_tokens: float
    tokens_per_right: float | None  # None: no answer is right
    reflections: list[Reflection]
    behaviours: list[Behaviour]
    corrections: text.Corrections
    rare: list[Chain]


def measure(rollouts: Sequence[Rollout], verify: text.Verify, *, seed: int = 0) -> Before:
    """All figures of one evaluation's samples; `verify` (`Scorer.verify`) judges values that were taken back.

    Raises UserError where the tasks have fewer than two samples, or not all the same number.
    """
    answers = by_task(rollouts)
    num_samples, every = len(answers[0]), [r for samples in answers for r in samples]
    right_PK = right(answers)
    correct_P = right_PK.sum(axis=1).astype(int)
    said = [[vote(r) for r in samples] for samples in answers]
    is_right = [[r.correct for r in samples] for samples in answers]
    tries = max((g for g in GROUPS[:2] if g <= num_samples), default=num_samples)
    voting_P = stats.majority_at_k(said, is_right, tries, seed=seed) - right_PK.mean(axis=1)
    num_tokens, num_right = sum(r.num_sampled for r in every), int(correct_P.sum())
    return Before(
        num_tasks=len(answers), num_samples=num_samples,
        rates={name: stats.share([[is_so(r) for r in s] for s in answers], seed=seed) for name, is_so in MEASURES.items()}
        | {"right": stats.average(right_PK, seed=seed)},
        pass_at=stats.pass_curve(num_samples, correct_P, seed=seed),
        majority_at=stats.majority_curve(said, is_right, seed=seed),
        headroom=stats.difference(stats.pass_at_k(num_samples, correct_P, num_samples) - right_PK.mean(axis=1), seed=seed),
        signals=[
            Signal(group=g, frac=stats.share(signal_of(num_samples, correct_P, g), seed=seed))
            for g in sorted({min(g, num_samples) for g in GROUPS})
        ],
        voting_tries=tries, voting=stats.difference(voting_P, seed=seed),
        mean_tokens=num_tokens / len(every), tokens_per_right=num_tokens / num_right if num_right else None,
        reflections=[_reflection(name, answers, right_PK, seed) for name in text.REFLECTION],
        behaviours=_behaviours(answers, seed), corrections=text.corrections(every, verify), rare=_rare(answers),
    )  # fmt: skip


def signal_of(num_samples: int, num_correct: np.ndarray, group: int) -> Float64[np.ndarray, " P"]:
    """Probability, per task, that `group` of its samples are neither all right nor all wrong; unbiased as pass@k is.

    1 - [C(n - c, G) + C(c, G)] / C(n, G), over draws of G out of n samples of which c are right.

    >>> signal_of(4, np.array([0, 1, 2, 4]), 2).round(4)  # of the 6 pairs 0, 3, 4 and 0 are mixed
    array([0.    , 0.5   , 0.6667, 0.    ])
    """
    some_right = stats.pass_at_k(num_samples, num_correct, group)
    some_wrong = stats.pass_at_k(num_samples, num_samples - num_correct, group)
    return some_right + some_wrong - 1


def _reflection(name: str, answers: Sequence[Sequence[Rollout]], right_PK: np.ndarray, seed: int) -> Reflection:
    num_PK = np.array([[text.num_keywords(r.text, text.REFLECTION[name]) for r in samples] for samples in answers])
    has_PK = num_PK > 0
    with_P, without_P = _mean_where(right_PK, has_PK), _mean_where(right_PK, ~has_PK)
    both_P = ~np.isnan(with_P) & ~np.isnan(without_P)
    return Reflection(
        keywords=name, answers=stats.share(has_PK, seed=seed), tasks_frac=float(has_PK.any(axis=1).mean()),
        acc_with=_known(with_P, seed), acc_without=_known(without_P, seed),
        gain=stats.difference((with_P - without_P)[both_P], seed=seed) if both_P.any() else None,
        num_paired=int(both_P.sum()), by_outcome=_by_outcome(answers, num_PK, seed),
    )  # fmt: skip


def _by_outcome(answers: Sequence[Sequence[Rollout]], num_PK: np.ndarray, seed: int) -> dict[Outcome, Spoken]:
    tokens_PK = np.array([[r.num_sampled for r in samples] for samples in answers])
    came_PK = np.array([[outcome(r) if r.scorable else "" for r in samples] for samples in answers])
    found: dict[Outcome, Spoken] = {}
    for which in OUTCOMES:
        is_PK = came_PK == which
        tokens = int(tokens_PK[is_PK].sum())
        found[which] = Spoken(
            num_answers=int(is_PK.sum()),
            answers=stats.ratio((is_PK & (num_PK > 0)).sum(axis=1), is_PK.sum(axis=1), seed=seed),
            per_1000_tokens=1000 * int(num_PK[is_PK].sum()) / tokens if tokens else None,
        )
    return found


def _mean_where(values_PK: np.ndarray, where_PK: np.ndarray) -> np.ndarray:
    """Mean of each row where the mask is true; NaN where it is true nowhere."""
    count_P = where_PK.sum(axis=1)
    return np.where(count_P, (values_PK * where_PK).sum(axis=1) / np.maximum(1, count_P), np.nan)


def _known(values_P: np.ndarray, seed: int) -> stats.Estimate | None:
    known = values_P[~np.isnan(values_P)]
    return stats.share(known, seed=seed) if len(known) else None


def _behaviours(answers: Sequence[Sequence[Rollout]], seed: int) -> list[Behaviour]:
    counts = [[text.behaviours(r.text) for r in samples] for samples in answers]
    out = []
    for name in text.BEHAVIOURS:
        count_PK = np.array([[c[name] for c in samples] for samples in counts])
        out.append(
            Behaviour(name=name, answers=stats.share(count_PK > 0, seed=seed), per_answer=float(count_PK.mean()))
        )
    return out


def _rare(answers: Sequence[Sequence[Rollout]]) -> list[Chain]:
    """The right answers to tasks that one sample alone solved, or fewer than RARE_FRAC of them."""
    out = []
    for samples in answers:
        solved = [r for r in samples if r.correct]
        if solved and (len(solved) == 1 or len(solved) < RARE_FRAC * len(samples)):
            task = solved[0].task
            out += [
                Chain(task=task.id, prompt=task.prompt, gold=task.answer, num_right=len(solved), text=r.text)
                for r in solved
            ]
    return out
