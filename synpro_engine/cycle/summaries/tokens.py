"""Where the training tokens came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from synpro_engine.config import UserError
from synpro_engine.cycle.run_layout import (
    PRETRAIN,
    SYNTHETIC_TOKENS,
    TOKENIZE,
    TRAINING_RESULT,
    UNIQUE,
    shards_path,
)
from synpro_engine.cycle.steps.training import ORGANIC, TrainingResult
from synpro_engine.cycle.summaries.arms import name_of
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.data import read_shard_stats
from synpro_engine.report import ArmTokens, MadeTokens, TokenAccount


def tokens(run: FinishedRun) -> TokenAccount | None:
    """Tokens of the pools, and how many each training saw; None before the plateau."""
    if PRETRAIN not in run.done:
        return None
    synthetic: Counter[str] = Counter()
    for this in run.rounds:
        counts = run.counts(this.shards, SYNTHETIC_TOKENS)
        synthetic.update({run.of_arm(operation, this.of_arm): tokens for operation, tokens in counts.items()})
    pretrain_seen = _seen(run, PRETRAIN)[ORGANIC]
    arms = []
    for arm in run.recipe.all_arms:
        if stages := run.trained(arm):
            seen = _seen(run, stages[-1])
            # The loader's position goes on from pretraining's, so its count is of both.
            organic, unique = seen.pop(ORGANIC) - pretrain_seen, seen.pop(UNIQUE, 0)
            stitched = sum(run.record(stages[-1], TRAINING_RESULT, TrainingResult).stitched.values())
            made = sum(seen.values()) - stitched
            read = {"organic": organic + stitched, "unique": unique, "synthetic": made, "stitched": stitched}
            arms.append(ArmTokens(name=name_of(run, arm), **read))
    return TokenAccount(
        made=tuple(_made(run)),
        organic_unique=read_shard_stats(shards_path(run.directory / TOKENIZE, "train")).tokens,
        pretrain_seen=pretrain_seen,
        synthetic=synthetic,
        arms=tuple(arms),
    )


def _made(run: FinishedRun) -> Iterator[MadeTokens]:
    """Tokens of each round and operation; how many of them the arm was given up to its newest round."""
    for arm in run.in_rounds:
        finished = run.trained(arm)
        read = run.record(finished[-1], TRAINING_RESULT, TrainingResult).operations if finished else {}
        for this in (this for this in run.rounds if this.of_arm == arm):
            for operation, tokens in run.counts(run.shards_of(this), SYNTHETIC_TOKENS).items():
                trained, name = read.get(this.name, {}).get(operation), run.of_arm(operation, arm)
                yield MadeTokens(round=this.number, operation=name, tokens=tokens, trained=trained)


def _seen(run: FinishedRun, stage: str) -> dict[str, int]:
    """Tokens trained on by source since the first step of pretraining."""
    samples = run.record(stage, TRAINING_RESULT, TrainingResult).samples
    if ORGANIC not in samples:
        raise UserError(f"{run.directory / stage / TRAINING_RESULT}: damaged (`samples` has no {ORGANIC})")
    return {name: count * run.recipe.model.seq_len for name, count in samples.items()}
