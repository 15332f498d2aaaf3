"""Runs of a recipe in processes of their own that are killed outright at chosen moments, and continued.

A child tells through a pipe which phase of the ledger it enters (and, by an audit hook, when a checkpoint is about to
be renamed), so that a kill can be aimed; where it really struck is read from what the dead process said last. Knows
processes and moments, not what is compared. Read by `verify_resume`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from strop import pipeline
from strop.config import Recipe
from strop.process import keep_freed_memory
from strop.record import UserError
from strop.watch import Watch

__all__ = ["Hit", "Moment", "Strike", "plan", "under_fire", "undisturbed"]

RENAME = "rename of a checkpoint"
# What the ledger calls a phase, and what a person would.
NAMES = {
    "generate": "generation", "verify": "verification", "train": "update", "sft": "update", "replay": "replay",
    "save": "checkpoint write", "evaluate": "evaluation", "load": "loading", "report": "report", RENAME: RENAME,
}  # fmt: skip
BETWEEN = "between phases"
PATIENCE = 3  # steps that a strike lets pass in wait of its phase
# Their modules are imported once, in a process that every child is a fork of: a start takes no seconds of imports.
PRELOADED = ["strop.pipeline", "strop.train", "strop.sft", "strop.evaluate", "strop.holder", "strop.tools", "strop.engine.native"]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A phase of the undisturbed run: how many steps of all stages were committed when it began, and how long it took."""

    phase: str
    committed: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """Kill `delay_s` after the first beginning of `phase` (None: of any) with at least `committed` steps committed.

    Some phases, a report or an evaluation, come once in a stage and may be over: `PATIENCE` steps later, or once all steps
    (`last`) are committed, any will do.
    """

    phase: str | None
    committed: int
    last: int
    delay_s: float

    def is_due(self, phase: str, committed: int) -> bool:
        if committed < self.committed:
            return False
        is_late = committed >= min(self.last, self.committed + PATIENCE)
        return self.phase in (None, phase) or (is_late and phase not in ("loading", BETWEEN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """Where a kill struck."""

    phase: str
    committed: int


def plan(timeline: Sequence[Moment], kills: int, rng: random.Random) -> list[Strike]:
    """So many strikes: the phases that occurred take turns, each at a random one of its moments, anywhere inside it.

    Every fifth strikes where it will, within about a step of the start before it: while loading, replaying, or between.
    """
    by_phase: dict[str, list[int]] = {}  # places in the timeline
    for place, moment in enumerate(timeline):
        by_phase.setdefault(moment.phase, []).append(place)
    by_phase.pop("loading", None)  # before anything is written; a kill there says little and costs a start
    names = sorted(by_phase, key=lambda name: (name in ("evaluation", "verification"), name))
    last = timeline[-1].committed
    step_s = sum(m.seconds for m in timeline if m.phase != "loading") / max(1, last)
    strikes = []
    for i in range(kills):
        places = by_phase[names[i % len(names)]]
        place = rng.choice(places)
        phase, delay_s = timeline[place].phase, rng.uniform(0, statistics.median(timeline[p].seconds for p in places))
        if i % 5 == 4:
            phase, delay_s = None, rng.uniform(0, 0.5 + step_s)
        strikes.append((place, Strike(phase=phase, committed=timeline[place].committed, last=last, delay_s=delay_s)))
    return [strike for _, strike in sorted(strikes, key=lambda pair: pair[0])]


def undisturbed(recipe: Recipe, recipe_dir: Path, out: Path) -> list[Moment]:
    """Runs the recipe to its end in one process; its phases in order. Raises what the run raised, as a UserError if it was."""
    child = _Child(recipe, recipe_dir, out, resume=False)
    moments: list[Moment] = []
    phase, began, committed = BETWEEN, time.perf_counter(), 0
    while (said := child.next(None)) is not None:
        now = time.perf_counter()
        if phase != BETWEEN:
            moments.append(Moment(phase=phase, committed=committed, seconds=now - began))
        phase, began, committed = said, now, num_committed(out)
    child.end()
    if child.failed is not None:
        raise UserError(child.failed) if child.is_mistake else RuntimeError(child.failed)
    return moments


def under_fire(
    recipe: Recipe, recipe_dir: Path, out: Path, strikes: Sequence[Strike], on_kill: Callable[[], None] = lambda: None
) -> tuple[list[Hit], str | None]:
    """Runs the recipe to its end in as many processes as it takes; where each kill struck, and what a resume failed of."""
    hits: list[Hit] = []
    waiting = list(strikes)
    while True:
        child = _Child(recipe, recipe_dir, out, resume=(out / "recipe.yaml").is_file())
        struck = child.struck_by(waiting[0], out) if waiting else None
        if struck is None:
            while child.next(None) is not None:
                pass
            child.end()
            return hits, child.failed
        waiting.pop(0)
        hits.append(struck)
        on_kill()


def num_committed(out: Path) -> int:
    """Steps of all stages in `metrics.jsonl`, as it stands."""
    path = out / "metrics.jsonl"
    if not path.is_file():
        return 0
    rows = (json.loads(line) for line in path.read_bytes().split(b"\n")[:-1])  # a last line that is torn has no end
    return sum(row["kind"] in ("train", "sft") for row in rows)


class _Child:
    """A run in a process of its own, as its killer sees it."""

    def __init__(self, recipe: Recipe, recipe_dir: Path, out: Path, *, resume: bool) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.failed: str | None = None  # what the run raised, in words
        self.is_mistake = False
        self._heard, said = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(said, recipe, recipe_dir, out, resume))
        self._process.start()
        said.close()  # ours: the pipe ends with the child

    def next(self, timeout_s: float | None) -> str | None:
        """The phase it enters next; None when it has ended. Raises TimeoutError when it says nothing for so long."""
        if not self._heard.poll(timeout_s):
            raise TimeoutError
        try:
            said: Any = self._heard.recv()
        except (EOFError, OSError):  # ended, or killed in the middle of a word
            return None
        if isinstance(said, str):
            return NAMES.get(said, BETWEEN)
        self.is_mistake, self.failed = said
        return self.next(timeout_s)

    def struck_by(self, strike: Strike, out: Path) -> Hit | None:
        """Waits for the strike's moment and kills it; None where it ended before."""
        while (phase := self.next(None)) is not None:
            if strike.is_due(phase, num_committed(out)):
                return self._kill(phase, time.perf_counter() + strike.delay_s, out)
        return None

    def _kill(self, phase: str, due: float, out: Path) -> Hit | None:
        while (left := due - time.perf_counter()) > 0:
            try:
                said = self.next(left)
            except TimeoutError:
                break
            if said is None:
                return None
            phase = said
        self._process.kill()
        self._process.join()
        while (said := self.next(None)) is not None:  # what it said before it died
            phase = said
        self.end(killed=True)
        return Hit(phase=phase, committed=num_committed(out))

    def end(self, *, killed: bool = False) -> None:
        """`killed`: by us; a SIGKILL of anybody else's, who was short of memory perhaps, is a failure."""
        self._process.join()
        self._heard.close()
        if self._process.exitcode not in ((0, -9) if killed else (0,)) and self.failed is None:
            self.failed = f"the process ended with {self._process.exitcode} and said nothing"
        self._process.close()


def _run(say: Connection, recipe: Recipe, recipe_dir: Path, out: Path, resume: bool) -> None:
    """In the child: the run, as `strop run` would do it; what it tells a person goes to a file beside the run."""
    lock = threading.Lock()

    def tell(word: object) -> None:
        with lock:
            say.send(word)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and f"{os.sep}checkpoints{os.sep}" in str(arguments[0]):
            tell(RENAME)

    sys.addaudithook(audit)
    keep_freed_memory()
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.with_name(f"{out.name}.log"), "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 2)  # warnings of libraries too
        try:
            pipeline.run(
                recipe, out=out, resume=resume, recipe_dir=recipe_dir, watch=Watch(log, live=False), on_phase=tell
            )
        except Exception as error:  # noqa: BLE001  the last frame of this process; the parent says what it was
            traceback.print_exc(file=log)
            is_mistake = isinstance(error, UserError)
            tell((is_mistake, str(error) if is_mistake else f"{type(error).__name__}: {error}"))  # fmt: skip
