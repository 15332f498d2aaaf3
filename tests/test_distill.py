"""`strop distill`: solvers whose steps hold, the fate of every answer, teachers here and at a URL, and the file SFT reads."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from openai_server import Answer, said, serving
from strop import cli, distill, pipeline, targets, tasks
from strop.config import Recipe, TaskSet, parse_recipe
from strop.distill import choose, countdown, knights, solvers
from strop.distill.choose import Fate, Rules
from strop.engine import remote
from strop.record import Reason, Rollout, Stop, Task, UserError, Verdict, read_rollouts
from strop.rewards import VERIFIERS
from strop.tasks.knights import solve
from strop.watch import Watch

DATA = Path(os.environ.get("STROP_DATA", Path(__file__).parents[2] / "shared" / "data"))
PUZZLES = DATA / "logic" / "knights_knaves_train.jsonl.gz"
CHECKS = {"workers": 1, "timeout_s": 60}


def quiet() -> Watch:
    return Watch(io.StringIO(), live=False)


def train_tasks(source: str, num: int, **settings: Any) -> list[Task]:
    spec = TaskSet(source=source, train=num, heldout=4, dev=4, settings=settings)
    return tasks.load({"s": spec}, seed=0, say=lambda _: None)["s"].train


# --- solvers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "settings"),
    [("arithmetic", {"level": 5}), ("arithmetic", {"level": 6, "style": "lines"}), ("knights", {"people": [2, 3, 4, 5]}),
     ("knights", {"people": [3], "names": "people"})],
)  # fmt: skip
def test_every_solution_is_judged_right(source, settings):
    listed = train_tasks(source, 300, **settings)
    for task, text in zip(listed, solvers.worked_out(listed), strict=True):
        verdict = VERIFIERS[task.verifier](task, text)
        assert verdict.correct, (task.prompt, text, verdict)
        assert text.splitlines()[-1].endswith(f"\\boxed{{{task.answer}}}")


@pytest.mark.parametrize("name", ["countdown", "chain_sum", "knights_knaves"])
def test_reasoning_gyms_own_scorer_agrees(name):
    pytest.importorskip("reasoning_gym", reason="NOT CHECKED: reasoning-gym is not installed (the extra `puzzles`)")
    listed = train_tasks(f"gym:{name}", 200)
    verdicts = [VERIFIERS["gym"](t, text) for t, text in zip(listed, solvers.worked_out(listed), strict=True)]
    assert Counter(v.reason for v in verdicts) == {Reason.CORRECT: 200}


def test_puzzles_of_the_public_data_set_are_solved(tmp_path):
    if not PUZZLES.exists():
        pytest.skip(f"NOT CHECKED against the public puzzles: no file {PUZZLES} (set STROP_DATA)")
    with gzip.open(PUZZLES, "rt", encoding="utf-8") as file:
        rows = file.readlines()[:: 4500 // 300]
    (tmp_path / "kk.jsonl").write_text("".join(rows))
    listed = train_tasks(str(tmp_path / "kk.jsonl"), 200, verifier="knights")
    found = [VERIFIERS["knights"](t, text) for t, text in zip(listed, solvers.worked_out(listed), strict=True)]
    assert Counter(v.reason for v in found) == {Reason.CORRECT: 200}


def test_what_is_concluded_of_a_person_is_so_whatever_was_supposed():
    """A line that begins with "So X is a knave" outside of any other supposition is a fact, not a guess."""
    refuted = 0
    for task in train_tasks("knights", 200, people=[4, 5]):
        names = [part.partition(":")[0].strip() for part in task.answer.split(",")]
        (solution,) = solve(task.meta["statements"], len(names))
        lines = knights.explain(task.meta["statements"], names)
        assert lines is not None
        depth = 0
        for line in lines[:-1]:
            if line.startswith("Suppose also"):
                depth += 1
            elif (found := re.match(r"So (\w+) is a knave", line)) and depth == 0:
                assert not solution[names.index(found[1])], lines
                refuted += 1
            elif line.startswith("Suppose"):
                depth = 0
        assert lines[-2].endswith("Nothing contradicts this.")
    assert refuted > 50


def test_a_nonsense_puzzle_has_no_solution_and_harms_nobody():
    def puzzle(statements: object, **meta: object) -> Task:
        meta = {"statements": statements, "names": ["A", "B"], **meta}
        return Task.make(source="f", prompt="p", answer="A: knight, B: knave", verifier="knights", meta=meta)

    nonsense = [[], [["lying", 1]], [["lying", 9], ["lying", 0]], [["lying", True], ["lying", 0]], [["maybe", 1], ["lying", 0]],
                [["and", ["lying", 0]], ["lying", 1]], "statements", [["not", 1], ["lying", 0]], [["lying", 1], ["lying", 0]]]  # fmt: skip
    assert solvers.worked_out([puzzle(s) for s in nonsense]) == [""] * len(nonsense)
    assert solvers.worked_out([puzzle([["lying", 1], ["lying", 0]], names=["A"] * 40)]) == [""]
    gym = {"entry": {"metadata": {"source_dataset": "countdown", "numbers": [1, "2"], "target": 3}}}
    assert solvers.worked_out([Task.make(source="gym", prompt="p", answer="3", verifier="gym", meta=gym)]) == [""]


def test_a_countdown_chain_uses_every_number_once_and_comes_to_the_target():
    rng = random.Random(0)
    for _ in range(200):
        numbers = [rng.randint(1, 30) for _ in range(rng.randint(2, 5))]
        value = numbers[0]
        for n in numbers[1:]:
            op = rng.choice("+-*/" if value % n == 0 else "+-*")
            value = {"+": value + n, "-": value - n, "*": value * n}.get(op, value // n)
        chain = countdown.find(numbers, value)
        assert chain is not None
        assert sorted([chain.first, *(n for _, n in chain.rest)]) == sorted(numbers)
        assert eval(chain.expression) == value == chain.values[-1]
        assert countdown.explain(chain, numbers)[-1].endswith(f"= {value}.")
    assert countdown.find([1, 1, 1], 100) is None


# --- what is kept -------------------------------------------------------------------------------------------------------


def answer(text: str, *, task: int = 0, sample: int = 0, correct: bool = True, reason: Reason | None = None,
           tokens: int | None = None, stop: Stop = Stop.EOS, **meta: object) -> Rollout:  # fmt: skip
    num = len(text.split()) if tokens is None else tokens
    of = Task.make(source="s", prompt=f"problem {task}", answer="5", verifier="math", meta=meta)
    verdict = Verdict(correct=correct, extracted="5", reason=reason or (Reason.CORRECT if correct else Reason.WRONG))
    mask = np.ones(num, dtype=bool)
    return Rollout(task=of, group=task, sample=sample, token_ids=np.full(num, -1, np.int32), sampled=mask, trained=~mask,
                   text=text, stop=stop, verdict=verdict)  # fmt: skip


LONG = " ".join(f"step {i} gives {i * i + 7}." for i in range(30))


def test_the_fate_of_an_answer_is_the_first_that_applies():
    listed = [
        answer("right 5", stop=Stop.LENGTH),
        answer("6", correct=False),
        answer("5", correct=False, reason=Reason.TIMEOUT),
        answer("We know 因为 it is so, \\boxed{5}"),
        answer("so it is. " * 30),
        answer(LONG, sample=5),
        answer(LONG.replace(" ", "  "), sample=6),
        answer("2 + 3 = 5", sample=7),
        answer("", stop=Stop.GIVEN, correct=False, reason=Reason.EMPTY),
    ]
    fates = choose.choose(listed, Rules(balance=False)).fates
    assert [f.value for f in fates] == [
        "truncated", "wrong", "unscorable", "language", "repetitive", "longer", "repeated", "kept", "unsolved",
    ]  # fmt: skip


def test_shortest_diverse_and_all_choose_differently():
    texts = ["a b c d e", "a b c d e f", "a b c d e f g", "u v w x y z one two", "a b c d e f g h i"]
    listed = [answer(text, sample=i) for i, text in enumerate(texts)]

    def kept(**rules: Any) -> list[str]:
        (answers,) = choose.choose(listed, Rules(balance=False, **rules)).kept
        return [r.text for r in answers]

    assert kept(keep="shortest", most=2) == texts[:2]
    assert kept(keep="diverse", most=2) == [texts[0], texts[3]]
    assert kept(keep="diverse", most=3) == [texts[0], texts[3], texts[4]]
    assert kept(keep="all", most=None) == texts
    fates = choose.choose(listed, Rules(keep="all", most=3, balance=False)).fates
    assert fates == [Fate.KEPT] * 3 + [Fate.SURPLUS] * 2


def test_easy_tasks_are_cut_to_the_number_of_others_and_the_data_know_better():
    hard = [answer(str(s), task=t, sample=s, correct=s == 0) for t in (0, 1) for s in range(4)]
    medium = [answer(str(s), task=t, sample=s, correct=s < 2) for t in (2, 3, 4) for s in range(4)]
    easy = [answer(str(s), task=t, sample=s) for t in range(5, 15) for s in range(4)]
    chosen = choose.choose(hard + medium + easy, Rules())
    assert Counter(chosen.rates[a[0].task.id] for a in chosen.kept) == {0.25: 2, 0.5: 3, 1.0: 3}
    assert Counter(chosen.fates)[Fate.EASY] == 7
    assert len(choose.choose(hard + medium + easy, Rules(balance=False)).kept) == 15
    assert len(choose.choose(easy, Rules()).kept) == 10  # nothing to balance
    assert choose.choose([answer("5", pass_rate=0.125)], Rules()).rates == {answer("5").task.id: 0.125}


@pytest.mark.parametrize("rules", [{"language": "xx"}, {"most": 0}])
def test_rules_that_make_no_sense_are_refused(rules):
    with pytest.raises(UserError):
        Rules(**rules)


# --- a teacher at a URL -------------------------------------------------------------------------------------------------


class Shop:
    """Answers sums: right, wrong, cut or in two languages by turns; every fifth request is one too many (429)."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.refused, self._requests, self._lock = 0, 0, threading.Lock()

    def __call__(self, path: str, posted: dict) -> Answer:
        if path == "/v1/models":
            return said({"data": [{"id": "shop"}]})
        with self._lock:
            self._requests += 1
            if self._requests % 5 == 0:
                self.refused += 1
                return said({"error": "slow down"}, 429, **{"Retry-After": "0"})
            problem = posted["messages"][-1]["content"]
            turn = self.asked[problem]
            self.asked[problem] += 1
        a, b = map(int, re.findall(r"\d+", problem))
        text, finish = [
            (f"{a} + {b} = {a + b}, said in full. \\boxed{{{a + b}}}", "stop"),
            (f"\\boxed{{{a + b}}}", "stop"),
            (f"\\boxed{{{a + b + 1}}}", "stop"),
            (f"\\boxed{{{a + b}}} because", "length"),
            (f"因为 {a} 加 {b}: \\boxed{{{a + b}}}", "stop"),
        ][turn % 5]
        choice = {"message": {"content": text}, "finish_reason": finish}
        return said({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 4}})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 0.02)


