"""How fast and how small: each bench measures Strop, its peers and the machine side by side, in turns.

Reading order: `worker` (a competitor is a process that waits for its turn), `alternate` (A B A B), `ceiling` (what the
machine could do), `workload` (the same work for all), then the benches. A new bench is a module with `Settings` and
`run`, and one line in BENCHES. Nothing here is used by training.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from strop import machine
from strop.bench import curation, learn, memory, plan, rollout, scaling, step, verify
from strop.bench.result import Result, default_file, read, save, table
from strop.config import Section, nearest
from strop.record import UserError
from strop.settings import check_settings

__all__ = ["BENCHES", "run", "table", "tables"]

BENCHES: dict[str, tuple[type[Section], Callable[..., Result]]] = {
    "step": (step.Settings, step.run),
    "step-real": (step.RealSettings, step.run_real),
    "rollout": (rollout.Settings, rollout.run),
    "train": (learn.Settings, learn.run),
    "memory": (memory.Settings, memory.run),
    "verify": (verify.Settings, verify.run),
    "scaling": (scaling.Settings, scaling.run),
    "curate": (curation.Settings, curation.run),
    "plan": (plan.Settings, plan.run),
}


def run(
    name: str, overrides: Sequence[str] = (), *, pairs: int = 5, out: Path | None = None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure one bench and put its result into `out` (or bench/results/<machine>.json) beside the others.

    `overrides` are "key=value" of the bench's settings; `pairs` is the number of rounds that count. Raises UserError
    for a bench or a setting that does not exist, and for a peer that is not installed.
    """
    section, function = _known(name)
    settings = check_settings(section, dict(_pair(text) for text in overrides), f"bench {name}")
    facts = machine.machine()
    path = out or default_file(facts)
    read(path)  # a file that is none of ours is refused now, not after an hour
    result = replace(
        function(settings, pairs=pairs, say=say), bench=name, machine=facts,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        settings=settings.model_dump(mode="json") | {"pairs": pairs},
    )  # fmt: skip
    save(result, path)
    say(f"{name}: written to {path}")
    return result.as_json()


def tables(name: str | None = None, out: Path | None = None) -> str:
    """The results that lie in `out` as Markdown, of one bench or of all."""
    path = out or default_file(machine.machine())
    found = read(path)
    if name is not None:
        _known(name)
        found = {key: value for key, value in found.items() if key == name}
    if not found:
        raise UserError(
            f"{path} holds no results{f' of {name}' if name else ''} yet; run `strop bench {name or 'step'}`"
        )
    return table(found)


def _known(name: str) -> tuple[type[Section], Callable[..., Result]]:
    if name not in BENCHES:
        raise UserError(f"there is no bench {name!r}{nearest(name, BENCHES)}")
    return BENCHES[name]


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: write it as key=value, for example --set batches=[8,64]")
    return key, yaml.safe_load(value)
