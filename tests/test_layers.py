"""The law of the rooms: imports point down, the lower floors know no torch, and `import strop` imports nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src" / "strop"
FLOORS = [
    {"redact", "record", "budget", "prices", "config", "settings"},
    {
        "tasks",
        "rewards",
        "advantage",
        "schedule",
        "monitor",
        "guard",
        "gain",
        "metrics",
        "stats",
        "energy",
        "ledger",
        "costs",
        "waste",
        "disk",
        "machine",
        "headroom",
        "process",
        "run",
        "fork",
        "keep",
        "watch",
    },
    {
        "precision",
        "int8",
        "provenance",
        "adapter",
        "attention",
        "fused",
        "chat",
        "model",
        "batch",
        "head",
        "loss",
        "critic",
        "teacher",
        "learner",
        "engine",
    },
    {
        "tools",
        "holder",
        "train",
        "sft",
        "answers",
        "fingerprint",
        "evaluate",
        "solve",
        "grade",
        "compare",
        "frontier",
        "vet",
        "probe",
        "lengths",
        "audit",
        "curate",
        "distill",
        "plan",
    },
    {"report", "cli", "pipeline", "targets", "doctor", "bench", "verify_resume"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NO_TORCH = {"torch", "transformers", "peft", "accelerate"}
MODULES = sorted(p for p in SRC.rglob("*.py") if p != SRC / "__init__.py")
# Who may use whom on the same floor is written down here; there are no cycles, and no line is left that nobody needs.
SAME_FLOOR = {
    "record": {"redact"},
    "budget": {"record"},
    "config": {"budget", "prices", "record", "redact"},
    "settings": {"config", "record"},
    "keep": {"disk"},
    "energy": {"machine"},
    "ledger": {"energy"},
    "costs": {"energy"},
    "run": {"costs", "disk", "keep", "ledger", "machine", "waste"},
    "fork": {"disk", "run"},
    "headroom": {"machine"},
    "metrics": {"rewards"},
    "monitor": {"metrics", "stats"},
    "guard": {"metrics", "monitor"},
    "gain": {"stats"},
    "schedule": {"metrics", "stats"},
    "attention": {"precision"},
    "int8": {"precision"},
    "fused": {"attention", "int8", "precision"},
    "model": {"adapter", "attention", "chat", "fused", "int8", "precision"},
    "batch": {"attention"},
    "engine": {"attention", "chat", "int8", "model", "precision", "provenance"},
    "critic": {"fused", "model"},
    "teacher": {"model"},
    "learner": {"batch", "critic", "head", "loss", "model", "provenance", "teacher"},
    "answers": {"tools"},
    "fingerprint": {"tools"},
    "holder": {"fingerprint"},
    "evaluate": {"answers", "fingerprint", "tools"},
    "frontier": {"compare"},
    "distill": {"answers", "tools", "vet"},
    "probe": {"compare", "lengths"},
    "curate": {"fingerprint", "holder", "probe"},
    "sft": {"evaluate", "tools"},
    "train": {"evaluate", "tools"},
    "pipeline": {"report", "targets"},
    "bench": {"report"},
    "verify_resume": {"pipeline"},
    "cli": {"bench", "doctor", "pipeline", "report", "targets", "verify_resume"},
}


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, also inside functions; `from strop import a` is strop.a."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            assert node.module
            if node.module == "strop":
                yield from ((node.lineno, f"strop.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def ours(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of what a file imports from other rooms."""
    for line, name in imports(path):
        top, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if top == "strop" and other and not other.startswith("__") and other != room_of(path):
            yield line, other


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room}: say in FLOORS on which floor it lives"
    for line, name in imports(path):
        assert name.partition(".")[0] not in NO_TORCH or FLOOR[room] >= 2, f"{path}:{line}: {name} below floor 2"
    for line, other in ours(path):
        allowed = FLOOR[other] < FLOOR[room] or other in SAME_FLOOR.get(room, ())
        assert allowed, f"{path}:{line}: {room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"


def test_nothing_is_allowed_in_vain() -> None:
    used = {(room_of(path), other) for path in MODULES for _, other in ours(path)}
    assert {(room, other) for room, others in SAME_FLOOR.items() for other in others} <= used


def test_the_rooms_of_one_floor_have_no_cycle() -> None:
    def reach(room: str, seen: frozenset[str] = frozenset()) -> None:
        assert room not in seen, f"{' -> '.join(seen)} -> {room}"
        for other in SAME_FLOOR.get(room, ()):
            reach(other, seen | {room})

    for room in SAME_FLOOR:
        reach(room)


@pytest.mark.parametrize(
    "code",
    [
        "import strop",
        "import strop.cli",
        "from strop import config, record, stats, run, advantage",
        "from strop import tasks, rewards",
    ],
)
def test_torch_is_not_imported_by(code: str) -> None:
    """Verifier processes are spawned with the rewards room, so torch there would cost seconds and memory each."""
    seen = f"{code}; import sys; print([m for m in {sorted(NO_TORCH)} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_strop_imports_nothing_of_ours() -> None:
    code = "import sys; import strop; print([m for m in sys.modules if m.startswith('strop.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
