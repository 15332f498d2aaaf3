r"""What makes a problem one that no verifier can judge, read off its text: damage, pictures, proofs, parts, lost options.

Knows words and layout; neither mathematics nor the verifiers. Rules are cautious in one direction: what a rule cannot tell
stays, because later stages (a judge model, a pass rate) see it again. Every pattern is linear in the text, which may be
hostile. English, and of Chinese what 17,000 problems of DAPO use. Read by `curate.verifiable`.
"""

from __future__ import annotations

import re
from bisect import bisect_left

__all__ = ["damage", "task_fault"]

MAX_ANSWER_CHARS = 2000  # as the verifier has it: what is longer is a text
FEWEST_LETTERS = 3  # letters and digits that a problem has besides its links

# White space and form feeds stay (half of DAPO's "\frac" in instructions became a form feed and "rac"); others do not.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_MISREAD = re.compile(
    "\ufffd|Ã[\u0080-\u00bf\u0192\u201a]|Â[\u00a0-\u00bf]|â€[\u0098-\u009d\u2122\u0153\u201c\u201d\u02dc\u00a6\u00a2]"
)
_LINK = re.compile(r"(?:https?://|www\.)\S+")


def damage(prompt: str, answer: str, max_prompt_chars: int) -> tuple[str, str] | None:
    """Why a row is no text with an answer, and what was met; None where it is one.

    >>> damage("What is 2 + 3?", "5", 100), damage("https://a.b/c", "5", 100), damage("What\\x00?", "5", 100)
    (None, ('only a link', ''), ('control character', 'U+0000'))
    """
    if len(prompt) > max_prompt_chars:
        return "problem too long", f"{len(prompt)} characters"
    if not prompt.strip():
        return "no problem", ""
    if not answer.strip():
        return "no answer", ""
    if len(answer) > MAX_ANSWER_CHARS:
        return "answer too long", f"{len(answer)} characters"
    for text in (prompt, answer):
        if found := _CONTROL.search(text):
            return "control character", f"U+{ord(found[0]):04X}"
        if found := _MISREAD.search(text):
            return "wrong encoding", found[0]
    if sum(map(str.isalnum, prompt)) < FEWEST_LETTERS:
        return "no problem", ""
    if _LINK.search(prompt) and sum(map(str.isalnum, _LINK.sub("", prompt))) < FEWEST_LETTERS:
        return "only a link", ""
    return None


def task_fault(prompt: str, answer: str) -> tuple[str, str] | None:
    r"""Why a mathematical problem has no one value to check, and the words that say so; None where it may have.

    >>> task_fault("Prove that $n^2+n$ is even.", "even"), task_fault("Prove it, then find the sum of the roots.", "3")
    (('proof', 'Prove'), None)
    >>> task_fault("(1) Find a. (2) Find b.", "3"), task_fault("Find n: (1) n > 3 (2) n is even", "4")
    (('several parts', '(1) (2)'), None)
    """
    low = prompt.lower()
    for reason, met in (
        ("needs a picture", _picture(low)),
        ("several parts", _parts(low) or _answered_in_parts(answer)),
        ("proof", _proof(prompt, low, answer)),
    ):
        if met:
            return reason, " ".join(met.split())[:80]
    return _choice(prompt, low, answer)


# --- pictures -----------------------------------------------------------------------------------------------------------

_PLACED = r"(?:below|above|beneath|shown|here|(?:on|at|to) (?:the )?(?:right|left)|given|provided|attached|alongside|opposite)"
_WHICH = r"(?:following|accompanying|adjoining|attached|above|below|given|adjacent|provided|next|right|left)"
_DRAWN = r"(?:figures?|diagrams?)"
_SEEN = r"(?:pictures?|images?|drawings?|illustrations?|sketch(?:es)?|photos?|maps?|graphs?|charts?|spinners?|shapes?|patterns?|grids?)"
_PICTURE = re.compile(
    r"!\[|\[img\b|<img\b|\\includegraphics|\bsee (?:the )?(?:figure|diagram|picture|image|drawing|illustration)"
    r"|\b(?:diagram|picture|map|figure)s? go to (?:https?:|www\.)"
    rf"|\b(?:in|from|on|to|of) the (?:{_WHICH} )?{_DRAWN}\b(?! of\b| formed| consisting| eight\b| with\b| whose\b| that\b)"
    rf"|\bthe (?:{_WHICH} )?{_DRAWN} (?:{_PLACED}|shows?|depicts?|illustrates?|represents?)\b"
    rf"|\b(?:{_DRAWN}|{_SEEN}|tables?) {_PLACED}\b(?! (?:by|that|as|to)\b)"
    rf"|\bthe {_WHICH} (?:{_DRAWN}|{_SEEN})\b(?! of\b)"
    rf"|\bthe {_SEEN} (?:shows|depicts|illustrates)\b(?! that\b)"
    r"|\b(?:as|are|is) (?:shown|pictured|depicted|illustrated|drawn) (?:below|above|here|(?:on|at|to) (?:the )?(?:right|left)|in (?:the |this )?(?:fig|diag|pict|imag|draw|illus|sketch))"
    r"|\bas (?:is )?(?:shown|pictured|depicted|illustrated)(?=[.,;:?\n]|$| in$)|\bfig(?:ure|\.)? ?\d"
    r"|如图|下图|右图|左图|上图|图中|图所示|附图"
)
_PICTURE_WORDS = (  # one of these is in all that the pattern finds
    "fig", "diagram", "picture", "image", "drawing", "illustrat", "sketch", "photo", "map", "graph", "chart", "spinner", "shape",
    "pattern", "grid", "table", "shown", "depicted", "drawn", "![", "img", "图",
)  # fmt: skip
_DRAWING_CODE = ("[asy]", "\\begin{asy}", "tikzpicture", "\\draw", "draw(")
_PICTURED = re.compile(r"fig|diag|pict|imag|img|draw|illus|sketch|photo|includegraphics|!\[|图")
_WRITTEN_OUT = ("|-", "| ", "tabular", "\\begin{", "\\hline", " & ", "\\\\", "\t")


