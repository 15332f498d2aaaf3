"""Files that are either whole or not there: atomic writes, appended lines, folders sealed by a manifest.

Knows what a full disk looks like and turns it into one sentence (`DiskFull`) with the temporary file gone and what
was there before intact. Does not know what the files mean: `run.py` lays them out. Imports nothing of ours but
UserError and what it takes out, so any room may use it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from strop.record import UserError
from strop.redact import redact, redacted

__all__ = [
    "DiskFull", "append_row", "drop", "guard", "lock_folder", "plain", "read_lines", "remove", "save_folder", "what_is_wrong",
    "write_json", "write_rows", "write_text",
]  # fmt: skip

MANIFEST = "manifest.json"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
# Libraries that write from Rust or C++ raise their own exceptions, which hold the system's words but no errno.
_FULL_WORDS = ("no space left", "os error 28", "disk quota exceeded", "file too large", "input/output error")


class DiskFull(Exception):
    """No room to write, or a disk that fails: what was committed is intact. The CLI exits with 3, and --resume goes on."""


@contextmanager
def guard(path: Path) -> Iterator[None]:
    """Raises DiskFull for a full or failing disk, UserError for a refused one, out of what the body raised writing `path`."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in _REFUSED:
            raise UserError(f"{path} cannot be written: {os.strerror(number).lower()}") from error
        if number not in _FULL and not any(words in str(error).lower() for words in _FULL_WORDS):
            raise
        broken = number == errno.EIO or "input/output error" in str(error).lower()
        why = os.strerror(errno.EIO if broken else number or errno.ENOSPC).lower()
        raise DiskFull(
            f"{path} could not be written: {why} ({_free(path)} free there); nothing committed is lost: "
            f"{'see what is wrong with the disk' if broken else 'make room'}, then continue with --resume"
        ) from error


def _free(path: Path) -> str:
    while not path.exists():
        path = path.parent
    free_bytes = shutil.disk_usage(path).free
    return f"{free_bytes / 1e9:.1f} GB" if free_bytes >= 1e8 else f"{free_bytes / 1e6:.1f} MB"


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy numbers unwrapped, tuples as lists, what is not finite as null.

    >>> plain({"loss": float("nan"), "ci95": (0.25, float("inf")), "step": 3})
    {'loss': None, 'ci95': [0.25, None], 'step': 3}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove(path: Path) -> None:
    """The file or folder gone, whichever it was, if it was there. A folder goes whole: a kill leaves no half of it."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.endswith(".tmp"):  # what such a name holds is never read, and goes when a run is opened
            path = path.rename(path.with_name(f".{path.name}.gone.tmp"))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def drop(temporary: Path) -> None:
    """`remove` for what a failure left: where not even that can be done it stays, and goes when the run is opened again."""
    with suppress(OSError):  # the failure itself is what has to be told
        remove(temporary)


def sync(path: Path) -> None:
    """The file, or the names in the folder, on the platter."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, *, is_data: bool = False) -> None:
    """The whole text or, after any failure, what was there before. Keys and passwords are left out, but not of data: rows
    of a user's own stay as they are, and what is encoded is looked at before it is (`redacted`)."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with guard(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write((text if is_data else redact(text)).encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        drop(temporary)


def write_json(path: Path, value: Any) -> None:
    write_text(path, _encoded(redacted(plain(value)), indent=1) + "\n", is_data=True)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A line of JSON for each, all or none."""
    write_text(path, "".join(_encoded(row) + "\n" for row in redacted(plain(list(rows)))), is_data=True)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One line of JSON at the end, synced; after a failure the file is as long as before."""
    with guard(path), open(path, "ab", buffering=0) as file:  # unbuffered: closing must not write what was taken back
        size, data = file.tell(), memoryview(_encoded(redacted(plain(row))).encode() + b"\n")
        try:
            while data:  # a disk with some bytes left takes a part, and refuses the next write
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def _encoded(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The JSON lines of a file, and whether its end is torn: only the last line can be, since each is synced."""
    if not path.is_file():
        return [], False
    *lines, end = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
            rows.append(row)
        except (ValueError, RecursionError):
            if number == len(lines) and not end:
                return rows, True
            raise UserError(f"line {number} of {path} is not JSON; put the file back, or start again") from None
    return rows, bool(end)


def save_folder(target: Path, write: Callable[[Path], None], **facts: Any) -> None:
    """A folder that appears whole: `write` fills a temporary one, its manifest is written last, then it is renamed.

    The manifest holds `facts` and size and sha256 of every file. An older folder of that name is replaced.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with guard(target):
            remove(temporary)
            temporary.mkdir(parents=True)
            write(temporary)
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            listed = {path.relative_to(temporary).as_posix(): _seal(path) for path in files}
            write_json(temporary / MANIFEST, {**facts, "files": listed})
            remove(target)
            os.replace(temporary, target)
            sync(target.parent)
    finally:
        drop(temporary)


def _seal(path: Path) -> dict[str, Any]:
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def what_is_wrong(folder: Path) -> str | None:
    """None for a folder that is as `save_folder` left it, else what is damaged, by name."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        sealed = [(name, facts["bytes"], facts["sha256"]) for name, facts in listed.items()]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    for name, num_bytes, sha256 in sealed:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != num_bytes:
            return f"{name} has {path.stat().st_size} bytes in place of {num_bytes}"
        if _sha256(path) != sha256:
            return f"the content of {name} has changed"
    return None


def lock_folder(out: Path, say: Callable[[str], None]) -> IO[str]:
    """The open lock file of a folder; closing it gives the lock up.

    The kernel drops it with its process, however that dies, so none is ever stale. Raises UserError where another has it.
    """
    file = open(out / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (the caller's)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{out} is being written by {owner}; wait for it, or name another folder with --out") from None
    except OSError as error:  # some cluster file systems have no locks; that is no reason to refuse work
        say(f"{out} cannot be locked ({error.strerror}): make sure that no other process writes it")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