def sums(tmp_path: Path, **spec: object) -> Path:
    """A recipe that trains on sums; what it trains is another model than the teacher."""
    own = {"source": "arithmetic", "train": 12, "heldout": 20, "dev": 8, "settings": {"level": 4, "ops": "+"}, **spec}
    path = tmp_path / "sums.yaml"
    path.write_text(json.dumps({
        "chat": {"system": "Be brief.", "prefill": "<think>"}, "tasks": {"sums": own}, "checks": CHECKS,
        "engine": {"max_batch": 1}, "stages": [{"name": "sft", "do": "sft", "tasks": ["sums"]}],
    }))  # fmt: skip
    return path


def job(recipe: Recipe, **options: object) -> distill.Job:
    return distill.Job(recipe=recipe, **options)  # type: ignore[arg-type]


def run(of: distill.Job, out: Path, **options: object) -> dict:
    return distill.run(of, out=out, open_tools=pipeline.open_tools, watch=quiet(), **options)  # type: ignore[arg-type]


def test_a_teacher_at_a_url_is_asked_training_tasks_only_through_429s_and_what_it_cost_is_told(tmp_path):
    shop = Shop()
    with serving(shop) as url:
        recipe = targets.distillation([str(sums(tmp_path))], url, stage={"samples": 5, "max_tokens": 64})
        told = run(job(recipe, usd_per_mtok=(1.0, 10.0)), tmp_path / "out")
    assert recipe.chat.prefill == ""
    splits = tasks.load(recipe.tasks, seed=0, say=lambda _: None)["sums"]
    assert set(shop.asked) == {task.prompt for task in splits.train}
    assert shop.refused > 5
    found = told["distill"]
    assert found["fates"] == {"kept": 12, "truncated": 12, "wrong": 12, "language": 12, "longer": 12}
    assert (found["num_tasks_kept"], found["num_kept"], found["num_answers"]) == (12, 12, 60)
    assert (found["tokens_in"], found["tokens_out"]) == (600, 240)
    assert found["usd"] == pytest.approx((600 + 2400) / 1e6)
    lines = [json.loads(line) for line in (tmp_path / "out" / "fates.jsonl").read_text().splitlines()]
    assert Counter(row["fate"] for row in lines) == found["fates"]
    assert {row["pass_rate"] for row in lines} == {0.8}

    again = parse_recipe({"tasks": {"d": {"source": str(tmp_path / "out" / "train.parquet"), "heldout": 0, "dev": 2}},
                          "stages": [{"name": "sft", "do": "sft", "tasks": ["d"]}]})  # fmt: skip
    read = tasks.load(again.tasks, seed=0, say=lambda _: None)["d"]
    by_prompt = {task.prompt: task for task in splits.train}
    for task in [*read.train, *read.dev]:
        of = by_prompt[task.prompt]
        assert (task.answer, task.verifier, task.meta["pass_rate"]) == (of.answer, of.verifier, 0.8)
        assert task.solutions == (f"\\boxed{{{of.answer}}}",)


