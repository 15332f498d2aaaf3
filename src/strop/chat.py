"""The only place where text becomes token ids and back.

Knows the chat template, the system prompt, the prefill, and which tokens end a turn. Everyone else handles ids
(engine, learner) or text (tasks, rewards), never both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from strop import config
from strop.record import Rollout, Stop, Task, UserError

__all__ = ["Budget", "Chat", "hinted", "messages"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A length that the prompt asks for, in the words of LCPO (L1, arXiv 2503.04697).

    >>> Budget(tokens=512).sentence, Budget(tokens=512, mode="max").sentence
    ('Think for 512 tokens.', 'Think for maximum 512 tokens.')
    """

    tokens: int
    mode: Literal["exact", "max"] = "exact"

    @property
    def sentence(self) -> str:
        return f"Think for {'maximum ' if self.mode == 'max' else ''}{self.tokens} tokens."


def messages(settings: config.Chat, prompt: str, budget: Budget | None = None) -> list[dict[str, str]]:
    """The system prompt, where there is one, and the problem with the length asked for.

    >>> messages(config.Chat(), "What is 2 + 3?", Budget(tokens=9))
    [{'role': 'user', 'content': 'What is 2 + 3? Think for 9 tokens.'}]
    """
    system = [{"role": "system", "content": settings.system}] if settings.system else []
    return [*system, {"role": "user", "content": prompt if budget is None else f"{prompt} {budget.sentence}"}]


def hinted(prompt: str, solution: str) -> str:
    r"""The problem with its worked solution, as a teacher is shown it.

    >>> hinted("Compute 2 + 3.", "2 + 3 = 5")
    'Compute 2 + 3.\n\nA correct solution:\n2 + 3 = 5\n\nSolve the problem in your own words.'
    """
    return f"{prompt}\n\nA correct solution:\n{solution.strip()}\n\nSolve the problem in your own words."


class Chat:
    """Encodes tasks for one tokenizer and one recipe."""

    def __init__(self, tokenizer: Any, settings: config.Chat, eos_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(eos_ids))
        if not self.stop_ids:
            raise UserError("the tokenizer names no end-of-text token, so no completion could ever end; set eos_token")
        self.template = settings.template or tokenizer.chat_template

    def prompt_text(self, prompt: str, budget: Budget | None = None) -> str:
        """The whole prompt as text: template, system prompt, problem, the length asked for, prefill."""
        said = messages(self.settings, prompt, budget)
        if self.template is None:
            text = "\n\n".join(m["content"] for m in said) + "\n"
        else:
            try:
                text = self.tokenizer.apply_chat_template(
                    said, chat_template=self.template, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # a template is a program of the model's or the user's, and may raise anything
                what = f"{type(error).__name__}: {error}"[:300]
                raise UserError(f"the chat template cannot be rendered ({what}); set chat.template") from error
        return text + self.settings.prefill

    def encode_prompt(self, prompt: str, budget: Budget | None = None) -> Int32[np.ndarray, " P"]:
        return self._encode(self.prompt_text(prompt, budget))

    def encode_hinted(self, task: Task, budget: Budget | None = None) -> Int32[np.ndarray, " P"]:
        """The prompt of a task that has a worked solution (meta.solution), with that solution in it."""
        return self.encode_prompt(hinted(task.prompt, str(task.meta["solution"])), budget)

    def opening(self) -> Int32[np.ndarray, " P"]:
        """What every prompt begins with (template, system prompt), and perhaps a token of one prompt behind it."""
        one, other = self.encode_prompt("1"), self.encode_prompt("a")
        length = min(len(one), len(other))
        return one[: int(np.argmin(np.append(one[:length] == other[:length], False))) + 1]

    def encode_completion(self, text: str) -> Int32[np.ndarray, " C"]:
        """A given completion with the end-of-turn token that the policy should learn to choose."""
        return np.append(self._encode(text), np.int32(self.stop_ids[0])).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The completion as people read it: without end-of-turn and other special tokens."""
        return self.tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True)

    def worked_example(self, task: Task, group: int = 0, solution: str | None = None) -> Rollout:
        """The task with a worked solution (None: its first) as a rollout that is trained on but was never sampled (SFT)."""
        solution = solution or next(iter(task.solutions), None)
        if not solution:
            raise UserError(f"task {task.id} has no worked solution (meta.solution), so SFT cannot learn from it")
        prompt, completion = self.encode_prompt(task.prompt), self.encode_completion(solution)
        trained = np.arange(len(prompt) + len(completion)) >= len(prompt)
        return Rollout(
            task=task, group=group, sample=0, token_ids=np.concatenate([prompt, completion]),
            sampled=np.zeros_like(trained), trained=trained, prefill=self.settings.prefill,
            text=solution, stop=Stop.GIVEN,
        )  # fmt: skip

    def check_length(self, tasks: Sequence[Task], max_prompt_tokens: int, budget: Budget | None = None) -> int:
        """Tokens of the longest prompt, 0 without tasks. Raises UserError if one is longer than the limit, naming it."""
        longest = 0
        for task in tasks:
            longest = max(longest, length := len(self.encode_prompt(task.prompt, budget)))
            if length > max_prompt_tokens:
                raise UserError(
                    f"the prompt of task {task.id} has {length} tokens, more than engine.max_prompt_tokens="
                    f"{max_prompt_tokens}; raise it or drop the task"
                )
        return longest

    def _encode(self, text: str) -> Int32[np.ndarray, " L"]:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)
