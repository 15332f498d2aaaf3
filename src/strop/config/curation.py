"""What `strop curate` may be told: where rows come from, what they must not touch, and the stages in order."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from strop.config.recipe import Chat, Checks, Engine, Model, refuse_int8, refuse_with_server
from strop.config.section import Count, Positive, Root, Section, Share, nearest

__all__ = [
    "Curation", "CurationStage", "DecontaminateStage", "DifficultyStage", "DuplicatesStage", "FilterStage", "MixtureStage",
    "NoiseStage", "PoolSource", "VerifiableStage",
]  # fmt: skip


class PoolSource(Section):
    source: str
    """A path (.jsonl, .jsonl.gz, .parquet), or a Hugging Face dataset id. What another curation wrote is a file like any
    other: RUN/train.parquet."""
    name: str = ""
    """What mixtures and the data card call it. Empty: the file's own name without its endings."""
    licence: str = ""
    """Licence of the rows, where no column `licence` or `license` states one."""
    settings: dict[str, int | float | str | bool] = {}
    """Columns and the like, as of a task set."""


def _listed(value: Any) -> Any:
    """`--set pool=a.jsonl,b.jsonl` is a list too, and a path alone is a source."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part]
    return [{"source": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


def _names(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


class VerifiableStage(Section):
    do: Literal["verifiable"]
    max_prompt_chars: Count = 20_000
    """Longer problems are set aside unread."""
    conflicts: Literal["settle", "drop"] = "settle"
    """One problem with several answers: `settle` keeps the answer that most sources (not rows) give and drops the problem
    where none leads; `drop` drops all of it."""
    checks: Checks = Checks()
    """The processes that judge the gold answers."""


class DuplicatesStage(Section):
    do: Literal["duplicates"]
    jaccard: Share = 0.6
    """Problems whose sets of word n-grams overlap at least this much, with equal numbers, signs and answers, are one."""
    ngram: Count = 3
    """Words in an n-gram."""
    permutations: Count = 128
    """Hash functions of a MinHash signature: more find more of the pairs close to `jaccard`."""


class DecontaminateStage(Section):
    do: Literal["decontaminate"]
    ngram: Count = 13
    """A row that shares this many words in a row with a benchmark's problem is one of it, unless their numbers differ."""
    jaccard: Share = 0.6
    """So is a row whose 3-grams overlap at least this much with a benchmark problem's, unless their numbers differ."""


class FilterStage(Section):
    do: Literal["filter"]
    languages: Annotated[list[str], BeforeValidator(_names)] = []
    """Languages to keep, ISO 639-1 (`en`). Empty: all."""
    detector: Literal["words", "lingua"] = "words"
    """What tells languages of one script apart: their commonest `words`, or where these leave several, `lingua`."""
    topics: Annotated[list[str], BeforeValidator(_names)] = []
    """Topics to keep, of those that `strop curate --topics` lists. Empty: all."""
    sources: Annotated[list[str], BeforeValidator(_names)] = []
    """Sources to keep, by name. Empty: all."""
    min_prompt_chars: Annotated[int, Field(ge=0)] = 0
    """Shorter problems go."""
    solution_holds: str = ""
    """Keep rows whose worked solution holds this text (`\\boxed{`). Empty: all rows."""


class DifficultyStage(Section):
    do: Literal["difficulty"]
    samples: Count = 8
    """Answers sampled for each problem."""
    limit: Count | None = None
    """Measure a sample of this many rows, drawn by hash, and drop the others. Null: all."""
    temperature: Positive = 1.0
    """Temperature of the answers."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the fewest words whose probabilities reach this."""
    max_tokens: Count = 256
    """Token limit of an answer."""
    min_rate: Share | None = 0.0
    """Keep pass rates above this. Null: also what was never solved."""
    max_rate: Share | None = 1.0
    """Keep pass rates below this. Null: also what was always solved."""
    model: Model | None = None
    """What answers, where it is another than the recipe's own."""

    @model_validator(mode="after")
    def _refuse(self) -> DifficultyStage:
        if self.min_rate is not None and self.max_rate is not None and self.min_rate >= self.max_rate:
            raise ValueError(f"no pass rate lies above min_rate={self.min_rate:g} and below max_rate={self.max_rate:g}")
        return self


class NoiseStage(Section):
    do: Literal["noise"]
    url: str
    """OpenAI-compatible endpoint of the judge, ending in /v1 (key: OPENAI_API_KEY)."""
    model: str = ""
    """Name of the judge at the endpoint. Empty: the only one that it lists."""
    rubric: str = ""
    """A text of your own that says what clean, noisy, multi-part and unanswerable are. Empty: that of `curate/noise.py`."""
    max_tokens: Count = 512
    """Token limit of a reply; a judge that thinks aloud needs more."""


