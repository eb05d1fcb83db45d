"""What trainings are worth in unique text, against one curve or several of them, as tables say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.tables import markdown
from synpro_engine.evaluate.effective_tokens import UniqueCurve, effective_multiple
from synpro_engine.evaluate.repetition import NAMES, readings_of

Record = Mapping[str, Any]
_SIZES = 3
"""Of a curve, for a law to be fitted."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Trainings of one arm. unique: tokens of its organic text. total: tokens read, again or synthetic ones too."""

    unique: float
    total: float
    losses: tuple[float, ...]
    """By seed."""


def trained(records: Sequence[Record], loss: Callable[[Record], float]) -> Trained:
    """Of an arm's records, one or more."""
    unique, total = (float(records[0][key]) for key in ("unique_tokens", "tokens"))
    return Trained(unique=unique, total=total, losses=tuple(map(loss, records)))


def curve_of(arms: Mapping[str, Trained], names: Sequence[str]) -> UniqueCurve | None:
    """Of the arms of a curve, from the fewest tokens on: None where the first, or all others, are not there."""
    found = [arms[name] for name in names if name in arms]
    if len(found) < 2 or names[0] not in arms:
        return None
    return UniqueCurve(
        tokens=tuple(one.unique for one in found),
        losses=tuple(one.losses for one in found),
        totals=tuple(one.total for one in found),
    )


def multiples(arm: Trained, curve: UniqueCurve | None, *, paired: bool = False) -> list[str]:
    """What an arm is worth, in the order of `NAMES`; nothing where the curve has too few sizes so far.

    paired: as of `effective_multiple`.
    """
    if curve is None or len(curve.tokens) < _SIZES:
        return ["" for _ in NAMES]
    readings = readings_of(curve, arm.total)
    return [
        effective_multiple(curve, arm.losses, readings[name], paired=paired).told(curve) if name in readings else ""
        for name in NAMES
    ]


def worth(arms: Mapping[str, Trained], curves: Mapping[str, Sequence[str]]) -> str:
    """A table of what each arm is worth against each curve, and what curves lack; "" where there is no arm.

    curves: by what each is of, the names of its arms from the fewest tokens on.
    """
    larger = {name for names in curves.values() for name in names[1:]}
    found = {of: curve_of(arms, names) for of, names in curves.items()}
    rows = [
        (name, *(cell for curve in found.values() for cell in multiples(arm, curve)))
        for name, arm in arms.items()
        if name not in larger
    ]
    lines = []
    for of, names in curves.items():
        there, lacking = [name for name in names if name in arms], [f"`{name}`" for name in names if name not in arms]
        if lacking:
            told = "is read off fewer sizes than it will have" if len(there) >= _SIZES else "waits for three sizes"
            lines.append(f"The multiple of {of} {told}: {', '.join(lacking)} {_IS[len(lacking) > 1]} missing.")
    table = markdown(("arm", *(f"{of}, {name}" for of in curves for name in NAMES)), rows) if rows else ""
    return "\n\n".join(part for part in (table, "\n".join(lines)) if part) if rows else ""


_IS = ("is", "are")
