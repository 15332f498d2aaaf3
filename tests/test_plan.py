"""The forecast's arithmetic: by hand, against the real packing, the real graph and the real cache; and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from strop import attention, batch, budget, plan
from strop.config import Optim, Recipe, parse_recipe
from strop.plan import calibrate, memory, packing, shape, time, work
from strop.plan.memory import Held, Sampled
from strop.plan.rates import Rates
from strop.plan.shape import DEMO_SHAPE, Shape
from strop.plan.time import Cost
from strop.record import Rollout, Stop, Task, UserError

TINY = Shape(
    name="tiny", kind="llama", layers=2, hidden=8, heads=4, kv_heads=2, head_size=2, mlp=16, vocab=32, tied=True
)
RATES = Rates(
    train_flops=1e9, attend_flops=1e9, head_flops=1e9, prefill_flops=1e9, decode=((16, 1e-3, 2e-3), (64, 3e-3, 4e-3)),
    key_s=0.0, optimizer_floats=1e9, memory_bytes=1e9, disk_bytes=1e9, verdicts=100.0, gemm_flops=1e11,
)  # fmt: skip
SUMS = {"source": "arithmetic", "train": 64, "heldout": 8, "dev": 4, "settings": {"terms": 2, "ops": "+"}}
RL = {"name": "rl", "do": "train", "tasks": {"sums": 1}, "steps": 10, "prompts_per_step": 4, "group_size": 4, "max_tokens": 32,
      "heldout_every": 0}  # fmt: skip


def recipe(model: object = "smollm2-135m", *stages: dict, **sections: Any) -> Recipe:
    return parse_recipe({
        "model": {"name": str(model)}, "tasks": {"sums": SUMS}, "stages": list(stages) or [RL], **sections,
    })  # fmt: skip


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Rates as if they had been measured; the list counts how often they were."""
    times: list[int] = []

    def measure(shape: Shape, *, rank: int, matmul: str) -> Rates:
        times.append(rank)
        return RATES

    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibrate, "measure", measure)
    return times


# --- a model in numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("llama", {"num_key_value_heads": 2, "intermediate_size": 96, "tie_word_embeddings": True}),
        ("qwen2", {"num_key_value_heads": 1, "intermediate_size": 96, "tie_word_embeddings": False}),
    ],
)
def test_parameters_and_adapters_are_those_of_the_model(kind: str, sizes: dict) -> None:
    import peft

    made = transformers.AutoConfig.for_model(
        kind, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=50, **sizes
    )
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(made)
    found = shape.of_config(made)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    settings = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = peft.get_peft_model(model, settings)
    assert found.lora_parameters(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.demo
def test_the_demo_models_shape_is_its_configs(demo_model: Path) -> None:
    found = shape.of_config(transformers.AutoConfig.from_pretrained(demo_model), "smollm2-135m")
    assert found == DEMO_SHAPE


def test_an_adapters_folder_has_the_shape_of_its_base(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model), "r": 8}))
    found = shape.read(recipe(tmp_path).model)
    assert (found.adapter_rank, found.layers, found.hidden) == (8, 2, 64)


def test_a_config_that_is_no_decoder_is_refused() -> None:
    with pytest.raises(UserError, match="its config does not say 'hidden_size', so no cost can be told"):
        shape.of_config(SimpleNamespace(num_hidden_layers=2), "mine")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 16,
        "intermediate_size": 32,
    }
    with pytest.raises(UserError, match="mine: a mixture of experts, whose cost is not modelled"):
        shape.of_config(SimpleNamespace(**sizes, num_experts=4), "mine")


def test_an_mlp_of_two_matrices_is_counted_as_such() -> None:
    config = transformers.GPTNeoXConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100
    )
    weights = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters() if p.ndim == 2)
    assert shape.of_config(config).parameters == pytest.approx(weights, rel=0.03)  # biases and norms apart


# --- packing ------------------------------------------------------------------------------------------------------------


