"""Scores of every candidate along reference gradients, from the bare gradient to the optimizer's exact next step.

Knows the options one by one, each a name in the table; the step itself is in `exact.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from benchmarks.influence_truth.exact import Steps
from benchmarks.influence_truth.scores import Scored, along_probes, baselines, timed
from benchmarks.influence_truth.setup import Setup
from synpro_engine.influence import (
    Direction,
    DotInfluence,
    Estimator,
    FiniteDifferenceInfluence,
    JvpInfluence,
    next_step_direction,
)
from synpro_engine.influence.directions import inner
from synpro_engine.model.model import Model
from synpro_engine.train.engine import Engine

_WIDE_BATCHES = 24
_SAMPLE = 64
_UPCOMING = 8
AHEAD = "reference gradient one step ahead"
ADAM = "Adam"
DEFAULT = "next step"
"""What the engine makes, `next_step_direction`, from batches of the training text in place of candidates."""


def score_all(setup: Setup) -> Iterator[Scored]:
    """Score the candidates in every way. Slow oracles see `settings.checked` of them."""
    sequences = [candidate.ids for candidate in setup.candidates]
    yield from chain(baselines(setup, sequences), along_probes(setup, sequences), along_gradients(setup, sequences))


def along_gradients(setup: Setup, sequences: Sequence[Sequence[int]]) -> Iterator[Scored]:
    """First order along reference gradients, with more and more of the step in it; oracles last."""
    engine = setup.engine()
    made = _Made(setup, engine)
    plain = list(_dots(setup, engine, made, sequences))
    yield from plain
    exact = _exact(engine.model, made, sequences)
    norms = exact.pop("norm")
    yield Scored(estimator="minus gradient norm", group="baseline", values=[-norm for norm in norms])
    factors = [made.steps.clip_factor(norm) for norm in norms]
    for scored in (scored for scored in plain if DEFAULT not in scored.estimator):
        values = [factor * value for factor, value in zip(factors, scored.values, strict=True)]
        yield replace(scored, estimator=f"{scored.estimator}, clipped", values=values)
    for name, values in exact.items():
        yield Scored(estimator=name, group="step", values=values, seconds=made.exact_seconds, made_in=made.seconds)
    yield from _oracles(setup, engine, made, sequences)


class _Made:
    """Reference gradients here and one step ahead, the directions made of them, and the CPU time that took."""

    def __init__(self, setup: Setup, engine: Engine) -> None:
        self.directions, self.made_in = {}, {}
        start = time.process_time()
        train = setup.loader("train", 3)
        upcoming = [[train.next_batch()] for _ in range(_UPCOMING)]
        self.directions[DEFAULT] = next_step_direction(engine, setup.reference, upcoming)
        self.made_in[DEFAULT] = time.process_time() - start
        self.exact_seconds, start = 0.0, time.process_time()
        self.steps = steps = Steps(setup, engine, _SAMPLE)
        loader = setup.loader("reference", 2)
        self.windows = _WIDE_BATCHES * setup.settings.batch
        wide = [loader.next_batch() for _ in range(_WIDE_BATCHES)]
        self.here, self.ahead, self.ahead_mates, self.wide = (
            steps.gradient(batches, after)
            for batches, after in (
                (setup.reference, None),
                (setup.reference, steps.alone),
                (setup.reference, steps.among_mates),
                (wide, steps.alone),
            )
        )
        self.directions |= {"reference gradient": self.here, AHEAD: self.ahead}
        if engine.muon is None:
            self.directions |= self._by_adamw()
        self.seconds = time.process_time() - start

    def _by_adamw(self) -> dict[str, Direction]:
        """AdamW's step taken apart: with the second moment as it is, and as the candidates' squares leave it."""
        live, following, of = self.steps.live_square(), self.steps.square, self.steps.by_adamw
        return {
            ADAM: of(self.here, live),
            f"{ADAM}, {AHEAD}": of(self.ahead, live),
            "Adam with the next v": of(self.here, following),
            f"Adam with the next v, {AHEAD}": of(self.ahead, following),
            f"Adam with the next v, {AHEAD}, {self.windows} windows": of(self.wide, following),
        }


def _dots(setup: Setup, engine: Engine, made: _Made, sequences: Sequence[Sequence[int]]) -> Iterator[Scored]:
    for name, v in made.directions.items():
        estimator = DotInfluence(engine.model, v, start_id=setup.start_id)
        yield timed(f"dot, {name}", "dot", estimator, sequences, made.made_in.get(name, made.seconds))
    clipping = DotInfluence(
        engine.model, made.directions[DEFAULT], start_id=setup.start_id, clip=engine.optimizer_config.clip
    )
    yield timed(f"dot, {DEFAULT}, clipped", "dot", clipping, sequences, made.made_in[DEFAULT])


def _exact(model: Model, made: _Made, sequences: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """<g_ref, u(x)>, u the update of a real step on x, alone or among mates; and the gradients' norms, as `norm`."""
    steps, wide = made.steps, f"{AHEAD}, {made.windows} windows"
    of = {
        "exact step": ("alone", made.here),
        f"exact step, {AHEAD}": ("alone", made.ahead),
        f"exact step, {wide}": ("alone", made.wide),
        "exact step among mates": ("mates", made.here),
        f"exact step among mates, {AHEAD}": ("mates", made.ahead_mates),
    }
    found: dict[str, list[float]] = {name: [] for name in ("norm", *of)}
    start = time.process_time()
    for ids in sequences:
        gradient = steps.of(ids)
        updates = {"alone": steps.update(gradient), "mates": steps.update(steps.with_mates(gradient))}
        found["norm"].append(steps.norm(gradient))
        for name, (step, reference) in of.items():
            found[name].append(inner(model, updates[step], reference))
    made.exact_seconds = time.process_time() - start
    return found


def _oracles(setup: Setup, engine: Engine, made: _Made, sequences: Sequence[Sequence[int]]) -> Iterator[Scored]:
    every, start_id = max(1, len(sequences) // setup.settings.checked), setup.start_id
    name = ADAM if ADAM in made.directions else AHEAD
    v = replace(made.directions[name], tangent=False)  # a step of its own length, for finite differences
    oracles: dict[str, Estimator] = {
        f"jvp, {name}": JvpInfluence(engine.model, v, start_id=start_id),
        f"finite_difference, {name}": FiniteDifferenceInfluence(engine.model, v, start_id=start_id),
    }
    for name, estimator in oracles.items():
        yield timed(name, "oracle", estimator, sequences, every=every)
