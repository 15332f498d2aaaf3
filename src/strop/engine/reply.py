"""What a server's reply must look like before it is believed: bytes in, a Reply out.

Knows the JSON of OpenAI's chat completions and completions, with what vLLM adds to it. Types are as in JSON and nothing is
converted; keys it does not know are not looked at. What is said badly but does no harm is mended: half a character becomes
U+FFFD, and log-probabilities with a null among them count as not said. Does not know HTTP, nor what is done about a `Failure`. Read by `remote`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["Failure", "Reply", "read_chat", "read_completion", "read_models"]

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# Every escape of a JSON text, one after the other; the group is half a surrogate pair whose other half is not there.
ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server answered, as far as it said."""

    text: str
    num_tokens: int
    finish: str  # "stop", "length", or another word of the server's
    logprobs: list[float] | None = None  # nats, one a token
    token_ids: list[int] | None = None
    prompt_ids: list[int] | None = None
    num_prompt_tokens: int = 0  # 0: not said


class Failure(Exception):
    """An attempt that failed in a way that may pass. `pause_s` is how long the server asks to wait."""

    def __init__(self, what: str, pause_s: float = 0.0) -> None:
        super().__init__(what)
        self.pause_s = pause_s


class Form(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Model(Form):
    id: str


class Models(Form):
    data: list[Model]


class Usage(Form):
    prompt_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    completion_tokens: Annotated[int, Field(ge=0)]


class Message(Form):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class ChatLogprob(Form):
    logprob: Finite | None


class ChatLogprobs(Form):
    content: list[ChatLogprob] | None = None


class ChatChoice(Form):
    message: Message
    finish_reason: str
    logprobs: ChatLogprobs | None = None
    token_ids: list[TokenId] | None = None


class Chat(Form):
    choices: Annotated[list[ChatChoice], Field(min_length=1)]
    usage: Usage | None = None
    prompt_token_ids: list[TokenId] | None = None


class Logprobs(Form):
    token_logprobs: list[Finite | None] | None = None


class Choice(Form):
    text: str
    finish_reason: str
    logprobs: Logprobs | None = None
    token_ids: list[TokenId] | None = None


class Completion(Form):
    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: Usage | None = None


F = TypeVar("F", bound=Form)


def read_models(said: bytes) -> list[str]:
    """The names of the models that a server lists."""
    return [model.id for model in _read(Models, said).data]


def read_chat(said: bytes, most_tokens: int) -> Reply:
    """The first choice of a chat completion. Raises Failure for what is none, or has more than `most_tokens`.

    >>> choice = '{"message": {"content": "5"}, "finish_reason": "stop"}'
    >>> read_chat(f'{{"choices": [{choice}], "usage": {{"completion_tokens": 2}}}}'.encode(), 10).num_tokens
    2
    """
    found = _read(Chat, said)
    first, message = found.choices[0], found.choices[0].message
    if message.content is None and not (message.reasoning_content or message.reasoning or message.refusal):
        raise Failure("sent an answer without text")  # a model that is cut while it thinks has said nothing yet
    logprobs = [token.logprob for token in first.logprobs.content or ()] if first.logprobs else []
    text, ids = message.content or "", first.token_ids
    return _reply(text, first.finish_reason, logprobs, ids, found.prompt_token_ids, found.usage, most_tokens)


def read_completion(said: bytes, most_tokens: int) -> Reply:
    """The first choice of a completion. Raises Failure as `read_chat` does."""
    found = _read(Completion, said)
    first = found.choices[0]
    logprobs = (first.logprobs.token_logprobs or []) if first.logprobs else []
    return _reply(first.text, first.finish_reason, logprobs, first.token_ids, None, found.usage, most_tokens)


def _reply(
    text: str,
    finish: str,
    logprobs: list[float | None],
    ids: list[int] | None,
    prompt_ids: list[int] | None,
    usage: Usage | None,
    most_tokens: int,
) -> Reply:
    """The number of tokens is that of the ids, else of the log-probabilities, else what the usage says."""
    if finish in ("abort", "error"):
        raise Failure(f"gave up an answer (finish_reason {finish!r})")
    num_tokens = len(ids or logprobs)
    if not num_tokens:
        if usage is None:
            raise Failure("does not say how many tokens an answer has (usage)")
        num_tokens = usage.completion_tokens
    if num_tokens > most_tokens + 1:  # some count the token that ends the answer on top
        raise Failure(f"wrote {num_tokens:,} tokens where at most {most_tokens:,} were asked for")
    known = [p for p in logprobs if p is not None]
    return Reply(
        text=text, num_tokens=num_tokens, finish=finish, token_ids=ids or None, prompt_ids=prompt_ids,
        logprobs=known if known and len(known) == len(logprobs) == num_tokens else None,
        num_prompt_tokens=usage.prompt_tokens if usage else 0,
    )  # fmt: skip


def _read(form: type[F], said: bytes) -> F:
    try:
        return form.model_validate_json(ESCAPE.sub(lambda found: rb"\ufffd" if found[1] else found[0], said))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Failure(f"sent what is no answer ({place + ': ' if place else ''}{first['msg']})") from None
