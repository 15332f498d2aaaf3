"""The whole recipe: model, prompt, tasks, stages, engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from strop import budget, prices
from strop.config.section import Count, Positive, Root, Section, nearest
from strop.config.stages import EvaluateStage, SftStage, Stage, StageBase, TrainStage

__all__ = ["Chat", "Checks", "Costs", "Engine", "Keep", "Lora", "Model", "Recipe", "TaskSet"]


class Lora(Section):
    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the adapters on every linear layer; 0 trains all weights."""
    alpha: Positive = 32.0
    """LoRA scale is alpha / rank."""


class Model(Section):
    name: str = "smollm2-135m"
    """`smollm2-135m` (the demo model), a folder (of a model, or of a LoRA adapter that names its base), a `.gguf` file (read as
    float32, what its quantisation left), or a Hugging Face id."""
    device: str = "auto"
    """auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in training and sampling. bfloat16 trains LoRA adapters only (which stay float32)."""
    matmul: Literal["float32", "bfloat16"] = "float32"
    """How float32 weights are multiplied in training and in the sampling for it: exactly, or rounded to bfloat16
    (Llama-shaped layers also pass bfloat16 from product to product) where the processor has that (AMX; several times
    faster; elsewhere nothing changes). Held-out evaluation is always exact."""
    trust_remote_code: bool = False
    """Run Python code shipped with the model. Refused unless set."""
    lora: Lora = Lora()

    @model_validator(mode="after")
    def _refuse(self) -> Model:
        if self.dtype == "bfloat16" and self.matmul == "bfloat16":
            raise ValueError("matmul: bfloat16 is for float32 weights; with dtype: bfloat16 leave it out")
        return self


class Chat(Section):
    system: str = ""
    """System prompt. Empty: none is sent (the template may still insert its own)."""
    template: str | None = None
    """Jinja chat template in place of the model's own."""
    prefill: str = ""
    """Text put at the start of every completion ("<think>\\n"); part of the prompt, not sampled, not trained."""


class TaskSet(Section):
    source: str
    """`arithmetic`, `knights`, `gym:<name>`, a path (.jsonl, .jsonl.gz, .parquet) or Hugging Face dataset id, or a
    benchmark (`strop eval --list`), which is held out whole."""
    train: Annotated[int, Field(ge=0)] | None = None
    """Training tasks. Null: all that is left after the held-out ones (files only); none of a benchmark."""
    heldout: Annotated[int, Field(ge=0)] | None = None
    """Held-out tasks, drawn first; no training task anywhere equals one of them. Null: 256, or all there are where train
    and dev are 0 (files, benchmarks)."""
    dev: Annotated[int, Field(ge=0)] | None = None
    """Tasks split from the training pool to watch and choose by; never the held-out ones. Null: 64; none of a benchmark."""
    settings: dict[str, int | float | str | bool | list[int] | list[str]] = {}
    """The source's own settings (level, columns, ...); checked by the source."""


def _checked_server(server: str) -> str:
    server = server.rstrip("/")
    if server and server != "vllm" and not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]+)*/v1", server):
        raise ValueError(
            "server is vllm or a URL such as http://localhost:8000/v1 (a key goes into OPENAI_API_KEY); leave it empty to "
            "sample here"
        )
    return server


class Engine(Section):
    server: Annotated[str, AfterValidator(_checked_server)] = ""
    """What samples. Empty: this process, from the weights it trains. For recipes that only evaluate: `vllm`, a server of its
    own (STROP_VLLM_PYTHON, or .venv-vllm), or the URL of an OpenAI-compatible one that ends in /v1 (key: OPENAI_API_KEY);
    model.name is then a name that it lists."""
    max_batch: Count = 256
    """Rows decoded at once; finished rows are refilled. At a URL: requests under way at once, 32 at most."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are refused before anything runs; at a URL the server decides."""
    int8: Literal["never", "training", "always"] = "never"
    """Decode from copies of the weights in 8 bits: never, when answers are for training, or also in evaluation, which then
    is of that rounded model. Llama-shaped models on a CPU; faster on x86 with VNNI, slower elsewhere."""

    @property
    def at_url(self) -> bool:
        """Whether model and chat template are a server's own business."""
        return self.server.startswith("http")


class Checks(Section):
    workers: Annotated[int, Field(ge=1)] = 2
    """Verifier processes."""
    timeout_s: Positive = 5.0
    """Seconds before a verifier process is killed and its verdict is `timeout`. A program gets 1.5 less, and is then wrong."""


class Keep(Section):
    last: Count = 2
    """Checkpoints of an unfinished stage that stay, the newest; with 1 there is none to fall back to when it is damaged."""
    best: bool = False
    """Also keep the weights with the best dev accuracy of each stage, as a checkpoint of that step; also when it is finished."""
    disk_gb: Positive | None = None
    """The most that a run directory may hold, in GB (1e9 bytes). The oldest checkpoints go first; when none may go, the run
    stops and can be resumed with more. Null: no limit but the disk's."""


def _if_given(read: Callable[[Any], Any]) -> BeforeValidator:
    return BeforeValidator(lambda written: None if written is None else read(written))


