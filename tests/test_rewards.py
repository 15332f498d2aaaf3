"""Reward functions, the Scorer's sums and refusals, the puzzles' verifiers, and real gold answers."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.config import Algorithm, RewardSpec
from strop.record import Reason, Rollout, Stop, Task, UserError, Verdict, replace
from strop.rewards import Reward, Scorer, VerifierBroken, check_gold, extract, load_rewards, try_reward
from strop.rewards.math import grade, verify_number
from strop.rewards.puzzles import verify_exact, verify_gym, verify_knights
from strop.rewards.shaping import (
    format_value,
    overlong,
    repeated,
    repetition_tokens,
    repetition_value,
    tags_value,
)

HERE = Path(__file__).parent
MOODY = f"{HERE / 'verifiers_for_tests.py'}:moody"
DATA = Path(os.environ.get("STROP_DATA", HERE.parent.parent / "shared" / "data"))
PLAIN = Algorithm.model_validate({"preset": "grpo"})


def task(answer: str = "5", verifier: str = "math", prompt: str = "Compute 2 + 3.", **meta: Any) -> Task:
    return Task.make(source="test", prompt=prompt, answer=answer, verifier=verifier, meta=meta)


def rollout(text: str, of: Task | None = None, *, num_tokens: int = 4, **fields: Any) -> Rollout:
    sampled = np.array([False, *[True] * num_tokens])
    ids = np.arange(num_tokens + 1, dtype=np.int32)
    return Rollout(
        task=of or task(),
        group=0,
        sample=0,
        token_ids=ids,
        sampled=sampled,
        trained=sampled.copy(),
        text=text,
        **fields,
    )


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(workers=2, timeout_s=5.0, verifiers={"moody": MOODY}) as scorer:
        yield scorer


# --- shaping --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "value"),
    [
        (0, 0.0),
        (16_384, 0.0),
        (16_385, -1 / 4096),
        (18_432, -0.5),
        (20_479, -4095 / 4096),
        (20_480, -1.0),
        (30_000, -1.0),
    ],
)
def test_overlong_with_the_numbers_of_the_paper(num_tokens: int, value: float) -> None:
    assert overlong(num_tokens, max_tokens=20_480, buffer_tokens=4096) == value


@given(st.integers(0, 500), st.integers(1, 400), st.integers(0, 400))
def test_overlong_is_bounded_monotone_and_counts_nothing_before_the_buffer(num: int, limit: int, buffer: int) -> None:
    value = overlong(num, limit, buffer)
    assert -1 <= value <= 0
    assert overlong(num + 1, limit, buffer) <= value
    assert value == 0 or num > limit - buffer
    assert buffer == 0 or overlong(limit, limit, buffer) == -1


@pytest.mark.parametrize(
    ("text", "prefill", "value"),
    [
        (r"so \boxed{5}", "", 1),
        (r"so \boxed{\frac{1}{2}}", "", 1),
        ("so 5", "", 0),
        (r"\boxed{5", "", 0),
        (r"\boxed{}", "", 0),
        (r"\boxed{4} and \boxed{5}", "", 0),
        (r"\boxed{5} and \boxed{6", "", 0),
        (r"<think>2 + 3</think> \boxed{5}", "", 1),
        (r"2 + 3</think> \boxed{5}", "", 0),
        (r"2 + 3</think> \boxed{5}", "<think>\n", 1),  # the template opened it: it must not be demanded again,
        (r"<think>2 + 3</think> \boxed{5}", "<think>\n", 0),  # nor may it be opened twice
        (r"2 + 3 \boxed{5}", "<think>\n", 0),
        (r"2 + 3 \boxed{5} </think>", "<think>\n", 0),
        (r"2 </think> 3 </think> \boxed{5}", "<think>\n", 0),
        (r"</think><think> \boxed{5}", "", 0),
        (r"Answer: \boxed{5}", "Let me see. ", 1),
    ],
)
def test_format(text: str, prefill: str, value: float) -> None:
    assert format_value(text, prefill) == value


GOOD = "<think>2 + 3</think> <answer>5</answer>"


@pytest.mark.parametrize(
    ("text", "prefill", "value"),
    [
        (GOOD, "", 1),
        (f"Well. {GOOD} So it is.", "", 1),  # Logic-RL looks at the tags alone
        (GOOD.removeprefix("<think>"), "", -1),
        (GOOD.removeprefix("<think>"), "<think>\n", 1),  # the template opened it
        (GOOD, "<think>\n", -1),  # twice
        ("<answer>5</answer><think>2 + 3</think>", "", -1),
        ("<think>2<answer>5</answer></think>", "", -1),  # thinking around the answer
        ("<think>2 + 3</think> </answer>5<answer>", "", -1),
        (GOOD + "<answer>6</answer>", "", -1),  # a second guess
        (GOOD + " Wait. <think>no</think>", "", -1),
        ("<think>2 + 3</think> <answer>5", "", -1),
        ("<think>2 + 3 <answer>5</answer>", "", -1),
        ("<Think>2 + 3</Think> <answer>5</answer>", "", -1),
        ("", "", -1),
        ("", GOOD, 1),  # what counts is the whole turn
    ],
)
def test_tags(text: str, prefill: str, value: float) -> None:
    assert tags_value(text, prefill) == value
    assert load_rewards([RewardSpec(name="tags")])[0].values([rollout(text, prefill=prefill)]) == [value]


def slow_repeated(ids: list[int], num: int) -> list[bool]:
    """Each token once more: is there an n-gram around it that also begins earlier?"""
    grams = [tuple(ids[i : i + num]) for i in range(len(ids) - num + 1)]
    return [
        any(grams[i] in grams[:i] for i in range(max(0, t - num + 1), min(t + 1, len(grams)))) for t in range(len(ids))
    ]


few_ids = st.lists(st.integers(0, 2), max_size=30)


@given(few_ids, st.integers(1, 5), st.sampled_from([-1.0, -0.3, 0.0]))
def test_repetition_equals_a_slow_count(ids: list[int], num: int, penalty: float) -> None:
    array = np.array(ids, np.int32)
    grams = [tuple(ids[i : i + num]) for i in range(len(ids) - num + 1)]
    expected = (1 - len(set(grams)) / len(grams)) * penalty if grams else 0.0
    assert repetition_value(array, num, penalty) == pytest.approx(expected)
    assert penalty <= repetition_value(array, num, penalty) <= 0
    assert repeated(array, num).tolist() == slow_repeated(ids, num)


def test_repetition_reads_the_sampled_tokens_alone() -> None:
    says_it_twice = rollout("x", num_tokens=8)
    ids = np.array([9, 1, 2, 3, 1, 2, 3, 4, 9], np.int32)  # 9 is the prompt, and the end is no repetition of it
    twice = Rollout(
        task=task(), group=0, sample=0, token_ids=ids, sampled=says_it_twice.sampled, trained=says_it_twice.trained
    )
    reward = load_rewards([RewardSpec(name="repetition", settings={"ngram_tokens": 3, "max_penalty": -0.6})])[0]
    assert reward.values([twice, rollout("x", num_tokens=2)]) == [pytest.approx(-0.1), 0.0]  # one of six 3-grams
    dense = repetition_tokens(twice, ngram_tokens=3)
    assert dense.dtype == np.float32
    np.testing.assert_allclose(dense, [0, 0, 0, 0, -0.05, -0.05, -0.05, 0, 0])
    spec = RewardSpec(name="repetition_dense", settings={"ngram_tokens": 3, "penalty": -0.1})
    (placed,) = load_rewards([spec])
    np.testing.assert_allclose(placed.tokens(twice), 2 * dense, rtol=1e-6)
    assert placed.values([twice]) == [pytest.approx(-0.3)]
    with pytest.raises(UserError, match="repetition_dense"):
        load_rewards([RewardSpec(name="repetition_dense", settings={"max_penalty": -1.0})])
    assert not repetition_tokens(twice, ngram_tokens=1)[-1], "a token of the prompt does not count as said before"
    assert not repetition_tokens(twice).any()  # the paper's 40 tokens


# --- reward functions of others ----------------------------------------------------------------------------------------------

FUNCTIONS = """
import asyncio
import numpy as np
calls = []
def plain(completions, **kwargs):
    return [float(len(c)) for c in completions]
