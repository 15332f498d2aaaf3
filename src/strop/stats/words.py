"""What the figures allow one to say, in a sentence.

Knows finished comparisons, shares and spreads; what it computes itself is only what a sentence rests on. Read by
`evaluate`, `compare` and the report.
"""

from __future__ import annotations

from strop.stats.intervals import wilson
from strop.stats.many import best_of, chance_of_best
from strop.stats.paired import Comparison
from strop.stats.planning import POWER, Spread, power, samples_needed, tasks_needed
from strop.stats.samples import Crossover

__all__ = ["best_of_in_words", "crossover_in_words", "one_answer_for_all", "verdict_in_words", "would_show"]

FEW = 20  # tasks; below, nothing is said about answers that coincide


def verdict_in_words(
    comparison: Comparison,
    a: str = "before",
    b: str = "after",
    *,
    p_adjusted: float | None = None,
    num_seeds: int | None = None,
    needed: str | None = None,
) -> str:
    """One sentence: the difference in points, and what the interval allows one to say.

    A difference is claimed as `Comparison.claim` says. `needed` (from `would_show`) is said where none is claimed.

    >>> verdict_in_words(Comparison(delta=0.125, ci95=(0.082, 0.168), p=0.00002, num_tasks=512), "sft", "rl", num_seeds=8)
    'rl beats sft by 12.5 points (95% interval 8.2 to 16.8), p < 0.001, 512 tasks, 8 seeds.'
    >>> verdict_in_words(Comparison(delta=-0.004, ci95=(-0.03, 0.022), p=0.81, num_tasks=512), "rl", "shuffled")
    'No difference could be shown between rl and shuffled: -0.4 points (95% interval -3.0 to 2.2), p = 0.81, 512 tasks.'
    """
    low, high = comparison.ci95
    shown = comparison.claim(p_adjusted)
    claim = {
        "gain": f"{b} beats {a} by {_points(comparison.delta, low, high)}",
        "loss": f"{b} is worse than {a} by {_points(-comparison.delta, -high, -low)}",
        "none": f"No difference could be shown between {a} and {b}: {_points(comparison.delta, low, high, sign='+')}",
    }[shown]
    then = f"; {needed}." if shown == "none" and needed is not None else "."
    adjusted = f" ({_p(p_adjusted)} corrected)" if p_adjusted is not None else ""
    seeds = f", {num_seeds} seeds" if num_seeds is not None else ""
    return f"{claim}, {_p(comparison.p)}{adjusted}, {comparison.num_tasks} tasks{seeds}{then}"


def would_show(spread: Spread, num_tasks: int, num_samples: int, gain: float = 0.02) -> str | None:
    """What would show a gain of this size (a share) with power 80%, given the spread that was seen; None where none was.

    >>> would_show(Spread(between=0.01, within=0.3), 300, 4)
    'about 16,000 more samples from each would show 2 points'
    >>> would_show(Spread(between=0.2, within=0.0), 512, 1)
    'about 3,400 more tasks would show 2 points'
    >>> would_show(Spread(between=0.01, within=0.3), 300, 64)
    '2 points would have shown (power 82%)'
    """
    if not spread.between and not spread.within:
        return None
    points = f"{100 * gain:g} points"
    now = power(gain, num_tasks, num_samples, spread=spread)
    if now >= POWER:
        return f"{points} would have shown (power {100 * now:.0f}%)"
    samples = samples_needed(gain, num_tasks, spread=spread)
    if samples is not None:
        return f"about {_round((samples - num_samples) * num_tasks)} more samples from each would show {points}"
    return f"about {_round(tasks_needed(gain, num_samples, spread=spread) - num_tasks)} more tasks would show {points}"


def best_of_in_words(num_correct: int, num_tasks: int, acc: float, num_tries: int) -> str:
    """What a reader should know of a score that is the best of several, had all tries the accuracy `acc`.

    >>> best_of_in_words(14, 30, 0.287, 21)
    'At an accuracy of 28.7% the best of 21 tries reaches 13/30 by chance (median; 95 of 100 times 11 to 17), and 14/30 or more in 44.7% of cases.'
    """
    best = best_of(acc, num_tasks, num_tries)
    chance = chance_of_best(num_correct, num_tasks, acc, num_tries)
    return (
        f"At an accuracy of {100 * acc:.1f}% the best of {num_tries} tries reaches {best.median:,}/{num_tasks:,} by chance "
        f"(median; 95 of 100 times {best.low:,} to {best.high:,}), and {num_correct:,}/{num_tasks:,} or more in "
        f"{100 * chance:.1f}% of cases."
    )


def crossover_in_words(found: Crossover, most: int, base: str, trained: str, *, ahead: bool) -> str:
    """Whether and when the base solves as many tasks as the trained model; `ahead`: the trained one is so at one sample.

    >>> crossover_in_words(Crossover(k=5, low=4, high=None, never_frac=0.1), 8, "base", "rl", ahead=True)
    'At 5 tries base catches up with rl (95% interval 4 to beyond 8; in 10% of resamples of the tasks it never does): these samples do not settle whether it does.'
    """
    if not ahead:
        return f"At one try {trained} is not ahead of {base}: there is nothing to cross."
    never = f"in {100 * found.never_frac:.0f}% of resamples of the tasks it never does"
    if found.k is None:
        return f"Within {most} tries {base} does not catch up with {trained} ({never})."
    low, high = (f"beyond {most}" if bound is None else str(bound) for bound in (found.low, found.high))
    said = f"At {found.k} tries {base} catches up with {trained} (95% interval {low} to {high}"
    return f"{said})." if found.high is not None else f"{said}; {never}): these samples do not settle whether it does."


def one_answer_for_all(acc: float, num_tasks: int, constant_acc: float, commonest_frac: float) -> str | None:
    """What to hold against an accuracy that the same answer to every task would reach too; None where nothing is.

    `constant_acc` is the share of tasks whose right answer is the commonest one, `commonest_frac` the share of answers
    given that are the commonest of them. Silent below FEW tasks, where the accuracy is shown to be higher, and where no
    constant is worth much (below 0.1) and none is given. A mix of two constants is not found out.

    >>> one_answer_for_all(0.1875, 256, 0.1875, 1.0)
    '100.0% of the answers are one and the same; the commonest right answer, given to all, would score 18.8%.'
    >>> one_answer_for_all(0.3, 256, 0.27, 0.54)
    'Not shown to be better than one answer for all: the commonest right answer, given to all, would score 27.0%.'
    >>> [one_answer_for_all(*x) for x in ((0.97, 1000, 0.85, 0.905), (0.01, 256, 0.02, 0.03), (0.5, 19, 0.5, 1.0))]
    [None, None, None]
    """
    if num_tasks < FEW or wilson(round(acc * num_tasks), num_tasks)[0] > constant_acc:
        return None
    would = f"the commonest right answer, given to all, would score {100 * constant_acc:.1f}%"
    if commonest_frac > 0.9:
        return f"{100 * commonest_frac:.1f}% of the answers are one and the same; {would}."
    return f"Not shown to be better than one answer for all: {would}." if constant_acc >= 0.1 else None


def _points(delta: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * delta:{sign}.1f} points (95% interval {100 * low:.1f} to {100 * high:.1f})"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _round(number: int) -> str:
    """Two digits, since it is a guess.

    >>> _round(3127), _round(86)
    ('3,100', '86')
    """
    digits = max(0, len(str(number)) - 2)
    return f"{round(number, -digits):,}"
