"""On-policy distillation: credit by hand, alignment against a plain forward, learning with its control, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from strop import advantage, config, metrics, model, monitor, teacher
from strop.chat import Budget, hinted
from strop.config import Algorithm
from strop.engine import Sampling
from strop.engine.native import NativeEngine
from strop.learner import Learner
from strop.model import Policy
from strop.record import Rollout, Stop, Task, UserError, replace
from strop.teacher import Teacher
from test_train import unchecked_shapes

OPD = Algorithm(preset="opd", teacher="another")
TASKS = [
    Task.make(source="t", prompt=f"Compute {n} + 9.", answer="0", verifier="math", meta={"solution": f"{n} + 9 = {n + 9}"})
    for n in (3, 14, 159)
]  # fmt: skip


def load(folder: Path, noise_seed: int | None = None, rank: int = 0) -> Policy:
    """The tiny model; with a seed, one that thinks differently."""
    policy = model.load(config.Model(name=str(folder), lora=config.Lora(rank=rank)))
    if noise_seed is not None:
        generator = torch.Generator().manual_seed(noise_seed)
        with torch.no_grad():
            for p in policy.trainable().values():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return policy


def sample(
    policy: Policy, *, num: int = 3, max_tokens: int = 7, seed: int = 0, chat: config.Chat | None = None, **more
):
    engine = NativeEngine(policy, policy.chat(chat or config.Chat()), max_batch=64)
    sampling = Sampling(temperature=more.pop("temperature", 1.0), max_tokens=max_tokens, exact=False)
    return engine.generate(TASKS, num_samples=num, sampling=sampling, seed_path=("teacher", seed), **more)


def plain(policy: Policy, ids: np.ndarray, temperature: float) -> torch.Tensor:
    """log p of every token but the first, by transformers' own forward with eager attention; in float64 from the logits on."""
    policy.model.set_attn_implementation("eager")
    tensor = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        logits = policy.model(input_ids=tensor[None], use_cache=False).logits[0].double() / temperature
    return torch.log_softmax(logits, -1)[:-1].gather(-1, tensor[1:, None])[:, 0]


# --- credit -----------------------------------------------------------------------------------------------------------


def judged(
    ours: list[float], theirs: list[float], *, group: int = 0, reward: float | None = 0.0, stop: Stop = Stop.EOS
):
    """Two tokens of prompt, then one for each number."""
    mask = np.arange(len(ours) + 2) >= 2

    def padded(values: list[float]) -> np.ndarray:
        return np.array([np.nan, np.nan, *values], np.float32)

    return Rollout(
        task=TASKS[group], group=group, sample=0, token_ids=np.zeros(len(mask), np.int32), sampled=mask, trained=mask,
        sampler_logprobs=padded(ours), teacher_logprobs=padded(theirs), reward=reward, stop=stop,
    )  # fmt: skip


def test_three_tokens_by_hand():
    """The teacher finds the first token less likely, the second exactly as likely, the third e times likelier."""
    (r,) = advantage.assign([judged([-0.5, -1.0, -3.0], [-2.5, -1.0, -2.0])], OPD, seed=0)
    assert r.advantages is not None
    assert r.advantages.tolist() == [0, 0, -2.0, 0.0, 1.0]
    (half,) = advantage.assign([judged([-0.5], [-2.5])], OPD.model_copy(update={"teacher_coef": 0.5}), seed=0)
    assert half.advantages is not None
    assert half.advantages.tolist() == [0, 0, -1.0]
    assert metrics.summarise([r])["teacher_kl"] == pytest.approx((2.0 + 0.0 - 1.0) / 3)


