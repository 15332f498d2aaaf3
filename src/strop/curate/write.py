"""What curation leaves behind: Parquet of the rows that are kept, and of what became of every row.

Beside the columns of `rows.SCHEMA` a row's meta is laid out in columns of its own (`solution`, `level`, `pass_rate` ...), so
that a file is a task source with worked solutions, and a table for anybody else. Files are written beside their name, synced
and renamed, and hold no time and no path: the same rows are the same bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from strop.curate import table
from strop.curate.rows import SCHEMA
from strop.disk import guard, sync

__all__ = ["rows", "stream"]

NUM_COLUMNS = 64  # of meta that are laid out: those that most rows have
NAME = re.compile(r"[A-Za-z_][\w .-]{0,63}")
KINDS: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
ROW_GROUP = 16 * table.BATCH


def rows(path: Path, whole: pa.Table, places: np.ndarray) -> None:
    """The rows of SCHEMA at `places`, with their meta in columns as well."""
    columns = _columns(table.taken(whole.select(["meta"]), places))
    schema = pa.schema([*SCHEMA, *columns.items()])
    stream(path, (_laid_out(part, columns, schema) for part in table.taken(whole, places)), schema)


def stream(path: Path, parts: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Parts below each other as one Parquet file that appears whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with guard(path):
            with pq.ParquetWriter(temporary, schema, compression="zstd") as file:
                for group in _groups(parts):
                    file.write_table(group)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Row groups of one size, however the parts were cut."""
    waiting: list[pa.Table] = []
    num = 0
    for part in parts:
        waiting.append(part)
        num += len(part)
        if num >= ROW_GROUP:
            whole = pa.concat_tables(waiting)
            yield from (whole.slice(start, ROW_GROUP) for start in range(0, num - num % ROW_GROUP, ROW_GROUP))
            waiting, num = [whole.slice(num - num % ROW_GROUP)], num % ROW_GROUP
    if num:
        yield pa.concat_tables(waiting)


def _columns(parts: Iterable[pa.Table]) -> dict[str, pa.DataType]:
    """Name and type of the columns that meta is laid out in; what has several types is text."""
    kinds: dict[str, set[pa.DataType]] = {}
    counts: Counter[str] = Counter()
    for part in parts:
        for text in part.column("meta").to_pylist():
            for key, value in json.loads(text).items():
                if NAME.fullmatch(key) and (kind := _kind(value)) is not None:
                    kinds.setdefault(_name(key), set()).add(kind)
                    counts[_name(key)] += 1
    kept = sorted(sorted(counts, key=lambda name: (-counts[name], name))[:NUM_COLUMNS])
    return {name: _common(kinds[name]) for name in kept}


def _name(key: str) -> str:
    """A row's own `id` and `source` are not ours.

    >>> _name("level"), _name("source")
    ('level', 'upstream_source')
    """
    return f"upstream_{key}" if key in SCHEMA.names else key


def _kind(value: Any) -> pa.DataType | None:
    if isinstance(value, list):
        return pa.list_(pa.string()) if all(isinstance(item, str) for item in value) else None
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return pa.string()
    return KINDS.get(type(value))


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    if len(kinds) == 1:
        return next(iter(kinds))
    return pa.float64() if kinds == {pa.int64(), pa.float64()} else pa.string()


def _laid_out(part: pa.Table, columns: dict[str, pa.DataType], schema: pa.Schema) -> pa.Table:
    metas = [{_name(key): value for key, value in json.loads(text).items()} for text in part.column("meta").to_pylist()]
    laid = [pa.array([_as(meta.get(name), kind) for meta in metas], kind) for name, kind in columns.items()]
    return pa.table([*part.columns, *laid], schema=schema)


def _as(value: Any, kind: pa.DataType) -> Any:
    if value is None or (kind == pa.list_(pa.string()) and _kind(value) != kind):
        return None
    if kind == pa.string() and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return float(value) if kind == pa.float64() else value
