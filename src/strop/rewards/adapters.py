"""Reward functions by name: our own, and plain Python functions written for TRL (or verl), unchanged.

Knows how a function is found, which arguments it is given and what it may return. A TRL function is called by
keyword with lists, one entry a rollout, and gets only the names it accepts (all of them if it takes `**kwargs`):

    prompts, completions, completion_ids    the problem, the answer's text, the tokens that were sampled
    answer, and every key of Task.meta      as columns; None where a task has no such key
    trainer_state, log_extra, log_metric    a step number; the two loggers accept anything and keep nothing

It returns one number a rollout, or None where it does not apply; it may be a coroutine function. What a user's
function does wrong is the user's mistake: one sentence with its name.

Our own take all judged rollouts of a step, since some compare siblings (`rollout.group`), and their settings.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import numbers
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from strop.config import RewardSpec, Section
from strop.record import Reason, Rollout, Task, UserError, Verdict
from strop.rewards import language, length, shaping
from strop.settings import NoSettings, check_settings

__all__ = ["DENSE", "OWN", "Reward", "load_function", "load_rewards", "load_verifier", "try_reward"]

RESERVED = {"overlong"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """One term of the reward: `weight * value`, the value of each rollout from `values`."""

    name: str
    weight: float
    function: Callable[..., Any]
    style: Literal["own", "trl", "messages", "verl"] = "own"  # how `function` is called
    tokens: Callable[[Rollout], np.ndarray] | None = (
        None  # [L], where in a completion its value is earned; they add up to it
    )

    def values(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """The function's value for each rollout; None where it does not apply. Raises UserError naming the function."""
        if self.style == "own":
            return self.function(rollouts)
        if self.style == "verl":
            returned = [self._call(_verl_arguments(rollout, self.function)) for rollout in rollouts]
            returned = [
                value["score"] if isinstance(value, Mapping) and "score" in value else value for value in returned
            ]
        else:
            returned = self._call(_trl_arguments(rollouts, self.function, messages=self.style == "messages"))
        return _checked(returned, len(rollouts), self.name)

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        try:
            returned = self.function(**arguments)
            if inspect.isawaitable(returned):
                with ThreadPoolExecutor(1) as thread:  # a loop may be running here already, as in a notebook
                    returned = thread.submit(asyncio.run, _awaited(returned)).result()
            return returned
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(line.filename).name}, line {line.lineno}"
            raise UserError(
                f"the reward function {self.name} raised {type(error).__name__}: {error} ({where})"
            ) from error


def accuracy(rollouts: Sequence[Rollout], settings: NoSettings) -> list[float | None]:
    """1.0 where the verdict is right, 0.0 where it is wrong, None where there is none."""
    return [float(rollout.correct) if rollout.scorable else None for rollout in rollouts]


# One line a reward: a function from all judged rollouts of a step and its settings to a value each, and those settings.
OWN: dict[str, tuple[Callable[[Sequence[Rollout], Any], list[float | None]], type[Section]]] = {
    "accuracy": (accuracy, NoSettings),
    "format": (shaping.format_, NoSettings),
    "tags": (shaping.tags, NoSettings),
    "cosine": (length.cosine, length.CosineSettings),
    "lcpo_exact": (length.lcpo_exact, length.LcpoExactSettings),
    "lcpo_max": (length.lcpo_max, length.LcpoMaxSettings),
    "kimi": (length.kimi, NoSettings),
    "short_rl": (length.short_rl, length.ShortRlSettings),
    "lead": (length.lead, length.LeadSettings),
    "sigmoid": (length.sigmoid, length.SigmoidSettings),
    "repetition": (shaping.repetition, shaping.RepetitionSettings),
    "language": (language.language, language.LanguageSettings),
}


# Rewards that know which token earns what: a function from one rollout to [L], whose sum is the value, and its settings.
DENSE: dict[str, tuple[Callable[[Rollout, Any], np.ndarray], type[Section]]] = {
    "repetition_dense": (shaping.repetition_dense, shaping.RepetitionDenseSettings),
}


