"""The verifier `code`: reference programs pass, mutated ones fail, and nothing but answering the tests passes them."""

from __future__ import annotations

import ast
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from strop import pipeline, tasks
from strop.cli import app, options
from strop.config import TaskSet, parse_recipe
from strop.record import Reason, Rollout, Stop, Task, UserError, content_hash
from strop.rewards import Scorer, check_gold, code, exam, sandbox
from strop.tasks import files

DATA = Path(os.environ.get("STROP_DATA", Path(__file__).parents[2] / "shared" / "data")) / "code"
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape")  # in MBPP's programs
ADD = "def add(a, b):\n    return a + b"


@pytest.fixture(autouse=True)
def boxed() -> None:
    try:
        sandbox.tier()
    except UserError as error:
        pytest.skip(f"NOT CHECKED: {error}")


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(workers=2, timeout_s=16.0) as scorer:
        yield scorer


def task(*tests: str, **meta: Any) -> Task:
    meta = {"tests": list(tests or ["assert add(2, 3) == 5", "assert add('a', 'b') == 'ab'"]), **meta}
    return Task.make(source="test", prompt="Write add.", answer=ADD, verifier="code", meta=meta)


def reason(text: str, *tests: str, **meta: Any) -> Reason:
    verdict = code.verify(task(*tests, **meta), text)
    assert verdict.correct == (verdict.reason is Reason.CORRECT)
    return verdict.reason


# --- verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ADD, Reason.CORRECT),
        (f"So:\n```python\n{ADD}\n```\nDone.", Reason.CORRECT),
        (f"So:\n```python\n{ADD}", Reason.CORRECT),  # never closed, but whole
        ("def add(a, b):\n    return a - b", Reason.WRONG),
        ("def other(a, b):\n    return a + b", Reason.WRONG),
        ("def add(a, b):\n    raise KeyError(a)", Reason.WRONG),
        ("1 / 0", Reason.WRONG),
        ("def add(a, b:", Reason.UNPARSEABLE_ANSWER),
        ("I would add the two numbers.", Reason.UNPARSEABLE_ANSWER),
        ("x = 1\0", Reason.UNPARSEABLE_ANSWER),
        ("s = '\ud800'", Reason.UNPARSEABLE_ANSWER),
        ("", Reason.EMPTY),
        ("```python\n\n```", Reason.NO_ANSWER),
        (f"{ADD}\nx = [0] * 10**10", Reason.OVER_LIMIT),
        ("def add(a, b):\n    return [0] * 10**10", Reason.OVER_LIMIT),
        ("(" * 10_000, Reason.UNPARSEABLE_ANSWER),
        ("add = lambda a, b: (yield)", Reason.WRONG),
    ],
)
def test_a_verdict_has_its_reason(text: str, expected: Reason) -> None:
    assert reason(text) is expected


def test_a_program_without_end_is_wrong_and_scorable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(code.VERDICT_S, "1.2")
    for loop in (
        "while True: pass",
        "import time\nwhile True: time.sleep(1)",
        f"{ADD}\nimport os\nwhile True: os.fork()",
    ):
        verdict = code.verify(task(), loop)
        assert (verdict.correct, verdict.scorable) == (False, True)
    assert reason("def add(a, b):\n    while True: pass") is Reason.OVER_LIMIT


def test_a_task_without_tests_is_unscorable() -> None:
    none = Task.make(source="test", prompt="p", answer=ADD, verifier="code")
    assert code.verify(none, ADD).reason is Reason.UNPARSEABLE_GOLD


def test_which_block_is_the_program() -> None:
    blocks = "<think>```python\nthought\n```</think>\n```python\ndef add(a): 1\n```\n```sh\nls\n```\n```\nprint(add(2))\n```\n"
    assert code.find(blocks) == "print(add(2))\n"
    assert code.find(blocks, "add") == "def add(a): 1\n"
    assert code.find("<think>x</think>") == "<think>x</think>"
    assert code.find("no block") == "no block"


