"""The two keys of an entry, such as `Topic` and `Content`, in all the shapes that models give them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_COLON = r"[:\uff1a\ufe55\u2236]"
# Dashes, dots, arrows, boxes, stars, ticks and pictures; marks of direction and width, which are not seen.
_SYMBOLS = (
    r"-*+>|\u00b7\u00bb\u200b\u200e\u200f\u2010-\u2015\u2022-\u2027\u203a\u203b\u2043\u2060\u2190-\u21ff\u2219\u22c5"
    r"\u25a0-\u27bf\u2b00-\u2bff\u30fb\ufeff\U0001f300-\U0001faff"
)
_BULLET = (
    rf"(?:[{_SYMBOLS}]\ufe0f?|#{{1,6}}(?:\d{{1,3}}\b)?|[(\[]?\d{{1,3}}(?:\.\d{{1,3}}){{0,3}}[.):\]]|\d\ufe0f?\u20e3"
    r"|\[[ xX]?\]|(?:Entry|Item)\s*\d+\s*[:.)-])"
)
# At the start of a line a bare number or a letter is one too, and a number's mark may stand outside of its stars.
_LABEL = (
    rf"(?:{_BULLET}|\d{{1,3}}(?:\.\d{{1,3}}){{0,3}}(?=[ \t])|\(?[A-Za-z][.)]|[ivxIVX]{{1,4}}[.)]"
    r"|\*\*\d{1,3}[.):]?\*\*[.):]?)"
)
_MARK = r"[*_`\"]{0,3}"
_GAP = r"[ \t]{0,4}"  # bounded: spaces without end would be gone through again and again
_BEFORE = rf"[ \t]*(?:{_LABEL}{_GAP}){{0,4}}{_MARK}"
BEFORE_BARE = rf"[ \t]*(?:{_LABEL}{_GAP}){{0,4}}[*_]{{0,3}}(?:\d{{1,3}}[.):]{_GAP})?[*_]{{0,3}}"
"""What may stand before a first part without its key."""
_NUMBER = rf"(?:{_GAP}#?\d{{1,3}})?"
_DASH = r"[ \t][\u2013\u2014-][ \t]"
NOTHING_SAID = re.compile(r"(?:[\W\d_]|Entry|Item)*", re.IGNORECASE)
DOTS = re.compile(r"\W*(?:\.\.\.|\u2026)\W*")
_SLOT_WORDS = (
    "insert|your|the|a|an|of|this|that|for|from|entry|entries|text|here|topic|content|title|fact|details?"
    "|placeholder|summary|short|brief|name|goes|input|rewritten|paraphrased"
)
LONGEST_SLOT = 80  # characters


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What stands before the two parts of an entry, as regular expressions of all the words for it."""

    first: str
    second: str
    slots: str = ""
    """Words, beside those that all forms have, that a slot of the prompt's pattern may be made of."""
    asks: bool = False
    """Whether the first part is a question, which is known for one without its key, where no first part has one."""
    lines: bool = False
    """Whether the second part keeps its lines and goes on behind a blank one, up to the next entry."""

    def _name(self, key: str) -> str:
        return rf"(?:\[{key}{_NUMBER}\]|[\u201c\u2018']{key}[\u201d\u2019']|{key}{_NUMBER}){_GAP}{_MARK}{_GAP}"

    @cached_property
    def head(self) -> re.Pattern[str]:
        """The first key at the start of a line."""
        return re.compile(rf"{_BEFORE}{self._name(self.first)}(?:{_COLON}|{_DASH}){_MARK}", re.IGNORECASE)

    @cached_property
    def body(self) -> re.Pattern[str]:
        """The second key at the start of a line."""
        return re.compile(rf"{_BEFORE}{self._name(self.second)}(?:{_COLON}|{_DASH}|$){_MARK}", re.IGNORECASE)

    @cached_property
    def body_within(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """The second key within a line: with its capital letter, and in any case."""
        # It needs more than one at the start: a colon, and no letter before it.
        pattern = (
            rf"{_GAP}(?:[-=]>|<br[ \t]?/?>|[|;,(/\u2192\u21d2\u2013\u2014-]){{0,3}}{_GAP}"
            rf"{_MARK}(?<![^\W_]){self._name(self.second)}{_COLON}{_MARK}"
        )
        return re.compile(pattern), re.compile(pattern, re.IGNORECASE)

    @cached_property
    def head_within(self) -> re.Pattern[str]:
        """The first key within a line, behind a bullet or a full stop."""
        # No quotation mark: a text may cite such a line.
        before = rf"(?:(?<=[.!?\u3002|]){_GAP}|(?<=[ \t]){_BULLET}{_GAP})[*_`]{{0,3}}"
        return re.compile(rf"{before}{self._name(self.first)}{_COLON}")

    @cached_property
    def _words(self) -> str:
        return rf"(?:(?:{_SLOT_WORDS}{'|' * bool(self.slots)}{self.slots})\b[\W\d]*)+"

    @cached_property
    def slot(self) -> re.Pattern[str]:
        """Square brackets that ask to be filled in."""
        return re.compile(rf"\[\s*(?:{self._words}|\.\.\.|\u2026)\s*\]\W*", re.IGNORECASE)

    @cached_property
    def tag_slot(self) -> re.Pattern[str]:
        """The same with other brackets."""
        return re.compile(rf"(?:<\s*{self._words}>|\{{\s*{self._words}\}})\W*", re.IGNORECASE)

    def is_slot(self, text: str) -> bool:
        """Whether a text is nothing but a slot in square brackets, such as `[topic]`."""
        return len(text) <= LONGEST_SLOT and self.slot.fullmatch(text) is not None


TOPIC_CONTENT = Keys(first="Topics?", second="Contents?")
