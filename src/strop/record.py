"""The records every room shares: Task, Rollout, Verdict, Stop, and their Parquet form.

Knows what one attempt at one task is, and how it lies on disk. Does not know how a rollout is sampled, scored,
credited or learned from: those rooms take lists of rollouts and return lists of new ones. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int32

from strop.redact import redact

__all__ = [
    "Reason",
    "Rollout",
    "Stop",
    "Task",
    "UserError",
    "Verdict",
    "read_rollouts",
    "read_tasks",
    "replace",
    "seed_of",
    "write_rollouts",
    "write_tasks",
]


class UserError(Exception):
    """The user's mistake: one sentence that says what, where, and what to type instead. The CLI exits with 2.

    Whatever it quotes, it is one line without keys or passwords: they are taken out here.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(line.strip() for line in redact(sentence).splitlines()).strip())


class Stop(StrEnum):
    """Why a rollout ended."""

    EOS = "eos"  # the policy chose an end-of-turn token
    LENGTH = "length"  # the token limit cut it: truncated
    ENV = "env"  # the task's environment ended it (several turns)
    GIVEN = "given"  # not sampled at all: a worked solution (SFT)


class Reason(StrEnum):
    """Why a verdict is what it is. Everything from UNPARSEABLE_GOLD down is unscorable, which is not wrong."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # nothing that looks like a final answer
    UNPARSEABLE_ANSWER = "unparseable_answer"  # an answer was found and could not be read
    TOO_MANY_ANSWERS = "too_many_answers"  # lists candidates instead of answering
    EMPTY = "empty"  # no text at all
    TRUNCATED = "truncated"  # cut by the token limit before an answer
    OVER_LIMIT = "over_limit"  # a program that was stopped: it took more time, memory or output than it may
    UNPARSEABLE_GOLD = "unparseable_gold"
    TIMEOUT = "timeout"
    VERIFIER_ERROR = "verifier_error"


UNSCORABLE = frozenset({Reason.UNPARSEABLE_GOLD, Reason.TIMEOUT, Reason.VERIFIER_ERROR})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier says of one completion.

    >>> Verdict(correct=False, extracted=None, reason=Reason.TIMEOUT).scorable
    False
    """

    correct: bool
    extracted: str | None  # the answer as read from the completion, for people
    reason: Reason

    @property
    def scorable(self) -> bool:
        """False where the verifier failed: such a rollout leaves the loss and is counted."""
        return self.reason not in UNSCORABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem with one checkable answer. Identity is the hash of its content.

    >>> t = Task.make(source="arithmetic@1", prompt="Compute 2 + 3.", answer="5", verifier="math")
    >>> t.id == Task.make(source="arithmetic@1", prompt="Compute 2 + 3.", answer="5", verifier="math").id
    True
    """

    id: str  # "<source>/<hash of prompt and answer>"
    source: str  # dataset@revision, or generator@version with its settings
    prompt: str  # the bare problem; chat.py adds system prompt and template
    answer: str  # what the verifier compares with
    verifier: str  # key into rewards.VERIFIERS
    meta: dict[str, Any] = field(default_factory=dict)  # JSON values: level, solution, unit tests, ...

    @staticmethod
    def make(*, source: str, prompt: str, answer: str, verifier: str, meta: Mapping[str, Any] | None = None) -> Task:
        """A task with its identity computed."""
        digest = content_hash(prompt, answer)
        return Task(
            id=f"{source}/{digest}",
            source=source,
            prompt=prompt,
            answer=answer,
            verifier=verifier,
            meta=dict(meta or {}),
        )

    @property
    def content(self) -> str:
        """Hash of prompt and answer alone: equal for the same problem from two sources. Splits compare this."""
        return content_hash(self.prompt, self.answer)

    @property
    def solutions(self) -> tuple[str, ...]:
        """The worked solutions that came with it, the first of which is meta.solution; several where a teacher gave several.

        >>> Task.make(source="s", prompt="p", answer="5", verifier="math", meta={"solution": "2 + 3 = 5"}).solutions
        ('2 + 3 = 5',)
        """
        first = self.meta.get("solution")
        return tuple(map(str, self.meta.get("solutions") or ([first] if first else [])))


def content_hash(prompt: str, answer: str) -> str:
    """16 hex digits over the problem with white space folded, so that layout alone makes no new problem."""
    text = " ".join(prompt.split()) + "\x00" + " ".join(answer.split())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from (run, stage, step, round, task, sample) or any other path of names and numbers.

    >>> seed_of(0, "rl", 3) == seed_of(0, "rl", 3) != seed_of(0, "rl", 4)
    True
    """
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """One attempt at one task; frozen, its arrays read-only; stages return new ones with `replace`.

    Index t of every array speaks of token t: `sampler_logprobs[t] = log p(token_ids[t] | token_ids[:t])`, NaN where
    the policy did not choose the token. Prompt, completion and (in several turns) what the environment said lie in
    one flat array; `sampled` and `trained` say which tokens are whose.

    >>> task = Task.make(source="s", prompt="Compute 2 + 3.", answer="5", verifier="math")
    >>> r = Rollout(task=task, group=0, sample=1, token_ids=np.array([7, 8, 5, 2], np.int32),
    ...             sampled=np.array([False, False, True, True]), trained=np.array([False, False, True, True]))
    >>> r.num_prompt_tokens, r.num_sampled, r.truncated
    (2, 2, False)
    """

    task: Task
    group: int  # which of the step's tasks; siblings share it
    sample: int  # which sibling
    token_ids: Int32[np.ndarray, " L"]
    sampled: Bool[np.ndarray, " L"]  # True where the policy chose the token
    trained: Bool[np.ndarray, " L"]  # True where the loss may act (overlong filter: nowhere)
    policy_step: tuple[int, int] = (0, 0)  # first and last weights that sampled it
    weights: str | None = None  # the mark (`provenance.mark_of`) of the weights that sampled it; None: nobody said
    prefill: str = ""  # what the template put before the completion ("<think>\n")
    budget_tokens: int | None = None  # the length asked for (LCPO)
    sampler_logprobs: Float32[np.ndarray, " L"] | None = None  # nats, under what really sampled it
    temperature: float = 1.0  # 0 for greedy
    text: str = ""  # the completion, decoded, without special tokens
    stop: Stop = Stop.EOS
    seconds: float = 0.0
    verdict: Verdict | None = None
    reward: float | None = None  # what the algorithm sees; None: unscorable, leaves the loss
    reward_parts: dict[str, float] = field(default_factory=dict)
    token_rewards: Float32[np.ndarray, " L"] | None = None  # weighted; a part of `reward`, not on top of it
    old_logprobs: Float32[np.ndarray, " L"] | None = None
    ref_logprobs: Float32[np.ndarray, " L"] | None = None
    teacher_logprobs: Float32[np.ndarray, " L"] | None = None
    values: Float32[np.ndarray, " L"] | None = None
    advantages: Float32[np.ndarray, " L"] | None = None
    returns: Float32[np.ndarray, " L"] | None = None

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        for name in _ARRAYS:
            array = getattr(self, name)
            if array is None:
                continue
            if array.shape != (length,) or array.dtype != _ARRAYS[name]:
                raise ValueError(f"Rollout.{name}: {array.dtype}{array.shape}, wanted {_ARRAYS[name]}({length},)")
            array.setflags(write=False)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens before the first one that was sampled or is trained on."""
        mask = self.sampled | self.trained
        return int(mask.argmax()) if mask.any() else len(self.token_ids)

    @property
    def num_sampled(self) -> int:
        return int(self.sampled.sum())

    @property
    def num_trained(self) -> int:
        return int(self.trained.sum())

    @property
    def truncated(self) -> bool:
        return self.stop is Stop.LENGTH

    @property
    def scorable(self) -> bool:
        """Judged, and by a verifier that did not fail."""
        return self.verdict is not None and self.verdict.scorable

    @property
    def correct(self) -> bool:
        """Judged, and judged right."""
        return self.verdict is not None and self.verdict.correct


_ARRAYS: dict[str, np.dtype] = {
    "token_ids": np.dtype(np.int32),
    "sampled": np.dtype(bool),
    "trained": np.dtype(bool),
    **{
        name: np.dtype(np.float32)
        for name in (
            "sampler_logprobs", "token_rewards", "old_logprobs", "ref_logprobs", "teacher_logprobs", "values",
            "advantages", "returns",
        )
    },
}  # fmt: skip


# --- on disk: Arrow columns with flat list buffers; written to a temporary name, synced, renamed ----------------------

_LIST_TYPE = {"token_ids": pa.list_(pa.int32()), "sampled": pa.list_(pa.bool_()), "trained": pa.list_(pa.bool_())}
_TASK_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "source", "prompt", "answer", "verifier", "meta")]
    + [("split", pa.string())]
)
_ROLLOUT_SCHEMA = pa.schema(
    [("task", pa.string()), ("group", pa.int32()), ("sample", pa.int32())]
    + [(name, _LIST_TYPE.get(name, pa.list_(pa.float32()))) for name in _ARRAYS]
    + [
        ("policy_step", pa.list_(pa.int32(), 2)),
        ("prefill", pa.string()),
        ("budget_tokens", pa.int32()),
        ("temperature", pa.float64()),
        ("text", pa.string()),
        ("stop", pa.string()),
        ("seconds", pa.float64()),
        ("verdict", pa.string()),
        ("reward", pa.float64()),
        ("reward_parts", pa.string()),
        ("weights", pa.string()),
    ]
)
_LATER = {"weights"}  # columns that files of before do not have: None there
_PLAIN = [name for name in _ROLLOUT_SCHEMA.names if name not in _ARRAYS]  # one value a rollout


def task_row(task: Task) -> dict[str, Any]:
    """A task as one flat row of strings; `meta` is JSON."""
    return {f.name: getattr(task, f.name) for f in fields(task)} | {"meta": json.dumps(task.meta, sort_keys=True)}


def task_from_row(row: Mapping[str, Any]) -> Task:
    return Task(
        **{name: row[name] for name in ("id", "source", "prompt", "answer", "verifier")}, meta=json.loads(row["meta"])
    )


def write_tasks(path: Path, tasks_by_split: Mapping[str, Sequence[Task]]) -> None:
    """Every task of the run with the split it belongs to ("easy/train", "hard/heldout")."""
    rows = [task_row(t) | {"split": split} for split, tasks in tasks_by_split.items() for t in tasks]
    write_table(path, pa.Table.from_pylist(rows, schema=_TASK_SCHEMA))


def read_tasks(path: Path) -> dict[str, list[Task]]:
    """What `write_tasks` wrote. Raises UserError on a file that is not one of ours, or is damaged."""
    out: dict[str, list[Task]] = {}
    with _sound(path):
        for row in _read_table(path, _TASK_SCHEMA.names).to_pylist():
            out.setdefault(row["split"], []).append(task_from_row(row))
    return out


def write_rollouts(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Rollouts to Parquet. A reader gets back records equal field by field (NaN included)."""
    listed = list(rollouts)
    rows = []
    for r in listed:
        row: dict[str, Any] = {name: getattr(r, name) for name in _PLAIN}
        row["task"] = json.dumps(task_row(r.task))
        row["policy_step"] = list(r.policy_step)
        row["stop"] = r.stop.value
        row["verdict"] = (
            None if r.verdict is None else json.dumps([r.verdict.correct, r.verdict.extracted, r.verdict.reason])
        )
        row["reward_parts"] = json.dumps(r.reward_parts)
        rows.append(row)
    plain = pa.Table.from_pylist(rows, schema=pa.schema([_ROLLOUT_SCHEMA.field(name) for name in _PLAIN]))
    flat = {name: _flat(name, [getattr(r, name) for r in listed]) for name in _ARRAYS}
    columns = [flat[name] if name in flat else plain[name] for name in _ROLLOUT_SCHEMA.names]
    write_table(path, pa.Table.from_arrays(columns, schema=_ROLLOUT_SCHEMA))


