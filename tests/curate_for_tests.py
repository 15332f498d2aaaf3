"""Curates with the stages of `stages_for_tests` in a process of its own, which dies at the N-th file that is to appear.

python curate_for_tests.py RECIPE OUT N
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from stages_for_tests import STAGES
from strop import curate
from strop.config import load_curation
from strop.watch import Watch


def main(recipe: str, out: str, dies_at: int) -> None:
    renamed, left = os.replace, [dies_at]

    def replace(*args: Any, **more: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        renamed(*args, **more)

    os.replace = replace
    curate.run(load_curation(Path(recipe)), out=Path(out), watch=Watch(), workers=1, stages=STAGES)
    print(dies_at - left[0])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
