"""From answers to figures, by hand; that the stage asks the same of every model is tested with whole runs."""

from __future__ import annotations

import numpy as np
import pytest

from strop import evaluate, stats
from strop.record import Reason, Rollout, Stop, Task, Verdict


def answer(gold: str, given: str | None, tokens: int, stop: Stop = Stop.EOS) -> Rollout:
    task = Task.make(source="s", prompt=f"Who? {gold}", answer=gold, verifier="exact")
    ids = np.arange(tokens + 1, dtype=np.int32)
    correct = given is not None and given.casefold() == gold.casefold()
    reason = Reason.CORRECT if correct else Reason.WRONG if given else Reason.NO_ANSWER
    verdict = Verdict(correct=correct, extracted=given, reason=reason)
    return Rollout(
        task=task, group=0, sample=0, token_ids=ids, sampled=ids > 0, trained=ids < 0, stop=stop, verdict=verdict
    )


def test_figures_by_hand() -> None:
    found = evaluate.figures(
        [
            answer("A", "a", 4),
            answer("A", "A", 2),
            answer("B", "A", 6, Stop.LENGTH),
            answer("C", None, 8),
        ]
    )
    assert found["num_tasks"] == 4
    assert found["greedy_acc"] == 0.5
    assert found["ci95"] == pytest.approx(list(stats.wilson(2, 4)))
    assert found["mean_tokens"] == 5.0
    assert found["truncated_frac"] == 0.25
    assert found["verdict_reasons"] == {"correct": 2, "wrong": 1, "no_answer": 1}
    assert found["constant_acc"] == 0.5  # two of four gold answers are A
    assert found["commonest_frac"] == 0.75  # a, A, A
    assert (found["mean_acc"], found["num_samples"]) == (None, 0)


def test_answers_that_were_not_found_are_not_alike() -> None:
    assert evaluate.figures([answer("A", None, 1) for _ in range(5)])["commonest_frac"] == 0.2
