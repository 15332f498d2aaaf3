"""`strop run` as a whole on a tiny model: what it refuses, what it leaves out, and what outlives a fault."""

from __future__ import annotations

import errno
import json
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from strop import pipeline, tasks, vet
from strop.config import Recipe, parse_recipe
from strop.disk import DiskFull
from strop.record import Rollout, UserError, read_rollouts, read_tasks
from strop.watch import Watch

EVALUATE = {"name": "look", "do": "evaluate", "tasks": ["sums"], "max_tokens": 2}
SFT = {"name": "sft", "do": "sft", "tasks": ["sums"], "max_steps": 1, "batch": 4, "eval_every": 9, "max_tokens": 2}
RL = {"name": "rl", "do": "train", "tasks": {"sums": 1}, "steps": 4, "prompts_per_step": 4, "group_size": 4,
      "max_tokens": 2, "heldout_every": 0, "checkpoint_every": 2, "optim": {"lr": 1e-3}}  # fmt: skip
SUMS = {"source": "arithmetic", "train": 16, "heldout": 4, "dev": 2, "settings": {"terms": 2, "ops": "+"}}


def recipe(
    model: object, *stages: Mapping, sums: Mapping | None = None, lora: Mapping | None = None, **sections: object
) -> Recipe:
    return parse_recipe({
        "model": {"name": str(model), "lora": lora or {}}, "chat": {"template": "{{ messages[0].content }}"}, "tasks": {"sums": sums or SUMS},
        "stages": list(stages), "checks": {"workers": 1}, **sections,
    })  # fmt: skip


def run(recipe: Recipe, out: Path, **options: object) -> dict:
    return pipeline.run(recipe, out=out, watch=Watch(open("/dev/null", "w"), live=False), **options)  # type: ignore[arg-type]


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


# --- what is left out ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own_data(tmp_path: Path) -> dict:
    """Ten good rows, two of them with worked solutions that end wrong or nowhere, and three that cannot be tasks."""
    good = [{"id": f"g{i}", "problem": f"{i} + 1?", "answer": str(i + 1)} for i in range(10)]
    good = [row | {"solution": f"The sum is \\boxed{{{row['answer']}}}"} for row in good]
    good[WRONG]["solution"], good[SILENT]["solution"] = "The sum is \\boxed{99}", "I would rather not say"
    bad = [
        {"id": "empty", "problem": "11 + 1?", "answer": ""},
        {"id": "blank", "problem": " ", "answer": "3"},
        {"id": "torn", "problem": "12 + 1?", "answer": "\\frac{13"},
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good + bad))
    (tmp_path / "heldout.jsonl").write_text('{"problem": "20 + 1?", "answer": "21"}\n')
    source, heldout = (str(tmp_path / name) for name in ("own.jsonl", "heldout.jsonl"))
    return {"source": source, "heldout": 1, "dev": 2, "settings": {"heldout_source": heldout}}


WRONG, SILENT = 4, 8


def test_what_cannot_be_trusted_is_left_out_and_listed(tiny_model, tmp_path, own_data):
    told = run(recipe(tiny_model, SFT, sums=own_data), tmp_path / "run")
    learned = read_tasks(tmp_path / "run" / "tasks.parquet")
    train = {t.prompt: t for t in learned["sums/train"]}
    assert {*train, *(t.prompt for t in learned["sums/dev"])} == {f"{i} + 1?" for i in range(10)}
    assert {(row["tasks"], row["answer"], row["reason"]) for row in told["dropped"]} == {
        ("sums", None, "no final answer"),
        ("sums", None, "no problem"),
        ("sums", "\\frac{13", "unparseable_gold"),
        ("sums", "5", "solution_wrong"),
        ("sums", "9", "solution_no_answer"),
    }
    assert {"empty", "blank", train[f"{WRONG} + 1?"].id, train[f"{SILENT} + 1?"].id} < {
        r["id"] for r in told["dropped"]
    }
    assert sum(told["num_dropped"].values()) == len(told["dropped"]) == 5
    assert summary(tmp_path / "run")["dropped"] == told["dropped"]
    assert [p for p, t in train.items() if "solution" not in t.meta] == [
        p for p in train if p in (f"{WRONG} + 1?", f"{SILENT} + 1?")
    ]


