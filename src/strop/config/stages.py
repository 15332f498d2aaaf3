"""The three kinds of stages, and what only they have: rewards, optimizer, schedules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from strop import budget
from strop.config.algorithm import Algorithm, Critic
from strop.config.section import Count, Decay, Positive, Section, Share

__all__ = [
    "BUDGET_MODES", "DENSE_REWARDS", "AskedLength", "Curriculum", "EvaluateStage", "Guard", "Moves", "Optim", "RewardSpec", "SftOptim",
    "SftStage", "Stage", "StageBase", "TrainStage",
]  # fmt: skip


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a task set is named twice")
    return names


Names = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


def _checked_rate(text: str) -> str:
    budget.rate(text)
    return text


class RewardSpec(Section):
    name: str
    """A reward of Strop's own (docs/algorithms.md, Rewards), or the path of a TRL-style function:
    package.module.function or file.py:function."""
    weight: float = 1.0
    """Multiplies the function's value; 0 logs it only."""
    until_weight: float | None = None
    """Weight from step `over_steps` + 1 on, reached in a straight line from `weight`. Null: it stays."""
    over_steps: Count | None = None
    """Steps that the way to `until_weight` takes."""
    accuracy_tolerance: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Counts only while accuracy holds: its mean over the last 5 steps at most this far below the best such mean of the
    stage. Null: counts always."""
    settings: dict[str, int | float | str | bool] = {}
    """Settings of one of Strop's own rewards; checked by the reward."""

    @model_validator(mode="after")
    def _refuse(self) -> RewardSpec:
        if (self.until_weight is None) != (self.over_steps is None):
            raise ValueError("until_weight and over_steps are set together, or both null")
        if self.weight == 0 and self.until_weight is None and self.accuracy_tolerance is not None:
            raise ValueError("accuracy_tolerance has no effect with weight: 0, which only logs")
        return self


class Optim(Section):
    lr: Positive = 1e-5
    """Learning rate after warm-up (constant)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer updates over which lr rises linearly from 0."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay rates of the running mean and the running square of the gradient."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled decay: each update shrinks the weights by lr x this."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this global norm."""
    microbatch_tokens: Annotated[int, Field(ge=64)] = 1536
    """Tokens per forward and backward; changes memory, never the numbers."""


class SftOptim(Optim):
    lr: Positive = 2e-5
    """Learning rate after warm-up (constant)."""


class StageBase(Section):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Name of the stage: folder, summary key, and what `from` refers to."""
    from_: Annotated[str | None, Field(alias="from")] = None
    """Stage whose final weights this one starts with; `base` is the untrained model. None: the last trained one."""


class EvaluateStage(StageBase):
    do: Literal["evaluate"]
    tasks: Names
    """Task sets whose held-out tasks are answered."""
    greedy: bool = True
    """Answer every task greedily, once."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Sampled answers per task and seed, besides the greedy one."""
    seeds: Count = 1
    """Seeds that are sampled with, each with an accuracy of its own; a task has samples x seeds sampled answers."""
    temperature: Positive = 1.0
    """Temperature of the sampled answers."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sampled from the fewest words whose probabilities reach this sum (nucleus); 1: from all. Training never does so."""
    max_tokens: Count = 256
    """Token limit of an answer."""

    @model_validator(mode="after")
    def _refuse(self) -> EvaluateStage:
        for key in ("temperature", "seeds", "top_p"):
            if not self.samples and self.changed(key):
                raise ValueError(f"{key} has no effect without samples: the answer is greedy; set samples to 1 or more")
        if not self.samples and not self.greedy:
            raise ValueError("nothing would be answered: set samples to 1 or more, or greedy: true")
        return self

    @property
    def num_samples(self) -> int:
        """Sampled answers of a task, over all seeds."""
        return self.samples * self.seeds


