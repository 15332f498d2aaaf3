"""Three files of one-digit chains with planted faults, for LAB.md's comparison of raw and curated data at equal steps.

    python recipes/lab_dirty.py make runs/dirty       # a.jsonl, b.jsonl, c.jsonl, raw.jsonl (all of them), heldout.jsonl
    strop curate recipes/curate-local.yaml --set pool=runs/dirty/a.jsonl,runs/dirty/b.jsonl,runs/dirty/c.jsonl \\
        --set against=runs/dirty/heldout.jsonl --out runs/dirty/curated
    python recipes/lab_dirty.py show runs/dirty       # what is wrong, and what is there twice, before and after
    for s in 0 1 2; do strop run recipes/lab-dirty.yaml --set seed=$s --out runs/dirty-$s; done

Each source holds SHARE of the problems, and in WRONG of its rows, drawn for each source anew, the
worked solution ends in a wrong sum; so a fault can be found where another source holds the problem too, and only there.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from strop.config import load_recipe
from strop.curate.fold import fold
from strop.record import Task
from strop.tasks import load

RECIPE = Path(__file__).parent / "lab-dirty.yaml"
NUM, SHARE, WRONG = 800, 0.7, 0.2
SOURCES = ("a", "b", "c")


def make(folder: Path) -> None:
    """Writes the files; they are the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = load({"easy": load_recipe(RECIPE).tasks["easy"].model_copy(update={"train": NUM})}, seed=0, say=print)[
        "easy"
    ]
    rng = random.Random(0)
    every = []
    for name in SOURCES:
        rows = [_row(task, rng) for task in clean.train if rng.random() < SHARE]
        every += rows
        _write(folder / f"{name}.jsonl", rows)
    rng.shuffle(every)
    _write(folder / "raw.jsonl", every)
    _write(folder / "heldout.jsonl", [{"problem": t.prompt, "answer": t.answer} for t in (*clean.heldout, *clean.dev)])


def _row(task: Task, rng: random.Random) -> dict[str, Any]:
    answer, solution = task.answer, str(task.meta["solution"])
    planted = rng.random() < WRONG
    if planted:
        wrong = str(int(answer) + rng.choice([-3, -2, -1, 1, 2, 3]))
        head, _, _ = solution.rpartition(f"= {answer}.")
        answer, solution = wrong, f"{head}= {wrong}. \\boxed{{{wrong}}}"
    return {"problem": task.prompt, "answer": answer, "solution": solution, "planted_wrong": planted}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def show(folder: Path) -> None:
    """Prints rows, distinct problems and wrong solutions of the raw and of the curated set."""
    raw = [json.loads(line) for line in (folder / "raw.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = pq.read_table(folder / "curated" / "train.parquet", columns=["prompt", "planted_wrong"]).to_pylist()
    for name, prompts, wrong in (
        ("raw", [row["problem"] for row in raw], [row["planted_wrong"] for row in raw]),
        ("curated", [row["prompt"] for row in kept], [row["planted_wrong"] for row in kept]),
    ):
        distinct = len({fold(prompt).key for prompt in prompts})
        print(f"{name}: {len(prompts):,} rows of {distinct:,} problems, {sum(wrong) / len(wrong):.1%} wrong")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["make", "show"])
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    {"make": make, "show": show}[asked.do](asked.folder)
