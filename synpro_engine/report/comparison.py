"""Several runs side by side: what is set otherwise, losses, tokens, cost and gauges.

Losses of one text by one tokenizer are compared in nats per token; of runs with different tokenizers in bits per byte
alone, and of runs that are measured on different text the page says so.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

from synpro_engine.config import brief
from synpro_engine.evaluate import Diversity
from synpro_engine.report import svg
from synpro_engine.report.compared_run import ComparedRun
from synpro_engine.report.data import Section
from synpro_engine.report.looks import legend_label, look_of
from synpro_engine.report.numbers import MISSING, compact, count, fixed, seconds, standard_error
from synpro_engine.report.sections.pretraining import Curve, CurveKind
from synpro_engine.report.svg import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTIONS = tuple(
    Section(key=key, title=title)
    for key, title in (
        ("settings", "Settings that differ"),
        ("curves", "Losses on the way"),
        ("losses", "Held-out losses"),
        ("account", "Tokens"),
        ("cost", "Time"),
        ("gauges", "Gauges of the texts"),
    )
)
_UNSET = "–"
_MEASURED: tuple[CurveKind, ...] = ("validation", "reference")
Row = tuple[str, tuple[str, ...]]
"""What a row is of, and a cell for each run."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs or more, in the order in which they were named."""

    title: str
    created: str
    runs: tuple[ComparedRun, ...]

    @property
    def one_tokenizer(self) -> bool:
        """Whether losses per token can be compared."""
        return not _differ(run.tokenizer for run in self.runs)

    @property
    def warnings(self) -> list[str]:
        """What makes the runs hard to compare, in sentences."""
        told = [] if self.one_tokenizer else ["The runs have different tokenizers, so losses are in bits per byte."]
        undrawn = [run.label for run in self.runs if not run.split_alone]
        if undrawn and not self.one_tokenizer:
            told.append(f"Reference losses are of tasks or of several texts, and not drawn, in {', '.join(undrawn)}.")
        others: list[str] = [kind for kind in _MEASURED if _differ(run.texts[kind] for run in self.runs)]
        names = dict.fromkeys(name for run in self.runs for name in run.tasks)
        others += [name for name in names if _differ(run.tasks.get(name) for run in self.runs)]
        if others:
            told.append(
                f"Their {' and '.join(others)} texts differ: losses on these are of different text, and tell the runs"
                " apart only as far as the texts are alike."
            )
        apart = [run.label for run in self.runs if run.reads_apart]
        if 0 < len(apart) < len(self.runs):
            told.append(
                f"Documents of a window do not see each other in {', '.join(apart)} (`pretrain.separate_documents`) and"
                " do in the others: losses are measured so too, and differ by that alone."
            )
        if len({run.data.recipe for run in self.runs}) > 1:
            told.append("The runs are of different recipes: arms of one name may be different things.")
        return told

    # What the runs are.

    @property
    def overview(self) -> list[Row]:
        """A line or two of each run."""
        return [
            ("directory", tuple(run.place for run in self.runs)),
            ("recipe", self._each(lambda run: run.data.recipe)),
            ("model", self._each(lambda run: run.model)),
            ("device", self._each(lambda run: _of(run.data.environment, lambda e: e.device))),
            ("layout", self._each(lambda run: _of(run.data.environment, lambda e: e.layout))),
            ("stages", self._each(lambda run: run.stages)),
            ("plateau", self._each(lambda run: run.plateau)),
        ]

    @property
    def settings(self) -> list[Row]:
        """By dotted key, the settings that not all runs have alike."""
        leaves = [run.settings for run in self.runs]
        keys = dict.fromkeys(key for of in leaves for key in of)
        # By all of a value, of which a cell shows the beginning.
        apart = [key for key in keys if key != "name" and len({repr(of.get(key, _UNSET)) for of in leaves}) > 1]
        return [(key, tuple(_setting(of, key) for of in leaves)) for key in apart]

    # Losses.

    @property
    def unit(self) -> str:
        """Of the curves."""
        return "nats per token" if self.one_tokenizer else "bits per byte"

    def panels(self) -> list[Panel]:
        """Loss by trained tokens: of pretraining on each text, of each arm that several have on the validation text."""
        found = [self._panel(f"Pretraining, {kind} loss", kind, _pretraining) for kind in _MEASURED]
        named = [{curve.name: None for curve in run.data.arms.curves} for run in self.runs]
        arms = [name for name in dict.fromkeys(chain.from_iterable(named)) if sum(name in of for of in named) > 1]
        found += [self._panel(f"Arm {name}, validation loss", "validation", _curves_of(name)) for name in arms]
        return [panel for panel in found if panel is not None]

    def _panel(self, title: str, kind: CurveKind, of: Callable[[ComparedRun], Sequence[Curve]]) -> Panel | None:
        labels = [run.label for run in self.runs]
        drawn = [
            (run, curve) for run in self.runs for curve in of(run) if curve.kind == kind and self._shows(run, curve)
        ]
        # Of several references the one that the plateau goes by.
        drawn = [(run, curve) for run, curve in drawn if curve == next(c for r, c in drawn if r is run)]
        if not drawn:
            return None
        with svg.panel(f"compared-{svg.slug(title)}", f"{title}, of each run", title=title, height=290) as panel:
            for run, curve in drawn:
                colour, dash = look_of(run.label, labels)
                tokens = [step * run.tokens_per_step for step in curve.steps]
                losses = [loss * self._scale(run, kind) for loss in curve.loss]
                marks = svg.point_marks(tokens)
                if curve.seeds > 1:
                    low, high = ([loss * self._scale(run, kind) for loss in ends] for ends in (curve.low, curve.high))
                    svg.band(panel.axes, tokens, low, high, colour)
                panel.axes.plot(tokens, losses, color=colour, ls=dash, lw=1.6, label=legend_label(run.label), **marks)
            _label(panel.axes, self.unit)
            svg.legend_above(panel.axes, columns=2)
        return panel

    def _shows(self, run: ComparedRun, curve: Curve) -> bool:
        return bool(curve.steps) and (self.one_tokenizer or run.per_byte(curve.kind) is not None)

    def _scale(self, run: ComparedRun, kind: CurveKind) -> float:
        return 1.0 if self.one_tokenizer else run.per_byte(kind) or math.nan

    @property
    def losses(self) -> list[Row]:
        """Of each arm and text the mean over seeds, with its standard error, in bits per byte."""
        return self._held_out(lambda row: row.bits_per_byte)

    @property
    def token_losses(self) -> list[Row]:
        """The same in nats per token; nothing where tokenizers differ."""
        return self._held_out(lambda row: row.per_token) if self.one_tokenizer else []

    def _held_out(self, of: Callable[[Any], float | None]) -> list[Row]:
        found: dict[str, dict[str, list[float]]] = {}
        for run in self.runs:
            for row in run.data.arms.held_out:
                value = of(row)
                if value is not None:
                    key = row.name if row.text == "validation" else f"{row.name}, {row.text}"
                    found.setdefault(key, {}).setdefault(run.label, []).append(value)
        return [(key, tuple(_mean(by_run.get(run.label, ())) for run in self.runs)) for key, by_run in found.items()]

    # Tokens, time and gauges.

    @property
    def tokens(self) -> list[Row]:
        """Where training tokens came from."""
        rows: list[Row] = [
            ("organic, unique", self._tokens(lambda t: count(t.organic_unique))),
            ("until the plateau", self._tokens(lambda t: count(t.pretrain_seen))),
            ("epochs until the plateau", self._tokens(lambda t: fixed(t.epochs_before_plateau, 1))),
            ("synthetic, made", self._tokens(lambda t: count(sum(t.synthetic.values())))),
        ]
        arms = dict.fromkeys(arm.name for run in self.runs if run.data.tokens for arm in run.data.tokens.arms)
        made = [(f"{name}: organic + synthetic", self._tokens(partial(_arm_tokens, name=name))) for name in arms]
        return [*rows, *made]

    @property
    def times(self) -> list[Row]:
        """Of each stage, and of all."""
        spent = [{stage.name: stage.seconds for stage in run.data.timeline.stages} for run in self.runs]
        names = dict.fromkeys(name for of in spent for name in of)
        rows = [(name, tuple(seconds(of.get(name)) for of in spent)) for name in names]
        return [*rows, ("all stages", self._each(lambda run: seconds(run.data.timeline.total_seconds)))]

    @property
    def gauges(self) -> Iterator[tuple[str, str, Diversity]]:
        """Run, texts, and what was measured of them."""
        for run in self.runs:
            for name, measured in run.data.diversity.items():
                yield run.label, name, measured

    @property
    def yields(self) -> list[Row]:
        """Completions that were kept, of those generated."""
        names = dict.fromkeys(name for run in self.runs for name in run.data.yields)
        return [(name, self._each(partial(ComparedRun.kept, texts=name))) for name in names]

    def _each(self, of: Callable[[ComparedRun], str]) -> tuple[str, ...]:
        return tuple(of(run) for run in self.runs)

    def _tokens(self, of: Callable[[Any], str]) -> tuple[str, ...]:
        return self._each(lambda run: MISSING if run.data.tokens is None else of(run.data.tokens))


