"""Grade answers and say why: what `strop grade` does with a file of cases, or with one pair.

Knows the two file formats; how an answer is found and compared is in `rewards`, and said in words in
`rewards.explain`. Rows stream: a file larger than memory is read twice, first for mistakes, so that none shows up
after an hour, then for verdicts.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from strop.disk import guard
from strop.record import Task, UserError, Verdict
from strop.rewards import Scorer
from strop.rewards.explain import explain

__all__ = ["line", "one", "run"]

CHUNK_ROWS = 1024  # judged at once


def run(in_: Path, out: Path, *, workers: int = 2, timeout_s: float = 5.0) -> dict[str, Any]:
    """Grade every row of `in_` into a row of `out`, in the same order; returns the counts.

    A row has `gold` and `prediction` (a whole response or a bare answer; null is an empty one), and may have `id` and
    `problem`. A verdict repeats `id` (where there was one) and has `correct`, `extracted`, `reason` and
    `explanation`, the reason in words. A row that makes the verifier hang or crash gets a verdict that says so. Raises UserError naming the line of a row that is none.
    """
    num_rows = sum(1 for _ in _rows(in_))
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out}: " + ("that is a folder" if out.is_dir() else f"there is no folder {out.parent}"))
    if out.exists() and out.samefile(in_):
        raise UserError(f"--out {out} is the file of cases itself; name another, so that they are kept")
    temporary, reasons = out.with_name(f".{out.name}.tmp"), Counter[str]()
    try:
        with guard(out), open(temporary, "wb") as file, Scorer(workers=workers, timeout_s=timeout_s) as scorer:
            rows = _rows(in_)
            while chunk := list(islice(rows, CHUNK_ROWS)):
                verdicts = scorer.verify([_case(row) for row in chunk])
                file.writelines(_verdict_line(row, verdict) for row, verdict in zip(chunk, verdicts, strict=True))
                reasons.update(verdict.reason.value for verdict in verdicts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return {"num_cases": num_rows, "num_correct": reasons["correct"], "verdict_reasons": dict(reasons.most_common())}


def one(gold: str, prediction: str, *, timeout_s: float = 5.0) -> dict[str, Any]:
    """The verdict on one pair, as `run` would write it."""
    row = {"gold": gold, "prediction": prediction}
    with Scorer(workers=1, timeout_s=timeout_s) as scorer:
        return _told(row, scorer.verify([_case(row)])[0])


def line(counts: dict[str, Any], out: Path) -> str:
    """The counts in one line for a person."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(counts["verdict_reasons"].items(), key=lambda x: -x[1]))
    return f"{counts['num_correct']} of {counts['num_cases']} correct ({reasons or 'no rows'}); verdicts in {out}"


def _case(row: dict[str, Any]) -> tuple[Task, str]:
    problem = row.get("problem")
    prompt = problem if isinstance(problem, str) else json.dumps(problem)
    return Task.make(source="grade", prompt=prompt, answer=row["gold"], verifier="math"), row["prediction"]


def _told(row: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    told = {"id": row["id"]} if "id" in row else {}
    told |= {"correct": verdict.correct, "extracted": verdict.extracted, "reason": verdict.reason.value}
    return told | {"explanation": explain(*_case(row), verdict)}


def _verdict_line(row: dict[str, Any], verdict: Verdict) -> bytes:
    return json.dumps(_told(row, verdict)).encode() + b"\n"  # ASCII: a prediction may hold half a surrogate pair


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield _row(text, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"--in {path} cannot be read: {error.strerror}") from error


def _row(text: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f'{where} is no JSON object; write {{"gold": "5", "prediction": "2 + 3 = 5"}}')
    for key in ("gold", "prediction"):
        if key not in row:
            raise UserError(f"{where} has no {key!r}; it has {', '.join(row) or 'nothing'}")
        if isinstance(row[key], dict | list):
            raise UserError(f"{where}: {key!r} must be a text or a number, not {json.dumps(row[key])[:60]}")
    return row | {key: _text(row[key]) for key in ("gold", "prediction")}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
