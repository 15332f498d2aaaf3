"""Base against trained, by hand and against all ways to deal the samples; perplexity against the model's own logits; the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from openai_server import said, serving
from sampled import TASKS, sampled
from strop import probe
from strop.cli.samples import _endpoint
from strop.config import Engine, EvaluateStage, Model, Recipe, parse_recipe
from strop.engine.remote import Endpoint
from strop.probe import after, evaluations, judge, words
from strop.probe.text import BEHAVIOURS
from strop.record import Rollout, UserError, replace, write_rollouts, write_tasks

BASE = ["+---", "+-+-", "----", "++++", "---+"]
TRAINED = ["----", "++++", "----", "++++", "++-+"]


def test_tasks_lost_and_won_with_what_chance_would_make_of_them():
    """Of a task's samples of both, any four are as likely the base's, were both one model."""
    found = after.measure(sampled(BASE), sampled(TRAINED)[::-1])
    assert (found.lost.tasks, found.won.tasks) == ([TASKS[0].id], [])
    lost, won = [], []
    for one, other in zip(BASE, TRAINED, strict=True):
        both = one + other
        deals = [({both[i] for i in d}, {both[i] for i in range(8) if i not in d}) for d in combinations(range(8), 4)]
        lost.append(np.mean(["+" in mine and "+" not in theirs for mine, theirs in deals]))
        won.append(np.mean(["+" in theirs and "+" not in mine for mine, theirs in deals]))
    assert found.lost.expected == pytest.approx(sum(lost))
    assert found.won.expected == pytest.approx(sum(won))
    assert found.lost.spread == pytest.approx(np.sqrt(sum(p * (1 - p) for p in lost)))


def test_unequal_numbers_of_samples_are_dealt_as_they_are():
    found = after.measure(sampled(["+-------", "--------"]), sampled(["--", "--"]))
    assert found.lost.expected == pytest.approx(8 / 10)  # one right sample of ten falls among the base's eight
    assert found.won.expected == pytest.approx(2 / 10)
    assert [p.k for p in found.trained_pass] == [1, 2]


def test_gain_and_curves_are_paired_by_task():
    found = after.measure(sampled(BASE), sampled(TRAINED)[::-1])
    assert found.gain.delta == pytest.approx((11 - 8) / 20)
    assert found.base_pass[-1].value == pytest.approx(4 / 5)
    assert found.trained_pass[-1].value == pytest.approx(3 / 5)
    assert found.crossover.k == 3  # 2.83 / 5 against 3 / 5 at two tries, 3.5 / 5 against 3 / 5 at three
    text = "\n".join(words.after(found, "before", "after_rl"))
    assert "At 3 tries before catches up with after_rl" in text
    assert "1 tasks were solved by before alone" in text


def test_a_base_that_never_catches_up():
    found = after.measure(sampled(["----", "+---"] * 10), sampled(["++--", "++++"] * 10))
    assert found.crossover.k is None
    assert "does not catch up" in "\n".join(words.after(found, "a", "b"))


def test_other_tasks_are_refused():
    with pytest.raises(UserError, match=r"different tasks \(2 and 3, 2 shared\)"):
        after.measure(sampled(["++", "--"]), sampled(["++", "--", "+-"]))


# --- perplexity


@pytest.fixture(scope="module")
def policy(tiny_model: Path):
    from strop import model

    return model.load(Model(name=str(tiny_model), device="cpu"))


def written(policy, text: str, task: int, sample: int) -> Rollout:
    prompt = policy.tokenizer.encode(TASKS[task].prompt)
    ids = np.array(prompt + policy.tokenizer.encode(text), np.int32)
    mask = np.arange(len(ids)) >= len(prompt)
    (plain,) = sampled(["-"], [TASKS[task]])
    return replace(plain, sample=sample, token_ids=ids, sampled=mask, trained=mask.copy(), text=text, temperature=0.7)


def test_perplexity_is_that_of_the_plain_softmax(policy, tiny_model):
    """Token by token through the library's own forward; the temperature it was sampled at has no part in it."""
    import torch
    import transformers

    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    rollouts = [written(policy, text, task, 0) for task, text in enumerate(["seven", "It is 8, I think.", "?"])]
    for r, value in zip(rollouts, after.perplexity(policy, rollouts), strict=True):
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([r.token_ids.tolist()])).logits[0].double()
        logprobs = torch.log_softmax(logits, -1).numpy()
        nats = [-logprobs[t - 1, r.token_ids[t]] for t in np.flatnonzero(r.sampled)]
        assert value == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)


def test_answers_that_the_base_itself_would_write_are_likelier(policy):
    from strop.config import Chat
    from strop.engine import Sampling
    from strop.engine.native import NativeEngine

    engine = NativeEngine(policy, policy.chat(Chat()), max_batch=16)
    own = engine.generate(TASKS[:6], num_samples=2, sampling=Sampling(temperature=1.0, max_tokens=12), seed_path=("t",))
    own = [r for r in own if r.num_sampled]
    strange = [replace(written(policy, "zq~#" * 3, i, k), task=TASKS[i]) for i in range(6) for k in range(2)]
    found = after.compare_perplexity(policy, own, strange)
    assert found.num_answers == 12
    assert found.gap.low > 0
    assert found.trained[1] > found.base[1]
    assert "nats a token" in words.surprise(found)[0]


