"""Advantages: by hand, against a slow loop, and the identities that hold whatever the rewards."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from strop.advantage import (
    BASELINES,
    CORRECTIONS,
    SCALES,
    acts,
    assign,
    gae,
    has_signal,
    lead,
    policy_lambda,
    sampled_kl,
)
from strop.config import PRESETS, Algorithm, Critic
from strop.record import Reason, Rollout, Stop, Task, Verdict, replace

TASKS = [Task.make(source="s", prompt=f"Compute {n} + 1.", answer=str(n + 1), verifier="math") for n in range(8)]


def attempt(group: int, sample: int, reward: float | None, *, num_tokens=3, stop=Stop.EOS, logprobs=None, ref=None):
    """A rollout of two prompt tokens and `num_tokens` sampled ones."""
    mask = np.arange(num_tokens + 2) >= 2
    pad = [math.nan, math.nan]
    return Rollout(
        task=TASKS[group], group=group, sample=sample, token_ids=np.zeros(num_tokens + 2, np.int32), sampled=mask,
        trained=mask, reward=reward, stop=stop,
        sampler_logprobs=None if logprobs is None else np.array(pad + logprobs, np.float32),
        ref_logprobs=None if ref is None else np.array(pad + ref, np.float32),
        values=np.zeros(num_tokens + 2, np.float32),  # a critic that has learned nothing
    )  # fmt: skip


def groups_of(*rewards_by_group: list[float | None]) -> list[Rollout]:
    return [attempt(g, s, r) for g, rewards in enumerate(rewards_by_group) for s, r in enumerate(rewards)]


def scalars(rollouts: list[Rollout]) -> list[float]:
    """The advantage of each rollout; checks on the way that it is one number on trained tokens and 0 elsewhere."""
    out = []
    for r in rollouts:
        assert r.advantages is not None
        assert (r.advantages[~r.trained] == 0).all()
        values = set(r.advantages[r.trained].tolist())
        assert len(values) <= 1
        out.append(values.pop() if values else 0.0)
    return out


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        # rewards 1, 0, 0, 0: mean 0.25; deviation with ddof 1 is sqrt(0.75 / 3) = 0.5
        ({"preset": "grpo"}, [0.75 / 0.5001] + 3 * [-0.25 / 0.5001]),
        ({"preset": "dapo"}, [0.75 / 0.5001] + 3 * [-0.25 / 0.5001]),
        ({"preset": "dr_grpo"}, [0.75, -0.25, -0.25, -0.25]),
        # siblings' means: 0 for the winner, 1/3 for the others
        ({"preset": "rloo"}, [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ({"baseline": "none", "scale": "none"}, [1.0, 0.0, 0.0, 0.0]),
        ({"baseline": "none", "scale": "group_std"}, [1 / 0.5001, 0.0, 0.0, 0.0]),
        ({"baseline": "leave_one_out", "scale": "group_std"}, [1 / 0.5001] + 3 * [-1 / 1.5003]),
    ],
)
def test_one_group_by_hand(axes, expected):
    assert scalars(assign(groups_of([1.0, 0.0, 0.0, 0.0]), Algorithm(**axes), seed=0)) == pytest.approx(
        expected, rel=1e-6
    )


def test_batch_std_is_of_raw_rewards_over_the_step():
    rollouts = assign(groups_of([1.0, 0.0], [1.0, 1.0]), Algorithm(preset="grpo", scale="batch_std"), seed=0)
    # all four: mean 0.75, squares 3 * 0.0625 + 0.5625 = 0.75, / 3 = 0.25, deviation 0.5
    assert scalars(rollouts) == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001, 0, 0], rel=1e-6)


def slow(rewards_by_group, baseline, scale):
    """The same in plain Python, rollout by rollout."""
    every = [r for rewards in rewards_by_group for r in rewards if r is not None]
    out = []
    for rewards in rewards_by_group:
        scorable = [r for r in rewards if r is not None]
        for i, reward in enumerate(rewards):
            if reward is None:
                out.append(0.0)
                continue
            siblings = [r for j, r in enumerate(rewards) if j != i and r is not None]
            compared = {
                "group_mean": sum(scorable) / len(scorable),
                "leave_one_out": sum(siblings) / len(siblings) if siblings else reward,
                "none": 0.0,
            }[baseline]
            spread_of = {"group_std": scorable, "batch_std": every, "none": None, "whiten": None}[scale]
            spread = 1.0
            if spread_of is not None and len(spread_of) > 1 and statistics.stdev(spread_of) > 0:
                spread = statistics.stdev(spread_of) + 1e-4
            out.append((reward - compared) / spread)
    if scale == "whiten":  # all rollouts of this file's steps have as many tokens, so rollouts weigh as tokens do
        counted = [
            a for a, r in zip(out, (r for rewards in rewards_by_group for r in rewards), strict=True) if r is not None
        ]
        tokens = [a for a in counted for _ in range(3)]
        mean, spread = statistics.fmean(tokens), statistics.stdev(tokens) + 1e-4
        flat = [r for rewards in rewards_by_group for r in rewards]
        out = [0.0 if r is None else (a - mean) / spread for a, r in zip(out, flat, strict=True)]
    return out


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_pair_of_axes_equals_a_slow_loop(baseline, scale):
    rng = np.random.default_rng(0)
    steps = [[[float(x) for x in rng.choice([0, 1, -0.5, 0.3], size=5)] for _ in range(6)] for _ in range(4)]
    steps[1][2][3] = steps[1][2][0] = steps[2][0][4] = None
    steps[3][1] = [None, None, None, None, 0.25]  # one scorable rollout alone
    steps[3][2] = [None] * 5
    for rewards_by_group in steps:
        got = scalars(assign(groups_of(*rewards_by_group), Algorithm(baseline=baseline, scale=scale), seed=0))
        assert got == pytest.approx(slow(rewards_by_group, baseline, scale), rel=1e-6, abs=1e-7)


def test_whitening_counts_tokens_not_rollouts():
    """Advantages 1 (two tokens) and 0 (six): mean 0.25, deviation sqrt((2 x 0.5625 + 6 x 0.0625) / 7) = 0.46291."""
    rollouts = [attempt(0, 0, 1.0, num_tokens=2), attempt(0, 1, 0.0, num_tokens=6)]
    out = assign(rollouts, Algorithm(baseline="none", scale="whiten"), seed=0)
    assert scalars(out) == pytest.approx([0.75 / 0.46301, -0.25 / 0.46301], rel=1e-4)


def test_without_a_baseline_the_kl_is_charged_from_each_token_on():
    r = attempt(0, 0, 1.0, num_tokens=3, logprobs=[-0.5, -1.0, -1.0], ref=[-1.0, -0.5, -2.0])  # k1 = 0.5, -0.5, 1.0
    algorithm = Algorithm(preset="reinforce_pp", scale="none", kl_coef=0.1)
    (out,) = assign([r], algorithm, seed=0)
    assert out.advantages[r.trained].tolist() == pytest.approx([1 - 0.1, 1 - 0.05, 1 - 0.1])
    (zero,) = assign([r], Algorithm(preset="reinforce_pp", scale="none", kl_coef=0.1, advantages="zero"), seed=0)
    assert not zero.advantages.any()


# --- a critic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_equals_its_sum(gamma, lam):
    """The formula as printed, term by term."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 7):
        rewards, values = rng.normal(size=n), rng.normal(size=n)
        errors = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
        slow = [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, n)) for t in range(n)]
        assert gae(rewards, values, gamma, lam) == pytest.approx(slow, rel=1e-12, abs=1e-12)


