r"""Why a mathematical verdict is what it is, in one sentence for a person.

Knows where an answer was found and what kind of likeness or difference there is; decides nothing, and computes nothing
that could take long: no computer algebra, because this runs where nobody kills it. Read by `strop.grade`.
"""

from __future__ import annotations

from collections.abc import Callable

from strop.record import Reason, Task, Verdict
from strop.rewards import algebra, extract
from strop.rewards.latex import Number, key, read_number, split_unit, tidy
from strop.rewards.math import MAX_ANSWER_CHARS, clean_gold
from strop.rewards.structure import Node, read

__all__ = ["explain"]

SHOWN_CHARS = 60

Said = Callable[[str, extract.Found], str]  # from the gold answer and what was found


def explain(task: Task, text: str, verdict: Verdict) -> str:
    r"""The reason of a verdict of the verifiers "math" and "number" in words.

    >>> from strop.rewards.math import verify
    >>> task = Task.make(source="s", prompt="p", answer=r"\frac{1}{2}", verifier="math")
    >>> explain(task, text := r"so \boxed{\frac{3}{6}}", verify(task, text))
    'the last \\boxed{} holds \\frac{3}{6}, which equals \\frac{1}{2} as a number'
    >>> explain(task, text := r"\boxed{0.5}. No, \boxed{3}", verify(task, text))
    'the last \\boxed{} holds 3, which is another number than \\frac{1}{2}; 2 boxes that disagree: the last one counts'
    """
    gold = clean_gold(task.answer)
    found = extract.find(text)
    if not found.marked:
        found = extract.find(extract.without_echo(text, task.prompt))
    return _SAID[verdict.reason](gold, found) + _boxes(text)


def _boxes(text: str) -> str:
    """What has to be said of more boxes than one."""
    contents = [box.content for box in extract.boxes(text.rpartition("</think>")[2])]
    closed = {key(tidy(content)) for content in contents if content is not None and len(content) <= MAX_ANSWER_CHARS}
    return f"; {len(contents)} boxes that disagree: the last one counts" if len(closed) > 1 else ""


def _where(found: extract.Found) -> str:
    return f"{_PLACES[found.how]} {_shown(found.text)}"


_PLACES: dict[extract.How, str] = {
    "box": r"the last \boxed{} holds",
    "tag": "the last <answer> holds",
    "line": 'after the last "####" or "answer is" stands',
    "bare": "the text is short and taken whole as the answer:",
    "tail": "no answer is marked, and the last expression in the text is",
    "open": r"the last \boxed{} is never closed:",
    "none": "there is no answer:",
}


def _shown(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= SHOWN_CHARS else f"{one_line[:SHOWN_CHARS]}... ({len(one_line):,} characters)"


# --- right --------------------------------------------------------------------------------------------------------------


def _correct(gold: str, found: extract.Found) -> str:
    return f"{_where(found)}, which {_likeness(tidy(gold), tidy(found.text), gold)}"


def _likeness(gold: str, answer: str, shown: str) -> str:
    if key(gold) == key(answer):
        return "is the gold answer"
    gold_number, answer_number = read_number(gold), read_number(answer)
    if gold_number and answer_number:
        return _same_number(gold_number, answer_number, shown)
    gold_node, answer_node = read(gold), read(answer)
    if gold_node.kind == answer_node.kind == "atom":
        return f"has the same meaning as {_shown(shown)}"
    return f"says the same as {_shown(shown)}, part by part"


def _same_number(gold: Number, answer: Number, shown: str) -> str:
    equals = f"equals {_shown(shown)} as a number"
    if gold.percent != answer.percent:
        return equals + (" (per cent)" if gold.value == answer.value else ": the question fixed the per cent")
    if bool(gold.unit) != bool(answer.unit):
        return equals + "; a unit on one side is set aside"
    return equals if gold.value == answer.value else f"is {_shown(shown)} to the last digit written"


# --- wrong --------------------------------------------------------------------------------------------------------------


def _wrong(gold: str, found: extract.Found) -> str:
    return f"{_where(found)}, which {_difference(tidy(gold), tidy(found.text), _shown(gold))}"


def _difference(gold: str, answer: str, shown: str) -> str:
    gold_number, answer_number = read_number(gold), read_number(answer)
    if gold_number and answer_number:
        return _other_number(gold_number, answer_number, shown)
    gold_node, answer_node = read(gold), read(answer)
    if gold_node.kind != "atom" and answer_node.kind != "atom":
        return _other_parts(gold_node, answer_node, shown)
    if {split_unit(gold)[1], split_unit(answer)[1]} - {""} and key(split_unit(gold)[0]) == key(split_unit(answer)[0]):
        return f"has another unit than {shown}"
    return f"is not {shown}"


def _other_number(gold: Number, answer: Number, shown: str) -> str:
    if gold.value == answer.value:
        return f"has another unit than {shown}" if gold.unit != answer.unit else f"is {shown}, but not worked out"
    if gold.value == -answer.value:
        return f"is {shown} with the other sign"
    if answer.value and gold.value * answer.value == 1:
        return f"is {shown} turned upside down"
    return f"is another number than {shown}"


def _other_parts(gold: Node, answer: Node, shown: str) -> str:
    if len(gold.parts) != len(answer.parts):
        return f"has {len(answer.parts)} parts, and {shown} has {len(gold.parts)}"
    keys = [[key(part.text) for part in node.parts] for node in (gold, answer)]
    if keys[0] == keys[1]:
        return f"has other brackets than {shown}"
    return f"has the parts of {shown} in another order" if sorted(keys[0]) == sorted(keys[1]) else f"is not {shown}"


# --- neither ------------------------------------------------------------------------------------------------------------


def _unreadable(gold: str, found: extract.Found) -> str:
    if found.how == "open":
        return r"the last \boxed{} is never closed: cut off before the answer was whole"
    if len(found.text) > MAX_ANSWER_CHARS:
        return f"an answer of {len(found.text):,} characters is not read"
    if algebra.depth(found.text) > algebra.MAX_DEPTH:
        return f"brackets nested deeper than {algebra.MAX_DEPTH} are not read"
    return f"{_where(found)}, which cannot be read as mathematics"


def _no_answer(gold: str, found: extract.Found) -> str:
    if found.how in ("none", "bare", "tail"):
        return "no answer is marked, and no expression is left at the end of the text"
    return "the place of the answer is empty"


def _too_many(gold: str, found: extract.Found) -> str:
    return f"{_where(found)}: more answers than are asked for, and listing candidates earns nothing"


_SAID: dict[Reason, Said] = {
    Reason.CORRECT: _correct,
    Reason.WRONG: _wrong,
    Reason.UNPARSEABLE_ANSWER: _unreadable,
    Reason.NO_ANSWER: _no_answer,
    Reason.TOO_MANY_ANSWERS: _too_many,
    Reason.EMPTY: lambda gold, found: "there is no text",
    Reason.TRUNCATED: lambda gold, found: "cut off before an answer",
    Reason.OVER_LIMIT: lambda gold, found: "the program was stopped at a limit of its sandbox",
    Reason.UNPARSEABLE_GOLD: lambda gold, found: (
        f"the gold answer {_shown(gold) or '(empty)'} cannot be read, so nothing can be graded against it"
    ),
    Reason.TIMEOUT: lambda gold, found: "the verifier was stopped at its deadline: neither right nor wrong",
    Reason.VERIFIER_ERROR: lambda gold, found: "the verifier failed: neither right nor wrong",
}
