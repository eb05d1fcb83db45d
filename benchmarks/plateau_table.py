"""How often the plateau detector stops a run that still improves, and how soon it finds one that does not.

`python -m benchmarks.plateau_table` draws series of losses, gives them to the detector as training would, and prints
the tables of docs/plateau.md (`--write` puts them there). Arithmetic only: some minutes on one core, and the same
numbers everywhere, for the seed is fixed.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.command import command_line
from benchmarks.common.documents import renew
from benchmarks.common.environment import ROOT
from benchmarks.common.tables import markdown
from synpro_engine.train.config import PlateauConfig
from synpro_engine.train.plateau import PlateauDetector

DOCUMENT = ROOT / "docs" / "plateau.md"
WINDOW = PlateauConfig().window
LENGTH, SOON = 60, 12
"""Evaluations of a series that must not be stopped, and within which a plateau must be found."""
RULES = {
    "slope": PlateauConfig(),
    "windows": PlateauConfig(rule="windows", min_improvement=0.005, patience=2),
}
Series = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Series of one kind. begins: evaluations before the plateau; None where there is none, and a stop is false."""

    name: str
    make: Callable[[np.random.Generator], Series]
    begins: int | None = None


def falling(share: float, length: int) -> Series:
    """A loss that loses `share` of itself at each evaluation."""
    return 4.0 * (1.0 - share) ** np.arange(length)


def noisy(truth: Series, noise: float) -> Callable[[np.random.Generator], Series]:
    """The series with independent relative noise."""
    return lambda rng: truth * (1.0 + noise * rng.standard_normal(len(truth)))


def remembering(truth: Series, noise: float) -> Callable[[np.random.Generator], Series]:
    """The series with noise of which half lasts to the next evaluation (autoregressive, 0.5)."""

    def make(rng: np.random.Generator) -> Series:
        errors = noise * rng.standard_normal(len(truth))
        for n in range(1, len(errors)):
            errors[n] = 0.5 * errors[n - 1] + math.sqrt(0.75) * errors[n]
        return truth * (1.0 + errors)

    return make


def heavy(truth: Series, noise: float) -> Callable[[np.random.Generator], Series]:
    """The series with heavy-tailed noise of this standard deviation (Student's t, 3 degrees of freedom)."""
    return lambda rng: truth * (1.0 + noise / math.sqrt(3.0) * rng.standard_t(3, len(truth)))


def spiked(factor: float, noise: float = 0.0, share: float = 0.02) -> Callable[[np.random.Generator], Series]:
    """A steady fall with one evaluation, anywhere, at `factor` times its loss."""

    def make(rng: np.random.Generator) -> Series:
        series = noisy(falling(share, LENGTH), noise)(rng)
        series[rng.integers(LENGTH)] *= factor
        return series

    return make


def cases() -> Iterator[Case]:
    """All rows of the tables."""
    for factor, name in ((1.2, "x1.2"), (2.0, "x2"), (math.nan, "NaN")):
        for noise in (0.0, 0.005):
            yield Case(name=f"falls 2 % an evaluation, one at {name}, noise {noise:.1%}", make=spiked(factor, noise))
    slow = 0.012
    steady = falling(1.0 - (1.0 - slow) ** (1.0 / WINDOW), LENGTH)
    for noise in (0.0, 0.002, 0.005, 0.01, 0.02):
        yield Case(name=f"falls {slow:.1%} in {WINDOW} evaluations, noise {noise:.1%}", make=noisy(steady, noise))
    yield Case(name=f"falls {slow:.1%} in {WINDOW}, heavy-tailed noise 0.5%", make=heavy(steady, 0.005))
    yield Case(name=f"falls {slow:.1%} in {WINDOW}, noise 0.5% that lasts", make=remembering(steady, 0.005))
    evaluations = np.arange(1, LENGTH + 1)
    for noise in (0.0, 0.005):  # at its end it still falls by 1.25 % in 3 evaluations
        yield Case(name=f"power law, exponent 0.25, noise {noise:.1%}", make=noisy(6.0 * evaluations**-0.25, noise))
    for noise in (0.0, 0.002, 0.005, 0.01):
        yield Case(name=f"flat, noise {noise:.1%}", make=noisy(falling(0.0, SOON), noise), begins=0)
    for noise in (0.0, 0.002, 0.005, 0.01):
        bent = np.concatenate([falling(0.02, 20), np.full(SOON, 4.0 * 0.98**19)])
        yield Case(name=f"falls 2 % an evaluation, then flat, noise {noise:.1%}", make=noisy(bent, noise), begins=20)
    for noise in (0.0, 0.005):
        rises = np.concatenate([falling(0.02, 20), 4.0 * 0.98**19 * 1.01 ** np.arange(1, SOON + 1)])
        yield Case(
            name=f"falls 2 %, then rises 1 % an evaluation, noise {noise:.1%}", make=noisy(rises, noise), begins=20
        )


def stopped_at(series: Sequence[float], config: PlateauConfig) -> int | None:
    """The evaluation (from 1) at which the detector ends a run with these losses."""
    detector = PlateauDetector(config)
    for number, loss in enumerate(series, start=1):
        if detector.update(number, float(loss)).stop:
            return number
    return None


def measure(case: Case, config: PlateauConfig, runs: int) -> list[int | None]:
    """Where each run is stopped; the same series for every rule."""
    return [stopped_at(case.make(np.random.default_rng([7, run])).tolist(), config) for run in range(runs)]


def false_stops(case: Case, ends: Sequence[int | None]) -> int:
    """Runs that were stopped while they still improved."""
    return sum(end is not None and (case.begins is None or end <= case.begins) for end in ends)


def found_in(case: Case, ends: Sequence[int | None]) -> list[int]:
    """Evaluations from the plateau's begin to the stop, of the runs stopped after it."""
    assert case.begins is not None
    return [end - case.begins for end in ends if end is not None and end > case.begins]


def tables(runs: int) -> str:
    """Both tables as Markdown."""
    improving, flat = [], []
    for case in cases():
        cells = []
        for config in RULES.values():
            ends = measure(case, config, runs)
            if case.begins is None:
                cells.append(f"{false_stops(case, ends) / runs:.1%}")
                continue
            found = found_in(case, ends)
            after = f", after {statistics.median(found):g}" if found else ""
            early = f", too early {false_stops(case, ends) / runs:.1%}" if false_stops(case, ends) else ""
            cells.append(f"{len(found) / runs:.1%}{after}{early}")
        (improving if case.begins is None else flat).append([case.name, *cells])
        print(case.name, *cells, sep="  ", file=sys.stderr, flush=True)
    head = f"Of {runs} runs of {LENGTH} evaluations, share that is stopped (wanted: at most 5 %):"
    then = f"Share found within {SOON} evaluations of its begin (wanted: at least 95 %), and after how many (median):"
    first, second = markdown(["still improving", *RULES], improving), markdown(["a plateau", *RULES], flat)
    return f"{head}\n\n{first}\n\n{then}\n\n{second}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, or write them into the document."""
    parser = command_line("plateau_table", __doc__)
    parser.add_argument("--runs", type=int, default=400, help="series of each kind (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.relative_to(ROOT)}")
    given = parser.parse_args(argv)
    made = tables(given.runs)
    print(made)
    if given.write:
        renew(DOCUMENT, {"tables": made})
    return 0


if __name__ == "__main__":
    sys.exit(main())
