"""The verifier "code": a program is right where it passes every test of its task.

Finds the program in a completion and has it examined (`exam`) in a sandbox (`sandbox`). A task's `meta` has `tests`, each some
statements that raise where the program is wrong; `setup`, what they need before them (imports, given functions); `preamble`,
what the program may count on; `entry_point`, the function that was asked for. All four are the task's: none is the model's.

    meta = {"tests": ["assert add(2, 3) == 5"], "entry_point": "add"}
"""

from __future__ import annotations

import os
import re
import secrets
from functools import cache
from pathlib import Path
from types import CodeType

from strop.record import Reason, Task, Verdict
from strop.rewards import sandbox
from strop.rewards.exam import BEGUN, write
from strop.rewards.sandbox import Ended, Limits, NotStarted, Outcome

__all__ = ["VERDICT_S", "find", "is_whole", "verify"]

VERDICT_S = "STROP_VERDICT_S"  # tells a verifier process after how many seconds it is killed (`workers`)
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "py", "python3", "")
_REASONS = {
    "passed": Reason.CORRECT,
    "syntax": Reason.UNPARSEABLE_ANSWER,
    "memory": Reason.OVER_LIMIT,
    "time": Reason.OVER_LIMIT,
}


def find(text: str, entry_point: str = "") -> str:
    """The program in a completion: the last block of Python that defines `entry_point`, else the last one, else all of it.

    Thinking is left out where something follows it. A block that is never closed goes on to the end.

    >>> find("First\\n```python\\nx = 1\\n```\\nor\\n```python\\nx = 2\\n```\\nDone.")
    'x = 2\\n'
    """
    _, thought, said = text.rpartition("</think>")
    final = said if thought and said.strip() else text
    blocks = [body for kind, body in _FENCE.findall(final) if kind.lower() in _PYTHON]
    wanted = re.compile(rf"^(?:async +)?(?:def|class) +{re.escape(entry_point)}\b", re.MULTILINE)
    defining = [body for body in blocks if entry_point and wanted.search(body)]
    return (defining or blocks or [final])[-1]


def is_whole(text: str) -> bool:
    """True where a completion that was cut off had closed its last block before."""
    return text.count("```") >= 2 and text.count("```") % 2 == 0


def verify(task: Task, text: str) -> Verdict:
    """Right where the program passes every test in the sandbox's limits. Raises UserError and NotStarted of `sandbox.run`."""
    tests = task.meta.get("tests")
    if not isinstance(tests, list) or not tests:
        return Verdict(correct=False, extracted=None, reason=Reason.UNPARSEABLE_GOLD)
    if not text.strip():
        return Verdict(correct=False, extracted=None, reason=Reason.EMPTY)
    program = find(text, task.meta.get("entry_point", ""))
    if not program.strip():
        return Verdict(correct=False, extracted=None, reason=Reason.NO_ANSWER)
    reason = _examined(task, program, list(map(str, tests)))
    return Verdict(correct=reason is Reason.CORRECT, extracted=program[:200], reason=reason)


def _examined(task: Task, program: str, tests: list[str]) -> Reason:
    word = secrets.token_hex(16)
    told = write((word, task.meta.get("entry_point", ""), task.meta.get("setup", ""), tests), [])
    parts = [text.encode("utf-8", "surrogatepass") for text in (f"{task.meta.get('preamble', '')}\n{program}", told)]
    outcome = sandbox.run(_exam(), b"".join(b"%12d%s" % (len(part), part) for part in parts), _limits())
    return _reason(outcome, word)


def _reason(outcome: Outcome, word: str) -> Reason:
    """What the examiner found; what does not begin with its word is not from it.

    Raises NotStarted where it failed before the program began: once that may run, a failure is the program's.
    """
    if outcome.ended is Ended.ERROR and not outcome.stdout.startswith(f"{BEGUN}\n"):
        raise NotStarted(f"the examiner failed: {outcome.stderr.strip()[-500:]}")
    said, _, finding = outcome.stdout.strip().rpartition("\n")[2].partition(" ")
    if outcome.ended is Ended.OK and said == word:
        return _REASONS.get(finding.partition(" ")[0], Reason.WRONG)
    stopped = outcome.ended in (Ended.TIMEOUT, Ended.MEMORY, Ended.OUTPUT)
    return Reason.OVER_LIMIT if stopped else Reason.WRONG


def _limits() -> Limits:
    """As long as the verifier process may take, less what its box takes to start and to end."""
    whole_s = float(os.environ.get(VERDICT_S, "5"))
    wall_s = max(0.5 * whole_s, whole_s - 1.5)
    return Limits(wall_s=wall_s, cpu_s=wall_s)


@cache
def _exam() -> CodeType:
    path = Path(__file__).with_name("exam.py")
    return compile(path.read_text(encoding="utf-8"), path.name, "exec", dont_inherit=True)
