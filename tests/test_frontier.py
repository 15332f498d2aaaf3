"""What a correct answer costs: by hand, and of a real run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strop import frontier, stats
from strop.frontier import Point
from strop.record import UserError, read_rollouts
from strop.report import frontier as pictures
from strop.stats import Estimate
from test_train import SMALL, evaluation, recipe, run, unchecked_shapes


def point(name: str, way: str, accuracy: float, tokens: float, **more: float) -> Point:
    costs = {"tokens": tokens, **more}
    return Point(
        evaluation=name, way=way, tasks="t", num_tasks=10, accuracy=Estimate(value=accuracy, low=accuracy, high=accuracy),
        per_answer=costs, beaten_by={},
        per_correct={w: Estimate(value=c / accuracy, low=0.9 * c / accuracy, high=1.1 * c / accuracy) for w, c in costs.items()},
    )  # fmt: skip


def test_a_price_by_hand() -> None:
    cost, right = [10.0, 20.0, 30.0, 40.0], [1.0, 0.0, 1.0, 0.5]
    found = stats.price(cost, right)
    assert found.value == pytest.approx(100 / 2.5)
    assert found.low < 40 < found.high
    rng = np.random.default_rng(1)
    drawn = np.array([rng.integers(4, size=4) for _ in range(20_000)])
    with np.errstate(divide="ignore"):
        prices = np.sort(np.array(cost)[drawn].sum(1) / np.array(right)[drawn].sum(1))
    outside = stats.intervals.tail(4)
    assert found.low == pytest.approx(prices[int(outside * len(prices))], rel=0.05)
    assert stats.price([1.0, 1.0], [0.0, 0.0]).value == math.inf


def test_who_is_beaten_by_whom() -> None:
    small, vote = point("small", "greedy", 0.5, 10.0), point("small", "vote of 4", 0.6, 40.0)
    large, waste = point("large", "greedy", 0.8, 30.0), point("large", "vote of 4", 0.8, 120.0)
    every = [small, vote, large, waste]
    found = [frontier._against(p, every).beaten_by for p in every]
    assert found == [{}, {"tokens": "large, greedy"}, {}, {"tokens": "large, greedy"}]


def test_the_sentences_that_follow() -> None:
    small = point("small", "greedy", 0.5, 10.0, seconds=1.0, **{"joules (modelled)": 5.0})
    large = point("large", "greedy", 0.8, 96.0, seconds=1.7, **{"joules (modelled)": 500.0})
    said = "\n".join(frontier.lines([small, large]))
    assert (
        "a correct answer of small, greedy, takes 1/6 of the tokens of large, greedy, which is right in 80.0% against 50.0%"
        in said
    )
    assert "in seconds the cheapest correct answer" in said  # 2 and 2.1 s: their intervals overlap
    assert "not told apart" in said
    assert "joules (modelled): not measured, so nothing is said of energy" in said
    assert "of the joules" not in said
    counted = [
        point(n, "greedy", a, 10.0, **{"joules (counter)": j}) for n, a, j in (("small", 0.5, 5.0), ("large", 0.8, 80.0))
    ]  # fmt: skip
    assert "takes 1/10 of the joules (counter) of large" in "\n".join(frontier.lines(counted))
    integrated = [
        point(n, "greedy", a, 10.0, **{"joules (integrated)": j}) for n, a, j in (("a", 0.5, 5.0), ("b", 0.8, 80.0))
    ]
    assert "of the joules" not in "\n".join(frontier.lines(integrated))  # power times time is not counted
    nobody = [
        replace(p, per_correct={"tokens": Estimate(value=math.inf, low=math.inf, high=math.inf)})
        for p in (small, large)
    ]
    assert "cheapest" not in "\n".join(frontier.lines(nobody))


@pytest.fixture(scope="module")
def answered(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier")
    with unchecked_shapes():
        run(recipe(folder, tiny_model, steps=2, rl=SMALL, then=[evaluation("again", samples=0)]), folder / "run")
    return folder / "run"


def test_the_costs_of_a_real_run(answered: Path) -> None:
    points = frontier.run(f"{answered}:before", f"{answered}:again")
    assert [(p.evaluation.rpartition(":")[2], p.way) for p in points] == [
        ("before", "greedy"), ("before", "one sample"), ("before", "vote of 4"), ("again", "greedy"),
    ]  # fmt: skip
    rows = [json.loads(line) for line in (answered / "metrics.jsonl").read_text().splitlines()]
    for place, kind, k in ((0, "greedy", 1), (1, "samples", 1), (2, "samples", 4)):
        answers = read_rollouts(answered / "rollouts" / "before" / f"{kind}.parquet")
        tokens = sum(r.num_sampled for r in answers) / len(answers)
        (took,) = [row for row in rows if row["kind"] == "pass" and (row["stage"], row["pass"]) == ("before", kind)]
        found = points[place]
        assert found.per_answer["tokens"] == pytest.approx(k * tokens)
        assert found.per_answer["seconds"] == pytest.approx(k * took["eval_s"] / len(answers))
        if k == 1:
            right = sum(r.correct for r in answers) / len(answers)
            assert found.accuracy.value == pytest.approx(right)
            assert found.per_correct["tokens"].value == pytest.approx(tokens / right)
        assert {w for w in found.per_answer if w.startswith("joules")} == {
            f"joules ({key.removesuffix('_j')})" for key in took if key.endswith("_j")
        }
    assert all(p.num_tasks == 48 for p in points)
    assert frontier.lines(points)
    json.dumps(frontier.as_json(points), allow_nan=False)
    assert pictures.figure(points).startswith("<svg")


def test_evaluations_without_a_common_task_set_are_refused(answered: Path, tiny_model: Path, tmp_path: Path) -> None:
    job = recipe(tmp_path, tiny_model)
    other = job.model_copy(update={"stages": [job.stages[1]]})
    data = json.loads(other.model_dump_json(by_alias=True))
    data["tasks"] = {"odd": data["tasks"]["parity"]}
    data["stages"][0] |= {"tasks": ["odd"], "from": "base"}
    from strop.config import parse_recipe

    with unchecked_shapes():
        run(parse_recipe(data), tmp_path / "run")
    with pytest.raises(UserError, match="no task set in common"):
        frontier.run(f"{answered}:before", str(tmp_path / "run"))
