"""`strop eval NAME...`: what a name stands for, whose weights and chat a run stands for, and whole evaluations."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from strop import cli, pipeline, targets
from strop.config import EvaluateStage, Recipe, parse_recipe
from strop.record import UserError, read_rollouts, read_tasks
from strop.watch import Watch

STAGE = {"samples": None, "max_tokens": 4}
SUMS = {"source": "arithmetic", "train": 16, "heldout": 4, "dev": 2, "settings": {"terms": 2, "ops": "+"}}
SFT = {"name": "sft", "do": "sft", "tasks": ["sums"], "max_steps": 1, "batch": 4, "eval_every": 9, "max_tokens": 2}


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STROP_DATA", raising=False)


def make(*names: str, model: str | None = None, **options: Any) -> Recipe:
    return targets.recipe(names, targets.trained(model), stage=STAGE, **options)


def own(folder: Path, name: str = "own.jsonl", rows: int = 5) -> str:
    path = folder / name
    lines = (json.dumps({"problem": f"What is {i} + 1?", "answer": str(i + 1)}) for i in range(rows))
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def trained_run(tiny_model, tmp_path_factory) -> Path:
    """One step of SFT with a system prompt of its own."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    recipe = parse_recipe({
        "model": {"name": str(tiny_model)}, "chat": {"system": "Be brief."}, "tasks": {"sums": SUMS}, "stages": [SFT],
        "checks": {"workers": 1, "timeout_s": 60},
    })  # fmt: skip
    pipeline.run(recipe, out=out, watch=Watch(io.StringIO(), live=False))
    return out


def test_each_kind_of_name_is_a_task_set(tmp_path: Path) -> None:
    recipe = make("amc23", "knights_knaves:5", "gym:chain_sum", "arithmetic", own(tmp_path), data="D")
    found = {name: (spec.source, spec.settings) for name, spec in recipe.tasks.items()}
    assert found == {
        "amc23": ("amc23", {"data": "D"}),
        "knights_knaves_5": ("knights_knaves", {"data": "D", "people": 5}),
        "chain_sum": ("gym:chain_sum", {}),
        "arithmetic": ("arithmetic", {}),
        "own": (str(tmp_path / "own.jsonl"), {}),
    }
    assert all((spec.train, spec.dev, spec.heldout) == (0, 0, None) for spec in recipe.tasks.values())
    (stage,) = recipe.stages
    assert isinstance(stage, EvaluateStage)
    assert stage.tasks == list(found)
    assert recipe.chat.system == targets.SYSTEM
    assert targets.default_out(recipe, "m") == Path("runs/eval-m-amc23-and-4-more")


