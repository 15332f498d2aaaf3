"""Every answer of one pass over the held-out tasks, saved as they come, so that a pass may be killed or stopped anywhere.

A rollout's randomness depends on the pass, the task and the sample alone, so a task that was not answered whole is
answered again and nothing else is. From the native engine the tokens are then those of a pass without interruption; their
log-probabilities are so up to the last digits, which depend on what else was in the batch (an edge between two words that
close to a random number could move a token: about once in a million). A server is sent the same seeds and promises no
more than it does. Knows no figures. Read by `evaluate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from strop import costs
from strop.engine import Sampling
from strop.metrics import prompt_tokens
from strop.record import Rollout, Task, replace
from strop.run import StageLog
from strop.tools import Tools

__all__ = ["collect"]

PART_S = 30.0  # seconds of answers that a kill can cost
Answers = dict[tuple[int, int], Rollout]  # (place of the task, sample) -> what was answered


class Stopped(Exception):
    """It was asked to stop while answers were coming in."""


class Parts:
    """The answers of one attempt at a pass; `save` puts those that are not on disk yet there, as a part of their own."""

    def __init__(self, log: StageLog, kind: str) -> None:
        self.answers: list[Rollout] = []
        self._log, self._kind = log, kind
        self._num_saved, self._saved_at = 0, time.perf_counter()

    def add(self, rollout: Rollout) -> None:
        self.answers.append(rollout)
        if time.perf_counter() - self._saved_at > PART_S:
            self.save()

    def save(self) -> None:
        if fresh := self.answers[self._num_saved :]:
            self._log.save_part(self._kind, fresh)
        self._num_saved, self._saved_at = len(self.answers), time.perf_counter()


def collect(
    kind: str, tasks: Sequence[Task], num_samples: int, sampling: Sampling, tools: Tools, log: StageLog,
    on_done: Callable[[Rollout], None] = lambda _: None,
) -> list[Rollout] | None:  # fmt: skip
    """The judged answers by task, then sample, saved under `kind`; None where it was asked to stop before all were there.

    `group` is the place of the task in `tasks`. What an earlier attempt saved is read back. `on_done` is told each new one, not yet
    judged.
    """
    if (whole := log.load_rollouts(kind)) is not None:
        log.drop_parts(kind)  # a kill may have come before they were
        return whole
    if tools.stop_requested():
        return None
    started, kept = time.perf_counter(), _whole_tasks(log.load_parts(kind), num_samples)
    before = costs.joules_by_kind(tools.ledger.as_dict())
    new = _sampled(kind, tasks, kept, num_samples, sampling, tools, log, on_done)
    tools.ledger.add_tokens("evaluate", sum(r.num_sampled for r in new), tokens_in=prompt_tokens(new))
    found = _whole_tasks([*kept.values(), *new], num_samples)
    if is_whole := len(found) == len(tasks) * num_samples:
        with tools.ledger.phase("evaluate"):
            log.save_rollouts(kind, tools.scorer.judge([found[key] for key in sorted(found)]))
        log.drop_parts(kind)
    drawn = {k: joules - before.get(k, 0.0) for k, joules in costs.joules_by_kind(tools.ledger.as_dict()).items()}
    log.log({
        "kind": "pass", "step": 0, "pass": kind, "eval_s": time.perf_counter() - started,
        "num_tokens_sampled": sum(r.num_sampled for r in new),
        **{f"{k}_j": joules for k, joules in drawn.items()},
    })  # fmt: skip
    return log.load_rollouts(kind) if is_whole else None


def _sampled(
    kind: str, tasks: Sequence[Task], kept: Answers, num_samples: int, sampling: Sampling, tools: Tools, log: StageLog,
    on_done: Callable[[Rollout], None],
) -> list[Rollout]:  # fmt: skip
    """Answers to the tasks that `kept` has none for: all of them, or those that came before it was asked to stop."""
    places = [place for place in range(len(tasks)) if (place, 0) not in kept]
    parts, title, total = Parts(log, kind), f"{log.name}: {kind}", len(tasks) * num_samples
    with (
        tools.ledger.phase("evaluate"),
        tools.watch.phase(title, total, "answers", done=len(kept), in_waves=True) as bar,
    ):

        def keep(rollout: Rollout) -> None:
            place = places[rollout.group]
            parts.add(replace(rollout, group=place, trained=np.zeros_like(rollout.trained)))  # never trained on
            bar.advance(1)
            on_done(rollout)
            if tools.stop_requested():
                raise Stopped

        try:
            tools.engine.generate(
                [tasks[place] for place in places], num_samples=num_samples, sampling=sampling,
                seed_path=("evaluate", kind), on_done=keep,
            )  # fmt: skip
        except Stopped:
            pass
        finally:  # whatever ended it, what was answered is not lost
            parts.save()
    return parts.answers


def _whole_tasks(answers: Iterable[Rollout], num_samples: int) -> Answers:
    """The answers to tasks that have all of theirs, each once."""
    by_place: dict[int, dict[int, Rollout]] = {}
    for rollout in answers:
        by_place.setdefault(rollout.group, {})[rollout.sample] = rollout
    return {(p, s): r for p, own in by_place.items() if len(own) == num_samples for s, r in own.items()}
