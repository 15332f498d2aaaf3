"""Decoding in 8 bits: its kernels against exact sums, its way through a model against the plain one, and what an engine says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from strop import config, int8, model
from strop.engine import Sampling
from strop.engine.native import NativeEngine
from strop.model import Policy
from strop.provenance import ROUNDED
from strop.record import Rollout, Task, UserError
from strop.run import Run
from test_train import SMALL, recipe, run

TASKS = [Task.make(source="t", prompt=f"{a} + {b}?", answer=str(a + b), verifier="number") for a, b in ((1, 2), (3, 4))]


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    return model.load(config.Model(name=str(tiny_model)))


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["kernels", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(int8, "has_int8", lambda: False)
    elif not int8.has_int8():
        pytest.skip("this processor has no VNNI")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(16, 64, 48), (3, 576, 960), (130, 1536, 33)])
def test_products_are_exact_sums_of_whole_numbers(shape: tuple[int, int, int]) -> None:
    num_rows, size, num_out = shape
    x, weight = drawn(num_rows, size), drawn(num_out, size, seed=1)
    rows, matrix = int8.rows(x, torch.full((num_rows, 1), 3.0)), int8.matrix(weight)
    whole = (weight.double() / (weight.abs().amax(1, keepdim=True).double() / 127)).round()
    sums = np.zeros((num_rows, num_out))
    for i, row in enumerate(rows.value_BI.tolist()):
        for j, column in enumerate(whole.tolist()):
            sums[i, j] = sum((a - int8.ZERO) * b for a, b in zip(row, column, strict=True))
        if i == 3:  # the slow way, for a few
            break
    expected = sums * rows.scale_B1.double().numpy() * matrix.scale_O.double().numpy()
    np.testing.assert_allclose(matrix.times(rows)[:4].numpy(), expected[:4], rtol=1e-6, atol=1e-6)
    plain = 3 * x @ weight.T
    assert (matrix.times(rows) - plain).norm() / plain.norm() < 0.02


def test_extremes_keep_their_sign_and_nothing_stays_nothing() -> None:
    rows = int8.rows(torch.tensor([[1.0, -1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]]))
    assert rows.value_BI.tolist() == [[255, 1, 128, 192], [128] * 4]  # 63.5 is rounded to the even 64
    assert rows.scale_B1[1].item() < 1e-30


@pytest.mark.parametrize("size", [576, 1536, 48, 6])
def test_turned_rows_have_the_products_they_had(size: int) -> None:
    x, y = drawn(5, size), drawn(7, size, seed=1)
    torch.testing.assert_close(int8.turned(x) @ int8.turned(y).T, x @ y.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(int8.turned_back(int8.turned(x)), x)


def test_an_outlier_costs_the_others_their_digits_unless_rows_are_turned() -> None:
    x, weight = drawn(64, 576), drawn(100, 576, seed=1)
    x[:, 3] *= 100

    def error(turn: bool) -> float:
        a, b = (int8.turned(x), int8.turned(weight)) if turn else (x, weight)
        difference = int8.matrix(b).times(int8.rows(a)) - x @ weight.T
        return (difference.norm() / (x @ weight.T).norm()).item()

    assert error(turn=False) > 4 * error(turn=True)


# --- through a model --------------------------------------------------------------------------------------------------


def sampled(policy: Policy, how: str, *, exact: bool = False, max_batch: int = 64, num: int = 8) -> list[Rollout]:
    engine = NativeEngine(policy, policy.chat(config.Chat()), max_batch=max_batch, int8=how)  # type: ignore[arg-type]
    sampling = Sampling(temperature=1.0, max_tokens=12, exact=exact)
    return engine.generate(TASKS, num_samples=num, sampling=sampling, seed_path=("int8",))


def logprobs(rollout: Rollout) -> np.ndarray:
    assert rollout.sampler_logprobs is not None
    return rollout.sampler_logprobs


def apart(plain: list[Rollout], other: list[Rollout]) -> np.ndarray:
    """Differences in nats of the log-probabilities, up to where the two first chose different words."""
    found = []
    for a, b in zip(plain, other, strict=True):
        both = min(len(a.token_ids), len(b.token_ids))
        same = np.append(a.token_ids[:both] == b.token_ids[:both], False).argmin()
        found += [(logprobs(a)[:same] - logprobs(b)[:same])[a.sampled[:same]]]
    return np.concatenate(found)


def test_it_is_near_the_plain_way_and_not_the_same(policy: Policy) -> None:
    """Within the levels at which `provenance` stops a run; these weights are random, and 64 wide."""
    difference = apart(sampled(policy, "never"), sampled(policy, "training"))
    assert len(difference) > 16
    assert 1e-4 < np.abs(difference).mean() < ROUNDED.mean_abs


@pytest.mark.slow
def test_the_demo_model_is_as_near_as_the_documents_say() -> None:
    demo = model.load(config.Model())
    difference = apart(sampled(demo, "never", num=64), sampled(demo, "training", num=64))
    assert len(difference) > 300
    assert np.abs(difference).mean() < 0.06
    assert np.mean(np.expm1(difference) - difference) < 5e-3  # k3


def test_each_rollout_is_the_same_in_any_company(policy: Policy) -> None:
    together, few = sampled(policy, "training"), sampled(policy, "training", max_batch=3)
    for a, b in zip(together, few, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        np.testing.assert_allclose(logprobs(a), logprobs(b), atol=1e-5)  # as the plain way's


def test_evaluation_is_exact_unless_it_is_asked_for(policy: Policy) -> None:
    def answers(how: str) -> list[list[float]]:
        return [logprobs(r)[r.sampled].tolist() for r in sampled(policy, how, exact=True)]

    assert answers("training") == answers("never")
    assert answers("always") != answers("never")
    assert NativeEngine(policy, policy.chat(config.Chat()), max_batch=1, int8="always").about != "native"


def test_weights_that_moved_are_copied_anew(tiny_model: Path) -> None:
    own = model.load(config.Model(name=str(tiny_model)))
    before = sampled(own, "training")
    with torch.no_grad():
        own.fused.layers[0].own.down[0].mul_(3.0)  # type: ignore[union-attr]
    after = sampled(own, "training")
    assert own.head_int8 is None
    assert own.fused.int8_layers == []  # type: ignore[union-attr]
    assert [r.token_ids.tolist() for r in before] != [r.token_ids.tolist() for r in after]


def test_a_run_learns_from_what_the_rounded_weights_sampled(tiny_model: Path, tmp_path: Path) -> None:
    asked = recipe(tmp_path, tiny_model, steps=3, rl=SMALL, correction="token_truncate")
    asked = asked.model_copy(update={"engine": config.Engine(int8="training")})
    run(asked, tmp_path / "run")
    rows = Run.read(tmp_path / "run").stage("rl").rows("train")
    assert [1e-6 < row["sampling/mismatch_kl"] < ROUNDED.k3 for row in rows] == [True] * 3


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"model": {"lora": {"rank": 4}}}, "adapters have no copy in 8 bits"),
        ({"model": {"dtype": "bfloat16"}}, "only float32 weights on a CPU have one"),
        ({"model": {"device": "cuda"}}, "only float32 weights on a CPU have one"),
        ({"engine": {"int8": "always", "server": "vllm"}}, "engine.server decodes as it likes"),
    ],
)
def test_a_recipe_that_cannot_have_it_is_refused(keys: dict, why: str) -> None:
    content = {
        "engine": {"int8": "always"}, "tasks": {"t": {"source": "arithmetic"}},
        "stages": [{"name": "e", "do": "evaluate", "tasks": ["t"], "max_tokens": 8}],
    }  # fmt: skip
    with pytest.raises(UserError, match=why):
        config.parse_recipe(content | keys)


def test_what_has_no_copy_in_8_bits_is_refused(tiny_model: Path) -> None:
    adapted = model.load(config.Model(name=str(tiny_model), lora=config.Lora(rank=4)))
    with pytest.raises(UserError, match="only Llama-shaped models on a CPU, without adapters"):
        NativeEngine(adapted, adapted.chat(config.Chat()), max_batch=4, int8="training")


def test_without_vnni_it_is_the_same_model_and_said_to_be_slow(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    here = sampled(policy, "training")
    for module in ("int8", "engine.native"):
        monkeypatch.setattr(f"strop.{module}.has_int8", lambda: False)
    told: list[str] = []
    NativeEngine(policy, policy.chat(config.Chat()), max_batch=4, int8="training", say=told.append)
    assert [text.split(",")[0] for text in told] == [
        "this processor has no VNNI: engine.int8=training makes the same model here"
    ]
    assert np.abs(apart(here, sampled(policy, "training"))).mean() < 1e-5
