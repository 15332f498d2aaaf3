"""The whole loop on a tiny model: it learns, its controls do not, and a killed run ends where an uninterrupted one does."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from strop import pipeline
from strop.config import Recipe, parse_recipe
from strop.record import UserError, read_rollouts
from strop.watch import Watch

LETTERS = "ab"


def write_tasks(folder: Path) -> Path:
    """The answer is the letter in the problem; the worked solutions hold a random one, so SFT teaches the form alone."""
    rng = random.Random(0)
    rows = [
        {"problem": f"{letter}{number}", "answer": letter, "solution": rng.choice(LETTERS)}
        for letter in LETTERS for number in range(80)
    ]  # fmt: skip
    file = folder / "letters.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def recipe(tmp_path: Path, tiny_model: Path, *, seed: int = 0, steps: int = 50, **algorithm: object) -> Recipe:
    file = write_tasks(tmp_path)
    settings = {"verifier": "exact", "prompt_column": "problem", "answer_column": "answer"}
    rl = {
        "name": "rl", "do": "train", "tasks": {"letters": 1.0}, "steps": steps, "prompts_per_step": 8, "group_size": 16,
        "max_tokens": 2, "algorithm": {"preset": "dapo", **algorithm}, "optim": {"lr": 2e-3, "warmup_steps": 3},
        "heldout_every": 0, "checkpoint_every": 7,
    }  # fmt: skip
    return parse_recipe({
        "seed": seed,
        "model": {"name": str(tiny_model)},
        "tasks": {"letters": {"source": str(file), "heldout": 24, "dev": 8, "settings": settings}},
        "stages": [
            {"name": "sft", "do": "sft", "tasks": ["letters"], "max_steps": 10, "eval_every": 100, "max_tokens": 2,
             "optim": {"lr": 3e-3}},
            {"name": "before", "do": "evaluate", "tasks": ["letters"], "max_tokens": 2},
            rl,
            {"name": "after", "do": "evaluate", "tasks": ["letters"], "max_tokens": 2, "samples": 4},
        ],
        "checks": {"workers": 1},
    })  # fmt: skip


def quiet() -> Watch:
    return Watch(open("/dev/null", "w"), live=False)  # noqa: SIM115


def run(recipe: Recipe, out: Path, **options: object) -> dict:
    return pipeline.run(recipe, out=out, watch=quiet(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_a_toy_task(tmp_path, tiny_model, seed):
    summary = run(recipe(tmp_path, tiny_model, seed=seed), tmp_path / "run")
    before, after = (summary["stages"][name]["greedy_acc"] for name in ("before", "after"))
    assert before < 0.7
    assert after > 0.9
    assert summary["stages"]["after"]["mean_acc"] > 0.8
    assert summary["finished"]
    gain = next(c for c in summary["comparisons"] if (c["a"], c["b"], c["metric"]) == ("before", "after", "greedy_acc"))
    assert gain["delta"] == pytest.approx(after - before)


@pytest.mark.parametrize("control", ["shuffled", "zero"])
def test_controls_do_not_learn(tmp_path, tiny_model, control):
    summary = run(recipe(tmp_path, tiny_model, advantages=control), tmp_path / "run")
    assert summary["stages"]["after"]["greedy_acc"] < 0.75
    if control == "zero":
        assert summary["stages"]["after"]["greedy_acc"] == summary["stages"]["before"]["greedy_acc"]
        assert summary["stages"]["rl"]["tokens_trained"] == 0


def weights(out: Path, stage: str = "rl") -> dict[str, np.ndarray]:
    return load_file(out / "checkpoints" / stage / "final" / "model.safetensors")


def rows(out: Path) -> list[dict]:
    """Metrics without what a clock measured."""
    kept = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in kept]


class StopAfter:
    """Asks to stop after so many questions."""

    def __init__(self, num: int) -> None:
        self.left = num

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


class Killed(BaseException):
    """Raised where a kill would strike."""


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_resumed_equals_uninterrupted(tmp_path, tiny_model, how):
    job = recipe(tmp_path, tiny_model, steps=12)
    run(job, tmp_path / "whole")
    out = tmp_path / "broken"
    if how == "stop":
        summary = run(job, out, stop_requested=StopAfter(21))  # 10 SFT steps, between stages, some RL steps
        assert not summary["finished"]
        assert "rl" not in summary["stages"]
    else:  # after step 9, with the checkpoint of step 7: two steps are replayed from their rollouts
        calls = StopAfter(23)

        def kill() -> bool:
            if calls():
                raise Killed
            return False

        with pytest.raises(Killed):
            run(job, out, stop_requested=kill)
    summary = run(job, out, resume=True)
    assert summary["finished"]
    for name, whole in weights(tmp_path / "whole").items():
        np.testing.assert_array_equal(whole, weights(out)[name], err_msg=name)
    assert rows(out) == rows(tmp_path / "whole")
    texts = [[r.text for r in read_rollouts(p / "rollouts" / "rl" / "step_000012.parquet")] for p in (out, tmp_path / "whole")]
    assert texts[0] == texts[1]
    assert run(job, out, resume=True)["finished"]  # nothing left to do is no error


def test_refuses_another_recipes_folder(tmp_path, tiny_model):
    job = recipe(tmp_path, tiny_model, steps=1)
    run(job, tmp_path / "run")
    with pytest.raises(UserError, match="--resume"):
        run(job, tmp_path / "run")
    with pytest.raises(UserError, match="steps"):
        run(recipe(tmp_path, tiny_model, steps=2), tmp_path / "run", resume=True)


def test_refill_replaces_groups_without_signal(tmp_path, tiny_model):
    plain = run(recipe(tmp_path, tiny_model, steps=3), tmp_path / "plain")
    refilled = run(recipe(tmp_path, tiny_model, steps=3, refill_rounds=3), tmp_path / "refilled")
    share = []
    for out in ("plain", "refilled"):
        log = [row for row in rows(tmp_path / out) if row["kind"] == "train"]
        share.append(np.mean([row["frac_reward_zero_std"] for row in log]))
        for row in log:
            groups = {r.group for r in read_rollouts(tmp_path / out / "rollouts" / "rl" / f"step_{row['step']:06d}.parquet")}
            assert groups == set(range(8))
    assert share[1] <= share[0]
    assert refilled["ledger"]["phases"]["generate"]["tokens"] >= plain["ledger"]["phases"]["generate"]["tokens"]


def test_a_prompt_longer_than_the_limit(tmp_path, tiny_model):
    job = recipe(tmp_path, tiny_model, steps=1)
    short = job.model_copy(update={"engine": job.engine.model_copy(update={"max_prompt_tokens": 5})})
    with pytest.raises(UserError, match="max_prompt_tokens"):
        run(short, tmp_path / "run")