def test_a_worked_solution_with_a_wrong_end_is_not_learned_from(tiny_model, tmp_path, own_data):
    """A batch that holds every right example once counts them by their bytes."""
    told = run(recipe(tiny_model, SFT | {"batch": 6}, sums=own_data), tmp_path / "run")
    train = read_tasks(tmp_path / "run" / "tasks.parquet")["sums/train"]
    right = [t for t in train if t.prompt not in (f"{WRONG} + 1?", f"{SILENT} + 1?")]
    assert len(right) == 6
    assert all(t.meta["solution"].endswith(f"{{{t.answer}}}") for t in right)
    assert told["stages"]["sft"]["tokens_trained"] == sum(len(t.meta["solution"]) + 1 for t in right)


def test_nothing_left_out_is_an_empty_list(tiny_model, tmp_path):
    told = run(recipe(tiny_model, EVALUATE), tmp_path / "run")
    assert {"cpu", "threads", "kernels", "device", "torch", "transformers", "numpy", "strop"} < {*told["made_on"][0]}
    assert (told["dropped"], told["num_dropped"]) == ([], {})


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "sums", "parts"),
    [
        (RL | {"prompts_per_step": 17}, {}, ["17", "there are 16", "prompts_per_step to 16", "tasks.sums.train to 17"]),
        (RL | {"heldout_every": 2}, {"dev": 0}, ["tasks.sums.dev", "stages.rl.heldout_every=0"]),
        (SFT, {"dev": 0}, ["tasks.sums.dev"]),
        (EVALUATE, {"heldout": 0}, ["tasks.sums.heldout"]),
    ],
)
def test_a_stage_without_the_tasks_it_needs_is_refused(stage, sums, parts):
    job = recipe("none", stage, sums=SUMS | sums)
    with pytest.raises(UserError) as caught:
        vet.needs(job, tasks.load(job.tasks, seed=0, say=lambda _: None))
    for part in parts:
        assert part in str(caught.value)


def test_a_pool_of_just_the_tasks_of_a_step_is_enough():
    both = {"sums": SUMS, "more": SUMS | {"train": 4, "settings": {"terms": 3}}}
    for pool in (4, 3):
        both["more"]["train"] = pool
        job = recipe("none", RL | {"prompts_per_step": 16, "tasks": {"sums": 3, "more": 1}}, tasks=both)
        splits = tasks.load(job.tasks, seed=0, say=lambda _: None)
        if pool == 4:
            vet.needs(job, splits)
        else:
            with pytest.raises(UserError, match="draws 4 tasks of 'more' in a step, and there are 3"):
                vet.needs(job, splits)


def test_sets_that_share_their_tasks_cannot_fill_a_step():
    job = recipe(
        "none", RL | {"prompts_per_step": 16, "tasks": {"sums": 1, "twin": 1}}, tasks={"sums": SUMS, "twin": SUMS}
    )
    with pytest.raises(UserError, match="draws 8 tasks of 'sums' in a step, and there are 0 in no other of its sets"):
        vet.needs(job, tasks.load(job.tasks, seed=0, say=lambda _: None))


def test_what_outgrows_the_model_is_refused(tiny_model, tmp_path):
    """The tiny model has 1024 places, and a token a byte."""
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"set stages\.look\.max_tokens to \d+ or fewer") as caught:
        run(recipe(tiny_model, EVALUATE | {"max_tokens": 1020}), out)
    fits = int(str(caught.value).split("max_tokens to ")[1].split()[0])
    assert 990 < fits < 1020
    rows = [
        {"problem": f"{i} + 1?", "answer": str(i + 1), "solution": f"{'so ' * 400}\\boxed{{{i + 1}}}"} for i in range(8)
    ]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"worked solution of task .* has 12\d\d tokens"):
        run(recipe(tiny_model, SFT, sums={"source": str(tmp_path / "long.jsonl"), "heldout": 1, "dev": 1}), out)
    assert not out.exists()