def rollouts(rng: np.random.Generator, groups: list[tuple[int, list[int]]], prefix: int) -> list[Rollout]:
    shared = rng.integers(100, size=prefix)
    out = []
    for number, (prompt_tokens, lengths) in enumerate(groups):
        prompt = np.concatenate([shared, [100 + number], rng.integers(100, size=prompt_tokens - prefix - 1)])
        for sample, length in enumerate(lengths):
            ids = np.concatenate([prompt, rng.integers(100, size=length)]).astype(np.int32)
            chosen = np.arange(len(ids)) >= prompt_tokens
            task = Task.make(source="s", prompt=str(number), answer="0", verifier="math")
            out.append(Rollout(task=task, group=number, sample=sample, token_ids=ids, sampled=chosen, trained=chosen, stop=Stop.LENGTH))  # fmt: skip
    return out


def test_rows_are_those_that_the_learner_packs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        prefix = int(rng.integers(3, 9))
        groups = [
            (prefix + int(rng.integers(2, 20)), rng.integers(1, 40, size=rng.integers(1, 6)).tolist())
            for _ in range(rng.integers(2, 5))
        ]
        drawn, most = rollouts(rng, groups, prefix), int(rng.integers(30, 300))
        expected = list(packing.split(groups, prefix, most))
        parts = list(batch.split(drawn, most))
        assert len(parts) == len(expected)
        for part, row in zip(parts, expected, strict=True):
            packed = batch.collate(part, torch.device("cpu"))
            blocks = packed.layout.blocks
            assert row.places == len(packed.ids_T)
            assert row.predicted == len(packed.target_N)
            assert row.queries == sum(b.query_RQ.numel() for b in blocks)
            assert row.keys == sum(b.key_RK.numel() for b in blocks)
            assert row.pairs == sum(b.visible_RQK.numel() for b in blocks)
            assert row.keeps_keys == (row.keys <= attention.KEPT_KEYS * row.places)


# --- bytes --------------------------------------------------------------------------------------------------------------


def test_what_is_held_by_hand() -> None:
    layer = 8 * (8 + 2 * 4) + 8 * 8 + 8 * 32 + 16 * 8  # qkv, out, gate and up, down
    weights = 32 * 8 + 2 * (layer + 2 * 8) + 8
    assert TINY.parameters == weights
    held = Held(shape=TINY)
    assert held.fixed() == {"weights": 4 * weights, "optimizer": 8 * (weights - 2 * 16 - 8), "copies": 0.0}
    assert Held(shape=TINY, trains=False).fixed()["optimizer"] == 0
    lora = 2 * 4 * ((8 + 8) + 2 * (8 + 4) + (8 + 8) + 2 * (8 + 16) + (16 + 8))
    assert Held(shape=TINY, rank=4).fixed() == {"weights": 4 * (weights + lora), "optimizer": 8 * lora, "copies": 0.0}


def test_the_peak_of_a_cpu_adds_the_largest_sums_of_small_and_of_large_blocks() -> None:
    held = Held(shape=TINY, trains=False)
    big = float(memory.KEPT_BYTES + 1)
    moments = [[("activations", 2, 100.0), ("logits", 1, big)], [("cache", 1, 300.0)], [("logits", 3, big)]]
    found = memory.peak("x", held, moments, base=7.0, holes=2.0)
    assert found.total == 7 + 4 * TINY.parameters + 400 + 3 * big  # the freed 400 stay while the large ones come
    assert sum(found.parts.values()) == found.total
    on_gpu = memory.peak("x", held, moments, base=7.0, holes=2.0, cpu=False)
    assert on_gpu.total == 7 + 4 * TINY.parameters + 3 * big


