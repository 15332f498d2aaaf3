"""`train`: trained tokens a second, forward and backward, against the same pass with a padded batch, as TRL makes it.

Both sides learn from the same rollouts of random tokens and take an optimizer step. Two works: `step` (8 prompts of 60
tokens, 8 completions of 64 each) and `siblings` (prompts of 256 tokens, where encoding a prompt once per group pays).
The floor is the multiplications of the tokens that must be passed through the model once: prompts once per group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from strop.bench import ceiling, workload
from strop.bench.alternate import Turn, alternate, median, ratios
from strop.bench.result import Result, seconds_of
from strop.bench.worker import Link, Side, command
from strop.bench.workload import Matmul
from strop.config import Algorithm, Optim, Section

__all__ = ["Settings", "ours", "padded", "run"]

DTYPES = ("float32", "bfloat16")
LR = 1e-9  # the weights stay what they are, so that every round is the same work


class Settings(Section):
    model: str = "smollm2-135m"
    """As in a recipe."""
    prompts: int = 8
    """Groups in `step`."""
    group_size: int = 8
    """Rollouts of each prompt, in both works."""
    prompt_tokens: int = 60
    """Tokens of a prompt in `step`."""
    completion_tokens: int = 64
    """Tokens of a completion, in both works."""
    sibling_prompts: int = 2
    """Groups in `siblings`."""
    sibling_prompt_tokens: int = 256
    """Tokens of a prompt in `siblings`."""
    matmul: tuple[Matmul, ...] = ("float32", "bfloat16")
    """How Strop multiplies its float32 weights, one after the other."""
    peer_matmul: tuple[Matmul, ...] = ("float32",)
    """The same switch for the padded pass."""
    peer_rows: int = 8
    """Sequences of the padded batch that pass the model at once."""

    def works(self) -> dict[str, tuple[int, int]]:
        """Prompts and their tokens."""
        return {
            "step": (self.prompts, self.prompt_tokens),
            "siblings": (self.sibling_prompts, self.sibling_prompt_tokens),
        }


def run(settings: Settings, *, pairs: int, say: Callable[[str], None]) -> Result:
    """Trained tokens a second of both sides on both works; `gemm_frac` is the share of the time that the floor takes."""
    workload.needs("trl")
    rows: list[dict[str, Any]] = []
    samples: dict[str, list[float]] = {}
    ceilings: dict[str, float] = {}
    with ExitStack() as stack:
        sides = [stack.enter_context(side) for side in _sides(settings)]
        machine = stack.enter_context(ceiling.side(settings.model))
        for work, (prompts, prompt_tokens) in settings.works().items():
            num = prompts * settings.group_size * settings.completion_tokens
            fed = prompts * (prompt_tokens - settings.group_size) + num
            turns = [Turn(name=side.name, side=side, request={"work": work}) for side in sides]
            turns += [ceiling.backward(machine, f"floor {d}", rows=fed, head_rows=num, dtype=d) for d in DTYPES]
            found = alternate([*turns, ceiling.bandwidth(machine)], pairs=pairs, say=say, title=work)
            for side in (side for side in sides if side.name in found):
                seconds = median(found[side.name])
                row = {"work": work, "side": side.name, "trained_tokens_per_s": num / seconds, "update_s": seconds}
                row["gemm_frac"] = median(found[f"floor {side.name.split()[1]}"]) / seconds
                rows.append(
                    row | (ratios(found, side.name, [f"strop {m}" for m in settings.matmul]) if side.peer else {})
                )
            samples |= seconds_of(found, f"{work}/")
            ceilings |= ceiling.figures({f"{work}, {n}": a for n, a in found.items() if n.startswith("floor")})
            ceilings |= ceiling.figures({"memory": found["bandwidth"]})
        notes = [f"Left out: {side.why}." for side in sides if side.why]
    return Result(rows=rows, samples=samples, ceilings=ceilings, notes=notes)


def _sides(settings: Settings) -> list[Side]:
    def side(name: str, function: str, matmul: Matmul) -> Side:
        values = {"settings": settings.model_dump(), "matmul": matmul}
        return Side(f"{name} {matmul}", command(f"strop.bench.learn:{function}", values), peer=name != "strop")

    return [side("strop", "ours", m) for m in settings.matmul] + [
        side("padded", "padded", m) for m in settings.peer_matmul
    ]


def _rollouts(settings: Settings, vocab: int) -> dict[str, list[Any]]:
    return {
        work: workload.random_rollouts(
            prompts=prompts, group_size=settings.group_size, prompt_tokens=num,
            completion_tokens=settings.completion_tokens, vocab=vocab,
        )
        for work, (prompts, num) in settings.works().items()
    }  # fmt: skip


def ours(values: Mapping[str, Any], link: Link) -> None:
    from strop.learner import Learner

    settings = Settings.model_validate(values["settings"])
    policy = workload.policy(settings.model, values["matmul"])
    learner = Learner(policy, Optim(lr=LR))
    rollouts = _rollouts(settings, policy.model.config.vocab_size)
    while (request := link.wait()) is not None:
        some, length = rollouts[request["work"]], settings.completion_tokens
        metrics = learner.update(some, Algorithm(), num_updates=1, max_tokens=length, seed=0)
        assert metrics["num_tokens_trained"] == len(some) * length
        link.done()


def padded(values: Mapping[str, Any], link: Link) -> None:
    """The pass of TRL's GRPOTrainer, with its own head that never holds all the logits."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from strop.precision import multiply_in

    settings = Settings.model_validate(values["settings"])
    model = workload.peer_model(settings.model).train()
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    adamw = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    rollouts, length = _rollouts(settings, model.config.vocab_size), settings.completion_tokens
    with multiply_in(values["matmul"]):
        while (request := link.wait()) is not None:
            some = rollouts[request["work"]]
            ids_BT = torch.tensor([r.token_ids.tolist() for r in some])
            advantage_B = torch.tensor([float(r.advantages[-1]) for r in some])
            for rows in torch.arange(len(some)).split(settings.peer_rows):
                labels = ids_BT[rows].clone()
                labels[:, :-length] = -100
                mask = torch.ones_like(labels)
                out = model(input_ids=ids_BT[rows], attention_mask=mask, labels=labels, fused_lm_head=True)
                logprobs = out.log_probs[:, -length:]
                ratio = (logprobs - logprobs.detach()).exp()
                (-(advantage_B[rows, None] * ratio).sum() / (len(some) * length)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad()
            link.done()
