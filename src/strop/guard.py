"""The guard: which alarms are harm, how far a stage then goes back, what it changes, and when it gives up.

Pure functions of logged rows and the recipe, so that a resume needs no state of its own: a "rollback" row says all that a
guard has done, and the same rows give the same settings at every step. Knows no model and writes nothing; the training
loop goes back with what it has for a resume: weights before the step that is called healthy, and recorded rollouts. Its
rules are told in docs/reliability.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from strop.config import TrainStage
from strop.metrics import column
from strop.monitor import AGAIN, LOOKS, LOOKS_STEPS, MEAN_STEPS, REPEATED_FRAC, STEPS, Alarm

__all__ = ["END", "HARMFUL", "Collapsed", "Rollback", "again", "at_step", "decide", "ends", "may_charge_kl"]

Row = Mapping[str, Any]

OF_HOW_IT_SPEAKS = {"entropy_collapse", "entropy_blowup", "kl_blowup", "repetition", "language", "length_blowup"}
OF_ACCURACY = {"no_reward", "collapse", "forgetting", "hacking"}
OF_REWARD = {"no_reward", "collapse"}
WAS_RIGHT_FRAC, WAS_CUT_FRAC = 0.1, 0.1
LR_FACTOR, CLIP_FACTOR, KL_COEF, KL_FACTOR = 0.2, 0.5, 0.05, 4.0
END = "end_stage"

# Steps before the alarm's in which what it tells of was already going on. Alarms that are not here never take a run back:
# what they tell of is no fault of the last steps (a limit that cuts, tasks that are too easy, a verifier that fails).
HARMFUL: dict[str, int] = {
    "not_finite": 1,
    "truncated": 1,
    "no_reward": STEPS,
    "forgetting": 1,
    "entropy_collapse": STEPS,
    "entropy_blowup": STEPS,
    "kl_blowup": STEPS,
    "repetition": STEPS,
    "language": STEPS,
    "length_blowup": STEPS,
    "collapse": MEAN_STEPS + STEPS,
    "hacking": LOOKS_STEPS,
}


class Collapsed(Exception):
    """Every way back that the recipe allows has been tried. The run rests at a healthy step; the CLI exits with 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """One way back: what is logged as a row of kind "rollback"."""

    step: int  # the healthy step that the stage goes on from
    from_step: int  # the last one that was made
    alarm: str
    text: str
    number: int  # the stage's first, second, ...
    remedy: str | None  # what changes from now on; None: the guard gives up
    remedies: list[str]  # all that act now, in the order in which they came


def decide(
    stage: TrainStage,
    alarms: Sequence[Alarm],
    rows: Sequence[Row],
    looks: Sequence[Row],
    rollbacks: Sequence[Row],
    said: Sequence[Row] = (),
    floor: int = 0,
) -> Rollback | None:
    """What to do about the alarms of one step; None where none of them is harm, or the stage has no guard.

    `rows`: the stage's "train" rows up to that step, `looks` its "heldout", `rollbacks` its "rollback" and `said` its
    "alarm" rows, oldest first. `floor`: the first step whose weights can be made again (a fork has one).
    """
    onsets = {alarm.name: _onset(alarm, said) for alarm in alarms if alarm.name in HARMFUL}
    if any(alarm.name == "verifier_errors" for alarm in alarms):  # then accuracy says nothing about the model
        onsets = {name: onset for name, onset in onsets.items() if name not in OF_ACCURACY}
    harm = [a for a in alarms if a.name in onsets and _hurts(a.name, stage, rows, looks, onsets[a.name])]
    if not stage.guard.times or not harm:
        return None
    worst = min(harm, key=lambda alarm: onsets[alarm.name])
    last = rollbacks[-1] if rollbacks else None
    number = 1 if last is None else last["number"] + 1
    gives_up = number > stage.guard.times
    names = stage.guard.remedies
    remedy = None if gives_up else names[min(number, len(names)) - 1]
    return Rollback(
        step=max(floor, _healthy(onsets[worst.name], looks, None if last is None else last["step"])),
        from_step=rows[-1]["step"] if rows else 0,
        alarm=worst.name,
        text=worst.text,
        number=number,
        remedy=remedy,
        remedies=[*([] if last is None else last["remedies"]), *([] if remedy is None else [remedy])],
    )


def _onset(alarm: Alarm, said: Sequence[Row]) -> int:
    """The last step before what an alarm tells of; a state that lasts is said every `AGAIN` steps."""
    step, steps = alarm.step, {row["step"] for row in said if row["alarm"] == alarm.name}
    while step - AGAIN in steps:
        step -= AGAIN
    return max(0, step - HARMFUL[alarm.name])


