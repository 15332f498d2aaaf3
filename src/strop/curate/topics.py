r"""Which field of mathematics a problem is from, by the words and LaTeX commands in it.

A table of words with weights, and a sum: anybody can see why a problem got its topic (`evidence`), and a million problems
take a minute. No model, and no claim to be one: a problem that mixes fields gets the one with most words. A row's own
column (subject, topic, domain, type) is believed before the words. Read by `curate.filters`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["OWN_COLUMNS", "TOPICS", "evidence", "named", "topic"]

TOPICS = {
    "algebra": "equations, polynomials, functions, sequences, inequalities, complex numbers, vectors and matrices, groups",
    "arithmetic": "sums and word problems: money, ages, rates, percentages, averages",
    "calculus": "limits, derivatives, integrals, series, differential equations, analysis",
    "combinatorics": "counting and probability, graphs, games",
    "geometry": "figures in the plane and in space, trigonometry",
    "logic": "true and false, liars, puzzles, sets as such",
    "number theory": "divisibility, primes, remainders, digits, bases",
    "other": "none of these words",
}

_WORDS: dict[str, dict[int, str]] = {
    "algebra": {
        1: "z f = expression value values solve real solution solutions sequence term terms sum variable satisfies satisfying rational"
        r" quadratic expand \log log line slope intercept exponent fraction inequality domain range \le \ge \leq \geq simplify matrix"
        r" product operation vector vectors \mathbf nonnegative minimum maximum parabola ellipse hyperbola graph coordinate",
        2: r"x y ^ discriminant equation equations function functions coefficient coefficients root roots inequalities arithmetic inverse inversely factor"
        r" denominator complex logarithm \lfloor \lceil vertex asymptote asymptotes system geometric proportional eigenvalue"
        r" linear interest basis subspace isomorphic homomorphism subgroup kernel dimension",
        4: r"polynomial polynomials monic cubic quartic quintic rationalize nonreal conjugate \det determinant pmatrix bmatrix matrices"
        " eigenvalues ideal foci focus directrix abelian vieta unity",
    },
    "arithmetic": {
        1: "how-many much he his they their many more each per total spent left day days week weeks hour hours minutes miles twice half buys gave"
        r" \div average percent % price students bought sold money old times has had does will if after",
        2: "she her cost costs dollars dollar cents pounds gallons earns pays paid sells buy mph speed apples cookies mom month months year"
        " years class school store evaluate mean median calories salary discount train car water tank worker workers",
        3: "profit tax wage ounces tip",
    },
    "calculus": {
        2: r"converge convergent converges diverges bounded continuous \infty e^x dx interval \partial \sum",
        4: r"\lim limit differentiable integrable \to derivatives series analytic entire holomorphic measure supremum infimum metric topology"
        " compact residue region banach hilbert lebesgue norm",
        6: r"\int \iint \iiint \oint derivative integral integrals integrate integration differential antiderivative taylor maclaurin limits"
        r" \nabla laplace fourier homotopy manifold topological",
    },
    "combinatorics": {
        1: "ways can choose possible kinds kind identical orders people each two row seats order players member members color colors board game students"
        " cards letters persons table moves team boxes box red blue green white black chessboard words",
        2: "! different selected chosen likely dice die coin coins deck balls ball distinguishable indistinguishable grid committee tournament"
        " rolls rolled flips flipped urn marbles sit win wins colored coloured vertices path paths seated arranged subsets permutation",
        3: r"\binom \dbinom replacement heads tails fair bag draws player expected arrangements permutations rearrangements combinations"
        " chance tosses",
        4: "probability random randomly how-ways",
    },
    "geometry": {
        1: r"ab bc ac cd ad abcd point points side sides length plane right line lines segment \circ regular cube rectangle square"
        r" units inches cm distance center \sin \cos \tan \pi degrees surface midpoint midpoints intersect intersects height",
        2: r"area \angle angle angles circle circles radius volume diameter perimeter tangent parallel perpendicular inscribed chord"
        r" \overline diagonal diagonals \theta \cot \sec sphere cylinder arc \parallel \perp asy edge face faces sector bisector \arctan \arcsin \arccos",
        3: r"triangle \triangle triangles polygon hexagon pentagon octagon trapezoid quadrilateral pyramid cone circumscribed hypotenuse tetrahedron"
        r" rhombus parallelogram isosceles equilateral circumcircle incircle median altitude orthocenter circumcenter incenter"
        " radians prism polar spherical circumference trigonometric",
    },
    "logic": {
        1: "statement statements says set",
        2: "true false truth lie lies liar liars tells always",
        4: "knight knights knave knaves proposition propositions implies contrapositive negation logically cardinality bijection injective"
        " premise premises",
    },
    "number theory": {
        1: "integer integers positive n digit largest smallest least greatest natural odd even multiple perfect consecutive",
        2: "digits multiples remainder factors divides divisible divided base repeating decimal inclusive primes units tens palindrome"
        r" \mid representation factorization ones leaves coprime prime",
        3: r"divisor divisors remainders \equiv \pmod \bmod \gcd gcd lcm \mathrm{lcm} modulo mod congruent congruence residue relatively"
        " diophantine totient terminating composite squarefree hexadecimal binary",
    },
}  # fmt: skip
_WEIGHTS: dict[str, dict[str, int]] = {}
for _topic, _by_weight in _WORDS.items():
    for _weight, _words in _by_weight.items():
        for _word in _words.split():
            _WEIGHTS.setdefault(_word, {})[_topic] = _weight

_TOKEN = re.compile(r"\\?[a-z]+")
_DRAWING = re.compile(r"\[asy\](?:[^\[]|\[(?!/asy\]))*+(?:\[/asy\])?")
_SIGNS = {  # what is no word, by the name it has among the words
    "^": re.compile(r"(?<![a-z])[a-z] ?\^"),
    "=": re.compile(r"(?<![a-z])[a-z] ?[-+=<>]|[-+=<>] ?[a-z](?![a-z])"),
    "!": re.compile(r"\d!"),
    "%": re.compile(r"\d ?\\?\$?\\?%"),
    "how-ways": re.compile(
        r"\bhow many (?:different |distinct |possible )?(?:ways|orders|arrangements|combinations|sequences|paths|sets|subsets)\b|\bnumber of (?:different |distinct )?ways\b"
    ),
    "how-many": re.compile(
        r"\bhow (?:many (?!ways|different|distinct|possible|integers|positive|of)|much|long|far|old)"
    ),
}
MOST_CHARS = 4000  # of a problem that are read
FEWEST = 1  # weights that make a topic

OWN_COLUMNS = ("topic", "subject", "domain", "type", "category")
_NAMED = (  # what a column's value holds, in order: "precalculus" is no calculus, and says too little to be believed
    ("precalculus", ""),
    ("number theory", "number theory"),
    ("counting", "combinatorics"),
    ("probability", "combinatorics"),
    ("combinatori", "combinatorics"),
    ("discrete", "combinatorics"),
    ("geometry", "geometry"),
    ("trigonometry", "geometry"),
    ("calculus", "calculus"),
    ("analysis", "calculus"),
    ("prealgebra", "arithmetic"),
    ("arithmetic", "arithmetic"),
    ("word problem", "arithmetic"),
    ("algebra", "algebra"),
    ("logic", "logic"),
)


def topic(prompt: str, meta: Mapping[str, Any] | None = None) -> str:
    r"""One of TOPICS: the row's own, where it names one that we know, else the one with most evidence.

    >>> topic(r"Find the remainder when $7^{100}$ is divided by 13."), topic("Expand.", {"subject": "counting_and_probability"})
    ('number theory', 'combinatorics')
    """
    return named(meta or {}) or _most(evidence(prompt))


def named(meta: Mapping[str, Any]) -> str:
    """The topic that a column of the row names; "" where none does."""
    for column in OWN_COLUMNS:
        value = meta.get(column)
        if isinstance(value, str) and value.strip().casefold() in TOPICS:
            return value.strip().casefold()
        if isinstance(value, str):
            folded = value.casefold().replace("_", " ").replace("-", " ")
            if found := next((ours for name, ours in _NAMED if name in folded), ""):
                return found
    return ""


def evidence(prompt: str) -> dict[str, int]:
    """Of each topic the sum of the weights of the words found, each word counted once.

    >>> evidence("What is the area of a circle of radius 3?")
    {'geometry': 6}
    """
    low = prompt[:MOST_CHARS].lower()
    if "[asy]" in low:
        low = _DRAWING.sub(" asy ", low)
    signs = {sign for sign, pattern in _SIGNS.items() if pattern.search(low)}
    found: Counter[str] = Counter()
    for word in signs.union(_TOKEN.findall(low)):
        for ours, weight in _WEIGHTS.get(word, {}).items():
            found[ours] += weight
    return dict(sorted(found.items()))


def _most(found: Mapping[str, int]) -> str:
    best = max(found, key=lambda ours: (found[ours], ours), default="other")
    return best if found.get(best, 0) >= FEWEST else "other"
