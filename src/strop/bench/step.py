"""`step` and `step-real`: one whole GRPO step, sampling to optimizer, against TRL's GRPOTrainer on the same machine.

`step` is work of an exact size: 8 prompts x 8 completions x 64 tokens, every group with signal. `step-real` is the
quickstart's own: its prompts, checkpoint, stopping and accuracy reward, where about half of the groups have no signal.
The learning rate is next to nothing, so that the weights, and with them the work, stay the same in every round.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from strop.bench import ceiling, workload
from strop.bench.alternate import Samples, Turn, alternate, median, ratios
from strop.bench.result import Result, seconds_of
from strop.bench.worker import Link, Side, command
from strop.bench.workload import Matmul
from strop.config import Algorithm, Optim, RewardSpec, Section, TrainStage, load_recipe
from strop.record import Task, UserError

__all__ = ["Job", "RealSettings", "Settings", "exact_job", "ours", "run", "run_real", "trl", "variety"]

LR = 1e-9
PARTS = ("generate_s", "verify_s", "train_s", "num_tokens", "no_signal_frac")  # what a side may tell of its step


class Settings(Section):
    model: str = "smollm2-135m"
    """As in a recipe."""
    prompts: int = 8
    """Groups of the step."""
    group_size: int = 8
    """Rollouts of each prompt."""
    prompt_tokens: int = 60
    """Tokens of every prompt."""
    completion_tokens: int = 64
    """Tokens of every completion, exactly."""
    matmul: tuple[Matmul, ...] = ("float32", "bfloat16")
    """How Strop multiplies its float32 weights, one after the other."""
    peer_matmul: tuple[Matmul, ...] = ("float32",)
    """The same switch for TRL; [] leaves TRL out."""


class RealSettings(Section):
    recipe: str = "recipes/quickstart.yaml"
    """Its train stage says prompts, group size, lengths and updates."""
    stage: str = "rl"
    """The train stage."""
    checkpoint: str = "runs/quickstart/checkpoints/sft/final"
    """The model folder that samples."""
    matmul: tuple[Matmul, ...] = ("float32", "bfloat16")
    """How Strop multiplies its float32 weights, one after the other."""
    peer_matmul: tuple[Matmul, ...] = ("float32",)
    """The same switch for TRL; [] leaves TRL out."""


class Job(Section):
    """What both sides are told."""

    model: str
    system: str
    prompts: list[tuple[str, str]]
    """Problem and answer."""
    group_size: int
    max_tokens: int
    exact: bool
    """Every completion has `max_tokens` tokens, whatever is sampled."""
    reward: str
    """`accuracy`, or the dotted path of a function in the style of TRL."""
    matmul: Matmul = "float32"
    """How float32 weights are multiplied."""
    updates: int = 1
    """Optimizer steps on the rollouts of one step."""
    algorithm: Algorithm = Algorithm()

    def tasks(self) -> list[Task]:
        return [Task.make(source="bench", prompt=p, answer=a, verifier="math") for p, a in self.prompts]


def run(settings: Settings, *, pairs: int, say: Callable[[str], None]) -> Result:
    """The exact step; `floor_ratio` is the time over that of the step's own multiplications alone."""
    job = exact_job(settings.model, settings.model, settings.prompts, settings.prompt_tokens)
    job = job.model_copy(update={"group_size": settings.group_size, "max_tokens": settings.completion_tokens})
    return _measure(job, settings, pairs=pairs, say=say)


def exact_job(model: str, tokenizer: str, prompts: int, prompt_tokens: int) -> Job:
    """8 completions of 64 tokens on each of some prompts of an exact length."""
    chat = workload.endless(workload.tokenizer(tokenizer))
    tasks = workload.tasks(chat, prompts, prompt_tokens)
    return Job(
        model=model, system=workload.SYSTEM, prompts=[(t.prompt, t.answer) for t in tasks], exact=True, group_size=8,
        max_tokens=64, reward="strop.bench.step.variety",
    )  # fmt: skip


def run_real(settings: RealSettings, *, pairs: int, say: Callable[[str], None]) -> Result:
    """The recipe's step from a checkpoint; lengths vary, so it has no floor."""
    from strop import tasks
    from strop.schedule import turns

    if not (Path(settings.checkpoint) / "config.json").is_file():
        raise UserError(
            f"no checkpoint at {settings.checkpoint}; run `strop run {settings.recipe}` first, or name one with "
            "--set checkpoint=FOLDER"
        )
    recipe = load_recipe(Path(settings.recipe))
    stage = next((s for s in recipe.stages if s.name == settings.stage), None)
    if not isinstance(stage, TrainStage):
        raise UserError(f"--set stage={settings.stage}: {settings.recipe} has no such train stage")
    pool = tasks.load({name: recipe.tasks[name] for name in stage.tasks}, seed=0, say=say)
    train = {name: iter(splits.train) for name, splits in pool.items()}
    drawn = [next(train[name]) for name in turns(stage.tasks, stage.prompts_per_step)]
    job = Job(
        model=settings.checkpoint, system=recipe.chat.system, prompts=[(t.prompt, t.answer) for t in drawn], exact=False,
        group_size=stage.group_size, max_tokens=stage.max_tokens, reward="accuracy", updates=stage.updates_per_step,
        algorithm=stage.algorithm,
    )  # fmt: skip
    return _measure(job, settings, pairs=pairs, say=say)


