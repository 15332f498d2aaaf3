r"""Which language a problem is written in: by script, then by the commonest words of the languages that share one.

Says "one of these" where a text is too short to tell ("Simplify $x^2$"), and nothing where it has no words at all. LaTeX,
code and digits belong to no language (`rewards.language`). Reads 40,000 problems in seconds, because most are plain ASCII,
which needs no look at scripts. Read by `curate.filters`.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from strop.rewards.language import SCRIPTS, UNSPACED, prose, words

__all__ = ["languages_of"]

MIN_FRAC = 0.25  # of a text's words: a script below it is a quotation or a name
MOST_CHARS = 4000  # of a problem that are read
FEWEST = 2  # common words that tell a language; one letter is no word, because formulas are full of them
_COMMON = {  # by language, words that the others of its script do not have or have seldom; what problems begin with
    "en": "the of and is are that what find let if how many with for which be such this from by each has determine given compute prove"
    " to an as on or at it in your answer express value sum number calculate evaluate simplify whether its his was were than where there one two all when then between their write solve function triangle equation",
    "de": "der die das und ist ein eine einen von mit für den dem des sind wie viele sei bestimme berechne zeige dass auf man nicht im zahl",
    "fr": "le la les des est une et du dans que pour qui sont soit un au trouver calculer montrer avec sur combien quel quelle déterminer",
    "es": "el la los las de una es que en un se con por para del son cuál cuántos sea halla hallar encuentra calcula número si al",
    "it": "il lo la gli di che una un per con sono del della si trova trovare quanti sia calcolare numero nel determinare qual",
    "pt": "os as de um uma que do da em não para com são se quantos qual seja encontre determine número calcule dos",
    "nl": "de het een van en is dat in zijn met op voor hoeveel niet bereken bepaal welke wordt aan laat getal te",
    "sv": "och att det som en är av på för med den ett till hur många bestäm beräkna inte visa har talet låt",
    "da": "og at det som en er af på for med den et til hvor mange bestem beregn ikke vis har tallet lad",
    "nb": "og at det som en er av på for med den et til hvor mange bestem beregn ikke vis har tallet la hva",
    "fi": "ja on ei että kuinka monta jos ovat olkoon laske se mikä luku niin kun määritä joka",
    "pl": "na jest że się nie do oraz ile liczba liczb znajdź oblicz niech dla jeśli wyznacz są",
    "cs": "je na se že kolik pro čísel číslo najděte nechť jsou určete které kde",
    "hu": "az és egy hogy hány nem van mi ha szám legyen határozzuk meg számok melyik",
    "ro": "și de un este în că din cu pe care sunt numărul fie să se determine calculați câte la",
    "tr": "ve bir bu için kaç sayı olan ile kaçtır ise olduğuna göre en bulunuz değeri olarak",
    "vi": "và của là có các cho một với số trong được tìm giá trị bao nhiêu hàm nếu",
    "id": "dan yang di adalah dari dengan untuk berapa ini jika nilai pada bilangan tentukan sebuah",
    "ru": "на что не по для найдите сколько если число чисел как из все его докажите пусть при",
    "uk": "на що не для знайдіть скільки якщо число чисел як із всі доведіть нехай та при",
    "bg": "на че не за намерете колко ако число числа са да се от докажете нека при",
    "ar": "في من على ما هو هي التي أن كم عدد إذا كان إلى أوجد عن",
    "fa": "در از به که را این است با کنید عدد اگر های چند باشد و",
    "ur": "میں کے کی ہے کا اور سے کو نے ایک ہیں کیا اگر",
    "hi": "है के में की से का और को एक हैं यदि ज्ञात कीजिए पर क्या",
    "mr": "आहे च्या आणि एक ते हे तर काढा किती ची आहेत असेल",
}  # fmt: skip
_SPEAKERS: dict[str, frozenset[str]] = {}
for _code, _list in _COMMON.items():
    for _word in _list.split():
        _SPEAKERS[_word] = _SPEAKERS.get(_word, frozenset()) | {_code}
_WORD = re.compile(r"""[^\s\d_.,;:?!¿¡()\[\]{}$"'«»।،؟*+=<>/\\-]+""")  # vowel signs are no letters to Python
_DRAWING = re.compile(r"\[asy\](?:[^\[]|\[(?!/asy\]))*+(?:\[/asy\])?")


def languages_of(text: str) -> tuple[frozenset[str], ...]:
    """Of each script with a quarter of the words or more: the languages that it may be in. () for a text without words.

    >>> languages_of("Find the sum of all primes."), languages_of(r"设 $x=2$，求 $x^2$ 的值。")
    ((frozenset({'en'}),), (frozenset({'zh'}),))
    >>> languages_of(r"$\\frac{1}{2}$"), len(languages_of("Simplify $x$.")[0]) > 5
    ((), True)
    """
    said = prose(_DRAWING.sub(" ", text[:MOST_CHARS]))
    if said.isascii():
        return (_by_words(said, _of_script("LATIN")),) if re.search(r"[A-Za-z]{2}", said) else ()
    found = Counter(words(said))
    if found["GREEK"] < max(found.values(), default=0):
        del found["GREEK"]  # letters of formulas
    families: Counter[frozenset[str]] = Counter()
    for script, num in found.items():
        families[_of_script("CJK" if script in UNSPACED - SCRIPTS["th"] or script == "HANGUL" else script)] += num
    total = sum(families.values())
    kept = sorted((family for family, num in families.items() if num >= MIN_FRAC * total), key=sorted)
    return tuple(_of_cjk(found) if "zh" in family else _by_words(said, family) for family in kept)


@lru_cache(maxsize=256)
def _of_script(script: str) -> frozenset[str]:
    return frozenset(code for code, scripts in SCRIPTS.items() if script in scripts)


def _of_cjk(found: Counter[str]) -> frozenset[str]:
    """Kana are Japanese only and Hangul Korean only; Chinese characters alone are taken for Chinese."""
    kana = found["HIRAGANA"] + found["KATAKANA"] + found["KATAKANA-HIRAGANA"]
    chinese = found["CJK"] + found["IDEOGRAPHIC"]
    if found["HANGUL"] > max(kana, chinese / 4):
        return frozenset({"ko"})
    return frozenset({"ja" if kana > chinese / 10 else "zh"})


def _by_words(said: str, family: frozenset[str]) -> frozenset[str]:
    """The languages of the family with most common words in the text; all where it has next to none."""
    if len(family) < 2:
        return family
    counts = Counter(
        code for word in _WORD.findall(said.casefold()) for code in _SPEAKERS.get(word, ()) if code in family
    )
    most = max(counts.values(), default=0)
    return frozenset(code for code, num in counts.items() if num == most) if most >= FEWEST else family
