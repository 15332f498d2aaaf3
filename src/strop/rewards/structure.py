r"""The outermost structure of an answer: a list, set, tuple or interval, union, matrix, or an atom.

Knows brackets and separators; neither numbers' values nor equality. Read by `rewards.math`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from strop.rewards.latex import MARK, ROW, read_number

__all__ = ["LEFT_SIDE", "Node", "left_name", "read", "read_list", "right_side"]

MAX_PARTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An answer by its outermost structure. `brackets` are a sequence's delimiters ("()", "[)") or a matrix's shape."""

    kind: Literal["atom", "list", "set", "sequence", "union", "matrix"]
    text: str
    parts: tuple[Node, ...] = ()
    brackets: str = ""


_WORD_OR = rf"{MARK}?\s*\b(?:or|and)\b\s*|\\(?:lor|land|vee|wedge)(?![a-zA-Z])"
_SIDE_BY_SIDE = r"(?<=\d)(?<![_^]\d)\.?\s+(?=[\d.])|\n"  # "3 4" is two numbers
_SEPARATOR = re.compile(rf",(?!\d{{3}}(?!\d))|(?<!\d),|;|{ROW}|{_WORD_OR}|{_SIDE_BY_SIDE}")  # but "1,234" is one
_INNER_SEPARATOR = re.compile(rf"[,;]|{ROW}|{_WORD_OR}|{_SIDE_BY_SIDE}")
_CUP = re.compile(r"\\cup(?![a-zA-Z])")
_MATRIX = re.compile(r"\\begin\{([pbv]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_NAME = r"(?:[A-Za-z]|\\[a-zA-Z]+)(?:_(?:\{\w+\}|\w))?'*"
LEFT_SIDE = re.compile(
    rf"\s*(?P<name>{_NAME}\s*(?:\([^()=]*\))?|\(\s*{_NAME}(?:\s*,\s*{_NAME})*\s*\))\s*(?:=|\\in(?![a-zA-Z]))\s*(?P<rest>[^=]+)"
)


def read(text: str) -> Node:
    r"""The structure of an answer in tidy notation.

    >>> read(r"(2,5]").brackets, read(r"\{1, 2\}").kind, read("1 or 2").kind, read("1,234").kind, read(r"x \in [0,1]").kind
    ('(]', 'set', 'list', 'atom', 'sequence')
    """
    text = _inequality(text.strip())
    if (match := LEFT_SIDE.fullmatch(text)) and (structured := _structured(match["rest"].strip())):
        return structured
    return _structured(text) or Node(kind="atom", text=text)


def read_list(text: str, inside: bool = False) -> Node | None:
    """A list of at least two parts; where one is asked for (`inside` brackets, or by the gold), "1,234" is two."""
    text = _plus_minus(text)
    if not inside and read_number(text):
        return None
    parts = _split(text, _INNER_SEPARATOR if inside else _SEPARATOR)
    parts = [clean for part in parts if (clean := part.replace("either", " ").strip())]
    if not 2 <= len(parts) <= MAX_PARTS:
        return None
    return Node(kind="list", text=text, parts=tuple(map(read, parts)))


def left_name(text: str) -> str:
    """The name on the left of "x = 5" or "f(x) = 2x"; "" where the text is no such definition."""
    match = LEFT_SIDE.fullmatch(text)
    return match["name"].strip() if match else ""


def right_side(text: str) -> str:
    return text.rpartition("=")[2].strip()


def _structured(text: str) -> Node | None:
    """A node for anything but an atom."""
    if match := _MATRIX.fullmatch(text):
        return _matrix(match[1], match[2])
    if len(parts := _split(text, _CUP)) > 1:
        return Node(kind="union", text=text, parts=tuple(map(read, parts)))
    if text.startswith(r"\{") and text.endswith(r"\}") and _encloses(text):
        inside = text[2:-2].strip()
        listed = read_list(inside, inside=True)
        return Node(kind="set", text=text, parts=listed.parts if listed else (read(inside),) if inside else ())
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _encloses(text):
        inside = text[1:-1].strip()
        if listed := read_list(inside, inside=True):
            return Node(kind="sequence", text=text, parts=listed.parts, brackets=text[0] + text[-1])
        return _structured(inside) if text[0] + text[-1] == "()" else None
    return read_list(text)


def _matrix(environment: str, body: str) -> Node:
    rows = [row.split("&") for row in body.split(ROW) if row.strip()]
    cells = tuple(Node(kind="atom", text=cell.strip()) for row in rows for cell in row)
    shape = f"{len(rows)}x{max(map(len, rows), default=0)}" + ("|" if environment == "vmatrix" else "")
    return Node(kind="matrix", text=body, parts=cells[:MAX_PARTS], brackets=shape)


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Cut at separators outside all brackets."""
    cuts = {match.start(): match.end() for match in separator.finditer(text)}
    depth, start, position, parts = 0, 0, 0, []
    while position < len(text) and cuts:
        if depth == 0 and position in cuts:
            parts.append(text[start:position])
            start = position = cuts[position]
            continue
        depth = max(0, depth + (text[position] in "([{") - (text[position] in ")]}"))
        position += 1
    return [*parts, text[start:]]


def _encloses(text: str) -> bool:
    """True where the first bracket is closed by the last character."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in ")]}":
            return position == len(text) - 1
    return False


def _plus_minus(text: str) -> str:
    r"""Every part with a \pm as two parts: "1 \pm x" is "1+x, 1-x"."""
    if r"\pm" not in text and r"\mp" not in text:
        return text
    parts = []
    for part in _split(text, _INNER_SEPARATOR):
        signs = ("+-", "-+") if r"\pm" in part or r"\mp" in part else ("",)
        parts += [re.sub(r"\\pm|\\mp", lambda m, s=s: s[m[0] == r"\mp"], part) if s else part for s in signs]
    return ", ".join(parts)


_BETWEEN = re.compile(
    r"(?P<low>[^<>]+?)\s*(?P<left>\\le|<)(?![a-z])\s*\\?[a-zA-Z]\s*(?P<right>\\le|<)(?![a-z])\s*(?P<high>[^<>]+)"
)
_BOUNDED = re.compile(r"\\?[a-zA-Z]\s*(?P<sign>\\le|\\ge|<|>)(?![a-z])\s*(?P<bound>[^<>]+)")
_BOUND_FIRST = re.compile(r"(?P<bound>[^<>]*?\d[^<>]*?)\s*(?P<sign>\\le|\\ge|<|>)(?![a-z])\s*\\?[a-zA-Z]")
_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def _inequality(text: str) -> str:
    r"""An inequality on one variable as an interval: "2 < x \le 5" is "(2,5]"."""
    if not re.search(r"\\[lg]e(?![a-z])|[<>]", text) or "," in text:
        return text
    if match := _BETWEEN.fullmatch(text):
        return f"{'(' if match['left'] == '<' else '['}{match['low']},{match['high']}{')' if match['right'] == '<' else ']'}"
    match, sign = _BOUNDED.fullmatch(text), ""
    if match:
        sign = match["sign"]
    elif match := _BOUND_FIRST.fullmatch(text):
        sign = _TURNED[match["sign"]]
    if match is None:
        return text
    bound = match["bound"].strip()
    intervals = {
        "<": rf"(-\infty,{bound})", r"\le": rf"(-\infty,{bound}]", ">": rf"({bound},\infty)", r"\ge": rf"[{bound},\infty)",
    }  # fmt: skip
    return intervals[sign]
