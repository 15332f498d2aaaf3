"""Losses over trained tokens, by independent axes: ratio, clip, aggregate, KL.

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

__all__ = ["AGGREGATES", "RATIOS", "k3", "policy_loss", "sft_loss", "token_weights"]


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


RATIOS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"token": token_log_ratio, "sequence": sequence_log_ratio}


# --- the losses -------------------------------------------------------------------------------------------------------


def policy_loss(
    logprobs_T: Float[Tensor, " T"],
    old_logprobs_T: Float[Tensor, " T"],
    ref_logprobs_T: Float[Tensor, " T"] | None,
    advantages_T: Float[Tensor, " T"],
    weights_T: Float[Tensor, " T"],
    rollout_T: Int[Tensor, " T"],
    algorithm: Algorithm,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Sum over trained tokens of weight x (clipped surrogate + kl_coef x k3), and metric sums.

    Per token the surrogate is -min(ratio x A, clip(ratio, 1 - clip_low, 1 + clip_high) x A) (PPO, arXiv 1707.06347,
    eq. 7), or -ratio x A without a clip. Only `logprobs_T` carries gradient. `rollout_T` numbers the rollout of each
    token; with `ratio: sequence` all trained tokens of a rollout must be in the same call.

    The sums add over micro-batches; divided by `num_tokens` they are means over trained tokens: `ratio`, `clip_low`
    and `clip_high` (tokens on which the clip holds the gradient at 0), and `kl` (k3, nats, where a reference is
    given).

    Overflow: exp is taken only where the ratio acts. Tokens held by the clip, and tokens with A = 0, have no gradient
    in exact arithmetic; left in, an infinite ratio would turn that 0 into NaN. Nothing else is clamped: with A < 0 a
    ratio may grow without bound, and then an infinite loss (which stops the run before the update) is true, and a
    clamped one with a silent zero gradient would not be.
    """
    log_ratio_T = RATIOS[algorithm.ratio](logprobs_T - old_logprobs_T, rollout_T)
    low_T, high_T = _held_by_clip(log_ratio_T.detach(), advantages_T, algorithm)
    idle_T = low_T | high_T | (advantages_T == 0)
    ratio_T = torch.exp(log_ratio_T.masked_fill(idle_T, 0.0))
    if algorithm.clip_low is not None and algorithm.clip_high is not None:
        ratio_T = ratio_T.masked_fill(low_T, 1 - algorithm.clip_low).masked_fill(high_T, 1 + algorithm.clip_high)
    loss_T = -ratio_T * advantages_T
    sums = {
        "num_tokens": torch.ones_like(logprobs_T).sum(),
        "ratio": log_ratio_T.detach().exp().sum(),
        "clip_low": low_T.to(logprobs_T.dtype).sum(),
        "clip_high": high_T.to(logprobs_T.dtype).sum(),
    }
    if ref_logprobs_T is not None:
        kl_T = k3(logprobs_T, ref_logprobs_T)
        sums["kl"] = kl_T.detach().sum()
        if algorithm.kl == "loss":
            loss_T = loss_T + algorithm.kl_coef * kl_T
    assert algorithm.kl != "loss" or algorithm.kl_coef == 0 or ref_logprobs_T is not None, "kl: loss needs ref_logprobs"
    return (weights_T * loss_T).sum(), sums


def _held_by_clip(
    log_ratio_T: Float[Tensor, " T"], advantages_T: Float[Tensor, " T"], algorithm: Algorithm
) -> tuple[Bool[Tensor, " T"], Bool[Tensor, " T"]]:
    """Where min() picks the constant: the token has already moved far enough in the direction A pushes it."""
    if algorithm.clip_low is None or algorithm.clip_high is None:
        never = torch.zeros_like(advantages_T, dtype=torch.bool)
        return never, never
    low_T = (advantages_T < 0) & (log_ratio_T < math.log1p(-algorithm.clip_low))
    high_T = (advantages_T > 0) & (log_ratio_T > math.log1p(algorithm.clip_high))
    return low_T, high_T


def k3(logprobs_T: Float[Tensor, " T"], ref_logprobs_T: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """exp(d) - d - 1 with d = log ref - log p: per token, never negative, unbiased for KL(policy || reference).

    Its *value* estimates that KL (J. Schulman, "Approximating KL Divergence", 2020, k3). Its *gradient* does not: over
    tokens of the policy the expected gradient is that of KL(reference || policy). GRPO and TRL use it so, and so do we.
    """
    difference_T = ref_logprobs_T - logprobs_T
    return torch.expm1(difference_T) - difference_T


def sft_loss(
    logprobs_T: Float[Tensor, " T"], weights_T: Float[Tensor, " T"]
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Weighted negative log-likelihood; with `token_mean` weights the mean over the trained tokens of the update.

    The sums `nll` (nats) and `num_tokens` add over micro-batches.
    """
    sums = {"num_tokens": torch.ones_like(logprobs_T).sum(), "nll": -logprobs_T.detach().sum()}
    return -(weights_T * logprobs_T).sum(), sums
