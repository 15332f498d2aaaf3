r"""How one sort of gold answer may be written otherwise: for each a function from its match to equal ones and near misses.

Knows the arithmetic of each sort; which pattern reads which sort is the table of `rewrite`, the only reader.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

Spelling = tuple[str, str]  # rule, answer
MAX_DIGITS = 10  # of a decimal whose last digit is changed: beyond, that is rounding

N = r"-?\d+(?:\.\d+)?"
SCALAR = rf"(?:{N}|-?\\[dt]?frac\{{\d+\}}\{{\d+\}}|[-+]?\\infty)"
PARTS = rf"(?P<parts>\s*{SCALAR}\s*(?:,\s*{SCALAR}\s*)+)"
PIECE = re.compile(rf"(?:\\left\s*)?(?P<left>[(\[]){PARTS}(?:\\right\s*)?(?P<right>[)\]])")

# --- numbers ----------------------------------------------------------------------------------------------------------


def _number(text: str) -> list[Spelling]:
    """What may be done to every number as written."""
    minus = [("Unicode minus", text.replace("-", "\N{MINUS SIGN}"))] if text.startswith("-") else []
    return [
        ("x = before it", f"x = {text}"),
        ("in a sentence", f"So, after all that, the answer is ${text}$."),
        ("after ####", f"That makes it.\n#### {text}"),
        ("spaces", f" {text} "),
        *minus,
    ]


def _negated(text: str) -> str:
    return text[1:] if text.startswith("-") else f"-{text}"


def _bumped(text: str) -> str:
    """With another last digit: no value stays."""
    return text[:-1] + str((int(text[-1]) + 5) % 10)


def integer(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    text = re.sub(r"[^\d-]", "", match[0])
    n = int(text)
    same = [*_number(text), ("point zero", f"{n}.0"), ("as a fraction", rf"\frac{{{2 * n}}}{{2}}")]
    if abs(n) >= 1000:
        same += [("thousands", f"{n:,}"), ("thousands in LaTeX", f"{n:,}".replace(",", "{,}"))]
    near = [("one more", str(n + 1)), ("digit changed", _bumped(text))]
    if n != 0:
        near += [("sign flipped", _negated(text)), ("zero appended", f"{text}0")]
    if len(text.lstrip("-")) > 1 and text[0] != "9":
        near.append(("first digit changed", re.sub(r"\d", lambda m: str(int(m[0]) % 9 + 1), text, count=1)))
    return same, near


def decimal(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    text = match[0]
    value, places = Decimal(text), len(match["places"])
    top = f"{'-' if value < 0 else ''}{abs(int(value.scaleb(places)))}"
    same = [*_number(text), ("zero appended", f"{text}0"), ("as a fraction", rf"\frac{{{top}}}{{{10**places}}}")]
    if text.startswith("0."):
        same.append(("no zero before the point", text[1:]))
    near = [("one more", f"{value + 1:f}")]
    if value != 0:
        near += [("sign flipped", _negated(text)), ("point moved", f"{value * 10:f}")]
    if sum(map(str.isdigit, text)) <= MAX_DIGITS:
        near.append(("digit changed", _bumped(text)))
    return same, near


def scientific(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    mantissa, exponent = match["mantissa"], int(match["exponent"])
    same = [(r"\times 10^n", rf"{mantissa} \times 10^{{{exponent}}}"), ("x = before it", f"x = {match[0]}")]
    if not float(mantissa):
        return same, []
    near = [("power of ten", f"{mantissa}e{exponent + 1}"), ("digit changed", f"{_bumped(mantissa)}e{exponent}")]
    return same, [*near, ("sign flipped", _negated(match[0]))]


def fraction(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    top, bottom = (int(next(g for g in match.group(*names) if g)) for names in (("p", "p2", "p3"), ("q", "q2", "q3")))
    top = -top if match["sign"] else top
    if not top or not bottom:
        return [], []
    sign, p = "-" * (top < 0), abs(top)
    same = [*_number(rf"{sign}\frac{{{p}}}{{{bottom}}}")]
    same += [(rf"\{name}", rf"{sign}\{name}{{{p}}}{{{bottom}}}") for name in ("dfrac", "tfrac")]
    same += [("with a slash", f"{sign}{p}/{bottom}"), ("not reduced", rf"\frac{{{3 * top}}}{{{3 * bottom}}}")]
    if p < 10 and bottom < 10:
        same.append((r"\frac12", rf"{sign}\frac{p}{bottom}"))
    if p > bottom and p % bottom:
        same.append(("mixed number", rf"{sign}{p // bottom}\frac{{{p % bottom}}}{{{bottom}}}"))
    if 10**6 % bottom == 0:
        same.append(("as a decimal", f"{Decimal(top) / Decimal(bottom):f}"))
    near = [
        ("numerator one more", rf"{sign}\frac{{{p + 1}}}{{{bottom}}}"),
        ("denominator one more", rf"{sign}\frac{{{p}}}{{{bottom + 1}}}"),
        ("sign flipped", _negated(rf"{sign}\frac{{{p}}}{{{bottom}}}")),
    ]
    if p != bottom:
        near.append(("numerator and denominator swapped", rf"{sign}\frac{{{bottom}}}{{{p}}}"))
    if bottom != 1:
        near.append(("numerator alone", str(top)))
    return same, near


def mixed(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    sign, whole, p, q = match["sign"], int(match["whole"]), int(match["p"]), int(match["q"])
    if not p or not q:
        return [], []
    improper = rf"{sign}\frac{{{whole * q + p}}}{{{q}}}"
    near = [("whole part one more", rf"{sign}{whole + 1}\frac{{{p}}}{{{q}}}"), ("sign flipped", _negated(match[0]))]
    return [("as a fraction", improper)], [*near, ("fraction alone", rf"{sign}\frac{{{p}}}{{{q}}}")]


# --- numbers with something behind or before them -----------------------------------------------------------------------


def percent(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    n = match["n"]
    same = [("percent sign", f"{n}%"), (r"\%", rf"{n}\%"), ("in words", f"{n} percent"), ("spaces", rf"{n}\ \%")]
    near = [("digit changed", rf"{_bumped(n)}\%")]
    if Decimal(n):
        near += [("sign flipped", rf"{_negated(n)}\%"), ("point moved", rf"{Decimal(n) / 100:f}\%")]
    return same, near


def degrees(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    n = match["n"]
    same = [
        ("no degrees", n),
        ("degree sign", f"{n}°"),
        ("in words", rf"{n} \text{{ degrees}}"),
        ("braces", rf"{n}^{{\circ}}"),
    ]
    return same, [("digit changed", rf"{_bumped(n)}^\circ"), ("one more", rf"{Decimal(n) + 1}^\circ")]


def dollars(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    n = match["n"].replace(",", "").replace(r"\!", "")
    same = [("no dollar sign", n), ("dollar sign", rf"\${n}"), ("in words", rf"{n} \text{{ dollars}}")]
    return same, [("digit changed", rf"\${_bumped(n)}"), ("other unit", rf"{n} \text{{ cents}}")]


def unit(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    n, unit, power = match["n"], match["unit"], match["power"] or ""
    other = "km" if unit == "g" else "kg"
    same = [("no unit", n), (r"\text", rf"{n}\text{{ {unit}}}{power}"), (r"\mathrm", rf"{n}\,\mathrm{{{unit}}}{power}")]
    return same, [
        ("digit changed", rf"{_bumped(n)}\text{{ {unit}}}{power}"),
        ("other unit", rf"{n}\text{{ {other}}}{power}"),
    ]


def surd(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    sign, factor, inside = match["sign"], int(match["factor"] or 1), int(match["inside"] or match["digit"])
    if not factor or inside < 2:
        return [], []
    text = rf"{sign}{match['factor']}\sqrt{{{inside}}}"
    same = [*_number(text), ("under the root", rf"{sign}\sqrt{{{factor * factor * inside}}}")]
    same.append(("times sign", rf"{sign}{factor} \cdot \sqrt{{{inside}}}"))
    near = [
        ("sign flipped", _negated(text)),
        ("under the root one more", rf"{sign}{match['factor']}\sqrt{{{inside + 1}}}"),
    ]
    return same, [*near, ("factor one more", rf"{sign}{factor + 1}\sqrt{{{inside}}}")]


def pi(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    sign, k = match["sign"], int(match["factor"] or 1)
    if not k:
        return [], []
    same = [
        *_number(rf"{sign}{match['factor']}\pi"),
        ("π", f"{sign}{match['factor']}π"),
        ("times sign", rf"{sign}{k} \cdot \pi"),
    ]
    return same, [
        ("factor one more", rf"{sign}{k + 1}\pi"), ("factor alone", f"{sign}{k}"), ("sign flipped", _negated(match[0])),
    ]  # fmt: skip


# --- several numbers ----------------------------------------------------------------------------------------------------


def _value(scalar: str) -> Fraction | None:
    """None for an infinity."""
    if "infty" in scalar:
        return None
    if match := re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", scalar):
        return Fraction(int(match[1] + match[2]), int(match[3])) if int(match[3]) else None
    return Fraction(scalar)


def _changed(parts: list[str]) -> list[str]:
    """One more in the last finite part."""
    at = max(i for i, part in enumerate(parts) if _value(part) is not None)
    value = Fraction(_value(parts[at]) or 0) + 1
    plain = (
        str(value)
        if value.denominator == 1
        else rf"{'-' * (value < 0)}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    )
    return [*parts[:at], plain, *parts[at + 1 :]]


def sequence(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    left, right = match["left"], match["right"]
    parts = [part.strip() for part in match["parts"].split(",")]
    if all(_value(part) is None for part in parts):
        return [], []

    def joined(parts: list[str], left: str = left, right: str = right) -> str:
        return left + ", ".join(parts) + right

    same = [
        ("no spaces", left + ",".join(parts) + right),
        (r"\left \right", rf"\left{left} {', '.join(parts)} \right{right}"),
    ]
    near = [("element changed", joined(_changed(parts)))]
    if len(parts) > 2 or left == r"\{":
        near += [("element dropped", joined(parts[:-1]))] if len(parts) > 1 else []
    if left == r"\{":
        distinct = len({_value(part) for part in parts}) == len(parts)
        return same + [("order permuted", joined(parts[::-1]))] * (len(parts) > 1), near if distinct else near[:1]
    if [_value(part) for part in parts] != [_value(part) for part in parts[::-1]]:
        near.append(("order reversed", joined(parts[::-1])))
    if len(parts) == 2 and (left + right in ("[)", "(]") or any("infty" in part for part in parts)):
        at_left = _value(parts[0]) is not None
        swapped = {"(": "[", "[": "(", ")": "]", "]": ")"}
        near.append(
            ("bracket swapped", joined(parts, swapped[left], right) if at_left else joined(parts, left, swapped[right]))
        )
    return same, near


def union(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    pieces = [piece.strip() for piece in match[0].split(r"\cup")]
    near = [("interval dropped", piece) for piece in pieces[:1]]
    inner = PIECE.fullmatch(pieces[-1])
    assert inner is not None
    others = pieces[:-1]
    near += [(rule, r" \cup ".join([*others, text])) for rule, text in sequence(inner)[1] if "bracket" in rule]
    return [("order permuted", r" \cup ".join(pieces[::-1])), ("no spaces", r"\cup".join(pieces))], near


def listed(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    if re.search(r"\d,\d{3}(?!\d)", match[0]):  # "100,200" may be one number
        return [], []
    parts = [part.strip() for part in match[0].split(",")]
    values = [_value(part) for part in parts]
    if None in values:
        return [], []
    near = [("element changed", ", ".join(_changed(parts)))]
    if len(set(values)) == len(values):
        near += [
            ("element dropped", ", ".join(parts[:-1])),
            ("element added", ", ".join([*parts, str(int(max(map(abs, filter(None, values)), default=0)) + 7)])),
        ]
    return [("spaces", " ,  ".join(parts)), ("and", f"{', '.join(parts[:-1])} \\text{{ and }} {parts[-1]}")], near


# --- words and expressions ----------------------------------------------------------------------------------------------


def choice(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    letter = match["letter"]
    other = "ABCDE"[("ABCDE".index(letter) + 1) % 5]
    same = [("bare letter", letter), ("in brackets", f"({letter})"), (r"\text", rf"\text{{({letter})}}")]
    return same, [
        ("other letter", other),
        ("other letter in brackets", rf"\text{{({other})}}"),
        ("two letters", f"{letter}, {other}"),
    ]


def word(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    word = match["word"] or match["plain"]
    same = [
        ("bare word", word),
        (r"\text", rf"\text{{{word}}}"),
        ("full stop", f"{word}."),
        ("small letters", word.lower()),
    ]
    return same, [("not", rf"\text{{not {word}}}"), ("and another", rf"\text{{{word} or else}}")]


def expression(match: re.Match[str]) -> tuple[list[Spelling], list[Spelling]]:
    r"""Anything in letters and signs: layout that means nothing, and one number that means something."""
    text = match[0]
    if text.count("{") != text.count("}"):
        return [], []
    same = [("spaces", re.sub(r"(?<=[\w)}])\s*\+\s*(?=[\w\\(])", "  +  ", text))]
    if r"\frac{" in text:
        same.append((r"\dfrac", text.replace(r"\frac{", r"\dfrac{")))
    if "(" in text and r"\left" not in text and text.count("(") == text.count(")"):
        same.append((r"\left \right", text.replace("(", r"\left(").replace(")", r"\right)")))
    number = _COUNTS.search(text)
    near = []
    if number and not _FREE.search(text):
        near.append(("number one more", f"{text[: number.start()]}{int(number[0]) + 1}{text[number.end() :]}"))
    return same, near


_COUNTS = re.compile(r"(?:(?<=\\frac\{)|(?<=\\sqrt\{)|(?<=[+\-(= ])|^)\d+(?![\d.,_^!/:])")
# Where a number may be changed and the meaning stays: zero times it, constants of integration, residues, families in
# k, orders of growth, what is rounded to a whole number.
_FREE = re.compile(
    r"(?<![\d.])0(?!\d)|\b[CcK]\b|[CcK]_|mod|equiv|mathbb|mathcal|Theta|sim|O\(|\\in\b|\\forall|\\infty|[kn]\s*\\?pi|\\pi\s*[kn]|\\ldots|\\cdots|floor|lceil"
)