@pytest.mark.parametrize("axes", [
    {"preset": "opd"}, {"preset": "opd", "overlong_filter": True}, {"preset": "grpo", "credit": "both", "teacher_coef": 0.3},
    {"preset": "reinforce_pp", "credit": "both"}, {"preset": "dr_grpo", "credit": "both", "overlong_filter": True},
])  # fmt: skip
def test_equals_a_slow_loop_beside_the_reward(axes):
    rng = np.random.default_rng(0)
    rollouts = []
    for i in range(12):
        ours, theirs = -rng.exponential(size=(2, rng.integers(1, 6)))
        stop, reward = (Stop.LENGTH if i == 5 else Stop.EOS), (None if i == 7 else float(rng.integers(0, 2)))
        rollouts.append(judged(ours.tolist(), theirs.tolist(), group=i % 3, reward=reward, stop=stop))
    algorithm = Algorithm.model_validate({**axes, "teacher": "another"})
    alone = algorithm.credit == "teacher"
    paid = algorithm.model_copy(update={"credit": "reward", "teacher": ""})
    found = advantage.assign(rollouts, algorithm, seed=0)
    rewarded = advantage.assign(rollouts, paid, seed=0)
    for i, (r, without) in enumerate(zip(found, rewarded, strict=True)):
        leaves = (i == 5 and algorithm.overlong_filter) or (i == 7 and not alone)
        assert r.num_trained == (0 if leaves else r.num_sampled)
        for t in range(len(r.token_ids)):
            expected = 0.0
            if t >= 2 and not leaves:
                expected = algorithm.teacher_coef * (float(r.teacher_logprobs[t]) - float(r.sampler_logprobs[t]))
                expected += 0.0 if alone else float(without.advantages[t])
            assert r.advantages[t] == pytest.approx(expected, abs=1e-6)


def test_equal_rewards_are_no_silence_and_rounding_is():
    group = [judged([-1.0, -2.0], [-1.5, -2.0]), judged([-1.0], [-1.0 + 5e-5])]
    found = advantage.assign(group, OPD, seed=0)
    assert advantage.has_signal(found[:1])
    assert advantage.acts(found[:1], OPD)
    assert not advantage.has_signal(found[1:])


def test_controls_zero_and_shuffle_the_teachers_part():
    rng = np.random.default_rng(1)
    rollouts = [judged((-rng.exponential(size=4)).tolist(), (-rng.exponential(size=4)).tolist()) for _ in range(5)]
    real, shuffled, zero = (
        np.concatenate([r.advantages for r in advantage.assign(rollouts, OPD.model_copy(update={"advantages": how}), seed=3)])
        for how in ("reward", "shuffled", "zero")
    )  # fmt: skip
    assert not zero.any()
    assert sorted(real) == sorted(shuffled)
    assert (real != shuffled).sum() > 10
    assert (shuffled[np.tile(np.arange(6) < 2, 5)] == 0).all()  # the prompts stay without


# --- alignment --------------------------------------------------------------------------------------------------------


def test_another_teacher_equals_a_plain_forward(tiny_model):
    student, other = load(tiny_model), load(tiny_model, noise_seed=1)
    rollouts = sample(student, temperature=0.7)
    learner = Learner(student, config.Optim(microbatch_tokens=64), teacher=Teacher(policy=other))
    for r in learner.annotate(rollouts, OPD):
        expected = plain(other, r.token_ids, 0.7).numpy()
        np.testing.assert_allclose(r.teacher_logprobs[1:][r.sampled[1:]], expected[r.sampled[1:]], atol=1e-5, rtol=1e-6)
        assert np.isnan(r.teacher_logprobs[~r.sampled]).all()


