"""How well judges tell sound texts from those with a planted fault: agreement and AUC, by judge and fault."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from synpro_engine.reward.compose import Composer
from synpro_engine.reward.planted import FAULTS, reworded, sentences
from synpro_engine.synth import Candidate
from synpro_engine.synth.parsed import Entry, Parsed

COPY = "copy"
JUDGED = "judged"
"""The operation that the texts pass for: a composer's weights go by it."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One judge on one fault.

    auc: chance that a sound text is rated above a faulty one, of any sources; agreement: the same of two from one
    source. Ties count half: 0.5 is a judge that sees nothing. None where no pair has two values.
    """

    judge: str
    fault: str
    pairs: int
    missing: int
    """Pairs without a value: the judge did not answer."""
    auc: float | None
    agreement: float | None
    sound: float | None
    """Mean value of sound texts."""
    faulty: float | None


def planted_pairs(sources: Sequence[str], seed: int) -> dict[str, list[tuple[str, str, str]]]:
    """(source, sound text, faulty text) by fault. A sound text says its source in some other words."""
    pairs: dict[str, list[tuple[str, str, str]]] = {}
    for place, source in enumerate(sources):
        sound, other = reworded(source), sources[(place + 1) % len(sources)]
        for name, fault in FAULTS.items():
            # By place and fault, so that a fault more changes nothing in the others.
            faulty = fault(sound, other, random.Random(f"{seed} {place} {name}"))
            if faulty is not None and faulty != sound:
                pairs.setdefault(name, []).append((source, sound, faulty))
        if sound != source:
            pairs.setdefault(COPY, []).append((source, sound, source))
    return pairs


def standings(composer: Composer, pairs: dict[str, list[tuple[str, str, str]]]) -> list[Standing]:
    """What each of the composer's rewards makes of each fault; all texts are judged in one call."""
    # A sound text stands against each of its faulty ones, and is judged once.
    asked = dict.fromkeys((text, source) for group in pairs.values() for source, *texts in group for text in texts)
    parts = composer.score([_candidate(text, source) for text, source in asked], exact=False).parts
    place = {pair: at for at, pair in enumerate(asked)}
    return [
        _standing(
            judge,
            fault,
            [values[place[sound, source]] for source, sound, _ in group],
            [values[place[faulty, source]] for source, _, faulty in group],
        )
        for fault, group in sorted(pairs.items(), key=lambda each: [*FAULTS, COPY].index(each[0]))
        for judge, values in parts.items()
    ]


def _candidate(text: str, source: str) -> Candidate:
    # A sentence is an entry whose topic is how it begins.
    entries = tuple(Entry(topic=" ".join(part.split()[:3]), content=part) for part in sentences(text))
    return Candidate(operation=JUDGED, source=source, raw=text, parsed=Parsed(ok=True, text=text, entries=entries))


def _standing(judge: str, fault: str, sound: Sequence[float], faulty: Sequence[float]) -> Standing:
    whole = [pair for pair in zip(sound, faulty, strict=True) if all(map(math.isfinite, pair))]
    goods, bads = [good for good, _ in whole], [bad for _, bad in whole]
    return Standing(
        judge=judge,
        fault=fault,
        pairs=len(sound),
        missing=len(sound) - len(whole),
        auc=_mean([_above(good, bad) for good in goods for bad in bads]),
        agreement=_mean([_above(good, bad) for good, bad in whole]),
        sound=_mean(goods),
        faulty=_mean(bads),
    )


def _above(good: float, bad: float) -> float:
    return 0.5 if math.isclose(good, bad, abs_tol=1e-9) else float(good > bad)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
