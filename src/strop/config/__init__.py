"""The recipe: what a user may set, with its default, its range, and the reason why a combination is refused.

Knows names and numbers only; imports nothing that trains. Field docstrings are the reference that `docs/cli.md` and
`--help` print. Unknown keys are errors that name the nearest key; every key acts or is refused.
"""

from strop.config.algorithm import PRESETS, Algorithm, Critic
from strop.config.curation import Curation, PoolSource
from strop.config.reading import load_curation, load_recipe, parse_curation, parse_recipe
from strop.config.recipe import Chat, Checks, Costs, Engine, Keep, Lora, Model, Recipe, TaskSet
from strop.config.section import Count, Decay, Positive, Section, Share, nearest
from strop.config.stages import (
    BUDGET_MODES,
    DENSE_REWARDS,
    AskedLength,
    Curriculum,
    EvaluateStage,
    Moves,
    Optim,
    RewardSpec,
    SftOptim,
    SftStage,
    Stage,
    StageBase,
    TrainStage,
)  # fmt: skip

__all__ = [
    "BUDGET_MODES", "DENSE_REWARDS", "PRESETS", "Algorithm", "AskedLength", "Chat", "Checks", "Costs", "Count", "Critic",
    "Curation", "Curriculum", "Decay", "Engine", "EvaluateStage", "Keep", "Lora", "Model", "Moves", "Optim", "PoolSource", "Positive", "Recipe", "RewardSpec",
    "Section", "SftOptim", "SftStage", "Share", "Stage", "StageBase", "TaskSet", "TrainStage", "load_curation", "load_recipe", "nearest",
    "parse_curation", "parse_recipe",
]  # fmt: skip
