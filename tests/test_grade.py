"""`strop.grade`: a file of cases in, a file of verdicts out, whatever the rows hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from strop import grade
from strop.record import UserError


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
    assert verdicts(tmp_path / "out.jsonl") == [
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
