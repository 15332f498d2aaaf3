"""Attacks on the sandbox: each held, in each box of this machine, and each beside a harmless program that works.

Where a plain process lets an attack through, that is shown too (`UNSAFE`): then the program does what it says, and it is
the box that holds. A machine that lacks a box skips its tests and says so; one that has none is tested to refuse.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from strop.record import UserError
from strop.rewards import sandbox
from strop.rewards.sandbox import Ended, Limits, NotStarted, Outcome, Tier

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=[Tier.BUBBLEWRAP, Tier.UNSHARE])
def box(request: pytest.FixtureRequest) -> Tier:
    if (why := sandbox.why_not(request.param)) is not None:
        pytest.skip(f"NOT CHECKED: {request.param} does not work here: {why}")
    return request.param


def run(code: str, box: Tier, stdin: str = "", **limits: float) -> Outcome:
    return sandbox.run(code, stdin, Limits(**limits), box=box)  # pyright: ignore[reportArgumentType]


def said(code: str, box: Tier, **limits: float) -> str:
    """What a program prints that ends by itself."""
    outcome = run(code, box, "", **limits)
    assert outcome.ended is Ended.OK, outcome
    return outcome.stdout.strip()


def attempt(statements: str) -> str:
    """A program that prints "did" where the statements go through, else what stopped them."""
    body = "".join(f"    {line}\n" for line in statements.strip().splitlines())
    return f"import ctypes, os, signal, socket, sys, time\ntry:\n{body}except BaseException as e:\n    print(type(e).__name__)\nelse:\n    print('did')\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("the secret", encoding="utf-8")
    return path


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this user."""
    with subprocess.Popen(["sleep", "60"], env={"STROP_SECRET": "the secret"}) as process:
        yield process
        process.kill()


# --- what it is for -----------------------------------------------------------------------------------------------------


def test_a_program_reads_its_input_and_says_what_it_found(box: Tier) -> None:
    outcome = run(
        "import sys\nprint(sum(map(int, input().split())))\nprint('ü', sys.argv, file=sys.stderr)", box, "2 3\n"
    )
    assert (outcome.ended, outcome.exit_code, outcome.stdout, outcome.stderr) == (
        Ended.OK,
        0,
        "5\n",
        "ü ['program.py']\n",
    )
    assert 0 < outcome.seconds < 3


@pytest.mark.parametrize(
    ("code", "ended", "exit_code"),
    [
        ("1/0", Ended.ERROR, 1),
        ("raise SystemExit(3)", Ended.ERROR, 3),
        ("def f(", Ended.ERROR, 1),
        ("import os; os.abort()", Ended.ERROR, 128 + signal.SIGABRT),
        ("import ctypes; ctypes.string_at(0)", Ended.ERROR, 128 + signal.SIGSEGV),
        ("import os; os._exit(0)", Ended.OK, 0),
    ],
)
def test_how_it_ended(box: Tier, code: str, ended: Ended, exit_code: int) -> None:
    outcome = run(code, box)
    assert (outcome.ended, outcome.exit_code) == (ended, exit_code), outcome


def test_the_standard_library_is_there_and_nothing_else(box: Tier) -> None:
    usual = (
        "import collections, ctypes, decimal, heapq, json, math, random, re, socket, sqlite3, threading; print('there')"
    )
    assert said(usual, box) == "there"
    assert said(attempt("import numpy"), box) == "ModuleNotFoundError"
    assert said(attempt("import strop"), box) == "ModuleNotFoundError"


def test_two_runs_are_alike(box: Tier) -> None:
    """The hash seed is fixed: a set of words comes in one order."""
    code = "print(list({'a', 'b', 'c', 'd', 'e', 'f', 'g'}))"
    assert len({said(code, box) for _ in range(4)}) == 1


# --- attacks: what is not the program's to read or write ----------------------------------------------------------------


def test_the_home_cannot_be_read(box: Tier, secret: Path) -> None:
    steal = attempt(f"print(open({str(secret)!r}).read())")
    assert said(steal, Tier.UNSAFE) == "the secret\ndid"
    assert said(steal, box) == "FileNotFoundError"
    home = attempt(
        f"names = os.listdir({str(Path.home())!r})\nassert not set(names) - set(sys.base_prefix.split('/')), names"
    )
    assert said(home, box) in (
        "did",
        "FileNotFoundError",
        "PermissionError",
    )  # of its own interpreter's folders at most
    assert said(attempt("open('/etc/passwd').read()"), box) == "FileNotFoundError"
    assert said("open('/tmp/own', 'w').write('mine'); print(open('/tmp/own').read())", box) == "mine"


