"""The corpus: its splits, what was left out, and the overlap of held-out with training text."""

from __future__ import annotations

from synpro_engine.config import Record
from synpro_engine.cycle.run_layout import ACCOUNT, LEFT_OUT, TOKENIZE, shards_path
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.data import read_shard_stats
from synpro_engine.evaluate import Overlap
from synpro_engine.report import CorpusInfo, SplitSize


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
    )
