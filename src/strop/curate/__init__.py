"""From pools of problems to a training set: stages in order, with the fate of every row and a cache of every stage.

`run` is what `strop curate` does; `check` what it says before. Reading order: `rows` (what a stage is), `read` and `load`
(from files to rows), `measure` (row-wise work in several processes) and `cluster` (on several machines), `cache` (what a
stage decided, and when that still holds), `write` (what is left behind), then the stages themselves, a module each, by
`STAGES`. The data card is drawn by `report.card` from the files that this room leaves.

Nothing here depends on the order of rows or on the number of processes: rows are sorted by content when they are loaded,
and a stage only says which of them go. A process may be killed anywhere; the same command goes on from the last stage that
was saved and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from strop import disk
from strop.config import Curation, load_curation
from strop.curate import cache, load, table, write
from strop.curate.cluster import Cluster
from strop.curate.measure import Processes
from strop.curate.read import EXCERPT, sources
from strop.curate.rows import SCHEMA, Measurer, Outcome, Stage, Stopped, Tools
from strop.curate.table import FATES
from strop.machine import machine, usable_cores
from strop.process import give_back_memory
from strop.record import UserError
from strop.watch import Watch

__all__ = ["STAGES", "Outcome", "StageOf", "check", "known_topics", "result_lines", "run"]

CACHE, SCRATCH = "cache", "scratch"
KEPT = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOf:
    """Where a stage's function is, and which keys of the recipe it reads beside its own: they decide its cache, too."""

    function: str  # "module:name"
    reads: tuple[str, ...] = ()
    needs: str = ""  # a package of the extra `curate`


STAGES: dict[str, StageOf] = {
    "verifiable": StageOf(function="strop.curate.verifiable:verifiable"),
    "duplicates": StageOf(function="strop.curate.duplicates:duplicates", needs="rensa"),
    "decontaminate": StageOf(function="strop.curate.decontaminate:decontaminate", reads=("against",)),
    "filter": StageOf(function="strop.curate.filters:keep"),
    "difficulty": StageOf(
        function="strop.curate.difficulty:difficulty", reads=("seed", "model", "chat", "engine", "checks")
    ),
    "noise": StageOf(function="strop.curate.noise:noise", reads=("seed",)),
    "mixture": StageOf(function="strop.curate.mixture:mixture", reads=("seed",)),
}


def run(
    curation: Curation,
    *,
    out: Path,
    watch: Watch,
    stop_requested: Callable[[], bool] = lambda: False,
    workers: int | None = None,
    ray: str = "",
    stages: Mapping[str, StageOf] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Curates the pool into `out` and returns the summary; what an earlier run in `out` decided is reused where it holds.

    `workers` processes measure rows (None: one a core), or the Ray cluster at `ray`; `stages` says what does what (None:
    `STAGES`). `command` is what was typed, for the card. Where it was asked to stop, or there is no room, `finished` is
    False and the same call goes on. Raises UserError for sources, columns and settings that are wrong, for a folder that
    holds something else, and where no cluster answers; DiskFull.
    """
    check_folder(out)
    stages = STAGES if stages is None else stages
    functions = [_function(stage.do, stages) for stage in curation.stages]
    with disk.guard(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = disk.lock_folder(out, watch.say)
    try:
        disk.remove(out / CACHE / SCRATCH)
        with _measurer(ray, workers, out, watch, stop_requested) as measure:
            made = _Run(curation, out=out, watch=watch, measure=measure, stop_requested=stop_requested, command=command)
            return made.all(functions, stages)
    finally:
        disk.remove(out / CACHE / SCRATCH)
        lock.close()


def check(curation: Curation, watch: Watch) -> dict[str, Any]:
    """Opens every source and reads what nothing may touch, runs nothing. Raises UserError as `run` does."""
    for stage in curation.stages:
        _function(stage.do, STAGES)
    found = [load.describe(source, watch) for source in sources(curation, watch.say)]
    return {"sources": found, "against": len(load.against(curation, watch))}


def check_folder(out: Path) -> None:
    """Raises UserError where `out` holds something that is no curation; a curation of another recipe is gone on with."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder with --out")
    if (out / "recipe.yaml").is_file():
        load_curation(out / "recipe.yaml")
    elif out.is_dir() and any(path.name not in (".lock", CACHE, ".recipe.yaml.tmp") for path in out.iterdir()):
        raise UserError(f"{out} holds other files and is no curation; name a new folder with --out")


