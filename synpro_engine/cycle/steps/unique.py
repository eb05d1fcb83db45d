"""Organic text from beyond the cap of the training split: what an oracle reads, and no other arm.

The cap takes the first documents of an order by hash, so what follows them there is as if the cap had been higher. The
corpus is read once more, and held-out splits are told apart as they were the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np

from synpro_engine.config import UserError, remove_directory
from synpro_engine.config.journal import Journal
from synpro_engine.cycle.run_layout import TOKENIZER, UNFINISHED, UNIQUE, documents_path, shards_path
from synpro_engine.cycle.settings import UniqueSettings
from synpro_engine.cycle.steps.gather import text_batches, token_batches
from synpro_engine.cycle.steps.intake import SPLITS, Intake
from synpro_engine.cycle.steps.stream import Bar, Batch, ShowBar, Sink, encoder, no_bar, run_pass
from synpro_engine.data import (
    Document,
    DocumentWriter,
    PublishedTokenizer,
    Split,
    TokenFiles,
    find_source,
    load_tokenizer,
)
from synpro_engine.data.capped import Cap, Spool, kept_of
from synpro_engine.data.encoding import Encoded, usable_cpus
from synpro_engine.data.megatron_index import token_dtype
from synpro_engine.data.shards import new_shards
from synpro_engine.data.writer import written_documents
from synpro_engine.dist import Topology, on_main, progress, say

_Batches = Callable[[Intake, Mapping[Split, Sink], Callable[[int], object]], Iterator[Batch]]


class _Beyond:
    """Documents of the training split that stand behind its last one in the order of its cap."""

    def __init__(self, spool: Spool, order: Callable[[str], int], last: int) -> None:
        self._spool, self._order, self._last = spool, order, last

    def wants(self, id: str) -> bool:
        """Those that the training split does not have."""
        return self._order(id) > self._last and self._spool.wants(id)

    def add(self, documents: Sequence[Document], encoded: Encoded | None) -> None:
        """Append documents."""
        assert encoded is not None
        self._spool.add(documents, encoded)

    def end_block(self) -> int:
        """End the frame in hand."""
        self._spool.end_frame()
        return 0


class _Nowhere:
    """Of the held-out splits nothing is wanted."""

    def wants(self, id: str) -> bool:
        """None."""
        return False

    def add(self, documents: Sequence[Document], encoded: Encoded | None) -> None:
        """Nothing comes."""

    def end_block(self) -> int:
        """There is no file."""
        return 0


def unique_stage(into: Path, settings: UniqueSettings, tokens: Path, topology: Topology) -> None:
    """Fill the `unique` artifact on rank 0, which goes on where an earlier start was broken off. Collective.

    tokens: the `tokenize` stage. UserError where the training split has all of the text.
    """

    def show(total: int, name: str) -> AbstractContextManager[Bar]:
        return progress(total, name, "B", topology)

    def work() -> None:
        with topology.watch.wish.breakable("the next start goes on where this one was"):
            say(topology, build_unique(into, settings, tokens, show))

    on_main(topology, work)


def build_unique(into: Path, settings: UniqueSettings, tokens: Path, bar: ShowBar = no_bar) -> str:
    """Write documents and shards below `into`; a line for the user."""
    work, tokenizer = into / UNFINISHED, load_tokenizer(tokens / TOKENIZER)
    dtype, cap = token_dtype(tokenizer.vocab_size), Cap(settings.max_tokens, settings.seed)
    spool = work / "unique.spool"
    with Journal(work / "reading.ledger", into) as journal:
        if not journal.state.get("done"):
            last = max(cap.order(document.id) for _, document in written_documents(documents_path(tokens, "train")))
            beyond = _Beyond(Spool(journal.open(spool), cap, dtype), cap.order, last)
            sinks: dict[Split, Sink] = {split: beyond if split == "train" else _Nowhere() for split in SPLITS}
            threads = settings.threads or usable_cpus()
            batches, size = _reader(settings, tokenizer, threads)
            intake = Intake(journal, work, work, settings.corpus, settings.seed)
            with bar(size, UNIQUE) as shown:
                run_pass(batches(intake, sinks, shown.update), sinks, journal, encoder(tokenizer), threads)
    count = _write(into, settings, tokenizer, spool, dtype)
    remove_directory(work)
    return f"{count:,} unique tokens beyond the training split, for an arm that reads {settings.max_tokens:,} in all"


def _reader(settings: UniqueSettings, tokenizer: PublishedTokenizer, threads: int) -> tuple[_Batches, int]:
    """What reads the corpus, and its bytes."""
    corpus = settings.corpus
    if corpus.shards is not None:
        files = TokenFiles(corpus.shard_paths, tokenizer)
        return partial(token_batches, files, tokenizer, threads), files.bytes
    source = find_source(corpus.source)
    return partial(text_batches, source, corpus), sum(file.stat().st_size for file in source.files)


def _write(
    into: Path, settings: UniqueSettings, tokenizer: PublishedTokenizer, spool: Path, dtype: np.dtype[np.integer]
) -> int:
    """Documents and tokens in the order of the cap; how many tokens."""
    if not spool.stat().st_size:
        raise UserError(
            "`corpus.max_train_tokens`: the training split has all of the corpus, so that no text is left for an oracle"
        )
    count = 0
    with (
        DocumentWriter(documents_path(into, "unique")) as documents,
        new_shards(shards_path(into, UNIQUE), tokenizer, seed=settings.seed) as shards,
    ):
        for kept in kept_of(spool, settings.max_tokens, settings.seed, dtype, into / UNFINISHED / "sorting"):
            documents.write_line(kept.line)
            ids = np.frombuffer(kept.tokens, dtype)
            shards.add([kept.id], Encoded(ids, np.array([len(ids)]), kept.text_bytes))
            count += len(ids)
    return count
