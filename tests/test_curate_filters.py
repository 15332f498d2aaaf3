r"""Stage `filter`: languages, topics, sources, lengths and solutions; names that there are not; the real pool where it is."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from strop.config.curation import FilterStage
from strop.curate import tongues, topics
from strop.curate.filters import keep
from strop.curate.rows import SCHEMA, Outcome, Tools
from strop.record import UserError
from strop.watch import Watch

DATA = Path(os.environ.get("STROP_DATA", Path(__file__).parents[2] / "shared" / "data"))
MATH, MATH_500 = DATA / "train" / "math_11800.jsonl.gz", DATA / "eval" / "math_500.jsonl"
DAPO = DATA / "train" / "dapo_math_17k.jsonl.gz"


def run(prompts: list[str], folder: Path, *, source: str = "a", meta: str = "{}", **settings: Any) -> Outcome:
    rows = [
        {"id": str(i), "source": source, "prompt": p, "answer": "5", "verifier": "math", "licence": "", "meta": meta}
        for i, p in enumerate(prompts)
    ]
    tools = Tools(
        measure=lambda function, rows, settings, *, what: function(rows, settings),
        watch=Watch(open(os.devnull, "w"), live=False),  # noqa: SIM115
        seed=0, against=SCHEMA.empty_table(), folder=folder,
    )  # fmt: skip
    return keep(
        pa.Table.from_pylist(rows, schema=SCHEMA), FilterStage.model_validate({"do": "filter", **settings}), tools
    )


# --- languages ----------------------------------------------------------------------------------------------------------

SENTENCES = {
    "en": r"Find the number of integers $n$ such that $n^2$ is less than 50.",
    "de": r"Bestimme die Anzahl der ganzen Zahlen $n$, für die $n^2$ kleiner als 50 ist.",
    "fr": r"Trouver le nombre d'entiers $n$ tels que $n^2$ est plus petit que 50.",
    "es": r"Halla el número de los enteros $n$ para los que $n^2$ es menor que 50.",
    "it": r"Trovare il numero degli interi $n$ per cui il quadrato di $n$ è minore di 50 e non nullo, con $n$ pari nel caso della somma.",
    "pt": r"Determine o número de inteiros $n$ para os quais $n^2$ é menor do que 50 e não é par. Quantos são?",
    "nl": r"Bepaal het aantal gehele getallen waarvoor het kwadraat van een getal kleiner is dan 50.",
    "pl": r"Znajdź liczbę całkowitych $n$, dla których kwadrat jest mniejszy niż 50. Ile ich jest?",
    "tr": r"Karesi 50'den küçük olan kaç tam sayı vardır ve toplamları kaçtır?",
    "vi": r"Tìm số các số nguyên $n$ với bình phương nhỏ hơn 50 và giá trị của tổng.",
    "ru": r"Найдите все целые числа $n$, для которых квадрат не больше 50. Сколько их?",
    "uk": r"Знайдіть усі цілі числа $n$, що не більші за 50. Скільки їх?",
    "zh": r"求所有满足 $n^2<50$ 的整数 $n$ 的个数。",
    "ja": r"$n^2<50$ を満たす整数 $n$ の個数を求めよ。",
    "ko": r"$n^2<50$ 을 만족하는 정수의 개수를 구하시오.",
    "ar": r"أوجد عدد الأعداد الصحيحة التي مربعها أقل من 50 إذا كان العدد زوجيا.",
    "hi": r"वे सभी पूर्णांक ज्ञात कीजिए जिनका वर्ग 50 से कम है।",
    "el": r"Βρείτε το πλήθος των ακεραίων με τετράγωνο μικρότερο του 50.",
    "he": r"מצאו את מספר השלמים שריבועם קטן מחמישים.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_of_its_language(code: str) -> None:
    assert tongues.languages_of(SENTENCES[code]) == (frozenset({code}),)


@pytest.mark.parametrize(
    "text", [r"$x^2 + 1 = \frac{1}{2}$", "2 + 3 = ?", r"\sum_{k=1}^n k", "[asy] draw((0,0)--(1,1)); [/asy]"]
)
def test_formulas_are_of_no_language_and_stay(text: str, tmp_path: Path) -> None:
    assert tongues.languages_of(text) == ()
    assert run([text], tmp_path, languages=["zh"]).dropped == {}


def test_what_is_too_short_to_tell_may_be_any_of_its_script(tmp_path: Path) -> None:
    assert {"en", "de", "fr"} <= tongues.languages_of("Simplify $x^2$")[0]
    out = run(["Simplify $x$", "Vereinfache $x$"], tmp_path, languages=["en"])
    assert out.dropped == {}
    assert [fate.reason for fate in run(["Simplify $x$"], tmp_path, languages=["ru"]).dropped.values()] == [
        "language not asked for"
    ]


def test_greek_letters_and_names_are_no_language(tmp_path: Path) -> None:
    prompts = [
        "Let αβ and γδ be the angles of a triangle. Find the sum.",
        "Gauß and Erdős wrote to Gödel. How many of them are there?",
    ]
    assert run(prompts, tmp_path, languages=["en"]).dropped == {}


def test_a_problem_in_two_scripts_needs_both(tmp_path: Path) -> None:
    both = "求所有整数的和。 " + SENTENCES["en"]
    assert len(run([both], tmp_path, languages=["en"]).dropped) == 1
    assert run([both], tmp_path, languages=["en", "zh"]).dropped == {}


def test_languages_are_kept_and_the_others_named(tmp_path: Path) -> None:
    out = run(list(SENTENCES.values()), tmp_path, languages=["en", "zh"])
    names = list(SENTENCES)
    assert {names[i]: fate.detail for i, fate in out.dropped.items()} == {c: c for c in names if c not in ("en", "zh")}
    assert {fate.reason for fate in out.dropped.values()} == {"language not asked for"}


@pytest.mark.skipif(not DAPO.exists(), reason=f"no real pool at {DAPO}")
def test_the_chinese_problems_of_a_real_pool() -> None:
    """Nothing but the characters tells whether it is right: what holds a Chinese one is no English problem."""
    with gzip.open(DAPO, "rt") as lines:
        prompts = [json.loads(line)["problem"] for line in lines]
    spoken = [tongues.languages_of(prompt) for prompt in prompts]
    chinese = [sum("\u4e00" <= c <= "\u9fff" for c in prompt) >= 1 for prompt in prompts]
    found = [(frozenset({"zh"}) in languages) for languages in spoken]
    assert sum(chinese) > 2000
    assert sum(a != b for a, b in zip(chinese, found, strict=True)) < 0.005 * len(prompts)
    english = [all("en" in languages for languages in found) for found in spoken]
    assert all(e or c for e, c in zip(english, chinese, strict=True))


def test_lingua_is_asked_for_and_is_not_there(tmp_path: Path) -> None:
    try:
        import lingua  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"strop\[language\]"):
            run(["Simplify $x$"], tmp_path, languages=["en"], detector="lingua")
    with pytest.raises(UserError, match="no languages are asked for"):
        run(["Simplify $x$"], tmp_path, detector="lingua")


# --- topics -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (r"What is the remainder when $7^{2024}$ is divided by 13?", "number theory"),
        (r"In triangle $ABC$, $\angle A = 60^\circ$ and $AB = AC$. Find the radius of the incircle.", "geometry"),
        (r"Find the sum of the roots of the polynomial $x^3 - 3x + 1$.", "algebra"),
        (r"Two dice are rolled at random. What is the probability that both show heads of the same color?", "combinatorics"),
        (r"Evaluate $\int_0^1 x^2 \, dx$.", "calculus"),
        (r"Each islander is a knight, who tells the truth, or a knave, who lies. Who is a knave?", "logic"),
        (r"Anna buys 3 apples for 2 dollars each. How much money does she spend?", "arithmetic"),
        ("Hm?", "other"),
    ],
)  # fmt: skip
def test_a_topic_is_read_off_the_words(prompt: str, expected: str) -> None:
    assert topics.topic(prompt) == expected
    assert expected in topics.TOPICS


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"subject": "counting_and_probability"}, "combinatorics"),
        ({"subject": "Counting & Probability"}, "combinatorics"),
        ({"type": "Prealgebra"}, "arithmetic"),
        ({"domain": "Mathematics -> Discrete Mathematics -> Combinatorics"}, "combinatorics"),
        ({"topic": "Number Theory"}, "number theory"),
        ({"subject": "precalculus"}, "geometry"),  # says too little: the words decide
        ({"subject": "cooking"}, "geometry"),
        ({"subject": 5}, "geometry"),
    ],
)  # fmt: skip
def test_a_row_that_names_its_topic_is_believed(meta: dict[str, Any], expected: str) -> None:
    assert topics.topic("Find the area of the circle.", meta) == expected


@pytest.mark.skipif(not MATH.exists() or not MATH_500.exists(), reason=f"no MATH at {DATA}")
def test_agreement_with_the_subjects_of_math() -> None:
    """Of the five subjects that are topics (prealgebra and precalculus are courses), the words agree with 78 in 100."""
    same = {
        "algebra": "algebra", "intermediate algebra": "algebra", "number theory": "number theory", "geometry": "geometry",
        "counting and probability": "combinatorics",
    }  # fmt: skip
    with gzip.open(MATH, "rt") as lines, open(MATH_500) as held:
        for rows, least in ((list(lines), 0.77), (list(held), 0.77)):
            problems = [json.loads(line) for line in rows]
            judged = [
                topics.topic(row["problem"]) == same[subject]
                for row in problems
                if (subject := row["subject"].lower().replace("_", " ").replace("&", "and")) in same
            ]
            assert sum(judged) / len(judged) > least


def test_rows_that_stay_gain_their_topic_and_the_others_go(tmp_path: Path) -> None:
    prompts = ["Find the area of the circle.", "What is the remainder modulo 7?"]
    out = run(prompts, tmp_path, topics=["geometry"])
    assert out.changed == {0: {"topic": "geometry"}}
    assert [(i, fate.reason, fate.detail) for i, fate in out.dropped.items()] == [
        (1, "topic not asked for", "number theory")
    ]
    assert out.notes == ("topics: geometry 1",)
    assert run(prompts, tmp_path).changed == {0: {"topic": "geometry"}, 1: {"topic": "number theory"}}


# --- the others ---------------------------------------------------------------------------------------------------------


def test_short_problems_and_other_sources_go(tmp_path: Path) -> None:
    out = run(["2 + 3?", "What is 2 + 3?"], tmp_path, min_prompt_chars=10)
    assert [(i, fate.reason, fate.detail) for i, fate in out.dropped.items()] == [
        (0, "problem too short", "6 characters")
    ]
    assert run(["What is it?"], tmp_path, source="amc", sources=["amc"]).dropped == {}


@pytest.mark.parametrize(
    ("meta", "stays"),
    [
        (json.dumps({"solution": r"So \boxed{5}."}), True),
        (json.dumps({"solution": "So 5."}), False),
        (json.dumps({"solution": 5}), False),
        ("{}", False),
        ("", False),
        ("{broken", False),
        ("[1]", False),
    ],
)
def test_a_solution_has_to_hold_the_text(meta: str, stays: bool, tmp_path: Path) -> None:
    out = run(["What is 2 + 3?"], tmp_path, meta=meta, solution_holds=r"\boxed{")
    assert (out.dropped == {}) is stays
    assert run(["What is 2 + 3?"], tmp_path, meta=meta).dropped == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": ["eng"]}, r"filter\.languages names 'eng'.*did you mean 'en'\?"),
        ({"topics": ["geometri"]}, r"filter\.topics names 'geometri'.*did you mean 'geometry'\?"),
        ({"sources": ["ammc"]}, r"filter\.sources names 'ammc'.*did you mean 'amc'\?"),
    ],
)
def test_a_name_that_there_is_not_is_a_mistake(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(["What is it?"], tmp_path, source="amc", **settings)


@pytest.mark.parametrize(
    "text", ["[asy]" * 400_000, "$" * 2_000_000, "αa" * 1_000_000, "求" * 2_000_000, "\\(" * 1_000_000, "```" * 600_000]
)
def test_two_megabytes_cost_a_second(text: str, tmp_path: Path) -> None:
    start = time.process_time()
    run([text], tmp_path, languages=["en"], topics=["algebra"])
    assert time.process_time() - start < 3


def test_no_rows(tmp_path: Path) -> None:
    out = run([], tmp_path, languages=["en"], topics=["algebra"], sources=["amc"])
    assert (out.dropped, out.changed) == ({}, {})