def picky(completions, answer):
    return [1.0 if a in c else None for c, a in zip(completions, answer)]
def everything(prompts, completions, completion_ids, answer, level, trainer_state, log_metric, log_extra, **rest):
    log_metric("x", 1.0); log_extra("y", completions)
    calls.append((prompts, completions, completion_ids, answer, level, trainer_state.global_step, sorted(rest)))
    return np.ones(len(prompts))
async def later(completions, **kwargs):
    await asyncio.sleep(0)
    return [2] * len(completions)
def chat(completions, prompts, **kwargs):
    return [float(c[0]["content"] == "5" and p[-1]["role"] == "user") for c, p in zip(completions, prompts)]
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth) + extra_info["level"]}
def short(completions, **kwargs):
    return [1.0] * (len(completions) - 1)
def raises(completions, **kwargs):
    return completions[0] / 0
def words(completions, **kwargs):
    return ["good"] * len(completions)
def infinite(completions, **kwargs):
    return [float("inf")] * len(completions)
def nans(completions, **kwargs):
    return [float("nan"), True]
def single(completions, **kwargs):
    return 1.0
def nothing(completions, **kwargs):
    pass
def demanding(completions, difficulty):
    return [0.0] * len(completions)
class Judge:
    def __call__(self, completions, **kwargs):
        return [3.0] * len(completions)
