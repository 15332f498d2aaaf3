"""Curation on a Ray cluster of this machine: the same findings, files of the same bytes, and failures in one sentence."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from curation import Said
from stages_for_tests import fails, lengths, pids
from strop import curate
from strop.config import parse_curation
from strop.curate.cluster import LOCAL, Cluster
from strop.curate.measure import InProcess
from strop.curate.rows import SCHEMA, Stopped
from strop.record import UserError
from strop.watch import Watch

ray = pytest.importorskip("ray", reason="the extra ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Its processes find the tests' own modules, as a cluster's machines find what is installed there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        opened = Cluster(LOCAL, Watch(Said(), live=False))
    with opened:
        yield opened


@pytest.fixture
def many() -> pa.Table:
    return pa.Table.from_pylist(
        [dict.fromkeys(SCHEMA.names, "") | {"id": f"s/{i:04}", "prompt": "x" * (i % 37) + str(i)} for i in range(5000)], schema=SCHEMA
    )  # fmt: skip


def test_a_cluster_finds_what_one_process_finds(cluster: Cluster, many: pa.Table) -> None:
    assert cluster(lengths, many, None, what="a") == InProcess(Watch(Said(), live=False))(lengths, many, None, what="a")
    found = cluster(pids, many.slice(7, 4000), None, what="b")
    assert str(os.getpid()) not in set(map(str, found.column("pid").to_pylist()))
    assert set(found.column("threads").to_pylist()) == {"1"}
    few = cluster(pids, many.slice(0, 20), None, what="few")
    assert set(few.column("pid").to_pylist()) == {os.getpid()}


def test_what_fails_there_is_said_here(cluster: Cluster, many: pa.Table) -> None:
    with pytest.raises(UserError, match="pip install something"):
        cluster(fails, many, {"mistake": many.column("prompt")[3333].as_py()}, what="lengths")
    with pytest.raises(RuntimeError, match=r"lengths: failed on the cluster(.|\n)*no such thing"):
        cluster(fails, many, {"raise": many.column("prompt")[3333].as_py()}, what="lengths")
    assert len(cluster(fails, many, {}, what="again")) == 5000


def test_a_stop_is_heard_between_two_batches(cluster: Cluster, many: pa.Table) -> None:
    asked = iter([False])
    with Cluster(LOCAL, Watch(Said(), live=False), lambda: next(asked, True)) as second, pytest.raises(Stopped):
        second(lengths, many, None, what="lengths")
    assert ray.is_initialized()  # the first one's


def test_an_address_where_nobody_answers_is_one_sentence() -> None:
    if ray.is_initialized():
        ray.shutdown()
    for address in ("auto", "127.0.0.1:9", "ray://127.0.0.1:9"):
        with pytest.raises(UserError, match=rf"no Ray cluster answers at '{address}'.*ray start --head"):
            Cluster(address, Watch(Said(), live=False))


def test_the_files_are_the_same_bytes(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [
        "train",
        "leaves",
        "city",
        "at",
        "noon",
        "speed",
        "meets",
        "other",
        "track",
        "hours",
        "before",
        "after",
        "how",
        "far",
        "miles",
        "cost",
        "each",
    ]
    texts = [f"Find {' '.join(rng.choices(words, k=25))} {rng.randrange(1000)}." for _ in range(1600)]
    rows = [{"problem": text, "answer": str(rng.randrange(50))} for text in texts]
    rows += [{"problem": "Prove that two is even.", "answer": "2"}]
    rows += [{**row, "problem": row["problem"].replace("Find", "  find")} for row in rows[:200]]
    rows += [{"problem": text[:-1] + " now.", "answer": "7"} for text in texts[200:300]]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[300:340]))
    recipe = {
        "pool": [str(tmp_path / "pool.jsonl")], "against": [str(tmp_path / "held.jsonl")],
        "stages": [{"do": name} for name in ("verifiable", "duplicates", "decontaminate", "filter")],
    }  # fmt: skip
    curation = parse_curation(recipe, "recipe")
    files = []
    for where in ("", LOCAL):
        summary = curate.run(
            curation, out=tmp_path / f"out{where}", watch=Watch(Said(), live=False), workers=1, ray=where
        )
        assert {stage["name"]: stage["rows_in"] > stage["rows_out"] for stage in summary["stages"]} == {
            "load": False, "verifiable": True, "duplicates": True, "decontaminate": True, "filter": False,
        }  # fmt: skip
        files.append(summary["files"])
    assert files[0] == files[1]
