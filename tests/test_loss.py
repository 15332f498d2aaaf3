"""Losses: by hand, against a slow fp64 loop with autograd, the identities, overflow, and the length-bias toy."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from strop.config import PRESETS, Algorithm
from strop.loss import AGGREGATES, CLIPS, KLS, RATIOS, k1, k2, k3, policy_loss, sft_loss, token_weights, value_loss

MAX_TOKENS = 9
BOUNDS = [
    {"clip_low": None, "clip_high": None},
    {"clip_low": 0.2, "clip_high": 0.2},
    {"clip_low": 0.2, "clip_high": 0.28},
]
COSTS = [{"kl": "none"}, *({"kl": "loss", "kl_coef": 0.3, "kl_estimator": name} for name in KLS)]
# Every combination of the axes, so also every preset and every change of one axis of a preset.
REWARDED = {name: row for name, row in PRESETS.items() if "credit" not in row}  # a teacher's tokens have the same loss
EVERY = [
    {"ratio": ratio, "aggregate": aggregate, "clip": clip, **bounds, **cost}
    for ratio, aggregate, clip, bounds, cost in itertools.product(RATIOS, AGGREGATES, CLIPS, BOUNDS, COSTS)
    if (ratio, clip) != ("sequence", "surrogate") or aggregate == "sequence_mean"  # the others are refused
]


def tensor(values, **options) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, **options)


def batch(seed: int = 0, spread: float = 0.35) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Eight rollouts of 1 to 7 tokens, off-policy enough for both clips, with advantages of both signs and 0."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [3, 1, 7, 2, 5, 4, 1, 6]
    n = sum(lengths)
    logprobs = -torch.rand(n, generator=generator, dtype=torch.float64) * 3
    per_rollout = tensor([1.3, -0.7, -1.1, 0.9, 0.0, -0.2, 2.0, 0.4])
    rollout = torch.repeat_interleave(torch.arange(8), torch.tensor(lengths))
    return lengths, {
        "logprobs_T": logprobs,
        "old_logprobs_T": logprobs + spread * torch.randn(n, generator=generator, dtype=torch.float64),
        "ref_logprobs_T": logprobs + 0.5 * torch.randn(n, generator=generator, dtype=torch.float64),
        "advantages_T": per_rollout[rollout],
        "rollout_T": rollout,
    }


def weights(lengths: list[int], algorithm: Algorithm) -> torch.Tensor:
    per_rollout = tensor(token_weights(lengths, algorithm.aggregate, MAX_TOKENS))
    return per_rollout[torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))]


def slow_loss(lengths, logprobs, old, ref, advantages, algorithm: Algorithm):
    """The formulas as papers print them, token by token, in Python floats or scalar tensors (which carry gradient)."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    rollouts = []  # one list of token losses each
    for start, length in zip(starts, lengths, strict=True):
        whole = sum(logprobs[t] - old[t] for t in range(start, start + length))
        losses = []
        for t in range(start, start + length):
            log_ratio = {"token": logprobs[t] - old[t], "sequence": whole, "sequence_mean": whole / length}
            ratio = torch.exp(log_ratio[algorithm.ratio])
            low = -math.inf if algorithm.clip_low is None else 1 - algorithm.clip_low
            high = math.inf if algorithm.clip_high is None else 1 + algorithm.clip_high
            clipped = torch.clamp(ratio, low, high)
            if algorithm.clip == "weight":
                gain = clipped.detach() * advantages[t] * logprobs[t]
            else:
                gain = torch.minimum(ratio * advantages[t], clipped * advantages[t])
            loss = -gain
            if algorithm.kl == "loss":
                d = ref[t] - logprobs[t]
                loss = (
                    loss
                    + algorithm.kl_coef
                    * {"k1": -d, "k2": d * d / 2, "k3": torch.exp(d) - d - 1}[algorithm.kl_estimator]
                )
            losses.append(loss)
        rollouts.append(losses)
    if algorithm.aggregate == "token_mean":
        return sum(sum(losses) for losses in rollouts) / sum(lengths)
    if algorithm.aggregate == "sequence_mean":
        return sum(sum(losses) / len(losses) for losses in rollouts) / len(rollouts)
    return sum(sum(losses) for losses in rollouts) / (len(rollouts) * MAX_TOKENS)


