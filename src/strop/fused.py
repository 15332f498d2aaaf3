"""A Llama-shaped decoder (Llama, Qwen2, SmolLM2) written out: the same arithmetic as its modules in fewer passes.

Modules cost more than their multiplications on a CPU: every norm, gate and rotation is several passes over memory, and
autograd keeps what each of them read. Here a layer is one function with a backward of its own that keeps little and
computes cheap things again. Where training may round (`model.matmul: bfloat16`), weights are rounded once and not in
every product, and what flows between two products is bfloat16; the residual stream, norms, rotations, attention and
all gradients that leave a layer are float32. The modules are the specification: `model.load` compares the two and
falls back on them; hooks on them, and adapters put into them later, are not seen here. Attention is `attention.py`'s, as
for every model. Knows nothing of requests, sampling and losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from strop import int8
from strop.attention import Packed, Slots, attention
from strop.precision import is_exact, multiply_in, pack, times_packed

__all__ = ["Fused"]

QKV, OUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"
GATE_UP, DOWN = ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
NORMS = ("input_layernorm", "post_attention_layernorm")
LINEAR = (*QKV, OUT, *GATE_UP, DOWN)

Stacked = Sequence[Tensor]  # [out, in] each: what multiplies one input, one below the other


class Fused:
    """The way from token ids to last hidden states through a decoder's own weights."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.layers = [Layer(module) for module in decoder.layers]
        self.int8_layers: list[Int8Weights] = []  # for decoding; as many as layers, or none

    @staticmethod
    def fits(decoder: Any) -> bool:
        """By structure: float32 on a CPU, every layer with exactly these linear layers and norms, rotated whole heads.

        What multiplies or clips in between does not show here; `model.load` finds it by comparing numbers.
        """
        if not all(hasattr(decoder, name) for name in ("layers", "embed_tokens", "norm", "rotary_emb")):
            return False
        if (
            getattr(decoder.config, "sliding_window", None) is not None
        ):  # too long for the comparison at loading to show
            return False
        if not len(decoder.layers) or not all(_is_llama(layer) for layer in decoder.layers):
            return False
        cos, _ = decoder.rotary_emb(decoder.norm.weight, torch.zeros(1, 1, dtype=torch.long))
        return all(cos.shape[-1] == layer.self_attn.head_dim for layer in decoder.layers)

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """For a while the layers multiply with copies of their weights in bfloat16; the weights must not change in it."""
        assert all(layer.weights is layer.own for layer in self.layers), "rounded inside rounded"
        try:
            for layer in self.layers:
                layer.weights = layer.own.rounded()
            yield
        finally:
            for layer in self.layers:
                layer.weights = layer.own

    @contextmanager
    def in_int8(self) -> Iterator[None]:
        """For a while decoding multiplies with copies of the weights in 8 bits; the weights must not change in it."""
        assert not self.int8_layers, "int8 inside int8"
        try:
            self.int8_layers = [Int8Weights.of(layer) for layer in self.layers]
            yield
        finally:
            self.int8_layers = []

    def hidden(
        self, ids_BT: Int[Tensor, "B T"], position_BT: Int[Tensor, "B T"], layout: Packed | Slots
    ) -> Float[Tensor, "B T h"]:
        """As `Policy.hidden`, which says what the arguments are."""
        assert not is_exact() or all(layer.weights is layer.own for layer in self.layers), (
            "asked to be exact, but rounded"
        )
        embedded_BTh = self.decoder.embed_tokens(ids_BT)
        cos, sin = (x.flatten(0, 1) for x in self.decoder.rotary_emb(embedded_BTh, position_BT))
        rotation = cos[:, : cos.shape[-1] // 2], sin[:, : sin.shape[-1] // 2]  # the halves are equal
        hidden_Th = embedded_BTh.flatten(0, 1)
        if self.int8_layers and isinstance(layout, Slots):
            hidden_Th = int8.turned(hidden_Th)
            for layer, weights in zip(self.layers, self.int8_layers, strict=True):
                hidden_Th = _decoded_int8(layer, weights, hidden_Th, rotation, layout)
            return self.decoder.norm(int8.turned_back(hidden_Th)).view_as(embedded_BTh)
        for layer in self.layers:
            hidden_Th = layer(hidden_Th, rotation, layout)
        return self.decoder.norm(hidden_Th).view_as(embedded_BTh)


def _is_llama(layer: nn.Module) -> bool:
    weights, biases = {f"{name}.weight" for name in (*LINEAR, *NORMS)}, {f"{name}.bias" for name in QKV}
    parameters = dict(layer.named_parameters())
    return (
        parameters.keys() in (weights, weights | biases)
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters.values())
        and all(type(layer.get_submodule(name)) is nn.Linear for name in LINEAR)
        and all(hasattr(layer.get_submodule(name), "variance_epsilon") for name in NORMS)
        and all(hasattr(layer.self_attn, name) for name in ("head_dim", "scaling"))  # type: ignore[reportAttributeAccessIssue]
    )


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What one layer multiplies with, in the type it multiplies in."""

    dtype: torch.dtype
    qkv: Stacked
    out: Stacked
    gate_up: Stacked
    down: Stacked

    def rounded(self) -> Weights:
        """Copies in bfloat16, one matrix for what multiplies one input."""
        qkv, out, gate_up, down = (
            [torch.cat([w.detach().bfloat16() for w in stacked])]
            for stacked in (self.qkv, self.out, self.gate_up, self.down)
        )
        return Weights(dtype=torch.bfloat16, qkv=qkv, out=out, gate_up=gate_up, down=down)

    @cached_property
    def packed(self) -> Weights:
        """Copies of rounded weights as few rows multiply with them: for decoding, where nothing is kept for a backward.

        The second copy in bfloat16, beside the one that prompts go through; `slots` would leave it no place.
        """
        assert len(self.gate_up) == 1, "rounded weights have one matrix for what multiplies one input"
        gate_up = self.gate_up[0].chunk(2)
        qkv, out, gate_up, down = ([pack(w) for w in stacked] for stacked in (self.qkv, self.out, gate_up, self.down))
        return Weights(dtype=self.dtype, qkv=qkv, out=out, gate_up=gate_up, down=down)


@dataclass(frozen=True, kw_only=True)
class Int8Weights:
    """One layer's weights in 8 bits, for decoding.

    They read and write a residual stream that is turned (`int8.turned`), and the norms' weights are in them.
    """

    qkv: int8.Matrix
    out: int8.Matrix
    gate_up: int8.Matrix
    down: int8.Matrix

    @staticmethod
    @torch.no_grad()
    def of(layer: Layer) -> Int8Weights:
        own, (norm_attention, norm_mlp) = layer.own, (n.weight for n in layer.norms)
        return Int8Weights(
            qkv=int8.matrix(int8.turned(torch.cat([*own.qkv]) * norm_attention)),
            out=int8.matrix(_turned_out(own.out[0])),
            gate_up=int8.matrix(int8.turned(torch.cat([*own.gate_up]) * norm_mlp)),
            down=int8.matrix(int8.turned(_turned_out(own.down[0]))),
        )


def _turned_out(matrix: Tensor) -> Tensor:
    """[out, in] that writes its outputs turned."""
    return int8.turned(matrix.T.contiguous()).T.contiguous()


class Layer:
    """One layer: its own weights, which are the learner's memory, and what it multiplies with now."""

    def __init__(self, module: Any) -> None:
        def weights(*names: str) -> list[Tensor]:
            return [module.get_submodule(name).weight for name in names]

        self.attention = module.self_attn
        self.own = Weights(
            dtype=torch.float32, qkv=weights(*QKV), out=weights(OUT), gate_up=weights(*GATE_UP), down=weights(DOWN)
        )
        self.weights = self.own
        biases = [module.get_submodule(name).bias for name in QKV]
        self.biases = [b for b in biases if b is not None]
        self.norms = [module.get_submodule(name) for name in NORMS]

    def __call__(self, hidden_Th: Tensor, rotation: tuple[Tensor, Tensor], layout: Packed | Slots) -> Tensor:
        own = self.own
        parameters = [*own.qkv, *own.out, *own.gate_up, *own.down, *(n.weight for n in self.norms), *self.biases]
        if torch.is_grad_enabled() and any(x.requires_grad for x in (hidden_Th, *parameters)):
            return _Differentiable.apply(hidden_Th, self, rotation, layout, *parameters)  # type: ignore[return-value]
        if isinstance(layout, Slots) and self.weights is not own:
            return _decoded(self, self.weights.packed, hidden_Th, rotation, layout)
        return _forward(self, self.weights, hidden_Th, rotation, layout)[0]


