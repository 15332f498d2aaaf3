"""One checkpoint write of a real stage, made again and again in forked processes that are killed or failed at a chosen call.

A run of the tiny model stands right before it saves step 4, with checkpoints of steps 2 (which then goes) and 3 behind it. `Saving.strike` copies
that run, forks, and has the child save under a fault; `Saving.survived` then resumes what is left as `strop` would.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from strop import disk, pipeline, rewards, train
from strop.config import Recipe, TrainStage
from strop.learner import Learner
from strop.ledger import Ledger
from strop.run import Run
from strop.tools import Tools
from strop.watch import Watch

STEP, BEFORE = 4, 3
# System calls that change what lies on a disk; openat where it may write.
CHANGING = (
    "openat", "write", "pwrite64", "writev", "ftruncate", "fallocate", "fsync", "fdatasync", "rename", "renameat", "renameat2",
    "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "chmod", "fchmod", "fchmodat", "utimensat", "copy_file_range", "sendfile",
    "msync", "link", "symlink",
)  # fmt: skip


class Saving:
    """The run in `template`, with the learner as it is after `STEP`."""

    def __init__(self, job: Recipe, template: Path, stack: ExitStack) -> None:
        self.job, self.template, self._stack = job, template, stack
        stage = job.stages[0]
        assert isinstance(stage, TrainStage)
        self.stage = stage
        self._saver, self._checker = self._tools(), self._tools()
        with Run.open(self.copy("expected"), job, resume=True) as run:
            self.learner = Learner(self._policy(self._saver), stage.optim)
            train._resume(stage, self._saver, run.stage("rl"), self.learner)
            assert run.stage("rl").last_step == STEP
        self.expected = self._state(self._saver, self.learner)

    def _tools(self) -> Tools:
        scorer = rewards.Scorer(workers=1, timeout_s=5.0)  # never entered: nothing is scored
        splits = pipeline._read_splits(self.template / "tasks.parquet")
        watch = Watch(io.StringIO(), live=False)
        return pipeline.open_tools(self.job, splits, scorer, Ledger(), watch, lambda: False, self._stack)

    @staticmethod
    def _policy(tools: Tools) -> Any:
        assert tools.policy is not None
        return tools.policy

    def _state(self, tools: Tools, learner: Learner) -> list[object]:
        return [learner.state_hash(), *(p.detach().numpy().tobytes() for p in self._policy(tools).trainable().values())]

    def copy(self, name: str) -> Path:
        out = self.template.with_name(name)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.template, out)
        return out

    # --- a fault

    @contextmanager
    def forked(self, arm: Callable[[Path], None] = lambda out: None) -> Iterator[tuple[int, int, Path]]:
        """(process, pipe that lets it go, run) of a child that saves; it ends with 0, or with 9 where the save raised DiskFull."""
        out = self.copy("struck")
        (wait, go), (ready, is_ready) = os.pipe(), os.pipe()
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.close(go)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                run = Run(
                    out, self.job, attempt=out / "attempts" / "1", lock=disk.lock_folder(out, print), say=lambda _: None
                )
                os.write(is_ready, b".")
                os.read(wait, 1)
                arm(out)
                run.stage("rl").save_checkpoint(STEP, self.learner.save)
                code = 0
            except disk.DiskFull:
                code = 9
            finally:
                os._exit(code)
        os.close(wait)
        os.close(is_ready)
        os.read(ready, 1)  # from here on the child does nothing but save
        os.close(ready)
        try:
            yield child, go, out
        finally:
            os.close(go)

    def by_hook(self, number: int, fault: Callable[[], None]) -> tuple[int, int]:
        """Saves with `fault` at the given one of the changes that Python announces; (how it ended, changes announced)."""
        heard, says = os.pipe()
        seen = 0

        def arm(out: Path) -> None:
            os.close(heard)
            sys.addaudithook(lambda event, arguments: hook(out, event, arguments))

        def hook(out: Path, event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate") or (
                event == "open"
                and isinstance(arguments[2], int)
                and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if changes and str(out) in str(arguments[0]):
                os.write(says, b".")
                seen += 1
                if seen == number:
                    fault()

        with self.forked(arm) as (child, go, _):
            os.close(says)
            os.write(go, b".")
            status = os.waitpid(child, 0)[1]
        num = len(os.read(heard, 1 << 16))
        os.close(heard)
        return os.waitstatus_to_exitcode(status), num

    def by_strace(self, *injected: str) -> tuple[int, str]:
        """Saves under strace with its `-e` options; (how it ended, the calls it wrote down)."""
        log = self.template.with_name("calls.txt")
        with self.forked() as (child, go, _):
            options = [word for text in injected for word in ("-e", text)]
            command = [
                "strace",
                "-f",
                "-y",
                "-s",
                "0",
                "-e",
                f"trace={','.join(CHANGING)}",
                *options,
                "-o",
                str(log),
                "-p",
                str(child),
            ]
            tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            if "attached" not in said:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                tracer.wait()
                pytest.skip(f"strace may not attach here: {said}")
            os.write(go, b".")
            status = os.waitpid(child, 0)[1]
            tracer.communicate()
        return os.waitstatus_to_exitcode(status), log.read_text()

    def calls(self) -> list[tuple[str, int]]:
        """Every call of a checkpoint write that changes the run, as (name, which one of that name), in order."""
        code, text = self.by_strace()
        assert code == 0, text[-2000:]
        out, found, counts, processes = str(self.template.with_name("struck")), [], dict[str, int](), set()
        for line in text.splitlines():
            if (match := re.match(r"(\d+) +(\w+)\((.*)", line)) is None or match[2] not in CHANGING:
                continue
            process, name, rest = match.groups()
            counts[name] = counts.get(name, 0) + 1
            reads = name == "openat" and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", rest)
            if out in rest and not reads:
                processes.add(process)
                found.append((name, counts[name]))
        assert len(processes) == 1, "the calls of one thread are counted"
        return found

    # --- after it

    def survived(self) -> str | None:
        """Resumes the struck run; None where it is as it has to be, else what is wrong."""
        said: list[str] = []
        out = self.template.with_name("struck")
        with Run.open(out, self.job, resume=True, say=said.append) as run:
            log = run.stage("rl")
            if left := [str(path) for path in out.rglob(".*.tmp")]:
                return f"left behind: {left}"
            latest = log.latest_checkpoint()
            if latest is None or latest[0] not in (BEFORE, STEP):
                return f"no checkpoint to go on from: {latest}, {said}"
            if any(disk.what_is_wrong(folder) for _, folder in log.step_checkpoints()):
                return f"a half checkpoint bears a name: {said}"
            if not self.resumes_as_expected(run):
                return f"other weights, from {latest}"
        return None

    def resumes_as_expected(self, run: Run) -> bool:
        """Whether a resume of this run has the weights and the optimizer that a run without a fault has after `STEP`."""
        learner = Learner(self._policy(self._checker), self.stage.optim)
        train._resume(self.stage, self._checker, run.stage("rl"), learner)
        return run.stage("rl").last_step == STEP and self._state(self._checker, learner) == self.expected
