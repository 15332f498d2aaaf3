"""The learner: cuts that change nothing, parity of a whole update with a plain one, checkpoints, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strop import advantage, config, model
from strop.engine import Sampling
from strop.engine.native import NativeEngine
from strop.learner import Learner, NonFinite
from strop.record import Task, UserError, replace

TASKS = [Task.make(source="test", prompt=f"Compute {i} + {i}.", answer="0", verifier="math") for i in range(4)]


def load(tiny_model, rank: int = 0):
    return model.load(config.Model(name=str(tiny_model), lora=config.Lora(rank=rank)))


def sampled(policy, algorithm, seed=0):
    """Rollouts of a step with made-up rewards, one group of the four without signal."""
    engine = NativeEngine(policy, policy.chat(config.Chat()), max_batch=32)
    rollouts = engine.generate(
        TASKS, num_samples=4, sampling=Sampling(temperature=0.8, max_tokens=9), seed_path=(seed,)
    )
    rewards = [float(r.group != 3 and (r.sample + r.group) % 3 == 0) for r in rollouts]
    return advantage.assign([replace(r, reward=x) for r, x in zip(rollouts, rewards, strict=True)], algorithm, seed=0)


def weights(policy):
    return {n: p.detach().clone() for n, p in policy.trainable().items()}


@pytest.mark.parametrize("preset", [name for name, row in config.PRESETS.items() if "credit" not in row])
@pytest.mark.parametrize("num_updates", [1, 2])
def test_microbatches_equal_one_batch(tiny_model, preset, num_updates):
    algorithm = config.Algorithm(
        preset=preset, kl_coef=0.05 * (config.PRESETS[preset]["kl"] != "none"), entropy_coef=0.01
    )
    after = []
    for tokens in (64, 100_000):
        policy = load(tiny_model)
        learner = Learner(policy, config.Optim(lr=1e-3, microbatch_tokens=tokens), algorithm.critic)
        learner.keep_reference()
        rollouts = learner.annotate(sampled(policy, config.Algorithm()), algorithm)
        rollouts = advantage.assign(rollouts, algorithm, seed=0)
        metrics = learner.update(rollouts, algorithm, num_updates=num_updates, max_tokens=9, seed=1)
        after.append((weights(policy), metrics))
    for name, ours in after[0][0].items():
        # AdamW's first steps are sign-like, so tiny differences of tiny gradients show; most weights must agree closely.
        off = (ours - after[1][0][name]).abs()
        assert off.max() < 1e-3, name
        assert off.float().mean() < 1e-6, name
    packed, whole = (dict(metrics) for _, metrics in after)
    # What is left between sampler and learner is rounding itself, another one for another packing and another processor.
    noise = [m.pop(name) for m in (packed, whole) for name in list(m) if name.startswith("sampling/mismatch")]
    assert all(abs(value) < 5e-6 for value in noise)
    if num_updates > 1:  # a loss of near 0 after AdamW's sign-like first step, whose weights may differ as above
        assert packed.pop("loss") == pytest.approx(whole.pop("loss"), rel=1e-4, abs=1e-6)
    assert packed == pytest.approx(whole, rel=1e-4, abs=1e-7)


def test_gradient_equals_the_plain_computation(tiny_model):
    """DAPO at ratio 1: -sum A log p / all trained tokens of the step, by autograd over eager whole-logits rows."""
    policy, algorithm = load(tiny_model), config.Algorithm(preset="dapo")
    rollouts = sampled(policy, algorithm)
    learner = Learner(policy, config.Optim(lr=1e-9, max_grad_norm=1e9, microbatch_tokens=128))
    learner.update(rollouts, algorithm, num_updates=1, max_tokens=9, seed=0)
    ours = {n: p.grad.clone() for n, p in policy.trainable().items()}
    fresh = load(tiny_model)
    fresh.model.set_attn_implementation("eager")
    total = sum(r.num_trained for r in rollouts)
    loss = torch.zeros((), dtype=torch.float64)
    for r in rollouts:
        ids = torch.from_numpy(r.token_ids.astype(np.int64))
        logprobs = torch.log_softmax(fresh.model(input_ids=ids[None], use_cache=False).logits[0].double() / 0.8, -1)
        for t in np.flatnonzero(r.trained):
            loss = loss - float(r.advantages[t]) * logprobs[t - 1, ids[t]] / total
    loss.backward()
    for name, p in fresh.trainable().items():
        scale = p.grad.abs().max().item()
        torch.testing.assert_close(ours[name], p.grad, atol=2e-5 * scale + 1e-9, rtol=1e-3, msg=name)


def test_no_signal_is_no_update(tiny_model):
    policy, algorithm = load(tiny_model), config.Algorithm(advantages="zero")
    before = weights(policy)
    learner = Learner(policy, config.Optim())
    metrics = learner.update(sampled(policy, algorithm), algorithm, num_updates=2, max_tokens=9, seed=0)
    assert metrics["num_updates"] == 0
    assert learner.num_updates == 0
    assert all(torch.equal(before[n], p) for n, p in weights(policy).items())


def test_engine_sees_the_update_without_a_copy(tiny_model):
    policy, algorithm = load(tiny_model), config.Algorithm()
    learner = Learner(policy, config.Optim(lr=1e-2))
    learner.update(sampled(policy, algorithm), algorithm, num_updates=1, max_tokens=9, seed=0)
    after = sampled(policy, algorithm, seed=5)
    for r, ours in zip(after, learner.logprobs(after), strict=True):
        np.testing.assert_allclose(ours[r.sampled], r.sampler_logprobs[r.sampled], rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("rank", [0, 4])
def test_checkpoint_continues_bit_for_bit(tiny_model, tmp_path, rank):
    algorithm = config.Algorithm()
    torch.manual_seed(0)  # LoRA's A is drawn
    policy = load(tiny_model, rank)
    learner = Learner(policy, config.Optim(lr=1e-3, warmup_steps=5))
    rollouts = sampled(policy, algorithm)
    learner.update(rollouts, algorithm, num_updates=2, max_tokens=9, seed=0)
    learner.save(tmp_path / "checkpoint")
    learner.update(rollouts, algorithm, num_updates=2, max_tokens=9, seed=1)
    torch.manual_seed(1)
    other = load(tiny_model, rank)
    continued = Learner(other, config.Optim(lr=1e-3, warmup_steps=5))
    continued.load(tmp_path / "checkpoint")
    assert continued.num_updates == 2
    continued.update(rollouts, algorithm, num_updates=2, max_tokens=9, seed=1)
    assert all(torch.equal(p, weights(other)[n]) for n, p in weights(policy).items())
    assert {p.suffix for p in (tmp_path / "checkpoint").rglob("*.*") if p.is_file()} <= {
        ".json",
        ".jinja",
        ".safetensors",
        ".md",
    }


def test_lora_trains_adapters_only_and_its_reference_is_where_it_began(tiny_model):
    policy, algorithm = load(tiny_model, 4), config.Algorithm(preset="grpo", kl_coef=0.1)
    with torch.no_grad():  # an adapter that has learned before: the base without it would be another reference
        for name, p in policy.trainable().items():
            if "lora_B" in name:
                p.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    frozen = {n: p.detach().clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    learner = Learner(policy, config.Optim(lr=1e-2))
    learner.keep_reference()
    rollouts = learner.annotate(sampled(policy, algorithm), algorithm)
    for r in rollouts:
        np.testing.assert_allclose(r.ref_logprobs[r.sampled], r.sampler_logprobs[r.sampled], rtol=1e-6, atol=3e-6)
    metrics = learner.update(rollouts, algorithm, num_updates=1, max_tokens=9, seed=0)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    again = learner.annotate(rollouts, algorithm)
    np.testing.assert_allclose(again[0].ref_logprobs, rollouts[0].ref_logprobs, rtol=1e-6, atol=3e-6)
    moved = [
        np.abs(a - r.sampler_logprobs)[r.sampled].max()
        for a, r in zip(learner.logprobs(rollouts), rollouts, strict=True)
    ]
    assert max(moved) > 1e-3
    assert all(torch.equal(frozen[n], p) for n, p in policy.model.named_parameters() if n in frozen)


def test_a_reset_reference_comes_back_with_a_checkpoint(tiny_model, tmp_path):
    policy, algorithm = load(tiny_model), config.Algorithm(preset="grpo", kl_coef=0.1)
    learner = Learner(policy, config.Optim(lr=1e-2))
    learner.keep_reference()
    began = {n: t.clone() for n, t in learner.reference.items()}
    rollouts = learner.annotate(sampled(policy, algorithm), algorithm)
    learner.save(tmp_path / "before")
    assert not list((tmp_path / "before").rglob("reference.safetensors")), "what the stage began with is not kept twice"
    learner.update(rollouts, algorithm, num_updates=1, max_tokens=9, seed=0)
    learner.keep_reference()
    learner.save(tmp_path / "after")
    other = Learner(load(tiny_model), config.Optim(lr=1e-2))
    other.keep_reference()
    other.load(tmp_path / "after")
    name = next(iter(began))
    assert not torch.equal(other.reference[name], began[name])
    assert all(torch.equal(other.reference[n], t) for n, t in learner.reference.items())


def test_a_correction_weighs_what_the_sampler_found_likelier(tiny_model):
    """The same tokens with sampler's log-probabilities 0.7 higher than they are: every ratio is exp(-0.7)."""
    policy, algorithm = load(tiny_model), config.Algorithm(preset="dr_grpo", correction="token_truncate")
    learner = Learner(policy, config.Optim())
    honest = sampled(policy, config.Algorithm(preset="dr_grpo"))
    rollouts = [replace(r, sampler_logprobs=r.sampler_logprobs + np.float32(0.7)) for r in honest]
    annotated = learner.annotate(rollouts, algorithm)
    np.testing.assert_allclose(
        annotated[0].old_logprobs[honest[0].sampled], honest[0].sampler_logprobs[honest[0].sampled], atol=1e-5
    )
    for plain, corrected in zip(
        advantage.assign(honest, config.Algorithm(preset="dr_grpo"), seed=0),
        advantage.assign(annotated, algorithm, seed=0),
        strict=True,
    ):
        np.testing.assert_allclose(corrected.advantages, plain.advantages * np.exp(-0.7), rtol=1e-4, atol=1e-7)
    metrics = learner.update(
        advantage.assign(annotated, algorithm, seed=0), algorithm, num_updates=1, max_tokens=9, seed=0
    )
    assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0, "the ratio is against old_logprobs"
    assert metrics["sampling/mismatch_kl"] > 0.1


