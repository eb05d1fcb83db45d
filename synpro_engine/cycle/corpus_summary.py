"""The report's part on the corpus: its splits, what was left out, and the overlap of held-out with training text."""

from __future__ import annotations

from synpro_engine.cycle.corpus import ACCOUNT, LEFT_OUT, SPLITS, shards_path
from synpro_engine.cycle.finished import FinishedRun
from synpro_engine.data import read_shard_stats
from synpro_engine.evaluate import Overlap
from synpro_engine.report import CorpusInfo, SplitSize

_STAGE = "tokenize"


def corpus(run: FinishedRun) -> CorpusInfo | None:
    """What the `tokenize` stage wrote of its source."""
    account = run.json(_STAGE, ACCOUNT)
    if not account:
        return None
    sizes = {split: read_shard_stats(shards_path(run.directory / _STAGE, split)) for split in SPLITS}
    return CorpusInfo(
        source=run.recipe.corpus.source,
        files=account["files"],
        splits=tuple(
            SplitSize(
                name=split,
                documents=account["documents"][split],
                pieces=size.documents,
                tokens=size.tokens,
                utf8_bytes=size.text_bytes,
            )
            for split, size in sizes.items()
        ),
        left_out=account["left_out"],
        listed_in=f"{_STAGE}/{LEFT_OUT}",
        files_not_read=tuple(account["files_not_read"]),
        overlap={split: Overlap(**found) for split, found in account["overlap"].items()},
    )
