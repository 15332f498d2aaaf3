r"""Where in a response the final answer is: the last box, `<answer>`, `#### x`, "the answer is x", or the tail.

Knows text only: it neither reads mathematics nor judges. Everything is one linear pass, because the text is hostile:
100,000 nested braces cost milliseconds. Read by the verifiers and by the `format` reward.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

__all__ = ["Box", "Found", "boxes", "find", "has_prose", "marked", "stated", "tail", "without_echo"]

How = Literal["box", "tag", "line", "bare", "tail", "open", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    r"""One outermost `\boxed{...}`: `text[start:end]` is all of it; `content` is None where it is never closed."""

    start: int
    end: int
    content: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer as written, and how it was found. `open` is a box that was never closed, `none` is nothing."""

    text: str
    how: How

    @property
    def marked(self) -> bool:
        """True where the writer said that this is the answer, False where we took the end of the text for it."""
        return self.how in ("box", "tag", "line")


_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*(\{?)|\\.|[{}]", re.DOTALL)
_ONE_TOKEN = re.compile(r"\\[a-zA-Z]+|\d+|\S")


def boxes(text: str) -> list[Box]:
    r"""The outermost boxes in order; an unclosed one comes last. Escaped braces do not count.

    >>> [b.content for b in boxes(r"\boxed{1} so \boxed{\frac{1}{2}} and \boxed5")]
    ['1', '\\frac{1}{2}', '5']
    """
    done: list[Box] = []
    stack: list[tuple[int, int] | None] = []  # of open braces; a box's knows where it starts and where its content does
    for token in _BOX_TOKEN.finditer(text):
        if token[0] == "{":
            stack.append(None)
        elif token[1]:
            stack.append((token.start(), token.end()))
        elif token[0] == "}":
            opened = stack.pop() if stack else None
            if opened is not None:
                while done and done[-1].start > opened[0]:  # those inside this one
                    done.pop()
                done.append(Box(start=opened[0], end=token.end(), content=text[opened[1] : token.start()]))
        elif len(token[0]) > 2 and (one := _ONE_TOKEN.match(text, token.end())):
            done.append(Box(start=token.start(), end=one.end(), content=one[0]))
    unclosed = [opened for opened in stack if opened is not None]
    if unclosed:
        done = [box for box in done if box.start < unclosed[0][0]]
        done.append(Box(start=unclosed[0][0], end=len(text), content=None))
    return done


_JOINT = re.compile(r"[\s$.]*(?:,|;|\bor\b|\band\b|\\text\{\s*(?:or|and)\s*\}|[\s$])+[\s$]*", re.IGNORECASE)


def _box(text: str) -> Found | None:
    r"""The last box. Boxes joined by nothing but a comma, "or" or "and" are one answer in parts: listing is no gain."""
    found = boxes(text)
    if not found:
        return None
    if found[-1].content is None:
        return Found(text="", how="open")
    return Found(text=_joined(_runs(text, found)[-1]), how="box")


def _runs(text: str, found: list[Box]) -> list[list[Box]]:
    """The boxes, those that are one answer in parts together."""
    runs = [found[:1]]
    for left, right in pairwise(found):
        between = text[left.end : right.start]
        if not between.strip(" \n\t$") or len(between) > 40 or not _JOINT.fullmatch(between):
            runs.append([])
        runs[-1].append(right)
    return runs


def _joined(parts: list[Box]) -> str:
    return ", ".join(_unbox(box.content or "") for box in parts)


def _unbox(content: str) -> str:
    """The inside of boxes within a box."""
    for _ in range(3):
        inner = boxes(content)
        if len(inner) != 1 or inner[0].content is None or content[: inner[0].start].strip() not in ("", "$"):
            break
        content = inner[0].content
    return content.strip()


_PHRASE = re.compile(
    r"\banswers?\b(?:[ \t]+(?:to|for|of)\b[^\n:=]{0,80}?)?[ \t]*[*_]*[ \t]*(?:\bis\b|\bare\b|\bwill be\b|:|=)[ \t:*_]*",
    re.IGNORECASE,
)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(?=\S)", re.MULTILINE)
_HEADING = re.compile(r"[$\\(\[{+.-]*\d|[\\$(\[{]|-")  # what a `####` must start with, to be no Markdown heading
_SENTENCE_END = re.compile(r"[.!?](?=\s|\*|$)|,?\s+(?:because|since|which|so|as|when|where)\b|\bI hope\b")


def _line(text: str) -> tuple[Found, int] | None:
    """The last `#### x` or "answer is x", whichever comes later, and where it ends in the text."""
    starts = _starts(text)
    return _value(text, starts[-1]) if starts else None


def _starts(text: str) -> list[int]:
    """Where something that is called the answer begins: after `####`, after "answer is"; in order."""
    last_line = text.rstrip().rfind("\n") + 1  # there `####` always is an answer; before, it may be a Markdown heading
    hashes = [m.end() for m in _HASHES.finditer(text) if m.end() >= last_line or _HEADING.match(text, m.end())]
    return sorted(hashes + [m.end() for m in _PHRASE.finditer(text)])


def _value(text: str, start: int) -> tuple[Found, int] | None:
    """What stands there, and where it ends."""
    while start < len(text) and text[start] in "\n \t*$" and text[start] != "$":
        start += 1  # "Answer:" may stand alone on its line
    line = text[start : start + 2000].split("\n", 1)[0]
    stop = _SENTENCE_END.search(line)
    value = line[: stop.start()] if stop else line
    if not value.strip():
        return None
    return Found(text=value.strip().strip("*_").strip(), how="line"), start + len(value)


def _tag(text: str) -> Found | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end)
    if end < 0 or start < 0:
        return None
    inner = text[start + len("<answer>") : end].strip()
    within = _box(inner) or (line[0] if (line := _line(inner)) else None)
    return Found(text=inner if within is None else within.text, how="tag" if within is None else within.how)