# --- a critic ---------------------------------------------------------------------------------------------------------


def with_critic(tiny_model, **critic):
    policy, algorithm = load(tiny_model), config.Algorithm(preset="ppo", critic=critic)
    return policy, algorithm, Learner(policy, config.Optim(lr=1e-3), algorithm.critic)


def learn(learner, rollouts, algorithm, **options):
    rollouts = advantage.assign(learner.annotate(rollouts, algorithm), algorithm, seed=0)
    return learner.update(rollouts, algorithm, num_updates=1, max_tokens=9, seed=0, **options)


@pytest.mark.parametrize("kind", ["head", "model"])
def test_a_critic_learns_what_rollouts_are_worth(tiny_model, kind):
    """Two tasks, one always right and one never: from 0 everywhere its values come to tell them apart."""
    policy, algorithm, learner = with_critic(tiny_model, kind=kind, lr=1e-2, clip=None)
    before = weights(policy)
    rollouts = [replace(r, reward=float(r.group == 0)) for r in sampled(policy, config.Algorithm()) if r.group < 2]
    first = learn(learner, rollouts, algorithm, only_critic=True)
    spread = np.var([r.reward for r in rollouts for _ in range(r.num_trained)])
    assert first["critic/explained_variance"] == pytest.approx(
        1 - np.mean([r.reward for r in rollouts for _ in range(r.num_trained)]) / spread, rel=1e-3
    ), "V = 0"
    for _ in range(40):
        last = learn(learner, rollouts, algorithm, only_critic=True)
    assert last["critic/explained_variance"] > 0.8
    assert all(torch.equal(before[n], p) for n, p in weights(policy).items()), "only the critic learned"
    for r, values in zip(rollouts, learner.values(rollouts), strict=True):
        assert np.isnan(values[~r.sampled]).all()
        assert abs(values[r.sampled] - r.reward).mean() < 0.35


