"""Reading what a generator wrote: behind the heading a text, or a list of entries.

Reading is tolerant: headings count in their own words and in those that models put in their place; what can be
told from the answer (thoughts, greetings, markup, talk about the answer, entries that say nothing) is taken away and
counted, and the rest is a text. Whether the answer had the exact form is told apart (`Parsed.exact`): tuning rewards
only that. Never raises, whatever the text. It does not see the source, so it cannot say whether an answer is true.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from synpro_engine.synth.cleaning import cleaned, unfenced
from synpro_engine.synth.commentary import without_commentary
from synpro_engine.synth.entries import read_entries
from synpro_engine.synth.headings import REPHRASE, Heading, Headings
from synpro_engine.synth.keys import TOPIC_CONTENT, Keys
from synpro_engine.synth.parsed import Cut, Entry, Parsed, Reject, size

_REPHRASE = Headings(own=REPHRASE)
_WORD = re.compile(r"\w")
_OPENER = 80  # characters of a phrase like "Sure, I will be happy to help:" between two headings


def parse_rephrase(raw: str, *, min_chars: int, finished: bool = True) -> Parsed:
    """Read a paraphrase; `finished` says whether the generator ended it itself. What follows it is not the text."""
    cut: Counter[Cut] = Counter()
    # First of all: headings in a thought or in a turn that the model made up are none.
    text, ended = cleaned(raw, cut)
    after = body_after(text, _REPHRASE, cut)
    if isinstance(after, Reject):
        return refused(after)
    body, followed = after
    if not body:
        return refused(Reject.EMPTY if finished else Reject.TRUNCATED)
    text, talked = without_commentary(unfenced(body, cut), cut)
    text = unfenced(text, cut)  # the talk may have stood behind the block
    # Text that something follows was ended by the model, though its tokens ran out in what follows.
    if not (finished or ended or followed or talked):
        return refused(Reject.TRUNCATED)
    if not text:
        return refused(Reject.COMMENTARY)
    lines = text.split("\n")  # small models leave slots of the prompt's pattern as they are, each on its own line
    cut[Cut.PLACEHOLDER] += sum(size(line) for line in lines if TOPIC_CONTENT.is_slot(line.strip()))
    text = "\n".join(line for line in lines if not TOPIC_CONTENT.is_slot(line.strip())).strip()
    if not text:
        return refused(Reject.PLACEHOLDER)
    if len(text) < min_chars:
        return refused(Reject.TOO_SHORT)
    return accepted(raw, _REPHRASE, text, (), size(REPHRASE.text) + size(text), cut)


@dataclass(frozen=True, kw_only=True)
class EntryForm:
    """A list of entries: its heading, its keys, and how it is written down."""

    heading: Heading
    keys: Keys
    entry: str = "- Topic: {topic} Content: {content}"
    between: str = "\n"

    @cached_property
    def headings(self) -> Headings:
        """The heading among all others."""
        return Headings(own=self.heading)

    def write(self, entries: Sequence[Entry]) -> str:
        """The text of a list."""
        return self.between.join(self.entry.format(topic=one.topic, content=one.content) for one in entries)


def parse_entries(raw: str, *, form: EntryForm, min_chars: int, finished: bool = True, example: str = "") -> Parsed:
    """Read up to 8 entries. Each stands for itself: one that says nothing is left out, and the others stay.

    So are entries that only echo their topic, or that are taken from the `example` which the prompt shows: small
    models do both. An answer that was cut off has lost its last entry only; it is refused when no whole one remains.
    """
    cut: Counter[Cut] = Counter()
    text, ended = cleaned(raw, cut)
    body, headed = without_headings(text, form.headings, cut)
    if headed and not body.strip():
        return refused(Reject.EMPTY if finished else Reject.TRUNCATED)
    entries = read_entries(body, cut, form.keys, finished=finished or ended, headed=bool(headed), example=example)
    if not entries:
        return refused(why_no_entries(headed, cut, finished=finished or ended))
    if sum(len(entry.content) for entry in entries) < min_chars:
        return refused(Reject.TOO_SHORT)
    text = form.write(entries)
    return accepted(raw, form.headings, text, tuple(entries), size(form.heading.text) * bool(headed) + size(text), cut)


def why_no_entries(headed: bool | None, cut: Counter[Cut], *, finished: bool) -> Reject:
    """Why an answer has no part that says something; headed: as `without_headings` has it."""
    if not headed:
        return Reject.NO_HEADING if headed is None else Reject.WRONG_HEADING
    if not finished:
        return Reject.TRUNCATED
    return Reject.PLACEHOLDER if cut[Cut.PLACEHOLDER] else Reject.NO_ENTRIES


def refused(reason: Reject) -> Parsed:
    """An answer without a document."""
    return Parsed(ok=False, text="", reason=reason, exact=False)


def accepted(
    raw: str, headings: Headings, text: str, entries: tuple[Entry, ...], asked_for: int, cut: Counter[Cut]
) -> Parsed:
    """An answer with one.

    asked_for: characters of the text and of the form that it was to have. What nothing accounts for is markup.
    """
    # What is left of the balance: text, form and counted cuts are all of an answer, so that nothing goes in silence.
    cut[Cut.MARKUP] += max(0, size(raw) - asked_for - cut.total())
    counted = {reason: count for reason, count in sorted(cut.items()) if count}
    found = list(
        headings.exact.finditer(raw)
    )  # exact: it begins with this heading and has no other, nor this one twice
    own = headings.own.text.lower()
    begins = bool(found) and found[0].group().lower() == own and not raw[: found[0].start()].strip()
    return Parsed(ok=True, text=text, entries=entries, exact=begins and len(found) == 1, cut=counted)


def body_after(text: str, of: Headings, cut: Counter[Cut]) -> tuple[str, bool] | Reject:
    """What follows this heading up to the next heading, and whether there is a next; or why there is nothing."""
    headings = list(of.pattern.finditer(text))
    wanted = [match for match in headings if match["own"]]
    if not wanted:
        return Reject.WRONG_HEADING if headings else Reject.NO_HEADING
    start = wanted[0]
    cut[Cut.PREAMBLE] += size(text[: start.start()])
    for match in wanted[1:]:  # said twice, with nothing or with "Sure!" in between
        between = text[start.end() : match.start()]
        if _WORD.search(between) and (len(between) > _OPENER or "." in between):
            break
        cut[Cut.PREAMBLE] += size(between)
        cut[Cut.HEADING] += size(match.group())
        start = match
    following = [match for match in headings if match.start() >= start.end()]
    end = following[0].start() if following else len(text)
    cut[Cut.SECOND_ANSWER] += size(text[end:])
    return text[start.end() : end].strip(), bool(following)


def without_headings(text: str, of: Headings, cut: Counter[Cut]) -> tuple[str, bool | None]:
    """The text without any heading, for answers that are known by their entries.

    And whether one is that of a list of entries; None where there is no heading at all.
    """
    headings = list(of.pattern.finditer(text))
    # From the back, so that the places of those before stay as they were.
    for match in reversed(headings):
        text = text[: match.start()] + "\n" + text[match.end() :]
    of_list = [match for match in headings if match["own"]]
    cut[Cut.HEADING] += sum(size(match.group()) for match in headings) - (size(of_list[0].group()) if of_list else 0)
    return text, bool(of_list) if headings else None