def _picture(low: str) -> str:
    """What points at a picture that the text does not hold.

    Drawing code stays: a text model cannot see it drawn, but the coordinates and labels are all there, and the benchmarks
    (a tenth of MATH-500) ask for the same. So does a table that is written out.
    """
    if not any(word in low for word in _PICTURE_WORDS):  # much faster than the pattern
        return ""
    found = _PICTURE.search(low)
    if found is None or any(code in low for code in _DRAWING_CODE):
        return ""
    if not _PICTURED.search(found[0]) and any(code in low for code in _WRITTEN_OUT):
        return ""
    return found[0]


# --- parts --------------------------------------------------------------------------------------------------------------

_LABELS = (  # a name, what a text with a second label of this kind holds, the pattern of one label
    ("(1) (2)", "(2)", re.compile(r"(?<![\w\\})\]])\(([1-9])\)(?!\s*[,=+*/^])")),
    ("(a) (b)", "(b)", re.compile(r"(?<![\w\\})\]])\(([a-f])\)(?!\s*[,=+*/^])")),
    ("(i) (ii)", "(ii)", re.compile(r"(?<![\w\\})\]])\((i{1,3}|iv|v)\)(?!\s*[,=+*/^])")),
    ("1) 2)", "2)", re.compile(r"(?:^|[\s*$])([1-9])\)(?=\s)")),
    ("a) b)", "b)", re.compile(r"(?:^|[\s*$])([a-f])\)(?=\s)")),
    ("i) ii)", "ii)", re.compile(r"(?:^|[\s*$])(i{1,3}|iv|v)\)(?=\s)")),
    ("1. 2.", "2.", re.compile(r"(?:^|\n)[ \t*#]*([1-9])\.(?=\s)")),
    ("a. b.", "b.", re.compile(r"(?:^|\n)[ \t*#]*([a-f])\.(?=\s)")),
    ("i. ii.", "ii.", re.compile(r"(?:^|\n)[ \t*#]*(i{1,3}|iv|v)\.(?=\s)")),
    ("I II", "ⅱ", re.compile("[(（]?([ⅰⅱⅲⅳ])[)）]?")),
    ("①②", "②", re.compile("([①②③④⑤⑥])")),
    ("（1）（2）", "（2）", re.compile(r"（([1-9])）")),
    ("p1. p2.", "2.", re.compile(r"\bp\s?([1-9]\d?)\.")),
    ("part 1, part 2", "part", re.compile(r"\bpart \(?([1-9]|[a-e]|i{1,3})\b\)?(?=[.:)])")),
)
_PLACE = {
    label: place
    for labels in ("123456789", "abcdef", ("i", "ii", "iii", "iv", "v"), "ⅰⅱⅲⅳ", "①②③④⑤⑥")
    for place, label in enumerate(labels, 1)
}
_ASKS = re.compile(
    r"\b(?:find|determine|compute|calculate|evaluate|prove|show that|solve|what|how (?:many|much|long|far)|express|sketch"
    r"|explain|estimate|simplify|factori[sz]e|derive|justify|is it|does there|are there|in how)\b|\?|？|求|证明"
)
_LISTED = re.compile(r"\bwhich\b[^?\n]{0,200}\b(?:statements?|following|propositions?|correct|true|options?)\b|(?:correct|true) (?:statements?|propositions?|conclusions?)|命题")  # fmt: skip


def _parts(low: str) -> str:
    """The labels of a problem of which at least two ask for something; conditions, rules and options do not ask."""
    for name, second, labels in _LABELS:
        cuts = _in_sequence(labels, low) if second in low else []
        if len(cuts) < 2:
            continue
        asked = _starts_of_asking(low)
        ends = [*(start for start, _ in cuts[1:]), len(low)]
        asking = sum(
            bisect_left(asked, end) > bisect_left(asked, start) for (_, start), end in zip(cuts, ends, strict=True)
        )
        if asking >= 2 and not (asking == len(cuts) == 2 and _LISTED.search(low)):
            return name
    return ""


def _starts_of_asking(low: str) -> list[int]:
    return [found.start() for found in _ASKS.finditer(low)]