def test_other_rules_choose_anew_without_asking_and_a_stopped_one_asks_only_what_is_missing(tmp_path):
    shop, out = Shop(), tmp_path / "out"
    with serving(shop) as url:
        recipe = targets.distillation([str(sums(tmp_path))], url, stage={"samples": 5, "max_tokens": 64})
        stopped = run(job(recipe), out, stop_requested=lambda: shop.asked.total() >= 31)
        assert not stopped["finished"]
        saved = [r for path in sorted((out / "rollouts/teacher").glob("*.part_*")) for r in read_rollouts(path)]
        whole = {p for p, num in Counter(r.task.prompt for r in saved).items() if num == 5}
        assert len(whole) >= 5
        before = Counter(shop.asked)
        assert run(job(recipe), out, resume=True)["finished"]
        assert all(shop.asked[prompt] == before[prompt] == 5 for prompt in whole)
        num_asked = shop.asked.total()
        told = run(job(recipe, rules=Rules(keep="all", most=None)), out, resume=True)
    assert shop.asked.total() == num_asked  # and the server could have been gone
    assert told["distill"]["num_kept"] > told["distill"]["num_tasks_kept"]
    spec = {"source": str(out / "train.parquet"), "heldout": 0, "dev": 0}
    read = tasks.load({"d": TaskSet.model_validate(spec)}, seed=0, say=lambda _: None)["d"].train
    assert sum(len(task.solutions) for task in read) == told["distill"]["num_kept"]
    assert all(VERIFIERS[t.verifier](t, s).correct for t in read for s in t.solutions)


