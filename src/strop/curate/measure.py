"""Row-wise work in this process or in several: the same findings, in the order of the rows.

Rows are written once to an Arrow file that every worker maps, so that no row is pickled; a worker is handed the number of
a batch and answers with Arrow. Workers are fresh interpreters that import the function by its name and nothing of
`__main__` (so notebooks, pytest and console scripts are alike), and end with their parent. Knows processes and batches,
nothing of what is computed. `cluster.Cluster` is the same call on several machines.

    parent -> worker   one JSON line: function, settings, path of the rows, start, number
    worker -> parent   one JSON line: {"bytes": n} and then n bytes of an Arrow stream, or {"error": ...}
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from strop.curate import table
from strop.curate.rows import Measure, Stopped
from strop.disk import remove
from strop.process import OUR_ENV
from strop.record import UserError
from strop.watch import Bar, Watch

__all__ = ["LARGEST_BATCH", "ONE_THREAD", "SMALL", "InProcess", "Processes", "checked", "main"]

SMALL = 256  # rows that are done sooner than a process starts
BATCHES_PER_WORKER = 16  # so that a batch of slow rows does not keep one worker busy alone
LARGEST_BATCH = 2048
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
_BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from strop.curate.measure import main; main()"


class InProcess:
    """The plain measurer: batches one after another, here."""

    def __init__(self, watch: Watch, stop_requested: Callable[[], bool] = lambda: False) -> None:
        self._watch, self._stop_requested = watch, stop_requested

    def __call__(self, function: Measure, rows: pa.Table, settings: Any, *, what: str) -> pa.Table:
        with self._watch.phase(what, len(rows), "rows") as bar:
            found = []
            for start in range(0, max(1, len(rows)), SMALL):  # an empty table is measured as well, for its columns
                if self._stop_requested():
                    raise Stopped
                part = rows.slice(start, SMALL)
                found.append(checked(function(part, settings), part, what))
                bar.advance(len(part))
        return pa.concat_tables(found)


class Processes:
    """Spawned workers, started when the first large table comes and kept until `close`. A context manager.

    Raises RuntimeError with the rows of the batch where a worker dies or the function fails, UserError where the function
    raises one, Stopped between two batches where that was asked.
    """

    def __init__(
        self, workers: int, folder: Path, watch: Watch, stop_requested: Callable[[], bool] = lambda: False
    ) -> None:
        self._folder, self._watch, self._stop_requested = folder, watch, stop_requested
        self._num, self._workers, self._calls = workers, list[_Worker](), 0
        self._here = InProcess(watch, stop_requested)

    def __call__(self, function: Measure, rows: pa.Table, settings: Any, *, what: str) -> pa.Table:
        if len(rows) <= SMALL or self._num < 2 or function.__module__ == "__main__":
            return self._here(function, rows, settings, what=what)
        if not self._workers:
            self._workers = [_Worker() for _ in range(self._num)]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._calls += 1
        path = self._folder / f"measured-{self._calls}.arrow"
        try:
            table.write(path, [rows])
            with self._watch.phase(what, len(rows), "rows") as bar:
                job = _Job(function, rows, settings, path, what, bar, self._stop_requested)
                return job.run(self._workers)
        except BaseException:
            self.close()  # a worker may be in the middle of an answer
            raise
        finally:
            remove(path)

    def close(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def checked(found: pa.Table, rows: pa.Table, what: str) -> pa.Table:
    """The findings, which are one for each row."""
    assert len(found) == len(rows), f"{what}: {len(found)} findings for {len(rows)} rows"
    return found


class _Worker:
    """One process, and a thread's way to ask it."""

    def __init__(self) -> None:
        inherited = {key: value for key, value in os.environ.items() if key not in OUR_ENV}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=inherited | ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for the parent: it stops between two batches
        )  # fmt: skip

    def ask(self, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The head and the body of an answer. Raises _Died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            head = json.loads(line) if line.endswith(b"\n") else None
            body = self._process.stdout.read(head.get("bytes", 0)) if head else b""
        except OSError:
            head, body = None, b""
        if head is None or len(body) < head.get("bytes", 0):
            raise _Died(self._process.wait())
        return head, body

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._process.wait()


class _Died(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


class _Job:
    """One call: batches waiting, findings by batch, and what went wrong first."""

    def __init__(
        self, function: Measure, rows: pa.Table, settings: Any, path: Path, what: str, bar: Bar,
        stop_requested: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.rows, self.what, self.bar, self.stop_requested = rows, what, bar, stop_requested
        self.common = {
            "function": [function.__module__, function.__qualname__], "path": str(path),
            "settings": base64.b64encode(pickle.dumps(settings)).decode(),
        }  # fmt: skip
        self.waiting: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self.found: dict[int, pa.Table] = {}
        self.errors: list[Exception] = []

    def run(self, workers: list[_Worker]) -> pa.Table:
        size = max(16, min(LARGEST_BATCH, -(-len(self.rows) // (BATCHES_PER_WORKER * len(workers)))))
        for start in range(0, len(self.rows), size):
            self.waiting.put((start, min(size, len(self.rows) - start)))
        threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                if self.errors:  # the other workers' answers are of no use any more
                    raise self.errors[0]
        if self.errors:
            raise self.errors[0]
        return pa.concat_tables([self.found[start] for start in sorted(self.found)])

    def _serve(self, worker: _Worker) -> None:
        """In a thread of its own: one batch after another until none is left."""
        while not self.errors:
            if self.stop_requested():
                self.errors.append(Stopped())
                return
            try:
                start, num = self.waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self.found[start] = self._ask(worker, start, num)
            except Exception as error:  # noqa: BLE001 (told by `run`, in the caller's thread)
                self.errors.append(error)
                return
            self.bar.advance(num)

    def _ask(self, worker: _Worker, start: int, num: int) -> pa.Table:
        try:
            head, body = worker.ask({**self.common, "start": start, "num": num})
        except _Died as death:
            raise RuntimeError(
                f"{self.what}: a worker process died (exit code {death.code}) on {self._named(start, num)}"
            ) from None
        if "mistake" in head:
            raise UserError(head["mistake"])
        if "error" in head:
            raise RuntimeError(f"{self.what}: failed on {self._named(start, num)}\n{head['error']}")
        return checked(table.unpacked(body), self.rows.slice(start, num), self.what)

    def _named(self, start: int, num: int) -> str:
        """A batch in words, by the ids of its rows where they have some."""
        words = f"the batch of rows {start} to {start + num - 1}"
        if "id" not in self.rows.column_names:
            return words
        first, last = (self.rows.column("id")[place].as_py() for place in (start, start + num - 1))
        return f"{words} (from {first} to {last})"


# --- in the worker ----------------------------------------------------------------------------------------------------


def main() -> None:
    """The life of a worker: answer until the pipe closes."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a function that prints must not answer for us
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    opened: dict[str, pa.Table] = {}
    for line in sys.stdin.buffer:
        job = json.loads(line)
        try:
            if job["path"] not in opened:
                opened = {job["path"]: table.read(Path(job["path"]))}
            body = _answer(opened[job["path"]], job)
            out.write(json.dumps({"bytes": len(body)}).encode() + b"\n" + body)
        except UserError as error:
            out.write(json.dumps({"mistake": str(error)}).encode() + b"\n")
        except Exception:  # noqa: BLE001 (the parent tells it, with the rows)
            out.write(json.dumps({"error": traceback.format_exc()[-4000:]}).encode() + b"\n")
        out.flush()


def _answer(rows: pa.Table, job: dict[str, Any]) -> bytes:
    module, name = job["function"]
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    settings = pickle.loads(base64.b64decode(job["settings"]))
    return table.packed(function(rows.slice(job["start"], job["num"]), settings))


def _end_with_parent(parent: int) -> None:
    """A batch may take long, and nobody would read its findings."""
    alone = threading.Event()
    while os.getppid() == parent:
        alone.wait(1.0)
    os._exit(1)
