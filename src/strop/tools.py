"""What every stage is handed: the policy, the engine that samples it, the scorer, the tasks, the clock and the eyes.

Made once per run by the pipeline (or by hand in a notebook). Owns nothing; whoever made a tool closes it. Where a server
answers (`engine.server`) there are no weights here, and only evaluations run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from strop.chat import Chat
from strop.config import Model, Recipe
from strop.engine import Engine
from strop.ledger import Ledger
from strop.model import Policy
from strop.rewards import Scorer
from strop.tasks import TaskSplits
from strop.watch import Watch

__all__ = ["Tools"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    recipe: Recipe
    policy: Policy | None  # None: a server has the weights
    chat: Chat | None  # None: and a template of its own
    engine: Engine
    scorer: Scorer
    splits: Mapping[str, TaskSplits]
    ledger: Ledger
    watch: Watch
    teachers: Mapping[str, Model] = field(default_factory=dict)  # by train stage, where it is not the policy itself
    stop_requested: Callable[[], bool] = lambda: False
    spent: Callable[[], dict[str, str]] = dict  # what a bar shows of the costs so far
    spends: Callable[[str], float] = lambda of: float(of == "seconds")  # in a second, of what a `Budget` has
