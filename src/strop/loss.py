"""Losses over trained tokens, by independent axes: ratio, clip, aggregate, KL, entropy.

Knows flat tensors of trained tokens (no padding, no prompt) and the axes of the recipe. Does not know the model, the
packing, or where advantages come from. Read by the learner; formulas and papers are in docs/algorithms.md.

Denominators live in the weights, which are computed once per update from its trained-token counts, before it is cut
into micro-batches. A loss here is therefore a plain sum: the losses (and gradients, and metric sums) of k
micro-batches add up to those of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strop.config import Algorithm

__all__ = ["AGGREGATES", "CLIPS", "KLS", "RATIOS", "k3", "policy_loss", "sft_loss", "token_weights", "value_loss"]


# --- aggregate: the weight of one token -------------------------------------------------------------------------------


def token_mean(num_tokens: int, num_rollouts: int, sum_tokens: int, max_tokens: int) -> float:
    """1 / all trained tokens of the update: every token counts the same (DAPO, arXiv 2503.14476, eq. 8)."""
    return 1.0 / sum_tokens


def sequence_mean(num_tokens: int, num_rollouts: int, sum_tokens: int, max_tokens: int) -> float:
    """1 / (rollouts x own tokens): every rollout counts the same (GRPO, arXiv 2402.03300, eq. 3)."""
    return 1.0 / (num_rollouts * num_tokens)


def constant(num_tokens: int, num_rollouts: int, sum_tokens: int, max_tokens: int) -> float:
    """1 / (rollouts x token limit): no length bias (Dr. GRPO, arXiv 2503.20783)."""
    return 1.0 / (num_rollouts * max_tokens)


AGGREGATES: dict[str, Callable[[int, int, int, int], float]] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant": constant,
}


def token_weights(num_trained_tokens: Sequence[int], aggregate: str, max_tokens: int) -> list[float]:
    """Weight of each trained token of rollout i, so that loss = sum over the update's trained tokens of weight x loss.

    `num_trained_tokens` holds every rollout of the update, also those that a learner will not run because they have
    no gradient: they count. A rollout without trained tokens has left the loss and counts in no denominator.

    >>> token_weights([2, 6, 0], "token_mean", 10), token_weights([2, 5, 0], "sequence_mean", 10)
    ([0.125, 0.125, 0.0], [0.25, 0.1, 0.0])
    >>> token_weights([2, 6, 0], "constant", 10)
    [0.05, 0.05, 0.0]
    """
    weight = AGGREGATES[aggregate]
    num_rollouts, sum_tokens = sum(n > 0 for n in num_trained_tokens), sum(num_trained_tokens)
    return [weight(n, num_rollouts, sum_tokens, max_tokens) if n else 0.0 for n in num_trained_tokens]


# --- ratio: how far the policy has moved since it sampled, per token or per rollout -----------------------------------


def token_log_ratio(log_ratio_T: Float[Tensor, " T"], rollout_T: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Each token's own (PPO, GRPO)."""
    return log_ratio_T


