"""The native engine against transformers' own generation, and its promises about sharing, seeds and log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strop import config, model
from strop.chat import Budget
from strop.engine import Sampling, native
from strop.engine.native import NativeEngine, draw
from strop.learner import Learner
from strop.record import Stop, Task


def task(text: str) -> Task:
    return Task.make(source="test", prompt=text, answer="0", verifier="math")


TASKS = [
    task("Compute 1 + 1."),
    task("What?"),
    task("A longer problem, with more words in it than the others have."),
    task("x"),
]


@pytest.fixture(scope="module")
def policy(tiny_model):
    return model.load(config.Model(name=str(tiny_model)))


@pytest.fixture(scope="module")
def chat(policy):
    return policy.chat(config.Chat(system="Be brief."))


def generate(policy, chat, tasks=TASKS, *, max_batch=64, num_samples=1, temperature=0.0, max_tokens=20, seed=0):
    engine = NativeEngine(policy, chat, max_batch=max_batch)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    return engine.generate(tasks, num_samples=num_samples, sampling=sampling, seed_path=(seed,)), engine


def prefilled_once(chat) -> int:
    """What all prompts begin with, and each remainder, once."""
    prompts = [chat.encode_prompt(t.prompt).tolist() for t in TASKS]
    shared = next(i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)
    assert shared > 20  # template and system prompt
    return shared + sum(len(p) - shared for p in prompts)


def test_greedy_equals_transformers_token_for_token(policy, chat, tiny_model):
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for rollout in generate(policy, chat)[0]:
        prompt = torch.from_numpy(chat.encode_prompt(rollout.task.prompt)).long()[None]
        expected = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False,
            eos_token_id=list(chat.stop_ids), pad_token_id=chat.stop_ids[0],
        )[0]  # fmt: skip
        assert rollout.token_ids.tolist() == expected.tolist()
        assert rollout.num_prompt_tokens == prompt.shape[1]


def test_siblings_share_one_prefill_and_equal_repeated_prompts(policy, chat):
    forked, engine = generate(policy, chat, num_samples=5, temperature=1.0)
    assert engine.num_prefilled_tokens == prefilled_once(chat)
    for rollout in forked:  # each alone, its prompt encoded for it only
        engine = NativeEngine(policy, chat, max_batch=1)
        alone = engine.generate(
            [rollout.task],
            num_samples=rollout.sample + 1,
            sampling=Sampling(temperature=1.0, max_tokens=20),
            seed_path=(0,),
        )[-1]
        assert alone.token_ids.tolist() == rollout.token_ids.tolist()
        np.testing.assert_allclose(alone.sampler_logprobs, rollout.sampler_logprobs, rtol=1e-6, atol=2e-6)


def test_what_all_prompts_begin_with_is_read_as_if_each_row_had_it(policy, chat):
    opening = chat.opening()
    assert len(opening) > 20  # template and system prompt
    for t in TASKS:
        assert chat.encode_prompt(t.prompt)[: len(opening) - 1].tolist() == opening[:-1].tolist()
    shared, _ = generate(policy, chat, num_samples=3, temperature=1.0)
    engine = NativeEngine(policy, chat, max_batch=64)
    engine.opening = opening[:1]  # nothing to share
    sampling = Sampling(temperature=1.0, max_tokens=20)
    for one, other in zip(
        shared, engine.generate(TASKS, num_samples=3, sampling=sampling, seed_path=(0,)), strict=True
    ):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_allclose(one.sampler_logprobs, other.sampler_logprobs, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("max_batch", [1, 3, 7, 64])
def test_refilled_rows_change_nothing(policy, chat, max_batch):
    wide, _ = generate(policy, chat, num_samples=6, temperature=1.0)
    narrow, engine = generate(policy, chat, num_samples=6, temperature=1.0, max_batch=max_batch)
    assert [r.token_ids.tolist() for r in narrow] == [r.token_ids.tolist() for r in wide]
    assert [(r.group, r.sample) for r in narrow] == [(g, s) for g in range(len(TASKS)) for s in range(6)]
    # Prompts that start in different batches of rows share no common beginning, but none is ever encoded twice.
    assert prefilled_once(chat) <= engine.num_prefilled_tokens <= sum(len(chat.encode_prompt(t.prompt)) for t in TASKS)


def test_too_little_room_for_all_changes_the_order_alone(policy, chat, monkeypatch):
    tasks = [task("word " * n) for n in (1, 40, 3, 90, 2)]
    plain, engine = generate(policy, chat, tasks, num_samples=3, temperature=1.0)
    lengths = [r.num_prompt_tokens + 20 for r in plain[::3]]
    room = 5 * min(lengths)
    assert room < 15 * max(lengths)
    monkeypatch.setattr(native, "CACHE_FRAC", native.CACHE_FRAC * (room + 0.5) / engine._room_tokens())
    caches: list[tuple[int, int]] = []

    class Seen(native.Cache):
        def __init__(self, rows, length, *rest):
            caches.append((rows, length))
            super().__init__(rows, length, *rest)

    monkeypatch.setattr(native, "Cache", Seen)
    monkeypatch.setattr(native, "MIN_ROWS", 1)
    fitting, _ = generate(policy, chat, tasks, num_samples=3, temperature=1.0)
    assert len(caches) > 1
    assert all(rows == 1 or rows * length <= room for rows, length in caches)
    assert [length for _, length in caches] == sorted(length for _, length in caches)
    for one, other in zip(plain, fitting, strict=True):
        assert (one.group, one.sample, one.token_ids.tolist()) == (other.group, other.sample, other.token_ids.tolist())
        torch.testing.assert_close(
            *(torch.tensor(r.sampler_logprobs) for r in (one, other)), equal_nan=True, atol=1e-5, rtol=0
        )


def test_seed_decides_each_rollout_alone(policy, chat):
    one, _ = generate(policy, chat, num_samples=4, temperature=1.0)
    fewer, _ = generate(policy, chat, [TASKS[2]], num_samples=2, temperature=1.0)
    other, _ = generate(policy, chat, num_samples=4, temperature=1.0, seed=1)
    assert [r.text for r in fewer] == [r.text for r in one if r.task is TASKS[2]][:2]
    assert [r.text for r in other] != [r.text for r in one]
    assert len({r.text for r in one}) > 12  # siblings differ


def test_a_length_asked_for_is_in_the_prompt_and_on_the_record(policy, chat):
    budgets = [Budget(tokens=512), Budget(tokens=64, mode="max"), Budget(tokens=7), Budget(tokens=8)]
    engine = NativeEngine(policy, chat, max_batch=64)
    sampling = Sampling(temperature=1.0, max_tokens=4)
    rollouts = engine.generate(TASKS, num_samples=2, sampling=sampling, seed_path=(0,), budgets=budgets)
    said = ["Think for 512 tokens.", "Think for maximum 64 tokens.", "Think for 7 tokens.", "Think for 8 tokens."]
    for rollout in rollouts:
        prompt, budget = rollout.task.prompt, budgets[rollout.group]
        assert f"{prompt} {said[rollout.group]}<|im_end|>" in chat.prompt_text(prompt, budget)
        assert rollout.token_ids[: rollout.num_prompt_tokens].tolist() == chat.encode_prompt(prompt, budget).tolist()
        assert rollout.budget_tokens == budgets[rollout.group].tokens
        assert rollout.task is TASKS[rollout.group]  # its identity is that of the problem
    plain, _ = generate(policy, chat, max_tokens=4)
    assert all(rollout.budget_tokens is None for rollout in plain)


def test_lengths_are_drawn_evenly_and_by_seed_alone():
    from strop.train import draw_budgets

    stage = config.TrainStage.model_validate(
        {"name": "rl", "do": "train", "tasks": {"a": 1}, "budget": {"tokens": [3, 7], "mode": "max"}}
    )
    tasks = [task(f"number {i}") for i in range(500)]
    budgets = draw_budgets(stage, tasks, (0, "rl", 1, 0))
    assert budgets is not None
    assert {b.mode for b in budgets} == {"max"}
    counts = np.bincount([b.tokens for b in budgets], minlength=8)[3:]
    assert counts.sum() == 500
    assert counts.min() > 60  # 100 each, give or take
    assert draw_budgets(stage, tasks[::-1], (0, "rl", 1, 0)) == budgets[::-1]
    for other in ((1, "rl", 1, 0), (0, "other", 1, 0), (0, "rl", 2, 0), (0, "rl", 1, 1)):
        assert draw_budgets(stage, tasks, other) != budgets
    assert draw_budgets(stage.model_copy(update={"budget": config.AskedLength()}), tasks, (0,)) is None


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_sampler_logprobs_equal_the_learners(policy, chat, temperature):
    rollouts, _ = generate(policy, chat, num_samples=4, temperature=temperature)
    learner = Learner(policy, config.Optim(microbatch_tokens=256))
    for rollout, ours in zip(rollouts, learner.logprobs(rollouts), strict=True):
        gap = np.abs(ours - rollout.sampler_logprobs)[rollout.sampled]
        # The tiny model's logits reach 20 / temperature, where one float32 step is 2e-6; SmolLM2's are tested below.
        assert gap.mean() < 2e-6 / temperature
        assert gap.max() < 1e-5 / temperature
        assert np.isnan(rollout.sampler_logprobs[~rollout.sampled]).all()


def test_stops(policy, chat):
    rollouts, _ = generate(policy, chat, num_samples=32, temperature=1.5, max_tokens=12)
    stops = {r.stop for r in rollouts}
    assert stops <= {Stop.EOS, Stop.LENGTH}
    for r in rollouts:
        ended = r.token_ids[-1] in chat.stop_ids
        assert ended == (r.stop is Stop.EOS)
        assert r.truncated == (not ended)
        assert r.truncated <= (r.num_sampled == 12)
        assert not any(t in chat.stop_ids for t in r.token_ids[r.num_prompt_tokens : -1])


def test_one_token_limit(policy, chat):
    rollouts, _ = generate(policy, chat, max_tokens=1, num_samples=2, temperature=1.0)
    assert [r.num_sampled for r in rollouts] == [1] * 8


def test_draw_follows_the_softmax():
    logits = torch.tensor([[2.0, 0.0, -torch.inf, 1.0]])
    for temperature in (0.5, 1.0, 2.0):
        p = torch.softmax(logits / temperature, -1)[0]
        uniform = (torch.arange(20000) + 0.5) / 20000
        tokens, logprobs = draw(logits.repeat(20000, 1), uniform, temperature)
        share = torch.bincount(tokens, minlength=4) / 20000
        torch.testing.assert_close(share, p, atol=2e-4, rtol=0)
        torch.testing.assert_close(logprobs, p.log()[tokens])
    assert draw(logits.clone(), torch.tensor([0.999999]), 1.0)[0].item() != 2


@pytest.mark.parametrize("vocabulary", [256, 257, 1000, 1024])
def test_draw_inverts_the_running_sum_of_a_large_vocabulary(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(1, vocabulary, generator=generator)
    logits[0, ::3] = -torch.inf  # never to be drawn, wherever rounding carries the aim
    uniform = torch.cat([torch.linspace(0, 1, 4001), torch.rand(4000, generator=generator)])
    tokens, logprobs = draw(logits.repeat(len(uniform), 1), uniform, 1.0)
    p = logits.double().softmax(-1)[0]
    ends = p.cumsum(0)
    assert (p[tokens] > 0).all()
    slack = 1e-6  # the token's own stretch of [0, 1) holds the uniform number, up to rounding
    assert (uniform.double() <= ends[tokens] + slack).all()
    assert (uniform.double() >= ends[tokens] - p[tokens] - slack).all()
    torch.testing.assert_close(logprobs.double(), p[tokens].log(), atol=1e-5, rtol=0)


def nucleus(p: list[float], top_p: float) -> list[float]:
    """The slow way: words from the largest on until their sum reaches top_p, and all that equal the last; renormalised."""
    edge, total = 0.0, 0.0
    for value in sorted(p, reverse=True):
        if total >= top_p:
            break
        edge, total = value, total + value
    kept = [value if value >= edge else 0.0 for value in p]
    return [value / sum(kept) for value in kept]


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("vocabulary", "sharpness"), [(6, 1.0), (1000, 3.0), (1500, 0.01)]
)  # the last: no 512 words reach it
def test_a_nucleus_is_drawn_from_and_reported_as_the_slow_way_says(vocabulary, sharpness, top_p):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = sharpness * torch.randn(1, vocabulary, generator=generator)
    logits[0, 1] = logits[0, 4]  # equal ones
    expected = torch.tensor(nucleus((logits.double() / 0.7).softmax(-1)[0].tolist(), top_p), dtype=torch.float64)
    uniform = (torch.arange(20000) + 0.5) / 20000
    tokens, logprobs = draw(logits.repeat(20000, 1), uniform, 0.7, top_p)
    assert set(tokens.tolist()) <= set(expected.nonzero()[:, 0].tolist())
    torch.testing.assert_close(
        torch.bincount(tokens, minlength=vocabulary) / 20000, expected.float(), atol=3e-4, rtol=0
    )
    torch.testing.assert_close(logprobs.double(), expected[tokens].log(), atol=1e-5, rtol=0)


def test_a_nucleus_does_not_depend_on_the_other_rows():
    generator = torch.Generator().manual_seed(0)
    logits = torch.cat(
        [3 * torch.randn(1, 1500, generator=generator), 0.01 * torch.randn(1, 1500, generator=generator)]
    )
    uniform = torch.tensor([0.7, 0.7])
    both = draw(logits.clone(), uniform, 1.0, 0.9)
    alone = [draw(logits[i : i + 1].clone(), uniform[:1], 1.0, 0.9) for i in range(2)]
    assert both[0].tolist() == [a[0].item() for a in alone]
    assert both[1].tolist() == [a[1].item() for a in alone]


def test_training_never_samples_from_a_nucleus(policy, chat):
    """The stage has no such key, and what it does not ask for is off."""
    assert "top_p" not in config.TrainStage.model_fields
    assert Sampling().top_p == 1.0


@pytest.mark.demo
def test_demo_model_greedy_and_logprobs(demo_model):
    policy = model.load(config.Model(name=str(demo_model)))
    chat = policy.chat(config.Chat())
    tasks = [task("Compute 3 + 4."), task("Compute 17 + 25 - 3, step by step.")]
    greedy, _ = generate(policy, chat, tasks, max_tokens=10)
    sampled, _ = generate(policy, chat, tasks, num_samples=8, temperature=1.0, max_tokens=16)
    gaps = []
    for rollout, ours in zip(sampled, Learner(policy, config.Optim()).logprobs(sampled), strict=True):
        gaps.append(np.abs(ours - rollout.sampler_logprobs)[rollout.sampled])
    gap = np.concatenate(gaps)
    assert gap.mean() < 1e-5
    assert gap.max() < 1e-4
    policy.model.set_attn_implementation("eager")
    for rollout in greedy:
        prompt = torch.from_numpy(chat.encode_prompt(rollout.task.prompt)).long()[None]
        expected = policy.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=10,
            do_sample=False,
            pad_token_id=chat.stop_ids[0],
        )
        assert rollout.token_ids.tolist() == expected[0].tolist()
