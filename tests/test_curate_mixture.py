"""Held-out rows first, then shares or counts: the same for any order of rows, and nested where more is asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from curation import by_prompt, table, tools
from strop.config.curation import Curation, MixtureStage
from strop.curate.mixture import mixture
from strop.curate.rows import Fate, Outcome
from strop.record import UserError
from strop.tasks import benchmarks


def stage(**keys: Any) -> MixtureStage:
    return MixtureStage.model_validate({"do": "mixture"} | keys)


def rated(*rates: float, source: str = "pool") -> pa.Table:
    return table(
        [(f"{source} problem {i}", str(i)) for i in range(len(rates))], source=source,
        meta=[{"pass_rate": rate} for rate in rates],
    )  # fmt: skip


POOL = rated(*([0.125] * 40 + [0.5] * 30 + [0.875] * 30))  # 40 hard, 30 middle, 30 easy


def trained(rows: pa.Table, found: Outcome) -> list[dict[str, Any]]:
    return [
        row for place, row in enumerate(rows.to_pylist()) if place not in found.dropped and place not in found.changed
    ]


def bands(rows: pa.Table, found: Outcome) -> Counter[str]:
    name = {"0.125": "hard", "0.5": "middle", "0.875": "easy"}
    return Counter(name[row["meta"].split()[1].strip("}")] for row in trained(rows, found))


def heldout(rows: pa.Table, found: Outcome) -> set[str]:
    assert all(change == {"split": "heldout"} for change in found.changed.values())
    return {rows["prompt"][place].as_py() for place in found.changed}


def test_without_targets_all_rows_are_trained_on(tmp_path):
    found = mixture(POOL, stage(), tools(tmp_path))
    assert found == Outcome(dropped={}, notes=("100 rows to train on and 0 held out, of 100",))


def test_shares_of_a_size(tmp_path):
    found = mixture(POOL, stage(size=40, easy=0.25, middle=0.25, hard=0.5), tools(tmp_path))
    assert bands(POOL, found) == {"hard": 20, "middle": 10, "easy": 10}
    assert set(found.dropped.values()) == {Fate(reason="not drawn", detail=band) for band in ("hard", "middle", "easy")}
    assert found.notes == ("40 rows to train on and 0 held out, of 100",)


def test_as_many_as_the_shares_allow(tmp_path):
    found = mixture(POOL, stage(easy=0.5, hard=0.5), tools(tmp_path))
    assert bands(POOL, found) == {"hard": 30, "easy": 30}


def test_thresholds_belong_to_easy_and_not_to_hard(tmp_path):
    rows = rated(0.25, 0.5, 0.75)
    found = mixture(rows, stage(middle=1.0, easy_from=0.75, hard_below=0.25), tools(tmp_path))
    assert [row["prompt"] for row in trained(rows, found)] == ["pool problem 0", "pool problem 1"]


def test_a_shortage_takes_what_there_is_and_says_so(tmp_path):
    found = mixture(POOL, stage(size=4000, easy=0.25, hard=0.75), tools(tmp_path))
    assert bands(POOL, found) == {"hard": 40, "easy": 30}
    assert found.notes[:2] == ("asked for 1,000 easy ones, there are 30", "asked for 3,000 hard ones, there are 40")
    assert mixture(POOL, stage(size=101), tools(tmp_path)).notes[0] == "asked for 101 rows, there are 100"


def test_so_many_of_each_source(tmp_path):
    rows = pa.concat_tables([table([(f"{s} {i}", "5") for i in range(n)], source=s) for s, n in (("a", 9), ("b", 4), ("c", 5))])  # fmt: skip
    found = mixture(rows, stage(by_source={"a": 3, "b": 6, "d": 1}), tools(tmp_path))
    assert Counter(row["source"] for row in trained(rows, found)) == {"a": 3, "b": 4}
    assert Fate(reason="not drawn", detail="c") in found.dropped.values()
    assert found.notes[0] == "asked for 6 rows of 'b', there are 4"
    assert found.notes[-1] == "asked for 1 rows of 'd', and there are none"


def test_held_out_rows_depend_on_neither_seed_nor_size(tmp_path):
    alone = heldout(POOL, mixture(POOL, stage(heldout=12), tools(tmp_path)))
    assert len(alone) == 12
    for seed, keys in ((1, {}), (0, {"size": 5}), (2, {"size": 50, "easy": 0.5, "hard": 0.5})):
        found = mixture(POOL, stage(heldout=12, **keys), tools(tmp_path, seed=seed))
        assert heldout(POOL, found) == alone
        assert found.dropped.keys().isdisjoint(found.changed)
    assert alone < heldout(POOL, mixture(POOL, stage(heldout=20), tools(tmp_path)))
    fewer = POOL.filter(pa.array([row["prompt"] not in alone for row in POOL.to_pylist()]))
    assert heldout(fewer, mixture(fewer, stage(heldout=12), tools(tmp_path))).isdisjoint(alone)


def test_a_larger_set_holds_the_smaller_and_a_seed_draws_another(tmp_path):
    draw = lambda **o: {r["id"] for r in trained(POOL, mixture(POOL, stage(size=o.pop("size")), tools(tmp_path, **o)))}  # noqa: E731
    assert draw(size=10) < draw(size=30)
    assert draw(size=10) == draw(size=10)
    assert draw(size=10) != draw(size=10, seed=1)


def test_the_order_of_rows_decides_nothing(tmp_path):
    turned = POOL.take(pa.array(list(range(0, 100, 2)) + list(range(99, 0, -2))))
    for keys in ({"heldout": 7, "size": 20}, {"heldout": 7, "easy": 0.3, "middle": 0.3, "hard": 0.4}):
        one, other = (mixture(rows, stage(**keys), tools(tmp_path)) for rows in (POOL, turned))
        assert by_prompt(POOL, one) == by_prompt(turned, other)
        assert one.notes == other.notes


def test_a_problem_is_on_one_side_whatever_its_answer_and_source(tmp_path):
    """Twins of every problem: other answer, other source, other white space."""
    first = table([(f"What is {i} + 1?", str(i + 1)) for i in range(30)], source="a")
    second = table([(f"What  is {i} +\n1?", str(i)) for i in range(30)], source="b")
    rows = pa.concat_tables([first, second])
    found = mixture(rows, stage(heldout=10), tools(tmp_path))
    held = {" ".join(prompt.split()) for prompt in heldout(rows, found)}
    assert len(held) == len(found.changed) == 10
    assert Counter(fate.reason for fate in found.dropped.values()) == {"the problem of a held-out row": 10}
    assert held.isdisjoint(" ".join(row["prompt"].split()) for row in trained(rows, found))


def test_more_held_out_than_there_is(tmp_path):
    found = mixture(POOL, stage(heldout=101), tools(tmp_path))
    assert len(found.changed) == 100
    assert found.notes[0] == "asked for 101 held-out problems, there are 100, so none is left to train on"
    empty = POOL.slice(0, 0)
    assert mixture(empty, stage(heldout=1, size=1), tools(tmp_path)).dropped == {}


def test_rows_without_a_pass_rate_are_told(tmp_path):
    rows = pa.concat_tables([POOL, table([("new", "5"), ("odd", "6")], meta=[{}, {"pass_rate": "much"}])])
    with pytest.raises(UserError, match=r"2 of 102 rows have none, such as pool/\w+; add a stage that does difficulty"):
        mixture(rows, stage(easy=1.0), tools(tmp_path))
    assert mixture(rows, stage(size=5), tools(tmp_path)).notes == ("5 rows to train on and 0 held out, of 102",)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"easy": 0.5, "hard": 0.4}, "the shares easy, hard add up to 0.9; make it 1"),
        ({"easy": 1.0, "easy_from": 0.2}, "set hard_below to easy_from or less"),
        ({"easy_from": 0.9}, "easy_from has no effect without shares"),
        ({"by_source": {"a": 1}, "size": 3}, "so size has no effect"),
        ({"by_source": {"a": 1}, "easy": 1.0}, "so easy has no effect"),
    ],
)
def test_what_contradicts_itself_is_refused(keys, words):
    with pytest.raises(ValueError, match=words):
        stage(**keys)


@pytest.mark.parametrize("name", ["open-s1", "open-deepscaler", "open-rs"])
def test_the_recipes_of_the_paper_s_sets_are_valid(name):
    path = Path(__file__).resolve().parent.parent / "recipes" / f"curate-{name}.yaml"
    curation = Curation.model_validate(yaml.safe_load(path.read_text()))
    assert Curation.model_validate(curation.model_dump(mode="json")) == curation
    assert set(curation.against) <= set(benchmarks.BENCHMARKS)


def test_a_source_that_no_file_has_is_refused():
    pool = [{"source": "a.jsonl", "name": "open-s1"}]
    with pytest.raises(ValueError, match="did you mean 'open-s1'"):
        Curation.model_validate({"pool": pool, "stages": [{"do": "mixture", "by_source": {"open-s2": 3}}]})
