"""Does a loss push answers to grow or to shrink, whatever they are paid for?

A toy policy stops with probability s at each token and nothing else, its answers' length is independent of their reward,
and so every push on s is the loss's own doing. The expectation is exact, and it goes through the code that trains:
`advantage.gae`, `loss.AGGREGATES`, `loss.policy_loss`. `measured` looks for the same in a run's recorded rollouts. Knows
no model. Read by the command line and the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import nbinom

from strop import advantage, loss
from strop.config import PRESETS, Algorithm, TrainStage, load_recipe
from strop.record import UserError, read_rollouts
from strop.run import check_run

__all__ = ["LINES", "Drift", "Push", "as_json", "closed_form", "lines", "measured", "push", "pushes"]

TAIL = 1e-12  # probability of the longest answers, which are left out
NOTICED = 0.05  # pushes below it are called none
ONE = Algorithm(preset="ppo")

# What is shown, by what is said of it: losses that are paid by answers, so not those that a teacher credits. A critic that knows nothing is how every critic begins.
LINES: dict[str, Algorithm] = {
    **{name: Algorithm(preset=name) for name, row in PRESETS.items() if name != "ppo" and "credit" not in row},
    "ppo, lambda 1": ONE,
    "ppo, lambda 0.95": Algorithm(preset="ppo", critic={"gae_lambda": 0.95}),  # type: ignore[arg-type]
    "ppo, alpha 0.05": Algorithm(preset="ppo", critic={"lambda_alpha": 0.05}),  # type: ignore[arg-type]
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """What one answer does to the logit of stopping, in expectation, where a token weighs 1 on average."""

    name: str
    wrong: float  # advantage -1; negative: answers grow
    right: float  # advantage +1
    closed: float | None  # of `wrong`, for large updates; None where there is no short formula

    @property
    def meaning(self) -> str:
        if abs(self.wrong) < NOTICED:
            return "length is left alone"
        return "wrong answers grow, right ones shrink" if self.wrong < 0 else "wrong answers shrink, right ones grow"


def pushes(stop: float = 0.1, num_rollouts: int = 64) -> list[Push]:
    """One row for every preset and critic, at a mean length of 1 / stop tokens and `num_rollouts` in an update."""
    if not 0.005 <= stop <= 0.9:
        raise UserError(
            f"stop={stop:g}: give a probability from 0.005 to 0.9, for mean lengths of 200 tokens down to 1"
        )
    if num_rollouts < 2:
        raise UserError(f"rollouts={num_rollouts}: an update has at least 2")
    return [
        Push(
            name=name, wrong=push(algorithm, stop, -1.0, num_rollouts), right=push(algorithm, stop, 1.0, num_rollouts),
            closed=closed_form(algorithm, stop, -1.0, num_rollouts),
        )
        for name, algorithm in LINES.items()
    ]  # fmt: skip


def push(algorithm: Algorithm, stop: float, reward: float, num_rollouts: int) -> float:
    """Expected gradient of minus our loss by the logit of stopping, for one rollout of an update; exact.

    Every length is one row of tokens, weighted by its probability; the lengths of the update's other rollouts enter by the
    denominators alone, in expectation. Scaled so that a token's weight is 1 on average. KL and entropy are left out.
    """
    algorithm = algorithm.model_copy(update={"kl": "none", "kl_coef": 0.0, "entropy_coef": 0.0})
    theta = torch.tensor(math.log(stop / (1 - stop)), dtype=torch.float64, requires_grad=True)
    ends, goes_on = torch.nn.functional.logsigmoid(theta), torch.nn.functional.logsigmoid(-theta)
    longest = max(2, math.ceil(math.log(TAIL) / math.log1p(-stop)))
    lengths = np.arange(1, longest + 1)
    rollout_T = torch.from_numpy(np.repeat(lengths - 1, lengths))
    last_T = torch.from_numpy(np.concatenate([np.arange(1, n + 1) == n for n in lengths]))
    probability_N = stop * (1 - stop) ** (lengths - 1.0)
    weight_N = _weights(algorithm.aggregate, longest, stop, num_rollouts)
    mean_weight = (probability_N * weight_N * lengths).sum() / (probability_N * lengths).sum()
    weight_T = torch.from_numpy(weight_N * probability_N / mean_weight)[rollout_T]
    advantages_T = torch.from_numpy(np.concatenate([_advantages(algorithm, int(n), reward) for n in lengths]))
    logprobs_T = torch.where(last_T, ends, goes_on)
    value, _ = loss.policy_loss(logprobs_T, logprobs_T.detach(), None, advantages_T, weight_T, rollout_T, algorithm)
    (gradient,) = torch.autograd.grad(-value, theta)
    return float(gradient)


def _advantages(algorithm: Algorithm, length: int, reward: float) -> np.ndarray:
    if algorithm.baseline != "critic":
        return np.full(length, reward)
    rewards = np.zeros(length)
    rewards[-1] = reward
    return advantage.gae(rewards, np.zeros(length), 1.0, advantage.policy_lambda(length, algorithm.critic))


def _weights(aggregate: str, longest: int, stop: float, num_rollouts: int) -> np.ndarray:
    """A token's weight in answers of 1 to `longest` tokens, in expectation over the lengths of the update's others."""
    lengths = np.arange(1, longest + 1)
    if aggregate != "token_mean":  # the others enter the denominator of all tokens alone
        return np.array([loss.AGGREGATES[aggregate](int(n), num_rollouts, int(n), longest) for n in lengths])
    fewest, most = num_rollouts - 1, math.ceil((num_rollouts + 40 * math.sqrt(num_rollouts)) / stop)
    others = np.arange(fewest, most)
    probability = nbinom.pmf(others - fewest, fewest, stop)
    of_total = np.array([loss.token_mean(0, num_rollouts, max(1, total), longest) for total in range(most + longest)])
    return np.array([probability @ of_total[others + n] for n in lengths])


def closed_form(algorithm: Algorithm, stop: float, reward: float, num_rollouts: int) -> float | None:
    """By hand, with T geometric: E[1/T] = -s ln s / (1 - s), and d log P / d theta = 1 - T s for a whole answer.

    * a constant denominator: E[1 - T s] = 0, and so where the ratio makes the answer one action
    * a mean over the answer: E[1/T] / s - 1
    * all tokens of N answers: (1 - s) / N to first order
    * a critic of 0 at lambda l: (1 - s) (1 - l) / (1 - (1 - s) l), besides the last
    """
    s, mean_of_answer = stop, algorithm.aggregate == "sequence_mean" and algorithm.ratio != "sequence"
    if algorithm.critic.lambda_alpha is not None:
        return None
    value = -math.log(s) / (1 - s) - 1 if mean_of_answer else 0.0
    if algorithm.aggregate == "token_mean":
        value += (1 - s) / num_rollouts
    if algorithm.baseline == "critic":
        lam = algorithm.critic.gae_lambda
        value += (1 - s) * (1 - lam) / (1 - (1 - s) * lam)
    return reward * value


# --- the same in a run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How the length of a stage's right or wrong answers moved while it trained."""

    stage: str
    outcome: str
    num_steps: int
    first_tokens: float  # mean over the first fifth of the steps
    last_tokens: float
    slope: float  # tokens per 100 steps
    low: float  # 95% interval over steps
    high: float


