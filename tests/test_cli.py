"""The command line as people meet it: help, mistakes, exit codes, through the real console script."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from run_directory import write_run
from strop import cli, solve
from strop.disk import DiskFull
from strop.learner import NonFinite
from strop.record import UserError
from strop.rewards import VerifierBroken

ROOT = Path(__file__).resolve().parent.parent
STROP = Path(sys.executable).with_name("strop")
COMMANDS = [
    "run",
    "sft",
    "train",
    "eval",
    "curate",
    "plan",
    "verify-resume",
    "fork",
    "compare",
    "solve",
    "report",
    "grade",
    "audit-rewards",
    "probe",
    "doctor",
    "bench",
    "distill",
]
CHEAP = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def strop(*args: object, cwd: Path = ROOT, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(STROP), *map(str, args)],
        cwd=cwd, env=os.environ | CHEAP | env, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def mistake(*args: object, cwd: Path = ROOT, code: int = 2) -> str:
    """What stderr says of a mistake: one sentence after whatever progress came before it, and no traceback."""
    done = strop(*args, cwd=cwd)
    return sentence(done.returncode, done.stderr, code)


def sentence(left_with: int, stderr: str, code: int = 2) -> str:
    assert left_with == code, stderr
    assert "Traceback" not in stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("strop: "), stderr
    return last


Inside = Callable[..., tuple[int, str, str]]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """The console script's function in this process, which has imported torch already: exit code, stdout, stderr."""

    def call(*args: object, cwd: Path = ROOT) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["strop", *map(str, args)])
        monkeypatch.chdir(cwd)
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), *capsys.readouterr()

    return call


# --- help ---------------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_is_instant() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = strop("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # the other core may be busy
    assert done.returncode == 0
    assert re.findall(r"^  ([a-z-]+)  ", done.stdout.partition("Commands:")[2], re.M) == COMMANDS
    assert seconds < 2, f"help took {seconds:.1f} s"  # 0.2 s on an idle machine


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['strop', '--help']\n"
        "from strop import cli\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'scipy', 'pydantic', 'rich'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str) -> None:
    done = strop(command, "--help")
    assert done.returncode == 0
    assert f"    strop {command}" in done.stdout.partition("Examples:")[2]
    assert "--json" in done.stdout


def test_the_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_cli.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


def test_version() -> None:
    import strop as package

    assert strop("--version").stdout == f"strop {package.__version__}\n"


# --- mistakes: exit 2 and one sentence ----------------------------------------------------------------------------------


