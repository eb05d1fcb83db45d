"""Faults planted in what a generator writes just now, to see whether its judges still tell them.

A judge is attacked by what it trains: a generator finds what the judge cannot see, and its reward rises all the same.
What a judge sees of other people's text (`agreement`, `entries`) says nothing about that. So a completion is held
against itself with one fault planted in it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from synpro_engine.reward.agreement import COPY
from synpro_engine.reward.compose import Composer
from synpro_engine.reward.examples import ENTRY_FAULTS
from synpro_engine.reward.measures import auc
from synpro_engine.reward.planted import FAULTS, Fault, sentences
from synpro_engine.synth import Candidate
from synpro_engine.synth.parsed import Entry

SEES: Mapping[str, tuple[str, ...]] = {
    "quality": ("words shuffled", "sentences shuffled", "loop"),
    "similarity": ("number swapped", "name swapped", "contradiction", "invention", "omission", "loop"),
    "structure": ("list for prose",),
    "anti_copy": (COPY,),
}
"""Kinds of faults that a judge of whole texts is there to see; those of other names are shown all but the copy."""
_REPLACED = frozenset({"off topic", "another document"})
"""Kinds that leave nothing of the completion, nor of what deceives a judge in it: they would always be seen."""


class Specimen(NamedTuple):
    """A completion that faults are planted in.

    other: text of another source, to take foreign words from. key: all chance is drawn from it.
    """

    candidate: Candidate
    other: str
    key: str


class Pair(NamedTuple):
    """What one judge gave a completion, and the same with a fault of a kind; NaN where it gave nothing."""

    judge: str
    kind: str
    sound: float
    faulty: float


class Figures(NamedTuple):
    """One judge, on all pairs of which both have a value.

    agreement: chance that a completion is rated above itself with a fault; auc: above any faulty one. Ties count half,
    so 0.5 is a judge that sees nothing. by_kind: agreement on one kind of fault.
    """

    pairs: int
    agreement: float
    auc: float
    by_kind: dict[str, float]


class Canary:
    """The judges among a composer's rewards, asked about planted faults."""

    def __init__(self, composer: Composer, encode: Callable[[str], Sequence[int]]) -> None:
        """encode: token ids of a text, as candidates have them."""
        judging, self._encode = composer.judging, encode
        self.names = tuple(judging)
        """Of the judges."""
        self._of_texts = tuple(name for name, each in judging.items() if each == "text")
        self._of_entries = tuple(name for name, each in judging.items() if each == "entry")
        self._texts, self._entries = (composer.only(names) for names in (self._of_texts, self._of_entries))

    def look(self, specimens: Sequence[Specimen]) -> tuple[list[Pair], dict[str, int]]:
        """What each judge makes of the specimens and of their faults, and what remote judges were asked for it."""
        texts = [pair for one in specimens for pair in _of_text(one, self._kinds)] if self._of_texts else []
        entries = [pair for one in specimens for pair in _of_entry(one)] if self._of_entries else []
        found, asked = list[Pair](), Counter[str]()
        # Without any as well: ranks score together, and a judge may be a model that is divided among them.
        for composer, names, planted in (
            (self._texts, self._of_texts, texts), (self._entries, self._of_entries, entries),
        ):  # fmt: skip
            if not names:
                continue
            place: dict[tuple[str, str], int] = {}
            wanted: list[Candidate] = []
            for _, *both in planted:
                for candidate in both:
                    key = (candidate.source, candidate.raw)
                    if key not in place:  # a completion stands against each of its faults, and is judged once
                        place[key] = len(wanted)
                        wanted.append(replace(candidate, token_ids=tuple(self._encode(candidate.parsed.text))))
            table = composer.score(wanted, exact=False)
            asked.update(table.asked)  # an endpoint that judges both has one name in either
            found += [
                Pair(name, kind, *(table.parts[name][place[one.source, one.raw]] for one in (sound, faulty)))
                for name in names
                for kind, sound, faulty in planted
                if name in self._of_entries or kind in _seen_by(name)
            ]
        return found, dict(asked)

    @property
    def _kinds(self) -> frozenset[str]:
        return frozenset(kind for name in self._of_texts for kind in _seen_by(name))


def _seen_by(judge: str) -> tuple[str, ...]:
    return SEES.get(judge, tuple(kind for kind in FAULTS if kind not in _REPLACED))


def _of_text(specimen: Specimen, kinds: frozenset[str]) -> Iterator[tuple[str, Candidate, Candidate]]:
    """(kind, sound, faulty) of the whole text."""
    candidate, text = specimen.candidate, specimen.candidate.parsed.text.strip()
    if not text:
        return
    planted = {name: _planted(fault, text, specimen.other, f"{specimen.key} {name}") for name, fault in FAULTS.items()}
    planted[COPY] = candidate.source if candidate.source != text else None
    for kind, faulty in planted.items():
        if kind in kinds and faulty is not None:
            yield kind, _text(candidate, text), _text(candidate, faulty)


def _of_entry(specimen: Specimen) -> Iterator[tuple[str, Candidate, Candidate]]:
    """(kind, sound, faulty) of one of its entries."""
    candidate, chance = specimen.candidate, random.Random(f"{specimen.key} entry")
    entries = [entry for entry in candidate.parsed.entries if entry.content.strip()]
    if not entries:
        return
    entry = chance.choice(entries)
    near, far = (chance.choice(sentences(text) or [""]) for text in (candidate.source, specimen.other))
    for kind, fault in ENTRY_FAULTS.items():
        if kind in _REPLACED:
            continue
        faulty = _planted(fault, entry.content, near if kind == "splice" else far, f"{specimen.key} {kind}")
        if faulty is not None:
            yield kind, _entry(candidate, entry), _entry(candidate, replace(entry, content=faulty))


def _planted(fault: Fault, text: str, other: str, key: str) -> str | None:
    """None where there is nothing to plant it in, or nothing came of it."""
    faulty = fault(text, other, random.Random(key))
    return None if faulty is None or not faulty.strip() or faulty.strip() == text.strip() else faulty


def _text(candidate: Candidate, text: str) -> Candidate:
    """Another text in the candidate's place; its token ids are still those of its own."""
    return replace(candidate, raw=text, parsed=replace(candidate.parsed, text=text))


def _entry(candidate: Candidate, entry: Entry) -> Candidate:
    """The same for one entry that stands alone."""
    parsed = replace(candidate.parsed, text=entry.content, entries=(entry,))
    return replace(candidate, raw=str(entry), parsed=parsed)


def figures(pairs: Sequence[Pair]) -> dict[str, Figures]:
    """By judge, in the order of the pairs; a judge without a whole pair is left out."""
    found: dict[str, Figures] = {}
    for judge in dict.fromkeys(pair.judge for pair in pairs):
        of_judge = [pair for pair in pairs if pair.judge == judge]
        whole = [pair for pair in of_judge if math.isfinite(pair.sound) and math.isfinite(pair.faulty)]
        if not whole:
            continue
        # What differs by rounding alone is a tie.
        goods, bads = np.round([[pair.sound, pair.faulty] for pair in whole], 9).T
        above = (goods > bads) + (goods == bads) / 2
        kinds = np.array([pair.kind for pair in whole])
        found[judge] = Figures(
            pairs=len(whole),
            agreement=float(above.mean()),
            auc=auc(goods, bads),
            by_kind={kind: float(above[kinds == kind].mean()) for kind in dict.fromkeys(kinds.tolist())},
        )
    return found
