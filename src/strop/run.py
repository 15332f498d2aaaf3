"""The run directory: where everything a run says, saves and needs to go on lies, and in which order it gets there.

    recipe.yaml  summary.json  metrics.jsonl  tasks.parquet  report.html
    rollouts/<stage>/step_000012.parquet        one file per RL step; greedy.parquet, samples.parquet (evaluate; while
                                                answers come in, greedy.part_000001.parquet)
    checkpoints/<stage>/step_000120/, final/    Hugging Face layout + strop_state/ + manifest.json, written last
    rolled_back/<stage>/1/                      rows and rollouts that the guard undid
    attempts/1/                                 one folder per start: machine.json, argv.json, log.txt

A step is committed by its row in `metrics.jsonl`, which is written after its rollouts; whatever lies beyond the last
row is discarded when the run is opened again. A stage is finished by its entry in `summary.json`. So a process may be
killed anywhere: a resume loads the latest whole checkpoint and replays the committed rollouts after it. Knows nothing
of models, losses or what the numbers in a row mean.
"""

from __future__ import annotations

import difflib
import json
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from strop import costs, disk, keep, waste
from strop.config import Recipe, Stage, load_recipe
from strop.disk import DiskFull, drop, guard, lock_folder, plain, remove, sync, write_json, write_text
from strop.ledger import Ledger
from strop.machine import machine, now_and_then
from strop.record import Rollout, UserError, read_rollouts, write_rollouts

__all__ = ["DiskFull", "Run", "StageLog", "check_folder", "check_run", "first_difference", "new_summary"]

_OURS = {".lock", ".recipe.yaml.tmp"}  # what a process killed in its first millisecond leaves behind
SUMMARY_S = 10.0  # at most so long, and a step, between two summaries
Say = Callable[[str], None]


def _silent(text: str) -> None:
    """Where nobody listens."""


