"""Pass rates by hand through a server whose answers are written down, and through a real tiny model; nothing twice."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import Scripted, by_prompt, kill_after, killed_in, table, tools
from openai_server import said, serving
from strop.config.curation import Curation, DifficultyStage
from strop.curate import kept
from strop.curate.difficulty import _hash, difficulty
from strop.curate.rows import Fate, Outcome, Stopped
from strop.record import Task, UserError
from strop.rewards.puzzles import verify_exact

RIGHT, WRONG = (r"So it is \boxed{5}.", "stop"), (r"So it is \boxed{6}.", "stop")
RIGHT_OF_4 = {"never": 0, "rarely": 1, "often": 3, "always": 4}


def recipe(server: str = "", model: str | dict[str, Any] = "one", **sections: Any) -> Curation:
    return Curation.model_validate({
        "pool": "pool.jsonl", "stages": [{"do": "difficulty"}], "model": model if isinstance(model, dict) else {"name": model},
        "engine": {"server": server, "max_batch": 5}, "checks": {"workers": 1, "timeout_s": 60}, **sections,
    })  # fmt: skip


def stage(**keys: Any) -> DifficultyStage:
    return DifficultyStage.model_validate({"do": "difficulty", "samples": 4, "max_tokens": 8} | keys)


def by_name(problem: str, times: int, seed: int) -> tuple[str, str]:
    """As many of the first answers are right as the problem's name says."""
    return RIGHT if times < RIGHT_OF_4[problem.split()[0]] else WRONG


@pytest.fixture
def server() -> Iterator[tuple[Scripted, str]]:
    scripted = Scripted(by_name)
    with serving(scripted) as url:
        yield scripted, url


def test_pass_rates_and_the_band_by_hand(tmp_path, server):
    rows = table([(name, "5") for name in RIGHT_OF_4])
    found = difficulty(rows, stage(), tools(tmp_path, curation=recipe(server[1])))
    assert found.dropped == {
        0: Fate(reason="never solved", detail="0 of 4"), 3: Fate(reason="always solved", detail="4 of 4"),
    }  # fmt: skip
    assert found.changed == {
        1: {"pass_rate": 0.25, "num_samples": 4}, 2: {"pass_rate": 0.75, "num_samples": 4},
    }  # fmt: skip
    notes = "\n".join(found.notes)
    assert "4 of 4 rows were answered 4 times by one" in notes
    assert "50.0% of the answers are right; they have 48 tokens" in notes
    assert "rows by right answers of 4: 0: 1, 1: 1, 2: 0, 3: 1, 4: 1" in notes
    assert "0.0% of the answers hit the limit of 8 tokens\n100.0% of the answers say which" in notes
    assert "a chance of 50.0% before this stage and 100.0% after it" in notes
    assert all(posted["temperature"] == 1.0 and posted["max_tokens"] == 8 for posted in server[0].posted)


@pytest.mark.parametrize(
    ("band", "kept_names"),
    [
        ({"min_rate": None}, ["never", "rarely", "often"]),
        ({"max_rate": None}, ["rarely", "often", "always"]),
        ({"min_rate": 0.25}, ["often"]),
        ({"max_rate": 0.75}, ["rarely"]),
        ({"min_rate": None, "max_rate": None}, list(RIGHT_OF_4)),
    ],
)
def test_the_edges_of_a_band(tmp_path, server, band, kept_names):
    rows = table([(name, "5") for name in RIGHT_OF_4])
    found = difficulty(rows, stage(**band), tools(tmp_path, curation=recipe(server[1])))
    assert [rows["prompt"][place].as_py() for place in found.changed] == kept_names
    assert len(found.dropped) + len(found.changed) == 4


