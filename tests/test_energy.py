"""The meter: counters are read exactly, at the file level and at the library's; what cannot be counted is never called measured."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from strop import energy
from strop.energy import About, Meter, Modelled, Rapl
from strop.ledger import Ledger

RANGE = 262_143_328_850  # of a real machine


def domain(root: Path, folder: str, name: str, uj: int = 0) -> Path:
    """One folder as the kernel lays it out."""
    made = root / folder
    made.mkdir(parents=True)
    (made / "name").write_text(f"{name}\n")
    (made / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (made / "energy_uj").write_text(f"{uj}\n")
    return made


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- RAPL ---------------------------------------------------------------------------------------------------------------


def test_packages_are_counted_and_their_parts_are_not(tmp_path: Path) -> None:
    first, second = domain(tmp_path, "intel-rapl:0", "package-0", 5), domain(tmp_path, "intel-rapl:1", "package-1")
    domain(tmp_path, "intel-rapl:0:0", "core"), domain(tmp_path, "intel-rapl:0:1", "dram")
    domain(tmp_path, "intel-rapl:2", "psys"), domain(tmp_path, "intel-rapl-mmio:0", "package-0")
    sources, why_not = energy.rapl(tmp_path)
    assert ([s.name for s in sources], why_not) == (["rapl package-0", "rapl package-1"], "")
    assert {s.about.kind for s in sources} == {"counter"}
    for folder in tmp_path.iterdir():  # everything draws; only the packages count
        (folder / "energy_uj").write_text("3000005")
    (second / "energy_uj").write_text("250000")
    assert Meter(sources).read().joules == {"rapl package-0": 3.0, "rapl package-1": 0.25}
    assert (first / "energy_uj").read_text() == "3000005"


def test_a_counter_that_turns_over(tmp_path: Path) -> None:
    folder = domain(tmp_path, "intel-rapl:0", "package-0", RANGE - 1_500_000)
    source = Rapl(folder, "package-0")
    (folder / "energy_uj").write_text("500000")
    assert source.joules() == 2.0
    assert source.joules() == 0.0


def test_the_meter_sees_every_turn_while_a_phase_lasts(tmp_path: Path) -> None:
    """Read only at its end, a phase of two turns would have lost one of them."""
    folder = domain(tmp_path, "intel-rapl:0", "package-0")
    meter = Meter(energy.rapl(tmp_path)[0])
    for uj in (RANGE // 2, RANGE - 1, RANGE // 2, RANGE - 1, 7):
        (folder / "energy_uj").write_text(str(uj))
        meter._sample()
    assert meter.read().joules["rapl package-0"] == pytest.approx((2 * RANGE + 7) / 1e6, abs=1e-9)


def test_the_thread_reads_between_changes_of_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "PERIOD_S", 0.01)
    looked = []

    class Looked:
        name, about = "looked", About(kind="constant", scope="nothing", method="a test")

        def joules(self) -> float:
            looked.append(time.perf_counter())
            return 1.0

    with Meter([Looked()]) as meter:
        time.sleep(0.3)
        assert meter.read().joules == {"looked": pytest.approx(len(looked))}
    num = len(looked)
    assert num > 5
    time.sleep(0.1)
    assert len(looked) <= num + 1  # the thread has ended


def test_no_counter_is_said_and_never_called_measured(tmp_path: Path) -> None:
    said: list[str] = []
    with energy.open_meter(said.append, with_gpus=False, powercap=tmp_path) as meter:
        about = meter.about()
    assert said == [
        "energy: no readable energy counter (no RAPL); the CPU's joules are modelled (CodeCarbon), not measured"
    ]
    assert {name: a["kind"] for name, a in about.items()} == {
        "codecarbon cpu": "modelled", "codecarbon memory": "constant",
    }  # fmt: skip
    assert not any(a["idle_subtracted"] for a in about.values())


def test_a_counter_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0")
    read = Path.read_text

    def refused(path: Path, *args: object, **options: object) -> str:
        if path.name == "energy_uj":  # a test that runs as root could not be refused by the system
            raise PermissionError(13, "Permission denied")
        return read(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refused)
    assert energy.rapl(tmp_path) == ([], "no readable energy counter (RAPL is there, but only root may read it)")


def test_a_source_that_fails_is_said_once_and_the_others_go_on(tmp_path: Path) -> None:
    folder, said = domain(tmp_path, "intel-rapl:0", "package-0"), []
    domain(tmp_path, "intel-rapl:1", "package-1")
    meter = Meter(energy.rapl(tmp_path)[0], say=said.append)
    (folder / "energy_uj").write_text("2000000")
    meter.read()
    (folder / "energy_uj").unlink()
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1000000")
    found = dict(meter.read().joules)
    assert found.pop("rapl package-0, mean") >= 0.0
    assert found == {"rapl package-0": 0.0, "rapl package-1": 1.0}
    time.sleep(0.01)
    assert meter.read().joules["rapl package-0, mean"] > 0  # so that a budget in energy still ends a run
    assert len(said) == 1
    assert said[0].startswith("rapl package-0 cannot be read any more")
    kinds = {
        name: about["kind"] for name, about in meter.about().items()
    }  # what it counted stays and is still said what it is
    assert kinds == {"rapl package-0": "counter", "rapl package-0, mean": "modelled", "rapl package-1": "counter"}


# --- a whole run on a faked machine -----------------------------------------------------------------------------------------


def test_a_known_load_is_metered_exactly_by_phase(tmp_path: Path) -> None:
    folder, clock = domain(tmp_path, "intel-rapl:0", "package-0", RANGE - 4_000_000), Hand()
    drawn = RANGE - 4_000_000

    def run_for(seconds: float, watts: float) -> None:
        nonlocal drawn
        clock.now += seconds
        drawn += round(watts * seconds * 1e6)
        (folder / "energy_uj").write_text(str(drawn % RANGE))

    ledger = Ledger(clock, Meter(energy.rapl(tmp_path)[0]))
    run_for(1, 10)
    with ledger.phase("train"):
        run_for(2, 100)
        with ledger.phase("generate"):
            run_for(3, 50)
        run_for(1, 100)
    run_for(4, 5)
    told = ledger.as_dict()
    assert {name: (p["wall_s"], p["joules"]["rapl package-0"]) for name, p in told["phases"].items()} == {
        "train": (3.0, pytest.approx(300.0)), "generate": (3.0, pytest.approx(150.0)), "other": (5.0, pytest.approx(30.0)),
    }  # fmt: skip
    assert told["energy"]["rapl package-0"]["joules"] == pytest.approx(480.0)
    assert told["energy"]["rapl package-0"]["kind"] == "counter"


def test_a_pinned_busy_loop_and_that_of_a_child_are_counted() -> None:
    """Against what the system booked on this thread, and what the child says it has burnt."""
    energy._codecarbon_cpu().result()  # another test may have begun this, and it burns too
    ledger = Ledger(meter=Meter([], cpu_s=energy.busy_cpu_s))
    before = psutil.Process().cpu_affinity()
    os.sched_setaffinity(0, before[:1])
    try:
        with ledger.phase("train"):
            own = time.process_time()
            while time.process_time() - own < 0.5:
                pass
        loop = "import sys, time\nwhile time.process_time() < 0.6: pass\nprint(flush=True); sys.stdin.read()"
        with ledger.phase("verify"):
            child = subprocess.Popen([sys.executable, "-c", loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert child.stdout is not None
            child.stdout.readline()  # it has burnt its share, and lives
    finally:
        os.sched_setaffinity(0, before)
    alive = ledger.as_dict()["phases"]
    child.communicate()
    dead = ledger.as_dict()["phases"]
    assert alive["train"]["cpu_s"] == pytest.approx(0.5, abs=0.1)
    assert alive["verify"]["cpu_s"] == pytest.approx(0.6, abs=0.15)
    assert sum(p["cpu_s"] for p in dead.values()) == pytest.approx(
        sum(p["cpu_s"] for p in alive.values()), abs=0.15
    )  # not lost, not twice


# --- GPUs -----------------------------------------------------------------------------------------------------------------


class NVMLError(Exception):
    """As the library has one."""


def library(joules: list[float], *, watts: float = 300.0, has_counter: bool = True, num: int = 2) -> SimpleNamespace:
    """NVIDIA's library for `num` GPUs that have drawn `joules[0]` each."""

    def total(_: int) -> int:
        if not has_counter:
            raise NVMLError("Not Supported")
        return round(1e3 * joules[0])

    return SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: num, nvmlDeviceGetHandleByIndex=int,
        nvmlDeviceGetUUID=lambda i: f"GPU-{i}abc", nvmlDeviceGetTotalEnergyConsumption=total,
        nvmlDeviceGetPowerUsage=lambda _: round(1e3 * watts),
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=50),
    )  # fmt: skip