judge = Judge()
not_a_function = 5
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_rewards.py").write_text(FUNCTIONS)
    (folder / "my_package").mkdir()
    (folder / "my_package" / "inner.py").write_text(
        "def f(completions, **kwargs):\n    return [4.0] * len(completions)\n"
    )
    (folder / "broken.py").write_text("def f(:\n")
    return folder


def load(name: str, folder: Path) -> Reward:
    return load_rewards([RewardSpec(name=name)], folder)[0]


TWO = [rollout("5", task(level=1)), rollout("no", task("no", level=2), policy_step=(3, 4))]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("plain", [1.0, 2.0]),
        ("picky", [1.0, 1.0]),
        ("later", [2.0, 2.0]),
        ("compute_score", [2.0, 3.0]),
        ("nans", [None, 1.0]),
        ("judge", [3.0, 3.0]),
    ],
)
def test_functions_of_others_work_unchanged(folder: Path, name: str, values: list[float | None]) -> None:
    assert load(f"my_rewards.py:{name}", folder).values(TWO) == values


def test_a_function_gets_the_columns_of_its_tasks(folder: Path) -> None:
    reward = load("my_rewards.py:everything", folder)
    of_one = rollout("x", task(prompt="p", level=7, topic="sums", subject=None), num_tokens=2, policy_step=(8, 9))
    assert reward.values([of_one, rollout("y", task(prompt="q"))]) == [1.0, 1.0]
    calls = reward.function.__globals__["calls"]
    assert calls[-1] == (["p", "q"], ["x", "y"], [[1, 2], [1, 2, 3, 4]], ["5", "5"], [7, None], 9, ["subject", "topic"])


def test_a_coroutine_function_inside_a_running_loop(folder: Path) -> None:
    async def notebook() -> list[float | None]:
        return load("my_rewards.py:later", folder).values(TWO)

    assert asyncio.run(notebook()) == [2.0, 2.0]


def test_a_function_by_dotted_path_beside_the_recipe(folder: Path) -> None:
    assert load("my_package.inner.f", folder).values(TWO) == [4.0, 4.0]


