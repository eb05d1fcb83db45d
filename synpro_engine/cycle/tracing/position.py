"""A training stage's loader as it was at each step: order is a function of seed and position, so nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from synpro_engine.config import UserError, read_record, verify_artifact
from synpro_engine.cycle.checkpoints import checkpoint_of
from synpro_engine.cycle.run_layout import TOKENIZER, TRAINING_RESULT
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.training import Training, TrainingResult
from synpro_engine.cycle.steps.weights import stage_checkpoint
from synpro_engine.cycle.tracing.traced import TracedRun
from synpro_engine.data import PublishedTokenizer, TokenCorpus, TokenLoader, load_tokenizer
from synpro_engine.train.checkpoint import checkpoint_extra


@dataclass(frozen=True)
class Reading:
    """What a finished training stage read."""

    stage: str
    loader: TokenLoader
    """At the stage's first batch; all rows of it."""
    corpora: dict[str, TokenCorpus]
    tokenizer: PublishedTokenizer
    steps: range
    """The stage's steps, as its metrics count them."""


def finished_steps(cycle: TracedRun) -> dict[str, range]:
    """The steps of each training stage that is finished, in the order of the run."""
    found: dict[str, range] = {}
    for stage in cycle.training_stages:
        if (cycle.directory / stage).exists():
            verify_artifact(cycle.directory / stage)
            found[stage] = _steps(cycle.training(stage), cycle.directory / stage)
    return found


def _steps(training: Training, directory: Path) -> range:
    # An arm counts on from the stage that it goes on from.
    before = 0 if training.start is None else read_record(training.start / TRAINING_RESULT, TrainingResult).step
    return range(before + 1, read_record(directory / TRAINING_RESULT, TrainingResult).step + 1)


def open_reading(cycle: TracedRun, stage: str, steps: range) -> Reading:
    """The loader of a finished training stage as it was before its first step. Collective."""
    training = cycle.training(stage)
    tokenizer = open_tokenizer(training.tokens, cycle.topology)
    start = None if training.start is None else stage_checkpoint(training.start, cycle.topology)
    return _reading(training, cycle.directory / stage, steps, tokenizer, start)


def open_alone(training: Training, directory: Path) -> Reading:
    """The same on one rank, whatever the others do. directory: of the finished stage."""
    start = None if training.start is None else checkpoint_of(training.start)
    tokenizer = load_tokenizer(training.tokens / TOKENIZER)
    return _reading(training, directory, _steps(training, directory), tokenizer, start)


def _reading(
    training: Training, directory: Path, steps: range, tokenizer: PublishedTokenizer, start: Path | None
) -> Reading:
    """start: the checkpoint that the stage went on from."""
    sources = training.sources(tokenizer, directory)
    loader = training.loader(sources)
    if start is not None:
        loader.load_state_dict(cast("dict[str, Any]", checkpoint_extra(start)["data"]))
    return Reading(stage=training.name, loader=loader, corpora=sources.corpora, tokenizer=tokenizer, steps=steps)


def check_step(steps: dict[str, range], stage: str, known: tuple[str, ...], step: int) -> range:
    """The steps of `stage`; UserError where it is none, is not finished, or has no such step."""
    if stage not in known:
        raise UserError(f"--arm {stage}: no training stage of that name; there are {', '.join(known)}")
    if stage not in steps:
        raise UserError(f"{stage}: is not finished, so nothing of it can be traced yet; `synpro run` goes on with it")
    if step not in steps[stage]:
        others = [f"--arm {name}" for name, of in steps.items() if step in of]
        hint = f"; {' and '.join(others)} made that step" if others else ""
        raise UserError(f"--step {step}: {stage} made the steps {steps[stage][0]} to {steps[stage][-1]}{hint}")
    return steps[stage]