def test_mistakes_in_words_typed_wrong() -> None:
    for args, hint in [
        (("runn",), "Did you mean 'run'?"),
        (("run", "x.yaml", "--resum"), "--resume"),
        (("run",), "RECIPE"),
    ]:
        done = strop(*args)
        assert done.returncode == 2
        assert hint in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    """A whole run in small: the random model, 8 held-out tasks, two steps of SFT and of RL."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {"name": str(tiny_model)},
                "tasks": {
                    "sums": {"source": "arithmetic", "train": 32, "heldout": 8, "dev": 4, "settings": {"terms": 2, "ops": "+"}}
                },
                "stages": [
                    {"name": "before", "do": "evaluate", "tasks": ["sums"], "samples": 2, "max_tokens": 16},
                    {"name": "sft", "do": "sft", "tasks": ["sums"], "max_steps": 2, "batch": 4, "eval_every": 1, "max_tokens": 16},
                    {
                        "name": "rl", "do": "train", "tasks": {"sums": 1.0}, "steps": 2, "prompts_per_step": 4, "group_size": 2,
                        "max_tokens": 16, "heldout_every": 1, "checkpoint_every": 1,
                        "rewards": [{"name": "accuracy"}, {"name": "own.py:length"}],
                    },
                    {"name": "after", "do": "evaluate", "tasks": ["sums"], "samples": 2, "max_tokens": 16},
                ],
            }
        )
    )  # fmt: skip
    (tmp_path / "own.py").write_text(
        "def length(completions, **columns):\n    return [len(c) / 100 for c in completions]\n"
    )
    return path


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--set", "sed=1"], ["unknown key 'sed'", "did you mean 'seed'?"]),
        (["--set", "stages.rl.steps=0"], ["stages", "steps", "greater than or equal to 1"]),
        (["--set", "tasks.sums.source=arithmatic"], ["tasks.sums.source", "did you mean 'arithmetic'?"]),
        (["--set", "tasks.sums.settings.trems=2"], ["trems", "did you mean 'terms'?"]),
        (["--set", "tasks.sums.source=none.jsonl", "--set", "tasks.sums.settings={}"], ["none.jsonl"]),
        (["--set", "stages.rl.rewards.0.name=acuracy"], ["acuracy", "accuracy"]),
        (["--set", "stages.rl.rewards.1.name=own.py:lenght"], ["lenght"]),
        (["--resume", "--out", "nothing-there"], ["nothing-there"]),
    ],
)
def test_mistakes_in_a_recipe_are_found_before_anything_is_written(
    recipe: Path, args: list[str], parts: list[str], inside: Inside
) -> None:
    code, _, err = inside("run", recipe, *args, cwd=recipe.parent)
    for part in parts:
        assert part in sentence(code, err)
    assert not (recipe.parent / "runs").exists()


def test_a_mistake_is_told_by_the_script_as_well(recipe: Path) -> None:
    assert "did you mean 'seed'?" in mistake("run", recipe, "--set", "sed=1", cwd=recipe.parent)
    assert not (recipe.parent / "runs").exists()


def test_a_model_that_is_none_is_found_before_anything_is_written(recipe: Path, inside: Inside) -> None:
    for name, part in [
        ("./nowhere", "no such folder"),
        (str(recipe.parent), "no config.json"),
        ("a/b/c", "no Hugging Face id"),
    ]:
        for dry in ([], ["--dry-run"]):
            code, _, err = inside("run", recipe, "--set", f"model.name={name}", *dry, cwd=recipe.parent)
            assert (code, part in err) == (2, True), err
    assert not (recipe.parent / "runs").exists()


def test_a_prompt_that_is_too_long_is_found_before_anything_is_written(recipe: Path, inside: Inside) -> None:
    code, _, err = inside("run", recipe, "--set", "engine.max_prompt_tokens=8", cwd=recipe.parent)
    assert (code, "engine.max_prompt_tokens=8" in err) == (2, True), err
    assert not (recipe.parent / "runs").exists()


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    assert "recipes/" in mistake("run", tmp_path / "none.yaml")


def test_folders_that_are_no_run(tmp_path: Path, inside: Inside) -> None:
    for args in (("report", tmp_path), ("compare", tmp_path, tmp_path)):
        code, _, err = inside(*args)
        assert f"{tmp_path} is not a run directory" in sentence(code, err)
    with pytest.raises(UserError, match="not a run"):
        solve.run(tmp_path, "Compute 1 + 1.")
    with pytest.raises(UserError, match="empty"):
        solve.run(tmp_path, "  ")


# --- a dry run ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_resolves_checks_and_writes_nothing(recipe: Path, inside: Inside) -> None:
    code, out, err = inside("run", recipe, "--set", "stages.rl.steps=7", "--dry-run", "--json", cwd=recipe.parent)
    assert code == 0, err
    *resolved, last = out.strip().splitlines()
    told = json.loads(last)
    assert yaml.safe_load("\n".join(resolved)) == told["recipe"]
    assert told["recipe"]["stages"][2]["steps"] == 7
    assert told["recipe"]["stages"][2]["temperature"] == 1.0  # a default, spelled out
    assert "32 train, 4 dev, 8 heldout" in err
    assert "7 steps of 4 tasks x 2 = 56 rollouts, at most 896 tokens" in err
    assert told["not_checked"] == []
    assert sorted(p.name for p in recipe.parent.iterdir()) == ["own.py", "tiny.yaml"]


# --- a run, stopped and resumed, to the end -----------------------------------------------------------------------------


def test_a_run_that_is_stopped_ends_as_it_should(recipe: Path, inside: Inside) -> None:
    folder, out = recipe.parent, recipe.parent / "run"
    args = ["run", recipe, "--set", "stages.rl.steps=4", "--out", out, "--json"]
    process = subprocess.Popen(
        [str(STROP), *map(str, args)], cwd=folder, env=os.environ | CHEAP, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and '"kind": "train"' in metrics.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the verifier processes get it too
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stderr
    assert "Traceback" not in stderr
    assert "--resume goes on" in stderr.strip().splitlines()[-1]
    stopped = json.loads(stdout.strip().splitlines()[-1])
    assert stopped["finished"] is False
    assert set(stopped["stages"]) == {"before", "sft"}
    assert (out / "report.html").exists()

    code, _, stderr = inside(*args, cwd=folder)
    assert (code, "--resume" in stderr) == (2, True)
    code, _, stderr = inside(*args, "--resume", "--set", "stages.rl.steps=5", cwd=folder)  # another recipe
    assert (code, "steps" in stderr) == (2, True)

    done = strop(*args, "--resume", cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary == json.loads((out / "summary.json").read_text())
    check_summary(summary)
    steps = [row["step"] for row in map(json.loads, metrics.read_text().splitlines()) if row["kind"] == "train"]
    assert steps == [1, 2, 3, 4]
    assert "<html" in (out / "report.html").read_text()
    check_looking_at_a_run(out, inside)

    code, _, stderr = inside(*args, "--resume", cwd=folder)
    assert (code, "nothing is left to do" in stderr) == (0, True)


def check_summary(summary: dict) -> None:
    """The contract of summary.json."""
    assert summary["finished"] is True
    assert list(summary["stages"]) == ["before", "sft", "rl", "after"]
    for name in ("before", "after"):
        stage = summary["stages"][name]
        assert stage["num_tasks"] == 8
        assert 0 <= stage["greedy_acc"] <= 1
        assert 0 <= stage["mean_acc"] <= 1
        assert 0 <= stage["truncated_frac"] <= 1
        assert len(stage["ci95"]) == 2
        assert 0 < stage["mean_tokens"] <= 16
        assert sum(stage["verdict_reasons"].values()) == 8
        assert stage["by_tasks"]["sums"]["num_tasks"] == 8
        assert stage["wall_s"] > 0
    # after is the last evaluation, before the first, and also that of the model it comes from
    assert [(c["a"], c["b"], c["metric"], c["num_tasks"]) for c in summary["comparisons"]] == [
        ("before", "after", "greedy_acc", 8),
        ("before", "after", "mean_acc", 8),
    ]
    ledger = summary["ledger"]
    assert ledger["tokens_sampled"] > 0
    assert ledger["tokens_trained"] > 0
    assert sum(phase["wall_s"] for phase in ledger["phases"].values()) == pytest.approx(ledger["wall_s"], rel=0.05)
    assert summary["peak_rss_mb"] > 50
    assert {"cpu", "cores", "memory_gb", "python", "torch", "transformers", "strop", "commit"} <= summary[
        "machine"
    ].keys()


def check_looking_at_a_run(out: Path, inside: Inside) -> None:
    code, compared, stderr = inside("compare", f"{out}:before", f"{out}:after", "--json")
    assert code == 0, stderr
    recorded = json.loads((out / "summary.json").read_text())["comparisons"]
    for then, now in zip(recorded, json.loads(compared)["comparisons"], strict=True):
        assert now == then | {"p_adjusted": now["p_adjusted"]}, "two are printed, so they are corrected"
    code, _, stderr = inside("compare", f"{out}:befor", out)
    assert (code, "no evaluation 'befor'" in stderr) == (2, True)
    code, solved, stderr = inside("solve", out, "Compute 2 + 3.", "--max-tokens", 8, "--json")
    assert code == 0, stderr
    assert [a["model"] for a in json.loads(solved)["answers"]] == ["base", "sft", "rl"]


# --- grade --------------------------------------------------------------------------------------------------------------


def test_grade_writes_a_verdict_for_each_row(tmp_path: Path) -> None:
    cases = [
        {"id": 7, "gold": "1/2", "prediction": "Half of it is \\boxed{0.5}", "problem": "What is 1 - 1/2?"},
        {"gold": 5, "prediction": "6"},
        {"id": "c", "gold": "5", "prediction": ""},
    ]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(c) + "\n" for c in cases))
    done = strop("grade", "--in", "cases.jsonl", "--out", "verdicts.jsonl", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [(v.get("id"), v["correct"], v["reason"]) for v in verdicts] == [
        (7, True, "correct"), (None, False, "wrong"), ("c", False, "empty"),
    ]  # fmt: skip
    assert json.loads(done.stdout)["num_correct"] == 1


def test_a_bad_row_of_grade_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text('{"gold": "1", "prediction": "1"}\n{\n')
    assert "cases.jsonl:2" in mistake("grade", "--in", "cases.jsonl", "--out", "v.jsonl", cwd=tmp_path)


def test_grade_explains_one_pair(inside: Inside) -> None:
    code, out, stderr = inside("grade", "--gold", "-1/2", "--prediction", r"\boxed{1/2}")
    assert (code, out) == (0, "wrong: the last \\boxed{} holds 1/2, which is -1/2 with the other sign\n"), stderr
    code, out, _ = inside("grade", "--gold", "5", "--prediction", "", "--json")
    assert json.loads(out)["explanation"] == "there is no text"
    for half in (["--gold", "5"], ["--in", "x.jsonl"], [], ["--in", "x", "--out", "y", "--gold", "5"]):
        code, _, stderr = inside("grade", *half)
        assert code == 2
        assert "--gold TEXT --prediction TEXT" in stderr


# --- audit-rewards ------------------------------------------------------------------------------------------------------


def test_audit_rewards_lists_what_a_reward_got_wrong(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def inside(completions, answer): return [a in c for a, c in zip(answer, completions)]\n"
    )
    code, out, stderr = inside("audit-rewards", "mine.py:inside", cwd=tmp_path)
    assert code == 0, stderr
    assert "false accept: all candidates (the gold answer listed among all candidates)" in out
    code, out, _ = inside("audit-rewards", "mine.py:inside", "--json", cwd=tmp_path)
    assert json.loads(out)["rewards"][0]["false_accepts"] > 30
    code, _, stderr = inside("audit-rewards", "cosine")
    assert code == 2
    assert "shapes a reward" in stderr


def test_audit_rewards_grades_the_answers_of_files(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"problem": "p", "answer": "1/2"}\n')
    code, out, stderr = inside("audit-rewards", "accuracy", "--data", ".", "--json", cwd=tmp_path)
    assert code == 0, stderr
    assert json.loads(out)["all"][0]["right_frac"] == 1.0
    code, out, _ = inside("audit-rewards", "accuracy", "--data", "tasks.jsonl", cwd=tmp_path)
    assert "100.00%" in out


def test_a_full_disk_exits_with_3(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk; what was there before stays."""
    rows = [{"id": "x" * 500, "gold": "5", "prediction": "5"}]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "verdicts.jsonl").write_text("before")
    done = subprocess.run(
        [str(STROP), "grade", "--in", "cases.jsonl", "--out", "verdicts.jsonl"],
        cwd=tmp_path, env=os.environ | CHEAP, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "verdicts.jsonl could not be written" in done.stderr.strip().splitlines()[-1]
    assert (tmp_path / "verdicts.jsonl").read_text() == "before"


def test_what_an_exception_means() -> None:
    assert cli._code_of(UserError("typed wrong")) == 2
    assert cli._code_of(DiskFull("no room")) == 3
    assert cli._code_of(VerifierBroken("failed on most")) == 3
    assert cli._code_of(NonFinite("loss nan")) == 3
    assert cli._code_of(ValueError("ours")) == 1


def test_the_first_ctrl_c_asks_and_the_second_aborts(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with cli.recipes.stop_on_ctrl_c() as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C again aborts" in capfd.readouterr().err


def test_probe_says_which_loss_moves_lengths_and_measures_a_run(inside: Inside, tmp_path: Path) -> None:
    code, out, _ = inside("probe", "length-bias", "--stop", "0.2", "--plot", str(tmp_path / "bias.svg"))
    assert code == 0
    assert "wrong answers grow" in out
    assert (tmp_path / "bias.svg").read_text().startswith("<svg")
    code, _, err = inside("probe", "length-bias", str(tmp_path))
    assert (code, "not a run directory" in err) == (2, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["length-bais"], "did you mean length-bias?"),
        (["runs/nowhere"], "runs/nowhere is not a run directory"),
        (["length-bias", "--samples", "4"], "--samples has no effect on strop probe length-bias; leave it out"),
        (["length-bias", "a", "b"], "takes one run, not 2"),
        (["{run}", "--stop", "0.2"], "--stop has no effect on a probe of answers"),
        (["{run}", "--samples", "4"], "--samples has no effect on a run, whose answers are there already"),
        (["{run}", "--judged", "4"], "--judged has no effect on a probe without --judge URL"),
        (
            ["{run}:after_sft"],
            "'after_sft' has greedy answers only; a probe needs sampled ones: set stages.after_sft.samples=8",
        ),
        (["some/model", "--tasks", "amc2"], "did you mean 'amc23'"),
        (["some/model", "other", "--tasks", "amc23"], "models are probed one at a time"),
    ],
)
def test_probe_says_what_to_type_instead(inside: Inside, tmp_path: Path, args: list[str], message: str) -> None:
    write_run(tmp_path / "run", num_tasks=4)
    code, _, err = inside("probe", *(arg.format(run=tmp_path / "run") for arg in args))
    assert (code, message in err) == (2, True), err


def test_probe_of_a_model_samples_it_first_and_goes_on_with_what_is_there(
    inside: Inside, tmp_path: Path, tiny_model: Path
) -> None:
    rows = [{"problem": f"{n} + 1?", "answer": str(n + 1)} for n in range(3)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    typed = ("probe", str(tiny_model), "--tasks", str(tmp_path / "sums.jsonl"), "--samples", "2", "--max-tokens", "4",
             "--out", str(tmp_path / "probe"))  # fmt: skip
    code, out, _ = inside(*typed)
    assert code == 0, out
    assert "3 tasks" in out
    summary = json.loads((tmp_path / "probe" / "summary.json").read_text())
    assert summary["stages"]["eval"]["num_samples"] == 2
    code, again, said = inside(*typed)
    assert (code, again) == (0, out)
    assert "nothing is left to do" in said


def test_doctor_has_findings(inside: Inside) -> None:
    code, out, _ = inside("doctor", "--json")
    assert code == 0
    assert {"cores", "memory"} <= {finding["name"] for finding in json.loads(out.splitlines()[-1])["findings"]}
