"""Every recipe in recipes/ loads, says what it costs and what it gave, and names things that exist."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from strop import cli, rewards
from strop.config import Curation, Recipe, TrainStage, load_curation, load_recipe

ROOT = Path(__file__).resolve().parent.parent
EVERY = sorted((ROOT / "recipes").glob("*.yaml"))
CURATIONS = [path for path in EVERY if "pool" in yaml.safe_load(path.read_text())]
RECIPES = [path for path in EVERY if path not in CURATIONS]


@pytest.mark.parametrize("path", CURATIONS, ids=lambda p: p.stem)
def test_a_curation_loads_and_reads_back(path: Path) -> None:
    """Where the pool is the reader's to name, it is named."""
    data = yaml.safe_load(path.read_text())
    named = {"pool": "a.jsonl,b.parquet", "against": "all"}
    curation = load_curation(path, [f"{key}={value}" for key, value in named.items() if not data.get(key)])
    assert Curation.model_validate(yaml.safe_load(curation.to_yaml())) == curation


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_loads_and_reads_back(path: Path) -> None:
    recipe = load_recipe(path)
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_its_header_tells_goal_hardware_cost_and_result(path: Path) -> None:
    header = [line.lstrip("# ") for line in path.read_text().split("\n\n")[0].splitlines()]
    told = {line.split()[0] for line in header if line}
    assert {"goal", "hardware", "cost", "result"} <= told


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_its_rewards_exist(path: Path) -> None:
    for stage in load_recipe(path).stages:
        if isinstance(stage, TrainStage):
            assert len(rewards.load_rewards(stage.rewards, path.parent, max_tokens=stage.max_tokens)) == len(
                stage.rewards
            )


def test_the_arms_of_the_experiments_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import lab  # type: ignore[reportMissingImports]

    assert len(lab.EXPERIMENTS) == 9 + len(lab.RUIN)
    for arm in (arm for arms in lab.EXPERIMENTS.values() for arm in arms):
        recipe = load_recipe(ROOT / "recipes" / "lab.yaml", lab._keys(Path("out"), arm, 0))
        assert recipe.stages[-1].name == "after", arm.name
        assert (ROOT / "recipes" / f"lab-{arm.start}.yaml").is_file(), arm.name


def test_one_s_own_task_is_checked_without_network_or_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the README tells a newcomer to type first."""
    monkeypatch.setattr(sys, "argv", ["strop", "run", "recipes/my-task.yaml", "--dry-run"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    assert not left.value.code, err
    assert load_recipe(ROOT / "recipes" / "my-task.yaml") == Recipe.model_validate(yaml.safe_load(out))
    assert "not checked  tasks.gsm8k: openai/gsm8k is a Hugging Face id" in err
    assert "not checked  model: Qwen/Qwen2.5-1.5B-Instruct" in err
    assert "my_reward.py:shows_work" in err
