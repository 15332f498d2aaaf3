"""Small real stages of curation: what a measured function and a decision over all rows look like, and how they may fail."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pyarrow as pa

from strop.curate import StageOf
from strop.curate.rows import Fate, Outcome, Tools
from strop.record import UserError, seed_of

STAGES = {
    "filter": StageOf(function="stages_for_tests:long_enough"),
    "duplicates": StageOf(function="stages_for_tests:one_of_each"),
    "difficulty": StageOf(function="stages_for_tests:rates", reads=("seed", "model")),
    "mixture": StageOf(function="stages_for_tests:split", reads=("seed",)),
    "decontaminate": StageOf(function="stages_for_tests:unseen", reads=("against",)),
}


def lengths(rows: pa.Table, settings: Any) -> pa.Table:
    return pa.table({"length": pa.array([len(p) for p in rows.column("prompt").to_pylist()], pa.int64())})


def pids(rows: pa.Table, settings: Any) -> pa.Table:
    time.sleep(0.02)
    return pa.table({"pid": [os.getpid()] * len(rows), "threads": [os.environ.get("OMP_NUM_THREADS", "")] * len(rows)})


def long_enough(rows: pa.Table, settings: Any, tools: Tools) -> Outcome:
    """Drops short problems."""
    found = tools.measure(lengths, rows, settings, what="lengths").column("length").to_pylist()
    short = {
        i: Fate(reason="short", detail=f"{n} characters") for i, n in enumerate(found) if n < settings.min_prompt_chars
    }
    return Outcome(dropped=short, notes=(f"{len(short)} were short.",))


def one_of_each(rows: pa.Table, settings: Any, tools: Tools) -> Outcome:
    """Of problems that are equal without case the first stays."""
    seen: dict[str, str] = {}
    dropped, listed = {}, []
    for place, (row_id, prompt) in enumerate(zip(*(rows.column(c).to_pylist() for c in ("id", "prompt")), strict=True)):
        first = seen.setdefault(prompt.casefold(), row_id)
        if first != row_id:
            dropped[place] = Fate(reason="duplicate", detail=first)
            listed.append({"id": row_id, "of": first, "prompt": prompt})
    return Outcome(dropped=dropped, listed=tuple(listed))


def rates(rows: pa.Table, settings: Any, tools: Tools) -> Outcome:
    """Pass rates out of a hash; the impossible go."""
    rate = {i: seed_of(row_id, tools.seed) % 5 / 4 for i, row_id in enumerate(rows.column("id").to_pylist())}
    dropped = {i: Fate(reason="never solved", detail="0.0") for i, r in rate.items() if r == 0}
    return Outcome(dropped=dropped, changed={i: {"pass_rate": r} for i, r in rate.items()})


def split(rows: pa.Table, settings: Any, tools: Tools) -> Outcome:
    ids = rows.column("id").to_pylist()
    first = sorted(range(len(ids)), key=lambda i: seed_of(ids[i], tools.seed))[: settings.heldout]
    return Outcome(dropped={}, changed={i: {"split": "heldout"} for i in first})


def unseen(rows: pa.Table, settings: Any, tools: Tools) -> Outcome:
    held = dict(zip(*(tools.against.column(c).to_pylist() for c in ("prompt", "id")), strict=True))
    found = enumerate(rows.column("prompt").to_pylist())
    return Outcome(dropped={i: Fate(reason="in a benchmark", detail=held[p]) for i, p in found if p in held})


def fails(rows: pa.Table, settings: Any) -> pa.Table:
    """On one problem it raises, on one it is the user's mistake, on one the process dies."""
    for prompt in rows.column("prompt").to_pylist():
        if prompt == settings.get("raise"):
            raise ValueError("no such thing")
        if prompt == settings.get("mistake"):
            raise UserError("pip install something")
        if prompt == settings.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
    print("a function that prints does not answer for us")
    return lengths(rows, settings)
