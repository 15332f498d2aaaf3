"""`scaling`: how the time of a step grows with group size, completion length and model size: exponents and a plot.

Strop alone, no peers. Each axis is varied with the others held; models have random weights in the shapes of Llama and
Qwen2, and one that would not fit the memory is left out and named. The machine's ceiling stands beside every point.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from strop import machine
from strop.bench import ceiling, step, workload
from strop.bench.alternate import Turn, alternate, median
from strop.bench.result import Result, seconds_of
from strop.bench.worker import Side, command
from strop.bench.workload import Matmul
from strop.config import Section
from strop.report import charts

__all__ = ["MODELS", "Settings", "exponent", "num_parameters", "run"]


def _llama(hidden: int, layers: int, heads: int, kv: int, mlp: int, vocab: int = 49_152, kind: str = "llama") -> dict:
    return {
        "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": mlp, "vocab_size": vocab, "tie_word_embeddings": True,
    }  # fmt: skip


MODELS: dict[str, dict[str, Any]] = {
    "llama-31m": _llama(384, 8, 6, 2, 1024),
    "llama-135m": _llama(576, 30, 9, 3, 1536),
    "llama-360m": _llama(960, 32, 15, 5, 2560),
    "qwen2-0.5b": _llama(896, 24, 14, 2, 4864, 151_936, "qwen2"),
    "qwen2-1.5b": _llama(1536, 28, 12, 2, 8960, 151_936, "qwen2"),
}
BYTES_PER_PARAMETER = 16 * 1.15  # weights, gradients, two moments, and what a step needs besides
SPARE_GB = 3.0
AXES = {"group_size": "rollouts of a prompt", "completion_tokens": "tokens of a completion", "parameters": "parameters"}


class Settings(Section):
    model: str = "smollm2-135m"
    """Sampled and trained along the first two axes; its tokenizer serves all."""
    prompts: int = 4
    """Groups of the step."""
    prompt_tokens: int = 60
    """Tokens of every prompt."""
    group_size: int = 8
    """Rollouts of a prompt where it is not varied."""
    completion_tokens: int = 64
    """Tokens of a completion where it is not varied."""
    matmul: Matmul = "float32"
    """How float32 weights are multiplied."""
    group_sizes: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Points of the first axis."""
    lengths: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Points of the second axis."""
    models: tuple[str, ...] = tuple(MODELS)
    """Points of the third axis, from the table in the source."""


def run(settings: Settings, *, pairs: int, say: Callable[[str], None]) -> Result:
    """Step time at every point of every axis; the notes say the fitted exponents."""
    rows: list[dict[str, Any]] = []
    samples: dict[str, list[float]] = {}
    with ExitStack() as stack:
        machine_side = stack.enter_context(ceiling.side(settings.model))
        gemm = ceiling.forward(machine_side, "gemm", rows=256, head_rows=0, dtype=settings.matmul)

        def measure(axis: str, side: Side, points: Mapping[float, Mapping[str, int]]) -> None:
            turns = [Turn(name=f"{axis}={point:g}", side=side, request=request) for point, request in points.items()]
            found = alternate([*turns, gemm], pairs=pairs, say=say, title=axis)
            rate = ceiling.figures(found)["gemm gflop_per_s"]
            for point, turn in zip(points, turns, strict=True):
                answers = found[turn.name]
                rows.append({
                    "axis": axis, "at": point, "step_s": median(answers), "generate_s": median(answers, "generate_s"),
                    "train_s": median(answers, "train_s"), "ceiling_gflop_per_s": rate,
                })  # fmt: skip
            samples.update(seconds_of(found, f"{axis}/"))

        with _side(settings, settings.model) as side:
            measure("group_size", side, {n: {"group_size": n} for n in settings.group_sizes})
            measure("completion_tokens", side, {n: {"max_tokens": n} for n in settings.lengths})
        kept, notes = _that_fit(settings.models)
        for name in kept:
            with tempfile.TemporaryDirectory() as scratch:
                made = workload.random_model(Path(scratch), settings.model, MODELS[name])
                with _side(settings, str(made)) as side:
                    measure("parameters", side, {num_parameters(MODELS[name]): {}})
    return Result(rows=rows, samples=samples, notes=[*_fits(rows), *notes], plot=_plot(rows))


def _side(settings: Settings, model: str) -> Side:
    job = step.exact_job(model, settings.model, settings.prompts, settings.prompt_tokens).model_copy(
        update={
            "group_size": settings.group_size, "max_tokens": settings.completion_tokens, "matmul": settings.matmul,
        }
    )  # fmt: skip
    return Side("strop", command("strop.bench.step:ours", job.model_dump(mode="json")))


def num_parameters(shape: Mapping[str, Any]) -> int:
    """Weights of the multiplications, which is nearly all of them; a tied embedding counts once.

    >>> round(num_parameters(MODELS["llama-135m"]) / 1e6)
    134
    """
    sizes = {name: num_in * num_out for name, (num_in, num_out) in ceiling.shapes(SimpleNamespace(**shape)).items()}
    return sizes.pop("head") + shape["num_hidden_layers"] * sum(sizes.values())


def _that_fit(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Models that this machine's memory holds in training, and a note for each of the others."""
    have = machine.usable_memory_gb()
    needed = {name: num_parameters(MODELS[name]) * BYTES_PER_PARAMETER / 1e9 + SPARE_GB for name in names}
    notes = [
        f"{n} was left out: it needs about {gb:.0f} GB, this machine has {have:.0f}."
        for n, gb in needed.items()
        if gb > have
    ]
    return [name for name in names if needed[name] <= have], notes


def exponent(points: Sequence[float | int], seconds: Sequence[float]) -> float:
    """The k of seconds ~ points^k, by least squares on the logarithms.

    >>> round(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 6)
    2.0
    """
    return float(np.polyfit(np.log(points), np.log(seconds), 1)[0])


def _fits(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    for axis, words in AXES.items():
        own = [row for row in rows if row["axis"] == axis]
        if len(own) > 1:
            k = {
                key: exponent([r["at"] for r in own], [r[key] for r in own])
                for key in ("step_s", "generate_s", "train_s")
            }
            notes.append(
                f"Step time grows as ({words})^{k['step_s']:.2f} (sampling {k['generate_s']:.2f}, "
                f"training {k['train_s']:.2f})."
            )
    return notes


def _plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """One chart an axis, below each other, as an SVG file that needs no page around it."""
    parts = []
    for axis, words in AXES.items():
        own = [row for row in rows if row["axis"] == axis]
        lines = [
            charts.Line(x=[r["at"] for r in own], y=[r[key] for r in own], name=key, style=style, dots=True)
            for key, style in (("step_s", "c0"), ("generate_s", "c1"), ("train_s", "c2"))
        ]
        chart = charts.line_chart(lines, title=words, desc=f"seconds against {words}", zero=True)
        parts.append((f"seconds against {words}: step (blue), sampling (brown), training (green)", chart))
    return charts.sheet(parts)