def loss_and_gradient(data: dict[str, torch.Tensor], weights_T: torch.Tensor, algorithm: Algorithm):
    leaf = data["logprobs_T"].detach().clone().requires_grad_()
    loss, sums = policy_loss(**{**data, "logprobs_T": leaf}, weights_T=weights_T, algorithm=algorithm)
    loss.backward()
    return loss.detach(), leaf.grad, sums


@pytest.mark.parametrize(
    "axes", [*({"preset": name, "kl_coef": 0.1 * (row["kl"] != "none")} for name, row in REWARDED.items()), *EVERY]
)
def test_equals_the_slow_loop_with_its_gradient(axes):
    algorithm = Algorithm(**axes)
    lengths, data = batch()
    loss, gradient, _ = loss_and_gradient(data, weights(lengths, algorithm), algorithm)
    leaf = data["logprobs_T"].clone().requires_grad_()
    columns = (data["old_logprobs_T"], data["ref_logprobs_T"], data["advantages_T"])
    expected = slow_loss(lengths, leaf, *columns, algorithm)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-12, atol=1e-14)


def test_by_hand():
    """Two rollouts of 2 and 1 tokens; ratios 1.5, 0.5 (A = 2) and 0.5 (A = -1); clip 0.2 / 0.28."""
    data = {
        "logprobs_T": tensor([math.log(1.5), math.log(0.5), math.log(0.5)]) - 1,
        "old_logprobs_T": tensor([-1.0, -1.0, -1.0]),
        "ref_logprobs_T": None,
        "advantages_T": tensor([2.0, 2.0, -1.0]),
        "rollout_T": torch.tensor([0, 0, 1]),
    }
    # token losses: -min(3, 2.56) = -2.56; -min(1, 1.6) = -1; -min(-0.5, -0.8) = 0.8
    expected = {
        "token_mean": (-2.56 - 1 + 0.8) / 3,
        "sequence_mean": ((-2.56 - 1) / 2 + 0.8) / 2,
        "constant": (-2.56 - 1 + 0.8) / (2 * MAX_TOKENS),
    }
    for aggregate, value in expected.items():
        algorithm = Algorithm(preset="dapo", aggregate=aggregate)
        loss, gradient, sums = loss_and_gradient(data, weights([2, 1], algorithm), algorithm)
        assert loss.item() == pytest.approx(value)
        assert gradient[0] == gradient[2] == 0
        assert {k: v.item() for k, v in sums.items()} == pytest.approx(
            {"num_tokens": 3, "ratio": 2.5, "clip_low": 1, "clip_high": 1}
        )
    # rloo: the ratio of the first rollout is 1.5 x 0.5 = 0.75, no clip: (-0.75 x 2 + 0.5) / 2
    algorithm = Algorithm(preset="rloo")
    assert loss_and_gradient(data, weights([2, 1], algorithm), algorithm)[0].item() == pytest.approx(-0.5)
    # sft: minus the mean of the three
    loss, sums = sft_loss(data["logprobs_T"], weights([2, 1], Algorithm(aggregate="token_mean")))
    assert loss.item() == pytest.approx(1 - math.log(0.375) / 3)
    assert {k: v.item() for k, v in sums.items()} == pytest.approx({"num_tokens": 3, "nll": 3 - math.log(0.375)})


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_the_clip_holds_exactly_outside_its_two_bounds(advantage):
    """Ratios 0.505, 0.515 ... 1.595 with bounds 0.8 and 1.28: value and gradient on each side of each bound."""
    ratio_T = torch.arange(50, 160, dtype=torch.float64) / 100 + 0.005
    n = len(ratio_T)
    leaf = ratio_T.log().requires_grad_()
    loss, sums = policy_loss(
        leaf, torch.zeros_like(ratio_T), None, torch.full_like(ratio_T, advantage), torch.ones_like(ratio_T),
        torch.arange(n), Algorithm(preset="dapo"),
    )  # fmt: skip
    loss.backward()
    held_T = ratio_T > 1.28 if advantage > 0 else ratio_T < 0.8
    kept = ratio_T.clamp(max=1.28) if advantage > 0 else ratio_T.clamp(min=0.8)
    torch.testing.assert_close(loss.detach(), -advantage * kept.sum())
    torch.testing.assert_close(leaf.grad, torch.where(held_T, 0.0, -advantage * ratio_T))
    counted = {side: sums[f"clip_{side}"].item() for side in ("low", "high")}
    assert counted == ({"low": 0, "high": 32} if advantage > 0 else {"low": 30, "high": 0})