def sequence_log_ratio(log_ratio_T: Float[Tensor, " T"], rollout_T: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
    """The sum over the rollout's trained tokens, given to each of them: the rollout is one action (RLOO, as TRL)."""
    _, rollout_T = torch.unique(rollout_T, return_inverse=True)
    sums = torch.zeros_like(log_ratio_T).index_add(0, rollout_T, log_ratio_T)  # never more rollouts than tokens
    return sums[rollout_T]


def sequence_mean_log_ratio(log_ratio_T: Float[Tensor, " T"], rollout_T: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
    """The mean over the rollout's trained tokens, given to each of them: its length leaves the ratio.

    GSPO, arXiv 2507.18071.
    """
    _, rollout_T = torch.unique(rollout_T, return_inverse=True)
    zeros_T = torch.zeros_like(log_ratio_T)
    means = zeros_T.index_add(0, rollout_T, log_ratio_T) / zeros_T.index_add(0, rollout_T, zeros_T + 1).clamp_min(1)
    return means[rollout_T]


RATIOS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "token": token_log_ratio,
    "sequence": sequence_log_ratio,
    "sequence_mean": sequence_mean_log_ratio,
}


# --- clip: what keeps one update small --------------------------------------------------------------------------------

Clipped = tuple[Float[Tensor, " T"], Bool[Tensor, " T"], Bool[Tensor, " T"]]  # loss; clipped from below; from above


def surrogate(log_ratio_T: Tensor, logprobs_T: Tensor, advantages_T: Tensor, algorithm: Algorithm) -> Clipped:
    """-min(ratio x A, clip(ratio, 1 - clip_low, 1 + clip_high) x A) (PPO, arXiv 1707.06347, eq. 7).

    Where min() picks the constant, the token has already moved far enough in the direction A pushes it, and its
    gradient is 0. Without bounds it is -ratio x A.

    Overflow: exp is taken only where the ratio acts. Tokens held by the clip, and tokens with A = 0, have no gradient
    in exact arithmetic; left in, an infinite ratio would turn that 0 into NaN. Nothing else is clamped: with A < 0 a
    ratio may grow without bound, and then an infinite loss (which stops the run before the update) is true, and a
    clamped one with a silent zero gradient would not be.
    """
    low, high = _bounds(algorithm)
    low_T, high_T = (advantages_T < 0) & (log_ratio_T < low), (advantages_T > 0) & (log_ratio_T > high)
    ratio_T = torch.exp(log_ratio_T.masked_fill(low_T | high_T | (advantages_T == 0), 0.0))
    ratio_T = ratio_T.masked_fill(low_T, math.exp(low)).masked_fill(high_T, math.exp(high))
    return -ratio_T * advantages_T, low_T, high_T


def clipped_weight(log_ratio_T: Tensor, logprobs_T: Tensor, advantages_T: Tensor, algorithm: Algorithm) -> Clipped:
    """-stop_gradient(clip(ratio)) x A x log p (CISPO, arXiv 2506.13585): no token ever loses its gradient.

    A REINFORCE loss with a bounded importance weight; its value is not a surrogate of anything.
    """
    low, high = _bounds(algorithm)
    log_ratio_T = log_ratio_T.detach()
    ratio_T = log_ratio_T.clamp(low, high).masked_fill(advantages_T == 0, 0.0).exp()  # an infinite one times 0 is NaN
    return -ratio_T * advantages_T * logprobs_T, log_ratio_T < low, log_ratio_T > high


def _bounds(algorithm: Algorithm) -> tuple[float, float]:
    """Of the log ratio."""
    low, high = algorithm.clip_low, algorithm.clip_high
    return -math.inf if low is None else math.log1p(-low), math.inf if high is None else math.log1p(high)


CLIPS: dict[str, Callable[[Tensor, Tensor, Tensor, Algorithm], Clipped]] = {
    "surrogate": surrogate,
    "weight": clipped_weight,
}


# --- KL: what a token costs for being unlike the reference ------------------------------------------------------------


def k1(logprobs_T: Float[Tensor, " T"], ref_logprobs_T: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """log p - log ref: unbiased as a value, of either sign. As a loss its expected gradient is 0: noise alone."""
    return logprobs_T - ref_logprobs_T


def k2(logprobs_T: Float[Tensor, " T"], ref_logprobs_T: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """(log p - log ref)^2 / 2: biased as a value; its expected gradient is that of KL(policy || reference)."""
    return (logprobs_T - ref_logprobs_T).square() / 2


def k3(logprobs_T: Float[Tensor, " T"], ref_logprobs_T: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """exp(d) - d - 1 with d = log ref - log p: per token, never negative, unbiased for KL(policy || reference).

    Its *value* estimates that KL (J. Schulman, "Approximating KL Divergence", 2020, k3). Its *gradient* does not: over
    tokens of the policy the expected gradient is that of KL(reference || policy). GRPO and TRL use it so, and so do we.
    """
    difference_T = ref_logprobs_T - logprobs_T
    return torch.expm1(difference_T) - difference_T


KLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


# --- the losses -------------------------------------------------------------------------------------------------------


def policy_loss(
    logprobs_T: Float[Tensor, " T"],
    old_logprobs_T: Float[Tensor, " T"],
    ref_logprobs_T: Float[Tensor, " T"] | None,
    advantages_T: Float[Tensor, " T"],
    weights_T: Float[Tensor, " T"],
    rollout_T: Int[Tensor, " T"],
    algorithm: Algorithm,
    entropy_T: Float[Tensor, " T"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Sum over trained tokens of weight x (clipped policy term + kl_coef x KL - entropy_coef x entropy).

    Only `logprobs_T` and `entropy_T` carry gradient. `rollout_T` numbers the rollout of each token; with a ratio of
    whole rollouts all trained tokens of one must be in the same call.

    The metric sums add over micro-batches; divided by `num_tokens` they are means over trained tokens: `ratio`,
    `clip_low` and `clip_high` (tokens that the clip acts on), and `kl` (k3, nats, where a reference is given).
    """
    log_ratio_T = RATIOS[algorithm.ratio](logprobs_T - old_logprobs_T, rollout_T)
    loss_T, low_T, high_T = CLIPS[algorithm.clip](log_ratio_T, logprobs_T, advantages_T, algorithm)
    sums = {
        "num_tokens": torch.ones_like(logprobs_T).sum(),
        "ratio": log_ratio_T.detach().exp().sum(),
        "clip_low": low_T.to(logprobs_T.dtype).sum(),
        "clip_high": high_T.to(logprobs_T.dtype).sum(),
    }
    if ref_logprobs_T is not None:
        sums["kl"] = k3(logprobs_T.detach(), ref_logprobs_T).sum()
    if algorithm.kl == "loss" and algorithm.kl_coef > 0:
        assert ref_logprobs_T is not None, "kl: loss needs ref_logprobs"
        loss_T = loss_T + algorithm.kl_coef * KLS[algorithm.kl_estimator](logprobs_T, ref_logprobs_T)
    if algorithm.entropy_coef > 0:
        assert entropy_T is not None, "an entropy bonus needs the entropy"
        loss_T = loss_T - algorithm.entropy_coef * entropy_T
    return (weights_T * loss_T).sum(), sums


def value_loss(
    values_T: Float[Tensor, " T"],
    old_values_T: Float[Tensor, " T"],
    returns_T: Float[Tensor, " T"],
    weights_T: Float[Tensor, " T"],
    clip: float | None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Sum of weight x max((V - R)^2, (clip(V, V_old +- clip) - R)^2) / 2; without a clip the first alone.

    The clip is that of PPO's reference code (not in the paper): one update moves a value by at most `clip`. The metric
    sums add over micro-batches: `value_error` (V - R)^2, `returns` R and `squared_returns` R^2, `value_clip` (tokens
    whose gradient the clip holds at 0).
    """
    error_T = (values_T - returns_T).square()
    worst_T = error_T
    if clip is not None:
        near_T = old_values_T + (values_T - old_values_T).clamp(-clip, clip)
        worst_T = torch.maximum(error_T, (near_T - returns_T).square())
    sums = {
        "value_error": error_T.detach().sum(),
        "returns": returns_T.sum(),
        "squared_returns": returns_T.square().sum(),
        "value_clip": (worst_T > error_T).to(values_T.dtype).sum(),
    }
    return (weights_T * worst_T).sum() / 2, sums


def sft_loss(
    logprobs_T: Float[Tensor, " T"], weights_T: Float[Tensor, " T"]
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Weighted negative log-likelihood; with `token_mean` weights the mean over the trained tokens of the update.

    The sums `nll` (nats) and `num_tokens` add over micro-batches.
    """
    sums = {"num_tokens": torch.ones_like(logprobs_T).sum(), "nll": -logprobs_T.detach().sum()}
    return -(weights_T * logprobs_T).sum(), sums
