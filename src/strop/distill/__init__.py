"""Distillation: a teacher's answers to the training tasks, verified, filtered and chosen, as a task set for `strop sft`.

The teacher is whatever an engine asks (a model here, a server at a URL) or `solvers`, which need no model. It is asked the
*training* tasks of the recipe's task sets alone: held-out and dev tasks are drawn first, as for any run, and left out. The
directory is a run's (`run.py`), with one stage called `teacher`; answers are saved as they come (`answers`), so a killed
distillation asks nothing twice, and a finished one may be chosen from anew, by other rules, without asking anything.

Knows the order of things and what they cost. What is kept is decided in `choose`, how it is written in `write`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from strop import answers, costs, vet
from strop.budget import Limit
from strop.config import EvaluateStage, Recipe
from strop.disk import guard
from strop.distill import choose, solvers, write
from strop.distill.choose import DEFAULT_MOST, Chosen, Fate, Rules
from strop.energy import open_meter
from strop.engine import Sampling
from strop.ledger import Ledger
from strop.metrics import PASS_BINS, pass_bin
from strop.record import Rollout, Stop, Task, UserError, read_tasks, write_tasks
from strop.rewards import Scorer
from strop.run import Run, StageLog, check_folder
from strop.tasks import TaskSplits, load
from strop.tools import Tools
from strop.watch import Watch

__all__ = ["DEFAULT_MOST", "SOLVER", "STAGE", "Job", "OpenTools", "Rules", "lines", "run"]

STAGE, SOLVER, ANSWERS = "teacher", "solver", "answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done. The recipe has the task sets and one evaluate stage, STAGE, that says how the teacher is sampled."""

    recipe: Recipe
    rules: Rules = field(default_factory=Rules)
    usd_per_mtok: tuple[float, float] | None = None  # of prompt and of answer tokens, by the million

    @property
    def solves(self) -> bool:
        """Whether the teacher is a solver."""
        return self.recipe.model.name == SOLVER

    @property
    def stage(self) -> EvaluateStage:
        (stage,) = self.recipe.stages
        assert isinstance(stage, EvaluateStage)
        return stage


@runtime_checkable  # beartype asks under pytest
class OpenTools(Protocol):
    """`pipeline.open_tools`: the engine that a recipe names, with what a stage needs beside it."""

    def __call__(
        self,
        recipe: Recipe,
        splits: dict[str, TaskSplits],
        scorer: Scorer,
        ledger: Ledger,
        watch: Watch,
        stop_requested: Callable[[], bool],
        stack: ExitStack,
    ) -> Tools: ...


