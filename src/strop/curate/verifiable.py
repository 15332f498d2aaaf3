r"""Stage `verifiable`: rows whose answer can be checked, and problems on whose answer their sources agree.

Three questions, in this order, each with its own reasons: can the text be a task at all (`problems`)? Is the gold answer
judged right when a model gives it back? Do rows that hold one problem give one answer (`conflicts`)? The first is asked row
by row in any processes; the second once for each distinct answer, most of them by a pattern that costs microseconds and the
rest by verifier processes that are killed at a deadline, so that a LaTeX bomb is a reason and no hang.

Knows no duplicates: rows that agree all stay, and `duplicates` chooses among them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from strop.config.curation import VerifiableStage
from strop.curate import conflicts, problems
from strop.curate.rows import Fate, Outcome, Tools
from strop.record import Reason, Task, Verdict
from strop.rewards import Scorer
from strop.rewards.math import MATHEMATICAL
from strop.rewards.scorer import as_answered

__all__ = ["plainly_gradable", "read", "same_problem", "verifiable"]

FINDINGS = pa.schema([("reason", pa.string()), ("detail", pa.string()), ("problem", pa.uint64())])
REASONS = {  # of a verdict on a gold answer that is given back
    Reason.UNPARSEABLE_GOLD: "answer cannot be read",
    Reason.TIMEOUT: "answer takes too long to check",
    Reason.VERIFIER_ERROR: "verifier failed on the answer",
}


def verifiable(rows: pa.Table, settings: VerifiableStage, tools: Tools) -> Outcome:
    """Which rows cannot be verified, and why. Raises UserError for a row whose verifier there is not."""
    found = tools.measure(read, rows, settings, what="reading problems")
    reasons, details = found["reason"].to_pylist(), found["detail"].to_pylist()
    dropped = {i: Fate(reason=reason, detail=details[i]) for i, reason in enumerate(reasons) if reason}
    codes, golds = _distinct(rows)
    with _Verdicts(settings, tools) as verdicts:
        kept = _without(rows.num_rows, dropped)
        wanted = np.unique(codes[kept])
        faults = verdicts.faults([golds[code] for code in wanted])
        fate_of = {int(code): fault for code, fault in zip(wanted, faults, strict=True) if fault is not None}
        bad = kept[np.isin(codes[kept], list(fate_of))] if fate_of else kept[:0]
        dropped |= {int(i): fate_of[int(codes[i])] for i in bad}
        kept = _without(rows.num_rows, dropped)
        places = conflicts.suspects(found["problem"].to_numpy()[kept], codes[kept])
        groups = conflicts.read_groups(rows, [kept[place] for place in places], same_problem)
        disputed, num_problems = conflicts.settle(groups, settings.conflicts, verdicts.accepts)
    note = f"{len(golds)} distinct answers, {verdicts.num_judged} of them judged by the verifier, the others by pattern"
    return Outcome(
        dropped=dropped | disputed,
        notes=(note, f"{num_problems} problems had answers of different value"),
    )


def _without(num: int, dropped: dict[int, Fate]) -> np.ndarray:
    mask = np.ones(num, dtype=bool)
    mask[list(dropped)] = False
    return np.flatnonzero(mask)


def _distinct(rows: pa.Table) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Of each row the number of its (verifier, answer), and these by number."""
    joined: Any = pc
    keys = joined.binary_join_element_wise(rows["verifier"], rows["answer"], "\x1f").combine_chunks()
    coded = keys.dictionary_encode()
    golds = [tuple(key.split("\x1f", 1)) for key in coded.dictionary.to_pylist()]
    return coded.indices.to_numpy(zero_copy_only=False), [(verifier, answer) for verifier, answer in golds]


# --- row by row ---------------------------------------------------------------------------------------------------------