def test_limits_and_overrides_reach_the_recipe(tmp_path: Path) -> None:
    recipe = make("amc23", limit=7, system="", overrides=["seed=3", "stages.eval.max_tokens=9"])
    assert (recipe.tasks["amc23"].heldout, recipe.seed, recipe.stages[0].max_tokens) == (7, 3, 9)
    assert recipe.chat.system == ""


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["math500"], ["'math500'", "did you mean 'math_500'?", "--list"]),
        (["own.jsonl"], ["own.jsonl"]),
        (["amc23", "amc23"], ["two targets are called 'amc23'"]),
        (["knights_knaves:many"], ["knights_knaves:5"]),
    ],
)
def test_a_name_typed_wrong_is_one_sentence(names: list[str], parts: list[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        pipeline.check(make(*names), say=len)
    for part in parts:
        assert part in str(error.value)


def test_a_run_brings_its_weights_its_settings_and_its_chat(trained_run: Path) -> None:
    for name in (f"{trained_run}", f"{trained_run}:sft"):
        recipe = make("arithmetic", model=name)
        assert recipe.model.name == str(trained_run / "checkpoints" / "sft" / "final")
        assert recipe.chat.system == "Be brief."
    assert targets.trained(f"{trained_run}").label == "mine-sft"
    base = make("arithmetic", model=f"{trained_run}:base")
    assert (base.model.name, base.chat.system) != (recipe.model.name, targets.SYSTEM)
    said: list[str] = []
    make("arithmetic", model=str(trained_run), system="Another.", say=said.append)
    assert "trained with another system prompt ('Be brief.')" in said[0]


def test_a_stage_that_is_not_there_and_a_run_in_the_wrong_place(trained_run: Path) -> None:
    with pytest.raises(UserError, match=r"trains no stage 'sfd'.*did you mean 'sft'"):
        make("arithmetic", model=f"{trained_run}:sfd")
    with pytest.raises(UserError, match=r"is a run: name what it is to answer"):
        make(str(trained_run))


@pytest.fixture(scope="module")
def lora_run(tiny_model, tmp_path_factory) -> Path:
    """Two steps of SFT of an adapter, which the run itself evaluates before and after."""
    folder = tmp_path_factory.mktemp("lora")
    look = {"name": "first", "do": "evaluate", "tasks": ["own"], "max_tokens": 8, "samples": 2}
    recipe = parse_recipe({
        "model": {"name": str(tiny_model), "lora": {"rank": 4, "alpha": 8}}, "chat": {"system": "Be brief."},
        "tasks": {"sums": SUMS, "own": {"source": own(folder), "train": 0, "dev": 0}},
        "stages": [look, SFT | {"max_steps": 2, "optim": {"lr": 0.05, "warmup_steps": 0}}, look | {"name": "look", "from": "sft"}],
        "checks": {"workers": 1, "timeout_s": 60},
    })  # fmt: skip
    pipeline.run(recipe, out=folder / "run", watch=Watch(io.StringIO(), live=False))
    return folder


def test_an_adapter_answers_elsewhere_as_in_its_run(lora_run: Path, tmp_path: Path) -> None:
    run = lora_run / "run"
    inside = json.loads((run / "summary.json").read_text())["stages"]
    prints = {}
    for name, stage in (("sft", "look"), ("base", "first")):
        made = targets.recipe(
            [str(lora_run / "own.jsonl")], targets.trained(f"{run}:{name}"), stage=STAGE | {"max_tokens": 8, "samples": 2},
            overrides=["stages.eval.temperature=1", "stages.eval.top_p=1"],
        )  # fmt: skip
        out = tmp_path / name
        told = pipeline.run(made, out=out, watch=Watch(io.StringIO(), live=False))
        for kind in ("greedy", "samples"):
            ours, theirs = (
                [r.token_ids.tolist() for r in read_rollouts(where / f"{kind}.parquet")]
                for where in (out / "rollouts" / "eval", run / "rollouts" / stage)
            )
            assert ours == theirs
        prints[name] = told["stages"]["eval"]["fingerprint"]["model"]
        assert prints[name] == inside[stage]["fingerprint"]["model"]
    assert prints["sft"] != prints["base"]


def test_the_fingerprint_of_an_adapter_is_of_what_it_does(lora_run: Path, tiny_model: Path) -> None:
    from strop import config, fingerprint, model

    final = str(lora_run / "run" / "checkpoints" / "sft" / "final")
    plain = fingerprint.model_hash(model.load(config.Model(name=str(tiny_model))))
    fresh = model.load(config.Model(name=str(tiny_model), lora=config.Lora(rank=4)))
    assert fingerprint.model_hash(fresh) == plain  # it has learned nothing
    taught = model.load(config.Model(name=final))
    before = fingerprint.model_hash(taught)
    assert before != plain
    assert taught.trainable().keys() == fresh.trainable().keys()
    layer = next(m for m in taught.model.modules() if hasattr(m, "lora_B"))
    layer.scaling["default"] *= 2
    assert fingerprint.model_hash(taught) != before


def test_an_adapter_is_refused_where_it_cannot_be_what_was_asked_for(lora_run: Path, tmp_path: Path) -> None:
    import shutil

    from strop import config, model

    final = lora_run / "run" / "checkpoints" / "sft" / "final"
    with pytest.raises(UserError, match=r"adapter of rank 4 and alpha 8, not of 2"):
        model.load(config.Model(name=str(final), lora=config.Lora(rank=2)))
    with pytest.raises(UserError, match=r"leave engine\.server out"):
        model.outline(config.Model(name=str(final)))
    on = parse_recipe({"model": {"name": str(final)}, "tasks": {"sums": SUMS}, "stages": [SFT],
                       "checks": {"workers": 1, "timeout_s": 60}})  # fmt: skip
    with pytest.raises(UserError, match=r"would train all weights.*is an adapter"):
        pipeline.run(on, out=tmp_path / "on", watch=Watch(io.StringIO(), live=False))
    for name, change, words in (
        ("gone", {"base_model_name_or_path": str(tmp_path / "no")}, "put its base back"),
        ("kind", {"peft_type": "IA3"}, "reads LoRA only"),
        ("rank", {"r": None}, "no description of a LoRA adapter"),
    ):
        shutil.copytree(final, tmp_path / name)
        file = tmp_path / name / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(UserError, match=words):
            model.load(config.Model(name=str(tmp_path / name)))
    (tmp_path / "gone" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="only safetensors are read"):
        model.load(config.Model(name=str(tmp_path / "gone")))


def test_solve_and_probe_take_an_adapter(lora_run: Path) -> None:
    from strop import probe, solve

    run, watch = lora_run / "run", Watch(io.StringIO(), live=False)
    answers = solve.run(run, "What is 3 + 1?", max_tokens=8, watch=watch)
    assert [a["model"] for a in answers] == ["base", "sft"]
    assert answers[0]["text"] != answers[1]["text"]
    found = probe.run(
        [f"{run}:look", f"{run}:first"], perplexity=True, watch=watch
    ).data  # the adapter's own words first
    assert found["names"] == ["look", "first"]
    assert found["perplexity"]["gap"]["value"] > 0  # another model's words surprise it more


def typed(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["strop", "eval", *map(str, args)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def test_an_evaluation_from_the_command_line(trained_run: Path, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "out"
    args = [own(tmp_path), "arithmetic", "--model", trained_run, "--samples", 2, "--seeds", 2, "--max-tokens", 3,
            "--limit", 4, "--out", out, "--set", "checks.timeout_s=60", "--json"]  # fmt: skip
    assert typed(monkeypatch, *args) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = told["stages"]["eval"]
    assert found["by_tasks"].keys() == {"own", "arithmetic"}
    assert (found["num_tasks"], found["num_samples"], len(found["seed_accs"])) == (8, 4, 2)
    assert found["fingerprint"]["sampling"] == {
        "greedy": True, "samples": 2, "seeds": 2, "temperature": 0.6, "top_p": 0.95, "max_tokens": 3,
    }  # fmt: skip
    assert set(read_tasks(out / "tasks.parquet")) == {"own/heldout", "arithmetic/heldout"}
    assert (out / "report.html").exists()
    assert typed(monkeypatch, *args) == 2  # it is there
    assert typed(monkeypatch, *args, "--resume") == 0


def test_options_that_would_do_nothing_are_refused(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "r.yaml").write_text("")
    assert typed(monkeypatch, tmp_path / "r.yaml", "--samples", 3) == 2
    assert "--samples is for tasks by name" in capsys.readouterr().err
    assert typed(monkeypatch, "amc23", "--no-greedy") == 2
    assert "set samples to 1 or more" in capsys.readouterr().err
    assert typed(monkeypatch) == 2
    assert "strop eval math_500" in capsys.readouterr().err


def test_the_list_names_every_benchmark(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["strop", "eval", "--list"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    assert "math_500" in shown
    assert "e98757fe2b109ca2" in shown
