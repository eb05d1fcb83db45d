"""Reading entries of two parts such as `Topic: ... Content: ...`, however a model laid them out.

Bullets, numbers, markdown and line breaks may stand around the two keys. Everything between a content's key and the
next key, blank line or heading is the content. What becomes no entry is counted; an entry that says nothing is left out
alone.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace

from synpro_engine.data.word_pattern import WORD
from synpro_engine.synth.cleaning import FENCE
from synpro_engine.synth.commentary import is_talk
from synpro_engine.synth.keys import DOTS, LONGEST_SLOT, NOTHING_SAID, Keys
from synpro_engine.synth.parsed import MAX_ENTRIES, Cut, Entry, size
from synpro_engine.synth.questions import Question, question_in, question_reader

_INDENTED = re.compile(r"[ \t]+\S")
_BREAK = re.compile(
    r"\W{3,}$|[ \t]*(?:#{1,6}[ \t]|(\*\*|__)[^*_]+\1:?[ \t]*$|(?:Entry|Item)[ \t]*\d+\W*$)", re.IGNORECASE
)
_ENTRY_BREAK = re.compile(
    r"[ \t]*(?:[-=*_#]{3,}|(?:\#{1,6}[ \t]+)?(?:\*\*|__)?(?:Entry|Item|Problem|Question)[ \t]*\d+\W*)$", re.IGNORECASE
)
MARKS = ("***", "**", "__", "`", "*", "_")  # of emphasis and code; the longer before those that they begin with
_OWN_BULLET = re.compile(r"[-*+\u2022\u2013][ \t]+(?=\S)")
_BLOCK_SIGNS = {"|", ">", "|-", ">-"}  # YAML's, for a text on the lines below
# Every kind of space is one, and every kind of line end.
_SPACES = str.maketrans(
    {**dict.fromkeys("\u00a0\u2007\u202f\u3000", " "), **dict.fromkeys("\u2028\u2029\x0b\x0c\x85", "\n")}
)


@dataclass
class _Draft:
    """An entry while it is read; None where a key has not come."""

    topic: list[str] | None = None
    content: list[str] | None = None
    closed: bool = False
    asked: bool = False
    """Whether the topic is whole, as a question without its key is: the next line is the content."""
    raw: list[str] = field(default_factory=list)


def read_entries(
    body: str, cut: Counter[Cut], keys: Keys, *, finished: bool, headed: bool, example: str, most: int = MAX_ENTRIES
) -> list[Entry]:
    """The first entries that say something, each once; the last one of an unfinished answer is not whole.

    headed: whether a heading says what the answer is, without which a question is known by its key alone.
    """
    example_words = words_of(example)
    # One kind of space and of line end first: every pattern below may then ask for the plain ones.
    lines = [line.rstrip() for line in _lines(body.translate(_SPACES), keys)]
    drafts = list(_drafts(lines, cut, keys, _questions_without_answer_key(lines, keys, headed)))
    # An entry that something follows is whole even in an answer that was cut off.
    if not finished and drafts and not drafts[-1].closed:
        cut[Cut.UNFINISHED] += sum(map(size, drafts.pop().raw))
    if drafts and drafts[0].content is not None and not _value(drafts[0].topic):
        drafts = _of_contents_first(drafts, finished)
    # A dict for its order: it is a set that keeps the sequence of the answer.
    entries: dict[Entry, None] = {}
    for draft in drafts:
        topic = (
            _OWN_BULLET.sub("", _value(draft.topic), count=1)
            if draft.topic and not draft.topic[0].strip()
            else _value(draft.topic)
        )
        content = _lines_of(draft.content) if keys.lines else _value(draft.content)
        entry = Entry(topic=topic.rstrip("|;, "), content=content)
        fault = fault_of(entry, example_words, keys)
        if fault is None and entry in entries:
            fault = Cut.DUPLICATE
        if fault is None and len(entries) == most:
            fault = Cut.TOO_MANY
        if fault is None:
            entries[entry] = None
        else:
            cut[fault] += sum(map(size, draft.raw))
    return list(entries)


def _questions_without_answer_key(lines: Sequence[str], keys: Keys, headed: bool) -> Callable[[str], Question | None]:
    """What tells the questions whose answers stand plainly behind them, on their line or the next."""
    if not keys.asks:
        return lambda line: None
    if not any(map(keys.head.match, lines)):
        return question_reader(lines) if headed else lambda line: None
    strict, loose = keys.body_within
    if any(keys.body.match(line) or strict.search(line) or loose.search(line) for line in lines):
        return lambda line: None

    def keyed(line: str) -> Question | None:
        key = keys.head.match(line)
        return question_in(line[key.end() :], marked=True) if key else None

    return keyed


def _of_contents_first(drafts: list[_Draft], finished: bool) -> list[_Draft]:
    """Drafts whose first one lacks its topic, with that which belongs to each content.

    An answer that ends with a topic puts every topic behind its content. One that was cut off does not show whether it
    does, or only left the first topic out: rather no topics than those of others.
    """
    if not finished:
        return [replace(draft, topic=None) for draft in drafts]
    if drafts[-1].content is not None:
        return drafts
    pairs = itertools.pairwise(drafts)
    return [replace(one, topic=two.topic, raw=[*(one.content or ()), *(two.topic or ())]) for one, two in pairs]


def _drafts(
    lines: Sequence[str], cut: Counter[Cut], keys: Keys, asked_in: Callable[[str], Question | None]
) -> Iterator[_Draft]:
    """Entries as they are laid out; lines that belong to none are counted. A closed one has something behind it."""
    draft, blank = None, False
    for line in lines:
        topic, content, question = keys.head.match(line), keys.body.match(line), asked_in(line)
        if topic or question or (content and (draft is None or draft.content is not None)):
            if draft is not None:
                draft.closed = True
                yield draft
            draft = _Draft()
        if not line.strip():
            blank = True
        elif draft is None:
            cut[kind_of(line)] += size(line)
        elif question:
            draft.topic, draft.asked, draft.raw = [question.text], True, [line]
            draft.content = [question.rest] if question.rest else None
        elif topic:
            _begin(draft, line, topic.end(), keys)
        elif content:
            draft.content = [line[content.end() :]]
            draft.raw.append(line)
        elif _ends(draft, line, blank, keys):
            cut[kind_of(line)] += size(line)
            draft.closed = True
            yield draft
            draft = None
        else:
            _go_on(draft, line, keys)
        blank = not line.strip()
    if draft is not None:
        yield draft


def _ends(draft: _Draft, line: str, blank: bool, keys: Keys) -> bool:
    """Whether a line, which may stand behind a blank one, belongs to the draft no more."""
    if kind_of(line) != Cut.OUTSIDE:
        return True
    if draft.asked if draft.content is None else not any(map(str.strip, draft.content)):
        return False  # the content is still to come, however it looks
    if keys.lines and draft.content is not None:
        return _ENTRY_BREAK.match(line) is not None
    return _BREAK.match(line) is not None or (blank and not _INDENTED.match(line))


def kind_of(line: str) -> Cut:
    """What a line is that belongs to no entry."""
    if FENCE.match(line):
        return Cut.FENCE
    return Cut.COMMENTARY if is_talk(line) else Cut.OUTSIDE


def _lines(body: str, keys: Keys) -> Iterator[str]:
    """Lines, each of one entry at most."""
    for line in body.split("\n"):
        at = 0
        leading = keys.head.match(line)
        # Behind the key at the head, which would otherwise be found again as one within the line.
        for match in keys.head_within.finditer(line, leading.end() if leading else 0):
            if not NOTHING_SAID.fullmatch(line, at, match.start()):  # else it is the key's own bullet or number
                yield line[at : match.start()]
                at = match.start()
        yield line[at:]


def _begin(draft: _Draft, line: str, at: int, keys: Keys) -> None:
    draft.topic = []
    while twice := keys.head.match(line, at):  # a key behind the prompt's own
        at = twice.end()
    _go_on(draft, line[at:], keys)
    draft.raw = [line]


def _go_on(draft: _Draft, line: str, keys: Keys) -> None:
    """Add a line, whose content may begin within it."""
    draft.raw.append(line)
    if draft.content is not None:
        draft.content.append(line)
        return
    if draft.asked:
        draft.content = [_OWN_BULLET.sub("", line.lstrip(), count=1)]
        return
    assert draft.topic is not None, "a draft begins with a key"
    # The strict form first: a lower-case "content:" may be a word of the topic when a proper key follows.
    strict, loose = keys.body_within
    key = strict.search(line) or loose.search(line)
    if key is None:
        draft.topic.append(line)
    else:
        draft.topic.append(line[: key.start()])
        content = line[key.end() :]
        draft.content = [content.rstrip().removesuffix(")") if "(" in key.group() else content]


def _lines_of(lines: list[str] | None) -> str:
    """Lines as they were, without blank ones around them and marks that belong to their key."""
    return "\n".join(line.rstrip() for line in lines or []).strip("\n*_ ")


def _value(lines: list[str] | None) -> str:
    """On one line, without a table's edges, and without marks around it or left over at an end."""
    lines = lines or []
    lines = lines[1:] if lines and lines[0].strip() in _BLOCK_SIGNS else lines
    text = " ".join(" ".join(lines).split()).strip(" |")
    for mark in MARKS:
        inner = within_pair(text, mark)
        if inner is not None:
            text = inner
        # An odd mark has lost its partner, which stood around the key; pairs within the text are emphasis and stay.
        elif text.count(mark) % 2:  # a single star before a text is a bullet of its own
            text = text.removeprefix(f"{mark} " if len(mark) > 1 else "").removesuffix(mark).strip()
    return text


