"""All stages of a recipe in order, from the tasks to the report: what `strop run` does.

Knows which stage starts from whose weights, which are finished, and what is refused before anything is written. How a
stage works is the business of its room (`evaluate`, `sft`, `train`), how a difference is judged that of `compare`.
Rooms that know torch are imported when a model is needed, so that a mistake in a recipe is told within a second.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from strop import compare, costs, energy, headroom, holder, plan, rewards, targets, tasks, vet
from strop.budget import Limit
from strop.config import EvaluateStage, Recipe, SftStage, Stage, TaskSet, TrainStage
from strop.disk import guard
from strop.guard import Collapsed
from strop.ledger import Ledger
from strop.machine import made_on
from strop.process import give_back_memory
from strop.record import Task, UserError, read_tasks, write_tasks
from strop.report import page
from strop.run import Run, check_folder
from strop.tasks import TaskSplits, benchmarks, files
from strop.vet import PARTS
from strop.watch import Watch

if TYPE_CHECKING:
    from strop.chat import Chat
    from strop.engine import Engine
    from strop.model import Policy
    from strop.tools import Tools

__all__ = ["check", "only", "open_tools", "result_lines", "run"]

Say = Callable[[str], None]
Kind = Literal["evaluate", "sft", "train"]


def never() -> bool:
    """Nobody asks to stop."""
    return False


def run(
    recipe: Recipe,
    *,
    out: Path,
    resume: bool = False,
    watch: Watch | None = None,
    stop_requested: Callable[[], bool] = never,
    recipe_dir: Path = Path(),
    on_phase: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run what is not finished of a recipe in the directory `out`, and return its summary (`summary.json`).

    `stop_requested` is asked after every step, and so is the recipe's budget: the stage then saves and returns, and so does
    this, with summary["finished"] False. `on_phase` is told what it is doing, in the ledger's words. Raises UserError for whatever
    can be refused before anything is written.
    """
    watch = watch or Watch()
    check_folder(out, recipe, resume)
    with ExitStack() as stack:
        stack.enter_context(headroom.keep_within(recipe.memory_gb))
        # A new run is opened only when recipe, tasks, rewards and model have passed: a mistake leaves the folder as it was.
        log = stack.enter_context(Run.open(out, recipe, resume=True, say=watch.say)) if resume else None
        if log is not None and log.summary["finished"]:
            watch.say(f"{out}: every stage is finished, nothing is left to do")
            return log.summary
        functions = vet.load_rewards(recipe, recipe_dir)
        has_gpus = recipe.model.device != "cpu" and not recipe.engine.at_url
        meter = stack.enter_context(energy.open_meter(watch.say, with_gpus=has_gpus))
        ledger = Ledger.from_dict({} if log is None else log.summary["ledger"], meter=meter)
        ledger.on_phase = on_phase
        limit = _limit(recipe, ledger)
        if log is not None and limit.is_spent():
            log.summary["stopped_by_budget"] = limit.reached
            _tell(log)
            return log.summary
        recorded = out / "tasks.parquet"
        is_new = not recorded.exists()
        splits = tasks.load(recipe.tasks, seed=recipe.seed, say=watch.say) if is_new else _read_splits(recorded)
        vet.needs(recipe, splits)
        functions = vet.tried(functions, recipe, splits)
        scorer = stack.enter_context(rewards.Scorer(workers=recipe.checks.workers, timeout_s=recipe.checks.timeout_s))
        dropped: vet.Dropped = []
        if is_new:
            _model_is_here(recipe)  # a name that is wrong is told before minutes of grading
            with ledger.phase("verify"):
                splits, dropped = vet.gradable(recipe, splits, scorer, watch)
            vet.needs(recipe, splits)
        limit = _limit(recipe, ledger)  # from here on it takes what lies between two looks for a step
        with ledger.phase("load"):
            forecast = plan.tell(recipe, splits, watch.say)
            tools = open_tools(
                recipe, splits, scorer, ledger, watch, lambda: stop_requested() or limit.is_spent(), stack
            )
        if log is None:
            log = stack.enter_context(Run.open(out, recipe, resume=False, say=watch.say))
        _note_engine(log, tools.engine)
        log.summary.setdefault("plan", forecast)  # that of the first start: what happens is held against it
        if tools.policy is not None:
            log.note_machine(_made_on(tools.policy))
        log.ledger = ledger
        assert log.attempt is not None
        watch.copy_to(log.attempt / "log.txt")
        if is_new:
            _record_tasks(log, splits, dropped)
        try:
            _run_stages(log, tools, functions, limit)
        finally:  # whatever ended it, the time and tokens it took are not forgotten
            log.write_summary()
        return log.summary


