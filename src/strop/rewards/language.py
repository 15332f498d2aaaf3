r"""Does a completion keep to one language? The share of its words that are in the one asked for.

Knows scripts, and with a detector the languages that share one; nothing of the answer. Judged first by the script a
word is written in, which takes no package and is never in doubt: "We know 因为" is two thirds English. Languages of one
script (English and German) are told apart sentence by sentence by `lingua`, where the recipe asks for it. What belongs
to no language is left out: formulas and commands in LaTeX, code, tags, digits, punctuation, single letters, and Greek
letters unless Greek is asked for. Every pass is linear, because the text is a model's. Read by `rewards.adapters`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

from pydantic import model_validator

from strop.config import Section, nearest
from strop.record import Rollout

__all__ = ["SCRIPTS", "LanguageSettings", "detector", "language", "language_share", "prose", "rivals", "words"]

LATIN = frozenset({"LATIN"})
CYRILLIC = frozenset({"CYRILLIC"})
ARABIC = frozenset({"ARABIC"})
DEVANAGARI = frozenset({"DEVANAGARI"})
HAN = frozenset({"CJK", "IDEOGRAPHIC"})
# By ISO 639-1 code: the scripts a language is written in, as the first words of Unicode's character names.
SCRIPTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("cs", "da", "de", "en", "es", "fi", "fr", "hu", "id", "it", "nb", "nl", "pl", "pt", "ro", "sv", "tr", "vi"), LATIN
    ),
    **dict.fromkeys(("bg", "ru", "uk"), CYRILLIC),
    **dict.fromkeys(("ar", "fa", "ur"), ARABIC),
    **dict.fromkeys(("hi", "mr"), DEVANAGARI),
    "zh": HAN,
    "ja": HAN | {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"},
    "ko": HAN | {"HANGUL"},
    "bn": frozenset({"BENGALI"}),
    "el": frozenset({"GREEK"}),
    "he": frozenset({"HEBREW"}),
    "ka": frozenset({"GEORGIAN"}),
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}),
}  # fmt: skip
UNSPACED = SCRIPTS["ja"] | SCRIPTS["th"]  # written without spaces: each character counts as a word
MIN_WORDS = 4  # a shorter sentence is not given to the detector: names and "OK" belong to every language

# None of these can scan the same text twice: an opening that is never closed ends its attempt at the next opening.
_LEFT_OUT = re.compile(
    r"\$\$[^$]*\$\$"
    r"|\$[^$\n]*\$"
    r"|\\\[(?:[^\\]|\\(?![\[\]]))*+\\\]"
    r"|\\\((?:[^\\]|\\(?![()]))*+\\\)"
    r"|`[^`\n]*`"
    r"|\\(?:begin|end)\s?\{[a-zA-Z*]{0,20}\}"
    r"|\\[a-zA-Z]+"
    r"|</?[a-zA-Z]{1,20}>"
)
_SENTENCE_END = re.compile(r"[.!?؟](?=\s)|[।\n]")


class LanguageSettings(Section):
    language: str = "en"
    """The language asked for, by its ISO 639-1 code (en, zh, de, ...)."""
    detector: Literal["script", "lingua"] = "script"
    """script: by the script of each word. lingua: sentences in that script are also told from its other languages."""

    @model_validator(mode="after")
    def _refuse(self) -> LanguageSettings:
        if self.language not in SCRIPTS:
            raise ValueError(f"language is {self.language!r}{nearest(self.language, SCRIPTS)}")
        if self.detector == "lingua":
            if not rivals(self.language):
                raise ValueError(
                    f"lingua has nothing to tell {self.language} from, whose script is its own; leave detector out"
                )
            detector(self.language)
        return self


def language(rollouts: Sequence[Rollout], settings: LanguageSettings) -> list[float | None]:
    """`language_share` of each completion; None where it has no words at all (R1, arXiv 2501.12948, section 2.3.2)."""
    is_foreign = detector(settings.language) if settings.detector == "lingua" else _is_never_foreign
    return [language_share(rollout.text, settings.language, is_foreign) for rollout in rollouts]


def _is_never_foreign(sentence: str) -> bool:
    return False


def language_share(text: str, target: str, is_foreign: Callable[[str], bool] = _is_never_foreign) -> float | None:
    r"""The share of a text's words that are in the target's script, in [0, 1]; None without a word.

    `is_foreign` is asked about each sentence with at least `MIN_WORDS` words in that script; where it says yes, none
    of the sentence counts as the target's.

    >>> language_share(r"So \(x = \alpha\) because 因为 it holds.", "en"), language_share("设 $x=2$，所以 x = 2", "zh")
    (0.6666666666666666, 1.0)
    >>> print(language_share(r"$\frac{1}{2}$", "en"))
    None
    """
    right = total = 0
    scripts = SCRIPTS[target]
    for sentence in _SENTENCE_END.split(prose(text)):
        found = [script for script in words(sentence) if script != "GREEK" or script in scripts]
        ours = sum(script in scripts for script in found)
        total += len(found)
        right += 0 if ours >= MIN_WORDS and is_foreign(sentence) else ours
    return right / total if total else None


def prose(text: str) -> str:
    """The text without what belongs to no language."""
    fenced_out = "\n".join(text.split("```")[::2])  # a fence that is never closed runs to the end, as when it was cut
    return _LEFT_OUT.sub(" ", fenced_out)


def words(text: str) -> Iterator[str]:
    """The script of each word. A single letter is none, unless its script is written without spaces."""
    for script, letters in groupby(text, key=_script):
        num = sum(1 for _ in letters) if script else 0
        if script in UNSPACED:
            yield from [script] * num
        elif num > 1:
            yield script


@lru_cache(maxsize=16384)
def _script(character: str) -> str:
    """The script of a letter, or of a mark on one ("LATIN", "CJK"); empty for everything else.

    Compatibility forms (𝑥, ｘ, ℝ) are plain letters. Marks that every script may use are of none.
    """
    plain = unicodedata.normalize("NFKC", character)[0]
    if unicodedata.category(plain)[0] not in "LM":
        return ""
    name = unicodedata.name(plain, "").partition(" ")[0]
    return "" if name in ("COMBINING", "MODIFIER", "VARIATION") else name


# --- languages of one script ------------------------------------------------------------------------------------------


def rivals(target: str) -> list[str]:
    """The other languages here that are written in the target's script."""
    return [code for code, scripts in SCRIPTS.items() if code != target and scripts == SCRIPTS[target]]


@lru_cache(maxsize=8)
def detector(target: str) -> Callable[[str], bool]:
    """Whether a sentence is in another language of the target's script, as lingua sees it. Raises ValueError without it."""
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(
            "detector lingua needs lingua-language-detector, which is not installed: pip install 'strop[language]', or "
            "leave detector out to judge by script"
        ) from None
    codes = [getattr(IsoCode639_1, code.upper()) for code in (target, *rivals(target))]
    built: Any = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()

    def is_foreign(sentence: str) -> bool:
        found = built.detect_language_of(sentence)
        return found is not None and found.iso_code_639_1 != codes[0]

    return is_foreign
