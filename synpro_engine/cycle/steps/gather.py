"""The records of a source as documents of their splits: read once, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial

from synpro_engine.cycle.sections import CorpusConfig
from synpro_engine.cycle.steps.intake import Intake
from synpro_engine.cycle.steps.stream import Batch, Batcher, Sink
from synpro_engine.data import (
    BadDocument,
    Document,
    Source,
    Split,
    TokenDocument,
    TokenFiles,
    Tokenizer,
    check_ids,
    chunk_documents,
    read_placed_documents,
)
from synpro_engine.data.encoding import batched, in_order
from synpro_engine.data.records import Place
from synpro_engine.data.walking import CorpusFile

_CHARS_PER_TOKEN = 4  # about, and only for the size of batches


def text_batches(
    source: Source,
    corpus: CorpusConfig,
    intake: Intake,
    sinks: Mapping[Split, Sink],
    on_bytes: Callable[[int], object],
) -> Iterator[Batch]:
    """Read records on from where `intake` is; documents are placed whole, then cut into pieces.

    on_bytes: told how many bytes of the files are read.
    """
    leave_out = partial(intake.left_out.bad, source)
    batcher = Batcher(sinks, intake.mark)
    folder_of = lru_cache(maxsize=1)(partial(_folder, source))  # a file has many documents
    for record, document in read_placed_documents(
        source, corpus, leave_out, seen=intake.ids.seen, place=intake.place, on_bytes=on_bytes,
        source_field=corpus.source_field,
    ):  # fmt: skip
        if corpus.source_field is None and (folder := folder_of(record.file)) is not None:
            document = replace(document, source=folder)
        intake.ids.note()
        split = intake.split_of(document.text)
        if split is None:
            why = f"the text of {document.id!r} came before"
            leave_out(BadDocument(file=record.file, line=record.line, reason="repeated text", why=why))
        else:
            for piece in _pieces(document, corpus.piece_chars):
                batcher.add(split, piece)
        yield from batcher.read(len(document.text))
    yield batcher.end()


def _folder(source: Source, file: CorpusFile) -> str | None:
    """The folder directly below the root that a file lies in; None for one that lies at the root."""
    return next(iter(source.path_of(file).split("/")[:-1]), None)


def _pieces(document: Document, piece_chars: int | None) -> Iterator[Document]:
    return iter((document,)) if piece_chars is None else chunk_documents((document,), piece_chars)


def token_batches(
    source: TokenFiles,
    tokenizer: Tokenizer,
    threads: int,
    intake: Intake,
    sinks: Mapping[Split, Sink],
    on_bytes: Callable[[int], object],
) -> Iterator[Batch]:
    """The same of documents that are token ids already: what they spell decides, and their ids stay as they are.

    Documents that spell no text are left out. UserError, which names file and document, for an id that is not the
    tokenizer's.
    """

    def texts_of(documents: Sequence[TokenDocument]) -> list[str]:
        for document in documents:
            check_ids(document, tokenizer)
        return [tokenizer.decode(document.ids.tolist()) for document in documents]

    def leave_out(document: TokenDocument, reason: str, why: str) -> None:
        name = document.id.rpartition(":")[0] + document.file.suffix
        intake.left_out.add(reason, file=name, line=document.number, why=why)

    batcher = Batcher(sinks, intake.mark)
    documents = source.read(Place(intake.place.file, intake.place.line))
    batches = batched(documents, lambda document: _CHARS_PER_TOKEN * len(document.ids))
    for batch, texts in in_order(batches, texts_of, threads):
        for document, text in zip(batch, texts, strict=True):
            intake.place.file, intake.place.line = document.place.file, document.place.line
            if not text.strip():
                leave_out(document, "empty", f"{document.id!r} spells no text")
            elif document.held_out:
                intake.take("validation")
                batcher.add("validation", Document(document.id, text), document.ids)
            elif (split := intake.split_of(text)) is None:
                leave_out(document, "repeated text", f"the text of {document.id!r} came before")
            else:
                batcher.add(split, Document(document.id, text), document.ids)
            on_bytes(document.ids.nbytes)
            yield from batcher.read(len(text))
    yield batcher.end()
