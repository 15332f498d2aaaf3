"""What this machine draws, by source: counters where they can be read, else what CodeCarbon models; and busy seconds.

Every source says what kind of figure it gives, and of what:

    counter     the hardware counted joules (RAPL of the processor's packages, NVML of a GPU)
    integrated  power was measured from time to time and taken to last (GPUs without such a counter)
    modelled    worked out from the load: nothing was measured
    constant    the same number of watts at all times, whatever is done

Figures of unlike kinds are never added here. Nothing is subtracted for what the machine would have drawn idle, and what
other programs draw is in it too. Knows nothing of phases: the ledger reads a `Meter` whenever the phase changes. A source
that fails stops no run: it is said once, and what it would have counted is missing. Imports no torch; CodeCarbon, which
is slow, only where nothing can be counted.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import psutil

from strop.machine import cache_dir, cpu_name, usable_cores, version

__all__ = [
    "KINDS",
    "POWERCAP",
    "About",
    "Kind",
    "Meter",
    "Metered",
    "Reading",
    "Source",
    "busy_cpu_s",
    "full_load_watts",
    "open_meter",
]

Kind = Literal["counter", "integrated", "modelled", "constant"]
KINDS: tuple[Kind, ...] = ("counter", "integrated", "modelled", "constant")  # the firmest first
POWERCAP = Path("/sys/class/powercap")
PERIOD_S = 1.0  # a RAPL counter turns over after minutes, and power that is not looked at is not known
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a figure is."""

    kind: Kind
    scope: str  # of what: "CPU package 0", "GPU 0, the whole device"
    method: str  # how it came about, in words
    period_s: float = PERIOD_S  # it is read at least this often, and whenever the phase changes
    idle_subtracted: bool = False


@runtime_checkable  # beartype asks under pytest
class Source(Protocol):
    """Something that draws."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> About: ...

    def joules(self) -> float:
        """Joules since the last call, or since the source was opened."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was spent since the last reading."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0
    joules: dict[str, float] = field(default_factory=dict)  # by source


@runtime_checkable
class Metered(Protocol):
    """What the ledger reads."""

    def read(self) -> Reading: ...

    def about(self) -> dict[str, dict[str, Any]]:
        """By source, `About` as a dict."""
        ...


class Meter:
    """Sources, read together. Use as a context manager: a thread then reads them every second, which power needs.

    `cpu_s` and `gpu_s` give busy seconds up to now.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        cpu_s: Callable[[], float] = lambda: 0.0,
        gpu_s: Callable[[], float] = lambda: 0.0,
        say: Say = lambda _: None,
    ) -> None:
        self._sources = list(sources)
        self._began, self._drawn = time.perf_counter(), dict.fromkeys((s.name for s in sources), 0.0)
        self._clocks = {"cpu_s": cpu_s, "gpu_s": gpu_s}
        self._last = {name: clock() for name, clock in self._clocks.items()}
        self._say = say
        self._joules = {source.name: 0.0 for source in sources}
        self._gone: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def about(self) -> dict[str, dict[str, Any]]:
        return self._gone | {source.name: asdict(source.about) for source in self._sources}

    def read(self) -> Reading:
        """What was spent since the last `read`. Never less than nothing."""
        with self._lock:
            self._sample()
            joules, self._joules = self._joules, dict.fromkeys(self._joules, 0.0)
            now = {name: max(self._last[name], clock()) for name, clock in self._clocks.items()}
            spent = {name: now[name] - self._last[name] for name in now}
            self._last = now
        return Reading(joules=joules, **spent)

    def _sample(self) -> None:
        for place, source in enumerate(self._sources):
            try:
                joules = max(0.0, source.joules())
            except Exception as error:  # noqa: BLE001 (drivers fail in ways of their own, and no run ends for that)
                watts = self._drawn[source.name] / max(1e-9, time.perf_counter() - self._began)
                self._sources[place] = instead = Instead(source, watts)
                self._joules[instead.name] = self._drawn[instead.name] = 0.0
                self._gone[source.name] = asdict(source.about)
                self._say(
                    f"{source.name} cannot be read any more ({error}); from here on its mean until now, {watts:.3g} W, is booked, as modelled"
                )
                continue
            self._joules[source.name] += joules
            self._drawn[source.name] += joules

    def __enter__(self) -> Meter:
        threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _tick(self) -> None:
        while not self._ended.wait(PERIOD_S):
            with self._lock:
                self._sample()
                self._clocks["gpu_s"]()


class Instead:
    """In place of a source that failed: what it drew on average before, so that a budget in energy still ends a run."""

    def __init__(self, gone: Source, watts: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._watts, self._clock, self._last = watts, clock, clock()
        self.name = f"{gone.name}, mean"
        self.about = About(kind="modelled", scope=gone.about.scope, method=f"{watts:.3g} W, the mean of {gone.name} until it failed")  # fmt: skip

    def joules(self) -> float:
        now, last = self._clock(), self._last
        self._last = now
        return self._watts * (now - last)


@contextmanager
def open_meter(say: Say, *, with_gpus: bool = True, powercap: Path = POWERCAP) -> Iterator[Meter]:
    """Every source that this machine has; what it has not is said, once."""
    cpus, why_not = rapl(powercap)
    gpus, gpu_s = nvidia(say=say) if with_gpus else ([], lambda: 0.0)
    if why_not:
        say(f"energy: {why_not}; the CPU's joules are modelled (CodeCarbon), not measured")
    with Meter([*(cpus or [Modelled()]), *gpus, Memory()], cpu_s=busy_cpu_s, gpu_s=gpu_s, say=say) as meter:
        yield meter


def busy_cpu_s() -> float:
    """CPU seconds of this process and of all its living children (the verifiers), those they have buried included."""
    this = psutil.Process()
    total = sum(this.cpu_times()[:4])  # user, system, and of dead children
    for child in this.children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.Error:  # it has just ended; whoever waits for it has its seconds then
            continue
    return total


# --- processor: RAPL --------------------------------------------------------------------------------------------------


class Rapl:
    """The counter of one package of the processor, in a folder of /sys/class/powercap. It turns over at `_range`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._counter = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = self._now()
        self.name = f"rapl {name}"
        self.about = About(kind="counter", scope=f"CPU {name}, all cores, all programs", method="RAPL, energy_uj")

    def joules(self) -> float:
        now, last = self._now(), self._last
        self._last = now
        return (now - last) % self._range / 1e6

    def _now(self) -> int:
        return int(self._counter.read_text())


