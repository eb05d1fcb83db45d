"""From a corpus of documents to what training reads: splits, tokenizer, shards.

Everything here runs on rank 0 alone; the other ranks open the finished artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from synpro_engine.config import UserError, atomic_write_text, json_text
from synpro_engine.cycle.run_layout import ACCOUNT, LEFT_OUT, TOKENIZER, documents_path, measured_path, shards_path
from synpro_engine.cycle.sections import CorpusConfig, TokenizerConfig
from synpro_engine.cycle.settings import TokenizeSettings
from synpro_engine.cycle.steps.gather import CorpusAccount, SortedTokens, gather
from synpro_engine.data import (
    Document,
    PublishedTokenizer,
    Split,
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
    read_tasks,
    train_sentencepiece,
    write_documents,
    write_shards,
    write_token_shards,
)
from synpro_engine.dist import Topology, on_main
from synpro_engine.evaluate import measure_overlap


def open_split(stage: Path, name: str, tokenizer: Tokenizer) -> TokenCorpus:
    """The tokens of a split or source; UserError when they are another tokenizer's."""
    return open_shards(shards_path(stage, name), tokenizer)


def open_measured(tokens: Path, names: Iterable[str], tokenizer: Tokenizer) -> dict[str, TokenCorpus]:
    """Splits, references and held-out tasks by the names of their shards; `tokens` is the `tokenize` stage."""
    return {name: open_shards(measured_path(tokens, name), tokenizer) for name in names}


def open_tokenizer(stage: Path, topology: Topology) -> PublishedTokenizer:
    """The tokenizer that the `tokenize` or the `import` stage stored, as rank 0 reads it. Collective."""
    return on_main(topology, lambda: load_tokenizer(stage / TOKENIZER))


def build_corpus(into: Path, settings: TokenizeSettings, tell: Callable[[str], object] = lambda line: None) -> None:
    """Fill the `tokenize` artifact: documents of each split, the tokenizer, the shards of each split, the account.

    `tell` gets lines for the user on what is not read.
    """
    for tasks in settings.tasks:  # before the corpus, which takes long: are there any at all?
        next(read_tasks(str(tasks.source), tasks))
    account = (_tokenize if settings.corpus.shards is None else _copy_shards)(into, settings, tell)
    held_out = {split: partial(_texts, into, split) for split in settings.corpus.split.used if split != "train"}
    # After cutting and capping, on what training will really see and be judged on.
    overlap = {split: asdict(share) for split, share in measure_overlap(held_out, _texts(into, "train")).items()}
    atomic_write_text(into / ACCOUNT, json_text({**account.model_dump(), "overlap": overlap}, indent=2) + "\n")


def _tokenize(into: Path, settings: TokenizeSettings, tell: Callable[[str], object]) -> CorpusAccount:
    corpus, seed = settings.corpus, settings.seed
    source = find_source(corpus.source)
    if source.remark:
        tell(source.remark)
    exact, pieces = corpus.deduplicate == "exact", corpus.piece_chars
    account = gather(into, source, corpus, corpus.split, seed, drop_duplicates=exact, piece_chars=pieces)
    _check(account, corpus, tell)
    tokenizer = _obtain_tokenizer(into, settings.tokenizer)
    if corpus.max_train_tokens is not None and settings.tokenizer.path is None:
        # Trained anew on what the cap lets through: the vocabulary must not know text that the run may not see.
        # Tokens of the first tokenizer decide what the cap lets through; the second cap, in its
        # own tokens, can only cut more.
        _cap(into, "train", corpus.max_train_tokens, seed, tokenizer)
        tokenizer = _obtain_tokenizer(into, settings.tokenizer)
    check_rows(tokenizer, settings.vocab_size, "`model.vocab_size`")
    for split in corpus.split.used:
        budget = corpus.max_train_tokens if split == "train" else corpus.max_held_out_tokens
        if budget is not None:
            _cap(into, split, budget, seed, tokenizer)
        write_shards(_documents(into, split), tokenizer, shards_path(into, split), seed=seed)
    return account


def _copy_shards(into: Path, settings: TokenizeSettings, tell: Callable[[str], object]) -> CorpusAccount:
    """The same from token ids that are there already: they are copied split by split, their texts decoded."""
    corpus, seed = settings.corpus, settings.seed
    if settings.tokenizer.path is None:
        raise UserError("`tokenizer.path`: is missing; `corpus.shards` needs the tokenizer that made the tokens")
    tokenizer = _obtain_tokenizer(into, settings.tokenizer)
    check_rows(tokenizer, settings.vocab_size, "`model.vocab_size`")
    source, exact = TokenFiles(corpus.shard_paths, tokenizer), corpus.deduplicate == "exact"
    sorted_tokens = SortedTokens(source, tokenizer, corpus.split, seed, drop_duplicates=exact)
    account = sorted_tokens.account(into)
    _check(account, corpus, tell)
    for split in corpus.split.used:
        budget = corpus.max_train_tokens if split == "train" else corpus.max_held_out_tokens
        documents = sorted_tokens.of(split)
        kept = documents if budget is None else cap_documents(documents, budget, seed, lambda d: len(d.ids) + 1)
        write_token_shards(kept, tokenizer, shards_path(into, split), documents_path(into, split), seed=seed)
    return account


def _check(account: CorpusAccount, corpus: CorpusConfig, tell: Callable[[str], object]) -> None:
    """Tell what was left out; UserError for a split without a document."""
    name = ", ".join(corpus.shard_paths) or corpus.source
    if account.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in account.left_out.items())
        tell(f"{name}: records left out: {reasons}; listed in {LEFT_OUT} of the stage")
    for split, documents in account.documents.items():
        if not documents and split in corpus.split.used:
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
        # Copied into the stage: every later one reads it from here, whatever becomes of the path.
        load_tokenizer(config.path).save(directory)
    return load_tokenizer(directory)


def _cap(into: Path, split: Split, budget: int, seed: int, tokenizer: Tokenizer) -> None:
    """Cut the documents of a split down to a budget of tokens; what is kept is held in memory."""
    kept = cap_documents(_documents(into, split), budget, seed, lambda d: len(document_ids(tokenizer, d.text)))
    write_documents(documents_path(into, split), kept)
