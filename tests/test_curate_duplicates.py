"""One problem, one row: planted duplicates are found, one digit or sign changed never goes, and the order of rows is nothing."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from planted import generated, layout, other_digit, other_sign, problems, reworded, table, tools
from strop.config.curation import DuplicatesStage
from strop.curate import grams, near
from strop.curate.duplicates import EXACT, MOST_LISTED, NEAR, OTHER_ANSWER, duplicates
from strop.curate.fold import fold
from strop.curate.rows import SCHEMA, Outcome

GOLDEN = ["1113972627277138870", "15666034217766196090"]  # a hash of words, and a sum of bands
STAGE = DuplicatesStage(do="duplicates")


def run(rows: pa.Table, **settings: float) -> Outcome:
    return duplicates(rows, STAGE.model_copy(update=settings), tools())


def fates(rows: pa.Table, outcome: Outcome) -> dict[str, tuple[str, str]]:
    ids = rows["id"].to_pylist()
    return {ids[row]: (fate.reason, fate.detail) for row, fate in outcome.dropped.items()}


def pool(*rows: tuple[str, str]) -> pa.Table:
    return table(rows)


# --- folding ----------------------------------------------------------------------------------------------------------

SAME = [
    (r"Find $\dfrac{1}{2}+x^{2}$.", r"find \(\frac12 + x^2\)"),
    ("Is 1,000 < n?", "Is $1{,}000<n$?"),
    (r"$a \leq b$", "a ≤ b"),
    (r"$\frac{2}{\sqrt{3}}$", r"2/\sqrt{3}"),
    ("A $2$-digit number", "a 2-digit number"),
    (r"in cube $ABCD$ of side $xy$", r"in cube $A B C D$ of side $x y$"),
    ("x − 3 and x²", "x - 3 and $x^2$"),
    ("**all** of them: 2**3", "all of them: 2^3"),
]  # fmt: skip
DIFFERENT = [
    ("x+3", "x-3"), ("12 apples", "13 apples"), ("1/2", "2/1"), ("a < b", "a > b"), ("x = 1.5", "x = 15"), ("5! ways", "5 ways"),
    ("two apples", "three apples"), (r"\frac{x+1}{2}", "x + 1/2"), ("2^{10}", "2 10"), ("0.3", r"0.\overline{3}"),
    ("50%", "50"), ("a \\le 3", "a < 3"), ("half of it", "twice it"), ("|x| = 2", "x = 2"), ("1, 23", "12, 3"), ("3 - 4", "3, 4"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_layout_is_no_number(one: str, other: str) -> None:
    assert fold(one).marks == fold(other).marks
    assert fold(one).words == fold(other).words


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_numbers_and_signs_are_read(one: str, other: str) -> None:
    assert fold(one).marks != fold(other).marks


def test_a_hyphen_is_no_minus() -> None:
    assert (
        fold("A 9-kilometer walk on the x-axis, non-negative - and so on --- to n-1 and 3-sin x").marks == "9 - 1 3 -"
    )


# --- overlaps by hand -------------------------------------------------------------------------------------------------


def test_overlap_and_estimate_by_hand() -> None:
    words = [f"w{i}" for i in range(103)]
    other = [*words[:100], "a", "b", "c"]  # 101 trigrams each: 98 shared, 104 in all
    sets = grams.ngrams([words, other], 3, shorter=True)
    exact = grams.overlaps(sets, np.array([0]), sets, np.array([1]))[0]
    assert exact == pytest.approx(98 / 104)
    signatures = grams.bands(sets, 1024, 1)
    assert np.mean(signatures[0] == signatures[1]) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 1024))


def test_bands_propose_as_often_as_the_formula_says() -> None:
    """200 pairs with overlap 0.6: 1 - (1 - 0.6^r)^b of them, within four standard deviations."""
    rng = random.Random(1)
    rows = []
    for _ in range(200):
        common = [f"{rng.random()}" for _ in range(60)]
        rows += [[*common, *(f"{rng.random()}" for _ in range(20))] for _ in range(2)]
    num, long = grams.banding(0.6, 128)
    found = grams.bands(grams.ngrams(rows, 1, shorter=True), num, long)
    share = np.mean((found[::2] == found[1::2]).any(axis=1))
    expected = 1 - (1 - 0.6**long) ** num
    assert expected >= grams.FOUND
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 200))


def test_ngrams_keep_to_their_rows() -> None:
    together = grams.ngrams([list("abc"), list("cab"), list("ab"), []], 3, shorter=True)
    alone = [grams.ngrams([row], 3, shorter=True).hashes.tolist() for row in (list("abc"), list("cab"), list("ab"))]
    assert together.sizes.tolist() == [1, 1, 1, 0]
    assert together.hashes.tolist() == [h for row in alone for h in row]
    assert len(set(together.hashes.tolist())) == 3


def test_signatures_are_the_same_in_every_process() -> None:
    """The golden number says so of rensa's version too: where it changes, kept signatures are worth nothing."""
    code = (
        "from strop.curate import grams; s = grams.ngrams([['a', 'b', 'c', 'd']], 2, shorter=True); "
        "print(s.hashes[0], grams.bands(s, 4, 2).sum())"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert done[0] == done[1] == GOLDEN


# --- planted ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> tuple[pa.Table, Outcome, dict[str, str], dict[str, set[str]]]:
    """(rows, outcome, id of each plant -> id of its problem, ids by kind): 500 problems without repeats, and plants."""
    base = problems(600)
    rows = table(base)
    kept = sorted(set(range(len(base))) - set(run(rows).dropped))[:500]
    rng = random.Random(5)
    all_rows, of, kinds = [], {}, {"exact": set(), "near": set(), "digit": set(), "sign": set()}
    make = {"exact": layout, "near": reworded, "digit": other_digit, "sign": other_sign}
    for number, row in enumerate(kept):
        prompt, answer = base[row]
        all_rows.append(table([base[row]], source="pool", meta='{"solution": "So it is."}'))
        for kind in list(make)[number % 2 :: 2]:
            if (new := make[kind](prompt, rng)) is not None:
                plant = table([(new, answer)], source=rng.choice(["a", "pool", "z"]))
                all_rows.append(plant)
                if plant["id"][0].as_py() != all_rows[-2]["id"][0].as_py():
                    of[plant["id"][0].as_py()] = rows["id"][row].as_py()
                    kinds[kind].add(plant["id"][0].as_py())
    together = pa.concat_tables(all_rows)
    return together, run(together), of, kinds


def test_what_differs_in_one_digit_or_sign_never_goes(planted: tuple) -> None:
    rows, outcome, _, kinds = planted
    gone = fates(rows, outcome)
    assert len(kinds["digit"]) > 120
    assert len(kinds["sign"]) > 40
    assert not [i for kind in ("digit", "sign") for i in kinds[kind] if i in gone]


def test_planted_duplicates_go_and_nothing_else(planted: tuple) -> None:
    """Precision 1: whatever goes was planted, and names the problem it was planted beside."""
    rows, outcome, of, kinds = planted
    gone = fates(rows, outcome)
    assert all(i in kinds["exact"] | kinds["near"] for i in gone)
    assert all(detail.split(",")[0] == of[i] for i, (_, detail) in gone.items())
    recall = {kind: np.mean([i in gone for i in kinds[kind]]) for kind in ("exact", "near")}
    print(recall, Counter(reason for reason, _ in gone.values()))
    assert recall["exact"] >= 0.96
    assert recall["near"] >= 0.95


def test_pairs_that_a_number_keeps_apart_are_listed() -> None:
    rows = pool(
        *(
            (f"On Monday Ann has 3 red apples in her basket and buys {n} more of them at the market.", str(3 + n))
            for n in (4, 5)
        )
    )
    outcome = run(rows)
    assert not outcome.dropped
    assert [pair["apart"] for pair in outcome.listed] == ["numbers or signs: '4' or '5'"]
    assert {outcome.listed[0]["id"], outcome.listed[0]["other"]} == set(rows["id"].to_pylist())
    assert "At least 1 pairs" in outcome.notes[1]


def test_the_order_of_rows_is_nothing() -> None:
    base = generated(60)
    rng = random.Random(3)
    near_ones = [(new, a) for p, a in base for new in (reworded(p, rng), layout(p, rng)) if new]
    rows = pa.concat_tables([table(base, source="b"), table(near_ones, source="a")])
    first = run(rows)
    assert len(first.dropped) > 40
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(rows))
        again = rows.take(pa.array(order))
        assert fates(again, run(again)) == fates(rows, first)
        assert run(again).listed == first.listed


