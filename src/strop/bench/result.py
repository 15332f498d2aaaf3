"""What a bench leaves behind: one record, kept in one JSON file a machine, and printed as Markdown.

Knows units by the ends of names (`_s`, `_mb`, `_frac`, `_per_s`), and nothing of what was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from strop import disk
from strop.record import UserError

__all__ = ["Result", "default_file", "read", "save", "seconds_of", "table"]

Row = Mapping[str, Any]
FOLDER = Path("bench") / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One bench on one machine on one day. A row is a line of its table; `samples` holds every round behind it."""

    rows: list[dict[str, Any]]
    ceilings: dict[str, float] = field(default_factory=dict)  # what the machine could do in the same minutes
    samples: dict[str, list[float]] = field(default_factory=dict)  # seconds of every round
    notes: list[str] = field(default_factory=list)  # what was left out, and why
    details: list[dict[str, Any]] = field(default_factory=list)  # kept in the file, not in the table
    plot: str = ""  # SVG, kept beside the JSON
    bench: str = ""
    date: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return disk.plain({key: value for key, value in asdict(self).items() if key != "plot"})


def default_file(machine: Mapping[str, Any]) -> Path:
    """One for each kind of machine: with matrix units (AMX) a processor of the same name is another one.

    >>> default_file({"cpu": "Intel(R) Xeon(R) Processor", "cores": 2, "cpu_flags": ["avx2", "amx_bf16"]}).as_posix()
    'bench/results/intel-r-xeon-r-processor-amx-2-cores.json'
    """
    name = "-".join(re.findall(r"[a-z0-9]+", str(machine["cpu"]).lower()))
    amx = "-amx" if "amx_bf16" in machine.get("cpu_flags", ()) else ""
    return FOLDER / f"{name}{amx}-{machine['cores']}-cores.json"


def read(path: Path) -> dict[str, Any]:
    """Results by bench; empty where there is no file yet. Raises UserError for a file that is none of ours."""
    if not path.is_file():
        return {}
    try:
        benches = json.loads(path.read_text(encoding="utf-8"))["benches"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no file of bench results; name another one with --out") from None
    return benches


def save(result: Result, path: Path) -> None:
    """Put the result beside those of other benches; one of the same bench is replaced."""
    benches = read(path) | {result.bench: result.as_json()}
    disk.write_json(path, {"benches": dict(sorted(benches.items()))})
    if result.plot:
        disk.write_text(path.with_name(f"{path.stem}-{result.bench}.svg"), result.plot)


# --- as Markdown ------------------------------------------------------------------------------------------------------

UNITS = {"_s": "s", "_mb": "MB"}


def table(results: Mapping[str, Any]) -> str:
    """One table a bench: what was measured, on what, and what was left out."""
    return "\n\n".join(_one(name, result) for name, result in results.items())


def _one(name: str, result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    rows = result["rows"]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        f"**{name}** ({result['date'][:10]}, commit {machine.get('commit')}, {machine.get('cores')} cores of "
        f"{machine.get('cpu')})",
        "",
        f"| {' | '.join(_header(key) for key in keys)} |",
        f"|{'---|' * len(keys)}",
        *(f"| {' | '.join(_cell(key, row) for key in keys)} |" for row in rows),
    ]
    if result.get("ceilings"):
        shown = "; ".join(f"{_header(key)} {_figure(value)}" for key, value in result["ceilings"].items())
        lines += ["", f"Ceilings of the machine in the same run: {shown}."]
    return "\n".join(lines + [part for note in result.get("notes", []) for part in ("", note)])


def _header(key: str) -> str:
    """
    >>> [_header(k) for k in ("tokens_per_s", "peak_rss_mb", "int8_floor_frac", "batch")]
    ['tokens/s', 'peak rss, MB', 'int8 floor', 'batch']
    """
    key = key.removesuffix("_frac")
    if key.endswith("_per_s"):
        return key.removesuffix("_per_s").replace("_", " ") + "/s"
    for end, unit in UNITS.items():
        if key.endswith(end):
            return f"{key.removesuffix(end).replace('_', ' ')}, {unit}"
    return key.replace("_", " ")


def _cell(key: str, row: Row) -> str:
    """
    >>> _cell("over strop", {"over strop": [3.14159, 3.0, 3.21]}), _cell("gemm_frac", {"gemm_frac": 0.5})
    ('3.1x (3.0 to 3.2)', '50%')
    """
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, list):  # a ratio with its spread
        return "{:.1f}x ({:.1f} to {:.1f})".format(*value)
    if key.endswith("_frac"):
        return f"{100 * value:.0f}%"
    return _figure(value)


def _figure(value: Any) -> str:
    """Three digits that mean something; whole numbers as they are.

    >>> _figure(12345.6), _figure(1.2345), _figure(64), _figure("TRL")
    ('12346', '1.23', '64', 'TRL')
    """
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds_of(samples: Mapping[str, Sequence[Row]], prefix: str = "") -> dict[str, list[float]]:
    """The seconds of every round, for the record."""
    return {prefix + name: [round(float(a["seconds"]), 5) for a in answers] for name, answers in samples.items()}
