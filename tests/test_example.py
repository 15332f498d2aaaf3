"""The one-page example: stands alone, stays one page, and computes what it says."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).resolve().parent.parent / "examples" / "one_file_grpo.py"
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]  # of unequal length: padding must not show


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_file_grpo", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def policy(tiny_model: Path):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")


def test_imports_nothing_of_ours():
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    roots = {name.split(".")[0] for name in names}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "transformers", "numpy"}


def test_is_one_page():
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 230
    assert max(map(len, lines)) <= 120


def test_tasks_are_solved_and_never_leak(example: ModuleType):
    for level in (example.EASY, example.HARD):
        heldout = example.make_tasks("heldout", 50, **level)
        known = {task.problem for task in heldout}
        tasks = example.make_tasks("train", 200, **level, exclude=known)
        assert len({task.problem for task in tasks} | known) == 250
        for task in tasks:
            assert eval(task.problem) == int(task.answer) >= 0
            assert example.verify(task, task.solution) == 1.0
            for before, equals in re.findall(r"(\d+ [+-] \d+) = (\d+)\.", task.solution):
                assert eval(before) == int(equals)


def test_verify_takes_the_last_box_only(example: ModuleType):
    task = example.Task("1 + 1", "", "2")
    assert example.verify(task, r"\boxed{3} no, \boxed{ 2 }") == 1.0
    assert [example.verify(task, text) for text in (r"\boxed{2} no, \boxed{3}", "2", "", r"\boxed{22}")] == [0.0] * 4


def test_greedy_sampling_is_that_of_transformers(example: ModuleType, policy):
    import torch

    tokens, _ = example.sample(policy, PROMPTS, 1, policy.config.eos_token_id, None)
    for prompt, completion in zip(PROMPTS, tokens, strict=True):
        whole = policy.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=example.MAX_TOKENS)
        assert whole[0, len(prompt) :].tolist() == completion


def test_sampled_logprobs_are_those_of_the_learner_and_of_a_plain_forward(example: ModuleType, policy):
    import torch

    tokens, logprobs = example.sample(policy, PROMPTS, 4, 20, torch.Generator().manual_seed(0))
    assert len({tuple(row) for row in tokens}) > len(PROMPTS)  # siblings differ
    assert len({len(row) for row in tokens}) > 1  # some met the end token, the others were cut
    live_BT, mask_BT = example.live_logprobs(policy, PROMPTS, tokens)
    assert mask_BT.sum(1).tolist() == [len(row) for row in tokens]
    for b, (completion, recorded) in enumerate(zip(tokens, logprobs, strict=True)):
        ids = torch.tensor([*PROMPTS[b // 4], *completion])
        plain_T = policy(ids[None]).logits[0, -len(completion) - 1 : -1].log_softmax(1)
        plain_T = plain_T.gather(1, ids[-len(completion) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(recorded), plain_T, atol=1e-5, rtol=0)
        torch.testing.assert_close(live_BT[b, : len(completion)], plain_T, atol=1e-5, rtol=0)


def test_sampling_follows_the_distribution(example: ModuleType, policy, monkeypatch: pytest.MonkeyPatch):
    import torch

    prompt, num = [5, 6], 20_000
    monkeypatch.setattr(example, "MAX_TOKENS", 1)
    tokens, _ = example.sample(policy, [prompt], num, -1, torch.Generator().manual_seed(0))
    counts_V = torch.bincount(torch.tensor([row[0] for row in tokens]), minlength=policy.config.vocab_size)
    expected_V = num * policy(torch.tensor([prompt])).logits[0, -1].detach().softmax(0)
    z_V = (counts_V - expected_V) / expected_V.clamp(min=1).sqrt()
    assert z_V.abs().max() < 4.5


def gradient(example: ModuleType, policy, *batch) -> list:
    """What `update` puts before its optimizer, clipped to norm 1."""
    import torch

    class Reader(torch.optim.SGD):
        def step(self, closure=None):
            self.seen = [p.grad.clone() for p in policy.parameters()]

    reader = Reader(policy.parameters(), lr=0.0)
    example.update(policy, reader, *batch)
    return reader.seen


def test_gradient_is_that_of_the_formula(example: ModuleType, policy, monkeypatch: pytest.MonkeyPatch):
    """Against a loop over tokens: min(ratio A, clip(ratio) A), mean over all tokens; whatever the microbatch."""
    import torch

    tokens, logprobs = example.sample(policy, PROMPTS, 4, 20, torch.Generator().manual_seed(1))
    # Ratios of 0.61, 1.65, 1.25 and 0.82: beyond either clip, and just inside each.
    stale = [[x + (0.5, -0.5, -0.22, 0.2)[t % 4] for t, x in enumerate(row)] for row in logprobs]
    advantages = [0.75, -0.25, -0.25, -0.25] * 3
    total = torch.zeros(())
    for b, completion in enumerate(tokens):
        ids = torch.tensor([*PROMPTS[b // 4], *completion])
        live_TV = policy(ids[None]).logits[0, -len(completion) - 1 : -1].log_softmax(1)
        for t, token in enumerate(completion):
            ratio = (live_TV[t, token] - stale[b][t]).exp()
            total = total - min(ratio * advantages[b], ratio.clamp(0.8, 1.28) * advantages[b])
    (total / sum(map(len, tokens))).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    expected = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    for microbatch in (4, 32):
        monkeypatch.setattr(example, "MICROBATCH", microbatch)
        got = gradient(example, policy, PROMPTS, tokens, advantages, stale)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_without_old_logprobs_it_is_sft(example: ModuleType, policy):
    import torch

    solutions = [[20, 21, 22], [23], [24, 25]]
    total = torch.zeros(())
    for prompt, solution in zip(PROMPTS, solutions, strict=True):
        ids = torch.tensor([*prompt, *solution])
        total = total - policy(ids[None]).logits[0, :-1].log_softmax(1).gather(1, ids[1:, None])[-len(solution) :].sum()
    (total / 6).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    expected = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    for a, b in zip(gradient(example, policy, PROMPTS, solutions, [1.0] * 3), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_runs(tiny_model: Path):
    command = [sys.executable, str(FILE), "--model", str(tiny_model), "--steps", "1", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    rows = done.stdout.splitlines()
    assert rows[1].split() == ["step", "log", "p(token)"]
    assert rows[19].split() == ["step", "reward", "signal", "length", "seconds", "held-out"]
    assert float(rows[17].split()[1]) > float(rows[2].split()[1])  # SFT learned something
    assert re.fullmatch(r" +0 +\d+\.\d%", rows[20])
    assert re.fullmatch(r" +1 +[01]\.\d{3} +\d+% +\d+\.\d +\d+\.\d +\d+\.\d%", rows[21])
    assert len(rows) == 22
