r"""Equality of expressions: math-verify reads the LaTeX, sympy evaluates both at a few points to 30 digits.

Knows sympy; nothing about responses or structure. Two expressions that agree to 20 digits at three points chosen
before the model wrote them are the same function for every purpose of a grader, and that costs milliseconds where
`simplify` may cost minutes. Sets and other objects without a value are left to math-verify. Read by `rewards.math`.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from strop.rewards.latex import MARK, ROW, stands_for

__all__ = ["MAX_DEPTH", "agree", "depth", "equal", "equations_equal", "parse"]

MAX_DEPTH = 24  # of brackets; the parsers recurse

_HOSTILE = re.compile(
    r"\^\s*\{?\s*-?\d{5,}"  # 2^{99999}
    r"|\^[^+=,]{0,20}\^[^+=,]{0,20}\^"  # 9^{9^{9^9}}
    r"|\d{4,}\s*\)?\s*!|!\s*\)*\s*[!^]|\d{400,}"
)
_FUNCTION = re.compile(
    r"(?<![\\a-zA-Z])(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|sqrt|pi)(?![a-zA-Z])"
)
_POINTS = ((731, 377), (-1291, 613), (2417, -829))  # first value and stride over the symbols, in 1009ths


@lru_cache(maxsize=8192)
def parse(text: str) -> Any:
    """The expression as sympy reads it, its decimals made exact; None where it cannot be read, or only in hours.

    >>> parse(r"2 \\sqrt{3}"), parse(r"\\frac{1}{"), parse("9^{9^{9^9}}")
    (2*sqrt(3), None, None)
    """
    text = text.replace(MARK, " ").replace(ROW, r"\\").strip()
    if not text or len(text) > 600 or depth(text) > MAX_DEPTH or _HOSTILE.search(text):
        return None
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
    from math_verify import LatexExtractionConfig
    from math_verify import parse as parse_latex
    from sympy import Float, Rational, nan, zoo

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the time limit is left to us: it is
    layout = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    config = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=layout)
    text = re.sub(r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", _FUNCTION.sub(r"\\\1 ", text))
    found = parse_latex(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]
    if not found or isinstance(found[0], str) or (hasattr(found[0], "has") and found[0].has(nan, zoo)):
        return None
    decimals = found[0].atoms(Float) if hasattr(found[0], "atoms") else ()
    return found[0].xreplace({number: Rational(str(number)) for number in decimals}) if decimals else found[0]


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
    pairs = [pair for pair in _values(gold, answer) if None not in pair]
    if len(pairs) == 1 and all(abs(value.imag) < 1e-20 * abs(value) for value in pairs[0]):
        g, a = (value.real for value in pairs[0])
        if stands_for(g, gold_digits, a) or stands_for(a, answer_digits, g):
            return True
    return all(_error(g, a) <= 1e-20 for g, a in pairs) if pairs else bool(gold == answer)


def equations_equal(gold: Any, answer: Any) -> bool:
    """True where one equation is a constant multiple of the other: 2x - y = 0 is y = 2x."""
    from sympy import Eq

    if not (isinstance(gold, Eq) and isinstance(answer, Eq)):
        return _math_verify(gold, answer)
    difference: list[Any] = [equation.lhs - equation.rhs for equation in (gold, answer)]  # type: ignore[operator]
    pairs = [pair for pair in _values(*difference) if None not in pair]
    if any((abs(g) == 0) != (abs(a) == 0) for g, a in pairs):
        return False
    ratios = [g / a for g, a in pairs if abs(a) != 0]
    return len(ratios) > 1 and all(_error(ratio, ratios[0]) <= 1e-18 for ratio in ratios)


def agree(parts: list[str], tolerance: float) -> bool:
    """True where all are constants equal to within a relative tolerance, as both sides of an approximation should be."""
    expressions = [parse(part) for part in parts]
    values = [None if expression is None else _evaluate(expression, {}) for expression in expressions]
    return None not in values and all(_error(value, values[0]) <= tolerance for value in values)


def _values(gold: Any, answer: Any) -> list[tuple[Any, Any]]:
    """Both expressions at the points; f(t) and dx/dt are variables of their own."""
    from sympy import Rational

    gold, answer = _plain(gold), _plain(answer)
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    pairs = []
    for first, stride in _POINTS if symbols else _POINTS[:1]:
        at = {symbol: Rational(first + stride * i, 1009) for i, symbol in enumerate(symbols)}
        pairs.append((_evaluate(gold, at), _evaluate(answer, at)))
    return pairs


def _plain(expression: Any) -> Any:
    """Without derivatives and undefined functions; symbols of one name are one symbol, whatever is assumed of them.

    `i` is the imaginary unit, except in sums and products, where it counts.
    """
    from sympy import Derivative, I, Product, Sum, Symbol
    from sympy.core.function import AppliedUndef

    for kind in (Derivative, AppliedUndef, Symbol):
        expression = expression.xreplace({part: Symbol(str(part)) for part in expression.atoms(kind)})
    return expression if expression.has(Sum, Product) else expression.xreplace({Symbol("i"): I})


def _evaluate(expression: Any, at: dict[Any, Any]) -> Any:
    """A complex number of 30 digits; None at a pole, and where the expression has no value."""
    import mpmath

    try:
        real, imaginary = expression.doit().subs(at).evalf(30, maxn=200).as_real_imag()
        with mpmath.workdps(30):
            value = mpmath.mpc(mpmath.mpf(str(real)), mpmath.mpf(str(imaginary)))
            return value if mpmath.isfinite(value) else None
    except Exception:  # noqa: BLE001  sympy raises whatever it likes on model text, which must not raise
        return None


def _error(a: Any, b: Any) -> float:
    """Relative difference."""
    import mpmath

    with mpmath.workdps(30):
        return 0.0 if a == b else float(abs(a - b) / max(abs(a), abs(b)))


def _math_verify(gold: Any, answer: Any) -> bool:
    from math_verify import verify

    return bool(verify(gold, answer, timeout_seconds=None))
