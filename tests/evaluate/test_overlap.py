"""Overlap of held-out with training text: exact shares on texts whose overlap is known, bounded memory, one reading."""

import hashlib
import random
import re
import tracemalloc
import unicodedata
from collections.abc import Iterator

import pytest

from synpro_engine.data import ngrams
from synpro_engine.data.ngrams import words_of
from synpro_engine.evaluate import measure_overlap, overlap


def _words(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(10**6)}" for _ in range(count)]


def _ngrams(texts: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + 13]) for words in map(str.split, texts) for i in range(len(words) - 12)]


def test_the_share_is_that_of_counting_by_hand() -> None:
    rng = random.Random(0)
    training = [" ".join(_words(rng, 60)) for _ in range(40)]
    own = [" ".join(_words(rng, rng.randrange(5, 50))) for _ in range(20)]
    # Some copied whole, some in part, some repeated, some too short to have an n-gram.
    held_out = [*own, training[3], training[4][:200] + " " + own[0], own[1], own[1]]
    known = set(_ngrams(training))
    grams = _ngrams(held_out)
    found = measure_overlap({"validation": lambda: held_out, "reference": lambda: own}, iter(training))
    assert found["validation"].ngrams == len(grams)
    assert found["validation"].found == sum(gram in known for gram in grams) > 40
    assert found["validation"].sampled == 1 and found["validation"].documents == len(held_out)
    assert found["validation"].copied_documents == sum(
        2 * sum(gram in known for gram in _ngrams([text])) >= len(_ngrams([text])) > 0 for text in held_out
    )
    assert found["reference"].found == 0 and found["reference"].share == 0.0


def test_white_space_case_and_punctuation_do_not_hide_a_copy() -> None:
    text = "The finances of the country are in a sound condition; the receipts, this year, were large."
    disguised = "  THE finances of the country\nare in a sound condition -- the receipts this year were\tlarge"
    assert measure_overlap({"v": lambda: [disguised]}, [text])["v"].share == 1.0
    assert measure_overlap({"v": lambda: [text]}, ["nothing of it"])["v"].share == 0.0


def test_texts_too_short_for_an_ngram_have_no_share() -> None:
    found = measure_overlap({"v": lambda: ["only a few words"]}, ["only a few words"])["v"]
    assert found.share is None and found.documents == 1 and found.copied_documents == 0
    assert measure_overlap({"v": list}, [])["v"].share is None


def test_scripts_without_spaces_have_words_too() -> None:
    text = "我國財政狀況良好今年國庫收入接近三千一百萬元支出二千四百七十萬元"
    found = measure_overlap({"v": lambda: [text[3:25]]}, ["前言。" + text])["v"]
    assert found.share == 1.0 and found.ngrams == 22 - 12
    assert len(words_of(["abc漢字 it's ไทย"]).keys_N) == 1 + 2 + 1 + 3


def test_words_are_those_of_the_definition_in_any_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "_BLOCK_CHARS", 300)
    rng = random.Random(4)
    # With marks of words: Devanagari's vowel signs and virama, Arabic's fatha, accents apart, one behind an emoji.
    alphabet = "abAB'_ ,.-\n\tßİéÉ漢字ไทかनक\u093f\u094d\u0645\u064e\u0301\ufe0f\u2019\u00b2\U00020001\U0001f600\ud800"
    marks = "".join(one for one in alphabet.casefold() if unicodedata.category(one).startswith("M"))
    letter = rf"(?:[^\W{ngrams._UNSPACED}]|')"
    word = re.compile(rf"[{ngrams._UNSPACED}]|{letter}(?:{letter}|[{marks}])*")
    texts = ["", *("".join(rng.choices(alphabet, k=rng.randrange(80))) for _ in range(200))]
    found = words_of(texts)
    wanted = [(number, spelt) for number, text in enumerate(texts) for spelt in word.findall(text.casefold())]
    assert found.text_N.tolist() == [number for number, _ in wanted]
    key_of: dict[str, int] = {}
    for (_, spelt), key in zip(wanted, found.keys_N.tolist(), strict=True):
        assert key_of.setdefault(spelt, key) == key
    assert len(set(key_of.values())) == len(key_of) > 300


def test_vowel_signs_tell_words_apart_and_end_none() -> None:
    # ki, kee, ka, ke, larkee; kataba, kutiba
    hindi = "\u0915\u093f \u0915\u0940 \u0915\u093e \u0915\u0947 \u0932\u0921\u093c\u0915\u0940"
    vocalised = "\u0643\u064e\u062a\u064e\u0628\u064e \u0643\u064f\u062a\u0650\u0628\u064e"
    for text, words in ((hindi, 5), (vocalised, 2)):
        assert len(words_of([text]).keys_N) == words == len(set(words_of([text]).keys_N.tolist()))


def test_keys_of_texts_without_marks_stay_those_that_they_were() -> None:
    texts = [
        "It's 1871: the mill's OWNER (Anna_B) said \"don\u2019t\" twice \u2014 na\u00efve caf\u00e9s, \u00df.",
        "",
        "Item 3.5; co-operate\u2026\tagain \u2764\ufe0f \u6f22\u5b57 \u0e44\u0e17\u0e22",
    ]
    words = words_of(texts)
    held = hashlib.sha256(words.keys_N.tobytes() + words.text_N.tobytes()).hexdigest()
    assert held == "e51591b5c5cd9a8943dc909938ec9d046d2103d10cf370cee5ac93a06307c2a6"


def test_a_sample_of_the_ngrams_gives_the_same_share_up_to_chance() -> None:
    rng = random.Random(1)
    training = [" ".join(_words(rng, 400)) for _ in range(60)]
    held_out = [*training[:20], *(" ".join(_words(rng, 400)) for _ in range(30))]
    whole = measure_overlap({"v": lambda: held_out}, training)["v"]
    part = measure_overlap({"v": lambda: held_out}, training, limit=3000)["v"]
    assert whole.share == pytest.approx(0.4)
    assert part.sampled == 8 and part.ngrams < 3000
    assert part.share == pytest.approx(0.4, abs=4 * (0.24 / part.ngrams) ** 0.5)
    assert part.copied_documents == 20


def test_memory_does_not_grow_with_the_training_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_BATCH_CHARS", 20_000)

    def texts(count: int) -> Iterator[str]:
        rng = random.Random(2)
        return (" ".join(_words(rng, 100)) for _ in range(count))

    peaks = []
    for count in (100, 600):
        tracemalloc.start()
        measure_overlap({"v": lambda: texts(50)}, texts(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
