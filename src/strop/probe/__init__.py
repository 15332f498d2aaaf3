"""Probes: small experiments that say what a choice does, before a run is spent on it or after one was.

`run` looks at finished evaluations with samples. One: what can the model do, and is RL worth it (`before`, `gate`)? Several
of one model: which template or system prompt lets it answer (`templates`)? Two models: what did training change (`after`)? `text` and
`judge` read the answers' words. `length_bias` is about a loss, and needs no model. Nothing here trains or samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from strop.probe import after, before, gate, judge, templates, words
from strop.probe.evaluations import Evaluation, chat_in_words, label, open_policy, read, same_model
from strop.record import UserError
from strop.rewards import Scorer
from strop.watch import Watch

__all__ = ["Found", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a probe found: for a program and for a person."""

    data: dict[str, Any]
    lines: list[str]


def run(
    names: Sequence[str],
    *,
    tasks: Sequence[str] = (),
    asked: judge.Judge | None = None,
    num_judged: int = 100,
    perplexity: bool = False,
    watch: Watch | None = None,
) -> Found:
    """Probes the evaluations that `names` (RUN or RUN:STAGE) name, on the task sets `tasks` or all they answered.

    One name: a report with advice, and with `asked` a judge's word on `num_judged` answers. Several names of one model: its
    templates or system prompts compared (of a server's model: the system prompts). Two models, the base first: what training changed, and with `perplexity` how likely the base finds
    the new answers. Raises UserError for what is no such evaluation, and for options that would do nothing.
    """
    found = [read(name, tasks) for name in names]
    watch = watch or Watch()
    trained = len(found) == 2 and not same_model(found[0], found[1])
    if perplexity and not trained:
        raise UserError("--perplexity compares two models; name two evaluations, the base model's first")
    if asked is not None and len(found) != 1:
        raise UserError("--judge reads the answers of one evaluation; name one")
    if len(found) == 1:
        return _before(found[0], asked, num_judged, watch)
    if trained:
        return _after(found[0], found[1], perplexity, watch)
    return _templates(found)


def _before(e: Evaluation, asked: judge.Judge | None, num_judged: int, watch: Watch) -> Found:
    checks = e.recipe.checks
    with Scorer(workers=checks.workers, timeout_s=checks.timeout_s) as scorer:
        report = before.measure(e.samples, scorer.verify)
    advice = gate.advise(report)
    found = Found(
        data={"before": asdict(report), "advice": asdict(advice)}, lines=words.before(report, advice)
    )  # fmt: skip
    if asked is None:
        return found
    with watch.phase("judge", min(num_judged, len(e.samples)), "answers") as bar:
        said = judge.measure(asked, e.samples, num_answers=num_judged, on_done=lambda: bar.advance(1))
    return Found(data=found.data | {"judged": asdict(said)}, lines=found.lines + words.judged(said))


def _templates(found: Sequence[Evaluation]) -> Found:
    if other := next((e for e in found[1:] if not same_model(found[0], e)), None):
        raise UserError(
            f"{found[0].name} and {other.name} are of different models, or of servers' whose weights are not known; "
            "name two evaluations for base against trained, or several of one model to compare its templates"
        )
    chats = {label(e, found): chat_in_words(e.recipe.chat, at_url=e.recipe.engine.at_url) for e in found}
    if len(chats) < len(found):
        raise UserError("the same evaluation is named twice; name each once")
    rows = templates.measure({label(e, found): e.samples for e in found})
    note = next((_taken_for_one(e) for e in found if e.served_as is not None), None)
    return Found(
        data={"templates": [asdict(row) | {"chat": chats[row.name]} for row in rows], "note": note},
        lines=words.templates(rows, chats, note),
    )


def _taken_for_one(e: Evaluation) -> str:
    """What the comparison rests on where nobody has seen the weights."""
    assert e.served_as is not None
    prompts = "; only what the messages say is compared, the server puts them into a template of its own"
    return f"taken for one model because all answers are of {e.served_as[0]} by {e.served_as[1]}" + (
        prompts if e.recipe.engine.at_url else ""
    )


def _after(base: Evaluation, trained: Evaluation, perplexity: bool, watch: Watch) -> Found:
    names = label(base, [trained]), label(trained, [base])
    report = after.measure(base.samples, trained.samples)
    found = Found(data={"names": list(names), "after": asdict(report)}, lines=words.after(report, *names))
    if not perplexity:
        return found
    with watch.phase("perplexity"):
        surprise = after.compare_perplexity(open_policy(base, watch), base.samples, trained.samples)
    return Found(data=found.data | {"perplexity": asdict(surprise)}, lines=found.lines + words.surprise(surprise))
