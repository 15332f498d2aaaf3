"""Supervised fine-tuning on worked solutions, until the dev split stops rising or answers stop differing, or for another
stage's wall time.

Knows order, stop rules and checkpoint of this stage. What a solution looks like is the task source's business, how it
is tokenised chat's, how it is learned the learner's: packed rows, and a loss on the completion's tokens alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from strop import evaluate
from strop.config import SftStage
from strop.engine import Sampling
from strop.learner import Learner, NonFinite
from strop.record import Rollout, Task, UserError, seed_of
from strop.run import StageLog
from strop.tools import Tools
from strop.watch import Bar

__all__ = ["run"]

SAVE_S = 300.0  # seconds of updates that a resume may have to make again


def run(stage: SftStage, tools: Tools, log: StageLog) -> dict[str, Any]:
    """Train until a stop rule, save the final weights with the optimizer, and finish the stage.

    Starts from the weights the policy holds. Where those came from another SFT stage, its optimizer state is taken
    over too, so that `wall_of` really is the same training continued. Stopped or killed, it goes on after the last
    committed step: the updates since the last checkpoint are made again, from the same solutions in the same order.
    """
    assert tools.policy is not None, "a recipe that trains through a server is refused"
    learner = Learner(tools.policy, stage.optim)
    start = tools.recipe.start_of(stage)
    examples = _examples(stage, tools)
    _resume(stage, start, examples, tools, log, learner)
    before_s, started = evaluate.spent_s(log), time.perf_counter()

    def spent_s() -> float:
        return before_s + time.perf_counter() - started

    step = _learn(stage, examples, spent_s, learner, tools, log)
    if not _over(stage, log, spent_s()):
        return {}
    kept = _go_back(learner, log) if _sure(stage, log) else step
    tools.watch.say(f"{stage.name}: ended at step {step}, {_why(stage, log, kept)}; these weights go on")
    with tools.ledger.phase("save"):
        log.save_final(learner.save, kept)
    result = {
        "from": start, "wall_s": spent_s(), "steps": step, "kept_step": kept,
        "optimizer": learner.state_hash(), "best_dev_acc": max(_dev(log), default=None), "tokens_sampled": 0,
        "tokens_trained": sum(int(r["num_tokens_trained"]) for r in log.rows("sft")),
    }  # fmt: skip
    log.finish(result)
    return result


def _learn(
    stage: SftStage, examples: Sequence[Rollout], spent_s: Callable[[], float], learner: Learner, tools: Tools, log: StageLog
) -> int:  # fmt: skip
    """Steps until the stage is over or it is asked to stop; the last one's number."""
    seconds, step, saved_at = _seconds(stage, log), log.last_step, time.perf_counter()
    with _phase(stage, seconds, step, spent_s(), tools) as bar:
        while not _over(stage, log, spent_s()):
            if tools.stop_requested():
                if step and not stage.min_entropy:  # else they are the evaluations', which one may go back to
                    _save(step, learner, tools, log)
                break
            step += 1
            with tools.ledger.phase("sft"):
                row = _step(stage, examples, learner, tools, log)
            log.commit(step, None, row)
            done = 1 if seconds is None else max(0, round(min(spent_s(), seconds)) - bar.done)
            bar.advance(done, loss=row["loss"], **tools.spent())
            latest = ""
            if step % stage.eval_every == 0:
                _look(step, stage, learner, tools, log)
                latest = f"  dev {100 * _dev(log)[-1]:5.1f}%"
                late = not stage.min_entropy and time.perf_counter() - saved_at > SAVE_S
                if late or _is_worth_keeping(step, stage, log):
                    _save(step, learner, tools, log)
                    saved_at = time.perf_counter()
            tools.watch.step(f"{stage.name} {step:4d}  loss {row['loss']:.3f}{latest}  {row['step_s']:.1f} s")
    return step


def _save(step: int, learner: Learner, tools: Tools, log: StageLog) -> None:
    with tools.ledger.phase("save"):
        log.save_checkpoint(step, learner.save)


def _go_back(learner: Learner, log: StageLog) -> int:
    """Weights and optimizer of the evaluation before, or of the start; their step. What was logged since stays."""
    latest = log.latest_checkpoint()
    assert latest is not None, "one is saved at the start"
    step, folder = latest
    learner.load(folder)
    return step


# --- what the dev split says ------------------------------------------------------------------------------------------


def _look(step: int, stage: SftStage, learner: Learner, tools: Tools, log: StageLog) -> None:
    """Logs the greedy accuracy, with the loss on worked solutions and what sampled answers say, as one row."""
    chat = tools.chat
    assert chat is not None
    tasks = [task for name in stage.tasks for task in tools.splits[name].dev]
    worked = [chat.worked_example(task, i, solution) for i, (task, solution) in enumerate(_worked(tasks))]

    def more() -> dict[str, float]:
        found = {"dev_loss": learner.mean_loss(worked)} if worked else {}
        return found | (_sampled(tasks, stage, learner, tools) if stage.dev_samples else {})

    evaluate.dev_accuracy(step, stage.tasks, stage.max_tokens, tools, log, more)


def _sampled(tasks: Sequence[Task], stage: SftStage, learner: Learner, tools: Tools) -> dict[str, float]:
    """Accuracy and entropy of answers drawn as RL would draw them: how much is left for it to choose from."""
    sampling = Sampling(temperature=1.0, max_tokens=stage.max_tokens, exact=False)
    drawn = evaluate.answer(f"{stage.name}: dev, sampled", tasks, tools, stage.dev_samples, sampling, "dev samples")
    return {
        "sampled_accuracy": float(np.mean([r.correct for r in drawn])),
        "entropy": learner.mean_entropy(drawn),
    }


