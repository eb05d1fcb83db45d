"""From a corpus of documents to what training reads: splits, tokenizer, shards.

Everything here runs on rank 0 alone; the other ranks open the finished artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from synpro_engine.config import Config, UserError, atomic_write_text, json_text
from synpro_engine.cycle.gather import SPLITS, CorpusAccount, SortedTokens, gather
from synpro_engine.cycle.run_layout import ACCOUNT, LEFT_OUT, TOKENIZER, documents_path, shards_path
from synpro_engine.data import (
    Document,
    PublishedTokenizer,
    ReadConfig,
    Split,
    SplitConfig,
    TokenCorpus,
    TokenFiles,
    Tokenizer,
    cap_documents,
    check_rows,
    document_ids,
    find_source,
    load_tokenizer,
    open_shards,
    read_documents,
    train_sentencepiece,
    write_documents,
    write_shards,
    write_token_shards,
)
from synpro_engine.dist import Topology, on_main
from synpro_engine.evaluate import measure_overlap


class CorpusConfig(ReadConfig):
    """The organic text, how it is read, and how much of it this run may see."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"source", "shards"})  # their content is recorded, not their place

    source: str = Field(default="embedded:sotu", min_length=1)
    """A file of JSON lines (.jsonl, .ndjson, .json; plain or .zst, .zstd, .gz, .bz2, .xz) or .parquet, a directory of
    those, read through all its folders by name, or `embedded:sotu`."""
    shards: str | tuple[str, ...] | None = None
    """The organic text as token ids, in place of `source`: a prefix of Megatron's .bin and .idx, a flat .npy file as
    OLMo has them, a directory with such files at any depth, or a list of these. `tokenizer.path` names the tokenizer
    that made them; where it is in doubt whether an id takes 2 or 4 bytes, its vocabulary decides."""
    deduplicate: Literal["exact", "none"] = "exact"
    """`exact`: of documents whose texts differ in white space at most, only the first is taken, so that the tokens of
    the corpus are counted once and none is trained on more often than the epochs say. `none`: all are taken."""
    piece_chars: int | None = Field(default=None, ge=100)
    """Cut longer documents at paragraph boundaries into pieces of at most so many characters; parts of one
    document always share a split. Documents of `shards` stay whole."""
    split: SplitConfig = SplitConfig()
    """Shares of train, reference and validation documents; disjoint, by hash of the document's text without regard to
    white space, so that the same text always falls into the same split."""
    max_train_tokens: int | None = Field(default=None, gt=0)
    """Cap of the training split in tokens: what makes a run data-bound."""
    max_held_out_tokens: int | None = Field(default=None, gt=0)
    """Cap of the reference and of the validation split, in tokens each."""


class TokenizerConfig(Config):
    """The pretrained model's tokenizer."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"path"})  # as `CorpusConfig`'s

    path: str | None = None
    """A SentencePiece .model, a tokenizer.json or a directory with either; None trains one on the train split."""
    vocab_size: int = Field(default=4096, ge=300)
    """Size of the SentencePiece vocabulary to train (byte fallback takes 256 of it)."""


def open_split(stage: Path, name: str, tokenizer: Tokenizer) -> TokenCorpus:
    """The tokens of a split or source; UserError when they are another tokenizer's."""
    return open_shards(shards_path(stage, name), tokenizer)


def open_tokenizer(stage: Path, topology: Topology) -> PublishedTokenizer:
    """The tokenizer that the `tokenize` or the `import` stage stored, as rank 0 reads it. Collective."""
    return on_main(topology, lambda: load_tokenizer(stage / TOKENIZER))


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
    make = _tokenize if corpus.shards is None else _copy_shards
    account = make(into, corpus, tokenizer, seed, vocab_size, tell)
    held_out = {split: partial(_texts, into, split) for split in SPLITS if split != "train"}
    overlap = {split: asdict(found) for split, found in measure_overlap(held_out, _texts(into, "train")).items()}
    atomic_write_text(into / ACCOUNT, json_text({**account.model_dump(), "overlap": overlap}, indent=2) + "\n")


def _tokenize(
    into: Path,
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    seed: int,
    vocab_size: int,
    tell: Callable[[str], object],
) -> CorpusAccount:
    source = find_source(corpus.source)
    if source.remark:
        tell(source.remark)
    exact, pieces = corpus.deduplicate == "exact", corpus.piece_chars
    account = gather(into, source, corpus, corpus.split, seed, drop_duplicates=exact, piece_chars=pieces)
    _check(account, corpus, tell)
    words = _obtain_tokenizer(into, tokenizer)
    if corpus.max_train_tokens is not None and tokenizer.path is None:
        # Trained anew on what the cap lets through: the vocabulary must not know text that the run may not see.
        _cap(into, "train", corpus.max_train_tokens, seed, words)
        words = _obtain_tokenizer(into, tokenizer)
    check_rows(words, vocab_size, "`model.vocab_size`")
    for split in SPLITS:
        budget = corpus.max_train_tokens if split == "train" else corpus.max_held_out_tokens
        if budget is not None:
            _cap(into, split, budget, seed, words)
        write_shards(_documents(into, split), words, shards_path(into, split), seed=seed)
    return account


def _copy_shards(
    into: Path,
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    seed: int,
    vocab_size: int,
    tell: Callable[[str], object],
) -> CorpusAccount:
    """The same from token ids that are there already: they are copied split by split, their texts decoded."""
    if tokenizer.path is None:
        raise UserError("`tokenizer.path`: is missing; `corpus.shards` needs the tokenizer that made the tokens")
    words = _obtain_tokenizer(into, tokenizer)
    check_rows(words, vocab_size, "`model.vocab_size`")
    source, exact = TokenFiles(shard_paths(corpus), words), corpus.deduplicate == "exact"
    sorted_tokens = SortedTokens(source, words, corpus.split, seed, drop_duplicates=exact)
    account = sorted_tokens.account(into)
    _check(account, corpus, tell)
    for split in SPLITS:
        budget = corpus.max_train_tokens if split == "train" else corpus.max_held_out_tokens
        documents = sorted_tokens.of(split)
        kept = documents if budget is None else cap_documents(documents, budget, seed, lambda d: len(d.ids) + 1)
        write_token_shards(kept, words, shards_path(into, split), documents_path(into, split), seed=seed)
    return account


def shard_paths(corpus: CorpusConfig) -> tuple[str, ...]:
    """The paths that `corpus.shards` gives."""
    return (corpus.shards,) if isinstance(corpus.shards, str) else corpus.shards or ()


def _check(account: CorpusAccount, corpus: CorpusConfig, tell: Callable[[str], object]) -> None:
    """Tell what was left out; UserError for a split without a document."""
    name = ", ".join(shard_paths(corpus)) or corpus.source
    if account.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in account.left_out.items())
        tell(f"{name}: records left out: {reasons}; listed in {LEFT_OUT} of the stage")
    for split, documents in account.documents.items():
        if not documents:
            share = getattr(corpus.split, split)
            raise UserError(
                f"{name}: no document falls into the {split} split (share {share});"
                f" raise `corpus.split.{split}` or add documents"
            )


def _documents(into: Path, split: Split) -> Iterator[Document]:
    return read_documents(documents_path(into, split))


def _texts(into: Path, split: Split) -> Iterator[str]:
    return (document.text for document in _documents(into, split))


def _obtain_tokenizer(into: Path, config: TokenizerConfig) -> Tokenizer:
    directory = into / TOKENIZER
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
    kept = cap_documents(_documents(into, split), budget, seed, lambda d: len(document_ids(tokenizer, d.text)))
    write_documents(documents_path(into, split), kept)