def test_a_function_for_conversations_is_found_out_by_the_trial(folder: Path) -> None:
    reward = load("my_rewards.py:chat", folder)
    with pytest.raises(UserError, match="chat raised TypeError"):
        reward.values(TWO)
    assert try_reward(reward, task()).values([rollout("5"), rollout("6")]) == [1.0, 0.0]
    for name in ("plain", "compute_score"):
        same = load(f"my_rewards.py:{name}", folder)
        assert try_reward(same, task(level=1)) is same


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("short", "returned 1 values for 2 completions"),
        ("raises", r"raised TypeError.*my_rewards\.py, line"),
        ("words", "'good' where a number"),
        ("infinite", "inf where a number"),
        ("single", "float 1.0, not a list"),
        ("nothing", "None, not a list"),
        ("demanding", "wants 'difficulty', and these tasks have level, answer"),
    ],
)
def test_what_a_function_does_wrong_is_one_sentence_with_its_name(folder: Path, name: str, says: str) -> None:
    reward = load(f"my_rewards.py:{name}", folder)
    with pytest.raises(UserError, match=says) as raised:
        reward.values(TWO)
    assert name in str(raised.value)
    with pytest.raises(UserError, match=name):
        try_reward(reward, task())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("acuracy", "write accuracy, format"),
        ("my_rewards.py:non", "no function 'non' there; it has chat,|no function 'non' there; it has plain"),
        ("my_rewards.py:not_a_function", "no function 'not_a_function'"),
        ("none.py:f", "there is no file"),
        ("no_such_package.f", "cannot be imported: ModuleNotFoundError"),
        ("broken.py:f", "cannot be imported: SyntaxError"),
        ("overlong", "overlong_buffer_tokens"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_at_load(folder: Path, name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(name, folder)
    with pytest.raises(UserError, match="named twice"):
        load_rewards([RewardSpec(name="accuracy"), RewardSpec(name="accuracy")])


# --- the sum ------------------------------------------------------------------------------------------------------------------


def test_score_is_the_weighted_sum_of_the_parts(scorer: Scorer, folder: Path) -> None:
    rewards = load_rewards(
        [
            RewardSpec(name="accuracy", weight=2.0),
            RewardSpec(name="format", weight=0.5),
            RewardSpec(name="my_rewards.py:picky", weight=0.0),
        ],
        folder,
    )
    algorithm = Algorithm.model_validate({"preset": "dapo", "overlong_buffer_tokens": 10})
    rollouts = [rollout(r"\boxed{5}", num_tokens=15), rollout("The answer is 4.", num_tokens=5)]
    right, wrong = scorer.score(rollouts, rewards, algorithm, max_tokens=20)
    assert right.reward_parts == {"accuracy": 1.0, "format": 1.0, "my_rewards.py:picky": 1.0, "overlong": -0.5}
    assert right.reward == 2.0 + 0.5 - 0.5
    assert wrong.reward_parts == {"accuracy": 0.0, "format": 0.0, "overlong": 0.0}
    assert wrong.reward == 0.0
    assert rollouts[0].verdict is None, "rollouts are new ones"
    plain = scorer.score(rollouts, rewards[:1], PLAIN, max_tokens=20)
    assert [r.reward_parts for r in plain] == [{"accuracy": 1.0}, {"accuracy": 0.0}]


def test_what_single_tokens_earn_adds_up_to_its_part_and_is_kept_where_it_lies(scorer: Scorer) -> None:
    dense = {"name": "repetition_dense", "weight": 2.0, "settings": {"ngram_tokens": 1}}
    rewards = load_rewards([RewardSpec(name="accuracy"), RewardSpec.model_validate(dense)])
    stutters = rollout("5", num_tokens=4)
    stutters = replace(stutters, token_ids=np.array([3, 7, 3, 7, 7], np.int32))  # the first one is the prompt
    (scored,) = scorer.score([stutters], rewards, PLAIN, max_tokens=20)
    np.testing.assert_allclose(scored.token_rewards, [0, 0, 0, -0.1, -0.1])
    assert scored.reward_parts["repetition_dense"] == pytest.approx(-0.1)
    assert scored.reward == pytest.approx(1.0 - 0.2)
    (plain,) = scorer.score([rollout("5")], rewards[:1], PLAIN, max_tokens=20)
    assert plain.token_rewards is None


def test_what_cannot_be_scored_has_no_reward(scorer: Scorer, folder: Path) -> None:
    rewards = load_rewards([RewardSpec(name="accuracy"), RewardSpec(name="format")])
    moody, unreadable = task(verifier="moody"), task(answer=r"\frac{1}{")
    scored = scorer.score([rollout("hang", moody), rollout("5", unreadable), rollout("6", moody)], rewards, PLAIN, 20)
    assert [r.reward for r in scored] == [None, None, 0.0]
    only_picky = load_rewards([RewardSpec(name="my_rewards.py:picky")], folder)
    assert [r.reward for r in scorer.score([rollout("6"), rollout("5")], only_picky, PLAIN, 20)] == [None, 1.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2 + 3 is something like 5", Reason.TRUNCATED),
        (r"so \boxed{5", Reason.TRUNCATED),
        ("", Reason.TRUNCATED),
        ("The answer is 5", Reason.TRUNCATED),  # perhaps it was to be 54
        ("The answer is 5. To check", Reason.CORRECT),
        (r"so \boxed{5} which", Reason.CORRECT),
        (r"so \boxed{6} which", Reason.WRONG),
    ],
)
def test_a_cut_completion_counts_only_if_it_had_answered(scorer: Scorer, text: str, reason: Reason) -> None:
    verdict = scorer.judge([rollout(text, stop=Stop.LENGTH)])[0].verdict
    assert verdict is not None
    assert verdict.reason is reason
    assert verdict.correct == (reason is Reason.CORRECT)


def test_a_broken_verifier_stops_the_run_and_a_slow_one_does_not(scorer: Scorer) -> None:
    moody = task(verifier="moody")
    one_bad = scorer.judge([rollout("raise", moody), *(rollout(f"fine {i}", moody) for i in range(50))])
    assert sum(r.verdict is not None and r.verdict.reason is Reason.VERIFIER_ERROR for r in one_bad) == 1
    with pytest.raises(VerifierBroken, match=f"'moody' failed on 2 of 52.*{moody.id}.*KeyError: 'no such key'"):
        scorer.judge([rollout("raise", moody)] * 2 + [rollout("fine", moody)] * 50)


def test_an_unknown_verifier_is_named(scorer: Scorer) -> None:
    with pytest.raises(UserError, match=r"no verifier 'maths'.*did you mean 'math'"):
        scorer.verify([(task(verifier="maths"), "5")])


def test_gold_answers_that_cannot_be_graded_are_told_apart(scorer: Scorer) -> None:
    good = [
        task(r"\{1\pm\sqrt{5},-2\}"),
        task("A: knight, B: knave", "knights"),
        task("Paris", "exact"),
        task(r"\text{Evelyn}"),
    ]
    bad = [task(""), task(r"\frac{1}{"), task("A: knight", "math"), task("nobody", "knights")]
    kept, dropped = check_gold(good + bad, scorer)
    assert kept == [*good, bad[2]]  # a text is a text
    assert [t for t, _ in dropped] == [bad[0], bad[1], bad[3]]
    assert {v.reason for _, v in dropped} == {Reason.UNPARSEABLE_GOLD}


# --- puzzles -------------------------------------------------------------------------------------------------------------------

KK = task("A: knight, B: knave, C: knight", "knights")
LOGIC_RL = task("(1) Zoey is a knave\n(2) Riley is a knight", "knights")
SAINTS = task("Ann is a saint, and Bob is a sinner.", "knights")


@pytest.mark.parametrize(
    ("of", "text", "expected"),
    [
        (KK, r"\boxed{A: knight, B: knave, C: knight}", True),
        (KK, r"\boxed{\text{A: knight, B: knave, C: knight}}", True),
        (KK, r"\boxed{C: Knight; B: Knave; A: Knight}", True),
        (KK, r"\boxed{A = knight, B = knave, C = knight}", True),
        (
            KK,
            "If A is a knave then B is a knight. No.\nThe answer is A is a knight, B is a knave, and C is a knight.",
            True,
        ),
        (KK, "<answer>(1) A is a knight\n(2) B is a knave\n(3) C is a knight</answer>", True),
        (KK, "A is a knave? Then C is a knight and so on.\n\nA is a knight.\nB is a knave.\nC is a knight.", True),
        (KK, r"\boxed{A: knight, B: knave, C: knave}", Reason.WRONG),
        (KK, r"\boxed{A: knight, B: knave}", Reason.WRONG),
        (KK, r"\boxed{A: knight, B: knave, D: knight}", Reason.WRONG),
        (KK, r"\boxed{A: knight, B: knave, C: knight, C: knave}", Reason.TOO_MANY_ANSWERS),
        (KK, r"\boxed{A: knight, B: knight or knave, C: knight}", Reason.TOO_MANY_ANSWERS),
        (KK, r"\boxed{A: knight, A: knight, C: knight}", Reason.UNPARSEABLE_ANSWER),
        (KK, r"\boxed{A: knight, B: knave, C is not a knight}", Reason.UNPARSEABLE_ANSWER),
        (KK, r"\boxed{knight, knave, knight}", Reason.UNPARSEABLE_ANSWER),
        (KK, r"\boxed{A: knight, B: knave, C: kn", Reason.UNPARSEABLE_ANSWER),
        (KK, "I cannot tell.", Reason.NO_ANSWER),
        (KK, "", Reason.EMPTY),
        (LOGIC_RL, "<think>hm</think><answer>(1) Zoey is a knave (2) Riley is a knight</answer>", True),
        (LOGIC_RL, r"\boxed{Zoey: knave, Riley: knight}", True),
        (LOGIC_RL, "<answer>(1) Zoey is a knight\n(2) Riley is a knight</answer>", Reason.WRONG),
        (SAINTS, r"\boxed{Bob: sinner, Ann: saint}", True),
        (SAINTS, r"\boxed{Bob: saint, Ann: saint}", Reason.WRONG),
        (task("nobody knows", "knights"), r"\boxed{A: knight}", Reason.UNPARSEABLE_GOLD),
    ],
)
def test_knights(of: Task, text: str, expected: bool | Reason) -> None:
    verdict = verify_knights(of, text)
    assert (verdict.correct, verdict.reason) == (expected is True, Reason.CORRECT if expected is True else expected), (
        verdict
    )


def test_knights_of_the_public_data() -> None:
    rows = read("logic/knights_knaves_test.jsonl")
    for row in rows:
        of = task(row["answer"], "knights")
        assert verify_knights(of, row["answer"]).correct, row["answer"]
        assert verify_knights(of, row["solution_text"]).correct, row["solution_text"]
        name, role = row["names"][0], row["assignment"][row["names"][0]]
        flipped = row["answer"].replace(
            f"{name} is a {role}", f"{name} is a {'knave' if role == 'knight' else 'knight'}"
        )
        assert verify_knights(of, flipped).reason is Reason.WRONG


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("Paris", True),
        ("  paris. ", True),
        (r"\boxed{\text{Paris}}", True),
        ("The answer is Paris.", True),
        ("Paris and Rome", False),
        ("", False),
    ],
)
def test_exact(text: str, correct: bool) -> None:
    assert verify_exact(task("Paris", "exact"), text).correct == correct


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"27 + 48 = 75. \boxed{75}", Reason.CORRECT),
        (r"\boxed{27 + 48 = 75}", Reason.CORRECT),
        (r"\boxed{75.0}", Reason.CORRECT),
        (r"\boxed{75}. \boxed{75}", Reason.CORRECT),
        (r"\boxed{27 + 48}", Reason.WRONG),  # the question, not its answer
        (r"\boxed{3 \cdot 25}", Reason.WRONG),
        (r"\boxed{\sqrt{5625}}", Reason.WRONG),
        (r"\boxed{\frac{150}{2}}", Reason.WRONG),
        (r"\boxed{75 = 27 + 48}", Reason.CORRECT),
        (r"\boxed{27 + 48 \approx 75}", Reason.CORRECT),
        (r"\boxed{\text{75}}", Reason.CORRECT),
        (r"\boxed{75 \text{ m}}", Reason.CORRECT),
        (r"\boxed{" + "1+" * 75 + "0 = 75}", Reason.CORRECT),  # longer than what a verdict shows
        (r"\boxed{74}", Reason.WRONG),
        ("", Reason.EMPTY),
    ],
)
def test_a_sum_has_to_be_worked_out(text: str, expected: Reason) -> None:
    assert verify_number(task("75", verifier="number"), text).reason is expected


