"""The evidence in the report: what was measured is counted from the answers, and what is missing is left out."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from run_directory import STAGES, make_recipe, write_run
from strop import cli, stats
from strop.record import Rollout, UserError, read_rollouts, read_tasks
from strop.report import charts, claims, evidence, facts, panels, tables
from strop.report import page as report
from strop.report.evidence import Measured
from strop.stats import Estimate
from test_report import change_summary, page_of, text_of

NAME = r"a|b_c \\ & 5% {x} <i>"  # a task set that would break a table
FINGERPRINT = {
    "model": "ab" * 32, "chat": "cd" * 32, "tasks": {"easy": "12" * 32, "hard": "34" * 32},
    "sampling": {"greedy": True, "samples": 2, "seeds": 2, "temperature": 0.6, "top_p": 0.95, "max_tokens": 256},
    "versions": {"strop": "0.1.0", "torch": "2.13.0"}, "hardware": "Some CPU",
}  # fmt: skip


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    run_dir = tmp_path_factory.mktemp("runs") / "sampled"
    return run_dir, write_run(run_dir, num_tasks=30)


@pytest.fixture(scope="module")
def measured(sampled: tuple[Path, dict]) -> dict[tuple[str, str], Measured]:
    return {(m.tasks, m.stage.name): m for m in evidence.measure(facts.load(sampled[0]))}


def kept(run_dir: Path, stage: str, tasks: str, kind: str) -> dict[str, list[Rollout]]:
    """Answers by task, read without the report's code."""
    ids = {t.id for t in read_tasks(run_dir / "tasks.parquet")[f"{tasks}/heldout"]}
    out: dict[str, list[Rollout]] = {}
    for r in read_rollouts(run_dir / "rollouts" / stage / f"{kind}.parquet"):
        if r.task.id in ids:
            out.setdefault(r.task.id, []).append(r)
    return out


# --- what is measured -------------------------------------------------------------------------------------------------


def test_every_evaluation_is_measured_by_task_set_and_model(sampled, measured):
    order = ["before", "after_sft", "after_rl", "after_sft_more", "after_shuffled"]
    assert list(measured) == [(t, s) for t in ("hard", "easy") for s in order]
    assert {m.num_tasks for m in measured.values()} == {30}


def test_accuracies_are_those_of_the_summary(sampled, measured):
    for (tasks, stage), m in measured.items():
        recorded = sampled[1]["stages"][stage]["by_tasks"][tasks]
        assert m.greedy.value == pytest.approx(recorded["greedy_acc"])
        assert [m.greedy.low, m.greedy.high] == pytest.approx(recorded["ci95"])
        assert (m.avg is None) == (recorded["mean_acc"] is None)
        if m.avg is not None:
            assert m.avg.value == pytest.approx(recorded["mean_acc"])


def test_samples_are_counted_by_hand(sampled, measured):
    m = measured["hard", "after_rl"]
    by_task = kept(sampled[0], "after_rl", "hard", "samples")
    rights = {task: sum(r.correct for r in rs) for task, rs in by_task.items()}
    assert m.num_correct == rights
    assert [k for k, _ in m.curve] == [1, 2, 4]
    assert m.curve[0][1].value == pytest.approx(m.avg.value)
    assert m.curve[-1][1].value == pytest.approx(np.mean([num > 0 for num in rights.values()]))
    voted = []
    for rs in by_task.values():
        given = [r.verdict.extracted for r in rs if r.verdict.extracted is not None]
        most = [a for a in set(given) if given.count(a) == max(map(given.count, given))]
        voted.append(sum(a == rs[0].task.answer for a in most) / max(1, len(most)))
    assert m.maj.value == pytest.approx(np.mean(voted))
    assert (m.maj.low, m.maj.high) == pytest.approx(stats.bootstrap(voted))
    sizes = [r.num_sampled for rs in by_task.values() for r in rs]
    assert m.mean_tokens.value == pytest.approx(np.mean(sizes))
    assert m.truncated_frac.value == pytest.approx(np.mean([r.truncated for rs in by_task.values() for r in rs]))


