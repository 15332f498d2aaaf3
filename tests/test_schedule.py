"""What changes from step to step: weights of rewards on a line, and the gate that accuracy opens and shuts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.config import RewardSpec
from strop.schedule import holds_accuracy, reward_weight


def rows(*accuracy: float) -> list[dict[str, object]]:
    return [{"kind": "train", "step": i, "accuracy": a} for i, a in enumerate(accuracy, start=1)]


def test_a_weight_stays_unless_it_is_told_to_move() -> None:
    spec = RewardSpec(name="accuracy", weight=2.0)
    assert [reward_weight(spec, step, rows()) for step in (1, 7, 1000)] == [2.0] * 3


@pytest.mark.parametrize(("weight", "until"), [(0.0, 1.0), (1.0, 0.0), (-0.5, 0.1)])
def test_a_weight_goes_straight_from_one_end_to_the_other(weight: float, until: float) -> None:
    spec = RewardSpec(name="kimi", weight=weight, until_weight=until, over_steps=10)
    found = [reward_weight(spec, step, []) for step in range(1, 14)]
    assert found == pytest.approx([weight + (until - weight) * min(i, 10) / 10 for i in range(13)])
    assert found[0] == weight
    assert found[10:] == [until] * 3  # exactly, whatever rounding does on the way


def test_the_gate_opens_shuts_and_opens_again() -> None:
    spec = RewardSpec(name="short_rl", weight=0.5, accuracy_tolerance=0.05)
    accuracy = [0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.1, 0.1, 0.6, 0.9, 0.9, 0.9]
    # Means of five: .40 .48 .54 .48 .40 .40 .46 .52 .68, the best so far .40 .48 .54 .54 .54 .54 .54 .54 .68
    expected = [0.0] * 5 + [0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5]
    assert [reward_weight(spec, i + 1, rows(*accuracy[:i])) for i in range(14)] == expected


def test_gate_and_line_together() -> None:
    spec = RewardSpec(name="kimi", weight=0.0, until_weight=1.0, over_steps=10, accuracy_tolerance=0.0)
    assert reward_weight(spec, 6, rows(*[0.5] * 5)) == 0.5
    assert reward_weight(spec, 7, rows(*[0.5] * 5, 0.4)) == 0.0
    assert reward_weight(spec, 5, rows(*[0.5] * 4)) == 0.0


@given(st.lists(st.floats(0, 1), max_size=20), st.floats(0, 0.5))
def test_the_gate_is_that_of_a_slow_loop(accuracy: list[float], tolerance: float) -> None:
    best, current = None, None
    for end in range(5, len(accuracy) + 1):
        current = sum(accuracy[end - 5 : end]) / 5
        best = current if best is None else max(best, current)
    expected = best is not None and current is not None and current - best >= -tolerance
    slack = 0 if best is None or current is None else abs(current - best + tolerance)
    assert holds_accuracy(accuracy, tolerance) == expected or slack < 1e-12
    if len(accuracy) >= 5:
        assert holds_accuracy([*accuracy, *[1.0] * 5], tolerance), "never shut at its best"
