"""Credit: from rewards to one advantage per trained token.

Knows the rewards of a step, which rollouts are siblings, and the axes `baseline`, `scale`, `kl: reward`,
`overlong_filter` and `advantages` of the recipe. Does not know how rewards came about, nor what the loss does with
advantages. Read by the training loop; formulas and papers are in docs/algorithms.md.

An estimator is a row of choices: one function out of BASELINES and one out of SCALES. A new one is one function here
and one line in its dict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64

from strop.config import Algorithm
from strop.record import Rollout, replace

__all__ = ["BASELINES", "SCALES", "acts", "assign", "has_signal", "sampled_kl"]

STD_FLOOR = 1e-4  # added to every standard deviation, as TRL does
ROUNDING = 1e-9  # differences of rewards below this share of their size are rounding, not signal

Rewards = Float64[np.ndarray, " G"]  # the scorable rewards of one group
StepRewards = Float64[np.ndarray, " N"]  # the scorable rewards of the whole step


# --- baselines: what a rollout's reward is compared with, one value per rollout of the group --------------------------


def group_mean(rewards_G: Rewards) -> Rewards:
    """The mean of the group, the rollout itself included (GRPO, arXiv 2402.03300, section 4.1.2).

    >>> group_mean(np.array([1.0, 0.0, 0.0, 1.0]))
    array([0.5, 0.5, 0.5, 0.5])
    """
    return np.full_like(rewards_G, rewards_G.mean())


def leave_one_out(rewards_G: Rewards) -> Rewards:
    """The mean of the siblings, the rollout itself left out (RLOO, arXiv 2402.14740, section 4.2).

    Reward minus this is G / (G - 1) times reward minus `group_mean`. Without a sibling there is nothing to compare
    with: the baseline is the reward itself, the advantage 0.

    >>> leave_one_out(np.array([1.0, 0.0, 0.0, 0.5]))
    array([0.16666667, 0.5       , 0.5       , 0.33333333])
    """
    if len(rewards_G) < 2:
        return rewards_G.copy()
    return (rewards_G.sum() - rewards_G) / (len(rewards_G) - 1)


def no_baseline(rewards_G: Rewards) -> Rewards:
    """Zero: plain REINFORCE."""
    return np.zeros_like(rewards_G)


BASELINES: dict[str, Callable[[Rewards], Rewards]] = {
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "none": no_baseline,
}


# --- scales: what the difference is divided by, one number per group --------------------------------------------------


def group_std(rewards_G: Rewards, rewards_N: StepRewards) -> float:
    """The group's sample standard deviation (ddof = 1) plus 1e-4 (GRPO, DAPO; deviation and floor as in TRL).

    It weights a task by 1 / sqrt(p (1 - p)): tasks solved rarely or almost always count more. Dr. GRPO leaves it out.

    >>> round(group_std(np.array([1.0, 0.0, 0.0, 1.0]), np.zeros(8)), 6)
    0.57745
    """
    return _std(rewards_G)


def batch_std(rewards_G: Rewards, rewards_N: StepRewards) -> float:
    """The same over all scorable rewards of the step, before any baseline (TRL's `scale_rewards="batch"`)."""
    return _std(rewards_N)


def no_scale(rewards_G: Rewards, rewards_N: StepRewards) -> float:
    """1: advantages in units of reward (Dr. GRPO, RLOO)."""
    return 1.0


SCALES: dict[str, Callable[[Rewards, StepRewards], float]] = {
    "group_std": group_std,
    "batch_std": batch_std,
    "none": no_scale,
}


def _std(rewards: Float64[np.ndarray, " M"]) -> float:
    """Equal rewards have no spread to divide by: 1, so that without a baseline they are not blown up ten thousandfold."""
    spread = float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0
    return spread + STD_FLOOR if spread > _rounding(rewards) else 1.0


def _rounding(rewards: Float64[np.ndarray, " M"]) -> float:
    return ROUNDING * max(1.0, float(np.abs(rewards).max(initial=0.0)))


# --- from rewards to rollouts -----------------------------------------------------------------------------------------


def sampled_kl(rollout: Rollout) -> float:
    """k1 estimate of KL(policy || reference) of a whole rollout, in nats: sum over its sampled tokens of log p - log ref.

    The logprobs are those of what really sampled it, so the estimate is unbiased for that policy; a single value may
    be negative. A recipe with `kl: reward` has the learner write `ref_logprobs` first.
    """
    assert rollout.sampler_logprobs is not None, "kl: reward needs sampler_logprobs"
    assert rollout.ref_logprobs is not None, "kl: reward needs ref_logprobs (learner.annotate)"
    mask = rollout.sampled
    return float((rollout.sampler_logprobs[mask].astype(np.float64) - rollout.ref_logprobs[mask]).sum())


def assign(rollouts: Sequence[Rollout], algorithm: Algorithm, *, seed: int) -> list[Rollout]:
    """The step's rollouts, in the same order, with `advantages` on trained tokens and 0 elsewhere.

    * A rollout without a reward (its verifier failed) leaves baseline, scale and loss: `trained` becomes all False.
    * `kl: reward` subtracts kl_coef x `sampled_kl` before baseline and scale; the record's `reward` stays as scored.
    * `overlong_filter` makes a truncated rollout's `trained` all False; its reward still counts in the baseline.
    * `advantages: zero` is a control: the same tokens are trained on, with advantage 0.
    * `advantages: shuffled` is a control: rewards are permuted over the scorable rollouts of the step with `seed`
      (the KL part stays with its own rollout).

    >>> from strop.record import Task
    >>> task = Task.make(source="s", prompt="Compute 2 + 3.", answer="5", verifier="math")
    >>> def attempt(sample, reward):
    ...     mask = np.array([False, True, True])
    ...     return Rollout(task=task, group=0, sample=sample, token_ids=np.array([7, 5, 2], np.int32),
    ...                    sampled=mask, trained=mask, reward=reward)
    >>> group = [attempt(0, 1.0), attempt(1, 0.0), attempt(2, 0.0), attempt(3, None)]
    >>> for r in assign(group, Algorithm(preset="rloo"), seed=0):
    ...     print(r.advantages, r.num_trained)
    [0. 1. 1.] 2
    [ 0.  -0.5 -0.5] 2
    [ 0.  -0.5 -0.5] 2
    [0. 0. 0.] 0
    """
    scorable = [i for i, r in enumerate(rollouts) if r.reward is not None]
    rewards_N = _rewards([rollouts[i] for i in scorable], algorithm, seed)
    advantages = np.zeros(len(rollouts))
    advantages[scorable] = _credit(rewards_N, np.array([rollouts[i].group for i in scorable], int), algorithm)
    return [_write(r, a, algorithm) for r, a in zip(rollouts, advantages, strict=True)]


def _rewards(rollouts: Sequence[Rollout], algorithm: Algorithm, seed: int) -> StepRewards:
    """What the estimator sees of the scorable rollouts: rewards, permuted for the control, less the KL penalty."""
    rewards_N = np.array([r.reward for r in rollouts], np.float64)
    assert np.isfinite(rewards_N).all(), "rewards are finite numbers or None"
    if algorithm.advantages == "shuffled":
        rewards_N = np.random.default_rng(seed).permutation(rewards_N)
    if algorithm.kl == "reward" and algorithm.kl_coef > 0:
        rewards_N = rewards_N - algorithm.kl_coef * np.array([sampled_kl(r) for r in rollouts])
    return rewards_N


def _credit(rewards_N: StepRewards, groups_N: np.ndarray, algorithm: Algorithm) -> StepRewards:
    """(reward - baseline) / scale, group by group."""
    baseline, scale = BASELINES[algorithm.baseline], SCALES[algorithm.scale]
    advantages_N = np.zeros_like(rewards_N)
    if algorithm.advantages == "zero":
        return advantages_N
    for group in np.unique(groups_N):
        rewards_G = rewards_N[groups_N == group]
        difference_G = rewards_G - baseline(rewards_G)
        # The mean of three 0.1s is not 0.1: without this a group of equal rewards would seem to have signal.
        difference_G[np.abs(difference_G) < _rounding(rewards_G)] = 0.0
        advantages_N[groups_N == group] = difference_G / scale(rewards_G, rewards_N)
    return advantages_N


def _write(rollout: Rollout, advantage: float, algorithm: Algorithm) -> Rollout:
    leaves = rollout.reward is None or (algorithm.overlong_filter and rollout.truncated)
    trained = np.zeros_like(rollout.trained) if leaves else rollout.trained
    return replace(rollout, trained=trained, advantages=np.where(trained, advantage, 0.0).astype(np.float32))


def has_signal(group: Sequence[Rollout]) -> bool:
    """Whether any trained token of these rollouts has a nonzero advantage."""
    return any(r.advantages is not None and bool(np.any(r.advantages[r.trained])) for r in group)


def acts(group: Sequence[Rollout], algorithm: Algorithm) -> bool:
    """Whether the loss has a gradient on any of these rollouts: signal, or a KL in the loss on any trained token.

    A learner may leave out groups for which this is False; their tokens still count in the denominators.
    """
    if algorithm.kl == "loss" and algorithm.kl_coef > 0:
        return any(r.num_trained > 0 for r in group)
    return has_signal(group)
