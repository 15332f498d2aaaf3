"""Small charts as inline SVG: lines, bands over steps, a bar with its interval, an effect with its interval, a stacked bar.

Knows geometry and nice numbers; does not know what is drawn. Colours are CSS classes (`c0`, `c1`, ... and roles), so
that the page decides light and dark. Two ways to fit a narrow screen: line charts keep a fixed viewBox and are set
side by side or below each other by the page; bars use percentages across and pixels down, so they stretch without
scaling their text. Everything that comes from outside is escaped here, because SVG text is markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = [
    "Line",
    "Scale",
    "axis",
    "band_chart",
    "bar",
    "effect",
    "line_chart",
    "nice_ticks",
    "sheet",
    "smooth",
    "spread",
    "stacked",
    "tick_label",
]

Number = float | int
MINUS = "\N{MINUS SIGN}"


# --- numbers ----------------------------------------------------------------------------------------------------------


def nice_ticks(lo: Number, hi: Number, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers that enclose [lo, hi]: steps of 1, 2 or 5 times a power of ten, about `count` of them.

    >>> nice_ticks(0.0, 0.473)
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    >>> nice_ticks(3, 3)
    [3.0, 4.0]
    >>> nice_ticks(1, 4, whole=True)
    [1.0, 2.0, 3.0, 4.0]
    """
    span = hi - lo
    if span <= abs(hi) * 1e-9:
        return [float(lo), float(lo) + (abs(lo) * 0.1 if 0 < abs(lo) < 1 and not whole else 1.0)]
    raw = span / max(1, count - 1)
    power = math.floor(math.log10(raw))
    mantissa = raw / 10.0**power
    factor = next(f for f, most in ((1, 1.5), (2, 3.2), (5, 7.1), (10, 10.1)) if mantissa <= most)
    step = factor * 10.0**power
    if whole:
        step = max(1.0, step)
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
    digits = max(0, -power)
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def tick_label(value: Number, ticks: Sequence[Number] = ()) -> str:
    """The shortest writing that tells the ticks apart, with thousands as k and M.

    >>> [tick_label(v, [0.0, 0.25]) for v in (0.0, 0.25, -1500.0, 2e6)]
    ['0', '0.25', '−1.5k', '2M']
    """
    size = max([abs(v) for v in ticks] + [abs(value)])
    divisor, unit = (1e6, "M") if size >= 1e6 else (1e3, "k") if size >= 10_000 or abs(value) >= 1000 else (1.0, "")
    fixed = f"{value / divisor:.4f}".rstrip("0").rstrip(".")
    text = f"{value:.2g}".replace("e-0", "e-") if 0 < size < 1e-3 else fixed
    return ("0" if text in ("-0", "0") else text + unit).replace("-", MINUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A linear axis from its first tick to its last one."""

    ticks: tuple[float, ...]

    @staticmethod
    def over(values: Sequence[Number], *, count: int = 5, zero: bool = False, whole: bool = False) -> Scale:
        """An axis that holds all the values (and 0, if `zero`)."""
        finite = [float(v) for v in values if math.isfinite(v)] + ([0.0] if zero else [])
        finite = finite or [0.0, 1.0]
        return Scale(ticks=tuple(nice_ticks(min(finite), max(finite), count, whole=whole)))

    def at(self, value: float) -> float:
        """Position as a share of the axis, held inside [0, 1]."""
        lo, hi = self.ticks[0], self.ticks[-1]
        return min(1.0, max(0.0, (value - lo) / (hi - lo)))


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving mean over `window` points, narrower at both ends and blind to what is not finite.

    >>> smooth([1.0, 2.0, 6.0], 3)
    [1.5, 3.0, 4.0]
    """
    half = window // 2
    out = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        out.append(sum(near) / len(near) if near else math.nan)
    return out


# --- charts over steps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series; points that are not finite leave a gap."""

    x: Sequence[Number]
    y: Sequence[Number]
    name: str = ""
    style: str = "c0"  # CSS classes: a colour (c0, c1, ...), and "thin" or "dash1", "dash2"
    dots: bool = False
    interval: Sequence[tuple[Number, Number]] = ()  # low and high at every x, drawn as an area behind the line

    def points(self) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in zip(self.x, self.y, strict=True)]

    def outline(self) -> list[tuple[float, float]]:
        """Once round the area of the interval: along its upper edge and back along its lower one."""
        edges = [*zip(self.x, self.interval, strict=True)] if self.interval else []
        return [(float(x), float(high)) for x, (_, high) in edges] + [
            (float(x), float(low)) for x, (low, _) in edges[::-1]
        ]


