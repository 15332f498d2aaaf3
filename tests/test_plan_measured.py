"""The forecast against what a process really takes, and that everything that is measured can be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from strop import cli, plan
from strop.bench import plan as bench
from strop.bench import worker, workload
from strop.plan import calibrate
from strop.plan.shape import Shape
from strop.record import UserError

SIZES = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 1024, "vocab_size": 8192, "tie_word_embeddings": True}  # fmt: skip
SMALL = Shape(
    name="small", kind="llama", layers=2, hidden=64, heads=4, kv_heads=2, head_size=16, mlp=128, vocab=512, tied=True
)


@pytest.mark.parametrize("rank", [0, pytest.param(8, marks=pytest.mark.slow)])
def test_memory_is_forecast_within_a_tenth(
    rank: int, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is no constant: with the process's base left out, within a quarter."""
    folder = workload.random_model(tmp_path, str(tiny_model), SIZES)
    case = bench.Case(model="small", prompts=4, group=8, tokens=96, rank=rank, microbatch=4096, prompt_tokens=170)
    values = {"folder": str(folder), "case": case.model_dump(), "steps": 1}
    with worker.Side("strop", worker.command("strop.bench.plan:steps", values)) as side:
        answer = side.ask()
    assert answer is not None
    monkeypatch.setitem(bench.SHAPES, "small", SIZES)
    forecast = bench._forecast(case, None, answer["prefix_tokens"]).peaks[-1]
    measured, base = answer["peak_rss_mb"], forecast.parts["process"] / 1e6
    print(f"rank {rank}: {forecast.total / 1e6:.0f} MB forecast, {measured:.0f} MB measured")
    assert measured > 1.4 * base
    assert forecast.total / 1e6 == pytest.approx(measured, rel=0.10)
    assert forecast.total / 1e6 - base == pytest.approx(measured - base, rel=0.25)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_machine_can_be_measured(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FLOATS": 1 << 16, "FILE_BYTES": 1 << 16, "GEMM_S": 0.01, "ROUNDS": 1}.items():
        monkeypatch.setattr(calibrate, name, value)
    found = calibrate.measure(SMALL, rank=rank, matmul="float32")
    assert [rows for rows, _, _ in found.decode] == list(calibrate.ROWS)
    assert all(layer_s > 0 and word_s > 0 for _, layer_s, word_s in found.decode)
    speeds = (found.train_flops, found.attend_flops, found.head_flops, found.prefill_flops, found.gemm_flops)
    assert all(speed > 1e6 for speed in speeds)
    assert found.key_s >= 0
    assert calibrate.Rates.from_dict(json.loads(json.dumps(calibrate.asdict(found)))) == found


@pytest.mark.slow
def test_the_command_plans_proposes_and_keeps(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    for name, value in {"FLOATS": 1 << 16, "FILE_BYTES": 1 << 16, "GEMM_S": 0.01, "ROUNDS": 1}.items():
        monkeypatch.setattr(calibrate, name, value)
    written = tmp_path / "mine.yaml"
    written.write_text(json.dumps({
        "model": {"name": str(tiny_model)}, "chat": {"template": "{{ messages[0].content }}"},
        "tasks": {"sums": {"source": "arithmetic", "train": 16, "heldout": 4, "dev": 2, "settings": {"terms": 2, "ops": "+"}}},
        "stages": [{"name": "rl", "do": "train", "tasks": {"sums": 1}, "steps": 50, "prompts_per_step": 4, "group_size": 4,
                    "max_tokens": 32}],
    }))  # fmt: skip

    def told(*args: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["strop", "plan", str(written), "--json", *args])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    first = told("--usd-per-hour", "1")
    assert len(first["lines"]) == 3
    assert first["seconds"]["likely"] > 0
    assert first["proposal"] is None
    assert len(list((tmp_path / "cache" / "calibration").iterdir())) == 1
    assert told()["measured"] == first["measured"]
    budgeted = told("--budget", "9s")["proposal"]
    assert budgeted["set"]
    assert budgeted["plan"]["seconds"]["likely"] <= 9
    assert told("--on", "l4")["watts"] == 72


def test_help_and_the_arithmetic_need_no_torch() -> None:
    code = "import sys, strop.plan, strop.cli; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


def test_a_run_is_told_its_plan_and_keeps_it(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from strop import pipeline
    from strop.config import parse_recipe
    from strop.watch import Watch

    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    asked = parse_recipe({
        "model": {"name": str(tiny_model)}, "chat": {"template": "{{ messages[0].content }}"}, "checks": {"workers": 1},
        "tasks": {"sums": {"source": "arithmetic", "train": 8, "heldout": 4, "dev": 2, "settings": {"terms": 2, "ops": "+"}}},
        "stages": [{"name": "look", "do": "evaluate", "tasks": ["sums"], "max_tokens": 2}],
    })  # fmt: skip
    with (tmp_path / "said").open("w") as said_to:
        summary = pipeline.run(asked, out=tmp_path / "run", watch=Watch(said_to, live=False))
    assert summary["plan"]["peak_stage"] == "look"
    assert summary["plan"]["measured"] == plan.NO_CALIBRATION
    said = (tmp_path / "said").read_text()
    assert "memory  " in said
    assert f"time    {plan.NO_CALIBRATION}" in said
    assert not (tmp_path / "cache" / "calibration").exists()


def test_the_bench_names_its_worst_case_and_what_it_leaves_out() -> None:
    rows = [{"case": "a", "error": 0.05}, {"case": "b", "error": -0.2}, {"case": "c", "error": 0.1}]
    assert bench._told("Time", "error", rows) == "Time: median absolute error 10.0%, worst -20.0% (b), 3 cases."
    assert len(bench.CASES) >= 12
    assert {bool(case.rank) for case in bench.CASES.values()} == {True, False}
    found = bench.run(bench.Settings(cases=("31m",), max_gb=0.1), pairs=1, say=lambda _: None)
    assert not found.rows
    assert found.notes == ["31m was left out: 1.6 GB are forecast."]
    with pytest.raises(UserError, match="--set cases: 32m is none of 31m, "):
        bench.run(bench.Settings(cases=("32m",)), pairs=1, say=lambda _: None)
