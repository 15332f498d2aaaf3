"""`plan`: what `strop plan` forecasts of a step against what the step then takes, for models, lengths, groups and adapters.

Each case is a process of its own that makes whole GRPO steps; the rates are measured by the plan's own calibration, in
another process, once for each width of model. The machine's product of matrices is timed around both, and the forecast
of time is divided by how much faster it was: a shared machine drifts by a factor of two in an hour. Memory needs no such
division. Strop alone, no peers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from strop.bench import scaling, workload
from strop.bench.result import Result, seconds_of
from strop.bench.worker import Link, Side, command
from strop.config import Algorithm, Optim, Recipe, RewardSpec, Section, TrainStage, parse_recipe
from strop.record import UserError

__all__ = ["CASES", "Settings", "calibrated", "run", "steps"]

SHAPES: dict[str, dict[str, Any]] = {
    "llama-31m": scaling.MODELS["llama-31m"],
    "llama-95m": scaling.MODELS["llama-31m"] | {
        "hidden_size": 512, "num_hidden_layers": 16, "num_attention_heads": 8, "num_key_value_heads": 4,
        "intermediate_size": 1408, "tie_word_embeddings": False,
    },
    "qwen2-110m": scaling.MODELS["qwen2-0.5b"] | {
        "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": 1408,
    },
    "llama-135m": scaling.MODELS["llama-135m"],
    "llama-360m": scaling.MODELS["llama-360m"],
}  # fmt: skip


class Case(Section):
    """One step: a shape, prompts x rollouts x tokens, adapters or all weights."""

    model: str
    prompts: int
    group: int
    tokens: int
    rank: int = 0
    microbatch: int = 1536
    prompt_tokens: int = 60


def _case(model: str, prompts: int, group: int, tokens: int, **more: int) -> Case:
    return Case(model=model, prompts=prompts, group=group, tokens=tokens, **more)


CASES: dict[str, Case] = {
    "31m": _case("llama-31m", 4, 8, 64),
    "31m 256 tokens": _case("llama-31m", 2, 8, 256),
    "31m 768 tokens": _case("llama-31m", 1, 8, 768),
    "31m long prompts": _case("llama-31m", 2, 8, 64, prompt_tokens=400),
    "31m lora": _case("llama-31m", 4, 8, 64, rank=16),
    "95m untied": _case("llama-95m", 4, 8, 64),
    "95m lora": _case("llama-95m", 4, 4, 128, rank=8),
    "110m 152k words": _case("qwen2-110m", 4, 8, 96),
    "110m 152k words lora": _case("qwen2-110m", 8, 4, 48, rank=16),
    "135m": _case("llama-135m", 4, 8, 64),
    "135m 192 tokens": _case("llama-135m", 2, 8, 192),
    "135m small microbatch": _case("llama-135m", 2, 4, 48, microbatch=512),
    "135m lora 256 tokens": _case("llama-135m", 2, 4, 256, rank=16),
    "360m lora": _case("llama-360m", 4, 4, 64, rank=16),
    "360m": _case("llama-360m", 4, 4, 64),
}


class Settings(Section):
    tokenizer: str = "smollm2-135m"
    """Whose tokenizer the random models carry."""
    cases: tuple[str, ...] = tuple(CASES)
    """Rows of the table in the source."""
    max_gb: float = 14.0
    """Cases that are forecast to take more are left out and named."""


def run(settings: Settings, *, pairs: int, say: Callable[[str], None]) -> Result:
    """A row a case; errors are (forecast - measured) / measured. The notes say the median of their sizes, and the worst."""
    if unknown := [name for name in settings.cases if name not in CASES]:
        raise UserError(f"--set cases: {unknown[0]} is none of {', '.join(CASES)}")
    rows, samples, details, notes = [], {}, [], []
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    for name in settings.cases:
        case = CASES[name]
        if (most_gb := _forecast(case, None, 30).peaks[-1].total / 1e9) > settings.max_gb:
            notes.append(f"{name} was left out: {most_gb:.1f} GB are forecast.")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = workload.random_model(Path(scratch), settings.tokenizer, SHAPES[case.model])
            key = case.model, bool(case.rank)
            if key not in found:
                found[key] = _asked("calibrated", {"shape": SHAPES[case.model], "rank": case.rank})["rates"]
                details.append({"model": case.model, "rank": case.rank, "rates": found[key]})
            answer = _asked("steps", {"folder": str(folder), "case": case.model_dump(), "steps": max(2, pairs)})
        row = _row(name, case, found[key], answer)
        rows.append(row)
        samples[name] = [{"seconds": s} for s in answer["steps_s"]]
        say(
            f"{name}: {row['peak_rss_mb']:.0f} MB ({row['memory_error_frac']:+.0%}), {row['step_s']:.3g} s ({row['time_error_frac']:+.0%})"
        )
    notes = (
        [_told("Memory", "memory_error_frac", rows), _told("Time", "time_error_frac", rows), *notes] if rows else notes
    )
    rates = [answer["gemm_flops"] / 1e9 for answer in found.values()]
    ceilings = {"product gflop_per_s": median(rates)} if rates else {}
    return Result(rows=rows, samples=seconds_of(samples), ceilings=ceilings, notes=notes, details=details)


def _asked(function: str, values: Mapping[str, Any]) -> dict[str, Any]:
    with Side("strop", command(f"strop.bench.plan:{function}", values)) as side:
        answer = side.ask()
    assert answer is not None
    return answer


def _told(what: str, key: str, rows: Sequence[Mapping[str, Any]]) -> str:
    worst = max(rows, key=lambda row: abs(row[key]))
    middle = median(abs(row[key]) for row in rows)
    return f"{what}: median absolute error {middle:.1%}, worst {worst[key]:+.1%} ({worst['case']}), {len(rows)} cases."


def _row(name: str, case: Case, rates: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    from strop.plan.rates import Rates

    then = Rates.from_dict(dict(rates))
    forecast = _forecast(case, then.faster(answer["gemm_flops"] / then.gemm_flops), answer["prefix_tokens"])
    parts = {"generate": forecast.seconds["generate"].likely, "train": forecast.seconds["train"].likely}
    step_s, predicted_s = answer["generate_s"] + answer["train_s"], sum(parts.values())
    most = forecast.peaks[-1].total / 1e6
    return {
        "case": name, "parameters_m": scaling.num_parameters(SHAPES[case.model]) / 1e6,
        "work": f"{case.prompts} x {case.group} x {case.tokens}", "lora": case.rank, "peak_rss_mb": answer["peak_rss_mb"],
        "forecast_mb": most, "memory_error_frac": most / answer["peak_rss_mb"] - 1,
        "step_s": step_s, "forecast_s": predicted_s, "time_error_frac": predicted_s / step_s - 1,
        "generate_error_frac": parts["generate"] / answer["generate_s"] - 1,
        "train_error_frac": parts["train"] / answer["train_s"] - 1,
    }  # fmt: skip


def _recipe(case: Case, folder: str) -> Recipe:
    return parse_recipe({
        "model": {"name": folder, "device": "cpu", "lora": {"rank": case.rank}},
        "tasks": {"sums": {"source": "arithmetic", "train": 64, "heldout": 0, "dev": 0, "settings": {"level": 1}}},
        "stages": [{
            "name": "rl", "do": "train", "tasks": {"sums": 1}, "steps": 1, "prompts_per_step": case.prompts,
            "group_size": case.group, "max_tokens": case.tokens, "heldout_every": 0,
            "optim": {"lr": 1e-9, "microbatch_tokens": case.microbatch},
        }],
    })  # fmt: skip


def _forecast(case: Case, rates: Any, prefix_tokens: int) -> Any:
    """The plan's own, told the exact lengths; without rates only its memory means something."""
    from strop import machine, plan
    from strop.plan import forecast, memory, shape, work

    recipe = _recipe(case, case.model)
    stage = recipe.stages[0]
    assert isinstance(stage, TrainStage)
    exactly = work.Range(low=1.0, likely=1.0, high=1.0)
    own = work.Work(
        stage=stage, prompt_tokens=case.prompt_tokens, longest_prompt=case.prompt_tokens, prefix_tokens=prefix_tokens,
        num_heldout=0, num_dev=0, solution_tokens=0,
    )  # fmt: skip
    place = forecast.Place(device="cpu", total_bytes=1e9 * machine.usable_memory_gb(), base_bytes=1e6 * memory.BASE_MB)
    sizes = shape.of_config(SimpleNamespace(**SHAPES[case.model]), case.model)
    cost = forecast.Cost(shape=sizes, rates=rates or plan.NO_RATES, rank=case.rank)
    said = work.Assumed(length=exactly, signal=exactly, source="exact")
    return forecast.stage(own, recipe, cost, place, said, {}, left_over=False)


