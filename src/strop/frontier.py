"""What one correct answer costs: tokens, seconds, joules and dollars, over models and over ways to answer; and who is beaten by whom.

A point is one finished evaluation answering in one way: greedily, with one sample, or by the vote of k. On one set of tasks, which
all must have answered. Knows run directories and their recorded costs; how answers are compared for being better is the
business of `compare`. Joules of unlike kinds stand apart, and no sentence is made of those that nobody measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from strop import compare, costs, stats
from strop.compare import Evaluation
from strop.config import load_recipe
from strop.energy import KINDS
from strop.metrics import groups_of, vote
from strop.record import Rollout, UserError, read_rollouts
from strop.run import Run
from strop.stats import Estimate, doubling

__all__ = ["UNITS", "Point", "as_json", "lines", "run"]

MEASURED = ("counter",)
UNITS = {"tokens": "tokens", "seconds": "s", "usd": "usd"} | {f"joules ({kind})": "J" for kind in KINDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One way to answer one set of tasks."""

    evaluation: str
    way: str  # "greedy", "one sample", "vote of 4"
    tasks: str
    num_tasks: int
    accuracy: Estimate
    per_answer: dict[str, float]  # what -> of one answer (all its votes together), the mean over the tasks
    per_correct: dict[str, Estimate]  # what -> for one correct answer
    beaten_by: dict[str, str]  # what -> who is no less accurate and cheaper for one answer; absent where nobody is


def run(*names: str) -> list[Point]:
    """The points of the evaluations (RUN or RUN:STAGE), by task set and in the order given.

    Raises UserError where they share no task set, or one of a name holds other tasks.
    """
    evaluations = [compare.evaluation(name) for name in names]
    shared = [name for name in evaluations[0].sets if all(name in e.sets for e in evaluations)]
    if not shared:
        raise UserError(f"{names[0]} and {names[-1]} have no task set in common, so nothing they cost can be compared")
    for tasks in shared:
        for other in evaluations[1:]:
            compare.check_same_tasks(evaluations[0], other, tasks)
    points = [p for tasks in shared for e in evaluations for p in _points(e, tasks)]
    return [_against(p, [q for q in points if q.tasks == p.tasks]) for p in points]


def _points(evaluation: Evaluation, tasks: str) -> Iterator[Point]:
    ids, passes = evaluation.sets[tasks], _passes(evaluation)
    name = f"{evaluation.run_dir}:{evaluation.stage}"
    for kind, a_token in passes.items():
        rollouts = read_rollouts(evaluation.run_dir / "rollouts" / evaluation.stage / f"{kind}.parquet")
        own = list({(r.task.id, r.sample): r for r in rollouts if r.task.id in ids}.values())
        groups = sorted(groups_of(own), key=lambda group: group[0].task.id)  # the same resamples for all
        for way, k, right_P in _ways(kind, groups):
            tokens_P = np.array([k * np.mean([r.num_sampled for r in group]) for group in groups])
            yield Point(
                evaluation=name, way=way, tasks=tasks, num_tasks=len(groups), accuracy=stats.share(right_P), beaten_by={},
                per_answer={what: float(tokens_P.mean()) * each for what, each in a_token.items()},
                per_correct={what: stats.price(each * tokens_P, right_P) for what, each in a_token.items()},
            )  # fmt: skip


