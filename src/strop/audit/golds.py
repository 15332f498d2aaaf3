"""The answers of data files, each graded against itself, against other ways to write it, and against near misses.

Knows files and counts; how an answer is rewritten is `rewrite`, and it says nothing where no rule applies. Equal answers
of a file count once. What kind of answers a file holds is told from the answers: mathematics, Knights and Knaves
assignments, or words. `accuracy` judges each kind by its own verifier, graders by other names mathematics only.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.audit import rewrite
from strop.audit.graders import Grader, Judged, judge, opened
from strop.record import Task, UserError, seed_of
from strop.tasks import files

__all__ = ["FileReport", "Tally", "as_json", "lines", "run"]

PROMPT = "What is the answer?"
REWRITE: Mapping[str, Callable[[str], list[rewrite.Rewriting]]] = {
    "math": rewrite.mathematics, "knights": rewrite.knights, "exact": rewrite.text,
}  # fmt: skip
CHUNK = 2000  # rewritings handed to a grader at once
SHOWN = 20  # failures listed for each file and grader
NOT_JUDGED = "nothing: no file was judged by all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How one grader did on one file; each pair is (right, all)."""

    reward: str
    itself: tuple[int, int]  # the gold answer in a box
    equal: tuple[int, int]  # rewritings that are equal
    near: tuple[int, int]  # near misses, right where refused
    unjudged: int  # timed out or failed; counted as not right
    failures: tuple[tuple[str, str, str, str], ...]  # rule, gold, completion, what the grader said
    rules: Mapping[str, int]  # failures by rule

    @property
    def right_frac(self) -> float | None:
        """Of all three together; None where there was nothing to judge."""
        right, num = (sum(pair) for pair in zip(self.itself, self.equal, self.near, strict=True))
        return right / num if num else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """One file: its rows, the different answers among them, those that were judged, and how each grader did."""

    file: str
    verifier: str
    num_rows: int
    num_answers: int
    num_judged: int
    tallies: tuple[Tally, ...]


def run(
    data: Path, names: Sequence[str], *, sample: int | None = None, seed: int = 0, workers: int = 2,
    timeout_s: float = 5.0, say: Callable[[str], None],
) -> tuple[list[FileReport], list[str]]:  # fmt: skip
    """Every file of answers below `data` (or that file) judged by each grader, and notes on files left out.

    A grader that is named twice judges once. `sample` answers of each file, drawn by the seed; None for all. Raises UserError where there is no such file.
    """
    found = [data] if data.is_file() else sorted(p for s in files.SUFFIXES for p in data.rglob(f"*{s}"))
    if not found:
        raise UserError(
            f"--data {data}: there is no {', '.join(files.SUFFIXES)} file; give a folder of task files, or one"
        )
    reports, notes = [], []
    with ExitStack() as stack:
        graders = [stack.enter_context(opened(name, workers, timeout_s)) for name in dict.fromkeys(names)]
        for path in found:
            try:
                opened_file = files.open_file(str(path), {}, str(path), lambda _: None)
            except UserError as error:
                notes.append(f"left out: {str(error).partition(': name the right one')[0]}")
                continue
            reports.append(_file(path, opened_file, graders, sample, seed))
            say(f"{path}: {reports[-1].num_judged} answers")
    return reports, notes


def _file(path: Path, found: files.FileTasks, graders: Sequence[Grader], sample: int | None, seed: int) -> FileReport:
    answers = list(dict.fromkeys(task.answer for task in found.tasks))
    verifier, num_dropped = _verifier(answers), sum(map(len, found.dropped.values()))
    judged = answers
    if sample is not None and sample < len(answers):
        judged = random.Random(seed_of("audit", path.name, seed)).sample(answers, sample)
    cases = [(gold, rewriting) for gold in judged for rewriting in (_itself(gold, verifier), *REWRITE[verifier](gold))]
    return FileReport(
        file="/".join(path.parts[-2:]), verifier=verifier, num_rows=len(found.tasks) + num_dropped,
        num_answers=len(answers), num_judged=len(judged),
        tallies=tuple(_tally(g, cases, verifier) for g in graders if verifier == "math" or g.name == "accuracy"),
    )  # fmt: skip


def _verifier(answers: Sequence[str]) -> str:
    """What these answers are: assignments, free text (most without a digit or a command), or mathematics."""
    if all(rewrite.knights(answer) for answer in answers):
        return "knights"
    mathematical = sum(re.search(r"[\d\\]", answer) is not None for answer in answers)
    return "math" if 2 * mathematical >= len(answers) else "exact"


ITSELF = "itself"


def _itself(gold: str, verifier: str) -> rewrite.Rewriting:
    said = gold if verifier == "knights" else f"\\boxed{{{rewrite.core(gold) if verifier == 'math' else gold}}}"
    return rewrite.Rewriting(completion=said, same=True, rule=ITSELF)