class SftStage(StageBase):
    do: Literal["sft"]
    tasks: Names
    """Task sets whose training tasks carry a worked solution (meta.solution)."""
    batch: Count = 16
    """Worked solutions per step."""
    max_steps: Count = 200
    """Steps at most; `patience` may stop it earlier."""
    eval_every: Count = 5
    """Steps between evaluations on the dev split: the greedy accuracy, and the loss on worked solutions."""
    dev_samples: Annotated[int, Field(ge=0)] = 0
    """Answers sampled for every dev task at each evaluation, at temperature 1: their accuracy and entropy. 0: none."""
    min_entropy: Annotated[float, Field(ge=0)] = 0.0
    """Stop when the entropy of those answers falls below this many nats a token, and go on with the weights of the evaluation
    before: RL needs answers that differ. 0: never. A checkpoint is then saved at each evaluation."""
    patience: Annotated[int, Field(ge=0)] = 2
    """Stop when dev accuracy has not risen in this many evaluations. 0: run to the end."""
    wall_of: str | None = None
    """Instead of stopping early, run for the wall time that this earlier stage took (the control arm)."""
    max_tokens: Count = 256
    """Token limit of the answers in the dev evaluation."""
    optim: SftOptim = SftOptim()

    @model_validator(mode="after")
    def _refuse(self) -> SftStage:
        for key in ("max_steps", "patience", "min_entropy"):
            if self.wall_of is not None and self.changed(key):
                raise ValueError(f"{key} has no effect with wall_of, which says when the stage ends; leave one out")
        if self.min_entropy and not self.dev_samples:
            raise ValueError(
                "min_entropy is of sampled dev answers, and none are sampled; set dev_samples to 1 or more"
            )
        return self


class AskedLength(Section):
    tokens: tuple[Count, Count] | None = None
    """Lowest and highest length to ask for: each task's prompt in a step ends with one drawn evenly from this range, the
    same for its siblings (LCPO). Null: no length is asked for."""
    mode: Literal["exact", "max"] = "exact"
    """What the prompt then says: "Think for N tokens." or "Think for maximum N tokens."."""

    @model_validator(mode="after")
    def _refuse(self) -> AskedLength:
        if self.tokens is None and self.changed("mode"):
            raise ValueError("mode has no effect without tokens; set tokens to a range such as [100, 4000]")
        if self.tokens is not None and self.tokens[0] > self.tokens[1]:
            raise ValueError("tokens is a range: the lowest length, then the highest")
        return self


DENSE_REWARDS = ("repetition_dense",)  # paid token by token; a test compares them with `adapters.DENSE`
BUDGET_MODES = {"lcpo_exact": "exact", "lcpo_max": "max"}  # rewards that compare a length with the one asked for


class Moves(Section):
    limits: list[Count] = []
    """Token limits from short to long that the stage may move among, from its max_tokens on. []: it stays there."""
    clipped_above: Share = 0.25
    """One limit up when more than this share of the completions is cut and accuracy does not rise."""
    entropy_below: Share = 0.5
    """One limit down when entropy falls below this share of what it was when the limit was new; 0: never down."""
    window_steps: Annotated[int, Field(ge=4)] = 10
    """Steps that both rules look at; a limit lasts at least as long."""

    @model_validator(mode="after")
    def _refuse(self) -> Moves:
        if not self.limits and self != Moves.model_construct():
            raise ValueError("moves has no effect without moves.limits; name two limits or more")
        if len(self.limits) == 1 or self.limits != sorted(set(self.limits)):
            raise ValueError("moves.limits are two or more, each above the one before")
        return self


class Curriculum(Section):
    easy: Annotated[float, Field(ge=0)] = 0.0
    """Share of a step's tasks that are passed more than 3 times in 4 by now. All three 0: every task in its turn."""
    medium: Annotated[float, Field(ge=0)] = 0.0
    """Share of those in between. A task counts like others of its level, or its set, until it has been tried."""
    hard: Annotated[float, Field(ge=0)] = 0.0
    """Share of those passed at most once in 4."""


Remedy = Literal["lower_lr", "tighter_clip", "kl", "skip", "end_stage"]


class Guard(Section):
    times: Annotated[int, Field(ge=0)] = 2
    """How often harm (docs/reliability.md) takes the stage back to its last healthy step; the next time it stops there (exit
    code 3). 0: alarms are said, and nothing is undone."""
    remedies: Annotated[list[Remedy], Field(min_length=1)] = ["lower_lr"]
    """What changes the first time, the second ...; the last one is repeated. lower_lr: a fifth of it; tighter_clip: half as
    wide; kl: a KL in the loss, or four times its weight; skip: other tasks and samples alone; end_stage: it ends there."""

    @model_validator(mode="after")
    def _refuse(self) -> Guard:
        if not self.times and self.changed("remedies"):
            raise ValueError("remedies have no effect with times: 0; set times to 1 or more")
        return self