def test_what_hits_the_limit_or_states_nothing_is_told(tmp_path):
    texts = [("I think that", "length"), (r"\boxed{5} and", "length"), ("it is 5", "length"), ("perhaps 5", "stop")]
    with serving(Scripted(lambda problem, times, seed: texts[times])) as url:
        found = difficulty(table([("a", "5")]), stage(), tools(tmp_path, curation=recipe(url)))
    assert found.changed[0]["pass_rate"] == 0.5  # a number on which a cut answer happens to end is no answer
    notes = "\n".join(found.notes)
    assert "75.0% of the answers hit the limit of 8 tokens: raise max_tokens, to 16" in notes
    assert "25.0% of the answers say which value is the answer (a box, a tag, a line for it): ask for one" in notes


def test_a_second_run_asks_nothing_and_more_rows_only_new_ones(tmp_path, server):
    scripted, url = server
    few, more = table([("rarely 1", "5")]), table([("rarely 1", "5"), ("often 2", "5"), ("often 1", "5")])
    first = difficulty(few, stage(), tools(tmp_path, curation=recipe(url)))
    assert len(scripted.posted) == 4
    again = difficulty(few, stage(), tools(tmp_path, curation=recipe(url)))
    assert again == first
    assert len(scripted.posted) == 4
    difficulty(few, stage(samples=2, max_rate=0.6), tools(tmp_path, curation=recipe(url)))
    assert len(scripted.posted) == 4  # other bands and fewer samples are other views of the same answers
    found = difficulty(more, stage(), tools(tmp_path, curation=recipe(url)))
    assert [posted["messages"][-1]["content"] for posted in scripted.posted[4:]].count("rarely 1") == 0
    assert len(scripted.posted) == 12
    assert found.changed[0]["pass_rate"] == first.changed[0]["pass_rate"]
    difficulty(few, stage(temperature=0.5), tools(tmp_path, curation=recipe(url)))
    assert len(scripted.posted) == 16
    difficulty(few, stage(), tools(tmp_path, curation=recipe(url, chat={"system": "Think."})))
    assert len(scripted.posted) == 20


def test_another_answer_to_a_problem_is_judged_anew_and_not_asked_again(tmp_path, server):
    scripted, url = server
    both = table([("rarely", "5"), ("rarely", "6")])
    difficulty(table([("rarely", "5")]), stage(), tools(tmp_path, curation=recipe(url)))
    found = difficulty(both, stage(), tools(tmp_path, curation=recipe(url)))
    assert [found.changed[place]["pass_rate"] for place in (0, 1)] == [0.25, 0.75]
    assert len(scripted.posted) == 4


def test_a_sample_of_rows_is_drawn_by_hash_and_a_larger_one_holds_it(tmp_path, server):
    rows = table([(f"often {i}", "5") for i in range(40)])
    turned = rows.take(pa.array(reversed(range(40))))
    curation = recipe(server[1])
    found = {
        limit: difficulty(rows, stage(limit=limit), tools(tmp_path, curation=curation)) for limit in (5, 12, 40, 99)
    }
    assert [len(found[limit].changed) for limit in (5, 12, 40, 99)] == [5, 12, 40, 40]
    assert set(found[5].changed) < set(found[12].changed)
    assert found[12].dropped.keys().isdisjoint(found[12].changed)
    assert {fate.reason for fate in found[12].dropped.values()} == {"not measured"}
    other = difficulty(turned, stage(limit=12), tools(tmp_path, curation=curation))
    assert by_prompt(turned, other) == by_prompt(rows, found[12])
    assert other.notes == found[12].notes
    reseeded = difficulty(rows, stage(limit=12), tools(tmp_path, curation=curation, seed=1))
    assert set(reseeded.changed) != set(found[12].changed)


def test_killed_while_asking_it_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "PART_S", 0.0)
    rows = table([(f"problem {i}", "5") for i in range(20)])
    scripted = Scripted(lambda problem, times, seed: (RIGHT, WRONG)[seed % 2])
    with serving(scripted) as url:
        curation = recipe(url)
        whole = difficulty(rows, stage(), tools(tmp_path / "whole", curation=curation))
        there = tmp_path / "killed"
        killed_in(lambda: difficulty(rows, stage(), tools(there, curation=curation, stop_requested=kill_after(30))))
        parts = sorted((there / "kept").glob("answers-*/part_*.parquet"))
        had = sum(pq.read_table(path).num_rows for path in parts)
        assert had == 30
        scripted.posted.clear()
        found = difficulty(rows, stage(), tools(there, curation=curation))
    assert 80 - had <= len(scripted.posted) < 80
    assert found == whole
    assert len(whole.changed) > 5


