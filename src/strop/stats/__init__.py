"""Is the gain real? Intervals, paired tests, pass@k and its curve, majority, power, corrections, trends.

Knows arrays of scores per task, and one number a step. Does not know models, rollouts or stages. Read by `evaluate`,
`compare`, the report, the alarms and the schedules.

The unit is the task: two models answer the same tasks, so their difference is taken task by task, and it is tasks that
are resampled. Everything random takes a seed and gives the same numbers again.
"""

from strop.stats.estimates import Estimate, average, difference, mean, price, ratio, share, widened
from strop.stats.intervals import bootstrap, hierarchical_bootstrap, wilson
from strop.stats.many import BestOf, best_of, chance_of_best, holm, sidak
from strop.stats.paired import Comparison, compare, mcnemar, paired_shares, permutation_test
from strop.stats.planning import Spread, detectable, guess, power, samples_needed, spread, tasks_needed
from strop.stats.samples import (
    Crossover,
    PassAt,
    crossover,
    doubling,
    majority_at_k,
    majority_curve,
    pass_at_k,
    pass_curve,
)
from strop.stats.trends import trend
from strop.stats.words import best_of_in_words, crossover_in_words, one_answer_for_all, verdict_in_words, would_show

__all__ = [
    "BestOf",
    "Comparison",
    "Crossover",
    "Estimate",
    "PassAt",
    "Spread",
    "average",
    "best_of",
    "best_of_in_words",
    "bootstrap",
    "chance_of_best",
    "compare",
    "crossover",
    "crossover_in_words",
    "detectable",
    "difference",
    "doubling",
    "guess",
    "hierarchical_bootstrap",
    "holm",
    "majority_at_k",
    "majority_curve",
    "mcnemar",
    "mean",
    "one_answer_for_all",
    "paired_shares",
    "pass_at_k",
    "pass_curve",
    "permutation_test",
    "power",
    "price",
    "ratio",
    "samples_needed",
    "share",
    "sidak",
    "spread",
    "tasks_needed",
    "trend",
    "verdict_in_words",
    "widened",
    "wilson",
    "would_show",
]
