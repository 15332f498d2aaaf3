"""Credit: from rewards to one advantage per trained token.

Knows the rewards of a step, which rollouts are siblings, what a critic or a teacher said of their tokens, and the axes
`credit`, `baseline`, `scale`, `decoupled`, `difficulty`, `kl: reward`, `correction`, `critic`, `overlong_filter` and
`advantages` of the recipe. Does not know how rewards came about, nor what the loss does with advantages. Read by the training loop; formulas and papers are in docs/algorithms.md.

An estimator is a row of choices: one function out of BASELINES and one out of SCALES. A new one is one function here
and one line in its dict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.signal import lfilter

from strop.config import Algorithm, Critic
from strop.record import Rollout, replace

__all__ = ["BASELINES", "CORRECTIONS", "SCALES", "acts", "assign", "gae", "has_signal", "lead", "sampled_kl"]

STD_FLOOR = 1e-4  # added to every standard deviation, as TRL does
LARGEST_WEIGHT = 2.0  # of a token whose sampler disagrees with the learner
ROUNDING = 1e-9  # differences of rewards below this share of their size are rounding, not signal
SAME_NATS = 1e-4  # log-probabilities that differ by less may be those of the same weights, once decoded and once packed

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
    "whiten": no_scale,  # and `_whitened` after it, over the step's trained tokens
    "none": no_scale,
}


def _std(rewards: Float64[np.ndarray, " M"]) -> float:
    """Equal rewards have no spread to divide by: 1, so that without a baseline they are not blown up ten thousandfold."""
    spread = float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0
    return spread + STD_FLOOR if spread > _rounding(rewards) else 1.0


def _rounding(rewards: Float64[np.ndarray, " M"]) -> float:
    return ROUNDING * max(1.0, float(np.abs(rewards).max(initial=0.0)))


# --- a critic in place of siblings ------------------------------------------------------------------------------------

Tokens = Float64[np.ndarray, " N"]  # one rollout's sampled tokens, in order


def gae(rewards_N: Tokens, values_N: Tokens, gamma: float, lam: float) -> Tokens:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) for an episode that ends with its last token.

    A_t = sum over l of (gamma lam)^l d_(t+l), with d_t = r_t + gamma V_(t+1) - V_t and nothing after the end.

    >>> gae(np.array([0.0, 0.0, 1.0]), np.array([0.5, 0.5, 0.5]), 1.0, 1.0)  # what is still to come, less the value
    array([0.5, 0.5, 0.5])
    >>> gae(np.array([0.0, 0.0, 1.0]), np.zeros(3), 1.0, 0.5)
    array([0.25, 0.5 , 1.  ])
    """
    errors_N = rewards_N + gamma * np.append(values_N[1:], 0.0) - values_N
    return np.asarray(lfilter([1.0], [1.0, -gamma * lam], errors_N[::-1]))[::-1]


def policy_lambda(num_tokens: int, critic: Critic) -> float:
    """The critic's `gae_lambda`, or 1 - 1 / (alpha x tokens), at least 0 (VAPO; below 1 / alpha tokens it would be negative).

    >>> [policy_lambda(n, Critic(kind="head", lambda_alpha=0.05)) for n in (10, 20, 200)]
    [0.0, 0.0, 0.9]
    """
    if critic.lambda_alpha is None:
        return critic.gae_lambda
    return max(0.0, 1.0 - 1.0 / (critic.lambda_alpha * num_tokens))


# --- difficulty and correction: weights of advantages -----------------------------------------------------------------


def lead(pass_rate: float, sign: float) -> float:
    """GRPO-LEAD's weight of an advantage: right answers to hard tasks and wrong ones to easy tasks count more.

    0.4 + 1.1 / (1 + exp(10 (p - 0.75))) with p the group's pass rate for a positive advantage, 1 - p for a negative one.

    >>> [round(lead(p, +1.0), 3) for p in (0.0, 0.75, 1.0)], round(lead(1.0, -1.0), 3)
    ([1.499, 0.95, 0.483], 1.499)
    """
    p = pass_rate if sign > 0 else 1.0 - pass_rate
    return 0.4 + 1.1 / (1.0 + math.exp(10.0 * (p - 0.75)))


