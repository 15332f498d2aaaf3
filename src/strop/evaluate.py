"""Evaluation: the held-out tasks answered greedily, and sampled where the stage asks; always the same tasks and seeds.

Knows how answers become accuracies with intervals. Used as a stage, and by sft and train to watch the dev split. It
never looks at training tasks, and nothing chooses by what it returns from the held-out ones.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from strop import answers, fingerprint, stats
from strop.config import EvaluateStage
from strop.engine import Sampling
from strop.metrics import folded, prompt_tokens, vote
from strop.record import Rollout, Task, replace
from strop.run import StageLog
from strop.tasks.benchmarks import provenance
from strop.tools import Tools

__all__ = ["answer", "dev_accuracy", "figures", "run", "spent_s"]

GUESS = 0.5  # an accuracy before any is known: there the noise is largest


def run(stage: EvaluateStage, tools: Tools, log: StageLog) -> dict[str, Any]:
    """Answer the stage's held-out tasks and finish the stage with its figures; what was answered is kept.

    Returns {} where it was asked to stop; what was answered by then is not asked again (`answers`).
    """
    tasks = [(name, task) for name in stage.tasks for task in tools.splits[name].heldout]
    tools.watch.say(_plan(stage, len(tasks)))
    answered: dict[str, list[Rollout]] = {"greedy": [], "samples": []}
    for kind, num_samples, sampling in _passes(stage):
        found = answers.collect(kind, [task for _, task in tasks], num_samples, sampling, tools, log)
        if found is None:
            return {}
        answered[kind] = found
    by_tasks = {}
    for name in stage.tasks:  # a task may be in two sets, and is then answered for each
        greedy, samples = ([r for r in listed if tasks[r.group][0] == name] for listed in answered.values())
        by_tasks[name] = f = figures(greedy, samples, stage.seeds) | {
            "by_level": _by_level(greedy), "benchmark": provenance(tools.splits[name].heldout),
        }  # fmt: skip
        acc = f["mean_acc"] if f["greedy_acc"] is None else f["greedy_acc"]
        warning = stats.one_answer_for_all(acc, f["num_tasks"], f["constant_acc"], f["commonest_frac"])
        if warning is not None:
            tools.watch.say(f"{stage.name}: {name}: {warning}")
    result = {
        "from": tools.recipe.start_of(stage), "wall_s": sum(row["eval_s"] for row in log.rows("pass")),
        **figures(_once(answered["greedy"]), _once(answered["samples"]), stage.seeds), "by_tasks": by_tasks,
        "fingerprint": fingerprint.of(stage, tools),
    }  # fmt: skip
    measured = [key for key in ("greedy_acc", "mean_acc") if result[key] is not None]
    log.log({"kind": "evaluation", "step": 1, **{key: result[key] for key in measured},
             **{f"{key}/{name}": f[key] for key in measured for name, f in by_tasks.items()}})  # fmt: skip
    log.finish(result)
    return result


def _once(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Without the second answers to a task that is in two sets."""
    return list({(r.task.id, r.sample): r for r in reversed(rollouts)}.values())[::-1]


def _plan(stage: EvaluateStage, num_tasks: int) -> str:
    """What is about to be asked, before any of it is paid for."""
    how = ["greedily"] if stage.greedy else []
    if stage.samples:
        seeds = f" x {stage.seeds} seeds" if stage.seeds > 1 else ""
        how.append(f"{stage.samples}{seeds} times at temperature {stage.temperature:g}, top-p {stage.top_p:g}")
    gain = stats.detectable(num_tasks, max(1, stage.num_samples), GUESS)
    return (
        f"{stage.name}: {num_tasks} tasks, {' and '.join(how)}, at most {stage.max_tokens} tokens an answer; between two "
        f"models that are right about half of the time this shows gains from {100 * gain:.1f} points on at best (power 80%)"
    )


def _passes(stage: EvaluateStage) -> Iterator[tuple[str, int, Sampling]]:
    """Name, answers a task and sampling of each pass."""
    if stage.greedy:
        yield "greedy", 1, Sampling(temperature=0.0, max_tokens=stage.max_tokens)
    if stage.samples:
        drawn = Sampling(temperature=stage.temperature, top_p=stage.top_p, max_tokens=stage.max_tokens)
        yield "samples", stage.num_samples, drawn


def answer(
    title: str,
    tasks: Sequence[Task],
    tools: Tools,
    num_samples: int,
    sampling: Sampling,
    kind: str,
    *,
    phase: str = "evaluate",
) -> list[Rollout]:
    """Sampled and judged rollouts of the tasks. The seeds depend on `kind` and the task alone: equal at every evaluation."""
    num_answers = len(tasks) * num_samples
    with tools.ledger.phase(phase), tools.watch.phase(title, num_answers, "answers", in_waves=True) as bar:
        rollouts = tools.engine.generate(
            tasks, num_samples=num_samples, sampling=sampling, seed_path=("evaluate", kind),
            on_done=lambda _: bar.advance(1),
        )  # fmt: skip
        judged = tools.scorer.judge([replace(r, trained=np.zeros_like(r.trained)) for r in rollouts])
    tools.ledger.add_tokens(phase, sum(r.num_sampled for r in judged), tokens_in=prompt_tokens(judged))
    return judged


