"""Effective tokens: what the arms' losses are worth in unique text, by curves of arms that had more of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from synpro_engine.evaluate.effective_tokens import (
    Reading,
    UniqueCurve,
    effective_multiple,
    fitted_power_law,
    pooled,
)
from synpro_engine.evaluate.repetition import readings_of
from synpro_engine.report import svg
from synpro_engine.report.looks import look_of
from synpro_engine.report.numbers import compact
from synpro_engine.report.svg import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RESAMPLES = 1000
_FOR_A_LAW = 3  # sizes
_DRAWN = 60  # places of a fitted curve


@dataclass(frozen=True, kw_only=True)
class UniquePoint:
    """Arms that had so many unique tokens, and their losses, nats per token of the validation split, by seed."""

    arms: tuple[str, ...]
    tokens: float
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Worth:
    """An arm's losses and what they are worth, by reading (`1.84 (1.62 to > 8)`); "" where a reading says nothing."""

    name: str
    losses: tuple[float, ...]
    multiples: Mapping[str, str]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(self.losses)


@dataclass(frozen=True, kw_only=True)
class EffectiveCurve:
    """One curve: repetition of the organic text, and oracles that trained alike and had more unique text."""

    base: str
    """The arm of repetition that it begins with."""
    settings: str
    """What is set otherwise for it and its oracles than for the run; "" for nothing: it is untuned."""
    points: tuple[UniquePoint, ...]
    """From the fewest tokens to the most, the first of which are the base's; two at the least."""
    arms: Mapping[str, tuple[float, ...]]
    """The losses of the arms that are held to it, by seed; the base is among them."""
    total: float | None = None
    """Tokens that each of them was trained on in all; None where nobody knows."""
    missing: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What multiples are of."""
        return f"Against {self.base} ({'tuned: ' + self.settings if self.settings else 'untuned'})"

    @property
    def curve(self) -> UniqueCurve:
        """The points."""
        return UniqueCurve(
            tokens=tuple(point.tokens for point in self.points),
            losses=tuple(point.losses for point in self.points),
            totals=None if self.total is None else (self.total,) * len(self.points),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing, and where the curve itself says little."""
        level = self.curve.level
        rise = (
            f"The losses of the first {level} sizes rise, and straight lines take their mean for all of them: up to"
            f" {self.points[level - 1].tokens / self.points[0].tokens:.3g} times the text multiples are not told apart"
        )
        return (*self.missing, rise) if level > 1 else self.missing

    @property
    def readings(self) -> Mapping[str, Reading]:
        """Those that so many sizes allow."""
        return {
            name: reading
            for name, reading in readings_of(self.curve, self.total).items()
            if name == "isotonic" or len(self.points) >= _FOR_A_LAW
        }

    def worth(self) -> Iterator[Worth]:
        """What each arm is worth."""
        curve = self.curve
        for name, losses in self.arms.items():
            alone = len(losses) == 1 and all(len(some) == 1 for some in curve.losses)
            told = {
                name: effective_multiple(curve, losses, reading, resamples=1 if alone else _RESAMPLES).told(curve)
                for name, reading in self.readings.items()
            }
            # Of one seed alone an interval would be a point that looks like certainty.
            shown = {reading: text.partition(" (")[0] if alone else text for reading, text in told.items()}
            yield Worth(name=name, losses=losses, multiples=shown)

    def panel(self) -> Panel:
        """The curve with each seed's loss, its straight lines and power law, and the arms' mean losses across it."""
        curve, names = self.curve, list(self.arms)
        tokens_S, mean_S = np.array(curve.tokens), curve.means
        with svg.panel(
            f"effective-{svg.slug(self.base)}",
            f"Loss by unique tokens against {self.base}, and the losses of the arms",
            title="Loss by unique tokens",
            caption="Validation loss of training on so many unique tokens, a dot for each seed; the line joins the"
            " means, losses that rise pooled, the dotted one is a power law fitted to them. An arm is worth the tokens"
            " at which its line crosses the curve; one that does not cross lies beyond what was measured.",
            height=320,
        ) as panel:
            axes = panel.axes
            axes.set_xscale("log", base=2)
            for tokens, some in zip(curve.tokens, curve.losses, strict=True):
                axes.plot([tokens] * len(some), some, "o", color=svg.INK, ms=3, alpha=0.55, mew=0)
            axes.plot(tokens_S, pooled(mean_S), color=svg.INK, lw=1.6, label="unique text")
            law = fitted_power_law(tokens_S, mean_S) if len(tokens_S) > 2 else None
            if law is not None:
                along = np.geomspace(tokens_S[0], tokens_S[-1], _DRAWN)
                axes.plot(along, [law.at(x / tokens_S[0]) for x in along], color=svg.INK, lw=1, ls=":")
            for name in names:
                colour, dash = look_of(name, names)
                axes.axhline(fmean(self.arms[name]), color=colour, ls=dash, lw=1.2, label=name)
            _label(axes, curve)
            svg.legend_above(axes, columns=2)
        return panel


@dataclass(frozen=True, kw_only=True)
class EffectiveTokens:
    """The curves that a run's arms make, and what it would take to have more of them."""

    curves: tuple[EffectiveCurve, ...] = ()
    missing: tuple[str, ...] = ()


def _label(axes: "Axes", curve: UniqueCurve) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axes.set_xlabel("unique tokens")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_locator(FixedLocator(curve.tokens))
    axes.xaxis.set_major_formatter(FixedFormatter([compact(tokens) for tokens in curve.tokens]))
    axes.xaxis.set_minor_locator(NullLocator())
