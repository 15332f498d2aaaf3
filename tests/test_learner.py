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


@pytest.mark.parametrize("preset", ["grpo", "dr_grpo", "dapo", "rloo"])
@pytest.mark.parametrize("num_updates", [1, 2])
def test_microbatches_equal_one_batch(tiny_model, preset, num_updates):
    algorithm = config.Algorithm(preset=preset, kl_coef=0.05 if preset in ("grpo", "rloo") else 0.0)
    after = []
    for tokens in (64, 100_000):
        policy = load(tiny_model)
        learner = Learner(policy, config.Optim(lr=1e-3, microbatch_tokens=tokens))
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
    assert after[0][1] == pytest.approx(after[1][1], rel=1e-4, abs=1e-7)


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
