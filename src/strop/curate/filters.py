"""Stage `filter`: rows in the languages, on the topics and from the sources asked for, long enough, with a solution that holds a text.

Knows settings and reasons; `tongues` knows languages, `topics` topics. Every row that stays gains its topic in `meta`. Row by
row, so in any number of processes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from strop.config import nearest
from strop.config.curation import FilterStage
from strop.curate import tongues, topics
from strop.curate.rows import Fate, Outcome, Tools
from strop.record import UserError
from strop.rewards import language
from strop.settings import check_settings

__all__ = ["keep", "read"]

FINDINGS = pa.schema([("reason", pa.string()), ("detail", pa.string()), ("topic", pa.string())])
MIN_SHARE = 0.5  # of a text's words in sentences that lingua takes for the language asked for


def keep(rows: pa.Table, settings: FilterStage, tools: Tools) -> Outcome:
    """Which rows go, and the topic of those that stay. Raises UserError for a name that there is not, with the nearest."""
    _refuse_unknown(settings, rows)
    found = tools.measure(read, rows, settings, what="reading languages and topics")
    reasons, details = found["reason"].to_pylist(), found["detail"].to_pylist()
    dropped = {i: Fate(reason=reason, detail=details[i]) for i, reason in enumerate(reasons) if reason}
    about = found["topic"].to_pylist()
    changed = {i: {"topic": name} for i, name in enumerate(about) if i not in dropped}
    return Outcome(dropped=dropped, changed=changed, notes=(_shares(about[i] for i in changed),))


def _refuse_unknown(settings: FilterStage, rows: pa.Table) -> None:
    there = rows["source"].unique().to_pylist() or settings.sources
    known: tuple[tuple[str, Sequence[str], Iterable[str]], ...] = (
        ("languages", settings.languages, language.SCRIPTS),
        ("topics", settings.topics, topics.TOPICS),
        ("sources", settings.sources, there),
    )
    for key, asked, names in known:
        for name in asked:
            if name not in names:
                raise UserError(f"filter.{key} names {name!r}{nearest(name, names)}")
    if settings.detector == "lingua":
        if not settings.languages:
            raise UserError(
                "filter.detector is lingua, but no languages are asked for; set filter.languages, or leave it out"
            )
        for code in settings.languages:
            _foreign(code)


def _shares(names: Iterable[str]) -> str:
    counts = Counter(names)
    return "topics: " + (", ".join(f"{name} {num}" for name, num in sorted(counts.items())) or "none")


# --- row by row ---------------------------------------------------------------------------------------------------------


def read(rows: pa.Table, settings: FilterStage) -> pa.Table:
    """Of each row the reason to drop it ("" where none), what was met, and its topic."""
    columns = [rows[name].to_pylist() for name in ("prompt", "source", "meta")]
    faults, about = [], []
    for prompt, source, meta in zip(*columns, strict=True):
        fields = _fields(meta)
        name = topics.topic(prompt, fields)
        faults.append(_fault(prompt, source, fields, name, settings))
        about.append(name)
    arrays = [pa.array([fault[place] for fault in faults], pa.string()) for place in (0, 1)]
    return pa.table([*arrays, pa.array(about, pa.string())], schema=FINDINGS)


def _fields(meta: str) -> Mapping[str, Any]:
    try:
        found = json.loads(meta) if meta else {}
    except ValueError:
        return {}  # a row from elsewhere; what it says of itself cannot be read
    return found if isinstance(found, dict) else {}


def _fault(prompt: str, source: str, fields: Mapping[str, Any], about: str, s: FilterStage) -> tuple[str, str]:
    if s.sources and source not in s.sources:
        return "source not asked for", source
    if len(prompt.strip()) < s.min_prompt_chars:
        return "problem too short", f"{len(prompt.strip())} characters"
    if s.solution_holds and s.solution_holds not in _text(fields.get("solution")):
        return "solution without the text asked for", "" if fields.get("solution") else "no solution"
    if s.languages and (spoken := _other_language(prompt, s)):
        return "language not asked for", spoken
    if s.topics and about not in s.topics:
        return "topic not asked for", about
    return "", ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _other_language(prompt: str, s: FilterStage) -> str:
    """The languages of a prompt of which none is asked for ("de", "da or nb"); "" where it may stay."""
    for spoken in tongues.languages_of(prompt):
        ours = spoken & set(s.languages)
        if not ours:
            return " or ".join(sorted(spoken)[:3])
        if len(spoken) > 1 and s.detector == "lingua" and not any(_agrees(prompt, code) for code in sorted(ours)):
            return f"not {' or '.join(sorted(ours))}, as lingua sees it"
    return ""


def _agrees(prompt: str, code: str) -> bool:
    share = language.language_share(prompt, code, _foreign(code))
    return share is None or share >= MIN_SHARE


def _foreign(code: str) -> Any:
    """lingua's judgement of a sentence; of a language that alone has its script there is nothing to judge."""
    if not language.rivals(code):
        return lambda sentence: False
    check_settings(language.LanguageSettings, {"language": code, "detector": "lingua"}, "filter")
    return language.detector(code)
