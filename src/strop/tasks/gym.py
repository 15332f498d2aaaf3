"""reasoning-gym's generators as task sources: `gym:<name>`, with the dataset's own settings passed on.

Knows how to draw from reasoning-gym without repeating oneself and what its scorer needs later (`meta["entry"]`, plain
JSON). Its item i under seed s is item i - 1 under seed s + 1, so splits use far-apart ranges of s + i and never two
near seeds; its `ReseedingDataset` repeats, so it is not used. Scoring is the verifier's business (`rewards/`).
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from strop.config import nearest
from strop.record import Task, UserError

__all__ = ["Gym", "open_gym"]

BLOCK = 4096  # items per dataset object: some datasets prepare all of them at once, one refuses more than 20,000
ROOM = 2**20  # distance of the splits in s + i
OURS = {"seed", "size"}
TRIES = 20  # entries whose own answer must not score 1.0 all of them, or the dataset cannot be used


@dataclass(frozen=True, slots=True)
class Gym:
    """The tasks of one reasoning-gym dataset."""

    name: str
    version: str  # of reasoning-gym
    create: Callable[[int], Any]  # first s + i -> a dataset of BLOCK items
    score: Callable[[str, dict[str, Any]], float]
    endless: bool = True
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def stream(self, split: str, seed: int) -> Iterator[Task | None]:
        """Items of the split's range; None where the recorded answer does not score 1.0 against itself.

        Raises UserError when that is so for the first entries: such a dataset has no single answer to check.
        """
        start = {"heldout": 0, "dev": ROOM, "train": (2 + seed % 1000) * ROOM}[split]
        drawn = [0, 0]  # usable, not usable
        for block in itertools.count(start, BLOCK):
            dataset = self.create(block)
            for index in range(BLOCK):
                task = self._task(dataset[index])
                drawn[task is None] += 1
                if drawn == [0, TRIES]:
                    raise UserError(
                        f"gym:{self.name} records no answers that its own scorer accepts: choose another dataset"
                    )
                yield task

    def every(self, split: str) -> Iterator[Task]:
        return iter(())

    def key(self, task: Task) -> str:
        return " ".join(task.prompt.split())

    def _task(self, entry: dict[str, Any]) -> Task | None:
        plain = json.loads(json.dumps(_plain(entry)))
        if not isinstance(plain["answer"], str) or self.score(plain["answer"], plain) != 1.0:
            return None
        return Task.make(
            source=f"gym:{self.name}@{self.version}",
            prompt=plain["question"],
            answer=plain["answer"],
            verifier="gym",
            meta={"level": self.name, "entry": plain},
        )


def open_gym(source: str, settings: Mapping[str, Any], where: str, say: Callable[[str], None]) -> Gym:
    """The pool of `gym:<name>`. Raises UserError without the extra, for an unknown name or a setting it refuses."""
    name = source.removeprefix("gym:")
    try:
        reasoning_gym = importlib.import_module("reasoning_gym")
        factory = importlib.import_module("reasoning_gym.factory")
    except ImportError:
        raise UserError(
            f"{where}.source: {source} needs reasoning-gym, which is not installed: pip install 'strop[puzzles]' "
            "(it builds pycosat, so a C compiler must be there)"
        ) from None
    if name not in factory.DATASETS:
        raise UserError(f"{where}.source: reasoning-gym has no dataset {name!r}{_closest(name, factory.DATASETS)}")
    known = {f.name for f in fields(factory.DATASETS[name][1])} - OURS
    for key in settings:
        if key not in known:
            raise UserError(f"unknown setting {where}.settings.{key}{nearest(key, known)}")

    def create(first: int) -> Any:
        return reasoning_gym.create_dataset(name, seed=first, size=BLOCK, **settings)

    try:
        create(0)
    except (AssertionError, TypeError, ValueError) as error:  # how reasoning-gym refuses its settings
        raise UserError(f"{where}.settings: gym:{name} refuses them: {error}") from error
    return Gym(name, reasoning_gym.__version__, create, reasoning_gym.get_score_answer_fn(name))


def _closest(name: str, known: Mapping[str, Any]) -> str:
    """The nearest name alone: the list of all is a hundred long."""
    return "; did" + nearest(name, known).rpartition("; did")[2] if "; did" in nearest(name, known) else ""


def _plain(value: Any) -> Any:
    """JSON values only: tuples and sets become lists, NumPy scalars Python's, keys strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [_plain(item) for item in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy
        return _plain(value.tolist())
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
