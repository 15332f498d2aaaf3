"""A step's row: every number by hand, and that what does not apply is absent."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.metrics import NGRAM, PASS_BINS, pass_bin, repeated_frac, summarise
from strop.record import Reason, Rollout, Stop, Task, Verdict

PROMPT_TOKENS = 2


def attempt(
    group: int,
    length: int,
    reason: Reason | None,
    *,
    reward: float | None = None,
    logprob: float = -1.0,
    advantage: float = 0.0,
    parts: dict[str, float] | None = None,
    tokens: list[int] | None = None,
    trained: bool = True,
) -> Rollout:
    """A prompt of two tokens and a completion of `length`; one that is cut has the reason TRUNCATED."""
    task = Task.make(source="s", prompt=f"Compute {group} + 1.", answer=str(group + 1), verifier="math")
    ids = np.array([0] * PROMPT_TOKENS + (tokens or list(range(1, length + 1))), np.int32)
    sampled = np.arange(len(ids)) >= PROMPT_TOKENS
    verdict = None if reason is None else Verdict(correct=reason is Reason.CORRECT, extracted=None, reason=reason)
    return Rollout(
        task=task, group=group, sample=0, token_ids=ids, sampled=sampled, trained=sampled & trained, verdict=verdict,
        stop=Stop.LENGTH if reason is Reason.TRUNCATED else Stop.EOS, reward=reward, reward_parts=parts or {},
        sampler_logprobs=np.where(sampled, logprob, np.nan).astype(np.float32),
        advantages=np.where(sampled & trained, advantage, 0.0).astype(np.float32),
    )  # fmt: skip


RIGHT, WRONG, CUT, LATE = Reason.CORRECT, Reason.WRONG, Reason.TRUNCATED, Reason.TIMEOUT
STEP = [
    attempt(0, 4, RIGHT), attempt(0, 6, RIGHT), attempt(0, 10, CUT),  # a gap of 10 - 5
    attempt(1, 3, RIGHT), attempt(1, 2, WRONG),  # of 2 - 3
    attempt(2, 7, WRONG), attempt(2, 9, WRONG),  # none: nothing right
    attempt(3, 20, LATE), attempt(3, 1, RIGHT),  # none: what was not judged is not wrong
]  # fmt: skip


def test_lengths_by_outcome_by_hand() -> None:
    row = summarise(STEP)
    assert row["completions/mean_length"] == pytest.approx(62 / 9)
    assert row["completions/max_length"] == 20
    assert row["completions/clipped_ratio"] == pytest.approx(1 / 9)
    assert row["completions/mean_right_length"] == (4 + 6 + 3 + 1) / 4
    assert row["completions/mean_wrong_length"] == (10 + 2 + 7 + 9) / 4
    assert row["completions/mean_truncated_length"] == 10
    assert row["completions/wrong_clipped_ratio"] == 1 / 4
    assert row["completions/length_gap"] == (5 - 1) / 2
    assert row["completions/wrong_longer_frac"] == 1 / 2
    assert row["num_tokens_sampled"] == 62
    assert row["accuracy"] == pytest.approx(4 / 9)


def test_the_gap_is_blind_to_how_long_a_task_is() -> None:
    """Hard tasks are longer and more often wrong; within each task right and wrong are equally long."""
    step = [attempt(0, 5, RIGHT)] * 3 + [attempt(0, 5, WRONG)] + [attempt(1, 50, RIGHT)] + [attempt(1, 50, WRONG)] * 3
    row = summarise(step)
    assert row["completions/mean_wrong_length"] > 2 * row["completions/mean_right_length"]
    assert row["completions/length_gap"] == 0
    assert row["completions/wrong_longer_frac"] == 0


def test_pass_rates_by_hand() -> None:
    row = summarise(STEP)  # 2 of 3, 1 of 2, 0 of 2, 1 of 1 judged
    found = {name: row[f"frac_pass_rate/{name}"] for name in PASS_BINS}
    assert found == {"0": 0.25, "0-25": 0, "25-50": 0.25, "50-75": 0.25, "75-100": 0, "100": 0.25}


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_rate_lies_in_the_bin_that_names_it(rate: tuple[int, int]) -> None:
    num_right, num = rate
    low, _, high = pass_bin(num_right / num).partition("-")
    if high:
        assert int(low) * num < 100 * num_right <= int(high) * num
        assert num_right < num
    else:
        assert 100 * num_right == int(low) * num


def test_rewards_by_hand() -> None:
    step = [
        attempt(0, 1, RIGHT, reward=1.5, parts={"accuracy": 1.0, "format": 0.5}),
        attempt(0, 1, WRONG, reward=0.5, parts={"accuracy": 0.0, "format": 0.5}),
        attempt(1, 1, WRONG, reward=0.0, parts={"accuracy": 0.0}),
        attempt(1, 1, LATE, reward=None),
    ]
    row = summarise(step)
    assert row["reward"] == pytest.approx(2 / 3)
    assert row["reward_std"] == (0.5 + 0.0) / 2
    assert row["rewards/accuracy/mean"] == pytest.approx(1 / 3)
    assert row["rewards/format/mean"] == 0.5
    assert row["frac_reward_zero_std"] == 0.5
    assert (row["verdict/correct"], row["verdict/wrong"], row["verdict/timeout"]) == (1, 2, 1)


def test_surprisal_is_a_mean_over_tokens() -> None:
    step = [attempt(0, 4, RIGHT, logprob=-0.5), attempt(0, 2, WRONG, logprob=-2.0)]
    row = summarise(step)
    assert row["sampling/surprisal_right"] == 0.5
    assert row["sampling/surprisal_wrong"] == 2.0
    assert row["sampling/surprisal"] == (4 * 0.5 + 2 * 2.0) / 6


def test_surprisal_estimates_the_entropy_of_what_sampled_it() -> None:
    """Tokens drawn from a known distribution: its entropy within four standard errors."""
    p = np.array([0.7, 0.2, 0.1])
    drawn = np.random.default_rng(0).choice(3, size=4000, p=p)
    step = [attempt(0, 1, RIGHT, logprob=float(np.log(p[i]))) for i in drawn]
    entropy = float(-(p * np.log(p)).sum())
    error = float(np.sqrt((p * np.log(p) ** 2).sum() - entropy**2)) / np.sqrt(len(drawn))
    assert abs(summarise(step)["sampling/surprisal"] - entropy) < 4 * error


def test_credit_by_the_sign_of_the_advantage() -> None:
    step = [
        attempt(0, 2, RIGHT, advantage=1.0),
        attempt(0, 6, WRONG, advantage=-0.5),
        attempt(1, 2, WRONG),
        attempt(1, 9, CUT, advantage=-3.0, trained=False),  # has left the loss
    ]
    row = summarise(step)
    assert row["advantage/negative_weight_frac"] == 3.0 / 5.0
    assert row["advantage/negative_tokens_frac"] == 6 / 10
    assert row["advantage/positive_tokens_frac"] == 2 / 10


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4))
def test_repetition_equals_a_slow_loop(tokens: list[int], n: int) -> None:
    seen: list[list[int]] = []
    repeated = 0
    for start in range(len(tokens) - n + 1):
        repeated += tokens[start : start + n] in seen
        seen.append(tokens[start : start + n])
    assert repeated_frac(tokens, n) == pytest.approx(repeated / len(seen) if seen else 0.0)


def test_a_loop_repeats_whatever_its_period() -> None:
    for period in (1, 3, 20):
        assert repeated_frac([i % period for i in range(400)]) == 1 - period / (400 - NGRAM + 1)
    looping, short = attempt(0, 40, WRONG, tokens=[5, 6] * 20), attempt(0, NGRAM - 1, WRONG)
    assert summarise([looping, short])["completions/repetition_frac"] == (1 - 2 / (40 - NGRAM + 1)) / 2


def test_what_does_not_apply_is_absent() -> None:
    nothing_right = summarise([attempt(0, 3, WRONG), attempt(0, 4, LATE)])
    for key in ("mean_right_length", "mean_truncated_length", "length_gap", "wrong_longer_frac"):
        assert f"completions/{key}" not in nothing_right
    assert "sampling/surprisal_right" not in nothing_right
    assert "advantage/negative_weight_frac" not in nothing_right  # no token is pushed
    assert nothing_right["reward"] is None
    unjudged = summarise([attempt(0, 3, None), attempt(0, 4, None)])
    assert not [key for key in unjudged if key.startswith("frac_pass_rate/")]


def test_a_row_is_flat_and_json() -> None:
    row = json.loads(json.dumps(summarise(STEP), allow_nan=False))
    assert all(isinstance(value, int | float | None) for value in row.values())
