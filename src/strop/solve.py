"""One problem, answered by a run's base model and by the model after each of its stages: what `strop solve` does.

Knows which stages lead to the run's main result and where their weights lie. Nothing is graded: there is no gold.
"""

from __future__ import annotations

import shutil
import textwrap
from itertools import zip_longest
from pathlib import Path
from typing import Any

from strop import model as models
from strop.config import Recipe, SftStage, TrainStage
from strop.engine import Sampling
from strop.engine.native import NativeEngine
from strop.record import Stop, Task, UserError
from strop.run import Run
from strop.watch import Watch

__all__ = ["lines", "run"]

NARROWEST = 24  # characters; below it answers stand one under another


def run(run_dir: Path, prompt: str, *, max_tokens: int = 256, watch: Watch | None = None) -> list[dict[str, Any]]:
    """The greedy answers, the base model's first: {"model", "text", "num_tokens", "truncated"} for each.

    A run that has saved no weights yet answers with the base alone. Raises UserError if `run_dir` is no run.
    """
    watch = watch or Watch()
    if not prompt.strip():
        raise UserError('the problem is empty; write it in quotes, for example "Compute 27 + 48."')
    log = Run.read(run_dir, say=watch.say)
    recipe = log.recipe
    if recipe.engine.at_url:
        raise UserError(
            f"{run_dir} was answered by a server at {recipe.engine.server}, so it has no model to ask; ask that one"
        )
    names = ["base", *(n for n in line(recipe) if (log.stage(n).checkpoints / "final").is_dir())]
    task = Task.make(source="solve", prompt=prompt, answer="", verifier="math")
    answers = []
    with watch.phase("solving", total=len(names), unit="models") as bar:
        policy = models.load(recipe.model, watch.say)
        chat = policy.chat(recipe.chat)
        chat.check_length([task], recipe.engine.max_prompt_tokens)
        for name in names:
            if name != "base":
                policy.load_weights(log.stage(name).final)
            engine = NativeEngine(policy, chat, max_batch=1)
            sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
            (rollout,) = engine.generate([task], num_samples=1, sampling=sampling, seed_path=("solve",))
            told = {
                "text": rollout.text.strip(),
                "num_tokens": rollout.num_sampled,
                "truncated": rollout.stop is Stop.LENGTH,
            }
            answers.append({"model": name} | told)
            bar.advance(1)
    return answers


def line(recipe: Recipe) -> list[str]:
    """The trained stages that lead to the main one: the last train stage that is no control, else the last sft stage."""
    trained = [s for s in recipe.stages if isinstance(s, TrainStage) and s.algorithm.advantages == "reward"]
    taught = [s for s in recipe.stages if isinstance(s, SftStage) and s.wall_of is None]
    by_name = {s.name: s for s in recipe.stages}
    names: list[str] = []
    name = next((stages[-1].name for stages in (trained, taught) if stages), "base")
    while name != "base":
        names.insert(0, name)
        name = recipe.start_of(by_name[name])
    return names


def lines(answers: list[dict[str, Any]], width: int | None = None) -> list[str]:
    """The answers in columns where they fit, else one under another.

    >>> answer = {"text": "27 + 48 = 75", "num_tokens": 9, "truncated": False}
    >>> for text in lines([{"model": "base"} | answer, {"model": "rl"} | answer], width=70):
    ...     print(text)
    base: 9 tokens                       rl: 9 tokens
    --------------                       ------------
    27 + 48 = 75                         27 + 48 = 75
    """
    width = width or shutil.get_terminal_size().columns
    blocks = []
    column = (width - 4 * (len(answers) - 1)) // len(answers)
    side_by_side = column >= NARROWEST
    column = column if side_by_side else width
    for answer in answers:
        cut = " (cut)" if answer["truncated"] else ""
        head = f"{answer['model']}: {answer['num_tokens']} tokens{cut}"
        wrapped = [w for row in answer["text"].splitlines() for w in textwrap.wrap(row, column) or [""]]
        blocks.append([head, "-" * min(column, len(head)), *wrapped])
    if not side_by_side:
        return [row for block in blocks for row in (*block, "")]
    return ["    ".join(cell.ljust(column) for cell in row).rstrip() for row in zip_longest(*blocks, fillvalue="")]
