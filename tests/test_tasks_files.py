"""One's own data: columns, final answers, rows that are no tasks, and every kind of broken file in one sentence."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.config import TaskSet
from strop.record import UserError, read_tasks, write_tasks
from strop.tasks import TaskSplits, files, load

DATA = Path(os.environ.get("STROP_DATA", Path(__file__).parents[2] / "shared" / "data"))
ROWS: list[dict[str, Any]] = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(30)]


def real(path: str) -> str:
    if not (DATA / path).exists():
        pytest.skip(f"NOT CHECKED against {path}: no folder {DATA} (set STROP_DATA)")
    return str(DATA / path)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """By suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return str(path)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def open_set(
    source: str, train: int | None = None, heldout: int = 0, dev: int = 0, **values: Any
) -> tuple[TaskSplits, str]:
    """The splits, and all that was said."""
    said: list[str] = []
    spec = TaskSet(source=source, train=train, heldout=heldout, dev=dev, settings=values)
    return load({"mine": spec}, seed=0, say=said.append)["mine"], "\n".join(said)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_tasks(tmp_path: Path, name: str) -> None:
    splits, said = open_set(write(tmp_path / name, ROWS), heldout=5, dev=5)
    assert [len(splits.train), len(splits.dev), len(splits.heldout)] == [20, 5, 5]
    tasks = {(t.prompt, t.answer) for t in (*splits.train, *splits.dev, *splits.heldout)}
    assert tasks == {(row["problem"], row["answer"]) for row in ROWS}
    assert all(t.verifier == "math" and t.source.startswith(f"{name}@") for t in splits.train)
    assert "30 tasks from 30 rows; problem from column 'problem', answer from 'answer'" in said


def test_heldout_rows_do_not_depend_on_seed_or_order(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", ROWS[::-1])
    a, b = (
        load({"m": TaskSet(source=source, heldout=7, dev=3)}, seed=seed, say=len)["m"]
        for source, seed in ((one, 0), (other, 5))
    )
    assert [t.prompt for t in a.heldout] == [t.prompt for t in b.heldout]
    assert [t.prompt for t in a.dev] == [t.prompt for t in b.dev]
    assert {t.prompt for t in a.train} == {t.prompt for t in b.train}
    assert [t.prompt for t in a.train] != [t.prompt for t in b.train]


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "p", "solution": "s"}, "p", "s"),
        ({"question": "q", "ground_truth": 3}, "q", "3"),
        ({"input": "i", "label": 2.5}, "i", "2.5"),
        ({"problem": "p", "input": "i", "label": "l", "answer": "a"}, "p", "a"),
        ({"prompt": None, "question": "q", "answer": "a"}, "q", "a"),
        (
            {"prompt": [{"role": "user", "content": "v"}], "reward_model": {"style": "rule", "ground_truth": "4"}},
            "v",
            "4",
        ),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "m"}], "answer": ["7"]},
            "m",
            "7",
        ),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_columns_are_recognised(tmp_path: Path, name: str, row: dict[str, Any], prompt: str, answer: str) -> None:
    splits, _ = open_set(write(tmp_path / name, [row]))
    assert [(t.prompt, t.answer) for t in splits.train] == [(prompt, answer)]


def test_columns_can_be_named(tmp_path: Path) -> None:
    row = {"problem": "wrong", "answer": "wrong", "task": {"text": "right"}, "gold": "5"}
    splits, said = open_set(write(tmp_path / "a.jsonl", [row]), prompt_column="task.text", answer_column="gold")
    assert [(t.prompt, t.answer) for t in splits.train] == [("right", "5")]
    assert "problem from column 'task.text', answer from 'gold'" in said


def test_rows_that_are_no_tasks_are_dropped_and_listed(tmp_path: Path) -> None:
    rows = [
        {"id": "good", "problem": "1 + 1?", "answer": "2"},
        {"id": "empty", "problem": "1 + 2?", "answer": "  "},
        {"id": "null", "problem": "1 + 3?", "answer": None},
        {"id": "nan", "problem": "1 + 4?", "answer": float("nan")},
        {"id": "two", "problem": "1 + 5?", "answer": ["6", "7"]},
        {"id": "box", "problem": "1 + 6?", "answer": "\\boxed{}"},
        {"id": "again", "problem": " 1 +  1?", "answer": "3"},
        {"problem": "", "answer": "3"},
        {"problem": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "answer": "3"},
    ]
    splits, said = open_set(write(tmp_path / "a.jsonl", rows))
    assert [t.meta["id"] for t in splits.train] == ["good"]
    assert splits.dropped == {
        "no final answer": ("empty", "null", "nan", "two", "box"),
        "repeated problem": ("again",),
        "no problem": ("line 8", "line 9"),
    }
    assert "dropped 5 (no final answer): empty, null, nan, two, box" in said
    assert "dropped 2 (no problem): line 8, line 9" in said


