"""From sources to rows: normalised, sorted by content, distinct; what cannot be a row is set aside with a reason.

Reads row by row (`read`) and writes Arrow in batches, so that a million rows never lie in memory as Python objects. Which
columns hold problem and answer, and where the final answer lies, is told by `tasks.files`. Rows are sorted by the hash of
problem and answer, then by source, then by all else, so that nothing after this knows the order or the names of files.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from strop import disk
from strop.config import Curation, PoolSource, nearest
from strop.curate import table
from strop.curate.read import EXCERPT, Raw, Source, name_of, open_source
from strop.curate.rows import SCHEMA
from strop.curate.table import FATES
from strop.record import UserError, content_hash
from strop.tasks import benchmarks, files
from strop.watch import Bar, Watch

__all__ = ["LOAD", "against", "check_against", "describe", "load"]

LOAD = "load"  # the name of this stage in the record of fates
LONGEST_PROMPT = 100_000  # characters; the verifiable stage has a lower limit of its own
LONGEST_ANSWER = 10_000
LICENCES = ("licence", "license")
LOOKED_AT = 1000  # rows of a source that a dry run reads
FILLED = 0.5  # share of rows that a column has to hold something in, to be taken before a fuller one of a later name
_KEYS = pa.schema([*SCHEMA, ("content", pa.uint64()), ("rest", pa.uint64())])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    prompt: str
    answer: str  # "" where none is needed


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What one source came to."""

    name: str
    revision: str
    rows: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    licences: Counter[str] = field(default_factory=Counter)
    fates: list[tuple[str, ...]] = field(default_factory=list)


def load(opened: Sequence[Source], verifier: str, folder: Path, *, watch: Watch) -> None:
    """Fills `folder` with `rows.arrow` (SCHEMA), `fates.arrow` of the rows set aside, and `facts.json`, a list of sources.

    Raises UserError for a source without rows, or without a known column for the problem or the answer.
    """
    tallies = []
    unsorted = folder / "unsorted.arrow"
    with table.Writer(unsorted, _KEYS) as out:
        for source in opened:
            columns, num = _choose(source, watch)
            tallies.append(_Tally(name=source.name, revision=source.revision, columns=_told(columns)))
            with watch.phase(f"reading {source.name}", num, "rows") as bar:
                out.write_rows(_normalised(source, columns, verifier, tallies[-1], bar))
            _say(tallies[-1], watch)
    fates = [fate for tally in tallies for fate in tally.fates] + _distinct(unsorted, folder / "rows.arrow")
    table.write(folder / "fates.arrow", [pa.table(_transposed(sorted(fates)), schema=FATES)])
    disk.remove(unsorted)
    disk.write_json(folder / "facts.json", [_facts(tally) for tally in tallies])


def _told(columns: _Columns) -> dict[str, str]:
    return {"problem": columns.prompt, "answer": columns.answer}


def _transposed(fates: Sequence[tuple[str, ...]]) -> list[pa.Array]:
    columns = list(zip(*fates, strict=True)) if fates else [()] * len(FATES)
    return [pa.array(column, pa.string()) for column in columns]


def _facts(tally: _Tally) -> dict[str, Any]:
    return {
        "name": tally.name, "revision": tally.revision, "rows": tally.rows, "columns": tally.columns,
        "licences": dict(sorted(tally.licences.items())),
    }  # fmt: skip


def _say(tally: _Tally, watch: Watch) -> None:
    reasons = Counter(fate[3] for fate in tally.fates)
    what = "".join(f", {num:,} {reason}" for reason, num in reasons.most_common())
    watch.say(
        f"{tally.name}: {tally.rows:,} rows, problem from column {tally.columns['problem']!r}, answer from "
        f"{tally.columns['answer']!r}{'; set aside: ' + what[2:] if what else ''}"
    )


def describe(source: Source, watch: Watch) -> dict[str, Any]:
    """What a source is, by its first rows. Raises UserError as `load` does."""
    columns, _ = _choose(replace(source, rows=lambda: itertools.islice(source.rows(), LOOKED_AT)), watch)
    return {"name": source.name, "revision": source.revision, "columns": _told(columns)}


# --- columns ----------------------------------------------------------------------------------------------------------


