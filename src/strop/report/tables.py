r"""The results as text: a table for a paper in Markdown or LaTeX, and the lengths for a terminal.

Knows how a table is written and what must be escaped in it; the numbers come from `evidence` and `lengths`. Read by the
command line (`strop report RUN --table`) and by the page. Every figure has its 95% interval behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from strop import lengths
from strop.report import evidence, words
from strop.report.evidence import Measured
from strop.report.facts import RunFacts
from strop.stats import Estimate

__all__ = ["TABLES", "latex", "lengths_text", "markdown"]

MISSING = "–"
HEAD = ("tasks", "model", "n", "greedy", "k", "avg@k", "pass@k", "maj@k", "tokens", "cut, %")
NUM_NAMES = 2  # columns that hold names; the rest are numbers


def markdown(facts: RunFacts, measured: Sequence[Measured]) -> str:
    """A GitHub table with its caption below. Names are escaped: none can break out of its cell."""
    rows = [[_md(cell) if i < NUM_NAMES else cell for i, cell in enumerate(_cells(m))] for m in measured]
    rule = ["---"] * NUM_NAMES + ["---:"] * (len(HEAD) - NUM_NAMES)
    table = "\n".join(f"| {' | '.join(row)} |" for row in (HEAD, rule, *rows))
    return f"{table}\n\n{_md(_caption(facts, measured))}\n"


def latex(facts: RunFacts, measured: Sequence[Measured]) -> str:
    r"""A `table` environment for the booktabs package; names and caption are escaped."""
    rows = [
        " & ".join(_tex(cell) if i < NUM_NAMES else cell.replace(MISSING, "--") for i, cell in enumerate(_cells(m)))
        + r" \\"
        for m in measured
    ]
    head = " & ".join(map(_tex, HEAD)) + r" \\"
    columns = "l" * NUM_NAMES + "r" * (len(HEAD) - NUM_NAMES)
    return "\n".join([
        r"\begin{table}", r"\centering\small", rf"\caption{{{_tex(_caption(facts, measured))}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}",
        r"\end{table}", "",
    ])  # fmt: skip


def lengths_text(facts: RunFacts, measured: Sequence[Measured]) -> str:
    """Length against correctness of every evaluation, for people at a terminal."""
    return "\n".join(line for m in measured for line in _length_lines(m)) + "\n"


# what `--table` may ask for
TABLES: dict[str, Callable[[RunFacts, Sequence[Measured]], str]] = {
    "markdown": markdown, "latex": latex, "lengths": lengths_text,
}  # fmt: skip


# --- the results ------------------------------------------------------------------------------------------------------


def _cells(m: Measured) -> list[str]:
    return [
        m.tasks, m.model.label, str(m.num_tasks), _percent(m.greedy), str(m.num_samples) if m.num_samples else MISSING,
        _percent(m.avg), _percent(m.curve[-1][1] if m.curve else None), _percent(m.maj), _number(m.mean_tokens), _percent(m.truncated_frac),
    ]  # fmt: skip


def _percent(e: Estimate | None) -> str:
    return MISSING if e is None else f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"


def _number(e: Estimate) -> str:
    return f"{e.value:.0f} [{e.low:.0f}, {e.high:.0f}]"


def _caption(facts: RunFacts, measured: Sequence[Measured]) -> str:
    """What the numbers are, how they were taken, and of which weights."""
    stages = {m.stage.name: m.stage for m in measured}
    ways: dict[str, list[str]] = {}
    for name, stage in stages.items():
        ways.setdefault(evidence.protocol(facts, stage), []).append(name)
    how = [way if len(ways) == 1 else f"{', '.join(names)}: {way}" for way, names in ways.items()]
    labels = {m.stage.name: m.model.label for m in measured}
    prints = evidence.fingerprints(facts, stages)
    hashes = [f"{labels[p.stage]} {p.model}" for p in prints if p.model]
    unknown = [f"{labels[p.stage]} {p.served_as}" for p in prints if p.served_as and not p.model]
    said = [
        "Accuracy in per cent with 95% intervals over problems: Wilson for greedy answers and where all problems agree, else "
        "bootstrap. Tokens and the share cut by the limit are of the sampled answers where there are any.",
        f"Asked for: {'; '.join(how)}.",
        *([f"Weights (SHA-256): {'; '.join(hashes)}."] if hashes else []),
        *([f"Weights not known, served as: {'; '.join(unknown)}."] if unknown else []),
        *facts.benchmark_limits(),
        f"One training run, seed {facts.recipe.seed}." if facts.main() else "",
    ]
    return " ".join(filter(None, said))


def _md(text: str) -> str:
    r"""
    >>> print(_md("a|b_c <i>\n"))
    a\|b\_c \<i\>
    """
    return re.sub(r"([\\`*_\[\]<>|&#~$!])", r"\\\1", _one_line(text))


TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "*": "{*}", MISSING: "--",  # after \\, [ and * are arguments
    **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


def _tex(text: str) -> str:
    r"""
    >>> print(_tex("a_b & 5% [x] \\input{y}"))
    a\_b \& 5\% {[}x] \textbackslash{}input\{y\}
    """
    return "".join(TEX.get(c, c) for c in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(words.visible(text).split())


# --- lengths ----------------------------------------------------------------------------------------------------------


def _length_lines(m: Measured) -> list[str]:
    asked = f"{m.num_samples} samples a task" if m.num_samples else "greedy"
    out = [
        "",
        f"{_one_line(m.tasks)}, {_one_line(m.model.label)} ({m.num_tasks} tasks, {asked}, limit {m.stage.max_tokens} tokens)",
    ]
    out.append(f"  {'pass rate, %':14}{'outcome':11}{'answers':>9}{'mean':>9}{'median':>9}{'p90':>9}   tokens")
    out += [
        f"  {c.pass_bin:14}{c.outcome:11}{c.num_answers:>9}{c.mean_tokens:>9.1f}{c.median_tokens:>9.1f}{c.p90_tokens:>9.1f}"
        for c in lengths.by_difficulty(m.answers)
    ]
    if cost := lengths.tokens_per_right(m.answers):
        out.append(f"  a right answer costs {written(cost)} tokens")
    if shortest := lengths.shortest_right(m.answers):
        out.append(f"  shortest right answer: median {shortest[1]:.0f} tokens over {shortest[0]} tasks")
    for view in lengths.views(m.answers, m.stage.max_tokens) if m.num_samples > 1 else []:
        what = f"  limit {view.cap_tokens}, {'with' if view.with_truncated else 'without'} cut answers: "
        out.append(what + (_gap(view.gap) if view.gap else "no task has both right and wrong answers"))
    points = lengths.at_budgets(m.answers, m.stage.max_tokens)
    shown = [f"{p.budget_tokens}: {_percent(p.acc)}" for p in points]
    out.append(f"  accuracy (%) by budget in tokens: {'; '.join(shown)}")
    return out


def _gap(gap: lengths.Gap) -> str:
    return (
        f"wrong answers are {written(gap.tokens, words.tenths)} tokens longer within a task, {written(gap.times)} times as long, longer in "
        f"{words.percent(gap.longer_frac)} of {gap.num_tasks} tasks; AUC {written(gap.auc)}"
    )


def written(e: Estimate, write: Callable[[float], str] = words.plain) -> str:
    """
    >>> written(Estimate(value=12.34, low=-1.0, high=1e6))
    '12.3 [−1.00, 1,000,000]'
    """
    return f"{write(e.value)} [{write(e.low)}, {write(e.high)}]"
