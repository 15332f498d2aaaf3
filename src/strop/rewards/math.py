r"""The verifiers "math" and "number": is the answer in this response the gold answer?

Knows structure (lists, sets, tuples, intervals, unions, matrices, assignments) and equality. Numbers are compared
exactly and without computer algebra; only what is left is parsed by math-verify (LaTeX to sympy) and compared at
random points to 30 digits. Where an answer is found is `rewards.extract`, notation is `rewards.latex`.

A verdict is about one value: listing candidates earns nothing unless the gold answer is itself a list. Some texts
make sympy run for hours; this code runs in processes that are killed at a deadline (`rewards.workers`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate

from strop.record import Reason, Task, Verdict
from strop.rewards import algebra, extract
from strop.rewards.latex import MARK, key, read_number, same_number, split_unit, tidy
from strop.rewards.structure import Node, left_name, read, read_list, right_side

__all__ = ["MATHEMATICAL", "clean_gold", "grade", "verify", "verify_number"]

MATHEMATICAL = ("math", "number")  # the verifiers of this module
MAX_ANSWER_CHARS = 2000  # a longer "answer" is a text, not an answer


def verify(task: Task, text: str) -> Verdict:
    """The verdict on a whole response or a bare answer."""
    return grade(task.answer, text, task.prompt)


def verify_number(task: Task, text: str) -> Verdict:
    r"""As `verify`, where the question is the sum itself: what is not worked out is wrong, though it has that value.

    A gold answer that is not worked out either (a fraction, a root) asks for no more than itself.

    >>> t = Task.make(source="s", prompt="Compute 27 + 48.", answer="75", verifier="number")
    >>> [verify_number(t, text).correct for text in (r"\boxed{75}", r"\boxed{27 + 48 = 75}", r"\boxed{27 + 48}")]
    [True, True, False]
    """
    gold = clean_gold(task.answer)
    reason, answer = _graded(gold, text, task.prompt)
    if reason is Reason.CORRECT and read_number(tidy(gold)) and not _OPERATION.search(gold):
        sides = re.split(r"=|\\approx", answer or "")
        reason = reason if any(_is_worked_out(side) for side in sides) else Reason.WRONG
    return _verdict(reason, answer)


def _is_worked_out(side: str) -> bool:
    """Digits, perhaps with a unit, and no operation on them: a name alone ("x = 27 + 48") works out nothing."""
    number = split_unit(tidy(side))[0]
    return re.search(r"\d", number) is not None and not _OPERATION.search(number)


_OPERATION = re.compile(
    r"[\d)}\]]\s*(?:[-+*/^×÷·]|\\(?:times|cdot|div)(?![a-z]))\s*[-\d({\\]|\\(?:[dt]?frac|sqrt|binom)(?![a-z])"
)


def grade(gold: str, text: str, problem: str = "") -> Verdict:
    r"""The verdict on `text` given the gold answer. What an unmarked answer repeats of the problem counts for nothing.

    >>> grade(r"\frac{1}{2}", r"So we get \boxed{0.5}.").correct, grade("3", r"\boxed{1, 2, 3}").reason.value
    (True, 'too_many_answers')
    """
    return _verdict(*_graded(clean_gold(gold), text, problem))


def _verdict(reason: Reason, answer: str | None) -> Verdict:
    shown = None if answer is None else answer[:200]
    return Verdict(correct=reason is Reason.CORRECT, extracted=shown, reason=reason)


def _graded(gold: str, text: str, problem: str) -> tuple[Reason, str | None]:
    """Why, and the answer that was found, whole; None where there is none."""
    if not _readable(gold):
        return Reason.UNPARSEABLE_GOLD, None
    if not text.strip():
        return Reason.EMPTY, None
    found = extract.find(text)
    if not found.marked and (said := extract.without_echo(text, problem)) != text:
        found = extract.find(said)
    if found.how in ("open", "none") or not found.text.strip():
        return Reason.UNPARSEABLE_ANSWER if found.how == "open" else Reason.NO_ANSWER, None
    reason, answer = Reason.UNPARSEABLE_ANSWER, found.text
    for answer in _candidates(found):
        reason = _judge(gold, answer)
        if reason in (Reason.CORRECT, Reason.TOO_MANY_ANSWERS):
            break
    return reason, answer


def clean_gold(gold: str) -> str:
    r"""The answer proper of a gold that may come as a whole solution ("... #### 18", "... \boxed{18}")."""
    if (found := extract.boxes(gold)) and found[-1].content is not None:
        return found[-1].content.strip()
    return re.sub(r"^\s*[Aa]nswer\s*:", "", gold.rpartition("####")[2]).strip()


def _candidates(found: extract.Found) -> list[str]:
    """The answer as found; outside a box also the formula among its words ("it is 5 cm", "x is therefore 5")."""
    inner = found.text
    if found.how in ("box", "tag"):
        phrase = extract.find(MARK_WORDS.sub(r"\1", inner))
        return [phrase.text if phrase.how == "line" else inner]
    if found.how == "tail" or not extract.has_prose(inner) or read_number(tidy(inner)):
        return [inner]
    return [inner, last] if (last := extract.tail(inner)) else [inner]


MARK_WORDS = re.compile(r"\\text\s*\{([^{}]*\banswers?\b[^{}]*)\}")


def _judge(gold: str, answer: str) -> Reason:
    """Compare two answers as written."""
    if len(answer) > MAX_ANSWER_CHARS or algebra.depth(answer) > algebra.MAX_DEPTH:
        return Reason.UNPARSEABLE_ANSWER
    g, a = tidy(gold), tidy(answer)
    if not a:
        return Reason.UNPARSEABLE_ANSWER
    if key(g) == key(a):
        return Reason.CORRECT
    if (gold_number := read_number(g)) and (answer_number := read_number(a)):
        return Reason.CORRECT if same_number(gold_number, answer_number) else Reason.WRONG
    gold_node, answer_node = read(g), read(a)
    if len(gold_node.parts) > 1 and answer_node.kind == "atom" and "," in a:
        answer_node = read_list(a, inside=True) or answer_node  # "100,200" is a number, but not where two are asked for
    if _same(gold_node, answer_node):
        return Reason.CORRECT
    return _why_wrong(gold_node, answer_node)


def _why_wrong(gold: Node, answer: Node) -> Reason:
    listed = answer.kind in ("list", "set", "sequence") and r"\infty" not in answer.text
    if listed and len(answer.parts) > max(1, len(gold.parts)) and gold.kind in ("atom", "list", "set"):
        return Reason.TOO_MANY_ANSWERS
    atoms = [answer.text] if answer.kind == "atom" else [part.text for part in answer.parts if part.kind == "atom"]
    if all(read_number(atom) or _is_text(atom) or algebra.parse(right_side(atom)) is not None for atom in atoms):
        return Reason.WRONG
    return Reason.UNPARSEABLE_ANSWER


# --- equality -------------------------------------------------------------------------------------------------------------


def _same(gold: Node, answer: Node) -> bool:
    if gold.kind == "atom" and answer.kind == "atom":
        return _same_atom(gold.text, answer.text)
    if gold.kind == "matrix" or answer.kind == "matrix":
        return _same_matrix(gold, answer)
    if gold.kind == "union" or answer.kind == "union":
        return _same_union(gold, answer)
    if gold.kind == "atom" or answer.kind == "atom":
        return _same_single(gold, answer)
    if len(gold.parts) != len(answer.parts):
        return False
    if gold.kind == "sequence" and answer.kind == "sequence":
        return gold.brackets == answer.brackets and _in_order(gold, answer)
    if gold.kind == "sequence" or answer.kind == "sequence":  # a tuple against a bare list: the order counts
        sequence, other = (gold, answer) if gold.kind == "sequence" else (answer, gold)
        listed = sequence.brackets == "()" or (sequence.brackets == "[]" and len(sequence.parts) > 2)
        return other.kind == "list" and listed and _in_order(gold, answer)
    if len({left_name(part.text) for part in gold.parts} - {""}) > 1 and not any(
        left_name(p.text) for p in answer.parts
    ):
        return _in_order(gold, answer)  # "x=1, y=2" against "1, 2"
    return _any_order(gold, answer)


def _in_order(gold: Node, answer: Node) -> bool:
    return len(gold.parts) == len(answer.parts) and all(
        _same(g, a) for g, a in zip(gold.parts, answer.parts, strict=True)
    )


def _any_order(gold: Node, answer: Node) -> bool:
    left = list(answer.parts)
    for part in gold.parts:
        match = next((i for i, other in enumerate(left) if _same(part, other)), None)
        if match is None:
            return False
        del left[match]
    return not left


def _same_single(gold: Node, answer: Node) -> bool:
    r"""One value against a structure: {5} is 5, and "0.5, \frac{1}{2}" says one value twice."""
    single, many = (gold, answer) if gold.kind == "atom" else (answer, gold)
    if many.kind not in ("set", "list") or not many.parts or (many is gold and len(many.parts) > 1):
        return False
    return all(part.kind == "atom" and _same_atom(single.text, part.text) for part in many.parts)


def _same_matrix(gold: Node, answer: Node) -> bool:
    """Cell by cell; a column or row may be written as a tuple."""
    if gold.kind == answer.kind:
        return gold.brackets == answer.brackets and _in_order(gold, answer)
    matrix, other = (gold, answer) if gold.kind == "matrix" else (answer, gold)
    is_vector = "1" in matrix.brackets.split("x")
    return is_vector and other.kind == "sequence" and other.brackets == "()" and _in_order(gold, answer)


def _same_union(gold: Node, answer: Node) -> bool:
    if gold.kind == answer.kind and len(gold.parts) == len(answer.parts) and _any_order(gold, answer):
        return True
    return all(node.kind in ("union", "sequence", "set") for node in (gold, answer)) and _same_equation(
        gold.text, answer.text
    )


_CHOICE = re.compile(
    rf"{MARK}?\(?\s*(?P<letter>[A-J])\s*\)?(?:[).:]\s*(?P<rest>.*)|\s*)|{MARK}?\((?P<letter2>[a-j])\)\s*(?P<rest2>.*)",
    re.DOTALL,
)
_BASED = re.compile(r"(?P<digits>-?[0-9A-F]+)\s*_\s*(?:\{\s*(?P<base>\d+)\s*\}|(?P<base2>\d+))")


def _same_atom(gold: str, answer: str) -> bool:
    gold, answer = gold.strip(), answer.strip()
    if key(gold) == key(answer):
        return True
    if choice := re.fullmatch(rf"{MARK}?\(?([A-J])\)?", gold):
        match = _CHOICE.fullmatch(answer)
        if match is None or re.search(r"\b[A-Ja-j]\b\s*(?:[).:,]|$)", match["rest"] or match["rest2"] or ""):
            return False  # "A. B. C." lists
        return (match["letter"] or match["letter2"].upper()) == choice[1]
    if _is_text(gold):
        return _fold(gold) == _fold(answer)
    if "=" in answer.strip("=") or r"\approx" in answer:
        return _same_relation(gold, answer)
    if gold_name := left_name(gold):
        return _same_atom(right_side(gold), answer) if gold_name else False
    if (gold_number := read_number(gold)) and (answer_number := read_number(answer)):
        return same_number(gold_number, answer_number)
    if (based := _BASED.fullmatch(gold)) or _BASED.fullmatch(answer):
        other = _BASED.fullmatch(answer)
        if based and other:
            return (based[1], based[2] or based[3]) == (other[1], other[2] or other[3])
        return (based[1] if based else gold) == (other[1] if other else answer)  # the question named the base
    return _same_expression(gold, answer)


def _same_relation(gold: str, answer: str) -> bool:
    r"""An answer with equals signs: "x = 5", "2 + 3 = 5", "A = \pi r^2 = 9\pi", "\frac{1}{3} \approx 0.333"."""
    sides = _sides(answer)
    if "=" in gold:
        if (name := left_name(gold)) and len(sides) == 2 and left_name(answer):
            return key(name) == key(left_name(answer)) and _same_atom(right_side(gold), sides[-1])
        if name and len(sides) == 2 and key(sides[1]) == key(name):
            return _same_atom(right_side(gold), sides[0])
        if name and len(sides) > 2 and key(sides[0]) == key(name):  # as below: every side that has a value
            valued = [side for side in sides[1:] if not _has_letters(side)] or [sides[-1]]
            return all(_same_atom(right_side(gold), side) for side in valued)
        return _same_equation(gold, answer)
    if r"\approx" in answer:
        parts = [part.strip() for part in re.split(r"\\approx|=", answer) if part.strip()]
        parts = [part for part in parts if not _has_letters(part)] or parts
        return len(parts) <= 2 and algebra.agree(parts, 0.02) and any(_same_atom(gold, part) for part in parts)
    # Every side that has a value must have this one: "1 = 2 = 3" says nothing, and "5 = 2x + 3" something else than 2x + 3.
    valued = [side for side in sides if not _has_letters(side)]
    if _has_letters(gold):
        valued.append(sides[-1])
    return all(_same_atom(gold, side) for side in valued or [sides[-1]])


def _sides(answer: str) -> list[str]:
    r"""What stands between the equals signs, but for those in brackets.

    >>> _sides("P(X = 2) = p^2 = 9"), _sides(r"\sum_{k=1}^{4} 2 = 8"), _sides("(x = 2")
    (['P(X = 2)', 'p^2', '9'], ['\\sum_{k=1}^{4} 2', '8'], ['(x', '2'])
    """
    levels = accumulate((c in "([{") - (c in ")]}") for c in answer)
    parted = "".join("\x00" if c == "=" and level <= 0 else c for c, level in zip(answer, levels, strict=True))
    sides = [side.strip() for side in parted.split("\x00") if side.strip()]
    return sides if len(sides) > 1 else [side.strip() for side in answer.split("=") if side.strip()]


def _has_letters(text: str) -> bool:
    return (
        re.search(r"(?<![\\A-Za-z])(?!e\^)[A-Za-z]", re.sub(r"\\[a-zA-Z]+|\d[eE][-+]?\d", " 0 ", split_unit(text)[0]))
        is not None
    )


_ONE_LETTER_UNIT = re.compile(
    r"(.*\d)\s[a-df-hk-zA-Z]"
)  # "12 m" where the gold is 12; i, j and e are numbers themselves
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "mod", "max", "min", "gcd", "lcm", "abs"}


def _is_text(text: str) -> bool:
    """True for an answer in words: a word of three letters or more, and no digit or operator."""
    words = re.findall(r"[^\W\d_]+", text)
    if not words or not re.fullmatch(rf"[\w\s'.,()/{MARK}-]+", text) or re.search(r"[\d_]", text):
        return False
    shortest = 2 if MARK in text else 3  # of words in \text{}, and of others, which may be products: "ab"
    return max(map(len, words)) >= shortest and not set(words) & _FUNCTIONS


def _fold(text: str) -> str:
    return re.sub(r"^(?:the|an?)\s+", "", " ".join(re.findall(r"[^\W_]+", text.casefold())))


def _same_expression(gold: str, answer: str) -> bool:
    """Two atoms without equals signs that are not both numbers."""
    (gold, gold_unit), (answer, answer_unit) = split_unit(gold), split_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    if key(gold) == key(answer):
        return True
    if _RELATION.search(answer) and not _RELATION.search(gold):
        return False
    gold_number, answer_number = read_number(gold), read_number(answer)
    if gold_number and not gold_unit and (letter := _ONE_LETTER_UNIT.fullmatch(answer)):
        answer_number = read_number(letter[1])
    if gold_number and answer_number:
        return same_number(gold_number, answer_number)
    gold_expression, answer_expression = algebra.parse(gold), algebra.parse(answer)
    if gold_expression is None or answer_expression is None:
        return False
    digits = [number.digits if number else 0 for number in (gold_number, answer_number)]
    return algebra.equal(gold_expression, answer_expression, *digits)


_RELATION = re.compile(r"[<>]|\\[lg]e(?![a-z])|\\ne(?![a-z])")


def _same_equation(gold: str, answer: str) -> bool:
    gold_equation, answer_equation = algebra.parse(gold), algebra.parse(answer)
    return (
        gold_equation is not None
        and answer_equation is not None
        and algebra.equations_equal(gold_equation, answer_equation)
    )


# --- is the gold answer one? -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def _readable(gold: str) -> bool:
    """False where nothing could ever be graded against this gold: empty, no letter or digit, unbalanced, unreadable."""
    text = tidy(gold)
    if (
        len(gold) > MAX_ANSWER_CHARS
        or algebra.depth(gold) > algebra.MAX_DEPTH
        or not re.search(r"\w|\\infty|\\emptyset|\\varnothing", text)
    ):
        return False
    if read_number(text) or _is_text(text):
        return True
    structural = re.sub(r"\\[{}]", "", text)
    if structural.count("{") != structural.count("}") or text.endswith("\\"):
        return False
    node = read(text)
    return (
        node.kind != "atom"
        or algebra.parse(right_side(text)) is not None
        or (_plausible(text) and (_has_letters(text) or algebra.too_large(text) or _SPOKEN.search(text) is not None))
    )


_SPOKEN = re.compile(r"\\[a-zA-Z]{3,}|\d[\s\x02]*:\s*\d|\)\s*\(|\.\.\.")  # \aleph_0, 6:00, (2,3)(2,7), 614.519...


def _plausible(text: str) -> bool:
    """Notation that sympy cannot read but that can be compared as text: no dangling operator, no stray command."""
    text = re.sub(r"\^\s*\{?\s*[-+*]\s*\}?", "", text)  # x^*
    return re.search(r"[-+*/^_=<>&]\s*$|\\(?:frac|sqrt|left|begin)\s*$|\?\?|\\(?:frac|sqrt)(?![\s{[])", text) is None