def _choose(source: Source, watch: Watch, *, need_answer: bool = True) -> tuple[_Columns, int]:
    """The columns of problem and answer, and the number of rows; over all rows, so that their order decides nothing."""
    known = {*files.PROMPT_COLUMNS, *files.ANSWER_COLUMNS, source.settings.prompt_column, source.settings.answer_column}
    filled: Counter[str] = Counter()
    others: dict[str, None] = {}
    num = objects = 0
    for raw in source.rows():
        num += 1
        if raw.columns is not None:
            objects += 1
            filled.update(column for column in known if files.get(raw.columns, column) not in (None, ""))
            if len(others) < 20:
                others.update(dict.fromkeys(raw.columns))
    if not objects:
        raise UserError(f"{source.name} holds no row that can be read" if num else f"{source.name} holds no rows")
    s = source.settings
    prompt = _fitting(s.prompt_column, files.PROMPT_COLUMNS, filled, objects)
    answer = _fitting(s.answer_column, [c for c in files.ANSWER_COLUMNS if c != prompt], filled, objects)
    for column, what, asked, needed in (
        (prompt, "prompt", s.prompt_column, True), (answer, "answer", s.answer_column, need_answer),
    ):  # fmt: skip
        if needed and not column:
            looked_for = f"{asked!r}" if asked else f"for the {what}"
            raise UserError(
                f"{source.name} has no column {looked_for}; it has {', '.join(sorted(others)[:20])}: name the right one in the "
                f"recipe's pool, settings: {{{what}_column: ...}}"
            )
    watch.say(f"{source.name}: {num:,} rows to read")
    return _Columns(prompt=prompt, answer=answer), num


def _fitting(asked: str, known: Sequence[str], filled: Counter[str], num: int) -> str:
    """The column asked for; else the first known one that half of the rows fill; else the fullest. "" for none."""
    if asked:
        return asked if filled[asked] else ""
    there = [column for column in known if filled[column]]
    half = [column for column in there if filled[column] >= FILLED * num]
    return half[0] if half else max(there, key=lambda column: filled[column], default="")


# --- rows -------------------------------------------------------------------------------------------------------------


def _normalised(source: Source, columns: _Columns, verifier: str, tally: _Tally, bar: Bar) -> Iterator[tuple[Any, ...]]:
    """Rows of `_KEYS`; what is none goes into the tally."""
    for raw in source.rows():
        tally.rows += 1
        made = _row(raw, source, columns, verifier)
        bar.advance()
        if len(made) == len(_KEYS):
            tally.licences[made[5]] += 1
            yield made
        else:
            tally.fates.append(made)


def _row(raw: Raw, source: Source, columns: _Columns, verifier: str) -> tuple[Any, ...]:
    """A row of `_KEYS`, or one of `FATES`."""
    if raw.columns is None:
        return (f"{source.name}/line-{raw.digest}", source.name, LOAD, raw.reason, raw.detail, raw.excerpt)
    try:
        value = files.get(raw.columns, columns.prompt)
        prompt = files.problem_text(value)
        answer = (files.row_answer(raw.columns, columns.answer) if columns.answer else "") or ""
    except RecursionError:
        return _aside(source, raw.columns, "", "", "nested too deeply")
    reason, detail = _fault(value, prompt, answer, need_answer=bool(columns.answer))
    if reason:
        return _aside(source, raw.columns, prompt, answer, reason, detail)
    content = content_hash(prompt, answer)
    licence = next((v for k in LICENCES if isinstance(v := raw.columns.get(k), str) and v.strip()), source.licence)
    meta = files.kept_meta(raw.columns, columns.prompt, columns.answer, answer)
    named = {"upstream_split" if key == "split" else key: value for key, value in meta.items() if key not in LICENCES}
    meta_text = _clean(json.dumps(named, sort_keys=True, ensure_ascii=False))  # `split` is what our mixture says
    licence = _clean(licence.strip())
    rest = int.from_bytes(sha256(json.dumps([prompt, answer, licence, meta_text]).encode()).digest()[:8], "big")
    row_id = f"{source.name}/{content}"
    return (row_id, source.name, prompt, answer, verifier, licence, meta_text, int(content, 16), rest)


def _fault(value: Any, prompt: str, answer: str, *, need_answer: bool) -> tuple[str, str]:
    """Why a row is none, and what was there; ("", "") for a good one."""
    if not prompt:
        empty = value is None or isinstance(value, str)
        return ("no problem", "") if empty else ("problem is no text", type(value).__name__)
    if len(prompt) > LONGEST_PROMPT:
        return "problem too long", f"{len(prompt):,} characters"
    if not answer and need_answer:
        return "no final answer", ""
    if len(answer) > LONGEST_ANSWER:
        return "answer too long", f"{len(answer):,} characters"
    if "\x00" in prompt or "\x00" in answer:
        return "null byte", "in the problem" if "\x00" in prompt else "in the answer"
    if _clean(prompt) != prompt or _clean(answer) != answer:
        return "not UTF-8", "half a surrogate pair"
    return "", ""


