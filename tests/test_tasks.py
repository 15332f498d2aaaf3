"""Splits: disjoint over all sets of a recipe, held-out tasks that no seed moves, and refusals that say the number."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strop.config import TaskSet
from strop.record import Task, UserError
from strop.tasks import TaskSplits, load, puzzles


def quiet(text: str) -> None:
    """Nobody listens."""


def sums(train: int = 20, dev: int = 5, heldout: int = 10, **values: object) -> TaskSet:
    return TaskSet(source="arithmetic", train=train, dev=dev, heldout=heldout, settings=values)


def digest(tasks: list[Task]) -> str:
    text = "\x00".join(f"{t.id}|{t.prompt}|{t.answer}|{sorted(t.meta.items())}" for t in tasks)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def assert_apart(splits: dict[str, TaskSplits]) -> None:
    """No training task of any set is a dev or held-out task of any set; no dev task is a held-out one."""
    contents = {
        split: {" ".join(t.prompt.split()) for s in splits.values() for t in getattr(s, split)}
        for split in ("train", "dev", "heldout")
    }
    assert not contents["train"] & contents["heldout"]
    assert not contents["train"] & contents["dev"]
    assert not contents["dev"] & contents["heldout"]
    for s in splits.values():
        for tasks in (s.train, s.dev, s.heldout):
            assert len({t.content for t in tasks}) == len(tasks)


# Small universes on purpose, so that sets overlap and nearly everything is used up.
one_set = st.builds(
    sums,
    train=st.integers(0, 60),
    dev=st.integers(0, 15),
    heldout=st.integers(0, 30),
    terms=st.sampled_from([2, [2, 3], 3]),
    high=st.integers(20, 22),
    ops=st.sampled_from(["+", "+-", "-*+"]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs=st.dictionaries(st.sampled_from("abcd"), one_set, min_size=1, max_size=3), seed=st.integers(0, 5))
def test_splits_share_nothing_over_all_sets(specs: dict[str, TaskSet], seed: int) -> None:
    splits = load(specs, seed=seed, say=quiet)
    assert_apart(splits)
    for name, spec in specs.items():
        assert [len(splits[name].train), len(splits[name].dev), len(splits[name].heldout)] == [
            spec.train,
            spec.dev,
            spec.heldout,
        ]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**9), more=st.integers(0, 40))
def test_heldout_depends_on_nothing_but_its_own_set(seed: int, more: int) -> None:
    alone = load({"a": sums(level=4)}, seed=0, say=quiet)["a"]
    among = load({"b": sums(level=4, heldout=10 + more), "a": sums(level=4, train=7)}, seed=seed, say=quiet)
    assert among["a"].heldout == alone.heldout
    assert among["b"].heldout[:10] == alone.heldout  # asking for more keeps the first ones
    assert (
        among["a"].dev == load({"b": sums(level=4, heldout=10 + more), "a": sums(level=4)}, seed=0, say=quiet)["a"].dev
    )


def test_the_seed_moves_training_tasks_only() -> None:
    first, again, other = (load({"a": sums(level=5)}, seed=seed, say=quiet)["a"] for seed in (0, 0, 1))
    assert first == again
    assert (first.heldout, first.dev) == (other.heldout, other.dev)
    assert {t.id for t in first.train} != {t.id for t in other.train}


def test_the_same_problem_in_other_words_is_kept_out() -> None:
    """There are 45 sums of two digits from 1 to 9; those that one set holds out are missing from the other's training."""
    held = sums(train=0, dev=0, heldout=20, terms=2, ops="+", wording="{expression} = ?", spaced=False)
    with pytest.raises(UserError, match="only 45 distinct tasks exist, of which 25 are left for train"):
        load({"held": held, "a": sums(train=26, dev=0, heldout=0, terms=2, ops="+")}, seed=0, say=quiet)
    splits = load({"held": held, "a": sums(train=25, dev=0, heldout=0, terms=2, ops="+")}, seed=0, say=quiet)
    expressions = [t.meta["expression"] for s in splits.values() for t in (*s.train, *s.heldout)]
    assert len({frozenset(e.split(" + ")) for e in expressions}) == len(expressions) == 45


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (([27, 48], "+"), ([48, 27], "+"), True),
        (([2, 3, 4], "++"), ([4, 2, 3], "++"), True),
        (([2, 3, 4], "**"), ([4, 2, 3], "**"), True),
        (([2, 3], "+"), ([2, 3], "*"), False),
        (([48, 27], "-"), ([27, 48], "-"), False),
        (([9, 3, 4], "+-"), ([3, 9, 4], "+-"), False),  # other steps on the way
    ],
)
def test_sums_and_products_in_another_order_are_the_same_problem(one, other, same) -> None:
    pool = puzzles.open_arithmetic("arithmetic", {"nonnegative": False}, "tasks.a", quiet)
    first, second = (pool.key(pool.task(*chain)) for chain in (one, other))
    assert (first == second) is same


