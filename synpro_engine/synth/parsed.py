"""What reading an answer gives: a text or a reason, and how much was cut on the way, by cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

MAX_ENTRIES = 8


class Reject(StrEnum):
    """Why a completion gives no document."""

    NO_HEADING = "no_heading"
    """None of the known headings is in the answer (nor an entry, where entries were asked for)."""
    WRONG_HEADING = "wrong_heading"
    """The only heading is another operation's."""
    TRUNCATED = "truncated"
    """The answer had not ended when its tokens were used up (for a list: not even one entry had)."""
    EMPTY = "empty"
    """Nothing after the heading."""
    TOO_SHORT = "too_short"
    """Fewer characters than the operation's least."""
    PLACEHOLDER = "placeholder"
    """Nothing but slots to be filled in, such as `[topic]`."""
    COMMENTARY = "commentary"
    """The answer talks about its own wording, and of nothing else."""
    NO_ENTRIES = "no_entries"
    """No entry, row or step that says something of its own."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """The prompt has more tokens than the settings allow; nothing was generated."""


class Cut(StrEnum):
    """Why a part of an accepted answer is not in its text."""

    PREAMBLE = "preamble"
    """What stands before the heading."""
    HEADING = "heading"
    """The heading once more."""
    SECOND_ANSWER = "second_answer"
    """A heading behind the text, and all that follows it."""
    NEXT_TURN = "next_turn"
    """What follows the end of the turn: the model went on as the user."""
    CHAT_TOKEN = "chat_token"
    """The text of a token that begins or ends a turn."""
    THINKING = "thinking"
    """A block of reasoning with its tags."""
    FENCE = "fence"
    """Marks of a code block around the answer."""
    COMMENTARY = "commentary"
    """Talk about the answer itself, before or after it."""
    OUTSIDE = "outside"
    """Lines between and after entries that belong to none."""
    NO_TOPIC = "no_topic"
    """Entries without a topic."""
    NO_CONTENT = "no_content"
    """Entries without content."""
    PLACEHOLDER = "placeholder"
    """Slots of the prompt's own pattern that were left as they are."""
    ECHO = "echo"
    """Entries whose content only repeats their topic."""
    EXAMPLE = "example"
    """Entries taken from the prompt's example."""
    DUPLICATE = "duplicate"
    """Entries that were there before."""
    TOO_MANY = "too_many"
    """Entries behind the eighth, rows of a table behind the thirtieth."""
    CELLS = "cells"
    """Rows of a table with more or fewer cells than it has columns."""
    UNFINISHED = "unfinished"
    """The last entry of an answer whose tokens were used up."""
    MARKUP = "markup"
    """Bullets, numbers, stars and the like around keys and values."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One part of a text that stands for itself: a topic and what is said of it.

    Of a question it is the answer, of a problem the solution, of a row's first cell the others, of a step what to do.
    """

    topic: str
    content: str

    def __str__(self) -> str:
        return f"- Topic: {self.topic} Content: {self.content}"


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What was read: the text without its heading when `ok`, else why not. A paraphrase has no entries."""

    ok: bool
    text: str
    reason: str | None = None
    """A `Reject`, or in an operation of the user's own what its parser says."""
    entries: tuple[Entry, ...] = ()
    exact: bool = True
    """Whether it begins with the operation's heading to the letter (in any case) and has no other: the form that tuning
    rewards. An answer that was read may lack it."""
    cut: Mapping[Cut, int] = field(default_factory=dict)
    """Characters of the answer, white space aside, that are not in the text, by cause: with those of the text, and of
    the form that was asked for, they are all of them. Empty where the answer is refused."""


def size(text: str) -> int:
    """Characters that are not white space."""
    return sum(map(len, text.split()))
