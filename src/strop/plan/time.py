"""Seconds by phase: operations over rates, bytes over bandwidth, and what every token, step and start costs besides.

Lengths of completions fall off as `alive` says: a share of the rows ends at every token, so that the mean is the asked
one and the longest reach the limit. Pure arithmetic over `rates.Rates`; knows no assumption of its own but that curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from strop.plan.packing import Number, Packed, split
from strop.plan.rates import Rates
from strop.plan.shape import Shape

__all__ = ["Cost", "alive", "generate_s", "rows_of", "save_s", "train_s"]

POINTS = 64  # at which a generation is added up
LOAD_S = 8.0  # importing torch, building the model, comparing it with eager attention; seen on two cores
READ_BYTES = 1e9  # weights read a second
ROW_S = 6e-6  # of a row at each token: its number taken out, its end looked for, in Python
STEP_S = 0.15  # of a step: drawing, writing its rollouts, its line
UPDATE_PASSES = 2  # over all gradients: their norm, and the clip
MICRO_PASSES = 8  # over the head's gradient, which every micro-batch makes and adds


def alive(at: Number, mean: Number) -> Number:
    """Share of completions longer than `at` of their limit, when their mean is `mean` of it: 1 - at^a, a = mean/(1-mean).

    >>> alive(0.5, 0.5), alive(0.9, 1.0), round(sum(alive((i + 0.5) / 100, 0.2) for i in range(100)) / 100, 2)
    (0.5, 1.0, 0.2)
    """
    return 1.0 if mean >= 1 else 1.0 - at ** (mean / (1.0 - mean))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A shape on a machine."""

    shape: Shape
    rates: Rates
    rank: int = 0


def token_s(cost: Cost, rows: Number, keys: Number, prefix: Number = 0.0) -> Number:
    """One token for each of `rows` rows that look at `keys` keys of their own each, and at a shared prefix."""
    s, r = cost.shape, cost.rates
    layers_s = s.layers * (r.layer_s(rows) + r.key_s * rows * (keys + 0.25 * prefix))
    return layers_s + r.word_s(rows) + ROW_S * rows


def generate_s(
    cost: Cost, *, prompts: int, group: int, prompt_tokens: int, prefix_tokens: int, max_tokens: int, mean: Number, rows: int
) -> Number:  # fmt: skip
    """A generation of `prompts` x `group` completions, `rows` decoded at once; finished rows are refilled."""
    s, total = cost.shape, prompts * group
    rows = min(rows, total)
    own = prompt_tokens - prefix_tokens
    fed = prefix_tokens + prompts * own
    prefill = 2 * fed * s.layers * s.layer_weights + 4 * prompts * prompt_tokens**2 * s.queries * s.layers
    seconds = prefill / cost.rates.prefill_flops + prompts * 2 * s.head_weights / cost.rates.prefill_flops
    length = mean * max_tokens
    if total > rows:  # all rows are busy until nothing is left to refill them with
        seconds += (total - rows) * length / rows * token_s(cost, rows, own + length / 2, prefix_tokens)
    width = max_tokens / POINTS
    for point in range(POINTS):
        at = (point + 0.5) / POINTS
        seconds += width * token_s(cost, max(1.0, rows * alive(at, mean)), own + at * max_tokens, prefix_tokens)
    return seconds


def rows_of(
    *, prompts: int, group: int, prompt_tokens: int, prefix_tokens: int, max_tokens: int, mean: Number, microbatch: int
) -> list[Packed]:  # fmt: skip
    """The micro-batches of one update on that many groups, with lengths spread as `alive` has them."""
    power = math.inf if mean >= 1 else mean / (1 - mean)
    lengths = [
        max(1, round(max_tokens * (((i + 0.5) / group) ** (1 / power) if math.isfinite(power) else 1.0)))
        for i in range(group)
    ]
    return list(split([(prompt_tokens, lengths)] * prompts, prefix_tokens, microbatch))


def train_s(cost: Cost, rows: Sequence[Packed], *, passes: int = 0, updates: int = 1) -> Number:
    """Updates on these micro-batches, and `passes` looks at them without a gradient (reference, teacher, old weights)."""
    s, r = cost.shape, cost.rates
    places, pairs = sum(row.places for row in rows), sum(row.pairs for row in rows)
    predicted = sum(row.predicted for row in rows)
    times = 4 if cost.rank else 6  # without gradients of the weights that adapters leave alone
    products = times * places * (s.layers * s.layer_weights) + 6 * places * s.lora_parameters(cost.rank)
    attend = 14 * pairs * s.queries * s.layers
    head = (6 if cost.rank else 8) * predicted * s.head_weights
    seconds = products / r.train_flops + attend / r.attend_flops + head / r.head_flops
    seconds += passes * (
        products / times * 2 / r.train_flops + 0.3 * attend / r.attend_flops + 0.25 * head / r.head_flops
    )
    trained = s.trainable(cost.rank)
    tables = 0 if cost.rank else MICRO_PASSES * s.head_weights
    seconds += len(rows) * 4 * (tables + 3 * trained) / r.memory_bytes
    return seconds + updates * (trained / r.optimizer_floats + 4 * UPDATE_PASSES * trained / r.memory_bytes)


def save_s(cost: Cost, *, moments: bool, itemsize: int = 4) -> Number:
    """A checkpoint: weights or adapters, and the optimizer's state where one may go on from it."""
    trained = cost.shape.trainable(cost.rank)
    return (itemsize + (8 if moments else 0)) * trained / cost.rates.disk_bytes
