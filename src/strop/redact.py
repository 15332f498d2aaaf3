"""What must not be told: keys and passwords, in whatever a run says, writes or refuses.

Knows what secrets look like (well-known forms, what stands before an @ in a URL, what is assigned to a name such as
api_key) and the values that the environment holds under such names. `redact` takes them out of a text, `redacted` out of
values that are still to be encoded; `record.UserError`, `watch` and `disk` send all of theirs through one or the other. `secret_in`
finds them where they cannot be taken out: a recipe that holds one is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["redact", "redacted", "secret_in"]

HIDDEN = "***"
SHORTEST = 8  # characters of a value from the environment that is taken for a secret; shorter ones stand in any text
_NAMED = re.compile(
    r"(?:^|_)(?:(?:API|ACCESS|SECRET|PRIVATE|AUTH)?_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS)$",
    re.IGNORECASE,
)
# "token" and "key" alone name other things in this field, so a value behind them counts where it is long and has a digit.
_ASSIGNED = r"""(?:api[_-]?key|access[_-]?key|secret[_-]?key|auth[_-]?token|access[_-]?token|hf[_-]?token|(?<![a-z])token|secret|password|passwd)"""
_SECRET = re.compile(
    r"(?P<before>(?<![A-Za-z0-9])[a-z][a-z0-9+.-]*://)[^\s/\"'@<>]+@"  # http://user:password@host
    rf"|(?P<name>{_ASSIGNED}[\"']?\s*[=:]\s*[\"']?)(?=[^\s\"'&,;<>]*\d)[^\s\"'&,;<>]{{8,}}"
    r"|(?P<bearer>\b[Bb]earer\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|glpat-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}|pypi-[A-Za-z0-9_-]{30,})",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text without what looks like a secret, or is one of this process's environment.

    >>> redact("http://ann:pass@host/v1 refused sk-abcdefghijklmnop1234, api_key=hunter2hunter2, max_tokens=12345678")
    'http://***@host/v1 refused ***, api_key=***, max_tokens=12345678'
    """
    return _without(_of_environment(), text)


def redacted(value: Any) -> Any:
    """Nested mappings and lists with `redact` over every text in them, a name before it counting as what it is assigned to.

    For what becomes JSON or YAML: in the encoded text a secret may end in the middle of an escape, or with a bracket.

    >>> redacted({"api_key": "hunter2hunter2", "said": 'a "token=abc12345"', "secret": 0.53125})
    {'api_key': '***', 'said': 'a "token=***"', 'secret': 0.53125}
    """
    known = _of_environment()

    def clean(value: Any, name: str = "") -> Any:
        if isinstance(value, str):
            text = _without(known, value)
            return _without(known, f"{name}={text}").removeprefix(f"{name}=")
        if isinstance(value, Mapping):
            named = ((clean(key) if isinstance(key, str) else key, item) for key, item in value.items())
            return {key: clean(item, str(key)) for key, item in named}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return clean(value)


def _without(known: list[str], text: str) -> str:
    for value in known:
        text = text.replace(value, HIDDEN)
    return _SECRET.sub(_hidden, text)


def _hidden(match: re.Match[str]) -> str:
    if match["before"]:
        return f"{match['before']}{HIDDEN}@"
    return f"{match['name'] or match['bearer'] or ''}{HIDDEN}"


def _of_environment() -> list[str]:
    """Values of variables that are named like secrets, the longest first; not paths, under which secrets lie."""
    found = {value for name, value in os.environ.items() if _NAMED.search(name)}
    return sorted((v for v in found if len(v) >= SHORTEST and not v.startswith(("/", "~", "."))), key=len, reverse=True)


def secret_in(value: Any, key: str = "") -> str | None:
    """The dotted key of the first text in nested mappings and lists that holds a secret; None where there is none."""
    seen: set[int] = set()

    def look(value: Any, key: str) -> str | None:
        if isinstance(value, str):
            return key if redact(value) != value else None
        if not isinstance(value, Mapping | list) or id(value) in seen:
            return None
        seen.add(id(value))  # YAML may name one list a million times
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            inner = f"{key}.{name}" if key else str(name)
            named = isinstance(item, str) and redact(f"{name}={item}") != f"{name}={item}"
            if (found := inner if named else look(item, inner)) is not None:
                return found
        return None

    return look(value, key)
