"""Rollouts to tensors: the one place where lists become tensors, and where the alignment is stated.

A record's index t speaks of token t: `logprobs[t] = log p(ids[t] | ids[:t])`. In a packed row the prompt of a group is
encoded once and its completions follow; `predictor_N` names the place whose hidden state predicts each token, so the
last prompt token predicts the first token of every sibling. The last token of a completion predicts nothing and is
left out. Knows no loss and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strop.attention import Packed, pack_layout
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


def cost(rollouts: Sequence[Rollout]) -> int:
    """Places that siblings take in a packed row: the prompt once, every completion less its last token."""
    prompt = rollouts[0].num_prompt_tokens
    return prompt + sum(max(0, len(r.token_ids) - prompt - 1) for r in rollouts)


def split(rollouts: Sequence[Rollout], max_tokens: int) -> Iterator[list[Rollout]]:
    """Cut into micro-batches of at most `max_tokens` places, siblings together where they fit; a rollout is never cut.

    One rollout longer than the limit is a batch of its own.
    """
    batch: list[Rollout] = []
    used = 0
    for siblings in (list(g) for _, g in groupby(rollouts, key=_prompt_key)):
        while siblings:
            fits = next((n for n in range(len(siblings), 0, -1) if used + cost(siblings[:n]) <= max_tokens), 0)
            if fits == 0 and batch:  # start a new batch before cutting the group
                yield batch
                batch, used = [], 0
                continue
            fits = max(fits, 1)
            batch += siblings[:fits]
            used += cost(siblings[:fits])
            siblings = siblings[fits:]
    if batch:
        yield batch


def collate(rollouts: Sequence[Rollout], device: torch.device, *, wanted: str = "trained", share: bool = True) -> Batch:
    """One packed row. `wanted` is the mask ("trained" or "sampled") of the tokens to predict.

    `share=False` repeats the prompt for every rollout: slower, and equal (a test compares them).
    """
    groups = [list(g) for _, g in groupby(rollouts, key=_prompt_key)] if share else [[r] for r in rollouts]
    ids: list[np.ndarray] = []
    position: list[np.ndarray] = []
    predictor: list[np.ndarray] = []
    target: list[np.ndarray] = []
    lengths: list[tuple[int, list[int]]] = []
    place = 0
    for siblings in groups:
        prompt = siblings[0].num_prompt_tokens
        last_of_prompt = place + prompt - 1
        ids.append(siblings[0].token_ids[:prompt])
        position.append(np.arange(prompt))
        place += prompt
        own = []
        for r in siblings:
            fed = max(0, len(r.token_ids) - prompt - 1)
            ids.append(r.token_ids[prompt : prompt + fed])
            position.append(np.arange(prompt, prompt + fed))
            t = np.flatnonzero(getattr(r, wanted))  # token t is predicted by the place of token t - 1
            predictor.append(np.where(t == prompt, last_of_prompt, place + t - prompt - 1))
            target.append(r.token_ids[t])
            own.append(fed)
            place += fed
        lengths.append((prompt, own))
    count = [len(t) for t in target]

    def tensor(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

    return Batch(
        ids_T=tensor(ids), position_T=tensor(position), layout=pack_layout(lengths, device),
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


def _prompt_key(r: Rollout) -> bytes:
    return r.token_ids[: r.num_prompt_tokens].tobytes()