def test_a_solution_that_never_says_its_answer_is_no_answer(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "solution": "Because it is so. " * 20},
        {"problem": "b", "solution": "Because it is so, and for no other reason, \\boxed{\\frac{1}{2}} it is."},
        {"problem": "c", "solution": "x+1"},
        {"problem": "d"},
    ]
    splits, _ = open_set(write(tmp_path / "a.jsonl", rows))
    assert {(t.prompt, t.answer, "boxed" in t.meta.get("solution", "")) for t in splits.train} == {
        ("b", "\\frac{1}{2}", True), ("c", "x+1", False)
    }  # fmt: skip
    assert splits.dropped == {"no final answer": ("line 1", "line 4")}


@given(
    inner=st.recursive(st.sampled_from(["x", "1,2", "\\%", ""]), lambda s: st.builds("\\frac{{{}}}{{{}}}".format, s, s))
)
def test_the_last_box_keeps_its_braces(inner: str) -> None:
    text = f"first \\boxed{{no}} then \\boxed{{ {inner} }} and so on }} {{"
    assert files.final_answer(text) == (inner.strip() or None)


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("#### 72", "72"), ("a #### 1 #### -1,234.5", "-1234.5"), ("#### $1,000", "$1000"), ("#### 1,2", "1,2"),
        ("####", None), (3, "3"), (True, "True"), (-4.0, "-4"), (1e-7, "1e-07"), (float("inf"), None), ([], None),
        (b"7", None), ("\\boxed{never closed", None), ("90\\text{ square\nunits}", "90\\text{ square\nunits}"),
    ],
)  # fmt: skip
def test_final_answers(value: Any, answer: str | None) -> None:
    assert files.final_answer(value) == answer


def test_gsm8k_as_published_and_as_kept_here(tmp_path: Path) -> None:
    """The published form has the answer inside the worked solution; ours has both columns. Same task."""
    text = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips.\n#### 72"
    published = open_set(write(tmp_path / "a.jsonl", [{"question": "How many clips?", "answer": text}]))[0].train[0]
    row = {"problem": "How many clips?", "answer": "72", "solution": text}
    ours = open_set(write(tmp_path / "b.jsonl", [row]))[0].train[0]
    for task in (published, ours):
        assert (task.prompt, task.answer) == ("How many clips?", "72")
        assert task.meta["solution"] == (
            "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips.\n\\boxed{72}"
        )


def test_plain_columns_become_meta_and_nothing_else_does(tmp_path: Path) -> None:
    row = {"problem": "p", "answer": "a", "level": 3, "subject": "Algebra", "ok": True, "rate": 0.5, "nan": float("nan"),
           "tags": ["x"], "long": "x" * 5000, "completions": "c", "empty": "", "none": None}  # fmt: skip
    splits, _ = open_set(write(tmp_path / "a.jsonl", [row]))
    assert splits.train[0].meta == {"level": 3, "subject": "Algebra", "ok": True, "rate": 0.5}
    write_tasks(tmp_path / "tasks.parquet", {"mine/train": splits.train})
    assert read_tasks(tmp_path / "tasks.parquet") == {"mine/train": splits.train}