def test_what_the_task_gives_is_there_and_is_not_the_model_s_to_say() -> None:
    given = "import math\ndef half(x):\n    return x / 2\n"
    use = "def f(x):\n    return half(x) + math.floor(x)"
    test = "assert half(f(3)) == 2.25"
    assert reason(use, test, preamble=given, setup=given, entry_point="f") is Reason.CORRECT
    cheat = "def half(x):\n    return 2.25\ndef f(x):\n    return 0"
    assert reason(cheat, test, preamble=given, setup=given, entry_point="f") is Reason.WRONG


# --- nothing but answers passes ---------------------------------------------------------------------------------------------

CHEATS = {
    "leaves at once": "import os; os._exit(0)",
    "leaves politely": "import sys; sys.exit(0)",
    "leaves when asked": "import os\ndef add(a, b): os._exit(0)",
    "equals everything": "class E:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef add(a, b): return E()",
    "equals everything as a number": "class E(int):\n    def __eq__(self, other): return True\ndef add(a, b): return E(7)",
    "equals everything in a list": "class E(list):\n    def __eq__(self, other): return True\ndef add(a, b): return E()",
    "no assertions": "import builtins\nbuiltins.AssertionError = ZeroDivisionError\nbuiltins.exec = lambda *a: None\ndef add(a, b): 0",
    "prints what passed": "print('0' * 32, 'passed 2 tests')\nimport sys; sys.stdout.flush()\ndef add(a, b): 0",
    "no tests among its callers": (
        "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n        for v in list(f.f_locals.values()):\n"
        "            if isinstance(v, list) and any('assert' in str(t) for t in v): v.clear()\n        f = f.f_back"
    ),
    "no tests in its memory": (
        "import gc\nfound = [o for o in gc.get_objects() if isinstance(o, (list, tuple)) and any(type(t) is str and "
        "t.startswith('assert add') for t in o)]\nassert not found\nfrom __main__ import expected as add"
    ),
    "no tests in stdin": (
        "import os\ntext = ''\nfor n in range(64):\n    try:\n        os.lseek(n, 0, 0); text += os.read(n, 10**6).decode('latin1')\n"
        "    except OSError: pass\nassert 'assert add' in text\nadd = lambda a, b: {2: 5}.get(a, 'ab')"
    ),
    "kills the examiner": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef add(a, b): return 0",
    "traces the examiner": (
        "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), None, None) == 0\nadd = lambda a, b: {2: 5}.get(a, 'ab')"
    ),
    "reads the examiner": (
        "import ctypes, os\nclass V(ctypes.Structure):\n    _fields_ = [('p', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
        "b = ctypes.create_string_buffer(8)\nx = V(ctypes.addressof(b), 8); y = V(id(os), 8)\n"
        "assert ctypes.CDLL(None).process_vm_readv(os.getppid(), ctypes.byref(x), 1, ctypes.byref(y), 1, 0) == 8\n"
        "add = lambda a, b: {2: 5}.get(a, 'ab')"
    ),
    "answers in another language": (
        "import os\ndef add(a, b):\n    import sys\n    out = sys._getframe(1).f_locals['out']\n"
        "    text = b'__import__(\"os\")._exit(0)'\n    os.write(out, b'%12dok%12d' % (2, len(text)) + text)"
    ),
    "writes modules for the examiner": (
        "for name in ('math', 'random', 'copy', 'builtins'):\n    open(f'/tmp/{name}.py', 'w').write('raise SystemExit(0)')\n"
        "def add(a, b): return 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATS)
def test_what_does_not_answer_the_tests_is_wrong(cheat: str) -> None:
    killed = (
        {Reason.OVER_LIMIT} if cheat == "kills the examiner" else set()
    )  # a kill from nowhere looks like a lack of memory
    assert reason(CHEATS[cheat]) in {Reason.WRONG, *killed}


def test_an_examiner_that_fails_before_the_program_begins_is_no_fault_of_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = sandbox.Limits(processes=1)
    with monkeypatch.context() as patched:
        patched.setattr(code, "_limits", lambda: few)
        with pytest.raises(sandbox.NotStarted, match="BlockingIOError"):
            reason(ADD)
    assert reason(ADD) is Reason.CORRECT


@pytest.mark.parametrize("number", [1, 2, 9, 11, 15, 19])
@pytest.mark.parametrize("when", ["{kill}", "def add(a, b):\n    {kill}"])
def test_a_program_that_stops_its_examiner_is_scored(number: int, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(code.VERDICT_S, "1.5")
    kill = f"[os.kill(p, {number}) for p in (os.getppid(), 0)]"  # and of all that are in the box
    verdict = code.verify(task(), f"import os\n{when.format(kill=kill)}")
    assert (verdict.correct, verdict.scorable) == (False, True)


def test_the_cheats_run() -> None:
    """With its tests answered, what else a program does is no fault of it: none above failed for its own syntax."""
    for cheat, text in CHEATS.items():
        compile(text, cheat, "exec")
    honest = [CHEATS["prints what passed"], CHEATS["no assertions"], CHEATS["writes modules for the examiner"]]
    assert [reason(f"{text}\n{ADD}") for text in honest] == [Reason.CORRECT] * 3


def test_an_old_way_would_be_passed_by_cheats() -> None:
    """In one process with its tests, an object that equals everything passes them: why there are two."""
    together = f"{CHEATS['equals everything']}\nassert add(2, 3) == 5\nprint('passed')"
    assert sandbox.run(together).stdout == "passed\n"


# --- values between the two processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None, True, -7, 2**70, 0.1, -0.0, float("inf"), 1e300, 3 - 2j, "ü\n'\"\ud800", b"\0x", bytearray(b"x"), [], [1, [2]], (), (1,),
        {}, {"a": (1, 2), 3: None}, set(), {1, 2}, frozenset({1}), range(1, 9, 2), [(1, {2: [3.5]})], int, dict,
    ],
)  # fmt: skip
def test_a_value_comes_through_as_it_is(value: Any) -> None:
    again = exam.read(exam.write(value, []), exam.Handle)
    assert (again, type(again)) == (value, type(value))
    assert repr(again) == repr(value)


def test_what_is_read_is_never_evaluated() -> None:
    for text in (
        "__import__('os')",
        "f()",
        "x",
        "1 if 1 else 2",
        "[i for i in 'ab']",
        "set.__class__",
        "1 + 1",
        "iter(x=1)",
    ):
        with pytest.raises((ValueError, AttributeError)):
            exam.read(text, exam.Handle)


def test_objects_iterators_and_errors() -> None:
    point = "class P:\n    def __init__(self, x): self.x = x\ndef total(points): return sum(p.x for p in points)"
    assert reason(point, "assert total([P(2), P(3)]) == 5", entry_point="total") is Reason.CORRECT
    assert reason(point, "assert total([P(2), P(3)]) == 6", entry_point="total") is Reason.WRONG
    lazy = "def f(n):\n    yield from range(n)"
    assert reason(lazy, "assert list(f(3)) == [0, 1, 2]", entry_point="f") is Reason.CORRECT
    fails = "def f(n):\n    raise ValueError(n)"
    caught = "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == '1'"
    assert reason(fails, caught, entry_point="f") is Reason.CORRECT
    assert reason("def f(n): pass", caught, entry_point="f") is Reason.WRONG
    shadow = "def sum(a, b): return 9"
    assert reason(shadow, "assert sum(1, 2) == 9", entry_point="sum") is Reason.CORRECT
    assert reason(f"{shadow}\ndef f(): return 1", "assert sum([f(), 1]) == 2", entry_point="f") is Reason.CORRECT


# --- in the whole ----------------------------------------------------------------------------------------------------------------


def test_in_verifier_processes_and_within_their_deadline(scorer: Scorer) -> None:
    texts = [ADD, "def add(a, b): return 0", "", "import os; os.kill(os.getppid(), 9)", ADD + "\n"] * 3
    verdicts = scorer.verify([(task(), text) for text in texts])
    assert [v.correct for v in verdicts] == [True, False, False, False, True] * 3
    with Scorer(workers=1, timeout_s=3.0) as quick:
        slow = quick.verify([(task(), "while True: pass"), (task(), ADD)])
        assert [v.reason for v in slow] == [Reason.OVER_LIMIT, Reason.CORRECT]
        assert quick.num_kills == 0


def test_without_a_sandbox_the_user_is_told(monkeypatch: pytest.MonkeyPatch, scorer: Scorer) -> None:
    monkeypatch.setattr(sandbox, "_found", lambda: (None, "not here"))
    monkeypatch.delenv(sandbox.ALLOW_UNSAFE, raising=False)
    with pytest.raises(UserError, match="--allow-unsafe-code"):
        scorer.verify([(task(), f"{ADD}  # once more")])


def test_a_run_without_a_sandbox_is_refused_before_anything_is_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "own.jsonl"
    row = {"prompt": "Add.", "answer": ADD, "tests": ["assert add(2, 3) == 5"], "entry_point": "add"}
    data.write_text(json.dumps(row) + "\n", encoding="utf-8")
    recipe = parse_recipe({
        "model": {"name": str(tiny_model)}, "tasks": {"own": {"source": str(data), "train": 0, "dev": 0}},
        "stages": [{"name": "eval", "do": "evaluate", "tasks": ["own"], "max_tokens": 8}],
    })  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(sandbox, "_found", lambda: (None, "not here"))
        patched.delenv(sandbox.ALLOW_UNSAFE, raising=False)
        with pytest.raises(UserError, match="--allow-unsafe-code"):
            pipeline.run(recipe, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    summary = pipeline.run(recipe, out=tmp_path / "run")
    assert (summary["finished"], summary["num_dropped"]) == (True, {})


@pytest.mark.parametrize("command", ["run", "sft", "train", "eval", "distill", "probe"])
def test_the_flag_tells_the_verifier_processes(command: str) -> None:
    """Of every command that may run programs; typed, it reaches the environment that they are started with."""
    root: Any = typer.main.get_command(app)
    (flag,) = (option for option in root.commands[command].params if "--allow-unsafe-code" in option.opts)
    assert flag.callback is not None
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(sandbox.ALLOW_UNSAFE, "")
        options._allow_unsafe(False)
        assert os.environ[sandbox.ALLOW_UNSAFE] == ""
        options._allow_unsafe(True)
        assert os.environ[sandbox.ALLOW_UNSAFE] == "1"


def test_a_program_that_was_closed_before_the_limit_was_stated(scorer: Scorer) -> None:
    def cut(text: str) -> Reason:
        ids, mask = np.array([1, 2], np.int32), np.array([False, True])
        rollout = Rollout(
            task=task(), group=0, sample=0, token_ids=ids, sampled=mask, trained=mask, text=text, stop=Stop.LENGTH
        )
        verdict = scorer.judge([rollout])[0].verdict
        assert verdict is not None
        return verdict.reason

    assert cut(f"```python\n{ADD}\n```\nThis adds") is Reason.CORRECT
    assert cut(f"```python\n{ADD}") is Reason.TRUNCATED


def test_own_code_tasks_come_from_a_file(tmp_path: Path, scorer: Scorer) -> None:
    rows = [{"prompt": f"Add {n}.", "answer": f"def f(x):\n    return x + {n}", "tests": [f"assert f(1) == {n + 1}"], "entry_point": "f"}
            for n in range(4)]  # fmt: skip
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"tests": []}]), encoding="utf-8")
    split = tasks.load({"own": TaskSet(source=str(path), heldout=1, dev=1)}, seed=0, say=len)["own"]
    assert [len(split.train), len(split.dev), len(split.heldout)] == [2, 1, 1]
    assert dict(split.dropped) == {"no program": ("line 5",)}
    assert check_gold(split.train, scorer)[1] == []
    with pytest.raises(UserError, match=r"settings.answer_column would change nothing"):
        files.open_file(str(path), {"answer_column": "answer"}, "tasks.own", len)


