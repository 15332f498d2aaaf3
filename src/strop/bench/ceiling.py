"""What the machine itself can do: the matrix multiplications of a model and nothing else, and memory at full speed.

Knows the shapes of a Llama-like decoder's projections. A floor is the time of the multiplications of a forward or a
training pass; attention, norms, sampling and the optimizer come on top, so no implementation of the same arithmetic
can go below it. Every layer has weights of its own, as in a model: one matrix multiplied again and again would lie in
a cache and flatter the machine. Where two layouts of the weights are possible, the faster one is the ceiling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from strop.bench import workload
from strop.bench.alternate import Samples, Turn
from strop.bench.alternate import median as median_of
from strop.bench.worker import Link, Side, command

__all__ = ["backward", "figures", "forward", "gemms", "shapes", "side"]

MAX_ROWS = 2048  # larger multiplications are no faster, so a part of the rows is timed and the rest added
SHAPE_S = 1.0  # after this long on one shape the layers timed so far are enough ...
MIN_LAYERS = 5  # ... but at least these
COPY_FLOATS = 1 << 26


def side(model: str) -> Side:
    return Side("ceiling", command("strop.bench.ceiling:gemms", {"model": model}))


def forward(at: Side, name: str, *, rows: int, head_rows: int, dtype: str = "float32") -> Turn:
    """The multiplications of a forward pass of `rows` tokens, `head_rows` of which need logits."""
    request = {"what": "forward", "dtype": dtype, "rows": rows, "head_rows": head_rows}
    return Turn(name=name, side=at, request=request)


def backward(at: Side, name: str, *, rows: int, head_rows: int, dtype: str = "float32") -> Turn:
    """Those of a forward and a backward pass: three times the work."""
    return Turn(name=name, side=at, request={"what": "train", "dtype": dtype, "rows": rows, "head_rows": head_rows})


def bandwidth(at: Side) -> Turn:
    return Turn(name="bandwidth", side=at, request={"what": "bandwidth"})


def figures(samples: Samples) -> dict[str, float]:
    """Medians of the turns above, for a `Result`: GFLOP/s (GOP/s where the numbers are int8) and GB/s."""
    out = {}
    for name, answers in samples.items():
        for key, unit in (("gflop", "gflop_per_s"), ("gbyte", "gb_per_s")):
            if key in answers[0]:
                out[f"{name} {unit}"] = answers[0][key] / median_of(answers)
    return out


def shapes(config: Any) -> dict[str, tuple[int, int]]:
    """(in, out) of the multiplications of one layer, fused as far as they can be, and of the head.

    >>> from transformers import LlamaConfig
    >>> shapes(LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
    ...                    vocab_size=49152))["qkv"]
    (576, 960)
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    return {
        "qkv": (hidden, (heads + 2 * config.num_key_value_heads) * size),
        "o": (heads * size, hidden),
        "gate_up": (hidden, 2 * config.intermediate_size),
        "down": (config.intermediate_size, hidden),
        "head": (hidden, config.vocab_size),
    }


def gemms(settings: Mapping[str, Any], link: Link) -> None:
    """The side: answers with seconds, extrapolated from the median over the layers, and the arithmetic in them."""
    from transformers import AutoConfig

    machine = Machine(AutoConfig.from_pretrained(workload.folder(settings["model"])))
    while (request := link.wait()) is not None:
        what = request.pop("what")
        link.done(**(machine.bandwidth() if what == "bandwidth" else machine.floor(what == "train", **request)))


class Machine:
    """Weights of every layer, by type as they are asked for."""

    def __init__(self, config: Any) -> None:
        self.layers, self.shapes = config.num_hidden_layers, shapes(config)
        self.weights: dict[tuple[str, str], list[Any]] = {}

    def floor(self, train: bool, *, dtype: str, rows: int, head_rows: int) -> dict[str, float]:
        seconds = flop = 0.0
        for name, (num_in, num_out) in self.shapes.items():
            num, times = (head_rows, 1) if name == "head" else (rows, self.layers)
            if num:
                seconds += times * self._seconds(name, dtype, num, train)
                flop += times * 2.0 * num * num_in * num_out * (3 if train else 1)
        return {"seconds": seconds, "gflop": flop / 1e9}

    def _seconds(self, name: str, dtype: str, rows: int, train: bool) -> float:
        """One layer's multiplications of one shape: the median over the layers, of the faster layout."""
        timed = min(rows, MAX_ROWS)
        weights = self._weights(name, dtype)
        makers = [_train] if train else [_by_output, _by_input]
        return rows / timed * min(_median_s(maker(weights[0], timed), weights) for maker in makers)

    def _weights(self, name: str, dtype: str) -> list[Any]:
        import torch

        if (name, dtype) not in self.weights:
            num_in, num_out = self.shapes[name]
            count = 1 if name == "head" else self.layers
            made = [torch.randint(-127, 128, (num_out, num_in), dtype=torch.int8) for _ in range(count)]
            self.weights[name, dtype] = [w.to(getattr(torch, dtype)) for w in made]
        return self.weights[name, dtype] * (MIN_LAYERS if name == "head" else 1)

    def bandwidth(self) -> dict[str, float]:
        """Reading two arrays and writing a third, none of which fits a cache."""
        import torch

        a, b = torch.ones(COPY_FLOATS), torch.ones(COPY_FLOATS)
        out = a + b
        seconds = [_timed(lambda: torch.add(a, b, out=out)) for _ in range(5)]
        return {"seconds": median(seconds), "gbyte": 3 * 4 * COPY_FLOATS / 1e9}


Multiply = Callable[[Any], Callable[[], Any]]  # a weight [out, in] to what is timed


def _by_output(weight: Any, rows: int) -> Multiply:
    """x [rows, in] times the weight as a linear layer keeps it."""
    mm, x, y = _operands(weight, rows)
    return lambda weight: lambda: mm(x, weight.t(), out=y)


def _by_input(weight: Any, rows: int) -> Multiply:
    """The same with the weight turned round beforehand."""
    mm, x, y = _operands(weight, rows)

    def multiply(weight: Any) -> Callable[[], Any]:
        turned = weight.t().contiguous()
        return lambda: mm(x, turned, out=y)

    return multiply


def _operands(weight: Any, rows: int) -> tuple[Any, Any, Any]:
    import torch

    x = torch.ones(rows, weight.shape[1], dtype=weight.dtype)
    if weight.dtype != torch.int8:
        return torch.mm, x, torch.empty(rows, weight.shape[0], dtype=weight.dtype)
    int_mm: Any = torch._int_mm  # type: ignore[reportPrivateImportUsage]
    return int_mm, x, torch.empty(rows, weight.shape[0], dtype=torch.int32)


def _train(weight: Any, rows: int) -> Multiply:
    """Forward, gradient of the input, gradient of the weight."""
    import torch

    mm, x, y = _operands(weight, rows)
    dx, dw = torch.empty_like(x), torch.empty_like(weight)

    def multiply(weight: Any) -> Callable[[], Any]:
        def run() -> None:
            mm(x, weight.t(), out=y)
            mm(y, weight, out=dx)
            mm(y.t(), x, out=dw)

        return run

    return multiply


def _median_s(multiply: Multiply, weights: list[Any]) -> float:
    started, seconds = time.perf_counter(), []
    _timed(multiply(weights[0]))  # the first one also builds the kernel
    for weight in weights:
        seconds.append(_timed(multiply(weight)))
        if time.perf_counter() - started > SHAPE_S and len(seconds) >= MIN_LAYERS:
            break
    return median(seconds)


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