def _dev(log: StageLog) -> list[float]:
    """The dev accuracies so far."""
    return [row["accuracy"] for row in log.rows("heldout")]


def _sure(stage: SftStage, log: StageLog) -> bool:
    """Whether the last evaluation found the answers too much alike."""
    entropies = [row["entropy"] for row in log.rows("heldout")] if stage.min_entropy else []
    return bool(entropies) and entropies[-1] < stage.min_entropy


# --- where it begins and ends -----------------------------------------------------------------------------------------


def _resume(
    stage: SftStage, start: str, examples: Sequence[Rollout], tools: Tools, log: StageLog, learner: Learner
) -> None:
    """Weights and optimizer as they were after the last committed step, and what a kill left undone behind it.

    Without a checkpoint that is made from the stage's start, with the optimizer of the SFT stage it continues.
    """
    done, latest = 0, log.latest_checkpoint()
    if latest is not None:
        done, folder = latest
        learner.load(folder)
    elif start != "base" and isinstance(next(s for s in tools.recipe.stages if s.name == start), SftStage):
        learner.load(log.run.stage(start).final, weights=False)
    if stage.min_entropy and latest is None:
        _save(0, learner, tools, log)  # what to go back to from the first evaluation
    if done < log.last_step:
        tools.watch.say(f"{stage.name}: making the updates of steps {done + 1} to {log.last_step} again")
    for step in range(done + 1, log.last_step + 1):
        with tools.ledger.phase("replay"):
            metrics = learner.sft_update(_chosen(stage, examples, learner, tools))
        tools.ledger.add_tokens("replay", int(metrics["num_tokens_trained"]), counts_as="neither")
        if step % stage.eval_every == 0:
            if all(row["step"] != step for row in log.rows("heldout")):  # the kill came before it
                _look(step, stage, learner, tools, log)
            if _is_worth_keeping(step, stage, log):
                _save(step, learner, tools, log)


def _is_worth_keeping(step: int, stage: SftStage, log: StageLog) -> bool:
    """Whether the weights after this step's evaluation are the best, or to be gone back to when the next finds the answers too
    much alike: then only those are saved at which they were not."""
    here = [row for row in log.rows("heldout") if row["step"] == step]
    return here[-1]["entropy"] >= stage.min_entropy if stage.min_entropy else log.is_best(step)


def _phase(
    stage: SftStage, seconds: float | None, step: int, before_s: float, tools: Tools
) -> AbstractContextManager[Bar]:
    """Counted in seconds where another stage's time is the measure; no end is promised where a plateau decides."""
    if seconds is not None:
        return tools.watch.phase(stage.name, round(seconds), "seconds", done=round(before_s))
    return tools.watch.phase(stage.name, None if stage.patience else stage.max_steps, "steps", done=step)


def _seconds(stage: SftStage, log: StageLog) -> float | None:
    """The wall time of the stage that is the measure, where one is."""
    return None if stage.wall_of is None else float(log.run.summary["stages"][stage.wall_of]["wall_s"])


def _over(stage: SftStage, log: StageLog, spent_s: float) -> bool:
    """Another stage's time is up; or the steps are done, or by the dev split it rises no more, or answers are too much alike."""
    if (seconds := _seconds(stage, log)) is not None:
        return spent_s >= seconds
    return log.last_step >= stage.max_steps or plateaued(_dev(log), stage.patience) or _sure(stage, log)


def _why(stage: SftStage, log: StageLog, kept: int) -> str:
    if stage.wall_of is not None:
        return f"the time of {stage.wall_of} is up"
    if _sure(stage, log):
        return f"as its dev answers fell below {stage.min_entropy:g} nats a token, and went back to step {kept}"
    if log.last_step >= stage.max_steps:
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
    worked = _worked([task for name in stage.tasks for task in tools.splits[name].train])
    if not worked:
        raise UserError(f"stage {stage.name}: no training task of {', '.join(stage.tasks)} has a worked solution")
    return [tools.chat.worked_example(task, i, solution) for i, (task, solution) in enumerate(worked)]


def _worked(tasks: Sequence[Task]) -> list[tuple[Task, str]]:
    """Every worked solution, with its task."""
    return [(task, solution) for task in tasks for solution in task.solutions]


def _step(
    stage: SftStage, examples: Sequence[Rollout], learner: Learner, tools: Tools, log: StageLog
) -> dict[str, Any]:
    started = time.perf_counter()
    chosen = _chosen(stage, examples, learner, tools)
    try:
        metrics = learner.sft_update(chosen)
    except NonFinite:
        log.save_rollouts(f"nonfinite_{log.last_step + 1:06d}", chosen)  # the evidence
        raise
    tools.ledger.add_tokens(
        "sft", int(metrics["num_tokens_trained"]), tokens_in=sum(r.num_prompt_tokens for r in chosen)
    )
    return metrics | {"step_s": time.perf_counter() - started}


def _chosen(stage: SftStage, examples: Sequence[Rollout], learner: Learner, tools: Tools) -> list[Rollout]:
    """The next batch. Number n of the endless stream is example n mod N of epoch n // N; a continued SFT goes on in it."""
    chosen = []
    for n in range(learner.num_updates * stage.batch, (learner.num_updates + 1) * stage.batch):
        epoch, place = divmod(n, len(examples))
        chosen.append(examples[_order(tools.recipe.seed, epoch, len(examples))[place]])
    return chosen


def _order(seed: int, epoch: int, num: int) -> np.ndarray:
    return np.random.default_rng(seed_of(seed, "sft", epoch)).permutation(num)
