"""Runs the arms of LAB.md's experiments on the real model, three seeds each, and prints their tables.

    python recipes/lab.py run --out runs/lab               # every arm that is not there yet; goes on where it was stopped
    python recipes/lab.py run --out runs/lab language      # one experiment
    python recipes/lab.py run --out runs/lab guard         # all whose names begin so: ways into ruin, without the guard and with it
    python recipes/lab.py run --out runs/lab healthy --seeds 0 1 2 3 4 5 6 7 8 9    # no way into ruin: does the guard stay quiet?
    python recipes/lab.py show --out runs/lab              # tables of what has run

All arms of a seed begin with the same half-taught weights (`lab-start.yaml`) and differ from `lab.yaml` in the keys below
alone. Two runs go side by side, a thread each: on two cores that is faster than one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from strop import compare, tasks
from strop.config import load_recipe
from strop.probe import length_bias

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
DRIFT = "wrong that ended, tokens per 100 steps"  # as `strop probe length-bias RUN` has it
TWO_LANGUAGES = "two-languages"
EDGE = 3  # steps at the beginning and at the end of a run that are averaged


@dataclass(frozen=True, slots=True)
class Arm:
    """A run: keys that differ from `lab.yaml`."""

    name: str
    keys: Sequence[str] = ()
    start: str = "start"  # `lab-<start>.yaml` makes its weights
    plants: bool = False  # run by `lab_faults.py`


def _stages(*limits: tuple[int, int]) -> str:
    """`stages=` for lab.yaml's RL under one token limit after the other, each (tokens, steps)."""
    rl, after = yaml.safe_load((HERE / "lab.yaml").read_text(encoding="utf-8"))["stages"]
    stages = [rl | {"name": f"rl_{limit}", "max_tokens": limit, "steps": steps} for limit, steps in limits]
    for later in stages[1:]:
        del later["from"]
    return f"stages={json.dumps([*stages, after])}"


PPO = (
    "stages.rl.algorithm={preset: ppo, critic: {gae_lambda: %s, pretrain_steps: 2}}",
    "stages.rl.steps=14",
)
BASE = Arm("dapo")
EXPERIMENTS: dict[str, tuple[Arm, ...]] = {
    "presets": (
        BASE,
        Arm("grpo", ["stages.rl.algorithm.preset=grpo"]),
        Arm("dr_grpo", ["stages.rl.algorithm.preset=dr_grpo"]),
        Arm("ppo_95", [PPO[0] % 0.95, PPO[1]]),
        Arm("ppo_1", [PPO[0] % 1.0, PPO[1]]),
    ),
    "length": (
        BASE,
        Arm("cosine", ["stages.rl.rewards=[{name: cosine}, {name: accuracy, weight: 0}]"]),
        Arm("lcpo", [
            "stages.rl.rewards=[{name: lcpo_max, settings: {alpha: 0.02}}, {name: accuracy, weight: 0}]",
            "stages.rl.budget={tokens: [16, 64], mode: max}",
        ]),
    ),
    "caps": (
        BASE,
        Arm("tight", [_stages((24, 12))]),
        Arm("staged", [_stages((24, 4), (40, 4), (64, 4))]),
    ),
    "language": (
        Arm("blind", ["stages.rl.rewards=[{name: accuracy}, {name: language, weight: 0}]"], start=TWO_LANGUAGES),
        Arm("paid", ["stages.rl.rewards=[{name: accuracy}, {name: language, weight: 0.5}]"], start=TWO_LANGUAGES),
    ),
    "mixing": (BASE, Arm("hard_only", ["stages.rl.tasks={hard: 1.0}"])),
    "int8": (
        BASE,
        Arm("int8", ["engine.int8=training"]),
        Arm("int8_corrected", ["engine.int8=training", "stages.rl.algorithm.correction=token_truncate"]),
    ),
    "dynamic": (BASE, Arm("refill", ["stages.rl.algorithm.refill_rounds=2", "stages.rl.steps=8"])),
}  # fmt: skip
STOPPED = 3  # exit code of a run that cannot sensibly go on
FAULTS = HERE / "lab_faults.py"
WATCHED = ["tasks.easy.dev=48", "tasks.hard.dev=16", "stages.rl.heldout_every=2", "stages.rl.steps=10"]
RUIN: dict[str, tuple[str, ...]] = {
    "lr": ("stages.rl.optim.lr=3.0e-4",),  # thirty times
    "length": (
        f"stages.rl.rewards=[{{name: '{FAULTS}:longer'}}, {{name: accuracy, weight: 0}}]",
        "stages.rl.max_tokens=128",
    ),
    "hacking": (f"stages.rl.rewards=[{{name: '{FAULTS}:one_digit'}}, {{name: accuracy, weight: 0}}]",),
    "language": (f"stages.rl.rewards=[{{name: '{FAULTS}:foreign'}}, {{name: accuracy, weight: 0}}]",),
    "nan": (),
}
GUARD = "guard"
FREE, GUARDED = "stages.rl.guard.times=0", "stages.rl.guard={times: 3, remedies: [lower_lr, lower_lr, end_stage]}"
for _case, _keys_of in RUIN.items():
    _start = TWO_LANGUAGES if _case == "language" else "start"
    EXPERIMENTS[f"{GUARD}_{_case}"] = tuple(
        Arm(f"{_case}_{kind}", [*WATCHED, *_keys_of, guard], _start, plants=_case == "nan")
        for kind, guard in (("free", FREE), ("guarded", GUARDED))
    )
