"""Is it right, and what is it worth? Verdicts from verifiers, numbers from reward functions.

Reading order: `extract` finds the answer in a response; `latex`, `structure` and `algebra` read it, `math` compares
it; `puzzles` judges what is no mathematics; `code` has programs examined (`exam`) in a box (`sandbox`, `inside`); `workers` runs all of these in processes that can be killed; `shaping`,
`length` and `language` are reward functions, `adapters` finds them by name with those of others; `scorer` puts
verdicts and rewards on rollouts. Nothing here imports torch.

A new verifier is one function and one line in VERIFIERS; a new reward is one function and one line in `adapters.OWN` or `DENSE`.
"""

from __future__ import annotations

from collections.abc import Callable

from strop.record import Task, Verdict
from strop.rewards.adapters import Reward, load_rewards, try_reward
from strop.rewards.code import verify as verify_code
from strop.rewards.math import verify as verify_math
from strop.rewards.math import verify_number
from strop.rewards.puzzles import verify_exact, verify_gym, verify_knights
from strop.rewards.scorer import Scorer, VerifierBroken, check_gold

__all__ = ["VERIFIERS", "Reward", "Scorer", "VerifierBroken", "check_gold", "load_rewards", "try_reward"]

VERIFIERS: dict[str, Callable[[Task, str], Verdict]] = {
    "math": verify_math,
    "number": verify_number,
    "knights": verify_knights,
    "gym": verify_gym,
    "exact": verify_exact,
    "code": verify_code,
}