def _record_tasks(log: Run, splits: Mapping[str, TaskSplits], dropped: vet.Dropped) -> None:
    """What was dropped goes first: once tasks.parquet is there, a resume does not look again."""
    log.summary["dropped"] = dropped
    log.summary["num_dropped"] = dict(Counter(row["reason"] for row in dropped))
    log.write_summary()
    path = log.out / "tasks.parquet"
    with guard(path):
        write_tasks(path, {f"{n}/{part}": getattr(s, part) for n, s in splits.items() for part in PARTS})


def _note_engine(log: Run, engine: Engine) -> None:
    """What answers goes into the summary. Raises UserError where a resumed run would be answered by something else."""
    before = log.summary.setdefault("engine", engine.about)
    if before != engine.about:
        raise UserError(
            f"{log.out} was answered by {before}, and now it would be {engine.about}; bring that one back, or name another "
            "folder with --out"
        )


def _made_on(policy: Policy) -> dict[str, Any]:
    import torch

    device = str(policy.device)
    if policy.device.type == "cuda":
        device = torch.cuda.get_device_name(policy.device)
    return made_on(device=device, threads=torch.get_num_threads(), kernels=torch.backends.cpu.get_cpu_capability())


def _limit(recipe: Recipe, ledger: Ledger) -> Limit:
    return Limit(recipe.budget, lambda: costs.spent(ledger.as_dict(), recipe.costs))


def _run_stages(log: Run, tools: Tools, functions: vet.Rewards, limit: Limit) -> None:
    recipe, held = log.recipe, "base"  # whose weights the policy holds
    for stage in recipe.stages:
        if log.stage(stage.name).done is not None:
            continue
        if tools.stop_requested():
            break
        if (start := recipe.start_of(stage)) != held:
            with tools.ledger.phase("load"):
                _load(start, tools, log)
        if tools.policy is not None:  # what is answered bears the step of these weights, whoever loaded or trained them
            tools.engine.load(policy_step=0 if start == "base" else log.stage(start).last_step)
        give_back_memory()  # a cache of keys and a learner's tensors do not fit each other's holes
        try:
            _run_stage(stage, tools, log, functions)
        except Collapsed:  # what was undone is in the report, and why
            _tell(log)
            raise
        held = start if isinstance(stage, EvaluateStage) else stage.name
        _tell(log)
        if log.stage(stage.name).done is None:  # it was asked to stop, and has saved
            break
    log.summary["finished"] = all(log.stage(s.name).done is not None for s in recipe.stages)
    log.summary["stopped_by_budget"] = "" if log.summary["finished"] else limit.reached
    _tell(log)


def _run_stage(stage: Stage, tools: Tools, log: Run, functions: vet.Rewards) -> None:
    from strop import evaluate, sft, train

    match stage:
        case EvaluateStage():
            evaluate.run(stage, tools, log.stage(stage.name))
        case SftStage():
            sft.run(stage, tools, log.stage(stage.name))
        case TrainStage():
            start = log.recipe.start_of(stage)
            train.run(stage, tools, log.stage(stage.name), functions[stage.name], lambda: _load(start, tools, log))


# --- who holds the weights --------------------------------------------------------------------------------------------


def _check_teachers(recipe: Recipe, splits: Mapping[str, TaskSplits], policy: Policy, chat: Chat, watch: Watch) -> None:
    """Raises UserError for a teacher that cannot judge the student's tokens, before anything is written."""
    from strop import teacher

    for name, settings in targets.teachers(recipe).items():
        stage = next(s for s in recipe.stages if s.name == name)
        assert isinstance(stage, TrainStage)
        longest = vet.longest_prompt(recipe, stage, splits, chat) + stage.most_tokens
        teacher.check(teacher.outline(settings, watch.say), policy, stage.algorithm.teacher, longest)