@dataclass(slots=True, kw_only=True)
class Kept:
    """What a layer's backward needs; the rest it computes again. Shapes [T, ..]."""

    hidden: Tensor  # the layer's input
    scales: tuple[Tensor, Tensor]  # 1 / root mean square, in front of attention and MLP
    query_key_value: tuple[Tensor, Tensor, Tensor]  # leaves of attention's own graph
    seen: Tensor  # attention's result
    middle: Tensor  # residual stream between attention and MLP
    gate_up: Tensor


def _forward(
    layer: Layer, weights: Weights, hidden: Tensor, rotation: tuple[Tensor, Tensor], layout: Packed | Slots
) -> tuple[Tensor, Kept]:
    normed, scale_attention = _norm(hidden, layer.norms[0])
    heads = _heads(layer, _times(normed.to(weights.dtype), weights.qkv), rotation)
    seen, leaves = _attend(layer.attention, heads, layout)
    middle = hidden + _times(seen.detach().to(weights.dtype), weights.out)
    normed, scale_mlp = _norm(middle, layer.norms[1])
    gate_up = _times(normed.to(weights.dtype), weights.gate_up)
    gate, up = gate_up.chunk(2, -1)
    after = middle + _times(F.silu(gate).mul_(up), weights.down)
    kept = Kept(
        hidden=hidden, scales=(scale_attention, scale_mlp), query_key_value=leaves, seen=seen, middle=middle,
        gate_up=gate_up,
    )  # fmt: skip
    return after, kept


