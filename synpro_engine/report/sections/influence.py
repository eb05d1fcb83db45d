"""Influence of training documents, measured while they were read, and of what the generator read and wrote."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from synpro_engine.report import svg
from synpro_engine.report.numbers import fixed
from synpro_engine.report.svg import Panel

_DOCUMENT_BINS, _TEXT_BINS = 30, 24
_OPERATION_CAPTION = (
    "Right of zero, what lowers the loss on the reference also lowers it on the text; dashed lines are medians."
)


@dataclass(frozen=True, kw_only=True)
class ScoredDocument:
    """A training document, its mean influence over the `tokens` that were scored, and its first words."""

    id: str
    words: str
    value: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class InRunInfluence:
    """Influence of training documents, measured in the steps that trained on them.

    To first order, along the reference gradient: as the optimizer's next step would meet it (`per_nat`: nats per token
    for a step that lowers the loss of the reference by one nat per token), or as it is (per unit of learning rate).
    """

    per_nat: bool
    steps: tuple[int, ...]  # those that were scored
    trained_steps: int
    low: tuple[float, ...]  # of each scored step: the value that a tenth of its tokens lies below,
    median: tuple[float, ...]
    high: tuple[float, ...]  # and above
    documents: tuple[float, ...]  # each document's mean over all scored steps
    least_tokens: int  # documents with fewer scored tokens are in neither list
    best: tuple[ScoredDocument, ...]  # most helpful first
    worst: tuple[ScoredDocument, ...]  # least helpful first
    agreement: float | None  # rank correlation of documents' means over the first and the second half of scored steps
    agreeing_documents: int  # those that stand in both
    unscored_seconds: float | None  # median of a step that was not scored; None where all were
    scored_seconds: float  # median, with the scoring
    renewals: int  # of the direction
    renewal_seconds: float  # all of them together

    @property
    def cost_share(self) -> float | None:
        """Time that scoring added, as a share of the time of the same steps without it; None where that is unknown."""
        if not self.unscored_seconds:
            return None
        added = len(self.steps) * (self.scored_seconds - self.unscored_seconds) + self.renewal_seconds
        return added / (self.trained_steps * self.unscored_seconds)

    def panels(self) -> list[Panel]:
        """Influence over training, and its distribution over documents."""
        unit = f"influence (nats per {'nat of the reference' if self.per_nat else 'unit of learning rate'})"
        return [self._over_training(unit), self._over_documents(unit)]

    def _over_training(self, unit: str) -> Panel:
        from matplotlib.ticker import MaxNLocator

        with svg.panel(
            "in-run-steps",
            "Influence of the training text by training step",
            title="Influence of what each step trained on",
            caption="Above zero, the documents of that step pulled the model the way the reference text does; the band "
            "leaves out the tenth of the tokens with the lowest and with the highest values.",
        ) as panel:
            axes, band = panel.axes, "eight tenths of the tokens"
            axes.fill_between(self.steps, self.low, self.high, color=svg.BLUE, alpha=0.2, lw=0, label=band)
            axes.plot(self.steps, self.median, color=svg.BLUE, label="median token", **svg.point_marks(self.steps))
            axes.axhline(0, color=svg.INK, lw=0.8)
            axes.set_xlabel("training step")
            axes.set_ylabel(unit)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
            svg.legend_above(axes, columns=2)
        return panel

    def _over_documents(self, unit: str) -> Panel:
        import numpy as np

        values = np.asarray(self.documents)
        with svg.panel(
            "in-run-documents",
            "Mean influence of each training document",
            title="Mean influence of each document",
            caption="The mean over the tokens of a document that were in scored steps. It mixes early and late steps, "
            "and documents were scored at different times.",
        ) as panel:
            axes = panel.axes
            median = float(np.median(values)) if len(values) else float("nan")
            label = f"{len(values)} documents, median {fixed(median, 4)}"
            axes.hist(values, _DOCUMENT_BINS, color=svg.BLUE, alpha=0.25)
            axes.hist(values, _DOCUMENT_BINS, color=svg.BLUE, histtype="step", lw=1.3, label=label)
            axes.axvline(0, color=svg.INK, lw=0.8)
            axes.set_xlabel(unit)
            axes.set_ylabel("documents")
            axes.grid(visible=False, axis="x")
            svg.legend_above(axes, columns=1)
        return panel


@dataclass(frozen=True, kw_only=True)
class OperationInfluence:
    """Influence, in nats per token, of an operation's source slices and of the texts made from them.

    By how much the loss of a text falls when the weights move as the reference wants: by a probe's walk, or, `per_nat`,
    along a step that would lower the loss of the reference by one nat per token, to first order.
    """

    operation: str
    per_nat: bool
    sources: tuple[float, ...]
    generated: tuple[float, ...]
    references: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Medians of the sources and of the texts along each reference alone, where there are several."""

    def panel(self, colour: str) -> Panel:
        """Distribution over source slices and over generated texts."""
        import numpy as np

        values = np.asarray((*self.sources, *self.generated), dtype=float)
        finite = values[np.isfinite(values)]
        edges = np.linspace(finite.min(), finite.max(), _TEXT_BINS + 1) if len(finite) and np.ptp(finite) else 12
        unknown = len(values) - len(finite)
        left_out = f" Texts left out because their value is not finite: {unknown}." if unknown else ""
        with svg.panel(
            f"influence-{svg.slug(self.operation)}",
            f"Influence of {self.operation} texts",
            title=self.operation,
            caption=_OPERATION_CAPTION + left_out,
        ) as panel:
            axes = panel.axes
            for texts, name, tint in ((self.sources, "source", svg.GREY), (self.generated, "generated", colour)):
                sample = np.asarray([value for value in texts if np.isfinite(value)])
                if len(sample):
                    median = float(np.median(sample))
                    share = np.full(len(sample), 100 / len(sample))
                    label = f"{name}: {len(sample)} texts, median {fixed(median, 4)}"
                    axes.hist(sample, edges, weights=share, color=tint, alpha=0.25)
                    axes.hist(sample, edges, weights=share, color=tint, histtype="step", lw=1.3, label=label)
                    axes.axvline(median, color=tint, lw=1.4, ls=(0, (4, 2)))
            axes.axvline(0, color=svg.INK, lw=0.8)
            axes.set_xlabel(f"influence (nats per {'nat of the reference' if self.per_nat else 'token'})")
            axes.set_ylabel("share of texts (%)")
            axes.grid(visible=False, axis="x")
            if len(finite):
                svg.legend_above(axes, columns=1)
        return panel


@dataclass(frozen=True, kw_only=True)
class Influence:
    """`in_run`: of training documents. `operations`: of generated texts, on the model at the plateau."""

    in_run: InRunInfluence | None = None
    operations: tuple[OperationInfluence, ...] = ()

    def operation_panels(self, colours: Mapping[str, str]) -> list[Panel]:
        """One panel for each operation; `colours` are by operation."""
        return [influence.panel(colours[influence.operation]) for influence in self.operations]
