"""The engine that needs nothing but the model: any Hugging Face decoder, sampled from the learner's own weights.

Prefills each task once and forks its siblings, refills finished rows, records the log-probability of every sampled
token under what really sampled it. It is the specification: faster engines must equal it. Three parts that know
different things: the schedule (which request sits in which row; no tensors), the cache (rows of keys and values) and
the sampling. No text beyond handing ids to chat.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strop.attention import Packed, Slots, common_prefix, pack_layout
from strop.chat import Budget, Chat
from strop.engine import Sampling, Served
from strop.headroom import OutOfRoom
from strop.int8 import has_int8
from strop.machine import usable_memory_gb
from strop.model import Policy
from strop.precision import multiply_in
from strop.process import give_back_memory
from strop.provenance import mark_of
from strop.record import Rollout, Stop, Task, UserError, seed_of

__all__ = ["Int8", "NativeEngine", "draw"]

Int8 = Literal["never", "training", "always"]  # `engine.int8` of a recipe

MIN_ROWS = 16  # rows of an fp32 linear are bit-equal only from 16 rows up, so smaller batches are padded to it
PREFILL_TOKENS = 2048  # prompt tokens encoded in one forward
BLOCK = 256  # words summed together when a token is drawn
CACHE_FRAC = 1 / 6  # of the machine's memory; weights, optimizer and what else runs need the rest
SIMILAR = 1.5  # lengths up to this many times the shortest are decoded together
NUCLEUS = 512  # largest words among which the edge of a nucleus is looked for first


@dataclass(slots=True, kw_only=True, eq=False)
class Prompt:
    """A task's prompt, encoded at most once; its keys and values stay until the last sibling has forked them."""

    task: Task
    group: int
    ids: np.ndarray
    waiting: int  # siblings that have not started
    budget: Budget | None = None
    cache: list[tuple[Tensor, Tensor]] | None = None  # per layer [Hkv, P, D]
    logits_V: Tensor | None = None  # for the first token


@dataclass(slots=True, kw_only=True, eq=False)
class Running:
    """One rollout in a row of the batch."""

    prompt: Prompt
    sample: int
    uniforms: np.ndarray  # one number in [0, 1) per token to be sampled
    started: float
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def place(self) -> int:
        """Where the last sampled token lies, which is fed next."""
        return len(self.prompt.ids) + len(self.tokens) - 1