# --- HumanEval and MBPP --------------------------------------------------------------------------------------------------------


def real(name: str) -> list[Task]:
    if not (DATA / name).exists():
        pytest.skip(f"NOT CHECKED against {name}: no folder {DATA} (set STROP_DATA)")
    found = files.open_file(str(DATA / name), {}, "tasks.real", len)
    return sorted((*found.tasks, *(found.heldout or ())), key=lambda task: content_hash("sample", task.content))


def nothing(task: Task) -> str:
    """The reference, whose function returns nothing."""
    name = task.meta["entry_point"]
    return f"{task.answer}\n_given = {name}\ndef {name}(*a, **k):\n    _given(*a, **k)"


class Swap(ast.NodeTransformer):
    """One operator for another, the first that there is."""

    pairs = ((ast.Add, ast.Sub), (ast.Mult, ast.Add), (ast.Lt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Mod, ast.Mult))
    found = False

    def visit(self, node: ast.AST) -> ast.AST:
        for one, other in (*self.pairs, *((b, a) for a, b in self.pairs)):
            if isinstance(node, one) and not self.found:
                self.found = True
                return other()
        return super().generic_visit(node)


def swapped(task: Task) -> str | None:
    swap, tree = Swap(), ast.parse(task.answer)
    for node in [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == task.meta["entry_point"]]:
        swap.visit(node)
    return ast.unparse(tree) if swap.found else None