def read(rows: pa.Table, settings: VerifiableStage) -> pa.Table:
    """Of each row the reason to drop it that its text gives ("" where none), and a number for its problem."""
    columns = [rows[name].to_pylist() for name in ("prompt", "answer", "verifier")]
    faults, numbers = [], []
    for prompt, answer, verifier in zip(*columns, strict=True):
        fault = problems.damage(prompt, answer, settings.max_prompt_chars)
        if fault is None and verifier in MATHEMATICAL:
            fault = problems.task_fault(prompt, answer)
        faults.append(fault or ("", ""))
        numbers.append(0 if fault else _number(same_problem(prompt)))
    arrays = [
        pa.array([reason for reason, _ in faults], pa.string()),
        pa.array([detail for _, detail in faults], pa.string()),
        pa.array(numbers, pa.uint64()),
    ]
    return pa.table(arrays, schema=FINDINGS)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![a-zA-Z])|\\[,;:! ]|\\[(\[]|[.,;:?](?=\s|$)")


def same_problem(prompt: str) -> str:
    r"""What two layouts of one problem share: case, spaces, dollar signs and the stops of sentences make no new one.

    A bracket or a point within a number does, because it may change the answer.

    >>> same_problem(r"Compute $\dfrac{1}{2} + 3$ .") == same_problem(r"compute \( \frac{1}{2}+3 \)")
    True
    >>> same_problem("Is 1.5 > 1?") == same_problem("Is 15 > 1?")
    False
    """
    text = unicodedata.normalize("NFKC", prompt).casefold().replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.replace("$", " ").replace("\\)", " ").replace("\\]", " ")  # "... = 5.$": now the stop ends a sentence
    return "".join(_LAYOUT.sub("", text).split())


# --- answers ------------------------------------------------------------------------------------------------------------

_INT = r"[1-9]\d{0,8}+(?!\d)"
_LETTER = r"[abcf-hj-zA-DF-HJ-NP-Z]"  # of a variable: not e and i, which are numbers, and not d and O
_ROOT = rf"(?:\\sqrt ?\{{{_INT}\}}|\\pi(?![a-zA-Z])|{_LETTER}(?:\^(?:\d(?!\d)|\{{\d{{1,2}}\}}))?(?![a-zA-Z]))"
_PRODUCT = rf"(?:(?:{_INT} ?)?{_ROOT}(?: ?{_ROOT})?|{_INT})"
_SUM = rf"-?{_PRODUCT}(?: ?[-+] ?{_PRODUCT}){{0,3}}"
_FRACTION = rf"\\[dt]?frac ?\{{ ?{_SUM} ?\}} ?\{{ ?{_PRODUCT} ?\}}"
_TERM = rf"(?:(?:{_PRODUCT} ?)?{_FRACTION}(?: ?{_ROOT})?|{_PRODUCT})"
_DECIMAL = r"(?:\d{1,15}+(?:\.\d{1,15}+)?|\d{1,3}+(?:,\d{3}){1,4}+(?!\d)|\d{1,9}+/[1-9]\d{0,8}+)"
_VALUE = rf"- ?{_DECIMAL}|{_DECIMAL}|-? ?{_TERM}(?: ?[-+] ?{_TERM}){{0,3}}"
_PLAIN = re.compile(
    rf"(?:{_VALUE})|\$(?:{_VALUE})\$|[(\[](?:{_VALUE})(?:, ?(?:{_VALUE})){{1,3}}[)\]]"
    rf"|{_LETTER} ?= ?(?:{_VALUE})|{_DECIMAL}(?:\\?%| ?\^ ?(?:\\circ|\{{\\circ\}}))"
)
_LONGEST_PLAIN = 120
_INTEGER = re.compile(r"-?\d{1,300}+")


def plainly_gradable(answer: str) -> bool:
    r"""True for numbers, and sums of roots and fractions of them, that the verifier is known to read and to find equal.

    A test holds this against the verifier on every answer of the real pool that the pattern takes.

    >>> [plainly_gradable(a) for a in ("-12", "0.75", r"\frac{3 + \sqrt{5}}{2}", r"(1, 2\pi)", r"\frac{1}{0}", "x or y")]
    [True, True, True, True, False, False]
    """
    return len(answer) <= _LONGEST_PLAIN and _PLAIN.fullmatch(answer) is not None


class _Verdicts:
    """Verifier processes, started when the first answer needs them."""

    def __init__(self, settings: VerifiableStage, tools: Tools) -> None:
        self.num_judged = 0
        self._checks = settings.checks
        self._watch = tools.watch
        self._scorer: Scorer | None = None

    def __enter__(self) -> _Verdicts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._scorer is not None:
            self._scorer.close()

    def faults(self, golds: Sequence[tuple[str, str]]) -> list[Fate | None]:
        """Of each (verifier, answer), why it is not judged right when it is given back; None where it is."""
        hard = [gold for gold in golds if gold[0] not in MATHEMATICAL or not plainly_gradable(gold[1])]
        tasks = [_task(*gold) for gold in hard]
        self.num_judged = len(tasks)
        verdicts = self._judge([(task, as_answered(task)) for task in tasks], "checking answers")
        fates = {gold: _fate(verdict) for gold, verdict in zip(hard, verdicts, strict=True)}
        return [fates.get(gold) for gold in golds]

    def accepts(self, pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]]) -> list[bool]:
        """Of each two (verifier, answer): does the verifier of the first take the second for it?"""
        hard = [(a, b) for a, b in pairs if not (_is_integer(*a) and _is_integer(*b))]
        verdicts = self._judge([(_task(*a), as_answered(_task(*b))) for a, b in hard], "comparing answers")
        told = {pair: verdict.correct for pair, verdict in zip(hard, verdicts, strict=True)}
        return [told[a, b] if (a, b) in told else int(a[1]) == int(b[1]) for a, b in pairs]

    def _judge(self, cases: Sequence[tuple[Task, str]], what: str) -> list[Verdict]:
        """What failed is tried a second time: the machine may have been busy, and a verdict should not depend on that."""
        if not cases:
            return []
        if self._scorer is None:
            self._scorer = Scorer(self._checks.workers, self._checks.timeout_s)
        verdicts: list[Verdict] = []
        with self._watch.phase(what, len(cases), "answers") as bar:
            for start in range(0, len(cases), _ROUND):
                verdicts += self._scorer.verify(cases[start : start + _ROUND])
                bar.advance(len(verdicts) - start)
            failed = [
                i for i, verdict in enumerate(verdicts) if verdict.reason in (Reason.TIMEOUT, Reason.VERIFIER_ERROR)
            ]
            for i, verdict in zip(failed, self._scorer.verify([cases[i] for i in failed]), strict=True):
                verdicts[i] = verdict
        return verdicts


_ROUND = 1024  # answers between two signs of life


def _is_integer(verifier: str, answer: str) -> bool:
    return verifier in MATHEMATICAL and _INTEGER.fullmatch(answer) is not None


def _task(verifier: str, answer: str) -> Task:
    return Task.make(source="gold", prompt="", answer=answer, verifier=verifier)


def _fate(verdict: Verdict) -> Fate | None:
    if verdict.correct:
        return None
    return Fate(reason=REASONS.get(verdict.reason, "answer is not judged equal to itself"), detail=verdict.reason.value)