def test_gae_at_its_two_ends():
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=9), rng.normal(size=9)
    to_come = np.cumsum(rewards[::-1])[::-1]
    assert gae(rewards, values, 1.0, 1.0) == pytest.approx(to_come - values), "GAE(1, 1) is return minus value"
    assert gae(rewards, values, 1.0, 0.0) == pytest.approx(rewards + np.append(values[1:], 0) - values), "one step"


def test_a_critic_credits_each_token_by_hand():
    """Reward 1 at the end of three tokens, values 0.2, 0.5, 0.9: at lambda 1 each advantage is 1 - V; the environment's
    token in between has none, and no value."""
    r = attempt(0, 0, 1.0, num_tokens=4)
    mask = np.array([False, False, True, True, False, True])
    values = np.array([math.nan, math.nan, 0.2, 0.5, math.nan, 0.9], np.float32)
    r = replace(r, sampled=mask, trained=mask, values=values)
    (out,) = assign([r], Algorithm(preset="ppo", scale="none"), seed=0)
    assert out.advantages.tolist() == pytest.approx([0, 0, 0.8, 0.5, 0, 0.1])
    assert out.returns[mask].tolist() == pytest.approx([1, 1, 1])
    half = Algorithm(preset="ppo", scale="none", critic={"gae_lambda": 0.5})
    (out,) = assign([r], half, seed=0)  # errors 0.3, 0.4, 0.1
    assert out.advantages[mask].tolist() == pytest.approx([0.3 + 0.5 * 0.4 + 0.25 * 0.1, 0.4 + 0.5 * 0.1, 0.1])
    assert out.returns[mask].tolist() == pytest.approx([1, 1, 1]), "returns are what came, whatever lambda"


