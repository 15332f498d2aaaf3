"""`strop run` with answers from a server: the same run directory as without one, and what cannot be had from it is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from openai_server import Tiny, serving
from strop import compare, config, model, pipeline, solve
from strop.config import Recipe, parse_recipe
from strop.record import UserError, read_rollouts
from strop.report import page as report
from strop.watch import Watch

SUMS = {"source": "arithmetic", "train": 8, "heldout": 4, "dev": 2, "settings": {"terms": 2, "ops": "+"}}
LOOK = {"name": "look", "do": "evaluate", "tasks": ["sums"], "max_tokens": 6, "samples": 2}
RL = {"name": "rl", "do": "train", "tasks": {"sums": 1}}
SFT = {"name": "sft", "do": "sft", "tasks": ["sums"]}


def recipe(name: object, server: str, *stages: dict, **sections: dict) -> Recipe:
    model = {"name": str(name)} | sections.pop("model", {})
    data = {"model": model, "tasks": {"sums": SUMS}, "checks": {"workers": 1}, "engine": {"server": server}}
    return parse_recipe(data | {"stages": list(stages or [LOOK])} | sections)


def run(job: Recipe, out: Path, **options) -> dict:
    return pipeline.run(job, out=out, watch=Watch(open("/dev/null", "w"), live=False), **options)


@pytest.fixture(scope="module")
def tiny(tiny_model) -> Tiny:
    return Tiny(model.load(config.Model(name=str(tiny_model))))


@pytest.fixture
def url(tiny) -> Iterator[str]:
    with serving(tiny) as url:
        yield url


def test_the_same_run_through_a_server(tiny_model, tmp_path, url, monkeypatch):
    here = run(recipe(tiny_model, ""), tmp_path / "here")
    with monkeypatch.context() as patch:
        patch.delattr(model, "load")  # no weights are loaded
        there = run(recipe("tiny", url), tmp_path / "there")
    assert there["finished"]
    assert (here["engine"], there["engine"]) == ("native", f"tiny at {url}, in its own chat template")
    for figure in ("greedy_acc", "num_tasks", "mean_tokens", "truncated_frac", "verdict_reasons", "num_samples"):
        assert there["stages"]["look"][figure] == here["stages"]["look"][figure], figure
    greedy = [read_rollouts(tmp_path / name / "rollouts/look/greedy.parquet") for name in ("here", "there")]
    assert [r.text for r in greedy[0]] == [r.text for r in greedy[1]]
    assert [r.token_ids.tolist() for r in greedy[0]] == [r.token_ids.tolist() for r in greedy[1]]
    names = [sorted(str(p.relative_to(tmp_path / n)) for p in (tmp_path / n).rglob("*")) for n in ("here", "there")]
    assert names[0] == names[1]
    assert "report.html" in names[1]
    greedy_row, sampled_row = compare.run(f"{tmp_path / 'here'}:look", f"{tmp_path / 'there'}:look")
    assert (greedy_row["metric"], sampled_row["metric"]) == ("greedy_acc", "mean_acc")
    assert greedy_row["delta"] == 0
    ours, theirs = (told["stages"]["look"]["fingerprint"] for told in (here, there))
    assert (theirs["model"], theirs["generation"], theirs["served_as"]) == (None, None, "tiny")
    assert theirs.keys() == ours.keys() | {"served_as"}
    assert "127.0.0.1" not in json.dumps(theirs)
    page = (tmp_path / "there/report.html").read_text()
    assert "not known, served as tiny" in page
    assert "Weights not known, served as: " in report.table(tmp_path / "there", "markdown")


def test_a_server_that_is_not_there_leaves_the_folder_as_it_was(tmp_path):
    with pytest.raises(UserError, match=r"no server answers at http://127\.0\.0\.1:9/v1"):
        run(recipe("tiny", "http://127.0.0.1:9/v1"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_resume_is_answered_by_the_same_model(tmp_path, tiny):
    out = tmp_path / "run"
    answered = lambda: (out / "rollouts/look/greedy.parquet").exists()  # noqa: E731
    with serving(tiny) as url:
        job = recipe("tiny", url)
        assert not run(job, out, stop_requested=answered)["finished"]
        num_asked = len(tiny.posted)
        tiny.names = ("another",)
        try:
            with pytest.raises(UserError, match=r"was answered by tiny at .* now it would be another at"):
                run(job, out, resume=True)
        finally:
            tiny.names = ("tiny",)
        assert len(tiny.posted) == num_asked
        assert run(job, out, resume=True)["finished"]
        assert len(tiny.posted) == num_asked + 8  # the greedy pass was not asked for again


def test_the_key_comes_from_the_environment(tmp_path, tiny, url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    run(recipe("tiny", url), tmp_path / "run")
    assert tiny.posted[-1]["_key"] == "Bearer secret"
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()


@pytest.mark.parametrize(
    ("server", "stages", "sections", "words"),
    [
        ("http://x/v1", [RL], {}, "nothing can be trained with it"),
        ("vllm", [SFT, LOOK], {}, "nothing can be trained with it"),
        ("http://x/v1", [], {"chat": {"prefill": "<think>"}}, "set engine.server to vllm"),
        ("http://x/v1", [], {"chat": {"template": "{{ messages }}"}}, "applies its own chat template"),
        ("http://x/v1", [], {"model": {"dtype": "bfloat16"}}, "model.dtype has no effect"),
        ("vllm", [], {"model": {"device": "cpu"}}, "model.device has no effect"),
        ("vllm", [], {"model": {"lora": {"rank": 4}}}, "model.lora has no effect"),
        ("localhost:8000", [], {}, "such as http://localhost:8000/v1"),
        ("http://localhost:8000", [], {}, "such as http://localhost:8000/v1"),
        ("http://me:secret@x/v1", [], {}, "OPENAI_API_KEY"),
        ("sglang", [], {}, "server is vllm or a URL"),
    ],
)
def test_what_a_server_cannot_do_is_refused(server, stages, sections, words):
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        recipe("tiny", server, *stages, **sections)


def test_what_it_can_do_is_not():
    assert recipe("qwen3:0.6b", "http://x:8000/openai/v1/").engine.server == "http://x:8000/openai/v1"
    job = recipe("tiny", "vllm", chat={"prefill": "<think>", "template": "{{ messages }}"}, model={"dtype": "bfloat16"})
    assert not job.engine.at_url


def test_a_dry_run_asks_no_server(monkeypatch, tiny_model):
    told: list[str] = []
    found = pipeline.check(recipe("qwen3:0.6b", "http://127.0.0.1:9/v1"), say=told.append)
    assert "model: qwen3:0.6b" in found["not_checked"]
    monkeypatch.setenv("STROP_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(UserError, match="STROP_VLLM_PYTHON"):
        pipeline.check(recipe(tiny_model, "vllm"), say=told.append)


def test_solve_has_no_weights_to_ask(tmp_path, url):
    run(recipe("tiny", url), tmp_path / "run")
    with pytest.raises(UserError, match=f"answered by a server at {url}"):
        solve.run(tmp_path / "run", "Compute 2 + 2.")


def test_vllm_answers_a_recipe_in_our_own_words(tiny_model, tmp_path, tiny, monkeypatch):
    """The pipeline's part of it, with the URL of a server that is there in place of a process."""
    from contextlib import contextmanager

    from strop.engine import vllm
    from strop.engine.remote import Endpoint, by_token_ids

    settings = {"chat": {"template": "{{ messages[0].content }}\n", "prefill": "So"}}
    here = run(recipe(tiny_model, "", **settings), tmp_path / "here")
    asked: dict = {}

    @contextmanager
    def serve(source, chat, **options):
        asked.update(options, source=source)
        with serving(tiny) as url:
            yield by_token_ids(Endpoint(url), chat)

    monkeypatch.setattr(vllm, "serve", serve)
    monkeypatch.setattr(vllm, "check", lambda: None)
    there = run(
        recipe(tiny_model, "vllm", engine={"server": "vllm", "max_prompt_tokens": 50}, **settings), tmp_path / "there"
    )
    assert asked == {
        "source": str(tiny_model), "dtype": "float32", "max_batch": 256, "max_tokens": 56, "trust_remote_code": False,
    }  # fmt: skip
    assert there["engine"] == "vLLM"
    assert there["stages"]["look"]["greedy_acc"] == here["stages"]["look"]["greedy_acc"]
    greedy = [read_rollouts(tmp_path / name / "rollouts/look/greedy.parquet") for name in ("here", "there")]
    assert [r.token_ids.tolist() for r in greedy[0]] == [r.token_ids.tolist() for r in greedy[1]]
    assert json.loads((tmp_path / "there/summary.json").read_text())["recipe"]["engine"]["server"] == "vllm"
    ours, theirs = (told["stages"]["look"]["fingerprint"] for told in (here, there))
    for key in ("model", "generation", "chat", "tasks", "sampling"):
        assert theirs[key] == ours[key]
    assert theirs["served_as"] == tiny_model.name
    assert str(tiny_model) not in json.dumps(theirs)