def _passes(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Of each pass, what one sampled token cost on average, over the starts that came to an end or were stopped: one that was
    killed left neither its time nor the tokens that it took."""
    log = Run.read(evaluation.run_dir).stage(evaluation.stage)
    prices, found = load_recipe(evaluation.run_dir / "recipe.yaml").costs, {}
    for kind in compare.PASSES.values():
        rows = [row for row in log.rows("pass") if row["pass"] == kind]
        if not rows:
            continue
        if all("num_tokens_sampled" in row for row in rows):
            num_tokens = sum(row["num_tokens_sampled"] for row in rows)
        else:  # written by an earlier Strop
            num_tokens = sum(r.num_sampled for r in log.load_rollouts(kind) or [])
        metered = [k for k in KINDS if all(f"{k}_j" in row for row in rows)]  # else some tokens would cost none
        joules = {k: sum(row[f"{k}_j"] or 0.0 for row in rows) for k in metered}
        seconds = sum(row["eval_s"] for row in rows)
        sources = {k: {"kind": k, "joules": j} for k, j in joules.items()}
        usd = costs.spent({"wall_s": seconds, "energy": sources}, prices).usd
        whole = {"tokens": float(num_tokens), "seconds": seconds} | ({} if usd is None else {"usd": usd})
        whole |= {f"joules ({k})": j for k, j in joules.items()}
        found[kind] = {what: amount / max(1, num_tokens) for what, amount in whole.items()}
    return found


def _ways(kind: str, groups: Sequence[Sequence[Rollout]]) -> Iterator[tuple[str, int, np.ndarray]]:
    """Name, answers that are sampled, and how often each task is then right."""
    right = [[r.correct for r in group] for group in groups]
    if kind == "greedy":
        yield "greedy", 1, np.array([r[0] for r in right], np.float64)
        return
    yield "one sample", 1, np.array([np.mean(r) for r in right])
    said = [[vote(r) for r in group] for group in groups]
    for k in doubling(min(map(len, groups))):
        if k > 2:  # of two votes either may be taken: it is one sample at twice the price
            yield f"vote of {k}", k, stats.majority_at_k(said, right, k)


def _against(point: Point, others: Sequence[Point]) -> Point:
    beaten = {}
    for what, cost in point.per_answer.items():
        better = [
            q
            for q in others
            if what in q.per_answer
            and q.accuracy.value >= point.accuracy.value
            and q.per_answer[what] <= cost
            and (q.accuracy.value > point.accuracy.value or q.per_answer[what] < cost)
        ]
        if better:
            best = max(better, key=lambda q: (q.accuracy.value, -q.per_answer[what]))
            beaten[what] = f"{best.evaluation}, {best.way}"
    return replace(point, beaten_by=beaten)


# --- for a person -----------------------------------------------------------------------------------------------------


def as_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Rows for `--json`; what is infinite is null."""
    rows = [asdict(point) for point in points]
    for row in rows:
        row["per_correct"] = {
            what: {key: value if math.isfinite(value) else None for key, value in estimate.items()}
            for what, estimate in row["per_correct"].items()
        }
    return rows


def lines(points: Sequence[Point]) -> list[str]:
    """A table for each task set, who is on the frontier, and the sentences that follow."""
    out: list[str] = []
    for tasks in dict.fromkeys(p.tasks for p in points):
        own = [p for p in points if p.tasks == tasks]
        whats = [what for what in UNITS if all(what in p.per_correct for p in own)]
        names = [f"{p.evaluation}, {p.way}" for p in own]
        width = max(map(len, names))
        out += [
            f"{tasks}: {own[0].num_tasks} tasks; cost of one correct answer with its 95% interval, * where nobody is cheaper and as accurate"
        ]
        out += [" " * width + f"  {'accuracy':>22}" + "".join(f"  {what:>28}" for what in whats)]
        for name, p in zip(names, own, strict=True):
            cells = [f"{_interval(p.per_correct[what])}{' ' if what in p.beaten_by else '*'}" for what in whats]
            share = Estimate(**{key: 100 * value for key, value in asdict(p.accuracy).items()})
            out += [name.ljust(width) + f"  {_interval(share):>21}%" + "".join(f"  {cell:>28}" for cell in cells)]
        out += _sentences(own, whats)
        guessed = [what for what in whats if what.startswith("joules") and not any(kind in what for kind in MEASURED)]
        if guessed:
            out += [f"{', '.join(guessed)}: not measured, so nothing is said of energy; seconds are what was measured"]
    return out


def _sentences(points: Sequence[Point], whats: Sequence[str]) -> Iterator[str]:
    """The cheapest correct answer beside the most accurate way, for whatever was measured."""
    best = max(points, key=lambda p: p.accuracy.value)
    for what in whats:
        if what == "usd" or (what.startswith("joules") and not any(kind in what for kind in MEASURED)):
            continue
        cheapest = min(points, key=lambda p: p.per_correct[what].value)
        a, b = cheapest.per_correct[what], best.per_correct[what]
        if math.isinf(a.value):  # nobody is right
            continue
        if cheapest is best:
            yield f"{best.evaluation}, {best.way}, is the most accurate and has the cheapest correct answer in {what}"
        elif a.high < b.low:
            yield (
                f"a correct answer of {cheapest.evaluation}, {cheapest.way}, takes {_fraction(a.value / b.value)} of the {what} of "
                f"{best.evaluation}, {best.way}, which is right in {100 * best.accuracy.value:.1f}% against {100 * cheapest.accuracy.value:.1f}%"
            )
        else:
            yield (
                f"in {what} the cheapest correct answer ({cheapest.evaluation}, {cheapest.way}) and that of the most accurate "
                f"({best.evaluation}, {best.way}) are not told apart: their intervals overlap"
            )


def _fraction(share: float) -> str:
    """
    >>> _fraction(0.11), _fraction(0.7)
    ('1/9', '70%')
    """
    return f"1/{1 / share:.0f}" if share < 0.45 else f"{100 * share:.0f}%"


def _interval(estimate: Estimate) -> str:
    return f"{_short(estimate.value)} ({_short(estimate.low)} to {_short(estimate.high)})"


def _short(value: float) -> str:
    return "none" if math.isinf(value) else f"{value:.3g}"
