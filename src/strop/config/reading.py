"""From YAML and `--set` to a recipe, or one sentence that says which key is wrong and what it may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from strop.config.recipe import Recipe
from strop.config.section import nearest
from strop.config.stages import EvaluateStage, SftStage, StageBase, TrainStage
from strop.record import UserError

__all__ = ["load_recipe", "parse_recipe"]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from YAML with `a.b=c` overrides. Stages are addressed by name: `stages.rl.steps=20`.

    Raises UserError with the file, the key and the nearest known key.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no recipe at {path}; the repository's own are in recipes/") from None
    except IsADirectoryError:
        raise UserError(
            f"{path} is a folder; to go on with a run, type the recipe it began with: strop run RECIPE --out {path} --resume"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no mapping of recipe keys; see recipes/quickstart.yaml")
    return parse_recipe(data, where=str(path), overrides=overrides)


def parse_recipe(data: dict[str, Any], where: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of a mapping, which the overrides change. Raises UserError as `load_recipe` does."""
    for override in overrides:
        _apply(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error, data)}") from None


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as key.subkey=value, for example --set seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(value, str) and (number := _as_float(value)) is not None:
        value = number  # YAML 1.1 reads 1e-5 as a string
    node: Any = data
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        node = _child(node, part, override, create=depth > 0 or part in Recipe.model_fields)
    if isinstance(node, list):
        index = _index(node, last, override)
        node[index] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--set {override}: {'.'.join(parents)} is a value, not a section")


def _child(node: Any, part: str, override: str, create: bool) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if not isinstance(node, dict):
        raise UserError(f"--set {override}: {part!r} lies below a value, not a section")
    if node.get(part) is None:
        if not create:
            raise UserError(f"--set {override}: the recipe has no section {part!r}{nearest(part, Recipe.model_fields)}")
        node[part] = {}
    return node[part]


def _index(items: list[Any], part: str, override: str) -> int:
    names = [item.get("name", "") if isinstance(item, dict) else "" for item in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise UserError(
        f"--set {override}: no entry {part!r}{nearest(part, [n for n in names if n] or map(str, range(len(items))))}"
    )


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _explain(error: ValidationError, data: dict[str, Any]) -> str:
    """The first problem, in one sentence."""
    first = error.errors()[0]
    place = [str(p) for p in first["loc"] if p not in ("evaluate", "sft", "train")]
    if len(place) > 1 and place[0] == "stages" and place[1].isdigit():  # stages go by name
        stage = data["stages"][int(place[1])]
        place[1] = str(stage.get("name", place[1])) if isinstance(stage, dict) else place[1]
    key = ".".join(place)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(place[-1], _siblings(first['loc']))}{more}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing{more}"
    if first["type"] == "union_tag_invalid":
        kind = first["input"].get("do")
        return f"{key}.do: {kind!r}{nearest(str(kind), _STAGES)}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message + more
    shown = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{shown}{more}"


_STAGES: dict[str, type[StageBase]] = {"evaluate": EvaluateStage, "sft": SftStage, "train": TrainStage}


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """Keys that would be known where an unknown one was found."""
    model: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, str) and part in _STAGES:
            model = _STAGES[part]
            continue
        if model is None or isinstance(part, int):
            continue
        by_name = {f.alias or n: f for n, f in model.model_fields.items()}
        if part in by_name:
            model = _section_of(by_name[part].annotation)
    return [f.alias or n for n, f in model.model_fields.items()] if model is not None else []


def _section_of(annotation: Any) -> Any:
    """The Section class inside an annotation such as dict[str, TaskSet] or list[Stage]; Recipe keys only."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _section_of(inner)) is not None:
            return found
    return None
