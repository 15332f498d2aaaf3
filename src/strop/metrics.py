"""A training step's rollouts as logged numbers: rewards, lengths, outcomes and credit, split by right and wrong.

Pure functions from scored and credited rollouts to one flat row, under TRL's names where it has one; docs/metrics.md
defines every key. Knows records, not how they were sampled or what the loss makes of them. Read by the training loop;
what in a row should make a person look is the business of `monitor`.

Right is judged and correct; wrong is judged and not correct, cut answers included. What could not be judged is neither.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from strop.record import Rollout
from strop.rewards.language import prose, words

__all__ = [
    "PASS_BINS", "by_outcome", "column", "differs", "folded", "foreign_frac", "groups_of", "length_gap", "pass_bin", "prompt_tokens", "repeated_frac",
    "summarise", "vote",
]  # fmt: skip

PASS_BINS = ("0", "0-25", "25-50", "50-75", "75-100", "100")  # per cent; the upper end belongs to a bin but for 100
NGRAM = 8  # tokens: a loop repeats runs of every length, ordinary text few that are this long


def summarise(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """One step's row: what its rollouts say. A key that does not apply is absent (`reward` and `reward_std`: None)."""
    return {
        **_rewards(rollouts),
        **_outcomes(rollouts),
        **_lengths(rollouts),
        **_texts(rollouts),
        **_credit(rollouts),
        **_teacher(rollouts),
        "num_tokens_sampled": int(sum(r.num_sampled for r in rollouts)),
        **_reasons(rollouts),
    }