def test_the_environment_cannot_be_read(
    box: Tier, victim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STROP_SECRET", "the secret")
    assert "the secret" not in said("import os; print(dict(os.environ))", box)
    others = attempt(f"assert b'the secret' in open('/proc/{victim.pid}/environ', 'rb').read()")
    assert said(others, Tier.UNSAFE) == "did"
    assert said(others, box) == "FileNotFoundError"
    assert said("import os; print(os.environ['HOME'])", box) == "/tmp"


def test_nothing_is_written_outside(box: Tier, tmp_path: Path) -> None:
    target = tmp_path / "written"
    write = attempt(f"open({str(target)!r}, 'w').write('x')")
    assert said(write, Tier.UNSAFE) == "did"
    target.unlink()
    places = [
        str(target),
        "/usr/strop-written",
        "/strop-written",
        "/dev/strop-written",
        f"{sys.base_prefix}/strop-written",
    ]
    for place in places:
        assert said(attempt(f"open({place!r}, 'w').write('x')"), box) in (
            "FileNotFoundError",
            "OSError",
            "PermissionError",
        )
        assert not Path(place).exists()
    for spoil in (
        "os.remove('/usr/bin/env')",
        "os.chmod('/usr', 0o777)",
        "os.rename('/usr', '/tmp/usr')",
        "os.mkdir('/etc')",
    ):
        assert said(attempt(spoil), box) in ("OSError", "PermissionError")
    name = f"strop-{os.getpid()}"
    assert said(f"open('/tmp/{name}', 'w').write('x'); print(open('/tmp/{name}').read())", box) == "x"
    assert not Path("/tmp", name).exists()
    assert said("import os; print(os.listdir('/tmp'))", box) == "[]"  # nor is it there for the next


def test_files_have_a_limit(box: Tier) -> None:
    fill = "with open('/tmp/big', 'wb') as f:\n    for _ in range({}): f.write(bytes(1 << 20))\nprint('done')"
    assert said(fill.format(3), box, file_bytes=4 << 20) == "done"
    assert "OSError" in run(fill.format(8), box, file_bytes=4 << 20).stderr
    many = "for i in range({}):\n    open(f'/tmp/{{i}}', 'wb').write(bytes(1 << 20))\nprint('done')"
    assert said(many.format(3), box, file_bytes=4 << 20) == "done"
    assert "No space left" in run(many.format(8), box, file_bytes=4 << 20).stderr


def test_links_lead_nowhere(box: Tier, secret: Path) -> None:
    through = attempt(f"os.symlink({str(secret)!r}, 'link')\nprint(open('link').read())")
    assert said(through, Tier.UNSAFE) == "the secret\ndid"
    assert said(through, box) == "FileNotFoundError"
    up = f"os.symlink('/' + '../' * 40 + {str(secret)[1:]!r}, 'link')\nopen('link').read()"
    assert said(attempt(up), box) == "FileNotFoundError"
    assert said(attempt("os.link('/usr/bin/env', 'hard')\nopen('hard', 'a')"), box) in ("OSError", "PermissionError")
    assert said(attempt("os.symlink('/usr/strop-link', 'link')\nopen('link', 'w')"), box) == "OSError"
    assert said("import os; open('a', 'w').write('mine'); os.symlink('a', 'b'); print(open('b').read())", box) == "mine"


def test_proc_tells_nothing_and_opens_nothing(box: Tier, secret: Path) -> None:
    root = attempt(f"print(open('/proc/self/root' + {str(secret)!r}).read())")
    assert said(root, Tier.UNSAFE) == "the secret\ndid"
    assert said(root, box) == "FileNotFoundError"
    for place in (
        "/proc/1/environ",
        f"/proc/{os.getpid()}/mem",
        "/proc/self/fd/0",
        "/sys/kernel",
        "/dev/mem",
        "/dev/fd/0",
    ):
        assert said(attempt(f"open({place!r}, 'rb').read(1)"), box) in ("FileNotFoundError", "NotADirectoryError")
    mount = "os.mkdir('p')\nassert ctypes.CDLL(None).mount(b'proc', b'p', b'proc', 0, None) == 0, 'refused'"
    assert said(attempt(mount), box) == "AssertionError"
    again = "assert ctypes.CDLL(None).mount(None, b'/usr', None, ctypes.c_ulong(32 | 4096), None) == 0, 'refused'"
    assert said(attempt(again), box) == "AssertionError"  # to make /usr writable
    assert said("import os; print(sorted(os.listdir('/dev')), os.path.exists('/usr/bin'))", box) == "['null'] True"


@pytest.fixture
def mounted() -> Iterator[Path]:
    """A folder with a mount of its own below it, in which everybody may write."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    below = folder / "a mount"
    below.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "mode=777,noexec", "tmpfs", str(below)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    sandbox._mounts.cache_clear()  # what was made before does not have it
    try:
        if done.returncode != 0:
            pytest.skip(f"NOT CHECKED: nothing can be mounted here: {done.stderr.strip()}")
        (below / "there").write_text("read", encoding="utf-8")
        yield folder
    finally:
        sandbox._mounts.cache_clear()
        if done.returncode == 0:
            subprocess.run(["umount", str(below)], check=True)
        shutil.rmtree(folder)


def test_a_mount_below_a_folder_that_is_shown_is_read_only_too(
    box: Tier, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = (*sandbox._shown(), ("bind", str(mounted), str(mounted)))
    monkeypatch.setattr(sandbox, "_shown", lambda: shown)
    write = attempt(f"open('{mounted}/a mount/written', 'w').write('x')")
    assert said(write, Tier.UNSAFE) == "did"
    (mounted / "a mount" / "written").unlink()
    assert said(write, box) == "OSError"
    assert list((mounted / "a mount").iterdir()) == [mounted / "a mount" / "there"]
    assert said(f"print(open('{mounted}/a mount/there').read())", box) == "read"


def test_no_rights_are_to_be_had(box: Tier) -> None:
    rights = {
        "chroot": "os.chroot('/tmp')", "device": "os.mknod('/tmp/d', 0o60600, os.makedev(8, 0))", "user": "os.setuid(1)",
        "groups": "os.setgroups([0])", "owner": "open('f', 'w')\nos.chown('f', 1, 1)", "nice": "os.nice(-5)",
        "limits": "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6))",
    }  # fmt: skip
    found = {name: said(attempt(statements), box) for name, statements in rights.items()}
    assert set(found.values()) <= {"PermissionError", "OSError", "ValueError"}, found
    spaces = (
        "libc = ctypes.CDLL(None)\nassert [f for f in (0x10000000, 0x20000, 0x40000000) if libc.unshare(f) == 0] == []"
    )
    assert said(attempt(spaces), box) == "did"  # none of them could be had
    assert said(attempt("assert os.getuid() >= 0 and os.nice(1) > 0"), box) == "did"


# --- attacks: others --------------------------------------------------------------------------------------------------------


def test_there_is_no_network(box: Tier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        connect = attempt(f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=2).send(b'x')")
        assert said(connect, Tier.UNSAFE) == "did"
        server.accept()[0].close()
        assert said(connect, box) in ("ConnectionRefusedError", "OSError")
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    with socket.socket(socket.AF_UNIX) as server:  # in no folder, so that no mount hides it
        server.bind(f"\0strop-{os.getpid()}")
        server.listen()
        name = attempt(f"socket.socket(socket.AF_UNIX).connect('\\0strop-{os.getpid()}')")
        assert said(name, Tier.UNSAFE) == "did"
        assert said(name, box) == "ConnectionRefusedError"
    assert said(attempt("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))"), box) == "OSError"
    assert said("import socket\na, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))", box) == "b'x'"


def test_others_cannot_be_signalled(box: Tier, victim: subprocess.Popen[bytes]) -> None:
    kill = attempt(f"os.kill({victim.pid}, 0)")
    assert said(kill, Tier.UNSAFE) == "did"
    assert said(kill, box) == "ProcessLookupError"
    signals = (
        "for n in (9, 15, 19):\n    for pid in ({pids}):\n        try: os.kill(pid, n)\n        except OSError: pass"
    )
    run(attempt(signals.format(pids=f"{victim.pid}, {os.getpid()}, os.getppid(), 1, -1, 0")), box)
    assert victim.poll() is None  # and so are we
    child = "pid = os.fork()\nif pid == 0: time.sleep(60)\nos.kill(pid, 9)\nassert os.waitpid(pid, 0)[1] == 9"
    assert said(attempt(child), box) == "did"


def test_others_cannot_be_traced(box: Tier, victim: subprocess.Popen[bytes]) -> None:
    attach = "libc = ctypes.CDLL(None)\nassert libc.ptrace(16, {pid}, None, None) == 0, 'refused'\nlibc.ptrace(17, {pid}, None, None)"
    if os.geteuid() == 0:
        assert said(attempt(attach.format(pid=victim.pid)), Tier.UNSAFE) == "did"
    for pid in (victim.pid, os.getpid()):
        assert said(attempt(attach.format(pid=pid)), box) == "AssertionError"
    own = "pid = os.fork()\nif pid == 0: ctypes.CDLL(None).ptrace(0, 0, None, None); os.kill(os.getpid(), 19); os._exit(0)\n"
    assert said(attempt(own + "assert os.WIFSTOPPED(os.waitpid(pid, 0)[1])\nos.kill(pid, 9)"), box) == "did"


# --- attacks: too much --------------------------------------------------------------------------------------------------------

FORKS = """
import os, time
made = 0
try:
    while made < {most}:
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except BlockingIOError:
    pass
print(made, flush=True)
"""


def test_a_fork_bomb_is_held(box: Tier) -> None:
    assert said(FORKS.format(most=3), box, processes=16) == "3"
    assert 8 <= int(said(FORKS.format(most=500), box, processes=16)) < 16
    every = run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", box, wall_s=1.0)
    assert every.ended is Ended.TIMEOUT


def test_a_fork_bomb_in_a_user_namespace_of_its_own_is_held(box: Tier) -> None:
    """There a new count would begin, were it to be had."""
    bomb = f"import ctypes\nctypes.CDLL(None).unshare(0x10000000)\n{FORKS.format(most=500)}"
    assert int(said(bomb, box, processes=16)) < 16


def test_memory_has_a_limit(box: Tier) -> None:
    take = "x = bytearray({} << 20)\nprint(len(x) >> 20)"
    assert said(take.format(64), box, memory_bytes=256 << 20) == "64"
    outcome = run(take.format(512), box, memory_bytes=256 << 20)
    assert (outcome.ended, outcome.stdout) == (Ended.MEMORY, "")
    grow = run("x = []\nwhile True: x.append(' ' * 100_000 + str(len(x)))", box, memory_bytes=256 << 20)
    assert grow.ended is Ended.MEMORY


@pytest.mark.parametrize("loop", ["pass", "time.sleep(9)", "try: time.sleep(9)\n    except BaseException: pass"])
def test_an_endless_loop_is_stopped(box: Tier, loop: str) -> None:
    start = time.monotonic()
    outcome = run(f"import time\nwhile True:\n    {loop}", box, wall_s=0.5)
    assert outcome.ended is Ended.TIMEOUT
    assert 0.5 <= outcome.seconds < 2
    assert time.monotonic() - start < 5
    assert said(f"import time\nfor _ in range(3):\n    {loop.replace('9', '.01')}\nprint('done')", box) == "done"


def test_signals_that_ask_are_not_enough(box: Tier) -> None:
    """Of the CPU limit the program hears before it is killed, and may turn a deaf ear."""
    burn = "import signal\nsignal.signal(signal.SIGXCPU, {})\nwhile True: pass"
    heard = run(burn.format("signal.SIG_DFL"), box, cpu_s=1.0, wall_s=9.0)
    assert (heard.ended, heard.exit_code) == (Ended.TIMEOUT, 128 + signal.SIGXCPU)
    deaf = run(burn.format("signal.SIG_IGN"), box, cpu_s=1.0, wall_s=9.0)
    assert deaf.exit_code == 128 + signal.SIGKILL
    assert max(heard.seconds, deaf.seconds) < 8


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_has_a_limit(box: Tier, stream: str) -> None:
    write = f"import sys\nsys.{stream}.write('x' * {{}})"
    within = run(write.format(10_000), box, output_bytes=10_000)
    assert (within.ended, getattr(within, stream)) == (Ended.OK, "x" * 10_000)
    beyond = run(write.format(10_001), box, output_bytes=10_000)
    assert (beyond.ended, getattr(beyond, stream)) == (Ended.OUTPUT, "x" * 10_000)
    flood = run(f"import sys\nwhile True: sys.{stream}.write('x' * 100_000)", box, output_bytes=10_000)
    assert (flood.ended, len(getattr(flood, stream))) == (Ended.OUTPUT, 10_000)


# --- attacks: staying --------------------------------------------------------------------------------------------------------

# A daemon: a new session, no open streams, known by its argument.
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for stream in ({streams}): os.close(stream)
        os.execv("/usr/bin/sleep", ["sleep", "{name}"])
    os._exit(0)
os.wait()
time.sleep(0.2)
print(os.path.exists("/proc"), flush=True)
{last}
"""


def processes_called(name: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if name in (entry / "cmdline").read_text(errors="replace").split("\0"):
                found.append(int(entry.name))
    return found


def test_a_program_that_says_nothing_more_is_waited_for(box: Tier) -> None:
    quiet = "import os, time\nos.close(1); os.close(2)\ntime.sleep({})\nos._exit(7)"
    assert run(quiet.format(0.3), box).exit_code == 7
    assert run(quiet.format(9), box, wall_s=0.5).ended is Ended.TIMEOUT


@pytest.mark.parametrize("streams", ["0, 1, 2", "0,"])
@pytest.mark.parametrize("last", ["", "while True: pass", "os.kill(os.getpid(), 9)"])
def test_nobody_is_left_behind(box: Tier, streams: str, last: str) -> None:
    name = f"59.{os.getpid():09d}"
    outcome = run(DAEMON.format(streams=streams, name=name, last=last), box, wall_s=1.0)
    assert outcome.stdout.startswith("False")
    assert processes_called(name) == []


def test_the_daemon_is_one() -> None:
    """In a plain process it stays, so that the test above is none of its own making."""
    name = f"58.{os.getpid():09d}"
    run(DAEMON.format(streams="0, 1, 2", name=name, last=""), Tier.UNSAFE)
    left = processes_called(name)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert len(left) == 1


def test_it_ends_with_the_process_that_started_it(box: Tier) -> None:
    name = f"57.{os.getpid():09d}"
    code = f"import os; os.execv('/usr/bin/sleep', ['sleep', '{name}'])"
    start = (
        f"from strop.rewards import sandbox as s; s.run({code!r}, limits=s.Limits(wall_s=5), box=s.Tier({box.value!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", start], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}) as starter:
        wait_until(lambda: processes_called(name) != [], 60)
        starter.kill()
    wait_until(lambda: processes_called(name) == [], 15)


