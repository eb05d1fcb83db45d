"""Some texts that the generator wrote, beside the slices that it was given."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from synpro_engine.config import Record, parse_record
from synpro_engine.cycle.run_layout import CORPUS, TOKENIZE
from synpro_engine.cycle.steps.accepted import Provenance, accepted_records
from synpro_engine.cycle.steps.text_influence import slice_of, source_texts
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.report import Sample
from synpro_engine.synth import REJECTS, lines_of

_ACCEPTED_SAMPLES, _REFUSED_SAMPLES = 5, 2


class _Rejected(Record):
    reason: str
    raw: str
    provenance: Provenance


class _Shown(NamedTuple):
    operation: str
    stage: Path
    text: str
    where: Provenance
    reason: str
    rewards: dict[str, float]


def samples(run: FinishedRun) -> tuple[Sample, ...]:
    """Of each arm's and operation's corpus of the newest finished round: accepted texts of the first slices, and the
    first that were refused.
    """
    shown: list[_Shown] = []
    for arm, recipe in run.in_rounds.items():
        rounds = [this for this in run.rounds if this.of_arm == arm]
        for operation in recipe.generate.names:
            finished = [stage for this in rounds if (stage := this.generate(operation)) in run.done]
            if finished:
                shown += _first_of(run.of_arm(operation, arm), run.directory / finished[-1])
    # In one pass for all of them, for the corpus may be long.
    sources = source_texts(run.directory / TOKENIZE, {one.where.source for one in shown})
    return tuple(
        Sample(
            operation=one.operation,
            source_id=f"{one.where.source}:{one.where.start}-{one.where.end}",
            source=slice_of(one.where, sources, one.stage),
            text=one.text,
            accepted=not one.reason,
            reason=one.reason,
            total=one.rewards.get("total", 0.0 if one.reason else None),
            rewards={name: value for name, value in one.rewards.items() if name != "total"},
        )
        for one in shown
    )


def _first_of(operation: str, stage: Path) -> Iterator[_Shown]:
    # One of each slice, of which there may be many texts, one behind the other.
    slices = itertools.groupby(
        accepted_records(stage), lambda record: (record.provenance.source, record.provenance.start)
    )
    for record in (next(of) for _, of in itertools.islice(slices, _ACCEPTED_SAMPLES)):
        yield _Shown(operation, stage, record.text, record.provenance, "", record.rewards or {})
    # Lazily, for the refused may be many and long.
    for where, line in itertools.islice(lines_of(stage / CORPUS, REJECTS), _REFUSED_SAMPLES):
        record = parse_record(line, _Rejected, where)
        yield _Shown(operation, stage, record.raw, record.provenance, record.reason, {})
