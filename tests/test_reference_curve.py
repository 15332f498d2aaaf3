"""Fifty steps of a tiny run, kept in a file: a change that should not touch numbers must give them again, bit for bit.

The curve was written on one kind of machine. On another, whose kernels add in another order, the first step must agree
closely and the rest is not compared. `python tests/test_reference_curve.py` writes it again, which belongs into a commit
that says why the numbers changed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from strop import advantage, config, machine, model
from strop.engine import Sampling
from strop.engine.native import NativeEngine
from strop.learner import Learner
from strop.record import Task, replace

FILE = Path(__file__).with_name("reference_curve.json")
STEPS = 50
TASKS = [Task.make(source="test", prompt=f"Compute {i} + {i}.", answer="0", verifier="math") for i in range(6)]


def here() -> list[str]:
    """What the bits depend on."""
    return [machine.cpu_name(), torch.__version__, str(sorted(torch.cpu.get_capabilities().items()))]


def curve(folder: Path) -> list[dict[str, Any]]:
    """Steps of GRPO on a random model, rewarded for writing small bytes: two updates and what was sampled, in each.

    On one thread: how many there are decides in which order sums are taken.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _curve(folder)
    finally:
        torch.set_num_threads(threads)


def _curve(folder: Path) -> list[dict[str, Any]]:
    policy = model.load(config.Model(name=str(folder)))
    engine = NativeEngine(policy, policy.chat(config.Chat()), max_batch=16)
    learner, algorithm = Learner(policy, config.Optim(lr=1e-3)), config.Algorithm(preset="dapo")
    sampling, rows = Sampling(max_tokens=10, exact=False), []
    for step in range(STEPS):
        rollouts = engine.generate(TASKS, num_samples=4, sampling=sampling, seed_path=("curve", step))
        rollouts = [replace(r, reward=float((r.token_ids[r.sampled] < 128).mean())) for r in rollouts]
        rollouts = advantage.assign(rollouts, algorithm, seed=step)
        metrics = learner.update(rollouts, algorithm, num_updates=2, max_tokens=10, seed=step)
        tokens = b"".join(r.token_ids.tobytes() for r in rollouts)
        rows.append({
            "reward": sum(r.reward or 0.0 for r in rollouts) / len(rollouts), "loss": metrics["loss"],
            "grad_norm": metrics.get("grad_norm"), "tokens": hashlib.sha256(tokens).hexdigest()[:16],
        })  # fmt: skip
    return rows


def test_the_curve_is_that_of_the_file(tiny_model: Path) -> None:
    stored, rows = json.loads(FILE.read_text()), curve(tiny_model)
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.1  # it learns, so the numbers depend on all of it
    if stored["machine"] == here():
        assert rows == stored["steps"]
        return
    first, theirs = rows[0], stored["steps"][0]
    for key in ("reward", "loss", "grad_norm"):
        assert first[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5)


if __name__ == "__main__":
    sys.path.insert(0, str(FILE.parent))
    from conftest import write_tiny_model

    with tempfile.TemporaryDirectory() as scratch:
        write_tiny_model(Path(scratch))
        FILE.write_text(json.dumps({"machine": here(), "steps": curve(Path(scratch))}, indent=1) + "\n")
    print(f"wrote {FILE}")
