"""One's own data as a task source: JSON Lines (also gzipped), Parquet, a Hugging Face dataset id or its local copy.

Knows which columns hold the problem and the answer, how a final answer lies inside a worked solution (after "####" as
in GSM8K, or in the last \\boxed{}), and which rows cannot be tasks. It does not clean: near-duplicates, wrong answers
and leaked benchmarks are curation's business. A row of GSM8K, as the repository's own copy has it:

    {"id": "gsm8k-train-0000", "problem": "Natalia sold clips to 48 of her friends in April, ...", "answer": "72",
     "solution": "Natalia sold 48/2 = <<48/2=24>>24 clips in May. ... #### 72"}
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import math
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from strop.config import Section
from strop.record import Task, UserError, content_hash, seed_of
from strop.settings import check_settings
from strop.tasks import code

__all__ = ["FileTasks", "final_answer", "looks_like_data", "open_file"]

PROMPT_COLUMNS = ("prompt", "question", "problem", "input", "messages")
ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "reward_model.ground_truth", "label")
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_ONLY = ("subset", "split", "heldout_split", "revision")
LONGEST_ANSWER = 200  # characters of an answer in the column `solution` that no "####" and no box marks
FEWEST_WORDS = 8  # that make an answer column one of worked solutions, where no other column holds them
LONGEST_META = 1000  # characters of a column that is kept in Task.meta
NOT_META = {
    "answer",
    "solution",
    "prompts",
    "completions",
    "completion_ids",
    "meta",
}  # taken: `solution` by us, `meta` says what curation's other columns say, others by rewards
ALTERNATES = "answer_alternates"  # other spellings of the answer
LISTS = ("statements", "names")  # of a Knights and Knaves puzzle: what its solver reads
VERIFIERS = ("math", "number", "knights", "exact", "gym")  # that a column `verifier` may name, row by row

Row = tuple[str, dict[str, Any]]  # where it stood ("line 7"), and its columns


class FileSettings(Section):
    prompt_column: str = ""
    """Column of the problem. Empty: the first of prompt, question, problem, input, messages."""
    answer_column: str = ""
    """Column of the answer. Empty: the first of answer, solution, ground_truth, reward_model.ground_truth, label."""
    heldout_source: str = ""
    """Another file or id whose tasks are the held-out ones. Empty: they are taken from the source itself."""
    verifier: Literal["math", "number", "knights", "exact"] = "math"
    """What judges the answers, where no column `verifier` says so: `math` (any value equal to the gold answer), `number` (the same, but worked out
    where the gold answer is: 75, not 27 + 48), `knights`, or `exact` (the text itself)."""
    subset: str = ""
    """Hugging Face ids only: the dataset's configuration (`main`)."""
    split: str = "train"
    """Hugging Face ids only: the split to train on."""
    heldout_split: str = ""
    """Hugging Face ids only: the split that the held-out tasks come from."""
    revision: str = ""
    """Hugging Face ids only: branch, tag or commit."""


@dataclass(frozen=True, slots=True)
class FileTasks:
    """The tasks of one data set, and those of the held-out one where it is another."""

    tasks: tuple[Task, ...]
    heldout: tuple[Task, ...] | None
    dropped: Mapping[str, tuple[str, ...]]  # reason -> ids of rows
    endless: bool = False

    def stream(self, split: str, seed: int) -> Iterator[Task]:
        """Held-out and dev tasks in the order of a hash, which no seed and no order of rows moves; then a shuffle."""
        tasks = list(self.every(split))
        if split == "train":
            random.Random(seed_of("file", seed)).shuffle(tasks)
        else:
            tasks.sort(key=lambda task: content_hash(split, task.content))
        return iter(tasks)

    def every(self, split: str) -> Iterator[Task]:
        return iter(self.heldout if split == "heldout" and self.heldout is not None else self.tasks)

    def key(self, task: Task) -> str:
        return " ".join(task.prompt.split())


