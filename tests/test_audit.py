r"""The suite that graders are put through: ours passes it, careless ones are caught, hanging ones are killed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from strop import audit
from strop.audit.suite import CASES
from strop.record import UserError

REWARDS = f"{Path(__file__).parent / 'rewards_for_tests.py'}"


def audited(name: str, timeout_s: float = 10.0) -> audit.Report:
    return audit.run([name], workers=1, timeout_s=timeout_s)[0]


def wrong(report: audit.Report, kind: audit.Kind) -> set[str]:
    return {finding.case.name for finding in report.findings if finding.kind == kind}


def test_the_table_has_enough_different_cases_of_both_sorts() -> None:
    assert len(CASES) >= 80
    assert len({case.name for case in CASES}) == len({(case.gold, case.completion) for case in CASES}) == len(CASES)
    assert min(sum(case.paid is paid for case in CASES) for paid in (True, False)) > 40
    for case in CASES:
        assert case.completion.count("«") == case.completion.count("»"), case.name
        assert not any(mark in case.rendered("<answer>…</answer>") for mark in "«»")


def test_our_grader_accepts_nothing_false_and_refuses_nothing_right() -> None:
    report = audited("accuracy")
    assert report.findings == ()
    assert report.form == r"\boxed{…}"


def test_the_verifier_for_sums_refuses_only_what_is_not_worked_out() -> None:
    report = audited("number")
    assert wrong(report, "false accept") == set()
    assert wrong(report, "false reject") == {"power", "scientific"}


def test_a_grader_that_looks_for_the_gold_in_the_text_is_caught() -> None:
    report = audited("substring")
    caught = wrong(report, "false accept")
    assert {"all candidates", "echoed prompt", "only in the reasoning", "sign flipped", "right, then wrong"} <= caught
    assert {"fraction as a decimal", "set in another order"} <= wrong(report, "false reject")
    unpaid = sum(not case.paid for case in CASES)
    assert audit.naive_frac() == pytest.approx(len(caught) / unpaid)


@pytest.mark.slow  # waits for its time-outs
def test_what_plain_math_verify_gets_wrong_is_listed() -> None:
    report = audited("math-verify", timeout_s=3.0)
    assert {"equals everything", "other unit"} <= wrong(report, "false accept")
    assert "degrees" in wrong(report, "false reject")
    assert "wrong" not in {finding.case.name for finding in report.findings}


# --- reward functions of others -----------------------------------------------------------------------------------------


def test_a_reward_of_any_scale_is_paid_above_the_middle() -> None:
    report = audited(f"{REWARDS}:last_number")  # 2 or -1
    assert {"plus or minus", "boxes joined"} <= wrong(report, "false accept")
    assert "right" not in wrong(report, "false reject")
    assert "wrong" not in wrong(report, "false accept")


def test_a_reward_that_takes_messages_is_given_them() -> None:
    assert wrong(audited(f"{REWARDS}:contains"), "false accept") == wrong(audited("substring"), "false accept")


def test_a_reward_gets_answers_in_its_own_form() -> None:
    report = audited(f"{REWARDS}:tagged")  # verl's compute_score
    assert report.form == "<answer>…</answer>"
    assert "right" not in wrong(report, "false reject")
    assert "other format: hashes" in wrong(report, "false reject")


def test_a_reward_that_hangs_is_killed_and_the_other_cases_are_judged() -> None:
    start = time.monotonic()
    report = audited(f"{REWARDS}:hangs", timeout_s=2.0)
    assert time.monotonic() - start < 60
    assert wrong(report, "time-out") == {"tower of nines"}
    assert "right" not in wrong(report, "false reject")


def test_a_reward_that_raises_is_an_error_with_its_words() -> None:
    report = audited(f"{REWARDS}:raises")
    assert wrong(report, "error") == {"null bytes", "null bytes, right"}
    assert all("ZeroDivisionError" in finding.said for finding in report.findings if finding.kind == "error")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cosine", "shapes a reward"),
        ("repetition_dense", "shapes a reward"),
        ("acuracy", "did you mean 'accuracy'"),
        ("nowhere.py:f", "there is no file"),
        (f"{REWARDS}:nothing", "there is no function 'nothing'"),
        (f"{REWARDS}:length", "is no grader: it pays the right answer 42 no more than the wrong one 17"),
        (f"{REWARDS}:always_raises", "it fails on a plain right answer"),
    ],
)
def test_what_cannot_be_audited_is_refused_with_the_reason(name: str, says: str) -> None:
    with pytest.raises(UserError) as raised:
        audited(name)
    assert says in str(raised.value)


def test_the_report_for_people_and_for_programs() -> None:
    reports = audit.run(["accuracy", f"{REWARDS}:raises"], workers=1, timeout_s=10.0)
    text = "\n".join(audit.lines(reports))
    assert "error: null bytes" in text
    assert "\x00" not in text
    found = json.loads(json.dumps(audit.as_json(reports)))
    assert found["num_cases"] == len(CASES)
    assert found["rewards"][0]["false_accepts"] == 0
    assert found["rewards"][1]["errors"] == 2
    assert {"case", "kind", "why", "gold", "completion", "said"} == set(found["rewards"][1]["findings"][0])