Ratios = Float64[np.ndarray, " N"]  # of one rollout's trained tokens: learner's probability / sampler's


def token_truncate(ratios_N: Ratios, cap: float) -> Ratios:
    """Each token's ratio, at most `cap` (truncated importance sampling)."""
    return np.minimum(ratios_N, cap)


def token_mask(ratios_N: Ratios, cap: float) -> Ratios:
    """Each token's ratio; 0 above `cap`."""
    return np.where(ratios_N > cap, 0.0, ratios_N)


def sequence_truncate(ratios_N: Ratios, cap: float) -> Ratios:
    """The product over the rollout, at most `cap`, for each of its tokens."""
    return token_truncate(np.full_like(ratios_N, _product(ratios_N)), cap)


def sequence_mask(ratios_N: Ratios, cap: float) -> Ratios:
    """The product over the rollout for each of its tokens; 0 above `cap`: such a rollout teaches nothing."""
    return token_mask(np.full_like(ratios_N, _product(ratios_N)), cap)


def _product(ratios_N: Ratios) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(np.log(ratios_N).sum()))


CORRECTIONS: dict[str, Callable[[Ratios, float], Ratios]] = {
    "token_truncate": token_truncate,
    "token_mask": token_mask,
    "sequence_truncate": sequence_truncate,
    "sequence_mask": sequence_mask,
}


# --- from rewards to rollouts -----------------------------------------------------------------------------------------


def sampled_kl(rollout: Rollout) -> float:
    """k1 estimate of KL(policy || reference) of a whole rollout, in nats: sum over its sampled tokens of log p - log ref.

    The logprobs are those of what really sampled it, so the estimate is unbiased for that policy; a single value may
    be negative. A recipe with `kl: reward` has the learner write `ref_logprobs` first.
    """
    return float(_k1(rollout)[rollout.sampled].sum())