def looks_like_data(source: str) -> bool:
    """Whether a source is meant as a file, a folder or a Hugging Face id."""
    return source.endswith(SUFFIXES) or (source != "" and Path(source).exists()) or is_hub(source)


def open_file(source: str, settings: Mapping[str, Any], where: str, say: Callable[[str], None]) -> FileTasks:
    """The tasks of a file or id; `say` hears which columns were taken and how many rows were dropped.

    Raises UserError with the file and the line, or the columns that there are and the setting to type.
    """
    s = check_settings(FileSettings, settings, where)
    if local := not is_hub(source) and not is_hub(s.heldout_source):
        for key in HUB_ONLY:
            if key in s.model_fields_set:
                raise UserError(f"{where}.settings.{key} is for Hugging Face ids; {source} is a file, so leave it out")
    tasks, dropped = _read_tasks(source, s, s.split, where, say)
    heldout_source = s.heldout_source or (source if s.heldout_split else "")
    if not heldout_source:
        return FileTasks(*code.apart(tasks), dropped)
    heldout, dropped_too = _read_tasks(heldout_source, s, "" if local else s.heldout_split or "test", where, say)
    for reason, ids in dropped_too.items():
        dropped[reason] = dropped.get(reason, ()) + ids
    return FileTasks(tasks, heldout, dropped)


def _read_tasks(
    source: str, s: FileSettings, split: str, where: str, say: Callable[[str], None]
) -> tuple[tuple[Task, ...], dict[str, tuple[str, ...]]]:
    name, rows = _read_rows(source, s, split, where, say)
    if not rows:
        raise UserError(f"{source} holds no rows")
    if code.is_code(rows[0][1]):
        for key in s.model_fields_set & {"prompt_column", "answer_column", "verifier"}:
            raise UserError(f"{where}.settings.{key} would change nothing: {source} holds code tasks; leave it out")
        return code.read(source, name, rows, say)
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    prompt_column = _choose(s.prompt_column, PROMPT_COLUMNS, columns, rows, "prompt", source, where)
    answer_column = _choose(s.answer_column, ANSWER_COLUMNS, columns, rows, "answer", source, where, prompt_column)
    tasks: dict[str, Task] = {}
    dropped: dict[str, list[str]] = {}
    for place, row in rows:
        prompt, answer = problem_text(get(row, prompt_column)), row_answer(row, answer_column)
        row_id = str(row.get("id") or place)
        if not prompt:
            dropped.setdefault("no problem", []).append(row_id)
        elif not answer:
            dropped.setdefault("no final answer", []).append(row_id)
        elif (folded := " ".join(prompt.split())) in tasks:
            dropped.setdefault("repeated problem", []).append(row_id)
        else:
            meta = kept_meta(row, prompt_column, answer_column, answer)
            tasks[folded] = Task.make(source=name, prompt=prompt, answer=answer, verifier=_verifier(row, s), meta=meta)
    num_solutions = sum(len(task.solutions) for task in tasks.values())
    say(
        f"{source}: {len(tasks)} tasks from {len(rows)} rows; problem from column {prompt_column!r}, answer from "
        f"{answer_column!r}, {num_solutions} worked solutions"
        + "".join(f"; dropped {len(ids)} ({reason}): {_some(ids)}" for reason, ids in dropped.items())
    )
    return tuple(tasks.values()), {reason: tuple(ids) for reason, ids in dropped.items()}


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


# --- rows -------------------------------------------------------------------------------------------------------------


def is_hub(source: str) -> bool:
    """A folder counts as well: it is a data set in the hub's layout, and may have splits."""
    if source == "" or source.endswith(SUFFIXES):
        return False
    return Path(source).is_dir() or (not Path(source).exists() and HUB_ID.fullmatch(source) is not None)


