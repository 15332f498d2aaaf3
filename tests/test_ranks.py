"""Two gloo ranks with a part of an update's rollouts each: their gradients add up to those of one learner with all.

Strop trains in one process so far; what is shown here is that denominators are the update's and no rank's, which is
where data-parallel trainers go wrong. The counts of trained tokens are all that the ranks have to tell each other.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from strop import config, loss
from strop.learner import Learner
from test_learner import load, sampled

PRESETS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")


def gradients(tiny_model: str, preset: str, ranks: int, rank: int) -> list[torch.Tensor]:
    """Of every weight, summed over the ranks; the first has five rollouts and the second all others."""
    algorithm = config.Algorithm(preset=preset)
    policy = load(tiny_model)
    learner = Learner(policy, config.Optim())
    rollouts = sampled(policy, algorithm)
    own = rollouts if ranks == 1 else (rollouts[:5], rollouts[5:])[rank]
    counts: list[list[int]] = [[]] * ranks
    mine = [r.num_trained for r in own]
    if ranks > 1:
        dist.all_gather_object(counts, mine)
    else:
        counts = [mine]
    before = sum(map(len, counts[:rank]))
    weight = loss.token_weights([n for part in counts for n in part], algorithm.aggregate, 9)[before:][: len(own)]
    for part, weights_N in learner._microbatches(own, weight):
        learner._backward(part, weights_N, algorithm, only_critic=False)
    found = [p.grad for p in policy.trainable().values() if p.grad is not None]
    if ranks > 1:
        for grad in found:
            dist.all_reduce(grad)
    return found


def run_rank(rank: int, tiny_model: str, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {preset: gradients(tiny_model, preset, 2, rank) for preset in PRESETS}
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


def test_gradients_of_two_ranks_add_up_to_those_of_one(tiny_model, tmp_path):
    out = tmp_path / "gradients"
    torch.multiprocessing.spawn(run_rank, args=(str(tiny_model), str(tmp_path / "store"), str(out)), nprocs=2)
    shared = torch.load(out, weights_only=True)
    for preset in PRESETS:
        for ours, whole in zip(shared[preset], gradients(str(tiny_model), preset, 1, 0), strict=True):
            scale = whole.abs().max().item()
            torch.testing.assert_close(ours, whole, atol=2e-5 * scale, rtol=1e-3, msg=preset)
