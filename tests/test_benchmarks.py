"""Benchmarks by name: the pinned problems on the real files, what is refused as another of that name, and that training
never sees one."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from strop import pipeline, tasks
from strop.config import TaskSet, parse_recipe
from strop.record import UserError
from strop.tasks import TaskSplits, benchmarks
from strop.tasks.benchmarks import BENCHMARKS, folded

DATA = Path(os.environ.get("STROP_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STROP_DATA", raising=False)


def real(path: str) -> Path:
    if not (DATA / path).exists():
        pytest.skip(f"NOT CHECKED against {path}: no folder {DATA} (set STROP_DATA)")
    return DATA / path


def open_set(source: str, **spec: Any) -> tuple[TaskSplits, str]:
    """The splits, and all that was said."""
    said: list[str] = []
    return tasks.load({"mine": TaskSet(source=source, **spec)}, seed=0, say=said.append)["mine"], "\n".join(said)


def refusal(source: str, **spec: Any) -> str:
    with pytest.raises(UserError) as error:
        open_set(source, **spec)
    return str(error.value)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- the real files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_is_whole_and_held_out(name: str) -> None:
    real("eval")
    known = BENCHMARKS[name]
    splits, _ = open_set(name, settings={"data": str(DATA)})
    assert (len(splits.heldout), splits.train, splits.dev, dict(splits.dropped)) == (known.rows, [], [], {})
    assert benchmarks.content(splits.heldout) == known.hash
    assert {t.verifier for t in splits.heldout} == {known.verifier}
    assert benchmarks.provenance(splits.heldout) == {
        "name": name,
        "problems": known.rows,
        "of": known.rows,
        "pinned": True,
    }
    assert {benchmarks.holding(t.prompt) for t in splits.heldout} == {name}


def test_the_pins_are_those_of_the_real_files() -> None:
    real("eval")
    assert pins_text() == benchmarks.PINS.read_text(encoding="utf-8")


def pins_text() -> str:
    """What `benchmarks.txt` has to hold: of every problem a hash of its words, and the first half of its content's."""
    lines = []
    for source in BENCHMARKS:
        path = benchmarks.local_file(source, str(DATA), source)
        assert path is not None
        held_out = benchmarks._read_local(source, path, source, len)
        words = (hashlib.sha256(folded(task.prompt).encode()).hexdigest()[:12] for task in held_out)
        pins = sorted(f"{word} {task.content[:8]}" for word, task in zip(words, held_out, strict=True))
        lines += [f"[{source}]", *pins]
    return "\n".join(lines) + "\n"


def test_every_size_of_knights_and_knaves_is_a_benchmark_of_its_own() -> None:
    real("logic")
    for people in BENCHMARKS["knights_knaves"].people:
        splits, _ = open_set("knights_knaves", settings={"data": str(DATA), "people": people})
        assert {t.meta["level"] for t in splits.heldout} == {people}
        assert all(t.answer.count(" is a k") == people for t in splits.heldout)
        stated = {"name": f"knights_knaves:{people}", "problems": 100, "of": 100, "pinned": True}
        assert benchmarks.provenance(splits.heldout) == stated


def test_other_spellings_of_an_answer_are_kept_beside_it() -> None:
    real("eval/minerva_math.jsonl")
    splits, _ = open_set("minerva_math", settings={"data": str(DATA)})
    others = {t.answer: t.meta["answer_alternates"] for t in splits.heldout if "answer_alternates" in t.meta}
    assert len([t for t in splits.heldout if "answer_alternates" in t.meta]) == 136
    assert others["3.83e35"] == ["3.83 \\times 10^{35}"]


def test_a_part_is_not_the_benchmark() -> None:
    real("eval/math_500.jsonl")
    splits, said = open_set("math_500", heldout=50, settings={"data": str(DATA)})
    again, _ = open_set("math_500", heldout=50, settings={"data": str(DATA)})
    assert "50 of the 500 problems of math_500: not the benchmark" in said
    assert splits.heldout == again.heldout
    stated = benchmarks.provenance(splits.heldout)
    assert stated is not None
    assert (stated["problems"], stated["of"]) == (50, 500)


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    real("eval/amc23.jsonl")
    monkeypatch.setenv("STROP_DATA", str(DATA))
    assert len(open_set("amc23")[0].heldout) == 40


def test_a_training_file_loses_the_problems_of_benchmarks() -> None:
    path = real("train/dapo_math_17k.jsonl.gz")
    splits, said = open_set(str(path), heldout=0, dev=64)
    leaks = {reason: ids for reason, ids in splits.dropped.items() if reason.startswith("problem of")}
    num = sum(map(len, leaks.values()))
    assert {reason: len(ids) for reason, ids in leaks.items()} == {
        "problem of math_500": 7, "problem of amc23": 11, "problem of olympiadbench": 3,
    }  # fmt: skip
    assert f"{len(leaks['problem of math_500'])} (problem of math_500)" in said
    assert not any(benchmarks.holding(t.prompt) for t in (*splits.train, *splits.dev))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        held = {
            " ".join(row["problem"].split()) for row in map(json.loads, lines) if benchmarks.holding(row["problem"])
        }
    assert held.isdisjoint(" ".join(t.prompt.split()) for t in splits.train)
    assert len(held) == num


# --- another benchmark of that name -------------------------------------------------------------------------------------


def amc(folder: Path, rows: int, answer: str = "1") -> Path:
    made = [{"problem": f"How many apples has person {i}?", "answer": answer} for i in range(rows)]
    return write(folder / "amc23.jsonl", made)