def test_k3_by_hand():
    got = k3(tensor([-1.0, -2.0, -1.0]), tensor([-1.0, -1.0, -1.0 - math.log(2)]))
    torch.testing.assert_close(got, tensor([0.0, math.e - 2, 0.5 + math.log(2) - 1]))


def test_k3_estimates_reverse_kl_but_pushes_towards_forward_kl():
    """Exact sums over a vocabulary of 5: the claim in the docstring and in docs/papers.md."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    logprobs, ref = logits.log_softmax(-1), torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)
    probs = logprobs.exp().detach()
    reverse = (logprobs.exp() * (logprobs - ref)).sum()
    forward = (ref.exp() * (ref - logprobs)).sum()
    estimate = (probs * k3(logprobs, ref)).sum()  # the loss: tokens drawn from the policy, no gradient through drawing
    torch.testing.assert_close(estimate, reverse)
    (pushed,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    torch.testing.assert_close(pushed, torch.autograd.grad(forward, logits, retain_graph=True)[0])
    assert not torch.allclose(pushed, torch.autograd.grad(reverse, logits)[0], rtol=0.1)


def test_estimators_of_the_kl_push_as_their_docstrings_say():
    """Exact sums over a vocabulary of 5, tokens drawn from the policy: k1 not at all, k2 towards KL(policy || reference)."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    logprobs, ref = logits.log_softmax(-1), torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)
    probs = logprobs.exp().detach()
    reverse = (logprobs.exp() * (logprobs - ref)).sum()
    (wanted,) = torch.autograd.grad(reverse, logits, retain_graph=True)
    torch.testing.assert_close((probs * k1(logprobs, ref)).sum(), reverse)
    (pushed,) = torch.autograd.grad((probs * k1(logprobs, ref)).sum(), logits, retain_graph=True)
    torch.testing.assert_close(pushed, torch.zeros_like(pushed))
    (pushed,) = torch.autograd.grad((probs * k2(logprobs, ref)).sum(), logits)
    torch.testing.assert_close(pushed, wanted)


def test_a_clipped_weight_keeps_every_gradient():
    """Ratio 2 with an upper bound of 1.5: PPO's surrogate drops the token, CISPO's weight is 1.5, for either sign of A."""
    for advantage in (2.0, -2.0):
        leaf = tensor([math.log(2.0)], requires_grad=True)
        columns = (tensor([0.0]), None, tensor([advantage]), tensor([1.0]), torch.zeros(1, dtype=torch.long))
        loss, sums = policy_loss(leaf, *columns, Algorithm(preset="cispo", clip_high=0.5))
        loss.backward()
        assert leaf.grad.item() == pytest.approx(-1.5 * advantage)
        assert (sums["clip_low"].item(), sums["clip_high"].item()) == (0, 1)


def test_an_entropy_bonus_is_a_term_of_its_own():
    lengths, data = batch()
    plain, bonus = Algorithm(preset="dapo"), Algorithm(preset="dapo", entropy_coef=0.05)
    entropy = torch.rand(sum(lengths), dtype=torch.float64, requires_grad=True)
    weights_T = weights(lengths, plain)
    without, _ = policy_loss(**data, weights_T=weights_T, algorithm=plain)
    with_it, _ = policy_loss(**data, weights_T=weights_T, algorithm=bonus, entropy_T=entropy)
    torch.testing.assert_close(with_it, without - 0.05 * entropy.mean())
    with_it.backward()
    torch.testing.assert_close(entropy.grad, torch.full_like(entropy, -0.05 / sum(lengths)))


