"""Multiple-choice tasks on the way: how many questions are answered rightly, and how likely the right answers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from synpro_engine.report import svg
from synpro_engine.report.looks import look_of
from synpro_engine.report.numbers import compact
from synpro_engine.report.sections.pretraining import Plateau
from synpro_engine.report.svg import Panel

Measure = Literal["accuracy", "accuracy per byte", "bits per byte"]
_AXES: dict[Measure, str] = {
    "accuracy": "share answered rightly",
    "accuracy per byte": "share answered rightly",
    "bits per byte": "bits per byte of the right answer",
}


@dataclass(frozen=True, kw_only=True)
class TaskCurve:
    """One set of questions over the steps of a training. `name` is the arm's; None: pretraining."""

    task: str
    name: str | None
    steps: tuple[int, ...]
    accuracy: tuple[float, ...]
    accuracy_per_byte: tuple[float, ...]
    bits_per_byte: tuple[float, ...]

    def values(self, measure: Measure) -> tuple[float, ...]:
        """What a panel shows."""
        return {
            "accuracy": self.accuracy,
            "accuracy per byte": self.accuracy_per_byte,
            "bits per byte": self.bits_per_byte,
        }[measure]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What came of a training at its end."""

    task: str
    name: str
    seed: int | None
    accuracy: float | None
    accuracy_per_byte: float | None
    bits_per_byte: float | None


@dataclass(frozen=True, kw_only=True)
class QuestionsAsked:
    """A set: how many questions, and the accuracy of who guesses."""

    task: str
    questions: int
    chance: float


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """Questions asked while training. Curves are of the first seed, arms' rounds put end to end."""

    asked: tuple[QuestionsAsked, ...] = ()
    curves: tuple[TaskCurve, ...] = ()
    ends: tuple[TaskResult, ...] = ()
    missing: str = ""

    def panels(self, plateau: Plateau | None) -> list[Panel]:
        """Of each set both accuracies and the bits per byte of the right answers."""
        return [self._panel(asked, measure, plateau) for asked in self.asked for measure in _AXES]

    def _panel(self, asked: QuestionsAsked, measure: Measure, plateau: Plateau | None) -> Panel:
        names = list(dict.fromkeys(curve.name for curve in self.curves if curve.name is not None))
        caption = "Lower is better; it moves before accuracy leaves chance."
        if measure != "bits per byte":
            caption = f"Of {asked.questions} questions; dotted is what guessing earns."
        with svg.panel(
            f"task-{svg.slug(asked.task)}-{svg.slug(measure)}",
            f"{asked.task}: {measure} by training step",
            title=f"{asked.task}: {measure}",
            caption=caption,
        ) as panel:
            axes = panel.axes
            for curve in (curve for curve in self.curves if curve.task == asked.task):
                colour, dash = (svg.GREY, "-") if curve.name is None else look_of(curve.name, names)
                label = "pretraining" if curve.name is None else curve.name
                marks = svg.point_marks(curve.steps)
                axes.plot(curve.steps, curve.values(measure), color=colour, ls=dash, lw=1.5, label=label, **marks)
            if measure != "bits per byte":
                axes.axhline(asked.chance, color=svg.INK, lw=0.8, ls=":")
            _label(panel, _AXES[measure])
            if plateau is not None:
                plateau.mark(axes)
            svg.legend_above(axes, columns=2)
        return panel


def _label(panel: Panel, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    panel.axes.set_xlabel("training step")
    panel.axes.set_ylabel(unit)
    panel.axes.margins(y=0.15)
    panel.axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    panel.axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _position: compact(x)))


def joined(before: TaskCurve | None, curve: TaskCurve) -> TaskCurve:
    """Two rounds end to end: the first look of a round repeats the last one of the round before."""
    if before is None:
        return curve
    new = [at for at, step in enumerate(curve.steps) if step > before.steps[-1]]

    def both(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
        return (*first, *(second[at] for at in new))

    return TaskCurve(
        task=curve.task,
        name=curve.name,
        steps=(*before.steps, *(curve.steps[at] for at in new)),
        accuracy=both(before.accuracy, curve.accuracy),
        accuracy_per_byte=both(before.accuracy_per_byte, curve.accuracy_per_byte),
        bits_per_byte=both(before.bits_per_byte, curve.bits_per_byte),
    )
