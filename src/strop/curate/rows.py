"""The rows of a pool, and what a stage of curation is: rows in, the fate of each row out.

A pool is an Arrow table, because a million rows as Python objects would not fit the memory that is asked for. A stage
never writes a row away: it says which rows go and why (`Fate`), and `curate.run` applies it, keeps the record of every
row's fate and caches the outcome. What a stage has to compute row by row it hands to `Tools.measure` as a pure function,
which runs in this process, in several, or on a Ray cluster, with equal results; what needs all rows at once it decides here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from strop.config.curation import Curation
from strop.watch import Watch

__all__ = ["SCHEMA", "Fate", "Measure", "Measurer", "Outcome", "Stage", "Stopped", "Tools"]

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "source", "prompt", "answer", "verifier", "licence", "meta")]
)
"""Of a row: `id` and the fields of a Task (`meta` is JSON), and the licence it came under ("" where none is stated).

Rows are distinct and sorted by their content, so that nothing depends on the order in which files hold them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """Why a row goes. `detail` is what it met: the id of the row it repeats, the language it is in, its pass rate."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a stage found, by the place of a row in its table."""

    dropped: Mapping[int, Fate]
    changed: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # keys that a row's meta gains
    listed: tuple[
        Mapping[str, Any], ...
    ] = ()  # what a reader should see and that drops nothing: pairs that a digit keeps apart
    notes: tuple[str, ...] = ()  # sentences for the data card


Measure = Callable[[pa.Table, Any], pa.Table]
"""Some rows and the settings (picklable) to one row of findings for each, in order. A top-level function, pure."""


@runtime_checkable
class Measurer(Protocol):
    def __call__(self, function: Measure, rows: pa.Table, settings: Any, *, what: str) -> pa.Table:
        """`function` over all rows in batches, in any processes; the findings in the order of the rows."""
        ...


class Stopped(Exception):
    """Asked to stop: what was finished before is kept, and the same command goes on from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a stage may use besides its rows and settings."""

    measure: Measurer
    watch: Watch
    seed: int
    against: pa.Table  # SCHEMA: every row that training must not see
    folder: Path  # the stage's own, for what a kill must not cost; what is in it belongs to these rows and settings
    curation: Curation | None = None  # the recipe, for stages that open its model
    stop_requested: Callable[[], bool] = lambda: False  # a long stage asks now and then, and raises `Stopped`

    @property
    def kept(self) -> Path:
        """A folder beside the stages' own, for what stays true when rows and settings change: answers of a model."""
        return self.folder.parent / "kept"


Stage = Callable[[pa.Table, Any, Tools], Outcome]
