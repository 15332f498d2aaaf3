"""Verifier processes: started early, killed at a deadline, replaced when they die.

Knows processes, pipes and deadlines, and nothing about answers. A worker is a fresh interpreter that imports this
room and nothing of `__main__` (so pytest, notebooks, `python -m` and console scripts are all alike), reads one JSON
line a case and answers with one. Time-outs by signal would do nothing in threads; a killed process always ends.

    parent -> worker   {"task": {...}, "text": "..."}
    worker -> parent   ["ready"] once, then [correct, extracted, reason] or ["error", what happened]

Cases are sent in chunks no larger than a pipe holds, so that neither side ever waits for the other to read.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import IO, Any

from strop.record import Reason, Task, Verdict
from strop.rewards.code import VERDICT_S

__all__ = ["Pool", "main"]

CHUNK_BYTES = 16_384  # a quarter of the smallest pipe buffer in use
CHUNK_CASES = 16
START_S = 120.0  # importing sympy takes one second, minutes on a machine that is swapping
MEMORY_BYTES = 4 << 30  # of address space; a text may ask sympy for more
_BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from strop.rewards.workers import main; main(sys.argv[2:])"

Case = tuple[Task, str]


class Worker:
    """One process and the cases it was given and has not answered."""

    def __init__(self, timeout_s: float, verifiers: Mapping[str, str]) -> None:
        arguments = [json.dumps(sys.path), str(timeout_s), json.dumps(dict(verifiers))]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", VERDICT_S: str(timeout_s)},
            start_new_session=True,  # Ctrl-C is for the run: it finishes its step, with verdicts
        )
        self.ready = False
        self.pending: deque[int] = deque()
        self.since = time.monotonic()
        self._unread = b""

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def send(self, cases: Sequence[tuple[int, bytes]]) -> None:
        """Hand over cases; a worker that is already dead is found out by its closed pipe."""
        assert self.process.stdin is not None
        self.pending.extend(index for index, _ in cases)
        self.since = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"".join(line for _, line in cases))
            self.process.stdin.flush()

    def receive(self) -> list[list[Any]] | None:
        """The answers that have arrived; None at the end of the pipe (it is dead). Call when readable."""
        data = os.read(self.stdout.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._unread = (self._unread + data).split(b"\n")
        self.since = time.monotonic()
        return [json.loads(line) for line in lines]

    def let_go(self) -> None:
        """Close our copies of its pipes and leave the process alone: it is not our child."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.returncode = 0  # else Popen would wait for it

    def end(self, kill: bool = True) -> int:
        """Close the pipes and wait until the process is gone; returns its exit code."""
        if kill:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            return self.process.wait(timeout=None if kill else 2.0)
        except subprocess.TimeoutExpired:
            return self.end(kill=True)


class Pool:
    """A fixed number of workers that judge cases; used from any thread, one caller at a time.

    A fork of this process has workers of its own, which start when it first asks for a verdict.
    """

    def __init__(self, workers: int, timeout_s: float, verifiers: Mapping[str, str]) -> None:
        self.timeout_s = timeout_s
        self.num_kills = 0
        self.longest_s = 0.0  # of all verdicts, as whoever asked had to wait: a late one with the end of its worker
        self._verifiers = dict(verifiers)
        self._lock = threading.Lock()
        self._num_workers = workers
        self._workers = [Worker(timeout_s, self._verifiers) for _ in range(workers)]
        self._finalizer = weakref.finalize(self, _end_all, self._workers)  # also at exit
        _POOLS.add(self)

    def judge(self, cases: Sequence[Case]) -> tuple[list[Verdict], dict[int, str]]:
        """A verdict for every case, in order, and for those that are `verifier_error`, what happened.

        A case that outlives its deadline is `timeout`. Raises RuntimeError if workers cannot start.
        """
        with self._lock:
            if not self._finalizer.alive:
                raise RuntimeError("the verifier processes have been closed")
            while len(self._workers) < self._num_workers:
                self._workers.append(Worker(self.timeout_s, self._verifiers))
            return _Round(self, cases).run()

    def replace(self, worker: Worker) -> int:
        """Kill a worker and start another in its place; returns the exit code of the old one."""
        self.num_kills += 1
        code = worker.end()
        self._workers[self._workers.index(worker)] = Worker(self.timeout_s, self._verifiers)
        return code

    @property
    def workers(self) -> list[Worker]:
        return self._workers

    def close(self) -> None:
        self._finalizer()

    def forget(self) -> None:
        """In a forked process: the workers are the parent's, who reads their pipes and waits for them."""
        self._lock = threading.Lock()  # perhaps held by a thread that is not here
        for worker in self._workers:
            worker.let_go()
        self._workers.clear()


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in list(_POOLS):
        pool.forget()


os.register_at_fork(after_in_child=_forget_all)


def _end_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.end(kill=not worker.ready or bool(worker.pending))


