"""Token files in Megatron's `.bin`/`.idx` format: documents' ids, EOS after each, with their names beside them.

Knows the files; does not know in which order they are read. A shard directory is an artifact (see config):
`tokens.bin`, `tokens.idx` (any Megatron tool reads them), `ids.jsonl`, `stats.json`, `manifest.json`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from synpro_engine.config import Config, UserError, atomic_write_text, new_artifact, read_manifest
from synpro_engine.data.corpus import TokenCorpus
from synpro_engine.data.documents import Document
from synpro_engine.data.tokenizer import Tokenizer, document_ids

KIND = "shards"
# Megatron's index: magic, version, code of the ids' type, sequences, documents + 1; then a length for each sequence.
_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES: dict[int, type[np.integer]] = {4: np.int32, 8: np.uint16}
_IDS, _STATS, _TOKENS = "ids.jsonl", "stats.json", "tokens"


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
    config = {"tokenizer": tokenizer.fingerprint, "eos_id": tokenizer.eos_id}
    with new_artifact(path, KIND, config, parents, seed) as directory:
        stats = _write(documents, tokenizer, directory)
        if not stats.documents:
            raise UserError(f"{path}: no documents to tokenise")
        atomic_write_text(directory / _STATS, stats.model_dump_json(indent=2) + "\n")
    return stats


def _write(documents: Iterable[Document], tokenizer: Tokenizer, directory: Path) -> ShardStats:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    prefix = directory / _TOKENS
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    count = tokens = text_bytes = 0
    with (directory / _IDS).open("w", encoding="utf-8") as names:
        for document in documents:
            ids = document_ids(tokenizer, document.text)
            builder.add_document(torch.tensor(ids), [len(ids)])
            names.write(json.dumps(document.id, ensure_ascii=False) + "\n")
            count += 1
            tokens += len(ids)
            text_bytes += len(document.text.encode())
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
    stats = read_shard_stats(path)
    if tokenizer is not None and tokenizer.fingerprint != stats.tokenizer:
        ours = tokenizer.fingerprint[:12]
        raise UserError(
            f"{path}: tokenised with another tokenizer ({stats.tokenizer[:12]}, expected {ours}); tokenise again"
        )
    tokens, offsets = _map(path / _TOKENS)
    if not (len(offsets) - 1 == stats.documents and offsets[-1] == len(tokens) == stats.tokens):
        raise UserError(f"{path}: the token files do not hold what {_STATS} says")
    return TokenCorpus(
        tokens=tokens,
        offsets=offsets,
        eos_id=stats.eos_id,
        text_bytes=stats.text_bytes,
        fingerprint=stats.tokenizer,
        load_ids=lambda: _read_ids(path / _IDS),
    )


def _map(prefix: Path) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Return (token ids of all documents end to end, [T]; where each document starts, and T at last, [D + 1]).

    The index is read here rather than by Megatron, which takes seconds to import and asserts on a damaged file.
    """
    try:
        with Path(f"{prefix}.idx").open("rb") as file:
            magic, _, dtype, count, _ = _HEADER.unpack(file.read(_HEADER.size))
            if magic != _MAGIC:
                raise ValueError("not an index")
            lengths = np.frombuffer(file.read(4 * count), dtype=np.int32)
        tokens = np.memmap(f"{prefix}.bin", dtype=_DTYPES[dtype], mode="r")
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise UserError(f"{prefix}.idx, .bin: missing or damaged token files ({error})") from None
    return tokens, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _read_ids(file: Path) -> list[str]:
    try:
        # Not splitlines(): an id may hold a line separator that is not a newline.
        return [json.loads(line) for line in file.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
    except (OSError, ValueError):
        raise UserError(f"{file}: missing or damaged list of document ids") from None
