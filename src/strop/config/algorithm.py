"""How rollouts become an update: axes that are set alone, presets that are rows, and what contradicts itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from strop.config.section import Positive, Section

__all__ = ["PRESETS", "Algorithm", "Critic"]

_OWN_TEACHERS = ("self", "live")  # the student's own weights, shown the worked solution

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
    "opd": {"credit": "teacher", "baseline": "none", "scale": "none", "ratio": "token", "clip_low": 0.2, "clip_high": 0.2,
                "aggregate": "token_mean", "kl": "none"},
    "opsd": {"credit": "teacher", "teacher": "self", "baseline": "none", "scale": "none", "ratio": "token", "clip_low": 0.2,
                 "clip_high": 0.2, "aggregate": "token_mean", "kl": "none"},
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
    """Fills the axes below: grpo, dr_grpo, dapo, gspo, cispo, rloo, reinforce_pp, ppo, opd, opsd. Each axis may be set alone."""
    credit: Literal["reward", "teacher", "both"] = "reward"
    """What a token is credited with: the reward, compared and scaled as below; the teacher's log-probability less the
    student's; their sum."""
    teacher: str = ""
    """Who judges the student's tokens (distillation): a folder, a Hugging Face id, RUN or RUN:STAGE, with the student's
    tokenizer. `self`: the weights the stage began with, shown the worked solution; `live`: the same with the weights of now."""
    teacher_coef: Positive = 1.0
    """Weight of the teacher's part of the credit."""
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
        if not isinstance(name, str) or name not in PRESETS:
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

        low, high = self.clip_low, self.clip_high
        compares, by_std = self.baseline in ("group_mean", "leave_one_out"), self.scale in ("group_std", "batch_std")
        has_critic = self.critic.kind != "none"
        return [
            *self._contradictions_of_teaching(),
            (self.clip == "surrogate" and (low is None) != (high is None), "clip_low and clip_high are set together, or both null"),
            (low is not None and low >= 1, "clip_low must be below 1: the ratio cannot be negative"),
            (self.kl == "none" and self.kl_coef > 0, "kl_coef has no effect with kl: none; set kl: loss or kl: reward"),
            (self.changed("kl_estimator") and not (self.kl == "loss" and self.charges_kl),
             "kl_estimator acts with kl: loss and a kl_coef; the KL in the reward is k1"),
            (self.ratio == "sequence" and self.clip == "surrogate" and self.aggregate != "sequence_mean",
             "ratio: sequence gives every token its answer's gradient, so answers would count by their length; set aggregate: sequence_mean"),
            (self.refill_rounds > 0 and not compares, "refill_rounds drops groups of equal rewards, which teach something where siblings are not compared; set it to 0"),
            (self.kl_reset_every > 0 and not self.charges_kl, "kl_reset_every has no effect without a KL; set kl and kl_coef"),
            (self.entropy_target is not None and not self.entropy_coef, "entropy_target needs an entropy_coef to begin with"),
            (self.baseline == "critic" and not has_critic, "baseline: critic needs a critic; set critic.kind: head or model"),
            (self.baseline != "critic" and self.critic != Critic(), "a critic has no effect unless baseline: critic"),
            (self.baseline == "critic" and by_std, "a critic's advantages differ from token to token; set scale: whiten or none"),
            (self.critic.lambda_alpha is not None and self.critic.gae_lambda != 1, "lambda_alpha takes the place of gae_lambda; leave one out"),
            (self.baseline == "none" and by_std and self.kl == "reward" and self.charges_kl,
             "without a baseline the KL is charged token by token; set scale: whiten or none"),
            (self.decoupled and not compares, "decoupled compares siblings reward by reward; set baseline: group_mean"),
            (self.decoupled and self.scale == "whiten", "decoupled whitens its sum itself; set another scale"),
            (self.decoupled and self.kl == "reward" and self.charges_kl, "decoupled credits each reward alone and the KL is none; set kl: loss"),
            (self.decoupled and self.refill_rounds > 0, "refill_rounds looks at the sum of rewards and decoupled at each; leave one out"),
            (self.decoupled and self.difficulty != "none", "difficulty weights one comparison and decoupled makes several; leave one out"),
            (self.difficulty != "none" and self.scale == "whiten", "scale: whiten would undo difficulty; set another scale"),
            (self.difficulty != "none" and not compares, "difficulty weights a comparison of siblings; set baseline: group_mean"),
        ]  # fmt: skip

    def _contradictions_of_teaching(self) -> list[tuple[bool, str]]:
        taught, alone = self.credit != "reward", self.credit == "teacher"
        return [
            (taught and not self.teacher, f"credit: {self.credit} needs a teacher; set teacher to a model folder, an id, RUN:STAGE or self"),
            (not taught and bool(self.teacher), "a teacher has no effect with credit: reward; set credit: teacher or both"),
            (not taught and self.changed("teacher_coef"), "teacher_coef has no effect with credit: reward; set credit: teacher or both"),
            (alone and (self.baseline != "none" or self.scale != "none"),
             "credit: teacher compares no rewards; set baseline: none and scale: none, or credit: both"),
            (alone and self.kl == "reward", "credit: teacher pays no reward that a KL could be taken from; set kl: loss, or credit: both"),
            (alone and self.overlong_buffer_tokens > 0,
             "overlong_buffer_tokens lowers a reward, and credit: teacher pays none; set it to 0, or credit: both"),
            (taught and self.refill_rounds > 0, "refill_rounds drops groups of equal rewards, which a teacher still teaches; set it to 0"),
            (self.teacher == "self" and self.kl_reset_every > 0,
             "kl_reset_every would move the teacher too, whose weights are the reference's; set it to 0, or teacher: live"),
        ]  # fmt: skip

    @property
    def charges_kl(self) -> bool:
        """Whether a distance to the reference is paid for, in the loss or in the reward."""
        return self.kl != "none" and self.kl_coef > 0

    @property
    def reads_solutions(self) -> bool:
        """Whether the teacher is shown worked solutions: then only tasks that have one are drawn."""
        return self.teacher in _OWN_TEACHERS
