"""HumanEval and MBPP rows, and one's own, as tasks: what the model is asked, the reference solution, and the tests in `meta`.

Knows the columns of both; `files` and `benchmarks` read the files. The answer is the whole reference program, which must pass
its own tests before a run starts (`vet`). Nothing is executed here. Rows, shortened:

    {"task_id": "HumanEval/53", "prompt": "def add(x: int, y: int):\\n    \\"\\"\\"Add two numbers", "entry_point": "add",
     "canonical_solution": "    return x + y\\n", "test": "def check(candidate):\\n    assert candidate(2, 3) == 5"}
    {"task_id": 2, "prompt": "Write a function to find the shared elements from the given two lists.", "code": "def similar_elements...",
     "test_imports": [], "test_list": ["assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))", ...]}

The full MBPP has `text` for `prompt` and `test_setup_code` for `test_imports`. HumanEval's tests see its given functions and
imports as they are, not as the model writes them; of MBPP's tests the first is shown, because only they say the name. One's
own rows say what becomes of them: `prompt`, `answer` (a program), `tests`, and where needed `entry_point`, `setup`, `preamble`
(`rewards.code` says what each is).
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strop.record import Task

__all__ = ["apart", "is_code", "read", "task"]

HUMANEVAL = {"prompt": str, "entry_point": str, "canonical_solution": str, "test": str}
MBPP = {"code": str, "test_list": list}
OWN = {"prompt": str, "answer": str, "tests": list}
HOW = "Answer with the whole program in one ```python block."


def is_code(row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of a code task."""
    return _has(row, HUMANEVAL) or _has(row, OWN) or _has(row, MBPP)


def _has(row: Mapping[str, Any], columns: Mapping[str, type]) -> bool:
    return all(isinstance(row.get(column), kind) for column, kind in columns.items())


def read(
    source: str, name: str, rows: Sequence[tuple[str, Mapping[str, Any]]], say: Callable[[str], None]
) -> tuple[tuple[Task, ...], dict[str, tuple[str, ...]]]:
    """The tasks of a file, and the places of the rows that became none, by reason. `say` hears how many there are."""
    tasks: dict[str, Task] = {}
    dropped: dict[str, list[str]] = {}
    for place, row in rows:
        made = task(row, name) if is_code(row) else None
        if made is None or made.prompt in tasks:
            dropped.setdefault("no program" if made is None else "repeated problem", []).append(place)
        else:
            tasks[made.prompt] = made
    say(
        f"{source}: {len(tasks)} tasks from {len(rows)} rows; programs, judged by their tests"
        + "".join(f"; dropped {len(ids)} ({reason}): {', '.join(ids[:5])}" for reason, ids in dropped.items())
    )
    return tuple(tasks.values()), {reason: tuple(ids) for reason, ids in dropped.items()}


def task(row: Mapping[str, Any], source: str) -> Task | None:
    """The task of such a row; None where it has no test or no question."""
    made = _own(row) if _has(row, OWN) else _humaneval(row) if _has(row, HUMANEVAL) else _mbpp(row)
    if made is None:
        return None
    prompt, answer, meta = made
    known = {key: row[key] for key in ("task_id", "split") if key in row}
    solution = f"```python\n{answer.strip()}\n```"
    meta = {key: value for key, value in meta.items() if value} | known | {"solution": solution}
    return Task.make(source=source, prompt=prompt, answer=answer, verifier="code", meta=meta)


def apart(tasks: Sequence[Task]) -> tuple[tuple[Task, ...], tuple[Task, ...] | None]:
    """The tasks to train on and those to hold out, where the column `split` of MBPP's files keeps them apart.

    What MBPP calls test is never trained on: the benchmark has the same problems, many of them in other words.
    """
    tested = [task.verifier == "code" and task.meta.get("split") == "test" for task in tasks]
    test = tuple(task for task, is_test in zip(tasks, tested, strict=True) if is_test)
    others = tuple(task for task, is_test in zip(tasks, tested, strict=True) if not is_test)
    return (others, test) if test and others else (tuple(tasks), None)


def _humaneval(row: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
    given, name = row["prompt"], row["entry_point"]
    start = re.search(rf"^def {re.escape(name)}\b", given, re.MULTILINE)
    if start is None:
        return None
    before = given[: start.start()]
    prompt = f"Complete this Python function.\n\n```python\n{given.strip()}\n```\n\n{HOW}"
    tests = [f"{row['test']}\ncheck({name})"]
    meta = {"entry_point": name, "preamble": before, "setup": before, "tests": tests}
    return prompt, given + row["canonical_solution"], meta


def _mbpp(row: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
    question, tests = row.get("prompt") or row.get("text"), [_lines(test) for test in row["test_list"]]
    if not isinstance(question, str) or not question.strip() or not tests:
        return None
    answer = _lines(row["code"])
    defined = re.findall(r"^def +(\w+)", answer, re.MULTILINE)
    called = [name for name in defined if re.search(rf"\b{name}\s*\(", tests[0])]
    prompt = f"{question.strip()} This test must pass:\n\n```python\n{tests[0].strip()}\n```\n\n{HOW}"
    setup = "\n".join([*_imports(answer), *(row.get("test_imports") or []), _lines(row.get("test_setup_code") or "")])
    return prompt, answer, {"entry_point": called[0] if called else "", "setup": setup.strip(), "tests": tests}


def _own(row: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
    tests, optional = [test for test in row["tests"] if isinstance(test, str)], ("entry_point", "setup", "preamble")
    if not row["prompt"].strip() or not row["answer"].strip() or not tests:
        return None
    return row["prompt"], row["answer"], {"tests": tests} | {key: str(row.get(key) or "") for key in optional}


def _imports(program: str) -> list[str]:
    """The imports of a reference program, which some tests use without saying so."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes such as "\\d", which are the file's
            body = ast.parse(program).body
    except SyntaxError:  # it will not pass its tests either
        return []
    return [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]


def _lines(text: str) -> str:
    """MBPP's files end lines in two ways."""
    return text.replace("\r\n", "\n")