def check(chosen: list[Task], scorer: Scorer, *, most_alike: float) -> None:
    """References pass, functions that return nothing fail, and of those with an operator swapped all but a few.

    Not all, because a swap may change nothing that the tests look at.
    """
    assert check_gold(chosen, scorer)[1] == []
    assert not [v for v in scorer.verify([(t, t.meta["solution"]) for t in chosen]) if not v.correct]
    empty = scorer.verify([(task, nothing(task)) for task in chosen])
    assert [t.meta["task_id"] for t, v in zip(chosen, empty, strict=True) if v.correct or not v.scorable] == []
    mutants = [(t, text) for t in chosen if (text := swapped(t)) is not None]
    verdicts = scorer.verify(mutants)
    alike = [t.meta["task_id"] for (t, _), v in zip(mutants, verdicts, strict=True) if v.correct]
    print(f"{len(chosen)} references pass; of {len(mutants)} with a swapped operator {len(alike)} pass: {alike}")
    assert len(mutants) > 0.3 * len(chosen)
    assert len(alike) <= most_alike * len(mutants)


@pytest.mark.parametrize("name", ["humaneval.jsonl", "mbpp_sanitized.jsonl"])
def test_references_pass_and_mutants_fail(name: str, scorer: Scorer) -> None:
    quick = [task for task in real(name) if task.meta["task_id"] != 123]  # five seconds
    check(quick[:15], scorer, most_alike=0.35)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval.jsonl", "mbpp_sanitized.jsonl"])
