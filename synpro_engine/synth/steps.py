"""Reading tutorials: a text in numbered steps."""

from __future__ import annotations

import re
from collections import Counter

from synpro_engine.synth.cleaning import cleaned, unfenced
from synpro_engine.synth.commentary import without_commentary
from synpro_engine.synth.entries import fault_of, words_of
from synpro_engine.synth.headings import TUTORIAL, Headings
from synpro_engine.synth.keys import Keys
from synpro_engine.synth.parse import accepted, body_after, refused
from synpro_engine.synth.parsed import Cut, Entry, Parsed, Reject, size

_HEADINGS = Headings(own=TUTORIAL)
_SLOTS = Keys(first="", second="", slots="step|steps|instruction|instructions|explanation|description")
# `Step 2:`, `**Step 2**`, `## Step 2 -`, `2.`, `2)`; not a number within a step, as `1.5` and `1990` are.
_STEP = re.compile(
    r"[ \t]*(?:#{1,6}[ \t]+)?(?:[-*+][ \t]+)?[*_]{0,3}"
    r"(?:step[ \t]*(?P<word>\d{1,2})\b[*_]{0,3}[ \t]*[:.)\u2013\u2014-]?"
    r"|(?P<number>\d{1,2})[.)](?=[ \t]|[*_]))[*_]{0,3}[ \t]*",
    re.IGNORECASE,
)
_FEWEST, _TITLE = 2, 100  # steps, and characters of a step's title


def parse_tutorial(raw: str, *, min_chars: int, finished: bool = True, example: str = "") -> Parsed:
    """Read a text with two steps or more, each of which is an entry; what stands before the first one stays.

    Steps that say nothing, that stood before, or that are the example's are left out alone, and so is the last one of
    an answer that was cut off. Numbers stay as they were written.
    """
    cut: Counter[Cut] = Counter()
    text, ended = cleaned(raw, cut)
    after = body_after(text, _HEADINGS, cut)
    if isinstance(after, Reject):
        return refused(after)
    body, followed = after
    if not body:
        return refused(Reject.EMPTY if finished else Reject.TRUNCATED)
    text, talked = without_commentary(unfenced(body, cut), cut)
    whole = finished or ended or followed or talked
    opening, steps = _steps(unfenced(text, cut))
    if steps and not whole:
        cut[Cut.UNFINISHED] += size(steps.pop())
    kept = _telling(steps, cut, words_of(example))
    if len(kept) < _FEWEST:
        if not whole:
            return refused(Reject.TRUNCATED)
        return refused(Reject.PLACEHOLDER if cut[Cut.PLACEHOLDER] else Reject.NO_ENTRIES)
    text = "\n".join([opening, *kept.values()]).strip()
    if sum(len(entry.content) for entry in kept) < min_chars:
        return refused(Reject.TOO_SHORT)
    return accepted(raw, _HEADINGS, text, tuple(kept), size(TUTORIAL.text) + size(text), cut)


def _steps(text: str) -> tuple[str, list[str]]:
    """What stands before the first step, and the steps, with all their lines."""
    opening, steps, last = list[str](), list[list[str]](), 0
    lines = [(line, _STEP.match(line)) for line in text.split("\n")]
    # The word before the first number may be the prompt's; before another one it is how this answer counts its steps.
    worded = any(match and int(match["word"] or 0) > 1 for _, match in lines)
    for line, match in lines:
        number = int(match["word"] or match["number"]) if match else 0
        # In sequence, or a list within a step would be steps of its own.
        if match and (match["word"] or (number == last + 1 and not worded)):
            steps.append([line])
            last = number
        else:
            (steps[-1] if steps else opening).append(line)
    return "\n".join(opening).strip(), ["\n".join(lines).rstrip() for lines in steps]


def _telling(steps: list[str], cut: Counter[Cut], example: frozenset[str]) -> dict[Entry, str]:
    """Steps that say something, as entries and as they were written."""
    kept: dict[Entry, str] = {}
    for step in steps:
        entry = _entry(step)
        again = entry.content in {before.content for before in kept}
        fault = Cut.DUPLICATE if again else fault_of(entry, example, _SLOTS)
        if fault is None:
            kept[entry] = step
        else:
            cut[fault] += size(step)
    return kept


def _entry(step: str) -> Entry:
    """The title is the first line, or what stands before a colon in it; a step of one sentence is its own content."""
    match = _STEP.match(step)
    assert match is not None, "a step begins with its number"
    first, _, rest = step[match.end() :].partition("\n")
    title, colon, behind = first.partition(":")
    if colon and behind.strip() and len(title) <= _TITLE:
        rest = f"{behind}\n{rest}"
    else:
        title, rest = (first, rest) if rest.strip() else (f"Step {match['word'] or match['number']}", first)
    return Entry(topic=" ".join(title.split()).strip("*_: "), content=" ".join(rest.split()).strip("*_ "))