def test_83_problems_are_refused_with_both_counts(tmp_path: Path) -> None:
    path = amc(tmp_path, 83)
    sentence = refusal("amc23", settings={"data": str(tmp_path)})
    assert f"amc23 has 40 problems, {path} has 83" in sentence
    assert "name the file itself as a source" in sentence
    assert len(open_set(str(path), train=0, dev=0)[0].heldout) == 83  # which works


def test_the_right_number_of_other_problems_is_refused_with_how_many_differ(tmp_path: Path) -> None:
    amc(tmp_path, 40)
    assert "40 of the 40 problems or answers" in refusal("amc23", settings={"data": str(tmp_path)})


def test_one_changed_answer_is_found(tmp_path: Path) -> None:
    lines = real("eval/amc23.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows[7]["answer"] += "0"
    write(tmp_path / "amc23.jsonl", rows)
    assert "1 of the 40 problems or answers" in refusal("amc23", settings={"data": str(tmp_path)})


def test_a_repeated_problem_does_not_pass_for_the_missing_one(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in real("eval/amc23.jsonl").read_text(encoding="utf-8").splitlines()]
    write(tmp_path / "amc23.jsonl", [*rows[:39], rows[0]])
    assert "39 that can be read" in refusal("amc23", settings={"data": str(tmp_path)})


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert "no amc23.jsonl" in refusal("amc23", settings={"data": str(tmp_path)})
    assert "people is for knights_knaves" in refusal("amc23", settings={"people": 3})
    assert "people is one of 3, 4, 5, 6, 7" in refusal("knights_knaves", settings={"people": 9})
    assert "--data DIR" in refusal("knights_knaves")
    assert "did you mean 'data'?" in refusal("amc23", settings={"date": "x"})


def test_the_hub_s_copy_is_taken_and_what_differs_is_said(tmp_path, monkeypatch) -> None:
    """A folder of the hub's name stands for the hub; its answers are written otherwise, as they are there."""
    pytest.importorskip("datasets")
    rows = [json.loads(line) for line in real("eval/amc23.jsonl").read_text(encoding="utf-8").splitlines()]
    (tmp_path / "math-ai" / "amc23").mkdir(parents=True)
    hub = [{"question": row["problem"], "answer": row["answer"] + ".0"} for row in rows]
    write(tmp_path / "math-ai" / "amc23" / "test.jsonl", hub)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    splits, said = open_set("amc23")
    assert f"the hub's amc23 has the hash {benchmarks.content(splits.heldout)}, and pinned is" in said
    stated = benchmarks.provenance(splits.heldout)
    assert stated == {"name": "amc23", "problems": 40, "of": 40, "pinned": False}
    write(tmp_path / "math-ai" / "amc23" / "test.jsonl", hub[:39])
    assert "amc23 has 40 problems, math-ai/amc23 has 39" in refusal("amc23")


# --- training never reads a benchmark -----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["train", "dev"])
def test_a_benchmark_has_no_training_tasks(part: str) -> None:
    sentence = refusal("amc23", **{part: 5})
    assert f"tasks.mine.{part}: amc23 is a benchmark, and training never reads one" in sentence


@pytest.mark.parametrize(
    "stage",
    [
        {"name": "sft", "do": "sft", "tasks": ["amc"]},
        {"name": "rl", "do": "train", "tasks": {"amc": 1.0}},
    ],
)
def test_a_stage_that_would_train_on_a_benchmark_is_refused(tmp_path: Path, stage: dict[str, Any]) -> None:
    real("eval/amc23.jsonl")
    sets = {"amc": {"source": "amc23", "settings": {"data": str(DATA)}}}
    recipe = parse_recipe({"model": {"name": str(tmp_path)}, "tasks": sets, "stages": [stage]})
    with pytest.raises(UserError, match=r"which is the benchmark amc23: training never reads one"):
        pipeline.check(recipe, say=len)


def test_a_problem_that_only_looks_different_is_left_out_of_training_and_dev(tmp_path: Path) -> None:
    """Written here in another layout; that it is a benchmark's is known from its hash alone."""
    leaked = "JANET's ducks lay 16 eggs per day."  # no benchmark's, by itself
    walk = "Positive real numbers $x$ and $y$ satisfy   $y^3 = x^2$ and $(y-x)^2 = 4y^2$.\nWhat is $x + y$?"  # AMC 12A 2023, 10
    assert (benchmarks.holding(leaked), benchmarks.holding(walk)) == (None, "amc23")
    rows = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(8)]
    path = write(tmp_path / "own.jsonl", [*rows, {"problem": walk, "answer": "36"}, {"problem": leaked, "answer": "1"}])
    splits, said = open_set(str(path), heldout=0, dev=2)
    assert walk not in {t.prompt for t in (*splits.train, *splits.dev)}
    assert len(splits.train) + len(splits.dev) == 9
    ((reason, ids),) = splits.dropped.items()
    assert (reason, len(ids)) == ("problem of amc23", 1)
    assert f"1 (problem of amc23): {ids[0]}" in said


def test_a_set_without_training_holds_out_all_there_is(tmp_path: Path) -> None:
    rows = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(300)]
    path = str(write(tmp_path / "own.jsonl", rows))
    assert len(open_set(path, train=0, dev=0)[0].heldout) == 300
    assert len(open_set(path, train=0, dev=0, heldout=7)[0].heldout) == 7
    splits, _ = open_set(path, train=4, dev=3)
    assert [len(splits.heldout), len(splits.dev), len(splits.train)] == [256, 3, 4]
