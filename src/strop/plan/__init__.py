"""What will this cost? Memory by part, seconds by phase, tokens, money and energy of a recipe, before anything runs.

Reading order: `shape` (a model in numbers), `packing` and `work` (what is to be done, in counts), `memory` (bytes), `rates`
with `calibrate` (measured here) and `hardware` (a dated table of what can be rented), `time` (seconds), `forecast` (a stage),
`propose` (what a budget buys). Arithmetic but for `calibrate`; torch is imported where something is measured. What is
assumed is printed with the figures. docs/plan.md says how far they were off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from strop import costs, energy, headroom, machine, tasks
from strop.budget import Budget
from strop.config import EvaluateStage, Recipe
from strop.plan import calibrate, forecast, hardware, memory, propose, shape, time, work
from strop.plan.forecast import Place, StageForecast
from strop.plan.memory import Peak
from strop.plan.packing import Number
from strop.plan.rates import Rates
from strop.plan.time import Cost
from strop.plan.work import Range
from strop.record import UserError
from strop.tasks import TaskSplits

__all__ = ["HERE", "NO_RATES", "Plan", "run", "tasks_at_hand", "tell", "within"]

HERE = "this"
GB = 1e9
GPU_BASE_BYTES = 0.8e9  # assumed: CUDA's context and kernels
GPU_FRAC = 0.95  # of a GPU's memory that can be had
NO_CALIBRATION = "no calibration yet: strop plan measures it once in a minute"
Say = Callable[[str], None]
_Known = tuple[Rates | None, Place, str, list[str]]  # rates, the place, how they came about, what is assumed


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A forecast; times and tokens are ranges. None where something is not known."""

    recipe: str  # its hash
    model: str
    parameters: int
    trained_parameters: int
    on: str
    room_bytes: Number  # that a process may take there
    stages: tuple[StageForecast, ...]
    load_s: Number | None
    usd_per_hour: Number | None  # None on one's own machine, whose electricity alone is paid
    usd_per_kwh: Number | None
    watts: Number | None
    measured: str  # when the rates were, or that they were not
    assumptions: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def timed(self) -> bool:
        return self.load_s is not None

    @property
    def worst(self) -> tuple[str, Peak]:
        """The stage that takes most memory, with its peak."""
        return max(((s.name, s.peaks[-1]) for s in self.stages), key=lambda pair: pair[1].total)

    @property
    def fits(self) -> bool:
        return self.worst[1].total <= self.room_bytes

    @property
    def seconds(self) -> Range | None:
        if self.load_s is None:
            return None
        run = forecast.added(s.total_s for s in self.stages)
        return Range(low=run.low + self.load_s, likely=run.likely + self.load_s, high=run.high + self.load_s)

    @property
    def phases(self) -> dict[str, Range]:
        """Seconds by phase over all stages, the longest first."""
        names = dict.fromkeys(phase for s in self.stages for phase in s.seconds)
        summed = {n: forecast.added(s.seconds[n] for s in self.stages if n in s.seconds) for n in names}
        return dict(sorted(summed.items(), key=lambda item: -item[1].likely))

    @property
    def usd(self) -> Range | None:
        if self.usd_per_hour is not None:
            return _times(self.seconds, self.usd_per_hour / 3600)
        return None if self.usd_per_kwh is None else _times(self.kwh, self.usd_per_kwh)

    @property
    def kwh(self) -> Range | None:
        """Modelled: watts x time."""
        return None if self.watts is None else _times(self.seconds, self.watts / 3.6e6)

    def as_dict(self) -> dict[str, Any]:
        """For summary.json and --json; bytes and seconds, `energy_kind` says that nothing was counted."""
        name, most = self.worst
        return {
            "recipe_hash": self.recipe, "model": self.model, "parameters": self.parameters,
            "trained_parameters": self.trained_parameters, "on": self.on, "room_bytes": self.room_bytes, "fits": self.fits,
            "peak_bytes": most.total, "peak_stage": name, "peak_parts": dict(most.parts),
            "stages": {
                s.name: {
                    "do": s.do, "peak_bytes": {p.phase: p.total for p in s.peaks},
                    "seconds": {phase: asdict(r) for phase, r in s.seconds.items()} if self.timed else None,
                    "tokens_sampled": asdict(s.tokens_sampled), "tokens_trained": asdict(s.tokens_trained),
                }
                for s in self.stages
            },
            "seconds": _dict(self.seconds), "usd": _dict(self.usd), "kwh": _dict(self.kwh), "energy_kind": "modelled",
            "usd_per_hour": self.usd_per_hour, "usd_per_kwh": self.usd_per_kwh, "watts": self.watts, "measured": self.measured,
            "assumptions": list(self.assumptions), "advice": list(self.advice),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The three that `run` and `doctor` show: memory, time, cost."""
        from strop.plan.words import headline

        return headline(self)

    def table(self) -> list[str]:
        """All of it, for people."""
        from strop.plan.words import table

        return table(self)


def run(
    recipe: Recipe,
    *,
    on: str = HERE,
    splits: Mapping[str, TaskSplits] | None = None,
    like: Path | None = None,
    usd_per_hour: Number | None = None,
    watts: Number | None = None,
    measure: bool = True,
    again: bool = False,
    say: Say = lambda _: None,
) -> Plan:
    """The forecast of a recipe on this machine, or on one of `hardware.HARDWARE`.

    `splits` are its tasks where they are at hand. `measure` False takes what was kept of a calibration and measures
    nothing: without one the forecast has memory alone. `again` measures anew. Prices given here stand in place of the
    table's. Raises UserError for hardware that is not known, a model or a run that cannot be looked at, and answers that
    a server gives: its memory and time are not ours.
    """
    planner = _Planner(
        recipe, on=on, splits=splits, like=like, usd_per_hour=usd_per_hour, watts=watts, measure=measure, again=again,
        say=say,
    )  # fmt: skip
    plan = planner.plan(recipe)
    if plan.fits:
        return plan
    planner.measure = False  # what would fit is a question of memory
    return replace(plan, advice=tuple(propose.what_would_fit(recipe, planner.plan, on_gpu=on != HERE)))


def within(recipe: Recipe, budget: Budget, **settings: Any) -> propose.Proposal:
    """What of a recipe a budget buys; `settings` are those of `run`. Raises UserError where the cost of it is not known."""
    planner = _Planner(recipe, **settings)
    if budget.usd is not None and planner.usd_per_hour is None and planner.usd_per_kwh is None:
        raise UserError("a budget in dollars needs a price: add --usd-per-hour")
    if budget.kwh is not None and planner.watts is None:
        raise UserError("a budget in kWh needs the machine's power: add --watts")
    if not (plan := planner.plan(recipe)).timed:
        raise UserError(f"what a budget buys needs the time of a step ({plan.measured}); name a machine with --on")
    return propose.propose(recipe, budget, planner.plan)


class _Planner:
    """Plans of one model on one machine; what is looked up or measured for them is so once."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        on: str = HERE,
        splits: Mapping[str, TaskSplits] | None = None,
        like: Path | None = None,
        usd_per_hour: Number | None = None,
        watts: Number | None = None,
        measure: bool = True,
        again: bool = False,
        say: Say = lambda _: None,
    ) -> None:
        if recipe.engine.server:
            raise UserError(
                "engine.server answers from another process, whose memory and time are not planned; leave it out"
            )
        found = None if on == HERE else hardware.named(on)
        for option, value in (("--usd-per-hour", usd_per_hour), ("--watts", watts)):
            if value is not None and not math.isfinite(value):
                raise UserError(f"{option} {value}: write a finite number")
        self.on, self.splits, self.measure, self.again, self.say = on, splits, measure, again, say
        table_usd, table_watts = (
            (recipe.costs.usd_per_hour, energy.full_load_watts())
            if found is None
            else (found.usd_per_hour, found.watts)
        )
        self.usd_per_hour = table_usd if usd_per_hour is None else usd_per_hour
        self.usd_per_kwh = recipe.costs.pue * costs.price(recipe.costs).value if found is None else None
        self.watts = table_watts if watts is None else watts
        self.shape = shape.read(recipe.model, say)
        self.assumed = work.assumed() if like is None else work.like(like)
        self._places: dict[tuple[bool, str, str], _Known] = {}

    def plan(self, recipe: Recipe) -> Plan:
        rank = recipe.model.lora.rank or self.shape.adapter_rank
        rates, place, measured, notes = self._known(recipe, rank)
        exact = rates
        if recipe.model.matmul != "float32" and any(isinstance(s, EvaluateStage) for s in recipe.stages):
            plain = recipe.model.model_copy(update={"matmul": "float32"})  # as held-out tasks are answered
            exact = self._known(recipe.model_copy(update={"model": plain}), rank)[0]
        cost, answering = (Cost(shape=self.shape, rates=found or NO_RATES, rank=rank) for found in (rates, exact))
        timed = rates is not None and exact is not None
        return Plan(
            recipe=recipe.hash, model=recipe.model.name, parameters=self.shape.parameters,
            trained_parameters=self.shape.trainable(rank), on=self.on, room_bytes=_room(self.on, recipe),
            stages=tuple(self._stages(recipe, cost, answering, place)),
            load_s=time.LOAD_S + 4 * self.shape.parameters / time.READ_BYTES if timed else None,
            usd_per_hour=self.usd_per_hour, usd_per_kwh=self.usd_per_kwh, watts=self.watts,
            measured=measured if timed or rates is None else NO_CALIBRATION,
            assumptions=(*notes, *self.assumed.words()), advice=(),
        )  # fmt: skip

    def _stages(self, recipe: Recipe, cost: Cost, exact: Cost, place: Place) -> Iterator[StageForecast]:
        known: dict[str, Range] = {}
        trained = False
        for item in work.work_of(recipe, self.splits):
            with_ = exact if isinstance(item.stage, EvaluateStage) else cost
            found = forecast.stage(item, recipe, with_, place, self.assumed, known, left_over=trained)
            known[found.name] = found.total_s
            trained = trained or found.do != "evaluate"
            yield found

    def _known(self, recipe: Recipe, rank: int) -> _Known:
        key = bool(rank), recipe.model.dtype, recipe.model.matmul
        if key not in self._places:
            self._places[key] = self._where(recipe, rank)
        return self._places[key]

    def _where(self, recipe: Recipe, rank: int) -> _Known:
        if self.on == HERE:
            return self._here(recipe, rank)
        found = hardware.named(self.on)
        place = Place(
            device="cuda", total_bytes=GB * found.memory_gb, base_bytes=GPU_BASE_BYTES, low=hardware.LOW, high=hardware.HIGH
        )  # fmt: skip
        notes = [hardware.ASSUMED, f"{found.title}: {found.source}; price: {found.price_source}"]
        rates = hardware.rates(found, self.shape, dtype=recipe.model.dtype)
        return rates, place, "not measured: Strop has been timed on no GPU", notes

    def _here(self, recipe: Recipe, rank: int) -> _Known:
        from strop.int8 import entry_bytes
        from strop.precision import has_bfloat16

        if (of_gpu := _gpu_bytes(recipe)) is not None:
            place = Place(device="cuda", total_bytes=of_gpu, base_bytes=GPU_BASE_BYTES)
            return None, place, "not measured on a GPU; --on forecasts one of the table", []
        rounds = has_bfloat16()
        place = Place(
            device="cpu", total_bytes=GB * machine.usable_memory_gb(), base_bytes=1e6 * memory.BASE_MB, rounds=rounds,
            int8_bytes=entry_bytes(),
        )  # fmt: skip
        if recipe.model.dtype != "float32":
            return None, place, "not measured: bfloat16 weights on a CPU", []
        matmul = recipe.model.matmul if rounds else "float32"
        if self.measure:
            kept = calibrate.rates_for(self.shape, rank=rank, matmul=matmul, again=self.again, say=self.say)
        else:
            kept = calibrate.kept(self.shape, rank=rank, matmul=matmul)
        if kept is None:
            return None, place, NO_CALIBRATION, []
        notes = [] if recipe.engine.int8 == "never" else ["engine.int8: time is forecast as if decoding did without it"]
        return kept.rates, place, f"measured {kept.date[:16].replace('T', ' ')}", notes


