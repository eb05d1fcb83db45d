"""Examples for a faithfulness judge to learn from: entries that a source supports, and the same with a fault planted.

What is true is said in other words, shortened, rearranged, or asked and answered; were it a copy, the judge would learn
to know copies. All is drawn from the seed alone.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from synpro_engine.reward.planted import FAULTS, Fault, reworded, sentences

TRUE, ANSWER = "true", "answer"
_OF_TEXTS = {
    "number swapped": "number", "name swapped": "name", "contradiction": "negation", "invention": "invention",
    "off topic": "another document", "words shuffled": "words shuffled",
}  # fmt: skip
"""Faults of whole texts that are faults of an entry too, and as what; after an omission what is left is still true."""
SENTENCES = 8
"""Of a slice."""
_OF_SENTENCES = 2  # sentences of it that become entries
_FAULTS_EACH = 3
PARTS, MEASURED, CALIBRATED = 6, 5, 4
"""Of the documents, and which of them a judge is measured on and calibrated on; it is fitted to the rest."""
_LONG = re.compile(r"\b[a-z]{5,}\b")
_ASIDE = re.compile(r"\s*\([^)]*\)|(?<=\w), [a-z][^,.;:]{3,50},(?= )| (?:very|also|quite|indeed|already)\b")
_TOPIC_WORDS = (1, 2, 2, 3, 4, 6, 9)
_TOPICS = ("{}", "{}", "{}", "the {}", "{}.", "What is said of {}?", "Why {}?", "What about the {}?")
_LIMITS = re.compile(r"\b(?:not|never|only|without|hardly|almost|nearly|except) ")


def part_of(text: str) -> int:
    """Which of `PARTS` a document or source falls into, by its text alone: all of it on one side, in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % PARTS


class Example(NamedTuple):
    """An entry held against its source; kind: how it came about."""

    source: str
    text: str
    label: bool
    kind: str


@cache
def _synonyms() -> dict[str, list[str]]:
    """What may stand for a word, by the word: one way only, for the other way the sense is often another."""
    lines = (Path(__file__).parent / "synonyms.txt").read_text(encoding="utf-8").splitlines()
    return {word: others for word, *others in (line.split(", ") for line in lines)}


