"""How well judges tell sound texts from those with a planted fault: agreement and AUC, by judge and fault.

Of whole texts; judges of entries are measured in `entries`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synpro_engine.reward.compose import Composer
from synpro_engine.reward.entries import JUDGED, Cost, costs
from synpro_engine.reward.measures import auc, auc_interval
from synpro_engine.reward.planted import FAULTS, reworded
from synpro_engine.synth import Candidate
from synpro_engine.synth.parsed import Parsed

COPY = "copy"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One judge on one fault.

    auc: chance that a sound text is rated above a faulty one, of any sources; agreement: the same of two from one
    source. Ties count half: 0.5 is a judge that sees nothing. None where no pair has two values. low, high: the 95 %
    interval of auc.
    """

    judge: str
    fault: str
    pairs: int
    missing: int
    """Pairs without a value: the judge did not answer."""
    auc: float | None
    low: float | None
    high: float | None
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


def standings(
    composer: Composer, pairs: dict[str, list[tuple[str, str, str]]]
) -> tuple[list[Standing], dict[str, Cost]]:
    """What each of the composer's rewards makes of each fault, and what it took; all texts are judged in one call."""
    # A sound text stands against each of its faulty ones, and is judged once.
    asked = dict.fromkeys((text, source) for group in pairs.values() for source, *texts in group for text in texts)
    table = composer.score([_candidate(text, source) for text, source in asked], exact=False)
    place = {pair: at for at, pair in enumerate(asked)}
    found = [
        _standing(
            judge,
            fault,
            [values[place[sound, source]] for source, sound, _ in group],
            [values[place[faulty, source]] for source, _, faulty in group],
        )
        for fault, group in sorted(pairs.items(), key=lambda each: [*FAULTS, COPY].index(each[0]))
        for judge, values in table.parts.items()
    ]
    return found, costs(table, len(asked))


def _candidate(text: str, source: str) -> Candidate:
    return Candidate(operation=JUDGED, source=source, raw=text, parsed=Parsed(ok=True, text=text))


def _standing(judge: str, fault: str, sound: Sequence[float], faulty: Sequence[float]) -> Standing:
    whole = [pair for pair in zip(sound, faulty, strict=True) if all(map(math.isfinite, pair))]
    # What differs by rounding alone is a tie.
    goods, bads = np.round(np.array(whole).reshape(-1, 2), 9).T
    sources = [str(place) for place in range(len(whole))]
    low, high = auc_interval(goods, bads, sources, sources) if whole else (None, None)
    return Standing(
        judge=judge,
        fault=fault,
        pairs=len(sound),
        missing=len(sound) - len(whole),
        auc=auc(goods, bads) if whole else None,
        low=low,
        high=high,
        agreement=float(((goods > bads) + (goods == bads) / 2).mean()) if whole else None,
        sound=float(goods.mean()) if whole else None,
        faulty=float(bads.mean()) if whole else None,
    )