@pytest.mark.parametrize("kind", ["self", "live"])
@pytest.mark.parametrize("rank", [0, 4])
def test_ones_own_teacher_reads_the_solution_and_judges_the_same_tokens(tiny_model, kind, rank):
    """On the concatenated text: its prompt with the solution, template, length asked for and prefill, then the completion."""
    student, settings = load(tiny_model, rank=rank), config.Chat(system="Be brief.", prefill="<think>\n")
    chat, budget = student.chat(settings), Budget(tokens=40, mode="max")
    algorithm = Algorithm.model_validate({"preset": "opsd", "teacher": kind})
    shown = Teacher(prompt=lambda r: chat.encode_hinted(r.task, budget))
    learner = Learner(student, config.Optim(lr=1e-2, microbatch_tokens=256), teacher=shown)
    learner.keep_reference()
    first = sample(student, chat=settings, budgets=[budget] * 3, temperature=0.8)
    first = advantage.assign(learner.annotate(first, algorithm), algorithm, seed=0)
    learner.update(first, algorithm, num_updates=1, max_tokens=7, seed=0)
    rollouts = sample(student, chat=settings, budgets=[budget] * 3, seed=1, temperature=0.8)
    found = learner.annotate(rollouts, algorithm)
    began, now = load(tiny_model, rank=rank), student
    by_kind = {"self": began, "live": now}
    far = 0.0
    for r in found:
        ids = np.concatenate([chat.encode_hinted(r.task, budget), r.token_ids[r.sampled]])
        text = student.tokenizer.decode(ids)
        assert f"Compute {r.task.prompt.split()[1]} + 9." in text
        assert text.count(r.task.meta["solution"]) == 1
        assert "Think for maximum 40 tokens.<|im_end|>" in text
        assert student.tokenizer.decode(ids[: -r.num_sampled]).endswith("assistant\n<think>\n")
        judge, other = plain(by_kind[kind], ids, 0.8), plain(by_kind["live" if kind == "self" else "self"], ids, 0.8)
        np.testing.assert_allclose(r.teacher_logprobs[r.sampled], judge[-r.num_sampled :], atol=1e-5, rtol=1e-6)
        assert np.isnan(r.teacher_logprobs[~r.sampled]).all()
        far = max(far, float((judge - other)[-r.num_sampled :].abs().max()))
    assert far > 1e-3  # the two teachers are told apart


def test_what_a_teacher_is_shown_is_the_prompt_with_the_solution(tiny_model):
    chat = load(tiny_model).chat(config.Chat())
    shown = chat.tokenizer.decode(chat.encode_hinted(TASKS[0]))
    assert shown == chat.prompt_text(hinted(TASKS[0].prompt, "3 + 9 = 12"))


# --- learning ---------------------------------------------------------------------------------------------------------


def test_a_teacher_that_is_the_student_leaves_every_bit(tiny_model):
    student = load(tiny_model)
    before = {n: p.detach().clone() for n, p in student.trainable().items()}
    learner = Learner(student, config.Optim(lr=1e-2), teacher=Teacher(policy=load(tiny_model)))
    rollouts = advantage.assign(learner.annotate(sample(student), OPD), OPD, seed=0)
    assert all(not r.advantages.any() for r in rollouts)
    assert all(r.num_trained == r.num_sampled for r in rollouts)
    assert learner.update(rollouts, OPD, num_updates=1, max_tokens=7, seed=0)["num_updates"] == 0
    assert all(torch.equal(before[n], p) for n, p in student.trainable().items())
    assert abs(metrics.summarise(rollouts)["teacher_kl"]) < 1e-5


def reverse_kl(student: Policy, judge: Policy) -> float:
    """KL(student || teacher) of the first token, exact: summed over all words, mean over the tasks."""
    total = 0.0
    chat = student.chat(config.Chat())
    with torch.no_grad():
        for task in TASKS:
            ids = torch.from_numpy(chat.encode_prompt(task.prompt).astype(np.int64))[None]
            ours, theirs = (
                torch.log_softmax(p.head(p.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)[0, -1].double(), -1)
                for p in (student, judge)
            )  # fmt: skip
            total += float((ours.exp() * (ours - theirs)).sum())
    return total / len(TASKS)