def _read_rows(
    source: str, s: FileSettings, split: str, where: str, say: Callable[[str], None]
) -> tuple[str, list[Row]]:
    """The name with its revision (hash of the bytes, or the hub's), and all rows."""
    if is_hub(source):
        return _read_hub(source, s, split, where, say)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{where}: there is no file {source}")
    if not source.endswith(SUFFIXES):
        raise UserError(
            f"{where}: {source} is none of {', '.join(SUFFIXES)}; write one JSON object a line and call it .jsonl"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from error
    name = f"{path.name}@{hashlib.sha256(data).hexdigest()[:12]}"
    return name, list(_parquet_rows(path) if source.endswith(".parquet") else _json_rows(source, data))


def _json_rows(source: str, data: bytes) -> Iterator[Row]:
    try:
        text = (gzip.decompress(data) if source.endswith(".gz") else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{source} is not whole gzip data: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source} is not UTF-8 text: byte {error.start} is {data[error.start : error.start + 1]!r}"
        ) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}:{number} is not JSON ({error}): {line[:60]!r}") from error
        if not isinstance(row, dict):
            raise UserError(
                f'{source}:{number} is no JSON object such as {{"problem": "2 + 3", "answer": "5"}}: {line[:60]!r}'
            )
        yield f"line {number}", row


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException, ValueError) as error:  # a text in it may be none
        raise UserError(f"{path} is not a readable Parquet file: {' '.join(str(error).split())[:200]}") from error
    return ((f"row {number}", row) for number, row in enumerate(rows))


def _read_hub(
    source: str, s: FileSettings, split: str, where: str, say: Callable[[str], None]
) -> tuple[str, list[Row]]:
    revision, data = open_hub(source, s, split, where, say)
    name = f"{Path(source).name if Path(source).is_dir() else source}@{revision}"
    return name, [(f"row {number}", row) for number, row in enumerate(data)]


def open_hub(
    source: str, s: FileSettings, split: str, where: str, say: Callable[[str], None]
) -> tuple[str, Iterable[dict[str, Any]]]:
    """The revision (or fingerprint) of a Hugging Face data set, and its rows. Raises UserError where there is none."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"{where}: {source} is read with the package datasets, which is not installed: pip install 'strop[hub]'"
        ) from None
    say(f"{source}: asking for the split {split!r} of the Hugging Face dataset")
    try:
        data = datasets.load_dataset(source, s.subset or None, split=split, revision=s.revision or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: the dataset {source} (split {split}) cannot be loaded: {told}") from error
    return s.revision or data._fingerprint, data


# --- columns ----------------------------------------------------------------------------------------------------------


def get(row: Mapping[str, Any], column: str) -> Any:
    """A column's value; `reward_model.ground_truth` looks inside `reward_model`.

    >>> get({"reward_model": {"ground_truth": "4"}}, "reward_model.ground_truth")
    '4'
    """
    if column in row:
        return row[column]
    outer, dot, inner = column.partition(".")
    value = row.get(outer)
    return get(value, inner) if dot and isinstance(value, Mapping) else None


def _choose(
    asked: str, known: Sequence[str], columns: Sequence[str], rows: Sequence[Row], what: str, source: str, where: str,
    taken: str = "",
) -> str:  # fmt: skip
    """The column that was asked for, else the first known one that holds something."""
    candidates = [asked] if asked else [column for column in known if column != taken]
    for column in candidates:
        if any(get(row, column) is not None for _, row in rows):
            return column
    looked_for = f"{asked!r}" if asked else f"for the {what} ({', '.join(known)})"
    example = next((column for column in columns if column != taken), columns[0] if columns else "name")
    raise UserError(
        f"{source} has no column {looked_for}; it has {', '.join(columns)}: "
        f"name the right one with --set {where}.settings.{what}_column={example}"
    )


def problem_text(value: Any) -> str:
    """The problem as text; of a list of messages its only user turn. Empty where there is none, or several.

    >>> problem_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}])
    '2 + 3?'
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Sequence):
        turns = [m.get("content") for m in value if isinstance(m, Mapping) and m.get("role") == "user"]
        if len(turns) == 1 and isinstance(turns[0], str):
            return turns[0].strip()
    return ""


