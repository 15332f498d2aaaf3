"""Rows and tools for the tests of curation's stages, and a server whose answers are written down."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from openai_server import Answer, said
from strop.curate.rows import SCHEMA, Outcome, Tools
from strop.record import Task
from strop.watch import Watch


def table(
    problems: Iterable[tuple[str, str]], *, source: str = "pool", verifier: str = "math", meta: Iterable[Any] = ()
) -> pa.Table:
    """One row a problem and answer."""
    metas = list(meta)
    rows = []
    for i, (prompt, answer) in enumerate(problems):
        task = Task.make(source=source, prompt=prompt, answer=answer, verifier=verifier)
        rows.append({
            "id": task.id, "source": source, "prompt": prompt, "answer": answer, "verifier": verifier, "licence": "",
            "meta": json.dumps(metas[i] if metas else {}),
        })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def here(function: Callable, rows: pa.Table, settings: Any, *, what: str) -> pa.Table:
    return function(rows, settings)


def tools(folder: Path, **options: Any) -> Tools:
    return Tools(
        measure=here, watch=Watch(open(os.devnull, "w"), live=False), against=SCHEMA.empty_table(),
        folder=folder / "work", **({"seed": 0} | options),
    )  # fmt: skip


def by_prompt(rows: pa.Table, outcome: Outcome) -> dict[str, tuple[Any, ...]]:
    """What became of each row, by what cannot depend on its place."""
    return {
        (row["source"], row["prompt"], row["answer"]): (outcome.dropped.get(place), outcome.changed.get(place))
        for place, row in enumerate(rows.to_pylist())
    }


class Said:
    """A stream that remembers."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


class Scripted:
    """A chat server: `reply` makes (text, finish_reason) of a message, how often it came before, and the seed sent with it."""

    def __init__(self, reply: Callable[..., tuple[str, str] | Answer], names: tuple[str, ...] = ("one",)) -> None:
        self.reply, self.names = reply, names
        self.posted: list[dict[str, Any]] = []
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, path: str, posted: dict[str, Any]) -> Answer:
        if path == "/v1/models":
            return said({"data": [{"id": name} for name in self.names]})
        problem = posted["messages"][-1]["content"]
        with self._lock:
            self.posted.append(posted)
            times, self._asked[problem] = self._asked[problem], self._asked[problem] + 1
        made = self.reply(problem, times, posted.get("seed"))
        if len(made) == 3:
            return made
        text, finish = made
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return said({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


def killed_in(work: Callable[[], object]) -> None:
    """Runs `work` in a forked process that has to end by its own SIGKILL."""
    if (pid := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def kill_after(num: int) -> Callable[[], bool]:
    """A `stop_requested` that kills the process when it is asked for the `num`-th time."""
    asked = iter(range(1, num + 1))

    def ask() -> bool:
        if next(asked) == num:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    return ask
