"""Who can be audited and how each is asked: our verifiers, peers, and reward functions by path.

Knows names, processes, the scale of a reward and the form in which it wants its answers. Read by both audits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from strop.config import nearest
from strop.record import Reason, Task, UserError, Verdict
from strop.rewards import Scorer
from strop.rewards.adapters import DENSE, OWN, load_function

__all__ = ["FORMS", "OURS", "PEERS", "Grader", "Judged", "judge", "opened"]

OURS = {"accuracy": "math", "math": "math", "number": "number"}  # name: verifier
PEERS = {"math-verify": "strop.audit.peers.math_verify", "substring": "strop.audit.peers.substring"}
FORMS = (r"\boxed{…}", "<answer>…</answer>", "#### …", "…")
RIGHT, WRONG = "42", "17"
UNJUDGED: dict[Reason, Literal["time-out", "error"]] = {Reason.TIMEOUT: "time-out", Reason.VERIFIER_ERROR: "error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grader:
    """An opened grader: its processes, and what its values mean."""

    name: str
    scorer: Scorer
    verifier: str
    by_value: bool  # a reward function, whose value stands in the verdict; else a verifier
    form: str = FORMS[0]
    threshold: float = 0.5

    def task(self, prompt: str, gold: str) -> Task:
        """A task that holds the gold answer in every column in which reward functions look for it."""
        columns = {"ground_truth": gold, "label": gold, "target": gold, "solution": f"\\boxed{{{gold}}}"}
        meta = columns if self.by_value else {}
        return Task.make(source="audit", prompt=prompt, answer=gold, verifier=self.verifier, meta=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a grader made of one completion."""

    paid: bool
    value: float | None
    failed: Literal["time-out", "error"] | None
    said: str


def judge(grader: Grader, pairs: Sequence[tuple[Task, str]]) -> list[Judged]:
    """What the grader makes of each (task, completion), in order. One that hangs or dies is killed and `failed`."""
    verdicts = grader.scorer.verify(pairs)
    return [_judged(grader, *pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]


def _judged(grader: Grader, task: Task, text: str, verdict: Verdict) -> Judged:
    if (failed := UNJUDGED.get(verdict.reason)) is not None:
        said = grader.scorer.failure(task, text) if failed == "error" else ""
        return Judged(paid=False, value=None, failed=failed, said=said)
    if not grader.by_value:
        said = verdict.reason.value + (f", {verdict.extracted}" if verdict.extracted else "")
        return Judged(paid=verdict.correct, value=float(verdict.correct), failed=None, said=said)
    value = None if verdict.extracted is None else float(verdict.extracted)
    return Judged(paid=value is not None and value > grader.threshold, value=value, failed=None, said=f"{value}")


@contextmanager
def opened(name: str, workers: int, timeout_s: float) -> Iterator[Grader]:
    """The grader of that name, its processes started. Raises UserError for one that cannot be audited, with the reason."""
    if name in OURS:
        with Scorer(workers, timeout_s) as scorer:
            yield Grader(name=name, scorer=scorer, verifier=OURS[name], by_value=False)
    elif name in PEERS:
        with Scorer(workers, timeout_s, verifiers={name: PEERS[name]}) as scorer:
            yield Grader(name=name, scorer=scorer, verifier=name, by_value=False)
    else:
        _check_name(name)
        with Scorer(workers, timeout_s, verifiers={name: name}) as scorer:
            yield _calibrated(Grader(name=name, scorer=scorer, verifier=name, by_value=True))


def _check_name(name: str) -> None:
    if name in OWN or name in DENSE:
        raise UserError(
            f"{name} shapes a reward (length, form, repetition, language) and judges no answer; audit "
            f"{', '.join((*OURS, *PEERS))} or a function of yours"
        )
    if "." not in name:
        raise UserError(
            f"there is no grader {name!r}{nearest(name, (*OURS, *PEERS))}; or write file.py:function, package.module.function"
        )
    load_function(name)


def _calibrated(grader: Grader) -> Grader:
    """With the first form in which a right answer earns more than a wrong one, and the value half way between."""
    task = grader.task(f"What is {RIGHT}?", RIGHT)
    for form in FORMS:
        right, wrong = judge(grader, [(task, f"So it is {form.replace('…', answer)}") for answer in (RIGHT, WRONG)])
        if right.failed:
            raise UserError(
                f"{grader.name} cannot be audited, it fails on a plain right answer: {right.said or 'time-out'}"
            )
        if right.value is not None and right.value > (low := 0.0 if wrong.value is None else wrong.value):
            return replace(grader, form=form, threshold=(right.value + low) / 2)
    raise UserError(
        f"{grader.name} is no grader: it pays the right answer {RIGHT} no more than the wrong one {WRONG}, whether as "
        f"{', '.join(FORMS[:-1])} or bare; audit what judges answers"
    )