def _tally(grader: Grader, cases: Sequence[tuple[str, rewrite.Rewriting]], verifier: str) -> Tally:
    right, num, rules = Counter[str](), Counter[str](), Counter[str]()
    failures: list[tuple[str, str, str, str]] = []
    unjudged = 0
    for start in range(0, len(cases), CHUNK):
        chunk = cases[start : start + CHUNK]
        pairs = [(_task(grader, gold, verifier), rewriting.completion) for gold, rewriting in chunk]
        for (gold, rewriting), found in zip(chunk, judge(grader, pairs), strict=True):
            kind = ITSELF if rewriting.rule == ITSELF else "equal" if rewriting.same else "near"
            num[kind] += 1
            unjudged += found.failed is not None
            if _is_right(rewriting, found):
                right[kind] += 1
            else:
                rules[("near miss: " if kind == "near" else "") + rewriting.rule] += 1
                failures.append((rewriting.rule, gold, rewriting.completion, found.failed or found.said))
    itself, equal, near = ((right[kind], num[kind]) for kind in (ITSELF, "equal", "near"))
    return Tally(
        reward=grader.name, itself=itself, equal=equal, near=near, unjudged=unjudged, failures=tuple(failures),
        rules=dict(rules.most_common()),
    )  # fmt: skip


def _task(grader: Grader, gold: str, verifier: str) -> Task:
    task = grader.task(PROMPT, gold)
    return task if verifier == "math" else Task.make(source="audit", prompt=PROMPT, answer=gold, verifier=verifier)


def _is_right(rewriting: rewrite.Rewriting, found: Judged) -> bool:
    return found.failed is None and found.paid == rewriting.same


# --- for a person -------------------------------------------------------------------------------------------------------


def lines(reports: Sequence[FileReport], notes: Sequence[str]) -> list[str]:
    """A table by file and grader, the failures by rule, and what was left out."""
    names = list(dict.fromkeys(tally.reward for report in reports for tally in report.tallies))
    width = max([len("file"), *(len(report.file) for report in reports)])
    wide = max([len("reward"), *map(len, names)])
    head = f"{'itself':>7}  {'equal':>7}  {'near misses accepted':>20}  {'right':>7}"
    out = [f"{'file':<{width}}  {'rows':>6}  {'answers':>7}  {'judged':>6}  {'reward':<{wide}}  {head}"]
    for report in reports:
        counts = f"{report.num_rows:>6}  {report.num_answers:>7}  {report.num_judged:>6}"
        out += [f"{report.file:<{width}}  {counts}  {t.reward:<{wide}}  {_shares(t)}" for t in report.tallies]
    totals = [_total(name, _shared(reports, names)) for name in names]
    for name, total in zip(names, totals, strict=True):
        out += [f"{'all':<{width}}  {'':>6}  {'':>7}  {'':>6}  {name:<{wide}}  {_shares(total)}"]
    for total in totals:
        causes = Counter(said.partition(",")[0] for rule, _, _, said in total.failures if rule == ITSELF)
        judged = total.right_frac is not None
        out += ["", f"{total.reward} was wrong on: {_counted(total.rules) or ('nothing' if judged else NOT_JUDGED)}"]
        out += [f"  of answers held against themselves: {_counted(causes)}"] * bool(causes)
    return out + ["", *notes] * bool(notes)


def _shared(reports: Sequence[FileReport], names: Sequence[str]) -> list[FileReport]:
    """The files that every grader judged: others would make the totals of one easier than another's."""
    return [report for report in reports if len(report.tallies) == len(names)]


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {num}" for what, num in Counter(counts).most_common(12))


def _shares(tally: Tally) -> str:
    near_accepted = (tally.near[1] - tally.near[0], tally.near[1])
    cells = [f"{100 * right / num:.2f}%" if num else "" for right, num in (tally.itself, tally.equal, near_accepted)]
    whole = "" if tally.right_frac is None else f"{100 * tally.right_frac:.2f}%"
    return f"{cells[0]:>7}  {cells[1]:>7}  {cells[2]:>20}  {whole:>7}"


def _total(name: str, reports: Sequence[FileReport]) -> Tally:
    """One grader over these files."""
    tallies = [tally for report in reports for tally in report.tallies if tally.reward == name]

    def summed(pairs: list[tuple[int, int]]) -> tuple[int, int]:
        return sum(right for right, _ in pairs), sum(num for _, num in pairs)

    rules: Counter[str] = sum((Counter(tally.rules) for tally in tallies), Counter())
    return Tally(
        reward=name, itself=summed([t.itself for t in tallies]), equal=summed([t.equal for t in tallies]),
        near=summed([t.near for t in tallies]), unjudged=sum(t.unjudged for t in tallies),
        failures=tuple(failure for tally in tallies for failure in tally.failures), rules=dict(rules.most_common()),
    )  # fmt: skip


def as_json(reports: Sequence[FileReport], notes: Sequence[str]) -> dict[str, Any]:
    """The same with counts, and up to 20 failures of each file and grader. `all` is over files that every grader judged."""
    names = list(dict.fromkeys(tally.reward for report in reports for tally in report.tallies))
    return {
        "files": [
            {
                "file": r.file, "verifier": r.verifier, "num_rows": r.num_rows, "num_answers": r.num_answers,
                "num_judged": r.num_judged, "rewards": [_tally_json(tally) for tally in r.tallies],
            }
            for r in reports
        ],
        "all": [_tally_json(_total(name, _shared(reports, names))) for name in names],
        "notes": list(notes),
    }  # fmt: skip


def _tally_json(tally: Tally) -> dict[str, Any]:
    pairs = {"itself": tally.itself, "equal": tally.equal, "near": tally.near}
    failures = [dict(zip(("rule", "gold", "completion", "said"), row, strict=True)) for row in tally.failures[:SHOWN]]
    counts = {key: {"right": right, "num": num} for key, (right, num) in pairs.items()}
    return {"reward": tally.reward, "right_frac": tally.right_frac, **counts, "num_unjudged": tally.unjudged} | {
        "rules": dict(tally.rules), "failures": failures,
    }  # fmt: skip