def within_pair(text: str, mark: str) -> str | None:
    """What one pair of a mark stands around; None where it does not stand around all of the text."""
    inner = text[len(mark) : -len(mark)]
    is_pair = len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark) and mark not in inner
    return inner.strip() if is_pair else None


def fault_of(entry: Entry, example_words: Set[str], keys: Keys) -> Cut | None:
    """Why an entry says nothing of its own."""
    # By words, for models repeat with other case and punctuation.
    topic, content = _words(entry.topic), _words(entry.content)
    # What the prompt's pattern has in a value's place. A topic like <title> may be meant.
    short = len(entry.content) <= LONGEST_SLOT
    left_open = short and any(pattern.fullmatch(entry.content) for pattern in (keys.slot, DOTS, keys.tag_slot))
    if left_open or keys.is_slot(entry.topic) or DOTS.fullmatch(entry.topic):
        return Cut.PLACEHOLDER
    if not content:
        return Cut.NO_CONTENT
    if not topic:
        return Cut.NO_TOPIC
    if topic == content:
        return Cut.ECHO
    # Short words are everywhere; that most of several longer ones come from the example is no accident.
    telling = {word for word in content if len(word) > 3}
    return Cut.EXAMPLE if len(telling & example_words) > max(2, 0.6 * len(telling)) else None


def _words(text: str) -> list[str]:
    return re.findall(WORD, text.casefold())


def words_of(text: str) -> frozenset[str]:
    """The words of a text, in one case."""
    return frozenset(_words(text))
