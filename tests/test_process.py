"""Memory is kept and given back as asked; in processes of their own, because it is asked of the whole process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from strop import process

SCRIPT = """
import ctypes, sys
from strop.process import give_back_memory, keep_freed_memory

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before, size = resident_mb(), 20_000_000
blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size))) for _ in range(5)]
for block in blocks:
    ctypes.memset(block, 1, size)
for block in blocks:
    libc.free(block)
after = resident_mb()
give_back_memory()
print(after - before, resident_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    def grown(how: str) -> list[float]:
        out = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True).stdout
        return [float(mb) for mb in out.split()]

    usual, kept = grown("usual"), grown("keep")
    assert usual[0] < 20  # five blocks of 20 MB go at once ...
    assert kept[0] > 90  # ... or stay
    assert max(usual[1], kept[1]) < 20


def test_threads_spin_for_less_in_company(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in process.OUR_ENV:
        monkeypatch.delenv(key, raising=False)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        process.wait_at_barriers()
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert os.environ["GOMP_SPINCOUNT"] == process.SPINS["in company"]


def test_what_the_user_said_of_waiting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    process.wait_at_barriers()
    assert "GOMP_SPINCOUNT" not in os.environ
