"""How fast this machine is, measured in less than a minute and kept: the rates behind a forecast.

Our own layers, head, sampling, optimizer and verifier are timed on a model of random weights with the asked widths, a few
layers and a part of the vocabulary, because what a step costs beside its products (norms, gathers, Python) depends on
them. Kept in the cache by machine, versions and shape; measured anew where those change, or where it is asked for.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from strop import config, disk, machine
from strop.plan.packing import Packed, pack
from strop.plan.rates import Rates
from strop.plan.shape import Shape
from strop.record import Rollout, Stop, Task, UserError

__all__ = ["Calibration", "gemm_flops", "kept", "key_of", "measure", "rates_for"]

# Weights of the model that is timed: more than a cache holds, as in a whole model. Its head is apart, of fewer words.
LAYERS_FLOATS, HEAD_FLOATS, WORDS = 32 << 20, 32 << 20, 4096
MIN_LAYERS = 2
ROWS = (4, 16, 64, 192)  # that are decoded at once
MIDDLE = 64  # of them: where looking at keys is timed
SHORT, LONG = (2, 8, 64), (1, 2, 512)  # groups, rollouts of each, tokens of a completion
PROMPT = 64
ROUNDS, ROUND_S = 3, 4.0  # how often something is timed, and after how many seconds once is enough
GEMM_SIZE, GEMM_S = 1024, 0.8
FLOATS = 1 << 24
FILE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured, and when."""

    date: str
    rates: Rates


def rates_for(
    shape: Shape, *, rank: int, matmul: str, again: bool = False, say: Callable[[str], None] = lambda _: None
) -> Calibration:
    """As kept, or measured now and kept."""
    found = None if again else kept(shape, rank=rank, matmul=matmul)
    if found is None:
        say(
            f"measuring this machine with layers as wide as {shape.name}'s: a minute at most, kept for the next time ..."
        )
        found = Calibration(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            rates=measure(shape, rank=rank, matmul=matmul),
        )
        path = _path(key_of(shape, rank=rank, matmul=matmul))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.write_json(path, asdict(found))
        except (OSError, UserError) as error:
            say(f"what was measured is not kept ({error}), and will be measured again")
    return found


def kept(shape: Shape, *, rank: int, matmul: str) -> Calibration | None:
    """What was measured earlier on this machine with these versions; None where that has not been."""
    path = _path(key_of(shape, rank=rank, matmul=matmul))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(date=data["date"], rates=Rates.from_dict(data["rates"]))
    except (OSError, ValueError, KeyError, TypeError):  # not there, or of another version: measured anew
        return None


def key_of(shape: Shape, *, rank: int, matmul: str) -> str:
    """16 hex digits over all that decides a speed: the machine, the versions, the widths of the model."""
    import torch

    facts = _facts()
    of_machine = {name: facts[name] for name in ("cpu", "cores", "cpu_flags", "gpu", "torch", "transformers", "strop")}
    widths = replace(shape, name="", layers=0, places=None)
    said = [of_machine, torch.get_num_threads(), asdict(widths), bool(rank), matmul, ROWS]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _facts() -> dict[str, Any]:
    return machine.machine()


