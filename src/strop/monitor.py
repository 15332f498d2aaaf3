"""Alarms: what in a step's metrics should make a person look, each as one sentence with what to do about it.

Pure functions over metric rows (the dicts of `metrics.jsonl`), listed in `ALARMS`. Knows what the rows mean and what
training that goes wrong looks like; does not stop, change or log anything: the loop prints and logs what `check` returns.

Single steps are noisy, so an alarm about a course compares means or slopes with their own error, and asks for a size
too: what is only significant is not yet worth a person's time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile
from statistics import fmean, median, pvariance
from typing import Any

from strop.metrics import column
from strop.stats import trend

__all__ = ["ALARMS", "Alarm", "check"]

Row = Mapping[str, Any]

STEPS = 3  # a state must last this long before it is worth a word
AGAIN = 20  # and it is said again after this many more steps
TRUNCATED_FRAC = 0.5
ENTROPY_FRAC = 0.2  # of the entropy at the start of the stage
ENTROPY_TIMES = 3.0  # the same, upwards
REPEATED_FRAC = 0.3
FOREIGN_FRAC = 0.1  # of the words; formulas and code are none
KL_NATS = 1.0  # per token: the policy has become another model
LENGTH_TIMES = 2.0  # of the length at the start of the stage
MISMATCH_NATS = 1e-3  # per token; equal weights in float32 give below 1e-6, bfloat16 some 1e-4 and now and then 2e-3
TIMEOUT_FRAC = 0.05
ERRORS = 3.0  # standard errors; what is nearer to nothing is taken for noise
MEAN_STEPS = 5  # whose mean reward stands for one step's
FALLEN_FRAC = 1 / 3  # of the best reward
COURSE_STEPS = 20  # over which a slope is taken
GROWN_FRAC = 0.2  # of the length, over those steps
STUCK_FRAC = 0.2
LOOKS, LOOKS_STEPS = 3, 15  # at least as many looks at the dev split, and steps, on each side of a comparison
RISEN_STDS = 0.5  # of the rewards inside a group
DEV = "heldout/accuracy"  # where a row carries the accuracy on the dev split after its step
DEV_TASKS, DEV_START = "heldout/num_tasks", "heldout/accuracy_at_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One thing that looks wrong at one step."""

    name: str  # key of ALARMS
    step: int
    text: str  # one sentence, ending in advice


def check(row: Row, history: Sequence[Row], heldout: Sequence[Row] = ()) -> list[Alarm]:
    """The alarms of one "train" row, given the stage's earlier ones (oldest first, without `row`) and "heldout" rows.

    A lasting state is said when it has lasted `STEPS` steps and every `AGAIN` steps after that.

    >>> [alarm.name for alarm in check({"stage": "rl", "step": 1, "completions/clipped_ratio": 0.97}, [])]
    ['truncated']
    """
    dev = {look["step"]: {DEV: look["accuracy"], DEV_TASKS: look.get("num_tasks", 64)} for look in heldout}
    start = {DEV_START: dev[0][DEV]} if 0 in dev else {}  # a look before the first step has no row of its own
    row, *history = ({**r, **start, **dev.get(r["step"], {})} for r in (row, *history))
    found = ((name, alarm(row, history)) for name, alarm in ALARMS.items())
    return [Alarm(name=name, step=row["step"], text=text) for name, text in found if text is not None]


def no_reward(row: Row, history: Sequence[Row]) -> str | None:
    """Nothing is ever right: there is no gradient, and often the grader is at fault rather than the model."""
    if not _due(row, history, lambda r: _all_wrong(r) and not _has_teacher(r), STEPS):
        return None
    reasons = {key.removeprefix("verdict/"): row[key] for key in row if key.startswith("verdict/") and row[key]}
    mostly = f" (mostly {max(reasons, key=lambda reason: reasons[reason])!r})" if reasons else ""
    return (
        f"no rollout has been right for {STEPS} steps or more{mostly}: read some completions, check the answer format, "
        "and begin with easier tasks or an SFT stage"
    )


def no_signal(row: Row, history: Sequence[Row]) -> str | None:
    """Every group has equal rewards though some are right: the tasks are too easy, or the samples are all alike."""
    if not _due(row, history, _all_equal, STEPS):
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
        f"stages.{_stage(row)}.max_tokens{try_} (with moves also moves.limits), or expect no reward from them"
    )


