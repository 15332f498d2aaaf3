"""Packing: the alignment by hand, packed = padded, shared prefix = repeated prefix, and micro-batches that cut nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strop import batch, config, model
from strop.head import logprobs_of
from strop.record import Rollout, Task

TASK = Task.make(source="test", prompt="p", answer="0", verifier="math")
CPU = torch.device("cpu")


def rollout(prompt: list[int], completion: list[int], group: int = 0, environment: range = range(0)) -> Rollout:
    sampled = np.array([False] * len(prompt) + [i not in environment for i in range(len(completion))])
    ids = np.array(prompt + completion, np.int32)
    return Rollout(
        task=TASK, group=group, sample=0, token_ids=ids, sampled=sampled, trained=sampled.copy(),
        sampler_logprobs=np.where(sampled, -1.0, np.nan).astype(np.float32),
    )  # fmt: skip


GROUPS = [
    rollout([5, 6, 7], [10, 11, 12]), rollout([5, 6, 7], [13]), rollout([5, 6, 7], [10, 14, 15, 16, 17]),
    rollout([8, 9], [20, 21], 1), rollout([8, 9], [22, 23, 24, 25, 26, 27], 1, environment=range(2, 4)),
]  # fmt: skip


@pytest.fixture(scope="module")
def policy(tiny_model):
    return model.load(config.Model(name=str(tiny_model)))


def test_alignment_by_hand():
    row = batch.collate(GROUPS[:2], CPU)
    assert row.ids_T.tolist() == [5, 6, 7, 10, 11]  # the prompt once; last tokens predict nothing and are left out
    assert row.position_T.tolist() == [0, 1, 2, 3, 4]
    assert row.predictor_N.tolist() == [2, 3, 4, 2]  # the last prompt token predicts both first tokens
    assert row.target_N.tolist() == [10, 11, 12, 13]
    assert row.rollout_N.tolist() == [0, 0, 0, 1]


def test_what_the_environment_said_is_read_but_not_predicted():
    row = batch.collate(GROUPS[4:], CPU)
    assert row.ids_T.tolist() == [8, 9, 22, 23, 24, 25, 26]
    assert row.target_N.tolist() == [22, 23, 26, 27]
    assert row.predictor_N.tolist() == [1, 2, 5, 6]


def padded_logprobs(policy, rollouts, temperature=1.0):
    """The plain way: one row a rollout, right-padded, the model's own eager attention, whole logits, log_softmax."""
    policy.model.set_attn_implementation("eager")
    width = max(len(r.token_ids) for r in rollouts)
    ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, r in enumerate(rollouts):
        ids[i, : len(r.token_ids)] = torch.from_numpy(r.token_ids.astype(np.int64))
        mask[i, : len(r.token_ids)] = 1
    logits = policy.model(input_ids=ids, attention_mask=mask, use_cache=False).logits / temperature
    policy.model.set_attn_implementation("strop")
    logprobs = torch.log_softmax(logits[:, :-1].double(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    return torch.cat([logprobs[i, np.flatnonzero(r.trained) - 1] for i, r in enumerate(rollouts)])


def packed_logprobs(policy, rollouts, temperature=1.0, share=True):
    row = batch.collate(rollouts, CPU, share=share)
    hidden = policy.hidden(row.ids_T[None], row.position_T[None], row.layout)[0]
    return logprobs_of(hidden[row.predictor_N], policy.head.weight, row.target_N, temperature, chunk_tokens=4)[0]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("share", [True, False])
def test_packed_equals_padded_forward_and_backward(policy, temperature, share):
    weights = torch.linspace(-1, 1, sum(r.num_trained for r in GROUPS))
    results = []
    for compute in (
        lambda: packed_logprobs(policy, GROUPS, temperature, share),
        lambda: padded_logprobs(policy, GROUPS, temperature),
    ):
        policy.model.zero_grad()
        logprobs = compute()
        (logprobs * weights).sum().backward()
        results.append((logprobs.detach().float(), {n: p.grad.clone() for n, p in policy.model.named_parameters()}))
    (ours, our_grads), (theirs, their_grads) = results
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-6)
    for name, grad in their_grads.items():
        torch.testing.assert_close(
            our_grads[name], grad, atol=1e-5 * max(1.0, grad.abs().max().item()), rtol=1e-4, msg=name
        )


def test_siblings_do_not_see_each_other(policy):
    alone = packed_logprobs(policy, GROUPS[2:3])
    together = packed_logprobs(policy, GROUPS[:3])[-len(alone) :]
    torch.testing.assert_close(alone, together, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("limit", [1, 6, 8, 11, 1000])
def test_split_keeps_order_whole_rollouts_and_the_limit(limit):
    parts = list(batch.split(GROUPS, limit))
    assert [r for part in parts for r in part] == GROUPS
    for part in parts:
        row = batch.collate(part, CPU)
        assert len(row.ids_T) <= limit or len(part) == 1


def test_unflatten_inverts_flat():
    values = batch.flat(GROUPS, "sampler_logprobs", CPU)
    for array, r in zip(batch.unflatten(values, GROUPS, wanted="trained"), GROUPS, strict=True):
        np.testing.assert_array_equal(array, r.sampler_logprobs)


def test_chunked_head_equals_whole_logits():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 8, generator=generator, requires_grad=True)
    weight = torch.randn(50, 8, generator=generator, requires_grad=True)
    target = torch.randint(50, (11,), generator=generator)
    out = torch.randn(11, generator=generator)
    logprobs, entropy = logprobs_of(hidden, weight, target, 0.7, chunk_tokens=3)
    (logprobs * out).sum().backward()
    got = [hidden.grad.clone(), weight.grad.clone()]
    hidden.grad = weight.grad = None
    plain = torch.log_softmax(hidden @ weight.T / 0.7, -1)
    (plain.gather(-1, target[:, None])[:, 0] * out).sum().backward()
    torch.testing.assert_close(logprobs, plain.gather(-1, target[:, None])[:, 0].detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, -(plain.exp() * plain).sum(-1).detach(), atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(got, [hidden.grad, weight.grad], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