def test_a_critic_pays_the_kl_token_by_token():
    r = attempt(0, 0, 1.0, num_tokens=2, logprobs=[-0.5, -1.0], ref=[-1.0, -2.0])  # k1 = 0.5, 1.0
    (out,) = assign([r], Algorithm(preset="ppo", scale="none", kl_coef=0.1), seed=0)
    assert out.advantages[2:].tolist() == pytest.approx([1 - 0.05 - 0.1, 1 - 0.1])
    assert out.returns[2:].tolist() == pytest.approx([0.85, 0.9])


def test_rewards_of_single_tokens_by_hand():
    """Of a reward of 0.4, -0.5 and -0.1 were earned by the first two of three tokens, so 1 by the last."""
    earned = np.array([0.0, 0.0, -0.5, -0.1, 0.0], np.float32)
    alone = replace(attempt(0, 0, 0.4), token_rewards=earned)
    plain = {"clip_low": 0.2, "clip_high": 0.2, "scale": "none"}
    without = Algorithm(baseline="none", **plain)
    (credited,) = assign([alone], without, seed=0)
    assert credited.advantages[2:].tolist() == pytest.approx([0.4, 0.9, 1.0])  # what is still to come
    values = np.array([0, 0, 0.5, 0.25, 0.0], np.float32)
    critic = Algorithm(baseline="critic", critic={"kind": "head", "gae_lambda": 0.5}, **plain)
    (credited,) = assign([replace(alone, values=values)], critic, seed=0)
    errors = [-0.5 + 0.25 - 0.5, -0.1 + 0.0 - 0.25, 1.0 + 0.0 - 0.0]
    expected = [errors[0] + 0.5 * (errors[1] + 0.5 * errors[2]), errors[1] + 0.5 * errors[2], errors[2]]
    assert credited.advantages[2:].tolist() == pytest.approx(expected)
    assert credited.returns[2:].tolist() == pytest.approx([0.4, 0.9, 1.0])
    pair = [alone, attempt(0, 1, 0.0)]
    siblings = assign(pair, Algorithm(preset="dr_grpo"), seed=0)
    assert scalars(siblings) == pytest.approx([0.2, -0.2])  # wholes


def test_shuffled_rewards_do_not_tell_where_they_were_earned():
    earned = np.array([0.0, 0.0, -1.0, 0.0, 0.0], np.float32)
    step = [replace(attempt(0, s, -1.0 * (s == 0)), token_rewards=earned * (s == 0)) for s in range(4)]
    for axes in ({"baseline": "none"}, {"baseline": "critic", "critic": {"kind": "head"}}):
        shuffled = assign(step, Algorithm(**axes, scale="none", advantages="shuffled"), seed=1)
        assert sorted(scalars(shuffled)) == [-1.0, 0.0, 0.0, 0.0]  # the same for every token of a rollout


def test_a_critic_that_knows_nothing_and_lambda_1_is_reinforce():
    rewards = ([1.0, 0.0, 0.25], [0.5, 0.0, 1.0])
    with_it = scalars(assign(groups_of(*rewards), Algorithm(preset="ppo"), seed=0))
    without = scalars(assign(groups_of(*rewards), Algorithm(preset="reinforce_pp"), seed=0))
    assert with_it == pytest.approx(without)


