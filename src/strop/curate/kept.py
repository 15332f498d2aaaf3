"""Findings that cost money or hours, on disk within PART_S seconds and never looked for twice.

Knows a folder of parts, each whole or not there, that together are one table. Does not know what is in it: `difficulty`
keeps a model's answers and their verdicts, `noise` what a judge said. Whoever makes a folder names it by all that its
findings depend on besides their own columns.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from strop.disk import guard
from strop.record import read_rows, write_table

__all__ = ["PART_S", "Kept", "named"]

PART_S = 30.0  # seconds of findings that a kill can cost


def named(*what: Any) -> str:
    """16 hex digits over JSON values: the name of what depends on them.

    >>> named("answers", {"temperature": 1.0}) == named("answers", {"temperature": 1.0}) != named("answers")
    True
    """
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class Kept:
    """Rows of one schema in the parts of a folder. Used from one thread, by one process at a time."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._fresh: list[dict[str, Any]] = []
        self._saved_at = time.perf_counter()

    def add(self, row: dict[str, Any]) -> None:
        """One more; it is on disk PART_S seconds from now at the latest, if rows keep coming."""
        self._fresh.append(row)
        if time.perf_counter() - self._saved_at > PART_S:
            self.save()

    def save(self) -> None:
        """What is not on disk yet, as a part of its own."""
        if self._fresh:
            last = max((int(path.stem.partition("_")[2]) for path in self._paths()), default=0)
            path = self._folder / f"part_{last + 1:06d}.parquet"
            with guard(path):
                write_table(path, pa.Table.from_pylist(self._fresh, schema=self._schema))
        self._fresh, self._saved_at = [], time.perf_counter()

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[list[dict[str, Any]]]:
        """What is on disk, a part at a time, oldest first. Raises UserError for a part that is damaged."""
        for path in self._paths():
            yield read_rows(path, self._schema.names if columns is None else columns)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("part_*.parquet"))