class Run:
    """One run directory, open for writing by one process (`Run.open`) or for reading by anyone (`Run.read`).

    `summary` is a plain dict, `summary.json` in memory: change it, then `write_summary`. Only `StageLog.finish` adds
    to `summary["stages"]`. Use as a context manager, or `close` it: that gives up the lock.
    """

    def __init__(self, out: Path, recipe: Recipe, *, attempt: Path | None, lock: IO[str] | None, say: Say) -> None:
        self.out = out
        self.recipe = recipe
        self.attempt = attempt  # attempts/N of this process; None where the run is only read
        self.say = say
        self.written_at = time.monotonic()  # summary.json
        self.ledger: Ledger | None = None  # who has one sets it: every summary written then tells of it
        self.made_on: dict[str, Any] = {}  # what decides the last bits here (`note_machine`), for every checkpoint
        self._lock = lock
        self.summary: dict[str, Any] = _read_summary(out) or new_summary(recipe)
        self.rows, self._torn = disk.read_lines(out / "metrics.jsonl")
        if not all({"stage", "kind"} <= row.keys() and isinstance(row.get("step", 0), int) for row in self.rows):
            raise UserError(
                f"{out}/metrics.jsonl has rows that are none of a run; put the file back, or start again with --out"
            )

    @classmethod
    def open(cls, out: Path, recipe: Recipe, *, resume: bool, say: Say = _silent) -> Run:
        """A new run in `out`, or with `resume` the one that is there, cleaned of what was never committed.

        Raises UserError: a run is there and `resume` is False, or none is there and it is True; the folder holds
        something else; another recipe (the first differing key is named); another process is writing it.
        """
        check_folder(out, recipe, resume)
        with ExitStack() as on_failure:
            with guard(out):
                out.mkdir(parents=True, exist_ok=True)
                lock = on_failure.enter_context(lock_folder(out, say))
            check_folder(out, recipe, resume)  # again: another process may have started here before we had the lock
            if not resume:
                write_text(out / "recipe.yaml", recipe.to_yaml(), is_data=True)
            attempt = _new_attempt(out)
            run = cls(out, recipe, attempt=attempt, lock=lock, say=say)
            run._discard_uncommitted()
            if not run.summary["machine"]:  # that of the first start; every attempt has its own
                run.summary["machine"] = json.loads((attempt / "machine.json").read_text(encoding="utf-8"))
            run.write_summary()
            on_failure.pop_all()
        return run

    @classmethod
    def read(cls, out: Path, say: Say = _silent) -> Run:
        """The run in `out` as it stands, also while another process writes it. Takes no lock and changes nothing."""
        check_run(out)
        return cls(out, load_recipe(out / "recipe.yaml"), attempt=None, lock=None, say=say)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def note_machine(self, now: Mapping[str, Any]) -> None:
        """What decides the last bits of a sum here (`machine.made_on`). Says so where it was something else before."""
        made: list[Mapping[str, Any]] = self.summary.setdefault("made_on", [])
        if made and (changed := now_and_then(made[-1], now)):
            self.say(f"{self.out} continues, not bit-exact: {'; '.join(changed)}")
        if not made or made[-1] != now:
            made.append(dict(now))
        self.made_on = dict(now)

    def write_summary(self) -> None:
        """summary.json as `summary` is now, whole or not at all. Numbers that are not finite become null."""
        assert self._lock is not None, "this run is open for reading only, or closed"
        unit = 1 if sys.platform == "darwin" else 1024
        peak_mb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
        self.summary["peak_rss_mb"] = max(peak_mb, self.summary.get("peak_rss_mb") or 0)
        if self.ledger is not None:
            self.summary["ledger"] = spent = self.ledger.as_dict()
            self.summary["costs"] = costs.of(spent, self.recipe.costs)
            self.summary["waste"] = {n: asdict(w) for n, w in waste.of(self.rows, spent, self.recipe.stages).items()}
        write_json(self.out / "summary.json", self.summary)
        self.written_at = time.monotonic()

    def stage(self, name: str) -> StageLog:
        """The log of one of the recipe's stages."""
        return StageLog(self, next(stage for stage in self.recipe.stages if stage.name == name))

    def append(self, row: Mapping[str, Any]) -> None:
        assert self._lock is not None, "this run is open for reading only, or closed"
        clean = plain(row)
        disk.append_row(self.out / "metrics.jsonl", clean)
        self.rows.append(clean)

    def keep_rows(self, keep: Callable[[dict[str, Any]], bool], *more: Mapping[str, Any]) -> int:
        """Drops every metrics row that `keep` refuses and adds `more`, both or neither; how many went.

        Rows in memory and on disk stay equal.
        """
        assert self._lock is not None, "this run is open for reading only, or closed"
        kept = [row for row in self.rows if keep(row)]
        dropped = len(self.rows) - len(kept)
        kept += [plain(row) for row in more]
        if dropped or more or self._torn:
            disk.write_rows(self.out / "metrics.jsonl", kept)
        self.rows, self._torn = kept, False
        return dropped

    def _discard_uncommitted(self) -> None:
        """What a killed process left beyond its last commit: temporary files, a torn row, rows and rollouts too many."""
        for pattern in (
            ".*.tmp",
            "rollouts/*/.*.tmp",
            "checkpoints/*/.*.tmp",
            "attempts/*/.*.tmp",
            "rolled_back/*/.*.tmp",
        ):
            for path in self.out.glob(pattern):
                remove(path)
        if self._torn:
            self.say("metrics.jsonl ended in a row that was never finished: dropped")
            self.keep_rows(lambda row: True)
        for log in map(self.stage, (stage.name for stage in self.recipe.stages)):
            if log.done is None:
                log.rewind(log.last_step)


