"""Token files in Megatron's `.bin`/`.idx` format: documents' ids, EOS after each, with their names beside them.

A shard directory is an artifact (see config): `tokens.bin`, `tokens.idx` (any Megatron tool reads them), `ids.jsonl`,
`stats.json`, `manifest.json`; and where not every token is a target, `learnt.bin` with a byte for each: 1, or 0 in a
prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from pydantic import ValidationError

from synpro_engine.config import (
    Config,
    UserError,
    atomic_write_text,
    json_text,
    new_artifact,
    read_manifest,
    verify_artifact,
    write_manifest,
)
from synpro_engine.data.corpus import TokenCorpus
from synpro_engine.data.documents import Document
from synpro_engine.data.encoding import Encoded, batched, encode_documents, in_order, usable_cpus
from synpro_engine.data.megatron_index import open_megatron, token_dtype, write_index
from synpro_engine.data.prompted import Task
from synpro_engine.data.rows import rows_of
from synpro_engine.data.tokenizer import Tokenizer, document_ids

KIND = "shards"
_IDS, _STATS, _TOKENS, _LEARNT, _LENGTHS = "ids.jsonl", "stats.json", "tokens", "learnt.bin", "lengths"


class ShardStats(Config):
    """What a shard directory holds. `tokens` counts one EOS for each document; `text_bytes` is UTF-8."""

    documents: int
    tokens: int
    text_bytes: int
    eos_id: int
    vocab_size: int
    tokenizer: str
    """Fingerprint of the tokenizer that made the ids."""


class Writable(Protocol):
    """A file that bytes are appended to."""

    def write(self, data: bytes, /) -> object:
        """Append all of `data`."""
        ...


class ShardWriter:
    """The files of a shard directory while they grow; nothing of the documents is held."""

    def __init__(
        self, directory: Path, tokenizer: Tokenizer, open_file: Callable[[Path], Writable], lengths: Path
    ) -> None:
        """open_file: opens files to append to, which its owner closes before they are finished. lengths: an aside.

        It takes an int32 a document, is no part of the shards, and may be deleted when they are finished.
        """
        self._directory, self._open_file = directory, open_file
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._tokens, self._names = open_file(directory / f"{_TOKENS}.bin"), open_file(directory / _IDS)
        self._lengths = open_file(lengths)
        self._learnt: Writable | None = None
        self.text_bytes = 0
        """Of the documents so far, in UTF-8; where files are gone on with, it is to be set."""

    def add(self, names: Iterable[str], encoded: Encoded) -> None:
        """Append documents by their ids."""
        self._tokens.write(encoded.tokens.astype(self._dtype).tobytes())
        self._lengths.write(encoded.lengths.astype(np.int32).tobytes())
        # As JSON, since an id may hold a newline or a quotation mark.
        self._names.write("".join(json_text(name, ensure_ascii=False) + "\n" for name in names).encode())
        self.text_bytes += encoded.text_bytes

    def add_learnt(self, learnt: Sequence[bool]) -> None:
        """Append which tokens are targets; to be told of every document or of none."""
        self._learnt = self._learnt or self._open_file(self._directory / _LEARNT)
        self._learnt.write(bytes(learnt))


def _finish(directory: Path, tokenizer: Tokenizer, lengths: Path, text_bytes: int) -> ShardStats:
    """Write index and totals of a shard directory whose files are complete; arguments as `ShardWriter`'s."""
    dtype = token_dtype(tokenizer.vocab_size)
    write_index(directory / f"{_TOKENS}.idx", lengths, dtype)
    stats = ShardStats(
        documents=lengths.stat().st_size // np.dtype(np.int32).itemsize,
        tokens=(directory / f"{_TOKENS}.bin").stat().st_size // dtype.itemsize,
        text_bytes=text_bytes,
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.fingerprint,
    )
    atomic_write_text(directory / _STATS, stats.model_dump_json(indent=2) + "\n")
    return stats


def publish_shards(path: Path, tokenizer: Tokenizer, lengths: Path, text_bytes: int, seed: int | None) -> None:
    """Make an artifact of a shard directory whose files are complete and stand under their names already."""
    _finish(path, tokenizer, lengths, text_bytes)
    write_manifest(path, KIND, _config(tokenizer), {}, seed)