# --- the sides --------------------------------------------------------------------------------------------------------


def calibrated(values: Mapping[str, Any], link: Link) -> None:
    """What `strop plan` measures for a shape, not kept."""
    from strop.plan import calibrate, shape

    sizes = shape.of_config(SimpleNamespace(**values["shape"]), "bench")
    while link.wait() is not None:
        link.done(rates=asdict(calibrate.measure(sizes, rank=values["rank"], matmul="float32")))


def steps(values: Mapping[str, Any], link: Link) -> None:
    """One step that does not count and some that do, as `train.run` makes them, with a product timed around each."""
    from strop import advantage, model
    from strop.attention import common_prefix
    from strop.engine import Sampling
    from strop.learner import Learner
    from strop.plan.calibrate import gemm_flops
    from strop.rewards import Scorer, load_rewards

    case = Case.model_validate(values["case"])
    recipe = _recipe(case, values["folder"])
    policy = model.load(recipe.model)
    chat = workload.endless(policy.tokenizer)
    engine = workload.engine(policy, chat, recipe.engine.max_batch)
    learner = Learner(policy, Optim(lr=1e-9, microbatch_tokens=case.microbatch))
    tasks = workload.tasks(chat, case.prompts, case.prompt_tokens)
    rewards, algorithm = load_rewards([RewardSpec(name="strop.bench.step.variety")]), Algorithm()
    prefix = common_prefix([chat.encode_prompt(task.prompt) for task in tasks])
    sampling = Sampling(temperature=1.0, max_tokens=case.tokens, exact=False)
    with Scorer() as scorer:
        while link.wait() is not None:
            spent, products = [], [gemm_flops()]
            for number in range(values["steps"] + 1):
                start = time.perf_counter()
                drawn = engine.generate(tasks, num_samples=case.group, sampling=sampling, seed_path=("bench", number))
                generated = time.perf_counter()
                scored = scorer.score(drawn, rewards, algorithm, case.tokens)
                begun = time.perf_counter()
                credited = advantage.assign(learner.annotate(scored, algorithm), algorithm, seed=number)
                learner.update(credited, algorithm, num_updates=1, max_tokens=case.tokens, seed=number)
                engine.load(policy_step=number)
                spent.append((generated - start, time.perf_counter() - begun))
                products.append(gemm_flops())
            counted = spent[1:]
            link.done(
                generate_s=median(g for g, _ in counted), train_s=median(t for _, t in counted),
                steps_s=[g + t for g, t in counted], gemm_flops=median(products), prefix_tokens=prefix,
            )  # fmt: skip
