"""Some texts that the generator wrote, beside the slices that it was given."""

from __future__ import annotations

import itertools
from pathlib import Path

from synpro_engine.config import Record, parse_record
from synpro_engine.cycle.run_layout import CORPUS, TOKENIZE
from synpro_engine.cycle.steps.accepted import Provenance, accepted_records
from synpro_engine.cycle.steps.evaluation import slice_of, source_texts
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.report import Sample
from synpro_engine.synth import REJECTS, lines_of

_ACCEPTED_SAMPLES, _REFUSED_SAMPLES = 5, 2


class _Rejected(Record):
    reason: str
    raw: str
    provenance: Provenance


def samples(run: FinishedRun) -> tuple[Sample, ...]:
    """Of each arm's and operation's corpus of the newest finished round: the first accepted and the first refused."""
    shown: list[Sample] = []
    for arm, recipe in run.in_rounds.items():
        rounds = [this for this in run.rounds if this.of_arm == arm]
        for operation in recipe.generate.names:
            finished = [stage for this in rounds if (stage := this.generate(operation)) in run.done]
            if finished:
                shown += _corpus_samples(run, run.of_arm(operation, arm), run.directory / finished[-1])
    return tuple(shown)


def _corpus_samples(run: FinishedRun, operation: str, stage: Path) -> list[Sample]:
    first = itertools.islice(accepted_records(stage), _ACCEPTED_SAMPLES)
    accepted = [(r.text, r.provenance, "", r.rewards or {}) for r in first]
    # Lazily, for the refused may be many and long.
    refused = itertools.islice(lines_of(stage / CORPUS, REJECTS), _REFUSED_SAMPLES)
    rejects = [parse_record(line, _Rejected, where) for where, line in refused]
    shown = [*accepted, *((record.raw, record.provenance, record.reason, {}) for record in rejects)]
    sources = source_texts(run.directory / TOKENIZE, {where.source for _, where, _, _ in shown})
    return [
        Sample(
            operation=operation,
            source_id=f"{where.source}:{where.start}-{where.end}",
            source=slice_of(where, sources, stage),
            text=text,
            accepted=not reason,
            reason=reason,
            total=rewards.get("total", 0.0 if reason else None),
            rewards={name: value for name, value in rewards.items() if name != "total"},
        )
        for text, where, reason, rewards in shown
    ]