def test_where_nothing_is_right_an_interval_still_has_a_width(tmp_path):
    """No right answer in 30 problems does not show that there is none in the next one."""
    stages = [{"name": "a", "do": "evaluate", "tasks": ["easy"], "from": "base", "samples": 4}]
    write_run(tmp_path, recipe=make_recipe(stages, ["easy"]), task_sets=["easy"], skill={"a": -99.0}, num_tasks=30)
    (m,) = evidence.measure(facts.load(tmp_path))
    _, high = stats.wilson(0, 30)
    for e in (m.greedy, m.avg, m.maj, *[e for _, e in m.curve]):
        assert (e.value, e.low, e.high) == (0.0, 0.0, pytest.approx(high))
    assert "none right" in text_of(page_of(tmp_path))


def test_without_samples_lengths_are_those_of_the_greedy_answers(sampled, measured):
    m = measured["easy", "after_sft"]
    assert (m.avg, m.maj, m.curve, m.num_samples) == (None, None, [], 0)
    greedy = [r for rs in kept(sampled[0], "after_sft", "easy", "greedy").values() for r in rs]
    assert m.mean_tokens.value == pytest.approx(np.mean([r.num_sampled for r in greedy]))
    low, high = stats.wilson(sum(r.truncated for r in greedy), 30)
    assert (m.truncated_frac.low, m.truncated_frac.high) == (low, high)


def test_what_cannot_be_told_apart_is_not_measured(tmp_path):
    write_run(tmp_path, num_tasks=6)
    (tmp_path / "tasks.parquet").unlink()  # whose answers are whose is no longer known
    assert evidence.measure(facts.load(tmp_path)) == []
    text = text_of(page_of(tmp_path))
    assert "Length against correctness" not in text
    assert "For a paper" not in text
    with pytest.raises(UserError, match="no finished evaluation with its answers"):
        report.table(tmp_path, "markdown")


# --- pass@k and the crossover -----------------------------------------------------------------------------------------


def test_pass_curves_are_drawn_where_there_are_samples(sampled, tmp_path):
    text = text_of(page_of(sampled[0]))
    assert "What more samples would find" in text
    found = panels.passes(evidence.measure(facts.load(sampled[0])))
    assert [p.curve.title for p in found] == ["hard", "easy"]
    assert [name for _, name in found[0].curve.legend] == ["base model", "after RL"]  # SFT was not sampled
    copy = shutil.copytree(sampled[0], tmp_path / "copy")
    for file in copy.glob("rollouts/*/samples.parquet"):
        file.unlink()
    text = text_of(page_of(copy))
    assert "What more samples would find" not in text
    assert "Length against correctness" in text


@pytest.mark.parametrize(
    ("base", "trained", "wanted"),
    [
        (
            [1, 1, 1, 1] * 9,
            [4, 4, 0, 0] * 9,
            "At 2 tries the base model catches up with the model after RL (95% interval 2 to",
        ),
        (
            [2, 2, 2, 2] * 9,
            [3, 3, 3, 3] * 9,
            "At 3 tries the base model catches up with the model after RL (95% interval 3 to 3).",
        ),
        ([1, 0, 2, 0] * 9, [4, 4, 0, 0] * 9, "these samples do not settle whether it does"),
        ([1, 0, 0, 0] * 9, [4, 4, 4, 4] * 9, "Within 4 tries the base model does not catch up"),
        ([4, 4, 0, 0] * 9, [4, 4, 0, 0] * 9, "At one try the model after RL is not ahead of the base model"),
    ],
)
def test_the_crossover_in_words(measured, base, trained, wanted):
    """pass@k of a task with 1 of 4 right is k / 4, of one with 4 of 4 it is 1: 0.25 k meets 0.5 at k = 2."""

    def with_counts(m: Measured, counts: list[int]) -> Measured:
        curve = [(k, Estimate(value=float(stats.pass_at_k(4, counts, k).mean()), low=0.0, high=1.0)) for k in (1, 2, 4)]
        return replace(m, num_correct={str(i): c for i, c in enumerate(counts)}, curve=curve)

    ends = with_counts(measured["hard", "before"], base), with_counts(measured["hard", "after_rl"], trained)
    (found,) = panels.passes(list(ends))
    assert wanted in found.crossover


