"""An engine behind a URL: any server that speaks the OpenAI protocol, asked over HTTP.

Knows chat completions and completions of token ids, what is worth a second try, and which replies can be believed:
all that a server says is checked before it becomes a rollout, and what it does not say (token ids, log-probabilities)
stays unknown. Knows no model and no template: `vllm.py` starts a server that continues our own prompts, any other one
applies a template of its own. Nothing sampled here is trained on. Read by the pipeline, and by whoever needs a judge.
"""

from __future__ import annotations

import http.client
import io
import json
import socket
import time
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from strop import config
from strop.chat import Budget, Chat, messages
from strop.engine import Sampling, Served
from strop.engine.reply import Failure, Reply, read_chat, read_completion, read_models
from strop.record import Rollout, Stop, Task, UserError, replace, seed_of

__all__ = [
    "CONCURRENCY",
    "Ask",
    "Endpoint",
    "RemoteEngine",
    "Reply",
    "by_messages",
    "by_token_ids",
    "connect",
    "opener",
]

CONCURRENCY = 32  # requests under way at once at a server that others may use too
ATTEMPTS = 8  # of one request; the pauses between them add up to a minute
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # doubled after every failure; the longest also binds the server's own wish
PASSING = frozenset({408, 409, 425, 429})  # statuses that are worth another attempt, as every 5xx is
REPLY_BYTES, TOKEN_BYTES = 1 << 20, 1 << 10  # a reply has at most the first, and the second for every token asked for
UNKNOWN_ID = -1  # in a rollout: there was a token, and the server did not say which
T = TypeVar("T")


class Refusal(UserError):
    """The server holds the request itself for wrong."""


