"""A question with a few allowed answers, each worth a number. What is none of them is unreadable, and never a value.

A reply is untrusted text, and so are the texts that are asked about.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from synpro_engine.config import json_text

_LEAST_MASS = 0.5
"""Of the probabilities, on allowed answers: with less, the judge was about to say something else."""
_LONGEST = 200
"""Characters of a line that may be an answer with a few words around it."""
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_LABEL = r"(?:(?:the\s+)?(?:final\s+|overall\s+)*(?:answer|score|rating|label|verdict)\s*(?:is\b)?\s*[:=]?\s*)?"
_MARKS = r"[\s*_`\"'()\[\]{}.]*"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its allowed answers.

    values: what an answer is worth, by the ways in which it may be written (in any case). meanings: the answers as they
    are described to an endpoint that chooses among them. suffix: what may stand behind an answer.
    """

    words: str
    values: Mapping[str, float]
    meanings: Mapping[str, str]
    suffix: str = ""

    @property
    def version(self) -> str:
        """16 hex digits of SHA-256 over all that a judge is shown beside the texts, and what its answers are worth."""
        shown = [self.words, dict(self.values), dict(self.meanings), self.suffix]
        return hashlib.sha256(json_text(shown).encode()).hexdigest()[:16]

    def ask(self, text: str, source: str) -> str:
        """The question about one text. What the texts say is not looked at: a placeholder in them stays as it is."""
        pieces = re.split(r"(\{text\}|\{source\})", self.words)
        return "".join({"{text}": text, "{source}": source}.get(piece, piece) for piece in pieces)

    @cached_property
    def _written(self) -> re.Pattern[str]:
        names = "|".join(re.escape(name) for name in sorted(self.values, key=len, reverse=True))
        # A letter with its meaning behind it ("B: Unfaithful_Topic") is one answer, as long as both say the same.
        return re.compile(
            rf"{_MARKS}{_LABEL}{_MARKS}(?P<first>{names})(?:{_MARKS}[:.)-]+{_MARKS}(?P<second>{names}))?"
            rf"{self.suffix}{_MARKS}",
            re.IGNORECASE,
        )

    def read(self, reply: str, *, cut: bool = False) -> float | None:
        """What a written reply is worth: the whole of it, or its last line, must be an answer; else None.

        cut: it was ended by its longest length, so its last line is not the last that the judge wanted to write.
        """
        text = _THOUGHT.sub("", reply).strip()
        for part in (text,) if cut else (text, text.rpartition("\n")[2]):
            if len(part) <= _LONGEST and (found := self._written.fullmatch(part)) is not None:
                values = {self._by_name[name.casefold()] for name in found.groups() if name is not None}
                return values.pop() if len(values) == 1 else None
        return None

    @cached_property
    def _by_name(self) -> dict[str, float]:
        return {name.casefold(): value for name, value in self.values.items()}

    def weigh(self, probabilities: Mapping[str, float]) -> float | None:
        """The mean over allowed answers, by the probabilities of the tokens that begin them; None for too little."""
        mass = total = 0.0
        for token, probability in probabilities.items():
            begun = token.strip().casefold()
            # One token may begin several answers: it counts where these are worth the same.
            values = {value for name, value in self._by_name.items() if begun and name.startswith(begun)}
            if len(values) == 1 and 0.0 <= probability <= 1.0 + 1e-6:
                mass, total = mass + probability, total + probability * values.pop()
        return total / mass if mass >= _LEAST_MASS else None
