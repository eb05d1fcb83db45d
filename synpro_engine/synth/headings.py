"""Headings of answers: each in its own words, and in those that models put in their place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_MARKS = r"[ \t*_`\"'#>~-]"
_COLON = r"[:\uff1a\ufe55\u2236]"
_OF_TEXT = (
    r"(?:\s+(?:based\s+on|for|from|of|about|in)\s+(?:the|your|this)\s+(?:\w+\s+){0,2}(?:text|passage|paragraph))?"
)


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A heading to the letter, and a regular expression of what is said in its place."""

    text: str
    loose: str = "(?!)"

    @property
    def pattern(self) -> str:
        """Either, the other words only where a heading can stand."""
        return rf"{re.escape(self.text)}|(?:^|(?<=[.!,] )){_MARKS}*{self.loose}{_MARKS}*(?:{_COLON}|[.!]?[ \t]*$)"


REPHRASE = Heading(
    text="Here is a paraphrased version:",
    loose=r"here(?:\s+is|['\u2019]s)\s+(?:a|an|the|your|my)\s+(?:(?:para|re)(?:phrased|written|worded)\s+"
    r"(?:version|text)|paraphrase|rewrite|rewording|rephrasing)(?:\s+of\s+(?:the|your|this)\s+(?:\w+\s+){0,2}(?:text|passage"
    r"|paragraph)(?:\s+(?:that\s+)?you\s+(?:gave|provided|sent|shared)(?:\s+me)?)?)?",
)
REFORMAT = Heading(
    text="Here are the structured entries based on the provided text:",
    loose=r"here\s+are\s+(?:the|some|your)\s+(?:structured|study)\s+entries"
    r"(?:\s+(?:based\s+on|for|from)\s+(?:the|your)\s+(?:\w+\s+){0,2}text)?",
)
FAQ = Heading(
    text="Here are the questions and answers based on the provided text:",
    loose=r"(?:here\s+(?:are|is)\s+(?:(?:the|some|your|a|an|\w+)\s+)?)?(?:(?:frequently\s+asked\s+)?questions(?:\s+(?:and|with)"
    r"\s+(?:their\s+)?answers)|frequently\s+asked\s+questions|(?:question|q)\W{1,3}(?:and\W)?(?:answer|a)\s+pairs|faqs?"
    rf"(?:\s+section)?){_OF_TEXT}",
)
TABLE = Heading(
    text="Here is the table based on the provided text:",
    loose=rf"here(?:\s+is|['\u2019]s)\s+(?:a|the|your)\s+(?:\w+\s+)?table(?:\s+(?:that|which)\s+\w+\s+the\s+\w+)?{_OF_TEXT}",
)
TUTORIAL = Heading(
    text="Here is the tutorial based on the provided text:",
    loose=r"here(?:\s+is|['\u2019]s)\s+(?:a|the|your)\s+(?:[\w-]+\s+){0,2}(?:tutorial|guide|lesson)(?:\s+on\s+(?:\w+\s+){0,4}\w+)?"
    rf"{_OF_TEXT}",
)
PROBLEMS = Heading(
    text="Here are the problems and solutions based on the provided text:",
    loose=r"here\s+(?:are|is)\s+(?:(?:the|some|your|a|an|\w+)\s+)?(?:word\s+)?problems?(?:\s+(?:and|with)\s+(?:their\s+|its\s+)?"
    rf"solutions?)?{_OF_TEXT}",
)
BUILT_IN = (REPHRASE, REFORMAT, FAQ, TABLE, TUTORIAL, PROBLEMS)


@dataclass(frozen=True, kw_only=True)
class Headings:
    """The heading that an answer is to have, told from all others."""

    own: Heading

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Any heading; the group `own` is there where it is the one that was asked for."""
        # To the letter, but for the paper's two: a page may have a line "Frequently asked questions" of its own.
        others = "|".join(
            heading.pattern if heading in (REPHRASE, REFORMAT) else re.escape(heading.text)
            for heading in BUILT_IN
            if heading != self.own
        )
        either = rf"(?:(?P<own>{self.own.pattern})|(?P<other>{others}))"
        return re.compile(rf"{either}[ \t*_`\"]*(?=\n|$|[^*_`])", re.IGNORECASE | re.MULTILINE)

    @cached_property
    def exact(self) -> re.Pattern[str]:
        """Any heading to the letter, in any case."""
        texts = dict.fromkeys(heading.text for heading in (self.own, *BUILT_IN))
        return re.compile("|".join(map(re.escape, texts)), re.IGNORECASE)