class StageLog:
    """What one stage has committed, and where it commits more. Steps count from 1, without gaps."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self.run = run
        self.name = stage.name
        self.kind: str = stage.do  # of the rows that commit a step: "train" or "sft"
        self._steps = [row["step"] for row in self.rows(self.kind)]
        self._intact: set[Path] = set()  # folders already checked against their manifest by this object

    @property
    def done(self) -> dict[str, Any] | None:
        """What `finish` recorded; None while the stage is not finished. A resumed run skips a finished stage."""
        return self.run.summary["stages"].get(self.name)

    @property
    def last_step(self) -> int:
        """The last committed step; 0 before the first."""
        return self._steps[-1] if self._steps else 0

    def finish(self, result: Mapping[str, Any]) -> None:
        """The stage is done: its entry in summary.json. Frees the step checkpoints once `final` is there."""
        self.run.summary["stages"][self.name] = {"kind": self.kind, **plain(result)}
        self.run.write_summary()
        if (self.checkpoints / "final").is_dir():
            with guard(self.checkpoints):
                for step, folder in self.step_checkpoints():
                    if not self.is_best(step):
                        remove(folder)

    # --- steps

    def commit(self, step: int, rollouts: Sequence[Rollout] | None, row: Mapping[str, Any]) -> None:
        """Step `step` has happened: its rollouts (None where there are none to replay: SFT), then its row."""
        assert step == self.last_step + 1, f"step {step} of {self.name} after step {self.last_step}"
        self._make_room(0)
        if rollouts is not None:
            self.save_rollouts(f"step_{step:06d}", rollouts)
        self.run.append({"stage": self.name, "kind": self.kind, **row, "step": step})
        self._steps.append(step)
        if time.monotonic() - self.run.written_at > SUMMARY_S:  # what was spent so far outlives a kill
            self.run.write_summary()

    def log(self, row: Mapping[str, Any]) -> None:
        """A row that commits no step: `kind` ("heldout", "alarm", ...) and `step` (0: before the first) are given."""
        assert row["kind"] != self.kind, "steps are committed"
        self.run.append({"stage": self.name, **row})

    def rows(self, kind: str | None = None) -> list[dict[str, Any]]:
        """This stage's rows of one kind, or all, oldest first."""
        return [row for row in self.run.rows if row["stage"] == self.name and kind in (None, row["kind"])]

    def rewind(self, step: int) -> None:
        """Forgets what lies beyond `step`: rows, rollouts, checkpoints. For a stage that runs its steps anew."""
        dropped = self.run.keep_rows(lambda row: row["stage"] != self.name or (row.get("step") or 0) <= step)
        num_files = self._drop_beyond(step)
        if dropped or num_files:
            self.run.say(
                f"stage {self.name} goes on after step {step}: dropped {dropped} rows of metrics and {num_files} files beyond it"
            )

    def _drop_beyond(self, step: int) -> int:
        """The rollouts and checkpoints of steps that are no longer in the rows; how many there were."""
        self._steps = [s for s in self._steps if s <= step]
        found = ((_number(path), path) for path in self.rollout_folder.glob("step_*.parquet"))
        numbered = [(n, path) for n, path in found if n is not None]
        beyond = [path for number, path in numbered + self.step_checkpoints() if number > step]
        for path in beyond:
            remove(path)
        return len(beyond)

    def roll_back(self, step: int, row: Mapping[str, Any]) -> None:
        """Takes the stage back to `step`, and says so in a row of kind "rollback", both or neither.

        What lay beyond is kept as evidence: its rows and rollouts, in rolled_back/<stage>/<number>/.
        """
        gone = [r for r in self.rows() if (r.get("step") or 0) > step]
        undone_s = sum(r.get(key) or 0.0 for r in gone for key in ("step_s", "eval_s", "undone_s"))
        undone_tokens = sum(r.get(key) or 0 for r in gone for key in ("num_tokens_sampled", "undone_tokens"))
        told = {
            "stage": self.name, "kind": "rollback", **row, "step": step, "undone_s": undone_s, "undone_tokens": undone_tokens,
        }  # fmt: skip

        refused = list(self.rollout_folder.glob("nonfinite_*.parquet"))
        beyond = [path for path in self.rollout_folder.glob("step_*.parquet") if (_number(path) or 0) > step]

        def write(folder: Path) -> None:
            disk.write_rows(folder / "metrics.jsonl", gone)
            for path in (*beyond, *refused):
                shutil.copy2(path, folder / path.name)

        disk.save_folder(self.run.out / "rolled_back" / self.name / str(row["number"]), write, **told)
        self.run.keep_rows(lambda r: r["stage"] != self.name or (r.get("step") or 0) <= step, told)
        self._drop_beyond(step)
        for path in refused:
            remove(path)

    # --- rollouts

    @property
    def rollout_folder(self) -> Path:
        return self.run.out / "rollouts" / self.name

    def save_rollouts(self, name: str, rollouts: Sequence[Rollout]) -> None:
        """rollouts/<stage>/<name>.parquet, whole or not there."""
        path = self.rollout_folder / f"{name}.parquet"
        try:
            with guard(path):
                write_rollouts(path, rollouts)
                sync(path.parent)
        finally:
            drop(path.with_name(f".{path.name}.tmp"))

    def load_rollouts(self, name: str) -> list[Rollout] | None:
        """What `save_rollouts` wrote under that name; None if it never did."""
        path = self.rollout_folder / f"{name}.parquet"
        return read_rollouts(path) if path.is_file() else None

    def save_part(self, name: str, rollouts: Sequence[Rollout]) -> None:
        """Some of what `save_rollouts` will write under that name once all of it is there, in a file of its own."""
        self.save_rollouts(f"{name}.part_{len(self._parts(name)) + 1:06d}", rollouts)

    def load_parts(self, name: str) -> list[Rollout]:
        """What `save_part` wrote under that name, oldest first."""
        return [rollout for path in self._parts(name) for rollout in read_rollouts(path)]

    def drop_parts(self, name: str) -> None:
        for path in self._parts(name):
            remove(path)

    def _parts(self, name: str) -> list[Path]:
        return sorted(self.rollout_folder.glob(f"{name}.part_*.parquet"))

    def rollouts(self, step: int) -> list[Rollout]:
        """The rollouts of a committed step, to replay its update or to look at."""
        found = self.load_rollouts(f"step_{step:06d}")
        if found is None:
            raise UserError(
                f"the rollouts of step {step} of stage {self.name} are gone from {self.rollout_folder}: "
                "put the file back, or start again in another folder with --out"
            )
        return found

    # --- weights

    @property
    def checkpoints(self) -> Path:
        return self.run.out / "checkpoints" / self.name

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> Path:
        """checkpoints/<stage>/step_<step>/, filled by `write(folder)`; of those before it go what the recipe does not keep."""
        before = self.step_checkpoints()
        self._make_room(keep.num_bytes(before[-1][1]) if before else 0)
        folder = self._save(f"step_{step:06d}", step, write)
        found = {number: old for number, old in self.step_checkpoints() if number <= step}
        with guard(self.checkpoints):
            for number in keep.to_go([*found], self.run.recipe.keep, self._best_step):
                if number != self.floor:
                    remove(found[number])
        self._make_room(0)
        self.run.write_summary()  # what was spent so far outlives a kill
        return folder

    def is_best(self, step: int) -> bool:
        """Whether the recipe keeps the best weights by dev accuracy, and those of this step are the best so far."""
        return self.run.recipe.keep.best and step == self._best_step

    @property
    def _best_step(self) -> int | None:
        return keep.best_step(self.rows("heldout"))

    def _make_room(self, need_bytes: int) -> None:
        """Within `keep.disk_gb`; neither the newest checkpoint nor the best goes. Raises DiskFull."""
        if (limit_gb := self.run.recipe.keep.disk_gb) is not None:
            older = self.step_checkpoints()[:-1]
            may_go = [folder for step, folder in older if step != self.floor and not self.is_best(step)]
            keep.make_room(self.run.out, may_go, need_bytes, limit_gb)

    def save_final(self, write: Callable[[Path], None], step: int | None = None) -> Path:
        """checkpoints/<stage>/final/: the weights the stage hands on, which are those of `step` (None: the last one)."""
        if latest := self.step_checkpoints():  # as large, without what only a resume needs
            self._make_room(keep.num_bytes(latest[-1][1]) - keep.num_bytes(latest[-1][1] / "strop_state"))
        return self._save("final", self.last_step if step is None else step, write)

    def _save(self, name: str, step: int, write: Callable[[Path], None]) -> Path:
        assert self.run.attempt is not None, "this run is open for reading only"
        folder = self.checkpoints / name
        self._intact.discard(folder)
        run = self.run
        disk.save_folder(folder, write, stage=self.name, step=step, recipe_hash=run.recipe.hash, made_on=run.made_on)
        return folder

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """The newest whole checkpoint and its step; a damaged one is named and the one before it taken."""
        for step, folder in reversed(self.step_checkpoints()):
            wrong = None if folder in self._intact else disk.what_is_wrong(folder)
            if wrong is None:
                self._intact.add(folder)
                self._refuse_before_fork(step)
                return step, folder
            self.run.say(f"{folder} is damaged ({wrong}): going back to the checkpoint before it")
        self._refuse_before_fork(0)
        return None

    @property
    def floor(self) -> int:
        """Steps up to this one were made with other settings than this recipe's (`fork`), and cannot be made again with them."""
        forked = self.run.summary.get("forked_from") or {}
        return forked["needs_checkpoint_from"] if forked.get("stage") == self.name else 0

    def _refuse_before_fork(self, step: int) -> None:
        if step < self.floor:
            raise UserError(
                f"no whole checkpoint of {self.checkpoints} from step {self.floor} on is left, and the "
                f"steps before were made with the settings of {self.run.summary['forked_from']['run']}; fork that run again"
            )

    @property
    def final(self) -> Path:
        """The weights of the stage: checkpoints/<stage>/final, or its latest checkpoint. UserError if neither is whole."""
        folder = self.checkpoints / "final"
        if not folder.is_dir():
            latest = self.latest_checkpoint()
            if latest is None:
                raise UserError(f"stage {self.name} of {self.run.out} has no saved weights yet")
            return latest[1]
        if folder not in self._intact and (wrong := disk.what_is_wrong(folder)) is not None:
            raise UserError(f"{folder} is damaged ({wrong}): run the recipe again in another folder with --out")
        self._intact.add(folder)
        return folder

    def step_checkpoints(self) -> list[tuple[int, Path]]:
        """Every step checkpoint, whole or not, oldest first."""
        found = ((_number(path), path) for path in self.checkpoints.glob("step_*"))
        return sorted((n, path) for n, path in found if n is not None)


