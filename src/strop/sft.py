"""Supervised fine-tuning on worked solutions, until the dev split stops rising or for another stage's wall time.

Knows order, stop rule and checkpoint of this stage. What a solution looks like is the task source's business, how it
is tokenised chat's, how it is learned the learner's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from strop import evaluate
from strop.config import SftStage
from strop.learner import Learner, NonFinite
from strop.record import Rollout, UserError, seed_of
from strop.run import StageLog
from strop.tools import Tools
from strop.watch import Bar

__all__ = ["run"]


def run(stage: SftStage, tools: Tools, log: StageLog) -> dict[str, Any]:
    """Train until the stop rule, save the final weights with the optimizer, and finish the stage.

    Starts from the weights the policy holds. Where those came from another SFT stage, its optimizer state is taken
    over too, so that `wall_of` really is the same training continued. Asked to stop, it saves and goes on from there;
    killed, it goes on from what was saved, or begins anew.
    """
    assert tools.policy is not None, "a recipe that trains through a server is refused"
    examples = _examples(stage, tools)
    learner = Learner(tools.policy, stage.optim)
    start = tools.recipe.start_of(stage)
    step = _resume(start, tools, log, learner)
    seconds = None if stage.wall_of is None else float(log.run.summary["stages"][stage.wall_of]["wall_s"])
    before_s = evaluate.spent_s(log)
    started = time.perf_counter()
    dev = [row["accuracy"] for row in log.rows("heldout")]
    with _phase(stage, seconds, step, before_s, tools) as bar:
        while not _over(stage, step, dev, seconds, before_s + time.perf_counter() - started):
            if tools.stop_requested():
                if step:
                    with tools.ledger.phase("save"):
                        log.save_checkpoint(step, learner.save)
                return {}
            step += 1
            with tools.ledger.phase("sft"):
                row = _step(stage, examples, learner, tools, log)
            log.commit(step, None, row)
            spent = before_s + time.perf_counter() - started
            bar.advance(1 if seconds is None else max(0, round(min(spent, seconds)) - bar.done), loss=row["loss"])
            if step % stage.eval_every == 0:
                dev.append(evaluate.dev_accuracy(step, stage.tasks, stage.max_tokens, tools, log))
            latest = f"  dev {100 * dev[-1]:5.1f}%" if step % stage.eval_every == 0 else ""
            tools.watch.step(f"{stage.name} {step:4d}  loss {row['loss']:.3f}{latest}  {row['step_s']:.1f} s")
    tools.watch.say(f"{stage.name}: ended at step {step}, {_why(stage, step)}; these weights go on")
    with tools.ledger.phase("save"):
        log.save_final(learner.save)
    result = {
        "from": start, "wall_s": before_s + time.perf_counter() - started, "steps": step,
        "best_dev_acc": max(dev, default=None), "tokens_sampled": 0,
        "tokens_trained": sum(int(r["num_tokens_trained"]) for r in log.rows("sft")),
    }  # fmt: skip
    log.finish(result)
    return result


def _resume(start: str, tools: Tools, log: StageLog, learner: Learner) -> int:
    """The step to go on after: that of the checkpoint, or 0 with the optimizer of the SFT stage this one continues."""
    if (latest := log.latest_checkpoint()) is not None:
        step, folder = latest
        learner.load(folder)
        log.rewind(step)
        return step
    log.rewind(0)
    if start != "base" and isinstance(next(s for s in tools.recipe.stages if s.name == start), SftStage):
        learner.load(log.run.stage(start).final, weights=False)
    return 0


def _phase(
    stage: SftStage, seconds: float | None, step: int, before_s: float, tools: Tools
) -> AbstractContextManager[Bar]:
    """Counted in seconds where another stage's time is the measure; no end is promised where a plateau decides."""
    if seconds is not None:
        return tools.watch.phase(stage.name, round(seconds), "seconds", done=round(before_s))
    return tools.watch.phase(stage.name, None if stage.patience else stage.max_steps, "steps", done=step)


def _over(stage: SftStage, step: int, dev: Sequence[float], seconds: float | None, elapsed: float) -> bool:
    """Another stage's time is up, or the dev split has not risen in `patience` evaluations, or the steps are done."""
    if seconds is not None:
        return elapsed >= seconds
    return step >= stage.max_steps or plateaued(dev, stage.patience)


def _why(stage: SftStage, step: int) -> str:
    if stage.wall_of is not None:
        return f"the time of {stage.wall_of} is up"
    if step >= stage.max_steps:
        return "max_steps"
    return f"the dev accuracy has not risen in {stage.patience} evaluations"


def plateaued(dev: Sequence[float], patience: int) -> bool:
    """The best of the last `patience` evaluations is no better than the best before them.

    >>> plateaued([0.2, 0.6, 0.6, 0.5], 2), plateaued([0.2, 0.6, 0.5, 0.7], 2), plateaued([0.6, 0.5], 2)
    (True, False, False)
    """
    return patience > 0 and len(dev) > patience and max(dev[-patience:]) <= max(dev[:-patience])


def _examples(stage: SftStage, tools: Tools) -> list[Rollout]:
    assert tools.chat is not None
    tasks = [t for name in stage.tasks for t in tools.splits[name].train if t.meta.get("solution")]
    if not tasks:
        raise UserError(f"stage {stage.name}: no training task of {', '.join(stage.tasks)} has a worked solution")
    return [tools.chat.worked_example(task, group=i) for i, task in enumerate(tasks)]


def _step(
    stage: SftStage, examples: Sequence[Rollout], learner: Learner, tools: Tools, log: StageLog
) -> dict[str, Any]:
    """Example number n of the endless stream is number n mod N of epoch n // N; a continued SFT goes on in the stream."""
    started = time.perf_counter()
    chosen = []
    for n in range(learner.num_updates * stage.batch, (learner.num_updates + 1) * stage.batch):
        epoch, place = divmod(n, len(examples))
        chosen.append(examples[_order(tools.recipe.seed, epoch, len(examples))[place]])
    try:
        metrics = learner.sft_update(chosen)
    except NonFinite:
        log.save_rollouts(f"nonfinite_{log.last_step + 1:06d}", chosen)  # the evidence
        raise
    tools.ledger.add_tokens("sft", int(metrics["num_tokens_trained"]))
    return metrics | {"step_s": time.perf_counter() - started}


def _order(seed: int, epoch: int, num: int) -> np.ndarray:
    return np.random.default_rng(seed_of(seed, "sft", epoch)).permutation(num)