class Costs(Section):
    """What is paid and emitted; it changes no number of the run, only what is said of its cost."""

    usd_per_hour: Annotated[float | None, _if_given(lambda written: prices.usd(written, "h"))] = None
    """What an hour of this machine costs, in US dollars. Null: it is one's own, and only its electricity is paid."""
    usd_per_kwh: Annotated[float | None, _if_given(lambda written: prices.usd(written, "kWh"))] = None
    """Price of electricity, in US dollars. Null: a dated world average (`docs/costs.md`)."""
    grid_g_per_kwh: Annotated[float | str | None, _if_given(prices.grams)] = None
    """Grams of CO2e a kWh of the grid, or its country (three letters, `DEU`). Null: a dated world average."""
    pue: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Power usage effectiveness: what the building draws, as a multiple of what its computers draw."""


def _checked_budget(text: str) -> str:
    budget.parse(text)
    return text


def refuse_int8(model: Model, engine: Engine) -> None:
    """Raises ValueError where there is no way in 8 bits; whether the model's shape has one shows when it is loaded."""
    if engine.int8 == "never":
        return
    for holds, reason in (
        (bool(engine.server), "engine.server decodes as it likes"),
        (model.lora.rank > 0, "adapters have no copy in 8 bits"),
        (model.dtype != "float32" or model.device not in ("auto", "cpu"), "only float32 weights on a CPU have one"),
    ):
        if holds:
            raise ValueError(f"engine.int8: {engine.int8} has no effect here ({reason}); leave it out")


def refuse_with_server(model: Model, chat: Chat, engine: Engine) -> None:
    """Raises ValueError for what cannot be had from weights that another process holds."""
    server, held = engine.server, [k for k in ("device", "dtype", "trust_remote_code") if model.changed(k)]
    for holds, reason in (
        (bool(server) and model.lora.rank > 0, "model.lora has no effect with engine.server; leave it out"),
        (engine.at_url and (chat.template is not None or chat.prefill != ""),
         f"{server} applies its own chat template; leave chat.template and chat.prefill out, or set engine.server to vllm"),
        (engine.at_url and bool(held), f"model.{held[0] if held else ''} has no effect at {server}; leave it out"),
        (server == "vllm" and "device" in held, "model.device has no effect with vLLM, whose build decides; leave it out"),
    ):  # fmt: skip
        if holds:
            raise ValueError(reason)


class Recipe(Root):
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides tasks' order, sampling and shuffling; held-out tasks do not depend on it."""
    memory_gb: Positive | None = None
    """Memory that this process may take, in GB; where it runs short, fewer tokens and rows are computed at once. Null: what the
    machine or its container leaves."""
    budget: Annotated[str, AfterValidator(_checked_budget)] | None = None
    """The most that the run may spend over all its starts: 42usd, 2h, 0.5kwh, or several with commas between them. It then stops in
    time, resumable (exit code 3). Null: all that its stages take."""
    model: Model = Model()
    chat: Chat = Chat()
    tasks: dict[str, TaskSet]
    stages: list[Stage]
    engine: Engine = Engine()
    checks: Checks = Checks()
    keep: Keep = Keep()
    costs: Costs = Costs()

    @model_validator(mode="after")
    def _refuse(self) -> Recipe:
        if not self.stages:
            raise ValueError("stages is empty: name at least one stage")
        trained, seen = {"base"}, set()
        for stage in self.stages:
            if stage.name in seen or stage.name == "base":
                raise ValueError(f"two stages are called {stage.name!r} (base is the untrained model)")
            for name in stage.tasks:
                if name not in self.tasks:
                    raise ValueError(f"stage {stage.name!r} names the task set {name!r}{nearest(name, self.tasks)}")
            if stage.from_ is not None and stage.from_ not in trained:
                raise ValueError(f"stage {stage.name!r} starts from {stage.from_!r}{nearest(stage.from_, trained)}")
            if isinstance(stage, SftStage) and stage.wall_of is not None and stage.wall_of not in seen:
                raise ValueError(
                    f"stage {stage.name!r} takes its time from {stage.wall_of!r}{nearest(stage.wall_of, seen)}"
                )
            if (
                isinstance(stage, TrainStage)
                and stage.algorithm.credit == "teacher"
                and (stage.algorithm.teacher, self.start_of(stage)) == (self.model.name, "base")
            ):
                raise ValueError(
                    f"stage {stage.name!r} starts from its teacher, {self.model.name}, so there is nothing to learn; name another "
                    "teacher, or self, which is shown worked solutions"
                )
            seen.add(stage.name)
            if not isinstance(stage, EvaluateStage):
                trained.add(stage.name)
        if len(trained) > 1 and self.model.dtype == "bfloat16" and not self.model.lora.rank:
            raise ValueError(
                "model.dtype bfloat16 would round small updates of the weights away: set model.dtype=float32, or "
                "model.lora.rank to 8 or more"
            )
        if self.engine.server and len(trained) > 1:
            raise ValueError(
                "engine.server answers from weights of its own, so nothing can be trained with it; leave it out, or keep the "
                "evaluate stages only"
            )
        if self.keep.best and not any(isinstance(s, SftStage) or getattr(s, "heldout_every", 0) for s in self.stages):
            raise ValueError(
                "keep.best goes by the dev accuracy, and no stage looks at it; set heldout_every of a train stage"
            )
        if self.keep.changed("last") and len(trained) == 1:
            raise ValueError("keep.last has no effect on a recipe that only evaluates; leave it out")
        refuse_with_server(self.model, self.chat, self.engine)
        refuse_int8(self.model, self.engine)
        return self

    def start_of(self, stage: StageBase) -> str:
        """Name of the stage (or `base`) whose weights `stage` starts with."""
        if stage.from_ is not None:
            return stage.from_
        last = "base"
        for other in self.stages:
            if other.name == stage.name:
                return last
            if not isinstance(other, EvaluateStage):
                last = other.name
        raise AssertionError(f"{stage.name} is not a stage of this recipe")