def wait_until(holds, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- no box ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_box(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sandbox.ENVIRONMENT, "PATH", "/nowhere")
    monkeypatch.delenv(sandbox.ALLOW_UNSAFE, raising=False)
    sandbox._found.cache_clear()
    sandbox._mounts.cache_clear()
    yield
    sandbox._found.cache_clear()
    sandbox._mounts.cache_clear()


def test_without_a_box_nothing_runs_unless_that_is_typed(no_box: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"install bubblewrap .* --allow-unsafe-code") as error:
        sandbox.run("print('ran')")
    assert str(error.value).count(". ") == 0  # one sentence
    monkeypatch.setenv(sandbox.ALLOW_UNSAFE, "1")
    assert sandbox.tier() is Tier.UNSAFE
    assert sandbox.run("print('ran')").stdout == "ran\n"


def test_a_box_is_taken_where_there_is_one_whatever_is_allowed(box: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sandbox.ALLOW_UNSAFE, "1")
    assert sandbox.tier() in (Tier.BUBBLEWRAP, Tier.UNSHARE)


def test_a_box_that_fails_is_no_fault_of_the_program(box: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_shown", lambda: (("bind", "/nowhere", "/nowhere"),))
    with pytest.raises(NotStarted):
        run("print('ran')", box)


def test_a_box_in_which_no_process_can_be_started_is_none(box: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the kernel counts what its user runs outside, and the limit is used up by that."""
    assert sandbox.why_not(box) is None
    monkeypatch.setattr(sandbox, "Limits", functools.partial(Limits, processes=1))
    assert "BlockingIOError" in (sandbox.why_not(box) or "")


def test_a_plain_process_may_start_others_however_many_its_user_has() -> None:
    limit = "import resource\nprint(resource.getrlimit(resource.RLIMIT_NPROC))"
    assert said(limit, Tier.UNSAFE) == str(resource.getrlimit(resource.RLIMIT_NPROC))


def test_a_plain_process_has_limits_all_the_same() -> None:
    assert run("while True: pass", Tier.UNSAFE, wall_s=0.5).ended is Ended.TIMEOUT
    assert run("x = bytearray(1 << 30)", Tier.UNSAFE, memory_bytes=256 << 20).ended is Ended.MEMORY
    assert run("while True: print('x')", Tier.UNSAFE).ended is Ended.OUTPUT
    assert said("import os; print(len(os.listdir()))", Tier.UNSAFE) == "0"  # a folder of its own


# --- what it costs ------------------------------------------------------------------------------------------------------------


def test_a_box_takes_20_ms_at_most(box: Tier) -> None:
    """More than the bare interpreter; the best of some runs, because a busy machine makes both slower by any amount."""
    bare = [sandbox._interpreter(), "-I", "-S", "-c", "0"]
    boxed_s = bare_s = float("inf")
    for _ in range(200):
        boxed_s = min(boxed_s, seconds(lambda: sandbox.run("0", box=box)))
        bare_s = min(bare_s, seconds(lambda: subprocess.run(bare, check=True, capture_output=True)))
        if _ >= 20 and boxed_s - bare_s <= 0.020:
            break
    assert boxed_s - bare_s <= 0.020


def seconds(do) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start
