"""The finished evaluations that a probe reads: their sampled answers, and which model and which chat they are from.

Knows run directories. Read by `probe.run`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from strop import compare, model
from strop.config import Chat, EvaluateStage, Recipe, load_recipe, nearest
from strop.model import Policy
from strop.record import Rollout, UserError, read_rollouts
from strop.run import Run
from strop.watch import Watch

__all__ = ["Evaluation", "chat_in_words", "label", "open_policy", "read", "same_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One finished evaluation with samples."""

    name: str  # as it was asked for
    run_dir: Path
    recipe: Recipe
    stage: EvaluateStage
    start: str  # the stage whose weights answered, or "base"
    fingerprint: str | None  # of those weights; None in older runs, and where a server had them
    served_as: tuple[str, str] | None  # what a server calls weights that are not known, and that server, in words
    samples: list[Rollout]


def read(name: str, tasks: Sequence[str] = ()) -> Evaluation:
    """The evaluation that RUN or RUN:STAGE names, on the task sets `tasks` alone where there are any.

    Raises UserError: no such evaluation, no samples in it, no such task set.
    """
    found = compare.evaluation(name)
    recipe = load_recipe(found.run_dir / "recipe.yaml")
    stage = next(s for s in recipe.stages if s.name == found.stage)
    assert isinstance(stage, EvaluateStage)
    file = found.run_dir / "rollouts" / stage.name / "samples.parquet"
    if not file.exists():
        raise UserError(
            f"{name}: the evaluation {stage.name!r} has greedy answers only; a probe needs sampled ones: set "
            f"stages.{stage.name}.samples=8 in another run"
        )
    samples = read_rollouts(file)
    if tasks:
        for wanted in tasks:
            if wanted not in found.sets:
                raise UserError(f"{name}: there is no task set {wanted!r}{nearest(wanted, found.sets)}")
        ids = {i for wanted in tasks for i in found.sets[wanted]}
        samples = [r for r in samples if r.task.id in ids]
    weights, served = found.fingerprint.get("model"), found.fingerprint.get("served_as")
    return Evaluation(
        name=name, run_dir=found.run_dir, recipe=recipe, stage=stage, start=recipe.start_of(stage),
        fingerprint=weights if weights and re.fullmatch("[0-9a-f]+", weights) else None, samples=samples,
        served_as=(served, found.fingerprint.get("engine", "")) if served and not weights else None,
    )  # fmt: skip


def same_model(a: Evaluation, b: Evaluation) -> bool:
    """Did the same weights answer? By their fingerprints where both have one, else by where they came from.

    Of what a server had and nobody hashed that is not known: it is taken for the same under one name at one server, and for
    another wherever else.
    """
    if a.fingerprint and b.fingerprint:
        return a.fingerprint == b.fingerprint
    if a.recipe.engine.server or b.recipe.engine.server:
        return a.served_as is not None and a.served_as == b.served_as
    return _origin(a) == _origin(b)


def _origin(e: Evaluation) -> tuple[str, str, Path | None]:
    return e.recipe.model.name, e.start, None if e.start == "base" else e.run_dir.resolve()


def label(e: Evaluation, others: Sequence[Evaluation]) -> str:
    """What an evaluation is called beside others: its stage alone where all are of one run."""
    one_run = all(o.run_dir.resolve() == e.run_dir.resolve() for o in others)
    return e.stage.name if one_run else f"{e.run_dir}:{e.stage.name}"


def chat_in_words(chat: Chat, *, at_url: bool = False) -> str:
    """How the prompt was put, so that two can be told apart.

    >>> chat_in_words(Chat(system="Answer in a box.")), chat_in_words(Chat(template="{{ messages }}", prefill="<think>"))
    ("the model's own template, system prompt 'Answer in a box.'", "a template of the recipe, no system prompt, prefill '<think>'")
    """
    own = "the server's template" if at_url else "the model's own template"
    template = own if chat.template is None else "a template of the recipe"
    system = f"system prompt {chat.system[:60]!r}" if chat.system else "no system prompt"
    return ", ".join([template, system] + ([f"prefill {chat.prefill!r}"] if chat.prefill else []))


def open_policy(e: Evaluation, watch: Watch) -> Policy:
    """The model that answered, loaded."""
    policy = model.load(e.recipe.model, watch.say)
    if e.start != "base":
        policy.load_weights(Run.read(e.run_dir).stage(e.start).final)
    return policy
