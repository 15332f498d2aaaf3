"""The share of words in one language: what counts, what belongs to no language, and hostile text."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.config import RewardSpec
from strop.record import Rollout, Stop, Task, UserError
from strop.rewards import load_rewards
from strop.rewards.language import SCRIPTS, language_share

TASK = Task.make(source="test", prompt="Compute 2 + 3.", answer="5", verifier="math")


def answered(text: str, **fields: Any) -> Rollout:
    mask = np.array([False, True])
    return Rollout(
        task=TASK, group=0, sample=0, token_ids=np.zeros(2, np.int32), sampled=mask, trained=mask, text=text, **fields
    )


@pytest.mark.parametrize(
    ("text", "target", "share"),
    [
        ("We know that it holds", "en", 1.0),
        ("We know 因为 that", "en", 3 / 5),  # three words, and two characters that count as one word each
        ("We know 因为 that", "zh", 2 / 5),
        ("首先我们计算", "zh", 1.0),
        ("Сначала мы считаем", "ru", 1.0),
        ("Сначала we считаем", "en", 1 / 3),
        ("まず計算する", "ja", 1.0),
        ("먼저 계산한다", "ko", 1.0),
        ("먼저 计算", "ko", 1.0),  # Hangul and Han are both Korean
        ("먼저 계산한다", "zh", 0.0),
        ("هذا صحيح", "ar", 1.0),
        ("पहले हम गिनते हैं", "hi", 1.0),  # vowel signs are marks, and part of the word
        ("ก่อนอื่น", "th", 1.0),
        ("Zuerst größer, café, naïve", "de", 1.0),
        ("cafe\u0301 noir, Vie\u0323\u0302t", "fr", 1.0),  # accents of their own
        ("ＦＵＬＬ width", "en", 1.0),
    ],
)
def test_words_by_script(text: str, target: str, share: float) -> None:
    assert language_share(text, target) == pytest.approx(share)


@pytest.mark.parametrize(
    "left_out",
    [
        r"\( alpha + beta 因为 \)",
        r"\[ \text{and 因为} \frac{a}{b} \]",
        r"$ab + cd = 因$",
        "$$ ab\n因为 \\int $$",
        "```python\nprint('so 因为')\n```",
        "`print(因为)`",
        r"\frac \begin{align*} \end{align*} \because",
        "<think> </answer>",
        "3.14 + 27% != 5; (x) y, n",
        "α β γδ Σωμα",
        "𝑥 𝑦 ℝ",  # single letters, once they are plain
    ],
)
@pytest.mark.parametrize("target", ["en", "zh"])
def test_what_belongs_to_no_language_is_left_out(left_out: str, target: str) -> None:
    assert language_share(left_out, target) is None
    half = "two words " + left_out + " 两个"
    assert language_share(half, target) == 0.5


def test_greek_counts_where_it_is_asked_for() -> None:
    assert language_share("πρώτα υπολογίζουμε then", "el") == pytest.approx(2 / 3)
    assert language_share("πρώτα υπολογίζουμε then", "en") == 1.0


def test_a_dollar_and_a_fence_that_are_never_closed() -> None:
    assert language_share("It costs $5\nso 因为", "en") == 3 / 5  # it, costs, so; 因, 为
    assert language_share("We print it\n```\n因为 因为", "en") == 1.0  # cut by the limit within the code


HOSTILE = [
    r"\[" * 50_000,
    r"\(" * 50_000,
    r"\[" + "a" * 100_000,
    "$" + "a" * 100_000,
    "$$" + "$ a" * 30_000,
    "`" * 100_001,
    "<" * 100_000,
    "\\begin{" * 20_000,
    "\\" * 100_000,
    "因a" * 50_000,
    "\u0301\u0316" * 50_000,  # marks that Unicode wants sorted
    "\ud800 lone",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_read_in_one_pass(text: str) -> None:
    started = time.perf_counter()
    share = language_share(text, "en")
    assert time.perf_counter() - started < 2  # quadratic would take minutes
    assert share is None or 0 <= share <= 1


@given(st.text(max_size=200), st.sampled_from(sorted(SCRIPTS)))
def test_any_text_has_a_share(text: str, target: str) -> None:
    share = language_share(text, target)
    assert share is None or 0 <= share <= 1


@given(st.lists(st.sampled_from(["word", "因", "слово", "$x$", "12", "λόγος"]), max_size=20), st.randoms())
def test_the_order_of_words_does_not_matter(words: list[str], rng: Any) -> None:
    share = language_share(" ".join(words), "en")
    ours, others = words.count("word"), words.count("因") + words.count("слово")
    assert share == (ours / (ours + others) if ours + others else None)
    assert language_share(" ".join(rng.sample(words, len(words))), "en") == share


# --- as a reward, and with a detector -----------------------------------------------------------------------------------


def reward(**settings: str):
    return load_rewards([RewardSpec(name="language", settings=settings)])[0]  # type: ignore[arg-type]


def test_the_reward_reads_the_completion_cut_or_not() -> None:
    rollouts = [answered("Two words"), answered("Two 字字", stop=Stop.LENGTH), answered("$x$"), answered("")]
    assert reward().values(rollouts) == [1.0, pytest.approx(1 / 3), None, None]
    assert reward(language="zh").values(rollouts) == [0.0, pytest.approx(2 / 3), None, None]


def test_a_detector_is_asked_about_sentences_in_the_right_script() -> None:
    asked = []

    def is_german(sentence: str) -> bool:
        asked.append(sentence.strip())
        return "der" in sentence.split()

    text = "First we add them up. Dann ist der Rest klein. OK gut. 因为 所以 因为 所以"
    assert language_share(text, "en", is_german) == pytest.approx((5 + 2) / (5 + 5 + 2 + 8))
    assert asked == ["First we add them up", "Dann ist der Rest klein"]  # "OK gut" is too short to tell


@pytest.mark.skipif(find_spec("lingua") is not None, reason="lingua is installed")
def test_without_its_package_the_detector_is_refused_with_the_install_line() -> None:
    with pytest.raises(UserError, match=r"detector lingua needs .*pip install 'strop\[language\]'.*judge by script"):
        reward(detector="lingua")


def test_a_detector_where_there_is_nothing_to_tell_apart_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to tell ja from"):
        reward(language="ja", detector="lingua")
    with pytest.raises(UserError, match=r"rewards\.language\.settings\.detector.*'script' or 'lingua'"):
        reward(detector="langid")


def test_lingua_tells_languages_of_one_script_apart() -> None:
    pytest.importorskip("lingua")
    english, german = "First we add both numbers together.", "Zuerst addieren wir die beiden Zahlen miteinander."
    assert reward(detector="lingua").values([answered(english), answered(german)]) == [1.0, 0.0]
    assert reward(detector="lingua", language="de").values([answered(english), answered(german)]) == [0.0, 1.0]
