"""Runs Python that a model wrote, in a box that it cannot get out of, and says how it ended.

Two boxes, the first that works on this machine: bubblewrap (0.8 or newer), else util-linux' `unshare` with a script of
mounts. As root, the program first becomes another user (65534): bubblewrap's own `--uid` would leave it root outside, and
root is exempt from RLIMIT_NPROC. Where neither works nothing is run, unless STROP_ALLOW_UNSAFE_CODE=1 (the commands'
`--allow-unsafe-code`), and then in a plain process.

Covered, by both boxes (each line is a test in tests/test_sandbox.py):
- files: a new root that holds the system's /usr and the interpreter, read-only, an empty /tmp in memory of `file_bytes`, and
  /dev/null; no home, no data, no /etc, no /proc, no /sys
- the network: a namespace of its own, in which there is nobody
- other processes: a PID namespace of its own, so that none outside can be seen, signalled, traced or left behind
- more rights: no capabilities, no setuid, no further user namespaces
- the environment: cleared; the hash seed is fixed
- wall time, CPU time, memory, processes, file sizes and output, each by a limit

Not covered:
- holes in the kernel: every system call is open to the program (no seccomp, no virtual machine)
- memory of all processes together: the limit is for each, so the most is `processes` x `memory_bytes`
- what the machine is: kernel, host name and hardware can be seen, and programs in /usr can be run
- time: a program can slow others down by using a core, the caches and the disk's bandwidth for as long as it may run
- without a box (`unsafe`): everything but the rlimits, the clock, the cleared environment and the bounded output; nor is the
  number of processes limited there, since RLIMIT_NPROC counts all that the user has

Knows nothing of tasks and verdicts; `code` does.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import math
import os
import select
import selectors
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import CodeType
from typing import IO

from strop.record import UserError

__all__ = ["ALLOW_UNSAFE", "Ended", "Limits", "NotStarted", "Outcome", "Tier", "run", "tier", "why_not"]

ALLOW_UNSAFE = "STROP_ALLOW_UNSAFE_CODE"  # set to 1 by --allow-unsafe-code, for this process and its verifier processes
NOBODY = "65534"
START_S = 20.0  # for the box and the interpreter, which take 30 ms, on a machine that is busy
END_S = 5.0  # for the last processes to go after they were killed
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
DEVICE = "/dev/null"
AT_HAND = "/mnt"  # where root shows the other user an interpreter that lies in a folder of root's own
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1",
    "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib",  # instead of showing ld.so.cache
}  # fmt: skip


class Tier(StrEnum):
    """What keeps the program in."""

    BUBBLEWRAP = "bubblewrap"
    UNSHARE = "unshare"
    UNSAFE = "unsafe"


class Ended(StrEnum):
    """How a program ended."""

    OK = "ok"  # by itself, with exit code 0
    ERROR = "error"  # by itself or by a signal of its own making, with another
    TIMEOUT = "timeout"  # stopped: wall or CPU time
    MEMORY = "memory"  # out of memory
    OUTPUT = "output"  # stopped: it wrote more than it may


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use. All but `wall_s`, `output_bytes` and the sum of files are for each process of it."""

    wall_s: float = 3.0  # from its first line, not from the start of the box
    cpu_s: float = 3.0  # counted in whole seconds, rounded up
    memory_bytes: int = 1 << 30  # of address space
    processes: int = 32  # threads count
    file_bytes: int = 16 << 20  # of one file, and of all of /tmp
    output_bytes: int = 1 << 16  # of stdout, and of stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended and what it wrote."""

    ended: Ended
    exit_code: int  # 128 + n where signal n ended it
    stdout: str
    stderr: str
    seconds: float  # from the first line of the program


class NotStarted(RuntimeError):
    """The box failed before the program's first line: no fault of the program."""


def run(
    code: str | CodeType, stdin: str | bytes = b"", limits: Limits | None = None, box: Tier | None = None
) -> Outcome:
    """Run a Python program in a box, that of this machine (`tier`) where none is named; only the standard library is there. Nothing of it is left after.

    Code that is compiled already saves the time of doing so; what a model wrote is compiled inside, so give it as text.
    Raises UserError where there is no box (`tier`), NotStarted where it fails.

    >>> run("print(sum(map(int, input().split())))", "2 3").stdout  # doctest: +SKIP
    '5\\n'
    """
    box, limits = box or tier(), limits or Limits()
    given = stdin.encode("utf-8", "replace") if isinstance(stdin, str) else stdin
    with ExitStack() as stack:
        program = stack.enter_context(tempfile.TemporaryFile())
        for part in (_inside(), marshal.dumps(code)):
            program.write(b"%12d%s" % (len(part), part))
        program.write(given)
        program.seek(0)
        scratch = stack.enter_context(tempfile.TemporaryDirectory()) if box is Tier.UNSAFE else "/"
        handle = None if box is Tier.UNSAFE else _mounts()
        process = subprocess.Popen(
            _command(box, limits), stdin=program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=scratch,
            start_new_session=True, pass_fds=() if handle is None else (handle,),
        )  # fmt: skip
        running = _Running(process, box)
        try:
            return running.watch(limits)
        finally:
            running.end()


