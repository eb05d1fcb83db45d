"""Where the training tokens came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from synpro_engine.config import UserError
from synpro_engine.cycle.run_layout import (
    PRETRAIN,
    REPEAT,
    SYNTHETIC_TOKENS,
    TOKENIZE,
    TRAINING_RESULT,
    Round,
    shards_path,
)
from synpro_engine.cycle.steps.pretraining import ORGANIC, TrainingResult
from synpro_engine.cycle.summaries.arms import REPEAT_ARM, SYNTHETIC_ARM
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.data import read_shard_stats
from synpro_engine.report import ArmTokens, MadeTokens, TokenAccount


def tokens(run: FinishedRun) -> TokenAccount | None:
    """Tokens of the pools, and how many each training saw; None before the plateau."""
    if PRETRAIN not in run.done:
        return None
    synthetic: Counter[str] = Counter()
    for number in run.rounds:
        synthetic.update(run.counts(Round(number).shards, SYNTHETIC_TOKENS))
    pretrain_seen = _seen(run, PRETRAIN)[ORGANIC]
    arms = []
    for name, stage in ((SYNTHETIC_ARM, Round(run.recipe.rounds).arm), (REPEAT_ARM, REPEAT)):
        if stage in run.done:
            seen = _seen(run, stage)
            # The loader's position goes on from pretraining's, so its count is of both.
            organic = seen.pop(ORGANIC) - pretrain_seen
            stitched = sum(run.record(stage, TRAINING_RESULT, TrainingResult).stitched.values())
            synthetic_seen = sum(seen.values()) - stitched
            arms.append(ArmTokens(name=name, organic=organic + stitched, synthetic=synthetic_seen, stitched=stitched))
    return TokenAccount(
        made=tuple(_made(run)),
        organic_unique=read_shard_stats(shards_path(run.directory / TOKENIZE, "train")).tokens,
        pretrain_seen=pretrain_seen,
        synthetic=synthetic,
        arms=tuple(arms),
    )


def _made(run: FinishedRun) -> Iterator[MadeTokens]:
    """Tokens of each round and operation; how many of them the last arm and those before it were given."""
    finished = [number for number in run.rounds if Round(number).arm in run.done]
    read = run.record(Round(finished[-1]).arm, TRAINING_RESULT, TrainingResult).operations if finished else {}
    for number in run.rounds:
        this = Round(number)
        for operation, tokens in run.counts(this.shards, SYNTHETIC_TOKENS).items():
            trained = read.get(this.name, {}).get(operation)
            yield MadeTokens(round=number, operation=operation, tokens=tokens, trained=trained)


def _seen(run: FinishedRun, stage: str) -> dict[str, int]:
    """Tokens trained on by source since the first step of pretraining."""
    samples = run.record(stage, TRAINING_RESULT, TrainingResult).samples
    if ORGANIC not in samples:
        raise UserError(f"{run.directory / stage / TRAINING_RESULT}: damaged (`samples` has no {ORGANIC})")
    return {name: count * run.recipe.model.seq_len for name, count in samples.items()}