def test_asked_to_stop_it_keeps_what_it_has(tmp_path, server):
    scripted, url = server
    scripted.reply = lambda problem, times, seed: RIGHT  # however often: what was under way at the stop is asked again
    rows, calls, curation = table([(f"problem {i}", "5") for i in range(10)]), count(), recipe(url)
    with pytest.raises(Stopped):
        difficulty(
            rows, stage(max_rate=None), tools(tmp_path, curation=curation, stop_requested=lambda: next(calls) > 10)
        )
    asked = len(scripted.posted)
    found = difficulty(rows, stage(max_rate=None), tools(tmp_path, curation=curation))
    assert [row["pass_rate"] for row in found.changed.values()] == [1.0] * 10
    assert len(scripted.posted) - asked < 40


def test_what_the_server_refuses_is_set_aside(tmp_path):
    def reply(problem: str, times: int, seed: int) -> Any:
        return said({"error": "the prompt is too long"}, 400) if problem == "long" else RIGHT

    rows = table([("a", "5"), ("long", "5"), ("b", "5"), ("c", "5")])
    with serving(Scripted(reply)) as url:
        found = difficulty(rows, stage(max_rate=None), tools(tmp_path, curation=recipe(url)))
        assert found.dropped[1].reason == "refused by the server"
        assert "the prompt is too long" in found.dropped[1].detail
        assert set(found.changed) == {0, 2, 3}
        with pytest.raises(UserError, match="the prompt is too long"):
            difficulty(table([("long", "5")]), stage(), tools(tmp_path / "other", curation=recipe(url)))


def test_what_no_verifier_can_judge_is_set_aside(tmp_path, server):
    rows = table([("often", r"\frac{"), ("rarely", "5")])
    found = difficulty(rows, stage(), tools(tmp_path, curation=recipe(server[1])))
    assert found.dropped[0].reason == "could not be judged"
    assert found.changed[1]["pass_rate"] == 0.25
    assert "the verifier failed on 4 answers" in found.notes[-1]


def test_no_rows_open_no_model(tmp_path):
    curation = recipe("http://127.0.0.1:9/v1")
    assert difficulty(table([]), stage(), tools(tmp_path, curation=curation)) == Outcome(dropped={})


# --- a model in this process --------------------------------------------------------------------------------------------


def sums(num: int) -> pa.Table:
    return table([(f"Compute {i} + 3.", str(i + 3)) for i in range(num)])


def answers(folder: Path) -> dict[tuple[str, int], str]:
    parts = (folder / "kept").glob("answers-*/part_*.parquet")
    rows = [row for path in parts for row in pq.read_table(path).to_pylist()]
    return {(row["prompt"], row["sample"]): row["text"] for row in rows}


def test_a_real_model_stopped_in_the_middle_goes_on_and_ends_the_same(tiny_model, tmp_path, monkeypatch):
    from strop.engine.native import NativeEngine

    asked: list[int] = []
    generate = NativeEngine.generate
    monkeypatch.setattr(
        NativeEngine, "generate", lambda self, tasks, **kw: (asked.append(len(tasks)), generate(self, tasks, **kw))[1]
    )
    curation, rows, calls = recipe(model=str(tiny_model)), sums(6), count()
    whole = difficulty(rows, stage(), tools(tmp_path / "whole", curation=curation))
    there = tools(tmp_path / "run", curation=curation)
    with pytest.raises(Stopped):
        difficulty(rows, stage(), replace(there, stop_requested=lambda: next(calls) > 13))
    again = difficulty(rows, stage(), there)
    assert again == whole
    assert answers(tmp_path / "run") == answers(tmp_path / "whole")
    assert len(answers(tmp_path / "run")) == 24
    assert asked[:2] == [6, 6]
    assert 0 < asked[2] < 6
    assert difficulty(rows, stage(), there) == whole
    assert len(asked) == 3  # nothing was sampled
    assert {fate.reason for fate in whole.dropped.values()} == {"never solved"}


