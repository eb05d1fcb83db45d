"""Figures of the influence that training documents had while they were trained on.

Knows what to draw and in which colour; the look and the embedding are `svg`'s.
"""

from synpro_engine.report import svg
from synpro_engine.report.in_run_records import InRunInfluence
from synpro_engine.report.numbers import fixed
from synpro_engine.report.panels import FigurePanel, legend_above, point_marks

_BINS = 30


def in_run_panels(scores: InRunInfluence) -> list[FigurePanel]:
    """Influence over training, and its distribution over documents."""
    return [_over_training(scores), _over_documents(scores)]


def unit(scores: InRunInfluence) -> str:
    """What one unit of influence is."""
    return f"influence (nats per {'nat of the reference' if scores.per_nat else 'unit of learning rate'})"


def _over_training(scores: InRunInfluence) -> FigurePanel:
    from matplotlib.ticker import MaxNLocator

    with svg.panel("in-run-steps", "Influence of the training text by training step") as drawn:
        axes = drawn.axes
        axes.fill_between(
            scores.steps, scores.low, scores.high, color=svg.BLUE, alpha=0.2, lw=0, label="eight tenths of the tokens"
        )
        axes.plot(scores.steps, scores.median, color=svg.BLUE, label="median token", **point_marks(scores.steps))
        axes.axhline(0, color=svg.INK, lw=0.8)
        axes.set_xlabel("training step")
        axes.set_ylabel(unit(scores))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        legend_above(axes, columns=2)
    return FigurePanel(
        title="Influence of what each step trained on",
        svg=drawn.svg,
        caption="Above zero, the documents of that step pulled the model the way the reference text does; the band "
        "leaves out the tenth of the tokens with the lowest and with the highest values.",
    )


def _over_documents(scores: InRunInfluence) -> FigurePanel:
    import numpy as np

    values = np.asarray(scores.documents)
    with svg.panel("in-run-documents", "Mean influence of each training document") as drawn:
        axes = drawn.axes
        median = float(np.median(values)) if len(values) else float("nan")
        label = f"{len(values)} documents, median {fixed(median, 4)}"
        axes.hist(values, _BINS, color=svg.BLUE, alpha=0.25)
        axes.hist(values, _BINS, color=svg.BLUE, histtype="step", lw=1.3, label=label)
        axes.axvline(0, color=svg.INK, lw=0.8)
        axes.set_xlabel(unit(scores))
        axes.set_ylabel("documents")
        axes.grid(visible=False, axis="x")
        legend_above(axes, columns=1)
    return FigurePanel(
        title="Mean influence of each document",
        svg=drawn.svg,
        caption="The mean over the tokens of a document that were in scored steps. It mixes early and late steps, and "
        "documents were scored at different times.",
    )
