"""Tuning of the generator: its rewards, its distance from the untuned one, and the length of what it writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synpro_engine.report import svg
from synpro_engine.report.svg import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A reward on slices that never train, after so many steps.

    band: the 95 % interval of its change since the first measurement, around the value; None where it is not known.
    """

    step: int
    value: float
    band: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class RewardCurves:
    """Means over the completions of each tuning step, of one operation's generator."""

    operation: str
    steps: tuple[int, ...]
    total: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]]  # before weighting
    weights: Mapping[str, float] = field(default_factory=dict)
    kl: tuple[float, ...] = ()
    """Estimated KL to the reference policy, nats per token; NaN where a step has none, empty without a reference."""
    estimate: str = "k3"
    """Which estimate (k1, k2 or k3)."""
    within_nucleus: bool = False
    """Whether tokens were drawn, and policies compared, among a part of the vocabulary alone."""
    lengths: tuple[float, ...] = ()  # tokens per completion
    held_out: Mapping[str, Sequence[Measured]] = field(default_factory=dict)
    """By part, "" for the total: what it was on slices that never train."""
    facts: Sequence[tuple[int, float]] = ()
    """(step, share of planted facts that its texts kept), on slices that never train."""
    canaries: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """By judge (step, share of completions that it rated above themselves with a fault planted)."""
    canary_least: Mapping[str, float] = field(default_factory=dict)

    def panels(self, colours: Mapping[str, str]) -> list[Panel]:
        """Total reward, KL and completion length over the tuning steps; `colours` are by operation."""
        total = "Mean over the completions of a step; higher is better."
        if self.held_out:
            total += (
                " Steps hop with their slices; those held out never train and are the same each time. The band is the"
                " 95 % interval of what has changed on them since the first measurement (dotted)."
            )
        specs = (
            ("Total reward", "weighted sum", self.total, total),
            ("KL to the untuned generator", "nats per token", self.kl, self._about_kl()),
            ("Completion length", "tokens", self.lengths, "Shows whether reward is won by length alone."),
        )
        colour = colours[self.operation]
        return [
            self._by_step(
                title,
                values,
                colour,
                title=title,
                caption=caption,
                unit=unit,
                size=(300, 200),
                held_out=self.held_out.get("", ()) if values is self.total else (),
            )
            for title, unit, values, caption in specs
            if values
        ]

    def _about_kl(self) -> str:
        told = f"How far tuning has moved the generator: the estimate {self.estimate} at the tokens that were drawn."
        if self.within_nucleus:
            told += " Both are compared among the ids that sampling left; what moved outside of these does not show."
        return told

    def part_panels(self, colours: Mapping[str, str]) -> list[Panel]:
        """Each reward on its own scale, before weighting; `colours` are by operation."""
        panels: list[Panel] = []
        for part, values in self.parts.items():
            weight = self.weights.get(part)
            title = part.replace("_", " ") + ("" if weight is None else f" × {weight:g}")
            held_out = self.held_out.get(part, ())
            panels.append(
                self._by_step(part, values, colours[self.operation], title=title, size=(200, 115), held_out=held_out)
            )
        return panels

    def canary_panels(self, colours: Mapping[str, str]) -> list[Panel]:
        """What each judge still sees of planted faults, from chance to all; `colours` are by operation."""
        from matplotlib.ticker import MaxNLocator

        panels: list[Panel] = []
        for judge, looks in self.canaries.items():
            title = judge.replace("_", " ")
            name = f"tuning-{svg.slug(self.operation)}-canary-{svg.slug(judge)}"
            about = f"{self.operation}: share of completions that {title} rates above themselves with a fault, by step"
            with svg.panel(name, about, title=title, width=200, height=115) as panel:
                steps, shares = zip(*looks, strict=True)
                panel.axes.plot(steps, shares, color=colours[self.operation], **svg.point_marks(steps))
                for level in (0.5, self.canary_least.get(judge, 0.5)):
                    panel.axes.axhline(level, color="#999999", linewidth=0.8, linestyle=":")
                panel.axes.set_ylim(min(0.4, *shares) - 0.05, 1.05)
                panel.axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            panels.append(panel)
        return panels

    def _by_step(
        self,
        name: str,
        values: Sequence[float],
        colour: str,
        *,
        title: str,
        size: tuple[int, int],
        held_out: Sequence[Measured] = (),
        caption: str = "",
        unit: str = "",
    ) -> Panel:
        from matplotlib.ticker import MaxNLocator

        with svg.panel(
            f"tuning-{svg.slug(self.operation)}-{svg.slug(name)}",
            f"{self.operation}: {name} by tuning step",
            title=title,
            caption=caption,
            width=size[0],
            height=size[1],
        ) as panel:
            axes = panel.axes
            if held_out:
                # The steps are the noise that it stands out from.
                axes.plot(self.steps, values, color=colour, lw=1, alpha=0.55, label="each step's slices")
                _draw_measured(axes, held_out)
            else:
                axes.plot(self.steps, values, color=colour, **svg.point_marks(self.steps))
            if held_out and unit:
                svg.legend_above(axes, columns=2)
            if unit:
                axes.set_xlabel("tuning step")
                axes.set_ylabel(unit)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.margins(y=0.15)
        return panel


def _draw_measured(axes: "Axes", measured: Sequence[Measured]) -> None:
    banded = [(one.step, *one.band) for one in measured if one.band is not None]
    if banded:
        steps, low, high = zip(*banded, strict=True)
        axes.fill_between(steps, low, high, color=svg.INK, alpha=0.15, lw=0)
        axes.axhline(measured[0].value, color=svg.GREY, lw=0.8, ls=":")
    steps = [one.step for one in measured]
    axes.plot(steps, [one.value for one in measured], color=svg.INK, label="held-out slices", **svg.point_marks(steps))