def column(rows: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """One key of logged rows: what is there and finite. A step without a gradient has no entropy.

    >>> column([{"entropy": 0.5}, {}, {"entropy": None}, {"entropy": 0.25}], "entropy")
    [0.5, 0.25]
    """
    values = (row.get(key) for row in rows)
    return [float(value) for value in values if value is not None and math.isfinite(value)]


# --- answers ----------------------------------------------------------------------------------------------------------


def vote(rollout: Rollout) -> str | None:
    """The answer as it votes in maj@k; None where there is none.

    One vote are answers of the same text but for case and white space: that 0.5 is 1/2 is known of right answers only,
    and joining those alone would favour them.
    """
    said = rollout.verdict.extracted if rollout.verdict is not None else None
    return folded(said) or None if said is not None else None


def folded(answer: str) -> str:
    """Without case and layout.

    >>> folded(" x =  Y ")
    'x = y'
    """
    return " ".join(answer.casefold().split())


# --- groups -----------------------------------------------------------------------------------------------------------


def groups_of(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """The rollouts by group, in the order in which groups first come."""
    groups: dict[int, list[Rollout]] = {}
    for r in rollouts:
        groups.setdefault(r.group, []).append(r)
    return list(groups.values())


def prompt_tokens(rollouts: Sequence[Rollout]) -> int:
    """Tokens of the rollouts' prompts, each group's once: so the engine reads them and the learner encodes them."""
    return sum(group[0].num_prompt_tokens for group in groups_of(rollouts))


def differs(group: Sequence[Rollout]) -> bool:
    """Whether the rewards of a group differ, so that siblings can be told apart."""
    return len({r.reward for r in group if r.reward is not None}) > 1


def pass_bin(rate: float) -> str:
    """The bin of a group's pass rate, in [0, 1]: none, (0, 25%], (25%, 50%], (50%, 75%], (75%, 100%), all.

    >>> [pass_bin(rate) for rate in (0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1.0)]
    ['0', '0-25', '0-25', '25-50', '50-75', '75-100', '100']
    """
    return PASS_BINS[-1] if rate == 1 else PASS_BINS[bisect_left((0.0, 0.25, 0.5, 0.75), rate)]


# --- the parts of a row -----------------------------------------------------------------------------------------------


def _rewards(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    parts = sorted({name for r in rollouts for name in r.reward_parts})
    by_group = [[r.reward for r in g if r.reward is not None] for g in groups_of(rollouts)]
    return {
        "reward": _mean([reward for rewards in by_group for reward in rewards]),
        "reward_std": _mean([float(np.std(rewards)) for rewards in by_group if rewards]),
        **{f"rewards/{n}/mean": _mean([r.reward_parts[n] for r in rollouts if n in r.reward_parts]) for n in parts},
        "frac_reward_zero_std": _mean([not differs(g) for g in groups_of(rollouts)]),
    }


def _outcomes(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Accuracy, and how the groups' pass rates are spread: RL learns from the bins between 0 and 100."""
    judged = [[r.correct for r in g if _is_judged(r)] for g in groups_of(rollouts)]
    bins = Counter(pass_bin(sum(correct) / len(correct)) for correct in judged if correct)
    return {
        "accuracy": float(np.mean([r.correct for r in rollouts])),
        **({f"frac_pass_rate/{n}": bins[n] / bins.total() for n in PASS_BINS} if bins else {}),
    }


def _lengths(rollouts: Sequence[Rollout]) -> dict[str, float]:
    right, wrong = by_outcome(rollouts)
    misses = [abs(r.num_sampled - r.budget_tokens) / r.budget_tokens for r in rollouts if r.budget_tokens is not None]
    gaps = [gap for group in groups_of(rollouts) if (gap := length_gap(group)) is not None]
    return _known({
        "completions/mean_length": _mean_length(rollouts),
        "completions/max_length": float(max(r.num_sampled for r in rollouts)),
        "completions/clipped_ratio": _mean([r.truncated for r in rollouts]),
        "completions/budget_error": _mean(misses),
        "completions/mean_right_length": _mean_length(right),
        "completions/mean_wrong_length": _mean_length(wrong),
        "completions/mean_truncated_length": _mean_length([r for r in rollouts if r.truncated]),
        "completions/wrong_clipped_ratio": _mean([r.truncated for r in wrong]),
        "completions/length_gap": _mean(gaps),
        "completions/wrong_longer_frac": _mean([gap > 0 for gap in gaps]),
    })  # fmt: skip


def _texts(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How surprising the sampled tokens were to what sampled them, and how much they repeat."""
    right, wrong = by_outcome(rollouts)
    return _known({
        "sampling/surprisal": _surprisal(rollouts),
        "sampling/surprisal_right": _surprisal(right),
        "sampling/surprisal_wrong": _surprisal(wrong),
        "completions/repetition_frac": _mean([repeated_frac(r.token_ids[r.sampled].tolist()) for r in rollouts]),
        "completions/foreign_frac": _mean([foreign_frac(r.text, r.task.prompt) for r in rollouts]),
    })  # fmt: skip


def _credit(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """On whose tokens the advantages push, before the aggregate weighs them; nothing where no token is pushed."""
    pushes = [r.advantages[r.trained].astype(np.float64) for r in rollouts if r.advantages is not None]
    advantages_T = np.concatenate([np.zeros(0), *pushes])
    weight = float(np.abs(advantages_T).sum())
    if not weight:
        return {}
    return {
        "advantage/negative_weight_frac": float(-advantages_T[advantages_T < 0].sum()) / weight,
        "advantage/negative_tokens_frac": float(np.mean(advantages_T < 0)),
        "advantage/positive_tokens_frac": float(np.mean(advantages_T > 0)),
    }


def _teacher(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean of log p - teacher's log p over sampled tokens: KL(student || teacher), k1."""
    gaps = [
        (r.sampler_logprobs - r.teacher_logprobs)[r.sampled]
        for r in rollouts
        if r.sampler_logprobs is not None and r.teacher_logprobs is not None
    ]
    gap_T = np.concatenate([np.zeros(0), *gaps])
    return {"teacher_kl": float(gap_T.mean())} if len(gap_T) else {}


def _reasons(rollouts: Sequence[Rollout]) -> dict[str, int]:
    reasons = Counter(r.verdict.reason.value for r in rollouts if r.verdict is not None)
    return {f"verdict/{reason}": count for reason, count in sorted(reasons.items())}


# --- single numbers ---------------------------------------------------------------------------------------------------


def repeated_frac(token_ids: Sequence[int], n: int = NGRAM) -> float:
    """The share of a text's n-grams that are there more than once, all but the first of each: 1 - distinct / all.

    0 for a text of fewer than `n` tokens; near 1 for one that has fallen into a loop, however long the loop is.

    >>> repeated_frac([1, 2, 3, 1, 2, 3, 1, 2], n=2), repeated_frac([1, 2, 3, 4], n=2), repeated_frac([1], n=2)
    (0.5714285714285714, 0.0, 0.0)
    """
    num = len(token_ids) - n + 1
    if num < 1:
        return 0.0
    return 1.0 - len(set(zip(*(token_ids[start : start + num] for start in range(n)), strict=True))) / num


def foreign_frac(text: str, prompt: str) -> float:
    """The share of a text's words that are in a script that the prompt does not use; 0 without a word. Greek is a formula.

    >>> foreign_frac("We know 因为 that", "What is 1 + 1?"), foreign_frac("设 x = 2", "求 x"), foreign_frac("= 7", "?")
    (0.4, 0.0, 0.0)
    """
    if text.isascii() and any(map(str.isalpha, filter(str.isascii, prompt))):  # the usual case, and the cheap one
        return 0.0
    own, found = {*words(prompt), "GREEK"}, list(words(prose(text)))
    return sum(script not in own for script in found) / len(found) if found else 0.0


def length_gap(group: Sequence[Rollout]) -> float | None:
    """Tokens by which the wrong answers of a group are longer than its right ones; None without both.

    Within one task, so that hard tasks, which are longer and more often wrong, do not pass for a length bias.
    """
    right, wrong = map(_mean_length, by_outcome(group))
    return None if right is None or wrong is None else wrong - right


def _surprisal(rollouts: Sequence[Rollout]) -> float | None:
    """Mean of -log p over sampled tokens, in nats."""
    found = [r.sampler_logprobs[r.sampled] for r in rollouts if r.sampler_logprobs is not None]
    values_T = np.concatenate([np.zeros(0), *found])
    return float(-values_T.mean()) if len(values_T) else None


def by_outcome(rollouts: Sequence[Rollout]) -> tuple[list[Rollout], list[Rollout]]:
    """The right ones and the wrong ones."""
    return [r for r in rollouts if r.correct], [r for r in rollouts if _is_judged(r) and not r.correct]


def _is_judged(rollout: Rollout) -> bool:
    return rollout.verdict is not None and rollout.verdict.scorable


def _mean_length(rollouts: Sequence[Rollout]) -> float | None:
    return _mean([r.num_sampled for r in rollouts])


def _mean(values: Sequence[float | int]) -> float | None:
    return float(np.mean(values)) if values else None


def _known(row: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in row.items() if value is not None}
