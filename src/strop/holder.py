"""Who holds the weights that answer: this process, a server of vLLM's that is started for it, or one at a URL.

Knows how each is opened from a recipe's `model`, `chat` and `engine`, and that what can be refused is refused before any
weights are read. Does not know what will be asked. Read by the pipeline for a run's policy, and by curation for whoever
measures a pool. Torch is imported when a model is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from strop import config
from strop.watch import Watch

if TYPE_CHECKING:
    from strop.chat import Chat
    from strop.engine import Engine
    from strop.model import Policy

__all__ = ["Check", "Held", "hold"]

Check = Callable[
    ["Chat", int | None], None
]  # the template, and the model's longest sequence in tokens (None: no limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What answers. Whoever opened it closes the stack that it was opened in."""

    policy: Policy | None  # None: a server has the weights
    chat: Chat | None  # None: and a template of its own
    engine: Engine
    num_places: int | None  # the longest sequence in tokens; None where there is no such limit, or a server knows it


def hold(
    model: config.Model,
    chat: config.Chat,
    engine: config.Engine,
    *,
    max_tokens: int,
    watch: Watch,
    stack: ExitStack,
    check: Check = lambda chat, num_places: None,
) -> Held:
    """The model as the recipe wants it held; a server that is started for it ends with `stack`.

    `max_tokens` is the longest completion that will be asked for. `check` is called once prompts can be made, so before a
    server is started; at a URL, where prompts are not made here, it is not. Raises UserError for a model that cannot be
    had, and what `check` raises.
    """
    if engine.at_url:
        return _at_url(model, chat, engine, watch)
    if engine.server:
        return _in_vllm(model, chat, engine, max_tokens, watch, stack, check)
    return _here(model, chat, engine, watch, check)


def _here(model: config.Model, chat: config.Chat, engine: config.Engine, watch: Watch, check: Check) -> Held:
    with watch.phase(f"loading {model.name}"):  # torch alone takes seconds to import, a download minutes
        from strop import model as models
        from strop.engine.native import NativeEngine

        policy = models.load(model, watch.say)
    ours = policy.chat(chat)
    check(ours, policy.num_places)
    native = NativeEngine(policy, ours, max_batch=engine.max_batch, int8=engine.int8, say=watch.say)
    return Held(policy=policy, chat=ours, engine=native, num_places=policy.num_places)


def _in_vllm(
    model: config.Model,
    chat: config.Chat,
    engine: config.Engine,
    max_tokens: int,
    watch: Watch,
    stack: ExitStack,
    check: Check,
) -> Held:
    """Prompts are made here."""
    from strop import fingerprint
    from strop import model as models
    from strop.engine import remote, vllm

    vllm.check()
    outline = models.outline(model, watch.say)
    ours = outline.chat(chat)
    check(ours, outline.num_places)
    served = fingerprint.served(model, outline, ours)  # before it starts: the folder may be written again meanwhile
    most = engine.max_prompt_tokens + max_tokens
    with watch.phase(f"starting vLLM with {model.name}"):
        server = vllm.serve(
            outline.source, ours, dtype=model.dtype, max_batch=engine.max_batch,
            max_tokens=min(most, outline.num_places or most), trust_remote_code=model.trust_remote_code,
        )  # fmt: skip
        ask = stack.enter_context(server)
    asked = remote.RemoteEngine(
        ask, about="vLLM", served=served, prefill=chat.prefill, concurrency=engine.max_batch
    )  # fmt: skip
    return Held(policy=None, chat=ours, engine=asked, num_places=outline.num_places)


def _at_url(model: config.Model, chat: config.Chat, engine: config.Engine, watch: Watch) -> Held:
    """A server that somebody else has started, with its own template."""
    from strop.engine import Served, remote

    endpoint = remote.connect(engine.server, model.name, os.environ.get("OPENAI_API_KEY"))
    about = f"{endpoint.model} at {endpoint.url}, in its own chat template"
    watch.say(f"answers come from {about}")
    asked = remote.RemoteEngine(
        remote.by_messages(endpoint, chat), about=about, served=Served(name=endpoint.model),
        concurrency=min(remote.CONCURRENCY, engine.max_batch),
    )  # fmt: skip
    return Held(policy=None, chat=None, engine=asked, num_places=None)
