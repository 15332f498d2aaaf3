"""The ledger: every second is booked once, and a resumed run goes on counting."""

from __future__ import annotations

import json
import threading
import time

import pytest

from strop.ledger import Ledger


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def seconds(ledger: Ledger) -> dict[str, float]:
    return {name: phase["wall_s"] for name, phase in ledger.as_dict()["phases"].items()}


def test_inner_phases_take_their_time_from_the_outer() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    with ledger.phase("train"):
        clock.now += 1
        with ledger.phase("generate"):
            clock.now += 10
            with ledger.phase("verify"):
                clock.now += 100
            clock.now += 20
        clock.now += 2
        with ledger.phase("verify"):
            clock.now += 200
    clock.now += 1000
    assert seconds(ledger) == {"verify": 300, "generate": 30, "train": 3, "other": 1000}
    assert ledger.as_dict()["wall_s"] == ledger.wall_s == 1333


def test_open_phases_count_up_to_now_and_once() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    with ledger.phase("train"):
        clock.now += 1
        with ledger.phase("save"):
            clock.now += 5
        with ledger.phase("generate"):
            clock.now += 10
            assert seconds(ledger) == {"save": 5, "train": 1, "generate": 10, "other": 0}
            clock.now += 10
    assert seconds(ledger) == {"save": 5, "generate": 20, "train": 1, "other": 0}


def test_a_phase_that_fails_is_booked_too() -> None:
    clock = Clock()
    ledger = Ledger(clock)

    def fails() -> None:
        with ledger.phase("train"):
            clock.now += 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    with ledger.phase("generate"):
        clock.now += 4
    assert seconds(ledger) == {"train": 3, "generate": 4, "other": 0}


def test_tokens() -> None:
    ledger = Ledger()
    ledger.add_tokens("generate", 100)
    ledger.add_tokens("evaluate", 10)
    ledger.add_tokens("train", 60)
    ledger.add_tokens("sft", 5)
    ledger.add_tokens("replay", 1, counts_as="neither")
    data = ledger.as_dict()
    assert (data["tokens_sampled"], data["tokens_trained"]) == (110, 65)
    assert {name: phase["tokens"] for name, phase in data["phases"].items()} == {
        "generate": 100, "evaluate": 10, "train": 60, "sft": 5, "replay": 1, "other": 0,
    }  # fmt: skip
    with pytest.raises(KeyError):
        ledger.add_tokens("generates", 1)  # a misspelt phase would vanish from the totals


def test_goes_on_after_a_resume_even_from_the_middle_of_a_phase() -> None:
    clock = Clock()
    first = Ledger(clock)
    with first.phase("train"):
        clock.now += 7
        first.add_tokens("train", 70)
        saved = json.loads(json.dumps(first.as_dict()))  # killed here
    clock.now += 5000  # nobody was running
    second = Ledger.from_dict(saved, clock)
    clock.now += 2
    with second.phase("train"):
        clock.now += 3
    second.add_tokens("train", 30)
    data = second.as_dict()
    assert seconds(second) == {"train": 10, "other": 2}
    assert (data["wall_s"], data["tokens_trained"], data["phases"]["train"]["tokens"]) == (12, 100, 100)
    assert Ledger.from_dict({}, clock).as_dict()["wall_s"] == 0


def test_threads_do_not_nest_in_each_other() -> None:
    ledger = Ledger()

    def verify() -> None:
        for _ in range(200):
            with ledger.phase("verify"):
                ledger.add_tokens("generate", 1)

    with ledger.phase("train"):
        threads = [threading.Thread(target=verify) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        for thread in threads:
            thread.join()
    data = ledger.as_dict()
    assert data["tokens_sampled"] == 800
    assert data["phases"]["train"]["wall_s"] >= 0.05  # the threads' time was not taken from it
