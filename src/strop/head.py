"""From hidden states to log-probabilities of given tokens, a chunk at a time: the whole logits never exist.

Knows the matrix that ends a language model and nothing of what its rows mean. Read by the learner.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["logprobs_of"]

CHUNK_TOKENS = 512  # rows of logits that exist at once: 100 MB in float32 at 49k words


def logprobs_of(
    hidden_Nh: Float[Tensor, "N h"],
    weight_Vh: Float[Tensor, "V h"],
    target_N: Int[Tensor, " N"],
    temperature: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """log softmax(hidden @ weight^T / temperature)[target] and the entropy of that softmax, in nats.

    Equal to the plain computation, forward and backward (a test compares them); the backward computes each chunk of
    logits again instead of keeping it.
    """
    return _LogprobsOf.apply(hidden_Nh, weight_Vh, target_N, temperature, chunk_tokens)  # type: ignore[return-value]


class _LogprobsOf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_Nh: Tensor, weight_Vh: Tensor, target_N: Tensor, temperature: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, normalisers = [], [], []
        # Two chunks for all of them, worked on in place: new tensors of this size cost as much as what is computed in them.
        logits_CV, weights_CV = _chunk(hidden_Nh, weight_Vh, chunk_tokens), _chunk(hidden_Nh, weight_Vh, chunk_tokens)
        for hidden, target in zip(hidden_Nh.split(chunk_tokens), target_N.split(chunk_tokens), strict=True):
            logits = _logits(hidden, weight_Vh, temperature, logits_CV)
            largest = logits.amax(-1)
            logits.sub_(largest[:, None])
            weights = torch.exp(logits, out=weights_CV[: len(logits)])
            total = weights.sum(-1)
            logprobs.append(logits.gather(-1, target[:, None])[:, 0] - total.log())
            entropies.append(total.log() - logits.mul_(weights).sum(-1) / total)
            normalisers.append(largest + total.log())
        empty = hidden_Nh.new_zeros(0, dtype=torch.float32)
        normaliser_N = torch.cat([empty, *normalisers])
        entropy_N = torch.cat([empty, *entropies])
        ctx.save_for_backward(hidden_Nh, weight_Vh, target_N, normaliser_N, entropy_N)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return torch.cat([empty, *logprobs]), entropy_N

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_Nh, weight_Vh, target_N, normaliser_N, entropy_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_Nh) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight_Vh) if ctx.needs_input_grad[1] else None
        grad_N = torch.zeros_like(normaliser_N) if grad_N is None else grad_N
        logits_CV = _chunk(hidden_Nh, weight_Vh, ctx.chunk_tokens)
        for begin in range(0, len(hidden_Nh), ctx.chunk_tokens):
            rows = slice(begin, begin + ctx.chunk_tokens)
            hidden, target, grad = hidden_Nh[rows], target_N[rows], grad_N[rows] / ctx.temperature
            d_logits = _logits(hidden, weight_Vh, ctx.temperature, logits_CV).sub_(normaliser_N[rows, None])
            # d log p[target] / d logits = onehot(target) - p; d entropy / d logits = -p (log p + entropy)
            if grad_entropy_N is None:
                d_logits.exp_().mul_(-grad[:, None])
            else:
                grad_entropy = grad_entropy_N[rows] / ctx.temperature
                p = d_logits.exp()
                d_logits.add_(entropy_N[rows, None]).mul_(-grad_entropy[:, None]).sub_(grad[:, None]).mul_(p)
            d_logits.scatter_add_(-1, target[:, None], grad[:, None])
            d_logits = d_logits.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = d_logits @ weight_Vh
            if grad_weight is not None:
                grad_weight.addmm_(d_logits.T, hidden)
        return grad_hidden, grad_weight, None, None, None


def _chunk(hidden_Nh: Tensor, weight_Vh: Tensor, chunk_tokens: int) -> Tensor:
    return hidden_Nh.new_empty(min(chunk_tokens, len(hidden_Nh)), len(weight_Vh), dtype=torch.float32)


def _logits(hidden: Tensor, weight_Vh: Tensor, temperature: float, out_CV: Tensor) -> Tensor:
    """Into the first rows of `out_CV`."""
    logits = out_CV[: len(hidden)]
    if hidden.dtype == torch.float32:
        torch.mm(hidden, weight_Vh.T, out=logits)
    else:
        logits.copy_(hidden @ weight_Vh.T)
    return logits if temperature == 1 else logits.div_(temperature)
