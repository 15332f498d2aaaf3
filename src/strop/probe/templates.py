"""One model under several chat templates or system prompts: which one lets it answer?

Knows answers to the same tasks; that they come from one model is the caller's word. A template that does not fit a model
hides what it can do, and RL then spends its steps on finding it again (Dr. GRPO, arXiv 2503.20783). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strop import stats
from strop.probe.answers import MEASURES, by_task
from strop.record import Rollout, UserError

__all__ = ["Row", "measure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One evaluation: its rates (keys of MEASURES), and what they have over the first evaluation's, task by task."""

    name: str
    num_samples: int
    rates: dict[str, stats.Estimate]
    against_first: dict[str, stats.Estimate]  # empty for the first itself


def measure(evaluations: Mapping[str, Sequence[Rollout]], *, seed: int = 0) -> list[Row]:
    """A row for each evaluation, in order. Raises UserError where they did not answer the same tasks."""
    answers = {name: by_task(rollouts) for name, rollouts in evaluations.items()}
    rates = {name: _rates(samples) for name, samples in answers.items()}
    first = next(iter(rates))
    for name in rates:
        if rates[name].keys() != rates[first].keys():
            shared = len(rates[name].keys() & rates[first].keys())
            raise UserError(
                f"{first} and {name} answered different tasks ({len(rates[first])} and {len(rates[name])}, {shared} "
                "shared): evaluate both on the same ones"
            )
    tables = {name: np.array([by_id[i] for i in rates[first]]) for name, by_id in rates.items()}
    return [
        Row(
            name=name, num_samples=len(answers[name][0]),
            rates={m: stats.share(table[:, i], seed=seed) for i, m in enumerate(MEASURES)},
            against_first={} if name == first else {
                m: stats.difference(table[:, i] - tables[first][:, i], seed=seed) for i, m in enumerate(MEASURES)
            },
        )
        for name, table in tables.items()
    ]  # fmt: skip


def _rates(answers: Sequence[Sequence[Rollout]]) -> dict[str, list[float]]:
    """For each task the share of its samples that each of MEASURES holds for."""
    return {s[0].task.id: [float(np.mean([is_so(r) for r in s])) for is_so in MEASURES.values()] for s in answers}
