"""Peak memory by part, of sampling, training, evaluation and supervised fine-tuning, from sizes alone.

Each moment at which much is alive (a whole pass's activations, the head's chunks, the sum of two gradients) is a list of
tensors. On a CPU, blocks of up to 32 MB stay with the process when they are freed (`process.keep_freed_memory`), with
holes that nothing fits, and larger ones go back: so the peak is the largest sum of small blocks, times `HOLES`, and the
largest sum of large ones. On a GPU all blocks are alike. Pure arithmetic: knows the formulas of `fused`, `head`, `learner`
and `engine.native`, and no time. What is measured and not derived stands in capitals, with its date in docs/plan.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from strop.plan.packing import Number, Packed
from strop.plan.shape import Shape

__all__ = ["BASE_MB", "Held", "Peak", "Sampled", "holes_of", "peak", "sampling", "training"]

KEPT_BYTES = 32 << 20  # `process.LARGEST_KEPT`
# What a training pass takes of small blocks, as a multiple of those that are alive: glibc finds no use for a freed block of
# just the size that is asked for next (it asks for more, to align it). Layers as modules free many such.
HOLES_FUSED, HOLES_MODULES, HOLES_REPEATED = 1.15, 1.65, 2.0
BASE_MB = 600.0  # Python, torch, transformers, peft, a tokenizer, what the first products build
CHUNK = 512  # `head.CHUNK_TOKENS`
MIN_ROWS = 16  # of `engine.native`
PREFILL = 2048  # likewise
FLOAT = 4

PARTS = (
    "process", "weights", "gradients", "optimizer", "copies", "activations", "attention", "cache", "logits", "allocator",
)  # fmt: skip

Tensors = Sequence[tuple[str, Number, Number]]  # part, how many blocks, bytes of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a process holds all the time: the model with what trains it."""

    shape: Shape
    rank: int = 0  # of adapters; 0 trains all weights
    itemsize: int = 4  # bytes of a weight; adapters are float32
    fused: bool = True
    trains: bool = True
    copies: Number = 0.0  # bytes of a reference, a teacher, a critic with its gradients and moments
    rounded: bool = False  # multiplies with copies in bfloat16
    int8_bytes: int = 0  # an entry of the copies that it decodes from, if it does
    left_over: bool = False  # gradients of an earlier stage's last update

    @property
    def trained(self) -> Tensors:
        """Tensors of one float for every float that is trained, in bytes."""
        s = self.shape
        if self.rank:
            return [("", s.layers * 14, FLOAT * s.lora_parameters(self.rank) / (s.layers * 14))]
        singles = [s.hidden * s.queries] * 2 + [s.hidden * s.keys] * 2 + [s.hidden * s.mlp] * (3 if s.gated else 2)
        tables = [("", 1 if s.tied else 2, self.itemsize * s.head_weights)]
        return [*tables, *(("", s.layers, self.itemsize * single) for single in singles)]

    def fixed(self) -> dict[str, Number]:
        """Bytes by part that are never given back while a stage runs."""
        s, moments = self.shape, 2 * sum(count * each for _, count, each in self.trained)
        adapters = FLOAT * s.lora_parameters(self.rank) if self.rank else 0
        return {
            "weights": self.itemsize * s.parameters + adapters, "optimizer": moments if self.trains else 0.0,
            "copies": self.copies,
        }  # fmt: skip

    def gradients(self) -> Tensors:
        alive = self.trains or self.left_over
        return [("gradients", count, each) for _, count, each in self.trained] if alive else []

    def rounded_copies(self, times: int) -> Tensors:
        """Of the layers' weights; decoding has packed ones besides."""
        products = self.shape.products.values()
        return [("copies", times * self.shape.layers, 2 * a * b) for a, b in products] if self.rounded else []

    def int8_copies(self) -> Tensors:
        each = self.int8_bytes
        layers = [("copies", self.shape.layers, each * a * b) for a, b in self.shape.products.values()]
        return [*layers, ("copies", 1, each * self.shape.head_weights)] if each else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most bytes of one phase, by part; they add up to `total`."""

    phase: str
    parts: Mapping[str, Number]

    @property
    def total(self) -> Number:
        return sum(self.parts.values())


def peak(
    phase: str, held: Held, moments: Iterable[Tensors], *, base: Number, holes: Number = 1.0, cpu: bool = True
) -> Peak:
    """Of all these moments; `base` is what the process holds without a model, `holes` of `holes_of`."""
    weighed = [(_by_size(moment, holes if cpu else 1.0), moment) for moment in moments]
    if cpu:  # small blocks stay with the process until the stage is over, so the two need not fall together
        total = sum(max((sizes[i] for sizes, _ in weighed), default=0.0) for i in (0, 1))
    else:
        total = max((sum(sizes) for sizes, _ in weighed), default=0.0)
    worst = max(weighed, key=lambda pair: sum(pair[0]), default=((0.0, 0.0), []))[1]
    parts = dict.fromkeys(PARTS, 0.0) | {"process": base} | held.fixed()
    for part, count, each in worst:
        parts[part] += count * each
    live = sum(count * each for _, count, each in worst)
    return Peak(phase=phase, parts=parts | {"allocator": total - live})


def _by_size(moment: Tensors, holes: Number) -> tuple[Number, Number]:
    """Bytes in blocks that stay with the process, with the holes between them, and in others."""
    small = large = 0.0
    for part, count, each in moment:
        if each > KEPT_BYTES:
            large += count * each
        else:
            small += count * each * (holes if part in ("activations", "attention") else 1.0)
    return small, large


def holes_of(held: Held, rows: Sequence[Packed]) -> Number:
    """See HOLES_FUSED; a second pass of the same size finds its places taken by what the first left behind."""
    if held.fused:
        return HOLES_FUSED
    widest = max((row.places for row in rows), default=0)
    return HOLES_REPEATED if sum(row.places > 0.9 * widest for row in rows) > 1 else HOLES_MODULES


# --- training ---------------------------------------------------------------------------------------------------------


def training(held: Held, rows: Sequence[Packed], *, entropy: bool = False) -> Iterator[Tensors]:
    """The moments of updates whose micro-batches are `rows`; `entropy`: the loss has an entropy term."""
    s = held.shape
    if not rows:
        return
    yield from _pass(held, rows[0], [], entropy)
    if len(rows) > 1:  # the gradients of those before it are there
        widest = max(rows[1:], key=lambda row: (row.places, row.pairs))
        yield from _pass(held, widest, held.gradients(), entropy)
    twice = 2 if s.tied and len(rows) > 1 else 1 if s.tied or len(rows) > 1 else 0
    yield [*held.gradients(), *([] if held.rank else [("gradients", twice, held.itemsize * s.head_weights)])]


def _pass(held: Held, row: Packed, before: Tensors, entropy: bool) -> Iterator[Tensors]:
    """Forward through the head, backward through it, and the last layer's backward."""
    s = held.shape
    kept = [*_activations(held, row), *_attention(held, row), *before, *held.rounded_copies(1)]
    chunk = ("logits", 1, FLOAT * min(CHUNK, row.predicted) * s.vocab)
    states = ("activations", 1, FLOAT * row.predicted * s.hidden)
    of_head: Tensors = [] if held.rank else [("gradients", 1, held.itemsize * s.head_weights)]
    yield [*kept, chunk, chunk]
    yield [*kept, chunk, states, *of_head, *([chunk] if entropy else [])]
    yield [*kept, *of_head, *_backward(held, row)]


