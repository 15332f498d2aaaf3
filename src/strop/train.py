"""Reinforcement learning with verifiable rewards: the whole loop, one screen.

Draw tasks, sample a group of rollouts for each, score, credit, update, let the engine see the new weights, look at the
dev split, commit. Knows the order of things and what a step leaves behind; how each is done lies behind the names.
A step in which no group has signal makes no update and is counted. Committed rollouts are the write-ahead log: a
resume loads the last checkpoint and replays `update` from what was recorded, with no sampling and no verifying.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from strop import advantage, budget, evaluate, gain, guard, monitor, schedule
from strop import teacher as teachers
from strop.chat import Budget
from strop.config import TrainStage
from strop.engine import Sampling
from strop.learner import Learner, NonFinite
from strop.metrics import differs, groups_of, prompt_tokens, summarise
from strop.provenance import Mismatch, Provenance, levels
from strop.record import Rollout, Task, replace, seed_of
from strop.rewards import Reward
from strop.run import StageLog
from strop.teacher import Teacher
from strop.tools import Tools

__all__ = ["run"]


def run(
    stage: TrainStage, tools: Tools, log: StageLog, rewards: Sequence[Reward], restart: Callable[[], None]
) -> dict[str, Any]:
    """Run the stage's steps (or those a killed process left), save the weights it ends with, and finish it.

    Where the guard finds harm the stage goes back in the same way as it goes on after a kill: `restart` gives the policy
    the weights that the stage began with, and the rest is a resume. Raises guard.Collapsed when that has not helped.
    """
    spent, teacher = _Spent(evaluate.spent_s(log)), _teacher(stage, tools)
    while True:
        try:
            if (result := _go(stage, tools, log, rewards, teacher, spent)) is not None:
                return result
        except guard.Collapsed:  # its healthy step becomes a checkpoint, for a fork with other settings
            with tools.ledger.phase("load"):
                restart()
            _resume(stage, tools, log, _learner(stage, tools, teacher))
            raise
        with tools.ledger.phase("load"):
            restart()


def _learner(stage: TrainStage, tools: Tools, teacher: Teacher | None) -> Learner:
    """A learner of the weights that the stage begins with."""
    assert tools.policy is not None, "a recipe that trains through a server is refused"
    learner = Learner(tools.policy, stage.optim, stage.algorithm.critic, teacher)
    if guard.may_charge_kl(stage) or stage.algorithm.teacher == "self":
        learner.keep_reference()
    return learner


FITS = "memory/microbatch_tokens"


def _go(
    stage: TrainStage, tools: Tools, log: StageLog, rewards: Sequence[Reward], teacher: Teacher | None,
    spent: _Spent,
) -> dict[str, Any] | None:  # fmt: skip
    """The stage's steps from the last committed one on, and its end; {} where somebody asks to stop, None where the guard went back."""
    learner = _learner(stage, tools, teacher)
    _resume(stage, tools, log, learner)
    spent.begin()
    provenance = Provenance(learner.parameters)
    steps = _last_step(stage, log)
    with tools.watch.phase(stage.name, steps, "steps", done=log.last_step) as bar:
        _look(stage, log.last_step, tools, log)
        if log.last_step:
            if _harmed(stage, _warn(log.rows("train")[-1], tools, log), tools, log):
                bar.how = "taken back"
                return None
            _save_due(log.last_step, stage, tools, log, learner)
        if log.last_step < steps and tools.stop_requested():  # to replay steps, and to look at them, took time too
            bar.how = "stopped"
            return {}
        for step in range(log.last_step + 1, steps + 1):
            if _gains_too_little(stage, step - 1, tools, log):
                break
            clock = _Clock()
            asked = guard.at_step(stage, step, log.rows("rollback"))
            now = schedule.moved(asked, log.rows("train"))
            weighted = weigh(stage, step, rewards, log.rows("train"))
            rollouts = collect(now, step, tools, weighted, clock, log)
            with tools.ledger.phase("train"):
                rollouts = learner.annotate(rollouts, asked.algorithm)
                rollouts = advantage.assign(
                    rollouts, asked.algorithm, seed=seed_of(tools.recipe.seed, log.name, step, "shuffle"),
                    reward_weights={r.name: r.weight for r in weighted},
                )  # fmt: skip
                try:
                    metrics = _update(stage, step, rollouts, learner, tools, log, provenance)
                except NonFinite as error:
                    alarm = monitor.Alarm(name="not_finite", step=step, text=str(error))
                    if not _harmed(stage, [alarm], tools, log):
                        raise
                    bar.how = "taken back"
                    return None
            clock.lap("train_s")
            tools.engine.load(policy_step=step)
            acting = [r for r in rollouts if r.num_trained and advantage.acts([r], asked.algorithm)]
            tools.ledger.add_tokens("train", int(metrics["num_tokens_trained"]), tokens_in=prompt_tokens(acting))
            limit = {"max_tokens": now.max_tokens}
            row = metrics | summarise(rollouts) | limit | moving_weights(stage, weighted) | clock.laps()
            row |= _what_fits(learner, tools, log)
            log.commit(step, rollouts, row)
            _look(stage, step, tools, log)
            if _harmed(stage, _tell(stage, step, row, bar, tools, log), tools, log):
                bar.how = "taken back"
                return None
            stopping = step < steps and tools.stop_requested()
            due = step % stage.checkpoint_every == 0 or log.is_best(step)
            if stopping or (step < steps and due):
                with tools.ledger.phase("save"):
                    log.save_checkpoint(step, learner.save)
            if stopping:
                bar.how = "stopped"
                return {}
    return _finish(stage, tools, log, learner, spent)


