"""Rollouts to tensors: the one place where lists become tensors, and where the alignment is stated.

A record's index t speaks of token t: `logprobs[t] = log p(ids[t] | ids[:t])`. In a packed row what all prompts begin
with is encoded once, then, group by group, the rest of the prompt once and its completions; `predictor_N` names the
place whose hidden state predicts each token, so the last prompt token predicts the first token of every sibling. The
last token of a completion predicts nothing and is left out. Knows no loss and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strop.attention import Packed, common_prefix, pack_layout
from strop.record import Rollout

__all__ = ["Batch", "collate", "flat", "split", "unflatten"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One packed row of T places, and the N tokens whose log-probabilities are wanted, in the order of the records."""

    ids_T: Int[Tensor, " T"]
    position_T: Int[Tensor, " T"]
    layout: Packed
    predictor_N: Int[Tensor, " N"]
    target_N: Int[Tensor, " N"]
    rollout_N: Int[Tensor, " N"]  # which of the batch's rollouts


def split(rollouts: Sequence[Rollout], max_tokens: int) -> Iterator[list[Rollout]]:
    """Cut into micro-batches of at most `max_tokens` places, siblings together where they fit; a rollout is never cut.

    One rollout longer than the limit is a batch of its own. What all prompts begin with counts once per micro-batch;
    prompts of one micro-batch that have more in common take fewer places than were counted.
    """
    if not rollouts:
        return
    groups = _groups(rollouts)
    prefix = common_prefix([_prompt(siblings[0]) for siblings in groups])
    batch: list[Rollout] = []
    used = prefix
    for siblings in groups:
        while siblings:
            cost = np.cumsum([_fed(r) for r in siblings]) + len(_prompt(siblings[0])) - prefix
            fits = int(np.searchsorted(cost, max_tokens - used, side="right"))
            if fits == 0 and batch:  # start a new batch before cutting the group
                yield batch
                batch, used = [], prefix
                continue
            fits = max(fits, 1)
            batch += siblings[:fits]
            used += int(cost[fits - 1])
            siblings = siblings[fits:]
    if batch:
        yield batch


def collate(rollouts: Sequence[Rollout], device: torch.device, *, wanted: str = "trained", share: bool = True) -> Batch:
    """One packed row. `wanted` is the mask ("trained" or "sampled") of the tokens to predict.

    `share=False` repeats the prompt for every rollout: slower, and equal (a test compares them).
    """
    groups = _groups(rollouts) if share else [[r] for r in rollouts]
    prompts = [_prompt(siblings[0]) for siblings in groups]
    prefix = common_prefix(prompts) if share and len(groups) > 1 else 0
    ids = [prompts[0][:prefix]]
    position = [np.arange(prefix)]
    predictor: list[np.ndarray] = []
    target: list[np.ndarray] = []
    lengths: list[tuple[int, list[int]]] = []
    place = prefix
    for siblings, prompt in zip(groups, prompts, strict=True):
        num_prompt, fed = len(prompt), [_fed(r) for r in siblings]
        ids.append(prompt[prefix:])
        position.append(np.arange(prefix, num_prompt))
        place += num_prompt - prefix
        last_of_prompt = place - 1
        for r, n in zip(siblings, fed, strict=True):
            ids.append(r.token_ids[num_prompt : num_prompt + n])
            position.append(np.arange(num_prompt, num_prompt + n))
            t = np.flatnonzero(getattr(r, wanted))  # token t is predicted by the place of token t - 1
            predictor.append(np.where(t == num_prompt, last_of_prompt, place + t - num_prompt - 1))
            target.append(r.token_ids[t])
            place += n
        lengths.append((num_prompt - prefix, fed))
    count = [len(t) for t in target]

    def tensor(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

    return Batch(
        ids_T=tensor(ids), position_T=tensor(position), layout=pack_layout(lengths, device, prefix_tokens=prefix),
        predictor_N=tensor(predictor), target_N=tensor(target),
        rollout_N=torch.repeat_interleave(torch.arange(len(rollouts)), torch.tensor(count)).to(device),
    )  # fmt: skip


def flat(
    rollouts: Sequence[Rollout], name: str, device: torch.device, *, wanted: str = "trained"
) -> Float[Tensor, " N"]:
    """One per-token field of the records at the wanted tokens, in the order of `collate`."""
    parts = [getattr(r, name)[getattr(r, wanted)] for r in rollouts]
    return torch.from_numpy(np.concatenate(parts)).to(device)


def unflatten(values_N: Float[Tensor, " N"], rollouts: Sequence[Rollout], *, wanted: str) -> list[np.ndarray]:
    """The inverse of `flat`: per record, NaN where nothing was wanted."""
    ends = np.cumsum([int(getattr(r, wanted).sum()) for r in rollouts])[:-1]
    out = []
    for r, values in zip(rollouts, np.split(values_N.float().cpu().numpy(), ends), strict=True):
        array = np.full(len(r.token_ids), np.nan, dtype=np.float32)
        array[getattr(r, wanted)] = values
        out.append(array)
    return out


def _groups(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """Neighbours with the same prompt."""
    return [list(siblings) for _, siblings in groupby(rollouts, key=lambda r: _prompt(r).tobytes())]


def _prompt(r: Rollout) -> np.ndarray:
    return r.token_ids[: r.num_prompt_tokens]


def _fed(r: Rollout) -> int:
    """Tokens of the completion that predict another: all but the last."""
    return max(0, len(r.token_ids) - r.num_prompt_tokens - 1)
