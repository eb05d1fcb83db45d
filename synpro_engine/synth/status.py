"""How far a generation is, from what its workers put on disk: whoever asks takes no part in it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synpro_engine.synth.corpus import read_yield
from synpro_engine.synth.ledger import read_commits
from synpro_engine.synth.work import WorkList

_LATELY_S = 600.0  # what the rate is taken over


@dataclass(frozen=True, kw_only=True)
class GenerationStatus:
    """Sums over the batches that are on disk; tokens are the generator's."""

    prompts: int
    """Of the whole work list."""
    done: int
    accepted: int
    refused: Mapping[str, int] = field(default_factory=dict)
    """Completions by reason, the most frequent first."""
    completion_tokens: int
    text_tokens: int
    """Of the accepted texts."""
    worker_seconds: float | None = None
    """That workers (each a replica of the generator) spent on them; None of a finished corpus, which does not say."""
    workers: int = 0
    """That finished a batch lately."""
    prompts_per_s: float | None = None
    tokens_per_s: float | None = None
    """Sampled lately, by all workers; None where nothing was finished lately."""

    @property
    def seconds_left(self) -> float | None:
        """At the rate of late; None where there is none."""
        return (self.prompts - self.done) / self.prompts_per_s if self.prompts_per_s else None

    @property
    def worker_hours_per_billion(self) -> float | None:
        """What a billion tokens of accepted text cost, in hours of one worker."""
        if not self.text_tokens or self.worker_seconds is None:
            return None
        return self.worker_seconds / 3600 / (self.text_tokens / 1e9)


def work_status(work: Path) -> GenerationStatus:
    """The status of a work directory (`generate.work_directory`) in which a work list lies."""
    items, commits = WorkList(work).open(), read_commits(work)
    counts = [commit.counts for commit in commits.values()]
    refused: Counter[str] = Counter()
    for one in counts:
        refused.update(one.refused)
    now = time.time()
    lately = [(commit.part, commit.counts) for commit in commits.values() if now - commit.counts.ended < _LATELY_S]
    # From when the oldest of them was begun: a generation of two minutes has no ten behind it.
    span = now - min((one.ended - one.seconds for _, one in lately), default=now)
    return GenerationStatus(
        prompts=items.prompts,
        done=sum(one.prompts for one in counts),
        accepted=sum(one.accepted for one in counts),
        refused=dict(refused.most_common()),
        completion_tokens=sum(one.completion_tokens for one in counts),
        text_tokens=sum(one.text_tokens for one in counts),
        worker_seconds=sum(one.seconds for one in counts),
        workers=len({part for part, _ in lately}),
        prompts_per_s=sum(one.prompts for _, one in lately) / span if lately and span > 0 else None,
        tokens_per_s=sum(one.completion_tokens for _, one in lately) / span if lately and span > 0 else None,
    )


def corpus_status(path: Path) -> GenerationStatus:
    """The same of a finished corpus."""
    report = read_yield(path)
    by_operation = report.by_operation.values()
    # A completion each: of a finished corpus nobody asks how many prompts they were.
    return GenerationStatus(
        prompts=report.completions,
        done=report.completions,
        accepted=report.accepted,
        refused=report.rejected,
        completion_tokens=sum(one.completion_tokens for one in by_operation),
        text_tokens=report.text_tokens,
    )
