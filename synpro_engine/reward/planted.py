"""Faults planted in real text, to see which of them a judge sees. Each changes one thing and leaves the rest.

A fault is a function of a text, another document's text and a generator of random numbers; None where the text has
nothing to plant it in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

Fault = Callable[[str, str, random.Random], str | None]

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'A-Z])")
_NUMBER = re.compile(r"\b\d[\d,]*\b")
_LONGEST = 30
"""Characters of a number; Python converts none of thousands of digits, which a generator may well write."""
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b")
_VERB = re.compile(r"\b(is|are|was|were|has|have|had|will|shall|can|may|must|should|would|could)\b(?! not\b)")
_REWORDED = (
    ("shall", "will"), ("upon", "on"), ("which", "that"), ("whilst", "while"), ("therefore", "so"), ("hence", "so"),
    ("however", "yet"), ("citizens", "people"), ("persons", "people"), ("nation", "country"), ("commence", "begin"),
    ("obtain", "get"), ("purchase", "buy"), ("receive", "get"), ("large", "big"), ("great", "large"),
    ("many", "a good many"), ("because", "since"), ("although", "though"), ("must", "has to"), ("may", "might"),
    ("also", "too"), ("very", "quite"), ("several", "a number of"), ("during", "in the course of"),
    ("regarding", "about"), ("concerning", "about"), ("assistance", "help"), ("aid", "help"), ("begin", "start"),
    ("end", "close"), ("make", "bring about"), ("made", "brought about"), ("give", "grant"), ("given", "granted"),
    ("necessary", "needed"), ("important", "weighty"), ("new", "fresh"), ("last", "past"), ("present", "current"),
    ("year", "twelvemonth"), ("whole", "entire"), ("ought to", "should"), ("such", "this kind of"), ("every", "each"),
)  # fmt: skip
_WORDS = dict(_REWORDED)
_WORD = re.compile(rf"\b({'|'.join(sorted(map(re.escape, _WORDS), key=len, reverse=True))})\b")
_INVENTED = (
    "In {year} the sum of {n} dollars was paid for it to a Mr. {name}.",
    "{name}, who had {n} men with him, left for Vienna in {year}.",
    "A report of {year} by Professor {name} counts {n} cases of it.",
)
NAMES = ("Thornbury", "Kessel", "Whitlock", "Marchetti", "Ostrow")


def sentences(text: str) -> list[str]:
    """The sentences of English prose, about."""
    return [part for part in _SENTENCE.split(text.strip()) if part]


def joined(parts: Sequence[str], text: str) -> str:
    """As many sentences as `text` has, with its own breaks between them: its layout stays."""
    breaks = [*_SENTENCE.findall(text.strip()), ""]
    return "".join(part + gap for part, gap in zip(parts, breaks, strict=True))


def reworded(text: str) -> str:
    """The same said with some other words: what is true must not be told from what is false by being a copy."""
    return _WORD.sub(lambda found: _WORDS[found[0]], text)


def _shuffled(text: str, other: str, chance: random.Random) -> str | None:
    parts = sentences(text)
    order = parts[:]
    for _ in range(10):
        chance.shuffle(order)
        if order != parts:
            return joined(order, text)
    return None


def _number_swapped(text: str, other: str, chance: random.Random) -> str | None:
    found = [place for place in _NUMBER.finditer(text) if len(place[0]) <= _LONGEST]
    if not found:
        return None
    place = chance.choice(found)
    value = int(place[0].replace(",", ""))
    wrong = value + chance.choice([-1, 1]) * max(1, value // chance.randint(3, 9))
    return text[: place.start()] + str(max(0, wrong) if wrong != value else value + 1) + text[place.end() :]


def _name_swapped(text: str, other: str, chance: random.Random) -> str | None:
    names = sorted(set(_NAME.findall(text)))
    others = sorted(set(_NAME.findall(other)) - set(names)) or list(NAMES)
    if not names:
        return None
    return re.sub(rf"\b{chance.choice(names)}\b", chance.choice(others), text)


def _contradicted(text: str, other: str, chance: random.Random) -> str | None:
    found = list(_VERB.finditer(text))
    if not found:
        return None
    place = chance.choice(found)
    return f"{text[: place.end()]} not{text[place.end() :]}"


def _invented(text: str, other: str, chance: random.Random) -> str | None:
    invention = chance.choice(_INVENTED).format(
        year=chance.randint(1801, 1999), n=chance.randint(12, 980), name=chance.choice(NAMES)
    )
    parts = sentences(text)
    at = chance.randrange(len(parts))
    parts[at] += f" {invention}"
    return joined(parts, text)


def _omitted(text: str, other: str, chance: random.Random) -> str | None:
    parts = sentences(text)
    if len(parts) < 2:
        return None
    for i in chance.sample(range(len(parts)), (len(parts) + 1) // 2):
        parts[i] = ""
    return re.sub(r" {2,}", " ", joined(parts, text)).strip()


def _off_topic(text: str, other: str, chance: random.Random) -> str | None:
    return reworded(other)


def _loop(text: str, other: str, chance: random.Random) -> str | None:
    parts = sentences(text)
    if len(parts) < 2:
        return None
    return joined([chance.choice(parts)] * len(parts), text)


def _words_shuffled(text: str, other: str, chance: random.Random) -> str | None:
    words = text.split()
    chance.shuffle(words)
    left = iter(words)
    return re.sub(r"\S+", lambda found: next(left), text)


def _relaid(text: str, other: str, chance: random.Random) -> str | None:
    """A list for prose."""
    return "\n".join(f"- {part}" for part in sentences(text))


FAULTS: dict[str, Fault] = {
    "sentences shuffled": _shuffled,
    "words shuffled": _words_shuffled,
    "number swapped": _number_swapped,
    "name swapped": _name_swapped,
    "contradiction": _contradicted,
    "invention": _invented,
    "omission": _omitted,
    "off topic": _off_topic,
    "loop": _loop,
    "list for prose": _relaid,
}
"""All but the copy, which is the source itself, by name."""