def test_the_cache_is_the_engines(tiny_model: Path) -> None:
    from strop.engine.native import Cache

    found = shape.of_config(transformers.AutoConfig.from_pretrained(tiny_model))
    state = torch.zeros(found.kv_heads, 12, found.head_size)
    first = [(state, state)] * found.layers
    cache = Cache(20, 50, 5, first)
    real = sum(x.nbytes for x in (*cache.keys, *cache.values))
    asked = Sampled(rows=20, prompts=3, prompt_tokens=12, prefix_tokens=5, max_tokens=38)
    own, *_ = [t for t in next(iter(memory.sampling(Held(shape=found, trains=False), asked))) if t[0] == "cache"]
    assert own[1] * own[2] == real


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("length", [24, 90])
def test_activations_are_those_that_the_backward_keeps(
    tiny_model: Path, rank: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every storage that autograd or `fused.Kept` holds after a forward pass, in bytes."""
    from strop import config, fused, model
    from strop.learner import Learner

    policy = model.load(config.Model(name=str(tiny_model), device="cpu", lora=config.Lora(rank=rank)))
    assert (policy.fused is None) == bool(rank)
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights and x.is_floating_point():
            storages[storage.data_ptr()] = storage
        return x

    forward = fused._forward

    def noting(*args: Any) -> Any:
        after, kept = forward(*args)
        for x in (kept.hidden, *kept.scales, *kept.query_key_value, kept.seen, kept.middle, kept.gate_up):
            note(x)
        return after, kept

    monkeypatch.setattr(fused, "_forward", noting)
    groups = [(20, [length] * 4), (22, [length] * 4)]
    drawn = rollouts(np.random.default_rng(0), groups, 5)
    learner = Learner(policy, Optim())
    row = learner._row(drawn, "trained")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        states = learner._hidden(policy, row)
    assert states.requires_grad
    found = shape.of_config(transformers.AutoConfig.from_pretrained(tiny_model))
    (packed,) = packing.split(groups, 5, 100_000)
    held = Held(shape=found, rank=rank, fused=not rank)
    tensors = [*memory._activations(held, packed), *memory._attention(held, packed)]
    # Of the six passes around the layers the last norm keeps two; masks of booleans are not floats.
    passes = 4 * 4 * packed.places * found.hidden
    expected = sum(count * each for _, count, each in tensors) - passes - packed.pairs
    assert sum(s.nbytes() for s in storages.values()) == pytest.approx(expected, rel=0.05)


# --- seconds ------------------------------------------------------------------------------------------------------------


def test_a_generation_by_hand() -> None:
    cost = Cost(shape=TINY, rates=RATES)
    each = 2 * 1e-3 + 2e-3 + 12 * time.ROW_S  # two layers, and the word; below 16 rows it stays
    fed = 4 + 3 * 6
    prefill = 2 * fed * 2 * TINY.layer_weights + 4 * 3 * 10**2 * 8 * 2 + 3 * 2 * 32 * 8
    found = time.generate_s(
        cost, prompts=3, group=4, prompt_tokens=10, prefix_tokens=4, max_tokens=50, mean=1.0, rows=256
    )
    assert found == pytest.approx(50 * each + prefill / 1e9)
    refilled = time.generate_s(
        cost, prompts=3, group=8, prompt_tokens=10, prefix_tokens=4, max_tokens=50, mean=1.0, rows=12
    )
    assert refilled == pytest.approx(100 * each + prefill / 1e9)


def test_an_update_by_hand() -> None:
    row = packing.Packed(places=100, predicted=60, queries=0, keys=0, pairs=1000)
    weights, trained = 2 * TINY.layer_weights, TINY.parameters
    seconds = (6 * 100 * weights + 14 * 1000 * 8 * 2 + 8 * 60 * 256) / 1e9
    seconds += 4 * (8 * 256 + 3 * trained) / 1e9 + trained / 1e9 + 8 * trained / 1e9
    assert time.train_s(Cost(shape=TINY, rates=RATES), [row]) == pytest.approx(seconds)
    assert time.train_s(Cost(shape=TINY, rates=RATES, rank=1), [row]) < seconds


def test_lengths_have_the_asked_mean_and_reach_the_limit() -> None:
    for mean in (0.1, 0.5, 0.9):
        grid = (np.arange(10_000) + 0.5) / 10_000
        assert np.mean([time.alive(x, mean) for x in grid]) == pytest.approx(mean, abs=1e-3)
        rows = time.rows_of(
            prompts=1, group=64, prompt_tokens=10, prefix_tokens=4, max_tokens=1000, mean=mean, microbatch=10**6
        )
        assert rows[0].predicted / 64 == pytest.approx(1000 * mean, rel=0.03)


def test_a_faster_machine_is_so_in_everything() -> None:
    fast = RATES.faster(2.0)
    assert (fast.train_flops, fast.layer_s(40), fast.word_s(16)) == (2e9, RATES.layer_s(40) / 2, 1e-3)
    assert Rates.from_dict(json.loads(json.dumps(asdict(fast)))) == fast


# --- a whole plan -------------------------------------------------------------------------------------------------------


def test_a_plan_says_three_lines_and_a_table(calibrated: list[int]) -> None:
    found = plan.run(recipe(), splits=plan.tasks_at_hand(recipe()), usd_per_hour=0.5, watts=100)
    assert len(found.lines()) == 3
    assert [line.split()[0] for line in found.lines()] == ["memory", "time", "cost"]
    assert found.seconds is not None
    assert found.usd is not None
    assert found.kwh is not None
    assert found.seconds.low < found.seconds.likely < found.seconds.high
    assert found.usd.likely == pytest.approx(0.5 * found.seconds.likely / 3600)
    assert found.kwh.likely == pytest.approx(found.seconds.likely / 36_000)
    told = json.loads(json.dumps(found.as_dict()))
    assert told["energy_kind"] == "modelled"
    assert sum(told["peak_parts"].values()) == pytest.approx(told["peak_bytes"])
    assert any("of their limit (assumed)" in line for line in found.table())
    assert calibrated == [0]


def test_a_calibration_is_kept_and_made_again_when_asked(calibrated: list[int]) -> None:
    for expected, again in ((1, False), (1, False), (2, True)):
        plan.run(recipe(), again=again)
        assert len(calibrated) == expected
    assert plan.run(recipe(), measure=False).timed
    assert calibrate.key_of(TINY, rank=0, matmul="float32") != calibrate.key_of(TINY, rank=8, matmul="float32")
    assert calibrate.key_of(TINY, rank=4, matmul="float32") == calibrate.key_of(TINY, rank=8, matmul="float32")
    assert calibrate.key_of(TINY, rank=0, matmul="float32") == calibrate.key_of(
        replace(TINY, layers=9, name="other"), rank=0, matmul="float32"
    )


def test_without_a_calibration_there_is_memory_alone(calibrated: list[int]) -> None:
    found = plan.run(recipe(), measure=False)
    assert found.seconds is None
    assert found.lines()[1] == f"time    {plan.NO_CALIBRATION}"
    assert not calibrated
    json.dumps(found.as_dict())


def test_what_does_not_fit_comes_with_the_setting_that_would(calibrated: list[int]) -> None:
    tight = recipe(memory_gb=3.2)
    found = plan.run(tight)
    assert not found.fits
    (advice,) = found.advice
    sets = re.findall(r"--set (\S+)", advice)
    assert sets
    assert advice.endswith("GB and fit")
    assert plan.run(plan.propose.changed(tight, sets)).fits
    hopeless = plan.run(recipe(memory_gb=0.3))
    assert "nothing tried fits" in hopeless.advice[0]


def test_settings_that_the_recipe_cannot_have_are_not_proposed(calibrated: list[int]) -> None:
    """Adapters have no copy in 8 bits, so neither advice nor a proposal has them."""
    eight = {"int8": "training"}
    found = plan.run(recipe(memory_gb=1.5, engine=eight))
    assert not found.fits
    assert "lora" not in found.advice[0]
    whole = plan.run(recipe(engine=eight)).seconds
    assert whole is not None
    assert plan.within(recipe(engine=eight), budget.Budget(seconds=0.9 * whole.likely)).sets


def test_of_several_limits_the_tightest_counts(calibrated: list[int]) -> None:
    found = plan.run(recipe())
    loose = budget.Budget(seconds=found.seconds.likely / 2, usd=1e6)  # type: ignore[union-attr]
    proposal = plan.within(recipe(), loose, usd_per_hour=1.0)
    assert proposal.plan.seconds.likely <= loose.seconds  # type: ignore[operator, union-attr]


def test_more_refills_at_one_end_keep_the_range_in_order(calibrated: list[int]) -> None:
    found = plan.run(recipe("smollm2-135m", RL | {"algorithm": {"refill_rounds": 2}}))
    for stage in found.stages:
        assert all(r.low <= r.likely <= r.high for r in stage.seconds.values())


@pytest.mark.slow
def test_a_budget_is_kept_and_the_proposal_can_be_typed(calibrated: list[int]) -> None:
    asked = recipe()
    whole = plan.run(asked).seconds
    assert whole is not None
    half = budget.Budget(seconds=0.6 * whole.likely)
    found = plan.within(asked, half)
    assert found.sets == plan.within(asked, half).sets
    assert found.plan.seconds is not None
    assert found.plan.seconds.likely <= half.seconds  # type: ignore[operator]
    assert all(line.startswith("--set ") for line in found.lines())
    assert plan.run(plan.propose.changed(asked, found.sets)).seconds == found.plan.seconds
    assert plan.within(asked, budget.Budget(seconds=2 * whole.likely)).sets == ()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (lambda: plan.run(recipe(), on="a4"), "--on a4, which is none of .*; did you mean 'a40'"),
        (lambda: plan.within(recipe(), budget.Budget(seconds=1e-3)), "keeps this recipe within memory and budget"),
        (lambda: plan.run(recipe(), like=Path("nowhere")), "--like nowhere: no run directory"),
        (lambda: plan.run(recipe("./nothing")), "no such folder"),
        (lambda: plan.run(recipe(), usd_per_hour=float("nan")), "--usd-per-hour nan: write a finite number"),
    ],
)
def test_refusals_are_one_sentence(asked: Any, why: str, calibrated: list[int]) -> None:
    with pytest.raises(UserError, match=why) as caught:
        asked()
    assert "\n" not in str(caught.value)


def test_lengths_of_an_earlier_run(tmp_path: Path) -> None:
    rows = [
        {"kind": "train", "completions/mean_length": 24.0, "max_tokens": 32, "frac_reward_zero_std": 0.5},
        {"kind": "heldout", "accuracy": 0.1},
        {"kind": "train", "completions/mean_length": 8.0, "max_tokens": 32, "frac_reward_zero_std": 0.0},
    ]
    torn = '{"kind": "tra'  # a run that was killed, or goes on
    (tmp_path / "metrics.jsonl").write_text("\n".join([*map(json.dumps, rows), torn]))
    found = work.like(tmp_path)
    assert (found.length.likely, found.signal.likely) == (0.5, 0.75)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(UserError, match="it has made no training step yet"):
        work.like(tmp_path)


def test_a_reference_a_critic_and_gradients_left_behind_are_counted(calibrated: list[int]) -> None:
    def parts(algorithm: dict) -> dict:
        found = plan.run(recipe("smollm2-135m", RL | {"algorithm": algorithm}), measure=False)
        return dict(found.stages[0].peaks[-1].parts)

    floats = 4 * DEMO_SHAPE.parameters
    assert parts({"preset": "grpo"})["copies"] == 0
    assert parts({"preset": "grpo", "kl": "loss", "kl_coef": 0.04})["copies"] == floats
    assert parts({"preset": "ppo", "critic": {"kind": "model"}})["copies"] == 4 * floats
    look = {"name": "look", "do": "evaluate", "tasks": ["sums"]}
    before, _, after = plan.run(recipe("smollm2-135m", look, RL, look | {"name": "again"}), measure=False).stages
    assert before.peaks[-1].parts["gradients"] == 0
    assert after.peaks[-1].parts["gradients"] == pytest.approx(floats, rel=0.001)


def test_held_out_tasks_are_timed_as_they_are_answered(calibrated: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training rounds, evaluation does not: it is forecast with rates of its own."""
    from strop import precision

    asked: list[str] = []

    def measure(shape: Shape, *, rank: int, matmul: str) -> Rates:
        asked.append(matmul)
        return RATES if matmul == "float32" else RATES.faster(4.0)

    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    monkeypatch.setattr(calibrate, "measure", measure)
    look = {"name": "look", "do": "evaluate", "tasks": ["sums"]}
    model = {"name": "smollm2-135m", "matmul": "bfloat16"}
    rounded = plan.run(parse_recipe({"model": model, "tasks": {"sums": SUMS}, "stages": [look, RL]}))
    exact = plan.run(recipe("smollm2-135m", look, RL))
    assert sorted(set(asked)) == ["bfloat16", "float32"]
    assert rounded.stages[0].seconds == exact.stages[0].seconds
    assert rounded.stages[1].seconds["train"].likely == pytest.approx(exact.stages[1].seconds["train"].likely / 4)
    assert rounded.stages[1].peaks[-1].parts["copies"] > 0
