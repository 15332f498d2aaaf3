"""Alarms: what in a step's metrics should make a person look, each as one sentence with what to do about it.

Pure functions over metric rows (the dicts of `metrics.jsonl`), listed in `ALARMS`. Knows what the rows mean and what
training that goes wrong looks like; does not stop, change or log anything: the loop prints and logs what `check` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

__all__ = ["ALARMS", "Alarm", "check"]

Row = Mapping[str, Any]

STEPS = 3  # a state must last this long before it is worth a word
AGAIN = 20  # and it is said again after this many more steps
TRUNCATED_FRAC = 0.5
ENTROPY_FRAC = 0.2  # of the entropy at the start of the stage
MISMATCH_NATS = 1e-3  # per token; equal weights in float32 give below 1e-6, bfloat16 some 1e-4
TIMEOUT_FRAC = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One thing that looks wrong at one step."""

    name: str  # key of ALARMS
    step: int
    text: str  # one sentence, ending in advice


def check(row: Row, history: Sequence[Row]) -> list[Alarm]:
    """The alarms of one "train" row, given the stage's earlier ones (oldest first, without `row`).

    A lasting state is said when it has lasted `STEPS` steps and every `AGAIN` steps after that.

    >>> [alarm.name for alarm in check({"stage": "rl", "step": 1, "completions/clipped_ratio": 0.97}, [])]
    ['truncated']
    """
    found = ((name, alarm(row, history)) for name, alarm in ALARMS.items())
    return [Alarm(name=name, step=row["step"], text=text) for name, text in found if text is not None]


def no_reward(row: Row, history: Sequence[Row]) -> str | None:
    """Nothing is ever right: there is no gradient, and often the grader is at fault rather than the model."""
    if not _due(row, history, _all_wrong, STEPS):
        return None
    reasons = {key.removeprefix("verdict/"): row[key] for key in row if key.startswith("verdict/") and row[key]}
    mostly = f" (mostly {max(reasons, key=lambda reason: reasons[reason])!r})" if reasons else ""
    return (
        f"no rollout has been right for {STEPS} steps or more{mostly}: read some completions, check the answer format, "
        "and begin with easier tasks or an SFT stage"
    )


def no_signal(row: Row, history: Sequence[Row]) -> str | None:
    """Every group has equal rewards though some are right: the tasks are too easy, or the samples are all alike."""
    if not _due(row, history, lambda r: _number(r, "frac_reward_zero_std") == 1.0 and not _all_wrong(r), STEPS):
        return None
    return (
        f"for {STEPS} steps or more all rewards of each group were equal, so nothing was learned: use harder tasks, or "
        f"raise stages.{_stage(row)}.group_size or stages.{_stage(row)}.temperature"
    )


def truncated(row: Row, history: Sequence[Row]) -> str | None:
    """The length limit cuts completions before they can answer: the reward then measures the limit."""
    if not _due(row, history, lambda r: _number(r, "completions/clipped_ratio") >= TRUNCATED_FRAC, 1):
        return None
    longest = _number(row, "completions/max_length")
    try_ = f", for example --set stages.{_stage(row)}.max_tokens={2 * int(longest)}" if math.isfinite(longest) else ""
    return (
        f"{row['completions/clipped_ratio']:.0%} of completions were cut by the length limit: raise "
        f"stages.{_stage(row)}.max_tokens{try_}"
    )


def entropy_collapse(row: Row, history: Sequence[Row]) -> str | None:
    """The policy has become nearly deterministic: groups lose their signal and exploration ends."""
    rows = [r for r in history if math.isfinite(_number(r, "entropy"))]
    if len(rows) < STEPS:
        return None
    start = fmean(_number(r, "entropy") for r in rows[:STEPS])
    if not _due(row, history, lambda r: _number(r, "entropy") < ENTROPY_FRAC * start, STEPS):
        return None
    return (
        f"entropy fell to {row['entropy']:.3g} nats a token from {start:.3g} at the start of the stage: lower "
        f"stages.{_stage(row)}.optim.lr, raise stages.{_stage(row)}.algorithm.clip_high, or stop the run"
    )


def not_finite(row: Row, history: Sequence[Row]) -> str | None:
    """A number that is not one. Look at the raw row: on disk such values are null."""
    broken = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    if not broken:
        return None
    return f"{', '.join(broken)} not finite: lower stages.{_stage(row)}.optim.lr, or train in float32"


def verifier_errors(row: Row, history: Sequence[Row]) -> str | None:
    """Verdicts that say nothing about the model. They leave the loss, but many of them hide what was learned."""
    verdicts = sum(value for key, value in row.items() if key.startswith("verdict/") and value)
    errors, timeouts = row.get("verdict/verifier_error") or 0, row.get("verdict/timeout") or 0
    if errors:
        return f"the verifier failed on {errors} of {verdicts} completions: this is a bug in the verifier, not in the model"
    if verdicts and timeouts / verdicts > TIMEOUT_FRAC:
        return f"the verifier ran out of time on {timeouts} of {verdicts} completions: raise checks.timeout_s"
    return None


def mismatch(row: Row, history: Sequence[Row]) -> str | None:
    """Sampler and learner disagree about the same tokens: the update is then off-policy in a way no clip sees."""
    if not _due(row, history, lambda r: abs(_number(r, "sampling/mismatch_kl")) > MISMATCH_NATS, 1):
        return None
    return (
        f"sampler and learner differ by {row['sampling/mismatch_kl']:.2g} nats a token on the same weights: "
        "set model.dtype=float32, and report it if that does not end it"
    )


ALARMS: dict[str, Callable[[Row, Sequence[Row]], str | None]] = {
    "no_reward": no_reward,
    "no_signal": no_signal,
    "truncated": truncated,
    "entropy_collapse": entropy_collapse,
    "not_finite": not_finite,
    "verifier_errors": verifier_errors,
    "mismatch": mismatch,
}


def _all_wrong(row: Row) -> bool:
    """By accuracy where it is logged; a format reward or a length penalty may be paid where nothing is right."""
    if row.get("accuracy") is not None:
        return row["accuracy"] == 0
    return row.get("reward") == 0 and row.get("reward_std") == 0


def _due(row: Row, history: Sequence[Row], state: Callable[[Row], bool], steps: int) -> bool:
    """Whether `state` has now lasted exactly `steps` rows, or `AGAIN` more, or twice that ..."""
    lasted = 0
    for r in (row, *reversed(history)):
        if not state(r):
            break
        lasted += 1
    return lasted >= steps and (lasted - steps) % AGAIN == 0


def _number(row: Row, key: str) -> float:
    """NaN, which compares False with everything, where the row has no such number."""
    value = row.get(key)
    return math.nan if value is None else float(value)


def _stage(row: Row) -> str:
    return row.get("stage", "<name>")