@contextmanager
def new_shards(
    path: Path, tokenizer: Tokenizer, parents: Mapping[str, Path] | None = None, seed: int | None = None
) -> Iterator[ShardWriter]:
    """Write a shard directory `path` within the block; it appears whole behind it, or not at all.

    An older one is replaced. Raises UserError where no document came.
    """
    with new_artifact(path, KIND, _config(tokenizer), parents, seed) as directory:
        lengths = directory / _LENGTHS
        with ExitStack() as held:
            writer = ShardWriter(directory, tokenizer, lambda file: held.enter_context(file.open("wb")), lengths)
            yield writer
        if not _finish(directory, tokenizer, lengths, writer.text_bytes).documents:
            raise UserError(f"{path}: no documents to tokenise")
        lengths.unlink()


def _config(tokenizer: Tokenizer) -> dict[str, object]:
    """What the manifest of a shard directory says of its settings."""
    return {"tokenizer": tokenizer.fingerprint, "eos_id": tokenizer.eos_id}


def write_shards(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    path: Path,
    *,
    parents: Mapping[str, Path] | None = None,
    seed: int | None = None,
    threads: int | None = None,
) -> ShardStats:
    """Tokenise `documents` into a new shard directory `path`, as they come, and return its totals.

    Ids are stored as uint16 where the vocabulary is below 65,500, else int32. The directory appears whole or
    not at all; an older one is replaced. Raises UserError when there is no document.

    threads: that encode; as many as the CPUs that this process may use where not given.
    """

    def encode(batch: Sequence[Document]) -> Encoded:
        return encode_documents(tokenizer, [document.text for document in batch])

    batches = batched(documents, lambda document: len(document.text))
    with new_shards(path, tokenizer, parents, seed) as shards:
        for batch, encoded in in_order(batches, encode, threads or usable_cpus()):
            shards.add((document.id for document in batch), encoded)
    return read_shard_stats(path)


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

    on_long: called with each task that no response of fits, which is left out; without it, or where no task is left,
    that is the UserError of `Task.encode`. Otherwise as `write_shards`.
    """

    def encoded() -> Iterator[_Tokens]:
        too_long, fits = None, False
        for task in tasks:
            if len(task.parts) == 1:
                fits = True
                yield from _pieces(task.id, task.parts[0].text, tokenizer, longest)
                continue
            try:
                ids, learnt, text_bytes = task.encode(tokenizer, longest)
            except UserError as error:
                if on_long is None:
                    raise
                on_long(task)
                too_long = too_long or error
                continue
            fits = True
            yield _Tokens(task.id, ids, text_bytes, learnt)
        if too_long and not fits:
            raise too_long

    return _write_artifact(encoded(), tokenizer, path, seed)


class _Tokens(NamedTuple):
    """A document or a piece of one on its way into a shard; bytes in UTF-8 of what text it brings."""

    id: str
    ids: list[int]
    text_bytes: int
    learnt: list[bool] | None = None


def _pieces(id: str, text: str, tokenizer: Tokenizer, longest: int) -> Iterator[_Tokens]:
    """Plain text, all of which counts, in pieces that fit; its bytes are told with the first."""
    # Not of each piece by what it decodes to: one that ends within a character has other bytes than its text.
    ids, text_bytes = document_ids(tokenizer, text), len(text.encode())
    for at in range(0, max(1, len(ids) - 1), max(1, longest - 1)):
        piece = ids[at : at + longest]
        # Pieces share a token, so that each one is a target once, behind the one it follows.
        learnt = [at == 0] + [True] * (len(piece) - 1)
        yield _Tokens(id, piece, 0 if at else text_bytes, learnt)


def _write_artifact(documents: Iterable[_Tokens], tokenizer: Tokenizer, path: Path, seed: int | None) -> ShardStats:
    with new_shards(path, tokenizer, None, seed) as shards:
        for document in documents:
            shards.add([document.id], Encoded(*rows_of([document.ids]), document.text_bytes))
            if document.learnt is not None:
                shards.add_learnt(document.learnt)
    return read_shard_stats(path)


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
    assert isinstance(held.tokens, np.ndarray)  # mapped: they lie on this machine
    # The hashes prove that files are as written; this, that they were written together.
    if held.num_documents != stats.documents or len(sizes) > 1:
        raise UserError(f"{path}: the token files do not hold what {_STATS} says")
    return TokenCorpus(
        tokens=held.tokens,
        offsets=held.offsets(0, held.num_documents),
        eos_id=stats.eos_id,
        text_bytes=stats.text_bytes,
        fingerprint=stats.tokenizer,
        read_ids=lambda: _read_ids(path / _IDS),
        learnt=learnt,
    )


def _read_ids(file: Path) -> Iterator[str]:
    try:
        # Cut at newlines alone: an id may hold a line separator of another kind.
        with file.open(encoding="utf-8", newline="\n") as lines:
            yield from map(json.loads, lines)
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{file}: missing or damaged list of document ids") from None
