"""The raw rows of one source of a pool, one after another, each an object or the reason why it is none.

Knows files and data sets as `tasks.files` does, which settings they take and what they are called, and that a line may be
anything: a row that cannot be read gets a reason and never costs the file. Only what ends a file early (broken gzip or
Parquet) is refused, since nobody could tell what was lost. Does not know what a row means: `load` does.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from strop.config import Curation, PoolSource, nearest
from strop.record import UserError
from strop.settings import check_settings
from strop.tasks import files

__all__ = ["Raw", "Source", "name_of", "open_source", "sources"]

LONGEST_LINE = 16 << 20  # bytes of a line that is parsed at all
EXCERPT = 200  # characters of what was set aside that its record keeps
OFFERED = 1024  # rows of a Parquet file turned into objects at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A row as it stood there: its columns, or why it has none."""

    place: int  # line or row, from 1
    columns: Mapping[str, Any] | None
    reason: str = ""
    detail: str = ""
    excerpt: str = ""  # of a row without columns
    digest: str = ""  # of the bytes of such a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source, open: `rows()` begins anew each time it is called."""

    name: str
    revision: str  # sha256 of a file, or what the hub calls it
    settings: files.FileSettings
    licence: str
    rows: Callable[[], Iterator[Raw]]


def name_of(pool: PoolSource) -> str:
    """What a source goes by: the name it was given, else the file's own without its endings, or the id.

    >>> name_of(PoolSource(source="data/deepscaler_40k.jsonl.gz")), name_of(PoolSource(source="openai/gsm8k"))
    ('deepscaler_40k', 'openai/gsm8k')
    """
    if pool.name:
        return pool.name
    suffix = next((s for s in sorted(files.SUFFIXES, key=len, reverse=True) if pool.source.endswith(s)), "")
    return Path(pool.source).name.removesuffix(suffix) if suffix or Path(pool.source).exists() else pool.source


def sources(curation: Curation, say: Callable[[str], None]) -> list[Source]:
    """Every source of the pool, in the order of their names.

    Raises UserError for what cannot be opened, settings that do not exist, and two sources of one name.
    """
    names = [name_of(pool) for pool in curation.pool]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UserError(
                f"two sources of the pool are called {name!r}: name one with --set pool.{index}.name=... in a recipe that lists "
                "them, or leave one out"
            )
    opened = [
        open_source(pool, name, f"pool.{index}", say)
        for index, (pool, name) in enumerate(zip(curation.pool, names, strict=True))
    ]
    return sorted(opened, key=lambda source: source.name)


def open_source(pool: PoolSource, name: str, where: str, say: Callable[[str], None]) -> Source:
    """One source. Raises UserError as `sources` does."""
    s = check_settings(files.FileSettings, pool.settings, where)
    for key in ("heldout_source", "heldout_split", "verifier"):
        if key in s.model_fields_set:
            other = "; the recipe's key verifier says it for the whole pool" if key == "verifier" else ""
            raise UserError(f"{where}.settings.{key} has no effect on a pool; leave it out{other}")
    if files.is_hub(pool.source):
        revision, data = files.open_hub(pool.source, s, s.split, where, say)
        rows: Callable[[], Iterator[Raw]] = lambda: _objects(data)  # noqa: E731
    else:
        path = _file(pool.source, s, where)
        revision = _sha256(path)
        reader = _parquet_rows if pool.source.endswith(".parquet") else _json_rows
        rows = lambda: reader(path)  # noqa: E731
    return Source(name=name, revision=revision, settings=s, licence=pool.licence, rows=rows)


def _file(source: str, s: files.FileSettings, where: str) -> Path:
    path = Path(source)
    for key in files.HUB_ONLY:
        if key in s.model_fields_set:
            raise UserError(f"{where}.settings.{key} is for Hugging Face ids; {source} is a file, so leave it out")
    if not path.is_file():
        beside = (
            [p.name for p in path.parent.iterdir() if p.name.endswith(files.SUFFIXES)] if path.parent.is_dir() else []
        )
        raise UserError(f"{where}: there is no file {source}" + (nearest(path.name, beside[:20]) if beside else ""))
    if not source.endswith(files.SUFFIXES):
        raise UserError(f"{where}: {source} is none of {', '.join(files.SUFFIXES)}")
    return path


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


# --- JSON lines -------------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[Raw]:
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as file:
            for place, line in enumerate(_lines(file), start=1):
                if line is None or line.strip():
                    yield _parsed(place, line)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not whole ({' '.join(str(error).split())}): fetch it again") from error


def _lines(file: io.BufferedIOBase) -> Iterator[bytes | None]:
    """The lines of a file, None for one that is too long to be held."""
    first = True
    while line := file.readline(LONGEST_LINE):
        end, held = line, True
        while not end.endswith(b"\n") and len(end) == LONGEST_LINE:
            end, held = file.readline(LONGEST_LINE), False
        yield (line.removeprefix(b"\xef\xbb\xbf") if first else line) if held else None
        first = False


def _parsed(place: int, line: bytes | None) -> Raw:
    if line is None:
        return Raw(
            place=place, columns=None, reason="line too long", detail=f"over {LONGEST_LINE >> 20} MB", digest="long"
        )
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _bad(place, line, "not UTF-8", f"byte {error.start} is {line[error.start : error.start + 1]!r}")
    except (ValueError, RecursionError) as error:
        return _bad(place, line, "not JSON", str(error))
    if not isinstance(row, dict):
        return _bad(place, line, "not an object", type(row).__name__)
    return Raw(place=place, columns=row)


def _bad(place: int, line: bytes, reason: str, detail: str) -> Raw:
    excerpt = line[: 4 * EXCERPT].decode("utf-8", "replace")[:EXCERPT]
    digest = hashlib.sha256(line.strip()).hexdigest()[:16]
    return Raw(place=place, columns=None, reason=reason, detail=detail[:EXCERPT], excerpt=excerpt, digest=digest)


# --- Parquet, and the hub ---------------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[Raw]:
    place = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=OFFERED):
                for columns in _objects_of(batch):
                    place += 1
                    bad = isinstance(columns, Raw)
                    yield replace(columns, place=place) if bad else Raw(place=place, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file: {' '.join(str(error).split())[:200]}") from error


def _objects_of(batch: pa.RecordBatch) -> Iterable[dict[str, Any] | Raw]:
    """Rows as objects; where text of the batch is no UTF-8, row by row, so that only that row goes."""
    try:
        return batch.to_pylist()
    except ValueError:
        return [_object_of(batch.slice(index, 1), index) for index in range(batch.num_rows)]


def _object_of(row: pa.RecordBatch, index: int) -> dict[str, Any] | Raw:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return _bad(index, bytes(error.object), "not UTF-8", f"byte {error.start} of a text")
    except ValueError as error:  # a date that Python does not have
        return _bad(index, str(error).encode(), "not readable", str(error))


def _objects(data: Iterable[Mapping[str, Any]]) -> Iterator[Raw]:
    return (Raw(place=place, columns=row) for place, row in enumerate(data, start=1))