def test_no_more_is_asked_for_than_the_gold_answer_is() -> None:
    for gold in ("-5", r"\frac{1}{2}", r"\sqrt{2}", "x+1", "yes"):
        assert verify_number(task(gold, verifier="number"), rf"\boxed{{{gold}}}").correct, gold
    assert verify_number(task("-5", verifier="number"), r"\boxed{-(5)}").correct
    assert not verify_number(task("-5", verifier="number"), r"\boxed{3-8}").correct


def test_gym_pays_only_for_a_whole_answer() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym", reason="needs strop[puzzles]")
    partial = 0
    for name in ("chain_sum", "knights_knaves", "word_sorting", "number_sorting", "spell_backward"):
        for entry in reasoning_gym.create_dataset(name, size=4, seed=7):
            of = task(entry["answer"], "gym", entry=json.loads(json.dumps(entry)))
            assert verify_gym(of, f"<think>hm</think> <answer>{entry['answer']}</answer>").correct
            assert verify_gym(of, entry["answer"]).correct
            padded = f"{entry['answer']} or Lily is a saint, and 1, and {entry['answer'][::-1]}!"
            score = reasoning_gym.get_score_answer_fn(name)(padded, entry)
            partial += 0 < score < 1
            assert not verify_gym(of, f"<answer>{padded}</answer>").correct
            for code in ("__import__('os').getpid()", "open ('x')", "[].append(1)", "print(1)"):
                assert verify_gym(of, f"<answer>{code}</answer>").reason is Reason.UNPARSEABLE_ANSWER
    assert partial, "the substring credit that must not be paid was never offered"
    assert verify_gym(task("5", "gym"), "5").reason is Reason.UNPARSEABLE_GOLD


