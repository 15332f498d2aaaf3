"""Memory runs short before the system kills: half as much at once, the same numbers, and one sentence where nothing fits."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch

from strop import advantage, config, headroom, learner, machine, model
from strop.config import Algorithm, Optim
from strop.engine import Sampling
from strop.engine.native import MIN_ROWS, NativeEngine
from strop.headroom import OutOfRoom
from strop.learner import Learner
from strop.process import give_back_memory
from strop.record import Rollout, Task, UserError, replace

TASKS = [Task.make(source="test", prompt=f"Compute {i} + {i}.", answer=str(2 * i), verifier="math") for i in range(4)]
TOLERANCE = 2e-6  # of a gradient's largest entry: sums in another order


def rollouts_of(policy: model.Policy) -> list[Rollout]:
    engine = NativeEngine(policy, policy.chat(config.Chat()), max_batch=64)
    found = engine.generate(TASKS, num_samples=8, sampling=Sampling(max_tokens=24), seed_path=("room",))
    scored = [replace(r, reward=float(i % 3 == 0)) for i, r in enumerate(found)]
    return advantage.assign(scored, Algorithm(), seed=0)


def short_for(monkeypatch: pytest.MonkeyPatch, is_short) -> list[int]:
    """Memory that is short whenever `is_short(call)`; the list of calls made. Only the system's figure is planted."""
    calls: list[int] = []

    def room() -> float:
        calls.append(len(calls))
        return 0.0 if is_short(len(calls)) else 1e12

    monkeypatch.setattr(headroom, "room_bytes", room)
    monkeypatch.setattr(headroom, "EVERY_S", 0.0)
    return calls


def test_half_the_tokens_give_the_same_gradient(tiny_model, monkeypatch):
    grads = {}
    for short in (False, True):
        policy = model.load(config.Model(name=str(tiny_model)))
        rollouts = rollouts_of(policy)
        ours = Learner(policy, Optim(lr=1e-9, microbatch_tokens=1536, max_grad_norm=1e9))
        with monkeypatch.context() as patch:
            if short:
                short_for(patch, lambda call: call == 2)  # the second layer of the first micro-batch
            ours.update(rollouts, Algorithm(), num_updates=1, max_tokens=24, seed=0)
        grads[short] = {n: p.grad.clone() for n, p in ours.parameters.items() if p.grad is not None}
        assert ours.microbatch_tokens < 1536 if short else ours.microbatch_tokens == 1536
    for name, plain in grads[False].items():
        assert torch.allclose(grads[True][name], plain, rtol=0, atol=TOLERANCE * plain.abs().max().item()), name


def test_logprobs_are_begun_anew_too(tiny_model, monkeypatch):
    policy = model.load(config.Model(name=str(tiny_model)))
    rollouts = rollouts_of(policy)
    ours = Learner(policy, Optim())
    before = ours.logprobs(rollouts)
    short_for(monkeypatch, lambda call: call == 1)
    after = ours.logprobs(rollouts)
    assert len(after) == len(before)
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_real_limit_is_met_before_it_is_broken(tiny_model):
    """The process's own resident memory against a limit a little above it; nothing is planted."""
    policy = model.load(config.Model(name=str(tiny_model)))
    rollouts = rollouts_of(policy)
    ours = Learner(policy, Optim(microbatch_tokens=1536))
    give_back_memory()  # as the learner does once short: what earlier tests left would be room enough
    used_gb = psutil.Process().memory_info().rss / 1e9
    headroom._next = 0.0
    with headroom.keep_within(used_gb - 0.01), pytest.raises(UserError, match=r"set model\.lora\.rank=16"):
        ours.update(rollouts, Algorithm(), num_updates=1, max_tokens=24, seed=0)
    with headroom.keep_within(used_gb + 8):
        assert ours.update(rollouts, Algorithm(), num_updates=1, max_tokens=24, seed=0)["num_updates"] == 1


def test_when_nothing_fits_one_sentence_says_what_would(tiny_model, monkeypatch):
    policy = model.load(config.Model(name=str(tiny_model)))
    rollouts = rollouts_of(policy)
    before = {n: p.detach().clone() for n, p in policy.trainable().items()}
    ours = Learner(policy, Optim())
    short_for(monkeypatch, lambda call: True)
    with pytest.raises(UserError, match=r"one completion at a time \(\d+ tokens .* lower max_tokens of the stage"):
        ours.update(rollouts, Algorithm(), num_updates=1, max_tokens=24, seed=0)
    assert all(torch.equal(p, before[n]) for n, p in policy.trainable().items())


def test_the_engine_decodes_fewer_rows_and_says_the_same(tiny_model, monkeypatch):
    policy = model.load(config.Model(name=str(tiny_model)))
    asked = {"num_samples": 16, "sampling": Sampling(max_tokens=12), "seed_path": ("room",)}
    plain = NativeEngine(policy, policy.chat(config.Chat()), max_batch=64).generate(TASKS, **asked)
    said, told = [], []
    engine = NativeEngine(policy, policy.chat(config.Chat()), max_batch=64, say=told.append)
    short_for(monkeypatch, lambda call: call == 9)
    again = engine.generate(TASKS, **asked, on_done=said.append)
    assert engine.max_batch == 32
    assert [r.text for r in again] == [r.text for r in plain]
    assert len(said) == len(plain)
    assert told == ["memory ran short: 32 answers at a time from here on; engine.max_batch=32 asks for no more"]
    short_for(monkeypatch, lambda call: True)
    with pytest.raises(UserError, match=f"even with {MIN_ROWS} answers at a time"):
        engine.generate(TASKS, **asked)


def test_a_gpu_that_is_full_is_met_in_the_same_way(tiny_model, monkeypatch):
    policy = model.load(config.Model(name=str(tiny_model)))
    rollouts, genuine, calls = rollouts_of(policy), learner.Learner._hidden, []

    def full_once(self, body, row):
        calls.append(1)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return genuine(self, body, row)

    monkeypatch.setattr(learner.Learner, "_hidden", full_once)
    ours = Learner(policy, Optim())
    assert ours.update(rollouts, Algorithm(), num_updates=1, max_tokens=24, seed=0)["num_updates"] == 1
    assert ours.microbatch_tokens < 1536


def test_the_look_is_cheap_and_reads_the_control_group(tmp_path):
    group = tmp_path / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("700000\n")
    (group / "memory.stat").write_text("anon 500000\ninactive_file 150000\nactive_file 50000\n")
    room = machine.cgroup_room(tmp_path)
    assert room() == 500_000
    (group / "memory.current").write_text("1100000\n")
    assert room() == 100_000
    (group / "memory.stat").write_text(
        "total_inactive_file 300000\nactive_file 1\ntotal_active_file 400000\n"
    )  # version 1
    assert room() == 600_000
    assert machine.cgroup_room(tmp_path / "nowhere")() == float("inf")
    headroom._next = 0.0
    with headroom.keep_within(0.001), pytest.raises(OutOfRoom, match="all memory that may be taken is in use"):
        headroom.check()
    headroom.check()