def test_a_critic_of_its_own_does_not_move_the_policy_and_a_shared_one_does(tiny_model):
    """At advantage 0 the policy's own gradient is 0: what moves its weights is the value loss."""
    for kind, moves in (("head", True), ("model", False)):
        policy, algorithm, learner = with_critic(tiny_model, kind=kind, lr=1e-2)
        before, algorithm = weights(policy), algorithm.model_copy(update={"advantages": "zero"})
        rollouts = sampled(policy, config.Algorithm())
        learn(learner, rollouts, algorithm)  # the head begins at 0 and passes nothing on yet
        learn(learner, rollouts, algorithm)
        assert any(not torch.equal(before[n], p) for n, p in weights(policy).items()) == moves


@pytest.mark.parametrize("kind", ["head", "model"])
def test_a_critic_comes_back_with_a_checkpoint(tiny_model, tmp_path, kind):
    policy, algorithm, learner = with_critic(tiny_model, kind=kind, lr=1e-2)
    rollouts = sampled(policy, config.Algorithm())
    learn(learner, rollouts, algorithm)
    learner.save(tmp_path / "checkpoint")
    _, _, other = with_critic(tiny_model, kind=kind, lr=1e-2)
    other.load(tmp_path / "checkpoint")
    for each in (learner, other):
        learn(each, rollouts, algorithm)
    for ours, theirs in zip(learner.values(rollouts), other.values(rollouts), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(torch.equal(p, weights(other.policy)[n]) for n, p in weights(policy).items())


def test_non_finite_stops_before_the_update(tiny_model):
    policy, algorithm = load(tiny_model), config.Algorithm()
    before = weights(policy)
    rollouts = sampled(policy, algorithm)
    broken = [replace(r, advantages=np.where(r.trained, np.float32("inf"), np.float32(0))) for r in rollouts]
    with pytest.raises(NonFinite):
        Learner(policy, config.Optim()).update(broken, algorithm, num_updates=1, max_tokens=9, seed=0)
    assert all(torch.equal(before[n], p) for n, p in weights(policy).items())


def test_sft_lowers_the_loss(tiny_model):
    policy = load(tiny_model)
    chat = policy.chat(config.Chat())
    examples = [chat.worked_example(replace(t, meta={"solution": "7"}), group=i) for i, t in enumerate(TASKS)]
    learner = Learner(policy, config.Optim(lr=1e-2))
    losses = [learner.sft_update(examples)["loss"] for _ in range(8)]
    assert losses[-1] < 0.5 * losses[0]
    with pytest.raises(UserError, match="worked solution"):
        chat.worked_example(TASKS[0])


def test_a_folder_that_is_no_checkpoint(tiny_model, tmp_path):
    with pytest.raises(UserError, match="no optimizer state"):
        Learner(load(tiny_model), config.Optim()).load(tiny_model, weights=False)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load(tiny_model).load_weights(tmp_path)
