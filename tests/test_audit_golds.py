r"""Rewritings of gold answers: sound by hand and by arithmetic; and the audit of files, small ones and the real ones."""

from __future__ import annotations

import json
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest

from strop.audit import golds, rewrite
from strop.record import UserError

DATA = Path(os.environ.get("STROP_DATA", Path(__file__).parents[2] / "shared" / "data"))


def spelled(gold: str, same: bool) -> dict[str, str]:
    """The rewritings by rule, without their boxes."""
    found = [r for r in rewrite.mathematics(gold) if r.same is same]
    assert len({r.rule for r in found}) == len(found), "each rule once"
    return {r.rule: re.sub(r"^\\boxed\{(.*)\}$", r"\1", r.completion, flags=re.DOTALL) for r in found}


@pytest.mark.parametrize(
    ("gold", "rule", "answer"),
    [
        ("12345", "thousands", "12,345"),
        ("12345", "thousands in LaTeX", "12{,}345"),
        (r"5,\!040", "point zero", "5040.0"),
        ("-7", "Unicode minus", "\N{MINUS SIGN}7"),
        ("3", "as a fraction", r"\frac{6}{2}"),
        ("0.25", "as a fraction", r"\frac{25}{100}"),
        ("-0.05", "as a fraction", r"\frac{-5}{100}"),
        (r"\frac{3}{8}", "as a decimal", "0.375"),
        (r"-\frac{9}{5}", "mixed number", r"-1\frac{4}{5}"),
        ("3/40", r"\dfrac", r"\dfrac{3}{40}"),
        (r"2\frac{1}{3}", "as a fraction", r"\frac{7}{3}"),
        (r"2\sqrt{3}", "under the root", r"\sqrt{12}"),
        (r"-\sqrt{5}", "times sign", r"-1 \cdot \sqrt{5}"),
        (r"50\%", "in words", "50 percent"),
        (r"90^\circ", "no degrees", "90"),
        (r"\$18.90", "no dollar sign", "18.90"),
        (r"12\text{ cm}^2", "no unit", "12"),
        (r"$\{1, 2, 3\}$", "order permuted", r"\{3, 2, 1\}"),
        (r"(-\infty, 2) \cup (3, \infty)", "order permuted", r"(3, \infty) \cup (-\infty, 2)"),
        (r"\text{(C)}", "bare letter", "C"),
        ("x^2+3x", "spaces", "x^2  +  3x"),
    ],
)
def test_an_equal_rewriting(gold: str, rule: str, answer: str) -> None:
    assert spelled(gold, same=True)[rule] == answer


@pytest.mark.parametrize(
    ("gold", "rule", "answer"),
    [
        ("42", "one more", "43"),
        ("42", "sign flipped", "-42"),
        ("-42", "sign flipped", "42"),
        ("48", "digit changed", "43"),
        ("3.5", "point moved", "35.0"),
        ("8.49e-4", "power of ten", "8.49e-3"),
        (r"\frac{2}{3}", "numerator and denominator swapped", r"\frac{3}{2}"),
        (r"50\%", "point moved", r"0.5\%"),
        (r"12\text{ cm}", "other unit", r"12\text{ kg}"),
        ("(1, 2)", "order reversed", "(2, 1)"),
        ("(0, 1]", "bracket swapped", "[0, 1]"),
        (r"(-\infty, 4]", "bracket swapped", r"(-\infty, 4)"),
        (r"(-\infty, 2) \cup [3, \infty)", "bracket swapped", r"(-\infty, 2) \cup (3, \infty)"),
        (r"\{1, 2, 3\}", "element dropped", r"\{1, 2\}"),
        ("1, 2", "element changed", "1, 3"),
        (r"\text{(E)}", "other letter", "A"),
        ("even", "not", r"\text{not even}"),
        (r"\frac{3x}{4}", "number one more", r"\frac{4x}{4}"),
    ],
)
def test_a_near_miss(gold: str, rule: str, answer: str) -> None:
    assert spelled(gold, same=False)[rule] == answer


