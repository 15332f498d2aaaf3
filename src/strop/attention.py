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
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface

from strop import headroom
from strop.precision import is_exact, multiply_in
from strop.record import UserError

__all__ = ["NAME", "Block", "Packed", "Slots", "attention", "common_prefix", "pack_layout"]

NAME = "strop"
KEPT_KEYS = 4  # gathered keys per place of the row that may be kept for the backward; more are gathered again
REFUSED = ("softcap", "s_aux", "alibi", "head_mask", "position_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows of queries, of like length, with the keys each may see; indices speak of places in the packed row.

    Padding repeats a row's last query and last key; such a key is seen by nobody, such a query is never read.
    """

    query_RQ: Int[Tensor, "R Q"]
    key_RK: Int[Tensor, "R K"]
    visible_RQK: Bool[Tensor, "R Q K"]
    masks: dict[tuple[int, torch.dtype, int | None], Tensor] = field(default_factory=dict, repr=False)  # see _mask


@dataclass(slots=True, kw_only=True)
class Packed:
    """A flat row of T tokens: what all prompts begin with, the rest of each prompt, the completions that share it."""

    blocks: list[Block]
    source_T: Int[Tensor, " T"]  # where each place's query lies in the rows of all blocks, laid end to end
    cache: list[tuple[Tensor, Tensor]] | None = None  # filled with every layer's keys and values [Hkv, T, D] if a list


@dataclass(slots=True, kw_only=True)
class Slots:
    """Cached keys and values of rows 0..B-1, one new token each; what all rows begin with is there once, and read once."""

    prefix: list[tuple[Float[Tensor, "Hkv P D"], Float[Tensor, "Hkv P D"]]]  # keys and values per layer; P may be 0
    keys: list[Float[Tensor, "S Hkv C D"]]  # behind the prefix
    values: list[Float[Tensor, "S Hkv C D"]]
    new_X: Int[Tensor, " X"]  # per row and key head, where its new key goes in `keys` seen as a list of [D]
    length: int  # keys beyond this are seen by nobody
    unseen_BK: Float[Tensor, "B 1 K"] = field(repr=False)  # -inf beyond each row's new token; K counts the prefix
    windows: dict[int, Tensor] = field(default_factory=dict, repr=False)  # see _unseen


Branch = tuple[range, range, range]  # places that a row of queries sees; the queries are the last range


def common_prefix(prompts: Sequence[np.ndarray]) -> int:
    """How many tokens all prompts begin with, leaving each at least its last one.

    >>> common_prefix([np.array([1, 2, 3, 4]), np.array([1, 2, 5])]), common_prefix([np.array([1, 2])])
    (2, 1)
    """
    longest = min(len(ids) for ids in prompts) - 1
    same = np.logical_and.reduce([ids[:longest] == prompts[0][:longest] for ids in prompts])
    return int(np.argmin(np.append(same, False)))


def pack_layout(groups: Sequence[tuple[int, Sequence[int]]], device: torch.device, *, prefix_tokens: int = 0) -> Packed:
    """Layout of a prefix and the groups behind it, each (prompt length, completion lengths): a tree, every part once.

    A completion sees the prefix, its prompt and its own past, never a sibling; a prompt sees the prefix and its past.
    Prompt lengths do not count the prefix.

    >>> layout = pack_layout([(2, [2, 1])], torch.device("cpu"), prefix_tokens=1)
    >>> [block.key_RK.tolist() for block in layout.blocks]  # prefix and second completion; prompt and first completion
    [[[0, 0, 0, 0], [0, 1, 2, 5]], [[0, 1, 2, 2, 2], [0, 1, 2, 3, 4]]]
    """
    prefix, nothing, place = range(prefix_tokens), range(0), prefix_tokens
    branches: list[Branch] = [(nothing, nothing, prefix)]
    for prompt_tokens, lengths in groups:
        prompt = range(place, place + prompt_tokens)
        place = prompt.stop
        if len(lengths) == 1:  # an only child shares its prompt with nobody
            place += lengths[0]
            branches.append((prefix, nothing, range(prompt.start, place)))
            continue
        branches.append((prefix, nothing, prompt))
        for length in lengths:
            branches.append((prefix, prompt, range(place, place + length)))
            place += length
    branches = sorted((branch for branch in branches if branch[-1]), key=_size)
    blocks = [_block(list(alike), device) for _, alike in groupby(branches, key=_size)]
    # A query comes before the padding that repeats it, so its first occurrence is the real one.
    queries = torch.cat([block.query_RQ.flatten() for block in blocks]).numpy(force=True)
    source = np.unique(queries, return_index=True)[1]
    return Packed(blocks=blocks, source_T=torch.from_numpy(source).to(device))


def _size(branch: Branch) -> int:
    """Rows share a block if they are of one binary length, so that at most half a block is padding."""
    return len(branch[-1]).bit_length()


def _block(branches: Sequence[Branch], device: torch.device) -> Block:
    start_RS = torch.tensor([[places.start for places in branch] for branch in branches])
    length_RS = torch.tensor([[len(places) for places in branch] for branch in branches])
    end_RS = length_RS.cumsum(1)  # counted in keys of the row
    own_R1, total_R1 = length_RS[:, -1:], end_RS[:, -1:]
    step_RQ = torch.minimum(torch.arange(int(own_R1.max())), own_R1 - 1)
    step_RK = torch.minimum(torch.arange(int(total_R1.max())), total_R1 - 1)
    part_RK = torch.searchsorted(end_RS, step_RK, right=True)  # which of the branch's ranges a key lies in
    last_RQ = total_R1 - own_R1 + step_RQ  # the last key each query sees
    visible = torch.arange(step_RK.shape[1]) <= last_RQ[:, :, None]
    return Block(
        query_RQ=(start_RS[:, -1:] + step_RQ).to(device),
        key_RK=(step_RK + (start_RS - end_RS + length_RS).gather(1, part_RK)).to(device),
        visible_RQK=visible.to(device),
    )


def attention(
    module: torch.nn.Module,
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B Hkv T D"],
    value: Float[Tensor, "B Hkv T D"],
    attention_mask: Any = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    layout: Packed | Slots | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B T H D"], None]:
    """The function transformers (or `fused.py`) calls in every layer. Raises OutOfRoom where memory runs short.

    Under a `sliding_window` a token sees so many keys at most, itself and the last ones before it.
    """
    headroom.check()
    for name in REFUSED:
        if kwargs.get(name) is not None:
            raise UserError(f"this model's attention uses {name}, which Strop does not implement; choose another model")
    if layout is None:
        raise UserError("the model was called without a layout; call it through strop's engine or learner")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(layout, Slots):
        with multiply_in("float32"):  # many small products: rounding them would cost more than it saves
            return _decode(query, key, value, layout, module.layer_idx, scale, sliding_window), None  # type: ignore[arg-type]
    if layout.cache is not None:
        layout.cache.append((key[0].detach(), value[0].detach()))
    many_keys = sum(block.key_RK.numel() for block in layout.blocks) > KEPT_KEYS * query.shape[2]
    packed = _packed if is_exact() and not many_keys else _ExactPacked.apply
    return packed(query[0], key[0], value[0], layout, scale, sliding_window)[None], None


def _packed(
    query: Tensor, key: Tensor, value: Tensor, layout: Packed, scale: float, window: int | None
) -> Float[Tensor, "T H D"]:
    # Places are looked up as embeddings are, because plain indexing leaves the order in which its backward adds, and
    # with it the last bits, to the threads.
    num_heads, num_tokens, size = query.shape
    num_kv = key.shape[0]
    query_Tx, key_Tx, value_Tx = (x.transpose(0, 1).flatten(1) for x in (query, key, value))
    seen = []
    for block in layout.blocks:
        rows, num_queries = block.query_RQ.shape
        k = F.embedding(block.key_RK, key_Tx).view(rows, -1, num_kv, size).transpose(1, 2)
        v = F.embedding(block.key_RK, value_Tx).view(rows, -1, num_kv, size).transpose(1, 2)
        # Heads that share a key head become extra queries, so that keys are never copied per head.
        q = F.embedding(block.query_RQ, query_Tx).view(rows, num_queries, num_kv, -1, size).permute(0, 2, 3, 1, 4)
        mask = _mask(block, num_heads // num_kv, query.dtype, window)
        out = F.scaled_dot_product_attention(q.flatten(2, 3), k, v, attn_mask=mask, scale=scale)
        out = out.view(rows, num_kv, -1, num_queries, size).permute(0, 3, 1, 2, 4)
        seen.append(out.reshape(rows * num_queries, -1))
    return F.embedding(layout.source_T, torch.cat(seen)).view(num_tokens, num_heads, size)


def _mask(block: Block, repeat: int, dtype: torch.dtype, window: int | None) -> Float[Tensor, "R 1 _ K"]:
    """What is added to the scores of `repeat` heads' queries; made in the first such layer and kept for the others."""
    if (repeat, dtype, window) not in block.masks:
        near = block.visible_RQK & ~_too_early(block.visible_RQK, window)
        visible = near.repeat(1, repeat, 1)[:, None]
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        block.masks[repeat, dtype, window] = mask.masked_fill_(~visible, -torch.inf)
    return block.masks[repeat, dtype, window]


def _unseen(layout: Slots, window: int | None) -> Float[Tensor, "B 1 K"]:
    """What is added to the scores of each row's new token; made in the first such layer and kept for the others."""
    if window is None or window >= layout.unseen_BK.shape[-1]:
        return layout.unseen_BK
    if window not in layout.windows:
        early = _too_early(layout.unseen_BK == 0, window)
        layout.windows[window] = layout.unseen_BK.masked_fill(early, -torch.inf)
    return layout.windows[window]


def _too_early(visible_K: Bool[Tensor, "*b K"], window: int | None) -> Bool[Tensor, "*b K"] | Bool[Tensor, ""]:
    """Keys in front of the last `window` of those that each query sees; its keys are its own sequence, in order."""
    if window is None:
        return torch.zeros((), dtype=torch.bool, device=visible_K.device)
    place_K = torch.arange(visible_K.shape[-1], device=visible_K.device)
    return place_K < visible_K.sum(-1, keepdim=True) - window


class _ExactPacked(torch.autograd.Function):
    """`_packed` in float32, forward and backward, also inside a pass whose other products are rounded.

    The backward computes the forward again, so no gathered keys are kept: siblings of a long prompt have many.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Packed, scale: float, window: int | None
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        with multiply_in("float32"):
            return _packed(query, key, value, layout, scale, window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:  # type: ignore[override]
        query, key, value = (x.detach().requires_grad_() for x in ctx.saved_tensors)
        with multiply_in("float32"), torch.enable_grad():
            out = _packed(query, key, value, ctx.layout, ctx.scale, ctx.window)
            d_query, d_key, d_value = torch.autograd.grad(out, (query, key, value), grad)
        return d_query, d_key, d_value, None, None, None


def _decode(
    query: Tensor, key: Tensor, value: Tensor, layout: Slots, layer: int, scale: float, window: int | None
) -> Tensor:
    rows, num_heads, _, size = query.shape
    num_kv, length = key.shape[1], layout.length
    keys, values = layout.keys[layer], layout.values[layer]
    keys.view(-1, size).index_copy_(0, layout.new_X, key.reshape(-1, size))
    values.view(-1, size).index_copy_(0, layout.new_X, value.reshape(-1, size))
    # One matrix per row and key head, over strided views of the cache: nothing is copied. On a CPU this is several
    # times faster than fused attention, whose kernels are made for many queries.
    matrices, repeat = rows * num_kv, num_heads // num_kv
    k = keys[:rows, :, :length].view(matrices, length, size)
    v = values[:rows, :, :length].view(matrices, length, size)
    prefix_k, prefix_v = layout.prefix[layer]
    prefix = prefix_k.shape[1]
    scores = query.new_empty(rows, num_heads, prefix + length)
    own = torch.bmm(query.reshape(matrices, repeat, size), k.transpose(1, 2))
    scores[..., prefix:] = own.view(rows, num_heads, length)
    if prefix:  # for all rows at once: one matrix per key head
        by_head = query.view(rows, num_kv, -1).transpose(0, 1).reshape(num_kv, -1, size)
        earlier = torch.bmm(by_head, prefix_k.transpose(1, 2)).view(num_kv, rows, repeat, prefix)
        scores[..., :prefix].unflatten(1, (num_kv, repeat)).copy_(earlier.transpose(0, 1))
    scores = scores.mul_(scale).add_(_unseen(layout, window))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    seen = torch.bmm(weights[..., prefix:].view(matrices, repeat, length), v).view(rows, num_kv, -1)
    if prefix:
        by_head = weights[..., :prefix].unflatten(1, (num_kv, repeat)).transpose(0, 1).reshape(num_kv, -1, prefix)
        seen += torch.bmm(by_head, prefix_v).view(num_kv, rows, -1).transpose(0, 1)
    return seen.view(rows, 1, num_heads, size)


AttentionInterface.register(NAME, attention)
