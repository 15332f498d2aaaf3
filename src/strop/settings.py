"""Settings of a task source, a reward or a bench: checked against its own Section, refused with the nearest known key.

Knows no source and no reward; whoever has settings hands over the Section that describes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from strop.config import Section, nearest
from strop.record import UserError

__all__ = ["NoSettings", "check_settings"]

S = TypeVar("S", bound=Section)


class NoSettings(Section):
    """Of what has none."""


def check_settings(section: type[S], values: Mapping[str, Any], where: str) -> S:
    """The checked settings, or a UserError that names the key and the nearest known one."""
    for key in values:
        if not section.model_fields:
            raise UserError(f"{where} has no settings; leave out {key!r}")
        if key not in section.model_fields:
            raise UserError(f"unknown setting {where}.settings.{key}{nearest(key, section.model_fields)}")
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}.settings{'.' + key if key else ''}: {message[0].lower()}{message[1:]}") from None
