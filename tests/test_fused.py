"""The decoder written out: equal to its modules forward and backward, close to them in bfloat16, and never stale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from strop import attention, config, fused, model, precision
from strop.engine import Sampling
from strop.engine.native import Cache, NativeEngine
from strop.learner import Learner
from strop.precision import is_exact, multiply_in
from strop.record import Task
from test_model import SMALL, build

LAYOUT = [(4, [3, 5]), (2, [6])]  # behind a prefix of 3: two prompts, the first with two siblings
IDS = torch.arange(23)[None] * 7 % 256
POSITIONS = torch.tensor([[*range(7), 7, 8, 9, *range(7, 12), *range(3, 11)]])
TASKS = [Task.make(source="test", prompt=f"Compute {i} + {i}.", answer=str(2 * i), verifier="number") for i in range(8)]


@pytest.fixture(autouse=True)
def _as_with_bfloat16(monkeypatch):
    """Also on a processor that has to emulate it: slower, the same numbers."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)


def load(folder, **settings):
    return model.load(config.Model(name=str(folder), matmul="bfloat16", **settings))


@pytest.fixture(params=["llama", "llama of wide heads", "qwen2"])
def policy(request, tiny_model, tmp_path):
    """Weights far from their first values, so that norms and biases, which begin as ones and zeros, show."""
    kinds = {
        "llama": transformers.LlamaConfig(**SMALL),
        "llama of wide heads": transformers.LlamaConfig(**SMALL | {"num_key_value_heads": 4}, head_dim=16),
        "qwen2": transformers.Qwen2Config(**SMALL),
    }
    policy = load(build(tiny_model, tmp_path / request.param, kinds[request.param]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy


def passed(policy, *, written_out: bool) -> dict[str, torch.Tensor]:
    """Hidden states of a packed row and the gradient of every weight."""
    own, policy.fused = policy.fused, policy.fused if written_out else None
    layout = attention.pack_layout(LAYOUT, torch.device("cpu"), prefix_tokens=3)
    policy.model.zero_grad()
    hidden = policy.hidden(IDS, POSITIONS, layout)
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    policy.fused = own
    gradients = {n: p.grad for n, p in policy.model.get_decoder().named_parameters()}
    return {"hidden": hidden.detach(), **gradients}


def test_in_float32_it_is_the_modules_forward_and_backward(policy):
    assert policy.fused is not None
    ours, theirs = (passed(policy, written_out=way) for way in (True, False))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(ours[name], expected, atol=1e-5 * scale, rtol=1e-4, msg=name)


def test_in_bfloat16_it_is_close(policy):
    exact = passed(policy, written_out=False)
    with policy.as_trained():
        assert {layer.weights.dtype for layer in policy.fused.layers} == {torch.bfloat16}
        rounded = passed(policy, written_out=True)
    assert {layer.weights.dtype for layer in policy.fused.layers} == {torch.float32}
    assert not torch.equal(rounded["hidden"], exact["hidden"])
    for name, expected in exact.items():
        assert (rounded[name] - expected).norm() < 0.03 * expected.norm(), name
        assert rounded[name].dtype == torch.float32, name


def test_attention_is_exact_in_a_rounded_pass_forward_and_backward(policy, monkeypatch):
    seen = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            seen.append(("forward", is_exact()))
            return value.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(("backward", is_exact()))
            return grad

    def spied(module, query, key, value, **kwargs):
        return attention.attention(module, query, key, Spy.apply(value), **kwargs)

    monkeypatch.setattr(fused, "attention", spied)
    with policy.as_trained():
        passed(policy, written_out=True)
    assert sorted(seen) == [("backward", True)] * 2 + [("forward", True)] * 2


def test_a_processor_without_bfloat16_keeps_float32(policy, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    with policy.as_trained():
        assert {layer.weights.dtype for layer in policy.fused.layers} == {torch.float32}


def test_rounded_weights_end_with_their_block_and_are_never_taken_for_exact(policy):
    layout = attention.pack_layout(LAYOUT, torch.device("cpu"), prefix_tokens=3)
    with pytest.raises(AssertionError, match="asked to be exact"), policy.as_trained(), multiply_in("float32"):
        policy.hidden(IDS, POSITIONS, layout)
    with pytest.raises(AssertionError, match="rounded inside"), policy.as_trained(), policy.as_trained():
        pass
    assert all(layer.weights is layer.own for layer in policy.fused.layers)


def test_frozen_weights_get_no_gradient_and_the_others_the_same(policy):
    theirs = passed(policy, written_out=True)
    frozen = [n for n, _ in policy.model.get_decoder().named_parameters() if "q_proj" in n or "down_proj" in n]
    for name in frozen:
        policy.model.get_decoder().get_parameter(name).requires_grad_(False)
    for name, grad in passed(policy, written_out=True).items():
        assert grad is None if name in frozen else torch.equal(grad, theirs[name]), name


def test_two_passes_add_their_gradients(policy):
    layout = attention.pack_layout(LAYOUT, torch.device("cpu"), prefix_tokens=3)
    once = {n: g.clone() for n, g in passed(policy, written_out=True).items()}
    hidden = policy.hidden(IDS, POSITIONS, layout)
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    for name, parameter in policy.model.get_decoder().named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name], msg=name)


def test_a_new_token_over_cached_keys_is_the_packed_row(policy):
    """Decoding and learning go through the same layers: greedy tokens equal transformers' in test_model.py, too."""
    engine = NativeEngine(policy, policy.chat(config.Chat()), max_batch=16)
    found = []
    for exact, tolerance in ((True, 1e-5), (False, 0.05)):
        policy.matmul = "float32" if exact else "bfloat16"
        sampling = Sampling(temperature=1.0, max_tokens=12, exact=exact)
        rollouts = engine.generate(TASKS, num_samples=2, sampling=sampling, seed_path=(0,))
        found.append(np.concatenate([r.sampler_logprobs[r.sampled][:1] for r in rollouts]))
        learned = Learner(policy, config.Optim()).logprobs(rollouts)
        for r, own in zip(rollouts, learned, strict=True):
            np.testing.assert_allclose(r.sampler_logprobs[r.sampled], own[r.sampled], atol=tolerance)
    assert not np.array_equal(*found)  # the second one really rounded


def test_a_decoded_layer_is_the_plain_one(policy):
    """From packed weights, with silu inside the product: the same but for one rounding less."""
    torch.manual_seed(2)
    layer, (rows, earlier) = policy.fused.layers[1], (20, 5)
    hidden = torch.randn(rows, SMALL["hidden_size"])
    size, heads = layer.attention.head_dim, len(layer.own.qkv[1]) // layer.attention.head_dim
    rotation = torch.rand(rows, size // 2), torch.rand(rows, size // 2)
    place = torch.arange(rows) % 3 + earlier

    def after(way) -> torch.Tensor:
        prefix = [(torch.ones(heads, earlier, size), torch.ones(heads, earlier, size))] * 2
        cache = Cache(rows, earlier + 4, earlier, prefix)
        for own in (*cache.keys, *cache.values):
            own.fill_(0.5)
        return way(cache.slots(place))

    with torch.inference_mode(), policy.fused.rounded(), multiply_in("bfloat16"):
        plain = after(lambda slots: fused._forward(layer, layer.weights, hidden, rotation, slots)[0])
        packed = after(lambda slots: layer(hidden, rotation, slots))
    assert (packed - plain).norm() < 0.01 * (plain - hidden).norm()
    with torch.inference_mode():
        exact = after(lambda slots: layer(hidden, rotation, slots))
    assert (packed - exact).norm() <= 1.05 * (plain - exact).norm()


def test_what_is_rounded_is_never_stale(policy, tmp_path):
    """torch's fused AdamW changes weights without counting their version up, so nothing may rely on that."""

    def rounds_what_is_there() -> bool:
        layout = attention.pack_layout(LAYOUT, torch.device("cpu"), prefix_tokens=3)
        with policy.as_trained(), torch.no_grad():
            ours = policy.hidden(IDS, POSITIONS, layout)
            fresh = fused.Fused(policy.model.get_decoder())
            with fresh.rounded():
                return torch.equal(ours, fresh.hidden(IDS, POSITIONS, layout))

    assert rounds_what_is_there()
    policy.save(tmp_path / "saved")
    learner = Learner(policy, config.Optim(lr=0.1))
    learner.keep_reference()
    passed(policy, written_out=True)
    learner.adamw.step()
    assert rounds_what_is_there()
    engine = NativeEngine(policy, policy.chat(config.Chat()), max_batch=16)
    drawn = engine.generate(TASKS, num_samples=1, sampling=Sampling(max_tokens=4, exact=False), seed_path=(0,))
    algorithm = config.Algorithm(preset="grpo", kl_coef=0.1)
    reference = learner.annotate(drawn, algorithm)
    policy.load_weights(tmp_path / "saved")
    assert rounds_what_is_there()
    for r, own in zip(reference, learner.logprobs(drawn), strict=True):  # the weights it was kept from are back
        np.testing.assert_array_equal(r.ref_logprobs, own)


def test_other_shapes_go_through_their_modules(tiny_model, tmp_path):
    others = {
        "gpt2": transformers.GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=256, eos_token_id=257),
        "qwen3": transformers.Qwen3Config(**SMALL, head_dim=8),  # norms inside attention
        "relu": transformers.LlamaConfig(**SMALL, hidden_act="relu"),  # the right parts, another function
        "gemma": transformers.GemmaConfig(**SMALL, head_dim=8, hidden_act="silu"),  # another norm under the same name
        "granite": transformers.GraniteConfig(**SMALL, residual_multiplier=0.5),  # the right parts, other sums
    }  # fmt: skip
    for name, architecture in others.items():
        assert load(build(tiny_model, tmp_path / name, architecture)).fused is None, name
    assert load(tiny_model).fused is not None
    assert load(tiny_model, lora=config.Lora(rank=4)).fused is None
