"""Reading what a generator wrote: behind the heading a text, or a list of entries.

Reading is tolerant: what can be told from the answer (thoughts, greetings, markup, talk about the answer, entries that
say nothing) is taken away and counted, and the rest is a text. Whether the answer had the exact form is told apart
(`Parsed.exact`): tuning rewards only that. Never raises, whatever the text. It does not see the source, so it cannot
say whether an answer is true.
"""

from __future__ import annotations

from collections import Counter

from synpro_engine.synth.cleaning import cleaned, unfenced
from synpro_engine.synth.commentary import without_commentary
from synpro_engine.synth.entries import is_slot, read_entries
from synpro_engine.synth.headings import body_after, is_exact, without_headings
from synpro_engine.synth.parsed import REFORMAT_HEADING, REPHRASE_HEADING, Cut, Entry, Parsed, Reject, size


def parse_rephrase(raw: str, *, min_chars: int, finished: bool = True) -> Parsed:
    """Read a paraphrase; `finished` says whether the generator ended it itself. What follows it is not the text."""
    cut: Counter[Cut] = Counter()
    text, ended = cleaned(raw, cut)
    found = body_after(text, REPHRASE_HEADING, cut)
    if isinstance(found, Reject):
        return _refused(found)
    body, followed = found
    if not body:
        return _refused(Reject.EMPTY if finished else Reject.TRUNCATED)
    text, talked = without_commentary(unfenced(body, cut), cut)
    if not (finished or ended or followed or talked):
        return _refused(Reject.TRUNCATED)
    if not text:
        return _refused(Reject.COMMENTARY)
    text = _without_slots(text, cut)
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
    body, own = without_headings(text, cut)
    if own and not body.strip():
        return _refused(Reject.EMPTY if finished else Reject.TRUNCATED)
    entries = read_entries(body, cut, finished=finished or ended, example=example)
    if not entries:
        return _refused(_no_entries(own, finished or ended, cut))
    if sum(len(entry.content) for entry in entries) < min_chars:
        return _refused(Reject.TOO_SHORT)
    text = "\n".join(map(str, entries))
    return _accepted(raw, REFORMAT_HEADING, text, tuple(entries), size(REFORMAT_HEADING) * bool(own) + size(text), cut)


def _refused(reason: Reject) -> Parsed:
    return Parsed(ok=False, text="", reason=reason, exact=False)


def _no_entries(own: bool | None, finished: bool, cut: Counter[Cut]) -> Reject:
    if not own:
        return Reject.NO_HEADING if own is None else Reject.WRONG_HEADING
    if not finished:
        return Reject.TRUNCATED
    return Reject.PLACEHOLDER if cut[Cut.PLACEHOLDER] else Reject.NO_ENTRIES


def _accepted(raw: str, heading: str, text: str, entries: tuple[Entry, ...], kept: int, cut: Counter[Cut]) -> Parsed:
    """kept: characters of the text and of the form that was asked for. What nothing else accounts for is markup."""
    cut[Cut.MARKUP] += max(0, size(raw) - kept - cut.total())
    counted = {reason: count for reason, count in sorted(cut.items()) if count}
    return Parsed(ok=True, text=text, entries=entries, exact=is_exact(raw, heading), cut=counted)


def _without_slots(text: str, cut: Counter[Cut]) -> str:
    """Without lines that are nothing but a slot to fill in."""
    lines = text.split("\n")
    cut[Cut.PLACEHOLDER] += sum(size(line) for line in lines if is_slot(line.strip()))
    return "\n".join(line for line in lines if not is_slot(line.strip())).strip()
