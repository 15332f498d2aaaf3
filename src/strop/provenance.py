"""Is the sampler the policy? Two checks between sampling and learning, either of which stops the run before the update.

The weights: every rollout carries a mark of what sampled it (`mark_of`), and it must be that of the learner. What they say:
on the same tokens the log-probabilities of sampler and learner may differ by rounding and by nothing else (`levels`); the
learner holds them against each other in a step's first update, where it computes its own anyway. The first sees an engine
that kept older weights, or the base's, by however little they differ; the second one that has the right weights and uses
them in another way: another temperature, another template, a stale rounded copy.

Knows tensors by name, and no engine, learner or step. Read by engines, `learner` and `train`. The mark is cheap enough for
every step; an evaluation that others will compare with is marked over every byte (`fingerprint.model_hash`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from strop.record import Rollout

__all__ = ["Levels", "Mismatch", "Provenance", "levels", "mark_of"]

SAMPLE = 256  # words of 32 bits of a tensor that are hashed one by one, evenly spread over it
BLOCK, EVERY = (
    1024,
    8,
)  # and of a large tensor one block of words in so many is summed: all of them would be a tenth of a second


class Mismatch(RuntimeError):
    """What sampled is not the policy that would learn; raised before the optimizer touched a weight with it."""


# --- the weights ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mark_of(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits over each tensor's name, shape, type, a fixed sample of its elements, and a sum of its bits.

    The bits are summed as integers that wrap, so neither threads nor the order of the sum change it. Of a tensor below 64k
    words the sum has all, of a larger one an eighth, in blocks spread over it: an optimizer moves them all. One transfer from
    a GPU. For SmolLM2-135M 22 ms on one thread, twice in a step of some 20 s.

    >>> before = mark_of({"w": torch.tensor([1.0, 2.0, 3.0])})
    >>> before == mark_of({"w": torch.tensor([1.0, 2.0, 3.0])}) != mark_of({"w": torch.tensor([1.0, 2.0, 3.0000002])})
    True
    """
    digest, found = hashlib.sha256(), []
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
        whole = len(raw) // 4 * 4
        bits, rest = raw[:whole].view(torch.int32), raw[whole:].to(torch.int32)
        stride = EVERY if len(bits) >= 8 * EVERY * BLOCK else 1
        blocks = bits[: len(bits) // (stride * BLOCK) * (stride * BLOCK)].view(-1, stride * BLOCK)[:, :BLOCK]
        tail = bits[blocks.shape[0] * stride * BLOCK :][:BLOCK]
        found += [_sum(blocks), _sum(tail), rest, bits[:: max(1, len(bits) // SAMPLE)]]
    if found:
        digest.update(torch.cat(found).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _sum(words: Tensor) -> Tensor:
    """[1], modulo 2^32. By numpy where that can: torch's threads would wait for each other at every tensor."""
    if words.device.type == "cpu":
        return torch.from_numpy(words.numpy().sum(dtype=np.int32, keepdims=True)).view(-1)
    return words.sum(dtype=torch.int32)[None]


class Provenance:
    """The marks that the weights of one stage have had in this process, by step."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights  # the learner's own, changed in place
        self.step_of: dict[str, int] = {}  # the step after which they had a mark

    def check(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Raises Mismatch unless all rollouts of the step were sampled by the weights that will now learn from them."""
        own = mark_of(self.weights)
        self.step_of[own] = step - 1
        others = Counter(r.weights for r in rollouts if r.weights != own)
        if not others:
            return
        raise Mismatch(
            f"step {step}: {others.total()} of {len(rollouts)} rollouts were sampled by {self._whose(*others.most_common(1)[0])}, and "
            f"the learner has those after step {step - 1} (mark {own}), so nothing was learned from them: continue with --resume, "
            f"which samples the step anew, and if it stops again report it with rollouts/<stage>/mismatch_{step:06d}.parquet"
        )

    def _whose(self, mark: str | None, _: int) -> str:
        if mark is None:
            return "an engine that did not say by which weights"
        if (step := self.step_of.get(mark)) is not None:
            return f"the weights after step {step} (mark {mark})"
        return f"weights that the learner has not had since this process began, perhaps the base model's (mark {mark})"


# --- what they say ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The most that sampler and learner may differ by on the same weights and tokens, in nats per token."""

    mean_abs: float  # mean of |log p - sampler's log p|
    k3: float  # KL(sampler || learner)

    def check(self, sum_abs: float, sum_k3: float, num_tokens: float) -> None:
        """Raises Mismatch above either. What is not a number passes: `learner.NonFinite` has its own evidence."""
        mean_abs, k3 = sum_abs / num_tokens, sum_k3 / num_tokens
        if mean_abs > self.mean_abs or k3 > self.k3:
            raise Mismatch(
                f"on the same weights and {num_tokens:.0f} tokens the log-probabilities of sampler and learner differ by "
                f"{mean_abs:.2g} nats a token (rounding explains {self.mean_abs:.2g}) with a k3 of {k3:.2g} (rounding: {self.k3:.2g}), so "
                "this update was not applied: the sampler's temperature, template or copy of the weights is another one; report it with "
                "the saved rollouts (rollouts/<stage>/mismatch_*.parquet, whose old_logprobs are the learner's)"
            )


# At a temperature of 1 or above; docs/metrics.md has what healthy runs show, and what faults do.
EXACT = Levels(mean_abs=1e-3, k3=1e-4)
ROUNDED = Levels(mean_abs=0.1, k3=0.02)


def levels(*, rounds: bool, temperature: float) -> Levels:
    """The levels of a policy that `rounds` to bfloat16, or does not, at the temperature it is sampled at.

    Log-probabilities are of logits divided by the temperature, and so is an error of a logit: below 1 the levels grow as it
    does (k3 is its square).

    >>> levels(rounds=False, temperature=0.5)
    Levels(mean_abs=0.002, k3=0.0004)
    """
    level, larger = ROUNDED if rounds else EXACT, max(1.0, 1.0 / temperature)
    return Levels(mean_abs=level.mean_abs * larger, k3=level.k3 * larger**2)