@pytest.mark.parametrize(
    ("gold", "rule"),
    [
        ("0", "sign flipped"),  # -0 is 0
        ("0.0", "point moved"),
        (r"\frac{4}{4}", "numerator and denominator swapped"),
        (r"\frac{3}{1}", "numerator alone"),
        ("(2, 2)", "order reversed"),
        (r"(0.5, \frac{1}{2})", "order reversed"),
        ("(1, 2)", "bracket swapped"),  # a pair, perhaps
        ("(1, 2)", "element dropped"),
        (r"\{1, 1\}", "element dropped"),
        ("3.14159265358979", "digit changed"),  # a rounding, perhaps
        (r"\frac{\pi}{2} + 2k\pi", "number one more"),  # a family
        ("2x + C", "number one more"),
        ("0x + 1", "number one more"),
        ("O(2n)", "number one more"),
        (r"\lfloor \frac{7n}{2} \rfloor", "number one more"),  # 7 / 2 and 6 / 2 are rounded alike
    ],
)
def test_what_is_not_surely_wrong_is_not_made(gold: str, rule: str) -> None:
    assert rule not in spelled(gold, same=False)


@pytest.mark.parametrize(
    "gold", ["982,982", "007", "52_8", "x, y", "", "1, 2, x", r"\frac{0}{5}", r"\frac{1}{0}", "7 or 8"]
)
def test_where_no_rule_is_sure_there_is_no_rewriting(gold: str) -> None:
    assert rewrite.mathematics(gold) == []


def test_names_and_units_are_not_made_up() -> None:
    assert "x = before it" not in spelled(r"\text{Evelyn}", same=True)
    assert not any("cm" in answer for answer in spelled("12", same=True).values())
    assert "order permuted" not in spelled("1, 2", same=True)  # the question may have asked for an order