def _activations(held: Held, row: Packed) -> Tensors:
    """What the layers keep for the backward, but for attention."""
    s, t = held.shape, row.places * (FLOAT if held.fused else held.itemsize)
    around = [("activations", 6, t * s.hidden)]  # embedding, last norm, and the gradients that go through them
    if held.fused:  # `fused.Kept`
        wide = [s.hidden, s.hidden, s.queries, s.queries, s.keys, s.keys, s.gates]
    else:
        wide = [s.hidden] * 4 + [s.queries] + [s.mlp] * (4 if s.gated else 2) + [max(1, held.rank)] * 7
        wide += [] if held.rank else [s.hidden] * 2
    return [*around, *(("activations", s.layers, t * width) for width in wide)]


def _attention(held: Held, row: Packed) -> Tensors:
    """The graph of gathered queries and keys, and the masks, which all layers share."""
    s, item = held.shape, FLOAT if held.fused else held.itemsize
    masks: Tensors = [("attention", 1, item * row.pairs * s.heads // s.kv_heads), ("attention", 1, row.pairs)]
    if not row.keeps_keys:
        return [*masks, ("attention", 1, item * 2 * (2 * row.queries * s.queries + 2 * row.keys * s.keys))]
    wide = [row.queries * s.queries] * 2 + [row.keys * s.keys] * 2
    return [*masks, *(("attention", s.layers, item * width) for width in wide)]


def _backward(held: Held, row: Packed) -> Tensors:
    """What the last layer's backward makes before anything else is freed."""
    s, t = held.shape, row.places * (FLOAT if held.fused else held.itemsize)
    return [("activations", 4, t * s.mlp), ("activations", 4, t * s.hidden),
            ("gradients", 0 if held.rank else 1, held.itemsize * s.layer_weights)]  # fmt: skip


# --- sampling ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What the engine decodes at once."""

    rows: int
    prompts: int  # whose keys wait for their siblings
    prompt_tokens: int
    prefix_tokens: int
    max_tokens: int


def sampling(held: Held, asked: Sampled) -> Iterator[Tensors]:
    """The moments of a generation; gradients of the update before it are still there."""
    s, rows, item = held.shape, max(asked.rows, MIN_ROWS), held.itemsize
    length = asked.prompt_tokens + asked.max_tokens - asked.prefix_tokens
    own = [("cache", 2 * s.layers, item * rows * s.keys * length)]
    waiting = [("cache", 2 * s.layers * asked.prompts, item * asked.prompt_tokens * s.keys)]
    first = [("logits", 1, FLOAT * asked.prompts * s.vocab), ("logits", 1, FLOAT * rows * s.vocab)]
    scores = [("attention", 2, FLOAT * rows * s.heads * (length + asked.prefix_tokens))]
    always = [*held.gradients(), *held.rounded_copies(2), *held.int8_copies()]
    yield [*always, *own, *waiting, *first]
    yield [*always, *own, ("logits", 2, FLOAT * rows * s.vocab), *scores]
    fed = min(PREFILL, asked.prompts * asked.prompt_tokens)
    yield [*always, ("cache", 4 * s.layers, item * fed * s.keys), ("activations", 4, FLOAT * fed * s.mlp)]