def find(text: str) -> Found:
    r"""The final answer of a response, or of a bare answer.

    What follows the last `</think>` is looked at alone, unless there is no answer in it. Order: box, `<answer>`,
    the later of `#### x` and "answer is x", the whole text if it is short, else its last expression.

    >>> find(r"First \boxed{3}. No: \boxed{\dfrac{1}{2}}.").text, find("7 + 5 = 12\n#### 12").text, find("It is 5 cm.").text
    ('\\dfrac{1}{2}', '12', 'It is 5 cm.')
    """
    final = text.rpartition("</think>")[2]
    found = _find(final)
    if found.how == "none" and final != text:
        found = _box(text) or found
    return found


def _find(text: str) -> Found:
    text = text.strip()
    if found := _box(text) or _tag(text):
        return found
    if line := _line(text):
        return line[0]
    if len(text) <= 300 and len(_PROSE.findall(text)) <= 3 and text.count("\n") <= 12:
        return Found(text=text, how="bare" if text else "none")
    last = tail(text)
    return Found(text=last, how="tail" if last else "none")


FEWEST_WORDS = 5  # of a sentence that nobody writes twice by chance


def without_echo(text: str, problem: str) -> str:
    """A response without the sentences of the problem that it repeats word for word: their numbers are no answer.

    >>> without_echo("There are 42 legs and 17 heads. So 4.", "There are 42 legs and 17 heads. How many sheep?").strip()
    'So 4.'
    """
    for sentence in re.split(r"(?<=[.?!])\s+|\n", problem):
        if len(sentence.split()) >= FEWEST_WORDS:
            text = text.replace(sentence.strip(), " ")
    return text


def marked(text: str) -> bool:
    """True where a response that was cut off had already stated its answer, whole."""
    final = text.rpartition("</think>")[2]
    found = _box(final) or _tag(final)
    if found is not None:
        return found.how != "open"
    line = _line(final)
    return line is not None and line[1] < len(final)  # at the very end the answer itself may have been cut


def stated(text: str) -> list[str]:
    r"""Every value that a text calls its answer, in order: boxes, `#### x`, "answer is x"; thinking is not left out.

    Boxes joined as one answer are one value, and so is a phrase that a box follows. What the answers to parts of a
    problem are cannot be told from answers to the whole.

    >>> stated(r"The answer is 4. Wait, check again: the answer is $\boxed{5}$, so \boxed{5}.")
    ['4', '5', '5']
    """
    text = text.replace("</think>", "\n")  # where thinking ends, a line ends
    found = [box for box in boxes(text) if box.content is not None]
    places = [(run[0].start, _joined(run)) for run in _runs(text, found)] if found else []
    taken = [box.start for box in found]
    for start in _starts(text):
        value = _value(text, start)
        follows = bisect.bisect_left(taken, start)
        if value is not None and not (follows < len(taken) and taken[follows] < value[1]):
            places.append((start, value[0].text))
    return [value for _, value in sorted(places) if value]


_PROSE = re.compile(
    r"(?<![\\A-Za-z])(?!(?:or|and|sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|sqrt|pi|mod|min|max)\b)[A-Za-z]{2,}"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|mathrm|textbf|textit)\s*\{([^{}]*)\}")
_NUMERIC = re.compile(r"\d|\\(?:pi|infty|sqrt|frac)")


def has_prose(text: str) -> bool:
    """True where a text holds words besides commands, names of functions, "or" and "and"."""
    return _PROSE.search(text) is not None


def tail(text: str) -> str:
    """The last piece of mathematics between the words of a text, cut after its last equals sign; "" if none.

    >>> tail("She makes 9 * 2 = $18 every day."), tail("So the roots are 3 and 5."), tail("No idea at all.")
    ('$18', '3 and 5', '')
    """
    for line in reversed(text[-4000:].split("\n")):
        if not _NUMERIC.search(line):
            continue
        line = _TEXT_COMMAND.sub(lambda m: f" {m[1]} " if m[1].strip() in ("or", "and") else " ", line)
        pieces = [piece for piece in _PROSE.split(line) if _NUMERIC.search(piece)]
        if pieces:
            return _trim(re.split(r"(?<![<>!\\])=", pieces[-1])[-1])
    return ""


def _trim(piece: str) -> str:
    """Without the punctuation and the "and"s at both ends, and without a bracket that has no partner."""
    while True:
        before = piece
        piece = re.sub(
            r"^(?:[\s,;:.!?*'\"]|and\b|or\b)+(?!\d)|^(?:[\s,;:*'\"]|and\b|or\b)+|(?:[\s,;:.!?*'\"]|\band|\bor)+$",
            "",
            piece,
        )
        for left, right in ("()", "[]"):
            while (piece.endswith(right) and left not in piece) or piece.endswith(left):  # thousands of them, too
                piece = piece[:-1]
            while (piece.startswith(left) and right not in piece) or piece.startswith(right):
                piece = piece[1:]
        if piece == before:
            return piece
