"""What is refused, and which tasks are left out, before a run writes anything.

Knows what each kind of stage needs of its tasks, its rewards and the model's context, so that a stage does not fail in
its turn, hours later. Drops what cannot be graded, and worked solutions that their own verifier does not accept, and
lists all of it. Read by pipeline alone; an error says which setting to change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from strop import rewards, schedule
from strop.chat import Budget, Chat
from strop.config import EvaluateStage, Recipe, SftStage, Stage, TrainStage
from strop.record import Task, UserError, replace
from strop.tasks import TaskSplits
from strop.tasks.benchmarks import BENCHMARKS
from strop.watch import Watch

__all__ = [
    "PARTS", "Dropped", "Rewards", "adapter", "gradable", "lengths", "load_rewards", "longest_prompt", "needs", "tried",
]  # fmt: skip

PARTS = ("train", "dev", "heldout")
WORKED = ("train", "dev")  # parts whose worked solutions an SFT stage reads: learns from, and watches its loss on
T = TypeVar("T")
CHUNK = 256  # tasks judged at once, so that progress is seen
Rewards = dict[str, list[rewards.Reward]]  # by train stage
Dropped = list[dict[str, str | None]]  # {"tasks", "id", "answer", "reason"}


# --- what a stage needs -----------------------------------------------------------------------------------------------


def needs(recipe: Recipe, splits: Mapping[str, TaskSplits]) -> None:
    """Raises UserError for a stage that would not find the tasks that it needs. Task sets not in `splits` are not looked at."""
    for stage in recipe.stages:
        for name in stage.tasks:
            if (source := recipe.tasks[name].source) in BENCHMARKS and not isinstance(stage, EvaluateStage):
                raise UserError(
                    f"stage {stage.name!r} would train on {name!r}, which is the benchmark {source}: training never reads "
                    "one; name another task set there"
                )
            if name in splits:  # a dry run cannot look at all of them
                others = {t.id for n in stage.tasks if n != name and n in splits for t in _drawn(stage, splits[n])}
                _needs(stage, name, splits[name], others)


def _needs(stage: Stage, name: str, split: TaskSplits, others: set[str]) -> None:
    """`others`: what the stage's other task sets train on, which this one cannot count on in the same step."""
    part = "heldout" if isinstance(stage, EvaluateStage) else "train"
    listed: list[Task] = getattr(split, part)
    if not listed:
        raise UserError(
            f"stage {stage.name!r} needs {part} tasks of {name!r}, and there are none; set tasks.{name}.{part}"
        )
    if isinstance(stage, SftStage) and not any(task.meta.get("solution") for task in listed):
        raise UserError(
            f"stage {stage.name!r} learns from worked solutions, and no training task of {name!r} has one that its "
            "verifier accepts; give the data a column `solution`, or train with rewards (do: train)"
        )
    if isinstance(stage, TrainStage) and not _drawn(stage, split):
        raise UserError(
            f"stage {stage.name!r} shows its teacher worked solutions (algorithm.teacher: {stage.algorithm.teacher}), and no "
            f"training task of {name!r} has one that its verifier accepts; give the data a column `solution`, or name a model "
            "as the teacher"
        )
    if not split.dev and (isinstance(stage, SftStage) or (isinstance(stage, TrainStage) and stage.heldout_every)):
        never = f", or stages.{stage.name}.heldout_every=0" if isinstance(stage, TrainStage) else ""
        raise UserError(
            f"stage {stage.name!r} watches the dev tasks of {name!r}, and there are none; set tasks.{name}.dev to 1 or "
            f"more{never}"
        )
    own = [task for task in _drawn(stage, split) if task.id not in others]
    if isinstance(stage, TrainStage) and len(own) < (num := _drawn_in_a_step(stage, name)):
        fits, apart = len(own) * stage.prompts_per_step // num, " in no other of its sets" if others else ""
        apart += " with a worked solution" if stage.algorithm.reads_solutions else ""
        raise UserError(
            f"stage {stage.name!r} draws {num} tasks of {name!r} in a step, and there are {len(own)}{apart}: one that comes "
            f"twice would bring the same rollouts twice; set stages.{stage.name}.prompts_per_step to {max(1, fits)} or "
            f"fewer, or tasks.{name}.train to {num} or more"
        )


def _drawn(stage: Stage, split: TaskSplits) -> list[Task]:
    """The training tasks of a set that the stage may learn from."""
    return schedule.pool(stage, split.train) if isinstance(stage, TrainStage) else split.train


def _drawn_in_a_step(stage: TrainStage, name: str) -> int:
    share = stage.tasks[name] / sum(stage.tasks.values())
    return math.ceil(share * stage.prompts_per_step - 1e-9)


