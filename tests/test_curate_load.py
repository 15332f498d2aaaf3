"""Loading a pool: any columns and formats, licences, hostile rows set aside with a reason, and an order that no file decides."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation import Said
from strop.config import parse_curation
from strop.curate import load, table
from strop.curate.read import sources
from strop.curate.rows import SCHEMA
from strop.record import UserError, content_hash
from strop.watch import Watch

DATA = Path(os.environ.get("STROP_DATA", Path(__file__).parents[2] / "shared" / "data"))
GOOD = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(20)]


def write(path: Path, rows: list[Any]) -> str:
    """By suffix; bytes are lines as they are."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return str(path)
    data = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return str(path)


def loaded(folder: Path, *pool: Any, **more: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Any]]:
    """Rows, fates and facts."""
    curation = parse_curation({"pool": list(pool), "stages": [{"do": "filter"}], **more})
    folder.mkdir(parents=True)
    watch = Watch(Said(), live=False)
    load.load(sources(curation, watch.say), curation.verifier, folder, watch=watch)
    facts = json.loads((folder / "facts.json").read_text())
    return table.read(folder / "rows.arrow").to_pylist(), table.read(folder / "fates.arrow").to_pylist(), facts


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_and_any_order_give_the_same_rows(tmp_path: Path, name: str) -> None:
    rows, fates, facts = loaded(tmp_path / "one", write(tmp_path / "a.jsonl", GOOD))
    mixed = random.Random(0).sample(GOOD, len(GOOD))
    assert loaded(tmp_path / "two", write(tmp_path / name, mixed))[:2] == (rows, fates)
    assert not fates
    assert [r["id"] for r in rows] == sorted(f"a/{content_hash(r['problem'], r['answer'])}" for r in GOOD)
    assert {(r["prompt"], r["answer"]) for r in rows} == {(r["problem"], r["answer"]) for r in GOOD}
    assert {(r["source"], r["verifier"], r["licence"], r["meta"]) for r in rows} == {("a", "math", "", "{}")}
    assert facts[0]["columns"] == {"problem": "problem", "answer": "answer"}
    assert (facts[0]["rows"], len(facts[0]["revision"])) == (20, 64)


