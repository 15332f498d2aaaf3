"""From YAML and `--set` to a recipe, or one sentence that says which key is wrong and what it may be."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from strop.config.curation import Curation
from strop.config.recipe import Recipe
from strop.config.section import Root, nearest
from strop.record import UserError
from strop.redact import secret_in

__all__ = ["load_curation", "load_recipe", "parse_curation", "parse_recipe"]

R = TypeVar("R", bound=Root)

# The library lets out whatever Python says of a date without a day, a number without digits, a thousand brackets.
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)

EXAMPLE: dict[type[Root], str] = {Recipe: "recipes/quickstart.yaml", Curation: "recipes/curate-local.yaml"}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from YAML with `a.b=c` overrides. Stages are addressed by name: `stages.rl.steps=20`.

    Raises UserError with the file, the key and the nearest known key.
    """
    return parse_recipe(_read(path, Recipe), where=str(path), overrides=overrides)


def parse_recipe(data: dict[str, Any], where: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of a mapping, which the overrides change. Raises UserError as `load_recipe` does."""
    if "pool" in data and "tasks" not in data:
        raise UserError(f"{where} is a recipe of curation; type: strop curate {where}")
    return _parse(data, Recipe, where, overrides)


def load_curation(path: Path, overrides: Sequence[str] = ()) -> Curation:
    """A recipe of `strop curate`, read as `load_recipe` reads. Stages go by what they do: `stages.duplicates.jaccard=0.9`."""
    return parse_curation(_read(path, Curation), where=str(path), overrides=overrides)


def parse_curation(data: dict[str, Any], where: str = "recipe", overrides: Sequence[str] = ()) -> Curation:
    """The checked curation of a mapping. Raises UserError as `load_recipe` does."""
    if "tasks" in data and "pool" not in data:
        raise UserError(f"{where} is a recipe that trains, and curates nothing; type: strop run {where}")
    return _parse(data, Curation, where, overrides)


def _read(path: Path, kind: type[Root]) -> dict[str, Any]:
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
    except NOT_YAML as error:
        raise UserError(f"{path} is not YAML: {_one_line(error)}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"{path} holds no mapping of recipe keys; see {EXAMPLE[kind]}")
    return data


def _parse(data: dict[str, Any], kind: type[R], where: str, overrides: Sequence[str]) -> R:
    for override in overrides:
        _apply(data, override, kind)
    if (key := secret_in(data)) is not None:
        raise UserError(
            f"{where}: {key} holds what looks like a key or a password, and a recipe is copied into every report; take it out, and "
            "set OPENAI_API_KEY, HF_TOKEN or a .netrc file instead"
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error, data, kind)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _apply(data: dict[str, Any], override: str, kind: type[Root]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as key.subkey=value, for example --set seed=1")
    try:
        value = yaml.safe_load(text)
    except NOT_YAML as error:
        raise UserError(f"--set {override}: the value is not YAML: {_one_line(error)}") from error
    if isinstance(value, str) and (number := _as_float(value)) is not None:
        value = number  # YAML 1.1 reads 1e-5 as a string
    node: Any = data
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        node = _child(node, part, override, kind, create=depth > 0 or part in kind.model_fields)
    if isinstance(node, list):
        index = _index(node, last, override)
        node[index] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--set {override}: {'.'.join(parents)} is a value, not a section")


def _child(node: Any, part: str, override: str, kind: type[Root], create: bool) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if not isinstance(node, dict):
        raise UserError(f"--set {override}: {part!r} lies below a value, not a section")
    if node.get(part) is None:
        if not create:
            raise UserError(f"--set {override}: the recipe has no section {part!r}{nearest(part, kind.model_fields)}")
        node[part] = {}
    return node[part]


def _index(items: list[Any], part: str, override: str) -> int:
    names = [_name(item) for item in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise UserError(
        f"--set {override}: no entry {part!r}{nearest(part, [n for n in names if n] or map(str, range(len(items))))}"
    )


def _name(item: Any) -> str:
    """What an entry of a list goes by: its name, or what it does."""
    return str(item.get("name") or item.get("do") or "") if isinstance(item, dict) else ""


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _explain(error: ValidationError, data: dict[str, Any], kind: type[Root]) -> str:
    """The first problem, in one sentence."""
    first = error.errors()[0]
    location = first["loc"]
    place = [str(part) for i, part in enumerate(location) if not _is_tag(location, i)]
    if len(place) > 1 and place[0] == "stages" and place[1].isdigit():  # stages go by name
        place[1] = _name(data["stages"][int(place[1])]) or place[1]
    key = ".".join(place)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(place[-1], _siblings(location, kind))}{more}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing{more}"
    if first["type"] == "union_tag_invalid":
        do = first["input"].get("do")
        return f"{key}.do: {do!r}{nearest(str(do), _stages(kind))}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message + more
    shown = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{shown}{more}"


def _is_tag(location: Sequence[int | str], index: int) -> bool:
    """Whether pydantic put this part in to say which kind of stage it took: stages, 3, "train", "steps"."""
    return index >= 2 and location[index - 2] == "stages" and isinstance(location[index - 1], int)


def _stages(kind: type[Root]) -> dict[str, type[BaseModel]]:
    """The kinds of stage that a recipe of this kind may hold, by what they do."""
    found = [c for c in _classes(kind.model_fields["stages"].annotation) if "do" in c.model_fields]
    return {typing.get_args(c.model_fields["do"].annotation)[0]: c for c in found}


def _siblings(location: tuple[int | str, ...], kind: type[Root]) -> list[str]:
    """Keys that would be known where an unknown one was found."""
    model: Any = kind
    for index, part in enumerate(location[:-1]):
        if _is_tag(location, index):
            model = _stages(kind)[str(part)]
        elif model is not None and not isinstance(part, int):
            by_name = {f.alias or n: f for n, f in model.model_fields.items()}
            if part in by_name:
                model = next(iter(_classes(by_name[part].annotation)), None)
    return [f.alias or n for n, f in model.model_fields.items()] if model is not None else []


def _classes(annotation: Any) -> list[type[BaseModel]]:
    """The Section classes inside an annotation such as dict[str, TaskSet] or list[A | B]."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for inner in typing.get_args(annotation) for found in _classes(inner)]
