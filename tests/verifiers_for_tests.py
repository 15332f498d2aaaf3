"""Verifiers that misbehave, for worker processes to load by path; and a right one."""

from __future__ import annotations

import os
import sys
import time

from strop.record import Reason, Task, Verdict


def moody(task: Task, text: str) -> Verdict:
    """Does what the text says."""
    if text == "hang":
        time.sleep(1000)
    if text == "burn":  # holds the interpreter lock: no thread and no signal handler of its own could stop it
        _ = 9 ** (9**9)
    if text == "die":
        os._exit(3)
    if text == "abort":
        os.abort()
    if text == "raise":
        raise KeyError("no such key")
    if text == "deep":
        return moody(task, text)
    if text == "print":
        print("[true, null, 'correct']", flush=True)
        print("noise", file=sys.stderr, flush=True)
    if text == "pid":
        return Verdict(correct=True, extracted=str(os.getpid()), reason=Reason.CORRECT)
    if text == "modules":
        loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers"})
        return Verdict(correct=True, extracted=",".join(loaded), reason=Reason.CORRECT)
    right = text == task.answer
    return Verdict(correct=right, extracted=text, reason=Reason.CORRECT if right else Reason.WRONG)
