"""Numbers as a reader expects them: percentages, points, intervals, p-values, durations.

Knows how figures are written; does not know where they come from. Every figure of the page goes through here, so that
one quantity is never written in two ways.
"""

from __future__ import annotations

import math
import re

__all__ = [
    "count", "dollars", "duration", "percent", "percents", "plain", "points", "points_range", "pvalue", "shortened", "tenths", "visible",
]  # fmt: skip

Number = float | int  # JSON knows no difference
MINUS = "\N{MINUS SIGN}"


def percent(share: Number) -> str:
    """
    >>> percent(0.4734)
    '47.3%'
    """
    return f"{100 * share:.1f}%"


def percents(interval: tuple[Number, Number] | list[Number] | None) -> str:
    """An interval of shares as percentages, without the sign of per cent twice.

    >>> percents((0.258, 0.371))
    '25.8 to 37.1'
    """
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def points(delta: Number) -> str:
    """A difference of two shares, in percentage points, always with its sign.

    >>> points(0.16), points(-0.021), points(0.0001)
    ('+16.0', '−2.1', '0.0')
    """
    text = f"{100 * delta:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def points_range(interval: tuple[Number, Number] | list[Number]) -> str:
    """
    >>> points_range((-0.012, 0.054))
    '−1.2 to 5.4'
    """
    return " to ".join(f"{100 * v:.1f}".replace("-0.0", "0.0").replace("-", MINUS) for v in interval)


def pvalue(p: Number) -> str:
    """
    >>> pvalue(0.0004), pvalue(0.0312), pvalue(0.42)
    ('p < 0.001', 'p = 0.031', 'p = 0.42')
    """
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def count(number: Number) -> str:
    """
    >>> count(1234567)
    '1,234,567'
    """
    return f"{number:,.0f}"


def dollars(usd: Number) -> str:
    """Cents, or two digits where there is less than a dime.

    >>> dollars(1234.5), dollars(0.42), dollars(0.000123), dollars(0.0)
    ('$1,234.50', '$0.42', '$0.00012', '$0.00')
    """
    return f"${usd:,.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.{1 - math.floor(math.log10(usd))}f}"


def duration(seconds: Number) -> str:
    """
    >>> duration(4.21), duration(433), duration(3780)
    ('4.2 s', '7 min 13 s', '1 h 03 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plain(value: Number) -> str:
    """Three significant digits, thousands with a comma.

    >>> plain(0.41234), plain(80.0), plain(15234.0)
    ('0.412', '80.0', '15,234')
    """
    return count(value) if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".").replace("-", MINUS)


def tenths(value: Number) -> str:
    """Tokens more or fewer: one decimal, where three digits would be more than is known.

    >>> tenths(-12.345), tenths(0.04), tenths(-0.04), tenths(1234.5)
    ('−12.3', '0.0', '0.0', '1,234.5')
    """
    text = f"{value:,.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", MINUS)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def visible(text: str) -> str:
    """Text that can be written to a file and read: control characters become their pictures.

    >>> visible("a\x1bb")
    'a␛b'
    """
    whole = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be written
    return _CONTROL.sub(lambda m: "\u2421" if m[0] == "\x7f" else chr(0x2400 + ord(m[0])), whole)


def shortened(text: str, limit: int = 2000) -> str:
    """A very long text is cut, and says so.

    >>> shortened("abcdef", 4)
    'abcd … (2 more characters)'
    """
    return text if len(text) <= limit else f"{text[:limit]} … ({count(len(text) - limit)} more characters)"