def _finish(stage: TrainStage, tools: Tools, log: StageLog, learner: Learner, spent: _Spent) -> dict[str, Any]:
    with tools.ledger.phase("save"):
        log.save_final(learner.policy.save)
    dev = [row["accuracy"] for row in log.rows("heldout")]
    rows, rollbacks = log.rows("train"), log.rows("rollback")
    result = {
        "from": tools.recipe.start_of(stage), "wall_s": spent.seconds, "steps": log.last_step, "optimizer": learner.state_hash(),
        "best_dev_acc": max(dev, default=None), "last_dev_acc": dev[-1] if dev else None,
        "tokens_sampled": sum(row["num_tokens_sampled"] for row in rows),
        "tokens_trained": sum(int(row["num_tokens_trained"]) for row in rows),
        "steps_without_signal": sum(_is_silent(row) for row in rows),
        "rollbacks": rollbacks[-1]["number"] if rollbacks else 0,
        **({} if learner.teacher is None else {"teacher": stage.algorithm.teacher, "teacher_mb": learner.teacher.num_bytes / 1e6}),
    }  # fmt: skip
    log.finish(result)
    return result


def _teacher(stage: TrainStage, tools: Tools) -> Teacher | None:
    """Whose log-probabilities credit the tokens of this stage, and what it is shown; its weights are read here."""
    if stage.algorithm.credit == "reward":
        return None
    if not stage.algorithm.reads_solutions:
        with tools.ledger.phase("load"), tools.watch.phase(f"loading the teacher {stage.algorithm.teacher}"):
            return Teacher(policy=teachers.load(tools.teachers[stage.name], tools.watch.say))
    chat = tools.chat
    assert chat is not None, "a policy has a chat"

    def with_solution(rollout: Rollout) -> np.ndarray:
        asked = rollout.budget_tokens
        return chat.encode_hinted(rollout.task, None if asked is None else Budget(tokens=asked, mode=stage.budget.mode))

    for name in stage.tasks:
        known = tools.splits[name].train
        if num := len(known) - len(schedule.pool(stage, known)):
            tools.watch.say(
                f"{stage.name}: {num} of {len(known)} training tasks of {name} have no worked solution for the teacher, and are "
                "not drawn"
            )
    return Teacher(prompt=with_solution)


# --- collect: weigh, draw, generate, score, refill --------------------------------------------------------------------


