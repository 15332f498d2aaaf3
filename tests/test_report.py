"""The report: what it claims, from which numbers, and that nothing a model wrote can act in it."""

from __future__ import annotations

import ast
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from run_directory import STAGES, answer, make_recipe, make_tasks, write_run
from strop.metrics import PASS_BINS
from strop.record import Reason, Rollout, Task, UserError, Verdict, read_rollouts, write_rollouts, write_tasks
from strop.report import charts, claims, course, facts
from strop.report import page as report


def page_of(run_dir: Path) -> str:
    return report.run(run_dir).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees, with white space folded; style left out."""

    class Reader(HTMLParser):
        words: list[str]
        hidden = False

        def handle_starttag(self, tag: str, attrs: list) -> None:
            self.hidden = self.hidden or tag == "style"

        def handle_endtag(self, tag: str) -> None:
            self.hidden = self.hidden and tag != "style"

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                self.words.append(data)

    reader = Reader()
    reader.words = []
    reader.feed(page)
    return " ".join("".join(reader.words).split())


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    run_dir = tmp_path_factory.mktemp("runs") / "quickstart"
    return run_dir, write_run(run_dir)


def recorded(summary: dict, a: str, b: str, tasks: str) -> dict:
    return next(c for c in summary["comparisons"] if (c["a"], c["b"], c["tasks"]) == (a, b, tasks))


def comparison(a: str, b: str, ci95: list[float]) -> dict:
    shared = {"metric": "greedy_acc", "tasks": "hard", "p": 0.03, "num_tasks": 12}
    return {"a": a, "b": b, "delta": sum(ci95) / 2, "ci95": ci95, **shared}


def change_summary(run_dir: Path, **changes: object) -> None:
    path = run_dir / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


# --- claims -----------------------------------------------------------------------------------------------------------


def test_the_first_sentence_is_the_recorded_gain_on_the_set_that_was_trained_most(quickstart):
    run_dir, summary = quickstart
    c = recorded(summary, "before", "after_rl", "hard")
    a, b = (summary["stages"][s]["by_tasks"]["hard"]["greedy_acc"] for s in ("before", "after_rl"))
    text = text_of(page_of(run_dir))
    expected = f"On 90 held-out problems of hard, the model went from {100 * a:.1f}% to {100 * b:.1f}%: +{100 * c['delta']:.1f} points."
    assert expected in text
    assert f"95% interval {100 * c['ci95'][0]:.1f} to {100 * c['ci95'][1]:.1f} points" in text
    assert text.index(expected) < text.index("Accuracy, stage by stage")
    assert "No gain was shown" not in text


@pytest.mark.parametrize(
    ("ci95", "wanted", "forbidden"),
    [
        ([-0.001, 0.3], "No gain was shown", "went from"),
        ([0.0, 0.3], "No gain was shown", "went from"),
        ([0.001, 0.3], "the model went from", "No gain"),
        ([-0.3, -0.001], "the model got worse", "No gain"),
    ],
)
def test_the_interval_alone_decides_what_is_claimed(tmp_path, ci95, wanted, forbidden):
    summary = write_run(tmp_path, num_tasks=12)
    c = recorded(summary, "before", "after_rl", "hard")
    c.update(ci95=ci95, p=0.0001, delta=sum(ci95) / 2)
    change_summary(tmp_path, comparisons=[c])
    text = text_of(page_of(tmp_path))
    assert wanted in text
    assert forbidden not in text


@pytest.mark.parametrize(
    ("commonest_frac", "says"),
    [(0.5, "Not shown to be better than one answer for all"), (1.0, "100.0% of the answers are one and the same")],
)
def test_a_gain_that_one_answer_for_all_would_have_is_no_gain_in_reasoning(tmp_path, commonest_frac, says):
    summary = write_run(tmp_path, num_tasks=40)
    assert "the model went from" in text_of(page_of(tmp_path))
    after = summary["stages"]["after_rl"]["by_tasks"]["hard"]
    after.update(constant_acc=after["greedy_acc"], commonest_frac=commonest_frac)
    change_summary(tmp_path, stages=summary["stages"])
    text = text_of(page_of(tmp_path))
    assert "no gain in reasoning was shown" in text
    assert says in text
    assert "the model went from" not in text


def test_limits_and_what_the_arm_practised_are_told(quickstart):
    text = text_of(page_of(quickstart[0]))
    assert "SFT simply continued on the worked solutions of easy for the time that rl took" in text
    assert re.search(r"token limit[\d ]+cut off by it", text)


def test_a_comparison_recorded_the_other_way_is_turned_round(tmp_path):
    summary = write_run(tmp_path, num_tasks=12)
    c = recorded(summary, "before", "after_rl", "hard")
    c.update(a="after_rl", b="before", delta=-0.2, ci95=[-0.3, -0.1])
    change_summary(tmp_path, comparisons=[c])
    change = claims.headline(facts.load(tmp_path)).change
    assert (change.delta, change.ci95) == (0.2, (0.1, 0.3))


@pytest.mark.parametrize(
    ("ci95", "wanted"),
    [
        ([0.02, 0.2], "RL gave 11.0 points more than the same time spent on SFT"),
        ([-0.02, 0.24], "This run does not show that RL does better than more SFT"),
        ([-0.2, -0.02], "More SFT would have been better"),
    ],
)
def test_why_not_more_sft_is_answered_by_its_arm(tmp_path, ci95, wanted):
    summary = write_run(tmp_path, num_tasks=12)
    change_summary(tmp_path, comparisons=[comparison("after_sft_more", "after_rl", ci95)])
    text = text_of(page_of(tmp_path))
    assert wanted in text
    assert "7 min 13 s against 7 min 12 s" in text
    assert summary["stages"]["sft_more"]["wall_s"] == 433.2


@pytest.mark.parametrize(
    ("ci95", "wanted"), [([-0.03, 0.04], "no gain, as it must be"), ([0.01, 0.08], "a gain where there must be none")]
)
def test_a_control_with_a_gain_is_called_out(tmp_path, ci95, wanted):
    write_run(tmp_path, num_tasks=12)
    change_summary(tmp_path, comparisons=[comparison("after_sft", "after_shuffled", ci95)])
    assert wanted in text_of(page_of(tmp_path))


def test_who_is_who_follows_from_the_recipe(quickstart):
    models = facts.load(quickstart[0]).models()
    assert [(m.weights, m.role) for m in models] == [
        ("base", "base"), ("sft", "sft"), ("rl", "rl"), ("sft_more", "arm"), ("rl_shuffled", "control"),
    ]  # fmt: skip


def test_a_run_that_is_itself_a_control_says_so(tmp_path):
    stages = [dict(s) for s in STAGES[:5]]
    stages[3]["algorithm"] = {"advantages": "zero"}
    write_run(tmp_path, recipe=make_recipe(stages), num_tasks=12)
    assert "A control run. Its advantages were set to zero" in text_of(page_of(tmp_path))


# --- completions ------------------------------------------------------------------------------------------------------


def test_problems_are_picked_by_the_stated_rule_and_counted(quickstart):
    run = facts.load(quickstart[0])
    shown = claims.samples(run, claims.headline(run))
    c = recorded(quickstart[1], "before", "after_rl", "hard")
    assert sum(shown.counts.values()) == 90
    assert (shown.counts["turned right"] - shown.counts["turned wrong"]) / 90 == pytest.approx(c["delta"])
    assert [p.kind for p in shown.shown] == ["turned right"] * 2 + ["turned wrong"] + ["stayed wrong"] * 2 + [
        "stayed right"
    ]
    rights = [p.before.task.content for p in shown.shown if p.kind == "turned right"]
    turned = [
        p.before.task.content
        for p in run.pairs(shown.head.before, shown.head.after, "hard")
        if p.kind == "turned right"
    ]
    assert rights == sorted(turned)[:2]


def test_kinds_that_are_short_are_filled_up_to_six():
    rng = np.random.default_rng(0)
    one = answer(make_tasks("x", 1, rng)[0], 0, True, rng)
    kinds = ["turned right"] * 9 + ["stayed wrong"]
    pairs = [facts.Pair(kind=k, before=one, after=one) for k in kinds]
    assert [p.kind for p in facts.pick(pairs)] == ["turned right"] * 5 + ["stayed wrong"]
    assert [p.kind for p in facts.pick(pairs[:2])] == ["turned right"] * 2


HOSTILE = (
    '</pre><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}{% raw %}\x1b[31m\x00 & "\' \u202e]]>'
)


def test_what_a_model_wrote_cannot_act(tmp_path):
    """Prompt, answer, completion, extracted answer, task set and machine are text, whatever they hold."""
    name = "<b>set</b> & co"
    stages = [{"name": "a", "do": "evaluate", "tasks": [name], "from": "base"}, {"name": "rl", "do": "train", "tasks": {name: 1.0}},
              {"name": "b", "do": "evaluate", "tasks": [name]}]  # fmt: skip
    summary = write_run(
        tmp_path, recipe=make_recipe(stages, [name]), task_sets=[name], skill={"a": -1.0, "b": 1.0}, num_tasks=6
    )
    change_summary(tmp_path, machine=summary["machine"] | {"cpu": HOSTILE, HOSTILE: HOSTILE})
    task = Task.make(source="s", prompt=HOSTILE, answer=HOSTILE, verifier="math")
    for stage, right in (("a", False), ("b", True)):
        r = answer(make_tasks("x", 1, np.random.default_rng(0))[0], 0, right, np.random.default_rng(0))
        hostile = Rollout(task=task, group=0, sample=0, token_ids=r.token_ids, sampled=r.sampled, trained=r.trained, text=HOSTILE,
                          verdict=Verdict(correct=right, extracted=HOSTILE, reason=r.verdict.reason))  # fmt: skip
        write_rollouts(tmp_path / "rollouts" / stage / "greedy.parquet", [hostile])
    write_tasks(tmp_path / "tasks.parquet", {f"{name}/heldout": [task]})
    page = page_of(tmp_path)
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>set</b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "\x1b" not in page
    assert "\x00" not in page
    assert page.count("</pre>") == page.count("<pre")


def test_the_page_asks_for_nothing(quickstart):
    page = page_of(quickstart[0])
    assert not re.search(r"\b(src|href|srcset|action)\s*=|url\(|@import|<script|<link|<iframe|\bon\w+=", page)
    assert "default-src 'none'" in page
    urls = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert not urls


# --- what is missing is left out --------------------------------------------------------------------------------------


def test_an_unfinished_run_says_so_and_claims_nothing_beyond_it(tmp_path):
    summary = write_run(tmp_path, num_tasks=12)
    stages = {k: v for k, v in summary["stages"].items() if k in ("before", "sft", "after_sft")}
    comparisons = [c for c in summary["comparisons"] if {c["a"], c["b"]} <= set(stages)]
    change_summary(tmp_path, finished=False, stages=stages, comparisons=comparisons)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"stage": "rl", "kind": "tr')  # killed while writing
    text = text_of(page_of(tmp_path))
    assert "This run has not finished." in text
    assert "RL (rl) has not been evaluated here" in text
    assert "The arm that answers this (sft_more) has no comparison yet." in text


def test_every_piece_may_be_missing(tmp_path):
    write_run(tmp_path, num_tasks=6)
    for path in ("rollouts/after_rl/greedy.parquet", "tasks.parquet", "metrics.jsonl", "summary.json"):
        (tmp_path / path).unlink()
        text = text_of(page_of(tmp_path))
        assert "Six problems" not in text
    assert "This run has no evaluation both before and after training yet." in text
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(UserError, match="is not a run directory"):
        report.run(tmp_path)


def test_empty_entries_and_runs_without_training_are_no_errors(tmp_path):
    recipe = make_recipe([{"name": "before", "do": "evaluate", "tasks": ["easy", "hard"]}])
    write_run(tmp_path, recipe=recipe, num_tasks=6)
    assert "Nothing was trained in this run." in text_of(page_of(tmp_path))
    change_summary(tmp_path, stages={"before": {"kind": "evaluate"}}, ledger={}, machine={}, comparisons=[])
    page_of(tmp_path)


def test_the_report_goes_where_it_is_told(quickstart, tmp_path):
    assert report.run(quickstart[0], tmp_path / "deep" / "page.html") == tmp_path / "deep" / "page.html"
    assert report.run(quickstart[0]) == quickstart[0] / "report.html"


# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lo", "hi"), [(0, 1), (0, 0.473), (-3.2, 17), (1e-7, 3e-7), (12345, 98765), (5, 5), (0, 0), (-0.2, -0.1)]
)
def test_ticks_enclose_the_data_are_few_and_have_different_labels(lo, hi):
    ticks = charts.nice_ticks(lo, hi)
    assert ticks[0] <= lo
    assert ticks[-1] >= hi
    assert 2 <= len(ticks) <= 9
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    assert len({charts.tick_label(t, ticks) for t in ticks}) == len(ticks)


def test_a_line_chart_is_well_formed_maps_its_ends_and_lifts_the_pen_at_gaps():
    line = charts.Line(x=[1, 2, 3, 4], y=[0.0, math.nan, 1.0, 0.5])
    svg = charts.line_chart([line], title="<reward>", desc="a & b", zero=True)
    root = ElementTree.fromstring(svg)
    assert (root.find("title").text, root.find("desc").text) == ("<reward>", "a & b")
    path = next(e for e in root.iter("path"))
    points = [tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d.]+ [\d.]+)", path.get("d"))]
    assert path.get("d").count("M") == 2
    assert points[0][1] == pytest.approx(charts.HEIGHT - charts.BOTTOM)  # 0 lies on the axis
    assert points[1][1] == pytest.approx(charts.TOP)  # 1 at the top
    assert points[-1][0] == pytest.approx(charts.WIDTH - charts.RIGHT)


def test_bands_lie_upon_each_other_and_fill_the_whole():
    svg = charts.band_chart([1, 2], [("p4", [0.25, 0.5]), ("p1", [0.75, 0.5])], title="t", desc="d")
    low, high = (e.get("d") for e in ElementTree.fromstring(svg).iter("path"))
    corners = [[tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d.]+ [\d.]+)", d)] for d in (low, high)]
    tall = charts.HEIGHT - charts.BOTTOM - charts.TOP
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    assert [y for _, y in corners[0]] == pytest.approx(
        [bottom - 0.25 * tall, bottom - 0.5 * tall, bottom, bottom], abs=0.1
    )
    assert [y for _, y in corners[1]] == pytest.approx([top, top, bottom - 0.5 * tall, bottom - 0.25 * tall], abs=0.1)
    assert {low[-1], high[-1]} == {"Z"}


def test_the_course_shows_lengths_pass_rates_and_the_curriculum(tmp_path):
    write_run(tmp_path, num_tasks=6)
    titles = {c.title: c for _, _, drawn in course.curves(facts.load(tmp_path)) for c in drawn}
    assert "Difficulty by now" not in titles  # no curriculum
    assert [name for _, name in titles["Length, right and wrong"].legend] == ["right", "wrong"]
    assert titles["Length, right and wrong"].summary.startswith("right from 6")
    biased = titles["Length bias of the loss"]  # the recipe's own loss, dapo, beside grpo: findings.md, B.4
    ours, grpo = (float(x) for x in re.findall(r"[+-][\d.]+", biased.summary))
    assert abs(ours) < 0.05, biased.summary
    assert grpo < -1, biased.summary
    assert titles["Pass rates"].bands
    assert titles["Pass rates"].svg.count("<path") == len(titles["Pass rates"].legend) == len(PASS_BINS)
    rows = [
        {
            "stage": "rl",
            "kind": "curriculum",
            "step": s,
            "easy_frac": 0.1 * s,
            "medium_frac": 0.5,
            "hard_frac": 0.5 - 0.1 * s,
        }
        for s in (1, 2)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    page = page_of(tmp_path)
    assert "easy from 10.0% to 20.0%" in page
    assert "Pass rates" not in page  # a run from before they were logged


def test_bars_and_whiskers_stand_where_their_numbers_are():
    scale = charts.Scale(ticks=(0.0, 50.0, 100.0))
    svg = charts.bar(25.0, (20.0, 40.0), scale, "rl")
    assert 'x="0.00%" width="25.00%"' in svg
    assert 'x1="20.00%" x2="40.00%"' in svg
    assert 'cx="75.00%"' in charts.effect(50.0, None, charts.Scale(ticks=(-100.0, 0.0, 100.0)), "rl")
    widths = re.findall(r'width="([\d.]+)%" y', charts.stacked([("A", 3.0), ("B", 1.0)], title="t", desc="d"))
    assert widths == ["75.00", "25.00"]


def test_a_step_logged_twice_counts_once_and_null_leaves_a_gap(tmp_path):
    write_run(tmp_path, num_tasks=6)
    rows = [
        {"stage": "rl", "kind": "train", "step": s, "reward": r} for s, r in ((1, 0.1), (2, 0.9), (2, None), (3, 0.3))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    steps, values = facts.load(tmp_path).curve("rl", "train", "reward")
    assert steps == [1.0, 2.0, 3.0]
    assert [v for v in values if not math.isnan(v)] == [0.1, 0.3]


# --- what it cost -----------------------------------------------------------------------------------------------------


def with_energy(summary: dict, **kinds: str) -> dict:
    """The ledger of a run that drew 100 J in every phase by each of these sources."""
    spent = {"cpu_s": 3.25, "gpu_s": 0.0, "tokens_in": 77_123, "joules": dict.fromkeys(kinds, 100.0)}
    phases = {name: phase | spent for name, phase in summary["ledger"]["phases"].items()}
    energy = {
        name: {"kind": kind, "scope": f"the {name}", "method": "a fake", "period_s": 1, "idle_subtracted": False,
               "joules": 100.0 * len(phases)}
        for name, kind in kinds.items()
    }  # fmt: skip
    return summary["ledger"] | {"phases": phases, "energy": energy}


def test_joules_stand_apart_by_kind_and_say_that_nothing_was_measured(tmp_path):
    summary = write_run(tmp_path, num_tasks=6)
    change_summary(tmp_path, ledger=with_energy(summary, cpu="modelled", memory="constant"))
    page = page_of(tmp_path)
    text = text_of(page)
    assert "This machine has no readable energy counter" in text
    assert "Seconds are the honest measure." in text
    assert "modelled kWh (nothing was measured) at $0.165/kWh (world average for households" in text
    assert "481 g/kWh" in text
    assert re.findall(r'<th scope="row">the (\w+)</th><td>(\w+)</td>', page) == [
        ("cpu", "modelled"),
        ("memory", "constant"),
    ]
    assert page.count(">600<") == 2  # of each source its own joules
    assert "1,200" not in page
    assert "77,123" in text  # tokens of prompts
    assert "3.25" in text  # CPU seconds


def test_what_was_counted_is_not_called_modelled(tmp_path):
    summary = write_run(tmp_path, num_tasks=6)
    change_summary(tmp_path, ledger=with_energy(summary, cpu="counter", gpu="counter"))
    text = text_of(page_of(tmp_path))
    assert "no readable energy counter" not in text
    assert "electricity alone: measured kWh at" in text
    assert "modelled kWh" not in text


def test_what_a_point_of_the_gain_took(tmp_path):
    summary = write_run(tmp_path, num_tasks=12)
    c = recorded(summary, "before", "after_rl", "hard") | {"ci95": [0.1, 0.4], "p": 0.0001, "delta": 0.2}
    change_summary(tmp_path, comparisons=[c], ledger=with_energy(summary) | {"wall_s": 1200.0})
    assert "Each of the 20.0 points gained on hard took 1 min 00 s of this run (30.0 s to 2 min 00 s by" in text_of(
        page_of(tmp_path)
    )
    change_summary(tmp_path, comparisons=[c | {"ci95": [-0.1, 0.4]}])
    assert "A point on hard has no price" in text_of(page_of(tmp_path))


def test_what_a_correct_answer_takes(tmp_path):
    summary = write_run(tmp_path, num_tasks=30)
    change_summary(tmp_path, ledger=with_energy(summary))
    assert "A correct answer on hard" not in text_of(page_of(tmp_path))  # of which no time is on record
    said = []
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as log:
        for stage, seconds in (("after_rl", 30.0), ("before", 60.0)):
            answers = read_rollouts(tmp_path / "rollouts" / stage / "greedy.parquet")
            whole = sum(r.num_sampled for r in answers)
            row = {
                "stage": stage,
                "kind": "pass",
                "step": 0,
                "pass": "greedy",
                "eval_s": seconds,
                "num_tokens_sampled": whole,
            }
            log.write(json.dumps(row) + "\n")
            hard = [r for r in answers if r.task.source == answers[-1].task.source]
            tokens = sum(r.num_sampled for r in hard) / sum(r.correct for r in hard)
            said.append(f"{tokens:.3g} tokens, {seconds * tokens / whole:.3g} seconds")
    after, before = said
    text = text_of(page_of(tmp_path))
    assert f"A correct answer on hard (greedy) takes {after}" in text
    assert f"after the training, {before}" in text


def test_the_plan_stands_beside_what_it_took(tmp_path):
    summary = write_run(tmp_path, num_tasks=6)
    assert "plan and actual" not in text_of(page_of(tmp_path))
    seconds = {"train": {"low": 60.0, "likely": 123.0, "high": 240.0}}
    stages = {name: {"seconds": seconds} for name in ("rl", "sft")}
    change_summary(
        tmp_path, plan={"stages": stages, "peak_bytes": 4.56e9}, peak_rss_mb=4321.0, ledger=with_energy(summary)
    )
    text = text_of(page_of(tmp_path))
    assert "plan and actual" in text
    assert all(told in text for told in ("4 min 06 s", "2 min 00 s", "8 min 00 s"))  # two stages of it
    assert "4.56 GB" in text
    assert "4.32 GB" in text


def test_a_run_from_before_joules_shows_its_time_and_no_more(tmp_path):
    write_run(tmp_path, num_tasks=6)
    text = text_of(page_of(tmp_path))
    assert "Where the time went" in text
    assert "What it drew" not in text
    assert "CO2e" not in text


# --- docs -------------------------------------------------------------------------------------------------------------


SRC, DOCS = Path(report.__file__).parent.parent, Path(__file__).parent.parent / "docs"
LOGGED_BY = {
    "train.py": {"_go", "_finish", "_note", "laps"},
    "metrics.py": {"_rewards", "_outcomes", "_lengths", "_texts", "_credit", "_reasons"},
    "schedule.py": {"curriculum_row"},
    "learner.py": {"_means", "sft_update"},
    "sft.py": {"run", "_step", "_look", "_sampled"},
    "evaluate.py": {"dev_accuracy", "figures", "_by_level"},
    "ledger.py": {"as_dict"},
    "costs.py": {"of"},
    "waste.py": {"of"},
    "run.py": {"new_summary"},
    "compare.py": {"run", "_rows", "_side", "_selection"},
}


def keys_of_dicts(tree: ast.AST) -> set[str]:
    """Keys of all dict displays and comprehensions, with what an f-string fills in as <>."""
    keys: list[ast.expr | None] = []
    for node in ast.walk(tree):
        keys += node.keys if isinstance(node, ast.Dict) else [node.key] if isinstance(node, ast.DictComp) else []
    found = {k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}
    strings = [k.values for k in keys if isinstance(k, ast.JoinedStr)]
    return found | {"".join(v.value if isinstance(v, ast.Constant) else "<>" for v in parts) for parts in strings}


def test_every_logged_key_is_defined_in_the_docs():
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    documented = {
        re.sub("<.*?>", "<>", key) for word in re.findall(r"`([^`]+)`", text) for key in (word, *word.split("."))
    }
    for file, names in LOGGED_BY.items():
        tree = ast.parse((SRC / file).read_text(encoding="utf-8"))
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in names]
        assert {f.name for f in functions} == names, f"{file} has other functions now: correct LOGGED_BY"
        logged = set().union(*(keys_of_dicts(f) for f in functions))
        assert logged - documented - {"other", "mismatch_tokens"} == set(), (
            f"{file} logs what docs/metrics.md does not define"
        )
    assert {reason.value for reason in Reason} <= documented
