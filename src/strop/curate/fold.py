r"""What of a problem is left when its writing is folded away: its text, its words, and its numbers and signs.

Knows notation (LaTeX, Unicode, plain text), not meaning. Two problems whose numbers and signs differ are two problems,
however alike their words are; so that a layout is not taken for a number, both are read from text in one spelling. What
is deliberately not a sign: brackets and names of variables (f(x) renamed to f(y) is the same problem; "find x" and
"find y" are told apart by their answers). Exact folding is `tasks.benchmarks.folded`, so that what is called equal here
is what training is kept from. Read by `duplicates` and `decontaminate`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from strop.rewards import latex
from strop.tasks.benchmarks import folded

__all__ = ["Folded", "fold", "fold_answer", "marks_apart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """`key` is the whole text, "" where it has no letter, digit or operator; equal keys need equal `marks` to be one problem."""

    key: str
    words: list[str]  # letters and numbers in order, lower case; a sign is no word
    marks: str  # numbers and signs in order, with spaces between


_UNICODE = str.maketrans({
    "−": "-", "–": "-", "—": " ", "―": " ", "×": "*", "·": "*", "⋅": "*", "∙": "*", "∗": "*", "÷": "/", "⁄": "/", "∕": "/",
    "≤": "<=", "⩽": "<=", "≦": "<=", "≥": ">=", "⩾": ">=", "≧": ">=", "≠": "!=", "±": "+-", "∓": "-+", "∣": "|",
    "½": " 1/2 ", "⅓": " 1/3 ", "⅔": " 2/3 ", "¼": " 1/4 ", "¾": " 3/4 ", "％": "%", "√": " sqrt ", "°": " circ ",
    "∞": " infty ", "∠": " angle ", "△": " triangle ", "∑": " sum ", "∏": " prod ", "∫": " int ", "∈": " in ",
    "\u200b": "", "\ufeff": "", "\u00ad": "",
})  # fmt: skip
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|max|min|gcd|lcm"
_EMPHASIS = re.compile(r"(?<!\S)(\*{1,3})(?=\S)([^*\n]{1,200})(?<=\S)\1(?=[\s.,:;!?)]|$)")
_CAPITALS = re.compile(r"(?<=[A-Z])(?=[A-Z])")
_MATHS = re.compile(r"(?<!\\)\$[^$]+\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_PRODUCT = re.compile(rf"(?<![\\a-zA-Z])(?!(?:{_FUNCTIONS})(?![a-z]))[a-z]{{2,3}}(?![a-z])")
_LAYOUT = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\(?:operatorname|tag)\*|</?(?:br|em|strong|div|span)\s*/?>|\[/[a-z]+\]", " "),
        (r"(?<=\d)(?:\{,\}|,\\!|\\,)(?=\d{3}(?!\d))", ","),  # thousands, as LaTeX spaces them
        (r"--+", " "),
        (r"(?<=[\w})])(?:\$|\\\))-(?=[^\W\d_]{2})", " "),
        # a hyphen in or between words is no minus: "9-kilometre walk", "non-negative", "Ann - who is six - has"
        (r"([^\W\d_]{2})[ \t]*-[ \t]*(?=[^\W\d_]{2})", r"\1 "),
        (rf"(\w)-(?=(?!(?:{_FUNCTIONS})\b)[^\W\d_]{{2}})|(?<!\\)(\b[^\W\d_]{{2,}})-(?=[^\W_])", r"\1\2 "),
        # \frac12 and \frac{1}{2} are 1/2; a sum above the line stays apart from one without brackets
        (r"\\[dtc]?frac\s*(?:\{([^{}+\-*/<>=|]*)\}|(\w))\s*(?:(\d)(?=\w))?", r" \1\2/\3 "),
    )
]  # fmt: skip
_COMMAND = re.compile(r"\\([a-z]+|.)", re.DOTALL)
_STYLE = (
    "left right big bigl bigr bigg biggl biggr displaystyle textstyle limits quad qquad text mbox hbox textbf textit textrm "
    "texttt mathrm mathbf mathit mathsf mathbb mathcal boldsymbol bm operatorname rm bf it hspace vspace hfill noindent "
    "newline hline ensuremath emph underline overline nonumber"
)
_MEANS = {
    **dict.fromkeys(["le", "leq", "leqslant", "leqq"], "<="), **dict.fromkeys(["ge", "geq", "geqslant", "geqq"], ">="),
    **dict.fromkeys(["ne", "neq"], "!="), "lt": "<", "gt": ">", "pm": "+-", "mp": "-+", "div": "/", "%": "%", "|": "|",
    **dict.fromkeys(["times", "cdot", "ast"], "*"), **dict.fromkeys(["mid", "vert", "lvert", "rvert"], "|"),
    **dict.fromkeys(["frac", "dfrac", "tfrac", "cfrac"], " / "),
    **dict.fromkeys(_STYLE.split(), " "),
}  # fmt: skip
_NUMBERS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
    "eleven": "11", "twelve": "12", "thirteen": "13", "fourteen": "14", "fifteen": "15", "sixteen": "16", "seventeen": "17",
    "eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60",
    "seventy": "70", "eighty": "80", "ninety": "90", "hundred": "100", "thousand": "1000", "million": "1000000",
    "dozen": "12", "third": "3", "fourth": "4", "fifth": "5", "sixth": "6", "seventh": "7", "eighth": "8", "ninth": "9",
    "tenth": "10", "half": "half", "twice": "twice", "thrice": "thrice", "percent": "%",
}  # not "one", "first" and "second", which mostly count nothing  # fmt: skip
_NUMBER = r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d.])\.\d+"
_CJK = "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]"  # written without spaces: a letter is a word
_TOKEN = re.compile(
    rf"{_NUMBER}|{_CJK}|[^\W\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+"
    r"|<=|>=|!=|\+-|-\+|\*\*(?=\s?[\w(\\])|=+|(?<![-+])-(?!-)|[+*/<>^%|]|(?<=[\d)\]}])!"
)
LONGEST_ANSWER = 200  # characters of an answer that is read as mathematics


def fold(prompt: str) -> Folded:
    r"""The problem without its writing.

    >>> a, b = fold(r"Compute $\dfrac{1}{2} + x^{3}$."), fold(r"compute \(\frac12+x³\)")
    >>> a == b, a.words, a.marks
    (True, ['compute', '1', '2', 'x', '3'], '1 / 2 + ^ 3')
    >>> fold("A 2-digit number, x-3 < 1,000").marks == fold("a two digit number, x − 3 < 1000").marks == "2 - 3 < 1000"
    True
    """
    text = _plain(prompt)
    words, marks = [], []
    for token in _TOKEN.findall(text):
        first = token[0]
        if first.isalpha():
            number = _NUMBERS.get(token)
            words.append(number if number is not None and number != "%" else token)
            if number is not None:
                marks.append(number)
        elif first.isdigit() or first == ".":
            number = ("0" if first == "." else "") + token.replace(",", "")
            words.append(number)
            marks.append(number)
        elif token != "*":  # 2*x is 2x
            marks.append("^" if token == "**" else "=" if first == "=" else token)
    return Folded(key=folded(text), words=words, marks=" ".join(marks))


def fold_answer(answer: str) -> str:
    r"""One spelling of an answer: the value of a number, else the text without its layout.

    >>> fold_answer(r"$\dfrac12$") == fold_answer("0.5"), fold_answer("(1, 2)") == fold_answer(r"\left( 1,2 \right)")
    (True, True)
    """
    if len(answer) > LONGEST_ANSWER:
        return folded(_plain(answer))
    tidied = latex.tidy(answer)
    number = latex.read_number(tidied)
    return str(number.value) if number is not None else latex.key(tidied).casefold()


def marks_apart(one: str, other: str) -> str:
    """The first numbers or signs in which two problems differ, for a reader.

    >>> marks_apart("2 + 3", "2 - 3"), marks_apart("2", "2 + 3")
    ("'+' or '-'", "nothing or '+ 3'")
    """
    a, b = one.split(), other.split()
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    end = next(
        (i for i, (x, y) in enumerate(zip(a[start:][::-1], b[start:][::-1], strict=False)) if x != y),
        min(len(a), len(b)) - start,
    )
    parts = (" ".join(side[start : len(side) - end]) for side in (a, b))
    return " or ".join(repr(part if len(part) <= 60 else part[:57] + "...") if part else "nothing" for part in parts)


def _plain(prompt: str) -> str:
    """Lower case, ASCII operators, no LaTeX commands (what is one and means a sign becomes the sign), and the letters of
    a product or of a figure's name apart: ABC is often written A B C, and xy is x y."""
    text = prompt
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: "^" + found[0].translate(_POWERS), text)
        text = unicodedata.normalize("NFKC", text.translate(_UNICODE)).translate(_UNICODE)
    text = _MATHS.sub(lambda found: _PRODUCT.sub(lambda run: " ".join(run[0]), found[0]), _CAPITALS.sub(" ", text))
    text = text.casefold()
    if "*" in text:
        text = _EMPHASIS.sub(r" \2 ", text)
    for pattern, new in _LAYOUT:
        text = pattern.sub(new, text)
    return _COMMAND.sub(_meaning, text)


def _meaning(found: re.Match[str]) -> str:
    name = found[1]
    return _MEANS.get(name, f" {name} " if name.isalpha() else " ")
