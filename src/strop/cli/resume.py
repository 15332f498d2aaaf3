"""Commands about going on: a proof that a recipe's runs can be resumed, and forks of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strop.cli.options import DONE, FAULT, AllowUnsafe, Json, RecipeFile, Set, app, print_json

__all__: list[str] = []


@app.command("verify-resume")
def verify_resume(
    recipe: RecipeFile,
    set_: Set = None,
    kills: Annotated[int, typer.Option("--kills", min=1, help="Times to kill the run (SIGKILL) and resume it.")] = 6,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Steps of each sft and train stage, at most.")] = 4,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Run the evaluate stages too.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New folder for both runs; they stay there.")
    ] = None,
    as_json: Json = False,
    allow_unsafe_code: AllowUnsafe = False,
) -> None:
    """Prove that a killed and resumed run of a recipe equals an undisturbed one.

    The recipe is shortened to --steps steps a stage, without its evaluate stages, with a checkpoint and a look at the dev split every
    second step. It is run once without interruption, and once in processes that are killed outright at random moments, in
    sampling, in updates, in checkpoint writes and at their rename, and continued until it is done. Then parameters, optimizer,
    rollouts, metrics, tasks and results are compared bit for bit, but for measured time and memory.

    Exit 0: equal. Exit 1: not, and the first difference is named. Takes about twice the shortened recipe, and a start of the model for
    each kill. Without --out both runs lie in runs/<recipe>-verify-resume, and are removed when they are equal.

    \b
    Examples:
      strop verify-resume recipes/quickstart.yaml
      strop verify-resume recipes/my-task.yaml --kills 20 --steps 6 --out runs/proof --json
    """
    import shutil

    from strop import config
    from strop import verify_resume as room
    from strop.watch import Watch

    watch, folder = Watch(), out or Path("runs") / f"{recipe.stem}-verify-resume"
    short = room.shortened(config.load_recipe(recipe, set_ or []), steps, evaluate=evaluate)
    watch.say(f"{recipe}, shortened: {', '.join(stage.name for stage in short.stages)}")
    verdict = room.run(short, out=folder, kills=kills, recipe_dir=recipe.parent, watch=watch)
    if verdict["equal"] and out is None:
        shutil.rmtree(folder)
    else:
        watch.say(f"both runs: {folder}")
    if as_json:
        print_json(verdict)
    else:
        print("\n".join(room.lines(verdict)))
    raise SystemExit(DONE if verdict["equal"] else FAULT)


@app.command()
def fork(
    target: Annotated[str, typer.Argument(metavar="RUN[:STAGE[:STEP]]", help="A run, and where in it to begin.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New run directory.")],
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Make a new run that begins where another one stood.

    Everything committed up to there is copied: tasks, finished stages, the stage's rows, rollouts and checkpoints. RUN alone is where it
    stands now, RUN:STAGE the end of that stage (or where it stands), RUN:STAGE:STEP after that step. Nothing is trained: the command that goes on is printed.

    Without --set the fork goes on as its parent would, bit for bit, also from a step whose checkpoint is gone: its updates are made again
    from recorded rollouts. With --set the stage goes on with other settings (seed, optim, algorithm, rewards, steps ...), which needs a
    checkpoint of that very step; model, chat, tasks and finished stages stay what they were.

    \b
    Examples:
      strop fork runs/quickstart:sft --out runs/other-rl --set stages.rl.algorithm.preset=dr_grpo
      strop fork runs/quickstart:rl:10 --out runs/slower --set stages.rl.optim.lr=1e-6
    """
    from strop import fork as room
    from strop.watch import Watch

    made = room.run(target, out=out, overrides=set_ or [], say=Watch().say)
    if as_json:
        print_json(made)
    else:
        print("\n".join(room.lines(made)))