# --- opening ----------------------------------------------------------------------------------------------------------


def _number(path: Path) -> int | None:
    """120 of "step_000120" or "step_000120.parquet"; None where the name is no step."""
    match = re.fullmatch(r"step_(\d+)(\.parquet)?", path.name)
    return int(match[1]) if match else None


def check_run(out: Path) -> None:
    """Raises UserError where `out` is no run directory, with the run beside it that has nearly its name."""
    if (out / "recipe.yaml").is_file():
        return
    close = difflib.get_close_matches(out.name, [path.parent.name for path in out.parent.glob("*/recipe.yaml")], n=1)
    instead = f"did you mean {out.parent / close[0]}?" if close else "name the folder that was given to --out"
    raise UserError(f"{out} is not a run directory: it has no recipe.yaml; {instead}")


def check_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Raises the UserErrors of `Run.open` (but for the lock) and changes nothing."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder with --out")
    is_run = (out / "recipe.yaml").is_file()
    if not is_run and out.is_dir() and any(path.name not in _OURS for path in out.iterdir()):
        raise UserError(f"{out} holds other files and is not a run; name a new folder with --out")
    if is_run and not resume:
        raise UserError(f"{out} already holds a run: continue it with --resume, or name another folder with --out")
    if not is_run and resume:
        raise UserError(f"there is no run to resume in {out}; leave --resume out to start one")
    if is_run:
        _check_recipe(out, recipe)