def _in_sequence(labels: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    """Where the labels 1, 2, 3 ... (or a, b, c) start and end, in this order."""
    cuts: list[tuple[int, int]] = []
    for found in labels.finditer(text):
        if _place(found[1]) == len(cuts) + 1:
            cuts.append(found.span())
    return cuts


def _place(label: str) -> int:
    return int(label) if label.isdecimal() else _PLACE[label]


def _answered_in_parts(answer: str) -> str:
    """The labels of an answer that gives a value under each: "(a) 3 (b) 5", but not "(1), (3)"."""
    low = answer.lower()
    for name, second, labels in _LABELS:
        cuts = _in_sequence(labels, low) if second in low else []
        if len(cuts) >= 2 and not re.search(r"\w", low[: cuts[0][0]]):
            ends = [*(start for start, _ in cuts[1:]), len(low)]
            if all(
                re.search(r"\w", re.sub(r"\band\b|\\text", "", low[start:end]))
                for (_, start), end in zip(cuts, ends, strict=True)
            ):
                return f"{name} in the answer"
    return ""


# --- proofs -------------------------------------------------------------------------------------------------------------

_PROVE = re.compile(
    r"(?:^|[.;:!?,*)\]$]\s+|\n\s*|\b(?:and|then|thus|hence|please|or|also|should|must|can you)\s+)"
    r"(?:(?:prove|disprove)\b|(?:show|demonstrate|verify|deduce|conclude|check|justify|establish) (?:that|why|how|the)\b)",
    re.IGNORECASE,
)
_PROVE_WORDS = ("prove", "show", "demonstrate", "verify", "deduce", "conclude", "check", "justify", "establish")
_VALUE = re.compile(
    r"\b(?:find|determine|compute|calculate|evaluate|what|how (?:many|much|long|far|large|small|old)|which|who|when|where"
    r"|solve|express|simplify|give|obtain|count|minimi[sz]e|maximi[sz]e|true or false|is it)\b|\?|求"
)
_NO_ANSWER = re.compile(
    r"\b(?:see (?:the )?(?:solution|proof|above|below)|proofs? (?:omitted|above|below|given|follows|complete)|q\.e\.d|answers? (?:may |will )?var(?:y|ies)"
    r"|not (?:available|provided)|no answer)|^\W*(?:text\s*\{)?\W*(?:proof|proved|proven|proven above|qed|n/a|none given)\W*$"
)


def _proof(prompt: str, low: str, answer: str) -> str:
    """The words that ask for a proof where no value is asked for, or the gold that says it is none."""
    if found := _NO_ANSWER.search(answer.lower()):
        return found[0]
    found = _PROVE.search(prompt) if any(word in low for word in _PROVE_WORDS) else None
    if found is None or _VALUE.search(low):
        return ""
    return found[0].lstrip(" .;:!?,*)]$\n")


# --- multiple choice ----------------------------------------------------------------------------------------------------

_LETTER = re.compile(r"\W*(?:\\(?:text|textbf|mathrm|mathbf|textit|boxed)\s*\{)?\W*([A-J](?:[\s,]*[B-J]){0,4})\W*")
_OF_THE_FOLLOWING = re.compile(
    r"\bwhich (?:one |ones |two )?(?:of|among) (?:the following|these|the (?:options|choices|answers))\b"
)
_OPTIONS = re.compile(
    r"(?:^|[\s$({*\\;,\]}])(?:(?:text|textbf|mathrm|mathbf|bf|rm)\s*)?[{(]*\s*(?:A|a|1|I|i)\s*[).:](?!\w)|①|\n\s*[-*•]\s|\\item|\\bullet"
)


def _choice(prompt: str, low: str, answer: str) -> tuple[str, str] | None:
    """A gold that is the letter of an option, or a question about options that are not there.

    The verifier takes for such a gold the letter alone: the value of the option, which is no worse an answer, is judged
    wrong, and one guess in five is judged right. A letter that the problem itself names (a point, a matrix, a player) is a
    value like any other.
    """
    if letter := _LETTER.fullmatch(answer):
        true_or_false = "true or false" in low or "true/false" in low
        if _OPTIONS.search(prompt) and re.search(r"(?<![A-Za-z])(?:B|b|2|II|ii)\s*[).:]|②", prompt):
            return "letter of an option", letter[1]
        if true_or_false or not all(_names(prompt, one) for one in re.findall("[A-J]", letter[1])):
            return "options missing", f"the answer is {letter[1]}"
    found = _OF_THE_FOLLOWING.search(low)
    if found and not _OPTIONS.search(prompt) and not _offers(low[found.end() :]):
        return "options missing", found[0]
    return None


def _names(prompt: str, letter: str) -> bool:
    return re.search(rf"(?<![A-Za-z]){letter}(?![a-z])", prompt) is not None


def _offers(rest: str) -> bool:
    """Whether something to choose from may stand in what follows: a list, lines, a sentence after the question."""
    return (
        rest.count(",") >= 2
        or ":" in rest
        or "\n" in rest.strip()
        or re.search(r"[?.]\s*\S|\bor\b|\band\b", rest) is not None
    )