def assign(
    rollouts: Sequence[Rollout], algorithm: Algorithm, *, seed: int, reward_weights: Mapping[str, float] | None = None
) -> list[Rollout]:
    """The step's rollouts, in the same order, with `advantages` on trained tokens and 0 elsewhere.

    * A rollout without a reward (its verifier failed) leaves baseline, scale and loss: `trained` becomes all False. With
      `credit: teacher` it stays: no reward is asked for.
    * `credit: teacher` or `both` adds teacher_coef x (teacher's log-probability - that of what sampled the token), token by
      token, after baseline, scale and whitening; differences below 1e-4 nats are rounding, and 0.
    * `kl: reward` subtracts kl_coef x `sampled_kl` before baseline and scale; the record's `reward` stays as scored.
      Where siblings are not compared a token is charged for itself and what follows: nothing before it is its doing.
    * `token_rewards` say where a part of the reward was earned: without siblings to compare with, a token is credited
      with what comes from it on. Siblings are compared as wholes.
    * `baseline: critic` takes `gae` over the sampled tokens with the rollout's `values`, and writes `returns` as well.
    * `decoupled` credits each part of the reward alone and adds up the results times `reward_weights`.
    * `correction` multiplies by how much likelier the learner finds the tokens than what sampled them did.
    * `overlong_filter` makes a truncated rollout's `trained` all False; its reward still counts in the baseline.
    * `advantages: zero` is a control: the same tokens are trained on, with advantage 0.
    * `advantages: shuffled` is a control: rewards are permuted over the scorable rollouts of the step with `seed`
      (the KL part stays with its own rollout), a teacher's parts over the step's trained tokens.

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
    pays = algorithm.credit != "teacher"
    scorable = [i for i, r in enumerate(rollouts) if pays and r.reward is not None]
    order, present = np.arange(len(scorable)), [rollouts[i] for i in scorable]
    if algorithm.advantages == "shuffled":
        order = np.random.default_rng(seed).permutation(len(scorable))
        present = [replace(r, token_rewards=None) for r in present]  # where a reward was earned would tell whose it is
    rewarded = [rollouts[scorable[i]] for i in order]
    trained = [_trained(r, algorithm) for r in rollouts]
    values = [np.zeros(len(r.token_ids)) for r in rollouts]
    returns: list[np.ndarray | None] = [None] * len(rollouts)
    for i, credit, return_ in zip(
        scorable, *_credited(present, rewarded, algorithm, reward_weights or {}), strict=True
    ):
        values[i], returns[i] = np.where(trained[i], credit, 0.0), return_
    if algorithm.scale == "whiten":
        values = _whitened(values, trained)
    if algorithm.credit != "reward":
        values = [v + d for v, d in zip(values, _distilled(rollouts, trained, algorithm, seed), strict=True)]
    return [
        replace(r, trained=t, advantages=(v * _correction(r, t, algorithm)).astype(np.float32), returns=g)
        for r, t, v, g in zip(rollouts, trained, values, returns, strict=True)
    ]


def _credited(
    present: Sequence[Rollout], rewarded: Sequence[Rollout], algorithm: Algorithm, weights: Mapping[str, float]
) -> tuple[list[Any], list[np.ndarray | None]]:
    """Of every scorable rollout, given the one whose reward it gets: its credit (one number, or [L]), its returns [L].

    Only a critic has returns to learn.
    """
    if algorithm.baseline == "critic":
        both = [_against_critic(r, float(s.reward or 0.0), algorithm) for r, s in zip(present, rewarded, strict=True)]
        credit: list[Any] = [a for a, _ in both]
        returns: list[np.ndarray | None] = [g for _, g in both]
    else:
        credit_N = _decoupled(present, rewarded, algorithm, weights) if algorithm.decoupled else _summed(
            present, rewarded, algorithm
        )  # fmt: skip
        credit = [a - _not_its_own(r, algorithm) for a, r in zip(credit_N.tolist(), present, strict=True)]
        returns = [None] * len(present)
    return [0.0] * len(present) if algorithm.advantages == "zero" else credit, returns


def _against_critic(rollout: Rollout, reward: float, algorithm: Algorithm) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns [L] of one rollout; the KL comes with each token, the reward where it was earned."""
    assert rollout.values is not None, "baseline: critic needs values (learner.annotate)"
    critic, sampled = algorithm.critic, rollout.sampled
    rewards_N = -algorithm.kl_coef * _k1(rollout)[sampled] if _charges_kl(algorithm) else np.zeros(rollout.num_sampled)
    rewards_N += _placed(rollout, reward)
    values_N = rollout.values[sampled].astype(np.float64)
    advantages, returns = np.zeros(len(sampled)), np.zeros(len(sampled), np.float32)
    advantages[sampled] = gae(rewards_N, values_N, 1.0, policy_lambda(len(rewards_N), critic))
    returns[sampled] = np.cumsum(rewards_N[::-1])[::-1]
    return advantages, returns


def _summed(present: Sequence[Rollout], rewarded: Sequence[Rollout], algorithm: Algorithm) -> StepRewards:
    """One credit per rollout from the whole reward, less the KL penalty where siblings are compared."""
    rewards_N = np.array([r.reward for r in rewarded], np.float64)
    assert np.isfinite(rewards_N).all(), "rewards are finite numbers or None"
    if _charges_kl(algorithm) and algorithm.baseline != "none":
        rewards_N = rewards_N - algorithm.kl_coef * np.array([sampled_kl(r) for r in present])
    return _credit(rewards_N, present, rewarded, algorithm)


