"""The ledger: every second is booked once, and a resumed run goes on counting."""

from __future__ import annotations

import json
import threading
import time

import pytest

from strop.energy import Reading
from strop.ledger import Ledger


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Faked:
    """A meter of a machine that draws 10 W by a counter and 3 W by a model, and keeps half a processor busy."""

    def __init__(self, clock: Clock, **more: tuple[float, str]) -> None:
        self._clock, self._last = clock, clock.now
        self._sources = {"rapl": (10.0, "counter"), "model": (3.0, "modelled"), **more}

    def about(self) -> dict:
        return {name: {"kind": kind, "scope": name} for name, (_, kind) in self._sources.items()}

    def read(self) -> Reading:
        passed_s, self._last = self._clock.now - self._last, self._clock.now
        joules = {name: watts * passed_s for name, (watts, _) in self._sources.items()}
        return Reading(cpu_s=0.5 * passed_s, joules=joules)


def work(ledger: Ledger, clock: Clock, num_steps: int) -> None:
    """Steps of 11 s in phases and 1 s outside, with tokens in and out."""
    for _ in range(num_steps):
        with ledger.phase("generate"):
            clock.now += 4
        ledger.add_tokens("generate", 640, tokens_in=80)
        with ledger.phase("train"):
            clock.now += 2
            with ledger.phase("save"):
                clock.now += 5
        clock.now += 1


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


# --- what the meter counts --------------------------------------------------------------------------------------------


def test_what_the_meter_counts_goes_to_the_phase_that_runs() -> None:
    clock = Clock()
    ledger = Ledger(clock, Faked(clock))
    work(ledger, clock, 1)
    told = ledger.as_dict()
    assert told["phases"] == {
        name: {"wall_s": s, "cpu_s": s / 2, "gpu_s": 0.0, "tokens": t, "tokens_in": i, "joules": {"rapl": 10 * s, "model": 3 * s}}
        for name, s, t, i in (("save", 5, 0, 0), ("generate", 4, 640, 80), ("train", 2, 0, 0), ("other", 1, 0, 0))
    }  # fmt: skip
    assert told["energy"] == {
        "rapl": {"kind": "counter", "scope": "rapl", "joules": 120.0},
        "model": {"kind": "modelled", "scope": "model", "joules": 36.0},
    }


def test_open_phases_are_booked_up_to_now_and_once() -> None:
    clock = Clock()
    ledger = Ledger(clock, Faked(clock))
    with ledger.phase("train"):
        clock.now += 3
        for _ in range(2):
            assert ledger.as_dict()["phases"]["train"]["joules"] == {"rapl": 30.0, "model": 9.0}
        clock.now += 1
    assert ledger.as_dict()["phases"]["train"]["joules"] == {"rapl": 40.0, "model": 12.0}


@pytest.mark.parametrize("kills", [(3,), (1, 2, 5)])
def test_a_resumed_run_has_spent_what_an_uninterrupted_one_has(kills: tuple[int, ...]) -> None:
    clock = Clock()
    whole = Ledger(clock, Faked(clock))
    work(whole, clock, 6)
    told, expected = {}, whole.as_dict()
    for num_steps in (kill - before for before, kill in zip((0, *kills), (*kills, 6), strict=True)):
        clock.now += 1000  # nobody was running
        ledger = Ledger.from_dict(json.loads(json.dumps(told)), clock, Faked(clock))
        work(ledger, clock, num_steps)
        told = ledger.as_dict()
    assert told == expected


def test_a_resume_on_another_machine_keeps_its_sources_apart() -> None:
    clock = Clock()
    first = Ledger(clock, Faked(clock))
    work(first, clock, 1)
    second = Ledger.from_dict(first.as_dict(), clock, Faked(clock, guess=(1.0, "constant")))
    work(second, clock, 1)
    energy = second.as_dict()["energy"]
    assert {name: (s["kind"], s["joules"]) for name, s in energy.items()} == {
        "rapl": ("counter", 240.0), "model": ("modelled", 72.0), "guess": ("constant", 12.0),
    }  # fmt: skip


def test_a_ledger_of_an_older_version_goes_on() -> None:
    clock = Clock()
    old = {"wall_s": 9.0, "tokens_sampled": 5, "tokens_trained": 0,
           "phases": {"generate": {"wall_s": 8.0, "tokens": 5}, "other": {"wall_s": 1.0, "tokens": 0}}}  # fmt: skip
    ledger = Ledger.from_dict(old, clock, Faked(clock))
    work(ledger, clock, 1)
    told = ledger.as_dict()
    assert told["phases"]["generate"] == {
        "wall_s": 12.0, "cpu_s": 2.0, "gpu_s": 0.0, "tokens": 645, "tokens_in": 80, "joules": {"rapl": 40.0, "model": 12.0},
    }  # fmt: skip
    assert told["phases"]["other"]["wall_s"] == 2.0


def test_phases_add_up_to_the_whole_within_a_hundredth() -> None:
    started = time.perf_counter()
    ledger = Ledger()
    for _ in range(5):
        with ledger.phase("train"):
            time.sleep(0.02)
            with ledger.phase("save"):
                time.sleep(0.02)
        time.sleep(0.01)
    told = ledger.as_dict()
    wall_s = time.perf_counter() - started
    assert sum(seconds(ledger).values()) == pytest.approx(wall_s, rel=0.01)
    assert told["wall_s"] == pytest.approx(wall_s, rel=0.01)


def test_no_joule_is_lost_or_booked_twice_whatever_threads_do() -> None:
    drawn = []

    class Drawing:
        def about(self) -> dict:
            return {"all": {"kind": "counter", "scope": "all"}}

        def read(self) -> Reading:
            drawn.append(1.0)
            return Reading(joules={"all": 1.0})

    ledger = Ledger(meter=Drawing())

    def verify() -> None:
        for _ in range(50):
            with ledger.phase("verify"):
                pass

    with ledger.phase("train"):
        threads = [threading.Thread(target=verify) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told = ledger.as_dict()
    assert sum(phase["joules"].get("all", 0.0) for phase in told["phases"].values()) == len(drawn) == 303
    assert told["energy"]["all"]["joules"] == len(drawn)
