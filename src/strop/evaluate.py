"""Evaluation: the held-out tasks answered greedily, and sampled where the stage asks; always the same tasks and seeds.

Knows how answers become accuracies with intervals. Used as a stage, and by sft and train to watch the dev split. It
never looks at training tasks, and nothing chooses by what it returns from the held-out ones.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from strop import stats
from strop.config import EvaluateStage
from strop.engine import Sampling
from strop.record import Rollout, Task, replace
from strop.run import StageLog
from strop.tools import Tools

__all__ = ["answer", "dev_accuracy", "figures", "run", "spent_s"]


def run(stage: EvaluateStage, tools: Tools, log: StageLog) -> dict[str, Any]:
    """Answer the stage's held-out tasks and finish the stage with its figures; what was answered is kept.

    A pass (greedy, samples) that was made before a kill or a stop is read back, not made again.
    """
    tasks = [(name, task) for name in stage.tasks for task in tools.splits[name].heldout]
    answers: dict[str, list[Rollout]] = {}
    passes = {"greedy": (1, 0.0)} | ({"samples": (stage.samples, stage.temperature)} if stage.samples else {})
    for kind, (num_samples, temperature) in passes.items():
        found = log.load_rollouts(kind)
        if found is None:
            if tools.stop_requested():
                return {}
            sampling = Sampling(temperature=temperature, max_tokens=stage.max_tokens)
            started = time.perf_counter()
            found = answer(f"{stage.name}: {kind}", [t for _, t in tasks], tools, num_samples, sampling, kind)
            log.save_rollouts(kind, found)
            log.log({"kind": "pass", "step": 0, "pass": kind, "eval_s": time.perf_counter() - started})
        answers[kind] = found
    greedy, samples = answers["greedy"], answers.get("samples", [])
    by_tasks = {}
    for name in stage.tasks:  # rollouts come in the order of `tasks`; a task may be in two sets
        own = [r for r, (of, _) in zip(greedy, tasks, strict=True) if of == name]
        sampled = [r for i, r in enumerate(samples) if tasks[i // stage.samples][0] == name]
        f = figures(own, sampled)
        by_tasks[name] = f | {"by_level": _by_level(own)}
        warning = stats.one_answer_for_all(f["greedy_acc"], f["num_tasks"], f["constant_acc"], f["commonest_frac"])
        if warning is not None:
            tools.watch.say(f"{stage.name}: {name}: {warning}")
    result = {
        "from": tools.recipe.start_of(stage), "wall_s": sum(row["eval_s"] for row in log.rows("pass")),
        **figures(greedy, samples), "by_tasks": by_tasks,
    }  # fmt: skip
    log.log({"kind": "evaluation", "step": 1, "greedy_acc": result["greedy_acc"],
             **{f"greedy_acc/{name}": f["greedy_acc"] for name, f in by_tasks.items()}})  # fmt: skip
    log.finish(result)
    return result


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
    tools.ledger.add_tokens(phase, sum(r.num_sampled for r in judged))
    return judged


def dev_accuracy(step: int, names: Sequence[str], max_tokens: int, tools: Tools, log: StageLog) -> float:
    """Greedy accuracy on the dev split of these task sets, logged as a `heldout` row; the mean over all their tasks."""
    started = time.perf_counter()
    tasks = [(name, task) for name in names for task in tools.splits[name].dev]
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, exact=False)  # watched, never reported as evidence
    rollouts = answer(f"{log.name}: dev", [t for _, t in tasks], tools, 1, sampling, "greedy")
    correct: dict[str, list[bool]] = {name: [] for name in names}
    for (name, _), r in zip(tasks, rollouts, strict=True):
        correct[name].append(r.correct)
    accuracy = float(np.mean([c for cs in correct.values() for c in cs]))
    log.log({
        "kind": "heldout", "step": step, "accuracy": accuracy, "eval_s": time.perf_counter() - started,
        "mean_length": float(np.mean([r.num_sampled for r in rollouts])),
        "truncated_frac": float(np.mean([r.truncated for r in rollouts])),
        **{f"accuracy/{name}": float(np.mean(cs)) for name, cs in correct.items()},
    })  # fmt: skip
    return accuracy


def spent_s(log: StageLog) -> float:
    """Wall seconds of what the stage has committed: its steps and the dev evaluations between them."""
    return sum((row.get("step_s", 0.0) + row.get("eval_s", 0.0) for row in log.rows()), 0.0)


def figures(greedy: Sequence[Rollout], samples: Sequence[Rollout] = ()) -> dict[str, Any]:
    """Accuracy with its Wilson interval, length, truncation and reasons; `mean_acc` over samples where there are any.

    An unscorable answer (the verifier failed) counts as not correct and shows under its own reason.
    """
    correct = [r.correct for r in greedy]
    return {
        "num_tasks": len(greedy),
        "greedy_acc": float(np.mean(correct)),
        "ci95": list(stats.wilson(sum(correct), len(correct))),
        "mean_acc": float(np.mean([r.correct for r in samples])) if samples else None,
        "num_samples": len(samples) // max(1, len(greedy)),
        "mean_tokens": float(np.mean([r.num_sampled for r in greedy])),
        "truncated_frac": float(np.mean([r.truncated for r in greedy])),
        "constant_acc": _commonest([r.task.answer for r in greedy]),
        "commonest_frac": _commonest([r.verdict.extracted or f"none {i}" for i, r in enumerate(greedy) if r.verdict]),
        "verdict_reasons": dict(Counter(r.verdict.reason.value for r in greedy if r.verdict is not None)),
    }


def _commonest(answers: Sequence[str]) -> float:
    """The share of the answers that are the commonest of them, but for case and white space."""
    return max(Counter(" ".join(a.casefold().split()) for a in answers).values(), default=0) / max(1, len(answers))


def _by_level(rollouts: Sequence[Rollout]) -> Mapping[str, Any]:
    levels: dict[str, list[bool]] = {}
    for r in rollouts:
        if (level := r.task.meta.get("level")) is not None:
            levels.setdefault(str(level), []).append(r.correct)
    return {level: {"num_tasks": len(c), "greedy_acc": float(np.mean(c))} for level, c in sorted(levels.items())}