def weigh(
    stage: TrainStage, step: int, rewards: Sequence[Reward], history: Sequence[Mapping[str, Any]]
) -> list[Reward]:
    """The stage's reward functions with the weights that its recipe gives them at this step."""
    weights = [schedule.reward_weight(spec, step, history) for spec in stage.rewards]
    return [replace(reward, weight=weight) for reward, weight in zip(rewards, weights, strict=True)]


def collect(
    stage: TrainStage, step: int, tools: Tools, rewards: Sequence[Reward], clock: _Clock, log: StageLog
) -> list[Rollout]:
    """One step's scored rollouts: `prompts_per_step` groups of siblings.

    With `refill_rounds`, groups without signal are replaced by new tasks for at most that many further rounds; what
    is still without signal then stays, and is counted.
    """
    kept: list[Rollout] = []
    for round_ in range(stage.algorithm.refill_rounds + 1):
        missing = stage.prompts_per_step - len({r.group for r in kept})
        if not missing:
            break
        tasks = draw(stage, step, round_, missing, tools, log)
        first = max((r.group for r in kept), default=-1) + 1
        path = (tools.recipe.seed, stage.name, *guard.again(log.rows("rollback")), step, round_)
        fresh = [replace(r, group=r.group + first) for r in _sample(stage, path, tasks, tools, rewards, clock)]
        _note(stage, step, round_, fresh, tools, log)
        last = round_ == stage.algorithm.refill_rounds
        kept += fresh if last else [r for g in groups_of(fresh) for r in g if differs(g)]
    return kept


def _sample(
    stage: TrainStage,
    seed_path: tuple[int | str, ...],
    tasks: Sequence[Task],
    tools: Tools,
    rewards: Sequence[Reward],
    clock: _Clock,
) -> list[Rollout]:
    sampling = Sampling(temperature=stage.temperature, max_tokens=stage.max_tokens, exact=False)
    num_rollouts = len(tasks) * stage.group_size
    with (
        tools.ledger.phase("generate"),
        tools.watch.phase("sampling", num_rollouts, "rollouts", in_waves=True) as bar,
    ):
        rollouts = tools.engine.generate(
            tasks, num_samples=stage.group_size, sampling=sampling, seed_path=seed_path,
            budgets=draw_budgets(stage, tasks, seed_path), on_done=lambda _: bar.advance(1),
        )  # fmt: skip
    tools.ledger.add_tokens("generate", sum(r.num_sampled for r in rollouts), tokens_in=prompt_tokens(rollouts))
    clock.lap("generate_s")
    with tools.ledger.phase("verify"):
        scored = tools.scorer.score(rollouts, rewards, stage.algorithm, stage.max_tokens)
    clock.lap("verify_s")
    return scored


def draw_budgets(stage: TrainStage, tasks: Sequence[Task], seed_path: tuple[int | str, ...]) -> list[Budget] | None:
    """The length to ask for of each task, drawn evenly from the stage's range; siblings share it, as in L1."""
    if stage.budget.tokens is None:
        return None
    low, high = stage.budget.tokens
    drawn = [np.random.default_rng(seed_of(*seed_path, task.id, "budget")).integers(low, high + 1) for task in tasks]
    return [Budget(tokens=int(num), mode=stage.budget.mode) for num in drawn]


def draw(stage: TrainStage, step: int, round_: int, num: int, tools: Tools, log: StageLog) -> list[Task]:
    """`num` tasks for the step: sets take turns by their shares, and each set's tasks pass by in seeded epochs.

    With a curriculum a set's tasks are drawn by how often they have been passed so far. Every refill round has its own
    stream, so that a refill never shifts what later steps draw.
    """
    begin = (step - 1) * stage.prompts_per_step
    again = guard.again(log.rows("rollback"))
    names = schedule.turns(stage.tasks, begin + num)
    at = Counter(names[:begin])
    if schedule.shares_of(stage.curriculum):
        return _by_difficulty(stage, step, round_, at, Counter(names[begin:]), tools, log)
    chosen = []
    for name in names[begin:]:
        pool = schedule.pool(stage, tools.splits[name].train)
        path = (tools.recipe.seed, stage.name, *again, name, round_)
        while (task := _passing(pool, at[name], path)) in chosen:  # where one epoch ends and the next begins
            at[name] += 1
        chosen.append(task)
        at[name] += 1
    return chosen


