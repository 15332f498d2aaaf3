"""The generators: exact answers, solutions that are true line by line, and the public data set as judge of the solver."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.config import TaskSet
from strop.record import UserError
from strop.rewards import VERIFIERS
from strop.tasks import gym, knights, load, puzzles

DATA = Path(os.environ.get("STROP_DATA", Path(__file__).parents[2] / "shared" / "data"))


def quiet(text: str) -> None:
    """Nobody listens."""


def value_of(expression: str) -> Fraction:
    """Python's own arithmetic, exact."""
    assert re.fullmatch(r"[-+*\d ]+", expression)
    return Fraction(eval(expression))


chains = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 150), min_size=n, max_size=n),
        st.lists(st.sampled_from("+-*"), min_size=n - 1, max_size=n - 1),
    )
)


@given(
    chain=chains, style=st.sampled_from(["steps", "lines", "digits"]), spaced=st.booleans(), nonnegative=st.booleans()
)
def test_arithmetic_answers_and_every_step_are_true(
    chain: tuple[list[int], list[str]], style: str, spaced: bool, nonnegative: bool
) -> None:
    values = {"style": style, "spaced": spaced, "nonnegative": nonnegative}
    pool = puzzles.open_arithmetic("arithmetic", values, "tasks.a", quiet)
    task = pool.task(*chain)
    if task is None:
        assert nonnegative
        return
    assert value_of(task.meta["expression"]) == int(task.answer)
    shown = task.meta["expression"] if spaced else task.meta["expression"].replace(" ", "")
    assert task.prompt == f"Compute {shown}."
    body, box, answer = task.meta["solution"].partition("\\boxed{")
    assert box
    assert answer == task.answer + "}"
    equations = [e for e in re.split(r"\.\s|\n", body) if e.strip()]
    assert len(equations) >= len(chain[1])
    for equation in equations:
        left, _, right = equation.partition("=")
        assert value_of(left) == value_of(right)
        assert (" " in equation) == spaced
    assert value_of(equations[-1].partition("=")[2]) == int(task.answer)
    if nonnegative and style != "digits":
        assert not any("= -" in e or "=-" in e for e in equations)


@given(chain=chains, spaced=st.booleans())
def test_rewriting_keeps_the_value(chain: tuple[list[int], list[str]], spaced: bool) -> None:
    values = {"style": "rewrite", "spaced": spaced, "nonnegative": False}
    task = puzzles.open_arithmetic("arithmetic", values, "tasks.a", quiet).task(*chain)
    assert task is not None
    line, box = task.meta["solution"].split("\n")
    chain_of = [part for part in line.split("=") if part.strip()]
    assert len(chain_of) == len(chain[1])
    assert {value_of(part) for part in chain_of} == {int(task.answer)}
    assert (" " in line) == spaced
    assert box == f"\\boxed{{{task.answer}}}"


def test_digits_takes_sums_apart() -> None:
    pool = puzzles.open_arithmetic("arithmetic", {"style": "digits"}, "tasks.a", quiet)
    task = pool.task([27, 48, 5], ["+", "-"])
    assert task is not None
    assert task.meta["solution"] == "20 + 40 = 60. 7 + 8 = 15. 60 + 15 = 75. 75 - 5 = 70. \\boxed{70}"


@pytest.mark.parametrize("level", puzzles.LEVELS)
def test_levels_keep_their_word(level: int) -> None:
    want = puzzles.LEVELS[level]
    tasks = load({"a": TaskSet(source="arithmetic", train=300, settings={"level": level})}, seed=0, say=quiet)[
        "a"
    ].train
    for task in tasks:
        numbers = [int(n) for n in re.findall(r"\d+", task.meta["expression"])]
        assert len(numbers) in want["terms"]
        assert want["low"] <= min(numbers) <= max(numbers) <= want["high"]
    assert {len(re.findall(r"\d+", t.meta["expression"])) for t in tasks} == set(want["terms"])
    assert set("".join(t.meta["expression"] for t in tasks)) & set("+-*") == set(want["ops"])


def test_levels_1_to_5_are_disjoint_by_their_settings() -> None:
    for a, b in itertools.combinations([puzzles.LEVELS[level] for level in range(1, 6)], 2):
        assert not set(a["terms"]) & set(b["terms"]) or a["high"] < b["low"] or b["high"] < a["low"]


# --- Knights and Knaves -----------------------------------------------------------------------------------------------


def real_puzzles() -> list[dict]:
    if not (DATA / "logic").is_dir():
        pytest.skip(
            f"NOT CHECKED against the 5,000 public Knights and Knaves puzzles: no folder {DATA / 'logic'} (set STROP_DATA)"
        )
    rows = (DATA / "logic" / "knights_knaves_test.jsonl").read_text().splitlines()
    rows += gzip.decompress((DATA / "logic" / "knights_knaves_train.jsonl.gz").read_bytes()).decode().splitlines()
    return [json.loads(row) for row in rows]


def test_the_solver_agrees_with_5000_public_puzzles() -> None:
    rows = real_puzzles()
    assert len(rows) == 5000
    for row in rows:
        want = tuple(row["assignment"][name] == "knight" for name in row["names"])
        assert knights.solve(row["statements"], len(want)) == [want], row["id"]


