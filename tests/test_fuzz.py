"""Random input to all that reads what others wrote: it ends in a result or in one sentence, and in nothing else.

Each reader gets a few dozen inputs in the default suite and thousands under `faults` (NUM says how many).
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import faults
from strop import config, model, tasks
from strop.chat import Chat
from strop.config import TaskSet, load_recipe, parse_recipe
from strop.record import Reason, Task, UserError
from strop.rewards.scorer import Scorer
from strop.run import Run

ROOT = Path(__file__).resolve().parent.parent
NUM = {
    "recipe": 4000,
    "overrides": 3000,
    "task files": 5000,
    "grader": 5000,
    "chat": 5000,
    "checkpoint": 1000,
    "run folder": 1000,
}
FEW = 40


def rounds(what: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("num", [FEW, pytest.param(NUM[what], marks=pytest.mark.faults)])


def fuzz(what: str, num: int, strategy: st.SearchStrategy, check: Callable[..., None], each: int = 1) -> None:
    """`check` on `num` inputs, the same ones every time; hypothesis makes the first that fails as small as it can."""
    tried = 0

    @settings(max_examples=num, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def examples(drawn: object) -> None:
        nonlocal tried
        tried += 1
        check(drawn)

    examples()
    faults.told(f"random input: {what}", injected=tried * each, survived=tried * each)


@contextlib.contextmanager
def sound_or_told() -> Iterator[None]:
    """Anything but a UserError of one line is a bug of ours."""
    said = ""
    try:
        yield
    except UserError as error:
        said = str(error)
    assert "\n" not in said


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """The file cut off, with bytes changed, with a piece of it doubled, or something else altogether."""
    places = st.integers(0, max(0, len(data) - 1))

    def change(edits: list[tuple[int, bytes]]) -> bytes:
        out = bytearray(data)
        for place, new in edits:
            out[place : place + len(new)] = new
        return bytes(out)

    return st.one_of(
        places.map(lambda end: data[:end]),
        st.lists(st.tuples(places, st.binary(min_size=1, max_size=8)), min_size=1, max_size=4).map(change),
        st.tuples(places, places).map(lambda cut: data[: max(cut)] + data[min(cut) :]),
        st.binary(max_size=200),
    )


# --- recipes ----------------------------------------------------------------------------------------------------------

WHOLE = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
DATA = WHOLE | {"stages": list({stage["do"]: stage for stage in WHOLE["stages"][:4]}.values())}  # one of each kind
QUICKSTART = yaml.safe_dump(DATA)
JUNK = st.sampled_from(
    [
        "\t",
        "- ",
        ": ",
        "&a ",
        "*a",
        "!!int ",
        "!!timestamp ",
        "2001-99-99",
        "{",
        "}",
        "[" * 3000,
        "null",
        "~",
        ".nan",
        "0o9",
        "<<: ",
        "? ",
        "\x00",
        "\ud800",
        "1e999",
        "%",
        "|",
        ">",
        "'",
        '"',
    ]
)
WORDS = st.one_of(JUNK, st.text(max_size=20), st.integers().map(str), st.floats().map(str))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.text(max_size=8), st.integers()), inner, max_size=4)),
    max_leaves=8,
)  # fmt: skip


def changed_lines(edits: list[tuple[int, str, bool]]) -> str:
    lines = QUICKSTART.split("\n")
    for place, word, whole in edits:
        at = place % len(lines)
        lines[at] = (
            word
            if whole
            else lines[at][: place % (len(lines[at]) + 1)] + word + lines[at][place % (len(lines[at]) + 1) :]
        )
    return "\n".join(lines)


@rounds("recipe")
def test_recipes(num: int, tmp_path: Path) -> None:
    """The quickstart with words thrown into it, values put in place of its values, and texts that are no recipe."""
    file = tmp_path / "r.yaml"
    keys = list(paths(DATA))

    def check(text: str) -> None:
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        with sound_or_told():
            load_recipe(file)

    def put(drawn: tuple[tuple[str, ...], object]) -> str:
        data = copy.deepcopy(DATA)
        node, (path, value) = data, drawn
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
        return yaml.dump(data)

    edits = st.lists(st.tuples(st.integers(0, 10_000), WORDS, st.booleans()), min_size=1, max_size=3).map(changed_lines)
    fuzz(
        "recipe", num, st.one_of(edits, st.tuples(st.sampled_from(keys), VALUES).map(put), st.text(max_size=100)), check
    )


def paths(node: object, above: tuple = ()) -> Iterator[tuple]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from paths(value, (*above, key))


@rounds("overrides")
def test_overrides(num: int) -> None:
    known = [".".join(map(str, path)) for path in paths(DATA)] + [
        "stages.rl.algorithm.clip_low",
        "model.lora.rank",
        "stages.rl",
    ]

    def check(override: str) -> None:
        with sound_or_told():
            parse_recipe(copy.deepcopy(DATA), overrides=[override])

    fuzz("--set", num, st.one_of(st.tuples(st.sampled_from(known), WORDS).map("=".join), st.text(max_size=40)), check)


# --- task files -------------------------------------------------------------------------------------------------------

ROW = st.dictionaries(
    st.sampled_from(["problem", "prompt", "question", "messages", "answer", "solution", "reward_model", "id", "level", "meta", "x"]), VALUES, max_size=5
)  # fmt: skip


def quiet(_: str) -> None:
    """Nobody listens."""


@rounds("task files")
def test_task_files(num: int, tmp_path: Path) -> None:
    """Lines of JSON with anything in them, gzip and Parquet that are damaged, bytes."""
    rows = "".join(json.dumps({"problem": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(20)).encode()
    (tmp_path / "whole.jsonl").write_bytes(rows)
    tasks.files.pq.write_table(
        tasks.files.pa.table({"problem": [f"{i}?" for i in range(20)], "answer": [str(i) for i in range(20)]}),
        tmp_path / "whole.parquet",
    )
    packed, table = gzip.compress(rows), (tmp_path / "whole.parquet").read_bytes()
    lines = st.lists(ROW, max_size=4).map(lambda rows: "\n".join(json.dumps(row, default=str) for row in rows).encode())
    deep = st.integers(1, 20_000).map(lambda n: b'{"problem": ' + b"[" * n + b"]" * n + b', "answer": 1}')
    whole_number = st.integers(1, 6000).map(lambda n: b'{"problem": "x", "answer": ' + b"9" * n + b"}")
    drawn = st.one_of(
        st.tuples(st.just("t.jsonl"), st.one_of(lines, damaged(rows), deep, whole_number)),
        st.tuples(st.just("t.jsonl.gz"), damaged(packed)),
        st.tuples(st.just("t.parquet"), damaged(table)),
    )

    def check(drawn: tuple[str, bytes]) -> None:
        name, data = drawn
        (tmp_path / name).write_bytes(data)
        with sound_or_told():
            tasks.load({"a": TaskSet(source=str(tmp_path / name), heldout=1, dev=1)}, seed=0, say=quiet)

    fuzz("task file", num, drawn, check)


# --- graders ----------------------------------------------------------------------------------------------------------

MATHS = st.sampled_from(
    [r"\boxed{", "}", "{", r"\frac", r"\sqrt", "^", "_", "(", ")", "[", "]", ",", "=", "+", "-", "*", "/", "!", "%", "$", "|", "x", "y", "i", "e", "1", "2", "10", "0.5", "1,000", " ", r"\pi", r"\infty", r"\text{", r"\cup", r"\le", r"\pm", r"\left(", r"\right)", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\", "&", "answer is ", "#### ", "<answer>", "</answer>", "</think>", "**", "\n", "and", "or", "km", r"\circ", "√", "½", "∞"]
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(MATHS, max_size=25).map("".join),
    st.text(max_size=60),
    st.lists(MATHS, max_size=8).map(lambda p: rf"\boxed{{{''.join(p)}}}"),
)
GOLDS = st.one_of(
    st.sampled_from(["5", r"\frac{1}{2}", "x^2+1", "(1, 2]", r"\{1, 2\}", "12 km", "E", "50%", "x=3"]),
    st.lists(MATHS, min_size=1, max_size=6).map("".join),
)


@rounds("grader")
def test_graders(num: int) -> None:
    """In worker processes, by the hundred: verdicts of every kind, and none that the verifier itself failed."""
    with Scorer(workers=2, timeout_s=2.0) as scorer:

        def check(pairs: list[tuple[str, str, str]]) -> None:
            given_ = [
                (Task.make(source="fuzz", prompt="?", answer=gold, verifier=verifier), text)
                for verifier, gold, text in pairs
            ]
            for (task, text), verdict in zip(given_, scorer.verify(given_), strict=True):
                assert verdict.reason is not Reason.VERIFIER_ERROR, (task.answer, text, scorer.failure(task, text))
                assert not (verdict.correct and not text.strip())

        one = st.tuples(st.sampled_from(["math", "number", "exact"]), GOLDS, TEXTS)
        fuzz("answers to a grader", max(4, num // 20), st.lists(one, min_size=20, max_size=20), check, each=20)


# --- chat templates -----------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    ["{{", "}}", "{%", "%}", "{#", "#}", " for m in messages ", " endfor ", "messages", "[0]", ".content", ".role", " if ", " endif ", "|", "upper", "raise_exception('x')", " 1/0 ", "range(10)", "''.__class__", ".__mro__", "|join", "|tojson", "add_generation_prompt", "bos_token", "x", " ", "loop.index", "namespace(a=1)", "strftime_now('%Y')", "%Q", "include 'x'"]
)  # fmt: skip
TEMPLATES = st.one_of(
    st.lists(PIECES, max_size=10).map("".join), st.text(max_size=30), PIECES.map("{{{{ {} }}}}".format), st.just(None)
)


@rounds("chat")
def test_chat_templates(num: int, tiny_model: Path) -> None:
    """Templates of anybody's around problems of anybody's; what is encoded is decoded."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)

    def check(drawn: tuple[str | None, str, str, str]) -> None:
        template, system, prefill, problem = drawn
        with sound_or_told():
            chat = Chat(
                tokenizer, config.Chat(template=template, system=system, prefill=prefill), [tokenizer.eos_token_id]
            )
            text = chat.prompt_text(problem)
            assert text.endswith(prefill)
            chat.opening()
            assert len(chat.encode_prompt(problem)) or not text
            chat.decode(chat.encode_completion(problem))

    odd = st.text(max_size=30)
    fuzz("chat template", num, st.tuples(TEMPLATES, odd, st.text(max_size=8), odd), check)