def _measure(job: Job, settings: Settings | RealSettings, *, pairs: int, say: Callable[[str], None]) -> Result:
    if settings.peer_matmul:
        workload.needs("trl")
    wanted = [("strop", "ours", m) for m in settings.matmul] + [("trl", "trl", m) for m in settings.peer_matmul]
    with ExitStack() as stack:
        sides = []
        for name, function, matmul in wanted:
            values = job.model_copy(update={"matmul": matmul}).model_dump(mode="json")
            side = Side(f"{name} {matmul}", command(f"strop.bench.step:{function}", values), peer=name == "trl")
            sides.append(stack.enter_context(side))
        machine = stack.enter_context(ceiling.side(job.model))
        turns = [Turn(name=side.name, side=side) for side in sides] + _floors(job, machine)
        found = alternate(turns, pairs=pairs, say=say, title="step")
        notes = [f"Left out: {side.why}." for side in sides if side.why]
    return Result(
        rows=[_row(job, settings, side, found) for side in sides if side.name in found], samples=seconds_of(found),
        ceilings=ceiling.figures(found), notes=notes,
    )  # fmt: skip


def _floors(job: Job, machine: Side) -> list[Turn]:
    chat = workload.endless(workload.tokenizer(job.model), job.system)
    prompt_tokens = workload.num_prompt_tokens([chat.encode_prompt(p).tolist() for p, _ in job.prompts])
    rollouts = len(job.prompts) * job.group_size
    fed, num = prompt_tokens + rollouts * (job.max_tokens - 1), rollouts * job.max_tokens
    turns = [ceiling.bandwidth(machine)]
    for d in ("float32", "bfloat16"):
        turns += [
            ceiling.forward(machine, f"prefill {d}", rows=prompt_tokens, head_rows=len(job.prompts), dtype=d),
            ceiling.forward(machine, f"decode {d}", rows=rollouts, head_rows=rollouts, dtype=d),
            ceiling.backward(machine, f"train {d}", rows=fed, head_rows=num, dtype=d),
        ]
    return [*turns, ceiling.forward(machine, "decode int8", rows=rollouts, head_rows=rollouts, dtype="int8")]


def _row(job: Job, settings: Settings | RealSettings, side: Side, found: Samples) -> dict[str, Any]:
    answers, dtype = found[side.name], side.name.split()[1]
    row: dict[str, Any] = {"side": side.name, "step_s": median(answers)}
    if job.exact:
        parts = {name: median(found[f"{name} {dtype}"]) for name in ("prefill", "decode", "train")}
        row["floor_s"] = parts["prefill"] + (job.max_tokens - 1) * parts["decode"] + parts["train"]
        row["floor_ratio"] = row["step_s"] / row["floor_s"]
    row["peak_rss_mb"] = max(answer["peak_rss_mb"] for answer in answers)
    row |= {key: median(answers, key) for key in PARTS if key in answers[0]}
    return row | (ratios(found, side.name, [f"strop {m}" for m in settings.matmul]) if side.peer else {})


# --- the sides --------------------------------------------------------------------------------------------------------