def load_rewards(
    specs: Sequence[RewardSpec], folder: Path | None = None, *, max_tokens: int | None = None
) -> list[Reward]:
    """The reward functions that a recipe names; files are looked up in `folder` (the recipe's), then here.

    `max_tokens` is the stage's token limit, for settings that leave theirs to it. Raises UserError for a name that is
    neither ours nor importable or that occurs twice, and for settings that the reward refuses.
    """
    rewards: list[Reward] = []
    for spec in specs:
        if spec.name in RESERVED or any(reward.name == spec.name for reward in rewards):
            why = "is written by algorithm.overlong_buffer_tokens" if spec.name in RESERVED else "is named twice"
            raise UserError(f"rewards: {spec.name} {why}; leave it out")
        if spec.name in OWN:
            rewards.append(Reward(name=spec.name, weight=spec.weight, function=_own(spec, max_tokens)))
            continue
        if spec.name in DENSE:
            rewards.append(_dense(spec))
            continue
        if spec.settings:
            raise UserError(
                f"rewards.{spec.name} is a function of yours and takes no settings; write them into its file"
            )
        function = load_function(spec.name, folder)
        rewards.append(Reward(name=spec.name, weight=spec.weight, function=function, style=_style(function)))
    return rewards


def _own(spec: RewardSpec, max_tokens: int | None) -> Callable[[Sequence[Rollout]], list[float | None]]:
    function, section = OWN[spec.name]
    settings = check_settings(section, spec.settings, f"rewards.{spec.name}")
    if getattr(settings, "max_tokens", 0) is None:
        if max_tokens is None:
            raise UserError(f"rewards.{spec.name} is used outside a stage: set settings.max_tokens")
        settings = settings.model_copy(update={"max_tokens": max_tokens})
    return lambda rollouts: function(rollouts, settings)


def _dense(spec: RewardSpec) -> Reward:
    function, section = DENSE[spec.name]
    settings = check_settings(section, spec.settings, f"rewards.{spec.name}")

    def tokens(rollout: Rollout) -> np.ndarray:
        return function(rollout, settings)

    def values(rollouts: Sequence[Rollout]) -> list[float | None]:
        return [float(tokens(rollout).sum()) for rollout in rollouts]

    return Reward(name=spec.name, weight=spec.weight, function=values, tokens=tokens)


def try_reward(reward: Reward, task: Task) -> Reward:
    """Call a user's function once on the right answer to one task, before anything is spent on sampling.

    Returns the reward as it can be called: a function that fails on texts and works on lists of messages gets those
    from then on. Raises UserError as `Reward.values` does.
    """
    if reward.style == "own":
        return reward
    rollout = _answered(task, f"\\boxed{{{task.answer}}}")
    try:
        reward.values([rollout])
        return reward
    except UserError as error:
        other = replace(reward, style="messages")
        if reward.style != "trl" or not isinstance(error.__cause__, TypeError | AttributeError | KeyError | IndexError):
            raise
        try:
            other.values([rollout])
        except UserError:
            raise error from error.__cause__
        return other


def _answered(task: Task, text: str) -> Rollout:
    """A rollout of two tokens that says `text`."""
    sampled = np.array([False, True])
    return Rollout(
        task=task, group=0, sample=0, token_ids=np.zeros(2, np.int32), sampled=sampled, trained=sampled, text=text
    )


def load_verifier(path: str) -> Callable[[Task, str], Verdict]:
    """What judges with the function at `path`: a verifier, f(task, text), or a reward function of any style we know.

    A reward function's value stands in the verdict's `extracted`, and what is above zero is `correct`.
    """
    function = load_function(path)
    if list(_parameters(function))[:2] == ["task", "text"]:
        return function
    reward, tried = Reward(name=path, weight=1.0, function=function, style=_style(function)), False

    def verify(task: Task, text: str) -> Verdict:
        nonlocal reward, tried
        if not tried:
            reward, tried = try_reward(reward, task), True
        value = reward.values([_answered(task, text)])[0]
        reason = Reason.NO_ANSWER if value is None else Reason.CORRECT if value > 0 else Reason.WRONG
        return Verdict(
            correct=reason is Reason.CORRECT, extracted=None if value is None else repr(value), reason=reason
        )

    return verify


