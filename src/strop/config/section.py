"""What every part of a recipe is: keys with a sentence each, unknown ones refused with the nearest known one."""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from strop.redact import redacted

__all__ = ["Count", "Decay", "Positive", "Root", "Section", "Share", "nearest"]

Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def changed(self, key: str) -> bool:
        """Whether a key has another value than its default."""
        return getattr(self, key) != type(self).model_fields[key].default


class Root(Section):
    """A whole recipe, of whichever kind."""

    @property
    def hash(self) -> str:
        """16 hex digits over everything that was resolved, but for what decides no number: disk, memory and money to take, and prices."""
        decides = self.model_dump(mode="json", exclude={"keep", "memory_gb", "budget", "costs"})
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved recipe: every key with its value; secrets are blotted out, though a recipe that was read has none."""
        dumped = redacted(self.model_dump(mode="json", by_alias=True))
        return yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True)


def nearest(word: str, known: Any) -> str:
    """ ", which is not one of a, b; did you mean a?" for an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f", which is none of {', '.join(known)}" + (f"; did you mean {close[0]!r}?" if close else "")