def distilled(folder: Path, seed: int, algorithm: Algorithm) -> tuple[float, float, float]:
    """The exact reverse KL before and after 25 steps on first tokens, and the metric of the first step."""
    student, judge = load(folder), load(folder, noise_seed=seed)
    for p in (student, judge):
        p.model.set_attn_implementation("eager")
    before, first = reverse_kl(student, judge), 0.0
    learner = Learner(student, config.Optim(lr=2e-3), teacher=Teacher(policy=judge))
    for p in (student, judge):
        p.model.set_attn_implementation("strop")
    for step in range(25):
        rollouts = learner.annotate(sample(student, num=48, max_tokens=1, seed=step), algorithm)
        first = first or metrics.summarise(rollouts)["teacher_kl"]
        rollouts = advantage.assign(rollouts, algorithm, seed=step)
        learner.update(rollouts, algorithm, num_updates=1, max_tokens=1, seed=step)
    for p in (student, judge):
        p.model.set_attn_implementation("eager")
    return before, reverse_kl(student, judge), first


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_student_approaches_its_teacher_and_not_with_shuffled_credit(tiny_model, seed):
    with unchecked_shapes():
        before, after, measured = distilled(tiny_model, seed, OPD)
        _, shuffled, _ = distilled(tiny_model, seed, OPD.model_copy(update={"advantages": "shuffled"}))
    assert after < 0.25 * before
    assert measured == pytest.approx(before, rel=0.5)  # 144 tokens estimate it
    assert shuffled > 0.8 * before


# --- what is refused, and what is said --------------------------------------------------------------------------------


def save(policy: Policy, folder: Path) -> teacher.Outline:
    policy.save(folder)
    return teacher.outline(config.Model(name=str(folder)))


def test_a_teacher_with_other_words_is_refused(tiny_model, tmp_path):
    student, other = load(tiny_model), load(tiny_model)
    teacher.check(teacher.outline(config.Model(name=str(tiny_model))), student, "same", longest=64)
    other.tokenizer.add_tokens(["<new>"])
    with pytest.raises(
        UserError, match=r"teacher=new has another tokenizer than .*'<new>' \(id \d+ there, none here\)"
    ):
        teacher.check(save(other, tmp_path / "new"), student, "new", longest=64)


def test_a_teacher_with_too_few_words_or_places_is_refused(tiny_model, tmp_path):
    student = load(tiny_model)
    small = save(load(tiny_model), tmp_path / "small")
    with pytest.raises(
        UserError, match="may come to 1030 tokens, and its teacher small has places for 1024; lower max_tokens by 6"
    ):
        teacher.check(small, student, "small", longest=1030)
    small.hf_config.vocab_size -= 1
    with pytest.raises(UserError, match=r"token ids and .* may sample"):
        teacher.check(small, student, "small", longest=64)


def test_a_teacher_that_is_not_there_is_named_by_its_key(tmp_path):
    settings = config.Model(name=str(tmp_path / "none"))
    for look in (teacher.outline, teacher.load, teacher.is_here):
        with pytest.raises(UserError, match=r"^algorithm\.teacher=.*no such folder"):
            look(settings)


def test_a_teacher_is_frozen_and_counted(tiny_model):
    policy = teacher.load(config.Model(name=str(tiny_model)))
    assert not policy.trainable()
    num = sum(p.numel() for p in load(tiny_model).model.parameters())
    assert Teacher(policy=policy).num_bytes == 4 * num
    assert Teacher().num_bytes == 0


def test_alarms_about_rewards_are_silent_where_a_teacher_credits():
    def alarms(**row: float) -> set[str]:
        rows = [
            {"stage": "rl", "step": n, "reward": 0.0, "reward_std": 0.0, "frac_reward_zero_std": 1.0, **row}
            for n in range(1, 9)
        ]
        return {alarm.name for i in range(len(rows)) for alarm in monitor.check(rows[i], rows[:i])}

    assert alarms(accuracy=0.0) == {"no_reward"}
    assert alarms(accuracy=0.4) == {"no_signal"}
    assert alarms(accuracy=0.0, teacher_kl=0.7) == alarms(accuracy=0.4, teacher_kl=0.7) == set()


def test_unscorable_answers_stay_where_no_reward_is_asked_for():
    unscored = replace(judged([-1.0], [-2.0]), reward=None)
    (r,) = advantage.assign([unscored], OPD, seed=0)
    assert r.num_trained == 1
