"""Which token may see which: the one attention function behind sampling and learning.

Registered with transformers under the name `strop`, so that any decoder whose attention goes through the attention
interface uses it unchanged. It is told what to do by a `layout` that travels as a keyword argument of the model call:
`Packed` for flat rows of prompts with shared prefixes (learning, prefill), `Slots` for one new token per running
rollout over cached keys (decoding). It does not know what the tokens mean, nor who asks. An attention keyword it does
not implement is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface

from strop.record import UserError

__all__ = ["NAME", "Block", "Packed", "Slots", "pack_layout"]

NAME = "strop"
REFUSED = ("sliding_window", "softcap", "s_aux", "alibi", "head_mask", "position_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows of queries with the keys each may see; indices speak of places in the packed row.

    Padding points at place 0 and is masked; a padded query sees one key, so that nothing is NaN, and is never read.
    """

    query_RQ: Int[Tensor, "R Q"]
    key_RK: Int[Tensor, "R K"]
    visible_RQK: Bool[Tensor, "R Q K"]
    place_N: Int[Tensor, " N"]  # where the real queries go in the packed row
    real_N: Int[Tensor, " N"]  # and where they come from in the flattened R x Q


@dataclass(slots=True, kw_only=True)
class Packed:
    """A flat row of T tokens: prompts, each followed by the completions that share it."""

    blocks: list[Block]
    cache: list[tuple[Tensor, Tensor]] | None = None  # filled with every layer's keys and values [Hkv, T, D] if a list


@dataclass(slots=True, kw_only=True)
class Slots:
    """Cached keys and values of rows 0..B-1, one new token each at `place_B`."""

    keys: list[Float[Tensor, "S Hkv C D"]]
    values: list[Float[Tensor, "S Hkv C D"]]
    place_B: Int[Tensor, " B"]
    row_B: Int[Tensor, " B"]
    length: int  # keys beyond this are seen by nobody
    unseen_BL: Float[Tensor, "B 1 L"] = field(repr=False)  # -inf beyond each row's own place


def pack_layout(groups: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> Packed:
    """Layout of consecutive groups, each (prompt length, completion lengths): a prompt is in the row once.

    A completion sees its prompt and its own past, never a sibling; prompts see their own past.

    >>> blocks = pack_layout([(3, [2, 1])], torch.device("cpu")).blocks
    >>> blocks[1].key_RK.tolist()
    [[0, 1, 2, 3, 4], [0, 1, 2, 5, 0]]
    """
    prompts: list[tuple[range, range]] = []
    completions: list[tuple[range, range]] = []
    place = 0
    for prompt_tokens, lengths in groups:
        prompt = range(place, place + prompt_tokens)
        prompts.append((range(0), prompt))
        place = prompt.stop
        for length in lengths:
            if length:
                completions.append((prompt, range(place, place + length)))
            place += length
    return Packed(blocks=[_block(rows, device) for rows in (prompts, completions) if any(len(own) for _, own in rows)])


def _block(rows: Sequence[tuple[range, range]], device: torch.device) -> Block:
    num_queries = max(len(own) for _, own in rows)
    num_keys = max(len(shared) + len(own) for shared, own in rows)
    query = torch.zeros(len(rows), num_queries, dtype=torch.long)
    key = torch.zeros(len(rows), num_keys, dtype=torch.long)
    shared_R = torch.tensor([len(shared) for shared, _ in rows])
    own_R = torch.tensor([len(own) for _, own in rows])
    for row, (shared, own) in enumerate(rows):
        query[row, : len(own)] = torch.arange(own.start, own.stop)
        key[row, : len(shared)] = torch.arange(shared.start, shared.stop)
        key[row, len(shared) : len(shared) + len(own)] = torch.arange(own.start, own.stop)
    step_Q = torch.arange(num_queries)
    last_RQ = shared_R[:, None] + torch.minimum(step_Q[None], own_R[:, None] - 1)  # last key each query sees
    visible = torch.arange(num_keys)[None, None] <= last_RQ[:, :, None]
    real = (step_Q[None] < own_R[:, None]).flatten().nonzero().squeeze(1)
    return Block(
        query_RQ=query.to(device),
        key_RK=key.to(device),
        visible_RQK=visible.to(device),
        place_N=query.flatten()[real].to(device),
        real_N=real.to(device),
    )


def attention(
    module: torch.nn.Module,
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B Hkv T D"],
    value: Float[Tensor, "B Hkv T D"],
    attention_mask: Any = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Packed | Slots | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B T H D"], None]:
    """The function transformers calls in every layer."""
    for name in REFUSED:
        if kwargs.get(name) is not None:
            raise UserError(f"this model's attention uses {name}, which Strop does not implement; choose another model")
    if layout is None:
        raise UserError("the model was called without a layout; call it through strop's engine or learner")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(layout, Slots):
        return _decode(query, key, value, layout, module.layer_idx, scale), None  # type: ignore[arg-type]
    if layout.cache is not None:
        layout.cache.append((key[0].detach(), value[0].detach()))
    return _packed(query[0], key[0], value[0], layout, scale)[None], None


def _packed(query: Tensor, key: Tensor, value: Tensor, layout: Packed, scale: float) -> Float[Tensor, "T H D"]:
    num_heads, num_tokens, size = query.shape
    query_THD, key_THD, value_THD = (x.transpose(0, 1) for x in (query, key, value))
    out = query.new_zeros(num_tokens, num_heads, size)
    for block in layout.blocks:
        rows, num_queries = block.query_RQ.shape
        k = key_THD[block.key_RK].transpose(1, 2)  # [R, Hkv, K, D]
        v = value_THD[block.key_RK].transpose(1, 2)
        repeat = num_heads // k.shape[1]
        # Heads that share a key head become extra queries, so that keys are never copied per head.
        q = query_THD[block.query_RQ].view(rows, num_queries, k.shape[1], repeat, size).permute(0, 2, 3, 1, 4)
        q = q.reshape(rows, k.shape[1], repeat * num_queries, size)
        mask = block.visible_RQK[:, None].expand(-1, repeat, -1, -1).reshape(rows, 1, repeat * num_queries, -1)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        seen = seen.view(rows, k.shape[1], repeat, num_queries, size).permute(0, 3, 1, 2, 4)
        seen = seen.reshape(rows * num_queries, num_heads, size)
        out = out.index_copy(0, block.place_N, seen[block.real_N])
    return out


def _decode(query: Tensor, key: Tensor, value: Tensor, layout: Slots, layer: int, scale: float) -> Tensor:
    rows, num_heads, _, size = query.shape
    keys, values = layout.keys[layer], layout.values[layer]
    keys[layout.row_B, :, layout.place_B] = key[:, :, 0]
    values[layout.row_B, :, layout.place_B] = value[:, :, 0]
    # One matrix per row and key head, over strided views of the cache: nothing is copied. On a CPU this is several
    # times faster than fused attention, whose kernels are made for many queries.
    num_kv = key.shape[1]
    matrices, repeat = rows * num_kv, num_heads // num_kv
    k = keys[:rows, :, : layout.length].view(matrices, layout.length, size)
    v = values[:rows, :, : layout.length].view(matrices, layout.length, size)
    scores = torch.bmm(query.reshape(matrices, repeat, size), k.transpose(1, 2)).view(rows, num_heads, layout.length)
    weights = torch.softmax(scores.mul_(scale).add_(layout.unseen_BL), dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.bmm(weights.view(matrices, repeat, layout.length), v).view(rows, 1, num_heads, size)


AttentionInterface.register(NAME, attention)
