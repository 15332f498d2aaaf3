r"""Equality of expressions: math-verify reads the LaTeX, sympy evaluates both at a few points to 30 digits.

Knows sympy; nothing about responses or structure. Two expressions that agree to 20 digits at three points chosen
before the model wrote them are the same function for every purpose of a grader, and that costs milliseconds where
`simplify` may cost minutes. Sets and other objects without a value are left to math-verify. Read by `rewards.math`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from strop.record import seed_of
from strop.rewards.latex import MARK, ROW, stands_for

__all__ = ["MAX_DEPTH", "agree", "depth", "equal", "equations_equal", "parse", "too_large"]

MAX_DEPTH = 24  # of brackets; the parsers recurse

_UP = r"\^\s*(?:[{(][^})+=,]{0,20}|-?\w[\d.]*\s*)"
_TOO_LARGE = re.compile(
    r"\^\s*\{?\s*-?\d{5,}"  # 2^{99999}
    rf"|{_UP}{_UP}\^"  # 9^{9^{9^9}}
    r"|\d{4,}\s*\)?\s*!|\^\s*\{?\s*\d+\s*\}?\s*\)\s*!"  # 2019!, (10^{10})!
    r"|!\s*\)*\s*!|!\s*\)*\s*\^\s*\{?\s*\d{3,}|\^\s*\{[^{}]*\d\s*\)*\s*!"  # (3!)!, (9!)^{999}, 10^{100!}
    r"|\d{400,}"
    r"|\\[dtc]?binom\s*\{\s*\d{5,}\s*\}\s*\{\s*\d{4,}"  # \binom{10^6}{10^5}, written out
)
_PRIME = re.compile(r"(?<![\\A-Za-z])([A-Za-z])('+)")
_COEFFICIENT = re.compile(r"(?<=[\w)}])\s*\\[dt]?binom(?![a-z])")  # which the reader would add: 2 \binom{4}{2} is not 8
_FUNCTION = re.compile(
    r"(?<![\\a-zA-Z])(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|sqrt|pi)(?![a-zA-Z])"
)
DIGITS = 30
MAX_DIGITS = 12_000
NUM_POINTS = 3
NUM_JUMP_POINTS = 24  # for what is constant between jumps


@lru_cache(maxsize=8192)
def parse(text: str) -> Any:
    """The expression as sympy reads it, its decimals made exact; None where it cannot be read, or only in hours.

    >>> parse(r"2 \\sqrt{3}"), parse(r"\\frac{1}{"), parse("9^{9^{9^9}}")
    (2*sqrt(3), None, None)
    """
    text = text.replace(MARK, " ").replace(ROW, r"\\").strip()
    if not text or len(text) > 600 or depth(text) > MAX_DEPTH or too_large(text):
        return None
    found = _read(_COEFFICIENT.sub(r" \\cdot \\binom", _PRIME.sub(_primed, _FUNCTION.sub(r"\\\1 ", text))))
    if found is None or isinstance(found, str) or (hasattr(found, "has") and _without_value(found)):
        return None
    from sympy import Float, Rational

    decimals = found.atoms(Float) if hasattr(found, "atoms") else ()
    return found.xreplace({number: Rational(str(number)) for number in decimals}) if decimals else found


def _read(text: str) -> Any:
    """Latex to sympy by math-verify's own reader; None where it cannot. Capitals stay: 2R + r is not 3r."""
    from latex2sympy2_extended.latex2sympy2 import (
        ConversionConfig,
        NormalizationConfig,
        latex2sympy,
        normalize_latex,
    )
    from math_verify.grader import should_treat_as_complex

    layout = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    try:
        text = normalize_latex(re.sub(r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", text), config=layout)
        return latex2sympy(
            text, is_real=not should_treat_as_complex(text), convert_degrees=False, normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )  # fmt: skip
    except Exception:  # noqa: BLE001  the parser raises whatever it likes on model text, which must not raise
        return None


def _without_value(expression: Any) -> bool:
    from sympy import nan, zoo

    return expression.has(nan, zoo)


def _primed(match: re.Match[str]) -> str:
    """f' is not f; the reader drops the prime."""
    return f"{match[1]}_{{prime{len(match[2])}}}"


def too_large(text: str) -> bool:
    """True where evaluating might take hours or gigabytes; such an answer can only be compared as it is written."""
    return _TOO_LARGE.search(text) is not None


def depth(text: str) -> int:
    """How deep brackets are nested."""
    level = deepest = 0
    for character in text:
        level += (character in "([{") - (character in ")]}")
        deepest = max(deepest, level)
    return deepest


def equal(gold: Any, answer: Any, gold_digits: int = 0, answer_digits: int = 0) -> bool:
    """True where both are the same function. The digits are those of a decimal on that side, else 0: it may be rounded."""
    from sympy import Expr

    if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
        return _math_verify(gold, answer)
    pairs, digits = _values(gold, answer)
    if len(pairs) == 1 and all(abs(value.imag) < 1e-20 * abs(value) for value in pairs[0]):
        g, a = (value.real for value in pairs[0])
        if stands_for(g, gold_digits, a) or stands_for(a, answer_digits, g):
            return True
    if not pairs or (gold.free_symbols and all(g == 0 for g, _ in pairs)):
        return bool(gold == answer)  # DA - AD of matrices is not zero; here the order is lost
    return all(_error(g, a, digits) <= _tolerance(digits) for g, a in pairs)


def equations_equal(gold: Any, answer: Any) -> bool:
    """True where one equation is a constant multiple of the other: 2x - y = 0 is y = 2x."""
    import mpmath
    from sympy import Eq

    if not (isinstance(gold, Eq) and isinstance(answer, Eq)):
        return _math_verify(gold, answer)
    difference: list[Any] = [equation.lhs - equation.rhs for equation in (gold, answer)]  # type: ignore[operator]
    pairs, digits = _values(*difference)
    if any((g == 0) != (a == 0) for g, a in pairs):
        return False
    with mpmath.workdps(digits):
        ratios = [g / a for g, a in pairs if a != 0]
    return len(ratios) > 1 and all(_error(ratio, ratios[0], digits) <= 100 * _tolerance(digits) for ratio in ratios)


def agree(parts: list[str], tolerance: float) -> bool:
    """True where all are constants equal to within a relative tolerance, as both sides of an approximation should be."""
    expressions = [parse(part) for part in parts]
    values = [None if expression is None else _evaluate(expression, {}, DIGITS) for expression in expressions]
    return None not in values and all(_error(value, values[0], DIGITS) <= tolerance for value in values)


def _values(gold: Any, answer: Any) -> tuple[list[tuple[Any, Any]], int]:
    """Both expressions at the points where both have a value, and to how many digits."""
    from sympy import Rational, ceiling, floor

    sides = [_plain(side) for side in (gold, answer)]
    symbols = sorted(sides[0].free_symbols | sides[1].free_symbols, key=str)
    jumps = any(side.has(floor, ceiling) for side in sides)
    digits = _digits(sides)
    pairs = []
    for point in range((NUM_JUMP_POINTS if jumps else NUM_POINTS) if symbols else 1):
        # Not in even steps from symbol to symbol: there a + c would be 2b.
        draws = [seed_of("point", point, i) % 4001 - 2000 for i in range(len(symbols))]
        at = {s: Rational(draw, 101 if jumps else 1009) for s, draw in zip(symbols, draws, strict=True)}
        pairs.append(tuple(_evaluate(side, at, digits) for side in sides))
    return [(g, a) for g, a in pairs if g is not None and a is not None], digits


def _digits(sides: Sequence[Any]) -> int:
    """How many digits tell them apart: 30, and more where whole numbers are longer (2^{2005} + 1 is not 2^{2005} + 2)."""
    from sympy import Rational

    wholes = [whole for side in sides for number in side.atoms(Rational) for whole in (number.p, number.q)]
    longest = max((int(whole).bit_length() for whole in wholes), default=0)
    return DIGITS + min(MAX_DIGITS, int(longest * 0.61))  # twice as many as it has: a root takes half of them


def _tolerance(digits: int) -> Any:
    import mpmath

    return mpmath.mpf(10) ** (10 - digits)


def _plain(expression: Any) -> Any:
    """Without derivatives and undefined functions; symbols of one name are one symbol, whatever is assumed of them;
    f(t) and dx/dt are variables of their own.

    `i` is the imaginary unit, except in sums and products, where it counts.
    """
    from sympy import Derivative, I, Product, Sum, Symbol
    from sympy.core.function import AppliedUndef

    for kind in (Derivative, AppliedUndef, Symbol):
        expression = expression.xreplace({part: Symbol(str(part)) for part in expression.atoms(kind)})
    with contextlib.suppress(Exception):  # sympy raises whatever it likes on model text, which must not raise
        expression = expression.doit()
    return expression if expression.has(Sum, Product) else expression.xreplace({Symbol("i"): I})


def _evaluate(expression: Any, at: dict[Any, Any], digits: int) -> Any:
    """A complex number of so many digits; None at a pole, and where the expression has no value."""
    import mpmath

    try:
        real, imaginary = expression.subs(at).evalf(digits, maxn=200 + 2 * digits).as_real_imag()
        with mpmath.workdps(digits):
            value = mpmath.mpc(mpmath.mpf(str(real)), mpmath.mpf(str(imaginary)))
            return value if mpmath.isfinite(value) else None
    except Exception:  # noqa: BLE001  sympy raises whatever it likes on model text, which must not raise
        return None


def _error(a: Any, b: Any, digits: int) -> Any:
    """Relative difference."""
    import mpmath

    with mpmath.workdps(digits):
        return mpmath.mpf(0) if a == b else abs(a - b) / max(abs(a), abs(b))


def _math_verify(gold: Any, answer: Any) -> bool:
    from math_verify import verify

    return bool(verify(gold, answer, timeout_seconds=None))