def stuck(row: Row, history: Sequence[Row]) -> str | None:
    """A good part is cut, step after step, and the reward does not rise: the limit holds learning up."""
    if not _due_over(row, history, _is_stuck):
        return None
    cut = fmean(column((*history, row)[-COURSE_STEPS:], "completions/clipped_ratio"))
    return (
        f"{cut:.0%} of completions were cut over the last {COURSE_STEPS} steps, and the reward does not rise: raise "
        f"stages.{_stage(row)}.max_tokens, or make answers shorter with stages.{_stage(row)}.algorithm.overlong_buffer_tokens"
    )


def _is_stuck(rows: Sequence[Row]) -> bool:
    cut = column(rows, "completions/clipped_ratio")
    if len(cut) < len(rows) or min(cut) < STUCK_FRAC or fmean(cut) >= TRUNCATED_FRAC:  # above, `truncated` speaks
        return False
    (falls, error_of_cut), (rises, error) = trend(cut), trend(column(rows, "reward"))
    return falls >= -error_of_cut and rises <= error


def drift(row: Row, history: Sequence[Row]) -> str | None:
    """Wrong answers grow longer and right ones do not: the loss pays for length (docs/algorithms.md, "Aggregate")."""
    if not _due_over(row, history, _drifts):
        return None
    window = (*history, row)[-COURSE_STEPS:]
    (wrong, error), (right, _) = (
        trend(column(window, f"completions/mean_{kind}_length")) for kind in ("wrong", "right")
    )
    return (
        f"wrong answers grow by {wrong:.2g} tokens a step ({wrong - ERRORS * error:.2g} to {wrong + ERRORS * error:.2g}) and "
        f"right ones by {right:.2g}: set stages.{_stage(row)}.algorithm.aggregate=constant, or drop tasks that are never solved"
    )


def _drifts(rows: Sequence[Row]) -> bool:
    """The gap within tasks has to widen too, where it is known: else it may be that only the long tasks stay wrong."""
    wrong, right, gaps = (
        column(rows, f"completions/{key}") for key in ("mean_wrong_length", "mean_right_length", "length_gap")
    )
    if 2 * min(len(wrong), len(right)) < len(rows):
        return False
    (slope, error), (slope_of_right, _), (widens, error_of_gap) = trend(wrong), trend(right), trend(gaps)
    grows = slope > ERRORS * error and slope * len(rows) > GROWN_FRAC * fmean(wrong)
    return grows and slope_of_right < slope / 2 and (2 * len(gaps) < len(rows) or widens > ERRORS * error_of_gap)


def repetition(row: Row, history: Sequence[Row]) -> str | None:
    """Answers run in circles: the policy has found a loop, often one that fills the length limit."""
    if not _due(row, history, lambda r: _number(r, "completions/repetition_frac") > REPEATED_FRAC, STEPS):
        return None
    return (
        f"{row['completions/repetition_frac']:.0%} of what completions say they have said before, word for word: read some, "
        f"lower stages.{_stage(row)}.optim.lr, or take a reward that falls with repetition"
    )


def language(row: Row, history: Sequence[Row]) -> str | None:
    """Completions drift into scripts that their prompts do not use."""
    start = _at_start(history, "completions/foreign_frac")
    if not _due(row, history, lambda r: _number(r, "completions/foreign_frac") > start + FOREIGN_FRAC, STEPS):
        return None
    return (
        f"{row['completions/foreign_frac']:.0%} of the words in completions are in scripts that their prompts do not use: read "
        "some, and take the reward language or a lower learning rate"
    )


def length_blowup(row: Row, history: Sequence[Row]) -> str | None:
    """Completions have grown to a multiple of what they were, and no more of them are right."""
    start, accuracy = (_at_start(history, key) for key in ("completions/mean_length", "accuracy"))
    limit = LENGTH_TIMES * start

    def is_longer(r: Row) -> bool:
        return _number(r, "completions/mean_length") > limit and _number(r, "accuracy") <= accuracy

    if not _due(row, history, is_longer, STEPS):
        return None
    return (
        f"completions grew to {row['completions/mean_length']:.0f} tokens from {start:.0f} at the start of the stage, and no "
        "more of them are right: look for what pays for length, or take a reward that falls with it"
    )


def kl_blowup(row: Row, history: Sequence[Row]) -> str | None:
    """Far from the reference: most of what it could do is gone."""
    if not _due(row, history, lambda r: _number(r, "kl") > KL_NATS, STEPS):
        return None
    return (
        f"the policy is {row['kl']:.2g} nats a token from its reference: raise stages.{_stage(row)}.algorithm.kl_coef, or lower "
        f"stages.{_stage(row)}.optim.lr"
    )