def measured(run_dir: Path, *, seed: int = 0) -> list[Drift]:
    """The drift of right and of wrong answers that ended by themselves, in every RL stage of a run.

    Answers cut by the limit are left out: their length is the limit. The slope is that of a straight line through the
    steps' means, its interval a percentile bootstrap over steps. Raises UserError for what is no run, or one without RL.
    """
    check_run(run_dir)
    stages = [s for s in load_recipe(run_dir / "recipe.yaml").stages if isinstance(s, TrainStage)]
    out = []
    for stage in stages:
        steps, means = _lengths(sorted((run_dir / "rollouts" / stage.name).glob("step_*.parquet")))
        for outcome, lengths in means.items():
            known = [(x, y) for x, y in zip(steps, lengths, strict=True) if y is not None]
            if len(known) >= 3:
                out.append(_drift(stage.name, outcome, np.array(known, np.float64), seed))
    if not out:
        raise UserError(f"{run_dir} has no RL stage of three steps or more with recorded rollouts")
    return out


def _lengths(files: Sequence[Path]) -> tuple[list[int], dict[str, list[float | None]]]:
    steps, means = [], {"right": [], "wrong": []}
    for file in files:
        ended = [r for r in read_rollouts(file) if r.scorable and not r.truncated]
        steps.append(int(file.stem.rpartition("_")[2]))
        for outcome, correct in (("right", True), ("wrong", False)):
            lengths = [r.num_sampled for r in ended if r.correct == correct]
            means[outcome].append(float(np.mean(lengths)) if lengths else None)
    return steps, means


def _drift(stage: str, outcome: str, points: np.ndarray, seed: int) -> Drift:
    rng, fifth = np.random.default_rng(seed), max(1, len(points) // 5)
    slopes: list[float] = []
    while len(slopes) < 2000:
        drawn = points[rng.integers(len(points), size=len(points))]
        if len(set(drawn[:, 0])) > 1:
            slopes.append(_slope(drawn))
    low, high = np.percentile(slopes, [2.5, 97.5])
    return Drift(
        stage=stage, outcome=outcome, num_steps=len(points), first_tokens=float(points[:fifth, 1].mean()),
        last_tokens=float(points[-fifth:, 1].mean()), slope=_slope(points), low=float(low), high=float(high),
    )  # fmt: skip


def _slope(points: np.ndarray) -> float:
    x, y = points[:, 0] - points[:, 0].mean(), points[:, 1]
    return float(100 * (x @ y) / (x @ x))


def lines(found: Sequence[Push], drifts: Sequence[Drift]) -> list[str]:
    """What a person reads."""
    out = [f"{'':18}{'wrong':>9}{'right':>9}{'by hand':>9}   push on the logit of stopping; a token weighs 1"]
    for row in found:
        numbers = "".join(f"{_shown(value):>9}" for value in (row.wrong, row.right, row.closed))
        out.append(f"{row.name:18}{numbers}   {row.meaning}")
    for d in drifts:
        out.append(
            f"{d.stage}: {d.outcome} answers {d.first_tokens:.1f} -> {d.last_tokens:.1f} tokens in {d.num_steps} steps, "
            f"{d.slope:+.1f} per 100 steps ({d.low:+.1f} to {d.high:+.1f})"
        )
    return out


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}" if abs(value) >= 0.0005 else "0"


def as_json(found: Sequence[Push], drifts: Sequence[Drift]) -> dict[str, Any]:
    rows = [
        {"name": p.name, "wrong": p.wrong, "right": p.right, "closed": p.closed, "meaning": p.meaning} for p in found
    ]
    slots = Drift.__dataclass_fields__
    return {"push": rows, "drift": [{name: getattr(d, name) for name in slots} for d in drifts]}