class Endpoint:
    """One model at one URL, which usually ends in /v1. Safe to use from several threads.

    Without `model` it is the only one that the server lists. Every call raises UserError where no server is, where it
    refuses, and where it fails or says nonsense again and again.
    """

    def __init__(self, url: str, model: str | None = None, key: str | None = None, timeout_s: float = 600) -> None:
        self.url, self.timeout_s, self._model = _checked_url(url), timeout_s, model
        self._opener = opener(self.url)
        if key and not (key.isascii() and key.isprintable()):
            raise UserError("the API key holds characters that no key has; set OPENAI_API_KEY again")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._answered = False
        self._takes_extras = True  # until it refuses what not every server knows

    @property
    def model(self) -> str:
        """The name that every request carries. Raises UserError where none was given and the server lists several."""
        if self._model is None:
            self._model = _choose(self.models(), None, self.url)
        return self._model

    def models(self) -> list[str]:
        """The names that the server lists. Asked once, so that a wrong URL is told at once."""
        return self._request("/models", None, read_models, REPLY_BYTES, attempts=1)

    def chat(
        self,
        messages: list[dict[str, str]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Reply:
        """The answer to these messages, through the server's own template."""
        body = {
            "messages": messages, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
        }  # fmt: skip
        return self._complete("/chat/completions", body, {"logprobs": True, "return_token_ids": True}, read_chat)

    def continue_ids(
        self,
        prompt_ids: list[int],
        *,
        max_tokens: int,
        stop_ids: list[int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Reply:
        """What follows these token ids until one of `stop_ids`. vLLM takes such prompts; few others do."""
        body = {
            "prompt": prompt_ids, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
            "stop_token_ids": stop_ids,
        }  # fmt: skip
        return self._complete("/completions", body, {"logprobs": 0, "return_token_ids": True}, read_completion)

    def _complete(
        self, path: str, body: dict[str, Any], extras: dict[str, Any], read: Callable[[bytes, int], Reply]
    ) -> Reply:
        """One reply, with what vLLM adds on request where the server has not refused to hear of it."""
        most = body["max_tokens"]
        body = {"model": self.model} | {key: value for key, value in body.items() if value is not None}

        def ask(body: dict[str, Any]) -> Reply:
            return self._request(path, body, lambda said: read(said, most), REPLY_BYTES + TOKEN_BYTES * most)

        if self._takes_extras:
            try:
                return ask(body | extras)
            except Refusal:
                reply = ask(body)  # a request that is wrong in itself is refused here too
                self._takes_extras = False
                return reply
        return ask(body)

    def _request(
        self,
        path: str,
        body: dict[str, Any] | None,
        read: Callable[[bytes], T],
        most_bytes: int,
        *,
        attempts: int = ATTEMPTS,
    ) -> T:
        """What `read` makes of the reply. It is asked again, after a pause, for what may pass; nonsense included."""
        for attempt in range(1, attempts + 1):
            try:
                return read(self._once(path, body, most_bytes))
            except Failure as failure:
                if attempt == attempts:
                    times = f" ({attempts} times in a row)" if attempts > 1 else ""
                    raise UserError(f"{self.url}{path} {failure}{times}") from None
                time.sleep(min(LONGEST_PAUSE_S, max(failure.pause_s, FIRST_PAUSE_S * 2 ** (attempt - 1))))
        raise AssertionError("there is at least one attempt")

    def _once(self, path: str, body: dict[str, Any] | None, most_bytes: int) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self._headers)
        try:
            with self._opener.open(request, timeout=self.timeout_s) as response:
                said = _read(response, most_bytes)
                status, pause = response.status, response.headers.get("Retry-After", "")
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)  # urllib wraps what happened
            if isinstance(reason, ConnectionRefusedError | socket.gaierror) and not self._answered:
                raise UserError(
                    f"no server answers at {self.url} ({reason}); start one there, or correct the URL"
                ) from None
            raise Failure(f"cannot be reached: {reason or type(reason).__name__}") from None
        self._answered = True
        if status == 200:
            return said
        text = f"answered with status {status}: {_one_line(said)}"
        if status in PASSING or status >= 500:
            raise Failure(text, float(pause) if pause.isascii() and pause.isdigit() else 0.0)
        raise (Refusal if status in (400, 422) else UserError)(f"{self.url}{path} {text}")


def connect(url: str, wanted: str, key: str | None = None) -> Endpoint:
    """The endpoint that a recipe names: its model if the server lists it, else the only one there is.

    Raises UserError with the names where the server lists several others.
    """
    return Endpoint(url, _choose(Endpoint(url, key=key).models(), wanted, url), key)


def _choose(names: Sequence[str], wanted: str | None, url: str) -> str:
    if wanted is not None and wanted in names:
        return wanted
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names[:20]) or "no model at all"
    raise UserError(f"{url} serves {listed}" + ("; choose one with model.name" if names else ""))


# --- rollouts ---------------------------------------------------------------------------------------------------------

Ask = Callable[[str, Budget | None, Sampling, int], Reply]  # problem, length asked for, sampling, seed


def by_messages(endpoint: Endpoint, settings: config.Chat) -> Ask:
    """Ask with the recipe's system prompt, in the server's own template."""

    def ask(problem: str, budget: Budget | None, sampling: Sampling, seed: int) -> Reply:
        said = messages(settings, problem, budget)
        return endpoint.chat(
            said, max_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p, seed=seed
        )

    return ask


def by_token_ids(endpoint: Endpoint, chat: Chat) -> Ask:
    """Ask with exactly the token ids that training and `native` use. The server must return those it chose."""

    def ask(problem: str, budget: Budget | None, sampling: Sampling, seed: int) -> Reply:
        ids = chat.encode_prompt(problem, budget).tolist()
        reply = endpoint.continue_ids(
            ids,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
            stop_ids=list(chat.stop_ids),
        )
        if reply.token_ids is None:
            raise UserError(f"{endpoint.url} returns no token ids; it has to be vLLM 0.11 or later")
        return replace(reply, text=chat.decode(reply.token_ids), prompt_ids=ids)

    return ask


class RemoteEngine:
    """See `strop.engine.Engine`. `ask` is called from `concurrency` threads at once."""

    def __init__(
        self, ask: Ask, *, about: str, served: Served | None = None, prefill: str = "", concurrency: int = CONCURRENCY
    ) -> None:
        self.ask, self.about, self.served = ask, about, served
        self.prefill, self.concurrency = prefill, concurrency

    def load(self, policy_step: int) -> None:
        raise UserError("a server keeps its own weights, so nothing can be trained through it; leave engine.server out")

    def generate(
        self,
        tasks: Sequence[Task],
        *,
        num_samples: int,
        sampling: Sampling,
        seed_path: tuple[int | str, ...],
        budgets: Sequence[Budget] | None = None,
        on_done: Callable[[Rollout], None] | None = None,
    ) -> list[Rollout]:
        wanted = [
            (group, task, budget, sample)
            for group, (task, budget) in enumerate(zip(tasks, budgets or [None] * len(tasks), strict=True))
            for sample in range(num_samples)
        ]

        def answer(one: tuple[int, Task, Budget | None, int]) -> Rollout:
            group, task, budget, sample = one
            started = time.perf_counter()
            # 31 bits: some servers take no longer seed.
            reply = self.ask(task.prompt, budget, sampling, seed_of(*seed_path, task.id, sample) & 0x7FFFFFFF)
            rollout = _rollout(task, reply, sampling.temperature, self.prefill)
            return replace(
                rollout, group=group, sample=sample, budget_tokens=None if budget is None else budget.tokens,
                seconds=time.perf_counter() - started,
            )  # fmt: skip

        done: dict[tuple[int, int], Rollout] = {}
        # Its threads are daemons: neither the first error nor Ctrl-C waits for replies that nobody will read.
        with ThreadPool(max(1, min(self.concurrency, len(wanted)))) as pool:
            for rollout in pool.imap_unordered(answer, wanted):
                done[rollout.group, rollout.sample] = rollout
                if on_done is not None:
                    on_done(rollout)
        return [done[group, sample] for group, _, _, sample in wanted]


def _rollout(task: Task, reply: Reply, temperature: float, prefill: str) -> Rollout:
    """Arrays of the right length; what the server did not say is UNKNOWN_ID, or no log-probabilities at all."""
    prompt = reply.prompt_ids or [UNKNOWN_ID] * reply.num_prompt_tokens
    ids = np.array(prompt + (reply.token_ids or [UNKNOWN_ID] * reply.num_tokens), dtype=np.int32)
    sampled = np.arange(len(ids)) >= len(prompt)
    logprobs = None
    if reply.logprobs is not None:
        logprobs = np.full(len(ids), np.nan, dtype=np.float32)
        logprobs[len(prompt) :] = reply.logprobs
    return Rollout(
        task=task, group=0, sample=0, prefill=prefill, token_ids=ids, sampled=sampled, trained=sampled.copy(),
        sampler_logprobs=logprobs, temperature=temperature, text=reply.text,
        stop=Stop.LENGTH if reply.finish == "length" else Stop.EOS,
    )  # fmt: skip


# --- bytes ------------------------------------------------------------------------------------------------------------


class _AsItCame(urllib.request.HTTPErrorProcessor):
    """Every status is a reply. A redirect is not followed: the key would go along."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


class _Until(io.RawIOBase):
    """The bytes of a reply, however they trickle in, until `ends` on the monotonic clock; TimeoutError from then on."""

    def __init__(self, connection: socket.socket, said: io.RawIOBase, ends: float) -> None:
        self._connection, self._said, self._ends = connection, said, ends

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if (left := self._ends - time.monotonic()) <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left)
        return self._said.readinto(buffer)

    def close(self) -> None:
        self._said.close()
        super().close()


class _TimedReply(http.client.HTTPResponse):
    """A reply that has to be here by `ends`, headers included: http.client alone waits anew for every piece."""

    def __init__(self, sock: socket.socket, *args: Any, ends: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Until(sock, self.fp.detach(), ends))


def _connection(
    kind: type[http.client.HTTPConnection], host: str, *, timeout: int | float
) -> http.client.HTTPConnection:
    """One for one request. Connecting and sending have `timeout` seconds each; the reply is here by then from now, or not."""
    made = kind(host, timeout=timeout)
    made.response_class = partial(_TimedReply, ends=time.monotonic() + timeout)  # pyright: ignore[reportAttributeAccessIssue]
    return made


class _InTime(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(_connection, http.client.HTTPConnection), req)  # pyright: ignore[reportArgumentType]

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(_connection, http.client.HTTPSConnection), req)  # pyright: ignore[reportArgumentType]


def opener(url: str) -> urllib.request.OpenerDirector:
    """What opens a URL: through the proxy of the environment, but never to this machine itself. A timeout is for the whole."""
    local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    return urllib.request.build_opener(_AsItCame, _InTime, *([urllib.request.ProxyHandler({})] if local else []))


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) and url.isascii()
    except ValueError:
        good = False
    if not good or any(c.isspace() for c in url):
        raise UserError(f"{url!r} is no URL of a server; write it like http://localhost:8000/v1")
    return url.rstrip("/")


def _read(response: http.client.HTTPResponse, most_bytes: int) -> bytes:
    """The whole body. Raises Failure for one that is too long."""
    pieces, size = [], 0
    while piece := response.read1(1 << 16):
        size += len(piece)
        if size > most_bytes:
            raise Failure(f"sent more than {most_bytes:,} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _one_line(said: bytes) -> str:
    """The beginning of an error page, or of its JSON, for a sentence."""
    return " ".join(said[:2000].decode(errors="replace").split())[:300] or "no text"
