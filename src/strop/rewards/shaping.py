r"""Rewards about form rather than truth: a box where one is asked for, and no rambling up to the limit.

Knows texts and token counts, never characters as a measure of length. Read by `rewards.adapters` and `rewards.scorer`.
"""

from __future__ import annotations

from strop.rewards import extract

__all__ = ["format_value", "overlong"]

OPEN, CLOSE = "<think>", "</think>"


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
