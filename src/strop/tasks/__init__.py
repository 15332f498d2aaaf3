"""Task sources and splits: from the recipe's task sets to lists of Tasks that share nothing.

Knows which sources exist (`SOURCES`), draws held-out, dev and training tasks from them, and keeps the three apart over
all task sets of a recipe. Does not know how a source makes its tasks (`puzzles.py`, `knights.py`, `gym.py`, `files.py`), nor how an
answer is judged (`rewards/`): a task only names its verifier.

The order is the guarantee. Held-out tasks of every set are drawn first and depend on nothing but their own set, so
they are the same for each seed and in each recipe that words the set alike. Dev tasks come next and avoid every
held-out task; they do not depend on the seed either, so that choices made on them compare. Training tasks come last
and avoid both, of all sets. Two tasks are the same problem if their prompts are equal up to white space, or if their
source says so: a Knights and Knaves puzzle with other names, a sum in other words.

Training never reads a benchmark (`benchmarks.py`): a set that is one has held-out tasks only, and of every other set the
dev and training tasks that are a benchmark's problems are left out and listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from strop.config import TaskSet, nearest
from strop.record import Task, UserError
from strop.tasks import benchmarks, files, gym, knights, puzzles

__all__ = ["SOURCES", "Pool", "TaskSplits", "load"]

Split = Literal["heldout", "dev", "train"]
HELDOUT, DEV = 256, 64  # tasks, where a set does not say how many
PATIENCE = 1000  # draws in a row without a new task, after which the universe is taken to be nearly used up


@runtime_checkable
class Pool(Protocol):
    """Every task that a source can give under its settings. Its streams may repeat and overlap; `load` sorts that out."""

    @property
    def endless(self) -> bool:
        """True where "all of them" is no sensible number of training tasks."""
        ...

    @property
    def dropped(self) -> Mapping[str, tuple[str, ...]]:
        """Rows that became no task, by reason."""
        ...

    def stream(self, split: Split, seed: int) -> Iterator[Task | None]:
        """Tasks in the order to take them; None is a draw that came to nothing."""
        ...

    def every(self, split: Split) -> Iterator[Task]:
        """Each task that the split may draw from, once; nothing at all where they cannot be listed."""
        ...

    def key(self, task: Task) -> str:
        """Equal for two tasks that are the same problem."""
        ...


Leaks = dict[str, dict[str, None]]  # reason -> ids of tasks that training must not see, in order
Source = Callable[[str, Mapping[str, Any], str, Callable[[str], None]], Pool]  # source, settings, where, say

SOURCES: dict[str, Source] = {
    "arithmetic": puzzles.open_arithmetic,
    "knights": knights.open_knights,
    "gym:": gym.open_gym,
    **dict.fromkeys(benchmarks.BENCHMARKS, benchmarks.open_benchmark),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSplits:
    """The tasks of one task set."""

    train: list[Task]
    dev: list[Task]
    heldout: list[Task]
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # reason -> ids of rows that became no task


def load(specs: Mapping[str, TaskSet], *, seed: int, say: Callable[[str], None]) -> dict[str, TaskSplits]:
    """The splits of every task set. `say` hears one line per file (columns taken, rows dropped).

    Raises UserError for a setting that does not exist, a file that cannot be read, a set that asks for more distinct
    tasks than there are, or one that would train on a benchmark.

    >>> sets = {"sums": TaskSet(source="arithmetic", train=3, dev=1, heldout=2, settings={"terms": 2, "ops": "+"})}
    >>> splits = load(sets, seed=0, say=print)["sums"]
    >>> len(splits.train), len(splits.dev), len(splits.heldout)
    (3, 1, 2)
    >>> splits.heldout == load(sets, seed=1, say=print)["sums"].heldout
    True
    """
    pools = {name: _open(name, spec, say) for name, spec in specs.items()}
    specs = {name: _sized(spec, pools[name]) for name, spec in specs.items()}
    leaks: dict[str, Leaks] = {name: {} for name in specs}
    kept_out: set[str] = set()
    heldout = {name: _draw(pools[name], name, spec, "heldout", 0, frozenset(), {}) for name, spec in specs.items()}
    kept_out |= {key for name, tasks in heldout.items() for task in tasks for key in _keys(pools[name], task)}
    dev = {name: _draw(pools[name], name, spec, "dev", 0, kept_out, leaks[name]) for name, spec in specs.items()}
    kept_out |= {key for name, tasks in dev.items() for task in tasks for key in _keys(pools[name], task)}
    train = {name: _draw(pools[name], name, spec, "train", seed, kept_out, leaks[name]) for name, spec in specs.items()}
    for name in specs:
        _say_what_is_missing(name, heldout[name], leaks[name], say)
    return {
        name: TaskSplits(
            train=train[name], dev=dev[name], heldout=heldout[name],
            dropped={**pools[name].dropped, **{reason: tuple(ids) for reason, ids in leaks[name].items()}},
        )
        for name in specs
    }  # fmt: skip


def _sized(spec: TaskSet, pool: Pool) -> TaskSet:
    """The set with a number for what it leaves open."""
    if spec.source in benchmarks.BENCHMARKS:
        spec = spec.model_copy(update={"train": 0, "dev": 0})
    whole = spec.train == spec.dev == 0 and not pool.endless
    filled = {"heldout": None if whole else HELDOUT, "dev": DEV}
    return spec.model_copy(update={part: num for part, num in filled.items() if getattr(spec, part) is None})


def _say_what_is_missing(name: str, heldout: list[Task], leaks: Leaks, say: Callable[[str], None]) -> None:
    """Of a benchmark that is not held out whole, and of tasks that training must not see."""
    stated = benchmarks.provenance(heldout)
    if stated is not None and stated["problems"] < stated["of"]:
        say(f"tasks.{name}: {stated['problems']} of the {stated['of']} problems of {stated['name']}: not the benchmark")
    if ids := [id for listed in leaks.values() for id in listed]:
        what = ", ".join(f"{len(listed)} ({reason})" for reason, listed in leaks.items())
        some = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
        say(f"tasks.{name}: left out of training: {what}: {some}")


def _open(name: str, spec: TaskSet, say: Callable[[str], None]) -> Pool:
    where = f"tasks.{name}"
    for part in ("train", "dev") if spec.source in benchmarks.BENCHMARKS else ():
        if getattr(spec, part):
            raise UserError(
                f"{where}.{part}: {spec.source} is a benchmark, and training never reads one; set it to 0, or leave it out"
            )
    prefix, colon, _ = spec.source.partition(":")
    if opener := SOURCES.get(prefix + colon):
        pool = opener(spec.source, spec.settings, where, say)
    elif files.looks_like_data(spec.source):
        pool = files.open_file(spec.source, spec.settings, where, say)
    else:
        raise UserError(
            f"{where}.source: {spec.source!r} is no file that exists{nearest(spec.source, SOURCES)} "
            "(a file ends in .jsonl, .jsonl.gz or .parquet, a Hugging Face id is owner/name)"
        )
    if spec.train is None and pool.endless:
        raise UserError(f"{where}.train is missing: {spec.source} makes as many tasks as you ask for, so say how many")
    return pool


def _keys(pool: Pool, task: Task) -> set[str]:
    return {" ".join(task.prompt.split()), pool.key(task)}


def _draw(
    pool: Pool, name: str, spec: TaskSet, split: Split, seed: int, kept_out: set[str] | frozenset[str], leaks: Leaks
) -> list[Task]:
    """The first `num` tasks of the stream that are new and not kept out; then, if it dries up, of the whole universe.

    A benchmark's problem is held out or nothing: for another split it is put into `leaks`.
    """
    num = getattr(spec, split)
    tasks: list[Task] = []
    seen = set(kept_out)

    def accept(task: Task | None) -> bool:
        if task is None or seen & (keys := _keys(pool, task)):
            return False
        seen.update(keys)
        if split != "heldout" and (of := benchmarks.holding(task.prompt)) is not None:
            leaks.setdefault(f"problem of {of}", {})[task.id] = None
            return False
        tasks.append(task)
        return True

    misses = 0
    if num != 0:
        for task in pool.stream(split, seed):
            misses = 0 if accept(task) else misses + 1
            if len(tasks) == num or (pool.endless and misses == PATIENCE):
                break
    if num is None or len(tasks) == num:
        return tasks
    for task in pool.every(split):
        accept(task)
        if len(tasks) == num:
            return tasks
    raise UserError(_shortage(pool, name, spec, split, len(tasks)))


def _shortage(pool: Pool, name: str, spec: TaskSet, split: Split, found: int) -> str:
    wanted = f"{spec.heldout} held-out, {spec.dev} dev and {'all other' if spec.train is None else spec.train} training tasks"
    num_distinct = len({pool.key(task) for task in pool.every(split)})
    there_are = (
        f"only {num_distinct} distinct tasks exist"
        if num_distinct
        else f"only {found} distinct ones turned up, then none in {PATIENCE} draws"
    )
    apart = {"heldout": "", "dev": "held-out tasks", "train": "held-out and dev tasks"}[split]
    after = (
        f", of which {found} are left for {split} once the {apart} of all sets are set apart"
        if apart
        else " to hold out"
    )
    return f"tasks.{name} asks for {wanted}, but {there_are}{after}: ask for fewer, or widen its source or settings"