EXPERIMENTS["healthy"] = (Arm("healthy", [*WATCHED, "stages.rl.steps=20"]),)
# Was the guard right to go back?
EXPERIMENTS["control"] = (Arm("healthy_free", [*WATCHED, "stages.rl.steps=20", FREE]),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["run", "show"])
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(EXPERIMENTS)}; none: all")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    arguments = parser.parse_args()
    begins = tuple(arguments.experiments)
    if unknown := [name for name in begins if not any(known.startswith(name) for known in EXPERIMENTS)]:
        parser.error(f"no experiment {', '.join(unknown)}; they are {', '.join(EXPERIMENTS)}")
    chosen = [name for name in EXPERIMENTS if not begins or name.startswith(begins)]
    if arguments.do == "run":
        run(arguments.out, chosen, arguments.seeds)
    else:
        for name in chosen:
            show(arguments.out, name, arguments.seeds)


# --- runs -------------------------------------------------------------------------------------------------------------


def run(out: Path, experiments: Sequence[str], seeds: Sequence[int]) -> None:
    arms = list(dict.fromkeys(arm.name for name in experiments for arm in EXPERIMENTS[name]))
    by_name = {arm.name: arm for all_arms in EXPERIMENTS.values() for arm in all_arms}
    starts = list(dict.fromkeys(by_name[name].start for name in arms))
    with ThreadPoolExecutor(max_workers=2) as pool:
        if TWO_LANGUAGES in starts:
            write_two_languages(out / f"{TWO_LANGUAGES}.jsonl")
        source = {TWO_LANGUAGES: [f"tasks.both.source={out}/{TWO_LANGUAGES}.jsonl"]}
        jobs = [(f"{s}-{seed}", f"lab-{s}.yaml", seed, source.get(s, [])) for seed in seeds for s in starts]
        list(pool.map(lambda job: _run_one(out, *job), jobs))
        jobs = [
            (f"{name}-{seed}", "lab.yaml", seed, _keys(out, by_name[name], seed), by_name[name].plants)
            for seed in seeds
            for name in arms
        ]
        list(pool.map(lambda job: _run_one(out, *job), jobs))


def write_two_languages(path: Path) -> None:
    """Of the chains one half answered at once in English, the other worked out and closed in Russian."""
    if path.exists():  # what has begun goes on with the same tasks
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for splits in tasks.load(load_recipe(HERE / "lab.yaml").tasks, seed=0, say=print).values():
            for number, task in enumerate(splits.train[:600]):
                box = f"\\boxed{{{task.answer}}}"
                steps = str(task.meta["solution"]).removesuffix(box)
                solution = f"The answer is {box}" if number % 2 else f"{steps}Ответ: {box}"
                row = {"prompt": task.prompt, "answer": task.answer, "solution": solution}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _keys(out: Path, arm: Arm, seed: int) -> list[str]:
    return [f"model.name={out}/{arm.start}-{seed}/checkpoints/sft/final", *arm.keys]


def _run_one(out: Path, name: str, recipe: str, seed: int, keys: Sequence[str], plants: bool = False) -> None:
    folder, recipe_hash = out / name, load_recipe(HERE / recipe, [f"seed={seed}", *keys]).hash
    if _summary(folder).get("recipe_hash", recipe_hash) != recipe_hash:
        raise SystemExit(f"{folder} was run with other settings; move it away, or name another --out")
    if _summary(folder).get("finished"):
        return
    program = [sys.executable, str(FAULTS)] if plants else [str(Path(sys.executable).with_name("strop"))]
    line = [*program, "run", str(HERE / recipe), "--out", str(folder)]
    line += [part for key in (f"seed={seed}", *keys) for part in ("--set", key)]
    line += ["--resume"] if folder.exists() else []
    out.mkdir(parents=True, exist_ok=True)
    print(f"{name} ...", flush=True)
    with (out / f"{name}.log").open("a") as log:
        done = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode == STOPPED:  # what some arms are about; the tables say it
        print(f"{name}: stopped by itself; {out / name}.log says why", flush=True)
        return
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}; {out / name}.log says why")
    summary = _summary(folder)
    print(f"{name}: {summary['ledger']['wall_s']:.0f} s", flush=True)


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


