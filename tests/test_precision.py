"""The switch for rounded multiplications: put back whatever happens, and never thrown for attention or evaluation."""

from __future__ import annotations

import pytest
import torch

from strop import attention, config, model, precision
from strop.engine import Sampling
from strop.engine.native import NativeEngine
from strop.precision import is_exact, multiply_in
from strop.record import Task


def test_the_switch_is_put_back_when_something_fails() -> None:
    def fails() -> None:
        with multiply_in("bfloat16"):
            assert not is_exact()
            with multiply_in("float32"):
                assert is_exact()
            assert not is_exact()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert is_exact()


@pytest.mark.parametrize("rows", [1, 16, 200])
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "where torch cannot pack"])
def test_packed_products_are_the_plain_ones(rows: int, packs: bool, monkeypatch) -> None:
    torch.manual_seed(0)
    x, matrix, by = (torch.randn(*shape).bfloat16() for shape in ((rows, 48), (32, 48), (rows, 32)))
    if not packs:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    packed, exact = precision.pack(matrix), x.double() @ matrix.double().T
    assert packed.is_mkldnn == (packs and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    ways = {
        "plain": (precision.times_packed(x, packed), exact),
        "silu": (precision.times_packed(x, packed, silu=True), torch.nn.functional.silu(exact)),
        "by": (precision.times_packed(x, packed, by=by), exact * by.double()),
    }
    for name, (ours, theirs) in ways.items():
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), theirs, atol=0.01, rtol=0.01, msg=name)  # bfloat16 has 8 bits


@pytest.mark.parametrize("window", [None, 4])
def test_attention_is_the_same_inside_a_rounded_pass_forward_and_backward(window: int | None) -> None:
    torch.manual_seed(0)
    layout = attention.pack_layout([(4, [3, 5]), (2, [6])], torch.device("cpu"), prefix_tokens=3)
    inputs = [torch.randn(heads, 23, 8, requires_grad=True) for heads in (4, 2, 2)]  # query, key, value
    weight = torch.randn(23, 4, 8)

    def passed(function) -> list[torch.Tensor]:
        out = function(*inputs, layout, 0.3, window)
        return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]

    plain = passed(attention._packed)
    with multiply_in("bfloat16"):
        exact = passed(attention._ExactPacked.apply)
    for ours, theirs in zip(exact, plain, strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_does_not_round_and_sampling_for_training_does_as_asked(tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    policy = model.load(config.Model(name=str(tiny_model), matmul="bfloat16"))
    engine, seen = NativeEngine(policy, policy.chat(config.Chat()), max_batch=4), []
    layer = policy.fused.layers[0]
    policy.head.register_forward_hook(lambda *_: seen.append((is_exact(), layer.weights.dtype == torch.float32)))
    task = Task.make(source="test", prompt="What?", answer="0", verifier="math")
    for exact in (True, False):
        seen.clear()
        engine.generate([task], num_samples=1, sampling=Sampling(max_tokens=3, exact=exact), seed_path=(0,))
        assert set(seen) == {(exact, exact)}
    assert is_exact()
