"""Where an answer begins: behind its heading, however that is written.

Both headings count in their own words and in those that models put in their place. What is passed over is counted.
"""

from __future__ import annotations

import re
from collections import Counter

from synpro_engine.synth.parsed import HEADINGS, REFORMAT_HEADING, REPHRASE_HEADING, Cut, Reject, size

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
_FOUND = re.compile(
    rf"(?:(?P<rephrase>{_ANY[REPHRASE_HEADING]})|(?P<reformat>{_ANY[REFORMAT_HEADING]}))[ \t*_`\"]*(?=\n|$|[^*_`])",
    re.IGNORECASE | re.MULTILINE,
)
_EXACT = re.compile("|".join(map(re.escape, HEADINGS)), re.IGNORECASE)
_WORD = re.compile(r"\w")
_OPENER = 80  # characters of a phrase like "Sure, I will be happy to help:" between two headings


def is_exact(raw: str, heading: str) -> bool:
    """Whether the answer begins with this heading and has no other, nor this one twice."""
    found = list(_EXACT.finditer(raw))
    return len(found) == 1 and found[0].group().lower() == heading.lower() and not raw[: found[0].start()].strip()


def body_after(text: str, heading: str, cut: Counter[Cut]) -> tuple[str, bool] | Reject:
    """What follows this heading up to the next heading, and whether there is a next; or why there is nothing."""
    found = list(_FOUND.finditer(text))
    kind = "rephrase" if heading == REPHRASE_HEADING else "reformat"
    own = [match for match in found if match[kind]]
    if not own:
        return Reject.WRONG_HEADING if found else Reject.NO_HEADING
    first, start = own[0], own[0]
    cut[Cut.PREAMBLE] += size(text[: first.start()])
    for match in own[1:]:  # said twice, with nothing or with "Sure!" in between
        between = text[start.end() : match.start()]
        if _WORD.search(between) and (len(between) > _OPENER or "." in between):
            break
        cut[Cut.PREAMBLE] += size(between)
        cut[Cut.HEADING] += size(match.group())
        start = match
    following = [match for match in found if match.start() >= start.end()]
    end = following[0].start() if following else len(text)
    cut[Cut.SECOND_ANSWER] += size(text[end:])
    return text[start.end() : end].strip(), bool(following)


def without_headings(text: str, cut: Counter[Cut]) -> tuple[str, bool | None]:
    """For answers that are known by their entries: all but the headings, and whether one is the list's own (None: there
    is no heading at all)."""
    found = list(_FOUND.finditer(text))
    for match in reversed(found):
        text = text[: match.start()] + "\n" + text[match.end() :]
    own = [match for match in found if match["reformat"]]
    cut[Cut.HEADING] += sum(size(match.group()) for match in found) - (size(own[0].group()) if own else 0)
    return text, bool(own) if found else None
