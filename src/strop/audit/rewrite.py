r"""Other ways to write a gold answer, by rule: surely equal ones, and near misses that are surely not.

Knows spellings only and shares nothing with the graders that it tests: a rule reads a gold answer with a strict
pattern of its own, and what no pattern reads gets no rewriting. So -0 is no near miss of 0 and 1/1 no reciprocal of
1, the order of a bare list stays (some questions ask for one), and a unit is dropped or exchanged, never made up. Read by `golds`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from strop.audit import spellings
from strop.audit.spellings import PARTS, SCALAR, N, Spelling

__all__ = ["Rewriting", "core", "knights", "mathematics", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewriting:
    """A completion that holds the gold answer in another form (`same`), or nearly; `rule` says what was done."""

    completion: str
    same: bool
    rule: str


Rule = Callable[[re.Match[str]], tuple[list[Spelling], list[Spelling]]]  # equal ones, near misses


def core(gold: str) -> str:
    r"""A gold answer without what is wrapped around it.

    >>> core(r"\[ \boxed{\frac{1}{2}} \]"), core("$3,4$"), core(r"\$5"), core("$1$ or $2$")
    ('\\frac{1}{2}', '3,4', '\\$5', '$1$ or $2$')
    """
    text = gold.strip()
    while match := _WRAPPED.fullmatch(text):
        text = next(group for group in match.groups() if group is not None).strip()
    return text


_WRAPPED = re.compile(
    r"\$+([^$]+)\$+\.?|\\\[([^\[\]]+)\\\]|\\\(([^()]+)\\\)|\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", re.DOTALL
)


def mathematics(gold: str) -> list[Rewriting]:
    r"""The rewritings of a mathematical answer. Near misses differ from it in value, order, length or bracket.

    >>> [r.completion for r in mathematics("0") if not r.same]
    ['\\boxed{1}', '\\boxed{5}']
    >>> [(r.rule, r.completion) for r in mathematics(r"\frac{1}{2}") if "swapped" in r.rule]
    [('numerator and denominator swapped', '\\boxed{\\frac{2}{1}}')]
    >>> mathematics("no idea what this is")
    []
    """
    bare = core(gold)
    if len(bare) > 200:
        return []
    for pattern, rule in RULES:
        if match := pattern.fullmatch(bare):
            same, near = rule(match)
            return _boxed(same, True) + _boxed(near, False)
    return []


def _boxed(spellings: list[Spelling], same: bool) -> list[Rewriting]:
    return [
        Rewriting(completion=text if rule in _WHOLE else f"\\boxed{{{text}}}", same=same, rule=rule)
        for rule, text in spellings
    ]


_WHOLE = ("in a sentence", "after ####")  # these say themselves where the answer is

# --- which rule reads which gold answer ---------------------------------------------------------------------------------

_UNNAMED = rf"(?:\\left\s*)?[(\[]\s*{SCALAR}\s*,\s*{SCALAR}\s*(?:\\right\s*)?[)\]]"
_FRAC = r"\\[dtc]?frac\s*"

RULES: tuple[tuple[re.Pattern[str], Rule], ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"-?(?:0|[1-9]\d{0,29})", spellings.integer),
        (r"-?[1-9]\d{0,2}(?:(?:,\\!|\{,\}|\\,)\d{3})+", spellings.integer),
        (r"-?(?:0|[1-9]\d*)\.(?P<places>\d{1,12})", spellings.decimal),
        (r"(?P<mantissa>-?\d+(?:\.\d+)?)[eE](?P<exponent>[-+]?\d{1,3})", spellings.scientific),
        (
            rf"(?P<sign>-?)\s*(?:{_FRAC}\{{\s*(?P<p>\d{{1,15}})\s*\}}\s*\{{\s*(?P<q>\d{{1,15}})\s*\}}"
            rf"|(?P<p2>\d{{1,15}})\s*/\s*(?P<q2>\d{{1,15}})|{_FRAC}(?P<p3>\d)\s?(?P<q3>\d))",
            spellings.fraction,
        ),
        (rf"(?P<sign>-?)(?P<whole>[1-9]\d*)\s*{_FRAC}\{{(?P<p>\d+)\}}\{{(?P<q>\d+)\}}", spellings.mixed),
        (rf"(?P<n>{N})\s*(?:\\?%|\\text\{{\s*percent\s*\}})", spellings.percent),
        (rf"(?P<n>{N})\s*\^\s*\{{?\s*\\circ\s*\}}?", spellings.degrees),
        (r"\\\$\s*(?P<n>\d+(?:,(?:\\!)?\d{3})*(?:\.\d+)?)", spellings.dollars),
        (
            rf"(?P<n>{N})\s*\\(?:text|mbox|mathrm)\{{[~\s]*(?P<unit>cm|m|mm|inches|feet|g)\s*\}}(?P<power>\^\{{?[23]\}}?)?",
            spellings.unit,
        ),
        (
            r"(?P<sign>-?)(?P<factor>(?:[1-9]\d{0,5})?)\s*\\sqrt\s*(?:\{\s*(?P<inside>\d{1,9})\s*\}|(?P<digit>\d))",
            spellings.surd,
        ),
        (r"(?P<sign>-?)(?P<factor>(?:[1-9]\d{0,9})?)\s*\\pi", spellings.pi),
        (spellings.PIECE.pattern, spellings.sequence),
        (rf"(?:\\left\s*)?(?P<left>\\\{{){PARTS}(?:\\right\s*)?(?P<right>\\\}})", spellings.sequence),
        (rf"{_UNNAMED}(?:\s*\\cup\s*{_UNNAMED})+", spellings.union),
        (rf"{SCALAR}(?:\s*,\s*{SCALAR})+", spellings.listed),
        (r"\\(?:text|textbf|mathrm|mbox)\{\s*\(?(?P<letter>[A-E])\)?\s*\}", spellings.choice),
        (r"\\(?:text|textbf|mbox)\{\s*(?P<word>[A-Za-z]{3,})\s*\}|(?P<plain>[A-Z]?[a-z]{4,})", spellings.word),
        (
            r"(?!.*\\\\|.*\\(?:text|mbox|mathrm|begin|quad)|.*\b(?:or|and)\b)(?=.*[a-zA-Z])(?!.*[A-Za-z]{2,}\s[A-Za-z]{2,})[^,;$&]{3,120}",
            spellings.expression,
        ),
    )
)


# --- answers that are no mathematics ------------------------------------------------------------------------------------


def text(gold: str) -> list[Rewriting]:
    """The rewritings of an answer in words.

    >>> [r.completion for r in text("Ed Wood") if not r.same]
    ['\\\\boxed{not Ed Wood}', '\\\\boxed{Ed}']
    """
    words = gold.split()
    if re.search(r"[{}\\$]|^not\b", gold) or not words:
        return []
    same = [("spaces", "  ".join(words))]
    cases = (("small letters", gold.lower()), ("capitals", gold.upper()))
    same += [spelling for spelling in cases if spelling[1].casefold() == gold.casefold()]  # not the Turkish i
    near = [("not", f"not {gold}"), *([("word dropped", " ".join(words[:-1]))] if len(words) > 1 else [])]
    return _boxed(same, True) + _boxed(near, False)


KNIGHT = re.compile(r"(?:\(\d+\)\s*)?(?P<name>\w+)(?: is an? |: )(?P<role>knight|knave)\b")


def knights(gold: str) -> list[Rewriting]:
    """The rewritings of a Knights and Knaves assignment; none where it is not read whole.

    >>> [r.completion for r in knights("(1) Ann is a knight (2) Bo is a knave") if not r.same]
    ['Ann is a knight\\nBo is a knight', 'Ann is a knave\\nBo is a knight', 'Ann is a knight']
    """
    people = [(m["name"], m["role"]) for m in KNIGHT.finditer(gold)]
    if len(people) < 2 or KNIGHT.sub("", gold).strip(" ,.;\n"):
        return []
    other = {"knight": "knave", "knave": "knight"}

    def said(people: list[tuple[str, str]]) -> str:
        return "\n".join(f"{name} is a {role}" for name, role in people)

    *others, (name, role) = people
    same = [
        ("no numbers", said(people)), ("order permuted", said(people[::-1])),
        ("in a box", f"\\boxed{{{', '.join(f'{name}: {role}' for name, role in people)}}}"),
        ("in tags", f"<answer>{said(people)}</answer>"),
    ]  # fmt: skip
    near = [
        ("one role flipped", said([*others, (name, other[role])])), ("all roles flipped", said([(n, other[r]) for n, r in people])),
        ("person dropped", said(others)),
    ]  # fmt: skip
    return [Rewriting(completion=c, same=s, rule=r) for s, listed in ((True, same), (False, near)) for r, c in listed]
