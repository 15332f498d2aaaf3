"""vLLM's process: started, asked, ended with its children whatever happens. A stand-in takes its place; the last test has it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from strop import config, model
from strop.engine import Sampling, vllm
from strop.engine.native import NativeEngine
from strop.engine.remote import RemoteEngine
from strop.record import Task, UserError

# What `python -m vllm.entrypoints.openai.api_server` runs here: a server with a child of its own, as vLLM has.
STAND_IN = """
import json, os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

settings = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:] if "=" in a)
folder = Path(os.environ["STAND_IN"])
(folder / "settings.json").write_text(json.dumps({"settings": settings, "env": dict(os.environ)}))
print("loading the weights", flush=True)
if (folder / "broken").exists():
    sys.exit("RuntimeError: not enough memory for the cache")
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
(folder / "pids").write_text(f"{os.getpid()} {child.pid}")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self):
        posted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if (folder / "dies").exists():
            print("EngineDeadError: out of memory", flush=True)
            os._exit(1)
        choice = {"text": "", "finish_reason": "stop", "token_ids": posted["prompt"][:2] + posted["stop_token_ids"]}
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

ThreadingHTTPServer((settings["host"], int(settings["port"])), Handler).serve_forever()
"""
TASK = Task.make(source="test", prompt="What?", answer="0", verifier="math")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch) -> Path:
    """A folder with an interpreter that has our `vllm`, and what it leaves behind."""
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(STAND_IN)
    interpreter = tmp_path / "bin" / "python"
    interpreter.parent.mkdir()
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setenv("STROP_VLLM_PYTHON", str(interpreter))
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def chat(tiny_model):
    return model.outline(config.Model(name=str(tiny_model))).chat(config.Chat())


def serve(chat, **options):
    return vllm.serve("the/model", chat, dtype="float32", max_batch=7, max_tokens=99, **options)


def alive(folder: Path) -> list[int]:
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def gone(folder: Path, within_s: float = 20.0) -> bool:
    ends = time.monotonic() + within_s
    while alive(folder) and time.monotonic() < ends:
        time.sleep(0.05)
    return not alive(folder)


def answered(ask) -> list:
    engine = RemoteEngine(ask, about="test")
    return engine.generate([TASK], num_samples=2, sampling=Sampling(max_tokens=9), seed_path=(0,))


def test_it_is_started_asked_and_ended_with_its_children(stand_in, chat):
    with serve(chat) as ask:
        assert len(alive(stand_in)) == 2
        prompt = chat.encode_prompt("What?").tolist()
        for rollout in answered(ask):
            assert rollout.token_ids.tolist() == [*prompt, *prompt[:2], *chat.stop_ids]
            assert rollout.text == chat.decode(prompt[:2])
    assert gone(stand_in, 0)
    assert list(stand_in.glob("strop-vllm-*")) == []  # the log
    told = json.loads((stand_in / "settings.json").read_text())
    assert told["settings"]["model"] == "the/model"
    assert (told["settings"]["dtype"], told["settings"]["max-num-seqs"]) == ("float32", "7")
    assert told["settings"]["generation-config"] == "vllm"  # no top-p of the model's own
    assert "GOMP_SPINCOUNT" not in told["env"]
    assert "VLLM_CPU_OMP_THREADS_BIND" in told["env"]


def test_an_error_inside_ends_it_too(stand_in, chat):
    with pytest.raises(KeyboardInterrupt), serve(chat):
        raise KeyboardInterrupt
    assert gone(stand_in, 0)


def test_it_goes_when_its_owner_is_killed(stand_in, tiny_model):
    code = (
        "import time\nfrom strop import config, model\nfrom strop.engine import vllm\n"
        f"chat = model.outline(config.Model(name={str(tiny_model)!r})).chat(config.Chat())\n"
        "with vllm.serve('the/model', chat, dtype='float32', max_batch=7, max_tokens=99):\n"
        "    print('ready', flush=True)\n    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    assert len(alive(stand_in)) == 2
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert gone(stand_in)


def test_one_that_does_not_start_says_why(stand_in, chat):
    (stand_in / "broken").touch()
    with (
        pytest.raises(UserError, match=r"did not start: .*RuntimeError: not enough memory .* has it all"),
        serve(chat),
    ):
        raise AssertionError


def test_one_that_dies_while_it_is_asked_says_why(stand_in, chat, monkeypatch):
    monkeypatch.setattr("strop.engine.remote.FIRST_PAUSE_S", 0.001)
    (stand_in / "dies").touch()
    with (
        pytest.raises(UserError, match=r"ended while it was asked: EngineDeadError: out of memory"),
        serve(chat) as ask,
    ):
        answered(ask)
    assert gone(stand_in, 0)


def test_no_environment_is_told_with_what_makes_one(monkeypatch, chat):
    monkeypatch.setenv("STROP_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(UserError, match=r"make bench-vllm.*STROP_VLLM_PYTHON"), serve(chat):
        raise AssertionError


@pytest.mark.parametrize("kind", ["a folder", "no program"])
def test_an_interpreter_is_a_file_that_may_be_run(monkeypatch, tmp_path, chat, kind):
    path = tmp_path if kind == "a folder" else tmp_path / "python"
    if path is not tmp_path:
        path.touch(mode=0o600)
    monkeypatch.setenv("STROP_VLLM_PYTHON", str(path))
    with pytest.raises(UserError, match=r"is no program that you may run.*STROP_VLLM_PYTHON"), serve(chat):
        raise AssertionError


def test_a_port_where_something_else_speaks_is_not_ready():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def speak() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"220 mail.example\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        assert not vllm._answers(f"http://127.0.0.1:{other.getsockname()[1]}/health")
        thread.join()


def test_an_outline_is_the_model_without_its_weights(tiny_model):
    outline, policy = (f(config.Model(name=str(tiny_model))) for f in (model.outline, model.load))
    settings = config.Chat(system="Be brief.", prefill="<think>")
    ours, theirs = outline.chat(settings), policy.chat(settings)
    assert ours.stop_ids == theirs.stop_ids
    assert ours.encode_prompt("What?").tolist() == theirs.encode_prompt("What?").tolist()
    assert outline.num_places == policy.num_places == 1024


@pytest.mark.slow
def test_vllm_answers_as_the_native_engine_does(demo_model):
    """In float32 both are the same function, up to the order of sums; greedy answers may part where two words are equal."""
    if not vllm.python().exists():
        pytest.skip(f"no environment with vLLM at {vllm.python()}; `make bench-vllm` makes it")
    settings = config.Model(name=str(demo_model))
    policy = model.load(settings)
    chat = policy.chat(config.Chat())
    tasks = [Task.make(source="t", prompt=f"Compute {n} + {3 * n}.", answer="0", verifier="math") for n in range(8)]
    sampling = Sampling(temperature=0.0, max_tokens=64)
    with vllm.serve(str(demo_model), chat, dtype="float32", max_batch=8, max_tokens=512) as ask:
        theirs = RemoteEngine(ask, about="vLLM").generate(tasks, num_samples=1, sampling=sampling, seed_path=(0,))
    ours = NativeEngine(policy, chat, max_batch=8).generate(tasks, num_samples=1, sampling=sampling, seed_path=(0,))
    same = [a.token_ids.tolist() == b.token_ids.tolist() for a, b in zip(ours, theirs, strict=True)]
    assert sum(same) >= 7
    for a, b in zip(ours, theirs, strict=True):
        if a.token_ids.tolist() == b.token_ids.tolist():
            np.testing.assert_allclose(a.sampler_logprobs, b.sampler_logprobs, atol=2e-3)