def lengths(recipe: Recipe, splits: Mapping[str, TaskSplits], chat: Chat, num_places: int | None) -> None:
    """Raises UserError for a prompt above the recipe's limit, or a stage that could outgrow the model's context.

    `num_places` is the model's longest sequence in tokens; None where it has no such limit.
    """
    used = dict.fromkeys(name for stage in recipe.stages for name in stage.tasks)
    longest = {
        (name, part): chat.check_length(getattr(splits[name], part), recipe.engine.max_prompt_tokens)
        for name in used
        for part in PARTS
    }
    asked = {
        stage.name: longest_prompt(recipe, stage, splits, chat)
        for stage in recipe.stages
        if isinstance(stage, TrainStage) and stage.budget.tokens is not None
    }
    if num_places is None:
        return
    for stage in recipe.stages:
        parts = {"evaluate": ("heldout",), "sft": ("dev",), "train": ("train", "dev")}[stage.do]
        prompt = max(asked.get(stage.name, 0), *(longest[name, part] for name in stage.tasks for part in parts))
        limit = stage.most_tokens if isinstance(stage, TrainStage) else stage.max_tokens
        if prompt + limit > num_places:
            key = "max_tokens" if limit == stage.max_tokens else "moves.limits"
            raise UserError(
                f"stage {stage.name!r} may need {prompt + limit} tokens (its longest prompt has {prompt}), and "
                f"the model has places for {num_places}; set stages.{stage.name}.{key} to {num_places - prompt} or fewer"
            )
        _hinted_lengths(stage, splits, chat, num_places)
        for task, solution in _with_solution(stage, splits):
            if (length := len(chat.worked_example(task, solution=solution).token_ids)) > num_places:
                raise UserError(
                    f"stage {stage.name!r} learns from the worked solution of task {task.id}, which has {length} tokens "
                    f"with its prompt, and the model has places for {num_places}; shorten it or leave it out"
                )


def longest_prompt(recipe: Recipe, stage: TrainStage, splits: Mapping[str, TaskSplits], chat: Chat) -> int:
    """Tokens of the longest prompt that a stage samples from, with the length it asks for. Raises UserError as `lengths`."""
    limit, budget = recipe.engine.max_prompt_tokens, _wordiest(stage, chat)
    return max(chat.check_length(splits[name].train, limit, budget) for name in stage.tasks)


def _hinted_lengths(stage: Stage, splits: Mapping[str, TaskSplits], chat: Chat, num_places: int) -> None:
    """Raises UserError where a teacher that is shown worked solutions would need more places than the model has."""
    if not isinstance(stage, TrainStage) or not stage.algorithm.reads_solutions:
        return
    budget = _wordiest(stage, chat)
    for task in (task for name in stage.tasks for task in _drawn(stage, splits[name])):
        if (needed := len(chat.encode_hinted(task, budget)) + stage.most_tokens) > num_places:
            raise UserError(
                f"stage {stage.name!r} shows its teacher the worked solution of task {task.id}, which may need {needed} tokens "
                f"with the longest completion, and the model has places for {num_places}; shorten the solution, leave the task "
                "out, or lower the limit"
            )


def adapter(recipe: Recipe, *, saved: bool) -> None:
    """Raises UserError where all weights would be trained of a model that comes with an adapter (`saved`)."""
    trained = [s.name for s in recipe.stages if not isinstance(s, EvaluateStage)]
    if saved and trained and not recipe.model.lora.rank:
        raise UserError(
            f"stage {trained[0]!r} would train all weights, and model.name={recipe.model.name} is an adapter; set "
            "model.lora.rank and model.lora.alpha to its own to train it further, or merge it into its base"
        )


def _wordiest(stage: TrainStage, chat: Chat) -> Budget | None:
    """The length to ask for that takes most tokens to say. A round number may take fewer than those before it."""
    if stage.budget.tokens is None:
        return None
    low, high = stage.budget.tokens
    last = [Budget(tokens=num, mode=stage.budget.mode) for num in range(max(low, high - 9), high + 1)]
    return max(last, key=lambda budget: len(chat.encode_prompt("", budget)))


def _with_solution(stage: Stage, splits: Mapping[str, TaskSplits]) -> list[tuple[Task, str]]:
    """The worked solutions that an SFT stage learns from, or watches its loss on; none for another stage."""
    names = stage.tasks if isinstance(stage, SftStage) else ()
    return [(t, solution) for n in names for t in (*splits[n].train, *splits[n].dev) for solution in t.solutions]


# --- rewards ----------------------------------------------------------------------------------------------------------


def load_rewards(recipe: Recipe, recipe_dir: Path) -> Rewards:
    """The reward functions of every train stage."""
    return {
        s.name: rewards.load_rewards(s.rewards, recipe_dir, max_tokens=s.most_tokens)
        for s in recipe.stages
        if isinstance(s, TrainStage)
    }


