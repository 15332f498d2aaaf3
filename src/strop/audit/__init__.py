r"""Is a grader to be trusted? What `strop audit-rewards` does, to ours, to a peer's or to a user's own reward function.

Two audits. `run` puts the grader through `suite`, a table of completions that are right, wrong, or made to fool, hang
or break a grader; `golds.run` grades the answers of data files against themselves and against what `rewrite` makes of
them. Every grader runs in processes that are killed at a deadline. A reward is paid where its value is nearer to that
of a plain right answer than to that of a plain wrong one, so that any scale will do; what pays both alike is no grader.

    suite      the cases, a table              golds  the audit of data files
    rewrite    which gold answer may be written otherwise     spellings  how, a function for each sort
    graders    who can be audited, and how     peers  graders to hold beside ours
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

from strop.audit.graders import Grader, Judged, judge, opened
from strop.audit.suite import CASES, PROMPT, Case
from strop.record import Task

__all__ = ["Finding", "Report", "as_json", "lines", "run"]

Kind = Literal["false accept", "false reject", "time-out", "error"]
SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A case that a grader got wrong, or did not judge."""

    case: Case
    kind: Kind
    said: str  # what the grader found or what happened to it; "" where it does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the suite found out about one grader."""

    reward: str
    form: str  # in which it was given the answers
    findings: tuple[Finding, ...]
    seconds: float

    def count(self, kind: Kind) -> int:
        return sum(finding.kind == kind for finding in self.findings)


def run(names: Sequence[str], *, workers: int = 2, timeout_s: float = 5.0) -> list[Report]:
    """Each grader put through the suite, one after the other.

    A name is one of ours (`accuracy`, `number`), a peer's (`math-verify`, `substring`), or a reward function's path, as
    recipes have it: `file.py:function` or `package.module.function`. Raises UserError for a name that is none, and
    for a reward that pays a right answer no more than a wrong one.
    """
    return [_audited(name, workers, timeout_s) for name in names]


def _audited(name: str, workers: int, timeout_s: float) -> Report:
    with opened(name, workers, timeout_s) as grader:
        started = perf_counter()
        judged = judge(grader, [(_task(case, grader), case.rendered(grader.form)) for case in CASES])
        seconds = perf_counter() - started
    findings = [
        Finding(case=case, kind=kind, said=found.said)
        for case, found in zip(CASES, judged, strict=True)
        if (kind := _kind(case, found)) is not None
    ]
    return Report(reward=name, form=grader.form, findings=tuple(findings), seconds=seconds)


def _task(case: Case, grader: Grader) -> Task:
    return grader.task(PROMPT, case.gold)


def _kind(case: Case, found: Judged) -> Kind | None:
    if found.failed is not None:
        return found.failed
    if found.paid == case.paid:
        return None
    return "false accept" if found.paid else "false reject"


def naive_frac() -> float:
    """The share of the cases that earn nothing which a grader that looks for the gold answer in the text would pay."""
    unpaid = [case for case in CASES if not case.paid]
    return sum(case.gold in case.completion for case in unpaid) / len(unpaid)


# --- for a person -------------------------------------------------------------------------------------------------------

KINDS: Mapping[Kind, str] = {
    "false accept": "false_accepts", "false reject": "false_rejects", "time-out": "timeouts", "error": "errors",
}  # fmt: skip


def lines(reports: Sequence[Report]) -> list[str]:
    """A table of graders, then each case that one of them got wrong."""
    width = max(len(report.reward) for report in reports)
    num_paid = sum(case.paid for case in CASES)
    out = [
        f"{len(CASES)} cases: {num_paid} right, {len(CASES) - num_paid} not, of which a grader that looks for the gold "
        f"answer in the text would pay {naive_frac():.0%}.",
        "",
        f"{'reward':<{width}}  {'false accepts':>13}  {'false rejects':>13}  {'time-outs':>9}  {'errors':>6}  {'seconds':>7}",
    ]
    for report in reports:
        counts = [report.count(kind) for kind in KINDS]
        out.append(
            f"{report.reward:<{width}}  {counts[0]:>13}  {counts[1]:>13}  {counts[2]:>9}  {counts[3]:>6}  {report.seconds:>7.1f}"
        )
    for report in reports:
        if report.findings:
            out += ["", f"{report.reward}, given answers as {report.form}:"]
            findings = sorted(report.findings, key=lambda finding: list(KINDS).index(finding.kind))
            out += [_finding_line(finding, report.form) for finding in findings]
    return out


def _finding_line(finding: Finding, form: str) -> str:
    case = finding.case
    said = f"; it said: {shown(finding.said)}" if finding.said else ""
    return (
        f"  {finding.kind}: {case.name} ({case.why}); gold {case.gold}, completion {shown(case.rendered(form))}{said}"
    )


def shown(text: str) -> str:
    r"""A text on one line, cut, with control characters and half characters made visible.

    >>> shown("a\n\ud800b")
    'a\\n\\ud800b'
    """
    cut = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}... ({len(text):,} characters)"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def as_json(reports: Sequence[Report]) -> dict[str, Any]:
    """`num_cases`, `naive_frac` and a list of graders with counts and findings."""
    return {
        "num_cases": len(CASES),
        "naive_frac": naive_frac(),
        "rewards": [
            {"reward": report.reward, "form": report.form, "seconds": report.seconds}
            | {key: report.count(kind) for kind, key in KINDS.items()}
            | {"findings": [_finding_json(finding, report.form) for finding in report.findings]}
            for report in reports
        ],
    }


def _finding_json(finding: Finding, form: str) -> dict[str, str]:
    case = finding.case
    return {
        "case": case.name, "kind": finding.kind, "why": case.why, "gold": case.gold,
        "completion": shown(case.rendered(form)), "said": shown(finding.said),
    }  # fmt: skip
