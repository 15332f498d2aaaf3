"""The recipe: what a user may set, with its default, its range, and the reason why a combination is refused.

Knows names and numbers only; imports nothing that trains. Field docstrings are the reference that `docs/cli.md` and
`--help` print. Unknown keys are errors that name the nearest key; every key acts or is refused.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from strop.record import UserError

__all__ = [
    "PRESETS",
    "Algorithm",
    "EvaluateStage",
    "Recipe",
    "RewardSpec",
    "SftStage",
    "Stage",
    "TrainStage",
    "load_recipe",
]

Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a task set is named twice")
    return names


Names = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Lora(Section):
    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the adapters on every linear layer; 0 trains all weights."""
    alpha: Positive = 32.0
    """LoRA scale is alpha / rank."""


class Model(Section):
    name: str = "smollm2-135m"
    """`smollm2-135m` (the demo model), a folder, or a Hugging Face id."""
    device: str = "auto"
    """auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in training and sampling. bfloat16 trains LoRA adapters only (which stay float32)."""
    matmul: Literal["float32", "bfloat16"] = "float32"
    """How float32 weights are multiplied in training and in the sampling for it: exactly, or rounded to bfloat16
    (Llama-shaped layers also pass bfloat16 from product to product) where the processor has that (AMX; several times
    faster; elsewhere nothing changes). Held-out evaluation is always exact."""
    trust_remote_code: bool = False
    """Run Python code shipped with the model. Refused unless set."""
    lora: Lora = Lora()

    @model_validator(mode="after")
    def _refuse(self) -> Model:
        if self.dtype == "bfloat16" and self.matmul == "bfloat16":
            raise ValueError("matmul: bfloat16 is for float32 weights; with dtype: bfloat16 leave it out")
        return self


class Chat(Section):
    system: str = ""
    """System prompt. Empty: none is sent (the template may still insert its own)."""
    template: str | None = None
    """Jinja chat template in place of the model's own."""
    prefill: str = ""
    """Text put at the start of every completion ("<think>\\n"); part of the prompt, not sampled, not trained."""


class TaskSet(Section):
    source: str
    """`arithmetic`, `knights`, `gym:<name>`, or a path (.jsonl, .jsonl.gz, .parquet) or Hugging Face dataset id."""
    train: Annotated[int, Field(ge=0)] | None = None
    """Training tasks. None: all that is left after the held-out ones (files only)."""
    heldout: Annotated[int, Field(ge=0)] = 256
    """Held-out tasks, drawn first; no training task anywhere equals one of them."""
    dev: Annotated[int, Field(ge=0)] = 64
    """Tasks split from the training pool to watch and choose by; never the held-out ones."""
    settings: dict[str, int | float | str | bool | list[int] | list[str]] = {}
    """The source's own settings (level, columns, ...); checked by the source."""


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


# Losses by independent questions; a preset is a row (design.md, section 4).
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {"baseline": "group_mean", "scale": "group_std", "ratio": "token", "clip_low": 0.2, "clip_high": 0.2,
                 "aggregate": "sequence_mean", "kl": "loss"},
    "dr_grpo": {"baseline": "group_mean", "scale": "none", "ratio": "token", "clip_low": 0.2, "clip_high": 0.2,
                    "aggregate": "constant", "kl": "none"},
    "dapo": {"baseline": "group_mean", "scale": "group_std", "ratio": "token", "clip_low": 0.2, "clip_high": 0.28,
                 "aggregate": "token_mean", "kl": "none"},
    "gspo": {"baseline": "group_mean", "scale": "group_std", "ratio": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4,
                 "aggregate": "sequence_mean", "kl": "none"},
    "cispo": {"baseline": "group_mean", "scale": "group_std", "ratio": "token", "clip": "weight", "clip_low": None,
                  "clip_high": 4.0, "aggregate": "token_mean", "kl": "none"},
    "rloo": {"baseline": "leave_one_out", "scale": "none", "ratio": "sequence", "clip_low": None, "clip_high": None,
                 "aggregate": "sequence_mean", "kl": "reward"},
    "reinforce_pp": {"baseline": "none", "scale": "whiten", "ratio": "token", "clip_low": 0.2, "clip_high": 0.2,
                         "aggregate": "token_mean", "kl": "reward"},
    "ppo": {"baseline": "critic", "scale": "whiten", "ratio": "token", "clip_low": 0.2, "clip_high": 0.2,
                "aggregate": "token_mean", "kl": "reward", "critic": {"kind": "head"}},
}  # fmt: skip


