"""One stage of a recipe on one machine: its peaks of memory, its seconds by phase, its tokens.

Puts `work` (counts), `memory` (bytes) and `time` (seconds) together. Every figure of time has a lowest and a highest value:
from the lengths that are assumed, and from how far the rates can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from strop import guard
from strop.config import EvaluateStage, Recipe, SftStage, TrainStage
from strop.plan import memory, time
from strop.plan.memory import Held, Peak, Sampled
from strop.plan.packing import Number, Packed, split
from strop.plan.shape import Shape
from strop.plan.time import Cost
from strop.plan.work import Assumed, Range, Work

__all__ = ["Place", "StageForecast", "peaks", "stage"]

CACHE_FRAC = 1 / 6  # of the memory, for keys and values (`engine.native`)
OWN_TEACHERS = ("", "self", "live")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where it would run: what decides memory, and how far the rates can be trusted."""

    device: str  # cpu or cuda
    total_bytes: Number  # that the machine or the GPU has
    base_bytes: Number  # of a process without a model
    rounds: bool = False  # float32 products are rounded to bfloat16 where the recipe allows it
    int8_bytes: int = 1  # an entry of a matrix of `engine.int8`
    low: Number = 0.85  # of the likely seconds, with the same lengths
    high: Number = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class StageForecast:
    name: str
    do: str
    peaks: tuple[Peak, ...]
    seconds: Mapping[str, Range]  # by phase, in the ledger's words
    tokens_sampled: Range
    tokens_trained: Range

    @property
    def total_s(self) -> Range:
        return added(self.seconds.values())


def added(ranges: Iterable[Range]) -> Range:
    """End by end: as if all were low together, or all high."""
    listed = list(ranges)
    return Range(low=sum(r.low for r in listed), likely=sum(r.likely for r in listed), high=sum(r.high for r in listed))


# --- memory -----------------------------------------------------------------------------------------------------------


def held_by(
    recipe: Recipe, shape: Shape, place: Place, *, rank: int, trains: bool, left_over: bool, copies: Number = 0.0
) -> Held:
    fused = shape.is_fused(lora=bool(rank), device=place.device, dtype=recipe.model.dtype)
    return Held(
        shape=shape, rank=rank, itemsize=2 if recipe.model.dtype == "bfloat16" else 4, fused=fused, trains=trains,
        copies=copies, left_over=left_over,
        rounded=fused and place.rounds and recipe.model.matmul == "bfloat16",
        int8_bytes=place.int8_bytes if recipe.engine.int8 != "never" else 0,
    )  # fmt: skip


def peaks(work: Work, recipe: Recipe, shape: Shape, place: Place, *, rank: int, left_over: bool) -> tuple[Peak, ...]:
    """The most of every phase, and of the whole stage as its last entry, under the stage's own name."""
    stage = work.stage
    trains = not isinstance(stage, EvaluateStage)
    copies = _copies(stage, shape, rank, recipe) if isinstance(stage, TrainStage) else 0.0
    held = held_by(recipe, shape, place, rank=rank, trains=trains, left_over=left_over, copies=copies)
    moments = dict(_moments(work, recipe, held, place))
    every = [moment for listed in moments.values() for moment in listed]
    holes = memory.holes_of(held, _learned(work))

    def most(name: str, listed: list[memory.Tensors]) -> Peak:
        return memory.peak(name, held, listed, base=place.base_bytes, holes=holes, cpu=place.device == "cpu")

    return (*(most(name, listed) for name, listed in moments.items()), most(stage.name, every))


