"""Lines of plain and compressed files, as bytes; a damaged or cut-off file is an error, never a shorter file.

Knows compression and line ends; does not know what a line says.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from synpro_engine.config import UserError

COMPRESSED = (".zst", ".zstd", ".gz", ".bz2", ".xz")
_CHUNK = 1 << 16
# What the format allows and `zstd --long=31` writes. Memory is used as far as the text fills the window.
_LARGEST_WINDOW = 1 << 31
_DAMAGE = (zstandard.ZstdError, zlib.error, lzma.LZMAError, EOFError)


def line_reader(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line without its newline) of a file compressed according to its suffix.

    Several frames, members or streams one after another are one file. Raises UserError naming file and line when the
    file cannot be opened, is damaged, or ends too early.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(_chunks(file, path.suffix.lower())), 1):
                yield number, line
    except _DAMAGE as error:
        raise UserError(f"{path}:{number + 1}: damaged or truncated file ({error})") from None
    except OSError as error:  # gzip and bzip2 know no error of their own; the system's have a number
        what = "damaged or truncated file" if error.errno is None else "cannot be read"
        raise UserError(f"{path}:{number + 1}: {what} ({error.strerror or error})") from None


def _chunks(file: BinaryIO, suffix: str) -> Iterator[bytes]:
    if suffix not in COMPRESSED:
        return iter(lambda: file.read(_CHUNK), b"")
    if not file.peek(1):  # type: ignore[attr-defined]  # opened with a buffer
        raise EOFError("a compressed file has at least a header; this one has no byte")
    if suffix in (".zst", ".zstd"):
        return _zstd_chunks(file)
    opened = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}[suffix]
    stream = gzip.GzipFile(fileobj=file) if opened is gzip.GzipFile else opened(file)
    return iter(lambda: stream.read(_CHUNK), b"")


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress frame by frame. The library's own stream reader takes a file cut in mid-frame for a whole one."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    frame = None
    while chunk := file.read(_CHUNK):
        while chunk:
            frame = frame or decompressor.decompressobj()
            yield frame.decompress(chunk)
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("the last Zstandard frame is not complete")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split at newlines; the pieces of a long line are joined once, so its cost stays linear."""
    pieces: list[bytes] = []
    for chunk in chunks:
        head, *rest = chunk.split(b"\n")
        pieces.append(head)
        for piece in rest:
            yield b"".join(pieces)
            pieces = [piece]
    if any(pieces):
        yield b"".join(pieces)
