"""Lines of plain, gzip and Zstandard files, as bytes; a damaged or cut-off file is an error, never a shorter file.

Knows compression and line ends; does not know what a line says.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from synpro_engine.config import UserError

_CHUNK = 1 << 16


def line_reader(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line without its newline) of a file compressed according to its suffix.

    Raises UserError naming file and line when the file cannot be opened, is damaged, or ends too early.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(_chunks(file, path.suffix)), 1):
                yield number, line
    except (zstandard.ZstdError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}:{number + 1}: damaged or truncated file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}:{number + 1}: cannot be read ({error.strerror or error})") from None


def _chunks(file: BinaryIO, suffix: str) -> Iterator[bytes]:
    if suffix == ".zst":
        return _zstd_chunks(file)
    stream = gzip.GzipFile(fileobj=file) if suffix == ".gz" else file
    return iter(lambda: stream.read(_CHUNK), b"")


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress frame by frame. The library's own stream reader takes a file cut in mid-frame for a whole one."""
    decompressor = zstandard.ZstdDecompressor()
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
