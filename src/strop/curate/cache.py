"""What a stage decided, on disk: under a name that holds all it depends on, so that a change reruns only what follows.

    cache/load-1f../             rows.arrow, fates.arrow, facts.json
    cache/work-duplicates-9c../  the stage's own (`Tools.folder`): by its rows and settings, kept when its code changes
    cache/duplicates-9c..-77../  dropped.arrow, changed.arrow, listed.jsonl, notes.json: also by its code
    cache/kept/                  what stages keep for longer (`Tools.kept`)
    cache/scratch/               gone when nothing runs

The name is a hash of the rows that came in, of the settings, of the stage's code and of the libraries that it imports.
Each folder appears whole, with a manifest; one that was damaged since is made again. Knows no stage.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa

from strop import disk
from strop.curate import table
from strop.curate.rows import Outcome
from strop.machine import version

__all__ = ["Decision", "code_of", "hash_of", "is_there", "load", "save"]

FOLLOWED = ("curate", "rewards", "tasks", "record")  # rooms whose code decides what a stage finds
DROPPED = pa.schema([("place", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])
CHANGED = pa.schema([("place", pa.int64()), ("meta", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An Outcome as it lies on disk: applied alike, whether it was made now or found."""

    dropped: pa.Table  # DROPPED, by place
    changed: pa.Table  # CHANGED, by place; `meta` is the JSON of the keys gained
    listed: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]


def hash_of(*parts: Any) -> str:
    """16 hex digits over JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def is_there(folder: Path) -> bool:
    """Whether the folder is there as it was saved."""
    return folder.is_dir() and disk.what_is_wrong(folder) is None


def save(folder: Path, outcome: Outcome) -> None:
    """An Outcome into a folder that appears whole."""

    def write(temporary: Path) -> None:
        dropped = sorted((place, fate.reason, fate.detail) for place, fate in outcome.dropped.items())
        changed = sorted((place, _json(keys)) for place, keys in outcome.changed.items())
        with table.Writer(temporary / "dropped.arrow", DROPPED) as file:
            file.write_rows(dropped)
        with table.Writer(temporary / "changed.arrow", CHANGED) as file:
            file.write_rows(changed)
        (temporary / "listed.jsonl").write_text("".join(_json(row) + "\n" for row in outcome.listed), encoding="utf-8")
        (temporary / "notes.json").write_text(_json(list(outcome.notes)), encoding="utf-8")

    disk.save_folder(folder, write)


def load(folder: Path) -> Decision:
    with open(folder / "listed.jsonl", encoding="utf-8") as file:  # no splitlines: a text may hold other line ends
        listed = tuple(json.loads(line) for line in file)
    notes = tuple(json.loads((folder / "notes.json").read_text(encoding="utf-8")))
    return Decision(
        dropped=table.read(folder / "dropped.arrow"), changed=table.read(folder / "changed.arrow"), listed=listed, notes=notes
    )  # fmt: skip


def _json(value: Any) -> str:
    text = json.dumps(disk.plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode()


# --- code -------------------------------------------------------------------------------------------------------------


@functools.cache
def code_of(module: str) -> str:
    """Hash of a module's text, of what it imports from `FOLLOWED`, and of the versions of the libraries that they name."""
    texts: dict[str, str] = {}
    libraries: set[str] = set()
    waiting = [module]
    while waiting:
        name, path = _found(waiting.pop())
        if path is None or name in texts:
            continue
        texts[name] = path.read_text(encoding="utf-8")
        for imported in _imports(texts[name]):
            top, _, rest = imported.partition(".")
            if top == "strop":
                waiting += [imported] if rest.split(".")[0] in FOLLOWED else []
            elif top not in sys.stdlib_module_names:
                libraries.add(top)
    return hash_of(sorted(texts.items()), _versions(frozenset(libraries)))


def _found(name: str) -> tuple[str, Path | None]:
    """A module and its file; of a name inside a module, the module's."""
    for tried in (name, name.rpartition(".")[0]):
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(tried)
            if spec is not None and spec.origin is not None:
                return tried, Path(spec.origin)
    return name, None


def _imports(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def _versions(libraries: frozenset[str]) -> dict[str, str | None]:
    found = metadata.packages_distributions()
    return {name: version(name) for library in sorted(libraries) for name in sorted(set(found.get(library, ())))}