def test_the_length_that_a_prompt_asks_for_counts_as_prompt(tiny_model, tmp_path):
    rows = [{"problem": f"{i} + 1?", "answer": str(i + 1)} for i in range(8)]  # six tokens each
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(tmp_path / "short.jsonl"), "heldout": 1, "dev": 1}
    sentence = " Think for 19 tokens."
    for budget, more in ({}, 0), ({"budget": {"tokens": [7, 19]}}, len(sentence)):
        fits = rf"set stages\.rl\.max_tokens to {1024 - 6 - more} or fewer"
        with pytest.raises(UserError, match=fits):
            run(recipe(tiny_model, RL | {"max_tokens": 1020, **budget}, sums=source), tmp_path / "run")
    tight = recipe(tiny_model, RL | {"max_tokens": 20, **budget}, sums=source, engine={"max_prompt_tokens": 26})
    with pytest.raises(UserError, match=r"27 tokens, more than engine\.max_prompt_tokens=26"):
        run(tight, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mistake_leaves_an_empty_folder_empty(tiny_model, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for wrong in (
        recipe(tiny_model, RL | {"rewards": [{"name": "none.py:none"}]}),
        recipe(tiny_model, RL | {"rewards": [{"name": "cosine", "settings": {"exceeds": -1.0}}]}),
        recipe(tmp_path / "nowhere", EVALUATE),
        recipe(tiny_model, EVALUATE, engine={"max_prompt_tokens": 3}),
    ):
        with pytest.raises(UserError):
            run(wrong, out)
        assert list(out.iterdir()) == []
    assert run(recipe(tiny_model, EVALUATE), out)["finished"]


# --- what outlives a fault ----------------------------------------------------------------------------------------------


def test_a_reward_that_raises_at_a_later_step_leaves_a_run_that_goes_on(tiny_model, tmp_path):
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\n"
        "calls = []\n"
        "def length(completions):\n"
        "    calls.append(1)\n"
        f"    if len(calls) > 3 and not Path({str(tmp_path / 'mended')!r}).exists():\n"
        "        raise RuntimeError('out of luck')\n"
        "    return [len(c) / 10 for c in completions]\n"
    )
    job = recipe(tiny_model, RL | {"rewards": [{"name": "own.py:length"}]}, EVALUATE)
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"own\.py:length raised RuntimeError: out of luck"):
        run(job, out, recipe_dir=tmp_path)
    left = summary(out)
    assert not left["finished"]
    assert left["stages"] == {}
    assert left["ledger"]["phases"]["generate"]["tokens"] > 0  # what the lost stage took is not forgotten
    assert left["ledger"]["phases"]["train"]["wall_s"] > 0
    (tmp_path / "mended").touch()
    told = run(job, out, resume=True, recipe_dir=tmp_path)
    assert told["finished"]
    assert told["ledger"]["tokens_sampled"] > left["ledger"]["tokens_sampled"]
    assert told["ledger"]["wall_s"] > left["ledger"]["wall_s"]


def test_moving_weights_and_lengths_asked_for_are_the_same_after_a_resume(tiny_model, tmp_path):
    rewards = [
        {"name": "lcpo_exact", "settings": {"alpha": 0.1}},
        {"name": "kimi", "weight": 0.0, "until_weight": 1.0, "over_steps": 10, "accuracy_tolerance": 0.9},
    ]
    job = recipe(tiny_model, RL | {"steps": 8, "max_tokens": 6, "budget": {"tokens": [2, 6]}, "rewards": rewards})
    run(job, tmp_path / "whole")
    out = tmp_path / "stopped"
    stopped = run(job, out, stop_requested=lambda: (out / "rollouts/rl/step_000006.parquet").exists())
    assert not stopped["finished"]
    assert run(job, out, resume=True)["finished"]
    whole, again = (_train_rows(folder) for folder in (tmp_path / "whole", out))
    assert again == whole
    # Shut until five accuracies are known; then where the straight line from 0 to 1 has got to.
    assert [row["rewards/kimi/weight"] for row in whole] == pytest.approx([0, 0, 0, 0, 0, 0.5, 0.6, 0.7])
    asked = set()
    for step, row in enumerate(whole, start=1):
        rollouts, others = (
            read_rollouts(folder / f"rollouts/rl/step_{step:06d}.parquet") for folder in (tmp_path / "whole", out)
        )
        assert [(r.budget_tokens, r.text, r.reward) for r in rollouts] == [
            (r.budget_tokens, r.text, r.reward) for r in others
        ]
        for r in rollouts:
            total = r.reward_parts["lcpo_exact"] + row["rewards/kimi/weight"] * r.reward_parts["kimi"]
            assert r.reward == pytest.approx(total)
            assert "Think" not in r.task.prompt
        assert len({(r.group, r.budget_tokens) for r in rollouts}) == len({r.group for r in rollouts})  # siblings share
        asked |= {r.budget_tokens for r in rollouts}
        error = np.mean([abs(r.num_sampled - r.budget_tokens) / r.budget_tokens for r in rollouts])
        assert row["completions/budget_error"] == pytest.approx(error)
    assert asked == {2, 3, 4, 5, 6}


