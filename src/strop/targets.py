"""From what `strop eval NAME... --model M` or `strop distill NAME... --teacher M` was typed with to a recipe.

Knows what a name may be (a benchmark, a file, `gym:<family>`, a generator) and which weights, model settings and chat a
trained run stands for, also where a stage names its teacher. The recipe it makes is run, reported and compared like any
other. Read by the command line and the pipeline.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.config import Chat, EvaluateStage, Lora, Model, Recipe, TrainStage, load_recipe, nearest, parse_recipe
from strop.record import UserError
from strop.run import Run
from strop.tasks import SOURCES, files
from strop.tasks.benchmarks import BENCHMARKS

__all__ = ["Trained", "default_out", "distillation", "only_recipe", "recipe", "table", "teachers", "trained"]

DEFAULTS = {"max_tokens": 1024}
SAMPLED = {"temperature": 0.6, "top_p": 0.95}  # where samples are asked for
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
PROGRAM_SYSTEM = (
    "Please reason step by step, and put your final program in one ```python block."  # where programs are asked for
)
MAX_PROMPT_TOKENS = 4096  # the longest problem of MATH-500 has about 1,000, in any tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A model as `--model` names it."""

    label: str  # for the run directory
    model: Mapping[str, Any]  # the recipe's section
    chat: Mapping[str, Any] | None  # that of the run it was trained in; None for a model from elsewhere


def only_recipe(targets: Sequence[str], options: Mapping[str, Any]) -> Path | None:
    """The recipe that is the only target; None where tasks are named, or nothing.

    Raises UserError where one of the options (None: not typed) says beside it what the recipe says itself.
    """
    if len(targets) != 1 or not targets[0].endswith((".yaml", ".yml")):
        return None
    for name, value in options.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is for tasks by name; {targets[0]} says so itself: leave it out, or use --set")
    return Path(targets[0])


def recipe(
    targets: Sequence[str], model: Trained, *, stage: Mapping[str, Any], data: str | None = None, limit: int | None = None,
    system: str | None = None, overrides: Sequence[str] = (), say: Callable[[str], None] = lambda _: None,
) -> Recipe:  # fmt: skip
    """One evaluate stage called `eval` over the named task sets, none of which trains anything.

    `stage` holds that stage's keys (None: the default); `system` None is the run's own prompt, else that of the tasks. Raises UserError
    for no target, one that is nothing of the kind, two of one name, and what a recipe refuses.
    """
    if not targets:
        raise UserError(
            "name what is to be answered, for example strop eval math_500; strop eval --list has the benchmarks"
        )
    asked = {key: value for key, value in stage.items() if value is not None}
    sets: dict[str, dict[str, Any]] = {}
    for target in targets:
        name, spec = _task_set(target, data)
        if name in sets:
            raise UserError(
                f"two targets are called {name!r} ({', '.join(targets)}): evaluate them one after the other"
            )
        sets[name] = spec | {"train": 0, "dev": 0, "heldout": limit}
    chat = dict(model.chat if model.chat is not None else {"system": _system(sets)})
    if system is not None:
        if model.chat is not None and system != chat["system"]:
            say(
                f"{model.label} was trained with another system prompt ({chat['system']!r}): this measures that change too"
            )
        chat["system"] = system
    sampled = SAMPLED if asked.get("samples") else {}
    made = {
        "model": model.model, "chat": chat, "tasks": sets,
        "stages": [{"name": "eval", "do": "evaluate", "tasks": list(sets), **(DEFAULTS | sampled | asked)}],
        "engine": {"max_prompt_tokens": MAX_PROMPT_TOKENS},
    }  # fmt: skip
    return parse_recipe(made, where="strop eval", overrides=overrides)


def _system(sets: Mapping[str, Mapping[str, Any]]) -> str:
    known = [BENCHMARKS.get(spec["source"]) for spec in sets.values()]
    return PROGRAM_SYSTEM if all(b is not None and b.verifier == "code" for b in known) else SYSTEM