def test_an_adaptive_lambda_is_never_negative():
    critic = Critic(kind="head", lambda_alpha=0.05)
    assert [policy_lambda(n, critic) for n in (1, 19, 20)] == [0.0, 0.0, 0.0]
    assert policy_lambda(40, critic) == pytest.approx(0.5)
    assert policy_lambda(40, Critic(kind="head", gae_lambda=0.9)) == 0.9


# --- weights of advantages --------------------------------------------------------------------------------------------


def verdict(correct: bool) -> Verdict:
    return Verdict(correct=correct, extracted=None, reason=Reason.CORRECT if correct else Reason.WRONG)


def test_difficulty_weighs_right_answers_to_hard_tasks_and_wrong_ones_to_easy_tasks():
    rewards = [1.0, 0.0, 0.0, 0.0]
    rollouts = [replace(r, verdict=verdict(r.reward == 1.0)) for r in groups_of(rewards)]
    plain = scalars(assign(rollouts, Algorithm(preset="dr_grpo"), seed=0))
    shaped = scalars(assign(rollouts, Algorithm(preset="dr_grpo", difficulty="lead"), seed=0))
    right, wrong = 0.4 + 1.1 / (1 + math.exp(10 * (0.25 - 0.75))), 0.4 + 1.1 / (1 + math.exp(10 * (0.75 - 0.75)))
    assert shaped == pytest.approx([plain[0] * right] + [a * wrong for a in plain[1:]], rel=1e-6)
    assert lead(0.25, 1.0) == right
    assert lead(0.25, -1.0) == wrong == pytest.approx(0.95)


def test_decoupled_rewards_are_credited_one_by_one():
    """Accuracy 1, 0 and a format worth 100, 0, 0, 0 drown each other in a sum, and weigh alike when decoupled."""
    parts = [{"accuracy": 1.0, "loud": 0.0}, {"accuracy": 0.0, "loud": 0.0}, {"accuracy": 0.0, "loud": 100.0}, {"accuracy": 1.0, "loud": 0.0}]  # fmt: skip
    rollouts = [replace(attempt(0, i, sum(p.values())), reward_parts=p) for i, p in enumerate(parts)]
    algorithm = Algorithm(preset="dapo", decoupled=True)
    got = scalars(assign(rollouts, algorithm, seed=0, reward_weights={"accuracy": 1.0, "loud": 0.5}))
    first, second = [1, 0, 0, 1], [0, 0, 100, 0]
    each = [[(v - statistics.fmean(x)) / (statistics.stdev(x) + 1e-4) for v in x] for x in (first, second)]
    total = [a + 0.5 * b for a, b in zip(*each, strict=True)]
    spread = statistics.stdev(total) + 1e-4
    assert got == pytest.approx([(t - statistics.fmean(total)) / spread for t in total], rel=1e-5)


def test_decoupled_rewards_leave_silent_groups_silent():
    """The last centring is over all rollouts; what is left of it by rounding must not wake a group of equal rewards."""
    rollouts = [replace(r, reward_parts={"accuracy": r.reward}) for r in groups_of([1.0, 0.0, 0.0], [1.0, 1.0, 1.0])]
    out = assign(rollouts, Algorithm(preset="dapo", decoupled=True), seed=0)
    assert has_signal(out[:3])
    assert scalars(out[3:]) == [0.0, 0.0, 0.0]
    assert not has_signal(out[3:])