def test_a_budget_of_dollars_stops_the_teacher_and_a_higher_one_goes_on(tmp_path):
    """An answer costs 10 x 1 + 4 x 10 millionths of a dollar; what was asked before a kill is on the bill."""
    shop, out = Shop(), tmp_path / "out"
    with serving(shop) as url:
        options = {"stage": {"samples": 5, "max_tokens": 64}}
        for budget, at_most in ("0.001usd", 20), ("0.002usd", 40), ("1usd", 60):
            recipe = targets.distillation([str(sums(tmp_path))], url, overrides=[f"budget={budget}"], **options)
            told = run(job(recipe, usd_per_mtok=(1.0, 10.0)), out, resume=out.exists())
            saved = [r for path in (out / "rollouts/teacher").glob("*.part_*") for r in read_rollouts(path)]
            if told["finished"]:
                break
            assert at_most - 2 <= len(saved) <= at_most
            assert f"of {budget[:-3]} usd are spent" in told["stopped_by_budget"]
    assert (told["finished"], told["stopped_by_budget"], told["distill"]["num_answers"]) == (True, "", 60)


def test_a_server_that_says_429_for_ever_is_one_sentence_and_leaves_what_was_answered(tmp_path):
    shop, out = Shop(), tmp_path / "out"

    def closing(path: str, posted: dict) -> Answer:
        return shop(path, posted) if shop.asked.total() < 20 else said({"error": "closed"}, 429)

    with serving(closing) as url:
        recipe = targets.distillation([str(sums(tmp_path))], url, stage={"samples": 5, "max_tokens": 64})
        with pytest.raises(UserError, match=r"status 429.*8 times in a row"):
            run(job(recipe), out)
    assert sum(len(read_rollouts(path)) for path in (out / "rollouts/teacher").glob("*.part_*")) >= 15


# --- a teacher here -----------------------------------------------------------------------------------------------------


