"""One run directory as one page: the gain with its interval first, then the evidence.

`run` is what `strop report RUN` does, `table` what `--table` prints.
"""

from __future__ import annotations

from pathlib import Path

import jinja2

import strop
from strop.config import SftStage, TrainStage, nearest
from strop.disk import write_text
from strop.record import Reason, UserError
from strop.report import claims, course, evidence, panels, spending, tables, undone, words
from strop.report import facts as facts_

__all__ = ["render", "run", "table"]

REASON_WORDS = {
    Reason.CORRECT: "correct",
    Reason.WRONG: "wrong answer",
    Reason.NO_ANSWER: "no final answer",
    Reason.UNPARSEABLE_ANSWER: "answer could not be read",
    Reason.TOO_MANY_ANSWERS: "listed several answers",
    Reason.EMPTY: "empty",
    Reason.TRUNCATED: "cut off before an answer",
    Reason.OVER_LIMIT: "program over a limit",
    Reason.UNPARSEABLE_GOLD: "gold answer could not be read",
    Reason.TIMEOUT: "verifier timed out",
    Reason.VERIFIER_ERROR: "verifier failed",
}


def run(run_dir: Path, out: Path | None = None) -> Path:
    """Writes the report of a run, finished or not, and returns where it is (`report.html` in the run unless told).

    Raises UserError if `run_dir` is not a run directory, DiskFull if there is no room.
    """
    out = out or run_dir / "report.html"
    page = render(facts_.load(run_dir))
    write_text(out, page)
    return out


def table(run_dir: Path, name: str) -> str:
    """The results of a run as text: `markdown`, `latex`, or `lengths` for a terminal (see `tables`).

    Raises UserError if `run_dir` is not a run directory, if there is no such table, or if no answers were kept.
    """
    if name not in tables.TABLES:
        raise UserError(f"there is no table {name!r}{nearest(name, tables.TABLES)}")
    facts = facts_.load(run_dir)
    measured = evidence.measure(facts)
    if not measured:
        raise UserError(
            f"{run_dir} has no finished evaluation with its answers: finish it with `strop run` and --resume"
        )
    return tables.TABLES[name](facts, measured)


def render(facts: facts_.RunFacts) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: words.visible(value) if type(value) is str else value,  # Markup, a subclass, is ours
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in words.__all__:
        environment.filters[name] = getattr(words, name)
    environment.filters["reason"] = lambda r: REASON_WORDS.get(r, r.replace("_", " "))
    head, gain = claims.headline(facts), claims.effects_of_gain(facts)
    main = facts.main()
    measured = evidence.measure(facts)
    page = environment.get_template("page.html.j2").render(
        facts=facts,
        run_name=facts.run_dir.resolve().name,
        model_name=Path(facts.recipe.model.name).name,
        main=main,
        main_word="RL" if isinstance(main, TrainStage) else "SFT",
        control_run=isinstance(main, TrainStage) and main.algorithm.advantages != "reward",
        wall_arms=[s.name for s in facts.recipe.stages if isinstance(s, SftStage) and s.wall_of],
        head=head,
        gain=gain,
        corrected=claims.corrected(gain),
        blocks=claims.blocks(facts),
        arms=claims.arms(facts),
        controls=claims.controls(facts),
        curves=course.curves(facts),
        undone=undone.undone(facts),
        timing=course.timing(facts),
        spending=spending.spending(facts, head),
        passes=panels.passes(measured),
        lengths=panels.lengths_by_set(measured),
        tables={"Markdown": tables.markdown(facts, measured), "LaTeX": tables.latex(facts, measured)}
        if measured
        else {},
        protocols={s.name: evidence.protocol(facts, s) for s in facts.evaluations()},
        fingerprints=evidence.fingerprints(facts, (s.name for s in facts.evaluations())),
        samples=claims.samples(facts, head),
        caveats=claims.caveats(facts, head),
        machine=facts.summary.get("machine", {}),
        version=strop.__version__,
    )
    return page.lstrip()
