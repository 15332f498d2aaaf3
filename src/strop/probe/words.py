"""What a person reads of a probe, line by line. Knows the findings of the rest of this room and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from strop import stats
from strop.probe.after import After, Coverage, Surprise
from strop.probe.answers import in_percent, in_points
from strop.probe.before import Before, Chain, Reflection
from strop.probe.gate import Advice
from strop.probe.judge import Judged
from strop.probe.templates import Row

__all__ = ["after", "before", "judged", "surprise", "templates"]

CHAINS = 3  # shown of the answers to tasks that are hardly ever solved
CHAIN_CHARS = 400  # of a problem, and of the end of an answer
TABLED = ("answered", "boxed", "truncated", "right")  # of a template's rates


def before(found: Before, advice: Advice) -> list[str]:
    """The report of one model."""
    out = [f"{found.num_tasks} tasks, {found.num_samples} samples each, {found.mean_tokens:.0f} tokens an answer", ""]
    out += [f"{name:18}{in_percent(rate)}" for name, rate in found.rates.items()]
    out += ["", f"{'k':>5}  {'pass@k':>24}  {'maj@k':>24}"]
    out += [
        f"{p.k:>5}  {in_percent(p):>24}  {in_percent(m):>24}"
        for p, m in zip(found.pass_at, found.majority_at, strict=True)
    ]  # fmt: skip
    out += [f"headroom over one try: {in_points(found.headroom)}", ""]
    out += [
        f"{f'signal at {s.group}':18}{in_percent(s.frac)} of tasks neither all right nor all wrong"
        for s in found.signals
    ]
    out += ["", *(line for r in found.reflections for line in _reflection(r))]
    out += [
        f"{b.name:18}{in_percent(b.answers)} of answers, {b.per_answer:.2f} times each (patterns: approximate)"
        for b in found.behaviours
    ]
    c = found.corrections
    out.append(
        f"changed answers: {c.helped} wrong to right, {c.hurt} right to wrong, {c.neither} wrong to wrong, of {c.num_answers} "
        "that state one"
    )
    return [*out, *_chains(found.rare), "", f"{advice.do}: {advice.words}"]


def _reflection(r: Reflection) -> list[str]:
    out = [
        f"{r.keywords:18}{in_percent(r.answers)} of answers and {r.tasks_frac:.0%} of tasks hold a word of reflection"
    ]
    if r.acc_with is None or r.acc_without is None:
        return out
    gain = "no task has both" if r.gain is None else f"{in_points(r.gain)} within the {r.num_paired} tasks with both"
    right = f"{'':18}right with it {in_percent(r.acc_with)}, without {in_percent(r.acc_without)}; {gain}"
    return [*out, right, *_by_outcome(r)]


def _by_outcome(r: Reflection) -> list[str]:
    """How many of the right, the wrong and the cut answers hold a word; a limit cuts an answer before its last words."""
    return [
        f"{'':18}{which + ', ' + str(s.num_answers):18}{in_percent(s.answers)} hold one, {s.per_1000_tokens:.2f} per 1,000 tokens"
        for which, s in r.by_outcome.items()
        if s.answers is not None and s.per_1000_tokens is not None
    ]


def _chains(rare: Sequence[Chain]) -> list[str]:
    if not rare:
        return []
    first = {chain.task: chain for chain in reversed(rare)}
    out = ["", f"tasks hardly ever solved: {len(first)}; were their right answers reasoned or guessed?"]
    for chain in list(first.values())[-CHAINS:][::-1]:
        said = _plain(chain.text)
        cut = "... " if len(said) > CHAIN_CHARS else ""
        out += [f"  {_plain(chain.prompt)[:CHAIN_CHARS]} [{_plain(chain.gold)}]", f"    {cut}{said[-CHAIN_CHARS:]}"]
    return out


def _plain(text: str) -> str:
    """On one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def judged(found: Judged) -> list[str]:
    """What the judge said."""
    kinds = ", ".join(f"{count} {name}" for name, count in found.kinds.items())
    both = ", ".join(f"{count} also by {name}" for name, count in found.reflects_too.items())
    out = ["", f"judge, {found.num_answers} answers: {kinds} ({both})"]
    for name, mean in found.behaviours.items():
        out.append(f"{name:18}{'-' if mean is None else f'{mean:.2f} times an answer'}")
    unjudged = sum(found.unjudged.values())
    return out + ([f"{unjudged} replies held no number and are left out"] if unjudged else [])


def templates(rows: Sequence[Row], chats: Mapping[str, str], note: str | None = None) -> list[str]:
    """A block a measure: every evaluation's rate and its difference from the first's. `chats` tells templates apart."""
    width = max(len(row.name) for row in rows) + 2
    out = [f"{row.name:{width}}{row.num_samples} samples a task; {chats[row.name]}" for row in rows]
    out += [note] if note is not None else []
    for measure in TABLED:
        out += ["", measure]
        for row in rows:
            against = row.against_first.get(measure)
            more = "" if against is None else f"  {in_points(against)}"
            out.append(f"  {row.name:{width}}{in_percent(row.rates[measure]):>24}{more}")
    return out


def after(found: After, base: str, trained: str) -> list[str]:
    """Base against trained."""
    out = [
        f"{found.num_tasks} tasks; {base}: {found.base_samples} samples each, {trained}: {found.trained_samples}",
        "",
    ]
    out += [stats.verdict_in_words(found.gain, base, trained), "", f"{'k':>5}  {base:>24}  {trained:>24}"]
    by_k = {p.k: p for p in found.trained_pass}
    out += [f"{p.k:>5}  {in_percent(p):>24}  {in_percent(by_k[p.k]):>24}" for p in found.base_pass if p.k in by_k]
    return [
        *out, "", stats.crossover_in_words(found.crossover, min(found.base_samples, found.trained_samples), base, trained, ahead=found.gain.delta > 0),
        _coverage(f"solved by {base} alone", found.lost), _coverage(f"solved by {trained} alone", found.won),
    ]  # fmt: skip


def _coverage(which: str, found: Coverage) -> str:
    num, chance = len(found.tasks), f"{found.expected:.1f} (+-{found.spread:.1f})"
    return f"{num} tasks were {which}; were both one model, chance alone would make it {chance}."


def surprise(found: Surprise) -> list[str]:
    """Perplexity under the base."""
    own, new = (f"{q[1]:.2f} (quartiles {q[0]:.2f} to {q[2]:.2f})" for q in (found.base, found.trained))
    g = found.gap
    return [
        f"perplexity under the base, {found.num_answers} answers each: its own {own}, the trained model's {new}; "
        f"{g.value:+.3f} nats a token ({g.low:+.3f} to {g.high:+.3f})"
    ]