# --- who stays --------------------------------------------------------------------------------------------------------

TEXT = "The sum of {} consecutive integers is equal to 35 and the largest of all these integers is what we look for"


def test_a_worked_solution_stays_then_source_then_hash() -> None:
    one, two, three = (TEXT.format("5") + "?" * n for n in range(3))
    rows = pa.concat_tables([
        table([(one, "9")], source="a"), table([(two, "9")], source="b", meta='{"solution": "See."}'), table([(three, "9")], source="c"),
    ])  # fmt: skip
    gone = run(rows)
    assert set(gone.dropped) == {0, 2}
    assert gone.dropped[0].detail == rows["id"][1].as_py()
    plain = pa.concat_tables([table([(p, "9")], source=s) for p, s in ((one, "c"), (two, "b"), (three, "b"))])
    staying = set(range(3)) - set(run(plain).dropped)
    assert staying == {min((1, 2), key=lambda row: plain["id"][row].as_py())}
    empty = pa.concat_tables(
        [table([(one, "9")], source="a"), table([(two, "9")], source="b", meta='{"solution": " "}')]
    )
    assert set(run(empty).dropped) == {1}


def test_a_chain_does_not_carry_what_is_not_near() -> None:
    words = [f"word{chr(97 + i)}" for i in range(26)]
    a, b, c = (
        " ".join(words[i : i + 20]) for i in (0, 3, 6)
    )  # 18 trigrams each; 15 shared by neighbours, 12 by the ends
    rows = pa.concat_tables([table([(text, "1")], source=source) for text, source in ((a, "1"), (b, "2"), (c, "3"))])
    outcome = run(rows, jaccard=0.7)  # 15/21 = 0.71, 12/24 = 0.5
    assert {row: fate.detail for row, fate in outcome.dropped.items()} == {1: f"{rows['id'][0].as_py()}, overlap 0.71"}