def test_gpus_are_read_from_their_counters() -> None:
    drawn = [7.0]
    sources, _ = energy.nvidia(library(drawn), None)
    drawn[0] = 19.5
    assert Meter(sources).read().joules == {"nvml gpu 0": 12.5, "nvml gpu 1": 12.5}
    assert {s.about.kind for s in sources} == {"counter"}


@pytest.mark.parametrize(
    ("visible", "mine"),
    [(None, [0, 1]), ("1", [1]), ("GPU-0a", [0]), ("", []), ("-1", []), ("1, 0", [0, 1])],
)
def test_gpus_of_others_are_left_alone(visible: str | None, mine: list[int]) -> None:
    said: list[str] = []
    assert [s.name for s in energy.nvidia(library([0.0]), visible, said.append)[0]] == [f"nvml gpu {i}" for i in mine]
    assert said == []


def test_a_gpu_that_nvml_does_not_know_is_said_to_be_missing() -> None:
    said: list[str] = []
    assert energy.nvidia(library([0.0]), "MIG-1234", said.append)[0] == []
    assert [text.split(",")[0] for text in said] == [
        "energy: NVML has no GPU of the name CUDA_VISIBLE_DEVICES=MIG-1234"
    ]


def test_a_gpu_without_a_counter_has_its_power_integrated() -> None:
    clock = Hand()
    source = energy.NvidiaPower(library([0.0], has_counter=False), 0, clock)
    assert source.about.kind == "integrated"
    clock.now += 2.5
    assert source.joules() == 750.0
    assert [s.about.kind for s in energy.nvidia(library([0.0], has_counter=False), None)[0]] == ["integrated"] * 2