def open_tools(
    recipe: Recipe,
    splits: dict[str, TaskSplits],
    scorer: rewards.Scorer,
    ledger: Ledger,
    watch: Watch,
    stop_requested: Callable[[], bool],
    stack: ExitStack,
) -> Tools:
    """What every stage is handed; the engine is the one that the recipe names, and a server started for it ends with `stack`."""

    def check(chat: Chat, num_places: int | None) -> None:
        vet.lengths(recipe, splits, chat, num_places)

    held = holder.hold(
        recipe.model, recipe.chat, recipe.engine, max_tokens=max(s.max_tokens for s in recipe.stages), watch=watch,
        stack=stack, check=check,
    )  # fmt: skip
    if held.policy is not None and held.chat is not None:
        vet.adapter(recipe, saved=held.policy.adapter is not None)
        _check_teachers(recipe, splits, held.policy, held.chat, watch)
    from strop.tools import Tools

    return Tools(
        recipe=recipe, policy=held.policy, chat=held.chat, engine=held.engine, scorer=scorer, splits=splits, ledger=ledger,
        watch=watch, teachers=targets.teachers(recipe), stop_requested=stop_requested,
        spent=lambda: costs.in_short(costs.spent(ledger.as_dict(), recipe.costs), recipe.costs, recipe.budget),
        spends=lambda of: _a_second(of, costs.spent(ledger.as_dict(), recipe.costs)),
    )  # fmt: skip


def _a_second(of: str, spent: costs.Spent) -> float:
    """What a second costs of what a `Budget` has, by what the run has spent so far."""
    known = {"seconds": spent.wall_s, "usd": spent.usd, "kwh": spent.kwh}[of]
    return (known or 0.0) / max(spent.wall_s, 1e-9)


def _load(start: str, tools: Tools, log: Run) -> None:
    """The weights that a stage left, or the model's own, into the policy."""
    assert tools.policy is not None, "a recipe that trains through a server is refused"
    if start == "base":
        _load_base(tools)
    else:
        tools.policy.load_weights(log.stage(start).final)


def _load_base(tools: Tools) -> None:
    """The weights of the model itself again, in the same policy. The old ones go first: there may be room for one model."""
    from strop import model as models

    policy = tools.policy
    assert policy is not None
    del policy.model, policy.adapter, policy.fused
    gc.collect()  # modules point at each other
    fresh = models.load(tools.recipe.model, tools.watch.say)
    policy.model, policy.adapter, policy.fused = fresh.model, fresh.adapter, fresh.fused


def _tell(log: Run) -> None:
    """The summary, what can be compared by now, and the report."""
    with nullcontext() if log.ledger is None else log.ledger.phase("report"):
        _write(log)


def _write(log: Run) -> None:
    finished = [s.name for s in log.recipe.stages if log.stage(s.name).done is not None]
    log.summary["comparisons"] = compare.within(log.recipe, log.out, finished)
    log.write_summary()
    page.run(log.out)


# --- before anything is written ---------------------------------------------------------------------------------------


def _read_splits(path: Path) -> dict[str, TaskSplits]:
    """The tasks a run began with: a resume learns and answers the same ones, whatever has become of their source."""
    found: dict[str, dict[str, list[Task]]] = {}
    for split, listed in read_tasks(path).items():
        name, _, part = split.rpartition("/")
        found.setdefault(name, {})[part] = listed
    return {
        name: TaskSplits(train=parts.get("train", []), dev=parts.get("dev", []), heldout=parts.get("heldout", []))
        for name, parts in found.items()
    }


def only(recipe: Recipe, kind: Kind, *, say: Say) -> Recipe:
    """The recipe with its stages of one kind; what they would have started from and is not run becomes the model itself."""
    stages = [s for s in recipe.stages if s.do == kind]
    if kind == "evaluate":  # they would all answer with the same model: once for each choice of tasks
        stages = list({tuple(s.tasks): s for s in stages}.values())
    if left_out := [s.name for s in stages if isinstance(s, SftStage) and s.wall_of is not None]:
        say(f"left out: {', '.join(left_out)}, whose time another stage would decide")
        stages = [s for s in stages if s.name not in left_out]
    if not stages:
        names = ", ".join(f"{s.name} ({s.do})" for s in recipe.stages)
        raise UserError(f"the recipe has no stage of the kind {kind!r} to run; it has {names}")
    kept = {"base", *(s.name for s in stages)}
    rewired = []
    for stage in stages:
        start = recipe.start_of(stage)
        if start not in kept:
            say(f"{stage.name} starts from the model itself, since {start} is not run here")
        rewired.append(stage.model_copy(update={"from_": start if start in kept else "base"}))
    return recipe.model_copy(update={"stages": rewired})


# --- a dry run --------------------------------------------------------------------------------------------------------


