"""Benchmarks by name: which problems each one holds, where they come from, and how it is known that these are they.

A name is easily two benchmarks (AMC23 has 40 problems or 83), so each is pinned by its number of problems and by a hash
of their content; what differs in a local file is refused, what differs on the hub is said and carried into the result.
Every problem is held out. `benchmarks.txt` beside this file holds short hashes of the pinned ones (of OlympiadBench 338 of
the hub's 675), so that training can leave them out where no benchmark file is at hand (`holding`): whole problems, not
such with an instruction in front or in other words. A test writes it anew from the benchmark files and compares.

Reads through `files`; knows no model and no figure. Read by `tasks.load`, `evaluate` and `strop eval`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from strop.config import Section
from strop.record import Task, UserError
from strop.settings import check_settings
from strop.tasks import files

__all__ = ["BENCHMARKS", "Benchmark", "content", "holding", "local_file", "open_benchmark", "provenance"]

PINS = Path(__file__).with_name("benchmarks.txt")
FOLDERS = ("", "eval", "logic", "code")  # of DIR, where a file may lie


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """Where the Hugging Face hub has it. Ids, splits and columns are those that public evaluation code reads; none of it
    could be asked for itself when this was written, so nothing but the number of problems is pinned there."""

    id: str
    split: str
    rows: int
    subset: str = ""
    prompt: str = "problem"
    answer: str = "answer"
    revision: str = ""  # where one was found; else whatever is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark: `rows` and `hash` are those of the local file, or of its test split."""

    rows: int
    hash: str  # `content` of all problems
    file: str
    answers: str  # integer, number, expression, assignment, program
    verifier: str
    licence: str
    source: str
    hub: Hub | None = None
    people: tuple[int, ...] = ()  # sizes that `settings.people` may choose, of equally many problems each