def run(
    job: Job,
    *,
    out: Path,
    open_tools: OpenTools,
    resume: bool = False,
    watch: Watch | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Ask, verify, choose and write `out`/train.parquet; the summary of the run, with what was found under "distill".

    Asked to stop while answers come in, or at the end of the recipe's budget, it returns with summary["finished"] False. Raises UserError for whatever can be refused
    before anything is written, for a solver that knows none of the tasks, and for a server that fails again and again.
    """
    watch = watch or Watch()
    check_folder(out, job.recipe, resume)
    with ExitStack() as stack:
        # As in `pipeline.run`: a new directory is opened only when tasks and teacher have passed.
        log = stack.enter_context(Run.open(out, job.recipe, resume=True, say=watch.say)) if resume else None
        meter = stack.enter_context(open_meter(watch.say, with_gpus=not job.recipe.engine.at_url))
        ledger = Ledger.from_dict({} if log is None else log.summary["ledger"], meter=meter)
        bill = _Bill(job.usd_per_mtok)
        limit = Limit(job.recipe.budget, lambda: _spent(job, ledger, bill))
        scorer = stack.enter_context(Scorer(workers=job.recipe.checks.workers, timeout_s=job.recipe.checks.timeout_s))
        asked, dropped = _tasks(job, out / "tasks.parquet", scorer, ledger, watch)
        stops = lambda: stop_requested() or limit.is_spent()  # noqa: E731
        teacher = _teacher(job, asked, scorer, ledger, watch, stops, stack, open_tools, log, bill)
        if log is None:
            log = stack.enter_context(Run.open(out, job.recipe, resume=False, say=watch.say))
        log.ledger = ledger
        assert log.attempt is not None
        watch.copy_to(log.attempt / "log.txt")
        if dropped is not None:
            log.summary["dropped"], log.summary["num_dropped"] = (
                dropped,
                dict(Counter(row["reason"] for row in dropped)),
            )
            log.write_summary()
            with guard(out / "tasks.parquet"):
                write_tasks(out / "tasks.parquet", {f"{name}/train": listed for name, listed in asked.items()})
        log.summary["engine"] = teacher.about
        try:
            found = teacher.ask([task for listed in asked.values() for task in listed], log.stage(STAGE))
            log.summary["stopped_by_budget"] = limit.reached if found is None else ""
            if found is not None:
                _finish(job, found, asked, teacher.about, log, watch)
        finally:
            log.write_summary()
        return log.summary


def _tasks(
    job: Job, recorded: Path, scorer: Scorer, ledger: Ledger, watch: Watch
) -> tuple[dict[str, list[Task]], vet.Dropped | None]:
    """The training tasks by task set, and what was left out; None where an earlier attempt has recorded both.

    Raises UserError where a set has none.
    """
    if recorded.exists():
        return {key.rpartition("/")[0]: listed for key, listed in read_tasks(recorded).items()}, None
    recipe = job.recipe
    splits = load(recipe.tasks, seed=recipe.seed, say=watch.say)
    train = {
        name: TaskSplits(train=splits[name].train, dev=[], heldout=[], dropped=splits[name].dropped)
        for name in job.stage.tasks
    }
    with ledger.phase("verify"):
        gradable, dropped = vet.gradable(recipe, train, scorer, watch)
    asked = {name: split.train for name, split in gradable.items()}
    if empty := [name for name, listed in asked.items() if not listed]:
        raise UserError(
            f"tasks.{empty[0]} has no training tasks that can be graded, and a teacher is asked no others; set "
            f"tasks.{empty[0]}.train, or name another task set"
        )
    once: dict[str, Task] = {}  # a task of two sets is asked once, for the first of them
    return {n: [t for t in listed if once.setdefault(t.id, t) is t] for n, listed in asked.items()}, dropped


# --- teachers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    about: str  # in words, for the record
    ask: Callable[[Sequence[Task], StageLog], list[Rollout] | None]  # judged answers; None: it was asked to stop


def _teacher(
    job: Job, asked: Mapping[str, list[Task]], scorer: Scorer, ledger: Ledger, watch: Watch,
    stop_requested: Callable[[], bool], stack: ExitStack, open_tools: OpenTools, log: Run | None, bill: _Bill,
) -> Teacher:  # fmt: skip
    """Whoever answers. Raises UserError where a resumed run would be answered by somebody else."""
    if job.solves:
        _refuse_unsolvable(asked)
        return Teacher(about=SOLVER, ask=lambda tasks, log: _solve(tasks, scorer, log))
    if log is not None and (answered := log.stage(STAGE).load_rollouts(ANSWERS)) is not None:
        return Teacher(about=log.summary["engine"], ask=lambda tasks, log: answered)
    # To an engine they are what an evaluation's held-out tasks are: what is answered, and never learned from as it is.
    splits = {name: TaskSplits(train=[], dev=[], heldout=listed) for name, listed in asked.items()}
    with ledger.phase("load"):
        tools = open_tools(job.recipe, splits, scorer, ledger, watch, stop_requested, stack)
    about = f"{job.recipe.model.name}, {tools.engine.about}" if not job.recipe.engine.at_url else tools.engine.about
    if log is not None and (before := log.summary.get("engine", about)) != about:
        raise UserError(
            f"{log.out} was answered by {before}, and now it would be {about}; bring that one back, or name another folder with "
            "--out"
        )
    stage = job.stage
    sampling = Sampling(temperature=stage.temperature, top_p=stage.top_p, max_tokens=stage.max_tokens)

    def ask(tasks: Sequence[Task], log: StageLog) -> list[Rollout] | None:
        for rollout in log.load_parts(ANSWERS):  # of earlier starts
            bill.add(rollout)
        return answers.collect(ANSWERS, tasks, stage.num_samples, sampling, tools, log, bill.add)

    return Teacher(about=about, ask=ask)


def _refuse_unsolvable(asked: Mapping[str, list[Task]]) -> None:
    for name, listed in asked.items():
        if not any(solvers.family(task) for task in listed):
            raise UserError(
                f"no solver knows the tasks of {name!r}; they solve {', '.join(solvers.SOLVERS)} and puzzles of a file with "
                "verifier: knights and a column `statements`; name a model with --teacher"
            )


def _solve(tasks: Sequence[Task], scorer: Scorer, log: StageLog) -> list[Rollout]:
    """A worked solution of each task, judged; empty where there is none. It costs seconds, so a resume does it again."""
    nothing, nowhere = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool)
    written = [
        Rollout(task=task, group=place, sample=0, token_ids=nothing, sampled=nowhere, trained=nowhere, text=text, stop=Stop.GIVEN)
        for place, (task, text) in enumerate(zip(tasks, solvers.worked_out(tasks), strict=True))
    ]  # fmt: skip
    judged = scorer.judge(written)
    log.save_rollouts(ANSWERS, judged)
    return judged


# --- what came of it --------------------------------------------------------------------------------------------------


def _finish(
    job: Job, found: Sequence[Rollout], asked: Mapping[str, list[Task]], teacher: str, log: Run, watch: Watch
) -> None:
    """Choose, write both files, and put what was found into the summary."""
    names = {task.id: name for name, listed in asked.items() for task in listed}
    chosen = choose.choose(found, job.rules)
    write.fates(log.out / "fates.jsonl", found, chosen, names)
    if not chosen.kept:
        watch.say(f"nothing is kept: {_counts(chosen)}")
    write.train(log.out / "train.parquet", chosen.kept, names, job.recipe.model.name, chosen.rates)
    log.summary["distill"] = {
        "teacher": teacher, "keep": job.rules.keep, "max_per_task": job.rules.most, "balance": job.rules.balance,
        "language": job.rules.language, "num_tasks": len(names), "num_answers": len(found),
        "num_tasks_kept": len(chosen.kept), "num_kept": sum(map(len, chosen.kept)),
        "fates": {fate.value: num for fate in Fate if (num := chosen.fates.count(fate))},
        "pass_rates": _rates(chosen.rates.values()), "pass_rates_kept": _rates(chosen.rates[a[0].task.id] for a in chosen.kept),
        **_cost(found, job.usd_per_mtok), "wall_s": sum(row["eval_s"] for row in log.stage(STAGE).rows("pass")),
    }  # fmt: skip
    log.summary["finished"] = True


def _rates(rates: Any) -> dict[str, int]:
    """Tasks by pass rate; what could not be judged is in no bin."""
    bins = Counter(pass_bin(rate) for rate in rates if rate is not None)
    return {name: bins[name] for name in PASS_BINS}


@dataclass(slots=True)
class _Bill:
    """Tokens as a server counts them, the prompt's once for each answer; dollars where prices are known.

    What was asked again after a failure, or was lost to a kill, is not in it: no reply said what it took.
    """

    usd_per_mtok: tuple[float, float] | None
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, rollout: Rollout) -> None:
        self.tokens_in += rollout.num_prompt_tokens
        self.tokens_out += rollout.num_sampled

    @property
    def usd(self) -> float | None:
        if self.usd_per_mtok is None:
            return None
        return (self.tokens_in * self.usd_per_mtok[0] + self.tokens_out * self.usd_per_mtok[1]) / 1e6


def _spent(job: Job, ledger: Ledger, bill: _Bill) -> costs.Spent:
    """What all starts took, as of any run, with the teacher's bill."""
    found = costs.spent(ledger.as_dict(), job.recipe.costs)
    return found if bill.usd is None else replace(found, usd=bill.usd + (found.usd or 0.0))


def _cost(found: Sequence[Rollout], usd_per_mtok: tuple[float, float] | None) -> dict[str, Any]:
    bill = _Bill(usd_per_mtok)
    for rollout in found:
        bill.add(rollout)
    return {"tokens_in": bill.tokens_in, "tokens_out": bill.tokens_out, "usd": bill.usd}


def _counts(chosen: Chosen) -> str:
    return ", ".join(f"{num} {fate.value}" for fate in Fate if (num := chosen.fates.count(fate)))


def lines(summary: Mapping[str, Any], out: Path) -> list[str]:
    """A finished distillation for a person: the fates, what is learned from and what it cost."""
    d = summary["distill"]
    width = max(map(len, d["fates"]), default=0)
    told = [f"{fate:<{width}}  {num:>7,}" for fate, num in d["fates"].items()]
    money = "" if d["usd"] is None else f", ${d['usd']:,.2f}"
    told.append(
        f"{d['num_kept']:,} answers to {d['num_tasks_kept']:,} of {d['num_tasks']:,} tasks are kept; "
        f"{d['tokens_in']:,} tokens in, {d['tokens_out']:,} out{money}, {d['wall_s']:,.0f} s"
    )
    if easy := d["fates"].get(Fate.EASY.value):
        told.append(f"{easy:,} right answers to easy tasks are left out for balance; --no-balance keeps them")
    return [*told, f"learn from them: tasks: {{name: {{source: {out / 'train.parquet'}}}}}"]