@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_by_hand(name):
    """Ratios 4 and 0.25 with a cap of 2: their product is 1, so the whole rollout passes."""
    sampler, old = [math.log(0.1), math.log(0.8)], [math.log(0.4), math.log(0.2)]
    rollouts = [attempt(0, 0, 1.0, num_tokens=2, logprobs=sampler), attempt(0, 1, 0.0, num_tokens=2, logprobs=sampler)]
    pad = np.array([math.nan, math.nan])
    rollouts = [replace(r, old_logprobs=np.concatenate([pad, old]).astype(np.float32)) for r in rollouts]
    out = assign(rollouts, Algorithm(preset="dr_grpo", correction=name), seed=0)
    weights = {
        "token_truncate": [2.0, 0.25],
        "token_mask": [0.0, 0.25],
        "sequence_truncate": [1.0, 1.0],
        "sequence_mask": [1.0, 1.0],
    }[name]
    assert out[0].advantages[2:].tolist() == pytest.approx([0.5 * w for w in weights], rel=1e-5)
    assert out[1].advantages[2:].tolist() == pytest.approx([-0.5 * w for w in weights], rel=1e-5)
    far = [replace(r, old_logprobs=np.concatenate([pad, [-0.1, -0.1]]).astype(np.float32)) for r in rollouts]
    out = assign(far, Algorithm(preset="dr_grpo", correction=name), seed=0)  # ratios 9.05 and 1.13
    weights = {"token_truncate": [2.0, 1.1310], "token_mask": [0.0, 1.1310], "sequence_truncate": [2.0, 2.0], "sequence_mask": [0.0, 0.0]}[name]  # fmt: skip
    assert out[0].advantages[2:].tolist() == pytest.approx([0.5 * w for w in weights], rel=1e-4)


def test_leave_one_out_is_centred_times_g_over_g_minus_1():
    rewards = [0.3, 1.0, -2.0, 0.0, 5.5, 0.3]
    centred = scalars(assign(groups_of(rewards), Algorithm(preset="dr_grpo"), seed=0))
    left_out = scalars(assign(groups_of(rewards), Algorithm(preset="rloo"), seed=0))
    assert left_out == pytest.approx([a * 6 / 5 for a in centred], rel=1e-6)


@pytest.mark.parametrize("preset", [name for name, row in PRESETS.items() if "credit" not in row])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.7 + 0.1])
def test_equal_rewards_give_exactly_no_signal(preset, reward):
    """0.1 and 0.7 + 0.1 have means that differ from them by rounding."""
    rollouts = assign(groups_of([reward] * 3, [reward] * 7), Algorithm(preset=preset), seed=0)
    assert scalars(rollouts) == [0.0] * 10
    assert not has_signal(rollouts)


def test_rewards_equal_up_to_rounding_give_no_signal():
    rollouts = assign(groups_of([0.3, 0.1 + 0.2, 0.3]), Algorithm(preset="grpo"), seed=0)
    assert not has_signal(rollouts)


def test_unscorable_leaves_baseline_and_loss():
    with_it = assign(groups_of([1.0, None, 0.0, 0.0]), Algorithm(preset="rloo"), seed=0)
    without = assign(groups_of([1.0, 0.0, 0.0]), Algorithm(preset="rloo"), seed=0)
    kept = [r for r in with_it if r.reward is not None]
    assert scalars(kept) == scalars(without)
    assert with_it[1].num_trained == 0
    assert [r.num_trained for r in kept] == [3, 3, 3]
    assert with_it[1].num_sampled == 3, "what was sampled is a fact, whatever the loss does with it"


def test_overlong_filter_leaves_the_loss_but_counts_in_the_baseline():
    rollouts = [attempt(0, 0, 1.0), attempt(0, 1, 0.0, stop=Stop.LENGTH), attempt(0, 2, 0.0), attempt(0, 3, 0.0)]
    out = assign(rollouts, Algorithm(preset="dr_grpo", overlong_filter=True), seed=0)
    assert scalars(out) == pytest.approx([0.75, 0.0, -0.25, -0.25])
    assert [r.num_trained for r in out] == [3, 0, 3, 3]
    assert scalars(assign(rollouts, Algorithm(preset="dr_grpo"), seed=0))[1] == pytest.approx(-0.25)


def test_a_group_whose_only_signal_was_filtered_has_none():
    # The baseline is 0 without one; the only nonzero reward belongs to a truncated rollout.
    rollouts = [attempt(0, 0, 1.0, stop=Stop.LENGTH), attempt(0, 1, 0.0)]
    out = assign(rollouts, Algorithm(baseline="none", scale="none", overlong_filter=True), seed=0)
    assert not has_signal(out)