def _by_difficulty(
    stage: TrainStage, step: int, round_: int, at: Counter[str], wanted: Counter[str], tools: Tools, log: StageLog
) -> list[Task]:
    """By the curriculum's shares; what an earlier round of this step has tried comes again only where nothing else is left."""
    rows, shares = log.rows("curriculum"), schedule.shares_of(stage.curriculum)
    rates = schedule.pass_rates(rows)
    tried = {task for row in rows if row["step"] == step for task in row["passes"]}
    chosen: list[Task] = []
    for name, num in wanted.items():
        pool = [task for task in schedule.pool(stage, tools.splits[name].train) if task not in chosen]
        fresh = [task for task in pool if task.id not in tried]
        seed = seed_of(tools.recipe.seed, stage.name, *guard.again(log.rows("rollback")), name, round_, step)
        if len(fresh) < num:  # all that is left, and of the rest what is missing
            chosen += fresh
            fresh, num = [task for task in pool if task.id in tried], num - len(fresh)
        chosen += schedule.pick(fresh, rates, shares, num, begin=at[name], seed=seed)
    return chosen


def _note(stage: TrainStage, step: int, round_: int, rollouts: list[Rollout], tools: Tools, log: StageLog) -> None:
    """What a curriculum goes by, also of the groups that a refill drops. It counts once its step is committed."""
    if schedule.shares_of(stage.curriculum):
        pools = [schedule.pool(stage, tools.splits[name].train) for name in stage.tasks]
        found = schedule.curriculum_row(pools, schedule.pass_rates(log.rows("curriculum")), rollouts)
        log.log({"kind": "curriculum", "step": step, "round": round_, **found})


def _passing(pool: Sequence[Task], n: int, path: tuple[int | str, ...]) -> Task:
    """Task number n of the endless stream: every epoch is the pool in another order."""
    epoch, place = divmod(n, len(pool))
    return pool[np.random.default_rng(seed_of(*path, epoch)).permutation(len(pool))[place]]


# --- update, resume, tell ---------------------------------------------------------------------------------------------


def _update(
    stage: TrainStage,
    step: int,
    rollouts: list[Rollout],
    learner: Learner,
    tools: Tools,
    log: StageLog,
    provenance: Provenance | None = None,
) -> dict[str, float]:
    """The updates of one step; a replay has no `provenance`: what it learns from was checked when it was sampled."""
    stage = guard.at_step(stage, step, log.rows("rollback"))
    algorithm, learner.optim = schedule.adapted(stage.algorithm, log.rows("train")[: step - 1]), stage.optim
    try:
        if provenance is not None:
            provenance.check(step, rollouts)
        metrics = learner.update(
            rollouts, algorithm, num_updates=stage.updates_per_step, max_tokens=stage.max_tokens,
            seed=seed_of(tools.recipe.seed, log.name, step, "update"),
            only_critic=step <= stage.algorithm.critic.pretrain_steps,
            most_mismatch=None if provenance is None else levels(
                rounds=learner.policy.rounds or tools.recipe.engine.int8 != "never", temperature=stage.temperature
            ),
        )  # fmt: skip
    except NonFinite:
        log.save_rollouts(f"nonfinite_{step:06d}", rollouts)  # the evidence
        raise
    except Mismatch:
        own = learner.logprobs(rollouts)
        log.save_rollouts(
            f"mismatch_{step:06d}", [replace(r, old_logprobs=a) for r, a in zip(rollouts, own, strict=True)]
        )
        raise
    if stage.algorithm.kl_reset_every and step % stage.algorithm.kl_reset_every == 0:
        learner.keep_reference()
    return metrics


