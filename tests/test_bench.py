"""The benches' own arithmetic, and that every competitor does the work it is timed for; no figure is asserted."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from strop import bench, cli
from strop.bench import alternate, ceiling, learn, memory, result, rollout, scaling, step, verify, worker, workload
from strop.bench.worker import Link, Side
from strop.int8 import has_int8
from strop.record import UserError

HERE = {"PYTHONPATH": str(Path(__file__).parent)}
SMALL = {"group_size": 2, "prompt_tokens": 150, "completion_tokens": 5}


def asked(side: Callable[[Mapping[str, Any], Link], None], settings: Mapping[str, Any], *requests: dict) -> list[dict]:
    """What a side answers to these requests, in this process."""
    answers = io.StringIO()
    side(settings, Link(io.StringIO("".join(json.dumps(r) + "\n" for r in requests)), answers))
    ready, *rest = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert ready == {"ready": True}
    assert len(rest) == len(requests)
    assert all(answer["seconds"] > 0 and answer["peak_rss_mb"] > 1 for answer in rest)
    return rest


def steady(name: str, seconds: float, *, peer: bool = False) -> Side:
    return Side(name, worker.command("sides_for_tests:steady", {"seconds": seconds}), peer=peer, env=HERE)


# --- turns ------------------------------------------------------------------------------------------------------------


def test_turns_alternate_and_the_first_round_does_not_count() -> None:
    said: list[str] = []
    with steady("a", 2.0) as a, steady("b", 6.0) as b:
        turns = [alternate.Turn(name=s.name, side=s, request={"n": 1}) for s in (a, b)]
        samples = alternate.alternate(turns, pairs=3, say=said.append, title="work")
    assert [len(answers) for answers in samples.values()] == [3, 3]
    assert samples["a"][0]["echo"] == {"n": 1}
    assert alternate.ratios(samples, "b", ["a"]) == {"over a": [3.0, 3.0, 3.0]}
    assert said[0] == "work, warm-up: a 2 s, b 6 s"
    assert said[-1] == "work, round 3 of 3: a 2 s, b 6 s"


def test_a_peer_that_dies_is_left_out_and_says_why() -> None:
    with steady("a", 2.0) as a, steady("b", 6.0, peer=True) as b:
        turns = [alternate.Turn(name="a", side=a), alternate.Turn(name="b", side=b, request={"die": True})]
        samples = alternate.alternate(turns, pairs=1, say=lambda _: None, title="work")
        assert list(samples) == ["a"]
        assert b.why == "b ended with 1: MemoryError: no memory for the logits"
        with pytest.raises(RuntimeError, match="no memory for the logits"):
            a.ask(die=True)


def test_a_mistake_that_only_the_child_sees_is_the_users() -> None:
    with (
        Side("a", worker.command("sides_for_tests:mistaken", {}), env=HERE) as side,
        pytest.raises(UserError, match="there is no model folder"),
    ):
        side.ask()


# --- ceilings ---------------------------------------------------------------------------------------------------------


def test_a_floor_counts_the_arithmetic_of_the_model(tiny_model: Path) -> None:
    import transformers

    machine = ceiling.Machine(transformers.AutoConfig.from_pretrained(tiny_model))
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 64 * 256 + 128 * 64
    for dtype in ("float32", "int8", "bfloat16"):
        answer = machine.floor(False, dtype=dtype, rows=10, head_rows=3)
        assert answer["gflop"] == pytest.approx(2e-9 * (2 * 10 * layer + 3 * 64 * 259))
        assert answer["seconds"] > 0
    answer = machine.floor(True, dtype="float32", rows=3 * ceiling.MAX_ROWS, head_rows=0)
    assert answer["gflop"] == pytest.approx(6e-9 * 2 * 3 * ceiling.MAX_ROWS * layer)


def test_what_is_timed_is_the_multiplication() -> None:
    weight = torch.arange(-6, 6, dtype=torch.int8).reshape(4, 3)
    for maker in (ceiling._by_output, ceiling._by_input):
        assert torch.equal(maker(weight, 32)(weight)(), weight.sum(1, dtype=torch.int32).expand(32, 4))


# --- the work ---------------------------------------------------------------------------------------------------------


def test_prompts_are_distinct_and_exactly_as_long_as_asked(tiny_model: Path) -> None:
    chat = workload.endless(workload.tokenizer(str(tiny_model)))
    tasks = workload.tasks(chat, 20, 150)
    assert {len(chat.encode_prompt(t.prompt)) for t in tasks} == {150}
    assert len({t.prompt for t in tasks}) == 20
    assert tasks == workload.tasks(chat, 20, 150)
    with pytest.raises(UserError, match="no prompt has exactly 20 tokens"):
        workload.tasks(chat, 1, 20)


@pytest.mark.demo
def test_prompts_of_sixty_tokens_exist_for_the_demo_model(demo_model: Path) -> None:
    chat = workload.endless(workload.tokenizer(str(demo_model)))
    assert {len(chat.encode_prompt(t.prompt)) for t in workload.tasks(chat, 16, 60)} == {60}


def test_random_rollouts_are_groups_with_signal() -> None:
    rollouts = workload.random_rollouts(prompts=2, group_size=3, prompt_tokens=4, completion_tokens=5, vocab=7)
    assert [(r.group, r.sample, r.num_prompt_tokens, r.num_trained) for r in rollouts][3] == (1, 0, 4, 5)
    assert len({r.token_ids[:4].tobytes() for r in rollouts[:3]}) == 1
    assert {float(r.advantages[-1]) for r in rollouts[:3]} == {1.0, -1.0}
    assert max(int(r.token_ids.max()) for r in rollouts) < 7


# --- the sides, on the tiny model: each asserts itself that it did the whole work ------------------------------------------


def test_everyone_samples_exactly_what_was_asked(tiny_model: Path) -> None:
    settings = rollout.Settings(model=str(tiny_model), batches=[2, 4], **SMALL).model_dump()
    for side in (rollout.ours, rollout.generate):
        ways = ("float32", "bfloat16", *(("int8",) if side is rollout.ours and has_int8() else ()))
        for matmul in ways:
            asked(side, {"settings": settings, "matmul": matmul}, {"batch": 4}, {"batch": 2})


def test_both_sides_train_on_the_same_tokens(tiny_model: Path) -> None:
    pytest.importorskip("trl", reason="needs the dev extra: pip install 'strop[dev]'")
    settings = learn.Settings(model=str(tiny_model), prompts=2, sibling_prompts=1, **SMALL).model_dump()
    for side in (learn.ours, learn.padded):
        asked(side, {"settings": settings, "matmul": "bfloat16"}, {"work": "step"}, {"work": "siblings"})


def job(tiny_model: Path, **changes: Any) -> dict[str, Any]:
    base = step.Job(
        model=str(tiny_model), system="", prompts=[("Compute 1 + 2.", "3"), ("Compute 2 + 2.", "4")], group_size=4,
        max_tokens=8, exact=True, reward="strop.bench.step.variety",
    )  # fmt: skip
    return base.model_copy(update=changes).model_dump(mode="json")


def test_our_step_is_a_whole_step(tiny_model: Path) -> None:
    own = asked(step.ours, job(tiny_model), {}, {"group_size": 2, "max_tokens": 4})
    assert [answer["num_tokens"] for answer in own] == [64, 16]
    assert own[0]["no_signal_frac"] < 1
    assert own[0]["generate_s"] + own[0]["verify_s"] + own[0]["train_s"] <= own[0]["seconds"]


@pytest.mark.filterwarnings("ignore")  # TRL's, about its own arguments
def test_trl_takes_the_same_step_at_its_turn(tiny_model: Path) -> None:
    pytest.importorskip("trl", reason="needs the dev extra: pip install 'strop[dev]'")
    for updates in (1, 2):
        answers, requests = io.StringIO(), io.StringIO("{}\n{}\n")
        with pytest.raises(SystemExit):
            step.trl(job(tiny_model, updates=updates), Link(requests, answers))
        ready, *theirs = [json.loads(line) for line in answers.getvalue().splitlines()]
        assert ready == {"ready": True}
        assert [answer["num_tokens"] for answer in theirs] == [64, 64]


def test_without_the_checkpoint_the_real_step_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"strop run recipes/quickstart\.yaml"):
        step.run_real(step.RealSettings(checkpoint=str(tmp_path)), pairs=1, say=lambda _: None)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_all_logits_at_once_would_be_seen() -> None:
    from strop.head import logprobs_of

    vocab, hidden = 97, 5
    weight = torch.randn(vocab, hidden, requires_grad=True)
    states, target = torch.randn(16, hidden, requires_grad=True), torch.randint(vocab, (16,))

    def plain() -> None:
        (states @ weight.T).log_softmax(-1).gather(-1, target[:, None]).sum().backward()

    def chunked() -> None:
        logprobs_of(states, weight, target, chunk_tokens=4)[0].sum().backward()

    assert memory.widest_rows(plain, vocab, hidden) == 16
    assert memory.widest_rows(chunked, vocab, hidden) == 4


def test_an_update_never_holds_more_logits_than_a_chunk(tiny_model: Path) -> None:
    settings = memory.Settings(model=str(tiny_model), hidden=64, layers=1, prompt_tokens=150).model_dump()
    _, watched = asked(memory.peak, {"settings": settings, "vocab": 301, "length": 600}, {}, {"watch": True})
    assert 0 < watched["update_rows"] <= watched["chunk_rows"] < 4 * 600
    assert 0 < watched["decode_rows"] <= watched["decode_batch"]


# --- verify -----------------------------------------------------------------------------------------------------------


def test_cases_come_from_benchmark_files_with_wrong_answers_among_them(tmp_path: Path) -> None:
    rows = [{"answer": "3", "solution": r"So \boxed{3}."}, {"answer": r"\frac{1}{2}"}, {"answer": None}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, notes = verify.cases(verify.Settings(run=str(tmp_path), data=str(tmp_path)))
    assert sorted(found) == sorted([
        ("3", r"So \boxed{3}."), (r"\frac{1}{2}", r"So \boxed{3}."),
        ("3", r"The answer is \boxed{\frac{1}{2}}."), (r"\frac{1}{2}", r"The answer is \boxed{\frac{1}{2}}."),
    ])  # fmt: skip
    assert len(notes) == 1
    assert "no recorded rollouts" in notes[0]
    with pytest.raises(UserError, match="nothing to judge"):
        verify.cases(verify.Settings(run=str(tmp_path), data=str(tmp_path / "none")))


def test_both_verifiers_judge_every_case(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([["3", r"So \boxed{3}."], ["4", r"So \boxed{3}."], ["0.5", r"\boxed{\frac{1}{2}}"]]))
    for side in (verify.ours, verify.plain):
        for answer in asked(side, {"cases": str(file)}, {}, {}):
            assert answer["correct"] == [1, 0, 1]


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_a_plot_is_a_picture_on_its_own() -> None:
    rows = [
        {"axis": axis, "at": n, "step_s": 3.0 * n, "generate_s": 2.0 * n, "train_s": 1.0 * n}
        for axis in scaling.AXES
        for n in (1, 2, 4)
    ]
    root = ElementTree.fromstring(scaling._plot(rows))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{*}path")) == 9
    assert scaling._fits(rows)[0] == "Step time grows as (rollouts of a prompt)^1.00 (sampling 1.00, training 1.00)."


def test_a_model_too_large_for_the_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling.machine, "usable_memory_gb", lambda: 16.0)
    kept, notes = scaling._that_fit(list(scaling.MODELS))
    assert kept == ["llama-31m", "llama-135m", "llama-360m", "qwen2-0.5b"]
    assert notes == ["qwen2-1.5b was left out: it needs about 31 GB, this machine has 16."]


def test_the_shapes_are_the_models_they_are_named_after() -> None:
    sizes = {name: round(scaling.num_parameters(shape) / 1e6) for name, shape in scaling.MODELS.items()}
    assert sizes == {"llama-31m": 31, "llama-135m": 134, "llama-360m": 362, "qwen2-0.5b": 494, "qwen2-1.5b": 1544}


# --- results ----------------------------------------------------------------------------------------------------------


def measured(name: str, **fields: Any) -> result.Result:
    return result.Result(bench=name, date="2026-11-22T01:02:03+00:00", machine={"cpu": "a CPU", "cores": 2}, **fields)


def test_results_of_several_benches_lie_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "results" / "here.json"
    result.save(measured("step", rows=[{"side": "strop", "step_s": 10.0}]), path)
    result.save(measured("scaling", rows=[{"at": 1, "step_s": math.nan}], plot="<svg/>"), path)
    result.save(measured("step", rows=[{"side": "strop", "step_s": 9.0}], notes=["Left out: nobody."]), path)
    assert {name: r["rows"] for name, r in result.read(path).items()} == {
        "scaling": [{"at": 1, "step_s": None}], "step": [{"side": "strop", "step_s": 9.0}]
    }  # fmt: skip
    assert (tmp_path / "results" / "here-scaling.svg").read_text() == "<svg/>"
    assert "| side | step, s |\n|---|---|\n| strop | 9 |\n\nLeft out: nobody." in bench.tables("step", path)
    path.write_text("[]")
    with pytest.raises(UserError, match="no file of bench results"):
        result.read(path)


def test_a_table_shows_ratios_with_their_spread() -> None:
    rows = [{"engine": "strop", "tokens_per_s": 400.0}]
    rows += [{"engine": "generate", "tokens_per_s": 100.0, "over strop": [4.0, 3.5, 4.26]}]
    shown = result.table({"rollout": measured("rollout", rows=rows, ceilings={"float32 gflop_per_s": 180.2}).as_json()})
    assert "| engine | tokens/s | over strop |" in shown
    assert "| generate | 100 | 4.0x (3.5 to 4.3) |" in shown
    assert "float32 gflop/s 180" in shown


def test_mistakes_are_found_before_anything_runs(tmp_path: Path) -> None:
    def mistake(*args: Any, **kwargs: Any) -> str:
        with pytest.raises(UserError) as error:
            bench.run(*args, say=lambda _: None, out=tmp_path / "x.json", **kwargs)
        return str(error.value)

    assert "did you mean 'rollout'?" in mistake("rolout")
    assert "did you mean 'batches'?" in mistake("rollout", ["batchs=[8]"])
    assert "batches" in mistake("rollout", ["batches=many"])
    assert "key=value" in mistake("rollout", ["batches"])
    with pytest.raises(UserError, match="no results yet"):
        bench.tables(None, tmp_path / "x.json")


def test_the_command_names_every_bench() -> None:
    assert tuple(bench.BENCHES) == cli.system.BENCH_NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rollout", "train", "step"])
def test_a_whole_bench(name: str, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the dev extra: pip install 'strop[dev]'")
    settings = {
        "model": str(tiny_model),
        **SMALL,
        **({"batches": [2], "vllm_python": "none"} if name == "rollout" else {"prompts": 2}),
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    found = bench.run(name, overrides, pairs=1, out=tmp_path / "here.json", say=print)
    median, lowest, highest = found["rows"][-1]["over strop float32"]
    assert 0 < lowest <= median <= highest
    assert json.loads((tmp_path / "here.json").read_text())["benches"][name] == found