def test_kl_in_the_reward_by_hand():
    one = attempt(0, 0, 1.0, num_tokens=2, logprobs=[-0.5, -1.0], ref=[-1.0, -1.5])  # k1 = 0.5 + 0.5
    two = attempt(0, 1, 0.0, num_tokens=2, logprobs=[-2.0, -1.0], ref=[-1.0, -0.5])  # k1 = -1.0 - 0.5: may be negative
    assert sampled_kl(one) == pytest.approx(1.0)
    assert sampled_kl(two) == pytest.approx(-1.5)
    out = assign([one, two], Algorithm(preset="rloo", kl_coef=0.1), seed=0)
    # 1 - 0.1 = 0.9 against 0 + 0.15 = 0.15
    assert scalars(out) == pytest.approx([0.75, -0.75], rel=1e-6)
    assert [r.reward for r in out] == [1.0, 0.0], "the record keeps the reward as scored"


def test_kl_in_the_reward_ignores_tokens_that_were_not_sampled():
    r = attempt(0, 0, 1.0, num_tokens=2, logprobs=[-0.5, -9.0], ref=[-1.0, -1.5])
    environment_said = np.array([False, False, True, False])
    masked = Rollout(
        task=r.task, group=0, sample=0, token_ids=r.token_ids, sampled=environment_said, trained=environment_said,
        sampler_logprobs=r.sampler_logprobs, ref_logprobs=r.ref_logprobs,
    )  # fmt: skip
    assert sampled_kl(masked) == pytest.approx(0.5)


def test_zero_control_trains_the_same_tokens_with_no_advantage():
    out = assign(groups_of([1.0, 0.0, None]), Algorithm(advantages="zero"), seed=0)
    assert scalars(out) == [0.0, 0.0, 0.0]
    assert [r.num_trained for r in out] == [3, 3, 0]
    assert not has_signal(out)


def test_shuffled_control_permutes_the_scorable_rewards_of_the_step():
    rewards = [[float(10 * g + s) for s in range(5)] for g in range(8)]
    rewards[3][2] = None
    plain = Algorithm(baseline="none", scale="none")
    shuffled = Algorithm(baseline="none", scale="none", advantages="shuffled")
    as_scored = scalars(assign(groups_of(*rewards), plain, seed=1))
    once, again, other = (scalars(assign(groups_of(*rewards), shuffled, seed=s)) for s in (1, 1, 2))
    assert once == again != other
    assert sorted(once) == sorted(as_scored)
    assert once[17] == 0.0, "the unscorable rollout stays out"
    moved_between_groups = sum(int(a // 10 != b // 10) for a, b in zip(as_scored, once, strict=True))
    assert moved_between_groups > 20
    # No relation to the true rewards is left: over seeds the correlation averages to 0 (one seed: +-0.16).
    present = [i for i in range(40) if i != 17]
    draws = [np.array(scalars(assign(groups_of(*rewards), shuffled, seed=s))) for s in range(60)]
    correlations = [np.corrcoef(np.array(as_scored)[present], draw[present])[0, 1] for draw in draws]
    assert abs(np.mean(correlations)) < 0.07


def test_order_of_the_rollouts_does_not_matter():
    rollouts = groups_of([1.0, 0.0, 0.5], [0.0, 0.25, 0.0], [1.0, 1.0, 0.0])
    order = np.random.default_rng(0).permutation(len(rollouts))
    algorithm = Algorithm(preset="grpo")
    straight = scalars(assign(rollouts, algorithm, seed=0))
    mixed = scalars(assign([rollouts[i] for i in order], algorithm, seed=0))
    assert mixed == pytest.approx([straight[i] for i in order], rel=1e-6)


def test_all_groups_act_when_a_kl_is_in_the_loss():
    silent = assign(groups_of([1.0, 1.0]), Algorithm(preset="grpo"), seed=0)
    assert not acts(silent, Algorithm(preset="grpo"))
    assert acts(silent, Algorithm(preset="grpo", kl_coef=0.01))
    assert acts(assign(groups_of([1.0, 0.0]), Algorithm(preset="dapo"), seed=0), Algorithm(preset="dapo"))
    unscorable = assign(groups_of([None, None]), Algorithm(preset="grpo"), seed=0)
    assert not acts(unscorable, Algorithm(preset="grpo", kl_coef=0.01))


def test_no_rollouts_and_inputs_left_alone():
    assert assign([], Algorithm(), seed=0) == []
    rollouts = groups_of([1.0, 0.0])
    assign(rollouts, Algorithm(), seed=0)
    assert rollouts[0].advantages is None
