"""The sampler is the policy, or the run stops before it learns: planted engines of every wrong kind, and healthy ones."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import faults
from strop import cli, config, model, tasks, train, vet
from strop.config import Recipe, parse_recipe
from strop.engine.native import NativeEngine
from strop.ledger import Ledger
from strop.model import Policy
from strop.provenance import EXACT, ROUNDED, Mismatch, levels, mark_of
from strop.record import Rollout, read_rollouts, replace
from strop.rewards import Scorer
from strop.run import Run
from strop.tools import Tools
from strop.watch import Watch


def job(folder: Path, tiny_model: Path, **settings: object) -> Recipe:
    """RL on the parity of a number, with a reward that tells siblings apart from the first step on."""
    rng = random.Random(0)
    rows = [{"problem": str(n), "answer": rng.choice("EO")} for n in range(100, 300)]
    (folder / "parity.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "vowels.py").write_text(
        "def low(completions, **columns):\n    return [sum(ord(c) % 2 for c in text) / 8 for text in completions]\n"
    )
    columns = {"verifier": "exact", "prompt_column": "problem", "answer_column": "answer"}
    stage = {
        "name": "rl", "do": "train", "tasks": {"parity": 1.0}, "prompts_per_step": 8, "group_size": 4, "updates_per_step": 4,
        "steps": 10, "max_tokens": 8, "optim": {"lr": 1e-3, "warmup_steps": 1}, "heldout_every": 0, "checkpoint_every": 100,
        "rewards": [{"name": f"{folder}/vowels.py:low", "weight": 1.0}], **settings,
    }  # fmt: skip
    return parse_recipe({
        "model": {"name": str(tiny_model)},
        "chat": {"template": "{{ messages[0].content }}"},
        "tasks": {"parity": {"source": str(folder / "parity.jsonl"), "heldout": 8, "dev": 8, "settings": columns}},
        "stages": [stage],
        "checks": {"workers": 1},
    })  # fmt: skip


Plant = Callable[[Policy, NativeEngine], NativeEngine]


def learn(recipe: Recipe, out: Path, plant: Plant = lambda _, engine: engine, resume: bool = False) -> Run:
    """The recipe's one stage, with a planted engine."""
    policy = model.load(recipe.model)
    chat = policy.chat(recipe.chat)
    with (
        Scorer(workers=1) as scorer,
        Run.open(out, recipe, resume=resume) as run,
        open(os.devnull, "w") as nowhere,
    ):
        tools = Tools(
            recipe=recipe, policy=policy, chat=chat, engine=plant(policy, NativeEngine(policy, chat, max_batch=64)), scorer=scorer,
            splits=tasks.load(recipe.tasks, seed=0, say=print), ledger=Ledger.from_dict({}), watch=Watch(nowhere, live=False),
        )  # fmt: skip
        stage = recipe.stages[0]
        functions = vet.load_rewards(recipe, Path())["rl"]
        train.run(stage, tools, run.stage("rl"), functions, lambda: policy.load_weights(Path(recipe.model.name)))  # type: ignore[arg-type]
        return run


def stops(recipe: Recipe, out: Path, plant: Plant, words: str, what: str) -> list[Rollout]:
    """It stops with these words, at a step of which nothing was learned or committed; returns the evidence."""
    with pytest.raises(Mismatch, match=words) as stopped:
        learn(recipe, out, plant)
    assert cli._code_of(stopped.value) == 3, "stopped, and resumable"
    steps = [row["step"] for row in Run.read(out).stage("rl").rows("train")]
    (file,) = (out / "rollouts" / "rl").glob("mismatch_*.parquet")
    assert int(file.stem.removeprefix("mismatch_")) == len(steps) + 1
    faults.told(what, injected=1, survived=1)
    return read_rollouts(file)


# --- engines that are wrong -------------------------------------------------------------------------------------------


class Keeps(NativeEngine):
    """An engine with weights of its own, which takes over the learner's until the step `until`, and then no longer."""

    def __init__(self, learner: Policy, engine: NativeEngine, until: int) -> None:
        super().__init__(copy.deepcopy(learner), engine.chat, max_batch=engine.max_batch)
        self.learner, self.until = learner, until

    def load(self, policy_step: int) -> None:
        super().load(policy_step)
        if policy_step <= self.until:
            self.policy.model.load_state_dict(self.learner.model.state_dict())