# --- tables -----------------------------------------------------------------------------------------------------------


def show(out: Path, experiment: str, seeds: Sequence[int]) -> None:
    """A row an arm: each seed's figure, in the order of the seeds; then each arm against the first, by paired intervals."""
    arms, columns = EXPERIMENTS[experiment], ["easy", "hard", *SHOWN[experiment]]
    done = {arm.name: [s for s in seeds if _summary(out / f"{arm.name}-{s}").get("finished")] for arm in arms}
    print(f"\n### {experiment}: seeds {', '.join(map(str, seeds))}\n")
    print("| arm | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    folders = [out / f"{arms[0].start}-{seed}" for seed in seeds]
    starts = [_stages_of(folder)["after_sft"] for folder in folders if _summary(folder).get("finished")]
    before = [", ".join(_accuracy(s, name) for s in starts if name in s["by_tasks"]) or "-" for name in columns]
    print(f"| (start) | {' | '.join(before)} |")
    for arm in arms:
        found = [_figures(out / f"{arm.name}-{seed}") for seed in done[arm.name]]
        cells = [", ".join(f.get(c, "-") for f in found) or "not finished" for c in columns]
        print(f"| {arm.name} | {' | '.join(cells)} |")
    print()
    first, *others = (arm.name for arm in arms)
    for name in others:
        differences: dict[str, list[str]] = {}
        for seed in sorted(set(done[first]) & set(done[name])):
            for row in compare.run(f"{out / first}-{seed}:after", f"{out / name}-{seed}:after"):
                low, high = (100 * x for x in row["ci95"])
                differences.setdefault(row["tasks"], []).append(f"{100 * row['delta']:+.1f} ({low:.1f} to {high:.1f})")
        for tasks_, listed in differences.items():
            print(f"* {name} - {first}, {tasks_}: {', '.join(listed)}")


SHOWN = {
    "presets": ["wrong length", "right length", "cut", DRIFT],
    "length": ["tokens an answer", "tokens a right answer", "sampled", "surprisal"],
    "caps": ["cut", "wrong length", "sampled"],
    "language": ["English", "wrong length", "tokens an answer"],
    "mixing": ["sampled", "surprisal"],
    "int8": ["sampled", "surprisal", "mismatch"],
    "dynamic": ["sampled", "without signal"],
} | {
    name: ["tokens an answer", "foreign", "said", "undone"]
    for name in EXPERIMENTS
    if name.startswith((GUARD, "healthy", "control"))
}
COURSES = {  # title -> (metric, digits): first steps -> last steps
    "wrong length": ("completions/mean_wrong_length", 1),
    "right length": ("completions/mean_right_length", 1),
    "without signal": ("frac_reward_zero_std", 2),
    "cut": ("completions/clipped_ratio", 2),
    "surprisal": ("sampling/surprisal", 2),
    "mismatch": ("sampling/mismatch_kl", 5),
    "English": ("rewards/language/mean", 2),
    "foreign": ("completions/foreign_frac", 2),
}


def _figures(folder: Path) -> dict[str, str]:
    after = _stages_of(folder)["after"]
    found = {name: _accuracy(after, name) for name in after["by_tasks"]}
    found["tokens an answer"] = f"{after['mean_tokens']:.1f}"
    found["tokens a right answer"] = f"{after['mean_tokens'] / max(after['greedy_acc'], 1e-9):.1f}"
    found["sampled"] = f"{_sampled(folder) / 1000:.1f}k"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    for title, (key, digits) in COURSES.items():
        ends = [[row[key] for row in part if row.get(key) is not None] for part in (train[:EDGE], train[-EDGE:])]
        if all(ends):
            found[title] = " -> ".join(f"{statistics.mean(end):.{digits}f}" for end in ends)
    undone = [row for row in rows if row["kind"] == "rollback"]
    found["said"] = " ".join(sorted({row["alarm"] for row in rows if row["kind"] == "alarm"})) or "nothing"
    found["undone"] = "; ".join(f"{r['alarm']} {r['from_step']} -> {r['step']}" for r in undone) or "nothing"
    measured = length_bias.measured(folder) if len(train) >= EDGE else []  # a guard may leave fewer steps
    wrong = [d for d in measured if d.outcome == "wrong"]
    found[DRIFT] = "; ".join(f"{d.slope:+.0f} ({d.low:+.0f} to {d.high:+.0f})" for d in wrong)
    return found


def _stages_of(folder: Path) -> dict[str, Any]:
    return _summary(folder)["stages"]


def _accuracy(evaluation: dict[str, Any], tasks_: str) -> str:
    return f"{100 * evaluation['by_tasks'][tasks_]['greedy_acc']:.1f}%"


def _sampled(folder: Path) -> int:
    """Tokens sampled in training, those of dropped groups too."""
    return _summary(folder)["ledger"]["phases"]["generate"]["tokens"]


if __name__ == "__main__":
    main()
