"""Where the tests of faults write what they injected: a JSON line each, in the file that STROP_FAULTS names, if it is set."""

from __future__ import annotations

import json
import os


def told(what: str, *, injected: int, survived: int) -> None:
    """`injected` faults of one kind, after `survived` of which the run went on to the same end."""
    line = json.dumps({"what": what, "injected": injected, "survived": survived, "lost": injected - survived})
    print(line)
    if path := os.environ.get("STROP_FAULTS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