@pytest.mark.parametrize("lr", [1e-3, 1e-6])
def test_the_weights_of_an_older_step_stop_the_run(tmp_path, tiny_model, lr):
    """Also where they differ so little that no log-probability could tell."""
    recipe = job(tmp_path, tiny_model, optim={"lr": lr, "warmup_steps": 0})
    words = r"step 5: 32 of 32 rollouts were sampled by the weights after step 3 .* has those after step 4 .* --resume"
    found = stops(
        recipe, tmp_path / "run", lambda p, e: Keeps(p, e, until=3), words, f"engine keeps older weights, lr {lr:g}"
    )
    assert len({r.weights for r in found}) == 1


def test_the_base_weights_stop_the_run(tmp_path, tiny_model):
    """An adapter that never reaches the engine, which has the base: nobody's weights but the base's."""
    recipe = job(tmp_path, tiny_model, steps=3)
    base = model.load(recipe.model.model_copy(update={"lora": config.Lora()}))

    def plant(policy: Policy, engine: NativeEngine) -> NativeEngine:
        with torch.no_grad():  # the stage begins with weights that an earlier one has trained
            for parameter in policy.trainable().values():
                parameter.add_(0.01 * torch.ones_like(parameter))
        return NativeEngine(base, engine.chat, max_batch=64)

    stops(recipe, tmp_path / "run", plant, "step 1: .* perhaps the base model's", "engine has the base weights")


def test_an_adapter_that_never_reached_the_engine_stops_the_run(tmp_path, tiny_model):
    recipe = job(tmp_path, tiny_model, steps=3)
    with_lora = recipe.model_copy(update={"model": recipe.model.model_copy(update={"lora": config.Lora(rank=4)})})
    base = model.load(recipe.model)
    stops(
        with_lora, tmp_path / "run", lambda _, e: NativeEngine(base, e.chat, max_batch=64),
        "step 1: 32 of 32 rollouts were sampled by weights that the learner has not had", "engine lacks the adapter",
    )  # fmt: skip


class Silent(NativeEngine):
    def generate(self, *args, **options):
        return [replace(r, weights=None) for r in super().generate(*args, **options)]


def test_an_engine_that_does_not_say_what_it_samples_from_stops_the_run(tmp_path, tiny_model):
    recipe = job(tmp_path, tiny_model, steps=2)
    stops(
        recipe, tmp_path / "run", lambda _, e: Silent(e.policy, e.chat, max_batch=64), "step 1: .* did not say",
        "engine does not mark its rollouts",
    )  # fmt: skip


class Tempers(NativeEngine):
    """Samples at one temperature, and says another."""

    actual = 1.0

    def generate(self, tasks, *, sampling, **options):
        found = super().generate(tasks, sampling=replace(sampling, temperature=self.actual), **options)
        return [replace(r, temperature=sampling.temperature) for r in found]


@pytest.mark.parametrize(("actual", "recorded"), [(1.0, 0.7), (1.3, 1.0), (1.0, 1.3), (1.0, 0.95)])
def test_another_temperature_than_recorded_stops_the_run(tmp_path, tiny_model, actual, recorded):
    """With the log-probabilities of what it really sampled from, or of the plain softmax (as vLLM's are by default)."""
    recipe = job(tmp_path, tiny_model, temperature=recorded)

    def plant(policy: Policy, engine: NativeEngine) -> NativeEngine:
        wrong = Tempers(policy, engine.chat, max_batch=64)
        wrong.actual = actual
        return wrong

    found = stops(
        recipe, tmp_path / "run", plant, "log-probabilities of sampler and learner differ by .* temperature",
        f"sampled at {actual:g}, recorded {recorded:g}",
    )  # fmt: skip
    gaps = np.concatenate([np.abs(r.old_logprobs - r.sampler_logprobs)[r.sampled] for r in found])
    assert gaps.mean() > EXACT.mean_abs, "the evidence shows it"


class OneInEight(NativeEngine):
    """The right weights and words for all but a few rollouts, whose log-probabilities are those of greedy decoding: 0."""

    def generate(self, *args, **options):
        found = super().generate(*args, **options)
        return [
            r if i % 8 else replace(r, sampler_logprobs=np.where(r.sampled, np.float32(0), r.sampler_logprobs))
            for i, r in enumerate(found)
        ]


def test_a_few_wrong_rollouts_among_many_stop_the_run(tmp_path, tiny_model):
    recipe = job(tmp_path, tiny_model)
    stops(
        recipe, tmp_path / "run", lambda _, e: OneInEight(e.policy, e.chat, max_batch=64), "differ by",
        "one rollout in eight has log-probabilities of 0",
    )  # fmt: skip