def test_its_pass_rates_are_those_of_its_own_answers(tiny_model, tmp_path):
    """With half of its words ending a turn it soon ends; each problem's answer becomes what it said most often."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    said_of = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(said_of | {"eos_token_id": list(range(0, 256, 2))}))
    curation, settings = recipe(model=str(folder)), stage(samples=8, max_tokens=12, temperature=0.5, max_rate=None)
    prompts = [f"Say {i}." for i in range(12)]
    difficulty(table([(p, "?") for p in prompts], verifier="exact"), settings, tools(tmp_path, curation=curation))
    texts = {prompt: [answers(tmp_path)[_hash(prompt), i] for i in range(8)] for prompt in prompts}
    golds = {prompt: Counter(said).most_common(1)[0][0].strip() or "?" for prompt, said in texts.items()}
    rows = table(golds.items(), verifier="exact")
    found = difficulty(rows, settings, tools(tmp_path, curation=curation))
    by_hand = {}
    for place, (prompt, gold) in enumerate(golds.items()):
        task = Task.make(source="s", prompt=prompt, answer=gold, verifier="exact")
        right = sum(verify_exact(task, text).correct for text in texts[prompt])
        if right:
            by_hand[place] = {"pass_rate": right / 8, "num_samples": 8}
    assert found.changed == by_hand
    assert len({rate["pass_rate"] for rate in by_hand.values()}) > 1


def test_prompts_that_leave_no_room_are_set_aside(tiny_model, tmp_path):
    rows = table([("Short.", "5"), ("Long " * 60, "5")])
    curation = recipe(model=str(tiny_model), engine={"max_prompt_tokens": 128})
    found = difficulty(rows, stage(), tools(tmp_path, curation=curation))
    assert found.dropped[1].reason == "prompt too long"
    assert found.dropped[1].detail.endswith("engine.max_prompt_tokens is 128")
    assert found.dropped[0].reason == "never solved"
    in_context = difficulty(
        rows, stage(max_tokens=900), tools(tmp_path, curation=recipe(model=str(tiny_model)), seed=1)
    )  # fmt: skip
    assert in_context.dropped[1].detail.endswith("the model's context less max_tokens is 124")
    with pytest.raises(UserError, match="places for 1024 tokens, so max_tokens=1024 leaves none"):
        difficulty(rows, stage(max_tokens=1024), tools(tmp_path, curation=recipe(model=str(tiny_model))))


def test_another_model_may_be_asked(tiny_model, tmp_path, server):
    curation = recipe(server[1])
    with pytest.raises(UserError, match="no such folder"):
        difficulty(sums(1), stage(model={"name": "./nowhere"}), tools(tmp_path, curation=recipe(model=str(tiny_model))))
    found = difficulty(table([("often", "5")]), stage(model={"name": "one"}), tools(tmp_path, curation=curation))
    assert found.changed[0]["pass_rate"] == 0.75


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"stages": [{"do": "difficulty", "min_rate": 0.5, "max_rate": 0.5}]}, "no pass rate lies above"),
        ({"stages": [{"do": "filter"}]}, "model has no effect without a stage that does difficulty"),
        ({"stages": [{"do": "difficulty", "model": {"name": "two"}}]}, "model has no effect where every"),
        ({"model": {"name": "one", "lora": {"rank": 4}}}, "model.lora has no effect"),
        ({"engine": {"server": "http://x/v1"}, "chat": {"prefill": "<think>"}}, "applies its own chat template"),
    ],
)
def test_what_would_do_nothing_is_refused(sections, words):
    with pytest.raises(ValueError, match=words):
        recipe(**sections)