def entropy_collapse(row: Row, history: Sequence[Row]) -> str | None:
    """The policy has become nearly deterministic: groups lose their signal and exploration ends."""
    start = _at_start(history, "entropy")
    if not _due(row, history, lambda r: _number(r, "entropy") < ENTROPY_FRAC * start, STEPS):
        return None
    return (
        f"entropy fell to {row['entropy']:.3g} nats a token from {start:.3g} at the start of the stage: lower "
        f"stages.{_stage(row)}.optim.lr, raise stages.{_stage(row)}.algorithm.clip_high, or stop the run"
    )


def entropy_blowup(row: Row, history: Sequence[Row]) -> str | None:
    """The policy comes apart: each token is drawn from more and more others, and soon it is noise."""
    start = _at_start(history, "entropy")
    if not _due(row, history, lambda r: _number(r, "entropy") > ENTROPY_TIMES * start, STEPS):
        return None
    return (
        f"entropy rose to {row['entropy']:.3g} nats a token from {start:.3g} at the start of the stage: lower "
        f"stages.{_stage(row)}.optim.lr or updates_per_step, and begin again from weights before that"
    )


def _at_start(history: Sequence[Row], key: str) -> float:
    """Mean of the first steps; NaN, which compares False with everything, until enough of them have been made."""
    first = column(history, key)[:STEPS]
    return fmean(first) if len(first) == STEPS else math.nan


def collapse(row: Row, history: Sequence[Row]) -> str | None:
    """The reward has fallen far below its best and stays there: what was learned is being undone."""
    if _reward_moves(row):
        return None
    rewards = column((*history, row), "reward")
    means = [fmean(rewards[end - MEAN_STEPS : end]) for end in range(MEAN_STEPS, len(rewards) + 1)]
    best = list(accumulate(means, max))
    # Noise is taken from the median difference of one step and the next, which a fall leaves as it is; and the best of
    # many means was lucky, so a fall counts from twice the usual number of errors.
    noise = median([abs(b - a) for a, b in pairwise(rewards)] or [math.inf]) / (0.6745 * math.sqrt(2))
    error = noise * math.sqrt(2 / MEAN_STEPS)
    fallen = [b - now > max(FALLEN_FRAC * abs(b), 2 * ERRORS * error) for b, now in zip(best, means, strict=True)]
    if not _lasted(reversed(fallen), STEPS):
        return None
    return (
        f"reward fell to {means[-1]:.3g} from {best[-1]:.3g} at its best (means of {MEAN_STEPS} steps) and stays there: stop "
        f"the run, and begin again with a lower stages.{_stage(row)}.optim.lr or fewer updates_per_step"
    )


def forgetting(row: Row, history: Sequence[Row]) -> str | None:
    """The dev split is answered far worse than at its best: what was known is being lost."""
    earlier = [*column(history, DEV), *column([row], DEV_START)]
    if DEV not in row or not earlier:
        return None
    best, now, num = max(earlier), row[DEV], row[DEV_TASKS]
    mean = (best + now) / 2
    # One more error than elsewhere: the best of many looks was lucky.
    if not best - now > max(FALLEN_FRAC * best, (ERRORS + 1) * math.sqrt(2 * mean * (1 - mean) / num)):
        return None
    return (
        f"dev accuracy fell to {now:.1%} from {best:.1%} at its best: begin again from weights before that with a lower "
        f"stages.{_stage(row)}.optim.lr"
    )


def hacking(row: Row, history: Sequence[Row]) -> str | None:
    """The reward rises and accuracy on the dev split does not: it is paid for something else, or learned by heart."""
    rows = [*history, row]
    if (
        DEV not in row
        or _reward_moves(row)
        or not _lasted((_is_hacked(rows[: i + 1]) for i in reversed(_looks(rows))), 1)
    ):
        return None
    early, late = _halves(rows)
    reward, dev = ([fmean(column(half, key)) for half in (early, late)] for key in ("reward", DEV))
    return (
        f"reward rose from {reward[0]:.3g} to {reward[1]:.3g} over {len(early) + len(late)} steps while dev accuracy went from "
        f"{dev[0]:.1%} to {dev[1]:.1%}: read what is paid for, and add training tasks if these are learned by heart"
    )


