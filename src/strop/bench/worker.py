"""One competitor in a process of its own, which waits between its turns: one JSON line in, one out.

Knows processes and pipes, and nothing of what is measured. A process each, because peak memory belongs to a process,
because one library's settings must not reach another's, and because a peer may need another Python altogether
(`vllm_worker.py` speaks the same lines without importing anything of ours).

    child -> parent    {"ready": true} once it has loaded what it needs, or {"mistake": a sentence for the user}
    parent -> child    a request, for example {"batch": 64}
    child -> parent    {"seconds": 1.9, "peak_rss_mb": 812.0, ...}, or nothing more if it died
"""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from strop.process import OUR_ENV, give_back_memory, keep_freed_memory
from strop.record import UserError

__all__ = ["Link", "Side", "command", "main"]

CLOSE_S = 30.0  # a side that has not gone by then is killed


def command(function: str, settings: Mapping[str, Any]) -> list[str]:
    """How to start `function` ("package.module:name") of ours; it is called with the settings and a `Link`."""
    start = "import sys; from strop.bench.worker import main; main(sys.argv[1:])"
    return [sys.executable, "-c", start, function, json.dumps(dict(settings))]


class Side:
    """The parent's end. A side of ours that dies is an error; of a peer that dies `why` says why, and it is left out."""

    def __init__(
        self, name: str, command: Sequence[str], *, peer: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.peer, self.why = name, peer, ""
        # A peer's threads wait as its users' do.
        inherited = {key: value for key, value in os.environ.items() if not (peer and key in OUR_ENV)}
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=inherited | dict(env or {}),
        )  # fmt: skip
        self._started = False

    def wait_until_ready(self) -> None:
        """Sides load what they need at the same time; nothing may be measured while one still does."""
        if not self._started:
            self._started = True
            self._answer()

    def ask(self, **request: Any) -> dict[str, Any] | None:
        """What one turn took; None if the peer is dead. Raises UserError for a mistake that only the child could see."""
        self.wait_until_ready()
        if self.why:
            return None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._mourn()
            return None
        answer = json.loads(line)
        if "mistake" in answer:
            raise UserError(answer["mistake"])
        return answer

    def _mourn(self) -> None:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        self.why = f"{self.name} ended with {code}: {lines[-1][:300] if lines else 'it said nothing'}"
        if not self.peer:
            raise RuntimeError("\n".join([self.why, *lines[-40:]]))

    def close(self) -> None:
        """End the process. Called twice it does nothing."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Link:
    """The child's end: `wait` for a turn, do the work, say it is `done`. The time between the two is what counts."""

    def __init__(self, requests: io.TextIOBase, answers: io.TextIOBase) -> None:
        self._requests, self._answers = requests, answers
        self._ready = False
        self._started = 0.0

    def wait(self) -> dict[str, Any] | None:
        """The next request; None when there will be no more."""
        if not self._ready:
            self._ready = True
            self.send({"ready": True})
        line = self._requests.readline()
        if not line:
            return None
        self._started = time.perf_counter()
        return json.loads(line)

    def done(self, **values: Any) -> None:
        """Answer with the seconds since `wait` returned (unless given), the peak memory so far, and `values`."""
        seconds = time.perf_counter() - self._started
        # Others take their turns now, and three trainers would fill 24 GB. So every turn begins with no memory kept.
        give_back_memory()
        self.send({"seconds": seconds, "peak_rss_mb": peak_rss_mb(), **values})

    def send(self, answer: Mapping[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def peak_rss_mb() -> float:
    """The most memory this process ever held, in MB (1e6 bytes).

    Not `getrusage`, which starts a child of a large process with that one's peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def main(arguments: Sequence[str]) -> None:
    """The child: whatever libraries print goes to stderr, so that stdout holds answers only."""
    link = Link(os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    keep_freed_memory()  # as the command line does; peers gain from it as well
    module, _, name = arguments[0].partition(":")
    try:
        getattr(importlib.import_module(module), name)(json.loads(arguments[1]), link)
    except UserError as error:  # the last frame of this process: the sentence goes to whoever typed the command
        link.send({"mistake": str(error)})
