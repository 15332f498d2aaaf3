"""What a model's samples say before training: every figure by hand or against all draws, and the gate at its edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from sampled import TASKS, answer, sampled
from strop.probe import before, gate, templates, words
from strop.probe.answers import MEASURES, by_task
from strop.record import Task, UserError, Verdict
from strop.rewards import VERIFIERS
from strop.stats import Estimate, share

ROWS = ["++++", "++-0", "+---", "----", "--//"]


def verify(pairs: Sequence[tuple[Task, str]]) -> list[Verdict]:
    """The verifier itself, in this process."""
    return [VERIFIERS[task.verifier](task, text) for task, text in pairs]


@pytest.fixture(scope="module")
def found() -> before.Before:
    return before.measure(sampled(ROWS), verify)


def test_the_rates_are_counted(found):
    assert (found.num_tasks, found.num_samples) == (5, 4)
    rates = {name: rate.value for name, rate in found.rates.items()}
    assert rates == pytest.approx(
        {
            "answered": 17 / 20,
            "marked": 17 / 20,
            "boxed": 17 / 20,
            "ended": 18 / 20,
            "truncated": 2 / 20,
            "right": 7 / 20,
        }
    )
    assert all(rate.low <= rate.value <= rate.high for rate in found.rates.values())
    assert (found.mean_tokens, found.tokens_per_right) == (10, pytest.approx(200 / 7))


def test_every_try_is_counted_without_bias(found):
    """Against all draws of k of the 4 samples."""
    for point in found.pass_at:
        draws = [np.mean(["+" in d for d in combinations(row, point.k)]) for row in ROWS]
        assert point.value == pytest.approx(np.mean(draws))
    assert found.headroom.value == pytest.approx(3 / 5 - 7 / 20)  # three tasks are solved at least once


@pytest.mark.parametrize("group", [2, 3, 4])
def test_signal_is_the_share_of_mixed_groups_over_all_draws(group):
    rows = ["++++++", "+++---", "+-----", "------", "+++++-"]
    mixed = [np.mean([len(set(d)) == 2 for d in combinations(row, group)]) for row in rows]
    num_correct = np.array([row.count("+") for row in rows])
    assert before.signal_of(6, num_correct, group) == pytest.approx(mixed)


def test_groups_are_those_that_the_samples_allow(found):
    assert [s.group for s in found.signals] == [4]
    assert found.signals[0].frac.value == pytest.approx(2 / 5)
    assert [s.group for s in before.measure(sampled(["+-" * 6, "-" * 12]), verify).signals] == [4, 8, 12]
    assert [s.group for s in before.measure(sampled(["+-", "--"]), verify).signals] == [2]


def test_voting_is_the_majority_of_as_many_tries(found):
    """All four samples vote: 1, 1, 0 (two wrong answers that agree, 1 to 3), 0, 0."""
    assert found.voting_tries == 4
    assert found.voting.value == pytest.approx(2 / 5 - 7 / 20)
    assert [m.k for m in found.majority_at] == [1, 2, 4]
    assert found.majority_at[0].value == pytest.approx(7 / 20, abs=0.02)  # by random draws


def test_reflection_is_weighed_within_tasks():
    """Easy tasks are answered without a word, hard ones with: only the tasks that hold both tell what the words do."""
    rollouts = [answer(TASKS[0], k, "+") for k in range(4)]  # easy, never reflects
    rollouts += [answer(TASKS[1], k, "-", text="Let me rethink.") for k in range(4)]  # hard, always
    rollouts += [
        answer(TASKS[2], k, "+-"[k > 1], text="I should recheck." if k in (0, 1, 2) else "Fine.") for k in range(4)
    ]
    oat, dr = before.measure(rollouts, verify).reflections
    assert (oat.keywords, dr.keywords) == ("oat-zero", "dr-grpo")
    assert oat.answers.value == pytest.approx(7 / 12)
    assert oat.tasks_frac == pytest.approx(2 / 3)
    assert oat.acc_with is not None
    assert oat.acc_with.value == pytest.approx((0 + 2 / 3) / 2)
    assert oat.acc_without is not None
    assert oat.acc_without.value == pytest.approx((1 + 0) / 2)
    assert oat.gain is not None
    assert oat.gain.value == pytest.approx(2 / 3 - 0)
    assert oat.num_paired == 1
    assert oat.gain.low < 0  # one task settles nothing


def test_reflection_by_outcome():
    """Two of four right answers, one of two wrong ones and the cut one hold words; a verifier that failed says nothing."""
    texts = {0: "Recheck: recheck.", 1: "I rethink.", 2: "Fine.", 3: "Fine."}
    rollouts = [answer(TASKS[0], k, "+", text=texts[k]) for k in range(4)]
    rollouts += [answer(TASKS[1], k, kind, text=texts[k]) for k, kind in enumerate("!-/-")]
    rollouts[6] = answer(TASKS[1], 2, "/", text="try again, try again", num_tokens=40)
    oat = before.measure(rollouts, verify).reflections[0]
    shares = {which: (s.num_answers, s.answers.value) for which, s in oat.by_outcome.items() if s.answers}
    assert shares == {"right": (4, 1 / 2), "wrong": (2, 1 / 2), "truncated": (1, 1.0)}
    assert [s.per_1000_tokens for s in oat.by_outcome.values()] == [1000 * 3 / 40, 1000 * 1 / 20, 1000 * 2 / 40]
    assert oat.by_outcome["truncated"].answers.low < 0.5  # one answer
    said = "\n".join(words.before(before.measure(rollouts, verify), gate.advise(before.measure(rollouts, verify))))
    assert "wrong, 2          50.0%" in said
    none = before.measure(sampled(["++", "++"]), verify).reflections[0].by_outcome["wrong"]
    assert (none.num_answers, none.answers, none.per_1000_tokens) == (0, None, None)


def test_no_words_of_reflection_is_no_gain(found):
    assert all(r.gain is None and r.acc_with is None for r in found.reflections)
    assert found.reflections[0].answers.high > 0.3  # five tasks without one do not show that there are none


def test_chains_of_tasks_that_are_hardly_ever_solved():
    rows = ["+" + "-" * 3, "++--", "----"]
    (chain,) = before.measure(sampled(rows), verify).rare
    assert (chain.task, chain.num_right, chain.text) == (TASKS[0].id, 1, r"So \boxed{1}.")
    many = ["++" + "-" * 62, "++++" + "-" * 60]  # 2 of 64 are below 5%, 4 are not
    assert [c.task for c in before.measure(sampled(many), verify).rare] == [TASKS[0].id] * 2


def test_a_verifier_that_failed_is_not_right_and_is_an_answer():
    rates = before.measure(sampled(["+!", "+-"]), verify).rates
    assert (rates["right"].value, rates["answered"].value) == (0.5, 1.0)


def test_samples_that_cannot_be_probed():
    with pytest.raises(UserError, match="have 1 samples"):
        by_task(sampled(["+", "-"]))
    with pytest.raises(UserError, match="have 2 to 3 samples"):
        by_task(sampled(["++", "---"]))
    with pytest.raises(UserError, match="have no samples"):
        by_task([])
    twice = sampled(["+-"]) + sampled(["+-"])  # a task that is in two sets
    assert [len(samples) for samples in by_task(twice)] == [2]


def test_an_interval_of_nothing_is_not_of_no_width():
    assert share([0.0] * 20).high == pytest.approx(0.1611, abs=1e-4)  # Wilson's, 0 of 20
    assert share([1.0] * 20).low == pytest.approx(1 - 0.1611, abs=1e-4)
    assert share([0.5] * 20) == Estimate(value=0.5, low=0.5, high=0.5)


# --- the gate


def at(value: float, width: float = 0.02) -> Estimate:
    return Estimate(value=value, low=value - width, high=value + width)


@pytest.mark.parametrize(
    ("truncated", "answered", "right", "signal", "headroom", "do"),
    [
        (0.31, 0.2, 0.95, 0.0, 0.0, "raise the limit"),
        (0.30, 0.49, 0.95, 0.0, 0.0, "teach the form"),
        (0.30, 0.50, 0.90, 0.0, 0.0, "harder tasks"),
        (0.0, 1.0, 0.89, 0.099, 0.049, "distil first"),
        (0.0, 1.0, 0.89, 0.099, 0.05, "larger groups"),
        (0.0, 1.0, 0.89, 0.10, 0.0, "rl"),
    ],
)
def test_the_gate_takes_the_first_rule_that_holds(found, truncated, answered, right, signal, headroom, do):
    rates = found.rates | {"truncated": at(truncated), "answered": at(answered), "right": at(right)}
    signals = [before.Signal(group=8, frac=at(signal)), before.Signal(group=16, frac=at(0.9))]
    changed = replace(found, rates=rates, signals=signals, headroom=at(headroom))
    assert gate.advise(changed).do == do


def test_the_gate_says_what_else_would_help(found):
    signals = [before.Signal(group=8, frac=Estimate(value=0.41, low=0.36, high=0.46))]
    good = replace(found, signals=signals, voting=Estimate(value=0.06, low=0.031, high=0.089), voting_tries=8)
    said = gate.advise(good).words
    assert said.startswith(
        "RL has signal on 41.0% (36.0 to 46.0) of the tasks at 8 rollouts each: there is something to learn from."
    )
    assert "Voting over 8 would already give +6.0 points (+3.1 to +8.9), at 8 times the tokens." in said
    assert "cost 29 sampled tokens each and cover 60% of the tasks" in said
    unsure = replace(good, signals=[before.Signal(group=8, frac=Estimate(value=0.11, low=0.04, high=0.18))],
                     voting=Estimate(value=0.01, low=-0.02, high=0.04), tokens_per_right=None)  # fmt: skip
    said = gate.advise(unsure).words
    assert "The interval reaches below 10%: probe more tasks." in said
    assert "Voting over 8 is not shown to help: +1.0 points" in said
    worse = replace(unsure, voting=Estimate(value=-0.05, low=-0.07, high=-0.03))
    assert "Voting over 8 would lose: -5.0 points" in gate.advise(worse).words
    assert "rejection sampling" not in said


def test_a_person_reads_every_rate_and_the_advice(found):
    text = "\n".join(words.before(found, gate.advise(found)))
    assert all(name in text for name in MEASURES)
    assert "pass@k" in text
    assert "rl: RL has signal on 40.0%" in text
    assert "hardly ever solved: 1;" in text


def test_a_terminal_is_not_obeyed():
    rollouts = sampled(["+-", "--"])
    hostile = replace(rollouts[0], text="\x1b[2J\n\ud800 So \\boxed{1}.")
    found = before.measure([hostile, *rollouts[1:]], verify)
    assert "?[2J ? So \\boxed{1}." in "\n".join(words.before(found, gate.advise(found)))


# --- templates


def test_templates_are_compared_task_by_task():
    plain, boxed = sampled(["+-", "--", "0-"]), sampled(["++", "+-", "0-"])[::-1]
    first, second = templates.measure({"plain": plain, "boxed": boxed})
    assert first.against_first == {}
    assert second.rates["right"].value == pytest.approx(3 / 6)
    assert second.against_first["right"].value == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert second.against_first["answered"].value == pytest.approx(0)
    lines = words.templates([first, second], {"plain": "no system prompt", "boxed": "system prompt 'Box it.'"})
    assert "+33.3 points" in "\n".join(lines)


def test_templates_on_other_tasks_are_refused():
    with pytest.raises(UserError, match=r"different tasks \(2 and 3, 2 shared\)"):
        templates.measure({"a": sampled(["+-", "--"]), "b": sampled(["+-", "--", "--"])})
