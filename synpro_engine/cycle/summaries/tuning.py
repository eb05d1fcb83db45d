"""Rewards of the generator while it was tuned."""

from __future__ import annotations

import math
from typing import NamedTuple

from pydantic import model_validator

from synpro_engine.config import Record
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.report import Measured, RewardCurves
from synpro_engine.rl.canary import AGREEMENT
from synpro_engine.rl.held_out import KIND


class _Step(Record):
    """A record of the kind `tune`; the reward's parts stand in it under `reward/`. What was not finite is None."""

    step: int
    reward: float | None
    kl: float | None
    length: float | None
    parts: dict[str, float | None]

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, fields: dict[str, object]) -> dict[str, object]:
        start = "reward/"
        return {**fields, "parts": {k.removeprefix(start): v for k, v in fields.items() if k.startswith(start)}}


class _Look(Record):
    """A record of the kind `canary`: each judge's share of completions rated above themselves with a fault."""

    step: int
    agreement: dict[str, float]

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, fields: dict[str, object]) -> dict[str, object]:
        found = {k.removeprefix(AGREEMENT): v for k, v in fields.items() if k.startswith(AGREEMENT)}
        return {**fields, "agreement": found}


class _Measurement(Record):
    """A record of the kind `held_out`: by reward, "" for their sum, its value, and its change with an interval."""

    step: int
    facts: float | None = None
    reward: dict[str, float | None]
    difference: dict[str, float | None]
    low: dict[str, float | None]
    high: dict[str, float | None]

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, fields: dict[str, object]) -> dict[str, object]:
        found: dict[str, dict[str, object]] = {"reward": {}, "difference": {}, "low": {}, "high": {}}
        for name, value in fields.items():
            what, _, reward = name.partition("/")
            if what in found:
                found[what][reward] = value
        return {"step": fields["step"], "facts": fields.get("facts"), **found}

    def band(self, reward: str, value: float) -> tuple[float, float] | None:
        """The interval of the change, drawn around where that led to; None where there is none."""
        if self.step == 0:
            return value, value
        change, low, high = (of.get(reward) for of in (self.difference, self.low, self.high))
        return None if change is None or low is None or high is None else (value - change + low, value - change + high)


class _RewardedStep(NamedTuple):
    step: int
    reward: float
    kl: float
    length: float
    parts: dict[str, float]


def tuning(run: FinishedRun) -> tuple[RewardCurves, ...]:
    """One set of curves per round and tuned operation."""
    curves = []
    tuned = [(this, name) for this in run.rounds for name in run.in_rounds[this.of_arm].tune]
    for this, operation in tuned:
        recipe = run.in_rounds[this.of_arm]
        weights, config = recipe.reward.weights(operation), recipe.tune[operation]
        steps = _rewarded_steps(run, this.tune(operation))
        if not steps:
            continue
        # A curve needs a value at every step.
        parts = [name for name in steps[0].parts if all(name in step.parts for step in steps)]
        curves.append(
            RewardCurves(
                operation=run.label(operation, this),
                steps=tuple(s.step for s in steps),
                total=tuple(s.reward for s in steps),
                parts={name: tuple(s.parts[name] for s in steps) for name in parts},
                weights={name: weight for name, weight in weights.items() if name not in config.without},
                # Earlier versions logged 0 where there was no reference.
                kl=tuple(s.kl for s in steps) if config.kl_beta else (),
                estimate=config.kl,
                within_nucleus=config.sampling.cuts,
                lengths=tuple(s.length for s in steps),
                held_out=_held_out(run, this.tune(operation)),
                facts=_facts(run, this.tune(operation)),
                canaries=_canaries(run, this.tune(operation)),
                canary_least=config.judge_canary.least,
            )
        )
    return tuple(curves)


def _held_out(run: FinishedRun, stage: str) -> dict[str, list[Measured]]:
    """By reward, "" for their sum: what it was on the slices that were held out."""
    found: dict[str, list[Measured]] = {}
    for record in run.metrics(stage, KIND, _Measurement):
        for name, value in record.reward.items():
            if value is not None:
                measured = Measured(step=record.step, value=value, band=record.band(name, value))
                found.setdefault(name, []).append(measured)
    return found


def _facts(run: FinishedRun, stage: str) -> list[tuple[int, float]]:
    """(step, share) where texts with planted facts were rewritten: before tuning and after it."""
    found = [(record.step, record.facts) for record in run.metrics(stage, KIND, _Measurement)]
    told = [(step, share) for step, share in found if share is not None]
    return told if len(told) < 3 else [told[0], told[-1]]


def _canaries(run: FinishedRun, stage: str) -> dict[str, list[tuple[int, float]]]:
    """(step, share) of each judge, where it was looked at."""
    found: dict[str, list[tuple[int, float]]] = {}
    for look in run.metrics(stage, "canary", _Look):
        for judge, share in look.agreement.items():
            found.setdefault(judge, []).append((look.step, share))
    return found


def _rewarded_steps(run: FinishedRun, stage: str) -> list[_RewardedStep]:
    """Without those whose groups were all dropped; what else a step has none of (a policy that waits) is NaN."""
    steps = []
    for r in run.metrics(stage, "tune", _Step):
        if r.reward is not None:
            parts = {name: value for name, value in r.parts.items() if value is not None}
            kl, length = (math.nan if value is None else value for value in (r.kl, r.length))
            steps.append(_RewardedStep(r.step, r.reward, kl, length, parts))
    return steps
