"""What training changed: base against trained over k tries, tasks won and lost, and how likely the base finds the new answers.

Two questions of Yue et al., "Does RL really incentivize reasoning capacity ..." (arXiv 2504.13837): does the base model
catch up when both may try k times, and were the trained model's answers already likely under the base? Knows rollouts of
two models on the same tasks; `perplexity` also knows the base model's weights. Shown by `words`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strop import stats
from strop.config import Optim
from strop.learner import Learner
from strop.model import Policy
from strop.probe.answers import by_task, right
from strop.record import Rollout, UserError, replace

CHECKED = 8  # answers whose token ids are decoded, to see that they are of the same tokenizer

__all__ = ["After", "Coverage", "Surprise", "compare_perplexity", "measure", "perplexity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Tasks that one model solved at least once and the other never."""

    tasks: list[str]
    expected: float  # how many there would be if both were one model: chance alone
    spread: float  # standard deviation of that number


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """Base against trained on the same tasks."""

    num_tasks: int
    base_samples: int
    trained_samples: int
    gain: stats.Comparison  # of pass@1
    base_pass: list[stats.PassAt]
    trained_pass: list[stats.PassAt]
    crossover: stats.Crossover
    lost: Coverage  # solved by the base alone
    won: Coverage  # solved by the trained model alone


def measure(base: Sequence[Rollout], trained: Sequence[Rollout], *, seed: int = 0) -> After:
    """Everything that needs no weights. Raises UserError where the two did not answer the same tasks."""
    base_P, trained_P = _paired(by_task(base), by_task(trained))
    base_PK, trained_PK = right(base_P), right(trained_P)
    base_n, trained_n = base_PK.shape[1], trained_PK.shape[1]
    base_c, trained_c = (x.sum(axis=1).astype(int) for x in (base_PK, trained_PK))
    ids = [samples[0].task.id for samples in base_P]
    return After(
        num_tasks=len(ids), base_samples=base_n, trained_samples=trained_n,
        gain=stats.compare(base_PK, trained_PK, seed=seed),
        base_pass=stats.pass_curve(base_n, base_c, seed=seed),
        trained_pass=stats.pass_curve(trained_n, trained_c, seed=seed),
        crossover=stats.crossover(base_c, base_n, trained_c, trained_n, seed=seed),
        lost=_solved_by_one(ids, base_c, base_n, trained_c, trained_n),
        won=_solved_by_one(ids, trained_c, trained_n, base_c, base_n),
    )  # fmt: skip


def _paired(base: list[list[Rollout]], trained: list[list[Rollout]]) -> tuple[list[list[Rollout]], list[list[Rollout]]]:
    """The trained model's samples in the order of the base's tasks."""
    by_id = {samples[0].task.id: samples for samples in trained}
    ids = [samples[0].task.id for samples in base]
    if by_id.keys() != set(ids):
        raise UserError(
            f"base and trained model answered different tasks ({len(ids)} and {len(by_id)}, {len(by_id.keys() & set(ids))} "
            "shared): evaluate both on the same ones"
        )
    return base, [by_id[i] for i in ids]


def _solved_by_one(ids: Sequence[str], one_c: np.ndarray, one_n: int, other_c: np.ndarray, other_n: int) -> Coverage:
    """Tasks that `one` solved and `other` never.

    If both were one model, a task's c right samples of both would fall on either side by chance: all c on the side of
    `one` with probability C(n1, c) / C(n1 + n2, c), which is that n2 draws out of all hold none of them.
    """
    pooled_c = one_c + other_c
    chance_P = np.where(pooled_c > 0, 1 - stats.pass_at_k(one_n + other_n, pooled_c, other_n), 0.0)
    alone = (one_c > 0) & (other_c == 0)
    return Coverage(
        tasks=[i for i, is_alone in zip(ids, alone, strict=True) if is_alone],
        expected=float(chance_P.sum()), spread=float(np.sqrt((chance_P * (1 - chance_P)).sum())),
    )  # fmt: skip


# --- with the base model's weights ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Surprise:
    """Perplexity under the base model: of its own answers, and of the trained model's."""

    num_answers: int  # of each
    base: tuple[float, float, float]  # lower quartile, median, upper quartile
    trained: tuple[float, float, float]
    gap: (
        stats.Estimate
    )  # nats a token, trained minus base's own, mean over tasks; below 0: likelier than its own samples


def perplexity(policy: Policy, rollouts: Sequence[Rollout]) -> list[float]:
    """exp of the mean negative log-probability of each rollout's sampled tokens, at temperature 1; NaN where none was.

    Under `policy`, whoever sampled them. Raises UserError where the token ids are of another tokenizer.
    """
    for r in rollouts[:CHECKED]:
        known = bool((r.token_ids >= 0).all())  # a server may not say which tokens it sent
        if not known or policy.tokenizer.decode(r.token_ids[r.sampled].tolist(), skip_special_tokens=True) != r.text:
            raise UserError(
                f"the answers are not known to be in tokens of {policy.name}, so it cannot score them; leave --perplexity out"
            )
    learner = Learner(policy, Optim())
    logprobs = learner.logprobs([replace(r, temperature=1.0) for r in rollouts])
    return [
        float(np.exp(-values[r.sampled].mean(dtype=np.float64))) if r.num_sampled else float("nan")
        for r, values in zip(rollouts, logprobs, strict=True)
    ]


def compare_perplexity(
    policy: Policy, base: Sequence[Rollout], trained: Sequence[Rollout], *, samples: int = 4, seed: int = 0
) -> Surprise:
    """Both models' first `samples` answers to each task under the base model's weights. Raises UserError as `measure`."""
    base_P, trained_P = _paired(by_task(base), by_task(trained))
    num = min(samples, len(base_P[0]), len(trained_P[0]))
    tables = [
        np.array(perplexity(policy, [r for one in side for r in one[:num]])).reshape(-1, num)
        for side in (base_P, trained_P)
    ]
    own, new = (_quartiles(table) for table in tables)
    gap_P = np.log(tables[1]).mean(axis=1) - np.log(tables[0]).mean(axis=1)
    return Surprise(
        num_answers=tables[0].size, base=own, trained=new, gap=stats.mean(gap_P[np.isfinite(gap_P)], seed=seed)
    )


def _quartiles(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.nanquantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, middle, high