def final_answer(value: Any) -> str | None:
    """The answer as text: a number, a text, or the marked end of a worked solution; None where there is none.

    >>> final_answer("She sold 48/2 = 24 clips.\\n#### 1,024"), final_answer(r"So \\boxed{\\frac{1}{2}}."), final_answer(7.0)
    ('1024', '\\\\frac{1}{2}', '7')
    >>> final_answer({"A": "knight", "B": "knave"})
    'A: knight, B: knave'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or None
    if isinstance(value, list):
        return final_answer(value[0]) if len(value) == 1 else None
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return (str(int(value)) if value.is_integer() else repr(value)) if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if "####" in text:
        text = text.rpartition("####")[2].strip()
        return (text.replace(",", "") if re.fullmatch(r"-?\$?\d{1,3}(,\d{3})+(\.\d+)?", text) else text) or None
    if "\\boxed{" in text:
        return last_boxed(text)
    return text or None


def row_answer(row: Mapping[str, Any], column: str) -> str | None:
    """A row's final answer; None where it has none, or only a worked solution that never says it."""
    return None if column == "solution" and _is_prose(row.get("solution")) else final_answer(get(row, column))


def _is_prose(value: Any) -> bool:
    return isinstance(value, str) and not re.search(r"####|\\boxed\{", value) and len(value.strip()) > LONGEST_ANSWER


def last_boxed(text: str) -> str | None:
    """What the last \\boxed{} holds, its inner braces included; None where it is empty or not closed."""
    start = text.rfind("\\boxed{") + len("\\boxed{")
    depth = 1
    for end in range(start, len(text)):
        if text[end] in "{}" and text[end - 1] != "\\":
            depth += 1 if text[end] == "{" else -1
        if depth == 0:
            return text[start:end].strip() or None
    return None


def worked_solution(text: str, answer: str) -> str:
    """A solution as the model is to write it: GSM8K's calculator notes removed, its "#### 72" said as \\boxed{72}.

    >>> worked_solution("He has 2+3 = <<2+3=5>>5 eggs.\\n#### 5", "5")
    'He has 2+3 = 5 eggs.\\n\\\\boxed{5}'
    """
    if "####" not in text:
        return text.strip()
    body = re.sub(r"<<[^<>]*>>", "", text.rpartition("####")[0]).strip()
    return f"{body}\n\\boxed{{{answer}}}"


def kept_meta(row: Mapping[str, Any], prompt_column: str, answer_column: str, answer: str) -> dict[str, Any]:
    """The worked solution, and every other plain column."""
    used = {prompt_column, answer_column} | NOT_META
    meta = {key: value for key, value in row.items() if key not in used and _is_plain(value)}
    answered = get(row, answer_column)
    solution = None if answer_column == "solution" else row.get("solution")
    if not isinstance(solution, str) and isinstance(answered, str) and len(answered.split()) >= FEWEST_WORDS:
        solution = answered  # GSM8K as published: one column for both
    if isinstance(solution, str) and solution.strip():
        meta["solution"] = worked_solution(solution, answer)
    if isinstance(given := row.get("solutions"), list):  # a teacher's: several of one task
        several = [worked_solution(s, answer) for s in given if isinstance(s, str) and s.strip()]
        meta |= {"solution": several[0], "solutions": several} if len(several) > 1 else {}
    if isinstance(others := row.get(ALTERNATES), list):
        meta[ALTERNATES] = [str(other) for other in others]
    meta |= {key: row[key] for key in LISTS if isinstance(row.get(key), list)}
    if row.get("verifier") == "gym" and (entry := _entry(row.get("entry"))) is not None:
        meta["entry"] = entry
    return meta


def _verifier(row: Mapping[str, Any], s: FileSettings) -> str:
    """What judges a row: the setting where it was set, else the row's own word where it is one of ours."""
    said = row.get("verifier")
    return said if said in VERIFIERS and "verifier" not in s.model_fields_set else s.verifier


def _entry(value: Any) -> dict[str, Any] | None:
    """What reasoning-gym's scorer reads, as a column of text holds it; None for anything else."""
    try:
        entry = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= LONGEST_META
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
