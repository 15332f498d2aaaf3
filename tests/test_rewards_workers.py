"""The pool of verifier processes: deadlines, deaths, order, threads, and ends without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from strop.record import Reason, Task
from strop.rewards.scorer import Scorer
from strop.rewards.workers import CHUNK_BYTES

MOODY = f"{Path(__file__).parent / 'verifiers_for_tests.py'}:moody"
TIMEOUT_S = 2.0


def task(answer: str = "5", verifier: str = "moody") -> Task:
    return Task.make(source="test", prompt=f"Say {answer}.", answer=answer, verifier=verifier)


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(workers=2, timeout_s=TIMEOUT_S, verifiers={"moody": MOODY}) as scorer:
        yield scorer


def reasons(scorer: Scorer, *texts: str) -> list[Reason]:
    return [verdict.reason for verdict in scorer.verify([(task(), text) for text in texts])]


def test_verdicts_come_in_the_order_of_the_cases(scorer: Scorer) -> None:
    pairs = [(task(str(i)), str(i if i % 3 else i + 1)) for i in range(300)]
    verdicts = scorer.verify(pairs)
    assert [v.correct for v in verdicts] == [i % 3 > 0 for i in range(300)]
    assert [v.extracted for v in verdicts] == [text for _, text in pairs]


@pytest.mark.parametrize("text", ["hang", "burn"])
def test_a_case_past_its_deadline_is_a_timeout_and_its_neighbours_are_judged(scorer: Scorer, text: str) -> None:
    kills, start = scorer.num_kills, time.monotonic()
    cases = ["5", "6", text, *(f"x{text}{i}" for i in range(40)), "5"]
    assert reasons(scorer, *cases) == [
        Reason.CORRECT, Reason.WRONG, Reason.TIMEOUT, *[Reason.WRONG] * 40, Reason.CORRECT,
    ]  # fmt: skip
    assert scorer.num_kills == kills + 1
    assert time.monotonic() - start < 5 * TIMEOUT_S + 10


@pytest.mark.parametrize("text", ["die", "abort", "raise", "deep"])
def test_a_verifier_that_fails_is_an_error_and_its_neighbours_are_judged(scorer: Scorer, text: str) -> None:
    cases = ["5", text, *(f"y{text}{i}" for i in range(20))]
    assert reasons(scorer, *cases) == [Reason.CORRECT, Reason.VERIFIER_ERROR, *[Reason.WRONG] * 20]
    assert not scorer.verify([(task(), text)])[0].scorable


def test_what_a_verifier_prints_is_not_a_verdict(scorer: Scorer) -> None:
    assert reasons(scorer, "print", "5") == [Reason.WRONG, Reason.CORRECT]


def test_workers_import_no_torch(scorer: Scorer) -> None:
    assert scorer.verify([(task(), "modules")])[0].extracted == ""


def test_texts_larger_than_a_pipe(scorer: Scorer) -> None:
    big = "z" * (20 * CHUNK_BYTES)
    assert reasons(scorer, *(big + str(i) for i in range(8)), "5") == [*[Reason.WRONG] * 8, Reason.CORRECT]


def test_equal_cases_are_judged_once_and_failures_again(scorer: Scorer) -> None:
    first = scorer.verify([(task("a"), "pid")])[0].extracted
    kills = scorer.num_kills
    assert reasons(scorer, "die") == [Reason.VERIFIER_ERROR]
    assert reasons(scorer, "die") == [Reason.VERIFIER_ERROR]
    assert scorer.num_kills == kills + 2, "a failure must not be remembered"
    assert scorer.verify([(task("a"), "pid")] * 3)[2].extracted == first, "a verdict must be"


def test_from_many_threads_at_once(scorer: Scorer) -> None:
    wrong: list[str] = []

    def ask(name: str) -> None:
        verdicts = scorer.verify([(task(f"{name}{i}"), f"{name}{i}") for i in range(40)])
        wrong.extend(name for verdict in verdicts if not verdict.correct)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_hostile_mathematics_ends(scorer: Scorer) -> None:
    texts = [
        r"\boxed{9^{9^{9^9}}}",
        r"\boxed{\sum_{k=1}^{10^{12}} \sin(k^2)}",
        r"\boxed{\int_0^1 x^{x^x} dx}",
        r"\boxed{5}",
    ]
    verdicts = scorer.verify([(task(verifier="math"), text) for text in texts])
    assert [verdict.correct for verdict in verdicts] == [False, False, False, True]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_close_leaves_no_process() -> None:
    with Scorer(workers=2, timeout_s=TIMEOUT_S, verifiers={"moody": MOODY}) as scorer:
        pids = {int(v.extracted or 0) for v in scorer.verify([(task(str(i)), "pid") for i in range(60)])}
    assert pids
    assert not any(map(alive, pids)), "not even a zombie"
    scorer.close()
    with pytest.raises(RuntimeError, match="closed"):
        scorer.verify([(task("new"), "new")])


SCRIPT = f"""
import sys, threading
from strop.record import Task
from strop.rewards import Scorer
print("start", flush=True)
scorer = Scorer(workers=2, timeout_s=2.0, verifiers={{"moody": {MOODY!r}}})
task = Task.make(source="s", prompt="p", answer="5", verifier="moody")
print(scorer.verify([(task, "5")])[0].correct, flush=True)
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_a_script_without_a_main_guard_ends_cleanly(tmp_path: Path, as_module: bool) -> None:
    """Workers must not run the program again, and neither they nor the end of the program may hang."""
    (tmp_path / "program.py").write_text(SCRIPT)
    how = ["-m", "program"] if as_module else ["program.py"]
    done = subprocess.run([sys.executable, *how], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["start", "True"]
    assert done.stderr == ""


def test_when_the_parent_is_killed_the_workers_end(tmp_path: Path) -> None:
    """Also a worker in the middle of a number of a million digits."""
    ending = "print(scorer.verify([(task, 'pid')])[0].extracted, flush=True)\nscorer.verify([(task, 'burn')])"
    program = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("2.0", "0.5").replace("workers=2", "workers=1") + ending],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    lines = [program.stdout.readline() for _ in range(3)]
    program.kill()
    program.wait()
    deadline = time.monotonic() + 30
    while alive(int(lines[2])) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(int(lines[2]))