def _what_fits(learner: Learner, tools: Tools, log: StageLog) -> dict[str, int]:
    """Tokens computed at once, where memory allows fewer than the recipe; said when they change."""
    if (fit := learner.microbatch_tokens) == learner.optim.microbatch_tokens:
        return {}
    if not log.rows("train") or log.rows("train")[-1].get(FITS) != fit:
        tools.watch.say(
            f"memory ran short: {fit} tokens at once from here on, in place of {learner.optim.microbatch_tokens}"
        )
    return {FITS: fit}


def _resume(stage: TrainStage, tools: Tools, log: StageLog, learner: Learner) -> None:
    """Weights and optimizer as they were after the last committed step."""
    latest = log.latest_checkpoint()
    done = 0
    if latest is not None:
        done, folder = latest
        learner.load(folder)
    if done < log.last_step:
        tools.watch.say(
            f"{stage.name}: replaying the updates of steps {done + 1} to {log.last_step} from recorded rollouts"
        )
    for step in range(done + 1, log.last_step + 1):
        learner.most_tokens = log.rows("train")[step - 1].get(FITS, stage.optim.microbatch_tokens)
        with tools.ledger.phase("replay"):
            metrics = _update(stage, step, log.rollouts(step), learner, tools, log)
        tools.ledger.add_tokens("replay", int(metrics["num_tokens_trained"]), counts_as="neither")
        _save_due(step, stage, tools, log, learner)
    tools.engine.load(policy_step=log.last_step)


def _save_due(step: int, stage: TrainStage, tools: Tools, log: StageLog, learner: Learner) -> None:
    """The checkpoint of the step that the guard went back to, for whoever forks from there, and of one with the best dev accuracy:
    a kill may have come between the look and the checkpoint, or that checkpoint went as a better one came that is undone since."""
    healthy = {row["step"] for row in log.rows("rollback")[-1:]}
    due = step in healthy or log.is_best(step)
    if step < stage.steps and due and all(number != step for number, _ in log.step_checkpoints()):
        with tools.ledger.phase("save"):
            log.save_checkpoint(step, learner.save)


def moving_weights(stage: TrainStage, weighted: Sequence[Reward]) -> dict[str, float]:
    """The weights at this step of the rewards whose weight is not the same at every step, as logged."""
    moves = [spec.until_weight is not None or spec.accuracy_tolerance is not None for spec in stage.rewards]
    return {f"rewards/{r.name}/weight": r.weight for r, m in zip(weighted, moves, strict=True) if m}


def _is_silent(row: Mapping[str, Any]) -> bool:
    """Nothing to learn from: no update where a teacher credits, equal rewards in every group where none does."""
    return row["num_updates"] == 0 if "teacher_kl" in row else row["frac_reward_zero_std"] == 1.0


def _look(stage: TrainStage, step: int, tools: Tools, log: StageLog) -> None:
    """The dev split after every `heldout_every` steps and at both ends, once each (a kill may lie before it)."""
    due = stage.heldout_every and (step % stage.heldout_every == 0 or step == stage.steps)
    if due and all(row["step"] != step for row in log.rows("heldout")):
        rows = log.rows("train")  # the limit is that of the step just made
        max_tokens = rows[-1]["max_tokens"] if rows else stage.max_tokens
        evaluate.dev_accuracy(step, list(stage.tasks), max_tokens, tools, log)


def _tell(
    stage: TrainStage, step: int, row: dict[str, Any], bar: Any, tools: Tools, log: StageLog
) -> list[monitor.Alarm]:
    """The step in a line, and its alarms."""
    rate = row["num_tokens_sampled"] / max(row["generate_s"], 1e-9)
    bar.advance(1, reward=row["reward"], length=row["completions/mean_length"], **{"tok/s": rate}, **tools.spent())
    reward = "  none" if row["reward"] is None else f"{row['reward']:6.3f}"
    signal = f"signal {100 * (1 - row['frac_reward_zero_std']):3.0f}%"
    if "teacher_kl" in row:
        signal = f"teacher_kl {row['teacher_kl']:.3f}"
    tools.watch.step(
        f"{stage.name} {step:4d}/{stage.steps}  reward {reward}  length {row['completions/mean_length']:5.1f}  {signal}  "
        f"{rate:5.0f} tok/s  {row['step_s']:.1f} s"
    )
    # As measured: in the log what is not finite has become null.
    return _warn({"stage": stage.name, "step": step, **row}, tools, log)