# --- engines that are right -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, *(pytest.param(t, marks=pytest.mark.slow) for t in (1.0, 1.3))])
def test_ten_healthy_steps_go_on(tmp_path, tiny_model, temperature):
    """With four updates a step the weights move on within it; what is compared are those that sampled."""
    run = learn(job(tmp_path, tiny_model, temperature=temperature), tmp_path / "run")
    rows = run.stage("rl").rows("train")
    assert len(rows) == 10
    assert all(row["num_updates"] == 4 for row in rows)
    assert max(row["sampling/mismatch_abs"] for row in rows) < EXACT.mean_abs / 50
    assert max(row["sampling/mismatch_kl"] for row in rows) < EXACT.k3 / 100
    marks = [{r.weights for r in run.stage("rl").rollouts(step)} for step in range(1, 11)]
    assert all(len(m) == 1 for m in marks)
    assert len(set.union(*marks)) == 10, "every step has weights of its own"


def test_after_a_stop_a_sound_engine_goes_on(tmp_path, tiny_model):
    """The run is left resumable: the steps before the stop are replayed, and the result is that of an undisturbed run."""
    recipe = job(tmp_path, tiny_model, steps=5)
    stops(recipe, tmp_path / "run", lambda p, e: Keeps(p, e, until=2), "step 4", "resumed after a stale engine")
    resumed, whole = learn(recipe, tmp_path / "run", resume=True), learn(recipe, tmp_path / "whole")
    last = [{r.weights for r in run.stage("rl").rollouts(5)} for run in (resumed, whole)]
    assert last[0] == last[1]


def test_run_folders_of_before_the_mark_resume(tmp_path, tiny_model):
    """Their rollouts have no such column, and are replayed as they are."""
    recipe = job(tmp_path, tiny_model, steps=5)
    stops(recipe, tmp_path / "run", lambda p, e: Keeps(p, e, until=2), "step 4", "resumed from an old folder")
    for file in (tmp_path / "run" / "rollouts" / "rl").glob("step_*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns("weights"), file)
    assert {r.weights for r in read_rollouts(file)} == {None}
    run = learn(recipe, tmp_path / "run", resume=True)
    assert run.stage("rl").last_step == 5


# --- the mark and the levels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mark_sees_one_bit_of_any_element(dtype):
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a": torch.randn(301, 7, generator=generator).to(dtype),
        "b": torch.randn(5, generator=generator).to(dtype),
    }
    before = mark_of(weights)
    assert mark_of(dict(reversed(weights.items()))) == before, "the order of names is none"
    for name, tensor in weights.items():
        bits = tensor.view(-1).view(torch.int32 if dtype is torch.float32 else torch.int16)
        for place in random.Random(0).sample(range(len(bits)), min(len(bits), 50)):
            bits[place] ^= 1
            assert mark_of(weights) != before, (name, place)
            bits[place] ^= 1
    assert mark_of(weights) == before
    assert mark_of({"c": weights["a"], "b": weights["b"]}) != before
    assert mark_of({"a": weights["a"].T, "b": weights["b"]}) != before


@pytest.mark.parametrize("lr", [1e-3, 1e-7])
def test_a_mark_sees_one_tensor_that_an_update_did_not_reach(lr):
    """Small and large, at a learning rate that moves a weight by its last bits."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"norm": (64,), "small": (60, 50), "large": (1000, 200), "odd": (997, 331)}
    weights = {n: torch.nn.Parameter(0.02 * torch.randn(s, generator=generator)) for n, s in shapes.items()}
    before = {name: parameter.detach().clone() for name, parameter in weights.items()}
    adamw = torch.optim.AdamW(weights.values(), lr=lr)
    for parameter in weights.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    adamw.step()
    now = mark_of(weights)
    assert all(mark_of(weights | {name: stale}) != now for name, stale in before.items())


def test_a_mark_does_not_depend_on_threads():
    weights = {"a": torch.randn(1000, 1000)}
    before, threads = mark_of(weights), torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert mark_of(weights) == before
    finally:
        torch.set_num_threads(threads)


def test_levels_grow_as_temperature_divides():
    assert levels(rounds=False, temperature=1.3) == EXACT
    cold = levels(rounds=True, temperature=0.1)
    assert cold.mean_abs == pytest.approx(10 * ROUNDED.mean_abs)
    assert cold.k3 == pytest.approx(100 * ROUNDED.k3)


@pytest.mark.parametrize("name", ["mean_abs", "k3"])
def test_either_level_stops_and_what_is_no_number_does_not(name):
    sums = {"sum_abs": 0.0, "sum_k3": 0.0}
    EXACT.check(**sums, num_tokens=100.0)
    key = f"sum_{name.removeprefix('mean_')}"
    with pytest.raises(Mismatch, match="100 tokens"):
        EXACT.check(**sums | {key: 101 * getattr(EXACT, name)}, num_tokens=100.0)
    EXACT.check(**sums | {key: float("nan")}, num_tokens=100.0)
