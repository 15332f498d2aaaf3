"""The verifiers under fire: ten thousand texts made to hang or break them, and nothing leaks, nothing waits, nothing is fooled.

Also where they run inside what others start: threads, forks, Ray actors.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import faults
from hostile import Case, cases
from strop.record import Reason
from strop.rewards.scorer import Scorer

LIMIT_S = 1.0
SLACK_S = 0.5  # a verdict is there this much after its limit at the latest, its worker ended and replaced
PARENT_MB = 64  # what our own process may grow by: verdicts and their keys, and what the allocator keeps
WORKER_MB = 1024  # of one worker at any time; a case may ask sympy for up to 4 GB, and its worker is replaced then


class Gauge:
    """Memory and file descriptors of this process and of its children, sampled while it lasts."""

    def __init__(self) -> None:
        self.me = psutil.Process()
        self.worker_mb = 0.0
        self._ended, self._looking = threading.Event(), threading.Lock()

    def num_fds(self) -> int:
        with self._looking:  # which opens files of its own
            return self.me.num_fds()

    def parent_mb(self) -> float:
        return self.me.memory_info().rss / 1e6

    def __enter__(self) -> Gauge:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            with self._looking:
                for child in self.me.children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):  # it was just ended
                        self.worker_mb = max(self.worker_mb, child.memory_info().rss / 1e6)


@pytest.mark.parametrize("num", [300, pytest.param(10_000, marks=pytest.mark.faults)])
def test_hostile_texts_are_survived(num: int, capsys: pytest.CaptureFixture[str]) -> None:
    listed = cases(num)
    with Scorer(workers=2, timeout_s=LIMIT_S) as scorer, Gauge() as gauge:
        judge(scorer, cases(40, seed=1))  # imports, first caches
        started, parent_mb, fds = time.perf_counter(), gauge.parent_mb(), gauge.num_fds()
        wrong: list[str] = []
        reasons: Counter[Reason] = Counter()
        for begin in range(0, num, 256):
            part = listed[begin : begin + 256]
            verdicts = judge(scorer, part)
            reasons.update(v.reason for v in verdicts)
            wrong += [
                f"{c.kind}: {c.text[:80]!r} is {v.reason}"
                for c, v in zip(part, verdicts, strict=True)
                if not fits(c, v)
            ]
            assert gauge.num_fds() == fds, "two pipes a worker, and no more"
            assert len(gauge.me.children()) == 2, "two workers, and no zombie"
        wall_s, grown_mb = time.perf_counter() - started, gauge.parent_mb() - parent_mb
        longest_s, kills = scorer.longest_s, scorer.num_kills
    assert not gauge.me.children(recursive=True)
    with capsys.disabled():
        print(
            f"\n{num} hostile texts: {num / wall_s:.0f} a second, {kills} workers replaced, longest verdict {longest_s:.2f} s (limit "
            f"{LIMIT_S:g}), parent {grown_mb:+.0f} MB, largest worker {gauge.worker_mb:.0f} MB, {dict(reasons)}"
        )
    faults.told("hostile texts to a verifier", injected=num, survived=num - len(wrong))
    assert not wrong, wrong[:5]
    assert reasons[Reason.TIMEOUT] >= max(1, num // 500), "some of them must have hung"  # 46 to 66 of 10,000 do
    assert longest_s <= LIMIT_S + SLACK_S
    assert grown_mb < PARENT_MB
    assert gauge.worker_mb < WORKER_MB


def judge(scorer: Scorer, listed: list[Case]) -> list:
    return scorer.verify([(case.task, case.text) for case in listed])


def fits(case: Case, verdict) -> bool:
    """A sound text has its verdict; a hostile one any but right, and none that blames the verifier."""
    if case.correct is not None:
        return verdict.correct == case.correct and verdict.scorable
    return not verdict.correct and verdict.reason is not Reason.VERIFIER_ERROR


# --- inside what others start -----------------------------------------------------------------------------------------


@pytest.fixture
def scorer() -> Iterator[Scorer]:
    with Scorer(workers=1, timeout_s=LIMIT_S) as scorer:
        yield scorer


SOUND = [case for case in cases(60, seed=2) if case.correct is not None]
ONE_HANGS = [*SOUND[:3], next(case for case in cases(60, seed=2) if case.kind == "hang"), *SOUND[3:]]


def all_fit(scorer: Scorer) -> bool:
    return all(fits(c, v) for c, v in zip(ONE_HANGS, judge(scorer, ONE_HANGS), strict=True))


def test_in_a_thread(scorer: Scorer) -> None:
    """Where signal.alarm, by which other verifiers keep time, does nothing or raises."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(all_fit(scorer)))
    thread.start()
    thread.join(60)
    assert found == [True]
    assert scorer.num_kills == 1


@pytest.mark.parametrize("made", ["before the fork", "after it"])
def test_in_a_forked_process(made: str) -> None:
    """With a scorer of its own, or with its parent's, whose workers and pipes it then leaves alone."""
    with Scorer(workers=1, timeout_s=LIMIT_S) as scorer:
        assert all_fit(scorer)
        before = scorer._pool.workers[0].process.pid
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if made == "before the fork":
                    status = 0 if all_fit(scorer) else 2
                    scorer.close()
                else:
                    with Scorer(workers=1, timeout_s=LIMIT_S) as own:
                        status = 0 if all_fit(own) else 2
                if psutil.Process().children(recursive=True):
                    status = 3
            finally:
                os._exit(status)
        fresh = [case for case in cases(60, seed=3) if case.correct is not None]
        assert all(fits(c, v) for c, v in zip(fresh, judge(scorer, fresh), strict=True)), "at the same time as the fork"
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert scorer._pool.workers[0].process.pid == before, "the parent still has the worker it had"


def test_a_fork_that_never_asks_starts_nothing_and_ends_nothing(scorer: Scorer) -> None:
    assert all_fit(scorer)
    worker = scorer._pool.workers[0].process
    child = os.fork()
    if child == 0:
        try:
            scorer.close()
        finally:
            os._exit(0 if not psutil.Process().children() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert worker.poll() is None
    assert all_fit(scorer)


def test_in_a_ray_actor() -> None:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    here = [str(Path(__file__).parent), *sys.path]
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(here)}},
    )
    try:

        @ray.remote
        class Judge:
            def __init__(self) -> None:
                self.scorer = Scorer(workers=1, timeout_s=LIMIT_S)

            def ask(self) -> tuple[bool, int, float]:
                return all_fit(self.scorer), self.scorer.num_kills, self.scorer.longest_s

        right, kills, longest_s = ray.get(Judge.remote().ask.remote(), timeout=120)
        assert right
        assert kills == 1
        assert longest_s <= LIMIT_S + SLACK_S
    finally:
        ray.shutdown()
