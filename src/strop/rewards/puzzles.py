"""The verifiers "knights", "gym" and "exact": answers that are no mathematics.

Knows how Knights and Knaves assignments are written and how reasoning-gym scores; all three give everything or
nothing, because partial credit pays for guessing. Pure functions that run in worker processes (`rewards.workers`).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from strop.record import Reason, Task, Verdict
from strop.rewards import extract

__all__ = ["verify_exact", "verify_gym", "verify_knights"]

# Pairs of roles that puzzles use: truth-teller, liar.
_ROLES = [
    ("knight", "knave"), ("saint", "sinner"), ("hero", "villain"), ("angel", "devil"), ("altruist", "egoist"),
    ("sage", "fool"), ("pioneer", "laggard"), ("truth-teller", "liar"),
]  # fmt: skip
_TRUTHFUL = {role: truthful for pair in _ROLES for role, truthful in zip(pair, (True, False), strict=True)}
_ROLE = re.compile(rf"\b({'|'.join(_TRUTHFUL)})s?\b", re.IGNORECASE)
_SAID = re.compile(
    rf"(?P<name>\w[\w'.-]*)\W{{0,6}}(?:\s*(?:is|:|=|->|→|was|must be)\s*){{1,2}}\W{{0,6}}(?:an?\s+|the\s+)?\W{{0,6}}"
    rf"(?P<role>{'|'.join(_TRUTHFUL)})\b",
    re.IGNORECASE,
)


def verify_knights(task: Task, text: str) -> Verdict:
    r"""Right where every person has the right role, nobody is named twice, and there is one role word a person.

    >>> t = Task.make(source="s", prompt="p", answer="A: knight, B: knave", verifier="knights")
    >>> verify_knights(t, r"\boxed{A: knight, B: knave}").correct
    True
    >>> verify_knights(t, "So: (1) A is a knight (2) B is a knave or a knight").reason.value
    'too_many_answers'
    """
    gold = _assignment(task.answer)
    if not gold or len(_ROLE.findall(task.answer)) != len(gold):
        return _verdict(None, Reason.UNPARSEABLE_GOLD)
    if not text.strip():
        return _verdict(None, Reason.EMPTY)
    found = extract.find(text)
    if found.how == "open":
        return _verdict(None, Reason.UNPARSEABLE_ANSWER)
    answer = found.text if found.marked and _ROLE.search(found.text) else _last_lines(text, len(gold))
    num_roles = len(_ROLE.findall(answer))
    if num_roles == 0:
        return _verdict(None, Reason.NO_ANSWER)
    said = _assignment(answer)
    if num_roles > len(gold):
        return _verdict(answer, Reason.TOO_MANY_ANSWERS)
    if said is None or len(said) != num_roles:
        return _verdict(answer, Reason.UNPARSEABLE_ANSWER)
    return _verdict(answer, Reason.CORRECT if said == gold else Reason.WRONG)


def _assignment(text: str) -> dict[str, bool] | None:
    """Who tells the truth, by name in small letters; None where somebody is named twice."""
    text = re.sub(r"\\text(?:bf|it|rm)?\s*\{([^{}]*)\}", r"\1", text)
    pairs = [(m["name"].casefold(), _TRUTHFUL[m["role"].casefold()]) for m in _SAID.finditer(text)]
    return dict(pairs) if len({name for name, _ in pairs}) == len(pairs) else None


def _last_lines(text: str, num_people: int) -> str:
    """The end of a response that marks no answer: its last lines, from the last that starts a complete assignment."""
    lines = [line for line in text.rpartition("</think>")[2].splitlines() if _ROLE.search(line)]
    if not lines or len(_ROLE.findall(lines[-1])) > 1:
        return lines[-1] if lines else ""
    return "\n".join(lines[-num_people:])


# Several of reasoning-gym's scorers hand the answer to eval() or to sympy's parser, which evaluates it as Python: what
# calls anything but a function of mathematics, reads an attribute or names a dangerous builtin never gets that far.
_CODE = re.compile(
    r"__|[\w)\]'\"]\.[A-Za-z_]|\b(?!(?:sqrt|sin|cos|tan|exp|log|ln|abs|Abs)\()[A-Za-z_]\w*\("
    r"|\b(?:eval|exec|open|import|compile|globals|locals|getattr|setattr|input|breakpoint|exit|quit|vars|lambda|print|help)\b"
)


def verify_gym(task: Task, text: str) -> Verdict:
    """Right only where reasoning-gym's own scorer gives 1.0; below that it pays for substrings and partial answers.

    `task.meta["entry"]` is the dataset's item, whose metadata names the scorer.
    """
    entry = task.meta.get("entry")
    if not isinstance(entry, dict) or "source_dataset" not in entry.get("metadata", {}):
        return _verdict(None, Reason.UNPARSEABLE_GOLD)
    if not text.strip():
        return _verdict(None, Reason.EMPTY)
    answer = _gym_answer(text)
    if not answer:
        return _verdict(None, Reason.NO_ANSWER)
    if answer.split() == task.answer.split():
        return _verdict(answer, Reason.CORRECT)
    if _CODE.search(answer) or len(answer) > max(2000, 4 * len(task.answer)):
        return _verdict(answer, Reason.UNPARSEABLE_ANSWER)
    score = _gym_score(entry, answer)
    if score is None:
        return _verdict(answer, Reason.UNPARSEABLE_ANSWER)
    return _verdict(answer, Reason.CORRECT if score == 1.0 else Reason.WRONG)


def _gym_answer(text: str) -> str:
    """What is marked as the answer, else all that follows the thinking: many of these answers are grids of lines."""
    found = extract.find(text)
    if found.how == "open":
        return ""
    return found.text.strip() if found.marked else text.rpartition("</think>")[2].strip()


def _gym_score(entry: dict[str, Any], answer: str) -> float | None:
    import reasoning_gym  # pyright: ignore[reportMissingImports]

    score: Any = reasoning_gym.get_score_answer_fn(entry["metadata"]["source_dataset"])
    try:
        return float(score(answer, entry))
    except Exception:  # noqa: BLE001  the scorers raise on answers of the wrong form; model text never raises
        return None


def verify_exact(task: Task, text: str) -> Verdict:
    """Right where the text is the gold text, but for white space, letter case, quotes and a final full stop."""
    gold = _fold(task.answer)
    if not gold:
        return _verdict(None, Reason.UNPARSEABLE_GOLD)
    if not text.strip():
        return _verdict(None, Reason.EMPTY)
    found = extract.find(text)
    if found.how == "open":
        return _verdict(None, Reason.UNPARSEABLE_ANSWER)
    answer = found.text if found.marked else text.rpartition("</think>")[2].strip()
    return _verdict(answer, Reason.CORRECT if _fold(answer) == gold else Reason.WRONG)


def _fold(text: str) -> str:
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", unicodedata.normalize("NFKC", text))
    return " ".join(text.casefold().split()).strip("'\"`$* ").removesuffix(".").strip("'\"`$* ")


def _verdict(extracted: str | None, reason: Reason) -> Verdict:
    shown = None if extracted is None else extracted[:200]
    return Verdict(correct=reason is Reason.CORRECT, extracted=shown, reason=reason)
