"""What a critic's head could know in LAB.md's PPO runs: the end of an answer from the policy's hidden states, linearly.

    python recipes/lab_critic.py runs/lab/ppo_1-0 runs/lab/ppo_1-1 runs/lab/ppo_1-2

Per run the share of the reward's variance over tokens that is explained, on tasks that were not fitted: (1) ahead of time
by a head that learns step after step as the learner's does, AdamW at several rates; (2) by ridge regression on all other steps,
about the most that a head on these states could learn. Hidden states are those of the weights the run began with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from strop import batch, model
from strop.config import TrainStage, load_recipe
from strop.record import read_rollouts

RATES = (5e-5, 2e-4, 1e-3, 3e-3)
RIDGES = (1e2, 1e3, 1e4, 1e5)  # of standardised states
TOKENS = 4096  # in one forward


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        steps = _steps(folder)
        learned = ", ".join(f"{rate:g}: {_ahead(steps, rate):+.2f}" for rate in RATES)
        fitted = ", ".join(f"{ridge:g}: {_others(steps, ridge):+.2f}" for ridge in RIDGES)
        print(f"{folder.name}: {sum(len(y) for _, y in steps)} tokens in {len(steps)} steps")
        print(f"  learned step after step, by learning rate: {learned}")
        print(f"  ridge on all other steps, by penalty:      {fitted}")


@torch.no_grad()
def _steps(folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Of each step the states [N, h] before every sampled token, and the rewards [N] that its answer came to."""
    recipe = load_recipe(folder / "recipe.yaml")
    (stage,) = (s for s in recipe.stages if isinstance(s, TrainStage))
    policy, found = model.load(recipe.model), []
    for file in sorted((folder / "rollouts" / stage.name).glob("step_*.parquet"))[: stage.steps]:
        states, rewards = [], []
        for part in batch.split(read_rollouts(file), TOKENS):
            row = batch.collate(part, policy.device, wanted="sampled")
            hidden_Th = policy.hidden(row.ids_T[None], row.position_T[None], row.layout)[0]
            states.append(hidden_Th[row.predictor_N].float())
            rewards += [np.full(r.num_sampled, r.reward, dtype=np.float32) for r in part]
        found.append((torch.cat(states), torch.from_numpy(np.concatenate(rewards))))
    return found


def _ahead(steps: list[tuple[Tensor, Tensor]], rate: float) -> float:
    """Explained by what was learned before each step; two updates a step. The first two steps, which teach, do not count."""
    head = nn.Linear(steps[0][0].shape[1], 1)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    adamw = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.0)
    errors, spreads = 0.0, 0.0
    for number, (x_Nh, y_N) in enumerate(steps):
        if number >= 2:
            errors += (head(x_Nh)[:, 0] - y_N).square().sum().item()
            spreads += (y_N - y_N.mean()).square().sum().item()
        for half_Nh, half_N in zip(x_Nh.chunk(2), y_N.chunk(2), strict=True):
            adamw.zero_grad()
            (head(half_Nh)[:, 0] - half_N).square().mean().backward()
            adamw.step()
    return 1 - errors / spreads


def _others(steps: list[tuple[Tensor, Tensor]], ridge: float) -> float:
    errors, spreads = 0.0, 0.0
    for left_out, (x_Nh, y_N) in enumerate(steps):
        others = [step for number, step in enumerate(steps) if number != left_out]
        fit_Mh, target_M = torch.cat([x for x, _ in others]).double(), torch.cat([y for _, y in others]).double()
        mean_h, deviation_h, mean = fit_Mh.mean(0), fit_Mh.std(0), target_M.mean()
        z_Mh = (fit_Mh - mean_h) / deviation_h
        weight_h = torch.linalg.solve(
            z_Mh.T @ z_Mh + ridge * torch.eye(z_Mh.shape[1]).double(), z_Mh.T @ (target_M - mean)
        )
        guess_N = (x_Nh.double() - mean_h) / deviation_h @ weight_h + mean
        errors += (guess_N - y_N).square().sum().item()
        spreads += (y_N - y_N.mean()).square().sum().item()
    return 1 - errors / spreads


if __name__ == "__main__":
    main()