def test_answers_in_other_tokens_cannot_be_scored(policy):
    r = written(policy, "seven", 0, 0)
    for other in (
        replace(r, text="eight"),
        replace(r, token_ids=np.where(r.sampled, -1, r.token_ids).astype(np.int32)),
    ):
        with pytest.raises(UserError, match="not known to be in tokens"):
            after.perplexity(policy, [other])


# --- the command, on run directories


def recipe_of(system: str = "", model: str = "smollm2-135m") -> Recipe:
    return parse_recipe({
        "model": {"name": model}, "chat": {"system": system},
        "tasks": {"easy": {"source": "arithmetic"}, "hard": {"source": "arithmetic"}},
        "stages": [
            {"name": "before", "do": "evaluate", "tasks": ["easy", "hard"], "greedy": False, "samples": 4},
            {"name": "rl", "do": "train", "tasks": {"hard": 1}},
            {"name": "after", "do": "evaluate", "tasks": ["easy", "hard"], "greedy": False, "samples": 4},
        ],
    })  # fmt: skip


def write_run(folder: Path, recipe: Recipe | None = None, before: list[str] = BASE, done: list[str] = TRAINED) -> Path:
    """The first two tasks are easy, the others hard."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text((recipe or recipe_of()).to_yaml())
    write_tasks(folder / "tasks.parquet", {"easy/heldout": TASKS[:2], "hard/heldout": TASKS[2:5]})
    for stage, rows in (("before", before), ("after", done)):
        write_rollouts(folder / "rollouts" / stage / "samples.parquet", sampled(rows))
    return folder


def test_one_evaluation_is_reported_with_advice(tmp_path):
    found = probe.run([f"{write_run(tmp_path / 'a')}:before"])
    assert found.data["before"]["num_tasks"] == 5
    assert found.data["advice"]["do"] == "rl"
    assert json.loads(json.dumps(found.data)) == found.data
    assert "signal at 4" in "\n".join(found.lines)


def test_task_sets_can_be_chosen(tmp_path):
    run_dir = write_run(tmp_path / "a")
    assert probe.run([f"{run_dir}:before"], tasks=["hard"]).data["before"]["num_tasks"] == 3
    with pytest.raises(UserError, match="did you mean 'hard'"):
        probe.run([f"{run_dir}:before"], tasks=["hrad"])


def test_two_models_are_base_and_trained(tmp_path):
    run_dir = write_run(tmp_path / "a")
    found = probe.run([f"{run_dir}:before", f"{run_dir}:after"])
    assert found.data["names"] == ["before", "after"]
    assert found.data["after"]["lost"]["tasks"] == [TASKS[0].id]
    assert found.lines[2].startswith("No difference could be shown between before and after: +15.0 points")


def test_one_model_in_two_templates(tmp_path):
    plain, boxed = write_run(tmp_path / "plain"), write_run(tmp_path / "boxed", recipe_of("Box it."), before=TRAINED)
    found = probe.run([f"{plain}:before", f"{boxed}:before"])
    first, second = found.data["templates"]
    assert "no system prompt" in first["chat"]
    assert "'Box it.'" in second["chat"]
    assert second["against_first"]["right"]["value"] == pytest.approx(3 / 20)


def test_perplexity_of_a_run_is_under_the_weights_that_the_base_evaluation_had(tmp_path, policy, tiny_model):
    run_dir = write_run(tmp_path / "a", recipe_of(model=str(tiny_model)))
    rollouts = {
        name: [written(policy, name * 3, i, k) for i in range(5) for k in range(2)] for name in ("before", "after")
    }
    for stage, answers in rollouts.items():
        write_rollouts(run_dir / "rollouts" / stage / "samples.parquet", answers)
    found = probe.run([f"{run_dir}:before", f"{run_dir}:after"], perplexity=True)
    assert found.data["perplexity"]["base"][1] == pytest.approx(np.median(after.perplexity(policy, rollouts["before"])))
    assert found.lines[-1].startswith("perplexity under the base, 10 answers each")


def judging(names: Sequence[str]):
    """Answers every question with 2, in the words of a server."""

    def respond(path: str, posted: dict) -> tuple[int, bytes, dict[str, str]]:
        if path.endswith("/models"):
            return said({"data": [{"id": name} for name in names]})
        message = {
            "message": {"content": f"Well. <count>{2 if posted['model'] == 'good' else 'x'}</count>"},
            "finish_reason": "stop",
        }
        return said({"choices": [message], "usage": {"completion_tokens": 5}})

    return respond


def test_a_judge_is_asked_over_http(tmp_path):
    run_dir = write_run(tmp_path / "a")
    with serving(judging(["good"])) as url:
        found = probe.run([f"{run_dir}:before"], asked=Endpoint(url), num_judged=3)
    assert found.data["judged"]["kinds"]["reflects"] == 3
    assert found.data["judged"]["behaviours"] == dict.fromkeys(BEHAVIOURS, 2.0)
    assert "judge, 3 answers: 0 off topic, 0 no reflection, 3 reflects" in "\n".join(found.lines)


def test_a_judge_among_several_models_has_to_be_named(tmp_path):
    with serving(judging(["good", "bad"])) as url:
        with pytest.raises(UserError, match="serves good, bad; choose one with --judge-model"):
            _endpoint(url, None)
        endpoint = _endpoint(url, "bad")
        assert endpoint is not None
        found = probe.run([f"{write_run(tmp_path / 'a')}:before"], asked=endpoint, num_judged=2)
    assert found.data["judged"]["unjudged"] == dict.fromkeys(judge.QUESTIONS, 2)


def test_models_are_told_apart_by_fingerprint_where_there_is_one(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", recipe_of(model="elsewhere/the-same"))
    assert not evaluations.same_model(*(evaluations.read(f"{run}:before") for run in (a, b)))
    for run_dir in (a, b):
        summary = {"stages": {"before": {"fingerprint": {"model": "abc"}}}}
        (run_dir / "summary.json").write_text(json.dumps(summary))
    assert evaluations.same_model(*(evaluations.read(f"{run}:before") for run in (a, b)))


@pytest.mark.parametrize("weights", [None, "m, m at http://x/v1, in its own chat template"])  # the second in older runs
def test_what_two_servers_had_is_not_known_to_be_the_same(tmp_path, weights):
    runs = [write_run(tmp_path / name) for name in "ab"]
    assert evaluations.same_model(*(evaluations.read(f"{run}:before") for run in runs))
    for run_dir in runs:
        (run_dir / "summary.json").write_text(json.dumps({"stages": {"before": {"fingerprint": {"model": weights}}}}))
    found = [evaluations.read(f"{run}:before") for run in runs]
    asked = [replace(e, recipe=e.recipe.model_copy(update={"engine": Engine(server="http://x/v1")})) for e in found]
    assert not evaluations.same_model(*asked)
    assert all(e.fingerprint is None for e in asked)


def test_system_prompts_are_compared_through_a_url(tmp_path):
    """One name at one server is taken for one model, and that is said; the same name elsewhere is not."""
    runs = [write_run(tmp_path / name, at_url(system)) for name, system in (("a", ""), ("b", "In a box."))]
    for run_dir, url in zip(runs, ("http://x/v1",) * 2, strict=True):
        serve_as(run_dir, "m", url)
    found = probe.run([f"{run}:before" for run in runs])
    assert [row["chat"] for row in found.data["templates"]] == [
        "the server's template, no system prompt", "the server's template, system prompt 'In a box.'",
    ]  # fmt: skip
    assert "taken for one model because all answers are of m by m at http://x/v1" in "\n".join(found.lines)
    assert "a template of its own" in found.data["note"]
    serve_as(runs[1], "m", "http://y/v1")
    assert "after" in probe.run([f"{run}:before" for run in runs]).data
    with pytest.raises(UserError, match="servers' whose weights are not known"):
        probe.run([f"{runs[0]}:before", f"{runs[1]}:before", f"{runs[0]}:after"])


def at_url(system: str) -> Recipe:
    recipe = recipe_of(system)
    kept = [s for s in recipe.stages if isinstance(s, EvaluateStage)]
    engine = Engine(server="http://x/v1")
    return recipe.model_copy(
        update={"engine": engine, "stages": [s.model_copy(update={"from_": "base"}) for s in kept]}
    )


def serve_as(run_dir: Path, name: str, url: str) -> None:
    fingerprint = {"model": None, "served_as": name, "engine": f"{name} at {url}"}
    stages = {stage: {"fingerprint": fingerprint} for stage in ("before", "after")}
    (run_dir / "summary.json").write_text(json.dumps({"stages": stages}))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["{a}:before", "{a}:before"], {}, "named twice"),
        (["{a}:before", "{b}:before", "{a}:after"], {}, "are of different models"),
        (["{a}:before"], {"perplexity": True}, "--perplexity compares two models"),
        (["{a}:before", "{b}:before"], {"perplexity": True}, "--perplexity compares two models"),
        (["{a}:befor"], {}, "did you mean 'before'"),
        (["{a}:after"], {}, "greedy answers only"),
    ],
)
def test_what_cannot_be_probed(tmp_path, names, options, message):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    file = a / "rollouts" / "after" / "samples.parquet"
    if message == "greedy answers only":
        file.rename(file.with_name("greedy.parquet"))
        head, tail = (a / "recipe.yaml").read_text().rsplit("greedy: false", 1)
        (a / "recipe.yaml").write_text(f"{head}greedy: true{tail.replace('samples: 4', 'samples: 0', 1)}")
    with pytest.raises(UserError, match=message):
        probe.run([name.format(a=a, b=b) for name in names], **options)
