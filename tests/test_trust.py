"""What Strop may be trusted with: pickles, remote code, paths and tags of others, and the keys of whoever runs it."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import faults
from strop import config, disk, model
from strop.config import load_curation, load_recipe, parse_recipe
from strop.engine import remote
from strop.record import UserError
from strop.redact import redact, secret_in

STROP = Path(sys.executable).with_name("strop")


class Opens:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


# --- code in data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.safetensors", "adapter_model.bin"]
)
def test_a_pickle_is_refused_and_not_read(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """Also one that is called safetensors, and an adapter's."""
    folder, proof = tmp_path / "model", tmp_path / "it_ran"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Opens(proof)))
    if name.startswith("adapter"):
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tiny_model), "r": 4, "lora_alpha": 8})
        )
    with pytest.raises(UserError, match=r"pickled weights|cannot be loaded|only safetensors"):
        model.load(config.Model(name=str(folder)))
    assert not proof.exists()
    faults.told(f"a pickle for weights ({name})", injected=1, survived=1)


def test_a_pickle_beside_safetensors_is_not_read(tiny_model: Path, tmp_path: Path) -> None:
    folder, proof = tmp_path / "model", tmp_path / "it_ran"
    shutil.copytree(tiny_model, folder)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl"):
        (folder / name).write_bytes(pickle.dumps(Opens(proof)))
    model.load(config.Model(name=str(folder)))
    assert not proof.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_not_run_unless_asked_for(file: str, tiny_model: Path, tmp_path: Path) -> None:
    folder, proof = tmp_path / "model", tmp_path / "it_ran"
    shutil.copytree(tiny_model, folder)
    (folder / "theirs.py").write_text(f"open({str(proof)!r}, 'w')\nclass Theirs: pass\n")
    said = json.loads((folder / file).read_text())
    said["auto_map"] = {
        "AutoTokenizer": ["theirs.Theirs", None],
        "AutoModelForCausalLM": "theirs.Theirs",
        "AutoConfig": "theirs.Theirs",
    }
    said.pop("tokenizer_class", None)
    (folder / file).write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"own Python code|custom code|cannot be loaded"):
        model.load(config.Model(name=str(folder)))
    assert not proof.exists()
    faults.told(f"code of a model's own ({file})", injected=1, survived=1)


