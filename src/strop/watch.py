"""What a person sees while Strop works: live bars on a terminal, plain lines in a pipe or a log file.

Knows titles, counts, clocks and streams; not what is counted. Never raises because of what it writes to: a terminal
that was closed, that cannot draw, or that lacks the letters. Safe to use from several threads.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from strop.redact import redact

__all__ = ["Bar", "Watch"]


@runtime_checkable
class Stream(Protocol):
    """What text can be written to: a file, sys.stderr, io.StringIO."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...


FRAMES_PER_S = 4  # the redrawing thread competes with the computation for the interpreter


class Watch:
    """One place to tell a person what happens; on standard error, so that results may be piped.

    On a terminal every open phase is a moving line with its latest figures, and `step` replaces the text below them.
    Elsewhere `say` and `step` print a line each, and while nothing else is printed an open phase says every `quiet_s`
    seconds how far it is.
    """

    def __init__(
        self,
        stream: Stream | None = None,
        *,
        live: bool | None = None,
        quiet_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = _Sturdy(sys.stderr if stream is None else stream)
        self._copy: _Sturdy | None = None
        self.live = self._out.draws() if live is None else live
        self._quiet_s = quiet_s
        self._clock = clock
        self._console = Console(file=self._out, force_terminal=True, highlight=False) if self.live else None  # type: ignore[arg-type]
        self._screen: Live | None = None
        self._spinner = Spinner("dots")
        self._phases: list[Bar] = []  # outermost first
        self._last_step = ""
        self._last_line = clock()
        self._ended: threading.Event | None = None
        # Two locks, taken in this order. Rich calls `_render` from its own thread with its own lock held, so nothing
        # may call rich while it holds `_state`.
        self._display = threading.RLock()
        self._state = threading.RLock()

    def say(self, text: str) -> None:
        """One line, kept on the screen."""
        text = redact(text)
        if self._copy is not None:
            self._copy.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        if self._console is not None:
            self._console.print(Text(text), soft_wrap=True)
        else:
            self._line(text)

    def step(self, text: str) -> None:
        """One line about a finished step: printed in a pipe, below the bars on a terminal."""
        text = redact(text)
        if self._console is None or not self._phases:
            self.say(text)
            return
        if self._copy is not None:
            self._copy.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        with self._state:
            self._last_step = text

    def copy_to(self, path: Path) -> None:
        """What is said from now on also goes to the end of this file, with the time of day."""
        self._copy = _Sturdy(open(path, "a", encoding="utf-8", buffering=1))  # noqa: SIM115 (open as long as we are)

    @contextmanager
    def phase(
        self, title: str, total: int | None = None, unit: str = "", *, done: int = 0, in_waves: bool = False
    ) -> Iterator[Bar]:
        """Work of `total` units, `done` of them before now (a resumed run). Phases may lie inside phases.

        Work that ends `in_waves`, as the completions of one batch do, tells no pace before a quarter of it is done.
        """
        bar = Bar(title, total, unit, done, self._clock, self._state, total // 4 if in_waves and total else 1)
        self._enter(bar)
        try:
            yield bar
        except BaseException:
            self._leave(bar, "stopped")
            raise
        self._leave(bar, bar.how)

    def _enter(self, bar: Bar) -> None:
        with self._display:
            with self._state:
                self._phases.append(bar)
                first = len(self._phases) == 1
            if first and self._console is not None:
                # Warnings of libraries are printed above the bars; standard output only if it goes to a screen too.
                self._screen = Live(
                    get_renderable=self._render, console=self._console, refresh_per_second=FRAMES_PER_S, transient=True,
                    redirect_stdout=_Sturdy(sys.stdout).isatty(),
                )  # fmt: skip
                self._screen.start(refresh=True)
            elif first:
                self._ended = threading.Event()
                threading.Thread(target=self._tick, args=(self._ended,), daemon=True).start()

    def _leave(self, bar: Bar, how: str) -> None:
        with self._display:
            with self._state:
                outermost = bar is self._phases[0]
                self._phases.remove(bar)
                last = not self._phases
            if last and self._screen is not None:
                self._screen.stop()
                self._screen = None
                self._last_step = ""
            elif last and self._ended is not None:
                self._ended.set()
        if outermost:
            self.say(bar.summary(how))

    # --- plain lines

    def _line(self, text: str) -> None:
        with self._state:
            self._last_line = self._clock()
            self._out.write(text + "\n")

    def _tick(self, ended: threading.Event) -> None:
        """A sign of life in a pipe, from its own thread, because the phase's may be computing for long."""
        while not ended.wait(max(0.01, self._last_line + self._quiet_s - self._clock())):
            with self._state:
                if self._phases and self._clock() - self._last_line >= self._quiet_s and not ended.is_set():
                    self._line(" > ".join(bar.status() for bar in self._phases))

    # --- a terminal

    def _render(self) -> RenderableType:
        """The open phases, each a line with its figures below, as they are at this moment."""
        with self._state:
            lines: list[RenderableType] = []
            for depth, bar in enumerate(self._phases):
                lines.append(self._bar_line(bar, depth))
                if bar.figures:
                    lines.append(
                        Text(
                            "  " * depth + "  " + bar.figures_text("  "),
                            style="cyan",
                            no_wrap=True,
                            overflow="ellipsis",
                        )
                    )
            if self._last_step:
                lines.append(Text("  " + self._last_step, style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)

    def _bar_line(self, bar: Bar, depth: int) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_column(max_width=30)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        filled = ProgressBar(total=bar.total, completed=bar.done, width=20) if bar.total else Text("")
        lead = self._spinner if depth == len(self._phases) - 1 else Text(" ")
        grid.add_row(lead, Text("  " * depth + bar.title, style="bold"), filled, Text(bar.counts_text()))
        return grid


class Bar:
    """A phase under way. Made by `Watch.phase`."""

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        done: int,
        clock: Callable[[], float],
        lock: threading.RLock,
        settle: int = 1,
    ) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self.figures: dict[str, Any] = {}
        self.how = "done"  # how it ends, where nothing is raised: whoever leaves early says so here
        self._before = done
        self._settle = max(1, settle)
        self._clock = clock
        self._start = clock()
        self._lock = lock

    def advance(self, num: int = 1, **figures: Any) -> None:
        """`num` more units are done; `figures` (reward=0.42, **{"tok/s": 310}) replace those of the same name."""
        with self._lock:
            self.done += num
            self.figures.update(figures)

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._start

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the mean pace since the phase began here; None before there is a pace or an end."""
        if self.total is None or self.done - self._before < self._settle:
            return None
        return max(0.0, (self.total - self.done) * self.elapsed_s / (self.done - self._before))

    def counts_text(self) -> str:
        """ "12/100 steps, 1:12, 8:48 to go" """
        of = f"/{self.total:,}" if self.total is not None else ""
        counts = f"{self.done:,}{of} {self.unit}".strip() if self.total is not None or self.done else ""
        to_go = "" if self.eta_s is None else f"{_clock_text(self.eta_s)} to go"
        return ", ".join(part for part in (counts, _clock_text(self.elapsed_s), to_go) if part)

    def figures_text(self, between: str = ", ") -> str:
        return between.join(f"{name} {_figure(value)}" for name, value in self.figures.items())

    def status(self) -> str:
        """How far it is, in one plain line."""
        with self._lock:
            return f"{self.title}: " + ", ".join(part for part in (self.counts_text(), self.figures_text()) if part)

    def summary(self, how: str) -> str:
        """How it ended, in one plain line."""
        with self._lock:
            counts = f"{self.done:,} {self.unit} ".replace("  ", " ") if self.done else ""
            figures = f", {self.figures_text()}" if self.figures else ""
            return f"{self.title}: {how}, {counts}in {_clock_text(self.elapsed_s)}{figures}"


class _Sturdy:
    """A stream that swallows what a closed or poor terminal raises: progress is never worth a run."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            self._stream.flush()
        except (OSError, ValueError):  # gone (EIO, EPIPE), or closed by Python
            pass
        return len(text)

    def flush(self) -> None:
        """Every write has been flushed."""

    def isatty(self) -> bool:
        try:
            return bool(self._stream.isatty())  # type: ignore[attr-defined]
        except (AttributeError, ValueError):
            return False

    def draws(self) -> bool:
        """Whether lines can be drawn over: a terminal that knows how to move its cursor."""
        return self.isatty() and (os.environ.get("TERM") or "dumb").lower() not in ("dumb", "unknown")


def _clock_text(seconds: float) -> str:
    """
    >>> _clock_text(72.4), _clock_text(3723.0)
    ('1:12', '1:02:03')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _figure(value: Any) -> str:
    """
    >>> [_figure(value) for value in (0.41666, 12345, 310.4, 31000.7, "3 of 4")]
    ['0.417', '12,345', '310', '31,001', '3 of 4']
    """
    if isinstance(value, str | bool) or value is None:
        return str(value)
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.3g}"