# --- real answers ------------------------------------------------------------------------------------------------------------


def read(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}; set STROP_DATA to the folder that holds {name}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


FILES = ["aime_2024", "amc23", "gsm8k_test", "math_500", "minerva_math", "olympiadbench_en_public"]
MEANT_EQUAL = {("120", r"120^\circ"), ("36", r"\$36"), ("2", "+2"), ("8", r"$8 \%$")}  # notation, not another value


@pytest.mark.parametrize("name", FILES)
def test_every_gold_answer_is_right_and_none_is_another(name: str) -> None:
    rows = random.Random(name).sample(rows := read(f"eval/{name}.jsonl"), min(60, len(rows)))
    golds = [row["answer"] for row in rows]
    for i, gold in enumerate(golds):
        assert grade(gold, rf"So it is \boxed{{{gold}}}.").correct, gold
        other = golds[(i + 1) % len(golds)]
        if other.strip() != gold.strip() and tuple(sorted((gold, other), key=len)) not in MEANT_EQUAL:
            assert not grade(gold, rf"So it is \boxed{{{other}}}.").correct, (gold, other)
    for row in rows:
        if r"\boxed" in row.get("solution", "") or "####" in row.get("solution", ""):
            assert grade(row["answer"], row["solution"]).correct, row["answer"]


