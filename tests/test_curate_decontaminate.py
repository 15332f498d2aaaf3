"""What benchmarks hold leaves the pool: planted in every way at known rates; one digit or sign changed stays and is listed."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from planted import DATA, generated, layout, other_digit, other_sign, problems, reworded, table, tools
from strop.config.curation import DecontaminateStage
from strop.curate import grams
from strop.curate.decontaminate import decontaminate, index
from strop.curate.fold import fold
from strop.curate.rows import Outcome

STAGE = DecontaminateStage(do="decontaminate")
EXACT, NEAR, WORDS = "benchmark: exact", "benchmark: near", "benchmark: 13 words in a row"


def run(rows: pa.Table, against: pa.Table, **settings: float) -> Outcome:
    return decontaminate(rows, STAGE.model_copy(update=settings), tools(against))


def one(prompt: str, benchmark: str, **settings: float) -> Outcome:
    return run(table([(prompt, "1")]), table([(benchmark, "2")], source="bench"), **settings)


def reason(outcome: Outcome) -> str:
    (fate,) = outcome.dropped.values()
    return fate.reason


LONG = (
    "A train leaves the station at noon and travels north along the river for 3 hours before it stops at a small village "
    "where 45 people get on and 12 people get off"
)


def test_each_way_is_found_and_names_its_match() -> None:
    bench = table([(LONG, "2")], source="bench")["id"][0].as_py()
    exact = one("a train" + LONG[7:] + " .", LONG)
    assert (reason(exact), exact.dropped[0].detail) == (EXACT, bench)
    close = one(LONG.replace("small village", "tiny village"), LONG)
    assert reason(close) == NEAR
    assert close.dropped[0].detail.startswith(f"{bench}, overlap 0.8")
    start = " ".join(LONG.split()[:20])
    assert "3" in fold(start).marks
    quoted = one(
        f"{LONG}. "
        + "Give reasons for every step that you take, and write the result as a common fraction in lowest terms, " * 2
        + "please.",
        LONG,
    )
    assert reason(quoted) == WORDS
    assert quoted.dropped[0].detail.endswith("100% of the shorter one's words in runs")


@pytest.mark.parametrize("change", [("3 hours", "4 hours"), ("45 people", "54 people"), ("12 people", "-12 people")])
def test_other_numbers_are_a_new_problem_and_listed(change: tuple[str, str]) -> None:
    outcome = one(LONG.replace(*change), LONG)
    assert not outcome.dropped
    assert len(outcome.listed) == 1
    assert outcome.listed[0]["apart"].startswith("numbers or signs: ")
    assert outcome.listed[0]["match"].startswith("bench/")


def test_a_common_instruction_is_no_problem() -> None:
    said = "can be written in the form $\\frac{m}{n}$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
    outcome = one(
        f"The chance that two dice show the same number {said}",
        f"A circle meets a line, and the area of what it cuts off {said}",
    )
    assert not outcome.dropped
    assert [pair["kind"] for pair in outcome.listed] in ([], ["words"])


def test_short_problems_are_found_whole_or_not_at_all() -> None:
    assert reason(one("Compute $2+3$", "compute 2 + 3.")) == EXACT
    assert not one("Compute 2 + 3 and tell me why", "Compute 2 + 3.").dropped
    assert not one("Compute 2 + 3 and tell me why", "Compute 2 + 3.").listed
    assert reason(one("What is 12 plus 13 in base ten", "What is 12 plus 13 in base ten then")) == NEAR


def test_a_run_of_just_so_many_words() -> None:
    words = [
        "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu",
        "xi", "omicron",
    ]  # fmt: skip
    bench = " ".join(words[:13]) + " and then some other words of quite another kind follow here to the end"
    assert reason(one(" ".join(words[:13]) + " differs", bench)) == WORDS
    assert not one(" ".join(words[:12]) + " differs", bench).dropped
    assert reason(one(" ".join(words[:12]) + " differs", bench, ngram=12)) == "benchmark: 12 words in a row"


def test_nothing_near_is_missed() -> None:
    """Against the slow way: every pair of 60 rows with 40 benchmark rows, whose overlaps lie all around the threshold."""
    rng = random.Random(2)
    base = [
        [f"{rng.choice('abcdefgh')}{rng.choice('abcdefgh')}" for _ in range(rng.randrange(4, 40))] for _ in range(40)
    ]
    rows = [[w if rng.random() > rng.choice([0.02, 0.1, 0.2]) else "zz" for w in rng.choice(base)] for _ in range(60)]
    bench, pool = (table([(" ".join(words), str(i)) for i, words in enumerate(side)]) for side in (base, rows))
    sets = [[{tuple(w[i : i + 3]) for i in range(max(1, len(w) - 2))} for w in side] for side in (rows, base)]
    slow = {
        i for i, a in enumerate(sets[0]) for b in sets[1] if a and len(a & b) / len(a | b) >= 0.6
    }  # fmt: skip
    assert 15 < len(slow) < 60
    assert set(run(pool, bench, ngram=100).dropped) == slow


def test_rare_words_first() -> None:
    """The index holds of each row its rarest 3-grams, one more than a near problem can lack."""
    made = index(table([("a b c d e f g", "1"), ("a b c d e x y", "1")]), STAGE)
    counts = np.bincount(made.rare_owner)
    assert counts.tolist() == [3, 3]  # floor(0.4 * 5) + 1
    shared = grams.ngrams([list("abc"), list("bcd"), list("cde")], 3, shorter=True).hashes
    assert len(set(made.rare.tolist()) & set(shared.tolist())) == 1  # after the two that are its own


# --- planted ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> tuple[pa.Table, Outcome, dict[str, tuple[str, str]]]:
    """(rows, outcome, id of each plant -> (kind, id of its benchmark problem)): 150 of 800 problems are benchmark."""
    base = problems(800, seed=1)
    bench, rest = base[:150], base[150:]
    rng = random.Random(6)
    against = table(bench, source="bench")
    instruction = (
        " Think about it with great care, write down each of your steps in full, and box what you find in the end."
    )
    make = {
        "exact": layout, "near": reworded, "quoted": lambda t, _: t + instruction, "digit": other_digit, "sign": other_sign,
    }  # fmt: skip
    rows, of = [table(rest)], {}
    for number, (prompt, answer) in enumerate(bench):
        for kind, change in make.items():
            if (new := change(prompt, rng)) is not None:
                plant = table([(new, answer)], source=kind)
                rows.append(plant)
                of[plant["id"][0].as_py()] = (kind, against["id"][number].as_py())
    together = pa.concat_tables(rows)
    return together, run(together, against), of


def test_planted_contamination_goes(planted: tuple) -> None:
    rows, outcome, of = planted
    ids = rows["id"].to_pylist()
    gone = {ids[row]: fate.detail for row, fate in outcome.dropped.items()}
    recall = {
        kind: np.mean([gone.get(i, "").startswith(match) for i, (k, match) in of.items() if k == kind])
        for kind in ("exact", "near", "quoted")
    }
    print(recall, len(gone), len([i for i in gone if i not in of]))
    assert recall["exact"] >= 0.96
    assert recall["near"] >= 0.95
    assert recall["quoted"] >= 0.9
    assert len([i for i in gone if i not in of]) <= 0.005 * (len(rows) - len(of))  # the pool repeats itself


def test_one_digit_or_sign_stays_and_is_listed(planted: tuple) -> None:
    rows, outcome, of = planted
    ids = rows["id"].to_pylist()
    gone = {ids[row] for row in outcome.dropped}
    changed = {i for i, (kind, _) in of.items() if kind in ("digit", "sign")}
    assert len(changed) > 100
    assert not changed & gone
    listed = {pair["id"] for pair in outcome.listed}
    assert len(changed & listed) >= 0.85 * len(changed)


def test_the_order_of_rows_is_nothing() -> None:
    base = generated(80, seed=4)
    rng = random.Random(4)
    rows = table([(new, a) for p, a in base for new in (layout(p, rng), reworded(p, rng), other_digit(p, rng)) if new])
    against = table(base[:40], source="bench")
    first = run(rows, against)
    assert len(first.dropped) > 50
    order = np.random.default_rng(0).permutation(len(rows))
    again = run(rows.take(pa.array(order)), against)
    assert {int(order[row]): fate for row, fate in again.dropped.items()} == dict(first.dropped)
    assert {(p["id"], p["other"]) for p in again.listed} == {(p["id"], p["other"]) for p in first.listed}


def test_the_real_benchmarks_against_the_real_pool() -> None:
    """MATH-500 with what DeepScaleR holds of it, looked at by eye: its problems go, with or without another layout."""
    if not (DATA / "eval" / "math_500.jsonl").exists():
        pytest.skip(f"NOT CHECKED against the real benchmarks: no folder {DATA} (set STROP_DATA)")
    import json

    lines = (DATA / "eval" / "math_500.jsonl").read_text(encoding="utf-8").splitlines()
    against = table([(row["problem"], row["answer"]) for row in map(json.loads, lines)], source="math_500")
    found = run(against, against)
    assert len(found.dropped) == len(against)
    assert {fate.reason for fate in found.dropped.values()} == {EXACT}
    assert all(fate.detail == against["id"][row].as_py() for row, fate in found.dropped.items())


def test_rows_of_any_kind_pass() -> None:
    hostile = ["", " ", "?!", "🙂", "\0", "word " * 20_000, "9" * 5_000, "\\frac{" * 2_000, "求三角形的面积是多少"]
    rows = table([(p, "1") for p in hostile])
    outcome = run(rows, rows)
    assert set(outcome.dropped) == {5, 6, 7, 8}  # what has no letter, digit or operator is no benchmark's problem
    assert not run(rows, rows.slice(0, 0)).dropped
    assert not run(rows.slice(0, 0), rows).dropped