def tell(recipe: Recipe, splits: Mapping[str, TaskSplits], say: Say) -> dict[str, Any] | None:
    """Before a run: its three lines, a warning where memory is forecast to run short, and `as_dict` for its summary.

    Measures nothing and fetches nothing, so it delays nothing. None for a recipe whose model a server holds. No forecast
    is a reason not to run: what goes wrong here is said, and the run goes on.
    """
    if recipe.engine.server:
        return None
    try:
        plan = run(recipe, splits=splits, measure=False)
    except UserError as error:
        say(f"no plan: {error}")
        return None
    for line in plan.lines():
        say(line)
    if not plan.fits:
        most, room = plan.worst[1].total / GB, plan.room_bytes / GB
        say(
            f"warning: {most:.1f} GB are forecast and {room:.1f} GB can be had; {plan.advice[0] if plan.advice else ''}"
        )
    return plan.as_dict()


def tasks_at_hand(recipe: Recipe, say: Say = lambda _: None) -> dict[str, TaskSplits]:
    """The recipe's tasks that need no download; of the others the number and length are assumed."""
    found: dict[str, TaskSplits] = {}
    for name, spec in recipe.tasks.items():
        if spec.source.count("/") == 1 and not Path(spec.source).exists():
            say(f"tasks.{name}: {spec.source} would have to be fetched, so number and length of its tasks are assumed")
            continue
        try:
            found |= tasks.load({name: spec}, seed=recipe.seed, say=lambda _: None)
        except UserError as error:
            say(f"tasks.{name} cannot be looked at, so lengths are assumed: {error}")
    return found