def test_areas_go_once_round_the_interval():
    line = charts.Line(x=[0, 1, 2], y=[0.2, 0.5, 0.9], interval=[(0.0, 0.4), (0.3, 0.7), (0.8, 1.0)], style="c1")
    assert line.outline() == [(0, 0.4), (1, 0.7), (2, 1.0), (2, 0.8), (1, 0.3), (0, 0.0)]
    svg = charts.line_chart([line], title="t", desc="d", label_x=lambda x: f"{2**x:.0f}!", zero=True)
    area, drawn = list(ElementTree.fromstring(svg).iter("path"))
    assert area.get("class") == "area c1"
    points = [tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d.]+ [\d.]+)", area.get("d"))]
    assert len(points) == 6
    assert points[2][1] == pytest.approx(charts.TOP)  # 1.0
    assert points[-1][1] == pytest.approx(charts.HEIGHT - charts.BOTTOM)  # 0.0
    assert area.get("d").endswith("Z")
    assert {"1!", "2!", "4!"} <= set(re.findall(r">(\d+!)<", svg))
    assert drawn.get("class") == "line c1"


# --- gains ------------------------------------------------------------------------------------------------------------


def test_the_forest_has_a_row_for_every_task_set_and_metric_with_its_number_of_problems(sampled):
    forest = claims.effects_of_gain(facts.load(sampled[0]))
    whole = [e.change for e in forest.rows if (e.change.before.stage, e.change.after.stage) == ("before", "after_rl")]
    assert [(c.tasks, c.metric) for c in whole] == [(t, m) for t in ("hard", "easy") for m in facts.METRICS]
    page = page_of(sampled[0])
    assert page.count('<span class="pre">n = </span>30') >= len(forest.rows)
    assert re.search(r"base model →\s?to after RL\s?mean of sampled answers", text_of(page))


def test_gains_on_several_task_sets_are_corrected_for_their_number(sampled, tmp_path):
    copy = shutil.copytree(sampled[0], tmp_path / "copy")
    shared = {"a": "before", "b": "after_rl", "metric": "greedy_acc", "delta": 0.1, "ci95": [0.0, 0.2], "num_tasks": 30}
    change_summary(copy, comparisons=[shared | {"tasks": "easy", "p": 0.03}, shared | {"tasks": "hard", "p": 0.04}])
    corrected = claims.corrected(claims.effects_of_gain(facts.load(copy)))
    assert corrected == [("hard", pytest.approx(0.06)), ("easy", pytest.approx(0.06))]  # 2 x 0.03, and not below it
    assert "Corrected for the number of task sets (Holm), the first row of each has hard p = 0.060" in text_of(
        page_of(copy)
    )
    change_summary(copy, comparisons=[shared | {"tasks": "easy", "p": 0.03}])
    assert claims.corrected(claims.effects_of_gain(facts.load(copy))) == claims.corrected(None) == []