def test_a_universe_can_be_used_up_to_the_last_task() -> None:
    splits = load({"a": sums(train=20, dev=10, heldout=15, terms=2, ops="+")}, seed=0, say=quiet)
    assert_apart(splits)
    assert len(splits["a"].train) == 20


@pytest.mark.parametrize(
    ("values", "num_distinct"),
    [
        ({"terms": 2, "ops": "+"}, 45),
        ({"terms": 2, "ops": "+-"}, 45 + 45),
        ({"terms": 2, "low": 3, "high": 4, "ops": "*"}, 3),
        ({"terms": 2, "ops": "-", "low": 5, "high": 5}, 1),
        ({"terms": [2, 2], "ops": ["+", "+"]}, 45),
    ],
)
def test_too_small_a_universe_says_how_small(values: dict[str, object], num_distinct: int) -> None:
    with pytest.raises(UserError, match=rf"tasks.a asks for .*, but only {num_distinct} distinct tasks exist"):
        load({"a": sums(train=100, dev=64, heldout=0, **values)}, seed=0, say=quiet)


def test_a_universe_that_is_nearly_empty_ends_as_well() -> None:
    """12 operands below 10, all subtracted: hardly any stays above zero, and there are too many chains to list."""
    with pytest.raises(UserError, match="only 0 distinct ones turned up"):
        load({"a": sums(terms=12, ops="-", low=3)}, seed=0, say=quiet)


def test_small_knights_universes_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strop.tasks.PATIENCE", 30)
    plain = TaskSet(
        source="knights", train=241, dev=0, heldout=4, settings={"people": 2, "statements": ["lying", "and"]}
    )
    with pytest.raises(UserError, match=r"only 244 distinct tasks exist, of which 240 are left for train"):
        load({"a": plain}, seed=0, say=quiet)
    with pytest.raises(UserError, match="only 0 distinct ones"):  # all could swap kind: never one solution alone
        load({"a": plain.model_copy(update={"settings": {"statements": ["lying", "not"]}})}, seed=0, say=quiet)


@pytest.mark.parametrize(
    ("source", "values", "message"),
    [
        ("arithmetics", {}, "did you mean 'arithmetic'"),
        ("arithmetic", {"term": 2}, "tasks.a.settings.term.*did you mean 'terms'"),
        ("arithmetic", {"terms": 1}, "terms is 2 or more"),
        ("arithmetic", {"low": 9, "high": 3}, r"low \(9\) is above high \(3\)"),
        ("arithmetic", {"level": 9}, "level is one of 1, 2, 3, 4, 5, 6, not 9"),
        ("arithmetic", {"ops": "+/"}, "tasks.a.settings.ops"),
        ("arithmetic", {"wording": "Compute."}, "expression"),
        ("knights", {"peoples": 2}, "did you mean 'people'"),
        ("knights", {"people": 1}, "from 2 to 12"),
        ("knights", {"statements": ["nand"]}, "tasks.a.settings.statements"),
        ("data/missing.jsonl", {}, "there is no file data/missing.jsonl"),
    ],
)
def test_a_wrong_setting_is_named(source: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load({"a": TaskSet(source=source, train=1, settings=values)}, seed=0, say=quiet)


def test_a_generator_must_be_told_how_many() -> None:
    with pytest.raises(UserError, match=r"tasks\.a\.train is missing"):
        load({"a": TaskSet(source="arithmetic")}, seed=0, say=quiet)


def test_generators_give_what_their_version_gave() -> None:
    """A change here changes every number measured before: raise the version in the source's name with it."""
    splits = load(
        {
            "easy": sums(level=1),
            "hard": sums(level=6, style="digits"),
            "island": TaskSet(source="knights", train=20, dev=5, heldout=10),
            "village": TaskSet(
                source="knights", train=20, dev=5, heldout=10, settings={"people": 4, "names": "people"}
            ),
        },
        seed=0,
        say=quiet,
    )
    pinned = {name: [digest(s.heldout), digest(s.dev), digest(s.train)] for name, s in splits.items()}
    assert {t.source for t in splits["easy"].train} == {"arithmetic@2"}
    assert {t.source for t in splits["island"].train} == {"knights@1"}
    assert pinned == PINNED
    judges = {name: {t.verifier for t in s.heldout} for name, s in splits.items()}  # apart: docs/decisions.md
    assert judges == {"easy": {"number"}, "hard": {"number"}, "island": {"knights"}, "village": {"knights"}}


PINNED = {
    "easy": ["b7715feab154ae07", "e44228bcf75c710b", "ff4b7f95b2f93462"],
    "hard": ["fdd63ad3abf9a0d1", "4ef05ffd3f0e1a90", "beb7c7d8faae86d1"],
    "island": ["71ee007a58860473", "7d9fb97c0dccbe2a", "769e2f00ee6b4081"],
    "village": ["5a5a237ba947e6b4", "190cc673245d8db5", "fa8687b2687c32d0"],
}