WIDTH, HEIGHT = 320.0, 180.0
TOP, RIGHT, BOTTOM = 10.0, 12.0, 24.0
CHAR_PX = 6.6  # width of a digit at the label size, enough to reserve the left margin


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    desc: str,
    label: Callable[[float], str] | None = None,
    label_x: Callable[[float], str] | None = None,
    zero: bool = False,
) -> Markup:
    """Lines over steps, or over what `label_x` makes of whole numbers, with both axes and the intervals behind.

    `label` writes a y tick; `desc` says in words what the picture shows.
    """
    xs = [x for line in lines for x, y in line.points() if math.isfinite(y)]
    scale_y = Scale.over([y for line in lines for _, y in (*line.points(), *line.outline())], count=4, zero=zero)
    px, py, parts = _axes(xs, scale_y, label, label_x)
    parts += [
        f'<path class="area {escape(line.style)}" d="{_path([(px(x), py(y)) for x, y in line.outline()])}Z"/>'
        for line in lines
        if line.interval
    ]
    for line in lines:
        points = [(px(x), py(y)) if math.isfinite(y) else None for x, y in line.points()]
        parts.append(f'<path class="line {escape(line.style)}" d="{_path(points)}"/>')
        if line.dots or sum(p is not None for p in points) == 1:  # a single point has no line
            parts += [
                f'<circle class="dot {escape(line.style)}" cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="2.4"/>'
                for p in points
                if p
            ]
    return _svg("chart", f'viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}"', title, desc, parts)


def band_chart(
    steps: Sequence[Number], bands: Sequence[tuple[str, Sequence[float]]], *, title: str, desc: str
) -> Markup:
    """Shares of a whole over steps, one upon the other; each band is (CSS class, its share at every step), lowest first."""
    px, py, parts = _axes(steps, Scale.over([0.0, 1.0], count=4), lambda share: f"{100 * share:.3g}%")
    floor = [0.0] * len(steps)
    for style, shares in bands:
        top = [low + share for low, share in zip(floor, shares, strict=True)]
        there = [*zip(steps, top, strict=True)]
        back = [*zip(steps, floor, strict=True)][::-1]
        parts.append(f'<path class="band {escape(style)}" d="{_path([(px(x), py(y)) for x, y in there + back])}Z"/>')
        floor = top
    return _svg("chart", f'viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}"', title, desc, parts)


def _axes(
    xs: Sequence[Number],
    scale_y: Scale,
    label: Callable[[float], str] | None,
    label_x: Callable[[float], str] | None = None,
) -> tuple[Callable[[float], float], Callable[[float], float], list[str]]:
    """Where a step and a value lie in the picture, and the marks of both axes."""
    # The steps need no round end: the axis ends where the run did.
    lo_x, hi_x = (min(xs), max(xs)) if xs else (0.0, 1.0)
    hi_x = hi_x if hi_x > lo_x else lo_x + 1
    labels_y = [label(t) if label else tick_label(t, scale_y.ticks) for t in scale_y.ticks]
    left = 10 + CHAR_PX * max(len(t) for t in labels_y)

    def px(x: Number) -> float:
        return left + (x - lo_x) / (hi_x - lo_x) * (WIDTH - left - RIGHT)

    def py(y: Number) -> float:
        return HEIGHT - BOTTOM - scale_y.at(y) * (HEIGHT - TOP - BOTTOM)

    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [_rule("axis", left, floor, right, floor)]
    for tick, text in zip(scale_y.ticks, labels_y, strict=True):
        parts += [_rule("grid", left, py(tick), right, py(tick)), _label(left - 6, py(tick) + 3.5, "end", text)]
    for tick in (t for t in nice_ticks(lo_x, hi_x, 5, whole=True) if lo_x <= t <= hi_x):
        parts += [
            _rule("axis", px(tick), floor, px(tick), floor + 4),
            _label(px(tick), floor + 16, "middle", label_x(tick) if label_x else tick_label(tick)),
        ]
    return px, py, parts


SHEET_STYLE = (
    "text{font:11px sans-serif;fill:#5d626b}.title{font-weight:600;fill:#1e2126}.axis{stroke:#8d9096}.grid{stroke:#e9e5dd}"
    ".line{fill:none;stroke-width:1.6}.c0{stroke:#1c5c8a}.c1{stroke:#b0702a}.c2{stroke:#22703f}.dot{fill:#fff}"
)


def sheet(parts: Sequence[tuple[str, Markup]]) -> str:
    """Charts below each other, each under its title, as an SVG file that needs no page around it."""
    out = []
    for place, (title, chart) in enumerate(parts):
        out.append(f'<g transform="translate(0 {220 * place})"><text class="title" x="8" y="16">{escape(title)}</text>')
        out.append(f'<svg y="24" width="480" height="190" {chart[len("<svg") :]}</g>'.replace('class="chart" ', ""))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 {220 * len(parts)}">'
    return f"{head}<style>{SHEET_STYLE}</style>{''.join(out)}</svg>\n"