class Critic(Section):
    kind: Literal["none", "head", "model"] = "none"
    """none; a linear head on the policy's own hidden states; a model of its own that begins as a copy of the policy."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 1.0
    """GAE's lambda of the advantages. Below 1 long wrong answers are pushed to grow until the critic is accurate."""
    lambda_alpha: Positive | None = None
    """In place of `gae_lambda`: 1 - 1 / (alpha x tokens of the completion), at least 0 (VAPO: 0.05)."""
    clip: Positive | None = 0.2
    """A value beyond this distance from the step's first one gets no gradient; with one update a step none is. None: never."""
    lr: Positive = 5e-5
    """Learning rate of the critic's own weights; warm-up as for the policy."""
    pretrain_steps: Annotated[int, Field(ge=0)] = 0
    """First steps of the stage in which only the critic learns; warm-up counts their updates too."""


class Algorithm(Section):
    preset: str = "dapo"
    """Fills the axes below: grpo, dr_grpo, dapo, gspo, cispo, rloo, reinforce_pp, ppo. Each axis may be set alone."""
    baseline: Literal["group_mean", "leave_one_out", "critic", "none"] = "group_mean"
    """What is subtracted from the reward: the mean of the group, of the other siblings, a critic's values (GAE), nothing."""
    scale: Literal["group_std", "batch_std", "whiten", "none"] = "group_std"
    """What the difference is divided by: standard deviation within the group, over the step, nothing; `whiten` makes the
    step's trained tokens mean 0 and deviation 1."""
    decoupled: bool = False
    """Baseline and scale for each reward function alone, then their weighted sum, whitened (GDPO)."""
    difficulty: Literal["none", "lead"] = "none"
    """`lead`: right answers to hard tasks and wrong ones to easy tasks count up to 1.5 times, the others from 0.4 times."""
    ratio: Literal["token", "sequence", "sequence_mean"] = "token"
    """Importance ratio of each token, of the whole completion, or of its geometric mean (GSPO)."""
    clip: Literal["surrogate", "weight"] = "surrogate"
    """What the bounds act on: PPO's surrogate (a token beyond loses its gradient), or the ratio as a weight (CISPO)."""
    clip_low: Positive | None = 0.2
    """Ratio clipped below 1 - clip_low; None: never clipped."""
    clip_high: Positive | None = 0.28
    """Ratio clipped above 1 + clip_high; None: never clipped."""
    correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "none"
    """Weights for tokens that the sampler drew under other probabilities than the learner's: the ratio of the two, per
    token or per completion, cut at 2, or 0 beyond it. Costs a forward pass."""
    aggregate: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """Denominator: all trained tokens of the update; per rollout, then rollouts; rollouts x max_tokens."""
    kl: Literal["none", "loss", "reward"] = "none"
    """KL to the reference (the weights the stage began with): none, in the loss, k1 in the reward."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of that KL."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL in the loss."""
    kl_reset_every: Annotated[int, Field(ge=0)] = 0
    """Steps after which the policy as it is becomes the reference; 0: never."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an entropy bonus in the loss; with `entropy_target` what it begins with."""
    entropy_target: Positive | None = None
    """Nats a token: at or below it the bonus acts and grows by 0.005 a step, above it rests and shrinks."""
    critic: Critic = Critic()
    overlong_filter: bool = False
    """Truncated rollouts leave the loss (they still count in the baseline)."""
    overlong_buffer_tokens: Annotated[int, Field(ge=0)] = 0
    """Soft overlong punishment: reward falls linearly to -1 over the last N tokens before the limit. 0: off."""
    refill_rounds: Annotated[int, Field(ge=0)] = 0
    """Dynamic sampling: at most N more rounds of new tasks in place of groups without signal."""
    advantages: Literal["reward", "zero", "shuffled"] = "reward"
    """Controls that must show no gain: `zero` sets advantages to 0, `shuffled` permutes rewards over the step."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        name = data.get("preset", "dapo")
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; it is one of {', '.join(PRESETS)}")
        row = PRESETS[name]
        if isinstance(critic := data.get("critic"), dict):
            data = data | {"critic": row.get("critic", {}) | critic}
        return {**row, **data}

    @model_validator(mode="after")
    def _refuse(self) -> Algorithm:
        for holds, reason in self._contradictions():
            if holds:
                raise ValueError(reason)
        return self

    def _contradictions(self) -> list[tuple[bool, str]]:
        """What would have no effect, or would undo another choice, and why."""

        def changed(key: str) -> bool:
            return getattr(self, key) != type(self).model_fields[key].default

        low, high, charges_kl = self.clip_low, self.clip_high, self.kl != "none" and self.kl_coef > 0
        compares, by_std = self.baseline in ("group_mean", "leave_one_out"), self.scale in ("group_std", "batch_std")
        has_critic = self.critic.kind != "none"
        return [
            (self.clip == "surrogate" and (low is None) != (high is None), "clip_low and clip_high are set together, or both null"),
            (low is not None and low >= 1, "clip_low must be below 1: the ratio cannot be negative"),
            (self.kl == "none" and self.kl_coef > 0, "kl_coef has no effect with kl: none; set kl: loss or kl: reward"),
            (changed("kl_estimator") and not (self.kl == "loss" and charges_kl),
             "kl_estimator acts with kl: loss and a kl_coef; the KL in the reward is k1"),
            (self.ratio == "sequence" and self.clip == "surrogate" and self.aggregate != "sequence_mean",
             "ratio: sequence gives every token its answer's gradient, so answers would count by their length; set aggregate: sequence_mean"),
            (self.refill_rounds > 0 and not compares, "refill_rounds drops groups of equal rewards, which teach something where siblings are not compared; set it to 0"),
            (self.kl_reset_every > 0 and not charges_kl, "kl_reset_every has no effect without a KL; set kl and kl_coef"),
            (self.entropy_target is not None and not self.entropy_coef, "entropy_target needs an entropy_coef to begin with"),
            (self.baseline == "critic" and not has_critic, "baseline: critic needs a critic; set critic.kind: head or model"),
            (self.baseline != "critic" and self.critic != Critic(), "a critic has no effect unless baseline: critic"),
            (self.baseline == "critic" and by_std, "a critic's advantages differ from token to token; set scale: whiten or none"),
            (self.critic.lambda_alpha is not None and self.critic.gae_lambda != 1, "lambda_alpha takes the place of gae_lambda; leave one out"),
            (self.baseline == "none" and by_std and self.kl == "reward" and charges_kl,
             "without a baseline the KL is charged token by token; set scale: whiten or none"),
            (self.decoupled and not compares, "decoupled compares siblings reward by reward; set baseline: group_mean"),
            (self.decoupled and self.scale == "whiten", "decoupled whitens its sum itself; set another scale"),
            (self.decoupled and self.kl == "reward" and charges_kl, "decoupled credits each reward alone and the KL is none; set kl: loss"),
            (self.decoupled and self.refill_rounds > 0, "refill_rounds looks at the sum of rewards and decoupled at each; leave one out"),
            (self.decoupled and self.difficulty != "none", "difficulty weights one comparison and decoupled makes several; leave one out"),
            (self.difficulty != "none" and self.scale == "whiten", "scale: whiten would undo difficulty; set another scale"),
            (self.difficulty != "none" and not compares, "difficulty weights a comparison of siblings; set baseline: group_mean"),
        ]  # fmt: skip


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
    samples: Annotated[int, Field(ge=0)] = 0
    """Sampled answers per task at `temperature`, besides the greedy one."""
    temperature: Positive = 1.0
    """Temperature of the sampled answers."""
    max_tokens: Count = 256
    """Token limit of an answer."""

    @model_validator(mode="after")
    def _refuse(self) -> EvaluateStage:
        if not self.samples and self.temperature != type(self).model_fields["temperature"].default:
            raise ValueError(
                "temperature has no effect without samples: the answer is greedy; set samples to 1 or more"
            )
        return self


class SftStage(StageBase):
    do: Literal["sft"]
    tasks: Names
    """Task sets whose training tasks carry a worked solution (meta.solution)."""
    batch: Count = 16
    """Worked solutions per step."""
    max_steps: Count = 200
    """Steps at most; `patience` may stop it earlier."""
    eval_every: Count = 5
    """Steps between greedy evaluations on the dev split."""
    patience: Annotated[int, Field(ge=0)] = 2
    """Stop when dev accuracy has not risen in this many evaluations. 0: run to the end."""
    wall_of: str | None = None
    """Instead of stopping early, run for the wall time that this earlier stage took (the control arm)."""
    max_tokens: Count = 256
    """Token limit of the answers in the dev evaluation."""
    optim: SftOptim = SftOptim()

    @model_validator(mode="after")
    def _refuse(self) -> SftStage:
        for key in ("max_steps", "patience"):
            if self.wall_of is not None and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with wall_of, which says when the stage ends; leave one out")
        return self


class AskedLength(Section):
    tokens: tuple[Count, Count] | None = None
    """Lowest and highest length to ask for: each task's prompt in a step ends with one drawn evenly from this range, the
    same for its siblings (LCPO). Null: no length is asked for."""
    mode: Literal["exact", "max"] = "exact"
    """What the prompt then says: "Think for N tokens." or "Think for maximum N tokens."."""

    @model_validator(mode="after")
    def _refuse(self) -> AskedLength:
        if self.tokens is None and self.mode != type(self).model_fields["mode"].default:
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
    heldout_every: Annotated[int, Field(ge=0)] = 5
    """Steps between greedy evaluations on the dev split; 0: never."""
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


class Engine(Section):
    max_batch: Count = 256
    """Rows decoded at once; finished rows are refilled."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are refused before anything runs."""


