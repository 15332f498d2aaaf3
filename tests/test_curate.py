"""Curation as a whole: every row has one fate, only what a change touches is done again, and a kill costs nothing."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from curation import Said
from stages_for_tests import STAGES, fails, lengths, pids
from strop import cli, curate
from strop.config import TaskSet, parse_curation
from strop.curate import cache, table
from strop.curate.measure import InProcess, Processes
from strop.curate.rows import SCHEMA, Stopped
from strop.record import UserError
from strop.report import card
from strop.tasks import load as load_tasks
from strop.watch import Watch

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
RECIPE: dict[str, Any] = {
    "against": ["held.jsonl"],
    "stages": [
        {"do": "filter", "min_prompt_chars": 12},
        {"do": "duplicates"},
        {"do": "decontaminate"},
        {"do": "difficulty"},
        {"do": "mixture", "heldout": 5},
    ],
}


def rows() -> list[dict[str, Any]]:
    made = [
        {"problem": f"What is {i} times {i}?", "answer": str(i * i), "level": i % 4, "license": "MIT" if i % 2 else "CC0",
         "solution": f"It is <b>{i * i}</b>, since we multiply {i} by itself.\n\\boxed{{{i * i}}}"}
        for i in range(120)
    ]  # fmt: skip
    made += [{**row, "problem": row["problem"].upper()} for row in made[:30]] + made[30:40]
    return [*made, {"problem": "Short?", "answer": "1"}, {"problem": "<script>alert(1)</script>"}, {"answer": "1"}]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pool in two files, a benchmark of one's own, and the recipe over them."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, rows())
    text = {"pool": ["a.jsonl", {"source": "b.jsonl", "licence": "Apache-2.0"}], **RECIPE}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(text))
    return tmp_path


def write(folder: Path, made: list[dict[str, Any]]) -> None:
    for name, part in (("a", made[::2]), ("b", made[1::2]), ("held", made[50:55])):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in part) + ("junk\n" * (name == "a"))
        )


def run(folder: Path, out: str = "out", *overrides: str, **more: Any) -> tuple[dict[str, Any], str]:
    """The summary, and all that was said."""
    said = Said()
    curation = parse_curation(yaml.safe_load((folder / "recipe.yaml").read_text()), "recipe", overrides)
    more = {"workers": 1, "stages": STAGES} | more
    return curate.run(curation, out=folder / out, watch=Watch(said, live=False), **more), said.text


def files(out: Path) -> dict[str, bytes]:
    found = [*out.glob("*.parquet"), *out.glob("listed/*"), card.run(out)]
    return {path.name: path.read_bytes() for path in found}


def test_every_row_has_one_fate_and_the_funnel_adds_up(pool: Path) -> None:
    summary, _ = run(pool)
    fates = pq.read_table(pool / "out/fates.parquet").to_pylist()
    assert len(fates) == len(rows()) + 1 == sum(source["rows"] for source in summary["sources"])
    for before, after in zip(summary["stages"], summary["stages"][1:], strict=False):
        assert before["rows_out"] == after["rows_in"]
    dropped = Counter((fate["stage"], fate["reason"]) for fate in fates if fate["reason"] != "kept")
    assert dropped == {(s["name"], why): num for s in summary["stages"] for why, num in s["dropped"].items()}
    kept = Counter(fate["stage"] for fate in fates if fate["reason"] == "kept")
    assert kept == summary["rows"] == {"heldout": 5, "train": kept["train"]}
    assert {("load", "not JSON"), ("load", "no final answer"), ("load", "no problem"), ("filter", "short")} <= set(
        dropped
    )
    assert dropped["decontaminate", "in a benchmark"] >= 5
    ids = {name: set(pq.read_table(pool / f"out/{name}.parquet").column("id").to_pylist()) for name in kept}
    assert not ids["train"] & ids["heldout"]
    assert {fate["id"] for fate in fates if fate["stage"] == "train"} == ids["train"]
    short = next(fate for fate in fates if fate["reason"] == "short")
    assert (short["prompt"], short["detail"]) == ("Short?", "6 characters")


def test_what_is_left_reads_back_as_a_task_set_with_worked_solutions(pool: Path) -> None:
    summary, _ = run(pool)
    out = pq.read_table(pool / "out/train.parquet")
    assert out.column_names[: len(SCHEMA)] == SCHEMA.names
    assert {"solution", "level", "pass_rate"} <= set(out.column_names)
    assert out.schema.field("pass_rate").type == pa.float64()
    assert all(json.loads(row["meta"])["level"] == row["level"] for row in out.to_pylist())
    licences = {row["source"]: row["licence"] for row in out.to_pylist()}
    assert licences.keys() == {"a", "b"}
    assert set(out.column("licence").to_pylist()) == {"MIT", "CC0"}
    spec = TaskSet(source=str(pool / "out/train.parquet"), heldout=0, dev=0)
    tasks = load_tasks({"mine": spec}, seed=0, say=lambda text: None)["mine"].train
    assert {(t.prompt, t.answer) for t in tasks} == {(r["prompt"], r["answer"]) for r in out.to_pylist()}
    assert len(tasks) == summary["rows"]["train"]
    assert all(task.meta["solution"].endswith(f"\\boxed{{{task.answer}}}") for task in tasks)
    assert "meta" not in tasks[0].meta


def test_the_order_of_rows_files_and_processes_decides_nothing(pool: Path) -> None:
    run(pool, "one")
    made = [*rows()[::2], *rows()[1::2]]
    for name, part in (("a", rows()[::2]), ("b", rows()[1::2])):
        mixed = [json.dumps(row) + "\n" for row in part] + ["junk\n"] * (name == "a")
        random.Random(3).shuffle(mixed)
        (pool / f"{name}.jsonl").write_text("".join(mixed))
    assert made
    run(pool, "two", "pool=[{source: b.jsonl, licence: Apache-2.0}, a.jsonl]", workers=2)
    one, two = files(pool / "one"), files(pool / "two")
    assert one.keys() == two.keys() >= {"train.parquet", "heldout.parquet", "fates.parquet", "duplicates.jsonl"}
    assert {name for name in one if one[name] != two[name]} == {"card.html"}  # it tells the hashes of the files
    assert [s["rows_out"] for s in json.loads((pool / "one/summary.json").read_text())["stages"]] == [
        s["rows_out"] for s in json.loads((pool / "two/summary.json").read_text())["stages"]
    ]


def test_a_change_reruns_only_what_follows(pool: Path) -> None:
    def done(*overrides: str, **more: Any) -> list[str]:
        summary, said = run(pool, "out", *overrides, **more)
        again = [stage["name"] for stage in summary["stages"] if not stage["cached"]]
        assert said.count("as decided before (cache)") == len(summary["stages"]) - len(again)
        return again

    every = ["load", "filter", "duplicates", "decontaminate", "difficulty", "mixture"]
    assert done() == every
    first = files(pool / "out")
    assert done() == []
    assert files(pool / "out") == first
    assert done("stages.mixture.heldout=6") == ["mixture"]
    assert done("seed=1") == ["difficulty", "mixture"]
    assert done("stages.filter.min_prompt_chars=13") == [
        "filter"
    ]  # it drops the same rows, so what follows still holds
    assert done("stages.filter.min_prompt_chars=19") == every[1:]
    assert done("against=b.jsonl") == ["decontaminate", "difficulty", "mixture"]
    assert done() == []
    assert files(pool / "out") == first
    (damaged,) = (path for path in (pool / "out/cache").glob("duplicates-*/dropped.arrow") if _of_first_run(path, pool))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert done() == ["duplicates"]
    (pool / "weights").mkdir()
    for text in ("old", "newer"):  # other weights under one name
        (pool / "weights/model.safetensors").write_text(text)
        assert done("model.name=weights") == ["difficulty"]
        assert done("model.name=weights") == []
    with open(pool / "a.jsonl", "a") as file:
        file.write(json.dumps({"problem": "One more of these?", "answer": "1"}) + "\n")
    assert done()[:5] == every[:5]


def _of_first_run(path: Path, pool: Path) -> bool:
    """The decision over the rows that are 12 characters long or more: the newest rerun that dropped most."""
    made = {p: len(table.read(p)) for p in path.parent.parent.glob("duplicates-*/dropped.arrow")}
    return made[path] == max(made.values())


@pytest.mark.parametrize("dies_at", [*(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 5, 12)), 8, 15])
def test_killed_anywhere_and_started_again_gives_the_same_bytes(pool: Path, dies_at: int) -> None:
    command = [sys.executable, str(HERE / "curate_for_tests.py"), "recipe.yaml", "killed", str(dies_at)]
    done = subprocess.run(command, cwd=pool, capture_output=True, text=True, check=False)
    assert done.returncode == -9, f"not killed: {done.stdout} {done.stderr}"
    assert (
        not (pool / "killed/summary.json").exists()
        or not json.loads((pool / "killed/summary.json").read_text())["finished"]
    )
    run(pool, "killed")
    run(pool, "whole")
    killed, whole = (
        {name: data for name, data in files(pool / out).items() if name != "card.html"} for out in ("killed", "whole")
    )
    assert killed == whole
    assert not list((pool / "killed").rglob("*.tmp"))


def test_asked_to_stop_it_keeps_what_it_decided(pool: Path) -> None:
    asked = iter([False, False, True])
    summary, _ = run(pool, stop_requested=lambda: next(asked, True))
    assert (summary["finished"], summary["files"]) == (False, {})
    num = len(summary["stages"])
    assert 1 <= num < 6
    with pytest.raises(UserError, match="no finished curation"):
        card.run(pool / "out")
    summary, said = run(pool)
    assert summary["finished"]
    assert said.count("(cache)") == num


def test_a_name_that_there_is_not_is_refused_before_the_pool_is_read(pool: Path) -> None:
    with pytest.raises(UserError, match=r"against.0: 'math_50' is no file that exists.*math_500"):
        run(pool, "out", "against=math_50")
    assert not list((pool / "out/cache").glob("load-*"))


def test_what_is_dropped_is_said_with_its_reasons(pool: Path) -> None:
    _, said = run(pool)
    assert re.search(r"^load: \d+ -> \d+ rows, .*1 no final answer.*; ", said, re.MULTILINE)


def test_rows_are_taken_in_any_order() -> None:
    rows = pa.concat_tables([pa.table({"n": list(range(start, start + 1000))}) for start in range(0, 90_000, 1000)])
    for places in (
        np.array([], np.int64), np.arange(5000, 20_000, 3), np.random.default_rng(0).permutation(90_000), np.array([7, 7]),
    ):  # fmt: skip
        parts = list(table.taken(rows, places))
        assert pa.concat_tables(parts).column("n").to_pylist() == places.tolist()
        assert all(len(part) <= table.BATCH for part in parts)


# --- processes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def many() -> pa.Table:
    return pa.Table.from_pylist(
        [dict.fromkeys(SCHEMA.names, "") | {"id": f"s/{i:04}", "prompt": "x" * (i % 37) + str(i)} for i in range(1500)], schema=SCHEMA
    )  # fmt: skip


def test_processes_find_what_one_finds_and_stay_for_the_next_table(many: pa.Table, tmp_path: Path) -> None:
    watch = Watch(Said(), live=False)
    with Processes(2, tmp_path / "scratch", watch) as measure:
        assert measure(lengths, many, None, what="a") == InProcess(watch)(lengths, many, None, what="a")
        assert measure(lengths, many.slice(7, 900), None, what="b").column("length").to_pylist() == [
            len(p) for p in many.column("prompt").to_pylist()[7:907]
        ]
        found = measure(pids, many, None, what="c")
        again = measure(pids, many, None, what="d")
        here = measure(pids, many.slice(0, 20), None, what="few")
    assert len(set(found.column("pid").to_pylist())) == 2
    assert set(found.column("pid").to_pylist()) == set(again.column("pid").to_pylist())
    assert set(found.column("threads").to_pylist()) == {"1"}
    assert set(here.column("pid").to_pylist()) == {os.getpid()}
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "error", "parts"),
    [
        ({"die": "x1222"}, RuntimeError, ["lengths: a worker process died (exit code -9)", "s/"]),
        ({"raise": "x1222"}, RuntimeError, ["lengths: failed on the batch of rows", "no such thing"]),
        ({"mistake": "x1222"}, UserError, ["pip install something"]),
    ],
)
def test_a_batch_that_fails_is_named(
    many: pa.Table, tmp_path: Path, settings: dict[str, str], error: type[Exception], parts: list[str]
) -> None:
    assert many.column("prompt")[1222].as_py() == "x1222"
    with Processes(2, tmp_path, Watch(Said(), live=False)) as measure:
        with pytest.raises(error) as caught:
            measure(fails, many, settings, what="lengths")
        for part in parts:
            assert part in str(caught.value)
        if error is RuntimeError:
            first, last = map(int, re.findall(r"rows (\d+) to (\d+)", str(caught.value))[0])
            assert first <= 1222 <= last
        assert len(measure(fails, many, {}, what="again")) == 1500  # the workers are started anew


def test_a_stop_is_heard_between_two_batches(many: pa.Table, tmp_path: Path) -> None:
    asked = iter([False] * 5)
    watch = Watch(Said(), live=False)
    with Processes(2, tmp_path, watch, lambda: next(asked, True)) as measure, pytest.raises(Stopped):
        measure(lengths, many, None, what="lengths")


def test_the_code_of_a_stage_is_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for number, text in enumerate(
        ("import numpy", "import numpy\nX = 1", "import numpy\nfrom strop.curate import table")
    ):
        (tmp_path / f"stage_{number}.py").write_text(text)
    codes = {cache.code_of(f"stage_{number}") for number in range(3)}
    assert len(codes) == 3


# --- what one types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["pool="], ["pool"]),
        (["pol=a.jsonl"], ["pol", "did you mean 'pool'?"]),
        (["stages.duplicates.jacard=0.9"], ["stages.duplicates.jacard", "did you mean 'jaccard'?"]),
        (["stages.duplicats.jaccard=0.9"], ["duplicats", "did you mean 'duplicates'?"]),
        (["stages.duplicates.jaccard=2"], ["stages.duplicates.jaccard", "less than or equal to 1"]),
        (["stages.0.do=veriable"], ["veriable", "did you mean 'verifiable'?"]),
        (["verifier=maths"], ["verifier", "'math'"]),
        (["against=[]"], ["decontaminate has nothing to compare with", "--set against="]),
    ],
)
def test_a_mistake_in_a_recipe_is_one_sentence(overrides: list[str], parts: list[str]) -> None:
    data = yaml.safe_load((RECIPES / "curate-local.yaml").read_text())
    with pytest.raises(UserError) as caught:
        parse_curation(data, "r.yaml", ["pool=a.jsonl", "against=math_500", *overrides])
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["strop", *map(str, args)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_the_command_from_files_to_a_dry_run_over_what_it_made(
    pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(curate, "STAGES", STAGES)
    code, out, err = inside(monkeypatch, capsys, "curate", "recipe.yaml", "--out", "run", "--json")
    assert code == 0, err
    summary = json.loads(out.strip().splitlines()[-1])
    assert summary == json.loads((pool / "run/summary.json").read_text())
    assert summary["command"] == "strop curate recipe.yaml --out run --json"
    assert "data card: " in err
    page = (pool / "run/card.html").read_text()
    assert "<script>alert" not in page
    assert "not JSON" in page
    code, out, err = inside(monkeypatch, capsys, "curate", "recipe.yaml", "--out", "run")
    assert code == 0, err
    assert err.count("as decided before (cache)") == 6
    assert "filter: " in out
    assert f"train.parquet: {summary['rows']['train']} rows; heldout.parquet: 5 rows" in out
    recipe = RECIPES / "my-task.yaml"
    settings = "tasks.gsm8k={source: run/train.parquet, heldout: 5, dev: 5}"
    (pool / "my_reward.py").write_text((RECIPES / "my_reward.py").read_text())
    code, out, err = inside(monkeypatch, capsys, "run", recipe, "--set", settings, "--dry-run")
    assert code == 0, err
    assert f"{summary['rows']['train']} worked solutions" in err


def test_a_folder_of_something_else_and_a_recipe_of_another_kind_are_refused(
    pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (pool / "full").mkdir()
    (pool / "full/notes.txt").write_text("mine")
    code, _, err = inside(monkeypatch, capsys, "curate", "recipe.yaml", "--out", "full")
    assert code == 2
    assert "holds other files" in err
    code, _, err = inside(monkeypatch, capsys, "run", "recipe.yaml")
    assert code == 2
    assert "strop curate recipe.yaml" in err
    code, _, err = inside(monkeypatch, capsys, "curate", RECIPES / "quickstart.yaml")
    assert code == 2
    assert "strop run " in err
    code, _, err = inside(monkeypatch, capsys, "curate")
    assert code == 2
    assert "name a recipe" in err
