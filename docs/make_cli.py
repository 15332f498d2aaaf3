"""Writes docs/cli.md from the command line itself and from the recipe's own docstrings; --check only compares.

make docs              # write
python docs/make_cli.py --check   # exit 1 if docs/cli.md is not current (CI, and tests/test_cli.py)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel

from strop import cli, config
from strop.rewards.adapters import OWN
from strop.tasks import benchmarks, files, knights, puzzles

SETTINGS = {
    "`arithmetic`": puzzles.ArithmeticSettings,
    "`knights`": knights.KnightsSettings,
    "a file or a Hugging Face id": files.FileSettings,
    "a benchmark": benchmarks.BenchmarkSettings,
}
PAGE = Path(__file__).with_name("cli.md")
HELP: Any = {"terminal_width": 100, "max_content_width": 100, "help_option_names": ["-h", "--help"]}
HEAD = """# The command line

Written by `make docs` from the program itself; do not edit.

Progress goes to stderr, results to stdout; with `--json` the last line of stdout is one JSON object. Exit codes: 0 done,
1 our fault, 2 a mistake in what was asked (one sentence says what to type instead), 3 stopped (Ctrl-C, a full disk, a
broken verifier, a loss that is not finite) with the run left resumable, 130 a second Ctrl-C.
"""


def page() -> str:
    """The whole of docs/cli.md."""
    group: Any = typer.main.get_command(cli.app)
    parts = [HEAD, _block("strop --help", group)]
    parts += [_block(f"strop {name} --help", command) for name, command in group.commands.items()]
    parts += ["## Recipe keys\n\nWhat a recipe or `--set` may hold. Unknown keys are errors.\n"]
    parts += [_table(config.Recipe)]
    parts += ["## Keys of a recipe of curation\n\nWhat a recipe of `strop curate` or its `--set` may hold.\n"]
    parts += [_table(config.Curation)]
    parts += ["## Settings of task sources\n\nWhat `tasks.<name>.settings` may hold, by source.\n"]
    parts += [f"### {title}\n\n{_table(settings)}" for title, settings in SETTINGS.items()]
    parts += [
        "## Settings of rewards\n\nWhat `stages.<train>.rewards.<i>.settings` may hold, by reward; others have none.\n"
    ]
    parts += [f"### `{name}`\n\n{_table(section)}" for name, (_, section) in OWN.items() if section.model_fields]
    return "\n".join(parts)


def _block(title: str, command: Any) -> str:
    name = title.removesuffix(" --help")
    context = command.make_context(name, [], resilient_parsing=True, **HELP)
    return f"## `{title}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One leaf of the recipe: what a user may set."""

    path: str  # "model.lora.rank", "tasks.<name>.heldout", "stages.<train>.optim.lr"
    default: str  # as YAML would hold it; "required" if there is none
    doc: str


def leaf_keys(section: type[BaseModel] = config.Recipe, prefix: str = "") -> Iterator[Key]:
    """Every leaf key of the recipe, in the order of the classes. A stage's `do` is in its path."""
    for name, field in section.model_fields.items():
        path = prefix + (field.alias or name)
        if name == "do":
            continue
        if path == "stages":
            for kind in _sections_of(field.annotation):
                yield from leaf_keys(kind, f"stages.<{get_args(kind.model_fields['do'].annotation)[0]}>.")
            continue
        inner = _section_of(field.annotation)
        if inner is not None:
            yield from leaf_keys(inner, path + {dict: ".<name>.", list: ".<i>."}.get(get_origin(field.annotation), "."))
        else:
            default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
            yield Key(path=path, default=default, doc=field.description or "")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    return next(iter(_sections_of(annotation)), None)


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_of(inner)]


def _table(section: type[BaseModel]) -> str:
    rows = [f"| `{key.path}` | {_default(section, key)} | {_cell(key.doc)} |" for key in leaf_keys(section)]
    return "\n".join(["| key | default | what it does |", "|---|---|---|", *rows]) + "\n"


def _default(section: type[BaseModel], key: Key) -> str:
    by_level = section is puzzles.ArithmeticSettings and key.default == "required"
    return "by level" if by_level else f"`{key.default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    wanted = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted, encoding="utf-8")
        print(f"wrote {PAGE}")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
        sys.exit("docs/cli.md is not what the program says: run `make docs`")


if __name__ == "__main__":
    main()
