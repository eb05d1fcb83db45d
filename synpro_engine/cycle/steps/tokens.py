"""How the organic text becomes documents and tokens: one pass over the source, and a second one for a new vocabulary.

Where the tokenizer is given, the pass over the source writes documents and tokens. Where its vocabulary is to be
trained, that pass writes documents, and another one reads these. A pass goes on where a kill left it; what follows it
(sorting what a cap left, the index, hashes) is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from synpro_engine.config import UserError
from synpro_engine.config.journal import Journal
from synpro_engine.cycle.run_layout import TOKENIZER, documents_path, shards_path
from synpro_engine.cycle.settings import TokenizeSettings
from synpro_engine.cycle.steps.intake import SPLITS
from synpro_engine.cycle.steps.stream import (
    Batch,
    CappedSplit,
    ShowBar,
    Sink,
    WholeSplit,
    encoder,
    run_pass,
    stored_batches,
)
from synpro_engine.data import DocumentWriter, PublishedTokenizer, Split, Tokenizer, load_tokenizer, train_sentencepiece
from synpro_engine.data.capped import Cap, Spool, Stored, kept_of
from synpro_engine.data.encoding import Encoded, usable_cpus
from synpro_engine.data.megatron_index import token_dtype
from synpro_engine.data.shards import ShardWriter, new_shards, publish_shards
from synpro_engine.data.writer import DocumentFrames, written_documents
from synpro_engine.dist.progress import elapsed

_VOCABULARY_CHARS = 1 << 25
"""Text that a vocabulary is trained on at the most, for the trainer holds it several times over."""
_SAMPLED = 1024  # documents looked at together

ReadInto = Callable[[Mapping[Split, Sink], Journal, Callable[[int], object]], Iterator[Batch]]
"""Reads on from where a journal is, into sinks, and tells how many bytes it read."""


@dataclass(frozen=True)
class Tokens:
    """The files of documents and tokens of the stage `into`; what is needed only meanwhile lies below `work`."""

    into: Path
    work: Path
    settings: TokenizeSettings
    bar: ShowBar

    @property
    def threads(self) -> int:
        """That encode."""
        return self.settings.tokenizer.threads or usable_cpus()

    def read(self, tokenizer: Tokenizer | None, total: int, batches: ReadInto) -> dict[str, Any]:
        """Read the source, of `total` bytes, into the files of its splits; what its end noted.

        Without a tokenizer documents are written alone.
        """
        used = self.settings.corpus.split.used

        def sinks(journal: Journal) -> dict[Split, Sink]:
            return {s: self._sink(journal, s, s, tokenizer if s in used else None, text=True) for s in SPLITS}

        return self._pass("reading", tokenizer, total, sinks, batches)

    def read_again(self, split: Split, tokenizer: Tokenizer, name: str | None = None) -> dict[str, Any]:
        """Tokenise the documents that were written for a split."""
        path = documents_path(self.into, split)

        def sinks(journal: Journal) -> dict[Split, Sink]:
            return {split: self._sink(journal, name or split, split, tokenizer, text=False)}

        return self._pass(name or split, tokenizer, path.stat().st_size, sinks, partial(stored_batches, path, split))

    def _pass(
        self,
        name: str,
        tokenizer: Tokenizer | None,
        total: int,
        sinks_of: Callable[[Journal], Mapping[Split, Sink]],
        batches: ReadInto,
    ) -> dict[str, Any]:
        with Journal(self.work / f"{name}.ledger", self.into) as journal:
            if not journal.state.get("done"):
                sinks = sinks_of(journal)
                with self.bar(total, name) as bar:
                    run_pass(batches(sinks, journal, bar.update), sinks, journal, encoder(tokenizer), self.threads)
            return journal.state

    def _sink(self, journal: Journal, name: str, split: Split, tokenizer: Tokenizer | None, *, text: bool) -> Sink:
        budget = self._budget(split)
        if tokenizer is not None and budget is not None:
            dtype = token_dtype(tokenizer.vocab_size)
            return CappedSplit(Spool(journal.open(self._spool(name)), Cap(budget, self.settings.seed), dtype))
        frames = DocumentFrames(journal.open(documents_path(self.into, split))) if text else None
        if tokenizer is None:
            return WholeSplit(frames, None)
        shards = ShardWriter(shards_path(self.into, split), tokenizer, journal.open, self._lengths(split))
        shards.text_bytes = journal.state.get("text_bytes", {}).get(split, 0)
        return WholeSplit(frames, shards)

    def finish(self, tokenizer: Tokenizer, text_bytes: Mapping[Split, int]) -> None:
        """Make artifacts of the tokens that were written; where a split is capped, of those that stay."""
        for split in self.settings.corpus.split.used:
            self._finish(split, tokenizer, text_bytes[split])

    def _finish(self, split: Split, tokenizer: Tokenizer, text_bytes: int) -> None:
        path, seed = shards_path(self.into, split), self.settings.seed
        if self._budget(split) is None:
            publish_shards(path, tokenizer, self._lengths(split), text_bytes, seed)
            return
        dtype = token_dtype(tokenizer.vocab_size)
        with (
            DocumentWriter(documents_path(self.into, split)) as documents,
            new_shards(path, tokenizer, seed=seed) as shards,
        ):
            for kept in self._kept(split, split, tokenizer):
                documents.write_line(kept.line)
                tokens = np.frombuffer(kept.tokens, dtype)
                shards.add([kept.id], Encoded(tokens, np.array([len(tokens)]), kept.text_bytes))

    def _kept(self, name: str, split: Split, tokenizer: Tokenizer) -> Iterator[Stored]:
        budget = self._budget(split)
        assert budget is not None
        dtype = token_dtype(tokenizer.vocab_size)
        key = f"`corpus.{'max_train_tokens' if split == 'train' else 'max_held_out_tokens'}`"
        return kept_of(self._spool(name), budget, self.settings.seed, dtype, self.work / "sorting", key)

    def _budget(self, split: Split) -> int | None:
        corpus = self.settings.corpus
        return corpus.max_train_tokens if split == "train" else corpus.max_held_out_tokens

    def _spool(self, name: str) -> Path:
        return self.work / f"{name}.spool"

    def _lengths(self, split: Split) -> Path:
        return self.work / f"{split}.lengths"

    def given_tokenizer(self, path: str) -> PublishedTokenizer:
        """The tokenizer that the settings name."""
        # Copied into the stage: every later one reads it from here, whatever becomes of the path.
        tokenizer = load_tokenizer(path, eos=self.settings.tokenizer.eos)
        tokenizer.save(self.into / TOKENIZER)
        return tokenizer

    def trained_tokenizer(self) -> PublishedTokenizer:
        """A tokenizer trained on the documents of the train split, or on what its cap lets through."""
        directory, documents = self.into / TOKENIZER, documents_path(self.into, "train")
        if self._budget("train") is not None and not _model(directory).exists():
            # Trained anew on what the cap lets through: the vocabulary must not know text that the run may not see.
            # Tokens of the first tokenizer decide what the cap lets through; the second cap, in its
            # own tokens, can only cut more.
            first = self._train(self.work / TOKENIZER)
            self.read_again("train", first, "first")
            with DocumentWriter(documents) as writer:
                for kept in self._kept("first", "train", first):
                    writer.write_line(kept.line)
        return self._train(directory)

    def _train(self, directory: Path) -> PublishedTokenizer:
        if not _model(directory).exists():
            texts = _sample(documents_path(self.into, "train"), self.settings.seed)
            try:
                with elapsed("training the vocabulary"):
                    train_sentencepiece(texts, self.settings.tokenizer.vocab_size, _model(directory))
            except UserError as error:
                raise UserError(f"`tokenizer.vocab_size`: {error}") from None
        return load_tokenizer(directory)


def _model(directory: Path) -> Path:
    return directory / "tokenizer.model"


def _sample(path: Path, seed: int) -> Iterator[str]:
    """The texts of written documents, in their order; where they are too many, of those that come first by hash.

    Of one that is too long by itself its beginning.
    """
    cap = Cap(_VOCABULARY_CHARS, seed)
    documents = (document for _, document in written_documents(path))
    while batch := list(islice(documents, _SAMPLED)):
        orders = np.fromiter((cap.order(document.id) for document in batch), np.uint64, len(batch))
        sizes = np.fromiter((len(document.text) for document in batch), np.int64, len(batch))
        cap.add(orders, np.minimum(sizes, _VOCABULARY_CHARS))
    cap.settle()
    kept = (document for _, document in written_documents(path) if cap.order(document.id) < cap.ceiling)
    return (document.text[:_VOCABULARY_CHARS] for document in kept)
