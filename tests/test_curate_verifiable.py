r"""Stage `verifiable`: planted faults and near misses, conflicts at a known rate, hostile rows, and the real pool where it is."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from strop.config.curation import VerifiableStage
from strop.config.recipe import Checks
from strop.curate import conflicts, problems
from strop.curate.rows import SCHEMA, Fate, Outcome, Tools
from strop.curate.verifiable import plainly_gradable, read, same_problem, verifiable
from strop.record import Task, UserError, content_hash
from strop.rewards import VERIFIERS
from strop.rewards.scorer import as_answered
from strop.watch import Watch

DATA = Path(os.environ.get("STROP_DATA", Path(__file__).parents[2] / "shared" / "data"))
POOL = DATA / "train" / "deepscaler_40k.jsonl.gz"
needs_pool = pytest.mark.skipif(not POOL.exists(), reason=f"no real pool at {POOL}")
ONE = Checks(workers=1, timeout_s=3.0)


def table(rows: list[tuple[str, ...]]) -> pa.Table:
    """Rows of (prompt, answer), with source and verifier where they matter, in the order given."""
    full = [(*row, *("a", "math")[len(row) - 2 :]) for row in rows]
    return pa.Table.from_pylist(
        [
            {"id": f"{s}/{content_hash(p, a)}", "source": s, "prompt": p, "answer": a, "verifier": v, "licence": "", "meta": "{}"}
            for p, a, s, v in full
        ],
        schema=SCHEMA,
    )  # fmt: skip


def tools(folder: Path) -> Tools:
    return Tools(
        measure=lambda function, rows, settings, *, what: function(rows, settings),
        watch=Watch(open(os.devnull, "w"), live=False),
        seed=0, against=SCHEMA.empty_table(), folder=folder,
    )  # fmt: skip


def run(rows: list[tuple[str, ...]], folder: Path, **settings: object) -> Outcome:
    return verifiable(
        table(rows), VerifiableStage.model_validate({"do": "verifiable", "checks": ONE, **settings}), tools(folder)
    )


def reason(prompt: str, answer: str = "5") -> str:
    found = problems.damage(prompt, answer, 20_000) or problems.task_fault(prompt, answer)
    return found[0] if found else ""


# --- what the text says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("   ", "5", "no problem"),
        ("$ ?", "5", "no problem"),
        ("What is 2 + 3?", " ", "no answer"),
        ("What is 2 + 3?", "5" * 2001, "answer too long"),
        ("What is 2 + 3?" + " " * 20_000, "5", "problem too long"),
        ("What is\x00 2 + 3?", "5", "control character"),
        ("What is 2 + 3?", "5\x02", "control character"),
        ("How far is the caf\u00c3\u00a9 from here, in km?", "5", "wrong encoding"),
        ("What is John\u00e2\u20ac\u2122s age?", "5", "wrong encoding"),
        ("What is \ufffd?", "5", "wrong encoding"),
        ("https://example.org/problems/17.png", "5", "only a link"),
        ("In the figure, find the angle $ABC$.", "30", "needs a picture"),
        ("Six circles touch as shown. Find the radius.", "3", "needs a picture"),
        ("Find the area of the region shown in the diagram below.", "3", "needs a picture"),
        ("What is the area? ![](https://cdn.example.org/a.jpg)", "3", "needs a picture"),
        ("如图，求角 $A$ 的度数。", "30", "needs a picture"),
        ("According to the table below, how many sold?", "3", "needs a picture"),
        ("Prove that $n^2 + n$ is even.", "0", "proof"),
        ("Let $n > 1$. Show that $\\lim a_n = 0$.", "0", "proof"),
        ("Is there more to it.\nProve or disprove: $A = B$.", "A = B", "proof"),
        ("Find all $n$.", "Proof omitted", "proof"),
        ("(a) Find $x$. (b) Find $y$.", "5", "several parts"),
        ("Let $f(x) = x$.\n1. Find $f(1)$.\n2. Determine the range.", "5", "several parts"),
        ("Given $a$. $(1)$ Find $a$; $(2)$ If $b = 2$, find the area.", "5", "several parts"),
        ("(Ⅰ) Find the period. (Ⅱ) Find the maximum.", "5", "several parts"),
        ("Solve these. i) What is $2+2$? ii) What is $2+3$?", "5", "several parts"),
        ("**p1.** How many seats? **p2.** How many coins?", "5", "several parts"),
        ("Find the roots and their sum.", "(a) 3, 4 (b) 7", "several parts"),
        ("Which is prime? (A) 4 (B) 5 (C) 6", "B", "letter of an option"),
        (r"Pick one. $\textbf{(A)}\ 1 \qquad \textbf{(B)}\ 2$", r"\text{(B)}", "letter of an option"),
        ("Choose the correct ones:\nA. even\nB. odd\nC. prime", "A, C", "letter of an option"),
        ("True or false: every bounded sequence in $A$ converges.", "B", "options missing"),
        ("Evaluate the integral of arctan x over x.", "G", "options missing"),
        ("Which of the following is closest to 7?", r"\sqrt{50}", "options missing"),
    ],
)  # fmt: skip
def test_a_planted_fault_has_its_reason(prompt: str, answer: str, expected: str) -> None:
    assert reason(prompt, answer) == expected


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Find all primes $p$ with $p^2 + 2$ prime. Prove your answer.", "3"),
        ("Prove that the sequence converges and find its limit.", "1"),
        ("A stage show that runs for 3 hours starts at 7. When does it end?", "10"),
        ("Is it true that every prime above 2 is odd? Answer yes or no.", "yes"),
        ("One can show that $a_n$ is bounded. Compute $a_5$.", "7"),
        ("Find the number of $n$ such that (1) $n > 3$; (2) $n$ is even; (3) $n < 10$.", "3"),
        ("A move is one of: (a) remove a pile, (b) take one piece from each. How many moves are needed?", "199"),
        ("If $f(a) = 1$ and $f(b) = 2$, what is $f(a) + f(b)$?", "3"),
        ("Find (a, b) with $a + b = 5$ and $ab = 6$. What is the larger?", "3"),
        ("Which are right? (1) $2 > 1$ (2) $3 < 1$", "(1)"),
        ("Which of the statements holds? (1) what rises falls. (2) is it so?", "(1), (2)"),
        ("What is the area of the triangle? [asy] draw((0,0)--(4,0)--(0,3)--cycle); [/asy] It is drawn as shown.", "6"),
        ("The table below gives sales.\n| day | 1 | 2 |\n|---|---|---|\n| sold | 3 | 4 |\nHow many in all?", "7"),
        (r"One such grid is shown below: \[\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}\] How many are there?", "24"),
        ("A figure skater turns 3 times a second. How often in a minute?", "180"),
        ("Sketch the graph of $y = x^2$ in your mind: where is its vertex?", "(0,0)"),
        ("How many figures of two digits are prime?", "21"),
        ("$A$ and $B$ play a game, $A$ first. Who wins?", "B"),
        ("Let $A$ be a matrix with $A = A^T A$. What is $A^2$?", "A"),
        ("Which of the following is prime: 4, 5, 6?", "5"),
        ("Which is larger? (A) 4 (B) 5", "5"),
        ("What is 2 + 3?\r\n\tThink.", "5"),
        ("Qu\u00e9 n\u00famero es \u00c2ngulo \u2260 5\u00a0?", "5"),
        ("The form is \x0crac{m}{n}; give m + n for 2/3.", "5"),
        ("See https://example.org/wiki/Prime and find the sum of the first 3 primes.", "10"),
    ],
)  # fmt: skip
def test_a_near_miss_stays(prompt: str, answer: str) -> None:
    assert reason(prompt, answer) == ""


def test_only_mathematics_is_asked_for_one_value() -> None:
    rows = table([("Prove that it is so.", "B", "a", "exact"), ("Prove that it is so.", "B", "a", "math")])
    found = read(rows, VerifiableStage(do="verifiable"))["reason"].to_pylist()
    assert found == ["", "proof"]


# --- answers ------------------------------------------------------------------------------------------------------------


def test_an_answer_that_the_verifier_cannot_read_goes(tmp_path: Path) -> None:
    golds = ["5", r"\frac{1}{2}", r"\frac{1}{", "x^2+1", r"\frac{k!}{(k-1)!", "(1, 2)", "???"]
    out = run([(f"What is number {i}?", gold) for i, gold in enumerate(golds)], tmp_path)
    assert {golds[i]: fate.reason for i, fate in out.dropped.items()} == dict.fromkeys(
        (r"\frac{1}{", r"\frac{k!}{(k-1)!", "???"), "answer cannot be read"
    )
    assert "3 of them judged" in out.notes[0]


def test_a_verifier_that_there_is_not_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no verifier 'mth'"):
        run([("What is it?", "x", "a", "mth")], tmp_path)


def _made(random: random.Random) -> str:
    """An answer of the kinds that the pattern is for, with layout as people write it."""

    def product() -> str:
        root = random.choice([r"\sqrt{%d}" % random.randint(1, 99), r"\pi", "x", "n^2", "k^{12}"])  # noqa: UP031
        return random.choice(
            [str(random.randint(1, 999)), root, f"{random.randint(2, 99)}{random.choice(['', ' '])}{root}"]
        )

    def total() -> str:
        return random.choice(["", "-"]) + random.choice([" + ", "-", " - ", "+"]).join(
            product() for _ in range(random.randint(1, 3))
        )

    def fraction() -> str:
        return rf"{random.choice(['', '-', '3'])}\{random.choice(['', 'd', 't'])}frac{{{total()}}}{{{product()}}}"

    one = random.choice(
        [total, fraction, lambda: f"{random.randint(-99, 99)}.{random.randint(0, 999):03}", lambda: "1,234,567"]
    )
    return random.choice(["{}", "${}$", "({}, {})", "[{},{}]", "x = {}"]).format(one(), one())


def _differs_from_the_verifier(answers: list[str]) -> list[str]:
    tasks = [Task.make(source="s", prompt="", answer=a, verifier=v) for a in answers for v in ("math", "number")]
    return [task.answer for task in tasks if not VERIFIERS[task.verifier](task, as_answered(task)).correct]


def test_the_pattern_says_what_the_verifier_says_of_made_answers() -> None:
    made = random.Random(0)
    taken = [answer for answer in (_made(made) for _ in range(250)) if plainly_gradable(answer)]
    assert len(taken) > 180
    assert _differs_from_the_verifier(taken) == []


@needs_pool
def test_the_pattern_says_what_the_verifier_says_of_real_answers() -> None:
    with gzip.open(POOL, "rt") as lines:
        answers = sorted({str(json.loads(line)["answer"]) for line in lines})
    taken = [answer for answer in answers if plainly_gradable(answer)]
    assert len(taken) > 0.7 * len(answers)
    sample = random.Random(1).sample(taken, 2000)
    assert _differs_from_the_verifier(sample) == []


@pytest.mark.parametrize(
    "answer", [r"\frac{1}{0}", "1/0", "", "5 or 6", r"\sqrt{2", "3 4", "$5", r"\frac{1}{2-2}", "1e400", "½"]
)
def test_what_the_pattern_leaves_to_the_verifier(answer: str) -> None:
    assert not plainly_gradable(answer)


# --- conflicts ----------------------------------------------------------------------------------------------------------

ASKED = "What is $1 + 1$?"


def settled(golds: list[str], how: str) -> tuple[dict[int, Fate], int]:
    """One problem with these "source:answer", compared by the verifier itself in this process."""

    def accepts(pairs: Sequence[tuple[conflicts.Gold, conflicts.Gold]]) -> list[bool]:
        tasks = [[Task.make(source="s", prompt="", answer=a, verifier=v) for v, a in pair] for pair in pairs]
        return [VERIFIERS[gold.verifier](gold, as_answered(other)).correct for gold, other in tasks]

    sources, answers = zip(*(gold.split(":") for gold in golds), strict=True)
    group = conflicts.Group(rows=tuple(range(len(golds))), sources=sources, golds=tuple(("math", a) for a in answers))
    return conflicts.settle([group], how, accepts)


@pytest.mark.parametrize(
    ("golds", "dropped"),
    [
        (["a:2", "b:2", "c:3"], {"c:3": "outvoted answer"}),
        (["a:2", "b:3"], {"a:2": "conflicting answers", "b:3": "conflicting answers"}),
        (["a:2", "b:2.0", "c:3"], {"c:3": "outvoted answer"}),  # by value, not by spelling
        (["a:0.5", r"b:\frac{1}{2}", "c:1/2", r"d:$\dfrac12$"], {}),
        (["a:2", "a:3", "b:3"], {"a:2": "outvoted answer"}),  # a is split and does not vote
        (["a:x+1", "a:1 + x", "a:x+2"], {"a:x+2": "outvoted answer"}),  # within one source the most rows
        (["a:3", "a:3.0", "a:3.00", "b:2", "c:2"], {"a:3": "outvoted answer", "a:3.0": "outvoted answer", "a:3.00": "outvoted answer"}),
    ],
)  # fmt: skip
def test_a_conflict_is_settled_by_sources(golds: list[str], dropped: dict[str, str]) -> None:
    for order in (golds, golds[::-1]):
        fates, num = settled(order, "settle")
        assert {order[i]: fate.reason for i, fate in fates.items()} == dropped
        assert num == bool(dropped)
        assert all(" in " in fate.detail for fate in fates.values())
    assert len(settled(golds, "drop")[0]) == (len(golds) if dropped else 0)


def test_the_fate_names_the_other_answer_and_its_sources(tmp_path: Path) -> None:
    out = run([(ASKED, "2", "numina"), (ASKED, "2", "amc"), (ASKED, "3", "dapo")], tmp_path)
    assert [(fate.reason, fate.detail) for fate in out.dropped.values()] == [("outvoted answer", "'2' in amc, numina")]


def test_a_row_that_is_dropped_anyway_does_not_vote(tmp_path: Path) -> None:
    out = run([(ASKED, r"\frac{1}{", "a"), (ASKED, r"\frac{1}{", "b"), (ASKED, "2", "c")], tmp_path)
    assert {fate.reason for fate in out.dropped.values()} == {"answer cannot be read"}
    assert len(out.dropped) == 2


def test_other_layout_is_the_same_problem_and_another_digit_is_not(tmp_path: Path) -> None:
    same = [(r"Compute $\dfrac{1}{2} + 3$.", "3.5", "a"), (r"compute  \( \frac{1}{2}+3 \)", "4", "b")]
    assert len(run(same, tmp_path).dropped) == 2
    for other in (
        "Compute $1.5 + 3$.",
        "Compute $15 + 3$.",
        "Compute $-15 + 3$.",
        "Compute $(1+5)3$.",
        "Compute $1+53$.",
    ):
        assert run([("Compute $1+5(3)$.", "16", "a"), (other, "9", "b")], tmp_path).dropped == {}
    assert same_problem("Compute $15$.") != same_problem("Compute $1.5$.")


def test_a_hundred_answers_to_one_problem_are_no_hundred_times_hundred_comparisons(tmp_path: Path) -> None:
    out = run([("Solve for $x$:", f"x^2+{i}", "a") for i in range(100)], tmp_path)
    assert len(out.dropped) == 100


def test_groups_that_share_a_number_by_chance_are_taken_apart() -> None:
    rows = table([("What is $1$?", "1"), ("What is $2$?", "2")])
    import numpy as np

    places = conflicts.suspects(np.array([7, 7], np.uint64), np.array([0, 1]))
    assert len(places) == 1
    assert conflicts.read_groups(rows, places, same_problem) == []


@needs_pool
def test_planted_conflicts_over_real_rows(tmp_path: Path) -> None:
    """1,000 real problems of two sources that agree, 5% of them given another value, 5% another spelling."""
    with gzip.open(POOL, "rt") as lines:
        real = [json.loads(line) for line in lines]
    numbers = {
        same_problem(row["problem"]): row for row in real if row["answer"].isdecimal() and not reason(row["problem"])
    }
    drawn = random.Random(0).sample(sorted(numbers), 1000)
    rows, planted = [], set()
    for place, text in enumerate(drawn):
        prompt, answer = numbers[text]["problem"], numbers[text]["answer"]
        other = {0: str(int(answer) + 1), 1: rf"\frac{{{2 * int(answer)}}}{{2}}"}.get(place % 20, answer)
        rows += [(prompt, answer, "a"), (f"  {prompt} ".replace("$", " $ "), other, "b")]
        planted |= {prompt} if place % 20 == 0 else set()
    random.Random(1).shuffle(rows)
    out = run(rows, tmp_path)
    found = {
        rows[i][0] for i, fate in out.dropped.items() if fate.reason == "conflicting answers" and rows[i][2] == "a"
    }
    assert found == planted  # precision and recall of 1
    assert len(out.dropped) == 2 * len(planted)
    again = sorted(rows)
    assert {rows[i] for i in out.dropped} == {again[i] for i in run(again, tmp_path).dropped}


# --- hostile rows -------------------------------------------------------------------------------------------------------

MEGABYTES_2 = 2_000_000


@pytest.mark.parametrize(
    "text",
    [
        "a" * MEGABYTES_2,
        "(1) " * (MEGABYTES_2 // 4),
        "(1) find (2) " * (MEGABYTES_2 // 13),
        "in the the following " * (MEGABYTES_2 // 21),
        "which " * (MEGABYTES_2 // 6),
        "[asy]" * (MEGABYTES_2 // 5),
        "\\(" * (MEGABYTES_2 // 2),
        "https://" * (MEGABYTES_2 // 8),
        "prove " * (MEGABYTES_2 // 6),
        " " * MEGABYTES_2,
        ". " * (MEGABYTES_2 // 2),
        "as shown " * (MEGABYTES_2 // 9),
    ],
    ids=lambda text: text[:8],
)
def test_two_megabytes_cost_seconds_where_a_recipe_lets_them_in(text: str) -> None:
    start = time.process_time()
    problems.damage(text, "5", 10 * MEGABYTES_2)
    problems.task_fault(text, "5")
    same_problem(text)
    assert time.process_time() - start < 6
    assert problems.damage(text, "5", 20_000) == ("problem too long", f"{len(text)} characters")


def test_hostile_answers_are_reasons(tmp_path: Path) -> None:
    deep = r"\frac{1}{" * 10_000 + "1" + "}" * 10_000
    golds = [
        deep, r"\frac{1}{" * 20 + "2" + "}" * 20, "9**9**9**9", "9^{9^{9^9}}", "{" * 500, r"\left(" * 100, "1\x00", "(" * 1500,
        "((10^{10})!)!", r"\sqrt{" * 300, "\ud7ff", "5" * 1999, "9!!!!!!!!!!", "," * 900, "1," * 900,
    ]  # fmt: skip
    rows = [(f"What is number {i}?", gold) for i, gold in enumerate(golds)]
    start = time.monotonic()
    out = run([*rows, ("What is 2 + 3?", "5")], tmp_path)
    assert time.monotonic() - start < 240
    assert out.dropped[0].reason == "answer too long"
    assert out.dropped[6].reason == "control character"
    assert len(golds) not in out.dropped
    assert all(fate.reason for fate in out.dropped.values())


def test_no_rows(tmp_path: Path) -> None:
    assert run([], tmp_path).dropped == {}


# --- the real pool ------------------------------------------------------------------------------------------------------


@needs_pool
def test_the_order_of_real_rows_does_not_matter(tmp_path: Path) -> None:
    with gzip.open(POOL, "rt") as lines:
        real = [json.loads(line) for line in lines]
    every = sorted({(row["problem"], str(row["answer"]), "a") for row in real})
    repeated = Counter(same_problem(prompt) for prompt, _, _ in every)
    rows = [row for i, row in enumerate(every) if repeated[same_problem(row[0])] > 1 or i % 40 == 0][:1500]
    out = run(rows, tmp_path)
    fates = {rows[i]: fate for i, fate in out.dropped.items()}
    reasons = Counter(fate.reason for fate in fates.values())
    assert reasons["conflicting answers"] > 50
    assert reasons["outvoted answer"] > 5
    assert reasons["several parts"] > 10
    shuffled = random.Random(3).sample(rows, len(rows))
    assert {shuffled[i]: fate for i, fate in run(shuffled, tmp_path).dropped.items()} == fates
