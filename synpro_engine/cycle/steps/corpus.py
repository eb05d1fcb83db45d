"""From a corpus of documents to what training reads: splits, tokenizer, shards.

Everything here runs on rank 0 alone; the other ranks open the finished artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from synpro_engine.config import UserError, atomic_write_text, json_text, remove_directory
from synpro_engine.config.journal import Journal
from synpro_engine.cycle.run_layout import (
    ACCOUNT,
    LEFT_OUT,
    TOKENIZE,
    TOKENIZER,
    UNFINISHED,
    documents_path,
    measured_path,
    shards_path,
)
from synpro_engine.cycle.sections import CorpusConfig
from synpro_engine.cycle.settings import TokenizeSettings
from synpro_engine.cycle.steps.gather import text_batches, token_batches
from synpro_engine.cycle.steps.intake import CorpusAccount, Intake
from synpro_engine.cycle.steps.stream import Bar, Batch, ShowBar, Sink, no_bar
from synpro_engine.cycle.steps.tasks import naming
from synpro_engine.cycle.steps.tokens import Tokens
from synpro_engine.data import (
    PublishedTokenizer,
    Split,
    TokenCorpus,
    TokenFiles,
    Tokenizer,
    check_rows,
    find_source,
    load_tokenizer,
    open_shards,
    read_tasks,
)
from synpro_engine.data.walking import not_read
from synpro_engine.data.writer import written_documents
from synpro_engine.dist import Topology, on_main, progress, say
from synpro_engine.evaluate import Overlap, measure_overlap

_SHOWN_BYTES = 1 << 24
"""Files of less are read before anybody looks at a bar."""


def open_split(stage: Path, name: str, tokenizer: Tokenizer) -> TokenCorpus:
    """The tokens of a split or source; UserError when they are another tokenizer's."""
    return open_shards(shards_path(stage, name), tokenizer)


def open_measured(tokens: Path, names: Iterable[str], tokenizer: Tokenizer) -> dict[str, TokenCorpus]:
    """Splits, references and held-out tasks by the names of their shards; `tokens` is the `tokenize` stage."""
    return {name: open_shards(measured_path(tokens, name), tokenizer) for name in names}


def open_tokenizer(stage: Path, topology: Topology) -> PublishedTokenizer:
    """The tokenizer that the `tokenize` or the `import` stage stored, as rank 0 reads it. Collective."""
    return on_main(topology, lambda: load_tokenizer(stage / TOKENIZER))


def tokenize_stage(into: Path, settings: TokenizeSettings, topology: Topology) -> None:
    """Fill the `tokenize` artifact on rank 0, which goes on where an earlier start was broken off. Collective."""

    def show(total: int, name: str) -> AbstractContextManager[Bar]:
        return progress(total, f"{TOKENIZE}: {name}", "B", topology) if total > _SHOWN_BYTES else no_bar(total, name)

    def work() -> None:
        with topology.watch.wish.breakable("the next start goes on where this one was"):
            build_corpus(into, settings, partial(say, topology), show)

    on_main(topology, work)


def build_corpus(
    into: Path,
    settings: TokenizeSettings,
    tell: Callable[[str], object] = lambda line: None,
    bar: ShowBar = no_bar,
) -> None:
    """Fill the `tokenize` artifact: documents of each split, the tokenizer, the shards of each split, the account.

    `into` is empty, or as a start with the same settings left it. `tell` gets lines for the user on what is not read.
    """
    work = into / UNFINISHED
    # The account is written last of all: where it is, nothing is left to be done.
    if not (into / ACCOUNT).exists():
        for name, tasks in settings.tasks.items():  # before the corpus, which takes long: are there any at all?
            with naming(name):
                next(read_tasks(str(tasks.source), tasks))
        tokens = Tokens(into, work, settings, bar)
        account = (_tokenize if settings.corpus.shards is None else _copy_shards)(tokens, tell)
        overlap = {split: asdict(share) for split, share in _overlap(tokens).items()}
        atomic_write_text(into / ACCOUNT, json_text({**account.model_dump(), "overlap": overlap}, indent=2) + "\n")
    remove_directory(work)


def _tokenize(tokens: Tokens, tell: Callable[[str], object]) -> CorpusAccount:
    settings, corpus = tokens.settings, tokens.settings.corpus
    source = find_source(corpus.source)
    if source.remark:
        tell(source.remark)
    given = settings.tokenizer.path
    tokenizer = None if given is None else _fitting(tokens.given_tokenizer(given), settings)

    def batches(sinks: Mapping[Split, Sink], journal: Journal, on_bytes: Callable[[int], object]) -> Iterator[Batch]:
        intake = Intake(journal, tokens.into, tokens.work, corpus, settings.seed)
        if intake.place.line:
            tell(
                f"{source.name}: going on behind {source.path_of(source.files[intake.place.file])}:{intake.place.line}"
            )
        return text_batches(source, corpus, intake, sinks, on_bytes)

    read = tokens.read(tokenizer, sum(file.stat().st_size for file in source.files), batches)
    account = CorpusAccount(**read["account"], files=len(source.files), files_not_read=source.left_out)
    _check(account, corpus, tell)
    if tokenizer is not None:
        tokens.finish(tokenizer, read["text_bytes"])
    else:
        tokenizer = _fitting(tokens.trained_tokenizer(), settings)
        tokens.finish(tokenizer, {s: tokens.read_again(s, tokenizer)["text_bytes"][s] for s in corpus.split.used})
    return account


def _fitting(tokenizer: PublishedTokenizer, settings: TokenizeSettings) -> PublishedTokenizer:
    check_rows(tokenizer, settings.vocab_size, "`model.vocab_size`")
    return tokenizer


def _copy_shards(tokens: Tokens, tell: Callable[[str], object]) -> CorpusAccount:
    """The same from token ids that are there already: they are copied, their texts decoded."""
    settings, corpus = tokens.settings, tokens.settings.corpus
    if settings.tokenizer.path is None:
        raise UserError("`tokenizer.path`: is missing; `corpus.shards` needs the tokenizer that made the tokens")
    tokenizer = _fitting(tokens.given_tokenizer(settings.tokenizer.path), settings)
    source = TokenFiles(corpus.shard_paths, tokenizer, corpus.validation_paths)
    if remark := not_read("`corpus.shards`", source.left_out):
        tell(remark)

    def batches(sinks: Mapping[Split, Sink], journal: Journal, on_bytes: Callable[[int], object]) -> Iterator[Batch]:
        intake = Intake(journal, tokens.into, tokens.work, corpus, settings.seed)
        return token_batches(source, tokenizer, tokens.threads, intake, sinks, on_bytes)

    read = tokens.read(tokenizer, source.bytes, batches)
    account = CorpusAccount(**read["account"], files=source.files, files_not_read=source.left_out)
    _check(account, corpus, tell)
    tokens.finish(tokenizer, read["text_bytes"])
    return account


def _overlap(tokens: Tokens) -> dict[str, Overlap]:
    """Of the held-out splits with the train split, after cutting and capping: what training sees and is judged on."""

    def texts(split: Split, on_bytes: Callable[[int], object] = lambda count: None) -> Iterator[str]:
        return (
            document.text for _, document in written_documents(documents_path(tokens.into, split), on_bytes=on_bytes)
        )

    held_out = {split: partial(texts, split) for split in tokens.settings.corpus.split.used if split != "train"}
    with tokens.bar(documents_path(tokens.into, "train").stat().st_size, "overlap") as shown:
        return measure_overlap(held_out, texts("train", shown.update), threads=tokens.threads)


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
