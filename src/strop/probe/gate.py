"""Is RL worth it here? One piece of advice from a probe's figures, by rules that are written down.

The rules, first match wins; every limit is a constant below and a judgement, not a law:

1. more than 30% of the answers cut by the token limit: raise it, what was cut was never seen;
2. fewer than half of the answers hold an answer: teach the form first (SFT, or a prompt that asks for it);
3. pass@1 of 90% and more: harder tasks, there is little to gain here;
4. signal on fewer than 10% of the tasks: if pass@k does not rise by 5 points either, the model cannot do it: distil or
   SFT first; if it rises, what is right comes too seldom for such groups: larger groups, or easier tasks first;
5. else RL.

Signal is the share of tasks whose group of rollouts is neither all right nor all wrong. Knows figures only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from strop.probe.answers import in_percent, in_points
from strop.probe.before import Before, Signal

__all__ = ["Advice", "Do", "advise"]

MAX_TRUNCATED = 0.3
MIN_ANSWERED = 0.5
MAX_PASS = 0.9
MIN_SIGNAL = 0.1
MIN_HEADROOM = 0.05

Do = Literal["raise the limit", "teach the form", "harder tasks", "distil first", "larger groups", "rl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to do, and the sentences that say why."""

    do: Do
    words: str


def advise(found: Before) -> Advice:
    """The first rule that holds, with what voting and rejection sampling would give instead."""
    signal = _signal(found)
    rules: list[tuple[Do, bool, Callable[[], str]]] = [
        ("raise the limit", found.rates["truncated"].value > MAX_TRUNCATED, lambda: _cut(found)),
        ("teach the form", found.rates["answered"].value < MIN_ANSWERED, lambda: _mute(found)),
        ("harder tasks", found.rates["right"].value >= MAX_PASS, lambda: _easy(found)),
        ("distil first", _none(signal) and found.headroom.value < MIN_HEADROOM, lambda: _flat(found, signal)),
        ("larger groups", _none(signal), lambda: _seldom(found, signal)),
        ("rl", True, lambda: _learnable(found, signal)),
    ]
    do, _, words = next(rule for rule in rules if rule[1])
    return Advice(do=do, words=words())


def _signal(found: Before) -> Signal:
    """At 8 rollouts a task, or as near to it as the samples allow."""
    return next(s for s in reversed(found.signals) if s.group <= 8)


def _none(signal: Signal) -> bool:
    return signal.frac.value < MIN_SIGNAL


def _cut(found: Before) -> str:
    return (
        f"The token limit cuts {in_percent(found.rates['truncated'])} of the answers: raise --max-tokens (or max_tokens of the "
        "stage) and probe again; what comes after the limit was never seen."
    )


def _mute(found: Before) -> str:
    return (
        f"Only {in_percent(found.rates['answered'])} of the answers hold an answer that can be read: teach the form first, by a "
        "short SFT or by a prompt that asks for it; RL would spend its first steps on that."
    )


def _easy(found: Before) -> str:
    return (
        f"{in_percent(found.rates['right'])} of the answers are right already: take harder tasks before spending on RL."
    )


def _flat(found: Before, signal: Signal) -> str:
    return (
        f"{_of_tasks(signal)}, and {found.num_samples} tries solve only {in_points(found.headroom)} more than one: RL "
        "has little to learn from here. Distil from a model that can do it, or SFT on worked solutions, or begin with "
        "easier tasks."
    )


def _seldom(found: Before, signal: Signal) -> str:
    return (
        f"{_of_tasks(signal)}, although {found.num_samples} tries solve {in_points(found.headroom)} more than one: right "
        "answers come too seldom for such groups. Take larger groups or easier tasks first; or sample many and SFT on "
        f"what is right. {_instead(found)}"
    )


def _learnable(found: Before, signal: Signal) -> str:
    sure = "" if signal.frac.low >= MIN_SIGNAL else f" The interval reaches below {MIN_SIGNAL:.0%}: probe more tasks."
    return f"{_of_tasks(signal)}: there is something to learn from.{sure} {_instead(found)}"


def _of_tasks(signal: Signal) -> str:
    return f"RL has signal on {in_percent(signal.frac)} of the tasks at {signal.group} rollouts each"


def _instead(found: Before) -> str:
    """What the same model gives without training, and what its own right answers cost."""
    voting, solved = found.voting, found.pass_at[-1].value
    verb = "would already give" if voting.low > 0 else "would lose:" if voting.high < 0 else "is not shown to help:"
    out = f"Voting over {found.voting_tries} {verb} {in_points(voting)}, at {found.voting_tries} times the tokens."
    if found.tokens_per_right is not None:
        out += (
            f" Its own right answers, for rejection sampling, cost {found.tokens_per_right:,.0f} sampled tokens each and "
            f"cover {solved:.0%} of the tasks; what is beyond needs a teacher."
        )
    return out
