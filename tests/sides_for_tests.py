"""Competitors for tests/test_bench.py: they answer at once, die on request, or find a mistake of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strop.bench.worker import Link
from strop.record import UserError


def steady(settings: Mapping[str, Any], link: Link) -> None:
    """Says that every turn took `seconds`, and prints, which must not mix with its answers."""
    while (request := link.wait()) is not None:
        print("a library says something on stdout")
        if request.get("die"):
            raise MemoryError("no memory for the logits")
        link.done(seconds=settings["seconds"], echo=request)


def mistaken(settings: Mapping[str, Any], link: Link) -> None:
    raise UserError("there is no model folder; write smollm2-135m")
