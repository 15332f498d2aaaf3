"""Rollouts in, scored rollouts out: the pool of verifier processes and what is made of its verdicts.

Knows verdicts, reward functions and their weighted sum. `train.run` and `evaluate.run` are given one Scorer, which
owns its processes and is closed by whoever opened it. No torch here.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType

import numpy as np

from strop.config import Algorithm, nearest
from strop.record import Reason, Rollout, Task, UserError, Verdict
from strop.rewards import code, extract, sandbox, shaping
from strop.rewards.adapters import Reward
from strop.rewards.workers import Pool

__all__ = ["Scorer", "VerifierBroken", "as_answered", "check_gold"]

CACHE_SIZE = 100_000
MAX_ERROR_FRAC = 0.01  # of a step's verdicts; above it the fault is not one odd completion


class VerifierBroken(RuntimeError):
    """Too many verdicts of a step failed in the verifier itself: training on the rest would be training on luck."""


class Scorer:
    """Verdicts from spawned, killable processes. A context manager; usable from any thread.

    `verifiers` adds to VERIFIERS, by dotted path (`file.py:function`), because worker processes import them anew: verifiers
    or reward functions (`adapters.load_verifier`).
    """

    def __init__(self, workers: int = 2, timeout_s: float = 5.0, verifiers: Mapping[str, str] | None = None) -> None:
        from strop.rewards import VERIFIERS

        self._known = {*VERIFIERS, *(verifiers or {})}
        self._pool = Pool(workers, timeout_s, verifiers or {})
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._errors: dict[bytes, str] = {}  # what happened, by case

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. Called twice it does nothing."""
        self._pool.close()

    @property
    def num_kills(self) -> int:
        """Workers replaced so far, because of a time-out or a crash."""
        return self._pool.num_kills

    @property
    def longest_s(self) -> float:
        """The longest that a verdict has taken so far, in seconds of waiting for it: time-outs end just above `timeout_s`."""
        return self._pool.longest_s

    def failure(self, task: Task, text: str) -> str:
        """What happened when the verifier failed on this case; "" where it did not."""
        return self._errors.get(_key(task, text), "")

    def verify(self, pairs: Sequence[tuple[Task, str]]) -> list[Verdict]:
        """A verdict for each (task, text), in order. Equal pairs are judged once. Raises UserError for an unknown verifier.

        And for programs where nothing would keep them in (`sandbox.tier`).
        """
        for verifier in {task.verifier for task, _ in pairs} - self._known:
            raise UserError(f"there is no verifier {verifier!r}{nearest(verifier, self._known)}")
        if any(task.verifier == "code" for task, _ in pairs):
            sandbox.tier()  # here, where a UserError reaches the user
        keys = [_key(task, text) for task, text in pairs]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._cache}
        indices = sorted(new.values())
        verdicts, errors = self._pool.judge([pairs[i] for i in indices]) if indices else ([], {})
        fresh = {keys[i]: verdict for i, verdict in zip(indices, verdicts, strict=True)}
        self._errors.update({keys[indices[i]]: what for i, what in errors.items()})
        out = [fresh[key] if key in fresh else self._cache[key] for key in keys]
        self._cache.update({key: verdict for key, verdict in fresh.items() if _is_final(verdict)})
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        while len(self._errors) > CACHE_SIZE:
            del self._errors[next(iter(self._errors))]
        return out

    def judge(self, rollouts: Sequence[Rollout], *, may_fail: bool = False) -> list[Rollout]:
        """The rollouts with their verdicts.

        One that the token limit cut before it had stated an answer is `truncated`, whatever number it happened to end
        on. Raises VerifierBroken when more than 1% (and more than one) of the verdicts failed in the verifier, unless it
        `may_fail`: a pool that nobody has cleaned has tasks that no verifier survives, and its reader counts them.
        """
        verdicts = self.verify([(rollout.task, rollout.text) for rollout in rollouts])
        if not may_fail:
            self._stop_if_broken(rollouts, verdicts)
        return [
            replace(
                rollout,
                verdict=_TRUNCATED if rollout.truncated and verdict.scorable and not _has_stated(rollout) else verdict,
            )
            for rollout, verdict in zip(rollouts, verdicts, strict=True)
        ]

    def score(
        self, rollouts: Sequence[Rollout], rewards: Sequence[Reward], algorithm: Algorithm, max_tokens: int
    ) -> list[Rollout]:
        """The rollouts with verdict, reward and its parts; the reward is the weighted sum of the parts that apply.

        None where the verdict is not scorable, or no part with a weight applies: such a rollout leaves the loss. With
        `algorithm.overlong_buffer_tokens` the part "overlong" is added with weight 1.
        """
        rollouts = self.judge(rollouts)
        columns = [reward.values(rollouts) for reward in rewards]
        scored = []
        for i, rollout in enumerate(rollouts):
            applying = [(r, column[i]) for r, column in zip(rewards, columns, strict=True) if column[i] is not None]
            parts = {reward.name: value for reward, value in applying if value is not None}
            total = sum(reward.weight * parts[reward.name] for reward, _ in applying)
            if algorithm.overlong_buffer_tokens:
                parts["overlong"] = shaping.overlong(rollout.num_sampled, max_tokens, algorithm.overlong_buffer_tokens)
                total += parts["overlong"]
            known = bool(applying) and rollout.scorable
            placed = [r.weight * r.tokens(rollout) for r in rewards if r.tokens is not None]
            scored.append(
                replace(
                    rollout, reward=float(total) if known else None, reward_parts=parts,
                    token_rewards=np.sum(placed, 0, dtype=np.float32) if placed else None,
                )
            )  # fmt: skip
        return scored

    def _stop_if_broken(self, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> None:
        failed = [r for r, v in zip(rollouts, verdicts, strict=True) if v.reason is Reason.VERIFIER_ERROR]
        if len(failed) <= max(1, MAX_ERROR_FRAC * len(verdicts)):
            return
        task, text = failed[0].task, failed[0].text
        raise VerifierBroken(
            f"the verifier {task.verifier!r} failed on {len(failed)} of {len(verdicts)} completions, first on task {task.id}: "
            f"{self.failure(task, text)}"
        )


_TRUNCATED = Verdict(correct=False, extracted=None, reason=Reason.TRUNCATED)


def _has_stated(rollout: Rollout) -> bool:
    return (code.is_whole if rollout.task.verifier == "code" else extract.marked)(rollout.text)


def _is_final(verdict: Verdict) -> bool:
    """False for what may be otherwise the next time."""
    return verdict.reason not in (Reason.TIMEOUT, Reason.VERIFIER_ERROR)


def _key(task: Task, text: str) -> bytes:
    path = "\x1f".join((task.verifier, task.id, text)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(path, digest_size=16).digest()


def check_gold(tasks: Sequence[Task], scorer: Scorer) -> tuple[list[Task], list[tuple[Task, Verdict]]]:
    r"""The tasks whose own answer is judged right, and the others with the verdict that shows why not.

    A task whose gold answer cannot be graded would score every completion wrong (or, in older trainers, right).
    """
    tasks = list(tasks)
    verdicts = scorer.verify([(task, as_answered(task)) for task in tasks])
    judged = list(zip(tasks, verdicts, strict=True))
    return [t for t, v in judged if v.correct], [(t, v) for t, v in judged if not v.correct]


def as_answered(task: Task) -> str:
    """The gold answer as a model would give it."""
    from strop.rewards.math import MATHEMATICAL, clean_gold

    if task.verifier not in MATHEMATICAL:
        return task.answer
    return f"\\boxed{{{clean_gold(task.answer)}}}"