def test_every_reference_passes_and_mutants_fail(name: str, scorer: Scorer) -> None:
    every = real(name)
    assert len(every) == {"humaneval.jsonl": 164, "mbpp_sanitized.jsonl": 427}[name]
    check(every, scorer, most_alike=0.15)


@pytest.mark.slow
def test_of_the_full_mbpp_two_references_fail_their_own_tests(scorer: Scorer) -> None:
    every = real("mbpp_full.jsonl.gz")
    assert {t.meta["task_id"] for t, _ in check_gold(every, scorer)[1]} == {367, 927}


def test_what_mbpp_calls_test_is_never_trained_on() -> None:
    real("mbpp_full.jsonl.gz")
    with gzip.open(DATA / "mbpp_full.jsonl.gz", "rt", encoding="utf-8") as lines:
        test = {row["task_id"] for row in map(json.loads, lines) if row["split"] == "test"}
    split = tasks.load({"m": TaskSet(source=str(DATA / "mbpp_full.jsonl.gz"), heldout=20, dev=20)}, seed=0, say=len)[
        "m"
    ]
    assert {t.meta["task_id"] for t in split.heldout} <= test
    assert test.isdisjoint(t.meta["task_id"] for t in (*split.train, *split.dev))
    assert len(split.train) > 400
