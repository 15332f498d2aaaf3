"""A checkpoint write that is killed or fails at every call it makes: no half checkpoint is loaded, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from faults import told
from saving import Saving
from strop.config import Recipe
from strop.run import Run
from test_train import SMALL, Killed, killed_at, recipe, run


@pytest.fixture(scope="module")
def saving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saving]:
    folder = tmp_path_factory.mktemp("saving")
    whole = recipe(
        folder, tiny_model, steps=6, rl=SMALL | {"checkpoint_every": 1}, kl="loss", kl_coef=0.1, kl_reset_every=2
    )
    job = Recipe.model_validate(
        whole.model_dump(mode="json", by_alias=True)
        | {"stages": [whole.stages[2].model_dump(mode="json", by_alias=True)]}
    )
    with pytest.raises(Killed):
        run(job, folder / "run", stop_requested=killed_at(folder / "run", "train", 4))
    with ExitStack() as stack:
        yield Saving(job, folder / "run", stack)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fails_with(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


FAULTS = {
    "SIGKILL": (kill, {-signal.SIGKILL}),
    "ENOSPC": (fails_with(errno.ENOSPC), {0, 9}),
    "EIO": (fails_with(errno.EIO), {0, 9}),
}


@pytest.mark.parametrize(
    "name",
    ["SIGKILL", *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.faults]) for name in ("ENOSPC", "EIO"))],
)
def test_a_checkpoint_write_at_every_change_that_python_announces(saving, name):
    fault, ends = FAULTS[name]
    code, num = saving.by_hook(0, fault)
    assert code == 0
    assert saving.survived() is None
    assert num > 20
    bad = {}
    for number in range(1, num + 1):
        code, _ = saving.by_hook(number, fault)
        why = saving.survived() if code in ends else f"it ended with {code}"
        if why is not None:
            bad[number] = why
    told(f"{name} at a change that Python announces in a checkpoint write", injected=num, survived=num - len(bad))
    assert not bad


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace injects the faults")
@pytest.mark.parametrize("name", FAULTS)
def test_a_checkpoint_write_at_every_system_call(saving, name):
    """Killed right before each call, which is right after the one before it, and after the last; or each call fails."""
    calls, (_, ends) = saving.calls(), FAULTS[name]
    assert saving.calls() == calls
    assert {"write", "fsync", "rename", "mkdir", "openat"} <= {call for call, _ in calls}
    how = "signal=KILL" if name == "SIGKILL" else f"error={name}"
    bad, injected = {}, 0
    for call, which in calls:
        code, log = saving.by_strace(f"inject={call}:{how}:when={which}")
        injected += "(INJECTED)" in log or code == -signal.SIGKILL
        why = saving.survived() if code in ends else f"it ended with {code}: {log[-500:]}"
        if why is not None:
            bad[call, which] = why
    if name == "SIGKILL":  # after the last call
        saving.by_strace()
        injected, calls = injected + 1, [*calls, ("end", 1)]
        bad |= {} if (why := saving.survived()) is None else {"end": why}
    told(f"{name} at a system call of a checkpoint write", injected=injected, survived=injected - len(bad))
    assert not bad
    assert injected == len(calls)


@pytest.mark.parametrize("file", ["model.safetensors", "strop_state/adamw.safetensors", "manifest.json", "config.json"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_gives_the_same_weights(saving, file):
    out = saving.copy("struck")
    path = out / "checkpoints/rl/step_000003" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    said: list[str] = []
    with Run.open(out, saving.job, resume=True, say=said.append) as resumed:
        assert saving.resumes_as_expected(resumed)
    assert len(said) == 1
    assert "step_000003 is damaged" in said[0]
    assert file in said[0]
    assert "going back to the checkpoint before it" in said[0]