def tried(functions: Rewards, recipe: Recipe, splits: Mapping[str, TaskSplits]) -> Rewards:
    """The same, each called once on a task: one that fails does so before the first hour is spent."""
    examples = {
        stage.name: next((splits[name].train[0] for name in stage.tasks if name in splits), None)
        for stage in recipe.stages
        if isinstance(stage, TrainStage)
    }
    return {
        name: [f if (task := examples[name]) is None else rewards.try_reward(f, task) for f in listed]
        for name, listed in functions.items()
    }


# --- what is left out -------------------------------------------------------------------------------------------------


def gradable(
    recipe: Recipe, splits: Mapping[str, TaskSplits], scorer: rewards.Scorer, watch: Watch
) -> tuple[dict[str, TaskSplits], Dropped]:
    """The splits without what cannot be trusted, and a list of all that was dropped, rows of files included.

    A task whose own answer is not graded as correct goes: it could never be scored right. A worked solution that an
    SFT stage would learn from, or a teacher be shown, and that its task's verifier does not judge correct goes, and its task stays.
    """
    rows: Dropped = [
        {"tasks": name, "id": id, "answer": None, "reason": reason}
        for name, split in splits.items()
        for reason, ids in split.dropped.items()
        for id in ids
    ]
    splits, ungradable = _with_gradable_gold(splits, scorer, watch)
    splits, unlearnable = _with_verified_solutions(recipe, splits, scorer, watch)
    return splits, rows + ungradable + unlearnable


def _with_gradable_gold(
    splits: Mapping[str, TaskSplits], scorer: rewards.Scorer, watch: Watch
) -> tuple[dict[str, TaskSplits], Dropped]:
    every = {t.id: (name, t) for name, split in splits.items() for part in PARTS for t in getattr(split, part)}
    dropped: Dropped = []
    with watch.phase("checking that gold answers can be graded", len(every), "tasks") as bar:
        for chunk in _chunks([task for _, task in every.values()]):
            for task, verdict in rewards.check_gold(chunk, scorer)[1]:
                dropped.append(_row(every[task.id][0], task, verdict.reason.value))
            bar.advance(len(chunk))
    if dropped:
        watch.say(f"dropped {len(dropped)} tasks whose own answer cannot be graded, such as {_some(dropped)}")
    gone = {row["id"] for row in dropped}
    return {
        name: replace(split, **{part: [t for t in getattr(split, part) if t.id not in gone] for part in PARTS})
        for name, split in splits.items()
    }, dropped


def _with_verified_solutions(
    recipe: Recipe, splits: Mapping[str, TaskSplits], scorer: rewards.Scorer, watch: Watch
) -> tuple[dict[str, TaskSplits], Dropped]:
    learned = dict.fromkeys(name for stage in recipe.stages if _reads_solutions(stage) for name in stage.tasks)
    given = [
        (name, task, solution)
        for name in learned
        for part in WORKED
        for task in getattr(splits[name], part)
        for solution in task.solutions
    ]
    gone: dict[tuple[str, str], set[str]] = {}  # by task set and task, as a task may be in two sets
    dropped: Dropped = []
    with watch.phase("checking worked solutions", len(given), "solutions") as bar:
        for chunk in _chunks(given):
            verdicts = scorer.verify([(task, solution) for _, task, solution in chunk])
            for (name, task, solution), verdict in zip(chunk, verdicts, strict=True):
                if not verdict.correct:
                    dropped.append(_row(name, task, f"solution_{verdict.reason.value}"))
                    gone.setdefault((name, task.id), set()).add(solution)
            bar.advance(len(chunk))
    if not dropped:
        return dict(splits), dropped
    watch.say(f"dropped {len(dropped)} worked solutions that are not judged correct, such as {_some(dropped)}")
    return {
        name: replace(
            split, **{p: [_without(t, gone.get((name, t.id), set())) for t in getattr(split, p)] for p in WORKED}
        )
        for name, split in splits.items()
    }, dropped


def _reads_solutions(stage: Stage) -> bool:
    return isinstance(stage, SftStage) or (isinstance(stage, TrainStage) and stage.algorithm.reads_solutions)


def _without(task: Task, wrong: set[str]) -> Task:
    """The task without these of its worked solutions."""
    if not wrong:
        return task
    right = [solution for solution in task.solutions if solution not in wrong]
    meta = {key: value for key, value in task.meta.items() if key not in ("solution", "solutions")}
    several = {"solutions": right} if len(right) > 1 else {}
    return replace(task, meta=meta | ({"solution": right[0]} if right else {}) | several)


def _chunks(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


def _row(tasks: str, task: Task, reason: str) -> dict[str, str | None]:
    return {"tasks": tasks, "id": task.id, "answer": task.answer, "reason": reason}


def _some(dropped: Dropped) -> str:
    return "; ".join(f"{row['answer']!r} ({row['reason']})" for row in dropped[:3]) + "; summary.json lists them"