def tier() -> Tier:
    """What would keep a program in here, found out once by trying. Raises UserError where nothing does."""
    found, why = _found()
    if found is not None:
        return found
    if os.environ.get(ALLOW_UNSAFE) == "1":
        return Tier.UNSAFE
    raise UserError(
        "code that a model wrote runs only in a sandbox, and this machine has none that works: install bubblewrap 0.8 or newer "
        f"(apt install bubblewrap) and allow user namespaces, or run it unprotected with "
        f"--allow-unsafe-code or {ALLOW_UNSAFE}=1 ({why})"
    )


@functools.cache
def _found() -> tuple[Tier | None, str]:
    """The first box in which the trial comes out as it must, and else why none does."""
    reasons = {box: why_not(box) for box in (Tier.BUBBLEWRAP, Tier.UNSHARE)}
    works = [box for box, why in reasons.items() if why is None]
    return (works[0], "") if works else (None, "; ".join(f"{box}: {why}" for box, why in reasons.items()))


def why_not(box: Tier) -> str | None:
    """What keeps a box from working here, by trying; None where it works."""
    try:
        outcome = run(_TRIAL, limits=Limits(wall_s=START_S), box=box)
    except (NotStarted, OSError) as error:
        return " ".join(str(error).split())[-200:]
    said = outcome.stdout + outcome.stderr
    return None if said == "held\n" else " ".join(f"the trial ended with {said}".split())[-200:]


_TRIAL = """
import os, socket
assert not os.path.exists("/proc/self") and not os.path.exists("/etc/passwd"), "files"
assert os.getpid() < 10, "processes"
for place in ("/usr/x", "/x"):
    try:
        open(place, "w")
    except OSError:
        continue
    raise SystemExit("writes " + place)
open("/tmp/x", "w").write("x")
assert [name for _, name in socket.if_nameindex() if name != "lo"] == [], "network"
child = os.fork()  # where the kernel counts what the user runs outside too, the limit may be used up
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
try:
    os.chroot("/tmp")
except PermissionError:
    print("held")
"""


# --- one run ----------------------------------------------------------------------------------------------------------


# What the interpreter starts with: the rest comes on stdin. Not -I, which would ignore the hash seed.
_FLAGS = ("-s", "-S", "-B", "-c", "import marshal, os; exec(marshal.loads(os.read(0, int(os.read(0, 12)))))")


def _command(box: Tier, limits: Limits) -> list[str]:
    processes = -1 if box is Tier.UNSAFE else limits.processes  # unlimited, where all of the user's would count
    values = (limits.memory_bytes, math.ceil(limits.cpu_s), processes, limits.file_bytes, 0)
    inside = [*_FLAGS, *map(str, values)]
    match box:
        case Tier.BUBBLEWRAP:
            return [*_as_nobody(), *_bubblewrap(limits), _interpreter(), *inside]
        case Tier.UNSHARE:
            return [*_as_nobody(), *_UNSHARE, _outside(_interpreter()), *inside, *_to_close(limits)]
        case Tier.UNSAFE:
            return [_interpreter(), *inside]


@functools.cache
def _inside() -> bytes:
    """`inside.py`, compiled here and once; the interpreter that reads it is of the version that writes it."""
    path = Path(__file__).with_name("inside.py")
    return marshal.dumps(compile(path.read_text(encoding="utf-8"), path.name, "exec", dont_inherit=True))


