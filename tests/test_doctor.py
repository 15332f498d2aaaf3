"""What the machine is (machine.py) and what `strop doctor` says of it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strop import doctor, machine


def tree(root: Path, files: dict[str, str]) -> Path:
    """A /proc and /sys of our own."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# --- machine.py


def test_the_commit_says_whether_the_package_is_that_of_the_commit(tmp_path):
    def git(*args: str) -> None:
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *args], check=True, capture_output=True
        )

    assert machine.commit_of(tmp_path) is None
    tree(tmp_path, {"src/strop/a.py": "", "README.md": ""})
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = machine.commit_of(tmp_path)
    assert clean is not None
    assert len(clean) == 12
    tree(tmp_path, {"README.md": "changed", "recipes/mine.yaml": "new"})
    assert machine.commit_of(tmp_path) == clean
    tree(tmp_path, {"src/strop/b.py": "new, not added"})
    assert machine.commit_of(tmp_path) == clean + "-dirty"
    (tmp_path / "src/strop/b.py").unlink()
    tree(tmp_path, {"src/strop/a.py": "changed"})
    assert machine.commit_of(tmp_path) == clean + "-dirty"


@pytest.mark.parametrize(
    ("files", "cores", "num_bytes"),
    [
        ({}, math.inf, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, math.inf),
        (  # version 2: a limit on a parent binds, the tighter one wins
            {
                "proc/self/cgroup": "0::/user/job7\n",
                "sys/fs/cgroup/user/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/user/job7/cpu.max": "800000 100000\n",
                "sys/fs/cgroup/user/memory.max": "max\n",
                "sys/fs/cgroup/user/job7/memory.max": "4000000000\n",
            },
            2.0,
            4e9,
        ),
        (  # version 1, one tree a controller; -1 is no quota
            {
                "proc/self/cgroup": "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n3:cpuset:/\n",
                "sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n",
            },
            0.5,
            2e9,
        ),
        (  # inside a container the path named does not exist; the mount itself is ours
            {"proc/self/cgroup": "0::/../../pod\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"},
            3.0,
            math.inf,
        ),
    ],
)
def test_container_limits(tmp_path: Path, files: dict[str, str], cores: float, num_bytes: float) -> None:
    root = tree(tmp_path, files)
    assert machine.cgroup_limits(root) == (cores, num_bytes)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert machine.usable_cores(root) == max(1, math.ceil(min(allowed or 1, cores)))
    assert machine.usable_memory_gb(root) <= num_bytes / 1e9


def test_cores_follow_affinity() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_cpuinfo(tmp_path: Path) -> None:
    text = "processor\t: 0\nmodel name\t: Some CPU @ 3.0GHz\nflags\t\t: fpu avx2 avx512f avx512_vnni sse\n\nprocessor : 1\n"
    root = tree(tmp_path, {"proc/cpuinfo": text})
    assert machine.cpu_name(root) == "Some CPU @ 3.0GHz"
    assert machine.cpu_flags(root) == ["avx2", "avx512f", "avx512_vnni"]
    assert machine.cpu_name(tmp_path / "nothing")
    assert machine.cpu_flags(tmp_path / "nothing") == []


def test_machine_is_json_without_names_of_people_or_places() -> None:
    facts = machine.machine()
    assert {"cpu", "cores", "memory_gb", "python", "torch", "transformers", "strop", "commit"} <= set(facts)
    text = json.dumps(facts)
    assert str(Path.home()) not in text
    assert os.uname().nodename not in text
    assert facts["torch"][0].isdigit()
    assert machine.version("no-such-package") is None


def test_machine_imports_no_torch() -> None:
    code = "import sys, strop.machine, strop.run, strop.ledger, strop.monitor, strop.watch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- doctor.py


def test_every_check_answers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "GEMM_S", 0.05)
    findings = doctor.run()
    names = [finding.name for finding in findings]
    assert [name for name in doctor.CHECKS if name not in ("extras",)] == [
        n for n in names if not n.startswith("extra ")
    ]
    assert "extra dev" in names
    assert {finding.level for finding in findings} <= {"good", "note"}, [f for f in findings if f.level == "problem"]
    product = next(finding for finding in findings if finding.name == "matrix product")
    assert "float32" in product.value
    assert float(product.value.split()[1].replace(",", "")) > 1
    assert json.loads(json.dumps(doctor.as_json(findings)))[0] == {
        "name": "python", "value": ".".join(map(str, sys.version_info[:3])), "level": "good", "advice": "",
    }  # fmt: skip


def test_lines_fit_and_end_in_a_verdict() -> None:
    findings = [
        doctor.Finding(name="python", value="3.11"),
        doctor.Finding(
            name="extra puzzles", value="missing " * 20, level="note", advice="pip install 'strop[puzzles]'"
        ),
        doctor.Finding(name="disk", value="0.1 GB", level="problem"),
    ]
    lines = doctor.lines(findings, width=60)
    assert max(map(len, lines)) <= 60
    assert any("-> pip install 'strop[puzzles]'" in line for line in lines)
    assert lines[-1] == "1 of 3 checks found a problem"
    assert doctor.lines(findings[:2])[-1] == "everything Strop needs is here"


def test_a_check_that_dies_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(root: Path) -> list[doctor.Finding]:
        raise ImportError("libtorch.so: wrong ELF class")

    monkeypatch.setitem(doctor.CHECKS, "gpu", dies)
    monkeypatch.setattr(doctor, "GEMM_S", 0.01)
    found = next(finding for finding in doctor.run() if finding.name == "gpu")
    assert found.level == "problem"
    assert found.value == "ImportError: libtorch.so: wrong ELF class"


def test_what_is_missing_comes_with_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Strop installed as a package whose metadata asks for things that are not there."""
    info = tmp_path / "strop-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: strop\nVersion: 9.9\nProvides-Extra: ray\nProvides-Extra: dev\n"
        "Requires-Dist: numpy>=2\nRequires-Dist: no-such-thing>=3\n"
        "Requires-Dist: ray-of-nowhere>=2; extra == 'ray'\nRequires-Dist: pytest>=8; extra == 'dev'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (packages,) = doctor.packages(tmp_path)
    assert packages.level == "problem"
    assert packages.advice.endswith("-m pip install 'no-such-thing>=3'")
    ray, dev = doctor.extras(tmp_path)
    assert (ray.level, dev.level) == ("note", "good")
    assert ray.advice == f"{sys.executable} -m pip install 'strop[ray]'"
    (info / "direct_url.json").write_text('{"dir_info": {"editable": true}, "url": "file:///src/my strop"}')
    assert doctor.extras(tmp_path)[0].advice == f"{sys.executable} -m pip install -e '/src/my strop[ray]'"


RAPL = {"energy_uj": "12", "max_energy_range_uj": "1000"}


def test_energy_counters(tmp_path: Path) -> None:
    (none,) = doctor.energy(tmp_path)
    assert none.level == "note"
    assert "modelled" in none.advice
    for package in range(2):
        folder = f"sys/class/powercap/intel-rapl:{package}"
        tree(
            tmp_path,
            {f"{folder}/{name}": text for name, text in RAPL.items()} | {f"{folder}/name": f"package-{package}"},
        )
    (found,) = doctor.energy(tmp_path)
    assert (found.level, found.value.startswith("RAPL (2 packages)")) == ("good", True)