def test_bytes_do_not_depend_on_order_or_on_how_rows_lie_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than two batches, with repeated rows that differ in what else they say."""
    monkeypatch.setattr(table, "BATCH", 50)
    rows = [{"problem": f"{i}?", "answer": "1", "note": i % 3, "id": f"r{i % 3}"} for i in range(3 * table.BATCH)]
    rows += [{"problem": f" {i}? ", "answer": "1", "note": 7} for i in range(60)]
    files = []
    for name in ("one", "two"):
        random.Random(name).shuffle(rows)
        loaded(tmp_path / name, {"source": write(tmp_path / f"{name}.jsonl", rows), "name": "pool"})
        files.append([(tmp_path / name / part).read_bytes() for part in ("rows.arrow", "fates.arrow")])
    assert files[0] == files[1]
    assert len(table.read(tmp_path / "one" / "rows.arrow")) == 3 * table.BATCH
    assert len(table.read(tmp_path / "one" / "fates.arrow")) == 60


HOSTILE: list[tuple[Any, str]] = [
    (b'{"problem": "2 + 3?", ', "not JSON"),
    (b"\xff\xfe\x00{", "not UTF-8"),
    ('{"problem": "Größe?", "answer": "1"}'.encode("latin-1"), "not UTF-8"),
    (b"[" * 100_000, "not JSON"),
    (b'{"problem": "n?", "answer": ' + b"9" * 5000 + b"}", "not JSON"),
    (["2 + 3?", "5"], "not an object"),
    (b"null", "not an object"),
    (b'"2 + 3?"', "not an object"),
    ({"problem": 5, "answer": "5"}, "problem is no text"),
    ({"problem": {"text": "2?"}, "answer": "5"}, "problem is no text"),
    ({"problem": [{"role": "user"}], "answer": "5"}, "problem is no text"),
    ({"problem": None, "answer": "5"}, "no problem"),
    ({"problem": "  ", "answer": "5"}, "no problem"),
    ({"answer": "5"}, "no problem"),
    ({}, "no problem"),
    ({"problem": "2 + 3?"}, "no final answer"),
    ({"problem": "2 + 3?", "answer": ["4", "5"]}, "no final answer"),
    ({"problem": "2 + 3?", "answer": ""}, "no final answer"),
    (b'{"problem": "2 + 3?", "answer": NaN}', "no final answer"),
    (b'{"problem": "deep?", "answer": ' + b"[" * 900 + b'"5"' + b"]" * 900 + b"}", ""),
    ({"problem": "a\0b?", "answer": "5"}, "null byte"),
    ({"problem": "ab?", "answer": "5\0"}, "null byte"),
    ({"problem": "half \ud800?", "answer": "5"}, "not UTF-8"),
    ({"problem": "long? " * 400_000, "answer": "5"}, "problem too long"),
    ({"problem": "long answer?", "answer": "5" * 20_000}, "answer too long"),
    (b'{"problem": "' + b"x" * (17 << 20) + b'", "answer": "5"}', "line too long"),
]


def test_a_hostile_row_is_set_aside_with_its_reason_and_costs_no_other(tmp_path: Path) -> None:
    rows = [*GOOD, *(row for row, _ in HOSTILE)]
    random.Random(1).shuffle(rows)
    rows.insert(3, b"")  # an empty line is no row
    kept, fates, facts = loaded(tmp_path / "out", write(tmp_path / "a.jsonl.gz", rows))
    assert {r["prompt"] for r in kept} >= {r["problem"] for r in GOOD}
    wanted = Counter(reason for _, reason in HOSTILE if reason)
    assert Counter(fate["reason"] for fate in fates) + Counter({"": len(kept) - len(GOOD)}) >= wanted
    assert len(kept) + len(fates) == facts[0]["rows"] == len(GOOD) + len(HOSTILE)
    assert {fate["stage"] for fate in fates} == {"load"}
    assert all(len(fate["prompt"]) <= 200 and fate["id"].startswith("a/") for fate in fates)


def test_hostile_columns_beside_a_good_problem_do_no_harm(tmp_path: Path) -> None:
    row = {
        "problem": "2?", "answer": "2", "note": "half \ud800", "nul": "a\0b", "deep": {"a": [1]}, "license": "MIT\ud800", "big": 2**80,
    }  # fmt: skip
    kept, _, _ = loaded(tmp_path / "out", write(tmp_path / "a.jsonl", [row, *GOOD]))
    mine = next(r for r in kept if r["prompt"] == "2?")
    assert mine["licence"] == "MIT?"
    assert json.loads(mine["meta"]) == {"note": "half ?", "nul": "a\0b", "big": 2**80}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.binary(max_size=60) | st.fixed_dictionaries({"problem": json_values, "answer": json_values}), max_size=8
    )
)
def test_no_row_crashes_and_none_is_lost(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("any")
    lines = [row.replace(b"\n", b"") if isinstance(row, bytes) else row for row in rows]
    lines = [line for line in lines if not isinstance(line, bytes) or line.removeprefix(b"\xef\xbb\xbf").strip()]
    kept, fates, facts = loaded(folder / "out", write(folder / "a.jsonl", [*lines, *GOOD]))
    assert len(kept) + len(fates) == facts[0]["rows"] == len(lines) + len(GOOD)


def test_parquet_that_holds_no_text(tmp_path: Path) -> None:
    bad = pa.array([b"2?", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"problem": bad, "answer": ["2", "3"]}), tmp_path / "a.parquet")
    kept, fates, _ = loaded(tmp_path / "out", str(tmp_path / "a.parquet"))
    assert ([r["prompt"] for r in kept], [f["reason"] for f in fates]) == (["2?"], ["not UTF-8"])


def test_licences_come_from_the_row_then_from_the_recipe(tmp_path: Path) -> None:
    rows = [{"problem": "1?", "answer": "1", "license": "MIT"}, {"problem": "2?", "answer": "2", "licence": " "}]
    path = write(tmp_path / "a.jsonl", [*rows, {"problem": "3?", "answer": "3", "licence": "CC0"}])
    kept, _, facts = loaded(tmp_path / "out", {"source": path, "licence": "Apache-2.0", "name": "mine"})
    assert {r["prompt"]: r["licence"] for r in kept} == {"1?": "MIT", "2?": "Apache-2.0", "3?": "CC0"}
    assert facts[0]["licences"] == {"Apache-2.0": 1, "CC0": 1, "MIT": 1}
    assert {r["source"] for r in kept} == {"mine"}


def test_a_column_is_taken_by_what_most_rows_fill_not_by_one_stray_row(tmp_path: Path) -> None:
    stray = [{"prompt": "stray?", "ground_truth": "1"}]
    rows = [{"question": f"{i}?", "solution": f"Because.\n#### {i}", "level": 2} for i in range(9)]
    kept, fates, facts = loaded(tmp_path / "out", write(tmp_path / "a.jsonl", [*stray, *rows]))
    assert facts[0]["columns"] == {"problem": "question", "answer": "solution"}
    assert (len(kept), [f["reason"] for f in fates]) == (9, ["no problem"])
    long = [{**row, "solution": "word " * 9 + row["solution"]} for row in rows]
    kept, _, _ = loaded(tmp_path / "long", write(tmp_path / "b.jsonl", long))
    assert json.loads(kept[0]["meta"])["solution"].endswith("\\boxed{" + kept[0]["answer"] + "}")
    assert json.loads(kept[0]["meta"])["level"] == 2


def test_equal_rows_of_two_sources_both_stay_and_of_one_source_one(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{name}.jsonl", [GOOD[0], GOOD[0], GOOD[1]]) for name in "ab")
    kept, fates, _ = loaded(tmp_path / "out", a, b)
    assert sorted(r["source"] for r in kept) == ["a", "a", "b", "b"]
    assert [(f["source"], f["reason"]) for f in fates] == [("a", "repeated row"), ("b", "repeated row")]
    again = loaded(tmp_path / "turned", b, a)
    assert again[:2] == (kept, fates)


@pytest.mark.parametrize(
    ("pool", "more", "parts"),
    [
        (["none.jsonl"], {}, ["no file", "none.jsonl", "did you mean 'one.jsonl'"]),
        (["one.jsonl", "sub/one.jsonl"], {}, ["two sources", "'one'", "name"]),
        (["one.txt"], {}, ["one.txt", ".jsonl"]),
        (["empty.jsonl"], {}, ["empty holds no rows"]),
        (["junk.jsonl"], {}, ["junk holds no row that can be read"]),
        (["torn.jsonl.gz"], {}, ["torn.jsonl.gz", "not whole", "fetch it again"]),
        (["torn.parquet"], {}, ["not a readable Parquet file"]),
        (["odd.jsonl"], {}, ["no column for the prompt", "it has a, b", "prompt_column"]),
        ([{"source": "one.jsonl", "settings": {"answer_column": "x"}}], {}, ["no column 'x'", "answer_column"]),
        ([{"source": "one.jsonl", "settings": {"prompt_colum": "x"}}], {}, ["did you mean 'prompt_column'"]),
        ([{"source": "one.jsonl", "settings": {"verifier": "math"}}], {}, ["the recipe's key verifier"]),
        ([{"source": "one.jsonl", "settings": {"subset": "main"}}], {}, ["is for Hugging Face ids"]),
    ],
)
def test_a_source_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: list[Any], more: dict[str, Any], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("one.jsonl", "sub/one.jsonl", "one.txt"):
        write(tmp_path / name, GOOD)
    write(tmp_path / "odd.jsonl", [{"a": 1, "b": 2}])
    write(tmp_path / "junk.jsonl", [b"junk", b"[]"])
    (tmp_path / "empty.jsonl").touch()
    whole = gzip.compress(os.urandom(4000))
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError) as caught:
        loaded(tmp_path / "out", *pool, **more)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def against(*names: str, data: str = "") -> pa.Table:
    stages = [{"do": "decontaminate"}]
    curation = parse_curation({"pool": ["a.jsonl"], "against": list(names), "data": data, "stages": stages})
    return load.against(curation, Watch(Said(), live=False))


def test_a_problem_without_an_answer_must_not_be_seen_either(tmp_path: Path) -> None:
    rows = [*GOOD[:2], {"problem": "No answer yet?", "answer": None}, b"junk", {"problem": ""}]
    found = against(write(tmp_path / "held.jsonl", rows))
    assert found.schema == SCHEMA
    assert set(found.column("prompt").to_pylist()) == {"What is 0 + 0?", "What is 1 + 1?", "No answer yet?"}
    with pytest.raises(UserError, match="did you mean 'math_500'"):
        against("math500")


def test_real_benchmarks_and_all_of_them() -> None:
    if not DATA.exists():
        pytest.skip(f"NOT CHECKED: no folder {DATA} (set STROP_DATA)")
    counts = Counter(against("all", data=str(DATA)).column("source").to_pylist())
    assert counts == {
        "aime_2024": 30, "amc23": 40, "math_500": 500, "minerva_math": 272, "olympiadbench": 338, "gsm8k": 1319,
        "knights_knaves": 500, "humaneval": 164, "mbpp": 257,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rows", "aside"),
    [("aime_1983_2023", 975, 0), ("s1k", 1000, 330)],
)
def test_real_pools_load_whole(tmp_path: Path, name: str, rows: int, aside: int) -> None:
    """Rows without an answer are as many as the data's own README says."""
    path = DATA / "train" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"NOT CHECKED against {name}: no folder {DATA} (set STROP_DATA)")
    kept, fates, facts = loaded(tmp_path / "out", str(path))
    reasons = Counter(fate["reason"] for fate in fates)
    assert (facts[0]["rows"], reasons["no final answer"]) == (rows, aside)
    assert len(kept) == rows - sum(reasons.values())
    assert set(reasons) <= {"no final answer", "repeated row"}