def _differ(found: Iterable[str | None]) -> bool:
    """Whether there are two or more; None, of a run that is not that far, differs from nothing."""
    return len(set(found) - {None}) > 1


def _of(part: Any, told: Callable[[Any], str]) -> str:
    return MISSING if part is None else told(part)


def _setting(leaves: Mapping[str, object], key: str) -> str:
    return brief(leaves[key]) if key in leaves else _UNSET


def _pretraining(run: ComparedRun) -> Sequence[Curve]:
    return run.data.pretraining.curves


def _curves_of(arm: str) -> Callable[[ComparedRun], list[Curve]]:
    return lambda run: [curve for curve in run.data.arms.curves if curve.name == arm]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    error = f" ± {fixed(standard_error(values))} ({len(values)})" if len(values) > 1 else ""
    return fixed(fmean(values)) + error


def _arm_tokens(tokens: Any, name: str) -> str:
    found = next((arm for arm in tokens.arms if arm.name == name), None)
    if found is None:
        return MISSING
    more = f" + {count(found.unique)} more of organic's kind" if found.unique else ""
    return f"{count(found.organic)} + {count(found.synthetic)}{more}"


def _label(axes: "Axes", unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("tokens trained on")
    axes.set_ylabel(f"loss ({unit})")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _position: compact(x)))