def rapl(powercap: Path = POWERCAP) -> tuple[list[Source], str]:
    """The counters of the packages, and why there is none. Sub-domains (cores, memory) are parts of them and left out."""
    folders = [f for f in sorted(powercap.glob("intel-rapl:*")) if f.name.count(":") == 1]
    packages = [(f, name) for f in folders if (name := _text(f / "name")).startswith("package")]
    if not packages:
        return [], "no readable energy counter (no RAPL)"
    try:
        return [Rapl(folder, name) for folder, name in packages], ""
    except (OSError, ValueError) as error:
        reason = "only root may read it" if isinstance(error, PermissionError) else str(error)
        return [], f"no readable energy counter (RAPL is there, but {reason})"


def _text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


# --- GPU: NVML --------------------------------------------------------------------------------------------------------


class NvidiaCounter:
    """Joules of one GPU since its driver was loaded (Volta and later)."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        self._last = self._now()
        self.name = f"nvml gpu {index}"
        self.about = About(kind="counter", scope=f"GPU {index}, the whole device, all programs", method="NVML, total energy")  # fmt: skip

    def joules(self) -> float:
        now, last = self._now(), self._last
        self._last = now
        return (now - last) / 1e3

    def _now(self) -> int:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)  # millijoules


class NvidiaPower:
    """The power of one GPU, looked at every period and taken to last since the last look."""

    def __init__(self, nvml: Any, index: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._nvml, self._handle, self._clock = nvml, nvml.nvmlDeviceGetHandleByIndex(index), clock
        self._watts()  # fails here where it cannot be read
        self._last = clock()
        self.name = f"nvml gpu {index}, power"
        self.about = About(kind="integrated", scope=f"GPU {index}, the whole device, all programs", method="NVML, power x time")  # fmt: skip

    def joules(self) -> float:
        now, last = self._clock(), self._last
        self._last = now
        return self._watts() * (now - last)

    def _watts(self) -> float:
        return self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3  # milliwatts


class NvidiaBusy:
    """Seconds in which GPUs had a kernel running, up to now: what NVML says of the last moment, taken to last since the last look."""

    def __init__(self, nvml: Any, indices: Sequence[int], clock: Callable[[], float] = time.perf_counter) -> None:
        self._nvml, self._clock, self._total, self._last = nvml, clock, 0.0, clock()
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in indices]

    def __call__(self) -> float:
        now, last = self._clock(), self._last
        self._last = now
        try:
            busy = sum(self._nvml.nvmlDeviceGetUtilizationRates(h).gpu for h in self._handles) / 100
        except self._nvml.NVMLError:  # slices of a GPU have none
            busy = 0.0
        self._total += busy * (now - last)
        return self._total


def nvidia(
    nvml: Any = None, visible: str | None = os.environ.get("CUDA_VISIBLE_DEVICES"), say: Say = lambda _: None
) -> tuple[list[Source], Callable[[], float]]:
    """A source for each NVIDIA GPU that this process may use, and their busy seconds. `nvml` stands for the library in tests."""
    if nvml is None:
        import pynvml as nvml
    try:
        nvml.nvmlInit()
        every = range(nvml.nvmlDeviceGetCount())
        mine = [i for i in every if visible is None or _is_visible(nvml, i, visible)]
        if every and not mine and visible not in ("", "-1"):
            say(
                f"energy: NVML has no GPU of the name CUDA_VISIBLE_DEVICES={visible}, so the joules of GPUs are missing"
            )
        return [_gpu(nvml, i) for i in mine], NvidiaBusy(nvml, mine)
    except nvml.NVMLError:  # no driver, or no GPU
        return [], lambda: 0.0


def _is_visible(nvml: Any, index: int, visible: str) -> bool:
    names = [name.strip() for name in visible.split(",") if name.strip()]
    uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index))
    return any(name == str(index) or (not name.isdigit() and uuid.startswith(name)) for name in names)


def _gpu(nvml: Any, index: int) -> Source:
    try:
        return NvidiaCounter(nvml, index)
    except nvml.NVMLError:
        return NvidiaPower(nvml, index)


# --- without counters: CodeCarbon ---------------------------------------------------------------------------------------


class Modelled:
    """What CodeCarbon makes of the processor's load: 10% of its design power, and 90% by the cube of the load.

    A processor that it does not know counts 4 W a thread. Until the processor is looked up, which takes it a second, nothing is
    booked; what was drawn meanwhile comes with the first figure. So does what was drawn in less than `LEAST_S`: of a moment
    the load is 0 or 1, whose cubes say nothing.
    """

    LEAST_S = 0.1

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._last = clock, clock()
        self._cpu = _codecarbon_cpu()
        self.name = "codecarbon cpu"

    @property
    def about(self) -> About:
        watts = "not looked up yet"
        if self._cpu.done():
            watts = "not known" if self._cpu.exception() else f"{self._cpu.result()[1]:g} W at full load"
        return About(kind="modelled", scope="CPU, all programs", method=f"CodeCarbon, load of the CPU; {watts}")

    def joules(self) -> float:
        now, last = self._clock(), self._last
        if not self._cpu.done() or now - last < self.LEAST_S:
            return 0.0
        self._last = now
        return self._cpu.result()[0].total_power().W * (now - last)


def full_load_watts() -> float | None:
    """What CodeCarbon takes the processor to draw at full load; None where it cannot tell. Modelled, not measured."""
    looked_up = _codecarbon_cpu()
    return None if looked_up.exception() else looked_up.result()[1]


@cache
def _codecarbon_cpu() -> Future[tuple[Any, float]]:
    """CodeCarbon's CPU and its design power in W. Imported here and looked up elsewhere: threads that import meet halfway."""
    import cpuinfo  # noqa: F401
    import pandas  # noqa: F401
    from codecarbon.core import cpu as _  # noqa: F401
    from codecarbon.external.hardware import CPU

    logging.getLogger("codecarbon").setLevel(logging.ERROR)  # what it does not know is in `About`

    def look() -> tuple[Any, float]:
        model, watts = _design_power()
        cpu = CPU.from_utils(output_dir=".", mode="cpu_load", model=model, tdp=int(watts))
        cpu.start()
        return cpu, watts

    pool = ThreadPoolExecutor(max_workers=1)
    looked_up = pool.submit(look)
    pool.shutdown(wait=False)
    return looked_up


