"""Reading what a generator wrote: behind the heading a text, or a list of entries.

Reading is tolerant: both headings count in their own words and in those that models put in their place; what can be
told from the answer (thoughts, greetings, markup, talk about the answer, entries that say nothing) is taken away and
counted, and the rest is a text. Whether the answer had the exact form is told apart (`Parsed.exact`): tuning rewards
only that. Never raises, whatever the text. It does not see the source, so it cannot say whether an answer is true.
"""

from __future__ import annotations

import re
from collections import Counter

from synpro_engine.synth.cleaning import cleaned, unfenced
from synpro_engine.synth.commentary import without_commentary
from synpro_engine.synth.entries import is_slot, read_entries
from synpro_engine.synth.parsed import HEADINGS, REFORMAT_HEADING, REPHRASE_HEADING, Cut, Entry, Parsed, Reject, size

_MARKS = r"[ \t*_`\"'#>~-]"
_LOOSE = {
    REPHRASE_HEADING: r"here(?:\s+is|['\u2019]s)\s+(?:a|an|the|your|my)\s+(?:(?:para|re)(?:phrased|written|worded)\s+"
    r"(?:version|text)|paraphrase|rewrite|rewording|rephrasing)(?:\s+of\s+(?:the|your|this)\s+(?:\w+\s+){0,2}(?:text|passage"
    r"|paragraph)(?:\s+(?:that\s+)?you\s+(?:gave|provided|sent|shared)(?:\s+me)?)?)?",
    REFORMAT_HEADING: r"here\s+are\s+(?:the|some|your)\s+(?:structured|study)\s+entries"
    r"(?:\s+(?:based\s+on|for|from)\s+(?:the|your)\s+(?:\w+\s+){0,2}text)?",
}
_COLON = r"[:\uff1a\ufe55\u2236]"
_ANY = {
    heading: rf"{re.escape(heading)}|(?:^|(?<=[.!,] )){_MARKS}*{loose}{_MARKS}*(?:{_COLON}|[.!]?[ \t]*$)"
    for heading, loose in _LOOSE.items()
}
_HEADING = re.compile(
    rf"(?:(?P<rephrase>{_ANY[REPHRASE_HEADING]})|(?P<reformat>{_ANY[REFORMAT_HEADING]}))[ \t*_`\"]*(?=\n|$|[^*_`])",
    re.IGNORECASE | re.MULTILINE,
)
_EXACT = re.compile("|".join(map(re.escape, HEADINGS)), re.IGNORECASE)
_WORD = re.compile(r"\w")
_OPENER = 80  # characters of a phrase like "Sure, I will be happy to help:" between two headings


def parse_rephrase(raw: str, *, min_chars: int, finished: bool = True) -> Parsed:
    """Read a paraphrase; `finished` says whether the generator ended it itself. What follows it is not the text."""
    cut: Counter[Cut] = Counter()
    # First of all: headings in a thought or in a turn that the model made up are none.
    text, ended = cleaned(raw, cut)
    after = _body_after(text, REPHRASE_HEADING, cut)
    if isinstance(after, Reject):
        return _refused(after)
    body, followed = after
    if not body:
        return _refused(Reject.EMPTY if finished else Reject.TRUNCATED)
    text, talked = without_commentary(unfenced(body, cut), cut)
    text = unfenced(text, cut)  # the talk may have stood behind the block
    # Text that something follows was ended by the model, though its tokens ran out in what follows.
    if not (finished or ended or followed or talked):
        return _refused(Reject.TRUNCATED)
    if not text:
        return _refused(Reject.COMMENTARY)
    lines = text.split("\n")  # small models leave slots of the prompt's pattern as they are, each on its own line
    cut[Cut.PLACEHOLDER] += sum(size(line) for line in lines if is_slot(line.strip()))
    text = "\n".join(line for line in lines if not is_slot(line.strip())).strip()
    if not text:
        return _refused(Reject.PLACEHOLDER)
    if len(text) < min_chars:
        return _refused(Reject.TOO_SHORT)
    return _accepted(raw, REPHRASE_HEADING, text, (), size(REPHRASE_HEADING) + size(text), cut)


def parse_reformat(raw: str, *, min_chars: int, finished: bool = True, example: str = "") -> Parsed:
    """Read up to 8 entries. Each stands for itself: one that says nothing is left out, and the others stay.

    So are entries that only echo their topic, or that are taken from the `example` which the prompt shows: small
    models do both. An answer that was cut off has lost its last entry only; it is refused when no whole one remains.
    """
    cut: Counter[Cut] = Counter()
    text, ended = cleaned(raw, cut)
    body, headed = _without_headings(text, cut)
    if headed and not body.strip():
        return _refused(Reject.EMPTY if finished else Reject.TRUNCATED)
    entries = read_entries(body, cut, finished=finished or ended, example=example)
    if not entries:
        if not headed:
            return _refused(Reject.NO_HEADING if headed is None else Reject.WRONG_HEADING)
        if not (finished or ended):
            return _refused(Reject.TRUNCATED)
        return _refused(Reject.PLACEHOLDER if cut[Cut.PLACEHOLDER] else Reject.NO_ENTRIES)
    if sum(len(entry.content) for entry in entries) < min_chars:
        return _refused(Reject.TOO_SHORT)
    text = "\n".join(map(str, entries))
    asked_for = size(REFORMAT_HEADING) * bool(headed) + size(text)
    return _accepted(raw, REFORMAT_HEADING, text, tuple(entries), asked_for, cut)


def _refused(reason: Reject) -> Parsed:
    return Parsed(ok=False, text="", reason=reason, exact=False)


def _accepted(
    raw: str, heading: str, text: str, entries: tuple[Entry, ...], asked_for: int, cut: Counter[Cut]
) -> Parsed:
    """asked_for: characters of the text and of the form that it was to have. What nothing accounts for is markup."""
    # What is left of the balance: text, form and counted cuts are all of an answer, so that nothing goes in silence.
    cut[Cut.MARKUP] += max(0, size(raw) - asked_for - cut.total())
    counted = {reason: count for reason, count in sorted(cut.items()) if count}
    headings = list(_EXACT.finditer(raw))  # exact: it begins with this heading and has no other, nor this one twice
    begins = (
        bool(headings) and headings[0].group().lower() == heading.lower() and not raw[: headings[0].start()].strip()
    )
    return Parsed(ok=True, text=text, entries=entries, exact=begins and len(headings) == 1, cut=counted)


def _body_after(text: str, heading: str, cut: Counter[Cut]) -> tuple[str, bool] | Reject:
    """What follows this heading up to the next heading, and whether there is a next; or why there is nothing."""
    headings = list(_HEADING.finditer(text))
    kind = "rephrase" if heading == REPHRASE_HEADING else "reformat"
    wanted = [match for match in headings if match[kind]]
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


def _without_headings(text: str, cut: Counter[Cut]) -> tuple[str, bool | None]:
    """The text without any heading, for answers that are known by their entries.

    And whether one is that of a list of entries; None where there is no heading at all.
    """
    headings = list(_HEADING.finditer(text))
    # From the back, so that the places of those before stay as they were.
    for match in reversed(headings):
        text = text[: match.start()] + "\n" + text[match.end() :]
    of_list = [match for match in headings if match["reformat"]]
    cut[Cut.HEADING] += sum(size(match.group()) for match in headings) - (size(of_list[0].group()) if of_list else 0)
    return text, bool(of_list) if headings else None