def known_topics() -> dict[str, str]:
    """The names that a filter's `topics` may hold, with what each is about."""
    return dict(importlib.import_module("strop.curate.topics").TOPICS)


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """The funnel in words, a line a stage."""
    lines = []
    for stage in summary["stages"]:
        why = ", ".join(f"{num:,} {reason}" for reason, num in stage["dropped"].items())
        lines.append(f"{stage['name']}: {stage['rows_in']:,} -> {stage['rows_out']:,}" + (f" ({why})" if why else ""))
    if summary["finished"]:
        lines.append("; ".join(f"{name}.parquet: {num:,} rows" for name, num in summary["rows"].items()))
    return lines


def _measurer(
    ray: str, workers: int | None, out: Path, watch: Watch, stop_requested: Callable[[], bool]
) -> Processes | Cluster:
    if ray:
        return Cluster(ray, watch, stop_requested)
    return Processes(workers or usable_cores(), out / CACHE / SCRATCH, watch, stop_requested)


def _function(do: str, stages: Mapping[str, StageOf]) -> Stage:
    """Raises UserError where a package is missing: now, and not after the stages before it."""
    if (needs := stages[do].needs) and find_spec(needs) is None:
        raise UserError(f"the stage {do} needs {needs}, which is not installed: pip install 'strop[curate]'")
    module, _, name = stages[do].function.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(slots=True)
