"""Sampling through a server: equal to sampling here where the server has our weights, and safe where it says nonsense."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from openai_server import Answer, Tiny, said, serving
from strop import config, model
from strop.chat import Budget
from strop.engine import Engine, Sampling, remote
from strop.engine.native import NativeEngine
from strop.engine.remote import Endpoint, RemoteEngine, by_messages, by_token_ids
from strop.record import Rollout, Stop, Task, UserError, read_rollouts, write_rollouts

TASKS = [
    Task.make(source="test", prompt=text, answer="0", verifier="math")
    for text in ("Compute 1 + 1.", "What?", "A longer problem, with more words in it.", "x")
]
SETTINGS = config.Chat(system="Be brief.")


@pytest.fixture(scope="module")
def policy(tiny_model):
    return model.load(config.Model(name=str(tiny_model)))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 0.02)


def answers(engine: Engine, *, temperature: float = 0.0, num_samples: int = 1, budgets=None) -> list[Rollout]:
    sampling = Sampling(temperature=temperature, max_tokens=20)
    return engine.generate(
        TASKS, num_samples=num_samples, sampling=sampling, seed_path=("test", 0), budgets=budgets
    )  # fmt: skip


def native(policy, settings=SETTINGS) -> NativeEngine:
    return NativeEngine(policy, policy.chat(settings), max_batch=8)


def chatting(url: str, **options) -> RemoteEngine:
    return RemoteEngine(by_messages(Endpoint(url), SETTINGS), about="test", **options)


# --- the same weights behind a server -----------------------------------------------------------------------------------


def same(ours: Rollout, theirs: Rollout) -> None:
    assert (theirs.text, theirs.stop, theirs.group, theirs.sample) == (ours.text, ours.stop, ours.group, ours.sample)
    assert theirs.num_sampled == ours.num_sampled
    assert theirs.budget_tokens == ours.budget_tokens


def test_greedy_answers_through_messages_are_the_engines_own(policy):
    with serving(Tiny(policy)) as url:
        found = answers(chatting(url))
    for ours, theirs in zip(answers(native(policy)), found, strict=True):
        same(ours, theirs)
        assert theirs.token_ids.tolist() == ours.token_ids.tolist()
        assert theirs.sampled.tolist() == theirs.trained.tolist() == ours.sampled.tolist()
        np.testing.assert_allclose(theirs.sampler_logprobs, ours.sampler_logprobs, atol=1e-5)
    assert {r.stop for r in found} <= {Stop.EOS, Stop.LENGTH}


def test_token_ids_carry_a_template_and_a_prefill_of_ours(policy):
    settings = config.Chat(template="Q: {{ messages[0].content }}\nA:", prefill=" So")
    budgets = [Budget(tokens=n) for n in (5, 6, 7, 8)]
    server = Tiny(policy)
    with serving(server) as url:
        ask = by_token_ids(Endpoint(url), policy.chat(settings))
        found = answers(RemoteEngine(ask, about="test", prefill=settings.prefill), budgets=budgets)
    for ours, theirs in zip(answers(native(policy, settings), budgets=budgets), found, strict=True):
        same(ours, theirs)
        assert theirs.token_ids.tolist() == ours.token_ids.tolist()
        assert theirs.prefill == " So"
    assert server.posted[0]["stop_token_ids"] == list(policy.chat(settings).stop_ids)


def test_a_server_that_says_less_leaves_ids_unknown(policy, tmp_path):
    server = Tiny(policy, plain=True)
    with serving(server) as url:
        found = answers(chatting(url))
    for ours, theirs in zip(answers(native(policy)), found, strict=True):
        same(ours, theirs)
        assert set(theirs.token_ids.tolist()) == {remote.UNKNOWN_ID}
        assert theirs.num_prompt_tokens == ours.num_prompt_tokens
        assert theirs.sampler_logprobs is None
    assert "logprobs" not in server.posted[-1]
    write_rollouts(tmp_path / "greedy.parquet", found)
    assert [r.num_sampled for r in read_rollouts(tmp_path / "greedy.parquet")] == [r.num_sampled for r in found]


def test_each_rollout_has_a_seed_of_its_own_and_keeps_it(policy):
    server = Tiny(policy)
    with serving(server) as url:
        wide = answers(chatting(url), temperature=1.0, num_samples=3)
        narrow = answers(chatting(url, concurrency=1), temperature=1.0, num_samples=3)
    assert [r.text for r in wide] == [r.text for r in narrow]
    assert [(r.group, r.sample) for r in wide] == [(g, s) for g in range(len(TASKS)) for s in range(3)]
    assert len({r.text for r in wide}) > 8
    seeds = [p["seed"] for p in server.posted]
    assert len(set(seeds)) == 12
    assert len(seeds) == 24
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_length_asked_for_and_the_system_prompt_are_in_the_messages(policy):
    server = Tiny(policy)
    with serving(server) as url:
        answers(chatting(url), budgets=[Budget(tokens=9, mode="max")] * 4)
    for posted in server.posted:
        assert posted["messages"][0] == {"role": "system", "content": "Be brief."}
        assert posted["messages"][1]["content"].endswith(" Think for maximum 9 tokens.")
        assert (posted["temperature"], posted["top_p"], posted["max_tokens"]) == (0.0, 1.0, 20)


def test_many_requests_are_under_way_at_once_and_each_is_told_when_it_is_done():
    under_way, most, lock = 0, 0, threading.Lock()

    def slow(path: str, posted: dict) -> Answer:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return said(GOOD)

    done: list[Rollout] = []
    with serving(slow) as url:
        engine = RemoteEngine(by_messages(Endpoint(url, "m"), SETTINGS), about="test", concurrency=4)
        sampling = Sampling(temperature=1.0, max_tokens=5)
        found = engine.generate(TASKS, num_samples=8, sampling=sampling, seed_path=(0,), on_done=done.append)
    assert most == 4
    assert len(done) == len(found) == 32
    assert set(map(id, done)) == set(map(id, found))


def test_nothing_is_asked_for_nothing():
    engine = RemoteEngine(by_messages(Endpoint("http://127.0.0.1:9/v1", "m"), SETTINGS), about="test")
    assert engine.generate([], num_samples=4, sampling=Sampling(), seed_path=(0,)) == []


def test_a_server_cannot_be_trained():
    engine = RemoteEngine(by_messages(Endpoint("http://127.0.0.1:9/v1", "m"), SETTINGS), about="test")
    with pytest.raises(UserError, match=r"nothing can be trained.*engine\.server"):
        engine.load(policy_step=1)


# --- which model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "wanted", "found"), [(("a", "b"), "b", "b"), (("only",), "smollm2-135m", "only"), (("a", "b"), "c", None)]
)
def test_the_model_of_a_recipe(policy, names, wanted, found):
    with serving(Tiny(policy, names=names)) as url:
        if found is None:
            with pytest.raises(UserError, match=r"serves a, b; choose one with model\.name"):
                remote.connect(url, wanted)
        else:
            assert remote.connect(url, wanted).model == found


def test_the_key_goes_along_and_nowhere_else(policy):
    server = Tiny(policy)
    with serving(server) as url, serving(lambda path, _: (307, b"", {"Location": url + "/chat/completions"})) as other:
        Endpoint(url, "tiny", "secret").chat([{"role": "user", "content": "x"}], max_tokens=2, seed=0)
        Endpoint(url, "tiny").chat([{"role": "user", "content": "x"}], max_tokens=2, seed=0)
        with pytest.raises(UserError, match="status 307"):
            Endpoint(other, "tiny", "secret").chat([{"role": "user", "content": "x"}], max_tokens=2, seed=0)
    assert [p["_key"] for p in server.posted] == ["Bearer secret", None]


# --- what servers say ---------------------------------------------------------------------------------------------------

GOOD = {"choices": [{"message": {"content": "5"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}


def good(**changes) -> dict:
    return {"choices": [GOOD["choices"][0] | changes], "usage": GOOD["usage"]}


def ask(url: str, **options) -> remote.Reply:
    return Endpoint(url, "m", **options).chat([{"role": "user", "content": "2 + 3?"}], max_tokens=20)


HOSTILE = {
    "no JSON": (b"{", "JSON"),
    "nothing": (b"", "JSON"),
    "an error page": (b"<!doctype html><html>Bad gateway</html>", "JSON"),
    "a list": (b"[]", "no answer"),
    "no choices": (b"{}", "choices"),
    "empty choices": ({"choices": []}, "choices"),
    "choices of another type": ({"choices": "5"}, "choices"),
    "text null": (good(message={"content": None}), "without text"),
    "text a number": (good(message={"content": 5}), "content"),
    "no message": ({"choices": [{"finish_reason": "stop"}]}, "message"),
    "no reason to end": ({"choices": [{"message": {"content": "5"}}]}, "finish_reason"),
    "a given up answer": (good(finish_reason="abort"), "gave up"),
    "usage missing": ({"choices": GOOD["choices"]}, "how many tokens"),
    "usage a text": (GOOD | {"usage": {"completion_tokens": "2"}}, "completion_tokens"),
    "usage negative": (GOOD | {"usage": {"completion_tokens": -2}}, "completion_tokens"),
    "more tokens than asked for": (GOOD | {"usage": {"completion_tokens": 10**12}}, "at most 20"),
    "an endless prompt": (GOOD | {"usage": {"completion_tokens": 2, "prompt_tokens": 10**12}}, "prompt_tokens"),
    "ids that are none": (good(token_ids=[1, -5]), "token_ids"),
    "ids that are booleans": (good(token_ids=[True]), "token_ids"),
    "logprobs not finite": (json.dumps(good(logprobs={"content": [{"logprob": float("nan")}]})).encode(), "logprob"),
    "logprobs of another type": (good(logprobs=[0.5]), "logprobs"),
    "ten megabytes": (good(message={"content": "5" * 10_000_000}), "sent more than"),
    "deep nesting": (b"[" * 100_000, "no answer"),
    "not UTF-8": (b'{"choices": "\xff"}', "no answer"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nonsense_is_one_sentence(case):
    body, words = HOSTILE[case]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    calls = []
    with serving(lambda *asked: (calls.append(asked), (200, raw, {}))[1]) as url, pytest.raises(UserError) as caught:
        ask(url)
    assert len(calls) == remote.ATTEMPTS
    assert words in str(caught.value)
    assert url in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_model_that_was_cut_while_it_thought_has_said_nothing():
    thinking = good(message={"content": None, "reasoning_content": "Let me see"}, finish_reason="length")
    with serving(lambda *_: said(thinking)) as url:
        assert (ask(url).text, ask(url).finish) == ("", "length")


def test_logprobs_that_do_not_fit_the_ids_are_left_out():
    odd = good(token_ids=[7, 8, 9], logprobs={"content": [{"logprob": -0.5}]})
    with serving(lambda *_: said(odd)) as url:
        reply = ask(url)
    assert (reply.num_tokens, reply.token_ids, reply.logprobs) == (3, [7, 8, 9], None)


def test_the_number_of_tokens_is_that_of_the_logprobs_where_there_are_no_ids():
    with serving(
        lambda *_: said(good(logprobs={"content": [{"logprob": -0.5}, {"logprob": -1}, {"logprob": 0}]}))
    ) as url:
        reply = ask(url)
    assert (reply.num_tokens, reply.token_ids, reply.logprobs) == (3, None, [-0.5, -1.0, 0.0])


@pytest.mark.parametrize("unsaid", [[-0.5, None], [None, None]])
def test_a_null_among_the_logprobs_means_that_there_are_none(unsaid):
    calls = []
    with serving(
        lambda *asked: (calls.append(asked), said(good(logprobs={"content": [{"logprob": p} for p in unsaid]})))[1]
    ) as url:
        reply = ask(url)
    assert (reply.text, reply.num_tokens, reply.logprobs, len(calls)) == ("5", 2, None, 1)


@pytest.mark.parametrize("unsaid", [[None, -0.5], None])
def test_so_it_is_in_a_completion(unsaid):
    choice = {"text": "5", "finish_reason": "stop", "token_ids": [1, 2], "logprobs": {"token_logprobs": unsaid}}
    with serving(lambda *_: said({"choices": [choice]})) as url:
        reply = Endpoint(url, "m").continue_ids([1], max_tokens=5, stop_ids=[0])
    assert (reply.token_ids, reply.logprobs) == ([1, 2], None)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (r"a\ud83d", "a\ufffd"),
        (r"\uDE00 b", "\ufffd b"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\ud83dx\ude00", "\ufffdx\ufffd"),
        (r"\\ud83d \\\ud83d \n", "\\ud83d \\\ufffd \n"),  # an escaped backslash before letters is none of it
    ],
)
def test_half_a_character_is_replaced_and_a_whole_one_is_not(sent, text):
    body = json.dumps(good(message={"content": "HERE"})).replace("HERE", sent).encode()
    with serving(lambda *_: (200, body, {})) as url:
        assert ask(url).text == text


# --- what passes, and what does not -------------------------------------------------------------------------------------


def failing(times: int, answer: Answer):
    """A server that answers so at first, then well."""
    calls: list[float] = []

    def respond(path: str, posted: dict) -> Answer:
        calls.append(time.monotonic())
        return answer if len(calls) <= times else said(GOOD)

    return respond, calls


@pytest.mark.parametrize("status", [429, 500, 502, 503, 408])
def test_what_may_pass_is_asked_again(status):
    respond, calls = failing(3, said({"error": "busy"}, status))
    with serving(respond) as url:
        assert ask(url).text == "5"
    assert len(calls) == 4


def test_nonsense_in_between_is_asked_again():
    respond, calls = failing(2, (200, b"<html>", {}))
    with serving(respond) as url:
        assert ask(url).text == "5"
    assert len(calls) == 3


def test_it_gives_up_in_the_end():
    respond, calls = failing(99, (503, b"loading\nthe model", {}))
    with serving(respond) as url, pytest.raises(UserError, match=r"status 503: loading the model \(8 times in a row\)"):
        ask(url)
    assert len(calls) == remote.ATTEMPTS == 8


def test_it_waits_as_long_as_it_is_asked_to_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 0.3)
    respond, calls = failing(1, (429, b"", {"Retry-After": "9999"}))
    with serving(respond) as url:
        ask(url)
    assert 0.3 <= calls[1] - calls[0] < 2
    for odd in ("soon", "-1", "²", "1e9"):  # no number of seconds
        respond, calls = failing(1, (429, b"", {"Retry-After": odd.encode().decode("latin-1")}))
        with serving(respond) as url:
            ask(url)
        assert calls[1] - calls[0] < 0.3


@pytest.mark.parametrize(("status", "num_calls"), [(401, 1), (404, 1), (400, 2), (422, 2)])
def test_a_refusal_is_final(status, num_calls):
    """A request that is held for wrong is sent once more without what only vLLM knows."""
    respond, calls = failing(99, said({"error": {"message": "not you"}}, status))
    with serving(respond) as url, pytest.raises(UserError, match=f"status {status}: .*not you"):
        ask(url)
    assert len(calls) == num_calls


def test_a_server_that_never_answers_in_time():
    def hang(path: str, posted: dict) -> Answer:
        time.sleep(0.3)
        return said(GOOD)

    with serving(hang) as url, pytest.raises(UserError, match=r"cannot be reached: timed out \(8 times"):
        ask(url, timeout_s=0.02)


@contextmanager
def speaking(first: bytes, again: bytes) -> Iterator[str]:
    """The URL of a server that sends `first` to whoever connects, then `again` every few milliseconds for ten seconds."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            ends = time.monotonic() + 10
            with suppress(OSError):
                self.request.sendall(first)
                while time.monotonic() < ends:
                    self.request.sendall(again)
                    time.sleep(0.005)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
    ],
    ids=["continue", "headers", "body"],
)
def test_a_reply_that_trickles_in_ends_at_the_deadline(first, again):
    with speaking(first, again) as url:
        started = time.monotonic()
        with pytest.raises(UserError, match="timed out"):
            Endpoint(url, timeout_s=0.2).models()
        assert 0.15 < time.monotonic() - started < 2


