"""Reading what a generator wrote: exactly one known heading, then a text or a list of entries.

Knows the two answer formats and why an answer is refused; never raises, whatever the text. It does not see the
source, so it cannot say whether an answer is true.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum

REPHRASE_HEADING = "Here is a paraphrased version:"
REFORMAT_HEADING = "Here are the structured entries based on the provided text:"
HEADINGS = (REPHRASE_HEADING, REFORMAT_HEADING)
MAX_ENTRIES = 8


class Reject(StrEnum):
    """Why a completion gives no document."""

    NO_HEADING = "no_heading"
    """None of the known headings is in the answer."""
    WRONG_HEADING = "wrong_heading"
    """The heading is the other operation's."""
    TWO_HEADINGS = "two_headings"
    """More than one known heading, or one twice."""
    PREAMBLE = "preamble"
    """Something stands before the heading."""
    TRUNCATED = "truncated"
    """The answer had not ended when its tokens were used up (for a list: not even one entry had)."""
    EMPTY = "empty"
    """Nothing after the heading."""
    TOO_SHORT = "too_short"
    """Fewer characters than the operation's least."""
    PLACEHOLDER = "placeholder"
    """A bracket that asks to be filled in, such as `[topic]`, was left in."""
    COMMENTARY = "commentary"
    """The answer talks about its own wording from the start."""
    NO_ENTRIES = "no_entries"
    """No line has the form `- Topic: ... Content: ...` and says something of its own."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """The prompt has more tokens than the settings allow; nothing was generated."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a reformatted text."""

    topic: str
    content: str

    def __str__(self) -> str:
        return f"- Topic: {self.topic} Content: {self.content}"


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What was read: the text without its heading when `ok`, else why not. Only a reformatted text has entries."""

    ok: bool
    text: str
    reason: Reject | None = None
    entries: tuple[Entry, ...] = ()


_HEADING = re.compile("|".join(re.escape(heading) for heading in HEADINGS), re.IGNORECASE)
# Brackets are part of honest text ("[applause]", "[sic]"): only those that ask to be filled in count.
_SLOT_WORDS = r"topic|content|insert|your|text|name|title|entry|fact|detail|placeholder|date|number|source|summary"
_PLACEHOLDER = re.compile(
    rf"\[\s*(?:\.\.\.|\u2026|[^\[\]\n]{{0,40}}\b(?:{_SLOT_WORDS})s?\b[^\[\]\n]{{0,40}})\s*\]"
    rf"|[<{{]\s*(?:{_SLOT_WORDS})s?\s*[>}}]",
    re.IGNORECASE,
)
_OWN_WORK = re.compile(
    r"\W{0,8}(?:note:\s*)?(?:in this|this is the|the (?:above|original|rewritten|rephrased|revised)"
    r"|I(?:['\u2019]ve| have| will)?(?: also)?"
    r" (?:made|changed|rephrased|rewrote|rewritten|reworded|added|replaced|adjusted|kept|preserved|make))\b",
    re.IGNORECASE,
)
_WORDING = re.compile(
    r"\b(?:clarity|grammar|grammatical\w*|rephras\w+|paraphras\w+|reword\w+|layout"
    r"|(?:original|rewritten|edited|rephrased|input) (?:text|message|sentence|paragraph|version|meaning|tone))\b",
    re.IGNORECASE,
)
_ENTRY = re.compile(r"[ \t]*[-*\u2022][ \t]*Topic:(?P<topic>.*?)\bContent:(?P<content>.*)", re.IGNORECASE)


def _refused(reason: Reject) -> Parsed:
    return Parsed(ok=False, text="", reason=reason)


def _body(raw: str, heading: str) -> str | Reject:
    """What follows the heading, or why the headings are not as they must be."""
    found = list(_HEADING.finditer(raw))
    if not found:
        return Reject.NO_HEADING
    if len(found) > 1:
        return Reject.TWO_HEADINGS
    if found[0].group().lower() != heading.lower():
        return Reject.WRONG_HEADING
    if raw[: found[0].start()].strip():
        return Reject.PREAMBLE
    return raw[found[0].end() :].strip()


def _without_commentary(body: str) -> tuple[str, bool]:
    """The text up to the first paragraph that speaks of the rewording itself, and whether there is such a one.

    Small instruct models like to end with one; what precedes it is whole.
    """
    for paragraph in re.finditer(r"(?:^|\n\s*\n)(?P<text>[^\n]+)", body):
        line = paragraph["text"][:400]
        if _OWN_WORK.match(line) and _WORDING.search(line):
            return body[: paragraph.start()].rstrip(), True
    return body, False


def parse_rephrase(raw: str, *, min_chars: int, finished: bool = True) -> Parsed:
    """Read a paraphrase; `finished` says whether the generator ended it itself. Closing commentary is cut off."""
    body = _body(raw, REPHRASE_HEADING)
    if isinstance(body, Reject):
        return _refused(body)
    if not body:
        return _refused(Reject.EMPTY)
    text, cut = _without_commentary(body)
    if not finished and not cut:
        return _refused(Reject.TRUNCATED)
    if not text:
        return _refused(Reject.COMMENTARY)
    if len(text) < min_chars:
        return _refused(Reject.TOO_SHORT)
    if _PLACEHOLDER.search(text):
        return _refused(Reject.PLACEHOLDER)
    return Parsed(ok=True, text=text)


def _says_something(entry: Entry, example_words: Set[str]) -> bool:
    """Whether an entry has content of its own: no mere echo of its topic, nor taken from the prompt's example."""
    topic, content = _words(entry.topic), _words(entry.content)
    if not topic or not content or topic == content:
        return False
    # Short words are everywhere; that most of several longer ones come from the example is no accident.
    telling = {word for word in content if len(word) > 3}
    return len(telling & example_words) <= max(2, 0.6 * len(telling))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _entries(body: str, finished: bool, example: str) -> list[Entry]:
    """The first entries, each once. The last line of an unfinished answer is not whole, so it is left out."""
    example_words = set(_words(example))
    lines = body.split("\n")
    if not finished:
        lines = lines[:-1]
    found: dict[Entry, None] = {}
    for line in lines:
        if match := _ENTRY.match(line):
            entry = Entry(topic=match["topic"].strip(), content=match["content"].strip())
            if _says_something(entry, example_words):
                found[entry] = None
    return list(found)[:MAX_ENTRIES]


def parse_reformat(raw: str, *, min_chars: int, finished: bool = True, example: str = "") -> Parsed:
    """Read up to 8 entries, one a line; other lines, repeated and further entries are left out.

    So are entries that only echo their topic, or that are taken from the `example` which the prompt shows: small
    models do both. Each entry stands for itself, so an answer that was cut off has lost its last line only; it is
    refused when no whole entry remains.
    """
    body = _body(raw, REFORMAT_HEADING)
    if isinstance(body, Reject):
        return _refused(body)
    if not body:
        return _refused(Reject.EMPTY)
    entries = _entries(body, finished, example)
    if not entries:
        return _refused(Reject.NO_ENTRIES if finished else Reject.TRUNCATED)
    text = "\n".join(map(str, entries))
    if _PLACEHOLDER.search(text):
        return _refused(Reject.PLACEHOLDER)
    if sum(len(entry.content) for entry in entries) < min_chars:
        return _refused(Reject.TOO_SHORT)
    return Parsed(ok=True, text=text, entries=tuple(entries))
