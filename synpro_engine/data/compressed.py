"""Lines of plain and compressed files, as bytes; a damaged or cut-off file is an error, never a shorter file."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from synpro_engine.config import UserError
from synpro_engine.storage import RemoteFile

# What the format allows and `zstd --long=31` writes. Memory is used as far as the text fills the window.
_LARGEST_WINDOW = 1 << 31


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()


# By suffix: a decompressor of one stream, and the byte that may fill up the file behind a stream.
_FORMATS: dict[str, tuple[Callable[[], Any], bytes]] = {
    ".zst": (_zstd, b""),
    ".zstd": (_zstd, b""),
    ".gz": (lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), b"\0"),
    ".bz2": (bz2.BZ2Decompressor, b""),
    ".xz": (lzma.LZMADecompressor, b"\0"),
}
COMPRESSED = tuple(_FORMATS)
_CHUNK = 1 << 16
_COMPRESSED_CHUNK = 1 << 13  # small, for a few bytes may stand for megabytes
_DAMAGE = (zstandard.ZstdError, zlib.error, lzma.LZMAError, EOFError)


def line_reader(
    path: Path | RemoteFile, on_bytes: Callable[[int], object] = lambda count: None
) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line without its newline) of a file compressed according to its suffix.

    Several frames, members or streams one after another are one file. Raises UserError naming file and line when the
    file cannot be opened, is damaged, or ends too early.

    on_bytes: told of each stretch of the file that was read, how many bytes it is.
    """
    number = 0
    try:
        with path.open("rb") as file:
            suffix = path.suffix.lower()
            plain = _read(file, _CHUNK, on_bytes)
            # By suffix and never by content: a file that is not what it is called is
            # damaged, which the user should know.
            chunks = _streams(file, on_bytes, *_FORMATS[suffix]) if suffix in COMPRESSED else plain
            for number, line in enumerate(_lines(chunks), 1):
                yield number, line
    except _DAMAGE as error:
        raise UserError(f"{path}:{number + 1}: damaged or truncated file ({error})") from None
    except OSError as error:  # bzip2 knows no error of its own; the system's have a number
        what = "damaged or truncated file" if error.errno is None else "cannot be read"
        raise UserError(f"{path}:{number + 1}: {what} ({error.strerror or error})") from None


def _read(file: BinaryIO, size: int, on_bytes: Callable[[int], object]) -> Iterator[bytes]:
    while chunk := file.read(size):
        on_bytes(len(chunk))
        yield chunk


def _streams(
    file: BinaryIO, on_bytes: Callable[[int], object], decompressor: Callable[[], Any], padding: bytes
) -> Iterator[bytes]:
    """Decompress stream by stream; each must be whole, and nothing but `padding` and further ones may follow.

    The libraries' own readers are not so strict: zstd's takes a file cut in mid-frame for a whole one, those of bz2 and
    xz take whatever stands behind a stream, a damaged one too, for the end.
    """
    stream, ended = None, False
    if not file.peek(1):  # type: ignore[attr-defined]  # opened with a buffer
        raise EOFError("a compressed file has at least a header; this one has no byte")
    for chunk in _read(file, _COMPRESSED_CHUNK, on_bytes):
        while chunk:
            if stream is None:
                # Behind a stream gzip and xz allow zeros (tapes and block devices fill up with them);
                # before the first nothing may stand.
                chunk = chunk.lstrip(padding) if ended else chunk
                if not chunk:
                    break
                stream = decompressor()
            yield stream.decompress(chunk)
            chunk = b""
            if stream.eof:
                chunk, stream, ended = stream.unused_data, None, True
    # Checked at the end, for a cut-off stream raises nothing by itself: it just waits for more.
    if stream is not None:
        raise EOFError("the last compressed stream is not complete")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split at newlines; the pieces of a long line are joined once, so its cost stays linear."""
    pieces: list[bytes] = []
    for chunk in chunks:
        head, *rest = chunk.split(b"\n")
        pieces.append(head)
        for piece in rest:
            yield b"".join(pieces)
            pieces = [piece]
    # A last line without its newline counts; an empty rest behind the last newline is no line.
    if any(pieces):
        yield b"".join(pieces)
