"""Every preset that is paid learns what can be learned in a second, for three seeds, and nothing where rewards are shuffled.

A random model of two layers is paid for a first byte below 128; it begins near one half.
"""

from __future__ import annotations

import numpy as np
import pytest

from strop import advantage, config, model
from strop.config import PRESETS, Algorithm
from strop.engine import Sampling
from strop.engine.native import NativeEngine
from strop.learner import Learner
from strop.record import Task, replace

TASKS = [Task.make(source="test", prompt=f"Compute {i} + {i}.", answer="0", verifier="math") for i in range(2)]
STEPS, LAST = 15, 5
REWARDED = [name for name, row in PRESETS.items() if "credit" not in row]  # the others learn from a teacher


def final_reward(folder, algorithm: Algorithm, seed: int) -> float:
    """Mean reward over the last steps."""
    policy = model.load(config.Model(name=str(folder)))
    engine = NativeEngine(policy, policy.chat(config.Chat()), max_batch=64)
    learner, rewards = Learner(policy, config.Optim(lr=4e-3), algorithm.critic), []
    for step in range(STEPS):
        rollouts = engine.generate(
            TASKS, num_samples=16, sampling=Sampling(max_tokens=2, exact=False), seed_path=("bandit", seed, step)
        )
        rollouts = [replace(r, reward=float(r.token_ids[r.sampled][0] < 128)) for r in rollouts]
        rewards.append(np.mean([r.reward for r in rollouts]))
        rollouts = advantage.assign(learner.annotate(rollouts, algorithm), algorithm, seed=step)
        learner.update(rollouts, algorithm, num_updates=1, max_tokens=2, seed=step)
    return float(np.mean(rewards[-LAST:]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preset", REWARDED)
def test_every_preset_solves_it(tiny_model, preset, seed):
    assert final_reward(tiny_model, Algorithm(preset=preset), seed) > 0.9


@pytest.mark.parametrize("preset", REWARDED)
def test_shuffled_rewards_do_not(tiny_model, preset):
    algorithm = Algorithm(preset=preset, advantages="shuffled")
    assert np.mean([final_reward(tiny_model, algorithm, seed) for seed in range(4)]) < 0.75