def _warn(row: Mapping[str, Any], tools: Tools, log: StageLog) -> list[monitor.Alarm]:
    """The alarms of the last step, each said once: a kill may lie between a step and its alarms.

    After a kill the row is the logged one, where a number that was not finite has become null, so `not_finite` is lost.
    """
    said = {(r["step"], r["alarm"]) for r in log.rows("alarm")}
    alarms = monitor.check(row, log.rows("train")[:-1], log.rows("heldout"))
    for alarm in alarms:
        if (row["step"], alarm.name) not in said:
            tools.watch.say(f"alarm: {alarm.text}")
            log.log({"kind": "alarm", "step": row["step"], "alarm": alarm.name, "text": alarm.text})
    return alarms


def _harmed(stage: TrainStage, alarms: Sequence[monitor.Alarm], tools: Tools, log: StageLog) -> bool:
    """Whether the guard has taken the stage back. Raises Collapsed when it has done so as often as it may."""
    rows, looks, rollbacks, said = (log.rows(kind) for kind in ("train", "heldout", "rollback", "alarm"))
    found = guard.decide(stage, alarms, rows, looks, rollbacks, said, log.floor)
    if found is None:
        return False
    log.roll_back(found.step, asdict(found))
    evidence = f"what was undone is kept in {log.run.out}/rolled_back/{stage.name}/{found.number}"
    if found.remedy is None:
        tried = ", ".join(found.remedies)
        raise guard.Collapsed(
            f"{stage.name}: {found.text}. This is harm for the {found.number}. time, and {tried} did not prevent it. The stage rests at "
            f"step {found.step}, healthy; {evidence}. --resume tries on from there with other samples, and strop fork with other settings"
        )
    tools.watch.say(
        f"guard: {stage.name} goes back from step {found.from_step} to {found.step}, healthy, and on with {found.remedy} "
        f"({found.number} of {stage.guard.times}); {evidence}"
    )
    return True


def _last_step(stage: TrainStage, log: StageLog) -> int:
    """The recipe's, or where the guard or `stop_below` has ended the stage."""
    at = guard.ends(log.rows("rollback"))
    return next((row["step"] for row in log.rows("ended")), stage.steps if at is None else at)


def _gains_too_little(stage: TrainStage, step: int, tools: Tools, log: StageLog) -> bool:
    """Whether going on no longer pays by the recipe's own measure. A row says so, so that a resume ends there too."""
    looks = log.rows("heldout")
    if stage.stop_below is None or not looks or looks[-1]["step"] != step:
        return False
    least, of = budget.rate(stage.stop_below)
    gained = gain.at_best(looks, tools.spends(of), log.rows())
    if gained >= least:
        return False
    log.log({"kind": "ended", "step": step, "gain": gained, "least": least, "of": of})
    tools.watch.say(
        f"{stage.name} ends after step {step} of {stage.steps}: at best it still gains {gained / least:.2g} of the "
        f"{stage.stop_below} points that stop_below asks for"
    )
    return True


class _Spent:
    """Wall seconds of a stage over its attempts: of what was committed before, and since this attempt had caught up with it."""

    def __init__(self, before_s: float) -> None:
        self._before_s = before_s
        self._started: float | None = None

    def begin(self) -> None:
        """The first time; what the guard has made again since is time of the stage's."""
        self._started = self._started or time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before_s + (time.perf_counter() - self._started if self._started else 0.0)


class _Clock:
    """Wall seconds of a step by part."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def laps(self) -> dict[str, float]:
        return self._seconds | {"step_s": time.perf_counter() - self._start}
