"""What the arms are worth in unique text: curves of repetition and oracles, and what is missing for more of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synpro_engine.config import json_text
from synpro_engine.cycle.run_layout import TOKENIZE, TRAINING_RESULT, UNIQUE, shards_path
from synpro_engine.cycle.steps.training import TrainingResult
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.data import open_shards, read_shard_stats
from synpro_engine.report import EffectiveCurve, EffectiveTokens, UniquePoint

_SEEDS = 3
_BySeed = dict[int, float]
_NO_ARMS = (
    "the recipe names no `arms`: one of `text: organic` and one or more of `text: unique` with `unique_tokens` of"
    " several sizes make the curve (docs/arms.md)"
)
_NO_REPETITION = "no arm of `text: organic` is measured yet, with which a curve begins"


def effective_tokens(run: FinishedRun) -> EffectiveTokens:
    """A curve for each arm of repetition that has oracles of its settings."""
    arms = run.recipe.arms
    if not arms:
        return EffectiveTokens(missing=(_NO_ARMS,))
    measured = _losses(run)
    losses = {name: finite for name, of in measured.items() if (finite := _finite(of))}
    waiting = [name for name in arms if name not in measured]
    missing = [f"not measured yet: {', '.join(waiting)}"] if waiting else []
    missing += _diverged(measured)
    bases = [name for name, arm in arms.items() if arm.text == "organic" and name in losses]
    if not bases:
        return EffectiveTokens(missing=(*missing, _NO_REPETITION))
    found = [(base, _points(run, base, losses)) for base in bases]
    curves = tuple(_curve(run, base, points, losses) for base, points in found if len(points) > 1)
    missing += [_lacking(run, base, curves) for base, points in found if len(points) == 1]
    return EffectiveTokens(curves=curves, missing=tuple(missing))


def _losses(run: FinishedRun) -> dict[str, _BySeed]:
    """Of the arms that are measured: nats per token of the validation split, finite or not."""
    found: dict[str, _BySeed] = {}
    first = (*run.recipe.seeds, run.recipe.seed)[0]
    for arm, results in run.results().items():
        rows = [row for row in results.held_out if row.text == "validation"]
        seeds = [first if row.seed is None else row.seed for row in rows]
        of = {seed: row.per_token for seed, row in zip(seeds, rows, strict=True) if row.per_token is not None}
        if arm is not None and of:
            found[arm] = of
    return found


def _finite(losses: _BySeed) -> _BySeed:
    return {seed: loss for seed, loss in losses.items() if math.isfinite(loss)}


def _diverged(losses: Mapping[str, _BySeed]) -> list[str]:
    """What is left out, by name and seed: the means of what is left are of the seeds that went well."""
    apart = {name: [seed for seed in of if not math.isfinite(of[seed])] for name, of in losses.items()}
    told = [f"{name} (seed {', '.join(map(str, seeds))})" for name, seeds in apart.items() if seeds]
    return [f"their losses are not finite, and left out: {'; '.join(told)}"] if told else []


def _points(run: FinishedRun, base: str, losses: Mapping[str, _BySeed]) -> tuple[UniquePoint, ...]:
    """The base's own, and those of the oracles that trained alike and as long, by their unique tokens."""
    organic = read_shard_stats(shards_path(run.directory / TOKENIZE, "train")).tokens
    by_tokens: dict[int, list[str]] = {organic: [base]}
    for name, arm in run.recipe.arms.items():
        alike = arm.text == "unique" and _training(run, name) == _training(run, base)
        if alike and name in losses and _steps(run, name) == _steps(run, base):
            by_tokens.setdefault(organic + _unique_tokens(run, name), []).append(name)
    return tuple(
        UniquePoint(arms=tuple(names), tokens=float(tokens), losses=_together([losses[name] for name in names]))
        for tokens, names in sorted(by_tokens.items())
    )


def _together(losses: Sequence[_BySeed]) -> tuple[float, ...]:
    """Of oracles with as much text, which is the same text: a seed's training twice is no second seed."""
    merged: _BySeed = {}
    for of in losses:
        merged |= {seed: loss for seed, loss in of.items() if seed not in merged}
    return tuple(merged.values())


def _training(run: FinishedRun, arm: str) -> str:
    """All that two arms must have in common to differ in their text alone."""
    own = run.recipe.of_arm(arm)
    organic = None if own.mix.organic is None else own.mix.organic.recorded()
    return json_text([own.pretrain.recorded(), organic, own.continued.train_from])


def _result(run: FinishedRun, arm: str, seed: int | None = None) -> TrainingResult:
    return run.record(run.trained(arm, seed)[-1], TRAINING_RESULT, TrainingResult)


def _steps(run: FinishedRun, arm: str) -> set[int]:
    """At which its seeds ended: one step, unless they were cut short apart from each other."""
    return {_result(run, arm, seed).step for seed in run.recipe.arm_seeds if run.trained(arm, seed)}


def _unique_tokens(run: FinishedRun, arm: str) -> int:
    """Unique tokens beyond the organic text that an oracle has read: no more than it had, and no more than it read."""
    corpus, most = open_shards(shards_path(run.directory / UNIQUE, UNIQUE)), run.recipe.arms[arm].unique_tokens
    had = corpus.num_tokens if most is None else corpus.head(most).num_tokens
    return min(had, _result(run, arm).samples.get(UNIQUE, 0) * run.recipe.model.seq_len)


def _curve(run: FinishedRun, base: str, points: Sequence[UniquePoint], losses: Mapping[str, _BySeed]) -> EffectiveCurve:
    arms = {name: losses[name] for name, arm in run.recipe.arms.items() if arm.text != "unique" and name in losses}
    long = {name: steps for name in arms if (steps := _steps(run, name)) != _steps(run, base)}
    missing = [
        f"{' and '.join(point.arms)} have as many unique tokens, for a cap does not bind, and count once"
        for point in points
        if len(point.arms) > 1
    ]
    if long:
        told = ", ".join(f"{name} (step {_listed(steps)})" for name, steps in long.items())
        missing.append(f"Left out, as they end at another step than {base} ({_listed(_steps(run, base))}): {told}")
    if len(points) < 3:
        missing.append("A power law needs three sizes: one more arm of `text: unique` with another `unique_tokens`")
    fewest = min(len(point.losses) for point in points)
    if fewest < _SEEDS:
        missing.append(f"Of {fewest} seed{'s' * (fewest > 1)} an interval says little: give `seeds` three or more")
    return EffectiveCurve(
        base=base,
        settings=_settings(run, base),
        points=tuple(points),
        arms={name: tuple(of.values()) for name, of in arms.items() if name not in long},
        total=float(sum(_result(run, base).samples.values()) * run.recipe.model.seq_len),
        missing=tuple(missing),
    )


def _listed(steps: set[int]) -> str:
    return "/".join(str(step) for step in sorted(steps))


def _settings(run: FinishedRun, arm: str) -> str:
    """What the arm trains by that is its own, as `pretrain.optimizer.weight_decay 1.0`."""
    return ", ".join(f"{key} {value}" for key, value in _leaves(run.recipe.arms[arm].given))


def _leaves(given: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, object]]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _lacking(run: FinishedRun, base: str, curves: Sequence[EffectiveCurve]) -> str:
    own = run.recipe.arms[base].given
    example = json_text({"text": "unique", "unique_tokens": 1000000, **own})
    held = f"; it is held to the curve of {curves[0].base}" if curves else ""
    return (
        f"no arm of `text: unique` is measured that trains as {base} does and as long, such as {example}, so it begins"
        f" no curve{held}"
    )