def test_heldout_from_a_second_file_keeps_leaks_out(tmp_path: Path) -> None:
    """Two of the second file's ten problems also stand in the first: those are not trained on."""
    train = write(tmp_path / "train.jsonl", ROWS[:12])
    test = write(tmp_path / "test.parquet", ROWS[10:20])
    splits, said = open_set(train, heldout=10, dev=2, heldout_source=test)
    assert {t.prompt for t in splits.heldout} == {row["problem"] for row in ROWS[10:20]}
    assert len(splits.train) == 8
    assert not {t.content for t in (*splits.train, *splits.dev)} & {t.content for t in splits.heldout}
    assert said.count("30 rows") == 0
    assert said.count("rows; problem from") == 2


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"heldout": 31}, "only 30 distinct tasks exist"),
        ({"heldout": 20, "dev": 11}, "only 30 distinct tasks exist, of which 10 are left for dev"),
        ({"heldout": 20, "dev": 5, "train": 6}, "only 30 distinct tasks exist, of which 5 are left for train"),
    ],
)
def test_a_file_that_is_too_small_says_so(tmp_path: Path, wanted: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_set(write(tmp_path / "a.jsonl", ROWS), **wanted)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"problem": "p", "answer": "a"}\n\n{"problem": \n', r"a\.jsonl:3 is not JSON"),
        ("a.jsonl", b'{"problem": "p", "answer": "a"}\n[1, 2]\n', r"a\.jsonl:2 is no JSON object"),
        ("a.jsonl", b'{"problem": "\xff"}', "a.jsonl is not UTF-8 text: byte 13"),
        ("a.jsonl", b"\n \n", "a.jsonl holds no rows"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz is not whole gzip data"),
        ("a.jsonl.gz", gzip.compress(b'{"problem": "p"}' * 99, mtime=0)[:-9], "a.jsonl.gz is not whole gzip data"),
        ("a.parquet", b"PAR1", "a.parquet is not a readable Parquet file"),
        ("a.csv", b"problem,answer\n1,2\n", "a.csv is none of .jsonl, .jsonl.gz, .parquet"),
        ("a.jsonl", b'{"q": "p", "answer": "a"}',
         r"no column for the prompt \(prompt, question, problem, input, messages\); it has q, answer: "
         r"name the right one with --set tasks\.mine\.settings\.prompt_column=q"),
        ("a.jsonl", b'{"problem": "p", "gold": "a"}', r"no column for the answer .* --set tasks\.mine\.settings\.answer_column=gold"),
        ("a.jsonl", b'{"problem": "p", "answer": null}', "no column for the answer"),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        open_set(str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt_colum": "x"}, "did you mean 'prompt_column'"),
        ({"prompt_column": "x"}, "has no column 'x'; it has problem, answer"),
        ({"verifier": "maths"}, "tasks.mine.settings.verifier"),
        ({"subset": "main"}, "settings.subset is for Hugging Face ids"),
        ({"heldout_source": "gone.jsonl"}, "there is no file gone.jsonl"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_set(write(tmp_path / "a.jsonl", ROWS), **values)


# --- Hugging Face datasets --------------------------------------------------------------------------------------------


def local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder as the hub has it: one Parquet file per split."""
    datasets = pytest.importorskip("datasets", reason="NOT CHECKED: the package datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "toy").mkdir()
    write(tmp_path / "toy" / "train-00000-of-00001.parquet", ROWS[:20])
    write(tmp_path / "toy" / "test-00000-of-00001.parquet", ROWS[18:])
    return str(tmp_path / "toy")


def test_a_hugging_face_dataset_with_its_own_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits, said = open_set(local_copy(tmp_path, monkeypatch), heldout=12, dev=3, heldout_split="test")
    assert {t.prompt for t in splits.heldout} == {row["problem"] for row in ROWS[18:]}
    assert len(splits.train) == 15
    assert "asking for the split 'test'" in said


def test_a_split_that_does_not_exist_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"\(split validation\) cannot be loaded"):
        open_set(local_copy(tmp_path, monkeypatch), split="validation")


def test_without_a_network_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local_copy(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"the dataset nobody/nothing .* cannot be loaded") as error:
        open_set("nobody/nothing")
    assert "\n" not in str(error.value)


def test_without_the_package_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install .strop\[hub\]"):
        open_set("openai/gsm8k", subset="main")


# --- the real files ---------------------------------------------------------------------------------------------------


def test_gsm8k_train_and_test() -> None:
    train, test = real("train/gsm8k_train.jsonl.gz"), real("eval/gsm8k_test.jsonl")
    splits, said = open_set(train, heldout=1319, dev=64, heldout_source=test)
    assert [len(splits.train), len(splits.dev), len(splits.heldout)] == [7409, 64, 1319]
    assert "7473 tasks from 7473 rows" in said
    assert "7473 worked solutions" in said
    for task in splits.train:
        assert task.meta["solution"].endswith(f"\n\\boxed{{{task.answer}}}")
        assert "<<" not in task.meta["solution"]


def test_math_500() -> None:
    splits, said = open_set(real("eval/math_500.jsonl"), heldout=490)
    assert len(splits.heldout) == 490
    assert (splits.train, len(splits.dropped["problem of math_500"])) == ([], 10)  # training never reads a benchmark
    assert {t.meta["level"] for t in splits.heldout} == {1, 2, 3, 4, 5}
    assert "500 worked solutions" in said
    assert any("\\frac{\\pi}{2}" in t.answer for t in splits.heldout)


def test_rows_without_answers_in_s1k() -> None:
    splits, _ = open_set(real("train/s1k.jsonl.gz"))
    assert len(splits.dropped["no final answer"]) == 330
    assert splits.dropped["no final answer"][0] == "s1k-0002"


def test_public_knights_and_knaves_as_tasks() -> None:
    path = real("logic/knights_knaves_test.jsonl")
    splits, _ = open_set(path, heldout=500, answer_column="assignment", verifier="knights")
    assert len(splits.heldout) == 500
    assert all(t.answer.count(": k") == t.meta["n_people"] for t in splits.heldout)