class _Run:
    """One run: the rows as they are now, and what became of all others."""

    curation: Curation
    out: Path = field(kw_only=True)
    watch: Watch = field(kw_only=True)
    measure: Measurer = field(kw_only=True)
    stop_requested: Callable[[], bool] = field(kw_only=True)
    command: str = field(kw_only=True)
    fates: list[pa.Table] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    listed: dict[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)

    def all(self, functions: Sequence[Stage], stages: Mapping[str, StageOf]) -> dict[str, Any]:
        disk.write_text(self.out / "recipe.yaml", self.curation.to_yaml(), is_data=True)
        summary = self._summary(finished=False)
        disk.write_json(self.out / "summary.json", summary)
        started = time.monotonic()
        try:
            load.check_against(self.curation)
            rows, digest = self._loaded()
            seen = load.against(self.curation, self.watch)
            for number, (function, stage) in enumerate(zip(functions, self.curation.stages, strict=True)):
                if self.stop_requested():
                    raise Stopped
                rows, digest = self._stage(number, function, stages[stage.do], rows, digest, seen)
            summary |= self._written(rows)
        except Stopped:
            pass
        summary |= self._summary(finished=bool(summary["files"])) | {"wall_s": round(time.monotonic() - started, 2)}
        disk.write_json(self.out / "summary.json", summary)
        return summary

    def _summary(self, *, finished: bool) -> dict[str, Any]:
        made = {
            "finished": finished, "command": self.command, "recipe_hash": self.curation.hash, "sources": self.facts,
            "stages": self.told, "machine": machine(),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }  # fmt: skip
        return made if finished else made | {"rows": {}, "files": {}}

    # --- stages

    def _loaded(self) -> tuple[pa.Table, str]:
        opened = sources(self.curation, self.watch.say)
        key = cache.hash_of(
            [[s.name, s.revision, s.licence, s.settings.model_dump()] for s in opened], self.curation.verifier,
            cache.code_of("strop.curate.load"),
        )  # fmt: skip
        folder, began = self.out / CACHE / f"{load.LOAD}-{key}", time.monotonic()
        if not (cached := cache.is_there(folder)):
            disk.save_folder(folder, lambda to: load.load(opened, self.curation.verifier, to, watch=self.watch))
        rows, fates = table.read(folder / "rows.arrow"), table.read(folder / "fates.arrow")
        self.facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self._tell(load.LOAD, load.LOAD, len(rows), fates, cached=cached, began=began)
        return rows, table.digest(folder / "rows.arrow")

    def _stage(
        self, number: int, function: Stage, of: StageOf, rows: pa.Table, digest: str, against: pa.Table
    ) -> tuple[pa.Table, str]:  # fmt: skip
        settings = self.curation.stages[number]
        before = [stage.do for stage in self.curation.stages[:number]].count(settings.do)
        name = f"{settings.do}-{before + 1}" if before else settings.do
        recipe = self.curation.model_dump(mode="json")
        read = {key: recipe[key] for key in of.reads if key != "against"}
        if "against" in of.reads:
            read["against"] = _digest_of(against)
        if "model" in of.reads:
            read["weights"] = _files_of((getattr(settings, "model", None) or self.curation.model).name)
        key = cache.hash_of(digest, settings.model_dump(mode="json"), read)
        work, began = self.out / CACHE / f"work-{settings.do}-{key}", time.monotonic()
        folder = self.out / CACHE / f"{settings.do}-{key}-{cache.code_of(function.__module__)}"
        if not (cached := cache.is_there(folder)):
            work.mkdir(parents=True, exist_ok=True)
            tools = Tools(
                measure=self.measure, watch=self.watch, seed=self.curation.seed, against=against, folder=work,
                curation=self.curation, stop_requested=self.stop_requested,
            )  # fmt: skip
            cache.save(folder, function(rows, settings, tools))
            with contextlib.suppress(OSError):  # it holds something
                work.rmdir()
        decision = cache.load(folder)
        self.listed[name] = decision.listed
        fates = _fates(name, rows, decision)
        left, digest = self._applied(number, rows, decision)
        self._tell(
            name, settings.do, len(left), fates, cached=cached, began=began, listed=len(decision.listed),
            notes=decision.notes,
        )  # fmt: skip
        return left, digest

    def _applied(self, number: int, rows: pa.Table, decision: cache.Decision) -> tuple[pa.Table, str]:
        """The rows that stay, with what their meta gained, in a file of their own."""
        path = self.out / CACHE / SCRATCH / f"rows-{number}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write(path, _changed(rows, decision), SCHEMA)
        disk.remove(path.with_name(f"rows-{number - 1}.arrow"))  # what is mapped stays readable
        return table.read(path), table.digest(path)

    def _tell(
        self, name: str, do: str, num: int, fates: pa.Table, *, cached: bool, began: float, listed: int = 0,
        notes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        dropped = Counter(fates.column("reason").to_pylist())
        why = "".join(f", {num:,} {reason}" for reason, num in _by_number(dropped))
        self.fates.append(fates)
        self.told.append({
            "name": name, "do": do, "rows_in": num + len(fates), "rows_out": num, "dropped": dict(_by_number(dropped)),
            "listed": listed, "notes": list(notes), "cached": cached, "wall_s": round(time.monotonic() - began, 2),
        })  # fmt: skip
        how = "as decided before (cache)" if cached else f"{time.monotonic() - began:.1f} s"
        self.watch.say(f"{name}: {num + len(fates):,} -> {num:,} rows{why}; {how}")
        give_back_memory()
        pa.default_memory_pool().release_unused()

    # --- the end

    def _written(self, rows: pa.Table) -> dict[str, Any]:
        heldout = np.zeros(len(rows), bool)
        for place in np.flatnonzero(
            pc.call_function("match_substring", [rows.column("meta")], pc.MatchSubstringOptions('"split"'))
        ):
            heldout[place] = json.loads(rows.column("meta")[place].as_py()).get("split") == "heldout"
        parts = {"train": np.flatnonzero(~heldout), "heldout": np.flatnonzero(heldout)}
        if not len(parts["heldout"]):
            del parts["heldout"]
            disk.remove(self.out / "heldout.parquet")
        for name, places in parts.items():
            write.rows(self.out / f"{name}.parquet", rows, places)
        write.stream(self.out / "fates.parquet", [*self.fates, *_kept(rows, heldout)], FATES)
        self._list()
        files = sorted([*self.out.glob("*.parquet"), *self.out.glob("listed/*.jsonl")])
        return {
            "rows": {name: len(places) for name, places in parts.items()},
            "files": {p.relative_to(self.out).as_posix(): table.digest(p) for p in files},
        }  # fmt: skip

    def _list(self) -> None:
        """What a stage lists for a reader, a file a stage."""
        disk.remove(self.out / "listed")
        for name, rows in self.listed.items():
            if rows:
                text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
                disk.write_text(self.out / "listed" / f"{name}.jsonl", text, is_data=True)


def _by_number(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _files_of(model: str) -> list[tuple[str, int, int]]:
    """Name, size and time of a model folder's files: another model under an old name is asked anew. [] where it is no folder."""
    folder = Path(model).expanduser()
    found = [(path.name, path.stat()) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _digest_of(rows: pa.Table) -> str:
    return cache.hash_of(
        sorted(zip(*(rows.column(name).to_pylist() for name in ("source", "prompt", "answer")), strict=True))
    )


def _fates(stage: str, rows: pa.Table, decision: cache.Decision) -> pa.Table:
    """The rows that a stage dropped, as FATES."""
    gone = rows.select(["id", "source", "prompt"]).take(decision.dropped.column("place").combine_chunks())
    return _as_fates(gone, stage, decision.dropped.column("reason"), decision.dropped.column("detail"))


def _as_fates(rows: pa.Table, stage: Any, reason: Any, detail: Any) -> pa.Table:
    def column(value: Any) -> Any:
        return pa.array([value] * len(rows), pa.string()) if isinstance(value, str) else value

    begun = pc.call_function("utf8_slice_codeunits", [rows.column("prompt")], pc.SliceOptions(0, EXCERPT))
    return pa.table(
        [rows.column("id"), rows.column("source"), column(stage), column(reason), column(detail), begun], schema=FATES
    )


def _kept(rows: pa.Table, heldout: np.ndarray) -> Iterator[pa.Table]:
    names = ["id", "source", "prompt"]
    for start in range(0, len(rows), table.BATCH):
        part = rows.select(names).slice(start, table.BATCH)
        where = pa.array(np.where(heldout[start : start + table.BATCH], "heldout", "train"), pa.string())
        yield _as_fates(part, where, KEPT, "")


def _changed(rows: pa.Table, decision: cache.Decision) -> Iterator[pa.Table]:
    """What a decision leaves of the rows, `table.BATCH` at a time."""
    keep = np.ones(len(rows), bool)
    keep[decision.dropped.column("place").to_numpy()] = False
    gained = decision.changed.column("place").to_numpy()
    places = np.flatnonzero(keep)
    for start, part in zip(range(0, max(1, len(places)), table.BATCH), table.taken(rows, places), strict=True):
        here = places[start : start + table.BATCH]
        low, high = np.searchsorted(gained, [here[0], here[-1] + 1]) if len(here) else (0, 0)
        found = low + np.flatnonzero(keep[gained[low:high]])
        if not len(found):
            yield part
            continue
        metas = part.column("meta").to_pylist()
        new = zip(
            np.searchsorted(here, gained[found]), decision.changed.column("meta").take(found).to_pylist(), strict=True
        )
        for place, keys in new:
            metas[place] = json.dumps(json.loads(metas[place]) | json.loads(keys), sort_keys=True, ensure_ascii=False)
        yield part.set_column(part.column_names.index("meta"), "meta", pa.array(metas, pa.string()))