def _decoupled(
    present: Sequence[Rollout], rewarded: Sequence[Rollout], algorithm: Algorithm, weights: Mapping[str, float]
) -> StepRewards:
    """The weighted sum of each part's own credit, whitened over the step's rollouts (GDPO, arXiv 2601.05242)."""
    total_N, has_signal_N = np.zeros(len(present)), np.zeros(len(present), bool)
    groups_N = np.array([r.group for r in present], int)
    for name in sorted({name for r in rewarded for name in r.reward_parts}):
        has = np.array([name in r.reward_parts for r in rewarded])
        part = np.array([r.reward_parts[name] for r in rewarded if name in r.reward_parts])
        owners = [[r for r, h in zip(some, has, strict=True) if h] for some in (present, rewarded)]
        credit_N = weights.get(name, 1.0) * _credit(part, owners[0], owners[1], algorithm)
        total_N[has] += credit_N
        has_signal_N |= np.isin(groups_N, groups_N[has][credit_N != 0])
    # The mean of many zeros and a few credits is not quite 0: groups without signal keep none.
    return np.where(has_signal_N, (total_N - total_N.mean()) / _std(total_N), 0.0) if len(total_N) else total_N


def _credit(
    rewards_N: StepRewards, present: Sequence[Rollout], rewarded: Sequence[Rollout], algorithm: Algorithm
) -> StepRewards:
    """(reward - baseline) / scale, group by group, weighted by difficulty."""
    baseline, scale = BASELINES[algorithm.baseline], SCALES[algorithm.scale]
    groups_N, correct_N = np.array([r.group for r in present], int), np.array([r.correct for r in rewarded], float)
    advantages_N = np.zeros_like(rewards_N)
    for group in np.unique(groups_N):
        own = groups_N == group
        difference_G = rewards_N[own] - baseline(rewards_N[own])
        # The mean of three 0.1s is not 0.1: without this a group of equal rewards would seem to have signal.
        difference_G[np.abs(difference_G) < _rounding(rewards_N[own])] = 0.0
        advantages_N[own] = difference_G / scale(rewards_N[own], rewards_N)
        if algorithm.difficulty == "lead":
            pass_rate = float(correct_N[own].mean())
            advantages_N[own] *= [lead(pass_rate, float(a)) for a in advantages_N[own]]
    return advantages_N


def _charges_kl(algorithm: Algorithm) -> bool:
    return algorithm.kl == "reward" and algorithm.kl_coef > 0


def _not_its_own(rollout: Rollout, algorithm: Algorithm) -> np.ndarray | float:
    """What a token is not credited with where siblings are not compared [L]: the rewards of the tokens before it, and
    the KL (kl_coef x k1) of itself and those behind it.
    """
    if algorithm.baseline != "none":
        return 0.0
    less_L = np.zeros(len(rollout.token_ids))
    if _charges_kl(algorithm):
        per_token_L = np.where(rollout.sampled, _k1(rollout), 0.0)
        less_L += algorithm.kl_coef * np.cumsum(per_token_L[::-1])[::-1]
    if rollout.token_rewards is not None:
        less_L += np.cumsum(rollout.token_rewards, dtype=np.float64) - rollout.token_rewards
    return less_L


def _placed(rollout: Rollout, reward: float) -> Tokens:
    """A rollout's reward over its sampled tokens: what single tokens earned there, the rest with the last one."""
    rewards_N = np.zeros(rollout.num_sampled)
    if rollout.token_rewards is not None:
        rewards_N += rollout.token_rewards[rollout.sampled]
    rewards_N[-1] += reward - rewards_N.sum()
    return rewards_N


def _k1(rollout: Rollout) -> np.ndarray:
    assert rollout.sampler_logprobs is not None, "kl: reward needs sampler_logprobs"
    assert rollout.ref_logprobs is not None, "kl: reward needs ref_logprobs (learner.annotate)"
    return rollout.sampler_logprobs.astype(np.float64) - rollout.ref_logprobs


