"""Megatron's `.bin`/`.idx` pair: token ids end to end, and an index of sequences and documents.

Read and written without Megatron, which takes seconds to import, asserts on a damaged file, and holds the sizes of all
sequences while it writes. Files are mapped into memory, not read into it; an index is written a block at a time.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError
from synpro_engine.data.streamed_tokens import StreamedTokens, TokenIds
from synpro_engine.storage import RemoteFile

# Magic, version, code of the ids' type, sequences, entries of the document index (documents + 1). There follow, for
# each sequence, its length (int32) and its first byte (int64); the first sequence of each document, and S (int64).
_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_FLOATS = {6: "float64", 7: "float32"}
_BLOCK = 2**20
_SMALL = 65_500
"""Megatron's own border between 16 and 32 bits an id."""


def token_dtype(vocab_size: int) -> np.dtype[np.integer]:
    """The type that Megatron stores ids of a vocabulary in."""
    return np.dtype(np.uint16 if vocab_size < _SMALL else np.int32)


def write_index(index: Path, lengths: Path, dtype: np.dtype[np.integer]) -> None:
    """Write the `.idx` of a `.bin` that holds one sequence for each document, with the bytes of Megatron's own writer.

    lengths: a file of int32, the ids of each document. dtype: of the ids in the `.bin`.
    """
    code = next(code for code, known in _DTYPES.items() if known == dtype)
    documents = lengths.stat().st_size // 4
    with index.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, code, documents, documents + 1))
        for block in _blocks(lengths):
            file.write(block.tobytes())
        begin = 0
        for block in _blocks(lengths):
            ends = begin + np.cumsum(block, dtype=np.int64) * dtype.itemsize
            file.write((ends - block * np.int64(dtype.itemsize)).tobytes())
            begin = int(ends[-1])
        for first in range(0, documents + 1, _BLOCK):
            file.write(np.arange(first, min(first + _BLOCK, documents + 1), dtype=np.int64).tobytes())


def _blocks(lengths: Path) -> Iterator[NDArray[np.int32]]:
    with lengths.open("rb") as file:
        while data := file.read(4 * _BLOCK):
            yield np.frombuffer(data, np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class MegatronFile:
    """tokens [T] of any integer type Megatron writes; everything is mapped or streamed, so that nothing is held."""

    tokens: TokenIds
    pointers: NDArray[np.int64]
    """First byte of each sequence, [S]."""
    first_sequence: NDArray[np.int64]
    """First sequence of each document, and S at last: [D + 1]."""

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.first_sequence) - 1

    def offsets(self, first: int, last: int) -> NDArray[np.int64]:
        """Where documents first..last (D counts as one) begin in `tokens`, [last - first + 1]."""
        sequences = self.first_sequence[first : last + 1]
        # A document without sequences at the end begins where the tokens end, and has no pointer.
        inside = sequences < len(self.pointers)
        begins = np.full(len(sequences), len(self.tokens), np.int64)
        begins[inside] = self.pointers[sequences[inside]] // self.tokens.itemsize
        return begins

    def spans(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of each document in `tokens`, in order, a block of them at a time."""
        for first in range(0, self.num_documents, _BLOCK):
            bounds = self.offsets(first, min(first + _BLOCK, self.num_documents)).tolist()
            yield from itertools.pairwise(bounds)


def open_megatron(prefix: Path) -> MegatronFile:
    """Map `prefix`.bin and .idx; UserError as `open_pair`."""
    return open_pair(Path(f"{prefix}.idx"), Path(f"{prefix}.bin"))


def open_pair(index: Path, tokens: Path | RemoteFile) -> MegatronFile:
    """Map an index, and its tokens, which are streamed where they lie in a store.

    UserError, which names the file, for one that is missing, damaged or cut short, and for tokens that are no integers.
    """
    try:
        with index.open("rb") as file:
            magic, version, code, sequences, entries = _HEADER.unpack(file.read(_HEADER.size))
        size = index.stat().st_size
        ids = tokens.stat().st_size
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; Megatron's shards are a .bin and an .idx") from None
    except struct.error:
        raise UserError(f"{index}: cut short, or not an index of Megatron's") from None
    if magic != _MAGIC or version != _VERSION:
        raise UserError(f"{index}: not an index of Megatron's (version {_VERSION})")
    if code not in _DTYPES:
        what = f"holds {_FLOATS[code]} numbers, which are no token ids" if code in _FLOATS else f"unknown type {code}"
        raise UserError(f"{index}: {what}")
    dtype = np.dtype(_DTYPES[code])
    # Behind these arrays a multimodal index has a byte for each sequence.
    if size - _HEADER.size - 12 * sequences - 8 * entries not in (0, sequences) or not entries:
        raise UserError(f"{index}: damaged or cut short ({sequences} sequences do not fit its {size} bytes)")
    if ids % dtype.itemsize:
        raise UserError(f"{tokens}: damaged or cut short ({ids} bytes are no whole number of {dtype} ids)")
    mapped = np.memmap(index, mode="r")
    # Views into the map at any byte: the header's 34 bytes leave these arrays unaligned, which numpy bears.
    lengths = np.frombuffer(mapped, np.int32, sequences, _HEADER.size)
    pointers = np.frombuffer(mapped, np.int64, sequences, _HEADER.size + 4 * sequences)
    documents = np.frombuffer(mapped, np.int64, entries, _HEADER.size + 12 * sequences)
    if not _ends_meet(lengths, pointers, documents, ids, dtype.itemsize):
        raise UserError(f"{index}: its sequences are not those of {tokens} ({ids} bytes); one of the two is damaged")
    if isinstance(tokens, RemoteFile):
        held = StreamedTokens(tokens, dtype)
    else:  # an empty file cannot be mapped
        held = np.memmap(tokens, dtype=dtype, mode="r") if ids else np.zeros(0, dtype)
    return MegatronFile(tokens=held, pointers=pointers, first_sequence=documents)


def _ends_meet(
    lengths: NDArray[np.int32],
    pointers: NDArray[np.int64],
    documents: NDArray[np.int64],
    total: int,
    itemsize: int,
) -> bool:
    """Whether the sequences lie end to end from the first byte to the last, and the documents from first to last."""
    end = 0
    for first in range(0, len(lengths), _BLOCK):
        # In 64 bits, for int32 lengths times bytes overflow within a file. By blocks: an index
        # of a billion sequences is 12 GB.
        sizes = lengths[first : first + _BLOCK].astype(np.int64) * itemsize
        begins = end + np.cumsum(sizes) - sizes
        if sizes.min() < 0 or not np.array_equal(begins, pointers[first : first + _BLOCK]):
            return False
        end = int(begins[-1] + sizes[-1])
    ordered = all(
        np.all(np.diff(documents[first : first + _BLOCK + 1]) >= 0) for first in range(0, len(documents), _BLOCK)
    )
    return end == total and ordered and documents[0] == 0 and documents[-1] == len(lengths)
