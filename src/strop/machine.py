"""What this machine is: one flat dict for summary.json and `strop doctor`. Imports nothing of ours and no torch.

Counts what a process may use, not what the box has: cores and memory are cut by affinity and by control groups
(containers), which is where sizing by `os.cpu_count` goes wrong. Holds no host name and no path: it goes into reports.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import strop

__all__ = [
    "cache_dir", "cgroup_limits", "cgroup_room", "cpu_flags", "machine", "made_on", "now_and_then", "usable_cores", "usable_memory_gb",
]  # fmt: skip

# Instruction sets that decide how fast a model runs on a CPU, by the names the kernel gives them.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16")  # fmt: skip


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """CPU, cores, memory, instruction sets, GPUs and versions; None where a thing is not there. `root` is for tests."""
    return {
        "cpu": cpu_name(root),
        "cores": usable_cores(root),
        "memory_gb": round(usable_memory_gb(root), 1),
        "cpu_flags": cpu_flags(root),
        "gpu": gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy")},
        "strop": strop.__version__,
        "commit": commit(),
    }


def made_on(*, device: str, threads: int, kernels: str, root: Path = Path("/")) -> dict[str, Any]:
    """What decides the last bits of a sum beside the recipe: a run goes on bit for bit where all of this is the same.

    The caller knows torch: `device` is where the model lies, `threads` among how many a sum is cut, `kernels` the
    instruction set that torch has chosen its code for.
    """
    built = commit()
    return {
        "cpu": cpu_name(root),
        "cpu flags": " ".join(cpu_flags(root)),
        "kernels": kernels,
        "device": device,
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "numpy")},
        "strop": strop.__version__ + (f" at {built}" if built else ""),
    }


def now_and_then(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every fact that is another one now, in words.

    >>> now_and_then({"torch": "2.13.0", "threads": 2}, {"torch": "2.14.0", "threads": 2})
    ['torch 2.13.0 then, 2.14.0 now']
    """
    names = [*then, *(name for name in now if name not in then)]
    return [f"{n} {then.get(n)} then, {now.get(n)} now" for n in names if then.get(n) != now.get(n)]


def cache_dir() -> Path:
    """Where downloaded models are kept, and what was found out about this machine: $STROP_CACHE, else ~/.cache/strop."""
    return Path(os.environ.get("STROP_CACHE") or Path.home() / ".cache" / "strop")


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may keep busy: affinity, cut by the CPU quota of its control group. At least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _ = cgroup_limits(root)
    return max(1, math.ceil(min(allowed, quota)))


def usable_memory_gb(root: Path = Path("/")) -> float:
    """Memory this process may use in GB (1e9 bytes): what the machine has, cut by its control group."""
    return min(psutil.virtual_memory().total, cgroup_limits(root)[1]) / 1e9


def cgroup_limits(root: Path = Path("/")) -> tuple[float, float]:
    """(cores, bytes) that the control groups above this process allow; infinite where none limits. Versions 1 and 2."""
    folders = list(_groups(root))
    cores = min(map(_quota_cores, folders), default=math.inf)
    return cores, min(map(_limit_bytes, folders), default=math.inf)


def cgroup_room(root: Path = Path("/")) -> Callable[[], float]:
    """A function that says how many bytes the control groups above this process have left; infinite where none limits.

    Limits are read once, what is used at every call. Cached files that can be dropped count as free.
    """
    most = psutil.virtual_memory().total
    limits = {folder: limit for folder in _groups(root) if (limit := _limit_bytes(folder)) < most}
    return lambda: min((limit - _used_bytes(folder) for folder, limit in limits.items()), default=math.inf)


def _groups(root: Path) -> Iterator[Path]:
    table = root / "proc/self/cgroup"
    for line in table.read_text().splitlines() if table.is_file() else ():
        _, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        names = controllers.split(",")
        if "cpu" in names:  # version 1: a tree per controller, "cpu,cpuacct" linked as "cpu"
            base /= "cpu"
        elif "memory" in names:
            base /= "memory"
        elif controllers:
            continue
        here = base / path.lstrip("/")
        for folder in (here, *here.parents):  # a limit on a parent binds too; inside a container `path` may not exist
            yield folder
            if folder == base:
                break


def _limit_bytes(folder: Path) -> float:
    return min(_bytes(folder / "memory.max"), _bytes(folder / "memory.limit_in_bytes"))


def _used_bytes(folder: Path) -> float:
    used = min(_bytes(folder / "memory.current"), _bytes(folder / "memory.usage_in_bytes"))
    words = _words(folder / "memory.stat")
    stat = dict(zip(words[::2], words[1::2], strict=True))
    cached = (stat.get(f"total_{name}") or stat.get(name) or 0 for name in ("inactive_file", "active_file"))
    return used - sum(map(float, cached))


def _quota_cores(folder: Path) -> float:
    words = _words(folder / "cpu.max")
    if not words:
        words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    if len(words) != 2 or words[0] in ("max", "-1"):
        return math.inf
    return int(words[0]) / int(words[1])


def _bytes(path: Path) -> float:
    words = _words(path)
    return float(words[0]) if words and words[0].isdigit() else math.inf


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []


def cpu_name(root: Path = Path("/")) -> str:
    """The processor's own name for itself, or the architecture where it gives none."""
    return _cpuinfo(root, "model name") or platform.processor() or platform.machine()


def cpu_flags(root: Path = Path("/")) -> list[str]:
    """Those of `FLAGS` that this processor has; empty where the system does not say (macOS)."""
    have = set((_cpuinfo(root, "flags") or _cpuinfo(root, "Features")).split())
    return [flag for flag in FLAGS if flag in have]


def _cpuinfo(root: Path, key: str) -> str:
    path = root / "proc/cpuinfo"
    for line in path.read_text().splitlines() if path.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def gpus() -> list[str]:
    """Names and memory of NVIDIA GPUs as the driver tells them, whether or not torch can use them."""
    out = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return out.splitlines() if out else []


def version(name: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    found = next(iter(metadata.distributions(name=name)), None)
    return found.version if found else None


def commit() -> str | None:
    """The commit of the source tree this package runs from, None for an installed one.

    Ends in "-dirty" where the package or its dependencies are not those of the commit; a recipe of one's own beside
    them changes nothing.
    """
    package = Path(strop.__file__).resolve().parent
    return commit_of(package.parent.parent) if package.parent.name == "src" else None


def commit_of(root: Path) -> str | None:
    if not (root / ".git").exists():
        return None
    git = ("git", "-C", str(root))
    head = _output(*git, "rev-parse", "--short=12", "HEAD")
    changed = _output(*git, "status", "--porcelain", "--", "src", "pyproject.toml", "constraints.txt")
    return head and head + ("-dirty" if changed else "")


def _output(*command: str) -> str | None:
    """What a program printed; None where it is not installed, fails or hangs: facts about a machine stop no run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