# Where time is not known: memory and tokens still are.
NO_RATES = Rates(
    train_flops=1.0, attend_flops=1.0, head_flops=1.0, prefill_flops=1.0, decode=((1, 0.0, 0.0),), key_s=0.0,
    optimizer_floats=1.0, memory_bytes=1.0, disk_bytes=1.0, verdicts=1.0, gemm_flops=1.0,
)  # fmt: skip


def _room(on: str, recipe: Recipe) -> Number:
    """Bytes that a process may take there: of this machine what is free now, less the reserve that `headroom` keeps."""
    if on != HERE:
        return GPU_FRAC * GB * hardware.named(on).memory_gb
    if (of_gpu := _gpu_bytes(recipe)) is not None:
        return GPU_FRAC * of_gpu
    own = psutil.Process().memory_info().rss
    most = float("inf") if recipe.memory_gb is None else GB * recipe.memory_gb
    return min(most, headroom.room_bytes() + own)


def _gpu_bytes(recipe: Recipe) -> int | None:
    """Memory of the GPU that the recipe would run on here; None where that is the CPU."""
    import torch

    if recipe.model.device not in ("auto", "cuda") and not recipe.model.device.startswith("cuda:"):
        return None
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _times(range_: Range | None, factor: Number) -> Range | None:
    if range_ is None:
        return None
    return Range(low=range_.low * factor, likely=range_.likely * factor, high=range_.high * factor)


def _dict(range_: Range | None) -> dict[str, float] | None:
    return None if range_ is None else asdict(range_)