def _trained(rollout: Rollout, algorithm: Algorithm) -> np.ndarray:
    unpaid = rollout.reward is None and algorithm.credit != "teacher"
    leaves = unpaid or (algorithm.overlong_filter and rollout.truncated)
    return np.zeros_like(rollout.trained) if leaves else rollout.trained


def _whitened(values: list[np.ndarray], trained: list[np.ndarray]) -> list[np.ndarray]:
    """Less their mean over the step's trained tokens, in units of their deviation (REINFORCE++, PPO)."""
    every = np.concatenate([v[t] for v, t in zip(values, trained, strict=True)]) if values else np.zeros(0)
    if not len(every):
        return values
    mean, spread = every.mean(), _std(every)
    if np.abs(every - mean).max() <= _rounding(every):
        return [np.zeros_like(v) for v in values]
    return [np.where(t, (v - mean) / spread, 0.0) for v, t in zip(values, trained, strict=True)]


def _distilled(
    rollouts: Sequence[Rollout], trained: list[np.ndarray], algorithm: Algorithm, seed: int
) -> list[np.ndarray]:
    """The teacher's part of every rollout's advantages [L]: minus the sampled reverse KL of each trained token, no discount.

    Its sum over a rollout is -k1 of KL(student || teacher); a token answers for itself alone.
    """
    parts = []
    for rollout, mask in zip(rollouts, trained, strict=True):
        assert rollout.sampler_logprobs is not None, "a teacher's credit needs sampler_logprobs"
        assert rollout.teacher_logprobs is not None, "a teacher's credit needs teacher_logprobs (learner.annotate)"
        part_L = np.where(mask, rollout.teacher_logprobs.astype(np.float64) - rollout.sampler_logprobs, 0.0)
        part_L[np.abs(part_L) < SAME_NATS] = 0.0
        parts.append(algorithm.teacher_coef * part_L)
    if algorithm.advantages == "zero":
        return [np.zeros_like(part) for part in parts]
    if algorithm.advantages == "shuffled" and parts:
        lengths = np.cumsum([len(part) for part in parts])[:-1]
        flat, mask = np.concatenate(parts), np.concatenate(trained)
        flat[mask] = np.random.default_rng(seed).permutation(flat[mask])
        parts = np.split(flat, lengths)
    return parts


def _correction(rollout: Rollout, trained: np.ndarray, algorithm: Algorithm) -> np.ndarray | float:
    """Weights of the tokens [L], for the difference between what sampled them and the learner."""
    if algorithm.correction == "none" or not trained.any():
        return 1.0
    assert rollout.sampler_logprobs is not None, "correction needs sampler_logprobs"
    assert rollout.old_logprobs is not None, "correction needs old_logprobs (learner.annotate)"
    ratios_N = np.exp(rollout.old_logprobs[trained].astype(np.float64) - rollout.sampler_logprobs[trained])
    weights_L = np.zeros(len(trained))
    weights_L[trained] = CORRECTIONS[algorithm.correction](ratios_N, LARGEST_WEIGHT)
    return weights_L


def has_signal(group: Sequence[Rollout]) -> bool:
    """Whether any trained token of these rollouts has a nonzero advantage."""
    return any(r.advantages is not None and bool(np.any(r.advantages[r.trained])) for r in group)


def acts(group: Sequence[Rollout], algorithm: Algorithm) -> bool:
    """Whether the loss has a gradient on any of these rollouts: signal, or on trained tokens a KL, entropy or value in it.

    A learner may leave out groups for which this is False; their tokens still count in the denominators.
    """
    in_loss = algorithm.kl == "loss" and algorithm.kl_coef > 0
    # A target needs the entropy of the same rollouts at every step, also where the bonus rests.
    if in_loss or algorithm.entropy_coef > 0 or algorithm.entropy_target or algorithm.baseline == "critic":
        return any(r.num_trained > 0 for r in group)
    return has_signal(group)
