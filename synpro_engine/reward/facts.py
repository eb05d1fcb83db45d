"""Facts planted in real text, to see whether a rewriting keeps them: a number, a name and a date in one sentence.

They are drawn anew for each text and stand nowhere else in it, so that what is found in a rewriting was kept. Read by
patterns: a date in any usual order, a number in digits. One that is spelt out in words counts as lost, alike each time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from synpro_engine.reward.planted import NAMES, joined, sentences

KINDS = ("number", "name", "date")
_SENTENCES = (
    "On {date} the sum of {number} dollars was paid for it to a Mr. {name}.",
    "A Mr. {name}, who had {number} men with him, left for Vienna on {date}.",
    "A report of {date} by Professor {name} counts {number} cases of it.",
)
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_DRAWS = 20


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A text with a sentence more, and what that says."""

    text: str
    number: int
    name: str
    year: int
    month: int
    day: int

    def kept_by(self, text: str) -> Mapping[str, bool]:
        """Whether each of `KINDS` stands in `text`."""
        return {kind: re.search(pattern, text, re.IGNORECASE) is not None for kind, pattern in self._patterns().items()}

    def _patterns(self) -> dict[str, str]:
        month = _MONTHS[self.month - 1]
        named = rf"(?:{month}|{month[:3]}t?\.?)"
        day, year = rf"0?{self.day}(?:st|nd|rd|th)?", rf"{self.year}\b"
        orders = (
            rf"\b(?:the\s+)?{day}\s+(?:day\s+)?(?:of\s+)?{named},?\s+(?:of\s+)?{year}",
            rf"\b{named}\s+(?:the\s+)?{day},?\s+(?:of\s+)?{year}",
            rf"\b{self.year}-{self.month:02}-{self.day:02}\b",
        )
        return {
            # No part of a larger number.
            "number": rf"(?<![\d.,]){self.number}(?![\d]|[.,]\d)",
            "name": rf"\b{self.name}\b",
            "date": "|".join(orders),
        }


def plant_facts(text: str, seed: str) -> Planted | None:
    """`text` with a sentence behind one of its own, by random numbers of `seed`; None where nothing fits.

    The sentence is drawn until the text has nothing of it.
    """
    chance, parts = random.Random(seed), sentences(text)
    for _ in range(_DRAWS if parts else 0):
        drawn = {
            "number": chance.randint(112, 989), "name": chance.choice(NAMES), "year": chance.randint(1801, 1999),
            "month": chance.randint(1, 12), "day": chance.randint(1, 28),
        }  # fmt: skip
        told = Planted(text=text, **drawn)
        date = f"{told.day} {_MONTHS[told.month - 1]} {told.year}"
        sentence = chance.choice(_SENTENCES).format(date=date, number=told.number, name=told.name)
        at = chance.randrange(len(parts))
        if not any(told.kept_by(text).values()):
            parts[at] += f" {sentence}"
            return Planted(text=joined(parts, text), **drawn)
    return None