class Cache:
    """Keys and values of up to `rows` rollouts of up to `length` tokens; live rows are always 0..n-1.

    What all prompts begin with is kept once, as the `first` of them has it; places are counted from the prompt's start.
    """

    def __init__(self, rows: int, length: int, prefix: int, first: Sequence[tuple[Tensor, Tensor]]) -> None:
        heads, _, size = first[0][0].shape
        self.num_prefix = prefix
        self.prefix = [(k[:, :prefix].clone(), v[:, :prefix].clone()) for k, v in first]
        self.keys = [k.new_zeros(rows, heads, length - prefix, size) for k, _ in first]
        self.values = [v.new_zeros(rows, heads, length - prefix, size) for _, v in first]

    def write(self, row: int, cache: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Fork: copy a prompt's keys and values into a row."""
        for own_k, own_v, (k, v) in zip(self.keys, self.values, cache, strict=True):
            own_k[row, :, : k.shape[1] - self.num_prefix] = k[:, self.num_prefix :]
            own_v[row, :, : v.shape[1] - self.num_prefix] = v[:, self.num_prefix :]

    def move(self, source: int, target: int, length: int) -> None:
        for own in (*self.keys, *self.values):
            own[target, :, : length - self.num_prefix] = own[source, :, : length - self.num_prefix]

    def slots(self, place_B: Int[Tensor, " B"]) -> Slots:
        """Rows 0..B-1 with a new token each at these places."""
        own_B, device = place_B - self.num_prefix, place_B.device
        length, (_, heads, most, _) = int(own_B.max()) + 1, self.keys[0].shape
        unseen = torch.arange(self.num_prefix + length, device=device) > place_B[:, None]
        mask = torch.zeros(unseen.shape, dtype=self.keys[0].dtype, device=device).masked_fill_(unseen, -torch.inf)
        new_X = torch.arange(len(own_B) * heads, device=device) * most + own_B.repeat_interleave(heads)
        return Slots(
            prefix=self.prefix, keys=self.keys, values=self.values, new_X=new_X, length=length, unseen_BK=mask[:, None]
        )


class NativeEngine:
    """See `strop.engine.Engine`."""

    served: Served | None = None

    def __init__(
        self,
        policy: Policy,
        chat: Chat,
        *,
        max_batch: int,
        int8: Int8 = "never",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Raises UserError where there is no copy in `int8` (as in a recipe) of such a model."""
        self.policy, self.chat, self.max_batch, self.say = policy, chat, max_batch, say
        self.int8 = _checked_int8(policy, int8, say)
        self.about = "native, decoding in 8 bits" if self.int8 == "always" else "native"
        self.policy_step = 0
        self.weights: str | None = None  # the mark of those that sample, taken when they begin to
        self.opening = chat.opening()
        self.num_prefilled_tokens = 0  # counted so that a test can see that siblings share

    def load(self, policy_step: int) -> None:
        self.policy_step = policy_step  # the weights are the learner's own memory: nothing to copy, nothing stale

    def generate(
        self,
        tasks: Sequence[Task],
        *,
        num_samples: int,
        sampling: Sampling,
        seed_path: tuple[int | str, ...],
        budgets: Sequence[Budget] | None = None,
        on_done: Callable[[Rollout], None] | None = None,
    ) -> list[Rollout]:
        prompts = [
            Prompt(task=t, group=i, ids=self.chat.encode_prompt(t.prompt, b), waiting=num_samples, budget=b)
            for i, (t, b) in enumerate(zip(tasks, budgets or [None] * len(tasks), strict=True))
        ]
        done: dict[tuple[int, int], Rollout] = {}
        with torch.inference_mode(), self._multiplying(sampling):
            self.weights = mark_of(self.policy.trainable())
            lengths = [len(p.ids) + sampling.max_tokens for p in prompts]
            most_rows = min(self.max_batch, len(prompts) * num_samples)
            for places, rows in waves(lengths, most_rows, self._room_tokens()):
                done |= self._with_room([prompts[i] for i in places], rows, num_samples, sampling, seed_path, on_done)
        return [done[p.group, s] for p in prompts for s in range(num_samples)]

    @contextmanager
    def _multiplying(self, sampling: Sampling) -> Iterator[None]:
        in_int8 = self.int8 == "always" or (self.int8 == "training" and not sampling.exact)
        with ExitStack() as stack:
            stack.enter_context(multiply_in("float32") if sampling.exact else self.policy.as_trained())
            if in_int8:
                stack.enter_context(self.policy.in_int8())
            yield

    def _room_tokens(self) -> int:
        """Tokens whose keys and values fit into CACHE_FRAC of the memory that there is. Nothing that changes while it runs."""
        device, shape = self.policy.device, self.policy.model.config.get_text_config()
        heads = shape.num_attention_heads
        width = (getattr(shape, "num_key_value_heads", None) or heads) * (
            getattr(shape, "head_dim", None) or shape.hidden_size // heads
        )
        a_token = 2 * shape.num_hidden_layers * width * self.policy.model.dtype.itemsize
        cuda = device.type == "cuda"
        memory = torch.cuda.get_device_properties(device).total_memory if cuda else usable_memory_gb() * 1e9
        return int(CACHE_FRAC * memory) // a_token

    def _with_room(
        self,
        prompts: Sequence[Prompt],
        rows: int,
        num_samples: int,
        sampling: Sampling,
        seed_path: tuple[int | str, ...],
        on_done: Callable[[Rollout], None] | None,
    ) -> dict[tuple[int, int], Rollout]:
        """`_generate`, begun anew with half of the rows, for good, wherever memory runs short.

        The same rollouts but for rounding: their seeds are their own. Raises UserError when fewer rows need no less.
        """
        said: set[tuple[int, int]] = set()

        def tell(rollout: Rollout) -> None:
            if on_done is not None and (key := (rollout.group, rollout.sample)) not in said:
                said.add(key)
                on_done(rollout)

        while True:
            try:
                return self._generate([replace(p) for p in prompts], rows, num_samples, sampling, seed_path, tell)
            except (OutOfRoom, torch.cuda.OutOfMemoryError) as error:
                why = str(error).split("\n")[0]
            give_back_memory()
            if rows <= MIN_ROWS:
                longest = max(len(p.ids) for p in prompts) + sampling.max_tokens
                raise UserError(
                    f"memory is full even with {rows} answers at a time of up to {longest} tokens with their prompts ({why}): "
                    "lower max_tokens of the stage or engine.max_prompt_tokens, or take a smaller model"
                )
            self.max_batch = rows = max(MIN_ROWS, rows // 2)
            self.say(
                f"memory ran short: {rows} answers at a time from here on; engine.max_batch={rows} asks for no more"
            )

    def _generate(
        self,
        prompts: Sequence[Prompt],
        rows: int,
        num_samples: int,
        sampling: Sampling,
        seed_path: tuple[int | str, ...],
        on_done: Callable[[Rollout], None] | None,
    ) -> dict[tuple[int, int], Rollout]:
        """The rollouts by task, then sample, with `rows` of them decoded at once."""
        waiting = deque((p, s) for p in prompts for s in range(num_samples))
        rows = min(rows, len(waiting))
        length = max(len(p.ids) for p in prompts) + sampling.max_tokens
        cache: Cache | None = None
        live: list[Running] = []
        done: dict[tuple[int, int], Rollout] = {}

        def retire() -> None:
            """Take finished rollouts out; the last live row moves into each hole."""
            for row in range(len(live) - 1, -1, -1):
                stop = self._stop_of(live[row], sampling)
                if stop is None:
                    continue
                rollout = self._finish(live[row], stop, sampling)
                done[rollout.group, rollout.sample] = rollout
                if on_done is not None:
                    on_done(rollout)
                last = live.pop()
                if row < len(live):
                    assert cache is not None
                    cache.move(len(live), row, last.place + 1)
                    live[row] = last

        while waiting or live:
            while waiting and len(live) < rows:
                started = [waiting.popleft() for _ in range(min(rows - len(live), len(waiting)))]
                self._prefill([p for p, _ in started])
                if cache is None:
                    prefix = common_prefix([self.opening, *(p.ids for p in prompts)])
                    cache = Cache(max(rows, MIN_ROWS), length, prefix, _cache_of(prompts[0]))
                live += self._fork(started, cache, len(live), sampling, seed_path)
                retire()
            if live:
                assert cache is not None
                self._step(live, cache, sampling)
                retire()
        return done

    def _stop_of(self, run: Running, sampling: Sampling) -> Stop | None:
        if run.tokens[-1] in self.chat.stop_ids:
            return Stop.EOS
        return Stop.LENGTH if len(run.tokens) >= sampling.max_tokens else None

    def _prefill(self, prompts: Sequence[Prompt]) -> None:
        """Encode the prompts that have no keys yet, packed without padding."""
        fresh = [p for p in dict.fromkeys(prompts) if p.cache is None]
        while fresh:
            batch, num_tokens = [], 0
            while fresh and (not batch or num_tokens + len(fresh[0].ids) <= PREFILL_TOKENS):
                batch.append(fresh.pop(0))
                num_tokens += len(batch[-1].ids)
            self._encode(batch)

    def _encode(self, prompts: Sequence[Prompt]) -> None:
        """What all of them begin with (template, system prompt) is encoded once, each remainder behind it."""
        device, prefix = self.policy.device, common_prefix([p.ids for p in prompts])
        rest = [len(p.ids) - prefix for p in prompts]
        layout: Packed = pack_layout([(prefix, rest)], device)
        layout.cache = []
        ids = torch.from_numpy(np.concatenate([prompts[0].ids[:prefix], *(p.ids[prefix:] for p in prompts)])).long()
        position = torch.cat([torch.arange(prefix), *(torch.arange(prefix, prefix + n) for n in rest)])
        hidden_Th = self.policy.hidden(ids.to(device)[None], position.to(device)[None], layout)[0]
        ends = prefix + np.cumsum(rest)
        logits_PV = self.policy.logits(hidden_Th[torch.from_numpy(ends - 1).to(device)])
        for prompt, end, num, logits_V in zip(prompts, ends.tolist(), rest, logits_PV, strict=True):
            prompt.cache = [
                (
                    torch.cat([k[:, :prefix], k[:, end - num : end]], 1),
                    torch.cat([v[:, :prefix], v[:, end - num : end]], 1),
                )
                for k, v in layout.cache
            ]
            prompt.logits_V = logits_V
        self.num_prefilled_tokens += len(ids)

    def _fork(
        self,
        started: Sequence[tuple[Prompt, int]],
        cache: Cache,
        row: int,
        sampling: Sampling,
        seed_path: tuple[int | str, ...],
    ) -> list[Running]:
        """Siblings take a row each, a copy of their prompt's keys, and their own first token."""
        runs = []
        for offset, (prompt, sample) in enumerate(started):
            cache.write(row + offset, _cache_of(prompt))
            seed = seed_of(*seed_path, prompt.task.id, sample)
            uniforms = np.random.Generator(np.random.Philox(seed)).random(sampling.max_tokens)
            runs.append(Running(prompt=prompt, sample=sample, uniforms=uniforms, started=time.perf_counter()))
        logits_BV = torch.stack([r.prompt.logits_V for r in runs])  # type: ignore[misc]
        _append(runs, logits_BV, sampling)
        for prompt, _ in started:
            prompt.waiting -= 1
            if not prompt.waiting:
                prompt.cache = prompt.logits_V = None
        return runs

    def _step(self, live: Sequence[Running], cache: Cache, sampling: Sampling) -> None:
        """One more token for every live row."""
        device, rows = self.policy.device, max(len(live), MIN_ROWS)
        token_B, place_B = torch.zeros(rows, dtype=torch.long), torch.full((rows,), cache.num_prefix)
        token_B[: len(live)] = torch.tensor([r.tokens[-1] for r in live])
        place_B[: len(live)] = torch.tensor([r.place for r in live])
        token_B, place_B = token_B.to(device), place_B.to(device)
        hidden_Bh = self.policy.hidden(token_B[:, None], place_B[:, None], cache.slots(place_B))[:, 0]
        _append(live, self.policy.logits(hidden_Bh)[: len(live)], sampling)

    def _finish(self, run: Running, stop: Stop, sampling: Sampling) -> Rollout:
        num_prompt, ids = len(run.prompt.ids), np.array(run.tokens, dtype=np.int32)
        sampled = np.arange(num_prompt + len(ids)) >= num_prompt
        logprobs = np.full(len(sampled), np.nan, dtype=np.float32)
        logprobs[num_prompt:] = run.logprobs
        return Rollout(
            task=run.prompt.task, group=run.prompt.group, sample=run.sample,
            policy_step=(self.policy_step, self.policy_step), weights=self.weights, prefill=self.chat.settings.prefill,
            budget_tokens=None if run.prompt.budget is None else run.prompt.budget.tokens,
            token_ids=np.concatenate([run.prompt.ids, ids]), sampled=sampled, trained=sampled.copy(),
            sampler_logprobs=logprobs, temperature=sampling.temperature, text=self.chat.decode(ids), stop=stop,
            seconds=time.perf_counter() - run.started,
        )  # fmt: skip


def _checked_int8(policy: Policy, asked: Int8, say: Callable[[str], None]) -> Int8:
    if asked == "never":
        return asked
    if policy.fused is None or policy.device.type != "cpu":
        raise UserError(
            f"engine.int8={asked}: only Llama-shaped models on a CPU, without adapters, have a way in 8 bits; leave it out"
        )
    if not has_int8():
        say(
            f"this processor has no VNNI: engine.int8={asked} makes the same model here, but a slower one than without; leave it out"
        )
    return asked


def waves(lengths: Sequence[int], most_rows: int, room_tokens: int) -> list[tuple[list[int], int]]:
    """Which rollouts are decoded together: places in `lengths` (tokens each may reach), and how many rows at once.

    All in the order given where the cache has room for `most_rows` of the longest. Otherwise from short to long in waves
    of similar length, since a row is as long as the longest of its wave: a few long prompts would multiply the memory, and
    the time of attention, of all others.

    >>> waves([30, 90, 20], 4, 400), waves([30, 90, 20], 4, 200)
    ([([0, 1, 2], 4)], [([2, 0], 4), ([1], 2)])
    """
    if not lengths:
        return []
    if most_rows * max(lengths) <= room_tokens:
        return [(list(range(len(lengths))), most_rows)]
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if found and lengths[place] <= SIMILAR * lengths[found[-1][0]]:
            found[-1].append(place)
        else:
            found.append([place])
    return [(wave, max(1, min(most_rows, room_tokens // lengths[wave[-1]]))) for wave in found]


def _cache_of(prompt: Prompt) -> list[tuple[Tensor, Tensor]]:
    assert prompt.cache is not None, "not prefilled"
    return prompt.cache


def _append(runs: Sequence[Running], logits_BV: Float[Tensor, "B V"], sampling: Sampling) -> None:
    uniform_B = torch.tensor([r.uniforms[len(r.tokens)] for r in runs], dtype=torch.float32, device=logits_BV.device)
    token_B, logprob_B = draw(logits_BV, uniform_B, sampling.temperature, sampling.top_p)
    for run, token, logprob in zip(runs, token_B.tolist(), logprob_B.tolist(), strict=True):
        run.tokens.append(token)
        run.logprobs.append(logprob)


def draw(
    logits_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"], temperature: float, top_p: float = 1.0
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """A token per row by inverting the cumulative softmax at `uniform`, and its log-probability in nats.

    The log-probability is under the tempered softmax, cut to its nucleus where `top_p` is below 1, which is what
    sampled it; greedy (temperature 0) takes the largest and reports it under the plain softmax. The logits' memory is
    used up.

    >>> draw(torch.tensor([[0.0, 0.0]]).log_softmax(-1), torch.tensor([0.6]), 1.0)[0].tolist()
    [1]
    """
    if temperature not in (0, 1):
        logits_BV.div_(temperature)
    token_B1 = None if temperature else logits_BV.argmax(-1, keepdim=True)
    weight_BV = logits_BV.sub_(logits_BV.amax(-1, keepdim=True)).exp_()  # whole logits are large: no second copy
    if token_B1 is None:
        if top_p < 1:
            _keep_nucleus(weight_BV, top_p)
        token_B1, total_B1 = _invert(weight_BV, uniform_B[:, None])
    else:
        total_B1 = weight_BV.sum(-1, keepdim=True)
    return token_B1[:, 0], (weight_BV.gather(-1, token_B1).log() - total_B1.log())[:, 0]


def _keep_nucleus(weight_BV: Float[Tensor, "B V"], top_p: float) -> None:
    """Sets to 0, in place, all but the fewest largest weights whose sum reaches `top_p` of the total.

    Those equal to the smallest of them stay too, so that no order of equal words decides (Holtzman et al., arXiv
    1904.09751). The largest are looked through first: sorting a whole vocabulary takes longer than a step.
    """
    aim_B1 = top_p * weight_BV.sum(-1, keepdim=True)
    largest_BN = weight_BV.topk(min(NUCLEUS, weight_BV.shape[-1])).values
    edge_B1 = _edge(largest_BN, aim_B1)
    if (flat_B := (largest_BN.sum(-1, keepdim=True) < aim_B1)[:, 0]).any():
        edge_B1[flat_B] = _edge(weight_BV[flat_B].sort(-1, descending=True).values, aim_B1[flat_B])
    weight_BV.masked_fill_(weight_BV < edge_B1, 0)


def _edge(falling_BN: Float[Tensor, "B N"], aim_B1: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
    """The first of the falling weights with which their running sum reaches the aim, else the last."""
    before_BN = falling_BN.cumsum(-1).roll(1, -1)
    before_BN[:, 0] = 0
    return falling_BN.gather(-1, (before_BN < aim_B1).sum(-1, keepdim=True) - 1)


def _invert(weight_BV: Float[Tensor, "B V"], uniform_B1: Float[Tensor, "B 1"]) -> tuple[Tensor, Tensor]:
    """Where the running sum of the weights passes `uniform` of their total, and that total; both [B, 1].

    In two levels, blocks and then the words of one block: a running sum over the whole vocabulary takes five times
    longer and rounds more.
    """
    vocabulary = weight_BV.shape[-1]
    whole = vocabulary // BLOCK * BLOCK
    parts = [weight_BV[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1), weight_BV[:, whole:].sum(-1, keepdim=True)]
    block_BK = torch.cat(parts, -1)
    ends_BK = block_BK.cumsum(-1)
    aim_B1 = _below(uniform_B1 * ends_BK[:, -1:], ends_BK[:, -1:])
    chosen_B1 = torch.searchsorted(ends_BK, aim_B1, right=True)
    aim_B1 = (aim_B1 - (ends_BK - block_BK).gather(-1, chosen_B1)).clamp_min(0)
    place_Bk = chosen_B1 * BLOCK + torch.arange(BLOCK, device=weight_BV.device)
    inside_Bk = weight_BV.gather(-1, place_Bk.clamp_max(vocabulary - 1)).masked_fill_(place_Bk >= vocabulary, 0)
    inside_Bk = inside_Bk.cumsum(-1)
    aim_B1 = _below(aim_B1, inside_Bk[:, -1:])
    return chosen_B1 * BLOCK + torch.searchsorted(inside_Bk, aim_B1, right=True), ends_BK[:, -1:]


def _below(aim: Tensor, end: Tensor) -> Tensor:
    """Rounding may carry an aim to the end of a running sum, where there is nothing to be found."""
    return torch.minimum(aim, torch.nextafter(end, torch.zeros_like(end)))