# --- properties ----------------------------------------------------------------------------------------------------------------

fragments = st.sampled_from(
    [r"\boxed{", "}", "{", r"\frac", r"\sqrt", "5", "12", "1/2", " ", ",", "or", "and", "=", "(", ")", "[", "]", r"\{", r"\}", "%",
     "$", r"\$", "x", "cm", r"\text{", r"\pi", "^", "_", r"\pm", r"\cup", r"\\", "\n", "####", "answer is", "<answer>", "</answer>",
     "</think>", "-", ".", "!", r"\le", "<", r"\begin{pmatrix}", r"\end{pmatrix}", "&", "°", "½", "\x00", "e9", r"\infty"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(fragments, max_size=14).map("".join),
    st.sampled_from(["5", "1/2", "(1,2)", r"\{1,2\}", "x+1", r"\text{no}", "(B)"]),
)
def test_no_text_raises(text: str, gold: str) -> None:
    verdict = grade(gold, text)
    assert isinstance(verdict, Verdict)
    assert verdict.correct == (verdict.reason is Reason.CORRECT)
    extract.marked(text)
    format_value(text)
    for verify, answer in ((verify_knights, "A: knight"), (verify_exact, "no")):
        assert isinstance(verify(task(answer), text), Verdict)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(1, 1000), st.integers(-3, 3))
def test_fractions_in_any_notation(top: int, bottom: int, off: int) -> None:
    value, answer = f"{top}/{bottom}", (top + off, bottom)
    shared = math.gcd(*answer)
    forms = [
        rf"\frac{{{answer[0]}}}{{{answer[1]}}}",
        rf"\boxed{{\dfrac{{{answer[0] // shared}}}{{{answer[1] // shared}}}}}",
        f"The answer is {answer[0] * 3}/{answer[1] * 3}.",
    ]
    assert [grade(value, form).correct for form in forms] == [off == 0] * 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_sets_in_any_order_and_lists_without_credit(values: list[int], rng: random.Random) -> None:
    mixed = rng.sample(values, len(values))
    assert grade(", ".join(map(str, values)), rf"\boxed{{{', '.join(map(str, mixed))}}}").correct
    listed = grade(str(values[0]), rf"\boxed{{{', '.join(map(str, mixed))}}}")
    assert listed.reason is Reason.TOO_MANY_ANSWERS
    ordered = grade(f"({', '.join(map(str, values))})", rf"\boxed{{({', '.join(map(str, mixed))})}}")
    assert ordered.correct == (values == mixed)