def _hurts(name: str, stage: TrainStage, rows: Sequence[Row], looks: Sequence[Row], onset: int) -> bool:
    """Some alarms are harm only where it was better before, which is no matter of limits, tasks or verifiers then.

    And a policy that grows sure of itself while it gets better does what it is trained for, as a student does that comes
    to speak as its teacher.
    """
    before, rises = [row for row in rows if row["step"] <= onset], _rises(rows)
    if name in OF_HOW_IT_SPEAKS and _mean(rows[-STEPS:], "teacher_kl") < _mean(rows[:STEPS], "teacher_kl"):
        return False
    if name in OF_REWARD and any((stage.curriculum.easy, stage.curriculum.medium, stage.curriculum.hard)):
        return False  # it is given harder tasks on purpose
    match name:
        case "no_reward":
            return _mean(before, "accuracy") > WAS_RIGHT_FRAC
        case "truncated":
            return _mean(before[:STEPS], "completions/clipped_ratio") < WAS_CUT_FRAC
        case "repetition":
            return _mean(before[:STEPS], "completions/repetition_frac") < REPEATED_FRAC
        case "entropy_collapse":
            return not rises
        case "entropy_blowup":
            aim = stage.algorithm.entropy_target
            return not rises and not (aim is not None and _mean(rows[-STEPS:], "entropy") <= aim)
        case "hacking":
            return _falls(looks)
    return True


def _rises(rows: Sequence[Row]) -> bool:
    return _mean(rows[-STEPS:], "accuracy") > _mean(rows[:MEAN_STEPS], "accuracy") + 1e-6  # more than rounding


def _falls(looks: Sequence[Row]) -> bool:
    """Whether the last looks at the dev split are below the ones before them by more than twice the error."""
    known = [look for look in looks if look["accuracy"] is not None]
    late, early = _mean(known[-LOOKS:], "accuracy"), _mean(known[-2 * LOOKS : -LOOKS], "accuracy")
    middle = (late + early) / 2
    return early - late > 2 * math.sqrt(2 * middle * (1 - middle) / (LOOKS * known[-1].get("num_tasks", 64)))


def _mean(rows: Sequence[Row], key: str) -> float:
    """NaN, which compares False with everything, where no row has the key."""
    known = column(rows, key)
    return fmean(known) if known else math.nan


def _healthy(onset: int, looks: Sequence[Row], before: int | None) -> int:
    """The last step up to `onset` whose look at the dev split was within an error of the best one.

    Where the dev split is never looked at, `STEPS` before the trouble. A step that was gone back to already is not taken
    for healthy again (`before`).
    """
    end = onset if before is None else min(onset, max(0, before - 1))
    known = [look for look in looks if look["step"] <= end and look["accuracy"] is not None]
    if not known:
        return max(0, end - STEPS)
    best = max(look["accuracy"] for look in known)
    error = math.sqrt(best * (1 - best) / known[-1].get("num_tasks", 64))
    return next(look["step"] for look in reversed(known) if look["accuracy"] >= best - error)


# --- what is changed --------------------------------------------------------------------------------------------------


def _lower_lr(stage: TrainStage) -> TrainStage:
    return stage.model_copy(update={"optim": stage.optim.model_copy(update={"lr": LR_FACTOR * stage.optim.lr})})


def _tighter_clip(stage: TrainStage) -> TrainStage:
    """Both bounds halved. What weighs by a ratio above 1 (CISPO's 4) comes nearer to 1 by as much."""
    low, high = stage.algorithm.clip_low, stage.algorithm.clip_high
    update = {"clip_low": low and CLIP_FACTOR * low, "clip_high": high and CLIP_FACTOR * high}
    return stage.model_copy(update={"algorithm": stage.algorithm.model_copy(update=update)})


def _charge_kl(stage: TrainStage) -> TrainStage:
    now = stage.algorithm
    update = {"kl_coef": KL_FACTOR * now.kl_coef} if now.charges_kl else {"kl": "loss", "kl_coef": KL_COEF}
    return stage.model_copy(update={"algorithm": now.model_copy(update=update)})


def _as_it_is(stage: TrainStage) -> TrainStage:
    """Other tasks and other samples are drawn after every way back; that is all of it."""
    return stage


REMEDIES: dict[str, Callable[[TrainStage], TrainStage]] = {
    "lower_lr": _lower_lr,
    "tighter_clip": _tighter_clip,
    "kl": _charge_kl,
    "skip": _as_it_is,
    END: _as_it_is,
}


def at_step(stage: TrainStage, step: int, rollbacks: Sequence[Row]) -> TrainStage:
    """The stage as it makes (or makes again) a step: with the remedies of the ways back that were taken before it."""
    for name in next((row["remedies"] for row in reversed(rollbacks) if row["step"] < step), []):
        stage = REMEDIES[name](stage)
    return stage


def may_charge_kl(stage: TrainStage) -> bool:
    """Whether a reference has to be kept, now or after a way back."""
    return stage.algorithm.charges_kl or (stage.guard.times > 0 and "kl" in stage.guard.remedies)


def again(rollbacks: Sequence[Row]) -> tuple[int | str, ...]:
    """What a seed's path carries after a way back, so that other tasks and other samples are drawn.

    >>> again([]), again([{"number": 1}, {"number": 2}])
    ((), ('again', 2))
    """
    return ("again", rollbacks[-1]["number"]) if rollbacks else ()


def ends(rollbacks: Sequence[Row]) -> int | None:
    """The step whose weights the stage is to end with, where that is the remedy; else None."""
    return rollbacks[-1]["step"] if rollbacks and rollbacks[-1]["remedy"] == END else None