def read_rollouts(path: Path) -> list[Rollout]:
    """What `write_rollouts` wrote; siblings share their task. Raises UserError on a file that is none of ours, or is damaged."""
    with _sound(path):
        table = _read_table(path, _ROLLOUT_SCHEMA.names, may_lack=_LATER)
        arrays = {name: _unflat(name, table[name]) for name in _ARRAYS}
        tasks: dict[str, Task] = {}
        rollouts = []
        for i, row in enumerate(table.select([name for name in _PLAIN if name in table.column_names]).to_pylist()):
            if (task := tasks.get(row["task"])) is None:
                task = tasks[row["task"]] = task_from_row(json.loads(row["task"]))
            own = {name: listed[i] for name, listed in arrays.items()}
            rollouts.append(_rollout_from_row(row | {"task": task}, own))
        return rollouts


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """These columns of a file of ours, row by row. Raises UserError on a file that is none, or lacks one of them."""
    with _sound(path):
        return _read_table(path, columns).to_pylist()


def _read_table(path: Path, columns: Sequence[str], may_lack: Set[str] = frozenset()) -> pa.Table:
    known = pq.read_schema(path).names
    if missing := set(columns) - set(known) - may_lack:
        raise UserError(f"{path} is not a file of Strop's: the columns {sorted(missing)} are missing")
    return pq.read_table(path, columns=[name for name in columns if name in known])


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Inside, a file of ours is read and taken apart; a bit that has flipped may be met anywhere in it."""
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is not a readable Parquet file, or is damaged: {error}") from error


def _flat(name: str, listed: Sequence[np.ndarray | None]) -> pa.Array:
    """One array of every rollout as one flat buffer with offsets; None where it has none."""
    present = [array for array in listed if array is not None]
    values = np.concatenate(present) if present else np.zeros(0, _ARRAYS[name])
    ends = np.cumsum([0 if array is None else len(array) for array in listed], dtype=np.int64)
    # 32 bits, as long as a file has fewer than 2^31 tokens; more of them fail here and are not written wrongly.
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    missing = pa.array([array is None for array in listed], pa.bool_())
    return pa.ListArray.from_arrays(offsets, pa.array(values), type=_ROLLOUT_SCHEMA.field(name).type, mask=missing)


def _unflat(name: str, column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """The arrays again: views into one buffer a chunk."""
    found: list[np.ndarray | None] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=False).astype(_ARRAYS[name], copy=False)
        ends, missing = chunk.offsets.to_numpy(), chunk.is_null().to_numpy(zero_copy_only=False)
        found += [
            None if is_none else values[start:end]
            for start, end, is_none in zip(ends[:-1], ends[1:], missing, strict=True)
        ]
    return found


def _rollout_from_row(row: dict[str, Any], arrays: Mapping[str, np.ndarray | None]) -> Rollout:
    values = row | {"policy_step": tuple(row["policy_step"]), "stop": Stop(row["stop"]), **arrays}
    values["reward_parts"] = json.loads(row["reward_parts"])
    if row["verdict"] is not None:
        correct, extracted, reason = json.loads(row["verdict"])
        values["verdict"] = Verdict(correct=correct, extracted=extracted, reason=Reason(reason))
    return Rollout(**values)


def write_table(path: Path, table: pa.Table) -> None:
    """Write, sync and rename, so that a file with its final name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