def test_worked_solutions_of_public_puzzles_end_in_their_assignment() -> None:
    for row in real_puzzles()[::25]:
        last = knights.reason_out(row["statements"], row["names"])[-1]
        want = ", ".join(f"{name} {row['assignment'][name]}" for name in row["names"])
        assert last.startswith(want + ": ")


literal = st.tuples(st.sampled_from(knights.LITERALS), st.integers(0, 2))
statement = st.recursive(
    literal,
    lambda s: st.one_of(st.tuples(st.just("not"), s), st.tuples(st.sampled_from(knights.PAIRS), s, s)),
    max_leaves=5,
)


def truth(s: tuple, world: tuple[bool, ...]) -> bool:
    """The same by Python's own operators."""
    match s:
        case ("telling-truth", person):
            return world[person]
        case ("lying", person):
            return not world[person]
        case ("not", a):
            return not truth(a, world)
        case ("and", a, b):
            return truth(a, world) and truth(b, world)
        case ("or", a, b):
            return truth(a, world) or truth(b, world)
        case ("implies", a, b):
            return truth(b, world) if truth(a, world) else True
    return truth(s[1], world) is truth(s[2], world)


@given(s=statement)
def test_a_statement_is_true_where_pythons_own_operators_say_so(s: tuple) -> None:
    worlds = knights.true_worlds(s, 3)
    for number in range(8):
        world = tuple(bool(number >> i & 1) for i in range(3))
        assert bool(worlds >> number & 1) == truth(s, world)
    assert worlds >> 8 == 0


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), people=st.integers(2, 5), names=st.sampled_from(["letters", "people"]))
def test_knights_tasks_have_one_solution_and_a_true_proof(seed: int, people: int, names: str) -> None:
    pool = knights.open_knights("knights", {"people": people, "names": names}, "tasks.k", quiet)
    task = next(t for t in pool.stream("train", seed) if t is not None)
    statements = task.meta["statements"]
    want = dict(part.split(": ") for part in task.answer.split(", "))
    world = tuple(kind == "knight" for kind in want.values())
    fits = [
        w for w in itertools.product((True, False), repeat=people)
        if all(truth(as_tuples(s), w) == w[i] for i, s in enumerate(statements))
    ]  # fmt: skip
    assert fits == [world]
    *dead_ends, last, box = task.meta["solution"].splitlines()
    assert box == f"\\boxed{{{task.answer}}}"
    assert last.endswith("It fits.")
    for line in dead_ends:  # no solution starts as a line that was given up, and its claim is what it says
        supposed, _, why = line.partition(": ")
        prefix = [part.rpartition(" ")[2] == "knight" for part in supposed.split(", ")]
        assert list(world[: len(prefix)]) != prefix
        name, value = re.match(r"(\w+)'s claim is (true|false), but", why).groups()
        claim = as_tuples(statements[list(want).index(name)])
        ends = itertools.product(*[[p] for p in prefix], *[(True, False)] * (people - len(prefix)))
        assert {truth(claim, tuple(w)) for w in ends} == {value == "true"}
    assert set(want) <= set(re.findall(r"\w+", task.prompt))
    assert task.meta["level"] == people


def as_tuples(s: object) -> object:
    return tuple(as_tuples(part) for part in s) if isinstance(s, list) else s


def test_other_names_or_another_order_make_no_other_puzzle() -> None:
    pool = knights.open_knights("knights", {}, "tasks.k", quiet)
    one = pool.task([("lying", 1), ("iff", ("telling-truth", 0), ("telling-truth", 1))], ["A", "B"])
    names = pool.task([("lying", 1), ("iff", ("telling-truth", 0), ("telling-truth", 1))], ["Ben", "Iris"])
    order = pool.task([("iff", ("telling-truth", 1), ("telling-truth", 0)), ("lying", 0)], ["A", "B"])
    other = pool.task([("lying", 1), ("iff", ("telling-truth", 0), ("lying", 0))], ["A", "B"])
    assert None not in (one, names, order, other)
    assert pool.key(one) == pool.key(names) == pool.key(order) != pool.key(other)


def test_what_can_be_said_is_what_is_listed() -> None:
    pool = knights.open_knights("knights", {}, "tasks.k", quiet)
    rng = random.Random(0)
    listed = pool.sayable(1, 3)
    drawn = {pool.draw_statement(1, 3, rng) for _ in range(12 * len(listed))}
    assert drawn == set(listed)
    assert len(set(listed)) == len(listed) == 2 + 2 + 4 + 4 * 6 * 4 * 4


def test_knights_cannot_be_won_by_one_answer() -> None:
    """No assignment is so common that saying it always would pass for reasoning."""
    tasks = load({"k": TaskSet(source="knights", train=300, settings={"people": 2})}, seed=0, say=quiet)["k"].train
    answers = [task.answer for task in tasks]
    assert max(map(answers.count, set(answers))) / len(answers) < 0.5


