"""What changes from step to step by a rule: the learning rate, whose turn it is, token limits, how hard tasks are, weights.

Pure functions of a counter, the recipe and rows that a run has logged, so that a resume needs no state of its own: the
same rows give the same step. Knows no engine and no model. Read by the learner and the training loop; the rules are
told in docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from statistics import fmean
from typing import Any

import numpy as np

from strop.config import Algorithm, Curriculum, Moves, Optim, RewardSpec, TrainStage
from strop.metrics import column
from strop.record import Rollout, Task
from strop.stats import trend

__all__ = [
    "ACCURACY_STEPS",
    "adapted",
    "curriculum_row",
    "holds_accuracy",
    "learning_rate",
    "moved",
    "pass_rates",
    "pick",
    "pool",
    "reward_weight",
    "shares_of",
    "token_limit",
    "turns",
]

Row = Mapping[str, Any]

ENTROPY_COEF_MAX, ENTROPY_DELTA = 1.0, 0.005  # as TRL
ACCURACY_STEPS = 5  # accuracy of one step is too noisy to open and shut a gate by


def pool(stage: TrainStage, tasks: Sequence[Task]) -> list[Task]:
    """The tasks of a set that the stage draws from: where the teacher reads worked solutions, those that have one."""
    return [task for task in tasks if task.meta.get("solution") or not stage.algorithm.reads_solutions]


def learning_rate(update: int, optim: Optim) -> float:
    """Learning rate of optimizer update number `update` (from 0): linear warm-up, then constant.

    The first update takes one part of `warmup_steps`, not zero, so that no update is wasted.

    >>> [learning_rate(u, Optim(lr=1e-5, warmup_steps=4)) for u in (0, 1, 3, 4, 1000)]
    [2.5e-06, 5e-06, 1e-05, 1e-05, 1e-05]
    >>> learning_rate(0, Optim(lr=1e-5))
    1e-05
    """
    return optim.lr * min(1.0, (update + 1) / max(1, optim.warmup_steps))


def adapted(algorithm: Algorithm, rows: Sequence[Mapping[str, Any]]) -> Algorithm:
    """The algorithm of the next step, given the "train" rows of the stage's earlier ones: its entropy bonus adapts.

    With `entropy_target` the coefficient grows by 0.005 after every step whose entropy was at or below the target
    and shrinks after every other, within [0, 1]; it acts only in a step that follows one of the first kind (Skywork-OR1,
    arXiv 2505.22312).

    >>> algorithm = Algorithm(entropy_coef=0.01, entropy_target=0.5)
    >>> [adapted(algorithm, [{"entropy": e} for e in seen]).entropy_coef for seen in ([], [0.4], [0.4, 0.6])]
    [0.01, 0.015, 0.0]
    """
    if algorithm.entropy_target is None:
        return algorithm
    coef, acts = algorithm.entropy_coef, True
    for row in rows:
        if (entropy := row.get("entropy")) is not None:  # a step without an update has none
            acts = entropy <= algorithm.entropy_target
            coef = min(ENTROPY_COEF_MAX, max(0.0, coef + (1 if acts else -1) * ENTROPY_DELTA))
    return algorithm.model_copy(update={"entropy_coef": coef if acts else 0.0})


def reward_weight(spec: RewardSpec, step: int, history: Sequence[Mapping[str, Any]]) -> float:
    """What a term of the reward weighs at a step (from 1), given the stage's earlier "train" rows, oldest first.

    A straight line from `weight` at step 1 to `until_weight` at step `over_steps` + 1, and that from then on; 0 in steps
    where accuracy does not hold (`accuracy_tolerance`).

    >>> warmed_up = RewardSpec(name="kimi", weight=0.0, until_weight=1.0, over_steps=4)
    >>> [reward_weight(warmed_up, step, []) for step in (1, 2, 5, 100)]
    [0.0, 0.25, 1.0, 1.0]
    """
    if spec.accuracy_tolerance is not None and not holds_accuracy(
        [row["accuracy"] for row in history], spec.accuracy_tolerance
    ):
        return 0.0
    if spec.until_weight is None or spec.over_steps is None:
        return spec.weight
    share = min(1.0, (step - 1) / spec.over_steps)
    return (1.0 - share) * spec.weight + share * spec.until_weight


def holds_accuracy(accuracy: Sequence[float], tolerance: float) -> bool:
    """Whether the mean of the last 5 accuracies is at most `tolerance` below the best such mean (after Short-RL).

    False until there are 5: nothing is known of them yet.

    >>> rising, fallen = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.6, 0.6, 0.6, 0.6, 0.6, 0.2]
    >>> holds_accuracy(rising[:4], 0.05), holds_accuracy(rising, 0.05), holds_accuracy(fallen, 0.05)
    (False, True, False)
    """
    ends = range(ACCURACY_STEPS, len(accuracy) + 1)
    means = [fmean(accuracy[end - ACCURACY_STEPS : end]) for end in ends]
    return bool(means) and means[-1] >= max(means) - tolerance


def turns(shares: Mapping[str, float], num: int) -> list[str]:
    """Whose turn it is, `num` times: always the one that is furthest behind its share, so small shares come too.

    >>> "".join(turns({"a": 3.0, "b": 1.0}, 8))
    'aabaaaba'
    """
    total, drawn, out = sum(shares.values()), dict.fromkeys(shares, 0), []
    for i in range(1, num + 1):
        name = max(shares, key=lambda n: shares[n] / total * i - drawn[n])
        drawn[name] += 1
        out.append(name)
    return out


# --- the token limit, by what is cut, learned and left of entropy -----------------------------------------------------


def moved(stage: TrainStage, rows: Sequence[Row]) -> TrainStage:
    """The stage as its next step runs it, after these "train" rows (oldest first): with the limit that `moves` came to."""
    if not stage.moves.limits or not rows:
        return stage
    return stage.model_copy(update={"max_tokens": token_limit(stage.moves, rows)})


def token_limit(moves: Moves, rows: Sequence[Row]) -> int:
    """The token limit of the step after `rows` ("train" rows of the stage, at least one).

    Up by one where the window's completions are cut too often and accuracy does not rise by more than its standard
    error; else down by one where entropy has fallen too far from its mean over the first window at this limit. A limit
    lasts for at least one window, and one that was left downwards is not entered again, so that the course has one top
    at most (FastCuRL's 8k, 16k, 24k, 16k; arXiv 2503.17287).

    >>> moves = Moves(limits=[256, 512], window_steps=4)
    >>> row = {"max_tokens": 256, "completions/clipped_ratio": 0.4, "accuracy": 0.3, "entropy": 0.5}
    >>> [token_limit(moves, [row] * num) for num in (3, 4)], token_limit(moves, [row | {"max_tokens": 512}] * 4)
    ([256, 512], 512)
    """
    limit, place = rows[-1]["max_tokens"], moves.limits.index(rows[-1]["max_tokens"])
    here = list(takewhile(lambda row: row["max_tokens"] == limit, reversed(rows)))[::-1]
    if len(here) < moves.window_steps:
        return limit
    may_rise = place + 1 < len(moves.limits) and all(row["max_tokens"] <= limit for row in rows)
    if may_rise and _held_up(here[-moves.window_steps :], moves.clipped_above):
        return moves.limits[place + 1]
    if place and _narrowed(here, moves):
        return moves.limits[place - 1]
    return limit


def _held_up(window: Sequence[Row], clipped_above: float) -> bool:
    """Cut often, and no better for it."""
    slope, error = trend(column(window, "accuracy"))
    return fmean(column(window, "completions/clipped_ratio")) > clipped_above and slope <= error


def _narrowed(here: Sequence[Row], moves: Moves) -> bool:
    """Whether entropy has fallen, from the first window at this limit to the last one (which share no step)."""
    if len(here) < 2 * moves.window_steps:
        return False
    first, last = (column(part, "entropy") for part in (here[: moves.window_steps], here[-moves.window_steps :]))
    return bool(first and last) and fmean(last) < moves.entropy_below * fmean(first)


# --- tasks by how often they are passed by now ------------------------------------------------------------------------

HARD_UP_TO, EASY_ABOVE = 0.25, 0.75  # pass rates
KEPT = 0.5  # of what was known of a task when it is tried again: the policy has changed since
NEAREST = {"easy": ("easy", "medium", "hard"), "medium": ("medium", "hard", "easy"), "hard": ("hard", "medium", "easy")}


def pass_rates(rows: Iterable[Row]) -> dict[str, float]:
    """Running pass rate of every task that was tried, by task id, from the "curriculum" rows of a stage (oldest first).

    Of right answers among judged ones, every visit counting half as much as the next one.

    >>> pass_rates([{"passes": {"a": [0, 4], "b": [2, 4]}}, {"passes": {"a": [4, 4]}}])  # a: (0 / 2 + 4) / (4 / 2 + 4)
    {'a': 0.6666666666666666, 'b': 0.5}
    """
    right: dict[str, float] = {}
    judged: dict[str, float] = {}
    for row in rows:
        for task, (num_right, num_judged) in row["passes"].items():
            right[task] = KEPT * right.get(task, 0.0) + num_right
            judged[task] = KEPT * judged.get(task, 0.0) + num_judged
    return {task: right[task] / judged[task] for task in judged if judged[task]}


def estimates(pool: Sequence[Task], rates: Mapping[str, float]) -> list[float]:
    """The pass rate to expect of each task of a set, in order.

    Its own where it was tried; else the mean of those of its level (`meta.level`) that were; else of all of the set
    that were; else 1/2.
    """
    tried: dict[str, list[float]] = {}
    for task in pool:
        if task.id in rates:
            tried.setdefault(_level(task), []).append(rates[task.id])
    by_level = {level: fmean(found) for level, found in tried.items()}
    other = fmean(rate for found in tried.values() for rate in found) if tried else 0.5
    return [rates.get(task.id, by_level.get(_level(task), other)) for task in pool]


def shares_of(curriculum: Curriculum) -> dict[str, float]:
    """The shares that are asked for; none where there is no curriculum.

    >>> shares_of(Curriculum(medium=0.5, hard=0.5)), shares_of(Curriculum())
    ({'medium': 0.5, 'hard': 0.5}, {})
    """
    shares = {"easy": curriculum.easy, "medium": curriculum.medium, "hard": curriculum.hard}
    return {kind: share for kind, share in shares.items() if share}


def pick(
    pool: Sequence[Task],
    rates: Mapping[str, float],
    shares: Mapping[str, float],
    num: int,
    *,
    begin: int,
    seed: int,
) -> list[Task]:
    """`num` different tasks of a set, in the given shares of easy, medium and hard ones; drawn with `seed`.

    `begin` counts the tasks of the set that earlier steps drew, so that small shares come in their turn. Where there
    are no more of one kind, the next nearest stands in (for medium ones: hard, then easy). `pool` has `num` or more.
    """
    assert len(pool) >= num, f"{num} different tasks of {len(pool)}"
    expected = estimates(pool, rates)
    waiting: dict[str, list[Task]] = {kind: [] for kind in NEAREST}
    for i in np.random.default_rng(seed).permutation(len(pool)).tolist():
        waiting[_kind(expected[i])].append(pool[i])
    wanted = turns(shares, begin + num)[begin:]
    return [next(waiting[kind] for kind in NEAREST[want] if waiting[kind]).pop() for want in wanted]


def curriculum_row(
    pools: Iterable[Sequence[Task]], rates: Mapping[str, float], rollouts: Iterable[Rollout]
) -> dict[str, Any]:
    """What a round of sampling leaves behind for `pass_rates`, and how hard the sets were thought to be before it.

    `passes` has the number of right and of judged answers of every task that was tried.
    """
    kinds = [_kind(rate) for pool in pools for rate in estimates(pool, rates)]
    passes: dict[str, list[int]] = {}
    for r in rollouts:
        counts = passes.setdefault(r.task.id, [0, 0])
        counts[0] += r.correct
        counts[1] += r.verdict is not None and r.verdict.scorable
    return {**{f"{kind}_frac": kinds.count(kind) / len(kinds) for kind in NEAREST}, "passes": passes}


def _kind(rate: float) -> str:
    return "hard" if rate <= HARD_UP_TO else "easy" if rate > EASY_ABOVE else "medium"


def _level(task: Task) -> str:
    return str(task.meta.get("level"))
