"""Writes a run directory as a run leaves it, without training: for tests of what reads one (the report).

Every figure of its summary is counted from the rollouts beside it, and all evaluations answer the same tasks with a
shared difficulty, so that pairs are honest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import norm

from strop import stats
from strop.config import Recipe, parse_recipe
from strop.metrics import PASS_BINS
from strop.record import Reason, Rollout, Stop, Task, Verdict, write_rollouts, write_tasks

STAGES = [
    {"name": "before", "do": "evaluate", "tasks": ["easy", "hard"], "from": "base", "samples": 4},
    {"name": "sft", "do": "sft", "tasks": ["easy"], "max_steps": 40},
    {"name": "after_sft", "do": "evaluate", "tasks": ["easy", "hard"]},
    {"name": "rl", "do": "train", "tasks": {"hard": 3.0, "easy": 1.0}, "steps": 60},
    {"name": "after_rl", "do": "evaluate", "tasks": ["easy", "hard"], "samples": 4},
    {"name": "sft_more", "do": "sft", "tasks": ["easy"], "from": "sft", "wall_of": "rl"},
    {"name": "after_sft_more", "do": "evaluate", "tasks": ["easy", "hard"], "samples": 4},
    {
        "name": "rl_shuffled",
        "do": "train",
        "tasks": {"hard": 1.0},
        "from": "sft",
        "algorithm": {"advantages": "shuffled"},
    },
    {"name": "after_shuffled", "do": "evaluate", "tasks": ["easy", "hard"]},
]
PASS_RATES = [f"frac_pass_rate/{name}" for name in PASS_BINS]
SKILL = {"before": -0.5, "after_sft": -0.35, "after_rl": 0.2, "after_sft_more": -0.3, "after_shuffled": -0.33}


def make_recipe(stages: Sequence[Mapping] = STAGES, task_sets: Sequence[str] = ("easy", "hard")) -> Recipe:
    return parse_recipe({"tasks": {t: {"source": "arithmetic"} for t in task_sets}, "stages": list(stages)})


def make_tasks(name: str, num: int, rng: np.random.Generator) -> list[Task]:
    made = []
    for i in range(num):
        a, b, c = (int(v) for v in rng.integers(2, 99, 3))
        made.append(Task.make(source=f"arithmetic@1?{name}", prompt=f"Compute ({a} + {b}) * {c % 9 + 1} - {c}.",
                              answer=str((a + b) * (c % 9 + 1) - c), verifier="math", meta={"level": 1 + i % 3}))  # fmt: skip
    return made


def answer(task: Task, group: int, right: bool, rng: np.random.Generator, sample: int = 0) -> Rollout:
    guess = task.answer if right else str(int(task.answer) + int(rng.integers(1, 30)))
    cut = not right and rng.random() < 0.15
    body = f"First the brackets, then the product, then the difference.\nStep by step I get {guess}."
    text = body[:40] if cut else f"{body}\nThe answer is \\boxed{{{guess}}}."
    ids = np.arange(30 + int(rng.integers(0, 40)), dtype=np.int32)
    reason = Reason.CORRECT if right else Reason.TRUNCATED if cut else Reason.WRONG
    return Rollout(
        task=task, group=group, sample=sample, token_ids=ids, sampled=ids >= 12, trained=ids < 0, temperature=0.0, text=text,
        stop=Stop.LENGTH if cut else Stop.EOS, verdict=Verdict(correct=right, extracted=None if cut else guess, reason=reason),
    )  # fmt: skip


def evaluation(rollouts: list[Rollout], mean_acc: float | None) -> dict:
    n, k = len(rollouts), sum(r.verdict.correct for r in rollouts)
    reasons = [r.verdict.reason.value for r in rollouts]
    return {
        "num_tasks": n, "greedy_acc": k / n, "mean_acc": mean_acc, "ci95": list(stats.wilson(k, n)),
        "mean_tokens": float(np.mean([r.num_sampled for r in rollouts])),
        "truncated_frac": float(np.mean([r.truncated for r in rollouts])), "verdict_reasons": {x: reasons.count(x) for x in set(reasons)},
    }  # fmt: skip


def sampled(
    tasks: Sequence[Task], first_group: int, talent: np.ndarray, num_samples: int, rng: np.random.Generator
) -> list[Rollout]:
    """Several answers a task, right as often as its talent (in standard deviations) allows."""
    return [
        answer(task, first_group + i, bool(rng.random() < norm.cdf(talent[i])), rng, sample)
        for i, task in enumerate(tasks)
        for sample in range(num_samples)
    ]


def by_level(rollouts: list[Rollout]) -> dict:
    levels: dict[str, list[bool]] = {}
    for r in rollouts:
        levels.setdefault(str(r.task.meta["level"]), []).append(r.verdict.correct)
    return {k: {"num_tasks": len(v), "greedy_acc": sum(v) / len(v)} for k, v in levels.items()}


def compare(
    a: str, b: str, tasks: str, scores: Mapping[tuple[str, str], np.ndarray], metric: str = "greedy_acc"
) -> dict:
    found = stats.compare(scores[a, tasks].astype(float), scores[b, tasks].astype(float))
    measured = {"delta": found.delta, "ci95": list(found.ci95), "p": found.p, "num_tasks": found.num_tasks}
    return {"a": a, "b": b, "metric": metric, "tasks": tasks, **measured}


def metric_rows(rng: np.random.Generator) -> list[dict]:
    rows = []
    for stage, steps in (("sft", 25), ("sft_more", 70)):
        for step in range(steps):
            rows.append(
                {
                    "stage": stage,
                    "kind": "sft",
                    "step": step,
                    "loss": 0.25 + 1.1 * math.exp(-step / 6) + rng.normal(0, 0.03),
                }
            )
            if step % 5 == 0:
                rows.append(
                    {
                        "stage": stage,
                        "kind": "heldout",
                        "step": step,
                        "accuracy": 0.3 + 0.2 * (1 - math.exp(-step / 8)) + rng.normal(0, 0.02),
                    }
                )
    for step in range(60):
        up = 1 - math.exp(-step / 25)
        rows.append({
            "stage": "rl", "kind": "train", "step": step, "reward": 0.31 + 0.2 * up + rng.normal(0, 0.05),
            "completions/mean_length": 62 + 20 * up + rng.normal(0, 3), "entropy": None if step == 7 else 0.42 - 0.2 * up + rng.normal(0, 0.01),
            "completions/clipped_ratio": max(0.0, rng.normal(0.03, 0.015)), "frac_reward_zero_std": 0.5 + 0.1 * up + rng.normal(0, 0.07),
            "completions/mean_right_length": 60 + 20 * up, "completions/mean_wrong_length": 66 + 24 * up,
            **dict(zip(PASS_RATES, (0.3 - 0.2 * up, 0.2, 0.1, 0.1, 0.1, 0.2 + 0.2 * up), strict=True)),
        })  # fmt: skip
        if step % 5 == 0:
            for_sets = {
                f"accuracy/{t}": base + 0.18 * up + rng.normal(0, 0.02) for t, base in (("easy", 0.6), ("hard", 0.32))
            }
            rows.append(
                {"stage": "rl", "kind": "heldout", "step": step, "accuracy": sum(for_sets.values()) / 2, **for_sets}
            )
    return rows


def write_run(
    run_dir: Path, *, recipe: Recipe | None = None, skill: Mapping[str, float] = SKILL, num_tasks: int = 90, seed: int = 3,
    task_sets: Sequence[str] = ("easy", "hard"),
) -> dict:  # fmt: skip
    """A run directory such as a run leaves it; every figure of the summary is counted from the rollouts beside it."""
    recipe, rng = recipe or make_recipe(task_sets=task_sets), np.random.default_rng(seed)
    drawing = np.random.default_rng(seed + 1)  # of the sampled answers
    run_dir.mkdir(parents=True, exist_ok=True)
    tasks = {t: make_tasks(t, num_tasks, rng) for t in task_sets}
    talent = {
        t: rng.normal(0.6 if t == "easy" else -0.2, 1.0, num_tasks) for t in task_sets
    }  # shared by all stages: pairing
    stages, right, means = {}, {}, {}
    for stage in recipe.stages:
        if stage.do != "evaluate":
            wall_s = {"sft": 71.0, "rl": 431.5, "sft_more": 433.2}.get(stage.name, 240.0)
            stages[stage.name] = {
                "kind": stage.do,
                "wall_s": wall_s,
                "steps": 60,
                "tokens_sampled": 51200,
                "tokens_trained": 48200,
            }
            continue
        done: dict[str, list[Rollout]] = {}
        for t in task_sets:
            right[stage.name, t] = talent[t] + skill[stage.name] + rng.normal(0, 0.7, num_tasks) > 0
            done[t] = [
                answer(task, i, bool(ok), rng)
                for i, (task, ok) in enumerate(zip(tasks[t], right[stage.name, t], strict=True))
            ]
        every = [r for t in task_sets for r in done[t]]
        write_rollouts(run_dir / "rollouts" / stage.name / "greedy.parquet", every)
        if stage.samples:
            drawn = {
                t: sampled(tasks[t], place * num_tasks, talent[t] + skill[stage.name], stage.samples, drawing)
                for place, t in enumerate(task_sets)
            }
            write_rollouts(
                run_dir / "rollouts" / stage.name / "samples.parquet", [r for t in task_sets for r in drawn[t]]
            )
            for t in task_sets:
                means[stage.name, t] = np.array([r.correct for r in drawn[t]]).reshape(num_tasks, -1).mean(axis=1)
        mean_accs = {t: float(means[stage.name, t].mean()) if stage.samples else None for t in task_sets}
        stages[stage.name] = evaluation(every, None) | {
            "kind": "evaluate", "wall_s": 38.0, "from": recipe.start_of(stage),
            "by_tasks": {t: evaluation(done[t], mean_accs[t]) | {"by_level": by_level(done[t])} for t in task_sets},
        }  # fmt: skip
    order = [s.name for s in recipe.stages if s.do == "evaluate"]
    pairs = [(a, b, t) for t in task_sets for i, a in enumerate(order) for b in order[i + 1 :]]
    comparisons = [compare(a, b, t, right) for a, b, t in pairs]
    comparisons += [compare(a, b, t, means, "mean_acc") for a, b, t in pairs if (a, t) in means and (b, t) in means]
    phases = {
        "generate": (402.1, 161000),
        "train": (251.0, 139000),
        "verify": (21.0, 0),
        "evaluate": (160.0, 44000),
        "sft": (66.0, 31000),
        "checkpoint": (9.0, 0),
    }
    summary = {
        "model": "smollm2-135m", "recipe_hash": recipe.hash, "recipe": recipe.model_dump(mode="json", by_alias=True), "seed": recipe.seed,
        "finished": True, "stages": stages, "comparisons": comparisons, "peak_rss_mb": 3411.0,
        "ledger": {"wall_s": 921.0, "tokens_sampled": 205000, "tokens_trained": 170000,
                   "phases": {k: {"wall_s": s, "tokens": n} for k, (s, n) in phases.items()}},
        "machine": {"cpu": "Some CPU @ 2.8 GHz", "cores": 2, "memory_gb": 23.5, "python": "3.11.9", "torch": "2.13.0", "strop": "0.1.0", "commit": "0123abc"},
    }  # fmt: skip
    (run_dir / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (run_dir / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (run_dir / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in metric_rows(rng)), encoding="utf-8"
    )
    write_tasks(run_dir / "tasks.parquet", {f"{t}/heldout": ts for t, ts in tasks.items()})
    return summary