def _design_power() -> tuple[str, float]:
    """The processor's name and its design power in W, as CodeCarbon finds them: kept, for that takes it seconds."""
    path = cache_dir() / "cpu_power.json"
    key = f"{cpu_name()}, {usable_cores()} cores, CodeCarbon {version('codecarbon')}"
    try:
        model, watts = json.loads(path.read_text(encoding="utf-8"))[key]
        return str(model), float(watts)
    except (OSError, ValueError, KeyError, TypeError):  # not looked up yet, or by another version
        from codecarbon.core.cpu import TDP

        found = TDP()
        known = (str(found.model), float(found.tdp or 85))  # its own last resort
        with suppress(OSError):  # kept or not: no run ends for that
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps({key: known}), encoding="utf-8")
            temporary.replace(path)
        return known


class Memory:
    """CodeCarbon's guess: 5 W (ARM: 1.5) for each of the memory modules that a machine of this size might have."""

    name = "codecarbon memory"

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        from codecarbon.external.ram import RAM

        self._clock, self._last, self._watts = clock, clock(), RAM().total_power().W
        self.about = About(
            kind="constant", scope="memory of the machine", method=f"CodeCarbon, a guess by its size: {self._watts:g} W always"
        )  # fmt: skip

    def joules(self) -> float:
        now, last = self._clock(), self._last
        self._last = now
        return self._watts * (now - last)
