"""The teacher: whose log-probabilities of the student's own tokens become their credit (on-policy distillation).

Either another model, shown the tokens that the student saw, or the student's own weights, shown the worked solution too.
Knows what a teacher reads and how its answers lie beside the student's tokens; the learner runs it, `advantage` uses what
it says. It never learns. Temperature: the student's, so that equal weights agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from strop import config, model
from strop.model import Outline, Policy
from strop.record import Rollout, UserError

__all__ = ["Teacher", "check", "is_here", "load", "outline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Who judges, and what it reads in place of the student's prompt."""

    policy: Policy | None = None  # None: the student's weights, those of now or those that the stage began with
    prompt: Callable[[Rollout], Int32[np.ndarray, " P"]] | None = None  # None: the tokens that the student saw

    @property
    def num_bytes(self) -> int:
        """Memory of its own weights; 0 where they are the student's."""
        parameters = [] if self.policy is None else self.policy.model.parameters()
        return sum(p.numel() * p.element_size() for p in parameters)

    def reads(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts as the teacher sees them: its own prompt, then the same completion, token for token."""
        if self.prompt is None:
            return list(rollouts)
        return [_behind(self.prompt(r), r) for r in rollouts]

    def aligned(self, found: Sequence[np.ndarray], rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """What was found of `reads(rollouts)`, at the student's places [L] each: NaN before the completion, then index by index."""
        out = []
        for values, r in zip(found, rollouts, strict=True):
            array = np.full(len(r.token_ids), np.nan, np.float32)
            num_tokens = len(r.token_ids) - r.num_prompt_tokens
            array[r.num_prompt_tokens :] = values[len(values) - num_tokens :]
            out.append(array)
        return out


def _behind(prompt: Int32[np.ndarray, " P"], r: Rollout) -> Rollout:
    """The completion of a rollout behind another prompt; nothing else that was known of its tokens."""
    start, none = r.num_prompt_tokens, np.zeros(len(prompt), bool)
    return Rollout(
        task=r.task, group=r.group, sample=r.sample, token_ids=np.concatenate([prompt, r.token_ids[start:]]),
        sampled=np.concatenate([none, r.sampled[start:]]), trained=np.concatenate([none, r.trained[start:]]),
        temperature=r.temperature,
    )  # fmt: skip


@contextmanager
def _as_teacher() -> Iterator[None]:
    """What is wrong with the model is said of the key that named it."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("model.name=", "algorithm.teacher=")) from error


def load(settings: config.Model, say: Callable[[str], None] = lambda _: None) -> Policy:
    """Another model as a teacher: its weights, frozen. Raises UserError as `model.load` does."""
    with _as_teacher():
        policy = model.load(settings, say)
    policy.model.requires_grad_(False)
    return policy


def outline(settings: config.Model, say: Callable[[str], None] = lambda _: None) -> Outline:
    """The same without the weights, to look at before anything runs."""
    with _as_teacher():
        return model.outline(settings, say)


def is_here(settings: config.Model) -> bool:
    """As `model.check`: False where nothing is at hand to look at."""
    with _as_teacher():
        return model.check(settings)


def check(teacher: Outline, student: Policy, name: str, longest: int) -> None:
    """Raises UserError where the teacher cannot judge the student's tokens: other words, too few of them, or too few places.

    `longest`: tokens of the longest rollout that the stage may come to.
    """
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours != theirs:
        differing = sorted(word for word in ours.keys() | theirs.keys() if ours.get(word) != theirs.get(word))
        word = differing[0]
        raise UserError(
            f"algorithm.teacher={name} has another tokenizer than {student.name}: {len(differing)} tokens differ, such as "
            f"{word!r} (id {theirs.get(word, 'none')} there, {ours.get(word, 'none')} here); choose a teacher of the same family"
        )
    weight: Any = student.head.weight
    rows, needed = int(teacher.hf_config.get_text_config().vocab_size), len(weight)
    if rows < needed:
        raise UserError(
            f"algorithm.teacher={name} knows {rows} token ids and {student.name} may sample {needed}; choose a teacher whose "
            "vocabulary is padded as far"
        )
    if teacher.num_places is not None and longest > teacher.num_places:
        raise UserError(
            f"the stage may come to {longest} tokens, and its teacher {name} has places for {teacher.num_places}; lower "
            f"max_tokens by {longest - teacher.num_places}"
        )
