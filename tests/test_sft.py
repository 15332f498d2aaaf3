"""SFT: packed rows with a loss on completions alone, what is measured on the dev split, and the stop by entropy."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from strop import config, model, pipeline, sft
from strop.config import Recipe, SftOptim, parse_recipe
from strop.learner import Learner
from strop.record import Task, read_tasks, replace
from strop.run import Run, StageLog
from strop.watch import Watch

PROBLEMS = 60


def recipe(tiny_model: Path, folder: Path, **stage: object) -> Recipe:
    """Letters after numbers in base 4, some with two worked solutions."""
    rng = random.Random(0)
    rows = []
    for n in range(256, 256 + PROBLEMS):
        letter = rng.choice("EO")
        more = {"solutions": [letter.lower(), f"\\boxed{{{letter}}}"]} if n % 2 else {"solution": letter.lower()}
        rows.append({"problem": np.base_repr(n, 4), "answer": letter, **more})
    (folder / "form.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"source": str(folder / "form.jsonl"), "heldout": 0, "dev": 20, "settings": {"verifier": "exact"}}
    sft = {"name": "sft", "do": "sft", "tasks": ["form"], "batch": 16, "max_steps": 6, "eval_every": 2, "patience": 0,
           "max_tokens": 4, "dev_samples": 3, "optim": {"lr": 3e-3}, **stage}  # fmt: skip
    return parse_recipe({
        "model": {"name": str(tiny_model)}, "chat": {"template": "{{ messages[0].content }}"}, "tasks": {"form": spec},
        "stages": [sft], "checks": {"workers": 1, "timeout_s": 60},
    })  # fmt: skip


def run(job: Recipe, out: Path, **options: object) -> dict:
    return pipeline.run(job, out=out, watch=Watch(io.StringIO(), live=False), **options)["stages"]  # type: ignore[arg-type]


def rows(out: Path, kind: str = "heldout") -> list[dict]:
    kept = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in kept if row["kind"] == kind]


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_packed_loss_and_entropy_are_those_of_each_example_alone_over_its_completion(tiny_model):
    policy = model.load(config.Model(name=str(tiny_model)))
    chat = policy.chat(config.Chat(system="Be brief."))
    told = [("What is 2 + 3?", "2 + 3 = 5. \\boxed{5}"), ("4?", "4"), ("A longer problem.", "a longer solution of it")]
    examples = [
        chat.worked_example(Task.make(source="s", prompt=p, answer="5", verifier="math", meta={"solution": s}), i)
        for i, (p, s) in enumerate(told)
    ]
    plain = transformers.LlamaForCausalLM.from_pretrained(tiny_model)
    losses, entropies = [], []
    for r in examples:
        assert r.num_trained == len(r.text.encode()) + 1  # the completion's bytes and the end of the turn
        with torch.no_grad():
            logits = plain(torch.from_numpy(r.token_ids.astype(np.int64))[None]).logits[0, :-1].double()
        logprobs, wanted = logits.log_softmax(-1), torch.from_numpy(r.trained[1:].copy())
        target = torch.from_numpy(r.token_ids[1:].astype(np.int64))
        losses += (-logprobs[torch.arange(len(target)), target])[wanted].tolist()
        entropies += (-(logprobs.exp() * logprobs).sum(-1))[wanted].tolist()
    learner = Learner(policy, SftOptim(microbatch_tokens=64))
    assert learner.mean_loss(examples) == pytest.approx(np.mean(losses), abs=1e-5)
    drawn = [replace(r, sampled=r.trained.copy(), trained=np.zeros_like(r.trained)) for r in examples]
    assert learner.mean_entropy(drawn) == pytest.approx(np.mean(entropies), abs=1e-5)
    assert learner.sft_update(examples)["loss"] == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory) -> tuple[Path, dict]:
    """Six steps to the end, looked at after every second one."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "run", run(recipe(tiny_model, folder), folder / "run")


def test_every_look_at_the_dev_split_says_loss_sampled_accuracy_and_entropy(whole):
    out, told = whole
    found = rows(out)
    assert [row["step"] for row in found] == [2, 4, 6]
    losses, entropies = ([row[key] for row in found] for key in ("dev_loss", "entropy"))
    assert losses[0] > losses[-1] > 0
    assert entropies[0] > entropies[-1] > 0
    assert all(0 <= row["sampled_accuracy"] <= 1 for row in found)
    assert (told["sft"]["steps"], told["sft"]["kept_step"]) == (6, 6)


def test_a_look_changes_nothing_that_is_learned(whole, tiny_model, tmp_path):
    run(recipe(tiny_model, tmp_path, eval_every=100, dev_samples=0), tmp_path / "run")
    assert same_weights(whole[0] / "checkpoints/sft/final", tmp_path / "run/checkpoints/sft/final")


def test_below_min_entropy_it_goes_back_to_the_evaluation_before(whole, tiny_model, tmp_path):
    entropies = [row["entropy"] for row in rows(whole[0])]
    floor = (entropies[1] + entropies[2]) / 2
    assert entropies[0] > floor
    told = run(recipe(tiny_model, tmp_path, min_entropy=floor), tmp_path / "run")["sft"]
    assert (told["steps"], told["kept_step"]) == (6, 4)
    assert [row["entropy"] for row in rows(tmp_path / "run")] == entropies  # what made it stop stays on record
    run(recipe(tiny_model, tmp_path, max_steps=4), tmp_path / "four")
    assert same_weights(tmp_path / "run/checkpoints/sft/final", tmp_path / "four/checkpoints/sft/final")


