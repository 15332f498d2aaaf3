"""Our losses and advantages equal TRL's own on the same tensors, gradients of the weights included.

TRL's trainers are built on a tiny random Llama and a tokenizer of 32 words; what they compute comes out of their
`_compute_loss` and `_generate_and_score_completions`, not out of a copy of their formulas.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from strop.advantage import assign
from strop.config import Algorithm
from strop.loss import policy_loss, token_weights
from strop.record import Rollout, Task, replace

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, about their own arguments
trl = pytest.importorskip("trl", reason="parity with TRL needs the dev extra: pip install 'strop[dev]'")

MAX_TOKENS, GROUP = 12, 4
PROMPTS = ["w3 w4 w5", "w6 w7", "w8"]


def tiny_model(seed: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Trainer:
    """One of TRL's trainers with a batch that it sampled and scored itself, and its completions' rewards."""

    def __init__(self, name: str, folder) -> None:
        from datasets import Dataset
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, 32)}
        core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
        )
        config = getattr(trl, f"{name}Config")(
            output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, beta=0.0, num_generations=GROUP,
            per_device_train_batch_size=GROUP * len(PROMPTS), max_completion_length=MAX_TOKENS,
        )  # fmt: skip
        self.trl = getattr(trl, f"{name}Trainer")(
            model=tiny_model(seed=0), reward_funcs=self.score, args=config, processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": PROMPTS * GROUP}),
        )  # fmt: skip
        self.trl.model.double().eval()  # eval: no accumulation factor; the model has no dropout
        self.rewards: list[float | None] = []

    def score(self, completion_ids: list[list[int]], **columns) -> list[float | None]:
        """Arbitrary, but different within a group, equal in some, and None (unscorable) for some."""
        self.rewards = [None if sum(ids) % 7 == 0 else float(sum(ids) % 3) for ids in completion_ids]
        return self.rewards

    def sample(self, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return self.trl._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in range(GROUP)])


@pytest.fixture(scope="module")
def grpo(tmp_path_factory) -> Trainer:
    return Trainer("GRPO", tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def rloo(tmp_path_factory) -> Trainer:
    return Trainer("RLOO", tmp_path_factory.mktemp("rloo"))


def logprobs_of(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Plain log-softmax of the model's logits at the completion's tokens: our own computation, [B, T]."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1]
    return logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]


def off_policy(model, batch: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Old and reference logprobs that differ enough for both clips to bite, and advantages of both signs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        logprobs = logprobs_of(model, batch)
    noise = [torch.randn(logprobs.shape, generator=generator, dtype=logprobs.dtype) for _ in range(2)]
    advantages = torch.randn(len(logprobs), generator=generator, dtype=logprobs.dtype)
    return {"old": logprobs + 0.3 * noise[0], "ref": logprobs + 0.3 * noise[1], "advantages": advantages}


def ours(model, batch, moved, algorithm: Algorithm):
    mask = batch["completion_mask"].bool()
    lengths = mask.sum(1).tolist()
    assert len(set(lengths)) > 3, "a batch of equal lengths would not tell the aggregates apart"
    rollout_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    weights = torch.tensor(token_weights(lengths, algorithm.aggregate, MAX_TOKENS), dtype=torch.float64)
    model.zero_grad()
    loss, sums = policy_loss(
        logprobs_of(model, batch)[mask], moved["old"][mask], moved["ref"][mask], moved["advantages"][rollout_T],
        weights[rollout_T], rollout_T, algorithm,
    )  # fmt: skip
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}, sums


def theirs(trainer, batch, moved):
    old = {"old_per_token_logps": moved["old"], "old_logps": (moved["old"] * batch["completion_mask"]).sum(1)}
    trainer.model.zero_grad()
    trainer._metrics["eval"].clear()
    inputs = {**batch, **old, "ref_per_token_logps": moved["ref"], "advantages": moved["advantages"]}
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    return loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters()}, metrics


def assert_same(trainer, batch, moved, algorithm: Algorithm) -> dict[str, float]:
    their_loss, their_gradient, metrics = theirs(trainer, batch, moved)
    loss, gradient, sums = ours(trainer.model, batch, moved, algorithm)
    # Weights are fp64, but their language-model head computes in fp32 on the way: 1e-6, measured.
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=2e-6)
    for name, values in gradient.items():
        assert values.norm() > 1e-3
        assert (values - their_gradient[name]).norm() < 3e-5 * values.norm(), name
    means = {name: (value / sums["num_tokens"]).item() for name, value in sums.items()}
    return {"ours/" + name: value for name, value in means.items()} | metrics


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("loss_type", "axes", "beta"),
    [
        ("grpo", {"preset": "grpo", "clip_high": 0.28}, 0.0),
        ("grpo", {"preset": "grpo", "clip_high": 0.28, "kl_coef": 0.04}, 0.04),
        ("dr_grpo", {"preset": "dr_grpo", "clip_high": 0.28}, 0.0),
        ("dapo", {"preset": "dapo"}, 0.0),
        ("dapo", {"preset": "dapo", "clip_high": 0.2, "kl": "loss", "kl_coef": 0.5}, 0.5),
        ("grpo", {"preset": "gspo", "clip_low": 0.03, "clip_high": 0.04}, 0.0),
        ("cispo", {"preset": "cispo", "clip_high": 0.3}, 0.0),
    ],
)
def test_grpo_trainer_loss_gradient_and_metrics(grpo, loss_type, axes, beta, seed):
    algorithm = Algorithm(**axes)
    trainer, batch = grpo.trl, grpo.sample(seed)
    trainer.loss_type, trainer.beta = loss_type, beta
    trainer.epsilon_low, trainer.epsilon_high = algorithm.clip_low, algorithm.clip_high
    if loss_type == "cispo":  # theirs is the bound itself, not its distance from 1
        trainer.epsilon_high = 1 + algorithm.clip_high
    trainer.importance_sampling_level = "sequence" if algorithm.ratio == "sequence_mean" else "token"
    trainer.args.use_bias_correction_kl = False  # k3 as in the GRPO paper, not times the ratio (docs/papers.md)
    batch["num_items_in_batch"] = batch["completion_mask"].sum()
    try:
        values = assert_same(trainer, batch, off_policy(trainer.model, batch, seed), algorithm)
    finally:
        trainer.beta, trainer.importance_sampling_level = 0.0, "token"
    for side in ("low", "high"):
        if algorithm.clip_low is not None or side == "high":
            assert values[f"ours/clip_{side}"] > 0
        if algorithm.ratio != "token" or algorithm.clip == "weight":
            continue  # they count sequences, and with cispo those with A > 0 alone; we count tokens
        assert values[f"ours/clip_{side}"] == pytest.approx(values[f"clip_ratio/{side}_mean"])
    if beta:
        assert values["ours/kl"] == pytest.approx(values["kl"], rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_rloo_trainer_loss_and_gradient(rloo, clip, seed):
    trainer, batch = rloo.trl, rloo.sample(seed)
    # Their RLOO always clips; at a bound that no ratio reaches it is ours without a clip.
    trainer.epsilon_low = trainer.epsilon_high = 1e6 if clip is None else clip
    algorithm = Algorithm(preset="rloo", clip_low=clip, clip_high=clip)
    assert_same(trainer, batch, off_policy(trainer.model, batch, seed), algorithm)


def rollouts_of(batch: dict[str, torch.Tensor], rewards: list[float | None], logprobs=None, ref=None) -> list[Rollout]:
    out = []
    for i, reward in enumerate(rewards):
        group = i // GROUP
        mask = batch["completion_mask"][i].numpy().astype(bool)
        streams = [
            None if values is None else np.where(mask, values[i].numpy(), math.nan).astype(np.float32)
            for values in (logprobs, ref)
        ]
        out.append(
            Rollout(
                task=Task.make(source="s", prompt=PROMPTS[group], answer="0", verifier="math"),
                group=group,
                sample=i % GROUP,
                token_ids=batch["completion_ids"][i].numpy().astype(np.int32),
                sampled=mask,
                trained=mask,
                reward=reward,
                sampler_logprobs=streams[0],
                ref_logprobs=streams[1],
            )
        )
    return out


def assert_same_advantages(rollouts: list[Rollout], expected: torch.Tensor, algorithm: Algorithm) -> None:
    assigned = assign(rollouts, algorithm, seed=0)
    got = torch.tensor([float(r.advantages[r.sampled][0]) for r in assigned])
    assert got.abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("scale_rewards", "scale"), [("group", "group_std"), ("batch", "batch_std"), ("none", "none")])
def test_grpo_trainer_advantages(grpo, scale_rewards, scale):
    grpo.trl.scale_rewards = scale_rewards
    unscorable = 0
    for seed in range(6):
        batch = grpo.sample(seed)
        unscorable += grpo.rewards.count(None)
        assert_same_advantages(
            rollouts_of(batch, grpo.rewards), batch["advantages"], Algorithm(preset="grpo", scale=scale)
        )
    assert unscorable > 0


def test_grpo_trainer_advantages_of_decoupled_rewards(grpo, monkeypatch):
    """GDPO, with a second reward a hundred times as large."""
    large: list[float] = []

    def loud(completion_ids: list[list[int]], **columns) -> list[float]:
        large[:] = [100.0 * (len(ids) % 2) for ids in completion_ids]
        return large

    trainer, weights = grpo.trl, {"score": 1.0, "loud": 0.5}
    monkeypatch.setattr(trainer, "multi_objective_aggregation", "normalize_then_sum")
    monkeypatch.setattr(trainer, "reward_funcs", [grpo.score, loud])
    monkeypatch.setattr(trainer, "reward_func_names", list(weights))
    monkeypatch.setattr(trainer, "reward_processing_classes", [None, None])
    monkeypatch.setattr(trainer, "reward_weights", torch.tensor(list(weights.values())))
    algorithm = Algorithm(preset="grpo", decoupled=True)
    for seed in range(6):
        batch = grpo.sample(seed)
        rollouts = [
            replace(r, reward=0.0, reward_parts={"loud": b} | ({} if a is None else {"score": a}))
            for r, a, b in zip(rollouts_of(batch, grpo.rewards), grpo.rewards, large, strict=True)
        ]
        assigned = assign(rollouts, algorithm, seed=0, reward_weights=weights)
        got = torch.tensor([float(r.advantages[r.sampled][0]) for r in assigned])
        assert got.abs().max() > 0.5
        torch.testing.assert_close(got, batch["advantages"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_rloo_trainer_advantages_with_kl_in_the_reward(rloo, beta):
    from trl.trainer.utils import add_fused_lm_head

    trainer, reference = rloo.trl, tiny_model(seed=5).double()
    trainer.beta, trainer.ref_model = beta, reference
    add_fused_lm_head(reference)  # they ask the model itself for log-probabilities
    try:
        for seed in range(4):
            batch = rloo.sample(seed)
            with torch.no_grad():
                logprobs, ref = logprobs_of(trainer.model, batch), logprobs_of(reference, batch)
            rollouts = rollouts_of(batch, rloo.rewards, logprobs, ref)
            assert_same_advantages(rollouts, batch["advantages"], Algorithm(preset="rloo", kl_coef=beta))
    finally:
        trainer.beta, trainer.ref_model = 0.0, None
