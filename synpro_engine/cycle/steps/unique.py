"""Organic text from beyond the cap of the training split: what an oracle reads, and no other arm.

The cap takes the first documents of an order by hash, so what follows them there is as if the cap had been higher. The
corpus is read once more, and held-out splits are told apart as they were the first time.
"""

from __future__ import annotations

from array import array
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
    text_key,
)
from synpro_engine.data.capped import Cap, Spool, kept_of
from synpro_engine.data.encoding import Encoded, usable_cpus
from synpro_engine.data.megatron_index import token_dtype
from synpro_engine.data.shards import new_shards
from synpro_engine.data.writer import written_documents
from synpro_engine.dist import Topology, on_main, progress, say

_Batches = Callable[[Intake, Mapping[Split, Sink], Callable[[int], object]], Iterator[Batch]]


class _Beyond:
    """Documents of the training split that stand behind its last one in the order of its cap, and are no copies.

    Where duplicates are not dropped, the corpus may have a text that is trained on under another id.
    """

    def __init__(self, spool: Spool, cap: Cap, train: Path) -> None:
        """train: the documents of the training split."""
        self._spool, self._order, self._last, hashes = spool, cap.order, 0, array("Q")
        for _, document in written_documents(train):
            self._last = max(self._last, cap.order(document.id))
            hashes.append(_hash(document))
        self._trained = np.unique(np.frombuffer(hashes, np.uint64))

    def wants(self, id: str) -> bool:
        """Those that the training split does not have."""
        return self._order(id) > self._last and self._spool.wants(id)

    def add(self, documents: Sequence[Document], encoded: Encoded | None) -> None:
        """Append documents."""
        assert encoded is not None
        new_D = ~np.isin(np.array([_hash(document) for document in documents], np.uint64), self._trained)
        if not new_D.all():
            documents = [document for document, new in zip(documents, new_D.tolist(), strict=True) if new]
            text_bytes = sum(len(document.text.encode()) for document in documents)
            encoded = Encoded(encoded.tokens[np.repeat(new_D, encoded.lengths)], encoded.lengths[new_D], text_bytes)
        self._spool.add(documents, encoded)

    def end_block(self) -> int:
        """End the frame in hand."""
        self._spool.end_frame()
        return 0


def _hash(document: Document) -> int:
    return int.from_bytes(text_key(document.text)[:8], "little")


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
            beyond = _Beyond(Spool(journal.open(spool), cap, dtype), cap, documents_path(tokens, "train"))
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
        # As much as an arm reads in its steps.
        key, aside = "`continued.steps` of an arm of `text: unique`", into / UNFINISHED / "sorting"
        for kept in kept_of(spool, settings.max_tokens, settings.seed, dtype, aside, key):
            documents.write_line(kept.line)
            ids = np.frombuffer(kept.tokens, dtype)
            shards.add([kept.id], Encoded(ids, np.array([len(ids)]), kept.text_bytes))
            count += len(ids)
    return count
