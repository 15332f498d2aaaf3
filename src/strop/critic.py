"""The critic: what a rollout is worth at each of its tokens, before that token is chosen.

A linear head on hidden states, either the policy's own or those of a model that began as its copy. Knows hidden states
and nothing of rewards or losses; the learner trains it, `advantage.gae` uses what it says. It lives as long as a stage.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from strop import config
from strop.fused import Fused
from strop.model import Policy

__all__ = ["Critic"]


class Critic:
    """V(tokens so far), in units of reward. It begins at 0 everywhere."""

    def __init__(self, policy: Policy, settings: config.Critic) -> None:
        self.settings = settings
        self.shares = settings.kind == "head"
        self.body = policy if self.shares else _copy(policy)
        weight: Tensor = policy.head.weight  # type: ignore[assignment]
        self.head = nn.Linear(weight.shape[1], 1, device=weight.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What only the critic learns."""
        own = {f"critic.head.{n}": p for n, p in self.head.named_parameters()}
        return own if self.shares else own | {f"critic.body.{n}": p for n, p in self.body.trainable().items()}

    def values(self, hidden_Nh: Float[Tensor, "N h"]) -> Float[Tensor, " N"]:
        """Of hidden states of `body` at the places that predict the tokens."""
        return self.head(hidden_Nh.float())[:, 0]


def _copy(policy: Policy) -> Policy:
    with torch.no_grad():
        model = copy.deepcopy(policy.model)
    fused = None if policy.fused is None else Fused(model.get_decoder())
    return Policy(model=model, tokenizer=policy.tokenizer, name=policy.name, matmul=policy.matmul, fused=fused)
