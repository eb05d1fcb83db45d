"""What a sweep leaves beside its trials: a record of each, a table, a picture, and the best as a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from synpro_engine.config import UserError, atomic_write_text, json_text, to_yaml
from synpro_engine.cycle import Recipe
from synpro_engine.cycle.sections import TunedConfig
from synpro_engine.report.numbers import seconds
from synpro_engine.report.parallel import Coordinate, parallel_coordinates
from synpro_engine.report.terminal import aligned, printable
from synpro_engine.sweep.ranges import Choices, Range, Value, with_settings
from synpro_engine.sweep.study import TrialRecord

TRIALS, TABLE, PICTURE, BEST = "trials.jsonl", "table.txt", "trials.svg", "best.yaml"

_WHY_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known of a sweep so far."""

    name: str
    """Of the sweep."""
    recipe: Recipe
    """That its trials differ from in what is swept alone."""
    ranges: tuple[Range, ...]
    measured: str
    """The held-out text whose loss it goes by."""
    trials: tuple[TrialRecord, ...]

    @property
    def best(self) -> TrialRecord | None:
        """The complete trial of the lowest loss; None where there is none."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.loss is not None]
        return min(complete, key=lambda trial: (trial.loss, trial.trial), default=None)

    def best_recipe(self) -> Recipe:
        """A complete recipe with the best trial's settings, which says where they are from."""
        if (best := self.best) is None or best.loss is None:
            raise UserError(f"{self.name}: no trial is complete, so none is the best")
        tuned = TunedConfig(
            sweep=self.name,
            trial=best.trial,
            trials=len(self.trials),
            measured=self.measured,
            loss=best.loss,
            settings=best.settings,
        )
        return with_settings(self.recipe, best.settings, self.name).model_copy(update={"tuned": tuned})

    def write(self, directory: Path, *, picture: bool) -> None:
        """Write all of it; the picture, which takes a second, where it is asked for."""
        records = "".join(json_text(trial.model_dump(mode="json")) + "\n" for trial in self.trials)
        atomic_write_text(directory / TRIALS, records)
        atomic_write_text(directory / TABLE, "".join(f"{line}\n" for line in self.table()))
        if self.best is not None:
            about = f"# The best of the sweep {self.name}, as a recipe for `synpro pretrain` and the other commands.\n"
            atomic_write_text(directory / BEST, about + to_yaml(self.best_recipe()))
        if picture:
            atomic_write_text(directory / PICTURE, self.picture())

    def table(self) -> Iterator[str]:
        """The trials, the best first, line by line."""
        names = _short([one.key for one in self.ranges])
        rows = [("trial", "state", f"{self.measured} loss", "step", *names, "time", "why")]
        rows += [self._row(trial) for trial in sorted(self.trials, key=_rank)]
        yield from aligned(rows, left=(0, 1, len(rows[0]) - 1))

    def _row(self, trial: TrialRecord) -> tuple[str, ...]:
        tried = (cell(trial.settings[one.key]) if one.key in trial.settings else "-" for one in self.ranges)
        loss = "-" if trial.loss is None else f"{trial.loss:.4f}"
        step = "-" if trial.step is None else str(trial.step)
        why = printable(trial.why or "")
        why = why if len(why) <= _WHY_CHARACTERS else f"{why[: _WHY_CHARACTERS - 3]}..."
        return f"{trial.trial:03d}", trial.state, loss, step, *tried, seconds(trial.seconds), why

    def picture(self) -> str:
        """Parallel coordinates of the trials that have their settings, as an SVG document."""
        shown = [trial for trial in self.trials if len(trial.settings) == len(self.ranges)]
        axes = [
            _axis(name, one, [trial.settings[one.key] for trial in shown])
            for name, one in zip(_short([one.key for one in self.ranges]), self.ranges, strict=True)
        ]
        axes.append(Coordinate(name=f"{self.measured} loss", values=tuple(trial.loss for trial in shown)))
        best = None if self.best is None else shown.index(self.best)
        return parallel_coordinates(axes, best, [trial.state != "complete" for trial in shown])


def _axis(name: str, one: Range, values: Sequence[Value]) -> Coordinate:
    if isinstance(one, Choices):
        choices = tuple(map(cell, one.values))
        return Coordinate(name=name, values=tuple(map(cell, values)), choices=choices)
    numbers = [value if isinstance(value, int | float) else None for value in values]
    return Coordinate(name=name, values=tuple(numbers), log=one.log)


def _rank(trial: TrialRecord) -> tuple[bool, float, int]:
    complete = trial.state == "complete" and trial.loss is not None
    return not complete, trial.loss if complete and trial.loss is not None else 0.0, trial.trial


def cell(value: Value) -> str:
    """A setting as a table shows it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def _short(keys: Sequence[str]) -> list[str]:
    """Keys by their last part where that is enough to tell them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]