def _decoded(layer: Layer, packed: Weights, hidden: Tensor, rotation: tuple[Tensor, Tensor], layout: Slots) -> Tensor:
    """`_forward` for a few rows from packed weights, without what only a backward needs.

    The same but for one rounding less: packed, the gate's products are not rounded in front of silu.
    """
    normed, _ = _norm(hidden, layer.norms[0])
    heads = _heads(layer, times_packed(normed.to(packed.dtype), *packed.qkv), rotation)
    seen, _ = _attend(layer.attention, heads, layout)
    middle = hidden + times_packed(seen.to(packed.dtype), *packed.out)
    normed, gate, up = _norm(middle, layer.norms[1])[0].to(packed.dtype), *packed.gate_up
    gated = times_packed(normed, up, by=times_packed(normed, gate, silu=True))
    return middle + times_packed(gated, *packed.down)


def _decoded_int8(
    layer: Layer, weights: Int8Weights, hidden: Tensor, rotation: tuple[Tensor, Tensor], layout: Slots
) -> Tensor:
    """`_forward` for a few rows in 8 bits; `hidden` is turned, and so is what comes back."""
    attention, mlp = layer.norms
    heads = _heads(layer, weights.qkv.times(int8.rows(hidden, _scale(hidden, attention))), rotation)
    seen, _ = _attend(layer.attention, heads, layout)
    middle = weights.out.times(int8.rows(seen)).add_(hidden)
    gate, up = weights.gate_up.times(int8.rows(middle, _scale(middle, mlp))).chunk(2, -1)
    gated = int8.turned(F.silu(gate).mul_(up))
    return weights.down.times(int8.rows(gated)).add_(middle)


def _heads(layer: Layer, qkv: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [T, heads, D] in float32, the first two turned by their places."""
    qkv = qkv.float()
    if layer.biases:
        qkv += torch.cat([b.detach() for b in layer.biases])
    size = layer.attention.head_dim
    num_q, num_kv = (len(w) // size for w in layer.own.qkv[:2])
    query, key, value = qkv.view(len(qkv), -1, size).split([num_q, num_kv, num_kv], 1)
    # Value is still a view, which would keep all of qkv until the backward.
    return _rotate(query, *rotation), _rotate(key, *rotation), value.contiguous()


class _Differentiable(torch.autograd.Function):
    """`_forward` with its backward, once. Parameters come in the order of `Layer.__call__`.

    What it multiplies with is not among autograd's saved tensors: weights must not change between the two.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, layer: Layer, rotation: tuple[Tensor, Tensor], layout: Packed | Slots, *_: Tensor
    ) -> Tensor:
        assert isinstance(layout, Packed), "a cache of keys has no gradient"
        ctx.layer, ctx.weights, ctx.rotation = layer, layer.weights, rotation
        with torch.enable_grad():  # for attention's graph; nothing else needs a gradient
            after, ctx.kept = _forward(layer, ctx.weights, hidden.detach(), rotation, layout)
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor) -> tuple[Tensor | None, ...]:
        layer, w, kept = ctx.layer, ctx.weights, ctx.kept
        del ctx.kept, ctx.weights  # their memory goes as soon as it was used, though the loss lives on
        own, (norm_attention, norm_mlp) = layer.own, layer.norms

        gate, up = kept.gate_up.chunk(2, -1)
        d_out = d_after.to(w.dtype)
        opened = F.silu(gate)
        d_gated = _times_back(d_out, w.down)
        d_gate_up = torch.empty_like(kept.gate_up)
        d_gate, d_up = d_gate_up.chunk(2, -1)
        torch.mul(d_gated, opened, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_gated.mul_(up), gate, grad_input=d_gate)
        d_down = _of_weights(d_out, opened.mul_(up), own.down)
        normed = kept.middle * kept.scales[1]
        d_gate_up_w = _of_weights(d_gate_up, (normed * norm_mlp.weight).to(w.dtype), own.gate_up)
        d_middle, d_norm_mlp = _norm_back(_times_back(d_gate_up, w.gate_up), normed, kept.scales[1], norm_mlp.weight)
        d_middle += d_after
        del gate, up, opened, d_gated, d_gate_up, d_gate, d_up

        d_out = d_middle.to(w.dtype)
        d_out_w = _of_weights(d_out, kept.seen.detach().to(w.dtype), own.out)
        d_seen = _times_back(d_out, w.out).float()
        with multiply_in("float32"):
            d_query, d_key, d_value = torch.autograd.grad(kept.seen, kept.query_key_value, d_seen)
        cos, sin = ctx.rotation
        d_qkv = torch.cat([_rotate(d_query, cos, -sin), _rotate(d_key, cos, -sin), d_value], 1).flatten(1)
        d_biases = d_qkv.sum(0).split([len(b) for b in layer.biases]) if layer.biases else ()
        d_qkv = d_qkv.to(w.dtype)
        normed = kept.hidden * kept.scales[0]
        d_qkv_w = _of_weights(d_qkv, (normed * norm_attention.weight).to(w.dtype), own.qkv)
        d_hidden, d_norm_attention = _norm_back(
            _times_back(d_qkv, w.qkv), normed, kept.scales[0], norm_attention.weight
        )
        d_hidden += d_middle
        d_weights = (*d_qkv_w, *d_out_w, *d_gate_up_w, *d_down)
        return d_hidden, None, None, None, *d_weights, d_norm_attention, d_norm_mlp, *d_biases


