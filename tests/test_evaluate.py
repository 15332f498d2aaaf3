"""From answers to figures, by hand; the protocol of a pass (seeds, stops, fingerprints) on whole runs of a tiny model."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strop import answers, compare, evaluate, pipeline, stats
from strop.config import Recipe, parse_recipe
from strop.record import Reason, Rollout, Stop, Task, Verdict, read_rollouts, replace
from strop.watch import Watch


def answer(gold: str, given: str | None, tokens: int, stop: Stop = Stop.EOS) -> Rollout:
    task = Task.make(source="s", prompt=f"Who? {gold}", answer=gold, verifier="exact")
    ids = np.arange(tokens + 1, dtype=np.int32)
    correct = given is not None and given.casefold() == gold.casefold()
    reason = Reason.CORRECT if correct else Reason.WRONG if given else Reason.NO_ANSWER
    verdict = Verdict(correct=correct, extracted=given, reason=reason)
    return Rollout(
        task=task, group=0, sample=0, token_ids=ids, sampled=ids > 0, trained=ids < 0, stop=stop, verdict=verdict
    )


def test_figures_by_hand() -> None:
    found = evaluate.figures(
        [
            answer("A", "a", 4),
            answer("A", "A", 2),
            answer("B", "A", 6, Stop.LENGTH),
            answer("C", None, 8),
        ]
    )
    assert found["num_tasks"] == 4
    assert found["greedy_acc"] == 0.5
    assert found["ci95"] == pytest.approx(list(stats.wilson(2, 4)))
    assert found["mean_tokens"] == 5.0
    assert found["truncated_frac"] == 0.25
    assert found["verdict_reasons"] == {"correct": 2, "wrong": 1, "no_answer": 1}
    assert found["constant_acc"] == 0.5  # two of four gold answers are A
    assert found["commonest_frac"] == 0.75  # a, A, A
    assert (found["mean_acc"], found["num_samples"]) == (None, 0)


def test_answers_that_were_not_found_are_not_alike() -> None:
    assert evaluate.figures([answer("A", None, 1) for _ in range(5)])["commonest_frac"] == 0.2


def sampled(outcomes: list[list[str | None]], gold: str = "A") -> list[Rollout]:
    """Of each task the answers given, in the order of their samples."""
    return [
        replace(answer(f"{gold}", given, 3), group=place, sample=i)
        for place, row in enumerate(outcomes)
        for i, given in enumerate(row)
    ]


def votes(found: dict[str, Any]) -> dict[int, float]:
    return {p["k"]: p["value"] for p in found["maj_at_k"]}


def test_figures_of_samples_by_hand() -> None:
    """Three tasks, two seeds of two samples."""
    found = evaluate.figures(
        [], sampled([["A", "B", "A", "A"], ["B", "B", "B", "a"], ["B", None, "C", "B"]]), num_seeds=2
    )
    assert (found["greedy_acc"], found["ci95"]) == (None, None)
    assert (found["num_tasks"], found["num_samples"]) == (3, 4)
    assert found["mean_acc"] == pytest.approx(4 / 12)
    assert found["seed_accs"] == pytest.approx([1 / 6, 3 / 6])
    assert found["seed_std"] == pytest.approx(np.sqrt(2 * (1 / 6) ** 2))
    assert found["mean_ci95"] == list(stats.hierarchical_bootstrap([[1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]))
    assert [p["k"] for p in found["pass_at_k"]] == [1, 2, 4]
    by_hand = [(3 + 1 + 0) / 12, (1 + (1 - 3 / 6) + 0) / 3, 2 / 3]  # 1 - C(wrong, k) / C(4, k)
    assert [p["value"] for p in found["pass_at_k"]] == pytest.approx(by_hand)
    assert all(p["low"] <= p["value"] <= p["high"] for p in found["pass_at_k"])
    # pairs of the first task: three tie, three are A; of the second: three tie (a is A), three are B. Of four: A; B; B.
    assert votes(found) == {2: pytest.approx((4.5 / 6 + 1.5 / 6) / 3, abs=0.02), 4: pytest.approx(1 / 3)}


def test_no_answer_has_no_vote() -> None:
    found = evaluate.figures([], sampled([[None, None, "A", None]]))
    assert votes(found) == {2: pytest.approx(0.5, abs=0.05), 4: 1.0}  # half of the pairs hold the one answer


# --- whole runs ---------------------------------------------------------------------------------------------------------

SUMS = {"source": "arithmetic", "train": 0, "dev": 0, "heldout": 6, "settings": {"terms": 2, "ops": "+"}}
STAGE = {"name": "look", "do": "evaluate", "tasks": ["sums"], "max_tokens": 6, "samples": 3, "seeds": 2, "top_p": 0.9}


def job(
    model: object, *, sums: dict[str, Any] | None = None, chat: dict[str, Any] | None = None, **stage: Any
) -> Recipe:
    return parse_recipe({
        "model": {"name": str(model)}, "chat": chat or {}, "tasks": {"sums": sums or SUMS},
        "stages": [STAGE | stage], "engine": {"max_batch": 5}, "checks": {"workers": 1, "timeout_s": 60},
    })  # fmt: skip


def run(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    return pipeline.run(recipe, out=out, watch=Watch(open("/dev/null", "w"), live=False), **options)


def rollouts(out: Path, kind: str = "samples") -> list[Rollout]:
    return read_rollouts(out / "rollouts" / "look" / f"{kind}.parquet")


def assert_equal(one: list[Rollout], other: list[Rollout]) -> None:
    """Tokens, texts and verdicts alike; log-probabilities up to the rounding of another batch; times may differ."""
    for a, b in zip(one, other, strict=True):
        for field in fields(Rollout):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if isinstance(x, np.ndarray):
                np.testing.assert_allclose(x, y, rtol=0, atol=1e-5, err_msg=field.name)
            elif field.name != "seconds":
                assert x == y, field.name


@pytest.mark.parametrize("part_s", [0.0, 1e9], ids=["every answer a part", "saved at the stop"])
def test_a_pass_stopped_in_the_middle_goes_on_and_ends_the_same(tiny_model, tmp_path, monkeypatch, part_s):
    monkeypatch.setattr(answers, "PART_S", part_s)
    whole = run(job(tiny_model), tmp_path / "whole")
    calls = count()
    told = run(job(tiny_model), tmp_path / "run", stop_requested=lambda: next(calls) > 20)
    assert not told["finished"]
    parts = list((tmp_path / "run" / "rollouts" / "look").glob("samples.part_*.parquet"))
    assert len(parts) == 1 if part_s else len(parts) > 1
    had = sum(len(read_rollouts(path)) for path in parts)
    assert 6 < had < 30
    again = run(job(tiny_model), tmp_path / "run", resume=True)
    assert again["finished"]
    for kind in ("greedy", "samples"):
        assert_equal(rollouts(tmp_path / "whole", kind), rollouts(tmp_path / "run", kind))
    a, b = (s["stages"]["look"] for s in (whole, again))
    assert {k: v for k, v in a.items() if k != "wall_s"} == {k: v for k, v in b.items() if k != "wall_s"}
    assert not list((tmp_path / "run" / "rollouts" / "look").glob("*.part_*"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["pass"] for row in rows if row["kind"] == "pass"] == ["greedy", "samples", "samples"]


def test_a_resumed_pass_answers_only_what_is_missing(tiny_model, tmp_path, monkeypatch):
    from strop.engine.native import NativeEngine

    asked: list[int] = []
    generate = NativeEngine.generate
    monkeypatch.setattr(
        NativeEngine, "generate", lambda self, tasks, **kw: (asked.append(len(tasks)), generate(self, tasks, **kw))[1]
    )
    calls = count()
    run(job(tiny_model), tmp_path / "run", stop_requested=lambda: next(calls) > 20)
    run(job(tiny_model), tmp_path / "run", resume=True)
    greedy, all_samples, missing = asked
    assert (greedy, all_samples) == (6, 6)
    assert 0 < missing < 6


def test_sample_i_belongs_to_seed_i_over_k_and_more_seeds_change_none(tiny_model, tmp_path):
    two = run(job(tiny_model), tmp_path / "two")["stages"]["look"]
    one = run(job(tiny_model, seeds=1), tmp_path / "one")["stages"]["look"]
    first = [r for r in rollouts(tmp_path / "two") if r.sample < 3]
    assert_equal(rollouts(tmp_path / "one"), first)
    assert (one["num_samples"], two["num_samples"]) == (3, 6)
    assert two["seed_accs"][0] == one["mean_acc"]
    assert len({r.text for r in rollouts(tmp_path / "two")}) > 6


def test_without_greedy_answers_there_are_samples_alone(tiny_model, tmp_path):
    told = run(job(tiny_model, greedy=False), tmp_path / "run")
    assert not (tmp_path / "run" / "rollouts" / "look" / "greedy.parquet").exists()
    look = told["stages"]["look"]["by_tasks"]["sums"]
    assert (look["greedy_acc"], look["num_tasks"]) == (None, 6)
    assert "%" in pipeline.result_lines(told)[1]
    run(job(tiny_model, greedy=False, temperature=0.5), tmp_path / "cold")
    (row,) = compare.run(str(tmp_path / "run"), str(tmp_path / "cold"))
    assert row["metric"] == "mean_acc"


def test_a_fingerprint_changes_with_what_it_is_of_and_with_nothing_else(tiny_model, tmp_path):
    def fingerprint(name: str, model: object = tiny_model, **changes: Any) -> dict[str, Any]:
        found = run(job(model, **changes), tmp_path / name)["stages"]["look"]["fingerprint"]
        del found["versions"]["commit"]  # somebody may be editing while this runs
        return found

    import torch
    import transformers

    base = fingerprint("base")
    assert fingerprint("again") == base
    moved = transformers.LlamaForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        moved.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    moved.save_pretrained(tmp_path / "model")
    shutil.copytree(tiny_model, tmp_path / "turned")
    config = json.loads((tmp_path / "turned" / "config.json").read_text())
    config["rms_norm_eps"] = 1e-3
    (tmp_path / "turned" / "config.json").write_text(json.dumps(config))
    changed = {
        "generation": fingerprint("e", tmp_path / "turned"),
        "model": fingerprint("a", tmp_path / "model"),
        "chat": fingerprint("b", chat={"system": "Be brief."}),
        "tasks": fingerprint("c", sums=SUMS | {"heldout": 5}),
        "sampling": fingerprint("d", temperature=0.7),
    }
    for key, other in changed.items():
        assert {k for k in base if base[k] != other[k]} == {key}
    assert base["sampling"] == {
        "greedy": True,
        "samples": 3,
        "seeds": 2,
        "temperature": 1.0,
        "top_p": 0.9,
        "max_tokens": 6,
    }
    assert base.keys() == {"model", "generation", "chat", "engine", "tasks", "sampling", "versions", "hardware"}
    assert base["versions"].keys() == {"strop", "python", "torch", "transformers", "math-verify", "sympy"}
    assert None not in base["versions"].values()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_has_the_hash_of_what_is_loaded_from_it(tiny_model, tmp_path, dtype):
    """With a head of its own as well as a tied one, in one file or several."""
    import transformers

    from strop import config, fingerprint, model

    untied = transformers.LlamaForCausalLM(
        transformers.LlamaConfig.from_pretrained(tiny_model, tie_word_embeddings=False)
    )
    untied.save_pretrained(tmp_path, max_shard_size="100KB")
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = []
    for folder in (tiny_model, tmp_path):
        settings = config.Model(name=str(folder), dtype=dtype)
        outline, policy = model.outline(settings), model.load(settings)
        chat = outline.chat(config.Chat())
        served = fingerprint.served(settings, outline, chat)
        assert served.weights == fingerprint.model_hash(policy)
        assert served.generation == fingerprint.generation_hash(policy.model.config, chat.stop_ids)
        found.append(served.weights)
    assert len(set(found)) == 2


def test_a_folder_that_holds_more_or_less_than_the_model_has_no_hash(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    from strop import config, fingerprint, model

    shutil.copytree(tiny_model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    outline, whole = model.outline(config.Model(name=str(tmp_path / "model"))), load_file(file)
    embedding = whole["model.embed_tokens.weight"]
    for state in (
        whole | {"lm_head.weight": embedding.clone()},
        {name: weight for name, weight in whole.items() if weight is not embedding},
        whole | {"model.embed_tokens.weight": embedding[1:].clone()},
    ):
        save_file(state, file)
        assert fingerprint.folder_hash(outline, "float32") is None
    file.write_bytes(b"no tensors")
    assert fingerprint.folder_hash(outline, "float32") is None
    save_file(whole, file)
    assert fingerprint.folder_hash(outline, "float32") is not None


def test_a_buffer_that_is_saved_counts_as_a_weight(tiny_model):
    import torch

    from strop import config, fingerprint, model

    policy = model.load(config.Model(name=str(tiny_model)))
    base = fingerprint.model_hash(policy)
    policy.model.register_buffer("scratch", torch.ones(2), persistent=False)
    assert fingerprint.model_hash(policy) == base
    policy.model.register_buffer("bias", torch.ones(2))
    assert (one := fingerprint.model_hash(policy)) != base
    policy.model.bias += 1
    assert fingerprint.model_hash(policy) not in (one, base)