def check(recipe: Recipe, *, say: Say, recipe_dir: Path = Path()) -> dict[str, Any]:
    """Everything that can be refused without loading the model or fetching anything; what was and was not checked.

    Raises UserError like `run` does.
    """
    checked, unchecked = [], []
    functions = vet.load_rewards(recipe, recipe_dir)
    local = {name: spec for name, spec in recipe.tasks.items() if not _on_the_hub(spec)}
    splits = tasks.load(local, seed=recipe.seed, say=say)
    for name, split in splits.items():
        checked.append(f"tasks.{name}: " + ", ".join(f"{len(getattr(split, part))} {part}" for part in PARTS))
    missing = (
        "" if find_spec("datasets") else ", and the package that reads it is not installed (pip install 'strop[hub]')"
    )
    unchecked += [
        f"tasks.{n}: {s.source} is a Hugging Face id{missing}" for n, s in recipe.tasks.items() if n not in local
    ]
    vet.needs(recipe, splits)
    for stage, listed in vet.tried(functions, recipe, splits).items():
        checked.append(f"rewards of {stage}: " + ", ".join(f.name for f in listed))
    (checked if _model_is_here(recipe) else unchecked).append(f"model: {recipe.model.name}")
    for name, teacher in targets.teachers(recipe).items():
        from strop.teacher import is_here

        (checked if is_here(teacher) else unchecked).append(f"teacher of {name}: {teacher.name}")
    estimates = {s.name: _size(s, splits) for s in recipe.stages}
    for text in checked:
        say(f"checked      {text}")
    for text in unchecked:
        say(f"not checked  {text}; a dry run fetches nothing")
    for name, text in estimates.items():
        say(f"stage        {name}: {text}")
    return {"checked": checked, "not_checked": unchecked, "estimates": estimates}


def _model_is_here(recipe: Recipe) -> bool:
    """Whether the model could be looked at; a server at a URL is not asked."""
    if recipe.engine.at_url:
        return False
    from strop import model as models
    from strop.engine import vllm

    if recipe.engine.server:
        vllm.check()
    return models.check(recipe.model)


def _on_the_hub(spec: TaskSet) -> bool:
    if spec.source in benchmarks.BENCHMARKS:
        return benchmarks.local_file(spec.source, str(spec.settings.get("data", ""))) is None
    sources = [spec.source, str(spec.settings.get("heldout_source", ""))]
    known = [name for name in tasks.SOURCES if not name.endswith(":")]
    return any(
        source.count("/") == 1
        and source not in known
        and not source.endswith(files.SUFFIXES)
        and not Path(source).exists()
        for source in sources
    )


def _size(stage: Stage, splits: Mapping[str, TaskSplits]) -> str:
    """How much a stage will do, at most, in words."""
    if isinstance(stage, TrainStage):
        a_step = stage.prompts_per_step * stage.group_size
        total = stage.steps * a_step
        return (
            f"{stage.steps} steps of {stage.prompts_per_step} tasks x {stage.group_size} = {total:,} rollouts, "
            f"at most {total * stage.most_tokens:,} tokens sampled"
        )
    if isinstance(stage, SftStage):
        length = f"for the time of {stage.wall_of}" if stage.wall_of else f"at most {stage.max_steps} steps"
        return f"{length}, {stage.batch} worked solutions each"
    known = [len(splits[name].heldout) for name in stage.tasks if name in splits]
    num = "held-out" if len(known) < len(stage.tasks) else sum(known)
    return f"{num} tasks x {stage.greedy + stage.num_samples} answers of at most {stage.max_tokens} tokens"


# --- telling ----------------------------------------------------------------------------------------------------------


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """A summary for a person: accuracies by evaluation and task set (greedy where that was asked for, else the mean over
    samples), then a sentence for each comparison."""
    evaluations = {name: s for name, s in summary["stages"].items() if s["kind"] == "evaluate"}
    columns = list(dict.fromkeys(tasks for s in evaluations.values() for tasks in s["by_tasks"]))
    width = max((len(name) for name in evaluations), default=0)
    lines = [" " * width + "".join(f"  {tasks:>12}" for tasks in columns)] if columns else []
    for name, stage in evaluations.items():
        found = [stage["by_tasks"].get(tasks, {}) for tasks in columns]
        cells = [f.get("mean_acc") if f.get("greedy_acc") is None else f["greedy_acc"] for f in found]
        lines.append(
            name.ljust(width) + "".join(f"  {'' if acc is None else f'{100 * acc:.1f}%':>12}" for acc in cells)
        )
    found = summary["comparisons"]
    note = f"{len(found)} comparisons, not corrected for their number; strop compare corrects those it is asked for"
    cost = [costs.in_words(summary["costs"])] if summary.get("costs") else []
    return [*lines, *compare.lines(found), *([note] if len(found) > 1 else []), *cost]