def _task_set(target: str, data: str | None) -> tuple[str, dict[str, Any]]:
    """The name and the source of a target; `knights_knaves:5` is its puzzles with 5 people."""
    name, colon, part = target.partition(":")
    if name in BENCHMARKS:
        settings: dict[str, Any] = {"data": data} if data else {}
        if colon:
            if not part.isdigit():
                raise UserError(f"{target}: behind the colon is a number of people, for example knights_knaves:5")
            settings["people"] = int(part)
        return target.replace(":", "_"), {"source": name, "settings": settings}
    if name + colon in SOURCES:
        return part or name, {"source": target}
    if (Path(target) / "recipe.yaml").is_file():
        raise UserError(
            f"{target} is a run: name what it is to answer, for example strop eval math_500 --model {target}"
        )
    if files.looks_like_data(target):
        return Path(target).name.partition(".")[0], {"source": target}
    raise UserError(
        f"{target!r} is no recipe (.yaml), file that exists or benchmark{nearest(target, BENCHMARKS)}; strop eval --list "
        "tells of them"
    )


# --- a teacher --------------------------------------------------------------------------------------------------------


def distillation(
    targets: Sequence[str], teacher: str, *, stage: Mapping[str, Any], teacher_model: str | None = None,
    only: Sequence[str] = (), limit: int | None = None, overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Recipe:  # fmt: skip
    """What `distill.run` carries out: the task sets of a recipe, or named ones, and one stage that samples the teacher.

    `only` are those of the task sets to ask, `limit` the most training tasks of each. All sets of a recipe stay in it, so
    that what any of them holds out is asked in none. The teacher is a URL, `solver`, or a model as `trained` reads it.
    """
    from strop.distill import SOLVER, STAGE  # knows torch, as `_main_stage` says

    sampled = {key: value for key, value in stage.items() if value is not None}
    if teacher == SOLVER and sampled:
        option = "--" + next(iter(sampled)).replace("_", "-")
        raise UserError(f"{option} has no effect with a solver, which writes one solution of each task; leave it out")
    made, chat = _asked(targets)
    sets = made["tasks"]
    for spec in sets.values():
        if limit is not None and spec["source"] not in BENCHMARKS:
            spec["train"] = limit if spec.get("train") is None else min(limit, spec["train"])
    asked = list(only) or [n for n, spec in sets.items() if spec["source"] not in BENCHMARKS and spec.get("train") != 0]
    for name in asked or sets:
        if name not in sets:
            raise UserError(f"--tasks {name}: {name!r} is no task set{nearest(name, sets)}")
        if sets[name]["source"] in BENCHMARKS:
            raise UserError(
                f"{name} is the benchmark {sets[name]['source']}, and training never reads one; name other tasks"
            )
    if not asked:
        raise UserError("no task set has training tasks, and a teacher is asked no others; set tasks.<name>.train")
    sampling = {"samples": 1 if teacher == SOLVER else 4, **DEFAULTS, **SAMPLED, **sampled}
    made |= _teacher(teacher, teacher_model, chat, made["engine"], say)
    made["stages"] = [{"name": STAGE, "do": "evaluate", "tasks": asked, "greedy": False, **sampling}]
    recipe = parse_recipe(made, where="strop distill", overrides=overrides)
    if teacher == SOLVER and recipe.budget is not None:
        raise UserError("--budget has no effect with a solver, which takes seconds; leave it out")
    return recipe


def _asked(targets: Sequence[str]) -> tuple[dict[str, Any], Chat | None]:
    """The recipe without model and stages, and its chat; None where tasks are named."""
    if (path := only_recipe(targets, {})) is not None:
        base = load_recipe(path)
        engine = base.engine.model_dump() | {"server": ""}
        made = {"seed": base.seed, "engine": engine, "checks": base.checks.model_dump()}
        return made | {"tasks": {name: spec.model_dump() for name, spec in base.tasks.items()}}, base.chat
    if not targets:
        raise UserError("name what the teacher is to answer: a recipe, task files, or generators such as arithmetic")
    sets = dict(_task_set(target, None) for target in targets)
    for spec in sets.values():
        if files.looks_like_data(spec["source"]):  # a file is asked whole; a generator holds out as it does anywhere
            spec |= {"heldout": 0, "dev": 0}
    return {"engine": {"max_prompt_tokens": MAX_PROMPT_TOKENS}, "tasks": sets}, None


def _teacher(
    name: str, model: str | None, chat: Chat | None, engine: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """The recipe's model, chat and engine for a teacher; it gets the student's system prompt, in a template of its own."""
    prompts = chat.model_dump() | {"template": None} if chat is not None else {"system": SYSTEM}
    if name.startswith(("http://", "https://")):
        if prompts.get("prefill"):
            say(f"chat.prefill is left out: {name} applies a template of its own")
        found = {"name": model} if model else {}
        return {"model": found, "chat": prompts | {"prefill": ""}, "engine": {**engine, "server": name}}
    if model is not None:
        raise UserError(f"--teacher-model is for a URL that serves several models; {name} is none, so leave it out")
    of = trained(name)
    return {"model": of.model, "chat": prompts if of.chat is None else of.chat, "engine": engine}


# --- the model --------------------------------------------------------------------------------------------------------


def trained(name: str | None) -> Trained:
    """A folder, a Hugging Face id, or RUN or RUN:STAGE: the weights of that stage with its run's model settings and chat.

    RUN alone is what its main stage made. None is the recipe's default model. Raises UserError for a run that has no such
    weights.
    """
    run, _, stage = (name or "").rpartition(":") if not Path(name or "").is_dir() else (name or "", "", "")
    if not (Path(run) / "recipe.yaml").is_file() or not run:
        return Trained(label=_label(name or "base"), model={"name": name} if name else {}, chat=None)
    log = Run.read(Path(run))
    known = [s.name for s in log.recipe.stages if not isinstance(s, EvaluateStage)]
    stage = stage or _main_stage(log.recipe)
    settings = log.recipe.model.model_dump(mode="json")
    if stage != "base":
        if stage not in known:
            raise UserError(f"{name}: the run trains no stage {stage!r}{nearest(stage, [*known, 'base'])}")
        settings["name"] = str(log.stage(stage).final)
    else:
        settings["lora"]["rank"] = 0  # an adapter that has learned nothing would only cost time
    return Trained(
        label=_label(f"{Path(run).resolve().name}-{stage}"), model=settings, chat=log.recipe.chat.model_dump()
    )


def teachers(recipe: Recipe) -> dict[str, Model]:
    """By train stage: the model that its teacher is, loaded as the student is. Raises UserError as `trained` does, and for
    an adapter, since a teacher's tokens are compared with the student's before any weights are read."""
    found: dict[str, Model] = {}
    for stage in recipe.stages:
        if isinstance(stage, TrainStage) and stage.algorithm.teacher and not stage.algorithm.reads_solutions:
            name = trained(stage.algorithm.teacher).model["name"]
            if (Path(name) / "adapter_config.json").is_file():
                raise UserError(
                    f"stage {stage.name!r}: its teacher {stage.algorithm.teacher} is a LoRA adapter, which is no whole model; "
                    "merge it into its base, or name another teacher"
                )
            found[stage.name] = recipe.model.model_copy(update={"name": name, "lora": Lora()})
    return found


def _main_stage(recipe: Recipe) -> str:
    from strop.solve import line  # knows torch, which --help and --list do without

    return next(iter(reversed(line(recipe))), "base")


def _label(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(name).name)


def default_out(recipe: Recipe, label: str) -> Path:
    """runs/eval-<model>-<task sets>, of bearable length."""
    names = list(recipe.tasks)
    listed = "-".join(names) if len(names) <= 3 else f"{names[0]}-and-{len(names) - 1}-more"
    return Path("runs") / f"eval-{label}-{listed}"


# --- what there is ----------------------------------------------------------------------------------------------------


def table() -> list[str]:
    """The benchmarks by name, a line each."""
    rows = [("name", "problems", "hash", "answers", "licence", "source, and the Hugging Face id")]
    for name, b in BENCHMARKS.items():
        hub = "" if b.hub is None else f"; {b.hub.id}" + (f" ({b.hub.rows})" if b.hub.rows != b.rows else "")
        rows.append((name, str(b.rows), b.hash, b.answers, b.licence, b.source + hub))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