def test_busy_seconds_of_gpus() -> None:
    clock = Hand()
    busy = energy.NvidiaBusy(library([0.0]), [0, 1], clock)
    clock.now += 4
    assert busy() == 4.0  # two that are busy half of the time
    clock.now += 4
    assert busy() == 8.0


def test_no_driver_is_no_gpu() -> None:
    def fails() -> None:
        raise NVMLError("Driver Not Loaded")

    sources, busy_s = energy.nvidia(SimpleNamespace(NVMLError=NVMLError, nvmlInit=fails), None)
    assert (sources, busy_s()) == ([], 0.0)


# --- CodeCarbon ---------------------------------------------------------------------------------------------------------------


def test_the_model_is_codecarbons_and_says_so() -> None:
    """Between its floor of a tenth and the whole of the design power, over the time since it was opened."""
    clock = Hand()
    source = Modelled(clock)
    cpu, watts = source._cpu.result()
    clock.now += 10
    joules = source.joules()
    assert 10 * 0.1 * watts <= joules <= 10 * watts
    assert (source.about.kind, f"{watts:g} W at full load" in source.about.method) == ("modelled", True)
    clock.now += 0.05
    assert source.joules() == 0.0  # too short to know a load; it comes with the next
    clock.now += 0.95
    assert source.joules() >= 0.1 * watts
    assert cpu._mode == "cpu_load"


def test_memory_is_a_constant_and_says_so() -> None:
    clock = Hand()
    source = energy.Memory(clock)
    clock.now += 3
    first = source.joules()
    clock.now += 3
    assert source.joules() == pytest.approx(first)
    assert source.about.kind == "constant"
    assert "guess" in source.about.method


def test_codecarbon_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, strop, strop.cli, strop.pipeline, strop.energy, strop.costs, strop.prices; "
        "print([m for m in ('codecarbon', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