def test_the_best_weights_are_not_those_to_go_back_to_where_their_answers_are_too_much_alike(
    whole, tiny_model, tmp_path, monkeypatch
):
    entropies = [row["entropy"] for row in rows(whole[0])]
    monkeypatch.setattr(StageLog, "is_best", lambda log, step: True)
    job = recipe(tiny_model, tmp_path, min_entropy=(entropies[1] + entropies[2]) / 2)
    assert run(job, tmp_path / "run")["sft"]["kept_step"] == 4


def test_where_the_first_evaluation_is_below_it_the_start_goes_on_also_after_a_kill(whole, tiny_model, tmp_path):
    job, out = recipe(tiny_model, tmp_path, min_entropy=100.0), tmp_path / "run"
    assert run(job, out, stop_requested=lambda: (out / "metrics.jsonl").exists() and len(rows(out, "sft")) == 1) == {}
    told = run(job, out, resume=True)["sft"]
    assert (told["steps"], told["kept_step"]) == (2, 0)
    assert same_weights(out / "checkpoints/sft/final", tiny_model)


def test_every_worked_solution_of_a_task_is_an_example(tiny_model, tmp_path):
    """A batch that holds each once counts them by their bytes."""
    folder = tmp_path / "x"
    folder.mkdir()
    job = recipe(tiny_model, folder, max_steps=1, eval_every=100, dev_samples=0, batch=16)
    run(job, folder / "run")
    train = read_tasks(folder / "run" / "tasks.parquet")["form/train"]
    solutions = [s for task in train for s in task.solutions]
    assert len(solutions) > len(train) == PROBLEMS - 20
    run(recipe(tiny_model, folder, max_steps=1, eval_every=100, dev_samples=0, batch=len(solutions)), folder / "all")
    (row,) = rows(folder / "all", "sft")
    assert row["num_tokens_trained"] == sum(len(s.encode()) + 1 for s in solutions)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        pytest.param({"eval_every": 3, "dev_samples": 0}, "after a step", marks=pytest.mark.slow),
        ({"min_entropy": 1e-6}, "after a look"),
        ({"min_entropy": 1e-6}, "in a save"),
        pytest.param({"dev_samples": 0}, "in a save", marks=pytest.mark.slow),
    ],
)
def test_a_killed_stage_ends_where_a_whole_one_does(tiny_model, tmp_path, monkeypatch, settings, where):
    """Killed at its fifth step or after its second look, wherever the stage then is; what was committed is not made anew."""
    job, out = recipe(tiny_model, tmp_path, max_steps=8, **settings), tmp_path / "run"
    run(job, tmp_path / "whole")
    if where == "in a save" and "min_entropy" not in settings:
        monkeypatch.setattr(sft, "SAVE_S", 0.0)
    strikes = {
        "after a step": lambda row: row["kind"] == "sft" and row["step"] == 5,
        "after a look": lambda row: row["kind"] == "heldout" and row["step"] > 3,
        "in a save": lambda row: row["kind"] == "heldout" and row["step"] > 3,
    }[where]
    append, save = Run.append, StageLog.save_checkpoint

    def killing_append(self: Run, row: dict) -> None:
        append(self, row)
        if strikes(row) and where != "in a save":
            raise Killed

    def killing_save(self: StageLog, step: int, write) -> Path:
        if step > 3 and where == "in a save":
            raise Killed
        return save(self, step, write)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", killing_append)
        patch.setattr(StageLog, "save_checkpoint", killing_save)
        with pytest.raises(Killed):
            run(job, out)
    committed = (out / "metrics.jsonl").read_text()
    told = run(job, out, resume=True)["sft"]
    assert (out / "metrics.jsonl").read_text().startswith(committed)
    assert told["kept_step"] == 8
    assert [unmeasured(row) for row in rows(out)] == [unmeasured(row) for row in rows(tmp_path / "whole")]
    assert [unmeasured(row) for row in rows(out, "sft")] == [unmeasured(row) for row in rows(tmp_path / "whole", "sft")]
    # Weights, and the optimizer that a stage after it would go on with.
    assert same_files(tmp_path / "whole/checkpoints/sft/final", out / "checkpoints/sft/final")


def test_a_damaged_evaluation_is_made_again_to_go_back_to(whole, tiny_model, tmp_path):
    """The floor is reached at step 6, so the weights of step 4 go on, also where their checkpoint had been damaged."""
    entropies = [row["entropy"] for row in rows(whole[0])]
    job, out = recipe(tiny_model, tmp_path, min_entropy=(entropies[1] + entropies[2]) / 2), tmp_path / "run"
    run(job, tmp_path / "whole")
    assert run(job, out, stop_requested=lambda: (out / "metrics.jsonl").exists() and len(rows(out, "sft")) == 5) == {}
    (out / "checkpoints/sft/step_000004/model.safetensors").write_bytes(b"")
    said = io.StringIO()
    told = pipeline.run(job, out=out, resume=True, watch=Watch(said, live=False))["stages"]["sft"]
    assert "step_000004 is damaged" in said.getvalue()
    assert (told["steps"], told["kept_step"]) == (6, 4)
    assert same_weights(out / "checkpoints/sft/final", tmp_path / "whole/checkpoints/sft/final")


class Killed(BaseException):
    """Raised where a kill would strike."""


def unmeasured(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.endswith("_s")}


def same_files(one: Path, other: Path) -> bool:
    found = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*.safetensors")} for f in (one, other)]
    return len(found[0]) == 2 and found[0] == found[1]
