"""Reward functions as users write them, good and bad, for the audit to load by path."""

from __future__ import annotations

import re
import time
from typing import Any


def last_number(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    numbers = [re.findall(r"-?\d+", completion) for completion in completions]
    return [2.0 if found[-1:] == [gold] else -1.0 for found, gold in zip(numbers, answer, strict=True)]


def tagged(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> dict[str, float]:
    match = re.search("<answer>(.*)</answer>", solution_str, re.DOTALL)
    return {"score": float(match is not None and match[1] == ground_truth)}


def contains(completions: list[list[dict[str, str]]], answer: list[str], **_: Any) -> list[float]:
    """Takes lists of messages, as TRL gives them for conversations."""
    return [float(gold in messages[0]["content"]) for messages, gold in zip(completions, answer, strict=True)]


def hangs(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    if any("9**9" in completion for completion in completions):
        time.sleep(1000)
    return [float(gold in completion) for completion, gold in zip(completions, answer, strict=True)]


def raises(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [
        1 / ("\x00" not in completion) * (gold in completion)
        for completion, gold in zip(completions, answer, strict=True)
    ]


def always_raises(completions: list[str], **_: Any) -> list[float]:
    raise ValueError("not today")


def length(completions: list[str], **_: Any) -> list[float]:
    return [-float(len(completion)) for completion in completions]
