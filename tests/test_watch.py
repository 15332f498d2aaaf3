"""What is seen while Strop works: on a terminal (a real pty), in a pipe, and where nobody is left to see."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from strop.watch import Bar, Watch

WORK = """
import sys, time
from strop.watch import Watch
watch = Watch(quiet_s=0.3)
watch.say("loading [bold]model[/bold]")
with watch.phase("rl", 3, "steps") as steps:
    for step in range(1, 4):
        with watch.phase("generate", 32, "rollouts") as bar:
            for _ in range(4):
                time.sleep(0.12)
                bar.advance(8, **{"tok/s": 1234.5})
        steps.advance(1, reward=step / 10, length=88)
        watch.step(f"rl step {step}: reward {step / 10}")
print("result")
"""

DONE = r"rl: done, 3 steps in 0:0\d, reward 0\.3, length 88"


def run_on_a_terminal(code: str, columns: int = 100, **env: str) -> tuple[str, int]:
    """What a program drew on a pty of that width, and its exit status."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environ |= {"TERM": "xterm-256color", **env}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=environ, close_fds=True
    )
    os.close(slave)
    drawn = b""
    while select.select([master], [], [], 30)[0]:
        try:
            data = os.read(master, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not data:
            break
        drawn += data
    os.close(master)
    return drawn.decode("utf-8", "replace"), process.wait()


def unstyled(drawn: str) -> str:
    """The text alone, each piece that begins at the left edge on a line of its own."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).replace("\r", "\n")


class Screen:
    """A terminal small enough to read: text, carriage return, line feed, cursor up, erase line."""

    def __init__(self, drawn: str) -> None:
        self.lines, self.row, self.column = [""], 0, 0
        for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", drawn):
            self.put(part)

    def put(self, part: str) -> None:
        if part == "\r":
            self.column = 0
        elif part == "\n":
            self.row, self.column = self.row + 1, 0
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif part.startswith("\x1b["):
            count = int(part[2:-1]) if part[2:-1].isdigit() else 1
            if part.endswith("A"):
                self.row = max(0, self.row - count)
            elif part.endswith("K"):
                self.lines[self.row] = ""
        else:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + part + line[self.column + len(part) :]
            self.column += len(part)


def test_on_a_terminal() -> None:
    drawn, status = run_on_a_terminal(WORK)
    assert status == 0
    text = unstyled(drawn)
    assert "\x1b[1A" in drawn  # drawn over, not scrolled
    assert re.search(r"rl +[━╸╺]+ 1/3 steps, 0:0\d, 0:0\d to go", text)
    assert re.search(r"generate +[━╸╺]+ \d+/32 rollouts", text)
    assert "reward 0.2  length 88" in text
    assert "tok/s 1,234" in text
    assert "rl step 2: reward 0.2" in text
    assert drawn.count("\x1b[?25h") >= 1  # the cursor is back
    left = [line.rstrip() for line in Screen(drawn).lines if line.strip()]
    assert [left[0], left[2]] == ["loading [bold]model[/bold]", "result"]
    assert re.fullmatch(DONE, left[1])
    assert len(left) == 3


def test_on_a_narrow_terminal_no_line_wraps() -> None:
    drawn, status = run_on_a_terminal(WORK, columns=40)
    assert status == 0
    assert max(len(line) for line in unstyled(drawn).split("\n") if "━" in line) <= 40


def test_library_output_does_not_tear_the_bars() -> None:
    code = WORK.replace("time.sleep(0.12)", "time.sleep(0.12); print('a warning', file=sys.stderr)", 1)
    drawn, status = run_on_a_terminal(code)
    assert status == 0
    left = [line.rstrip() for line in Screen(drawn).lines if line.strip()]
    assert left.count("a warning") == 12
    assert len(left) == 15


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": ""}])
def test_on_a_dumb_terminal_plain_lines(env: dict[str, str]) -> None:
    drawn, status = run_on_a_terminal(WORK, **env)
    assert status == 0
    assert "\x1b" not in drawn
    assert "rl step 3: reward 0.3" in drawn


def test_on_a_terminal_without_unicode() -> None:
    drawn, status = run_on_a_terminal(WORK, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert status == 0
    assert "rl step 3: reward 0.3" in unstyled(drawn)


def test_in_a_pipe() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"
    assert "\x1b" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "loading [bold]model[/bold]"
    assert [line for line in lines if line.startswith("rl step")] == [
        f"rl step {n}: reward {n / 10}" for n in (1, 2, 3)
    ]
    assert re.fullmatch(DONE, lines[-1])
    alive = [line for line in lines if " > " in line]  # every 0.3 s of silence in steps of 0.48 s
    assert alive
    assert re.fullmatch(
        r"rl: 0/3 steps, 0:0\d > generate: (8|16|24)/32 rollouts, 0:0\d, 0:0\d to go, tok/s 1,234", alive[0]
    )


def test_a_quiet_pipe_gets_a_line_every_quiet_s_and_no_more() -> None:
    stream = io.StringIO()
    watch = Watch(stream, quiet_s=0.2)
    with watch.phase("load") as bar:  # the thread that computes says nothing at all
        for _ in range(500):
            bar.advance()
        time.sleep(1.1)
        inside = stream.getvalue().splitlines()
    assert 2 <= len(inside) <= 5
    assert inside[0] == "load: 500, 0:00"
    assert stream.getvalue().splitlines()[-1] == "load: done, 500 in 0:01"
    time.sleep(0.3)
    assert len(stream.getvalue().splitlines()) == len(inside) + 1  # silent once the phase is over


@pytest.mark.parametrize("live", [True, False])
def test_never_raises_on_a_stream_that_is_gone(live: bool) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    broken = os.fdopen(write_end, "w")
    closed = io.StringIO()
    closed.close()
    for stream in (broken, closed):
        watch = Watch(stream, live=live, quiet_s=0.02)
        with watch.phase("rl", 3) as bar:
            bar.advance(1, reward=0.5)
            watch.say("x")
            watch.step("y")
            time.sleep(0.3)
    with pytest.raises(BrokenPipeError):
        broken.close()


def test_a_program_whose_reader_left_ends_well() -> None:
    process = subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait() == 0


def test_copy_goes_to_a_file(tmp_path: Path) -> None:
    for text in ("first", "second"):
        watch = Watch(io.StringIO())
        watch.copy_to(tmp_path / "log.txt")
        with watch.phase("rl", 1):
            watch.step(text)
    lines = [line.partition(" ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert lines == ["first", "rl: done, in 0:00", "second", "rl: done, in 0:00"]


def test_pace_counts_from_here_and_not_from_before_the_resume() -> None:
    now = [0.0]
    bar = Bar("rl", 100, "steps", 50, lambda: now[0], threading.RLock())
    assert bar.eta_s is None
    now[0] = 20.0
    bar.advance(10)  # 10 steps in 20 s, 40 to go
    assert bar.eta_s == 80.0
    assert bar.counts_text() == "60/100 steps, 0:20, 1:20 to go"
    assert Bar("load", None, "", 0, lambda: now[0], threading.RLock()).counts_text() == "0:00"


def test_no_end_is_foretold_before_a_pace_is_known() -> None:
    now = [0.0]
    bar = Bar("greedy", 512, "answers", 0, lambda: now[0], threading.RLock(), settle=128)
    now[0] = 60.0
    bar.advance(127)
    assert bar.counts_text() == "127/512 answers, 1:00"
    bar.advance(1)
    assert bar.counts_text() == "128/512 answers, 1:00, 3:00 to go"
    with Watch(io.StringIO()).phase("greedy", 512, "answers", in_waves=True) as waves:  # a quarter is a batch's worth
        waves.advance(127)
        assert waves.eta_s is None
        waves.advance(1)
        assert waves.eta_s is not None


def test_an_exception_passes_and_is_said() -> None:
    stream = io.StringIO()
    watch = Watch(stream)

    def fails() -> None:
        with watch.phase("rl", 10, "steps") as bar, watch.phase("generate"):
            bar.advance(4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert stream.getvalue() == "rl: stopped, 4 steps in 0:00\n"


@pytest.mark.parametrize("live", [True, False])
def test_threads(live: bool) -> None:
    stream = io.StringIO()
    watch = Watch(stream, live=live, quiet_s=0.01)

    def work(name: str) -> None:
        for i in range(30):
            watch.say(f"{name} {i}")
            with watch.phase(name, 5) as bar:
                bar.advance(5, i=i)

    with watch.phase("all"):
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    lines = unstyled(stream.getvalue()).splitlines()
    for name in "abcd":
        assert [line for line in lines if re.fullmatch(rf"{name} \d+", line)] == [f"{name} {i}" for i in range(30)]
