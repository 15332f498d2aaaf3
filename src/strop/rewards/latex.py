r"""One way of writing for what LaTeX, Unicode and plain text write in many; then numbers and units read from it.

Knows notation only. `tidy` keeps the meaning and folds the layout; `read_number` is exact (fractions.Fraction), so
that most verdicts need no computer algebra. What it cannot read is left to `rewards.math`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

__all__ = ["MARK", "ROW", "Number", "key", "read_number", "same_number", "split_unit", "stands_for", "tidy"]

MARK = "\x02"  # stands before what was inside \text{}: a unit there may be any word, even one letter
ROW = "\x03"  # stands for a line break, \\

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ", "π": r"\pi ", "∞": r"\infty ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "°": r"^\circ ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "²": "^2", "³": "^3", "％": "%", "’": "'", "θ": r"\theta ",
        "“": '"', "”": '"', "\u00a0": " ", "\u2009": " ", "\u202f": " ", "，": ",", "（": "(", "）": ")", "：": ":", "；": ";", "⁄": "/",
        MARK: " ", ROW: " ", **{chr(0xFF10 + d): str(d) for d in range(10)},
    }
)  # fmt: skip

_REPLACEMENTS = [
    (re.compile(pattern.replace("ONE", r"[^\s{}\\]|\\pi(?![a-zA-Z])")), new)
    for pattern, new in (
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (
            r"\\(?:left|right)\s*\.(?!\d)|\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z])|\\!",
            "",
        ),
        (r"(?<=\d)(?:\\,|\\ |~|\{,\})(?=\d{3}(?!\d))", ","),  # thousands
        (r"(?<=\d)\{,\}(?=\d)", "."),  # a decimal comma
        (r"\\[,;:> ]|\\q?quad(?![a-zA-Z])|~", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:leqslant|leq)(?![a-zA-Z])", r"\\le"),
        (r"\\(?:geqslant|geq)(?![a-zA-Z])", r"\\ge"),
        (r"\\neq(?![a-zA-Z])|(?<!\d)!=", r"\\ne "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"={2,}", "="),
        (r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"\\(?:langle)(?![a-zA-Z])", "("),
        (r"\\(?:rangle)(?![a-zA-Z])", ")"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\(?:lbrack)(?![a-zA-Z])", "["),
        (r"\\(?:rbrack)(?![a-zA-Z])", "]"),
        (r"\\(?:degree|deg)(?![a-zA-Z])", r"^\\circ"),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))", r"^\\circ "),
        (r"\\(?:mathbf|mathit|boldsymbol|operatorname|mathbb|bm)\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:text|mbox|mathrm|textbf|textit|textrm|texttt|rm|hbox)\s*\{([^{}]*)\}", rf" {MARK}\1"),
        (rf"\\%|{MARK}?\s*\b(?:percent|per cent|pct)\b", "%"),
        (r"\b(?:np|math|numpy)\.(?=[a-z])", ""),
        (r"\b[iI]nfinity\b", r"\\infty "),
        (r"(?<=[\w)}])\*\*(?=\s*[\w({-])", "^"),  # Python's power; Markdown's bold is stripped at the ends
        (r"\\frac\s*(ONE)\s*(ONE)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(ONE)\s*(?=\{)", r"\\frac{\1}"),
        (r"\\frac\s*(\{[^{}]*\})\s*(ONE)", r"\\frac\1{\2}"),
        (r"\\frac\s*(\{[^{}]*\})\s*(?=\{)", r"\\frac\1"),
        (r"\\sqrt\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"\\(?:sqrt)\s+(?=\{)", r"\\sqrt"),
        (rf"^\s*{MARK}?\s*(?:about|approximately|approx\.|roughly|around|exactly|only|just)\s+(?=[-\d$\\])", ""),
        (r"\s+", " "),
    )
]
_DELIMITERS = re.compile(r"\\[\[\]()]")
_WRAPPED = re.compile(r"\{([^{}]*)\}|\$+([^$]*)\$+|\*\*([^*]*)\*\*|\"([^\"]*)\"|`+([^`]*)`+")


def tidy(text: str) -> str:
    r"""One layout for what many write: `\dfrac12`, `\frac 1 2` and `½` become `\frac{1}{2}`; `$` stays only as a currency.

    >>> tidy(r"$\left( 3, \dfrac\pi2 \right)$."), tidy(r"\$32,\!348"), tidy(r"90^{\circ}")
    ('( 3, \\frac{\\pi}{2} )', '$32,348', '90^\\circ')
    """
    text = text.translate(_UNICODE).replace("\\\\", f" {ROW} ")
    text = _DELIMITERS.sub(" ", text).replace(r"\$", MARK + "$").strip()
    bare = text.replace(MARK + "$", "")
    if bare.count("$") % 2 == 0:
        text = re.sub(rf"(?<!{MARK})\$", " ", text)
    text = text.replace(MARK + "$", "$").replace("$$", " ")
    for pattern, new in _REPLACEMENTS:
        text = pattern.sub(new, text)
    for _ in range(4):
        text = text.strip(" \t\n")
        text = text.rstrip(".,;:!").rstrip() if not text.endswith(("\\!", "...")) and not _is_factorial(text) else text
        if not (whole := _WRAPPED.fullmatch(text)):
            break
        text = next(group for group in whole.groups() if group is not None)
    return text


def _is_factorial(text: str) -> bool:
    """A "!" behind a number, a letter or a bracket, unless it ends a sentence."""
    return re.search(r"[\w)]\s*!$", text) is not None and re.search(r"(?<!\\)\b[A-Za-z]{3,}", text) is None


def key(tidied: str) -> str:
    """What two layouts of one expression share: no white space, except between digits ("3 4" is not 34)."""
    text = re.sub(r"(?<![\d.])\s+|\s+(?![\d.])", "", tidied.replace(MARK, ""))
    return re.sub(r"([_^])\{([A-Za-z0-9])\}", r"\1\2", text)


# --- units -------------------------------------------------------------------------------------------------------------

_SYNONYMS = {
    "deg": "degree degrees °",
    "$": "dollar dollars usd bucks",
    "cent": "cents cent ¢",
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "mg": "milligram milligrams",
    "g": "gram grams",
    "kg": "kilogram kilograms",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "ml": "milliliter milliliters millilitre millilitres mL",
    "l": "liter liters litre litres L",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "mph": "",
    "rad": "radian radians",
    "hz": "hertz Hz",
    "kw": "kW kilowatt kilowatts",
}
_CANONICAL = {word: unit for unit, words in _SYNONYMS.items() for word in (unit, *words.split())}
_LOOSE = {word for word in _CANONICAL if len(word) > 1 and word != "in"}  # need no \text{} around them
_NO_UNIT = {"or", "and", "to", "mod", "not", "but"}  # what they join is no number with a unit
_CONSTANTS = {"i", "j", "e"}  # upright too they are numbers
_BEFORE_UNIT = re.compile(r"[\w}\])%]$")
_WORDS = re.compile(r"[A-Za-z][A-Za-z .,'/-]*(?:\^\s*\{?-?\d\}?)?(?: per [A-Za-z ]+)?\.?")


def split_unit(text: str) -> tuple[str, str]:
    r"""An expression and the unit behind it ("" if none), in one spelling where the unit is a known one.

    >>> split_unit(tidy(r"864 \mbox{ inches}^2")), split_unit("12 apples"), split_unit("2k"), split_unit(tidy(r"90^\circ"))
    (('864', 'in^2'), ('12', 'apples'), ('2k', ''), ('90', 'deg'))
    """
    if (at := text.find(r"^\circ")) > 0 and not re.search(r"[\d\\]", rest := text[at + 6 :]):
        return (text, "") if _NO_UNIT & set(rest.split()) else (text[:at].strip(), "deg")
    core, found, unit = text.rpartition(MARK)
    if (
        found
        and unit.strip() not in _CONSTANTS
        and (core := core.replace(MARK, "").strip())
        and _WORDS.fullmatch(unit.strip())
    ):
        is_unit = _BEFORE_UNIT.search(core) and not _NO_UNIT & {*unit.split(), *re.findall("[a-z]+", core)}
        return (core, _unit(unit)) if is_unit else (text, "")
    match = re.fullmatch(r"(.*?[\d})\]])\s*([A-Za-z][A-Za-z .,'/-]*(?:\^\s*\{?\d\}?)?)", text, re.DOTALL)
    if match and _is_unit(match[1], text[len(match[1]) : match.start(2)], match[2]):
        return match[1], _unit(match[2])
    return text, ""


def _is_unit(core: str, space: str, words: str) -> bool:
    """Known units may follow anything; other words only a plain number, after a space, and never "or" or "and"."""
    listed = words.split()
    first = re.sub(r"[^A-Za-z].*", "", listed[0])
    if _NO_UNIT & set(listed):
        return False
    if first in _LOOSE:
        return True
    return bool(space) and len(first) >= 3 and re.fullmatch(r"[-\d.,/{}\\frac ]+", core) is not None


def _unit(words: str) -> str:
    words = words.replace(MARK, "").strip().rstrip(".")
    power = re.search(r"\^\s*\{?(\d)\}?$", words)
    exponent = power[1] if power else ""
    listed = re.sub(r"\^.*", "", words).split()
    if (
        listed
        and (squared := {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cubed": "3"})
        and len(listed) == 2
    ):
        for i in (0, 1):
            if listed[i] in squared:
                exponent = squared[listed[i]]
                listed = [listed[1 - i]]
                break
    name = " ".join(listed)
    name = _CANONICAL.get(name, _CANONICAL.get(name.lower(), name))
    return f"{name}^{exponent}" if exponent and exponent != "1" else name


def units_clash(a: str, b: str) -> bool:
    """True where both units are known and differ. "7 eggs" and "7 eggs per day" do not clash."""
    known = [unit.partition("^")[0] in _SYNONYMS for unit in (a, b)]
    return all(known) and a != b


# --- numbers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """An exact number as written: `figure` is 50 for "50%", `value` a half; `digits` counts those of a decimal, else 0."""

    figure: Fraction
    percent: bool
    digits: int  # significant digits, where it was written as a decimal
    unit: str

    @property
    def value(self) -> Fraction:
        return self.figure / 100 if self.percent else self.figure


_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_POWER_OF_TEN = r"10\s*\^\s*(?:\{\s*(?P<p%d>[-+]?\d+)\s*\}|(?P<q%d>[-+]?\d+))"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<money>[$€£]?)\s*(?P<sign2>-?)\s*(?:"
    rf"(?P<start>\d*\.\d*)\\overline\{{\s*(?P<period>\d+)\s*\}}"
    rf"|(?P<whole>\d+)\s*\\frac\{{\s*(?P<mixed_top>\d+)\s*\}}\{{\s*(?P<mixed_bottom>\d+)\s*\}}"
    rf"|(?P<whole2>\d+)\s+(?P<mixed_top2>\d+)\s*/\s*(?P<mixed_bottom2>\d+)"
    rf"|\\frac\{{\s*(?P<top_sign>-?)\s*(?P<top>{_PLAIN})\s*\}}\{{\s*(?P<bottom_sign>-?)\s*(?P<bottom>{_PLAIN})\s*\}}"
    rf"|\(?(?P<left>{_PLAIN})\)?\s*/\s*\(?(?P<right>{_PLAIN})\)?"
    rf"|{_POWER_OF_TEN % (1, 1)}"
    rf"|(?P<plain>{_PLAIN})(?:[eE](?P<e>[-+]?\d+)|\s*(?:\\times|\\cdot|\*|x)\s*{_POWER_OF_TEN % (2, 2)})?"
    rf")\s*(?P<percent>%)?"
)
MAX_EXPONENT = 5000  # beyond it a Fraction costs more than a verdict is worth


def read_number(text: str) -> Number | None:
    r"""A number literal in tidy notation, with its sign, percent sign and unit; None for anything else.

    >>> read_number("1,234.50").value, read_number(r"1\frac{4}{5}").value, read_number("4.5e33").digits, read_number("2k")
    (Fraction(2469, 2), Fraction(9, 5), 2, None)
    >>> read_number("50%").value, read_number("12 cm").unit, read_number("3 4")
    (Fraction(1, 2), 'cm', None)
    """
    if len(text) > 1000:
        return None
    core, unit = split_unit(text)
    if core.startswith("(") and core.endswith(")") and core.count("(") == 1:
        core = core[1:-1].strip()
    match = _NUMBER.fullmatch(core.replace("{}", "").strip())
    if match is None:
        return None
    group = match.groupdict()
    figure = _figure(group)
    if figure is None:
        return None
    if "-" in (group["sign"] + group["sign2"]):
        figure = -figure
    literal = (group["plain"] or "") if "." in (group["plain"] or "") or group["e"] else ""
    digits = len(re.sub(r"\D", "", literal).lstrip("0"))
    money = {"€": "euro", "£": "gbp"}.get(group["money"], group["money"])
    return Number(figure=figure, percent=bool(group["percent"]), digits=digits, unit=unit or money)


def _figure(group: dict[str, str]) -> Fraction | None:
    """The number without its sign; None where it has no value or too many digits."""
    if period := group["period"]:
        places = len(group["start"].partition(".")[2])
        return _decimal(group["start"] + "0") + Fraction(int(period), (10 ** len(period) - 1) * 10**places)
    if whole := group["whole"] or group["whole2"]:
        bottom = int(group["mixed_bottom"] or group["mixed_bottom2"])
        return (
            Fraction(int(whole)) + Fraction(int(group["mixed_top"] or group["mixed_top2"]), bottom) if bottom else None
        )
    if group["top"]:
        top, bottom = _decimal(group["top_sign"] + group["top"]), _decimal(group["bottom_sign"] + group["bottom"])
        return top / bottom if bottom else None
    if group["left"]:
        right = _decimal(group["right"])
        return _decimal(group["left"]) / right if right else None
    exponent = int(group["p1"] or group["q1"] or group["e"] or group["p2"] or group["q2"] or "0")
    if abs(exponent) > MAX_EXPONENT:
        return None
    return _decimal(group["plain"] or "1") * Fraction(10) ** exponent


def _decimal(text: str) -> Fraction:
    text = re.sub(r"[, ]", "", text)
    return Fraction(text if not text.endswith(".") else text + "0")


def same_number(gold: Number, answer: Number) -> bool:
    """Equal values, exactly; a decimal of at least six digits may stand for a number that has no end (0.333333 = 1/3).

    Percentages: "50%" is 0.5, and because the question often fixes the unit ("what percent ...") the bare figure 50
    passes for it too, in both directions; a bare gold of at most 1 is a proportion, and 0.5% never passes for 0.5.
    """
    if units_clash(gold.unit, answer.unit):
        return False
    if _equal(gold.value, answer.value, gold.digits, answer.digits):
        return True
    if gold.percent == answer.percent or (answer.percent and abs(gold.figure) <= 1):
        return False
    return _equal(gold.figure, answer.figure, gold.digits, answer.digits)


def _equal(a: Fraction, b: Fraction, a_digits: int, b_digits: int) -> bool:
    if a == b or a == 0 or b == 0:
        return a == b
    if max(a_digits, b_digits) >= 12 and abs(a / b - 1) < Fraction(1, 10**9):
        return True  # 0.30000000000000004
    for decimal, digits, exact, other_digits in ((a, a_digits, b, b_digits), (b, b_digits, a, a_digits)):
        if not other_digits and not _terminates(exact) and stands_for(decimal, digits, exact):
            return True
    return False


def stands_for(decimal: Any, num_digits: int, exact: Any) -> bool:
    """True where a decimal of at least six digits is `exact`, rounded or cut off at its last digit.

    >>> stands_for(Fraction("0.666666"), 6, Fraction(2, 3)), stands_for(Fraction("0.67"), 2, Fraction(2, 3))
    (True, False)
    """
    if num_digits < 6 or decimal == 0 or (decimal < 0) != (exact < 0):
        return False
    last_place = Fraction(10) ** (math.floor(math.log10(abs(decimal))) - num_digits + 1)
    short = (abs(exact) - abs(decimal)) / last_place.numerator * last_place.denominator
    return -0.5 <= short < 1


def _terminates(x: Fraction) -> bool:
    bottom = x.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1