class _Round:
    """One call of `judge`: cases waiting, cases under way, verdicts."""

    def __init__(self, pool: Pool, cases: Sequence[Case]) -> None:
        self.pool = pool
        self.verdicts: list[Verdict | None] = [None] * len(cases)
        self.errors: dict[int, str] = {}
        self.cases = cases
        self.waiting = deque(range(len(cases)))
        self.num_left = len(cases)
        self.num_failed_starts = 0

    def run(self) -> tuple[list[Verdict], dict[int, str]]:
        try:
            while self.num_left:
                self._hand_out()
                self._collect()
                self._kill_late()
        finally:
            for worker in list(self.pool.workers):
                if worker.pending:  # interrupted: nobody will read those answers
                    self.pool.replace(worker)
        return [verdict for verdict in self.verdicts if verdict is not None], self.errors

    def _hand_out(self) -> None:
        for worker in self.pool.workers:
            if not worker.ready or worker.pending or not self.waiting:
                continue
            fair = max(1, min(CHUNK_CASES, len(self.waiting) // (2 * len(self.pool.workers))))
            chunk: list[tuple[int, bytes]] = []
            size = 0
            while self.waiting and len(chunk) < fair:
                line = _line(*self.cases[self.waiting[0]])
                if chunk and size + len(line) > CHUNK_BYTES:
                    break
                chunk.append((self.waiting.popleft(), line))
                size += len(line)
            worker.send(chunk)

    def _collect(self) -> None:
        """Wait for answers, at most until the next deadline."""
        now = time.monotonic()
        waits = [w.since + (self.pool.timeout_s if w.ready else START_S) - now for w in self._busy()]
        with selectors.DefaultSelector() as selector:
            for worker in self._busy():
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
            for event, _ in selector.select(max(0.0, min(waits, default=0.0))):
                self._take(event.data)

    def _busy(self) -> Iterator[Worker]:
        return (w for w in self.pool.workers if w.pending or not w.ready)

    def _take(self, worker: Worker) -> None:
        since, was_ready = worker.since, worker.ready
        answers = worker.receive()
        if was_ready:
            self._note(since)
        if answers is None:
            self._bury(worker)
            return
        for answer in answers:
            if answer == ["ready"]:
                worker.ready = True
            else:
                self._settle(worker.pending.popleft(), answer)

    def _settle(self, index: int, answer: list[Any]) -> None:
        if answer[0] == "error":
            self.errors[index] = answer[1]
            answer = [False, None, Reason.VERIFIER_ERROR]
        correct, extracted, reason = answer
        self.verdicts[index] = Verdict(correct=correct, extracted=extracted, reason=Reason(reason))
        self.num_left -= 1

    def _note(self, since: float) -> None:
        self.pool.longest_s = max(self.pool.longest_s, time.monotonic() - since)

    def _bury(self, worker: Worker) -> None:
        """The worker died by itself: its first case is to blame, the others go back."""
        was_ready, pending = worker.ready, self._give_back(worker)
        code = self.pool.replace(worker)
        if pending is not None:
            self._settle(pending, ["error", f"the verifier process died (exit code {code})"])
        elif not was_ready:
            self._failed_start(f"exit code {code}")

    def _kill_late(self) -> None:
        now = time.monotonic()
        for worker in list(self._busy()):
            if now - worker.since < (self.pool.timeout_s if worker.ready else START_S):
                continue
            was_ready, pending, since = worker.ready, self._give_back(worker), worker.since
            self.pool.replace(worker)
            if pending is not None:
                self._settle(pending, [False, None, Reason.TIMEOUT])
                self._note(since)
            elif not was_ready:
                self._failed_start(f"no sign of life in {START_S:g} s")

    def _give_back(self, worker: Worker) -> int | None:
        """Return the cases behind the first to the queue, and the first one's index."""
        if not worker.pending:
            return None
        first, *others = worker.pending
        worker.pending.clear()
        self.waiting.extendleft(reversed(others))
        return first

    def _failed_start(self, why: str) -> None:
        self.num_failed_starts += 1
        if self.num_failed_starts >= 3:
            raise RuntimeError(
                f"verifier processes cannot start ({why}); run: {sys.executable} -c 'import strop.rewards'"
            )


def _line(task: Task, text: str) -> bytes:
    return json.dumps({"task": {f.name: getattr(task, f.name) for f in fields(task)}, "text": text}).encode() + b"\n"


# --- in the worker -------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """The life of a worker: limit itself, import the verifiers, answer until the pipe closes."""
    import faulthandler

    timeout_s, verifiers = float(arguments[0]), json.loads(arguments[1])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = open(os.devnull, "w")  # noqa: SIM115  a verifier that prints must not answer for us
    os.dup2(null.fileno(), 1)
    _limit_memory()
    known = _verifiers(verifiers)
    out.write('["ready"]\n')
    out.flush()
    for line in sys.stdin.buffer:
        # The parent kills late workers; if the parent itself is gone, this thread of C code ends the process.
        faulthandler.dump_traceback_later(timeout_s + 5, exit=True, file=null)
        out.write(json.dumps(_answer(known, json.loads(line))) + "\n")
        out.flush()
        faulthandler.cancel_dump_traceback_later()


def _verifiers(extra: Mapping[str, str]) -> dict[str, Any]:
    import math_verify  # noqa: F401  a second of imports, now rather than in the first verdict

    from strop.rewards import VERIFIERS
    from strop.rewards.adapters import load_verifier

    return VERIFIERS | {key: load_verifier(path) for key, path in extra.items()}


def _answer(known: Mapping[str, Any], case: dict[str, Any]) -> list[Any]:
    try:
        verdict = known[case["task"]["verifier"]](Task(**case["task"]), case["text"])
        return [verdict.correct, verdict.extracted, verdict.reason.value]
    except Exception as error:  # noqa: BLE001  the one place where a verifier's failure becomes a record
        return ["error", f"{type(error).__name__}: {error}"[:500]]


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES if hard < 0 else min(MEMORY_BYTES, hard), hard))
