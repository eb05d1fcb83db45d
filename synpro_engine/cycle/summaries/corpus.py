"""The corpus: its splits, what was left out, and the overlap of held-out with training text."""

from __future__ import annotations

from collections.abc import Iterator

from synpro_engine.config import Record
from synpro_engine.cycle.run_layout import (
    ACCOUNT,
    HELD_OUT,
    LEFT_OUT,
    REFERENCES,
    TASKS,
    TASKS_LEFT_OUT,
    TOKENIZE,
    shards_path,
    task_key,
)
from synpro_engine.cycle.steps.tasks import TaskAccount
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.data import read_shard_stats
from synpro_engine.evaluate import Overlap
from synpro_engine.report import CorpusInfo, Leak, SplitSize, TaskInfo

_TASK_STAGES = (REFERENCES, HELD_OUT)


class _Account(Record):
    documents: dict[str, int]
    left_out: dict[str, int]
    files: int
    files_not_read: tuple[str, ...]
    overlap: dict[str, Overlap]


def corpus(run: FinishedRun) -> CorpusInfo | None:
    """What the `tokenize` stage wrote of its source."""
    if TOKENIZE not in run.done:
        return None
    account = run.record(TOKENIZE, ACCOUNT, _Account)
    sizes = {
        split: read_shard_stats(shards_path(run.directory / TOKENIZE, split)) for split in run.recipe.corpus.split.used
    }
    return CorpusInfo(
        source=", ".join(run.recipe.corpus.shard_paths) or run.recipe.corpus.source,
        files=account.files,
        splits=tuple(
            SplitSize(
                name=split,
                documents=account.documents[split],
                pieces=size.documents,
                tokens=size.tokens,
                utf8_bytes=size.text_bytes,
            )
            for split, size in sizes.items()
        ),
        left_out=account.left_out,
        listed_in=f"{TOKENIZE}/{LEFT_OUT}",
        files_not_read=account.files_not_read,
        overlap=account.overlap,
        tasks=tuple(task for stage in _TASK_STAGES for task in _tasks(run, stage)),
        leaks=tuple(leak for stage in _TASK_STAGES for leak in _leaks(run, stage)),
    )


def _tasks(run: FinishedRun, stage: str) -> Iterator[TaskInfo]:
    """The sets of tasks of a stage; none where the recipe has none, or the stage is not finished."""
    sets = run.record(stage, TASKS, TaskAccount).sets if stage in run.done else {}
    for name, one in sets.items():
        yield TaskInfo(
            name=name,
            source=run.recipe.at(f"{task_key(name)}.source"),
            tasks=one.tasks,
            tokens=one.tokens,
            learnt=one.learnt,
            left_out=one.left_out,
            listed_in=f"{stage}/{TASKS_LEFT_OUT}/{name}.jsonl",
        )


def _leaks(run: FinishedRun, stage: str) -> Iterator[Leak]:
    shared = run.record(stage, TASKS, TaskAccount).shared if stage in run.done else {}
    for name, places in shared.items():
        for place, one in places.items():
            yield Leak(held_out=name, place=place, documents=one.documents, overlap=one.ngrams)