def _said_otherwise(text: str, chance: random.Random) -> str:
    known = _synonyms()
    return re.sub(
        r"[a-z]+", lambda m: chance.choice(known[m[0]]) if m[0] in known and chance.random() < 0.7 else m[0], text
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _shortened(text: str, chance: random.Random) -> str:
    """Up to one of its commas or conjunctions, where enough is said by then."""
    cuts = [m.start() for m in re.finditer(r",? (?:and|but|which|who|because|while|as|where|so|though) |[,;:] ", text)]
    cuts = [at for at in cuts if len(text[:at].split()) >= 5]
    return f"{text[: chance.choice(cuts)]}." if cuts else text


def _turned(text: str, chance: random.Random) -> str:
    """The words before its first comma put last."""
    found = re.match(r"([A-Z][^,.;:]{8,60}), ([^,.;:]{20,})([.]?)$", text)
    return f"{_capital(found[2])}, {found[1][0].lower()}{found[1][1:]}." if found else text


def _without_asides(text: str, chance: random.Random) -> str:
    return _ASIDE.sub("", text)


def _plain(text: str, chance: random.Random) -> str:
    return text


_WAYS = (_plain, _shortened, _shortened, _turned, _without_asides)


def _topic(text: str, chance: random.Random) -> str:
    """An entry with a topic or a question on a line before it, as answers have: a word or two of it, or many."""
    if chance.random() < 0.5:
        return text
    said = re.findall(r"[\w'\u2019-]+", text)
    begins = [i for i, word in enumerate(said) if len(word) > 4]
    if not begins:
        return text
    at = chance.choice(begins)
    topic = " ".join(said[at : at + chance.choice(_TOPIC_WORDS)])
    return f"{_capital(chance.choice(_TOPICS).format(topic))}\n{text}"


def true_ways(sentence: str, chance: random.Random) -> str:
    """The sentence said in another way that is as true."""
    text = chance.choice(_WAYS)(sentence, chance)
    if chance.random() < 0.3:
        text = chance.choice(_WAYS)(text, chance)
    return _said_otherwise(reworded(text) if chance.random() < 0.5 else text, chance)


def _word_swapped(text: str, other: str, chance: random.Random) -> str | None:
    found, words = list(_LONG.finditer(text)), _LONG.findall(other)
    words = [word for word in words if word[:5] not in text.casefold()]
    if not found or not words:
        return None
    place = chance.choice(found)
    ending = [word for word in words if word[-2:] == place[0][-2:]]
    return text[: place.start()] + chance.choice(ending or words) + text[place.end() :]


def _limit_dropped(text: str, other: str, chance: random.Random) -> str | None:
    found = list(_LIMITS.finditer(text))
    if not found:
        return None
    place = chance.choice(found)
    return text[: place.start()] + text[place.end() :]


def _spliced(text: str, other: str, chance: random.Random) -> str | None:
    """The beginning of one sentence and the end of another."""
    mine, theirs = text.split(), other.split()
    if len(mine) < 8 or len(theirs) < 8:
        return None
    a, b = (chance.randint(len(words) // 3, 2 * len(words) // 3) for words in (mine, theirs))
    return " ".join([*mine[:a], *theirs[b:]])


def _parts_swapped(text: str, other: str, chance: random.Random) -> str | None:
    """Two of its words in each other's place, as agent and object."""
    found = [m for m in re.finditer(r"\b[A-Za-z]{4,}\b", text) if m.start()]
    if len(found) < 4:
        return None
    a, b = sorted(chance.sample(range(len(found)), 2))
    first, second = found[a], found[b]
    if first[0].casefold() == second[0].casefold():
        return None
    return text[: first.start()] + second[0] + text[first.end() : second.start()] + first[0] + text[second.end() :]


ENTRY_FAULTS: dict[str, Fault] = {
    **{own: FAULTS[name] for name, own in _OF_TEXTS.items()},
    "word": _word_swapped,
    "omission": _limit_dropped,
    "splice": _spliced,
    "order": _parts_swapped,
}


def _question(sentence: str, text: str, foreign: Sequence[str], chance: random.Random) -> tuple[str, list[str]] | None:
    """A question to which a stretch of the sentence is the answer; wrong answers from near and far."""
    found = [m for m in re.finditer(r"\b(?:[A-Za-z]{4,} )?[A-Za-z]{5,}\b", sentence) if m.start()]
    if not found:
        return None
    place = chance.choice(found)
    asked = f"{sentence[: place.start()]}{chance.choice(['what', 'which', 'what kind'])}{sentence[place.end() :]}"
    near = [word for word in _LONG.findall(text) if word not in sentence]
    far = [word for one in foreign for word in _LONG.findall(one) if word not in text]
    wrong = [chance.choice(words) for words in (near, far, far) if words]
    return f"{true_ways(asked, chance).rstrip('.;: ')}?", [place[0], *wrong]


def planted_examples(
    documents: Sequence[str], seed: int, *, entries: int = _OF_SENTENCES, faults: int = _FAULTS_EACH
) -> Iterator[Example]:
    """Of each document's sentences, a slice's worth at a time: entries in other words, true and with faults.

    entries: sentences of a slice that become entries; faults: of each, kinds that are planted in it.
    """
    slices = [
        parts[at : at + SENTENCES] for parts in map(sentences, documents) for at in range(0, len(parts) - 1, SENTENCES)
    ]
    for place, parts in enumerate(slices):
        others = slices[(place + 1) % len(slices)]
        yield from _of_slice(parts, others, random.Random(f"{seed} {place}"), entries, faults)


def with_faults(pairs: Sequence[Example], seed: int) -> Iterator[Example]:
    """Labelled pairs, and what is true in them with faults planted: people's other words as they are."""
    for place, pair in enumerate(pairs):
        yield pair
        chance, other = random.Random(f"{seed} {place}"), pairs[(place + 1) % len(pairs)].text
        for name in chance.sample(sorted(ENTRY_FAULTS), _FAULTS_EACH if pair.label else 0):
            faulty = ENTRY_FAULTS[name](pair.text, other, chance)
            if faulty is not None and faulty != pair.text:
                yield Example(pair.source, faulty, False, name)


def _of_slice(
    parts: Sequence[str], others: Sequence[str], chance: random.Random, entries: int, faults: int
) -> Iterator[Example]:
    source = " ".join(parts)
    fit = [part for part in parts if 6 <= len(part.split()) <= 60]
    for sentence in chance.sample(fit, min(entries, len(fit))):
        for _ in range(2):
            yield Example(source, _topic(true_ways(sentence, chance), chance), True, TRUE)
        rest = [part for part in fit if part != sentence] or list(others)
        for name in chance.sample(sorted(ENTRY_FAULTS), len(ENTRY_FAULTS))[:faults]:
            other = chance.choice(rest) if name == "splice" else chance.choice(others)
            text = true_ways(sentence, chance)
            faulty = ENTRY_FAULTS[name](text, other, chance)
            if faulty is not None and faulty != text:
                yield Example(source, _topic(faulty, chance), False, name)
        if (asked := _question(sentence, source, others, chance)) is not None:
            question, answers = asked
            for answer in answers:
                between = chance.choice((" ", "\n"))
                yield Example(source, f"{question}{between}{answer}", answer == answers[0], ANSWER)
