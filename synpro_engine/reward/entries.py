"""What a judge of entries sees: faults planted in true entries, and labelled pairs, by kind.

A judge of entries is asked whether a source supports an entry; the others, of whole texts, are measured in `agreement`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synpro_engine.reward.calibrating import Labelled
from synpro_engine.reward.compose import Composer
from synpro_engine.reward.examples import ANSWER, Example
from synpro_engine.reward.measures import Bin, auc, auc_interval, calibration_bins, calibration_error, share_kept
from synpro_engine.reward.types import RewardTable
from synpro_engine.synth import Candidate
from synpro_engine.synth.parsed import Entry, Parsed

PLANTED = "planted"
"""The set of all faults that were planted, beside the labelled sets."""
JUDGED = "judged"
"""The operation that texts pass for: a composer's weights go by it."""


@dataclass(frozen=True, kw_only=True)
class KindStanding:
    """One judge on one kind of fault, or on one labelled set.

    auc: chance that a true entry is rated above a false one of the kind, with its 95 % interval; None without both.
    """

    kind: str
    set: str
    """Whose true entries it stands against, and whose threshold holds: `PLANTED` or a labelled set."""
    n: int
    """Pairs with a value that are false in this way, and of a labelled set the true ones too."""
    auc: float | None
    low: float | None
    high: float | None
    let_through: float | None
    """Share of the false ones at or over the set's threshold."""


@dataclass(frozen=True, kw_only=True)
class SetStanding:
    """One judge on all pairs of a set."""

    set: str
    true: int
    false: int
    missing: int
    """Pairs without a value: the judge did not answer."""
    auc: float | None
    threshold: float | None
    """Reached by at most a tenth of the false ones."""
    kept: dict[str, float]
    """Share of the true ones at or over it, by kind."""
    ece: float | None
    """Expected calibration error, true and false at par."""
    bins: list[Bin]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What judging took."""

    judged: int
    """Texts or entries."""
    seconds: float
    asked: dict[str, int]
    """Of a judge behind an endpoint: calls, tokens and what else it counts."""


def costs(table: RewardTable, judged: int) -> dict[str, Cost]:
    """By judge, what the table's values took."""
    counts = {name: Counter[str]() for name in table.seconds}
    for key, value in table.asked.items():
        names, _, what = key.partition("/")
        for name in counts.keys() & names.split("+"):  # judges of one endpoint share its calls
            counts[name][what] += value
    return {
        name: Cost(judged=judged, seconds=seconds, asked=dict(counts[name])) for name, seconds in table.seconds.items()
    }


@dataclass(frozen=True, kw_only=True)
class EntryStanding:
    """One judge on everything that it was asked."""

    judge: str
    kinds: list[KindStanding]
    sets: list[SetStanding]
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class JudgedEntries:
    """What one judge said of the examples of each set.

    values: as `sets` has the examples, NaN where there was no answer. scale: least and greatest value of its question.
    """

    judge: str
    sets: Mapping[str, Sequence[Example]]
    values: Mapping[str, Sequence[float]]
    scale: tuple[float, float]
    cost: Cost

    @property
    def standing(self) -> EntryStanding:
        """How good it is."""
        found = [_of_set(name, of_set, self.values[name], self.scale) for name, of_set in self.sets.items()]
        return EntryStanding(
            judge=self.judge,
            kinds=[kind for _, kinds in found for kind in kinds],
            sets=[standing for standing, _ in found],
            cost=self.cost,
        )

    @property
    def labelled(self) -> dict[str, Labelled]:
        """The answers with the truth beside them, by set."""
        return {name: _labelled(of_set, self.values[name], self.scale) for name, of_set in self.sets.items()}


def judged_entries(
    composer: Composer, judge: str, sets: Mapping[str, Sequence[Example]], scale: tuple[float, float] = (0.0, 1.0)
) -> JudgedEntries:
    """What the composer's reward `judge` makes of the examples of each set; all are judged in one call."""
    examples = [example for of_set in sets.values() for example in of_set]
    table = composer.score([_candidate(example) for example in examples], exact=False)
    left = iter(table.parts[judge])
    values = {name: [next(left) for _ in of_set] for name, of_set in sets.items()}
    return JudgedEntries(judge=judge, sets=sets, values=values, scale=scale, cost=costs(table, len(examples))[judge])


def _labelled(examples: Sequence[Example], values: Sequence[float], scale: tuple[float, float]) -> Labelled:
    low, high = scale
    known = [(example, value) for example, value in zip(examples, values, strict=True) if math.isfinite(value)]
    return Labelled(
        # What differs by rounding alone is a tie, and no place is outside of the scale by it.
        np.clip(np.round([(value - low) / (high - low) for _, value in known], 9), 0.0, 1.0),
        np.array([float(example.label) for example, _ in known]),
        [example.source for example, _ in known],
    )


def _candidate(example: Example) -> Candidate:
    entries = (Entry(topic="", content=example.text),)
    return Candidate(
        operation=JUDGED,
        source=example.source,
        raw=example.text,
        parsed=Parsed(ok=True, text=example.text, entries=entries),
    )


def _of_set(
    name: str, examples: Sequence[Example], values: Sequence[float], scale: tuple[float, float]
) -> tuple[SetStanding, list[KindStanding]]:
    known = [(example, value) for example, value in zip(examples, values, strict=True) if math.isfinite(value)]
    true, false = ([pair for pair in known if pair[0].label is label] for label in (True, False))
    p_N = np.round([value for _, value in known], 9)  # what differs by rounding alone is a tie
    places_N, labels_N, _ = _labelled(examples, values, scale)
    weights_N = np.ones(len(known))
    threshold, kept, error, bins = None, {}, None, []
    if true and false:
        threshold = share_kept(p_N[labels_N == 1], p_N[labels_N == 0])[0]
        for kind in dict.fromkeys(example.kind for example, _ in true):
            of_kind = [value >= threshold for example, value in true if example.kind == kind]
            kept[kind] = sum(of_kind) / len(of_kind)
        error = calibration_error(places_N, labels_N, weights_N)
        bins = calibration_bins(places_N, labels_N, weights_N)
    standing = SetStanding(
        set=name, true=len(true), false=len(false), missing=len(examples) - len(known),
        auc=auc(p_N[labels_N == 1], p_N[labels_N == 0]) if true and false else None,
        threshold=threshold, kept=kept, ece=error, bins=bins,
    )  # fmt: skip
    kinds = dict.fromkeys(example.kind for example, _ in false)
    return standing, [_kind(kind, name, true, false, threshold) for kind in kinds]


def _kind(
    kind: str, name: str, true: list[tuple[Example, float]], false: list[tuple[Example, float]], threshold: float | None
) -> KindStanding:
    # An answer stands against answers, for questions are told apart from statements too easily.
    right = [pair for pair in true if (pair[0].kind == ANSWER) == (kind == ANSWER)]
    wrong = [pair for pair in false if pair[0].kind == kind]
    value = low = high = None
    if right and wrong:
        (of_true, p_T), (of_false, p_F) = (
            ([example.source for example, _ in pairs], np.round([value for _, value in pairs], 9))
            for pairs in (right, wrong)
        )
        value, (low, high) = auc(p_T, p_F), auc_interval(p_T, p_F, of_true, of_false)
    let_through = None if threshold is None else sum(value >= threshold for _, value in wrong) / len(wrong)
    n = len(wrong) if name == PLANTED else len(right) + len(wrong)
    return KindStanding(kind=kind, set=name, n=n, auc=value, low=low, high=high, let_through=let_through)