def value(text: str) -> Fraction | None:
    """By Python's own arithmetic, and nothing of ours: integers, decimals, fractions, mixed numbers, products of ten."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("{,}", "").replace(",", "").removeprefix("x = ").strip()
    if match := re.fullmatch(r"(-?)(\d*)\\[dt]?frac(?:\{(-?\d+)\}\{(\d+)\}|(\d)(\d))", text):
        part = Fraction(int(match[3] or match[5]), int(match[4] or match[6]))
        return (-1 if match[1] else 1) * (int(match[2] or 0) + part)
    return Fraction(text) if re.fullmatch(r"-?\d*\.?\d+(?:/\d+)?", text) else None


@pytest.mark.parametrize(
    "gold",
    ["7", "-1234", "0", "1000000", "0.75", "-2.50", "12.125", r"\frac{7}{4}", r"-\frac{1}{8}", "5/6", r"1\frac{1}{2}"],
)
def test_numbers_keep_their_value_or_lose_it_by_arithmetic(gold: str) -> None:
    was, num_read = value(gold), 0
    for same in (True, False):
        for rule, answer in spelled(gold, same).items():
            if (now := value(answer)) is not None:
                assert (now == was) is same, (rule, answer)
                num_read += 1
    assert num_read >= 4


def test_assignments_and_words() -> None:
    gold = "(1) Ann is a knight\n(2) Bo is a knave\n(3) Cy is a knave"
    same = {r.rule: r.completion for r in rewrite.knights(gold) if r.same}
    assert same["order permuted"] == "Cy is a knave\nBo is a knave\nAnn is a knight"
    assert rewrite.knights("Ann is a knight and I do not know who Bo is") == []
    assert rewrite.text("not me") == rewrite.text(r"\frac{1}{2}") == []


# --- files --------------------------------------------------------------------------------------------------------------


def test_a_file_is_judged_answer_by_answer(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "answer": answer} for i, answer in enumerate(["5", "5", r"\frac{1}{2}", r"\frac{1}{"])]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.jsonl").write_text(json.dumps({"question": "Who?", "answer": "Ed Wood"}) + "\n")
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "no task"}) + "\n")
    said: list[str] = []
    reports, notes = golds.run(tmp_path, ["accuracy", "substring"], workers=1, say=said.append)
    assert [(r.file.split("/")[-1], r.verifier, r.num_rows, r.num_answers) for r in reports] == [
        ("math.jsonl", "math", 4, 3), ("words.jsonl", "exact", 1, 1),
    ]  # fmt: skip
    ours, naive = reports[0].tallies
    assert ours.itself == (2, 3)
    assert ours.failures[0][:2] == ("itself", r"\frac{1}{")
    assert ours.equal[0] == ours.equal[1] > 10
    assert ours.near[0] == ours.near[1] > 5
    assert naive.near[0] < naive.near[1]
    assert naive.rules["near miss: sign flipped"] == 2
    assert [t.reward for t in reports[1].tallies] == ["accuracy"]  # others judge mathematics only
    assert len(notes) == 1
    assert "other.jsonl" in notes[0]
    text = "\n".join(golds.lines(reports, notes))
    assert "66.67%" in text
    assert "accuracy was wrong on: itself 1" in text
    assert "of answers held against themselves: unparseable_gold 1" in text
    found = json.loads(json.dumps(golds.as_json(reports, notes)))
    assert found["files"][0]["rewards"][0]["itself"] == {"right": 2, "num": 3}
    assert found["all"][0]["right_frac"] == pytest.approx(_right_frac(reports[:1]), abs=1e-12)  # judged by both
    assert len(said) == len(reports)


def _right_frac(reports: list[golds.FileReport]) -> float:
    tallies = [t for report in reports for t in report.tallies if t.reward == "accuracy"]
    pairs = [pair for t in tallies for pair in (t.itself, t.equal, t.near)]
    return sum(right for right, _ in pairs) / sum(num for _, num in pairs)


def test_a_grader_that_is_named_twice_judges_once(tmp_path: Path) -> None:
    (tmp_path / "math.jsonl").write_text(json.dumps({"problem": "p", "answer": "5"}) + "\n")
    reports, notes = golds.run(tmp_path, ["substring", "substring"], workers=1, say=print)
    assert [t.reward for t in reports[0].tallies] == ["substring"]
    assert len(golds.as_json(reports, notes)["all"]) == 1


def test_where_nothing_was_judged_no_share_is_told() -> None:
    none = golds.Tally(reward="ours", itself=(0, 0), equal=(0, 0), near=(0, 0), unjudged=0, failures=(), rules={})
    report = golds.FileReport(file="f", verifier="math", num_rows=0, num_answers=0, num_judged=0, tallies=(none,))
    *_, row, total, _, said = golds.lines([report], [])
    assert row.rstrip().endswith("ours")
    assert total.rstrip().endswith("ours")
    assert said == "ours was wrong on: nothing: no file was judged by all"
    assert golds.as_json([report], [])["all"][0]["right_frac"] is None


def test_a_sample_is_drawn_by_the_seed(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "answer": str(i)} for i in range(50)]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = golds.run(tmp_path / "math.jsonl", ["substring"], sample=7, workers=1, say=print)[0][0]
    assert (report.num_answers, report.num_judged, report.tallies[0].itself) == (50, 7, (7, 7))


def test_a_folder_without_answers_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no \.jsonl"):
        golds.run(tmp_path, ["accuracy"], workers=1, say=print)


@pytest.mark.parametrize(
    "folder", ["eval", *(pytest.param(name, marks=pytest.mark.slow) for name in ("train", "logic", "qa"))]
)
def test_our_grader_on_the_answers_of_real_files(folder: str) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip(f"NOT CHECKED against the answers of real files: no folder {DATA / folder} (set STROP_DATA)")
    reports, _ = golds.run(DATA / folder, ["accuracy"], sample=20, workers=2, timeout_s=10.0, say=print)
    assert reports
    assert _right_frac(reports) >= 0.995
    near = [tally.near for report in reports for tally in report.tallies]
    assert all(right == num for right, num in near)