def _path(key: str) -> Path:
    from strop.model import cache_dir

    return cache_dir() / "calibration" / f"{key}.json"


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(shape: Shape, *, rank: int, matmul: str) -> Rates:
    """Every rate, on the CPU, in the way the recipe multiplies."""
    import torch

    from strop.precision import multiply_in

    gemm = [gemm_flops()]
    layers = max(MIN_LAYERS, -(-LAYERS_FLOATS // shape.layer_weights))
    probe = replace(shape, layers=min(shape.layers, layers), vocab=min(shape.vocab, WORDS))
    words = min(shape.vocab, max(WORDS, HEAD_FLOATS // shape.hidden))
    policy = _policy(probe, rank, matmul)
    with policy.as_trained():
        prefill, train, attend = _passes(policy, probe, rank)
        head = _head_flops(replace(shape, vocab=words), rank)
    with torch.inference_mode(), policy.as_trained():
        decode, key_s = _decoding(policy, probe, shape, words)
    with multiply_in("float32"):
        optimizer = _optimizer_floats()
    gemm.append(gemm_flops())
    return Rates(
        train_flops=train, attend_flops=attend, head_flops=head, prefill_flops=prefill, decode=decode, key_s=key_s,
        optimizer_floats=optimizer, memory_bytes=_memory_bytes(), disk_bytes=_disk_bytes(), verdicts=_verdicts(),
        gemm_flops=float(np.mean(gemm)),
    )  # fmt: skip


def gemm_flops() -> float:
    """Of one float32 product that fits no cache: what the machine gives in these seconds."""
    import torch

    a = torch.ones(GEMM_SIZE, GEMM_SIZE)
    out = a @ a
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < GEMM_S:
        torch.mm(a, a, out=out)
        done += 1
    return done * 2 * GEMM_SIZE**3 / elapsed


def _policy(shape: Shape, rank: int, matmul: str) -> Any:
    """A model of these sizes with random weights, as `model.load` would give it, but for a tokenizer."""
    import torch
    import transformers

    from strop import adapter, attention
    from strop.fused import Fused
    from strop.model import Policy

    kind = shape.kind if shape.kind in ("llama", "qwen2", "qwen3", "mistral") else "llama"
    made = transformers.AutoConfig.for_model(
        kind, hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_size, intermediate_size=shape.mlp, vocab_size=shape.vocab,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()
    model.set_attn_implementation(attention.NAME)
    policy = Policy(model=model, tokenizer=None, name="calibration", matmul=matmul)  # type: ignore[arg-type]
    if rank:
        policy.adapter = adapter.fresh(model, config.Lora(rank=rank))
    elif Fused.fits(model.get_decoder()):
        policy.fused = Fused(model.get_decoder())
    return policy


def _passes(policy: Any, shape: Shape, rank: int) -> tuple[float, float, float]:
    """Operations a second of a layer's products forward, of them forward and backward, and of attention."""
    import torch

    from strop import batch

    times, found = (4 if rank else 6), []
    for groups, group, length in (SHORT, LONG):
        row = batch.collate(_rollouts(shape.vocab, groups, group, length), policy.device)
        sizes = pack([(PROMPT - (groups > 1), [length - 1] * group)] * groups, groups > 1)

        def forward(row: Any = row) -> Any:
            return policy.hidden(row.ids_T[None], row.position_T[None], row.layout)

        def both(forward: Callable[[], Any] = forward) -> None:
            forward().sum().backward()
            for parameter in policy.model.parameters():
                parameter.grad = None

        def alone(forward: Callable[[], Any] = forward) -> None:
            with torch.no_grad():
                forward()

        found.append((sizes, _seconds(both) / shape.layers, _seconds(alone) / shape.layers))
    (one, short_s, alone_s), (other, long_s, _) = found
    place_s, pair_s = _two_unknowns(one, short_s, other, long_s)
    products = times * shape.layer_weights + 6 * shape.lora_parameters(rank) / shape.layers
    return (
        2 * shape.layer_weights * one.places / alone_s, products / place_s, 14 * shape.queries / pair_s,
    )  # fmt: skip


def _two_unknowns(one: Packed, one_s: float, other: Packed, other_s: float) -> tuple[float, float]:
    """Seconds of a place and of a pair, so that both rows come out; a tenth of the long one's time is attention at least."""
    least = 0.1 * other_s / other.pairs
    pair_s = (other_s * one.places - one_s * other.places) / (other.pairs * one.places - one.pairs * other.places)
    pair_s = min(max(pair_s, least), 0.6 * other_s / other.pairs)
    return (one_s - pair_s * one.pairs) / one.places, pair_s


def _head_flops(shape: Shape, rank: int) -> float:
    import torch

    from strop.head import CHUNK_TOKENS, logprobs_of

    hidden = torch.randn(CHUNK_TOKENS, shape.hidden, requires_grad=True)
    # Small, as a model's are: of large logits most weights of the softmax would be denormal, which is slow.
    weight = torch.randn(shape.vocab, shape.hidden).mul_(0.02).requires_grad_(not rank)
    target = torch.zeros(CHUNK_TOKENS, dtype=torch.long)

    def work() -> None:
        logprobs, _ = logprobs_of(hidden, weight, target)
        logprobs.sum().backward()

    return (6 if rank else 8) * CHUNK_TOKENS * shape.head_weights / _seconds(work)


def _decoding(
    policy: Any, probe: Shape, shape: Shape, words: int
) -> tuple[tuple[tuple[int, float, float], ...], float]:
    """Seconds of a token for so many rows in a layer and in the whole head; of a row's look at a key in a layer."""
    import torch

    points, keys = [], {}
    head = torch.randn(words, shape.hidden).mul_(0.02)
    for rows in ROWS:
        near = _token_s(policy, probe, rows, PROMPT)
        if rows == MIDDLE:
            keys = {PROMPT: near, 8 * PROMPT: _token_s(policy, probe, rows, 8 * PROMPT)}
        points.append((rows, near / probe.layers, _word_s(head, rows) * shape.vocab / words))
    (few, few_s), (many, many_s) = keys.items()
    key_s = max(0.0, (many_s - few_s) / (many - few) / MIDDLE / probe.layers)
    return tuple((rows, max(0.0, layer_s - key_s * rows * PROMPT), word_s) for rows, layer_s, word_s in points), key_s


def _token_s(policy: Any, shape: Shape, rows: int, length: int) -> float:
    """All layers of the probe, for one token behind `length` cached ones."""
    import torch

    from strop.engine.native import Cache

    state = torch.randn(shape.kv_heads, 1, shape.head_size)
    first = [(state, state)] * shape.layers
    cache = Cache(rows, length + 2, 1, first)
    token_B, place_B = torch.zeros(rows, dtype=torch.long), torch.full((rows,), length)
    return _seconds(lambda: policy.hidden(token_B[:, None], place_B[:, None], cache.slots(place_B)), rounds=5)


def _word_s(head: Any, rows: int) -> float:
    """Logits of these words, and a draw from them."""
    import torch

    from strop.engine.native import draw

    hidden, uniform = torch.randn(rows, head.shape[1]), torch.rand(rows)
    return _seconds(lambda: draw(hidden @ head.T, uniform, 1.0), rounds=5)


def _optimizer_floats() -> float:
    import torch

    parameter = torch.nn.Parameter(torch.zeros(FLOATS))
    parameter.grad = torch.ones(FLOATS)
    adamw = torch.optim.AdamW([parameter], lr=1e-9, fused=True)
    return FLOATS / _seconds(adamw.step)


def _memory_bytes() -> float:
    import torch

    a, out = torch.ones(FLOATS), torch.ones(FLOATS)
    return 3 * 4 * FLOATS / _seconds(lambda: torch.add(a, out, out=out))


def _disk_bytes() -> float:
    """Written as a checkpoint is: synced, and read again for its hash."""
    import os

    with tempfile.NamedTemporaryFile() as file:
        start = time.perf_counter()
        file.write(bytes(FILE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        hashlib.sha256(file.read())
        return FILE_BYTES / (time.perf_counter() - start)


def _verdicts() -> float:
    """Short sums, judged by two processes that are there already."""
    from strop.rewards import Scorer

    pairs = [
        (
            Task.make(source="calibration", prompt=f"{i} + 1", answer=str(i + 1), verifier="math"),
            f"It is \\boxed{{{i + 1}}}.",
        )
        for i in range(96)
    ]
    with Scorer() as scorer:
        scorer.verify(pairs[:32])
        start = time.perf_counter()
        scorer.verify(pairs[32:])
        return 64 / (time.perf_counter() - start)


def _rollouts(vocab: int, groups: int, group: int, length: int) -> Sequence[Rollout]:
    rng = np.random.default_rng(0)
    task = Task.make(source="calibration", prompt="", answer="0", verifier="math")
    out = []
    for number in range(groups):
        prompt = np.append(0, rng.integers(1, vocab, size=PROMPT - 1))
        for sample in range(group):
            ids = np.concatenate([prompt, rng.integers(vocab, size=length)]).astype(np.int32)
            chosen = np.arange(len(ids)) >= PROMPT
            out.append(Rollout(
                task=task, group=number, sample=sample, token_ids=ids, sampled=chosen, trained=chosen, stop=Stop.LENGTH,
            ))  # fmt: skip
    return out


def _seconds(work: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """The median of a few rounds, after one that builds kernels and fills memory."""
    work()
    seconds: list[float] = []
    while len(seconds) < rounds and sum(seconds) < ROUND_S:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)
