"""Packing: the alignment by hand, packed = padded, shared prefix = repeated prefix, and micro-batches that cut nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strop import attention, batch, config, model
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

SYSTEM = [1, 2, 3, 4]
CASES = {
    "nothing in common": GROUPS,
    "one group": GROUPS[:3],
    "one rollout": GROUPS[1:2],
    "a common prefix": [
        rollout([*SYSTEM, 5, 6], [10, 11, 12]), rollout([*SYSTEM, 5, 6], [13]), rollout([*SYSTEM, 7], [14, 15, 16], 1),
        rollout([*SYSTEM, 7], [17, *range(20, 41)], 1), rollout([*SYSTEM, 8, 9, 5], [19, 10], 2),
    ],
    "worked examples": [rollout([*SYSTEM, i, 9], list(range(10, 13 + 2 * i)), i) for i in range(4)],
    "a prompt that begins another": [rollout([*SYSTEM, *range(n)], [20 + n, 21], n) for n in (2, 0, 1)],
    "the same prompt twice": [rollout([*SYSTEM, p], [10, 11 + i], i) for i, p in enumerate([5, 6, 5])],
    "only the same prompt": [rollout(SYSTEM, [10, 11 + i], i) for i in range(3)],
    "prompts of one token": [rollout([5], [10, 11]), rollout([6], [12, 13], 1)],
}  # fmt: skip


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


def test_common_prefix_by_hand():
    row = batch.collate(
        [rollout([5, 6, 7], [10, 11]), rollout([5, 6, 7], [12]), rollout([5, 6, 8, 9], [13, 14], 1)], CPU
    )
    assert row.ids_T.tolist() == [5, 6, 7, 10, 8, 9, 13]
    assert row.position_T.tolist() == [0, 1, 2, 3, 2, 3, 4]
    assert row.predictor_N.tolist() == [2, 3, 2, 5, 6]
    assert row.target_N.tolist() == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("name", CASES)
def test_every_predictor_is_the_token_before(name):
    rollouts = CASES[name]
    row = batch.collate(rollouts, CPU)
    before = np.concatenate([r.token_ids[np.flatnonzero(r.trained) - 1] for r in rollouts])
    place = np.concatenate([np.flatnonzero(r.trained) - 1 for r in rollouts])
    assert row.ids_T[row.predictor_N].tolist() == before.tolist()
    assert row.position_T[row.predictor_N].tolist() == place.tolist()


TREES = [
    (0, [(3, [2, 1])]), (4, [(2, [3, 1]), (1, [0, 7, 2]), (3, [9])]), (1, [(1, [1]), (1, [1])]), (5, [(2, []), (1, [0])]),
    (0, [(2, [5]), (20, [1, 70])]), (30, [(2, [5] * 6)]), (0, [(0, [2, 3])]),
]  # fmt: skip


@pytest.mark.parametrize(("prefix", "groups"), TREES)
def test_attention_is_over_prefix_prompt_and_own_past(prefix, groups):
    """In float64, forward and backward, against one dense softmax over a mask written down place by place."""
    sees = [list(range(i + 1)) for i in range(prefix)]  # of each place, the places it may see
    for prompt, lengths in groups:
        start = len(sees)
        sees += [[*range(prefix), *range(start, start + i + 1)] for i in range(prompt)]
        stem = [*range(prefix), *range(start, start + prompt)]
        for length in lengths:
            own = len(sees)
            sees += [[*stem, *range(own, own + i + 1)] for i in range(length)]
    num = len(sees)
    visible = torch.zeros(num, num, dtype=torch.bool)
    for i, places in enumerate(sees):
        visible[i, places] = True
    generator = torch.Generator().manual_seed(0)
    q, k, v, up = (torch.randn(1, h, num, 8, generator=generator, dtype=torch.float64) for h in (6, 2, 2, 6))
    results = []
    for way in ("packed", "dense"):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        if way == "packed":
            layout = attention.pack_layout(groups, CPU, prefix_tokens=prefix)
            out = attention.attention(torch.nn.Identity(), *inputs, layout=layout)[0].transpose(1, 2)
        else:
            keys, values = (x.repeat_interleave(3, 1) for x in inputs[1:])
            scores = (inputs[0] @ keys.transpose(2, 3) / 8**0.5).masked_fill(~visible, -torch.inf)
            out = scores.softmax(-1) @ values
        (out * up).sum().backward()
        results.append([out.detach(), *(x.grad for x in inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_rows_of_very_different_length_share_no_block():
    layout = attention.pack_layout([(3, [2] * 50 + [400])], CPU)
    places = 3 + 100 + 400
    assert sum(block.query_RQ.numel() for block in layout.blocks) < 4 * places


def test_gradients_are_the_same_bits_each_time():
    """Hundreds of completions add to the keys of one prefix, on several threads."""
    layout = attention.pack_layout([(9, [15 + i % 17 for i in range(8)])] * 16, CPU, prefix_tokens=25)
    threads, generator = torch.get_num_threads(), torch.Generator().manual_seed(0)
    heads = [torch.randn(1, h, len(layout.source_T), 16, generator=generator) for h in (4, 2, 2)]
    torch.set_num_threads(4)
    grads = []
    for _ in range(6):
        inputs = [x.clone().requires_grad_() for x in heads]
        attention.attention(torch.nn.Identity(), *inputs, layout=layout)[0].square().sum().backward()
        grads.append([x.grad for x in inputs])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True))


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
@pytest.mark.parametrize("name", CASES)
def test_packed_equals_padded_forward_and_backward(policy, name, temperature, share):
    rollouts = CASES[name]
    weights = torch.linspace(-1, 1.5, sum(r.num_trained for r in rollouts))
    results = []
    for compute in (
        lambda: packed_logprobs(policy, rollouts, temperature, share),
        lambda: padded_logprobs(policy, rollouts, temperature),
    ):
        policy.model.zero_grad()
        logprobs = compute()
        (logprobs * weights).sum().backward()
        results.append((logprobs.detach().float(), {n: p.grad.clone() for n, p in policy.model.named_parameters()}))
    (ours, our_grads), (theirs, their_grads) = results
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-6)
    for parameter, grad in their_grads.items():
        torch.testing.assert_close(
            our_grads[parameter], grad, atol=1e-5 * max(1.0, grad.abs().max().item()), rtol=1e-4, msg=parameter
        )


def test_siblings_do_not_see_each_other(policy):
    alone = packed_logprobs(policy, GROUPS[2:3])
    together = packed_logprobs(policy, GROUPS[:3])[-len(alone) :]
    torch.testing.assert_close(alone, together, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("limit", [1, 6, 8, 11, 20, 1000])
@pytest.mark.parametrize("name", CASES)
def test_split_keeps_order_whole_rollouts_and_the_limit(name, limit):
    parts = list(batch.split(CASES[name], limit))
    assert [r for part in parts for r in part] == CASES[name]
    for part in parts:
        row = batch.collate(part, CPU)
        assert len(row.ids_T) <= limit or len(part) == 1


def test_split_counts_the_common_prefix_once():
    rollouts = CASES["worked examples"]
    places = 4 + 4 * 2 + sum(2 + 2 * i for i in range(4))
    assert len(batch.collate(rollouts, CPU).ids_T) == places
    assert list(batch.split(rollouts, places)) == [rollouts]
    assert [len(part) for part in batch.split(rollouts, places - 1)] == [3, 1]
    assert list(batch.split([], 100)) == []


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
    for of_logprobs, of_entropy in ((1.0, 0.0), (0.0, 1.0), (1.0, -0.5)):  # who the loss listens to
        logprobs, entropy = logprobs_of(hidden, weight, target, 0.7, chunk_tokens=3)
        plain = torch.log_softmax(hidden @ weight.T / 0.7, -1)
        columns = plain.gather(-1, target[:, None])[:, 0], -(plain.exp() * plain).sum(-1)
        torch.testing.assert_close(logprobs, columns[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy, columns[1], atol=1e-5, rtol=1e-5)
        gradients = []
        for pair in ((logprobs, entropy), columns):
            terms = [c * (x * out).sum() for c, x in zip((of_logprobs, of_entropy), pair, strict=True) if c]
            gradients.append(torch.autograd.grad(sum(terms), (hidden, weight)))
        for ours, theirs in zip(*gradients, strict=True):
            assert theirs.norm() > 0.1
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