def test_an_evaluation_without_greedy_answers_is_told_by_its_samples(tmp_path):
    stages = [dict(s) for s in STAGES[:5]]
    stages[2]["samples"] = 4
    summary = write_run(tmp_path, recipe=make_recipe(stages), num_tasks=30)
    for stage in ("before", "after_sft", "after_rl"):
        (tmp_path / "rollouts" / stage / "greedy.parquet").unlink()
        for entry in (summary["stages"][stage], *summary["stages"][stage]["by_tasks"].values()):
            entry.update(greedy_acc=None, ci95=None, mean_ci95=[0.125, 0.875])
            for level in entry.get("by_level", {}).values():
                level["greedy_acc"] = None
    sampled = [c for c in summary["comparisons"] if c["metric"] == "mean_acc"]
    change_summary(tmp_path, stages=summary["stages"], comparisons=sampled)
    before, after = (summary["stages"][s]["by_tasks"]["hard"]["mean_acc"] for s in ("before", "after_rl"))
    text = text_of(page_of(tmp_path))
    assert f"the model went from {100 * before:.1f}% to {100 * after:.1f}%" in text
    assert "12.5 to 87.5" in text
    assert "sampled answers" in text
    assert "By difficulty" not in text
    (row,) = [m for m in evidence.measure(facts.load(tmp_path)) if (m.tasks, m.stage.name) == ("hard", "after_rl")]
    assert row.greedy is None
    assert "greedy" in report.table(tmp_path, "markdown")


# --- tables -----------------------------------------------------------------------------------------------------------