def _clean(text: str) -> str:
    """Text that Arrow can hold: half a surrogate pair becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _aside(
    source: Source, columns: Mapping[str, Any], prompt: str, answer: str, reason: str, detail: str = ""
) -> tuple[str, ...]:
    """A fate; the id is the content's where there is some, so that it does not depend on the place."""
    digest = content_hash(_clean(prompt), _clean(answer)) if prompt else _digest(columns)
    return (f"{source.name}/{digest}", source.name, LOAD, reason, detail, _clean(prompt[:EXCERPT]))


def _digest(columns: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(columns, sort_keys=True, default=str)
    except (RecursionError, ValueError, TypeError):
        text = ",".join(sorted(map(str, columns)))
    return sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


# --- order ------------------------------------------------------------------------------------------------------------


def _distinct(unsorted: Path, out: Path) -> list[tuple[str, ...]]:
    """Writes the rows in order of content, each (problem, answer, source) once; returns the fates of the others."""
    rows = table.read(unsorted)
    content, rest = (rows.column(name).to_numpy() for name in ("content", "rest"))
    names = rows.column("source").combine_chunks().dictionary_encode()
    rank = np.argsort(np.argsort(np.array(names.dictionary.to_pylist(), dtype=object)))
    source = rank[names.indices.to_numpy()] if len(rows) else content
    order = np.lexsort((rest, source, content))
    again = np.zeros(len(order), bool)
    again[1:] = (content[order][1:] == content[order][:-1]) & (source[order][1:] == source[order][:-1])
    rows = rows.select(SCHEMA.names)
    table.write(out, table.taken(rows, order[~again]))
    return [
        (row["id"], row["source"], LOAD, "repeated row", "", row["prompt"][:EXCERPT])
        for part in table.taken(rows.select(["id", "source", "prompt"]), order[again])
        for row in part.to_pylist()
    ]


# --- what training must not see ---------------------------------------------------------------------------------------


def check_against(curation: Curation) -> None:
    """Raises UserError for a name in `against` that is neither a benchmark nor a file; reads nothing."""
    for index, name in enumerate(curation.against):
        if name not in (*benchmarks.BENCHMARKS, "all") and not files.looks_like_data(name):
            raise UserError(
                f"against.{index}: {name!r} is no file that exists{nearest(name, [*benchmarks.BENCHMARKS, 'all'])}"
            )


def against(curation: Curation, watch: Watch) -> pa.Table:
    """The problems of every benchmark, file and id that the recipe names in `against`, with or without an answer.

    Raises UserError for what is neither, and for what cannot be opened.
    """
    check_against(curation)
    named = [n for name in curation.against for n in (benchmarks.BENCHMARKS if name == "all" else [name])]
    parts: dict[str, pa.Table] = {}
    for index, name in enumerate(dict.fromkeys(named)):
        where = f"against.{index}"
        if name in benchmarks.BENCHMARKS:
            settings = {"data": curation.data} if curation.data else {}
            found = benchmarks.open_benchmark(name, settings, where, watch.say)
            tasks = found.heldout or ()
            rows: Iterable[tuple[Any, ...]] = (
                (t.id, name, t.prompt, t.answer, t.verifier, benchmarks.BENCHMARKS[name].licence, "{}") for t in tasks
            )
        else:
            rows = _unanswered(PoolSource(source=name), where, curation.verifier, watch)
        parts[name] = pa.table(
            [pa.array(column, pa.string()) for column in zip(*rows, strict=True)] or [[]] * len(SCHEMA), schema=SCHEMA
        )
        watch.say(f"against {name}: {len(parts[name]):,} problems")
    return pa.concat_tables([parts[name] for name in sorted(parts)]) if parts else SCHEMA.empty_table()


def _unanswered(pool: PoolSource, where: str, verifier: str, watch: Watch) -> Iterator[tuple[Any, ...]]:
    """Rows of SCHEMA of a file or id; an answer is taken where there is one, and what cannot be read is said."""
    source = open_source(pool, name_of(pool), where, watch.say)
    columns, _ = _choose(source, watch, need_answer=False)
    tally = _Tally(name=source.name, revision=source.revision)
    for raw in source.rows():
        made = _row(raw, source, columns, verifier)
        if len(made) != len(_KEYS) and made[3] == "no final answer":  # a problem is a problem
            made = _row(raw, source, _Columns(prompt=columns.prompt, answer=""), verifier)
        if len(made) == len(_KEYS):
            yield made[: len(SCHEMA)]
        else:
            tally.fates.append(made)
    if tally.fates:
        reasons = ", ".join(f"{num:,} {reason}" for reason, num in Counter(f[3] for f in tally.fates).most_common())
        watch.say(f"{source.name}: rows that nothing can be compared with: {reasons}")