def test_another_answer_is_named_or_keeps_two_problems() -> None:
    exact = pool(("What is 2 + 2?", "4"), ("what is $2+2$", "5"))
    outcome = run(exact)
    (fate,) = outcome.dropped.values()
    assert fate.reason == OTHER_ANSWER
    assert re.fullmatch(r"pool/\w+, which says '[45]', not '[45]'", fate.detail)
    near_ones = [(TEXT.format("5"), "9"), (TEXT.format("5").replace("largest", "smallest"), "5")]
    outcome = run(pool(*near_ones))
    assert not outcome.dropped
    assert outcome.listed[0]["apart"].startswith("answers: ")
    same = run(pool(near_ones[0], (near_ones[1][0], "$9.0$")))
    assert [fate.reason for fate in same.dropped.values()] == [NEAR]


# --- hostile and large ------------------------------------------------------------------------------------------------


def test_rows_of_any_kind_pass() -> None:
    hostile = [
        "", " ", "?!", "?", "…", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 2", "🙂🙂", "\0\0", "\ud800 x", "word " * 20_000, "word " * 19_000, "9" * 5_000, "\\frac{" * 3_000, "$" * 999,
        "求三角形的面积是多少", "求三角形的周长是多少", "z̷͍a̸l̴g̵o̶ " * 50,
    ]  # fmt: skip
    prompts = [p for p in hostile if "\ud800" not in p]
    outcome = run(pool(*((p, "1") for p in prompts)))
    gone = {prompts[row][:12]: fate.reason for row, fate in outcome.dropped.items()}
    assert gone in ({"word word wo": NEAR}, {" ": EXACT, "word word wo": NEAR}, {"": EXACT, "word word wo": NEAR})
    assert fold("\ud800 x").words == ["x"]
    assert grams.hash_text("\ud800") == grams.hash_text("\ud800")
    assert not run(SCHEMA.empty_table()).dropped


def test_numbers_in_one_template_stay_linear() -> None:
    """8,000 rows of one template: no pair of them is compared for dropping, and the list is cut."""
    rows = pool(
        *(
            (f"A farmer sells {i} apples for {i % 97 + 2} coins each and has how many coins at the end of it?", str(i))
            for i in range(8_000)
        )
    )
    outcome = run(rows)
    assert not outcome.dropped
    assert len(outcome.listed) == MOST_LISTED
    assert " 0 pairs compared" in outcome.notes[0]


def test_a_crowd_is_settled_without_every_pair() -> None:
    """1,500 near rows with equal numbers and answers leave one; 1.1 million pairs are not compared."""
    num = 1500
    words = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(100)]
    rows = [[*words, f"name{i}"] for i in range(num)]
    sets = grams.ngrams(rows, 3, shorter=True)
    bands = grams.bands(sets, *grams.banding(0.6, 128))
    found = near.settle(sets, bands, np.zeros(num, np.uint64), 0.6, lambda a, b: np.ones(len(a), bool))
    assert (found.keeper[1:] == 0).all()
    assert found.keeper[0] == -1
    assert found.crowded > 0.9 * num
    assert found.compared < 40 * num


def test_without_the_library_the_line_to_type_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from strop.record import UserError

    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UserError, match=r"pip install 'strop\[curate\]'"):
        run(pool(("What is 2 + 2?", "4")))
