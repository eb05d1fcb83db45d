"""Token files in Megatron's `.bin`/`.idx` format: documents' ids, EOS after each, with their names beside them.

A shard directory is an artifact (see config): `tokens.bin`, `tokens.idx` (any Megatron tool reads them), `ids.jsonl`,
`stats.json`, `manifest.json`; and where not every token is a target, `learnt.bin` with a byte for each: 1, or 0 in a
prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError

from synpro_engine.config import (
    Config,
    UserError,
    atomic_write_text,
    json_text,
    new_artifact,
    read_manifest,
    verify_artifact,
)
from synpro_engine.data.corpus import TokenCorpus
from synpro_engine.data.documents import Document
from synpro_engine.data.megatron_index import open_megatron
from synpro_engine.data.prompted import Task
from synpro_engine.data.token_files import TokenDocument
from synpro_engine.data.tokenizer import Tokenizer, document_ids
from synpro_engine.data.writer import DocumentWriter

KIND = "shards"
_IDS, _STATS, _TOKENS, _LEARNT = "ids.jsonl", "stats.json", "tokens", "learnt.bin"


class ShardStats(Config):
    """What a shard directory holds. `tokens` counts one EOS for each document; `text_bytes` is UTF-8."""

    documents: int
    tokens: int
    text_bytes: int
    eos_id: int
    vocab_size: int
    tokenizer: str
    """Fingerprint of the tokenizer that made the ids."""


def write_shards(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    path: Path,
    *,
    parents: Mapping[str, Path] | None = None,
    seed: int | None = None,
) -> ShardStats:
    """Tokenise `documents` into a new shard directory `path`, one at a time, and return its totals.

    Ids are stored as uint16 where the vocabulary is below 65,500, else int32. The directory appears whole or
    not at all; an older one is replaced. Raises UserError when there is no document.
    """
    encoded = (_Tokens(d.id, document_ids(tokenizer, d.text), len(d.text.encode())) for d in documents)
    return _write_artifact(encoded, tokenizer, path, parents, seed)


def write_task_shards(
    tasks: Iterable[Task],
    tokenizer: Tokenizer,
    path: Path,
    longest: int,
    *,
    seed: int | None = None,
    on_long: Callable[[Task], object] | None = None,
) -> ShardStats:
    """Tokenise tasks, each in at most `longest` tokens (see `Task.encode`), and note which are targets.

    on_long: called with each task that no response of fits, which is left out; without it that is the UserError of
    `Task.encode`. Otherwise as `write_shards`.
    """

    def encoded() -> Iterator[_Tokens]:
        for task in tasks:
            if len(task.parts) == 1:  # plain text: all of it counts, in pieces that fit
                ids = document_ids(tokenizer, task.parts[0].text)
                for at in range(0, max(1, len(ids) - 1), max(1, longest - 1)):
                    piece, fresh = ids[at : at + longest], int(at > 0)
                    # Pieces share a token, so that each one is a target once, behind the one it follows.
                    learnt = [at == 0] + [True] * (len(piece) - 1)
                    yield _Tokens(task.id, piece, len(tokenizer.decode(piece[fresh:]).encode()), learnt)
                continue
            try:
                ids, learnt = task.encode(tokenizer, longest)
            except UserError:
                if on_long is None:
                    raise
                on_long(task)
                continue
            yield _Tokens(task.id, ids, sum(len(part.text.encode()) for part in task.parts if part.learnt), learnt)

    return _write_artifact(encoded(), tokenizer, path, None, seed)


def write_token_shards(
    documents: Iterable[TokenDocument], tokenizer: Tokenizer, path: Path, texts: Path, *, seed: int | None = None
) -> ShardStats:
    """Copy documents that are token ids already into a new shard directory, and their decoded texts to `texts`.

    The ids stay as they are; one EOS follows each document. They are the tokenizer's (see `check_ids`) and spell more
    than white space. Otherwise as `write_shards`.
    """
    with DocumentWriter(texts) as writer:

        def decoded() -> Iterator[_Tokens]:
            for document in documents:
                ids = document.ids.tolist()
                text = tokenizer.decode(ids)
                writer.write(Document(document.id, text))
                yield _Tokens(document.id, [*ids, tokenizer.eos_id], len(text.encode()))

        return _write_artifact(decoded(), tokenizer, path, None, seed)


class _Tokens(NamedTuple):
    """A document on its way into a shard, with its EOS; bytes of its text in UTF-8."""

    id: str
    ids: list[int]
    text_bytes: int
    learnt: list[bool] | None = None


def _write_artifact(
    documents: Iterable[_Tokens],
    tokenizer: Tokenizer,
    path: Path,
    parents: Mapping[str, Path] | None,
    seed: int | None,
) -> ShardStats:
    config = {"tokenizer": tokenizer.fingerprint, "eos_id": tokenizer.eos_id}
    with new_artifact(path, KIND, config, parents, seed) as directory:
        stats = _write(documents, tokenizer, directory)
        if not stats.documents:
            raise UserError(f"{path}: no documents to tokenise")
        atomic_write_text(directory / _STATS, stats.model_dump_json(indent=2) + "\n")
    return stats


def _write(documents: Iterable[_Tokens], tokenizer: Tokenizer, directory: Path) -> ShardStats:
    # Here, for reading shards needs no Megatron, whose import takes seconds.
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    prefix = directory / _TOKENS
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    count = tokens = text_bytes = 0
    with ExitStack() as held:
        names = held.enter_context((directory / _IDS).open("w", encoding="utf-8"))
        targets: BinaryIO | None = None
        for document in documents:
            if document.learnt is not None:
                targets = targets or held.enter_context((directory / _LEARNT).open("wb"))
                targets.write(bytes(document.learnt))
            builder.add_document(torch.tensor(document.ids), [len(document.ids)])
            # As JSON, since an id may hold a newline or a quotation mark.
            names.write(json_text(document.id, ensure_ascii=False) + "\n")
            count += 1
            tokens += len(document.ids)
            text_bytes += document.text_bytes
    builder.finalize(f"{prefix}.idx")
    return ShardStats(
        documents=count,
        tokens=tokens,
        text_bytes=text_bytes,
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.fingerprint,
    )


def read_shard_stats(path: Path) -> ShardStats:
    """Return the totals of a finished shard directory; UserError when it is none."""
    if read_manifest(path).kind != KIND:
        raise UserError(f"{path}: holds {read_manifest(path).kind}, not {KIND}")
    try:
        return ShardStats.model_validate_json((path / _STATS).read_bytes())
    except (OSError, ValidationError):
        raise UserError(f"{path / _STATS}: missing or damaged") from None


def open_shards(path: Path, tokenizer: Tokenizer | None = None) -> TokenCorpus:
    """Map a shard directory into memory; nothing is read before it is used.

    With `tokenizer`, shards of another one are refused: their ids would mean other text. Raises UserError for
    a directory that is unfinished, damaged, cut short or of another tokenizer.
    """
    # Before anything is mapped: a token that was flipped on the disk is a valid id, and nothing later would notice.
    verify_artifact(path)
    stats = read_shard_stats(path)
    if tokenizer is not None and tokenizer.fingerprint != stats.tokenizer:
        ours = tokenizer.fingerprint[:12]
        raise UserError(
            f"{path}: tokenised with another tokenizer ({stats.tokenizer[:12]}, expected {ours}); tokenise again"
        )
    held, learnt = open_megatron(path / _TOKENS), None
    if (path / _LEARNT).exists():
        learnt = np.memmap(path / _LEARNT, dtype=np.bool_, mode="r")
    sizes = {len(held.tokens), stats.tokens, len(held.tokens if learnt is None else learnt)}
    # The hashes prove that files are as written; this, that they were written together.
    if held.num_documents != stats.documents or len(sizes) > 1:
        raise UserError(f"{path}: the token files do not hold what {_STATS} says")
    return TokenCorpus(
        tokens=held.tokens,
        offsets=held.offsets(0, held.num_documents),
        eos_id=stats.eos_id,
        text_bytes=stats.text_bytes,
        fingerprint=stats.tokenizer,
        load_ids=lambda: _read_ids(path / _IDS),
        learnt=learnt,
    )


def _read_ids(file: Path) -> list[str]:
    try:
        # Not splitlines(): an id may hold a line separator that is not a newline.
        return [json.loads(line) for line in file.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{file}: missing or damaged list of document ids") from None
