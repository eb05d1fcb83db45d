"""Questions that stand without a key: numbered, bold, as a heading, or alone on a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synpro_engine.synth.commentary import is_talk
from synpro_engine.synth.keys import BEFORE_BARE

_OPENING = re.compile(BEFORE_BARE)
_WHOLE = re.compile(r"(?P<question>\S.*[?\uff1f])(?P<close>[*_`\"]{0,3})[ \t]*")
# The first mark that a space, stars or the end of the line follow: not that of an address or of "(?)".
_BEGUN = re.compile(r"(?P<question>[^?\uff1f]+[?\uff1f])(?P<close>[*_]{0,3})(?=\s|$)[ \t]*(?P<rest>.*)")
_SENTENCE_END = re.compile(r"[.!]\s")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and what stands behind it on its line."""

    text: str
    rest: str
    marked: bool
    """Whether a number, a bullet, a heading's sign or stars show that it begins something."""


def question_in(line: str, *, marked: bool = False) -> Question | None:
    """The question that a line is or begins with. marked: that it begins something is known without a mark."""
    opening = _OPENING.match(line)
    assert opening is not None, "it matches the empty text"
    behind = line[opening.end() :]
    # All of it, where the line ends so: of two questions in a row neither is the other's answer.
    match = _WHOLE.fullmatch(behind) or _BEGUN.fullmatch(behind)
    if match is None or is_talk(line):
        return None
    rest = match.groupdict().get("rest") or ""
    marked = marked or bool(opening.group().strip())
    if not marked and (rest or _SENTENCE_END.search(match["question"])):
        return None  # prose in which something is asked
    return Question(text=match["question"], rest=rest.strip(), marked=marked)


def question_reader(lines: Sequence[str]) -> Callable[[str], Question | None]:
    """What tells the questions among these lines: where one is marked, the others have to be."""
    marked = any(found.marked for found in map(question_in, lines) if found is not None)

    def read(line: str) -> Question | None:
        found = question_in(line)
        return found if found is not None and found.marked == marked else None

    return read