# --- checkpoints and run folders ------------------------------------------------------------------------------------------


@rounds("checkpoint")
def test_checkpoints(num: int, tiny_model: Path) -> None:
    """A model's folder with one of its files damaged: it loads, or says why not in one sentence."""
    names = sorted(path.name for path in tiny_model.iterdir())
    parts = {name: (tiny_model / name).read_bytes() for name in names}
    head = {
        name: data[:4096] if name.endswith(".safetensors") else data for name, data in parts.items()
    }  # where the tensors' places are

    def check(drawn: tuple[str, bytes]) -> None:
        name, data = drawn
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
            (Path(folder) / name).write_bytes(data + parts[name][len(head[name]) :])
            with sound_or_told():
                model.load(config.Model(name=folder))

    fuzz(
        "a model's folder",
        num,
        st.sampled_from(names).flatmap(lambda n: st.tuples(st.just(n), damaged(head[n]))),
        check,
    )


@rounds("run folder")
def test_run_folders(num: int, tmp_path: Path) -> None:
    """The files that a resume reads, each damaged in turn."""
    recipe = parse_recipe(
        {
            "tasks": {"a": {"source": "arithmetic", "train": 4, "heldout": 2, "dev": 2}},
            "stages": [
                {"name": "rl", "do": "train", "tasks": {"a": 1.0}, "prompts_per_step": 2, "group_size": 2, "steps": 3}
            ],
        }
    )
    out = tmp_path / "run"
    with Run.open(out, recipe, resume=False) as run:
        log = run.stage("rl")
        for step in (1, 2):
            log.commit(step, [rollout(step)], {"reward": 0.5})
        log.save_checkpoint(2, lambda folder: (folder / "w").write_text("weights") and None)
    names = [
        "recipe.yaml",
        "summary.json",
        "metrics.jsonl",
        "rollouts/rl/step_000002.parquet",
        "checkpoints/rl/step_000002/manifest.json",
    ]
    parts = {name: (out / name).read_bytes() for name in names}

    def check(drawn: tuple[str, bytes]) -> None:
        name, data = drawn
        (out / name).write_bytes(data)
        try:
            with sound_or_told():
                run = Run.read(out)
                log = run.stage(run.recipe.stages[0].name)
                log.latest_checkpoint()
                if log.done is None and log.last_step:
                    log.rollouts(log.last_step)
        finally:
            (out / name).write_bytes(parts[name])

    fuzz(
        "a run's folder", num, st.sampled_from(names).flatmap(lambda n: st.tuples(st.just(n), damaged(parts[n]))), check
    )


def rollout(step: int):
    import numpy as np

    from strop.record import Rollout

    mask = np.array([False, True])
    task = Task.make(source="s", prompt="p", answer="5", verifier="math")
    return Rollout(task=task, group=0, sample=step, token_ids=np.array([1, 2], np.int32), sampled=mask, trained=mask)
