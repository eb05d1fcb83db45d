"""Scores of every candidate along reference gradients, from the bare gradient to AdamW's exact next step.

Knows the options one by one, each a name in the table; the step itself is in `influence_truth_exact`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from benchmarks.influence_truth_exact import Steps
from benchmarks.influence_truth_scores import Scored, along_probes, baselines, timed
from benchmarks.influence_truth_setup import Setup
from synpro_engine.influence import (
    Direction,
    DotInfluence,
    Estimator,
    FiniteDifferenceInfluence,
    JvpInfluence,
    adam_direction,
)
from synpro_engine.train.engine import Engine

_WIDE_BATCHES = 24
_SAMPLE = 64
AHEAD = "reference gradient one step ahead"


def score_all(setup: Setup) -> Iterator[Scored]:
    """Score the candidates in every way. Slow oracles see `settings.checked` of them."""
    sequences = [candidate.ids for candidate in setup.candidates]
    yield from chain(baselines(setup, sequences), along_probes(setup, sequences), along_gradients(setup, sequences))


def along_gradients(setup: Setup, sequences: Sequence[Sequence[int]]) -> Iterator[Scored]:
    """First order along reference gradients, with more and more of AdamW's step in it; oracles last."""
    engine = setup.engine()
    made = _Made(setup, engine)
    plain = list(_dots(setup, engine, made, sequences))
    yield from plain
    exact = _exact(made, sequences)
    norms = exact.pop("norm")
    yield Scored(estimator="minus gradient norm", group="baseline", values=[-norm for norm in norms])
    factors = [made.steps.adamw.clip_factor(norm) for norm in norms]
    for scored in plain:
        values = [factor * value for factor, value in zip(factors, scored.values, strict=True)]
        yield replace(scored, estimator=f"{scored.estimator}, clipped", values=values)
    for name, values in exact.items():
        yield Scored(estimator=name, group="step", values=values, seconds=made.exact_seconds, made_in=made.seconds)
    yield from _oracles(setup, engine, made.directions["Adam"], sequences)


class _Made:
    """Reference gradients here and one step ahead, the directions made of them, and the CPU time that took."""

    def __init__(self, setup: Setup, engine: Engine) -> None:
        start = time.process_time()
        self.exact_seconds = 0.0
        self.steps = Steps(setup, engine, _SAMPLE)
        loader = setup.loader("reference", 2)
        self.windows = _WIDE_BATCHES * setup.settings.batch
        wide, adamw = [loader.next_batch() for _ in range(_WIDE_BATCHES)], self.steps.adamw
        here_P, self.ahead_P, self.ahead_mates_P, self.wide_P = (
            adamw.gradient(batches, after_P)
            for batches, after_P in (
                (setup.reference, None),
                (setup.reference, self.steps.alone_P),
                (setup.reference, self.steps.among_mates_P),
                (wide, self.steps.alone_P),
            )
        )
        self.here_P, square_P = here_P, self.steps.square_P
        self.directions = {
            "reference gradient": adamw.direction(here_P),
            AHEAD: adamw.direction(self.ahead_P),
            "Adam": adam_direction(engine, adamw.direction(here_P)),
            f"Adam, {AHEAD}": adam_direction(engine, adamw.direction(self.ahead_P)),
            "Adam with the next v": adamw.direction(adamw.preconditioned(here_P, square_P)),
            f"Adam with the next v, {AHEAD}": adamw.direction(adamw.preconditioned(self.ahead_P, square_P)),
            f"Adam with the next v, {AHEAD}, {self.windows} windows": adamw.direction(
                adamw.preconditioned(self.wide_P, square_P)
            ),
        }
        self.seconds = time.process_time() - start


def _dots(setup: Setup, engine: Engine, made: _Made, sequences: Sequence[Sequence[int]]) -> Iterator[Scored]:
    for name, v in made.directions.items():
        estimator = DotInfluence(engine.model, v, start_id=setup.start_id)
        yield timed(f"dot, {name}", "dot", estimator, sequences, made.seconds)


def _exact(made: _Made, sequences: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """<g_ref, u(x)>, u the update of a real step on x, alone or among mates; and the gradients' norms, as `norm`."""
    adamw, wide = made.steps.adamw, f"{AHEAD}, {made.windows} windows"
    of = {
        "exact step": ("alone", made.here_P),
        f"exact step, {AHEAD}": ("alone", made.ahead_P),
        f"exact step, {wide}": ("alone", made.wide_P),
        "exact step among mates": ("mates", made.here_P),
        f"exact step among mates, {AHEAD}": ("mates", made.ahead_mates_P),
    }
    found: dict[str, list[float]] = {name: [] for name in ("norm", *of)}
    start = time.process_time()
    for ids in sequences:
        gradient_P = made.steps.of(ids)
        updates = {"alone": adamw.update(gradient_P), "mates": adamw.update(made.steps.with_mates(gradient_P))}
        found["norm"].append(float(gradient_P.norm()))
        for name, (step, reference_P) in of.items():
            found[name].append(float(updates[step].double() @ reference_P.double()))
    made.exact_seconds = time.process_time() - start
    return found


def _oracles(setup: Setup, engine: Engine, v: Direction, sequences: Sequence[Sequence[int]]) -> Iterator[Scored]:
    every, start_id = max(1, len(sequences) // setup.settings.checked), setup.start_id
    oracles: dict[str, Estimator] = {
        "jvp, Adam": JvpInfluence(engine.model, v, start_id=start_id),
        "finite_difference, Adam": FiniteDifferenceInfluence(engine.model, v, start_id=start_id),
    }
    for name, estimator in oracles.items():
        yield timed(name, "oracle", estimator, sequences, every=every)
