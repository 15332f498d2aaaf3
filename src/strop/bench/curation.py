"""`curate`: time and memory of the stages that need no model, on real problems and on made-up ones in growing numbers.

Made-up pools hold what makes deduplication hard and what can be counted: problems of their own words, many that fill one
template with other numbers, and in files of their own copies in another layout, copies with a word changed, and copies
with a digit changed, which are new problems. Knows nothing of how a stage decides. Each point is a command of its own, so
that its memory and that of its processes can be read off. The peer is datatrove, on deduplication alone.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml

from strop.bench.result import Result
from strop.bench.scaling import exponent
from strop.config import Section
from strop.config.curation import DuplicatesStage
from strop.config.section import Count
from strop.curate import grams
from strop.machine import usable_cores
from strop.record import UserError

__all__ = ["Settings", "made_up", "run"]

VOCABULARY = 4000  # different words of made-up problems
TEMPLATES = 2000  # that differ in numbers alone, over and over
COPIED_FRAC = 0.04  # of the rows, each of: another layout, another word, another digit
STAGES = [
    {"do": "verifiable"}, {"do": "duplicates"}, {"do": "decontaminate"}, {"do": "filter", "languages": ["en"]},
]  # fmt: skip
FILES = ("a_problems", "b_layout", "c_word", "d_digit")  # in this order, so that copies go and originals stay
WORKER = Path(__file__).parent / "datatrove_worker.py"
SAMPLE_S = 0.2  # between two looks at the memory


class Settings(Section):
    pool: str = ""
    """A file of real problems, measured besides. Empty: made-up ones alone."""
    data: str = ""
    """Folder of the benchmarks' files, none of which may be left in. Empty: one made-up problem stands for them."""
    sizes: tuple[int, ...] = (62_500, 250_000, 1_000_000)
    """Rows of the made-up pools."""
    peer_rows: Count = 20_000
    """Rows of the made-up pool that is deduplicated beside datatrove."""
    datatrove_python: str = ".venv-datatrove/bin/python"
    """The interpreter of a virtual environment with datatrove (`make bench-datatrove`)."""


