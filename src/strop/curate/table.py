"""Arrow files in batches: written one after another, read by memory map, rows taken in any order without holding all.

Knows sizes and files; not what a row means. A file is the same bytes whenever it holds the same rows, because batches are
of one size; whoever needs it to appear whole puts it into a folder of `disk.save_folder`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from strop.disk import guard

__all__ = ["BATCH", "FATES", "Writer", "digest", "packed", "read", "taken", "unpacked", "write"]

BATCH = 4096  # rows of a batch, some 4 MB of them at once in memory
SCATTERED = 16 * BATCH  # rows that are taken at once from all over a table

FATES = pa.schema([(name, pa.string()) for name in ("id", "source", "stage", "reason", "detail", "prompt")])
"""What became of a row: the stage and the reason that ended it ("kept" at the end), with the beginning of its problem."""


class Writer:
    """An Arrow IPC file that grows by batches of `BATCH` rows. A context manager; the file is whole after it."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        with guard(path):
            self._sink = pa.OSFile(str(path), "wb")
            self._file = pa.ipc.new_file(self._sink, schema)

    def write_rows(self, rows: Iterable[Sequence[Any]]) -> None:
        """Rows as tuples in the order of the schema."""
        waiting: list[Sequence[Any]] = []
        for row in rows:
            waiting.append(row)
            if len(waiting) == BATCH:
                self._write(waiting)
                waiting = []
        if waiting:
            self._write(waiting)

    def _write(self, rows: Sequence[Sequence[Any]]) -> None:
        arrays = [
            pa.array(column, kind.type) for column, kind in zip(zip(*rows, strict=True), self.schema, strict=True)
        ]
        self.write(pa.record_batch(arrays, schema=self.schema))

    def write(self, batch: pa.RecordBatch) -> None:
        with guard(self.path):
            self._file.write_batch(batch)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with guard(self.path):
            self._file.close()
            self._sink.close()


def write(path: Path, parts: Iterable[pa.Table], schema: pa.Schema | None = None) -> None:
    """The parts below each other, cut anew into batches of one size; `schema` says what an empty file holds."""
    parts = iter(parts)
    first = next(parts, None)
    kind = schema or (first.schema if first is not None else FATES)
    with Writer(path, kind) as out:
        left = kind.empty_table()
        for part in () if first is None else (first, *parts):
            left = pa.concat_tables([left, part]) if len(left) else part
            whole = len(left) - len(left) % BATCH
            for start in range(0, whole, BATCH):
                out.write(_one(left.slice(start, BATCH)))
            left = left.slice(whole)
        if len(left):
            out.write(_one(left))


def _one(rows: pa.Table) -> pa.RecordBatch:
    return rows.combine_chunks().to_batches(max_chunksize=BATCH)[0]


def read(path: Path) -> pa.Table:
    """The whole file by memory map: its pages are the system's to drop."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def taken(rows: pa.Table, places: np.ndarray) -> Iterator[pa.Table]:
    """The rows at `places`, in that order, `BATCH` at a time; one empty table where there are none.

    A take costs pyarrow a copy of all that it takes from: rising places are read from the stretch that holds them, others
    many at a time.
    """
    if not len(places):
        yield rows.slice(0, 0)
    size = BATCH if (np.diff(places) > 0).all() else SCATTERED
    for start in range(0, len(places), size):
        here = places[start : start + size]
        low, high = int(here.min()), int(here.max()) + 1
        found = rows.slice(low, high - low).take(pa.array(here - low, pa.int64()))
        yield from (found.slice(first, BATCH) for first in range(0, len(found), BATCH))


def packed(rows: pa.Table) -> bytes:
    """A table as the bytes of an Arrow stream, from one process to another."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return sink.getvalue().to_pybytes()


def unpacked(body: bytes) -> pa.Table:
    return pa.ipc.open_stream(body).read_all()


def digest(path: Path) -> str:
    """16 hex digits over the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
