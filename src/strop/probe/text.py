r"""What words give away: reflection by two published keyword lists, four behaviours by patterns, changed answers.

Knows text, and through a `verify` callable whether a value is right. Words are a poor witness: "wait" is no proof of
thought, and thought needs no "wait". The keyword lists are the ones the papers counted with; the patterns of behaviours
are ours and approximate, a judge counts better (`judge`). Read by `before` and `judge`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strop.record import Rollout, Task, Verdict
from strop.rewards import extract

__all__ = ["BEHAVIOURS", "REFLECTION", "Corrections", "Verify", "behaviours", "corrections", "num_keywords", "reflects"]

Verify = Callable[[Sequence[tuple[Task, str]]], list[Verdict]]  # `Scorer.verify`

# Looked for in the lower-cased text, anywhere in a word.
REFLECTION: dict[str, tuple[str, ...]] = {
    "oat-zero": (  # sail-sg/oat-zero, analysis/eval_self_reflect.py at e37c498; another revision asks fewer, by model
        "recheck", "rethink", "reevaluate", "re-evaluate", "reevaluation", "re-examine", "reexamine", "try again",
        "check again", "think again", "go over the steps",
    ),
    "dr-grpo": (  # sail-sg/understand-r1-zero, analysis/keyword_count.py at 88d5116
        "recheck", "rethink", "reassess", "reevaluate", "re-evaluate", "reevaluation", "re-examine", "reexamine",
        "reconsider", "reanalyze", "double-check", "check again", "think again", "verify again", "go over the steps",
    ),
}  # fmt: skip

# The four of "Cognitive Behaviors that Enable Self-Improving Reasoners" (arXiv 2503.01307), as far as patterns go.
BEHAVIOURS: dict[str, re.Pattern[str]] = {
    "verification": re.compile(
        r"\b(?:let(?:'s| us| me) (?:check|verify)|verify|double-check|to check|check(?:ing)? (?:that|this|if|whether)"
        r"|(?:plug|substitut)\w* (?:\S{1,20} ){0,4}back)\b", re.I,
    ),
    "backtracking": re.compile(
        r"\b(?:wait\b|actually,|try (?:again|another|a different)|go(?:ing)? back|start(?:ing)? over|made (?:a mistake|an error)"
        r"|(?:that|this) (?:is not|isn't|was not|wasn't) (?:right|correct)|(?:that|this|which) (?:does not|doesn't|won't) work)",
        re.I,
    ),
    "subgoals": re.compile(
        r"\b(?:step \d|first,? (?:we|i|let)|(?:next|then),? (?:we|i) (?:need|must|have to|will)|break (?:\w{1,20} ){0,3}(?:into|down)"
        r"|subproblem|sub-problem|subgoal)", re.I,
    ),
    "backward chaining": re.compile(
        r"\b(?:work(?:ing)? backwards?|backwards? from|start(?:ing)? (?:from|with) the (?:target|goal|answer|end|result)"
        r"|to (?:get|reach|obtain|make) (?:\S{1,20} ){1,3}?(?:we|i) (?:need|must|could|would))\b", re.I,
    ),
}  # fmt: skip


def reflects(text: str, keywords: Sequence[str]) -> bool:
    """Does one of the keywords occur?

    >>> reflects("Let me Re-Examine this.", REFLECTION["oat-zero"]), reflects("I reconsider.", REFLECTION["oat-zero"])
    (True, False)
    """
    return num_keywords(text, keywords) > 0


def num_keywords(text: str, keywords: Sequence[str]) -> int:
    """How often they occur.

    >>> num_keywords("Recheck. Let me recheck, or rethink.", REFLECTION["oat-zero"])
    3
    """
    lowered = text.lower()
    return sum(lowered.count(word) for word in keywords)


def behaviours(text: str) -> dict[str, int]:
    """How often each pattern of BEHAVIOURS occurs.

    >>> behaviours("First, we need 24. Let's check: 6 * 4 = 24. Wait, working backwards from 24 ...")
    {'verification': 1, 'backtracking': 1, 'subgoals': 1, 'backward chaining': 1}
    """
    return {name: sum(1 for _ in pattern.finditer(text)) for name, pattern in BEHAVIOURS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """Answers that commit to a value and end with another one: what became of them."""

    num_answers: int  # that state a value at all
    helped: int  # wrong -> right
    hurt: int  # right -> wrong
    neither: int  # wrong -> another wrong one


def corrections(rollouts: Sequence[Rollout], verify: Verify) -> Corrections:
    """Compares the first value that an answer states with its last (`extract.stated`), where they differ in writing.

    The last one's verdict is the recorded one; the first is judged by `verify`. Two right values are one value written
    twice. Answers to the parts of a problem look like changes too: read some before believing a rate.
    """
    stated = [(r, extract.stated(r.text)) for r in rollouts if r.scorable]
    changed = [(r, values[0]) for r, values in stated if len({_plain(v) for v in values[:1] + values[-1:]}) == 2]
    first = verify([(r.task, f"\\boxed{{{value}}}") for r, value in changed]) if changed else []
    outcomes = [(v.correct, r.correct) for v, (r, _) in zip(first, changed, strict=True) if v.scorable]
    return Corrections(
        num_answers=sum(1 for _, values in stated if values),
        helped=outcomes.count((False, True)), hurt=outcomes.count((True, False)), neither=outcomes.count((False, False)),
    )  # fmt: skip


def _plain(value: str) -> str:
    return " ".join(value.casefold().split())
