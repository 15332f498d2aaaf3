r"""Texts that a policy could write to hang, crash or fool a verifier, and sound ones among them whose verdict is known.

Every text is drawn from a seed. Two in ten are sound; of the hostile ones most end at a guard, and one in `hang_every`
makes computer algebra run for good.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from strop.record import Task

GOLDS = (
    "1729",
    "-12",
    "0.25",
    r"\frac{3}{7}",
    "2x+3",
    r"\sqrt{2}",
    "(1, 2]",
    "{1, 2, 3}",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
)
HANG = [
    lambda r: rf"\sum_{{k=1}}^{{10^{{{r.randint(8, 14)}}}}} \sin(k^{{{r.randint(2, 9)}}})",
    lambda r: rf"\prod_{{k=1}}^{{10^{{{r.randint(8, 12)}}}}} (1 + \frac{{1}}{{k^{{{r.randint(2, 9)}}}}})",
    lambda r: rf"\int_0^{{{r.randint(1, 99)}}} x^{{x^x}} \cos(e^x) dx",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    kind: str
    task: Task
    text: str
    correct: bool | None  # None: anything but right is fine


def _nest(r: random.Random, opening: str, inner: str, closing: str, most: int) -> str:
    depth = r.randint(5, most)
    return opening * depth + inner + closing * depth


# Each draws what stands in the box, or with "whole" the whole text.
HOSTILE: dict[str, Callable[[random.Random], str]] = {
    "nested fractions": lambda r: _nest(r, r"\frac{1}{1+", "x", "}", 2000),
    "nested roots": lambda r: _nest(r, r"\sqrt{", str(r.randint(2, 99)), "}", 3000),
    "nested powers": lambda r: _nest(r, "x^{", "2", "}", 3000),
    "nested brackets": lambda r: _nest(r, r.choice("([{"), "1", r.choice(")]}"), 50_000),
    "nested sets": lambda r: _nest(r, r"\{", "1, 2", r"\}", 5000),
    "nested text": lambda r: _nest(r, r"\text{", "5", "}", 5000),
    "nested matrices": lambda r: _nest(r, r"\begin{pmatrix} 1 & ", "5", r" \end{pmatrix}", 500),
    "open brackets": lambda r: "(" * r.randint(100, 100_000),
    "tower": lambda r: "^{".join([str(r.randint(2, 99))] * r.randint(3, 9)) + "}" * 8,
    "huge power": lambda r: f"{r.randint(2, 99)}^{{{r.randint(10**6, 10**18)}}}",
    "huge negative power": lambda r: f"10^{{-{r.randint(10**6, 10**18)}}} + {r.randint(1, 9)}",
    "factorial": lambda r: f"(({r.randint(10, 10**10)})!)!",
    "binomial": lambda r: rf"\binom{{{r.randint(10**6, 10**12)}}}{{{r.randint(10**5, 10**6)}}}",
    "huge digits": lambda r: "9" * r.randint(1000, 200_000),
    "huge decimal": lambda r: "0." + "3" * r.randint(1000, 100_000),
    "exponent": lambda r: f"1e{r.randint(10**4, 10**15)}",
    "many terms": lambda r: " + ".join(rf"\sqrt[{i}]{{x^{i}}}" for i in range(2, r.randint(20, 300))),
    "many factors": lambda r: "".join(f"(x+{i})" for i in range(r.randint(20, 400))) + f"^{r.randint(2, 999)}",
    "many answers": lambda r: ", ".join(str(i) for i in range(r.randint(100, 5000))),
    "many equals": lambda r: " = ".join(str(i) for i in range(r.randint(10, 2000))),
    "many unions": lambda r: r" \cup ".join(f"({i}, {i + 1})" for i in range(r.randint(10, 500))),
    "many variables": lambda r: " ".join(f"x_{{{i}}}" for i in range(r.randint(10, 1000))),
    "big matrix": lambda r: r"\begin{pmatrix} " + r" \\ ".join(" & ".join("12345") for _ in range(r.randint(5, 200))) + r" \end{pmatrix}",
    "spaces": lambda r: "5" + " " * r.randint(1000, 100_000) + "x",
    "word without end": lambda r: "a" * r.randint(1000, 100_000) + "!",
    "digits and commas": lambda r: "1,111" * r.randint(100, 10_000) + "x",
    "minus signs": lambda r: "-" * r.randint(100, 50_000) + "5",
    "dollars": lambda r: "$" * r.randint(100, 50_000) + "5",
    "backslashes": lambda r: "\\" * r.randint(100, 50_000),
    "units": lambda r: "5 " + "square meter per " * r.randint(10, 2000),
    "whole: boxes": lambda r: r"\boxed{" * r.randint(100, 20_000),
    "whole: closed boxes": lambda r: r"\boxed{7} " * r.randint(100, 20_000) + r"\boxed{8}",
    "whole: answer is": lambda r: "the answer is " * r.randint(100, 10_000),
    "whole: tags": lambda r: "<answer>" * r.randint(100, 10_000) + "</answer" * 100,
    "whole: dollars": lambda r: "$x$ " * r.randint(100, 20_000),
    "whole: bold": lambda r: "**" * r.randint(100, 30_000) + "answer: 7",
    "whole: lines": lambda r: "\n" * r.randint(100, 100_000),
    "whole: odd characters": lambda r: "".join(chr(r.choice([0, 1, 2, 3, 0x202E, 0x200B, 0xD800, 0xFFFF, 0x1F600, 0x0661])) for _ in range(r.randint(10, 2000))),
    "whole: junk": lambda r: "".join(r.choice(r"\{}()[]^_$&=+-*/,.!0123456789abxyz " ) for _ in range(r.randint(10, 3000))),
    "whole: commands": lambda r: "".join(r.choice([r"\frac", r"\sqrt", r"\left", r"\right", "{", "}", r"\boxed{", "^", "_", "1", "x", r"\begin{array}", r"\\", "&"]) for _ in range(r.randint(10, 500))),
}  # fmt: skip


def cases(num: int, *, seed: int = 0, hang_every: int = 100) -> list[Case]:
    """`num` cases, each of its own text, so that no verdict comes out of a cache."""
    r = random.Random(seed)
    kinds = list(HOSTILE)
    return [_case(i, r, kinds, hang_every) for i in range(num)]


def _case(i: int, r: random.Random, kinds: list[str], hang_every: int) -> Case:
    verifier = r.choice(("math", "math", "number"))
    if i % 5 == 0:  # sound, and right or wrong
        answer, right = r.randint(-999, 999), r.random() < 0.5
        text = rf"Case {i}: we add and get \boxed{{{answer if right else answer + r.randint(1, 9)}}}."
        task = Task.make(source="sound", prompt=f"What is case {i}?", answer=str(answer), verifier=verifier)
        return Case(kind="sound", task=task, text=text, correct=right)
    if i % hang_every == 1:
        kind, text = "hang", rf"\boxed{{{r.choice(HANG)(r)}}}"
    else:
        kind = kinds[i % len(kinds)]
        drawn = HOSTILE[kind](r)
        text = drawn if kind.startswith("whole") else rf"\boxed{{{drawn}}}"
    task = Task.make(source="hostile", prompt=f"What is case {i}?", answer=r.choice(GOLDS), verifier=verifier)
    return Case(kind=kind, task=task, text=f"{i} {text}" if kind.startswith("whole") else text, correct=None)