@pytest.mark.parametrize(
    "spec",
    [
        TaskSet(source="arithmetic", train=8, settings={"level": 6, "style": "digits", "nonnegative": False}),
        TaskSet(source="arithmetic", train=8, settings={"level": 2, "style": "rewrite", "spaced": False, "wording": "{expression}"}),
        TaskSet(source="knights", train=8),
        TaskSet(source="knights", train=8, settings={"people": 5, "names": "people"}),
    ],
)  # fmt: skip
def test_worked_solutions_and_golds_pass_their_verifier(spec: TaskSet) -> None:
    tasks = load({"a": spec.model_copy(update={"heldout": 0, "dev": 0})}, seed=0, say=quiet)["a"].train
    for task, other in itertools.pairwise(tasks):
        verify = VERIFIERS[task.verifier]
        assert verify(task, task.meta["solution"]).correct
        assert verify(task, f"\\boxed{{{task.answer}}}").correct
        assert verify(task, other.meta["solution"]).correct == (task.answer == other.answer)


# --- reasoning-gym ----------------------------------------------------------------------------------------------------


NO_GYM = "NOT CHECKED: reasoning-gym is not installed (the extra `puzzles`)"


def test_without_the_extra_the_install_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)  # what Python itself does for "not there"
    with pytest.raises(UserError, match=r"pip install 'strop\[puzzles\]'"):
        load({"g": TaskSet(source="gym:chain_sum", train=1)}, seed=0, say=quiet)


def gym_set(name: str = "chain_sum", train: int = 40, heldout: int = 30, **values: object) -> TaskSet:
    pytest.importorskip("reasoning_gym", reason=NO_GYM)
    return TaskSet(source=f"gym:{name}", train=train, dev=10, heldout=heldout, settings=values)


def test_gym_splits_share_nothing_though_its_seeds_overlap() -> None:
    """One-digit sums of two terms: ranges alone would repeat, item 1 of seed 0 being item 0 of seed 1."""
    reasoning_gym = pytest.importorskip("reasoning_gym", reason=NO_GYM)
    zero, one = (reasoning_gym.create_dataset("chain_sum", seed=seed, size=3) for seed in (0, 1))
    assert zero[1]["question"] == one[0]["question"]
    narrow = {"min_terms": 2, "max_terms": 2, "max_digits": 1}
    for seed in (0, 1, 7):
        splits = load({"a": gym_set(**narrow), "b": gym_set(heldout=20, **narrow)}, seed=seed, say=quiet)
        prompts = [
            {t.prompt for s in splits.values() for t in getattr(s, split)} for split in ("heldout", "dev", "train")
        ]
        assert all(not a & b for a, b in itertools.combinations(prompts, 2))
        assert splits["a"].heldout[:20] == splits["b"].heldout
        assert len({t.content for t in splits["a"].train}) == 40


def test_gym_ranges_never_meet() -> None:
    gym_set()
    firsts: list[int] = []

    def create(first: int) -> list:
        firsts.append(first)
        return [{"question": f"{first + i}", "answer": "1", "metadata": {}} for i in range(gym.BLOCK)]

    pool = gym.Gym("x", "0", create, lambda answer, entry: 1.0)
    drawn = {}
    for path in [("heldout", 0), ("dev", 0), ("train", 0), ("train", 1), ("train", 999)]:
        drawn[path] = {t.prompt for t in itertools.islice(pool.stream(*path), gym.BLOCK + 10) if t}
        assert len(drawn[path]) == gym.BLOCK + 10  # goes on into a second block, nothing twice
    assert all(not a & b for a, b in itertools.combinations(drawn.values(), 2))


def test_gym_uses_up_a_small_universe_and_stops() -> None:
    with pytest.raises(UserError, match=r"only \d+ distinct ones turned up"):
        load({"a": gym_set(train=500, min_terms=2, max_terms=2, max_digits=1)}, seed=0, say=quiet)


@pytest.mark.parametrize("name", ["chain_sum", "knights_knaves", "spell_backward", "gsm_symbolic", "word_ladder"])
def test_gym_entries_can_be_scored_from_what_is_on_disk(name: str) -> None:
    """Gold scores 1.0 after a trip through JSON; an answer that only contains the gold does not."""
    spec = gym_set(name, train=5, heldout=5)
    import reasoning_gym

    for task in load({"a": spec}, seed=0, say=quiet)["a"].train:
        entry = json.loads(json.dumps(task.meta))["entry"]
        score = reasoning_gym.get_score_answer_fn(entry["metadata"]["source_dataset"])
        assert score(task.answer, entry) == 1.0
        assert score("x" + task.answer + " or so", entry) < 1.0
        assert (task.prompt, task.answer) == (entry["question"], entry["answer"])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("chain_sums", {}, "no dataset 'chain_sums'; did you mean 'chain_sum'"),
        ("chain_sum", {"max_term": 3}, "did you mean 'max_terms'"),
        ("chain_sum", {"seed": 3}, "unknown setting tasks.a.settings.seed"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, "gym:chain_sum refuses them"),
        ("graph_color", {}, "records no answers that its own scorer accepts"),
    ],
)
def test_gym_refuses_what_it_cannot_use(name: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load({"a": gym_set(name, **values)}, seed=0, say=quiet)
