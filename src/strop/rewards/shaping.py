r"""Rewards about form rather than truth: a box or tags where they are asked for, no repeating, no rambling to the limit.

Knows texts, tokens and token counts, never characters as a measure of length. They need no verdict: a rollout whose
verifier failed has a value too, and the scorer leaves it out of the loss. Read by `rewards.adapters` and
`rewards.scorer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float32, Int32
from pydantic import Field

from strop.config import Count, Section
from strop.record import Rollout
from strop.rewards import extract
from strop.settings import NoSettings

__all__ = [
    "RepetitionDenseSettings",
    "RepetitionSettings",
    "format_",
    "format_value",
    "overlong",
    "repeated",
    "repetition",
    "repetition_dense",
    "repetition_tokens",
    "repetition_value",
    "tags",
    "tags_value",
]

OPEN, CLOSE = "<think>", "</think>"
TAGS = (OPEN, CLOSE, "<answer>", "</answer>")


def overlong(num_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), in [-1, 0], added to the reward.

    0 up to `max_tokens - buffer_tokens`, then a straight line down to -1 at `max_tokens`, and -1 beyond.

    >>> [overlong(n, 100, 20) for n in (0, 80, 90, 100, 500)]
    [0.0, 0.0, -0.5, -1.0, -1.0]
    """
    if buffer_tokens <= 0:
        return 0.0
    return max(-1.0, min(0.0, (max_tokens - buffer_tokens - num_tokens) / buffer_tokens))


def format_value(text: str, prefill: str = "") -> float:
    r"""1.0 for a completion in good form, else 0.0.

    Good form is exactly one closed, filled \boxed{}. Where thinking is opened, by the completion or already by the
    `prefill` that the template put before it, it must be closed once, nothing may be opened again, and the box comes
    after it.

    >>> format_value(r"2 + 3 = 5, so \boxed{5}"), format_value(r"\boxed{4} no, \boxed{5}"), format_value("5")
    (1.0, 0.0, 0.0)
    >>> format_value(r"2 + 3 = 5 </think> \boxed{5}", "<think>\n"), format_value(r"2 + 3 = 5 </think> \boxed{5}")
    (1.0, 0.0)
    """
    whole = prefill + text
    boxes = extract.boxes(text)
    if len(boxes) != 1 or not (boxes[0].content or "").strip():
        return 0.0
    if OPEN not in whole and CLOSE not in whole:
        return 1.0
    if whole.count(OPEN) != 1 or whole.count(CLOSE) != 1 or CLOSE not in text:
        return 0.0
    in_order = whole.index(OPEN) < whole.index(CLOSE) and text.index(CLOSE) < boxes[0].start
    return 1.0 if in_order else 0.0


def format_(rollouts: Sequence[Rollout], settings: NoSettings) -> list[float | None]:
    """`format_value` of each."""
    return [format_value(rollout.text, rollout.prefill) for rollout in rollouts]


def tags_value(text: str, prefill: str = "") -> float:
    """Logic-RL's format reward (arXiv 2502.14768): 1.0 in good form, else -1.0.

    Good form is `<think>`, `</think>`, `<answer>`, `</answer>`, each exactly once and in this order, counting what the
    template's `prefill` has already opened.

    >>> tags_value("<think>2 + 3</think><answer>5</answer>"), tags_value("2 + 3</think><answer>5</answer>")
    (1.0, -1.0)
    >>> tags_value("2 + 3</think><answer>5</answer>", "<think>"), tags_value("<answer>5</answer>", "<think>")
    (1.0, -1.0)
    """
    whole = prefill + text
    if any(whole.count(tag) != 1 for tag in TAGS):
        return -1.0
    places = [whole.index(tag) for tag in TAGS]
    return 1.0 if places == sorted(places) else -1.0


def tags(rollouts: Sequence[Rollout], settings: NoSettings) -> list[float | None]:
    """`tags_value` of each."""
    return [tags_value(rollout.text, rollout.prefill) for rollout in rollouts]


# --- repetition: the same run of tokens again -------------------------------------------------------------------------


class RepetitionSettings(Section):
    ngram_tokens: Count = 40
    """Length of a run of tokens that may not come again."""
    max_penalty: Annotated[float, Field(le=0)] = -1.0
    """Value of a completion that says one thing only; 0 or below."""


def _again(ids: Int32[np.ndarray, " C"], ngram_tokens: int) -> list[int]:
    """Where a run of `ngram_tokens` begins that has been there before."""
    seen: set[bytes] = set()
    places = []
    for start in range(len(ids) - ngram_tokens + 1):
        key = ids[start : start + ngram_tokens].tobytes()
        if key in seen:
            places.append(start)
        seen.add(key)
    return places


def repetition_value(ids: Int32[np.ndarray, " C"], ngram_tokens: int, max_penalty: float) -> float:
    """The share of a completion's n-grams that had been there before, times `max_penalty` (arXiv 2502.03373, sparse form).

    In [max_penalty, 0]; 0 for a completion that is shorter than one n-gram.

    >>> [repetition_value(np.array(ids, np.int32), 2, -1.0) for ids in ([1, 2, 3, 4], [1, 2, 1, 2, 1], [7])]
    [0.0, -0.5, 0.0]
    """
    again = len(_again(ids, ngram_tokens))
    return max_penalty * again / (len(ids) - ngram_tokens + 1) if again else 0.0


def repetition(rollouts: Sequence[Rollout], settings: RepetitionSettings) -> list[float | None]:
    """`repetition_value` of what the policy sampled of each."""
    return [repetition_value(r.token_ids[r.sampled], settings.ngram_tokens, settings.max_penalty) for r in rollouts]


def repeated(ids: Int32[np.ndarray, " C"], ngram_tokens: int) -> Bool[np.ndarray, " C"]:
    """Tokens that belong to an n-gram which had been there before; its first occurrence is free.

    >>> repeated(np.array([5, 1, 2, 9, 1, 2, 3], np.int32), 2).astype(int).tolist()
    [0, 0, 0, 0, 1, 1, 0]
    """
    mask = np.zeros(len(ids), dtype=bool)
    for start in _again(ids, ngram_tokens):
        mask[start : start + ngram_tokens] = True
    return mask


def repetition_tokens(rollout: Rollout, ngram_tokens: int = 40, penalty: float = -0.05) -> Float32[np.ndarray, " L"]:
    """The dense form (arXiv 2502.03373): `penalty` on every sampled token of a repeated n-gram, 0 elsewhere.

    The paper gives this stream a discount of its own (gamma 0.99); here nothing is discounted.
    """
    rewards = np.zeros(len(rollout.token_ids), dtype=np.float32)
    rewards[rollout.sampled] = np.where(repeated(rollout.token_ids[rollout.sampled], ngram_tokens), penalty, 0.0)
    return rewards


class RepetitionDenseSettings(Section):
    ngram_tokens: Count = 40
    """Length of a run of tokens that may not come again."""
    penalty: Annotated[float, Field(le=0)] = -0.05
    """Of every token of such a run; 0 or below."""


def repetition_dense(rollout: Rollout, settings: RepetitionDenseSettings) -> Float32[np.ndarray, " L"]:
    """`repetition_tokens` by its settings."""
    return repetition_tokens(rollout, settings.ngram_tokens, settings.penalty)