def load_function(path: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function at `package.module.function` or `file.py:function`. Raises UserError that says what is missing."""
    file, colon, name = path.rpartition(":")
    if colon and file.endswith(".py"):
        module = _load_file(path, file, folder)
    elif "." in path and not colon:
        name = path.rpartition(".")[2]
        module = _load_module(path, path.rpartition(".")[0], folder)
    else:
        raise UserError(
            f"there is no reward {path!r}; write {', '.join((*OWN, *DENSE))}, package.module.function or file.py:function"
        )
    function = getattr(module, name, None)
    if not callable(function):
        public = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise UserError(f"{path}: there is no function {name!r} there; it has {', '.join(public) or 'none'}")
    return function


def _load_file(path: str, file: str, folder: Path | None) -> Any:
    places = [root / file for root in (folder, Path.cwd()) if root is not None]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"{path}: there is no file {' or '.join(dict.fromkeys(map(str, places)))}")
    name = f"strop_user_{found.stem}_{abs(hash(found.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, found)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    _execute(lambda: spec.loader.exec_module(module), path)  # type: ignore[union-attr]
    return module


def _load_module(path: str, name: str, folder: Path | None) -> Any:
    """Import a module that is installed, or lies beside the recipe or here (a console script does not look here)."""
    for place in (folder, Path.cwd()):
        if place is not None and str(place.resolve()) not in sys.path:
            sys.path.append(str(place.resolve()))
    return _execute(lambda: importlib.import_module(name), path)


def _execute(load: Callable[[], Any], path: str) -> Any:
    try:
        return load()
    except Exception as error:
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error


# --- how foreign functions are called ---------------------------------------------------------------------------------


def _style(function: Callable[..., Any]) -> Literal["trl", "verl"]:
    """verl's compute_score takes one `solution_str` and its `ground_truth`; everything else is taken for TRL's."""
    return "verl" if {"solution_str", "ground_truth"} <= set(_parameters(function)) else "trl"


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _trl_arguments(rollouts: Sequence[Rollout], function: Callable[..., Any], messages: bool) -> dict[str, Any]:
    offered: dict[str, Any] = {
        key: [r.task.meta.get(key) for r in rollouts] for key in sorted({k for r in rollouts for k in r.task.meta})
    }
    prompts, texts = [r.task.prompt for r in rollouts], [r.text for r in rollouts]
    offered |= {
        "answer": [r.task.answer for r in rollouts],
        "prompts": [[{"role": "user", "content": p}] for p in prompts] if messages else prompts,
        "completions": [[{"role": "assistant", "content": t}] for t in texts] if messages else texts,
        "completion_ids": [r.token_ids[r.sampled].tolist() for r in rollouts],
        "trainer_state": SimpleNamespace(global_step=max((r.policy_step[1] for r in rollouts), default=0)),
        "log_extra": _ignore,
        "log_metric": _ignore,
    }
    return _accepted(function, offered)


def _verl_arguments(rollout: Rollout, function: Callable[..., Any]) -> dict[str, Any]:
    task = rollout.task
    return _accepted(
        function,
        {
            "data_source": task.source,
            "solution_str": rollout.text,
            "ground_truth": task.answer,
            "extra_info": dict(task.meta),
        },
    )


def _accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """What of `offered` the function takes. Raises UserError where it demands something else."""
    parameters = _parameters(function)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        accepted = dict(offered)
    else:
        accepted = {key: value for key, value in offered.items() if key in parameters}
    for name, parameter in parameters.items():
        variadic = parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        if name not in accepted and parameter.default is inspect.Parameter.empty and not variadic:
            known = ", ".join(key for key in offered if not key.startswith("log_"))
            called = getattr(function, "__name__", type(function).__name__)
            raise UserError(f"the reward function {called} wants {name!r}, and these tasks have {known}")
    return accepted


def _checked(returned: Any, num: int, name: str) -> list[float | None]:
    """The returned values as floats. NaN is TRL's None."""
    if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
        raise UserError(f"the reward function {name} returned {_shown(returned)}, not a list of {num} numbers")
    if len(returned) != num:
        raise UserError(f"the reward function {name} returned {len(returned)} values for {num} completions")
    values: list[float | None] = []
    for value in returned:
        value = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
        if value is not None and (not isinstance(value, numbers.Real) or math.isinf(value)):
            raise UserError(f"the reward function {name} returned {_shown(value)} where a number or None is wanted")
        values.append(None if value is None or math.isnan(value) else float(value))
    return values


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:80]


def _ignore(*_args: Any, **_kwargs: Any) -> None:
    return None


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