def _check_recipe(out: Path, recipe: Recipe) -> None:
    then = load_recipe(out / "recipe.yaml")
    if then.hash == recipe.hash:
        return
    key, old, new = first_difference(_by_name(then), _by_name(recipe), "") or ("something", "other", "this")
    raise UserError(
        f"{out} was started with another recipe: {key} was {old} and is now {new}; resume with the recipe file and "
        f"the --set it was started with ({out}/attempts/1/argv.json), or name another folder with --out"
    )


def _by_name(recipe: Recipe) -> Any:
    """The recipe as nested dicts; lists of named things are dicts by name, as --set addresses them."""

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(item) for key, item in value.items()}
        if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
            return {item["name"]: named(item) for item in value}
        return value

    return named(recipe.model_dump(mode="json", by_alias=True))


def first_difference(old: Any, new: Any, key: str) -> tuple[str, Any, Any] | None:
    """(dotted key, old value, new value) of the first place where two nested dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            inner = f"{key}.{name}" if key else name
            if name not in old or name not in new:
                return inner, "absent" if name in new else "there", "there" if name in new else "absent"
            if (found := first_difference(old[name], new[name], inner)) is not None:
                return found
        return (key, f"in the order {', '.join(old)}", ", ".join(new)) if list(old) != list(new) else None
    return None if old == new else (key, json.dumps(old), json.dumps(new))


def _new_attempt(out: Path) -> Path:
    """attempts/N with the next free number, the machine and the command line."""
    taken = [int(path.name) for path in (out / "attempts").glob("*") if path.name.isdigit()]
    attempt = out / "attempts" / str(max(taken, default=0) + 1)
    with guard(attempt):
        attempt.mkdir(parents=True)
    write_json(attempt / "machine.json", machine())
    write_json(attempt / "argv.json", sys.argv)
    return attempt


def new_summary(recipe: Recipe) -> dict[str, Any]:
    return {
        "model": recipe.model.name,
        "recipe_hash": recipe.hash,
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        "seed": recipe.seed,
        "finished": False,
        "stages": {},
        "comparisons": [],
        "ledger": {},
        "peak_rss_mb": 0,
        "machine": {},
    }


def _read_summary(out: Path) -> dict[str, Any] | None:
    """None where there is none yet: a process killed before its first write is a run that finished nothing."""
    path = out / "summary.json"
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); put it back as it was, or start again with --out") from None
    if not isinstance(summary, dict) or not isinstance(summary.get("stages"), dict):
        raise UserError(f"{path} is no summary of a run; put it back as it was, or start again with --out")
    return summary