def test_value_loss_by_hand():
    """V_old 0 and clip 0.2. V = 0.5 towards R = 1: its error 0.25 is less than the clipped value's 0.64, which is held.
    V = 0.5 away from R = -1: 2.25 against 1.44, which acts. V = 0.1 is inside."""
    values = tensor([0.5, 0.5, 0.1], requires_grad=True)
    loss, sums = value_loss(values, tensor([0.0, 0.0, 0.0]), tensor([1.0, -1.0, 1.0]), tensor([1.0, 1.0, 2.0]), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx((0.64 + 2.25 + 2 * 0.81) / 2)
    assert values.grad.tolist() == pytest.approx([0.0, 1.5, 2 * -0.9])
    assert {k: v.item() for k, v in sums.items()} == pytest.approx(
        {"value_error": 0.25 + 2.25 + 0.81, "returns": 1.0, "squared_returns": 3.0, "value_clip": 1}
    )
    loss, _ = value_loss(values, tensor([0.0, 0.0, 0.0]), tensor([1.0, -1.0, 1.0]), tensor([1.0, 1.0, 2.0]), None)
    assert loss.item() == pytest.approx((0.25 + 2.25 + 2 * 0.81) / 2)


@pytest.mark.parametrize("axes", [{"preset": name} for name in REWARDED] + [{"preset": "grpo", "kl_coef": 0.3}])
def test_micro_batches_add_up_to_one_batch(axes):
    algorithm = Algorithm(**axes)
    lengths, data = batch(seed=1)
    weights_T = weights(lengths, algorithm)
    loss, gradient, sums = loss_and_gradient(data, weights_T, algorithm)
    for cuts in ([4], [1, 2, 6], list(range(1, 8)), [7, 3]):  # bounds in rollouts, also out of order
        edges = [0, *sorted(cuts), 8]
        total, total_sums = torch.zeros((), dtype=torch.float64), dict.fromkeys(sums, 0.0)
        for low, high in reversed(list(itertools.pairwise(edges))):
            part = slice(sum(lengths[:low]), sum(lengths[:high]))
            piece = {name: values[part] for name, values in data.items()}
            part_loss, part_gradient, part_sums = loss_and_gradient(piece, weights_T[part], algorithm)
            torch.testing.assert_close(part_gradient, gradient[part], rtol=1e-13, atol=1e-16)
            total = total + part_loss
            total_sums = {name: total_sums[name] + part_sums[name].item() for name in sums}
        torch.testing.assert_close(total, loss, rtol=1e-13, atol=1e-15)
        assert total_sums == pytest.approx({name: value.item() for name, value in sums.items()}, rel=1e-12)


@pytest.mark.parametrize("preset", REWARDED)
def test_on_policy_the_gradient_is_reinforce(preset):
    """At ratio 1 every surrogate pushes log p by weight x A; a sequence ratio by A x the sum of its weights."""
    algorithm = Algorithm(preset=preset)
    lengths, data = batch(spread=0.0)
    weights_T = weights(lengths, algorithm)
    _, gradient, sums = loss_and_gradient(data, weights_T, algorithm)
    per_token = weights_T  # with a mean over the rollout each token gets the mean of its weights, which are equal
    if algorithm.ratio == "sequence":
        per_token = torch.zeros(8, dtype=torch.float64).index_add(0, data["rollout_T"], weights_T)[data["rollout_T"]]
        torch.testing.assert_close(per_token, torch.full_like(per_token, 1 / 8))  # each whole log p(rollout) once
    torch.testing.assert_close(gradient, -per_token * data["advantages_T"])
    assert sums["clip_low"] == sums["clip_high"] == 0
    assert sums["ratio"] == sums["num_tokens"] == sum(lengths)


def test_rollouts_are_numbered_in_any_way():
    lengths, data = batch()
    algorithm = Algorithm(preset="rloo")
    weights_T = weights(lengths, algorithm)
    loss, gradient, _ = loss_and_gradient(data, weights_T, algorithm)
    renamed = {**data, "rollout_T": 1000 - 7 * data["rollout_T"]}
    other, other_gradient, _ = loss_and_gradient(renamed, weights_T, algorithm)
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(other_gradient, gradient)


def test_weights_count_rollouts_without_gradient_but_not_those_that_left():
    # The learner may skip rollout 0 (A = 0): the others' weights must not change, so its length is still given.
    assert token_weights([4, 2, 0, 2], "token_mean", 9) == [1 / 8, 1 / 8, 0, 1 / 8]
    assert token_weights([4, 2, 0, 2], "sequence_mean", 9) == pytest.approx([1 / 12, 1 / 6, 0, 1 / 6])
    assert token_weights([4, 2, 0, 2], "constant", 9) == pytest.approx([1 / 27, 1 / 27, 0, 1 / 27])
    assert token_weights([0, 0], "token_mean", 9) == token_weights([0, 0], "sequence_mean", 9) == [0, 0]


@pytest.mark.parametrize("preset", ["grpo", "dapo"])
def test_an_infinite_ratio_held_by_the_clip_is_harmless(preset):
    """exp(200) is infinite in fp32. Where the clip holds, or A = 0, the gradient is 0: not NaN."""
    logprobs = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    loss, sums = policy_loss(
        logprobs, torch.tensor([-201.0, -201.0, -1.0]), None, torch.tensor([1.0, 0.0, 1.0]), torch.ones(3),
        torch.arange(3), Algorithm(preset=preset),
    )  # fmt: skip
    loss.backward()
    high = PRESETS[preset]["clip_high"]
    assert loss.item() == pytest.approx(-(1 + high) - 1)
    assert logprobs.grad.tolist() == [0.0, 0.0, -1.0]
    assert sums["clip_high"] == 1


def test_an_infinite_ratio_that_acts_is_not_hidden():
    """With A < 0 no clip holds a growing ratio. A clamp would give a finite loss and a gradient of 0; we say inf."""
    logprobs = torch.tensor([-1.0], requires_grad=True)
    loss, _ = policy_loss(
        logprobs, torch.tensor([-201.0]), None, torch.tensor([-1.0]), torch.ones(1), torch.zeros(1, dtype=torch.long),
        Algorithm(preset="dapo"),
    )  # fmt: skip
    assert loss.item() == math.inf


def test_a_reference_is_reported_but_does_not_act_unless_kl_is_in_the_loss():
    lengths, data = batch()
    algorithm = Algorithm(preset="rloo", kl_coef=0.5)
    weights_T = weights(lengths, algorithm)
    loss, gradient, sums = loss_and_gradient(data, weights_T, algorithm)
    assert sums["kl"].item() == pytest.approx(k3(data["logprobs_T"], data["ref_logprobs_T"]).sum().item())
    bare, bare_gradient, bare_sums = loss_and_gradient({**data, "ref_logprobs_T": None}, weights_T, algorithm)
    assert "kl" not in bare_sums
    torch.testing.assert_close(loss, bare)
    torch.testing.assert_close(gradient, bare_gradient)


def test_an_empty_micro_batch_adds_nothing():
    empty = torch.zeros(0, requires_grad=True)
    for preset in REWARDED:
        rest = (empty.detach(), None, empty.detach(), empty.detach(), torch.zeros(0, dtype=torch.long))
        loss, sums = policy_loss(empty, *rest, Algorithm(preset=preset))
        loss.backward()
        assert loss == 0
        assert all(value == 0 for value in sums.values())


# --- length bias: a policy that stops with probability s = sigmoid(theta) at each token, whatever it is paid -----------


def push_on_stopping(s: float, advantage: float, aggregate: str, longest: int) -> float:
    """Exact expected push of our loss on theta (its gradient, sign turned): every length, weighted by its probability.

    One rollout an update. Positive: stops earlier. `constant` is times its constant, so that units agree.
    """
    theta = tensor(math.log(s / (1 - s)), requires_grad=True)
    stop, go_on = torch.nn.functional.logsigmoid(theta), torch.nn.functional.logsigmoid(-theta)
    lengths = torch.arange(1, longest + 1)
    rollout_T = torch.repeat_interleave(lengths - 1, lengths)
    is_last_T = torch.cat([rollout_T[1:] != rollout_T[:-1], torch.tensor([True])])
    logprobs_T = torch.where(is_last_T, stop, go_on)
    probability = s * (1 - s) ** (lengths.double() - 1)
    weight = tensor([token_weights([n], aggregate, longest)[0] for n in lengths.tolist()]) * probability
    if aggregate == "constant":
        weight = weight * longest
    loss, _ = policy_loss(
        logprobs_T, logprobs_T.detach(), None, torch.full_like(logprobs_T, advantage).detach(), weight[rollout_T],
        rollout_T, Algorithm(aggregate=aggregate),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(-loss, theta)
    return gradient.item()


def test_a_mean_per_sequence_makes_wrong_answers_longer_and_right_ones_shorter():
    # In closed form A (E[1/T] - s) with E[1/T] = -s ln s / (1 - s): 0.1 x 2.302585 / 0.9 - 0.1 = 0.155843 at s = 0.1.
    assert push_on_stopping(0.1, -1.0, "sequence_mean", longest=400) == pytest.approx(-0.155843, abs=1e-6)
    assert push_on_stopping(0.1, +1.0, "sequence_mean", longest=400) == pytest.approx(+0.155843, abs=1e-6)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
@pytest.mark.parametrize("s", [0.1, 0.3])
def test_a_constant_normaliser_does_not_push_length(advantage, s):
    assert abs(push_on_stopping(s, advantage, "constant", longest=400)) < 1e-12
