"""Where the tests of faults write what they injected: a JSON line each, in the file that STROP_FAULTS names, if it is set.

python tests/faults.py FILE    # those lines as a table
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def told(what: str, *, injected: int, survived: int) -> None:
    """`injected` faults of one kind, after `survived` of which the run went on to the same end."""
    line = json.dumps({"what": what, "injected": injected, "survived": survived, "lost": injected - survived})
    print(line)
    if path := os.environ.get("STROP_FAULTS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def table(path: Path) -> str:
    """Faults of one kind, however many tests injected them, are one row."""
    summed: dict[str, list[int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        counts = summed.setdefault(row["what"], [0, 0, 0])
        summed[row["what"]] = [a + row[key] for a, key in zip(counts, ("injected", "survived", "lost"), strict=True)]
    rows = [("fault", "injected", "survived", "lost"), *((what, *map(str, counts)) for what, counts in summed.items())]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:<{width}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