def test_a_stage_of_a_run_teaches(tiny_model, tmp_path):
    """A tiny model that has learned to answer with a letter teaches the tasks whose letter it happens to hit."""
    rng = random.Random(0)
    rows = [
        {"problem": np.base_repr(n, 4), "answer": (x := rng.choice("EO")), "solution": x.lower()}
        for n in range(256, 456)
    ]
    (tmp_path / "form.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"source": str(tmp_path / "form.jsonl"), "heldout": 24, "dev": 8, "settings": {"verifier": "exact"}}
    stage = {"name": "sft", "do": "sft", "tasks": ["form"], "max_steps": 12, "batch": 32, "eval_every": 100, "max_tokens": 2,
             "optim": {"lr": 3e-3}}  # fmt: skip
    made = {"model": {"name": str(tiny_model)}, "chat": {"template": "{{ messages[0].content }}"}, "tasks": {"form": spec},
            "stages": [stage], "checks": CHECKS}  # fmt: skip
    pipeline.run(parse_recipe(made), out=tmp_path / "run", watch=quiet())
    (tmp_path / "recipe.yaml").write_text(json.dumps(made))
    asked = {"samples": 4, "max_tokens": 2, "temperature": 1.0, "top_p": 1.0}
    recipe = targets.distillation([str(tmp_path / "recipe.yaml")], f"{tmp_path / 'run'}:sft", stage=asked, limit=40)
    assert recipe.chat.template == made["chat"]["template"]
    told = run(job(recipe, rules=Rules(balance=False)), tmp_path / "out")["distill"]
    assert (told["num_tasks"], told["num_answers"]) == (40, 160)
    assert told["fates"]["kept"] == told["num_tasks_kept"] > 10
    assert told["tokens_out"] > 160
    held = {t.prompt for t in tasks.load(recipe.tasks, seed=0, say=lambda _: None)["form"].heldout}
    answered = read_rollouts(tmp_path / "out/rollouts/teacher/answers.parquet")
    assert not held & {r.task.prompt for r in answered}
    other = targets.distillation([str(tmp_path / "recipe.yaml")], str(tiny_model), stage=asked, limit=40)
    with pytest.raises(UserError, match="another recipe"):
        run(job(other), tmp_path / "out", resume=True)


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command_with_a_solver(tmp_path):
    out = tmp_path / "out"
    typed = ["distill", "knights", "arithmetic", "--limit", "30", "--teacher", "solver", "--out", str(out), "--json"]
    done = CliRunner().invoke(cli.app, typed)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])["distill"]
    assert told["fates"] == {"kept": 60}
    assert told["teacher"] == "solver"
    both = TaskSet.model_validate({"source": str(out / "train.parquet"), "heldout": 0, "dev": 0})
    read = tasks.load({"d": both}, seed=0, say=lambda _: None)["d"].train
    assert Counter(t.verifier for t in read) == {"knights": 30, "number": 30}  # each row says what judges it
    assert all(VERIFIERS[t.verifier](t, s).correct for t in read for s in t.solutions)


@pytest.mark.parametrize(
    ("names", "teacher", "options", "words"),
    [
        (["math_500"], "solver", {}, "math_500 is the benchmark math_500, and training never reads one"),
        (["knights"], "solver", {"stage": {"samples": 4}}, "--samples has no effect with a solver"),
        (["knights"], "solver", {"only": ["nights"]}, "'nights' is no task set.*did you mean 'knights'"),
        ([], "solver", {}, "name what the teacher is to answer"),
        (["knights"], "tiny", {"teacher_model": "x"}, "--teacher-model is for a URL"),
        (["knights"], "http://x:1/v2", {}, "ends in|such as http://localhost:8000/v1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(names, teacher, options, words):
    with pytest.raises(UserError, match=words):
        targets.distillation(names, teacher, **{"stage": {}, "limit": 5, **options})


def test_a_set_without_training_tasks_and_one_that_no_solver_knows_are_refused(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"problem": "2 + 3?", "answer": "5"}\n{"problem": "2 + 4?", "answer": "6"}\n')
    asked = targets.distillation(
        [str(tmp_path / "own.jsonl")], "solver", stage={}, overrides=["tasks.own.heldout=0", "tasks.own.dev=0"]
    )
    with pytest.raises(UserError, match="no solver knows the tasks of 'own'"):
        run(job(asked), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no task set has training tasks"):
        targets.distillation([str(sums(tmp_path, train=0))], "solver", stage={})
