"""`strop.grade`: a file of cases in, a file of verdicts out, whatever the rows hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from strop import grade
from strop.record import Reason, UserError, Verdict
from strop.rewards import VERIFIERS
from strop.rewards.explain import explain


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def verdicts(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_row_gets_its_verdict_in_order(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "gold": r"\frac{1}{2}", "prediction": r"so \boxed{0.5}", "problem": "What is 1/2?"},
        {"id": 7, "gold": 5, "prediction": 5.0},
        {"gold": "5", "prediction": "1 or 5"},
        "",
        {"id": None, "gold": "5", "prediction": ""},
        {"id": "n", "gold": "5", "prediction": None},
        {"id": "g", "gold": None, "prediction": ""},
        {"id": "u", "gold": r"\frac{1}{", "prediction": r"\frac{1}{"},
        {"id": {"deep": [1]}, "gold": "5", "prediction": "\ud800 no \x00", "extra": 1},
    ]
    counts = grade.run(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", workers=1)
    written = verdicts(tmp_path / "out.jsonl")
    explanations = [row.pop("explanation") for row in written]
    assert written == [
        {"id": "a", "correct": True, "extracted": "0.5", "reason": "correct"},
        {"id": 7, "correct": True, "extracted": "5.0", "reason": "correct"},
        {"correct": False, "extracted": "1 or 5", "reason": "too_many_answers"},
        {"id": None, "correct": False, "extracted": None, "reason": "empty"},
        {"id": "n", "correct": False, "extracted": None, "reason": "empty"},
        {"id": "g", "correct": False, "extracted": None, "reason": "unparseable_gold"},
        {"id": "u", "correct": False, "extracted": None, "reason": "unparseable_gold"},
        {"id": {"deep": [1]}, "correct": False, "extracted": "\ud800 no \x00", "reason": "unparseable_answer"},
    ]
    assert counts["num_cases"] == 8
    assert counts["num_correct"] == 2
    assert counts["verdict_reasons"]["empty"] == 2
    assert "2 of 8 correct" in grade.line(counts, tmp_path / "out.jsonl")
    assert explanations[0] == r"the last \boxed{} holds 0.5, which equals \frac{1}{2} as a number"
    assert "listing candidates earns nothing" in explanations[2]
    assert explanations[3] == explanations[4] == "there is no text"
    assert all(explanations)


@pytest.mark.parametrize(
    ("gold", "prediction", "correct", "says"),
    [
        ("1/2", r"so \boxed{3/6}", True, r"the last \boxed{} holds 3/6, which equals 1/2 as a number"),
        ("42", r"\boxed{42}", True, "is the gold answer"),
        ("42", r"\boxed{41}. No, \boxed{42}", True, "2 boxes that disagree: the last one counts"),
        ("42", r"\boxed{42} and again \boxed{42}", True, "is the gold answer"),
        ("42", "<think>\\boxed{1}</think>The answer is 42.", True, 'after the last "####" or "answer is" stands 42'),
        ("42", "<answer>42</answer>", True, "the last <answer> holds 42"),
        (r"50\%", r"\boxed{50}", True, "the question fixed the per cent"),
        ("12 cm", r"\boxed{12}", True, "a unit on one side is set aside"),
        (r"\frac{1}{3}", r"\boxed{0.333333}", True, "to the last digit written"),
        ("2x+3", r"\boxed{3+2x}", True, "has the same meaning as 2x+3"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", True, "part by part"),
        ("42", r"\boxed{-42}", False, "is 42 with the other sign"),
        ("2/3", r"\boxed{3/2}", False, "is 2/3 turned upside down"),
        ("42", r"\boxed{43}", False, "is another number than 42"),
        ("12 cm", r"\boxed{12 mm}", False, "has another unit than 12 cm"),
        ("(1,2)", r"\boxed{(2,1)}", False, "has the parts of (1,2) in another order"),
        ("(0,1]", r"\boxed{[0,1]}", False, "has other brackets than (0,1]"),
        (r"\{1,2\}", r"\boxed{\{1\}}", False, r"has 1 parts, and \{1,2\} has 2"),
        ("42", r"\boxed{4", False, "cut off before the answer was whole"),
        ("42", r"\boxed{}", False, "the place of the answer is empty"),
        ("42", "I have tried all that I know of, and I give up.", False, "no answer is marked"),
        ("42", r"\boxed{" + "5" * 5000 + "}", False, "an answer of 5,000 characters is not read"),
        ("42", "(" * 50 + "42" + ")" * 50, False, "nested deeper"),
        (r"\frac{1}{", "5", False, "the gold answer \\frac{1}{ cannot be read"),
    ],
)
def test_each_verdict_is_explained(gold: str, prediction: str, correct: bool, says: str) -> None:
    task, text = grade._case({"gold": gold, "prediction": prediction})
    verdict = VERIFIERS["math"](task, text)
    told = explain(task, text, verdict)
    assert verdict.correct is correct
    assert says in told
    assert "\n" not in told
    assert ("boxes" in told) == ("disagree" in says)


def test_every_reason_has_words() -> None:
    task, text = grade._case({"gold": "5", "prediction": "6"})
    for reason in Reason:
        verdict = Verdict(correct=reason is Reason.CORRECT, extracted=None, reason=reason)
        assert explain(task, text, verdict)


def test_one_pair_gets_its_verdict() -> None:
    verdict = grade.one("1/2", "It is 0.5, so the answer is 0.5.")
    assert list(verdict) == ["correct", "extracted", "reason", "explanation"]
    assert verdict["correct"]
    assert verdict["explanation"].endswith("which equals 1/2 as a number")


def test_a_row_that_hangs_is_a_timeout_and_the_rest_is_graded(tmp_path: Path) -> None:
    hang = r"\boxed{\sum_{k=1}^{9999} \sum_{j=1}^{9999} \sum_{i=1}^{9999} \frac{\sin(i j k)}{i+j+k}}"
    rows = [{"id": i, "gold": "5", "prediction": hang if i == 20 else "5"} for i in range(40)]
    grade.run(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", workers=2, timeout_s=2.0)
    out = verdicts(tmp_path / "out.jsonl")
    assert [row["id"] for row in out] == list(range(40))
    assert [row["correct"] for row in out] == [i != 20 for i in range(40)]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "no JSON object"),
        ('{"gold": "5"}', "no 'prediction'"),
        ('{"prediction": "5"}', "no 'gold'"),
        ('{"gold": ["5"], "prediction": "5"}', "'gold' must be"),
        ('{"gold": "5", "prediction": {"text": "5"}}', "'prediction' must be"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_nothing_is_written(tmp_path: Path, bad: str, says: str) -> None:
    path = write(tmp_path / "in.jsonl", [{"gold": "5", "prediction": "5"}, "", bad])
    with pytest.raises(UserError, match=r"in\.jsonl:3 ?") as raised:
        grade.run(path, tmp_path / "out.jsonl")
    assert says in str(raised.value)
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"gold": "5", "prediction": "5"}\n{"gold": "\xff", "prediction": "5"}\n')
    with pytest.raises(UserError, match=r"in\.jsonl:2 is not JSON"):
        grade.run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")


def test_where_there_is_nothing_to_read_or_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        grade.run(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    path = write(tmp_path / "in.jsonl", [{"gold": "5", "prediction": "5"}])
    with pytest.raises(UserError, match="there is no folder"):
        grade.run(path, tmp_path / "none" / "out.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        grade.run(path, tmp_path)


def test_the_cases_are_not_written_over(tmp_path: Path) -> None:
    cases = write(tmp_path / "cases.jsonl", [{"gold": "1", "prediction": "1"}])
    before = cases.read_text()
    with pytest.raises(UserError, match="the file of cases itself"):
        grade.run(cases, cases)
    assert cases.read_text() == before


def test_an_empty_file_has_no_verdicts(tmp_path: Path) -> None:
    counts = grade.run(write(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl", workers=1)
    assert counts == {"num_cases": 0, "num_correct": 0, "verdict_reasons": {}}
    assert (tmp_path / "out.jsonl").read_bytes() == b""
