"""Settings of a task source: checked against the source's own Section, refused with the nearest known key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from strop.config import Section, nearest
from strop.record import UserError

__all__ = ["check_settings"]

S = TypeVar("S", bound=Section)


def check_settings(section: type[S], values: Mapping[str, Any], where: str) -> S:
    """A source's settings, or a UserError that names the key and the nearest known one."""
    for key in values:
        if key not in section.model_fields:
            raise UserError(f"unknown setting {where}.settings.{key}{nearest(key, section.model_fields)}")
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}.settings{'.' + key if key else ''}: {message[0].lower()}{message[1:]}") from None