def run(settings: Settings, *, pairs: int, say: Callable[[str], None]) -> Result:
    """Wall, processor seconds and peak memory of `strop curate`: `pairs` rounds of the real pool, one of each made-up, and
    `pairs` rounds of the stage `duplicates` alone in turns with datatrove's."""
    rows: list[dict[str, Any]] = []
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if settings.pool:
            if not Path(settings.pool).is_file():
                raise UserError(f"bench curate: there is no file {settings.pool}; name one with --set pool=FILE")
            rounds = []
            for i in range(pairs):
                rounds.append(_curated([settings.pool], folder / f"real-{i}", settings.data))
                say(f"{Path(settings.pool).name}: {rounds[-1]['wall_s']:.0f} s")
            samples["real"] = [found["wall_s"] for found in rounds]
            rows.append(sorted(rounds, key=lambda found: found["wall_s"])[len(rounds) // 2] | {"pool": "real"})
        for num in settings.sizes:
            files = made_up(folder / f"pool-{num}", num)
            rows.append(_curated([str(file) for file in files], folder / f"made-{num}", "") | {"pool": "made up"})
            say(f"{num:,} rows: {rows[-1]['wall_s']:.0f} s, {rows[-1]['peak_mb']:.0f} MB")
        notes, beside = _beside_datatrove(settings, folder, pairs, say)
        rows += [sorted(r, key=lambda found: found["wall_s"])[len(r) // 2] for r in beside.values()]
        samples |= {name: [found["wall_s"] for found in r] for name, r in beside.items()}
    own = [row for row in rows if row["pool"] == "made up"]
    if len(own) > 1:
        k = {key: exponent([r["rows"] for r in own], [r[key] for r in own]) for key in ("wall_s", "cpu_s")}
        notes.append(f"Time grows as rows^{k['wall_s']:.2f}, processor time as rows^{k['cpu_s']:.2f}.")
    keys = ["pool", *(key for key in rows[0] if key != "pool")] if rows else []
    return Result(rows=[{key: row[key] for key in keys} for row in rows], samples=samples, notes=notes)


def made_up(folder: Path, num: int) -> list[Path]:
    """`num` rows in FILES, the last three with copies of rows of the first."""
    rng = random.Random(num)
    words = ["".join(rng.choices("abcdefghilmnoprstu", k=rng.randrange(3, 9))) for _ in range(VOCABULARY)]
    templates = [rng.choices(words, k=rng.randrange(15, 45)) for _ in range(TEMPLATES)]
    folder.mkdir()
    copied = int(num * COPIED_FRAC)
    originals = [_problem(rng, words, templates, i) for i in range(num - 3 * copied)]
    changes: Mapping[str, Callable[[str], str]] = {
        "b_layout": lambda text: text.replace("Find", "find").replace(" $", "  \\( ").replace("$ ", " \\)  "),
        "c_word": lambda text: f"{text[:-1]} {rng.choice(words)}.",
        "d_digit": lambda text: text.replace("$x = ", f"$x = {rng.randrange(1, 10)}", 1),
    }
    paths = [folder / f"{name}.jsonl" for name in FILES]
    _write(paths[0], iter(originals))
    for path in paths[1:]:
        chosen = rng.sample(originals, copied)
        _write(path, ((changes[path.stem](text), answer) for text, answer in chosen))
    return paths


def _problem(rng: random.Random, words: list[str], templates: list[list[str]], number: int) -> tuple[str, str]:
    body = list(rng.choice(templates)) if rng.random() < 0.4 else rng.choices(words, k=rng.randrange(15, 45))
    for place in range(5, len(body), 7):
        body[place] = f"$x = {rng.randrange(2, 900_000)}$"
    answer = (
        str(rng.randrange(10_000)) if number % 10 else f"\\frac{{{rng.randrange(1, 99)}}}{{{rng.randrange(2, 99)}}}"
    )
    return f"Find the {' '.join(body)}.", answer


def _write(path: Path, rows: Iterator[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"problem": text, "answer": answer}) + "\n" for text, answer in rows)


def _beside_datatrove(
    settings: Settings, folder: Path, pairs: int, say: Callable[[str], None]
) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """What is to be said, and the rounds of each: the same files, the same n-grams and bands, as many processes."""
    if not Path(settings.datatrove_python).is_file():
        return ["datatrove was left out: `make bench-datatrove` makes the environment it needs."], {}
    stage = DuplicatesStage(do="duplicates")
    bands, rows = grams.banding(stage.jaccard, stage.permutations)
    files = made_up(folder / "beside", settings.peer_rows)
    ours, theirs = "duplicates alone", "duplicates alone, datatrove"
    found: dict[str, list[dict[str, Any]]] = {ours: [], theirs: []}
    for i in range(pairs):
        found[ours].append(
            {"pool": ours} | _curated([str(f) for f in files], folder / f"ours-{i}", "", [{"do": "duplicates"}])
        )
        out = folder / f"theirs-{i}"
        asked = {
            "files": str(files[0].parent), "out": str(out), "workers": usable_cores(), "ngram": stage.ngram, "bands": bands,
            "rows": rows,
        }  # fmt: skip
        spent: dict[str, Any] = _timed(
            [settings.datatrove_python, str(WORKER), json.dumps(asked)], out.with_suffix(".log")
        )
        kept = json.loads(out.with_suffix(".log").read_text(encoding="utf-8").splitlines()[-1])
        every = {file.stem: sum(1 for _ in file.open("rb")) for file in files}
        gone = {name: num - kept.get(name, 0) for name, num in every.items()}
        spent["cpu_s"] = None  # its processes are not all waited for, so the system does not tell
        found[theirs].append({"pool": theirs} | spent | _shares(every, gone, sum(kept.values())))
        say(f"pair {i + 1}: {ours} {found[ours][-1]['wall_s']:.0f} s, datatrove {spent['wall_s']:.0f} s")
    medians = [sorted(row["wall_s"] for row in found[name])[pairs // 2] for name in (ours, theirs)]
    return [f"datatrove takes {medians[1] / medians[0]:.1f} times as long on the same deduplication."], found


def _curated(pool: list[str], out: Path, data: str, stages: list[dict[str, Any]] = STAGES) -> dict[str, Any]:
    asked: dict[str, Any] = {"pool": pool, "stages": stages}
    if {"do": "decontaminate"} in stages:
        asked |= {"against": ["all"] if data else [str(out.with_name("against.jsonl"))], "data": data}
        if not data:
            alone = ("What is the least number of coins that a clerk needs for 83 cents?", "7")
            _write(Path(asked["against"][0]), iter([alone]))
    recipe = out.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(asked))
    command = [sys.executable, "-c", "from strop.cli import main; main()", "curate", str(recipe), "--out", str(out)]
    return _timed(command, out.with_suffix(".log")) | _counts(out)


def _timed(command: list[str], said: Path) -> dict[str, Any]:
    """Wall, processor seconds and peak memory of a command and its processes. Raises UserError with its last words."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with open(said, "w+b") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _own_mb(process.pid))
            time.sleep(SAMPLE_S)
        wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            log.seek(0)
            raise UserError(f"bench curate: {log.read().decode(errors='replace').strip()[-500:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak}


def _own_mb(pid: int) -> float:
    """Memory of a process and its children that is no file's: a mapped file lies in memory once, and may leave it."""
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            memory = process.memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
    except psutil.NoSuchProcess:
        pass
    return total / 1e6


def _counts(out: Path) -> dict[str, Any]:
    """Rows, those kept, and of each kind of copy the share that went as a duplicate."""
    fates = pq.read_table(out / "fates.parquet", columns=["source", "stage"]).to_pylist()
    every, gone = (
        Counter(row["source"] for row in fates),
        Counter(row["source"] for row in fates if row["stage"] == "duplicates"),
    )
    return _shares(every, gone, sum(row["stage"] in ("train", "heldout") for row in fates))


def _shares(every: Mapping[str, int], gone: Mapping[str, int], kept: int) -> dict[str, Any]:
    found = {f"{name[2:]}_gone_frac": gone[name] / every[name] if every.get(name) else None for name in FILES}
    return {"rows": sum(every.values()), "kept_frac": kept / sum(every.values())} | found