class Checks(Section):
    workers: Annotated[int, Field(ge=1)] = 2
    """Verifier processes."""
    timeout_s: Positive = 5.0
    """Seconds before a verifier process is killed and its verdict is `timeout`."""


class Recipe(Section):
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides tasks' order, sampling and shuffling; held-out tasks do not depend on it."""
    model: Model = Model()
    chat: Chat = Chat()
    tasks: dict[str, TaskSet]
    stages: list[Stage]
    engine: Engine = Engine()
    checks: Checks = Checks()

    @model_validator(mode="after")
    def _refuse(self) -> Recipe:
        if not self.stages:
            raise ValueError("stages is empty: name at least one stage")
        trained, seen = {"base"}, set()
        for stage in self.stages:
            if stage.name in seen or stage.name == "base":
                raise ValueError(f"two stages are called {stage.name!r} (base is the untrained model)")
            for name in stage.tasks:
                if name not in self.tasks:
                    raise ValueError(f"stage {stage.name!r} names the task set {name!r}{nearest(name, self.tasks)}")
            if stage.from_ is not None and stage.from_ not in trained:
                raise ValueError(f"stage {stage.name!r} starts from {stage.from_!r}{nearest(stage.from_, trained)}")
            if isinstance(stage, SftStage) and stage.wall_of is not None and stage.wall_of not in seen:
                raise ValueError(
                    f"stage {stage.name!r} takes its time from {stage.wall_of!r}{nearest(stage.wall_of, seen)}"
                )
            seen.add(stage.name)
            if not isinstance(stage, EvaluateStage):
                trained.add(stage.name)
        if len(trained) > 1 and self.model.dtype == "bfloat16" and not self.model.lora.rank:
            raise ValueError(
                "model.dtype bfloat16 would round small updates of the weights away: set model.dtype=float32, or "
                "model.lora.rank to 8 or more"
            )
        return self

    @property
    def hash(self) -> str:
        """16 hex digits over everything that was resolved."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def start_of(self, stage: StageBase) -> str:
        """Name of the stage (or `base`) whose weights `stage` starts with."""
        if stage.from_ is not None:
            return stage.from_
        last = "base"
        for other in self.stages:
            if other.name == stage.name:
                return last
            if not isinstance(other, EvaluateStage):
                last = other.name
        raise AssertionError(f"{stage.name} is not a stage of this recipe")

    def to_yaml(self) -> str:
        """The resolved recipe: every key with its value."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def nearest(word: str, known: Any) -> str:
    """ ", which is not one of a, b; did you mean a?" for an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f", which is none of {', '.join(known)}" + (f"; did you mean {close[0]!r}?" if close else "")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from YAML with `a.b=c` overrides. Stages are addressed by name: `stages.rl.steps=20`.

    Raises UserError with the file, the key and the nearest known key.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no recipe at {path}; the repository's own are in recipes/") from None
    except IsADirectoryError:
        raise UserError(
            f"{path} is a folder; to go on with a run, type the recipe it began with: strop run RECIPE --out {path} --resume"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no mapping of recipe keys; see recipes/quickstart.yaml")
    for override in overrides:
        _apply(data, override)
    return parse_recipe(data, where=str(path))


def parse_recipe(data: dict[str, Any], where: str = "recipe") -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error, data)}") from None


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as key.subkey=value, for example --set seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(value, str) and (number := _as_float(value)) is not None:
        value = number  # YAML 1.1 reads 1e-5 as a string
    node: Any = data
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        node = _child(node, part, override, create=depth > 0 or part in Recipe.model_fields)
    if isinstance(node, list):
        index = _index(node, last, override)
        node[index] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--set {override}: {'.'.join(parents)} is a value, not a section")


def _child(node: Any, part: str, override: str, create: bool) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if not isinstance(node, dict):
        raise UserError(f"--set {override}: {part!r} lies below a value, not a section")
    if node.get(part) is None:
        if not create:
            raise UserError(f"--set {override}: the recipe has no section {part!r}{nearest(part, Recipe.model_fields)}")
        node[part] = {}
    return node[part]


def _index(items: list[Any], part: str, override: str) -> int:
    names = [item.get("name", "") if isinstance(item, dict) else "" for item in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise UserError(
        f"--set {override}: no entry {part!r}{nearest(part, [n for n in names if n] or map(str, range(len(items))))}"
    )


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _explain(error: ValidationError, data: dict[str, Any]) -> str:
    """The first problem, in one sentence."""
    first = error.errors()[0]
    place = [str(p) for p in first["loc"] if p not in ("evaluate", "sft", "train")]
    if len(place) > 1 and place[0] == "stages" and place[1].isdigit():  # stages go by name
        stage = data["stages"][int(place[1])]
        place[1] = str(stage.get("name", place[1])) if isinstance(stage, dict) else place[1]
    key = ".".join(place)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(place[-1], _siblings(first['loc']))}{more}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing{more}"
    if first["type"] == "union_tag_invalid":
        kind = first["input"].get("do")
        return f"{key}.do: {kind!r}{nearest(str(kind), _STAGES)}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message + more
    shown = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{shown}{more}"


_STAGES: dict[str, type[StageBase]] = {"evaluate": EvaluateStage, "sft": SftStage, "train": TrainStage}


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """Keys that would be known where an unknown one was found."""
    model: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, str) and part in _STAGES:
            model = _STAGES[part]
            continue
        if model is None or isinstance(part, int):
            continue
        by_name = {f.alias or n: f for n, f in model.model_fields.items()}
        if part in by_name:
            model = _section_of(by_name[part].annotation)
    return [f.alias or n for n, f in model.model_fields.items()] if model is not None else []


def _section_of(annotation: Any) -> Any:
    """The Section class inside an annotation such as dict[str, TaskSet] or list[Stage]; Recipe keys only."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _section_of(inner)) is not None:
            return found
    return None
