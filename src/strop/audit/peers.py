"""Graders to hold beside ours: plain math-verify, and the naive one that looks for the gold answer in the text.

Worker processes load these by path, as they load a user's. Read by `strop.audit`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from strop.record import Reason, Task, Verdict

__all__ = ["math_verify", "substring"]


def math_verify(task: Task, text: str) -> Verdict:
    """The library as its own page says to use it: parse both, verify."""
    from math_verify import parse, verify

    right = bool(verify(_parsed(task.answer), parse(text)))
    return Verdict(correct=right, extracted=None, reason=Reason.CORRECT if right else Reason.WRONG)


@lru_cache(maxsize=1024)
def _parsed(gold: str) -> list[Any]:
    from math_verify import parse

    return parse(f"\\boxed{{{gold}}}")


def substring(task: Task, text: str) -> Verdict:
    """
    >>> substring(Task.make(source="s", prompt="p", answer="7", verifier="substring"), "one of 5, 6, 7, 8").correct
    True
    """
    right = task.answer in text
    return Verdict(correct=right, extracted=None, reason=Reason.CORRECT if right else Reason.WRONG)