def _is_hacked(rows: Sequence[Row]) -> bool:
    early, late = _halves(rows)
    rewards = [column(half, "reward") for half in (early, late)]
    stds = [column(half, "reward_std") for half in (early, late)]
    if not all(rewards) or not all(stds):
        return False
    rise = fmean(rewards[1]) - fmean(rewards[0])
    error = math.sqrt(sum(pvariance(half) / len(half) for half in rewards))
    flat = fmean(column(late, DEV)) <= fmean(column(early, DEV))
    return flat and rise > ERRORS * error and rise > RISEN_STDS * max(map(fmean, stds))


def _reward_moves(row: Row) -> bool:
    """Whether a recipe lets a reward's weight move: sums of different steps are then different things."""
    return any(key.startswith("rewards/") and key.endswith("/weight") for key in row)


def _halves(rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
    """The rows up to the last look at the dev split, as two spans with equally many looks; empty while there are too few."""
    looks = _looks(rows)
    if len(looks) < 2 * LOOKS:
        return (), ()
    each = max(LOOKS, math.ceil(LOOKS_STEPS / (looks[-1] - looks[-2])))
    if len(looks) < 2 * each:
        return (), ()
    begin = looks[-2 * each - 1] + 1 if len(looks) > 2 * each else 0
    middle = looks[-each - 1] + 1
    return rows[begin:middle], rows[middle : looks[-1] + 1]


def _looks(rows: Sequence[Row]) -> list[int]:
    return [i for i, r in enumerate(rows) if math.isfinite(_number(r, DEV))]


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
    if not _due(row, history, lambda r: abs(_number(r, "sampling/mismatch_kl")) > MISMATCH_NATS, STEPS):
        return None
    return (
        f"sampler and learner differ by {row['sampling/mismatch_kl']:.2g} nats a token on the same weights: "
        "set model.dtype=float32, and report it if that does not end it"
    )


ALARMS: dict[str, Callable[[Row, Sequence[Row]], str | None]] = {
    "no_reward": no_reward,
    "no_signal": no_signal,
    "truncated": truncated,
    "stuck": stuck,
    "drift": drift,
    "repetition": repetition,
    "language": language,
    "length_blowup": length_blowup,
    "kl_blowup": kl_blowup,
    "entropy_collapse": entropy_collapse,
    "entropy_blowup": entropy_blowup,
    "collapse": collapse,
    "forgetting": forgetting,
    "hacking": hacking,
    "not_finite": not_finite,
    "verifier_errors": verifier_errors,
    "mismatch": mismatch,
}


def _all_wrong(row: Row) -> bool:
    """By accuracy where it is logged; a format reward or a length penalty may be paid where nothing is right."""
    if row.get("accuracy") is not None:
        return row["accuracy"] == 0
    return row.get("reward") == 0 and row.get("reward_std") == 0


def _all_equal(row: Row) -> bool:
    return _number(row, "frac_reward_zero_std") == 1.0 and not _all_wrong(row) and not _has_teacher(row)


def _has_teacher(row: Row) -> bool:
    """Whether a teacher credits tokens, so that something is learned whatever the rewards are."""
    return math.isfinite(_number(row, "teacher_kl"))


def _due(row: Row, history: Sequence[Row], state: Callable[[Row], bool], steps: int) -> bool:
    """Whether `state` has now lasted exactly `steps` rows, or `AGAIN` more, or twice that ..."""
    return _lasted((state(r) for r in (row, *reversed(history))), steps)


def _due_over(row: Row, history: Sequence[Row], state: Callable[[Sequence[Row]], bool]) -> bool:
    """The same for a state of the last `COURSE_STEPS` rows, which must hold for `STEPS` rows on end."""
    rows = [r for r in (*history, row) if r.get("max_tokens") == row.get("max_tokens")]  # a new limit is a new course
    return _lasted((state(rows[end - COURSE_STEPS : end]) for end in range(len(rows), COURSE_STEPS - 1, -1)), STEPS)


def _lasted(states: Iterable[bool], steps: int) -> bool:
    """`states`: newest first."""
    lasted = sum(takewhile(bool, states))
    return lasted >= steps and (lasted - steps) % AGAIN == 0


def _number(row: Row, key: str) -> float:
    """NaN, which compares False with everything, where the row has no such number."""
    value = row.get(key)
    return math.nan if value is None else float(value)


def _stage(row: Row) -> str:
    return row.get("stage", "<name>")