def cells(line: str) -> list[str]:
    """A Markdown row, split where a reader of tables would: at bars that no backslash stands before."""
    return [c.strip() for c in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


def test_the_markdown_table_has_every_figure_with_its_interval(sampled, measured):
    lines = report.table(sampled[0], "markdown").splitlines()
    assert {len(cells(line)) for line in lines[: 2 + len(measured)]} == {len(tables.HEAD)}
    row = dict(zip(tables.HEAD, cells(lines[2 + list(measured).index(("hard", "after_rl"))]), strict=True))
    m = measured["hard", "after_rl"]

    def percent(e: Estimate) -> str:
        return f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"

    assert (row["tasks"], row["model"], row["n"], row["k"]) == ("hard", "after RL", "30", "4")
    assert row["greedy"] == percent(m.greedy)
    assert row["avg@k"] == percent(m.avg)
    assert row["pass@k"] == percent(m.curve[-1][1])
    assert row["maj@k"] == percent(m.maj)
    assert row["cut, %"] == percent(m.truncated_frac)
    assert re.fullmatch(r"\d+ \[\d+, \d+\]", row["tokens"])
    sft = cells(lines[2 + list(measured).index(("hard", "after_sft"))])
    assert sft.count(tables.MISSING) == 4


def test_the_caption_says_how_it_was_asked_and_of_which_weights(sampled, tmp_path):
    assert "4 sampled answers at temperature 1, top-p 1 a problem, of at most 256 tokens" in report.table(
        sampled[0], "markdown"
    )
    copy = shutil.copytree(sampled[0], tmp_path / "copy")
    stages = json.loads((copy / "summary.json").read_text())["stages"]
    stages["after_rl"]["fingerprint"] = FINGERPRINT
    change_summary(copy, stages=stages)
    text = report.table(copy, "latex")
    assert "4 sampled answers at temperature 0.6, top-p 0.95, over 2 seeds" in text
    assert r"after RL abababababab" in text
    page = text_of(page_of(copy))
    assert re.search(r"after_rl\s?abababababab\s?cdcdcdcdcdcd\s?easy 121212121212; hard 343434343434", page)
    assert "strop 0.1.0, torch 2.13.0; Some CPU" in page
    assert "First digits of SHA-256" not in text_of(page_of(sampled[0]))


@pytest.mark.parametrize("said", [None, "m, m at http://x/v1"])
def test_the_name_at_a_server_is_not_called_a_hash(sampled, tmp_path, said):
    copy = shutil.copytree(sampled[0], tmp_path / "copy")
    stages = json.loads((copy / "summary.json").read_text())["stages"]
    stages["after_rl"]["fingerprint"] = FINGERPRINT | {"model": said, "served_as": "owner/m<b>"}
    change_summary(copy, stages=stages)
    text = report.table(copy, "markdown")
    assert r"Weights not known, served as: after RL owner/m\<b\>." in text
    assert "Weights (SHA-256)" not in text
    assert "not known, served as owner/m&lt;b&gt;" in page_of(copy)


@pytest.mark.parametrize(
    ("benchmark", "wanted"),
    [
        ({"problems": 30, "of": 500, "pinned": True}, "hard holds 30 of the 500 problems of math_500"),
        ({"problems": 30, "of": 30, "pinned": False}, "are not the ones that math_500 is pinned to"),
        ({"problems": 30, "of": 30, "pinned": True}, ""),
    ],
)
def test_a_part_of_a_benchmark_is_not_called_by_its_name(sampled, tmp_path, benchmark, wanted):
    copy = shutil.copytree(sampled[0], tmp_path / "copy")
    stages = json.loads((copy / "summary.json").read_text())["stages"]
    stages["after_rl"]["by_tasks"]["hard"]["benchmark"] = benchmark | {"name": "math_500"}
    change_summary(copy, stages=stages)
    (limits,) = facts.load(copy).benchmark_limits() or [""]
    assert wanted in limits
    assert ("math_500" in limits) == bool(wanted)
    assert limits.replace("_", r"\_") in report.table(copy, "latex")
    assert limits in claims.caveats(facts.load(copy), None) or not wanted


def test_names_cannot_break_a_table(tmp_path):
    stages = [{"name": "a", "do": "evaluate", "tasks": [NAME], "from": "base"}]
    write_run(tmp_path, recipe=make_recipe(stages, [NAME]), task_sets=[NAME], skill={"a": 0.0}, num_tasks=6)
    row = report.table(tmp_path, "markdown").splitlines()[2]
    assert row.startswith(r"| a\|b\_c \\\\ \& 5% {x} \<i\> | model | 6 |")
    body = report.table(tmp_path, "latex")
    row = next(line for line in body.splitlines() if line.startswith("a") and line.endswith(r" \\"))
    assert row.startswith(
        r"a\textbar{}b\_c \textbackslash{}\textbackslash{} \& 5\% \{x\} \textless{}i\textgreater{} & "
    )
    assert len(re.findall(r"(?<!\\)&", row)) == len(tables.HEAD) - 1
    page = page_of(tmp_path)
    assert "<i>" not in page
    assert page.count("</pre>") == page.count("<pre")


def test_the_latex_table_is_balanced(sampled):
    text = report.table(sampled[0], "latex")
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\begin{(\w+)}", text) == re.findall(r"\\end{(\w+)}", text)[::-1]
    assert not re.search(r"(?<!\\)[%#$~^]", text)
    columns = re.search(r"\\begin{tabular}{([lr]+)}", text).group(1)
    assert len(columns) == len(tables.HEAD)


def test_lengths_as_text(sampled, measured):
    text = report.table(sampled[0], "lengths")
    assert text.count("a right answer costs") == len(measured)
    assert text.count("limit 128, without cut answers") == 6  # the sampled ones
    assert re.search(r"hard, after RL \(30 tasks, 4 samples a task, limit 256 tokens\)", text)


def test_there_is_no_other_table(sampled):
    with pytest.raises(UserError, match="did you mean 'latex'"):
        report.table(sampled[0], "latexx")


def test_the_command_line_prints_a_table_and_writes_nothing(sampled, tmp_path):
    copy = shutil.copytree(sampled[0], tmp_path / "copy", ignore=shutil.ignore_patterns("report.html"))
    done = CliRunner().invoke(cli.app, ["report", str(copy), "--table", "latex"])
    assert (done.exit_code, done.stdout) == (0, report.table(copy, "latex"))
    done = CliRunner().invoke(cli.app, ["report", str(copy), "--table", "markdown", "--json"])
    assert json.loads(done.stdout) == {"table": report.table(copy, "markdown")}
    assert not (copy / "report.html").exists()
