"""One line for every fault that a test planted; the table in docs/reliability.md is made of them."""

from __future__ import annotations

import json
import os


def record(what: str, *, injected: int, survived: int) -> None:
    """Appends to the file that STROP_FAULTS names, where it names one. What did not survive is lost."""
    if file := os.environ.get("STROP_FAULTS"):
        row = {"what": what, "injected": injected, "survived": survived, "lost": injected - survived}
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
