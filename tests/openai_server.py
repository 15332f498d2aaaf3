"""A small OpenAI-compatible server around a real engine, and one that answers whatever a test wants; over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from strop import config
from strop.engine import Sampling
from strop.engine.native import NativeEngine
from strop.model import Policy
from strop.record import Rollout, Task

Answer = tuple[int, bytes, dict[str, str]]  # status, body, headers
Respond = Callable[[str, dict[str, Any]], Answer]  # path, what was posted ({} for a GET)


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Whoever asked may be gone before the answer is."""


@contextmanager
def serving(respond: Respond) -> Iterator[str]:
    """The URL of a server that answers with `respond`, called from many threads."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, posted: dict[str, Any]) -> None:
            status, body, headers = respond(self.path, posted | {"_key": self.headers.get("Authorization")})
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(value: object, status: int = 200, **headers: str) -> Answer:
    return status, json.dumps(value).encode(), headers


class Tiny:
    """Answers with a policy's own weights: messages through the model's template, token ids as they are.

    It sees one request at a time. `plain` leaves out, and refuses to be asked for, what only vLLM has.
    """

    def __init__(self, policy: Policy, *, names: tuple[str, ...] = ("tiny",), plain: bool = False) -> None:
        self.policy, self.names, self.plain = policy, names, plain
        self.posted: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def __call__(self, path: str, posted: dict[str, Any]) -> Answer:
        if path == "/v1/models":
            return said({"object": "list", "data": [{"id": name, "object": "model"} for name in self.names]})
        if posted.get("model") not in self.names:
            return said({"error": {"message": f"no model {posted.get('model')}"}}, 404)
        if self.plain and ("return_token_ids" in posted or "logprobs" in posted):
            return said({"error": {"message": "Unrecognized request argument supplied: return_token_ids"}}, 400)
        with self._lock:
            self.posted.append(posted)
            if path == "/v1/chat/completions":
                return said(self._chat(posted))
            return said(self._completion(posted))

    def _answered(self, posted: dict[str, Any], problem: str, settings: config.Chat) -> Rollout:
        engine = NativeEngine(self.policy, self.policy.chat(settings), max_batch=1)
        sampling = Sampling(temperature=posted["temperature"], max_tokens=posted["max_tokens"])
        task = Task.make(source="server", prompt=problem, answer="", verifier="math")
        return engine.generate([task], num_samples=1, sampling=sampling, seed_path=(posted["seed"],))[0]

    def _chat(self, posted: dict[str, Any]) -> dict[str, Any]:
        *system, user = posted["messages"]
        settings = config.Chat(system=system[0]["content"] if system else "")
        rollout = self._answered(posted, user["content"], settings)
        choice = {"message": {"role": "assistant", "content": rollout.text}, "finish_reason": _finish(rollout)}
        usage = {"prompt_tokens": rollout.num_prompt_tokens, "completion_tokens": rollout.num_sampled}
        if self.plain:
            return {"choices": [choice], "usage": usage}
        choice |= {"logprobs": {"content": [{"token": "?", "logprob": p} for p in _logprobs(rollout)]}}
        choice |= {"token_ids": _ids(rollout)}
        prompt = rollout.token_ids[: rollout.num_prompt_tokens].tolist()
        return {"choices": [choice], "usage": usage, "prompt_token_ids": prompt}

    def _completion(self, posted: dict[str, Any]) -> dict[str, Any]:
        prompt = self.policy.tokenizer.decode(posted["prompt"])  # the byte tokenizer loses nothing
        rollout = self._answered(posted, prompt, config.Chat(template="{{ messages[0].content }}"))
        choice = {"text": "what the server makes of it", "finish_reason": _finish(rollout)}
        choice |= {"logprobs": {"token_logprobs": _logprobs(rollout)}, "token_ids": _ids(rollout)}
        assert rollout.token_ids[: rollout.num_prompt_tokens].tolist() == posted["prompt"]
        return {"choices": [choice]}


def _ids(rollout: Rollout) -> list[int]:
    return rollout.token_ids[rollout.num_prompt_tokens :].tolist()


def _logprobs(rollout: Rollout) -> list[float]:
    assert rollout.sampler_logprobs is not None
    return np.asarray(rollout.sampler_logprobs[rollout.num_prompt_tokens :], dtype=np.float64).tolist()


def _finish(rollout: Rollout) -> str:
    return "length" if rollout.truncated else "stop"
