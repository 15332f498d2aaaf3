"""What a run spent without learning from it: pure functions over its rows of metrics and its ledger.

The kinds overlap (a group without signal may be cut off, and be undone later), so they are never added up. Seconds that no
clock took apart are estimates: tokens at the run's mean rate of sampling. Each figure says which it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from strop.config import Stage, TrainStage

__all__ = ["WORDS", "Waste", "of"]

Kind = Literal["no_signal", "truncated", "dropped", "replayed", "verifier_waits", "rolled_back"]
WORDS: dict[str, str] = {
    "no_signal": "groups whose rewards are all equal",
    "truncated": "completions cut by the token limit",
    "dropped": "sampled and not trained on: dropped by a refill, or lost with a step that was stopped",
    "replayed": "updates made again after a restart or a rollback",
    "verifier_waits": "training steps that waited for verifiers",
    "rolled_back": "steps that the guard undid",
}
SIBLINGS = ("group_mean", "leave_one_out")  # baselines for which a group of equal rewards says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """Seconds and tokens of one kind; None where they are not known or there are none to count."""

    wall_s: float | None
    tokens: int | None
    estimated: tuple[str, ...] = ()  # which of the two are shares of a whole, not counts


def of(rows: Sequence[Mapping[str, Any]], ledger: Mapping[str, Any], stages: Iterable[Stage]) -> dict[Kind, Waste]:
    """`rows` are all of metrics.jsonl, `ledger` is what `Ledger.as_dict` gave, `stages` are the recipe's.

    Tokens of groups without signal are the groups' share of the step's tokens: whether such groups are longer is not in
    the rows. Waits for verifiers in an evaluation, and before the first stage, are part of those.
    """
    phases = ledger.get("phases", {})
    steps = [row for row in rows if row["kind"] == "train" and "num_tokens_sampled" in row]
    undone = [row for row in rows if row["kind"] == "rollback"]
    undone_tokens = sum(row.get("undone_tokens") or 0 for row in undone)
    by_group = {s.name for s in stages if isinstance(s, TrainStage) and _learns_from_siblings(s)}
    silent = sum(
        r["num_tokens_sampled"] * (r.get("frac_reward_zero_std") or 0) for r in steps if r["stage"] in by_group
    )
    sampled = phases.get("generate", {}).get("tokens", 0)
    dropped = max(0, sampled - sum(row["num_tokens_sampled"] for row in steps) - undone_tokens)
    replay = phases.get("replay", {})
    rate = phases["generate"]["wall_s"] / sampled if sampled else None

    def estimated(tokens: float | int, *what: str) -> Waste:
        return Waste(wall_s=None if rate is None else tokens * rate, tokens=round(tokens), estimated=("wall_s", *what))

    return {
        "no_signal": estimated(silent, "tokens"),
        "truncated": estimated(sum(map(_cut_tokens, steps))),
        "dropped": estimated(dropped),
        "replayed": Waste(wall_s=replay.get("wall_s", 0.0), tokens=replay.get("tokens", 0)),
        "verifier_waits": Waste(wall_s=float(sum(row.get("verify_s") or 0.0 for row in steps)), tokens=None),
        "rolled_back": Waste(wall_s=float(sum(row.get("undone_s") or 0.0 for row in undone)), tokens=undone_tokens),
    }


def _learns_from_siblings(stage: TrainStage) -> bool:
    return stage.algorithm.credit == "reward" and stage.algorithm.baseline in SIBLINGS


def _cut_tokens(row: Mapping[str, Any]) -> float:
    """Tokens of a step's cut completions: their number times their mean length."""
    length = row.get("completions/mean_truncated_length")
    if not length or not row.get("completions/mean_length"):
        return 0.0
    num_rollouts = row["num_tokens_sampled"] / row["completions/mean_length"]
    return num_rollouts * (row.get("completions/clipped_ratio") or 0) * length