BENCHMARKS: dict[str, Benchmark] = {
    "aime_2024": Benchmark(
        rows=30, hash="d97586a0d7d6aaba", file="aime_2024.jsonl", answers="integer", verifier="number",
        licence="problems (c) MAA", source="AIME 2024 I and II",
        hub=Hub(id="HuggingFaceH4/aime_2024", split="train", rows=30),
    ),
    "amc23": Benchmark(
        rows=40, hash="6ab2d8434ef09903", file="amc23.jsonl", answers="integer", verifier="number",
        licence="problems (c) MAA", source="AMC 12A and 12B 2023, 40 of their problems",
        hub=Hub(id="math-ai/amc23", split="test", rows=40, prompt="question",
                revision="80815d37005feb82cd7f8fbc6901d5d3eff43057"),
    ),
    "math_500": Benchmark(
        rows=500, hash="e98757fe2b109ca2", file="math_500.jsonl", answers="expression", verifier="math",
        licence="MIT", source="MATH test problems of PRM800K's split",
        hub=Hub(id="HuggingFaceH4/MATH-500", split="test", rows=500,
                revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
    ),
    "minerva_math": Benchmark(
        rows=272, hash="9445b3d88929c1bc", file="minerva_math.jsonl", answers="expression", verifier="math",
        licence="CC BY-NC-SA 4.0", source="MIT OpenCourseWare, as in Minerva (arXiv 2206.14858)",
        hub=Hub(id="math-ai/minervamath", split="test", rows=272, prompt="question"),
    ),
    "olympiadbench": Benchmark(  # the public half of the file's 675 problems; the hub has them all
        rows=338, hash="aa414fdaae023c77", file="olympiadbench_en_public.jsonl", answers="expression", verifier="math",
        licence="MIT", source="OlympiadBench OE_TO_maths_en_COMP (arXiv 2402.14008)",
        hub=Hub(id="Hothan/OlympiadBench", subset="OE_TO_maths_en_COMP", split="train", rows=675, prompt="question",
                answer="final_answer", revision="91184b52131e7fc9455fef848035173aea8cc01a"),
    ),
    "gsm8k": Benchmark(
        rows=1319, hash="3217264540942193", file="gsm8k_test.jsonl", answers="integer", verifier="number",
        licence="MIT", source="GSM8K test (arXiv 2110.14168)",
        hub=Hub(id="openai/gsm8k", subset="main", split="test", rows=1319, prompt="question"),
    ),
    "humaneval": Benchmark(
        rows=164, hash="546d09b12d581c40", file="humaneval.jsonl", answers="program", verifier="code",
        licence="MIT", source="HumanEval (arXiv 2107.03374)",
        hub=Hub(id="openai/openai_humaneval", split="test", rows=164),
    ),
    "mbpp": Benchmark(
        rows=257, hash="bd7cb3477ca22919", file="mbpp_sanitized.jsonl", answers="program", verifier="code",
        licence="CC BY 4.0", source="MBPP, the test problems that its authors checked by hand (arXiv 2108.07732)",
        hub=Hub(id="google-research-datasets/mbpp", subset="sanitized", split="test", rows=257),
    ),
    "knights_knaves": Benchmark(  # the hub has other puzzles of that name (K-and-K/knights-and-knaves)
        rows=500, hash="a6baae24a5d23e89", file="knights_knaves_test.jsonl", answers="assignment", verifier="knights",
        licence="CC BY-NC-SA 4.0", source="Logic-RL's test puzzles (arXiv 2502.14768)", people=(3, 4, 5, 6, 7),
    ),
}  # fmt: skip


class BenchmarkSettings(Section):
    data: str = ""
    """Folder of benchmark files (DIR/amc23.jsonl, or DIR/eval/, DIR/logic/). Empty: the environment variable STROP_DATA;
    where that has no such file either, the Hugging Face hub."""
    people: int | None = None
    """`knights_knaves` only: the puzzles with this many people, 3 to 7. Null: all."""


# --- opening ----------------------------------------------------------------------------------------------------------


def open_benchmark(source: str, settings: Mapping[str, Any], where: str, say: Callable[[str], None]) -> files.FileTasks:
    """Every problem of a benchmark, held out; there is nothing else in it.

    Raises UserError for a local file that is another benchmark of that name, a folder without the file, and what
    `files.open_file` refuses.
    """
    known, s = BENCHMARKS[source], check_settings(BenchmarkSettings, settings, where)
    if s.people is not None and s.people not in known.people:
        can = f"one of {', '.join(map(str, known.people))}" if known.people else "for knights_knaves; leave it out"
        raise UserError(f"{where}.settings.people is {can}")
    path = local_file(source, s.data, where)
    read = _read_local(source, path, where, say) if path is not None else _read_hub(source, where, say)
    digest = content(read)
    if path is not None:
        _refuse_others(source, path, read, digest)
    elif digest != known.hash:
        say(
            f"{where}: the hub's {source} has the hash {digest}, and pinned is {known.hash}: compare it only with "
            "results that have the same hash"
        )
    name = source if s.people is None else f"{source}:{s.people}"
    chosen = [task for task in read if s.people in (None, task.meta.get("n_people"))]
    return files.FileTasks((), tuple(_named(task, f"{name}@{digest[:12]}") for task in chosen), {})


def local_file(source: str, data: str = "", where: str = "") -> Path | None:
    """The benchmark's file in the folder `data`, else in $STROP_DATA; None where it is to come from the hub.

    Raises UserError where the named folder has no such file, or nothing has it and neither has the hub.
    """
    known, folder = BENCHMARKS[source], data or os.environ.get("STROP_DATA", "")
    looked = [Path(folder).expanduser() / part / known.file for part in FOLDERS] if folder else []
    found = next((path for path in looked if path.is_file()), None)
    if found is None and (data or known.hub is None):
        had = f"{folder} has no {known.file}" if folder else f"{source} is read from a file {known.file}"
        raise UserError(f"{where}: {had}; name the folder that has it with settings.data (strop eval: --data DIR)")
    return found


def content(tasks: Sequence[Task]) -> str:
    """16 hex digits over the problems with their answers, in whatever order.

    >>> one, two = (Task.make(source="s", prompt=p, answer="5", verifier="math") for p in ("2 + 3?", "1 + 4?"))
    >>> content([one, two]) == content([two, one]) != content([one])
    True
    """
    return hashlib.sha256("\n".join(sorted(task.content for task in tasks)).encode()).hexdigest()[:16]


def provenance(tasks: Sequence[Task]) -> dict[str, Any] | None:
    """What a result has to say of the benchmark its tasks are from; None where they are from none.

    `problems` of `of`: fewer are not the benchmark. `pinned`: they are those whose hash is in the table.
    """
    sources = {task.source for task in tasks}
    whole, _, digest = sources.pop().partition("@") if len(sources) == 1 else ("", "", "")
    name, _, people = whole.partition(":")
    if (known := BENCHMARKS.get(name)) is None:
        return None
    pinned = digest == known.hash[:12]
    rows = known.rows if pinned or known.hub is None else known.hub.rows
    return {
        "name": whole, "problems": len(tasks), "of": rows // len(known.people) if people else rows, "pinned": pinned,
    }  # fmt: skip


def _named(task: Task, source: str) -> Task:
    """The task under the benchmark's own name, so that a file and the hub's copy of it give the same ids."""
    level = {"level": task.meta["n_people"]} if "n_people" in task.meta else {}
    return Task.make(
        source=source, prompt=task.prompt, answer=task.answer, verifier=task.verifier, meta=task.meta | level
    )


def _read_local(source: str, path: Path, where: str, say: Callable[[str], None]) -> Sequence[Task]:
    """Raises UserError where the number of rows is not the benchmark's."""
    known = BENCHMARKS[source]
    columns = {"prompt_column": "problem", "answer_column": "answer", "verifier": known.verifier}
    found = files.open_file(str(path), {} if known.verifier == "code" else columns, where, say)
    if found.heldout is not None:
        found = replace(found, tasks=found.heldout)
    _refuse_count(source, found, known.rows, str(path))
    return found.tasks


def _read_hub(source: str, where: str, say: Callable[[str], None]) -> Sequence[Task]:
    known = BENCHMARKS[source]
    assert known.hub is not None, "local_file refuses what the hub has not"
    say(f"{where}: no file {known.file} here (settings.data or STROP_DATA would name its folder), so the hub is asked")
    wanted = {"subset": known.hub.subset, "split": known.hub.split, "revision": known.hub.revision}
    columns = {"prompt_column": known.hub.prompt, "answer_column": known.hub.answer, "verifier": known.verifier}
    found = files.open_file(known.hub.id, wanted if known.verifier == "code" else wanted | columns, where, say)
    _refuse_count(source, found, known.hub.rows, known.hub.id)
    return found.tasks


def _refuse_count(source: str, found: files.FileTasks, rows: int, place: str) -> None:
    num = len(found.tasks) + sum(len(ids) for ids in found.dropped.values())
    if num != rows or found.dropped:
        has = f"has {num}" if num != rows else f"{len(found.tasks)} that can be read"
        raise UserError(
            f"{source} has {rows} problems, {place} {has}: it is another benchmark of that name; name the file itself as a source"
        )


def _refuse_others(source: str, path: Path, tasks: Sequence[Task], digest: str) -> None:
    if digest == BENCHMARKS[source].hash:
        return
    pinned = set(pins()[source].values())
    num = sum(task.content[:8] not in pinned for task in tasks)
    raise UserError(
        f"{num} of the {len(tasks)} problems or answers in {path} are not those of {source}: it is another benchmark of "
        "that name; name the file itself as a source"
    )


# --- what training must not see ---------------------------------------------------------------------------------------


def folded(prompt: str) -> str:
    """A problem's letters, digits and operators: layout, case, dollar signs and braces make no new problem.

    >>> folded("Compute $\\\\dfrac{1}{2} + 3$ .") == folded("compute \\\\frac12+3")
    True
    """
    text = unicodedata.normalize("NFKC", prompt).casefold().replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return re.sub(r"[^\w+\-*/<>=^]|_", "", text)


def holding(prompt: str) -> str | None:
    """The benchmark that holds this problem, by the pinned hashes alone; None where none does."""
    return _holders().get(_short(prompt))


@functools.cache
def pins() -> dict[str, dict[str, str]]:
    """Of each benchmark the hash of every folded prompt, with the first 8 digits of the hash of prompt and answer."""
    found: dict[str, dict[str, str]] = {}
    name = ""
    for line in PINS.read_text(encoding="utf-8").splitlines():
        first, _, second = line.partition(" ")
        if second:
            found[name][first] = second
        elif first:
            name = first.strip("[]")
            found[name] = {}
    return found


@functools.cache
def _holders() -> dict[str, str]:
    return {short: name for name, problems in pins().items() for short in problems}


def _short(prompt: str) -> str:
    return hashlib.sha256(folded(prompt).encode()).hexdigest()[:12]
