"""The recipe: what is refused and in which words, --set, presets, and the list of keys."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

from strop.config import PRESETS, Algorithm, Recipe, TrainStage, load_recipe, parse_recipe
from strop.record import UserError

ROOT = Path(__file__).resolve().parent.parent
MINIMAL = """
tasks: {easy: {source: arithmetic}, hard: {source: arithmetic, settings: {level: 3}}}
stages:
  - {name: before, do: evaluate, tasks: [easy]}
"""
RECIPE = """
tasks: {easy: {source: arithmetic}, hard: {source: arithmetic, settings: {level: 3}}}
stages:
  - {name: before, do: evaluate, tasks: [easy, hard]}
  - {name: sft, do: sft, tasks: [easy]}
  - {name: middle, do: evaluate, tasks: [easy, hard]}
  - {name: rl, do: train, tasks: {hard: 1.0}}
  - {name: after, do: evaluate, tasks: [easy, hard]}
  - {name: more, do: sft, from: sft, tasks: [easy], wall_of: rl}
  - {name: arm, do: evaluate, tasks: [easy, hard]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("seeed=1", ["seeed", "did you mean 'seed'?"]),
        ("model.nam=x", ["model.nam", "did you mean 'name'?"]),
        ("model.lora.rnk=4", ["rnk", "did you mean 'rank'?"]),
        ("stages.rl.group_sise=4", ["group_sise", "did you mean 'group_size'?"]),
        ("stages.rl.algorithm.clip_hi=0.1", ["clip_hi", "did you mean 'clip_high'?"]),
        ("stages.rl.optim.lrr=0.1", ["lrr", "did you mean 'lr'?"]),
        ("stages.rll.steps=4", ["rll", "did you mean 'rl'?"]),
        ("tasks.easy.sauce=x", ["sauce", "did you mean 'source'?"]),
        ("stages.rl.steps=0", ["steps", "greater than or equal to 1", "0"]),
        ("stages.rl.steps=ten", ["steps", "integer", "ten"]),
        ("stages.rl.temperature=-1", ["temperature", "greater than 0"]),
        ("stages.rl.group_size=1", ["group_size", "2"]),
        ("stages.rl.algorithm.preset=gprp", ["gprp", "grpo, dr_grpo, dapo, gspo, cispo, rloo, reinforce_pp"]),
        ("stages.rl.algorithm.clip_low=null", ["clip_low and clip_high"]),
        ("stages.rl.algorithm.kl_coef=0.1", ["kl_coef has no effect with kl: none"]),
        ("stages.rl.algorithm.overlong_buffer_tokens=256", ["overlong_buffer_tokens must be below max_tokens"]),
        ("stages.rl.algorithm={preset: rloo, aggregate: constant}", ["answers would count by their length"]),
        ("stages.rl.algorithm={preset: ppo, refill_rounds: 2}", ["refill_rounds drops groups of equal rewards"]),
        ("stages.rl.algorithm={preset: ppo, scale: group_std}", ["differ from token to token", "whiten"]),
        ("stages.rl.algorithm={baseline: critic, scale: none}", ["needs a critic", "critic.kind"]),
        ("stages.rl.algorithm={critic: {kind: head}}", ["a critic has no effect unless baseline: critic"]),
        (
            "stages.rl.algorithm={preset: ppo, critic: {clip: 0.5}}",
            ["critic.clip has no effect with updates_per_step: 1"],
        ),
        ("stages.rl.algorithm={preset: ppo, critic: {pretrain_steps: 500}}", ["the policy never learns"]),
        ("stages.rl.algorithm={preset: ppo, critic: {gae_lambda: 0.9, lambda_alpha: 0.05}}", ["takes the place of"]),
        ("stages.rl.algorithm={preset: grpo, kl_estimator: k2}", ["kl_estimator acts with kl: loss and a kl_coef"]),
        ("stages.rl.algorithm.kl_reset_every=5", ["kl_reset_every has no effect without a KL"]),
        ("stages.rl.algorithm.entropy_target=0.3", ["entropy_target needs an entropy_coef"]),
        ("stages.rl.algorithm={decoupled: true, difficulty: lead}", ["leave one out"]),
        ("stages.rl.algorithm={decoupled: true, baseline: none, scale: none}", ["decoupled compares siblings"]),
        ("stages.rl.algorithm={difficulty: lead, scale: whiten}", ["would undo difficulty"]),
        ("stages.rl.algorithm.preset=opd", ["stages.rl", "algorithm", "needs a teacher", "RUN:STAGE or self"]),
        ("stages.rl.algorithm.teacher=self", ["a teacher has no effect with credit: reward"]),
        ("stages.rl.algorithm.teacher_coef=0.5", ["teacher_coef has no effect with credit: reward"]),
        ("stages.rl.algorithm={preset: opsd, teacher_coef: 0}", ["teacher_coef", "greater than 0"]),
        ("stages.rl.algorithm={preset: opsd, scale: whiten}", ["compares no rewards", "credit: both"]),
        ("stages.rl.algorithm={preset: opsd, baseline: group_mean}", ["compares no rewards", "baseline: none"]),
        ("stages.rl.algorithm={preset: opsd, kl: reward, kl_coef: 0.1}", ["pays no reward", "kl: loss"]),
        ("stages.rl.algorithm={preset: opsd, overlong_buffer_tokens: 8}", ["overlong_buffer_tokens lowers a reward"]),
        ("stages.rl.algorithm={preset: opsd, kl: loss, kl_coef: 0.1, kl_reset_every: 4}", ["move the teacher too"]),
        ("stages.rl.algorithm={credit: both, teacher: self, refill_rounds: 2}", ["which a teacher still teaches"]),
        (
            "stages.rl={name: rl, do: train, tasks: {hard: 1}, algorithm: {preset: opsd}, rewards: [{name: kimi}]}",
            ["credit: teacher pays no rewards", "weight 0"],
        ),
        (
            "stages.rl={name: rl, do: train, tasks: {hard: 1}, from: base, algorithm: {preset: opd, teacher: smollm2-135m}}",
            ["'rl' starts from its teacher", "nothing to learn"],
        ),
        ("stages.rl.updates_per_step=13", ["updates_per_step exceeds prompts_per_step"]),
        ("stages.rl.rewards=[{name: kimi, weigth: 2}]", ["weigth", "did you mean 'weight'?"]),
        ("stages.rl.rewards=[{name: kimi, until_weight: 1.0}]", ["until_weight and over_steps are set together"]),
        ("stages.rl.rewards=[{name: kimi, over_steps: 5}]", ["until_weight and over_steps are set together"]),
        ("stages.rl.rewards=[{name: kimi, accuracy_tolerance: -0.1}]", ["accuracy_tolerance", "greater than or equal"]),
        ("stages.rl.rewards=[{name: lcpo_exact}]", ["stages.rl", "lcpo_exact needs a length", "mode: exact"]),
        ("stages.rl.budget.mode=max", ["mode has no effect without tokens"]),
        ("stages.rl.budget.tokens=[200, 100]", ["the lowest length, then the highest"]),
        ("stages.rl.budget.tokens=[100]", ["budget.tokens"]),
        ("stages.rl.budget.tokens=[100, 4000]", ["asks for up to 4000 tokens, and max_tokens cuts at 256"]),
        ("stages.rl.moves={clipped_above: 0.5}", ["rl.moves", "no effect without moves.limits"]),
        ("stages.rl.moves.limits=[256]", ["moves.limits are two or more"]),
        ("stages.rl.moves.limits=[512, 256]", ["each above the one before"]),
        ("stages.rl.moves.limits=[128, 512]", ["max_tokens, where the stage begins", "[128, 512]"]),
        ("stages.rl.moves.limit=[256, 512]", ["did you mean 'limits'?"]),
        ("stages.rl.curriculum.hard=-1", ["curriculum.hard", "greater than or equal to 0"]),
        ("stages.rl.curriculum.heavy=1", ["heavy", "which is none of easy, hard, medium"]),
        ("stages.rl.tasks={heard: 1}", ["'rl'", "'heard'", "did you mean 'hard'?"]),
        ("stages.arm.from=moar", ["'arm'", "'moar'", "did you mean 'more'?"]),
        ("stages.sft.wall_of=rl", ["'sft'", "takes its time from 'rl'"]),
        ("stages.more.patience=3", ["patience has no effect with wall_of"]),
        ("stages.more.max_steps=30", ["max_steps has no effect with wall_of"]),
        (
            "stages.more={name: more, do: sft, from: sft, tasks: [easy], wall_of: rl, dev_samples: 1, min_entropy: 0.1}",
            ["min_entropy has no effect with wall_of"],
        ),
        ("stages.sft.min_entropy=0.1", ["min_entropy is of sampled dev answers", "set dev_samples to 1 or more"]),
        ("stages.before.temperature=0.7", ["temperature has no effect without samples"]),
        ("stages.before.top_p=0.9", ["top_p has no effect without samples"]),
        ("stages.before.seeds=2", ["seeds has no effect without samples"]),
        ("stages.before.greedy=false", ["nothing would be answered"]),
        (
            "stages.before={name: before, do: evaluate, tasks: [easy], samples: 2, top_p: 0}",
            ["top_p", "greater than 0"],
        ),
        ("stages.rl.top_p=0.9", ["top_p"]),
        ("stages.before.name=sft", ["two stages are called 'sft'"]),
        ("stages.before.name=base", ["base is the untrained model"]),
        ("stages.before.do=evalute", ["do", "evaluate"]),
        ("model={name: x, dtype: bfloat16, matmul: bfloat16}", ["model: matmul: bfloat16 is for float32"]),
        ("model.dtype=float16", ["model.dtype", "float32"]),
        ("stages=[]", ["stages is empty"]),
        ("stages.rl.steps", ["key.subkey=value"]),
        ("=1", ["key.subkey=value"]),
        ("seed={", ["not YAML"]),
        ("seed.deep=1", ["seed", "integer"]),
        ("tasks.easy.source.deep=1", ["not a section"]),
        ("engin.max_batch=4", ["engin", "did you mean 'engine'?"]),
        ("stages.9.steps=4", ["9"]),
        ("stages.rl.rewards=[{name: accuracy, weight: .inf}]", ["weight", "finite"]),
        (
            "stages.rl.rewards=[{name: accuracy}, {name: kimi, weight: 0, accuracy_tolerance: 0.1}]",
            ["no effect with weight: 0"],
        ),
        (
            "stages.rl.rewards=[{name: accuracy}, {name: repetition_dense}]",
            ["token by token", "baseline: critic or none"],
        ),
        ("stages.rl.temperature=.nan", ["temperature", "finite"]),
        ("stages.before.tasks=[]", ["tasks", "at least 1"]),
        ("stages.rl.tasks={}", ["tasks", "at least 1"]),
        ("stages.sft.tasks=[easy, easy]", ["tasks", "named twice"]),
        ("stages.rl.rewards=[]", ["rewards", "at least 1"]),
        ("stages.rl.optim.betas=[0.9, 1.0]", ["betas", "less than 1"]),
        ("model.dtype=bfloat16", ["model.dtype=float32", "model.lora.rank"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_key_and_remedy(path: Path, override: str, parts: list[str]) -> None:
    sentence = refusal(path, override)
    for part in parts:
        assert part in sentence, sentence


def test_a_missing_key_is_named(path: Path) -> None:
    path.write_text("stages:\n  - {name: a, do: evaluate, tasks: [x]}\n")
    assert "'tasks' is missing" in refusal(path)


def test_files_that_are_no_recipe(path: Path, tmp_path: Path) -> None:
    assert "no recipe at" in refusal(tmp_path / "none.yaml")
    assert "is a folder" in refusal(tmp_path)
    assert "--resume" in refusal(tmp_path)
    path.write_text("a: [1\n")
    assert "is not YAML" in refusal(path)
    path.write_text("- 1\n")
    assert "holds no mapping" in refusal(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(path)


def test_a_buffer_must_fit_every_limit_of_the_stage(path: Path) -> None:
    settings = ["stages.rl.moves.limits=[128, 256]", "stages.rl.algorithm.overlong_buffer_tokens=128"]
    assert "below the shortest of moves.limits" in refusal(path, *settings)
    rl = load_recipe(path, settings[:1]).stages[3]
    assert isinstance(rl, TrainStage)
    assert (rl.max_tokens, rl.most_tokens) == (256, 256)


def test_bfloat16_is_for_adapters_and_evaluation(path: Path) -> None:
    assert load_recipe(path, ["model.dtype=bfloat16", "model.lora.rank=8"]).model.dtype == "bfloat16"
    path.write_text(MINIMAL)
    assert load_recipe(path, ["model.dtype=bfloat16"]).model.dtype == "bfloat16"


def test_set_reaches_every_kind_of_place(path: Path) -> None:
    recipe = load_recipe(
        path,
        [
            "seed=3",
            "model.lora.rank=8",  # a section the file does not have
            "tasks.hard.settings.level=4",
            "stages.rl.steps=20",  # a stage by name
            "stages.0.samples=4",  # and by number
            "stages.rl.optim.lr=1e-6",  # YAML 1.1 would call this a string
            "stages.rl.tasks={easy: 0.5, hard: 0.5}",
            'chat.system="Think: then answer"',  # quoted, since YAML would read a mapping
            "stages.rl.algorithm.clip_low=null",
            "stages.rl.algorithm.clip_high=null",
        ],
    )
    rl = recipe.stages[3]
    assert isinstance(rl, TrainStage)
    assert (recipe.seed, recipe.model.lora.rank, recipe.stages[0].samples) == (3, 8, 4)  # type: ignore[union-attr]
    assert recipe.tasks["hard"].settings == {"level": 4}
    assert (rl.steps, rl.optim.lr, rl.tasks) == (20, 1e-6, {"easy": 0.5, "hard": 0.5})
    assert recipe.chat.system == "Think: then answer"
    assert rl.algorithm.clip_low is None
    assert rl.algorithm.clip_high is None


def test_the_resolved_recipe_reads_back_as_itself(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        path,
        [
            "stages.rl.algorithm.preset=rloo",
            "stages.rl.optim.betas=[0.8, 0.9]",
            "stages.rl.budget={tokens: [32, 200], mode: max}",
            "stages.rl.rewards=[{name: lcpo_max, settings: {delta: 0.4}}, {name: language, settings: {language: de}}]",
            "stages.rl.rewards.language.until_weight=0.5",  # a reward by name, as a stage is
            "stages.rl.rewards.language.over_steps=10",
        ],
    )
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert load_recipe(again) == recipe
    assert load_recipe(again).hash == recipe.hash != load_recipe(path).hash


def test_start_of_follows_training_not_evaluation(path: Path) -> None:
    recipe = load_recipe(path)
    starts = {s.name: recipe.start_of(s) for s in recipe.stages}
    assert starts == {
        "before": "base", "sft": "base", "middle": "sft", "rl": "sft", "after": "rl", "more": "sft", "arm": "more",
    }  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_the_axes_and_each_axis_may_be_set_alone(preset: str) -> None:
    row = PRESETS[preset]
    named = {"preset": preset} | ({"teacher": "owner/model"} if preset == "opd" else {})  # which no row can know
    algorithm = Algorithm.model_validate(named)
    assert {k: getattr(algorithm, k) for k in row if k != "critic"} == {k: v for k, v in row.items() if k != "critic"}
    assert algorithm.critic.kind == row.get("critic", {}).get("kind", "none")
    assert Algorithm.model_validate(named | {"overlong_filter": True}).overlong_filter
    assert Algorithm.model_validate(named | {"kl": "none"}).kl == "none"


def test_defaults_are_the_default_preset() -> None:
    assert Algorithm() == Algorithm.model_validate({"preset": "dapo"})


def test_a_recipe_is_frozen(path: Path) -> None:
    recipe = parse_recipe(yaml.safe_load(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]


# --- costs --------------------------------------------------------------------------------------------------------------


def test_costs_are_no_part_of_the_hash(path: Path) -> None:
    dear = ["costs.usd_per_hour=$3.50/h", "costs.usd_per_kwh=0.3 USD/kWh", "costs.grid_g_per_kwh=deu", "costs.pue=1.2"]
    recipe = load_recipe(path, dear)
    assert recipe.hash == load_recipe(path).hash
    assert recipe.costs.model_dump() == {
        "usd_per_hour": 3.5, "usd_per_kwh": 0.3, "grid_g_per_kwh": "DEU", "pue": 1.2,
    }  # fmt: skip
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())).costs == recipe.costs


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "costs.usd_per_kwh=0.30 EUR",
            r"costs.usd_per_kwh: write US dollars per kWh, .*exchange rates change\), not .0.30 EUR",
        ),
        ("costs.usd_per_kwh=$0.30/h", "write US dollars per kWh"),
        ("costs.usd_per_kwh=30 ct", "write US dollars per kWh"),
        ("costs.usd_per_hour=€2", "write US dollars per h"),
        ("costs.usd_per_hour=-2", "write US dollars per h"),
        ("costs.usd_per_hour=1.2.3", "write US dollars per h"),
        ("costs.usd_per_hour=.nan", "write US dollars per h"),
        ("costs.usd_per_hour=true", "write US dollars per h"),
        ("costs.usd_per_hour=[1]", "write US dollars per h"),
        ("costs.grid_g_per_kwh=0.38", "0.38 g/kWh is no grid's"),
        ("costs.grid_g_per_kwh=380 kg/kWh", "380000 g/kWh is no grid's"),
        ("costs.grid_g_per_kwh=380 g/kW", "write grams of CO2e per kWh"),
        ("costs.grid_g_per_kwh=ZZZ", "write grams of CO2e per kWh"),
        ("costs.pue=0.9", "greater than or equal to 1"),
    ],
)
def test_costs_that_are_nonsense_are_refused_in_one_sentence(path: Path, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_recipe(path, [override])
    assert "\n" not in str(error.value)


# --- the list of keys: a new one costs an edit here, so that they stay few ----------------------------------------------

OPTIM = ["lr", "warmup_steps", "betas", "weight_decay", "max_grad_norm", "microbatch_tokens"]
ALGORITHM = [
    "preset", "credit", "teacher", "teacher_coef", "baseline", "scale", "decoupled", "difficulty", "ratio", "clip", "clip_low", "clip_high", "correction",
    "aggregate", "kl", "kl_coef", "kl_estimator", "kl_reset_every", "entropy_coef", "entropy_target",
    "overlong_filter", "overlong_buffer_tokens", "refill_rounds", "advantages",
]  # fmt: skip
REWARD = ["name", "weight", "until_weight", "over_steps", "accuracy_tolerance", "settings"]
CRITIC = ["kind", "gae_lambda", "lambda_alpha", "clip", "lr", "pretrain_steps"]
KEYS = {
    "seed",
    "memory_gb",
    "budget",
    *(f"model.{k}" for k in ("name", "device", "dtype", "matmul", "trust_remote_code", "lora.rank", "lora.alpha")),
    *(f"chat.{k}" for k in ("system", "template", "prefill")),
    *(f"tasks.<name>.{k}" for k in ("source", "train", "heldout", "dev", "settings")),
    *(f"stages.<{do}>.{k}" for do in ("evaluate", "sft", "train") for k in ("name", "from", "tasks", "max_tokens")),
    *(f"stages.<evaluate>.{k}" for k in ("greedy", "samples", "seeds", "temperature", "top_p")),
    *(
        f"stages.<sft>.{k}"
        for k in ("batch", "max_steps", "eval_every", "patience", "wall_of", "dev_samples", "min_entropy")
    ),
    *(f"stages.<sft>.optim.{k}" for k in OPTIM),
    *(f"stages.<train>.{k}" for k in ("steps", "prompts_per_step", "group_size", "updates_per_step", "temperature")),
    *(
        f"stages.<train>.{k}"
        for k in ("heldout_every", "stop_below", "checkpoint_every", "budget.tokens", "budget.mode")
    ),
    *(f"stages.<train>.rewards.<i>.{k}" for k in REWARD),
    *(f"stages.<train>.algorithm.{k}" for k in ALGORITHM),
    *(f"stages.<train>.algorithm.critic.{k}" for k in CRITIC),
    *(f"stages.<train>.optim.{k}" for k in OPTIM),
    *(f"stages.<train>.moves.{k}" for k in ("limits", "clipped_above", "entropy_below", "window_steps")),
    *(f"stages.<train>.curriculum.{k}" for k in ("easy", "medium", "hard")),
    *(f"stages.<train>.guard.{k}" for k in ("times", "remedies")),
    *(f"engine.{k}" for k in ("server", "max_batch", "max_prompt_tokens", "int8")),
    *(f"checks.{k}" for k in ("workers", "timeout_s")),
    *(f"keep.{k}" for k in ("last", "best", "disk_gb")),
    *(f"costs.{k}" for k in ("usd_per_hour", "usd_per_kwh", "grid_g_per_kwh", "pue")),
}


def make_cli():
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["make_cli"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_keys_are_these_and_few() -> None:
    keys = [key.path for key in make_cli().leaf_keys()]
    assert len(keys) == len(set(keys)) <= 122
    assert set(keys) == KEYS


def test_every_key_is_read_somewhere() -> None:
    """A key that no room reads would be accepted and do nothing."""
    read = {
        node.attr
        for file in (ROOT / "src" / "strop").rglob("*.py")
        if file.parent.name not in ("cli", "config", "report")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    read_by_the_recipe_itself = {"from", "preset"}
    unread = {key.rsplit(".", 1)[-1] for key in KEYS} - read - read_by_the_recipe_itself
    assert not unread


def test_every_key_is_told_of() -> None:
    assert [key.path for key in make_cli().leaf_keys() if not key.doc] == []


def test_a_stage_keeps_its_own_defaults_when_a_sibling_key_is_set(path: Path) -> None:
    recipe = load_recipe(path, ["stages.sft.optim.warmup_steps=5"])
    assert recipe.stages[1].optim.lr == load_recipe(path).stages[1].optim.lr == 2e-5  # type: ignore[union-attr]


def test_recipe_schema_is_closed() -> None:
    with pytest.raises(UserError, match="unknown key 'x'"):
        parse_recipe({"x": 1, **yaml.safe_load(MINIMAL)})
    assert Recipe.model_config.get("extra") == "forbid"
