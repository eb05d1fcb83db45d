"""Scores of every candidate with what they cost: baselines, and what probes say.

Knows how scores are made from the engine's own parts; knows nothing of the truth. Gradients are in another file.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from benchmarks.influence_truth.setup import Setup
from synpro_engine.influence import (
    Direction,
    DotInfluence,
    Estimator,
    ProbeConfig,
    TwoForwardInfluence,
)
from synpro_engine.influence.directions import optimizer_values, start_probe, walk, weights_of
from synpro_engine.model.model import Model
from synpro_engine.train.optimizer_config import OptimizerConfig


def probe_name(steps: int, *, keep_momentum: bool, weight_decay: float, of_muon: bool = False) -> str:
    """What the table calls a probe; of_muon: whose steps are Muon's."""
    whose = "Muon's " if of_muon else ""
    return f"{whose}probe {steps}, momentum {'kept' if keep_momentum else 'zeroed'}, decay {weight_decay:g}"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One estimator's scores of the candidates, or of the first of each so many where it is a slow oracle."""

    estimator: str
    group: str
    """`two_forward`, `dot`, `step`, `oracle` or `baseline`."""
    values: Sequence[float]
    every: int = 1
    """The candidates scored are 0, every, 2 every, ..."""
    seconds: float = 0.0
    """CPU time of scoring, without making the direction."""
    made_in: float = 0.0
    """CPU time of making the direction (probe steps, or the reference gradient)."""
    row: str = field(default="scores", init=False)

    def record(self) -> dict[str, object]:
        """JSON-ready, to seven digits."""
        return {**asdict(self), "values": [float(f"{value:.6e}") for value in self.values]}


def baselines(setup: Setup, sequences: Sequence[Sequence[int]]) -> Iterator[Scored]:
    """Scores that know nothing of the reference."""
    rng = np.random.default_rng([setup.settings.seed, 3])
    model = setup.engine().model
    zero = Direction({name: weight * 0.0 for name, weight in weights_of(model).items()})
    start = time.process_time()
    losses = [score.loss for score in TwoForwardInfluence(model, zero, start_id=setup.start_id).score(sequences)]
    forward = (time.process_time() - start) / 2.0  # it ran two
    yield Scored(estimator="random", group="baseline", values=rng.random(len(sequences)).tolist())
    yield Scored(estimator="length in tokens", group="baseline", values=[float(len(ids)) for ids in sequences])
    yield Scored(estimator="minus loss at theta", group="baseline", values=[-x for x in losses], seconds=forward)


# ---- along probes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Displacements theta - theta' of one probe by its number of steps, and the CPU seconds until there."""

    at: dict[int, Direction]
    seconds: dict[int, float]


def walk_probe(setup: Setup, corpus: str, *, keep_momentum: bool, weight_decay: float, of_muon: bool = False) -> Walk:
    """One probe from theta on a corpus's batches, stopped at each of `settings.probe_steps`; by AdamW, or Muon."""
    settings, model = setup.settings, setup.model()
    config = ProbeConfig(
        steps=1,
        lr=settings.probe_lr,
        global_batch=settings.batch,
        micro_batch=settings.batch,
        keep_momentum=keep_momentum,
        weight_decay=weight_decay,
    )
    optimizer = settings.optimizer if of_muon else OptimizerConfig()
    engine, loader = start_probe(setup.theta, model, config, optimizer=optimizer), setup.loader(corpus, 1)
    before, done, found, seconds = optimizer_values(engine, "param"), 0, {}, {}
    start = time.process_time()
    for steps in settings.probe_steps:
        walk(engine, loader, config.model_copy(update={"steps": steps - done}))
        after, done = optimizer_values(engine, "param"), steps
        found[steps] = Direction({name: before[name] - after[name] for name in before})
        seconds[steps] = time.process_time() - start
    return Walk(at=found, seconds=seconds)


def along_probes(setup: Setup, sequences: Sequence[Sequence[int]]) -> Iterator[Scored]:
    """Two forwards for every option of the probe, and first order along the paper's, with and without a control."""
    model = setup.engine().model
    kept = setup.settings.walks_keep_momentum
    control = walk_probe(setup, "train", keep_momentum=kept, weight_decay=0.1)
    for keep, decay in itertools.product(sorted({kept, False}, reverse=True), (0.1, 0.0)):
        probe = walk_probe(setup, "reference", keep_momentum=keep, weight_decay=decay)
        for steps, direction in probe.at.items():
            name = probe_name(steps, keep_momentum=keep, weight_decay=decay)
            yield _two_forward(setup, model, name, direction, sequences, probe.seconds[steps])
            if keep != kept or decay != 0.1:
                continue
            less, both = direction.minus(control.at[steps]), probe.seconds[steps] + control.seconds[steps]
            yield _two_forward(setup, model, f"{name}, less control", less, sequences, both)
            yield from _dots_of(setup, model, name, direction, sequences, probe.seconds[steps])
            yield from _dots_of(setup, model, f"{name}, less control", less, sequences, both)
    for keep in (True, False) if setup.settings.optimizer_name == "muon" else ():
        probe = walk_probe(setup, "reference", keep_momentum=keep, weight_decay=0.1, of_muon=True)
        for steps, direction in probe.at.items():
            name = probe_name(steps, keep_momentum=keep, weight_decay=0.1, of_muon=True)
            yield _two_forward(setup, model, name, direction, sequences, probe.seconds[steps])


def _two_forward(
    setup: Setup, model: Model, name: str, v: Direction, sequences: Sequence[Sequence[int]], made_in: float
) -> Scored:
    estimator = TwoForwardInfluence(model, v, start_id=setup.start_id)
    return timed(f"two_forward, {name}", "two_forward", estimator, sequences, made_in)


def _dots_of(
    setup: Setup, model: Model, name: str, v: Direction, sequences: Sequence[Sequence[int]], made_in: float
) -> Iterator[Scored]:
    for at in ("theta", "midpoint"):
        estimator = DotInfluence(model, v, start_id=setup.start_id, at=at)
        yield timed(f"dot at {at}, {name}", "dot", estimator, sequences, made_in)


def timed(
    name: str, group: str, estimator: Estimator, given: Sequence[Sequence[int]], made_in: float = 0.0, every: int = 1
) -> Scored:
    """Score `given`, or every so many of it, with the clock running."""
    start = time.process_time()
    values = [score.value for score in estimator.score(given[::every])]
    seconds = time.process_time() - start
    return Scored(estimator=name, group=group, values=values, every=every, seconds=seconds, made_in=made_in)
