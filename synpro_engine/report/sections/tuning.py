"""Tuning of the generator: its rewards, its distance from the untuned one, and the length of what it writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synpro_engine.report import svg
from synpro_engine.report.svg import Panel


@dataclass(frozen=True, kw_only=True)
class RewardCurves:
    """Means over the completions of each tuning step, of one operation's generator."""

    operation: str
    steps: tuple[int, ...]
    total: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]]  # before weighting
    weights: Mapping[str, float] = field(default_factory=dict)
    kl: tuple[float, ...] = ()  # k3 estimate to the reference policy, nats per token
    lengths: tuple[float, ...] = ()  # tokens per completion
    canaries: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """By judge (step, share of completions that it rated above themselves with a fault planted)."""
    canary_least: Mapping[str, float] = field(default_factory=dict)

    def panels(self, colours: Mapping[str, str]) -> list[Panel]:
        """Total reward, KL and completion length over the tuning steps; `colours` are by operation."""
        specs = (
            ("Total reward", "weighted sum", self.total, "Mean over the completions of a step; higher is better."),
            ("KL to the untuned generator", "nats per token", self.kl, "How far tuning has moved the generator."),
            ("Completion length", "tokens", self.lengths, "Shows whether reward is won by length alone."),
        )
        colour = colours[self.operation]
        return [
            self._by_step(title, values, colour, title=title, caption=caption, unit=unit, size=(300, 200))
            for title, unit, values, caption in specs
            if values
        ]

    def part_panels(self, colours: Mapping[str, str]) -> list[Panel]:
        """Each reward on its own scale, before weighting; `colours` are by operation."""
        panels: list[Panel] = []
        for part, values in self.parts.items():
            weight = self.weights.get(part)
            title = part.replace("_", " ") + ("" if weight is None else f" × {weight:g}")
            panels.append(self._by_step(part, values, colours[self.operation], title=title, size=(200, 115)))
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
            axes.plot(self.steps, values, color=colour, **svg.point_marks(self.steps))
            if unit:
                axes.set_xlabel("tuning step")
                axes.set_ylabel(unit)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.margins(y=0.15)
        return panel