def variety(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """A reward on which siblings differ, also those of a model of random weights: the share of even tokens.

    >>> variety([[5, 5, 5, 5], [5, 6, 7, 8]])
    [0.0, 0.5]
    """
    return [sum(token % 2 == 0 for token in ids) / max(1, len(ids)) for ids in completion_ids]


def ours(values: Mapping[str, Any], link: Link) -> None:
    """What `train.run` does in a step; a request may ask for another group size or length."""
    from strop import advantage, config
    from strop.engine import Sampling
    from strop.learner import Learner
    from strop.rewards import Scorer, load_rewards

    job = Job.model_validate(values)
    policy = workload.policy(job.model, job.matmul)
    chat = policy.chat(config.Chat(system=job.system))
    if job.exact:
        chat = workload.endless(policy.tokenizer, job.system)
    engine, learner = workload.engine(policy, chat, config.Engine().max_batch), Learner(policy, Optim(lr=LR))
    tasks, rewards, step = job.tasks(), load_rewards([RewardSpec(name=job.reward)]), 0
    with Scorer() as scorer:
        while (request := link.wait()) is not None:
            group_size, length = request.get("group_size", job.group_size), request.get("max_tokens", job.max_tokens)
            laps, step = [time.perf_counter()], step + 1
            sampling = Sampling(temperature=1.0, max_tokens=length, exact=False)
            rollouts = engine.generate(tasks, num_samples=group_size, sampling=sampling, seed_path=("bench", step))
            laps.append(time.perf_counter())
            rollouts = scorer.score(rollouts, rewards, job.algorithm, length)
            laps.append(time.perf_counter())
            rollouts = advantage.assign(learner.annotate(rollouts, job.algorithm), job.algorithm, seed=step)
            learner.update(rollouts, job.algorithm, num_updates=job.updates, max_tokens=length, seed=step)
            engine.load(policy_step=step)
            laps.append(time.perf_counter())
            spent = [b - a for a, b in pairwise(laps)]
            link.done(
                **dict(zip(("generate_s", "verify_s", "train_s"), spent, strict=True)),
                num_tokens=sum(r.num_sampled for r in rollouts), no_signal_frac=_no_signal(rollouts, len(tasks)),
            )  # fmt: skip


def _no_signal(rollouts: Sequence[Any], num_groups: int) -> float:
    from strop import advantage

    groups = [[r for r in rollouts if r.group == g] for g in range(num_groups)]
    return sum(not advantage.has_signal(group) for group in groups) / num_groups


def trl(values: Mapping[str, Any], link: Link) -> None:
    """GRPOTrainer, held at the beginning of each step by a callback until it is its turn."""
    import transformers
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    from strop.precision import multiply_in

    job = Job.model_validate(values)
    system = [{"role": "system", "content": job.system}] if job.system else []
    columns = {"prompt": [[*system, {"role": "user", "content": p}] for p, _ in job.prompts]}
    columns |= {"answer": [a for _, a in job.prompts]}
    seen: dict[str, float] = {}

    class Turnstile(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % job.updates == 0 and link.wait() is None:
                raise SystemExit

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % job.updates == 0:
                link.done(**seen)

    with tempfile.TemporaryDirectory() as scratch, multiply_in(job.matmul):
        trainer = GRPOTrainer(
            model=str(workload.folder(job.model)), reward_funcs=_counting(job, seen), callbacks=[Turnstile()],
            args=GRPOConfig(output_dir=scratch, **_trl_settings(job)), train_dataset=Dataset.from_dict(columns),
            processing_class=workload.tokenizer(job.model),
        )  # fmt: skip
        trainer.train()


def _trl_settings(job: Job) -> dict[str, Any]:
    """The same algorithm and size; for the rest what is fastest on a CPU: the largest batch, nothing computed twice."""
    if job.algorithm.aggregate != "token_mean" or job.algorithm.kl != "none":
        raise UserError("TRL is compared at the preset dapo; set algorithm.preset=dapo in the recipe")
    return {
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [], "disable_tqdm": True,
        "logging_strategy": "no", "save_strategy": "no", "max_steps": 1_000_000, "shuffle_dataset": False,
        "model_init_kwargs": {"dtype": "float32"}, "optim": "adamw_torch_fused", "dataloader_pin_memory": False,
        "per_device_train_batch_size": len(job.prompts) * job.group_size // job.updates,
        "steps_per_generation": job.updates, "num_iterations": 1, "num_generations": job.group_size,
        "max_completion_length": job.max_tokens, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
        "generation_kwargs": {"min_new_tokens": job.max_tokens} if job.exact else {},
        "learning_rate": LR, "lr_scheduler_type": "constant", "beta": 0.0, "loss_type": "dapo",
        "epsilon": job.algorithm.clip_low, "epsilon_high": job.algorithm.clip_high,
    }  # fmt: skip


def _counting(job: Job, seen: dict[str, float]) -> Callable[..., list[float | None]]:
    """The job's reward for TRL, which also notes how many tokens were sampled and how many groups have no signal."""
    from strop.rewards.math import grade

    def reward(
        completions: list[Any], completion_ids: list[list[int]], answer: list[str], **_: Any
    ) -> list[float | None]:
        values: list[float | None] = [*variety(completion_ids)]
        if job.reward == "accuracy":
            texts = [message[0]["content"] for message in completions]
            values = [float(grade(gold, text).correct) for gold, text in zip(answer, texts, strict=True)]
        groups = [values[i : i + job.group_size] for i in range(0, len(values), job.group_size)]
        seen["num_tokens"] = sum(map(len, completion_ids))
        seen["no_signal_frac"] = sum(len(set(group)) == 1 for group in groups) / len(groups)
        return values

    return reward