TAGS = [
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/apply:builtins.open ['{}', 'w']",
    "!!python/object/new:builtins.open ['{}', 'w']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!local {{a: 1}}",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_tags_make_no_objects(tag: str, tmp_path: Path) -> None:
    """In a recipe, in a curation, in a value of --set."""
    proof = tmp_path / "it_ran"
    value = tag.format(proof)
    (tmp_path / "r.yaml").write_text(f"seed: {value}\n")
    for load in (load_recipe, load_curation):
        with pytest.raises(UserError, match="is not YAML"):
            load(tmp_path / "r.yaml")
    with pytest.raises(UserError, match="is not YAML"):
        parse_recipe(recipe(), overrides=[f"seed={value}"])
    assert not proof.exists()
    faults.told(f"YAML tag {tag.split()[0]}", injected=3, survived=3)


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    """Nine lists of nine: a thousand million entries, were they written out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (tmp_path / "r.yaml").write_text("\n".join([*lines, "chat: {system: *a9}", "tasks: *a9", "stages: *a9"]))
    with pytest.raises(UserError):
        load_recipe(tmp_path / "r.yaml")


# --- paths of others --------------------------------------------------------------------------------------------------


def recipe(**changes: object) -> dict:
    return {
        "tasks": {"sums": {"source": "arithmetic", "train": 8, "heldout": 4, "dev": 4}},
        "stages": [{"name": "before", "do": "evaluate", "tasks": ["sums"], "max_tokens": 4}],
        "checks": {"workers": 1},
        **changes,
    }


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/b", "..", ".", "a\n", "a\x00", "", "a\\b", "~", "A", "ä"])
def test_a_stage_is_called_by_a_name_and_not_by_a_path(name: str) -> None:
    stages = [{"name": name, "do": "evaluate", "tasks": ["sums"]}]
    with pytest.raises(UserError, match="stages"):
        parse_recipe(recipe(stages=stages))


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_task_set_with_a_paths_name_writes_nothing_outside_the_run(tiny_model: Path, tmp_path: Path) -> None:
    from strop import pipeline
    from strop.watch import Watch

    for i, name in enumerate(("../../outside", "/tmp/strop_outside", "a/b", "..")):
        folder = tmp_path / str(i) / "deep" / "deeper"
        folder.mkdir(parents=True)
        job = parse_recipe(
            recipe(
                model={"name": str(tiny_model)},
                tasks={name: {"source": "arithmetic", "train": 8, "heldout": 4, "dev": 4}},
                stages=[{"name": "before", "do": "evaluate", "tasks": [name], "max_tokens": 4}],
            )
        )
        before = everything_below(tmp_path)
        with open(os.devnull, "w") as nowhere:
            pipeline.run(job, out=folder / "run", watch=Watch(nowhere, live=False))
        made = everything_below(tmp_path) - before
        assert made
        assert all(path.is_relative_to(folder / "run") for path in made)
        assert not Path("/tmp/strop_outside").exists()
        faults.told("a task set called by a path", injected=1, survived=1)


def test_a_manifest_that_names_files_outside_is_damage(tmp_path: Path) -> None:
    disk.save_folder(tmp_path / "c", lambda folder: (folder / "w").write_text("x") and None)
    manifest = tmp_path / "c" / "manifest.json"
    said = json.loads(manifest.read_text())
    for name in ("../outside", "/etc/hostname", "../../../../etc/passwd"):
        manifest.write_text(json.dumps(said | {"files": said["files"] | {name: {"bytes": 1, "sha256": "0" * 64}}}))
        assert disk.what_is_wrong(tmp_path / "c") is not None


# --- keys and passwords -----------------------------------------------------------------------------------------------

PLANTED = {
    "OPENAI_API_KEY": "sk-planted0123456789abcdefgh",
    "HF_TOKEN": "hf_planted0123456789abcdefghij",
    "WANDB_API_KEY": "9f8e7d6c5b4a39281706f5e4d3c2b1a0planted",
    "DATABASE_PASSWORD": "correct.horse.battery.staple",
    "SERVICE_SECRET": "qqPLANTEDqqPLANTEDqq",
}
IN_A_URL = "opensesame7"


def leaks(text: str) -> list[str]:
    return [secret for secret in (*PLANTED.values(), IN_A_URL) if secret in text]


def written(folder: Path) -> Iterator[tuple[Path, str]]:
    """All that a run has written, Parquet unpacked."""
    for path in folder.rglob("*"):
        if path.is_file():
            packed = path.suffix == ".parquet"
            yield path, str(pq.read_table(path).to_pylist()) if packed else path.read_bytes().decode(errors="replace")


REWARD = """
import os
calls = []
def leaky(completions, **columns):
    calls.append(1)  # the first is a trial, before the run begins
    if len(calls) == int(os.environ["LEAK"]):
        raise RuntimeError("cannot reach http://user:opensesame7@host with " + " and ".join(os.environ[k] for k in {names}))
    return [float(len(c)) for c in completions]
"""


@pytest.mark.parametrize("ends", ["well", "refused", "in the middle"])
def test_no_key_reaches_what_a_run_writes_or_says(ends: str, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(REWARD.format(names=list(PLANTED)))
    stage = {
        "name": "rl", "do": "train", "tasks": {"sums": 1.0}, "prompts_per_step": 2, "group_size": 2, "steps": 2, "max_tokens": 4,
        "heldout_every": 0, "rewards": [{"name": f"{tmp_path}/leaky.py:leaky"}],
    }  # fmt: skip
    job = recipe(model={"name": str(tiny_model)}, stages=[*recipe()["stages"], stage])
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(job))
    done = subprocess.run(
        [STROP, "run", tmp_path / "r.yaml", "--out", tmp_path / "run", "--json", "--set", "seed=1"], text=True, capture_output=True,
        timeout=240, env=os.environ | PLANTED | {"HF_HUB_OFFLINE": "1", "LEAK": {"well": "99", "refused": "1", "in the middle": "2"}[ends]},
    )  # fmt: skip
    assert done.returncode == (0 if ends == "well" else 2), done.stderr
    assert ("cannot reach http://***@host" in done.stderr) == (ends != "well")
    assert not leaks(done.stdout + done.stderr), done.stderr
    found = dict(written(tmp_path / "run"))
    assert not {path: leaks(text) for path, text in found.items() if leaks(text)}
    if ends == "well":
        assert {"log.txt", "argv.json", "summary.json", "recipe.yaml", "report.html", "metrics.jsonl"} <= {
            p.name for p in found
        }
    faults.told(
        f"keys in the environment of a run that ends {ends}", injected=len(PLANTED) + 1, survived=len(PLANTED) + 1
    )


def test_no_key_reaches_a_traceback() -> None:
    """What is our fault is told in full, but for those."""
    program = "import os, sys\nfrom strop import cli\ndef fails():\n    raise KeyError(' '.join(os.environ.values()))\ncli.app = fails\ncli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program], text=True, capture_output=True, env=os.environ | PLANTED, timeout=60
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "our fault" in done.stderr
    assert not leaks(done.stderr)


TYPED = [
    "engine.server=http://ann:opensesame7@localhost:9/v1",
    "model.name=https://ann:opensesame7@hub.example/owner/model",
    "tasks.sums.source=https://ann:opensesame7@example.org/tasks.jsonl",
    f"chat.system=Use {PLANTED['OPENAI_API_KEY']} to log in.",
    f"model.api_key={PLANTED['HF_TOKEN']}",
    f"tasks.sums.settings.token={PLANTED['HF_TOKEN']}",
    "tasks.sums.settings.password=opensesame7",
    f"engine.server=http://localhost:9/{PLANTED['OPENAI_API_KEY']}/v1",
]


@pytest.mark.parametrize("typed", TYPED)
def test_a_key_in_a_recipe_is_refused_without_being_said(typed: str, tmp_path: Path) -> None:
    """Typed as --set, or in the file: nothing is written, and the sentence does not have it."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe()))
    done = subprocess.run(
        [STROP, "run", tmp_path / "r.yaml", "--out", tmp_path / "run", "--set", typed],
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "looks like a key or a password" in done.stderr
    assert not leaks(done.stdout + done.stderr)
    assert not (tmp_path / "run").exists()
    faults.told("a key in a recipe", injected=1, survived=1)


class Echo(http.server.BaseHTTPRequestHandler):
    """Refuses, and says of whom."""

    def do_GET(self) -> None:
        said = f"Incorrect API key provided: {self.headers['Authorization']}".encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("key", [PLANTED["OPENAI_API_KEY"], "noformofakey"])
def test_a_server_that_repeats_the_key_is_not_quoted_whole(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server = http.server.HTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(UserError, match="401") as refused:
            remote.connect(f"http://127.0.0.1:{server.server_port}/v1", "m", key)
    finally:
        server.shutdown()
        server.server_close()
    assert key not in str(refused.value)


HIDING = [
    {"answer": 's = "token=abc12345"'}, {"answer": "password=abc12345\\"}, {"by_tasks": {"secret": 0.53125}}, {"token": 123456789},
    {"secret": [12345678, None, True]}, {"api_key": "hunter2hunter2", "a": {"http://ann:opensesame7@host": [{"b": "Bearer abcdefgh1"}]}},
    {"said": f'"{PLANTED["DATABASE_PASSWORD"]}"\n'}, {"numbers": 271828182},
]  # fmt: skip


def test_what_is_written_without_a_secret_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of values as they are encoded nothing goes but the secret: no escape, no bracket and no number."""
    monkeypatch.setenv("DATABASE_PASSWORD", PLANTED["DATABASE_PASSWORD"])
    monkeypatch.setenv("SOME_TOKEN", "271828182")
    disk.write_json(tmp_path / "all.json", HIDING)
    disk.write_rows(tmp_path / "rows.jsonl", HIDING)
    for row in HIDING:
        disk.append_row(tmp_path / "more.jsonl", row)
    found = json.loads((tmp_path / "all.json").read_text())
    assert disk.read_lines(tmp_path / "rows.jsonl") == (found, False)
    assert disk.read_lines(tmp_path / "more.jsonl") == (found, False)
    assert found == [
        {"answer": 's = "token=***"'}, {"answer": "password=***"}, *HIDING[2:5],
        {"api_key": "***", "a": {"http://***@host": [{"b": "Bearer ***"}]}}, {"said": '"***"\n'}, HIDING[7],
    ]  # fmt: skip


def test_a_recipe_that_is_written_can_be_read(tmp_path: Path) -> None:
    sets = {"token": {"source": "arithmetic", "settings": {"secret": 12345678.5}}, "sums": recipe()["tasks"]["sums"]}
    read = parse_recipe(recipe(tasks=sets))
    disk.write_text(tmp_path / "recipe.yaml", read.to_yaml(), is_data=True)
    assert load_recipe(tmp_path / "recipe.yaml") == read
    of_python = read.model_copy(update={"chat": read.chat.model_copy(update={"system": 'say: "token=abc12345"\n'})})
    assert yaml.safe_load(of_python.to_yaml())["chat"]["system"] == 'say: "token=***"\n'


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_KEY", "/home/ann/.ssh/id_rsa")
    monkeypatch.setenv("PRESS_ANY_KEY", "enter")
    for text in (
        "max_tokens=12345678 microbatch_tokens: 16384", "stages.rl.budget.tokens=[128, 1024]", "http://localhost:8000/v1",
        "mail ann@example.org", "enter /home/ann/.ssh/id_rsa", "the keys: 12345678", "task sk-1", "hf_hub", "https://pypi.org/simple @ 3",
        "The secret is out: 12 + 30 = 42.", "a token: <|im_end|>", "the answer key = \\boxed{123456789}",
    ):  # fmt: skip
        assert redact(text) == text
    for path in Path(__file__).parent.parent.joinpath("recipes").glob("*.yaml"):
        assert secret_in(yaml.safe_load(path.read_text())) is None