def _attend(
    module: nn.Module, heads: tuple[Tensor, Tensor, Tensor], layout: Packed | Slots
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Attention of [T, heads, D] each, exactly; with gradients on, as a small graph from leaves to the result [T, x]."""
    leaves: Any = tuple(x.detach().requires_grad_(torch.is_grad_enabled()) for x in heads)
    one_row = isinstance(layout, Packed)
    query, key, value = (x.transpose(0, 1)[None] if one_row else x[:, :, None] for x in leaves)
    with multiply_in("float32"):
        seen, _ = attention(module, query, key, value, scaling=module.scaling, layout=layout)  # type: ignore[arg-type]
    return seen.flatten(0, 1).flatten(1), leaves


def _times(x: Tensor, matrix: Stacked) -> Tensor:
    if len(matrix) == 1:
        return x @ matrix[0].detach().T
    out = x.new_empty(len(x), sum(len(w) for w in matrix))
    for w, columns in zip(matrix, out.split([len(w) for w in matrix], -1), strict=True):
        torch.mm(x, w.detach().T, out=columns)
    return out


def _times_back(d_out: Tensor, matrix: Stacked) -> Tensor:
    first, *others = zip(d_out.split([len(w) for w in matrix], -1), matrix, strict=True)
    d_x = first[0] @ first[1].detach()
    for columns, w in others:
        d_x.addmm_(columns, w.detach())
    return d_x


def _of_weights(d_out: Tensor, x: Tensor, own: Stacked) -> list[Tensor]:
    return [d_w.float() for d_w in (d_out.T @ x).split([len(w) for w in own])]


def _norm(x: Tensor, module: Any) -> tuple[Tensor, Tensor]:
    scale = _scale(x, module)
    return (x * scale).mul_(module.weight.detach()), scale


def _scale(x: Tensor, module: Any) -> Tensor:
    """1 / root mean square of the rows, [T, 1]."""
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    return mean.add_(module.variance_epsilon).rsqrt_()


def _norm_back(d_out: Tensor, normed: Tensor, scale: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weight; `normed` n is the input times `scale` s: dx = s (dn - n mean(dn n))."""
    d_out = d_out.float()
    d_weight = (d_out * normed).sum(0)
    d_normed = d_out * weight
    along = torch.linalg.vecdot(d_normed, normed)[:, None] / normed.shape[-1]
    return d_normed.addcmul_(normed, along, value=-1).mul_(scale), d_weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (x[i], x[i + D/2]) of [T, heads, D] turned by its place's angle; cos and sin are [T, D/2]."""
    first, second = x.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    out = torch.empty_like(x)
    torch.mul(first, cos, out=out[..., : first.shape[-1]]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., first.shape[-1] :]).addcmul_(first, sin)
    return out