def _rule(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """SVG path data; a None lifts the pen."""
    out, pen_down = [], False
    for point in points:
        if point is not None:
            out.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = point is not None
    return "".join(out)


def _svg(css: str, attributes: str, title: str, desc: str, parts: Sequence[str]) -> Markup:
    head = f'<svg class="{css}" role="img" {attributes}><title>{escape(title)}</title><desc>{escape(desc)}</desc>'
    return Markup(head + "".join(parts) + "</svg>")


# --- bars in table cells: percent across, pixels down -----------------------------------------------------------------

ROW_PX = 26


def axis(scale: Scale, label: Callable[[float], str]) -> Markup:
    """The tick labels over a column of `bar` or `effect` cells; decoration, since the row also says its numbers."""
    step = scale.ticks[1] - scale.ticks[0]
    every = 1 if len(scale.ticks) <= 6 else 2  # more labels would touch on a telephone
    parts = []
    for tick in (t for t in scale.ticks if round(t / step) % every == 0):
        at, text = scale.at(tick), label(tick)
        edge = len(text) > 2  # a long label at an end would run into the next column
        anchor = "start" if edge and at == 0 else "end" if edge and at == 1 else "middle"
        parts.append(f'<text class="tick" x="{_pc(at)}" y="12" text-anchor="{anchor}">{escape(text)}</text>')
    return Markup(f'<svg class="cell" width="100%" height="16" aria-hidden="true">{"".join(parts)}</svg>')


def bar(value: float, interval: tuple[float, float] | None, scale: Scale, style: str) -> Markup:
    """A bar from 0 to `value` with a whisker over its interval. `style` is a CSS class that also sets the filling."""
    mid = ROW_PX / 2
    start, end = scale.at(0.0), scale.at(value)
    box = f'<rect class="bar {escape(style)}" x="{_pc(start)}" width="{_pc(max(end - start, 0.0))}" y="{mid - 6}" height="12"/>'
    return _cell(scale, [box, *_whisker(interval, scale)])


def spread(median: float, p90: float, scale: Scale, style: str) -> Markup:
    """A bar from 0 to the median and a thin line on to the 90th percentile."""
    mid, start, half, end = ROW_PX / 2, scale.at(0.0), scale.at(median), scale.at(p90)
    line = f'<line class="tail {escape(style)}" x1="{_pc(half)}" x2="{_pc(end)}" y1="{mid}" y2="{mid}"/>'
    box = (
        f'<rect class="length {escape(style)}" x="{_pc(start)}" width="{_pc(half - start)}" y="{mid - 6}" height="12"/>'
    )
    return _cell(scale, [line, box])


def effect(value: float, interval: tuple[float, float] | None, scale: Scale, style: str) -> Markup:
    """A point with its interval against a line at zero."""
    zero = f'<line class="zero" x1="{_pc(scale.at(0.0))}" x2="{_pc(scale.at(0.0))}" y1="0" y2="{ROW_PX}"/>'
    dot = f'<circle class="effect {escape(style)}" cx="{_pc(scale.at(value))}" cy="{ROW_PX / 2}" r="4.5"/>'
    return _cell(scale, [zero, *_whisker(interval, scale), dot])


def stacked(parts: Sequence[tuple[str, float]], *, title: str, desc: str) -> Markup:
    """Shares of a whole as one bar; each part is (key letter, amount) and is told apart by tone and by its letter."""
    total = sum(amount for _, amount in parts) or 1.0
    out, at = [], 0.0
    for index, (key, amount) in enumerate(parts):
        share = amount / total
        out.append(f'<rect class="part p{index}" x="{_pc(at)}" width="{_pc(share)}" y="0" height="34"/>')
        if share >= 0.035:  # a letter needs about 12 px on the narrowest screen
            out.append(
                f'<text class="key k{index}" x="{_pc(at + share / 2)}" y="22" text-anchor="middle">{escape(key)}</text>'
            )
        at += share
    return _svg("stack", 'width="100%" height="34"', title, desc, out)


def _cell(scale: Scale, marks: Sequence[str]) -> Markup:
    grid = [
        f'<line class="grid" x1="{_pc(scale.at(t))}" x2="{_pc(scale.at(t))}" y1="0" y2="{ROW_PX}"/>'
        for t in scale.ticks
    ]
    body = "".join([*grid, *marks])
    return Markup(f'<svg class="cell" width="100%" height="{ROW_PX}" aria-hidden="true">{body}</svg>')


def _whisker(interval: tuple[float, float] | None, scale: Scale) -> list[str]:
    if interval is None:
        return []
    lo, hi, mid = _pc(scale.at(interval[0])), _pc(scale.at(interval[1])), ROW_PX / 2
    return [
        f'<line class="whisker" x1="{lo}" x2="{hi}" y1="{mid}" y2="{mid}"/>',
        f'<line class="whisker" x1="{lo}" x2="{lo}" y1="{mid - 4}" y2="{mid + 4}"/>',
        f'<line class="whisker" x1="{hi}" x2="{hi}" y1="{mid - 4}" y2="{mid + 4}"/>',
    ]


def _pc(share: float) -> str:
    return f"{100 * share:.2f}%"