class _Running:
    """A box with a program in it: read while it lasts, ended whatever happens."""

    def __init__(self, process: subprocess.Popen[bytes], box: Tier) -> None:
        self.process, self.box = process, box
        assert process.stdout is not None
        assert process.stderr is not None
        self.out, self.err = process.stdout, process.stderr
        self.written = {stream.fileno(): bytearray() for stream in (self.out, self.err)}
        self.first: int | None = None  # handle of the first process in the PID namespace

    def watch(self, limits: Limits) -> Outcome:
        """What came of it, at its end or at a limit. Raises NotStarted."""
        if not self._read(time.monotonic() + START_S, lambda: bool(self.written[self.out.fileno()])):
            raise NotStarted(self._text(self.err, limits).strip()[-500:] or "no sign of life")
        begun = time.monotonic()
        del self.written[self.out.fileno()][:1]
        if self.box is not Tier.UNSAFE:
            self.first = _first_inside(self.process.pid)
        flooded = self._read(begun + limits.wall_s, lambda: max(map(len, self.written.values())) > limits.output_bytes)
        stopped = Ended.OUTPUT if flooded else None
        if stopped is None and not self._has_ended(begun + limits.wall_s):
            stopped = Ended.TIMEOUT
        seconds = time.monotonic() - begun
        out, err = self._text(self.out, limits), self._text(self.err, limits)
        self.end()
        code = self.process.returncode
        code = 128 - code if code < 0 else code
        return Outcome(ended=stopped or _ended(code, err), exit_code=code, stdout=out, stderr=err, seconds=seconds)

    def _read(self, until: float, enough: Callable[[], bool]) -> bool:
        """Read until it is enough, and say whether it came to that; else all is read, or the time is over."""
        with selectors.DefaultSelector() as selector:
            for number in self.written:
                selector.register(number, selectors.EVENT_READ)
            while selector.get_map() and not enough() and (left := until - time.monotonic()) > 0:
                ready = selector.select(min(left, 0.1))
                for key, _ in ready:
                    if data := os.read(key.fd, 1 << 16):
                        self.written[key.fd] += data
                    else:
                        selector.unregister(key.fd)
                if not ready and self.process.poll() is not None:
                    break  # it is over, and somebody left behind holds the pipe
        return enough()

    def _has_ended(self, until: float) -> bool:
        try:
            self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _text(self, stream: IO[bytes], limits: Limits) -> str:
        return bytes(self.written[stream.fileno()][: limits.output_bytes]).decode("utf-8", "replace")

    def end(self) -> None:
        """Kill the box, and with its first process all of its PID namespace; wait until that is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.first is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.first, signal.SIGKILL)
            select.select([self.first], [], [], END_S)  # it is over once all others in there are
            os.close(self.first)
            self.first = None
        self.out.close()
        self.err.close()


def _first_inside(outer: int) -> int | None:
    """Handle of the first process in the box: the only child of the program that makes the box. None once it has ended."""
    try:
        return os.pidfd_open(int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0]))
    except (OSError, IndexError):
        return None


def _ended(code: int, err: str) -> Ended:
    """What an exit code means. Out of memory is told by Python's last words, or by a kill that was none of ours."""
    if code == 0:
        return Ended.OK
    if code == 128 + signal.SIGXCPU:
        return Ended.TIMEOUT
    if code == 128 + signal.SIGKILL or err.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return Ended.MEMORY
    return Ended.ERROR


# --- the boxes ----------------------------------------------------------------------------------------------------------


@functools.cache
def _interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _own_prefix() -> str | None:
    """The folder of an interpreter that is none of the system's."""
    prefix = os.path.realpath(sys.base_prefix)
    return None if any(prefix == path or prefix.startswith(path + "/") for path in SYSTEM) else prefix


@functools.cache
def _is_hidden() -> bool:
    """Whether the interpreter lies where the other user, which root becomes, may not look, such as /root."""
    prefix = _own_prefix()
    if os.geteuid() != 0 or prefix is None:
        return False
    return not all(os.stat(folder).st_mode & stat.S_IXOTH for folder in (prefix, *Path(prefix).parents))


def _outside(path: str) -> str:
    """Where something is found from outside, by the user who looks."""
    prefix = _own_prefix()
    return AT_HAND + path.removeprefix(prefix) if _is_hidden() and prefix and path.startswith(prefix) else path


def _as_nobody() -> tuple[str, ...]:
    """For root: what runs the rest as another user."""
    if os.geteuid() != 0:
        return ()
    handle = _mounts()
    enter = () if handle is None else ("nsenter", f"--mount=/proc/self/fd/{handle}")
    return (*enter, "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


@functools.cache
def _mounts() -> int | None:
    """Handle of a mount namespace in which the other user finds a hidden interpreter at `AT_HAND`; None where none is needed.

    Made once, because it takes several programs; its first process ends, and the handle keeps it. Raises NotStarted.
    """
    if not _is_hidden():
        return None
    script = f'mount --bind "$1" {AT_HAND} && echo made && read line'
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(_own_prefix())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != b"made\n":
            raise NotStarted(process.stderr.read().decode("utf-8", "replace").strip()[-500:])
        return os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY)


@functools.cache
def _shown() -> tuple[tuple[str, str, str], ...]:
    """What there is inside: bind, device or link, the path, and what is there."""
    there = [path for path in (*SYSTEM, DEVICE) if os.path.exists(path)]  # few: each takes the box half a millisecond
    if (prefix := _own_prefix()) is not None:
        there.append(prefix)
    return tuple(
        ("link", path, os.readlink(path)) if os.path.islink(path)
        else ("device" if path == DEVICE else "bind", path, _outside(path))
        for path in there
    )  # fmt: skip


_BWRAP = {"bind": "--ro-bind", "device": "--dev-bind", "link": "--symlink"}


def _bubblewrap(limits: Limits) -> list[str]:
    shown = [text for kind, path, what in _shown() for text in (_BWRAP[kind], what, path)]
    return [
        "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL", "--die-with-parent", "--new-session",
        *shown, "--size", str(limits.file_bytes), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp",
    ]  # fmt: skip


_UNSHARE = (
    "unshare", "--user", "--map-root-user", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child",
)  # fmt: skip


def _to_close(limits: Limits) -> list[str]:
    """What `inside` needs to know to finish the box; the interpreter is shown where it has started, as it looks there."""
    seconds, shown = math.ceil(limits.wall_s) + 2, _shown()
    return [
        str(seconds),
        str(limits.file_bytes),
        *("\t".join((kind, _outside(path), what)) for kind, path, what in shown),
    ]