def dev_accuracy(
    step: int, names: Sequence[str], max_tokens: int, tools: Tools, log: StageLog,
    more: Callable[[], Mapping[str, float]] = dict,
) -> float:  # fmt: skip
    """Greedy accuracy on the dev split of these task sets, logged as a `heldout` row; the mean over all their tasks.

    `more` is measured in the same time, and logged in the same row.
    """
    started = time.perf_counter()
    tasks = [(name, task) for name in names for task in tools.splits[name].dev]
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, exact=False)  # watched, never reported as evidence
    rollouts = answer(f"{log.name}: dev", [t for _, t in tasks], tools, 1, sampling, "greedy")
    correct: dict[str, list[bool]] = {name: [] for name in names}
    for (name, _), r in zip(tasks, rollouts, strict=True):
        correct[name].append(r.correct)
    accuracy, measured = float(np.mean([c for cs in correct.values() for c in cs])), more()
    log.log({
        "kind": "heldout", "step": step, "accuracy": accuracy, "num_tasks": len(tasks), **measured, "eval_s": time.perf_counter() - started,
        "mean_length": float(np.mean([r.num_sampled for r in rollouts])),
        "truncated_frac": float(np.mean([r.truncated for r in rollouts])),
        **{f"accuracy/{name}": float(np.mean(cs)) for name, cs in correct.items()},
    })  # fmt: skip
    return accuracy


def spent_s(log: StageLog) -> float:
    """Wall seconds of what the stage has committed: its steps, the dev evaluations between them, and what a guard undid."""
    keys = ("step_s", "eval_s", "undone_s")
    return sum((row.get(key, 0.0) for row in log.rows() for key in keys), 0.0)


def figures(greedy: Sequence[Rollout], samples: Sequence[Rollout] = (), num_seeds: int = 1) -> dict[str, Any]:
    """Accuracy with its Wilson interval, length, truncation and reasons, and what `sampled_figures` says of samples.

    Without greedy answers the accuracy is None and the rest is of the samples. An unscorable answer (the verifier failed)
    counts as not correct and shows under its own reason.
    """
    told, correct = greedy or samples, [r.correct for r in greedy]
    return {
        "num_tasks": len(greedy) or len({r.group for r in samples}),
        "greedy_acc": float(np.mean(correct)) if greedy else None,
        "ci95": list(stats.wilson(sum(correct), len(correct))) if greedy else None,
        "mean_tokens": float(np.mean([r.num_sampled for r in told])),
        "truncated_frac": float(np.mean([r.truncated for r in told])),
        "constant_acc": _commonest([r.task.answer for r in told]),
        "commonest_frac": _commonest([r.verdict.extracted or f"none {i}" for i, r in enumerate(told) if r.verdict]),
        "verdict_reasons": dict(Counter(r.verdict.reason.value for r in told if r.verdict is not None)),
        **(sampled_figures(samples, num_seeds) if samples else {"mean_acc": None, "num_samples": 0}),
    }


def sampled_figures(samples: Sequence[Rollout], num_seeds: int) -> dict[str, Any]:
    """What equally many samples of each task say; they come by task, and sample i of n belongs to seed i // (n / seeds).

    `mean_acc` (avg@n) has a 95% interval over tasks and samples (`stats.average`), pass@k and maj@k one over tasks.
    `seed_std` is that of the seeds' accuracies (n - 1), null for one seed.
    """
    num_tasks = len({r.group for r in samples})
    rows = [samples[i : i + len(samples) // num_tasks] for i in range(0, len(samples), len(samples) // num_tasks)]
    correct_PN = np.array([[r.correct for r in row] for row in rows], float)
    seed_accs = correct_PN.reshape(num_tasks, num_seeds, -1).mean(axis=(0, 2))
    num_samples = correct_PN.shape[1]
    averaged = stats.average(correct_PN)
    passed = stats.pass_curve(num_samples, correct_PN.sum(axis=1).astype(int))
    voted = stats.majority_curve([[vote(r) for r in row] for row in rows], [[r.correct for r in row] for row in rows])
    return {
        "mean_acc": averaged.value,
        "mean_ci95": [averaged.low, averaged.high],
        "num_samples": num_samples,
        "seed_accs": seed_accs.tolist(),
        "seed_std": float(seed_accs.std(ddof=1)) if num_seeds > 1 else None,
        "sampled_tokens": float(np.mean([r.num_sampled for r in samples])),
        "sampled_truncated_frac": float(np.mean([r.truncated for r in samples])),
        "pass_at_k": [asdict(point) for point in passed],
        "maj_at_k": [asdict(point) for point in voted[1:]],  # of one vote it is the accuracy
    }


def _commonest(answers: Sequence[str]) -> float:
    """The share of the answers that are the commonest of them, but for case and white space."""
    return max(Counter(map(folded, answers)).values(), default=0) / max(1, len(answers))


def _by_level(rollouts: Sequence[Rollout]) -> Mapping[str, Any]:
    levels: dict[str, list[bool]] = {}
    for r in rollouts:
        if (level := r.task.meta.get("level")) is not None:
            levels.setdefault(str(level), []).append(r.correct)
    return {level: {"num_tasks": len(c), "greedy_acc": float(np.mean(c))} for level, c in sorted(levels.items())}