class MixtureStage(Section):
    do: Literal["mixture"]
    heldout: Annotated[int, Field(ge=0)] = 0
    """Rows set apart first, for evaluation, by hash."""
    size: Count | None = None
    """Rows of the training set. Null: all, or as many as the shares allow."""
    easy: Share | None = None
    """Share of rows with a pass rate of at least `easy_from`. Null: none, where another share is given; the shares add up
    to 1."""
    middle: Share | None = None
    """Share of rows between."""
    hard: Share | None = None
    """Share of rows with a pass rate below `hard_below`."""
    easy_from: Share = 2 / 3
    """Pass rate from which a row is easy."""
    hard_below: Share = 1 / 3
    """Pass rate below which a row is hard."""
    by_source: dict[str, Count] = {}
    """Rows of each source, by name, in place of size and shares."""

    @property
    def shares(self) -> dict[str, float]:
        """The share of each band that has one above 0; empty: no targets."""
        return {name: share for name in ("easy", "middle", "hard") if (share := getattr(self, name))}

    @model_validator(mode="after")
    def _refuse(self) -> MixtureStage:
        given = [name for name in ("easy", "middle", "hard") if getattr(self, name) is not None]
        total = sum(self.shares.values())
        if given and abs(total - 1) > 1e-6:
            raise ValueError(f"the shares {', '.join(given)} add up to {total:g}; make it 1")
        if self.hard_below > self.easy_from:
            raise ValueError("a row would be hard and easy: set hard_below to easy_from or less")
        for key in ("easy_from", "hard_below"):
            if self.changed(key) and not given:
                raise ValueError(f"{key} has no effect without shares (easy, middle, hard); leave it out")
        if self.by_source and (other := [*given, *(["size"] if self.size is not None else [])]):
            raise ValueError(
                f"by_source says how many rows of what, so {other[0]} has no effect; leave one of them out"
            )
        return self


CurationStage = Annotated[
    VerifiableStage | DuplicatesStage | DecontaminateStage | FilterStage | DifficultyStage | NoiseStage | MixtureStage,
    Field(discriminator="do"),
]


class Curation(Root):
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides which rows a sample or a mixture takes."""
    pool: Annotated[list[PoolSource], BeforeValidator(_listed)]
    """Where rows come from; on the command line `--set pool=FILE,FILE`."""
    against: Annotated[list[str], BeforeValidator(_names)] = []
    """Benchmarks (by name, or `all` of them), files or ids whose problems training must not see."""
    data: str = ""
    """Folder of the benchmarks' files. Empty: STROP_DATA."""
    verifier: Literal["math", "number", "knights", "exact"] = "math"
    """What judges the answers."""
    stages: Annotated[list[CurationStage], Field(min_length=1)]
    """In order; loading comes first and writing last."""
    model: Model = Model()
    """The policy's own start, which the difficulty stage samples."""
    chat: Chat = Chat()
    engine: Engine = Engine()
    checks: Checks = Checks()

    @model_validator(mode="after")
    def _refuse(self) -> Curation:
        if not self.pool:
            raise ValueError("pool is empty: name at least one file or dataset, --set pool=FILE")
        done = [stage.do for stage in self.stages]
        for do in ("verifiable", "duplicates", "decontaminate", "mixture"):
            if done.count(do) > 1:
                raise ValueError(f"two stages do {do}; one is enough")
        if "mixture" in done[:-1]:
            raise ValueError("the mixture is the last stage: what comes after it would change its shares")
        if "decontaminate" in done and not self.against:
            raise ValueError("decontaminate has nothing to compare with: --set against=math_500,FILE,...")
        if self.against and "decontaminate" not in done:
            raise ValueError("against has no effect without a stage that does decontaminate; add one, or leave it out")
        self._refuse_models()
        self._refuse_sources()
        return self

    def _refuse_models(self) -> None:
        """What of model, chat and engine would do nothing."""
        asked = [stage.model or self.model for stage in self.stages if isinstance(stage, DifficultyStage)]
        if unused := next((key for key in ("model", "chat", "engine") if self.changed(key) and not asked), None):
            raise ValueError(f"{unused} has no effect without a stage that does difficulty; leave it out")
        if self.changed("model") and not any(model is self.model for model in asked):
            raise ValueError("model has no effect where every difficulty stage names its own; leave it out")
        for model in asked:
            if model.lora.rank:
                raise ValueError("model.lora has no effect on a model that is not trained; leave it out")
            refuse_with_server(model, self.chat, self.engine)
            refuse_int8(model, self.engine)

    def _refuse_sources(self) -> None:
        """Sources that a mixture asks for and no file has, where the recipe names all of them."""
        names = {source.name for source in self.pool}
        for stage in self.stages:
            if isinstance(stage, MixtureStage) and all(names):
                for name in stage.by_source:
                    if name not in names:
                        raise ValueError(f"by_source asks for {name!r}{nearest(name, names)}")