def test_a_disk_that_fills_before_the_tasks_are_written(tiny_model, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_tasks", full)
        with pytest.raises(DiskFull, match=r"tasks\.parquet"):
            run(recipe(tiny_model, EVALUATE), out)
    assert summary(out)["dropped"] == []
    assert run(recipe(tiny_model, EVALUATE), out, resume=True)["finished"]


class Killed(BaseException):
    """Raised where a kill would strike."""


def test_lora_goes_from_sft_to_rl_to_an_evaluation_and_resumes(tiny_model, tmp_path):
    (tmp_path / "own.py").write_text(
        "def first(completions):\n    return [ord((c or 'a')[0]) % 7 for c in completions]\n"
    )
    rl = RL | {"rewards": [{"name": "own.py:first"}]}
    again = EVALUATE | {"name": "again", "from": "sft"}
    job = recipe(tiny_model, SFT | {"max_steps": 2}, rl, EVALUATE, again, lora={"rank": 4})
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert run(job, whole, recipe_dir=tmp_path)["finished"]

    def strike() -> bool:
        metrics = out / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count('"kind": "train"') == 3:
            raise Killed
        return False

    with pytest.raises(Killed):
        run(job, out, recipe_dir=tmp_path, stop_requested=strike)
    told = run(job, out, resume=True, recipe_dir=tmp_path)
    assert told["finished"]

    def adapter(folder: Path, stage: str) -> dict[str, np.ndarray]:
        return load_file(folder / "checkpoints" / stage / "final" / "adapter_model.safetensors")

    for stage in ("sft", "rl"):
        a, b = adapter(whole, stage), adapter(out, stage)
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)
    moved = [not np.array_equal(adapter(out, "sft")[name], value) for name, value in adapter(out, "rl").items()]
    assert any(moved)
    assert told["stages"]["look"]["from"] == "rl"
    assert told["stages"]["again"]["from"] == "sft"


def test_the_trained_model_is_gone_before_the_base_is_loaded_again(tiny_model, tmp_path, monkeypatch):
    from strop import model as models

    loaded: list[weakref.ref] = []
    load = models.load

    def watched(*args: object) -> models.Policy:
        assert all(model() is None for model in loaded)
        policy = load(*args)  # type: ignore[arg-type]
        loaded.extend([weakref.ref(policy.model), weakref.ref(policy.model.get_decoder())])
        return policy

    monkeypatch.setattr(models, "load", watched)
    sft = SFT | {"optim": {"lr": 1e-2, "warmup_steps": 0}}  # enough to see whose weights answer
    stages = [EVALUATE, sft, EVALUATE | {"name": "after"}, EVALUATE | {"name": "base_again", "from": "base"}]
    told = run(recipe(tiny_model, *stages), tmp_path / "run")
    assert len(loaded) == 4
    assert told["stages"]["base_again"]["from"] == "base"
    base, trained, again = (
        [r.text for r in _answers(tmp_path / "run", name)] for name in ("look", "after", "base_again")
    )
    assert base == again != trained


def _train_rows(out: Path) -> list[dict]:
    """Without what a clock measured."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows if row["kind"] == "train"]


def _answers(out: Path, stage: str) -> list[Rollout]:
    return read_rollouts(out / "rollouts" / stage / "greedy.parquet")