class TrainStage(StageBase):
    do: Literal["train"]
    tasks: Annotated[dict[str, Positive], Field(min_length=1)]
    """Task sets and their shares of each step."""
    steps: Count = 100
    """Sample, score, update: how often."""
    prompts_per_step: Count = 12
    """Tasks sampled in a step."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Rollouts per task."""
    updates_per_step: Count = 1
    """Optimizer updates per step; more than one is off-policy, held by the clip."""
    temperature: Positive = 1.0
    """Sampling temperature; training divides logits by the same."""
    max_tokens: Count = 256
    """Token limit of a completion."""
    moves: Moves = Moves()
    curriculum: Curriculum = Curriculum()
    rewards: Annotated[list[RewardSpec], Field(min_length=1)] = [RewardSpec(name="accuracy")]
    budget: AskedLength = AskedLength()
    algorithm: Algorithm = Algorithm()
    optim: Optim = Optim()
    guard: Guard = Guard()
    heldout_every: Annotated[int, Field(ge=0)] = 5
    """Steps between greedy evaluations on the dev split; 0: never."""
    stop_below: Annotated[str, AfterValidator(_checked_rate)] | None = None
    """The stage ends where its dev accuracy gains less than so many points an hour (2/h), a dollar (0.5/usd) or a
    kilowatt-hour (10/kwh): by the 97.5% upper end of the slope of the last 5 evaluations. Null: it makes all its steps."""
    checkpoint_every: Count = 10
    """Steps between checkpoints; a resume replays the recorded rollouts since the last one."""

    @model_validator(mode="after")
    def _refuse(self) -> TrainStage:
        if self.updates_per_step > self.prompts_per_step:
            raise ValueError("updates_per_step exceeds prompts_per_step: an update needs at least one group")
        if self.algorithm.overlong_buffer_tokens >= self.max_tokens:
            raise ValueError("overlong_buffer_tokens must be below max_tokens")
        critic = self.algorithm.critic
        if critic.pretrain_steps >= self.steps:
            raise ValueError(f"critic.pretrain_steps must be below steps={self.steps}, or the policy never learns")
        if critic.clip != Critic().clip and self.updates_per_step == 1:
            raise ValueError("critic.clip has no effect with updates_per_step: 1; leave one of them out")
        shortest = min(self.moves.limits, default=self.max_tokens)
        if self.budget.tokens is not None and self.budget.tokens[1] > shortest:
            raise ValueError(
                f"budget.tokens asks for up to {self.budget.tokens[1]} tokens, and max_tokens cuts at {shortest}; "
                "lower the one or raise the other"
            )
        if (
            self.algorithm.credit == "teacher"
            and self.changed("rewards")
            and any(r.weight or r.until_weight for r in self.rewards)
        ):
            raise ValueError(
                "algorithm.credit: teacher pays no rewards; give them weight 0 to log them, or set algorithm.credit: both"
            )
        if "tighter_clip" in self.guard.remedies and self.algorithm.clip_high is None:
            raise ValueError("guard.remedies: tighter_clip needs a clip; set algorithm.clip_high, or another remedy")
        if self.stop_below is not None and not self.heldout_every:
            raise ValueError(
                "stop_below goes by the dev accuracy, which heldout_every: 0 never looks at; set it to 5 or so"
            )
        if all(r.accuracy_tolerance is not None for r in self.rewards):
            raise ValueError(
                "every reward waits for accuracy (accuracy_tolerance), so nothing is ever paid; let one count always"
            )
        if any(r.name in DENSE_REWARDS and (r.weight or r.until_weight) for r in self.rewards) and (
            self.algorithm.baseline not in ("critic", "none") or self.algorithm.scale not in ("whiten", "none")
        ):
            raise ValueError(
                f"{', '.join(DENSE_REWARDS)} pays token by token, and siblings are compared as wholes; take the reward repetition, or set "
                "algorithm.baseline: critic or none with scale: whiten or none"
            )
        for reward in self.rewards:
            mode = BUDGET_MODES.get(reward.name)
            if mode is not None and (self.budget.tokens is None or self.budget.mode != mode):
                raise ValueError(
                    f"the reward {reward.name} needs a length that the prompt asks for: set budget: {{tokens: [LOWEST, "
                    f"HIGHEST], mode: {mode}}}"
                )
        if self.moves.limits and self.max_tokens not in self.moves.limits:
            raise ValueError(f"max_tokens, where the stage begins, must be one of moves.limits {self.moves.limits}")
        if self.moves.limits and self.moves.window_steps >= self.steps:
            raise ValueError(f"moves.window_steps must be below steps={self.steps}, or the limit never moves")
        if self.algorithm.overlong_buffer_tokens >= shortest:
            raise ValueError("overlong_buffer_tokens must be below the shortest of moves.limits")
        return self

    @property
    def most_tokens(self) -> int:
        """The longest token limit that the stage may come to."""
        return max(self.moves.limits, default=self.max_tokens)


Stage = Annotated[EvaluateStage | SftStage | TrainStage, Field(discriminator="do")]