def _moments(work: Work, recipe: Recipe, held: Held, place: Place) -> list[tuple[str, list[memory.Tensors]]]:
    stage = work.stage

    def drawn(prompts: int, group: int, max_tokens: int) -> list[memory.Tensors]:
        rows = rows_at_once(recipe, held.shape, place, held.itemsize, prompts * group, work.longest_prompt + max_tokens)
        asked = Sampled(
            rows=rows, prompts=min(prompts, -(-rows // group)), prompt_tokens=work.longest_prompt,
            prefix_tokens=work.prefix_tokens, max_tokens=max_tokens,
        )  # fmt: skip
        return list(memory.sampling(held, asked)) if prompts else []

    match stage:
        case EvaluateStage():
            return [("evaluate", drawn(work.num_heldout, max(1, stage.num_samples), stage.max_tokens))]
        case SftStage():
            rows = _learned(work)
            look = drawn(work.num_dev, max(1, stage.dev_samples), stage.max_tokens)
            return [("sft", list(memory.training(held, rows))), ("evaluate", look)]
        case TrainStage():
            rows = _learned(work)
            entropy = stage.algorithm.entropy_coef > 0
            found = [
                ("generate", drawn(stage.prompts_per_step, stage.group_size, stage.most_tokens)),
                ("train", list(memory.training(held, rows, entropy=entropy))),
            ]
            look = drawn(work.num_dev if stage.heldout_every else 0, 1, stage.most_tokens)
            return [*found, ("evaluate", look)] if look else found


def rows_at_once(recipe: Recipe, shape: Shape, place: Place, itemsize: int, most: int, length: int) -> int:
    """Rows that the engine decodes together: the recipe's, what there is to do, what the cache has room for."""
    room = int(CACHE_FRAC * place.total_bytes) // (itemsize * shape.cached_floats)
    return max(1, min(recipe.engine.max_batch, most, room // length))


def _copies(stage: TrainStage, shape: Shape, rank: int, recipe: Recipe) -> Number:
    """Bytes of a reference, a critic of its own, a teacher (taken to be as large as the student)."""
    itemsize, trained = 2 if recipe.model.dtype == "bfloat16" else 4, shape.trainable(rank)
    total = 0.0
    if guard.may_charge_kl(stage) or stage.algorithm.teacher == "self":
        total += 4 * trained
    if stage.algorithm.critic.kind == "model":
        total += itemsize * shape.parameters + 12 * trained
    if stage.algorithm.teacher not in OWN_TEACHERS:
        total += itemsize * shape.parameters
    return total


# --- counts -----------------------------------------------------------------------------------------------------------


def micro_batches(
    work: Work, stage: TrainStage, length: Number, signal: Number, *, longest: bool = False
) -> list[Packed]:
    """Those of one update: groups with signal, at mean lengths of that share of the limit."""
    groups = max(1, round(stage.prompts_per_step * signal / stage.updates_per_step))
    return time.rows_of(
        prompts=groups, group=stage.group_size, prompt_tokens=work.longest_prompt if longest else work.prompt_tokens,
        prefix_tokens=work.prefix_tokens, max_tokens=stage.most_tokens if longest else stage.max_tokens, mean=length,
        microbatch=stage.optim.microbatch_tokens,
    )  # fmt: skip


def _learned(work: Work) -> list[Packed]:
    """The micro-batches of an update at the limit of all lengths: where memory is highest."""
    match work.stage:
        case SftStage():
            return _solutions(work, work.stage)
        case TrainStage():
            return micro_batches(work, work.stage, 1.0, 1.0, longest=True)
    return []


def _solutions(work: Work, stage: SftStage) -> list[Packed]:
    each = (work.prompt_tokens, [work.solution_tokens])
    return list(split([each] * stage.batch, work.prefix_tokens, stage.optim.microbatch_tokens))


# --- time -------------------------------------------------------------------------------------------------------------


def stage(
    work: Work, recipe: Recipe, cost: Cost, place: Place, assumed: Assumed, known: Mapping[str, Range], *, left_over: bool
) -> StageForecast:  # fmt: skip
    """`known`: seconds of the stages before it, which another one's time may be the measure of."""
    found: list[tuple[dict[str, Number], Number, Number]] = []
    for end, trust in (("low", place.low), ("likely", 1.0), ("high", place.high)):
        earlier = {name: getattr(range_, end) / trust for name, range_ in known.items()}
        seconds, sampled, trained = _counted(work, recipe, cost, place, assumed, end, earlier)
        found.append(({phase: value * trust for phase, value in seconds.items()}, sampled, trained))
    (low, *tokens_low), (likely, *tokens), (high, *tokens_high) = found
    return StageForecast(
        name=work.stage.name, do=work.stage.do,
        peaks=peaks(work, recipe, cost.shape, place, rank=cost.rank, left_over=left_over),
        seconds={phase: _range(low[phase], likely[phase], high[phase]) for phase in likely},
        tokens_sampled=Range(low=tokens_low[0], likely=tokens[0], high=tokens_high[0]),
        tokens_trained=Range(low=tokens_low[1], likely=tokens[1], high=tokens_high[1]),
    )  # fmt: skip


def _range(low: Number, likely: Number, high: Number) -> Range:
    """More signal means fewer refills, so an end may take less than the one before it."""
    return Range(low=min(low, likely, high), likely=likely, high=max(low, likely, high))


def _counted(
    work: Work, recipe: Recipe, cost: Cost, place: Place, assumed: Assumed, end: str, known: Mapping[str, Number]
) -> tuple[dict[str, Number], Number, Number]:  # fmt: skip
    """Seconds by phase, tokens sampled, tokens trained, at one end of what is assumed."""
    mean, signal = getattr(assumed.length, end), getattr(assumed.signal, end)

    def answers(num: int, group: int, max_tokens: int) -> tuple[Number, Number]:
        itemsize = 2 if recipe.model.dtype == "bfloat16" else 4
        rows = rows_at_once(recipe, cost.shape, place, itemsize, num * group, work.longest_prompt + max_tokens)
        seconds = time.generate_s(
            cost, prompts=num, group=group, prompt_tokens=work.prompt_tokens, prefix_tokens=work.prefix_tokens,
            max_tokens=max_tokens, mean=mean, rows=rows,
        )  # fmt: skip
        return seconds, num * group * mean * max_tokens

    match work.stage:
        case EvaluateStage():
            return _evaluated(work, work.stage, cost, answers)
        case SftStage():
            return _taught(work, work.stage, cost, answers, end, known)
        case TrainStage():
            return _reinforced(work, work.stage, cost, answers, mean, signal)


Answers = Callable[[int, int, int], tuple[Number, Number]]


def _evaluated(
    work: Work, stage: EvaluateStage, cost: Cost, answers: Answers
) -> tuple[dict[str, Number], Number, Number]:
    seconds = tokens = 0.0
    for group in ([1] if stage.greedy else []) + ([stage.num_samples] if stage.num_samples else []):
        some, more = answers(work.num_heldout, group, stage.max_tokens)
        seconds, tokens = seconds + some + work.num_heldout * group / cost.rates.verdicts, tokens + more
    return {"evaluate": seconds}, tokens, 0.0


def _taught(
    work: Work, stage: SftStage, cost: Cost, answers: Answers, end: str, known: Mapping[str, Number]
) -> tuple[dict[str, Number], Number, Number]:  # fmt: skip
    each_s = time.train_s(cost, _solutions(work, stage))
    look_s, look_tokens = answers(work.num_dev, 1, stage.max_tokens) if work.num_dev else (0.0, 0.0)
    if stage.dev_samples and work.num_dev:
        more_s, more_tokens = answers(work.num_dev, stage.dev_samples, stage.max_tokens)
        look_s, look_tokens = look_s + more_s, look_tokens + more_tokens
    least = min(stage.max_steps, stage.eval_every * (stage.patience + 1)) if stage.patience else stage.max_steps
    steps = float({"low": least, "likely": (least + stage.max_steps) / 2, "high": stage.max_steps}[end])
    if stage.wall_of is not None:
        steps = known[stage.wall_of] / (each_s + look_s / stage.eval_every)
    looks = steps / stage.eval_every
    seconds = {"sft": steps * each_s, "evaluate": looks * look_s, "save": time.save_s(cost, moments=True)}
    return seconds, looks * look_tokens, steps * stage.batch * work.solution_tokens


def _reinforced(
    work: Work, stage: TrainStage, cost: Cost, answers: Answers, mean: Number, signal: Number
) -> tuple[dict[str, Number], Number, Number]:  # fmt: skip
    a_step, tokens = answers(stage.prompts_per_step, stage.group_size, stage.max_tokens)
    refills = 1.0 + min(stage.algorithm.refill_rounds, (1 - signal) / max(signal, 0.1))
    algorithm = stage.algorithm
    rows = micro_batches(work, stage, mean, 1.0 if algorithm.refill_rounds else signal)
    passes = sum((
        algorithm.correction != "none", algorithm.kl != "none" and algorithm.kl_coef > 0, algorithm.credit != "reward",
        3 * (algorithm.critic.kind == "model"),
    ))  # fmt: skip
    update_s = time.train_s(cost, rows, passes=passes)
    looks = stage.steps // stage.heldout_every + 1 if stage.heldout_every else 0
    look_s, look_tokens = answers(work.num_dev, 1, stage.max_tokens) if looks and work.num_dev else (0.0, 0.0)
    saves = stage.steps // stage.checkpoint_every
    steps, rollouts = stage.steps, stage.prompts_per_step * stage.group_size
    seconds = {
        "generate": steps * refills * a_step, "verify": steps * refills * rollouts / cost.rates.verdicts,
        "train": steps * stage.updates_per_step * update_s, "evaluate": looks * look_s,
        "save": saves * time.save_s(cost, moments=True) + time.save_s(cost, moments=False),
        "other": steps * time.STEP_S,
    }  # fmt: skip
    trained = steps * stage.updates_per_step * sum(row.predicted for row in rows)
    return seconds, steps * refills * tokens + looks * look_tokens, trained