def test_a_connection_that_closes_early():
    respond, calls = failing(2, (200, b"{", {"Content-Length": "1000"}))
    with serving(respond) as url:
        assert ask(url, timeout_s=0.05).text == "5"
    assert len(calls) == 3


def test_a_server_that_is_not_there_is_told_at_once():
    with serving(lambda *_: said(GOOD)) as url:
        pass
    started = time.monotonic()
    with pytest.raises(UserError, match="no server answers at"):
        ask(url)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://x:99999/v1", "http://[x/v1", "http://a b/v1"]
)
def test_what_is_no_url(url):
    with pytest.raises(UserError, match="no URL of a server"):
        Endpoint(url)


def test_no_proxy_stands_between_us_and_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(lambda *_: said(GOOD)) as url:
        assert ask(url).text == "5"


def test_a_key_that_is_none():
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        Endpoint("http://x/v1", key="abc\r\nHost: y")


def test_the_first_error_ends_it_all():
    """One bad request of many: the others are not waited for."""

    def respond(path: str, posted: dict) -> Answer:
        if posted["messages"][-1]["content"] == "What?":
            return said({"error": "no"}, 401)
        time.sleep(5)
        return said(GOOD)

    with serving(respond) as url:
        engine = RemoteEngine(by_messages(Endpoint(url, "m"), SETTINGS), about="test")
        started = time.monotonic()
        with pytest.raises(UserError, match="status 401"):
            answers(engine)
        assert time.monotonic() - started < 3
