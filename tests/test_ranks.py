"""Two gloo ranks with a part of an update's rollouts each: their gradients add up to those of one learner's update.

Strop trains in one process so far; what is shown is that its losses can be cut over ranks, as long as denominators are
those of the update. The counts of trained tokens are all that the ranks have to tell each other.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from strop import config, loss
from strop.learner import Learner
from test_learner import load, sampled

PRESETS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")


def share_of(rank: int, tiny_model: str, preset: str) -> list[torch.Tensor]:
    """Gradients of every weight, summed over the ranks; the first has five rollouts and the second all others."""
    algorithm, policy = config.Algorithm(preset=preset), load(tiny_model)
    learner, rollouts = Learner(policy, config.Optim()), sampled(policy, config.Algorithm(preset=preset))
    own = (rollouts[:5], rollouts[5:])[rank]
    counts: list[list[int]] = [[], []]
    dist.all_gather_object(counts, [r.num_trained for r in own])
    weight = loss.token_weights([*counts[0], *counts[1]], algorithm.aggregate, 9)
    for part, weights_N in learner._microbatches(own, weight[:5] if rank == 0 else weight[5:]):
        learner._backward(part, weights_N, algorithm, only_critic=False)
    found = [p.grad for p in policy.trainable().values() if p.grad is not None]
    for grad in found:
        dist.all_reduce(grad)
    return found


def alone(tiny_model: str, preset: str) -> list[torch.Tensor]:
    """The same of a whole update."""
    algorithm, policy = config.Algorithm(preset=preset), load(tiny_model)
    learner = Learner(policy, config.Optim(lr=1e-9, max_grad_norm=1e9))
    learner.update(sampled(policy, algorithm), algorithm, num_updates=1, max_tokens=9, seed=0)
    return [p.grad for p in policy.trainable().values() if p.grad is not None]


def run_rank(rank: int, tiny_model: str, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=180)
    )
    found = {preset: share_of(rank, tiny_model, preset) for preset in PRESETS}
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


def test_gradients_of_two_ranks_add_up_to_those_of_one(tiny_model, tmp_path):
    out = tmp_path / "gradients"
    spawn(run_rank, args=(str(tiny_model), str(tmp_path / "store"), str(out)), nprocs=2)
    shared = torch.load(out, weights_only=True)
    for preset in PRESETS:
        for ours, whole in zip(shared[preset], alone(str(tiny_model), preset), strict=True):
            scale = whole.abs().max().item()
            torch.testing.assert_close(ours, whole, atol=2e-5 * scale, rtol=1e-3, msg=preset)
