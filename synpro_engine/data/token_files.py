"""Corpora that come as token ids: Megatron's `.bin`/`.idx`, flat `.npy` files as OLMo's tools write them, `.pt` files.

Every id must be one of the tokenizer's. Files are mapped into memory, or streamed from a store (whose indices, some 20
bytes a document, are brought to the cache), and read in order; nothing is held.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from synpro_engine.config import UserError, first_line
from synpro_engine.data.megatron_index import open_pair
from synpro_engine.data.records import Place
from synpro_engine.data.streamed_tokens import StreamedTokens, TokenIds
from synpro_engine.data.tokenizer import Tokenizer
from synpro_engine.data.torch_tokens import open_torch_tokens
from synpro_engine.data.walking import walk_place
from synpro_engine.storage import RemoteFile, file_at_hand, is_remote, joined
from synpro_engine.storage.stores import find_file

_NUMPY = b"\x93NUMPY"
_ALONE = (".npy", ".pt")
_ENDINGS = (".bin", ".idx", *_ALONE)
_BLOCK, _STREAMED_BLOCK = 2**24, 2**20
_SAMPLE, _FEW = 2**16, 16

_Found: TypeAlias = tuple[list["TokenFile"], tuple[str, ...]]
"""Files of a place, and what of it is passed over."""


@dataclass(frozen=True, slots=True)
class TokenDocument:
    """One document's ids, a view [tokens of it] without an end-of-document token at its end.

    The id is `<file>:<number>`: the file's path below the given one, without its suffix, and the document's number in
    that file, from 0.
    """

    id: str
    ids: NDArray[np.integer]
    file: Path | RemoteFile
    number: int
    place: Place
    """As `read` takes it."""
    held_out: bool = False
    """Whether it is from the files that are held out."""


@dataclass(frozen=True)
class TokenFile:
    """A file of ids, and its index where it is one of Megatron's."""

    tokens: Path | RemoteFile
    index: Path | RemoteFile | None = None

    @property
    def named(self) -> Path | RemoteFile:
        """The file that documents are told by."""
        return self.tokens if self.index is None else self.index


class FoundTokens(NamedTuple):
    """What lies at the places of token files."""

    named: list[tuple[str, TokenFile]]
    """The files, each with the name that its documents' ids begin with, sorted by that name."""
    left_out: tuple[str, ...]
    """Paths of what is not read below a directory, with it where there are several places; a folder ends in `/`."""


class TokenFiles:
    """All documents of one or several places (see `find_files`), as often as they are asked for."""

    def __init__(self, paths: Sequence[str], tokenizer: Tokenizer, held_out: Sequence[str] = ()) -> None:
        """tokenizer: the one that made the ids. UserError for a place without token files, and for damaged ones.

        held_out: places of more files, which are read behind the others, and whose names begin with `validation/`.
        """
        found, more = find_files(paths), find_files(held_out) if held_out else FoundTokens([], ())
        self._files, self._held_out = found.named, len(found.named)
        self._files += [(f"validation/{name}", file) for name, file in more.named]
        self.left_out = found.left_out + more.left_out
        """What of their directories is hidden or no file, and so not read."""
        self._tokenizer = tokenizer
        for _, file in self._files:  # a damaged one should end this before hours were spent on the others
            _open(file, tokenizer)

    @property
    def files(self) -> int:
        """How many there are."""
        return len(self._files)

    @property
    def bytes(self) -> int:
        """Size of all tokens."""
        return sum(file.tokens.stat().st_size for _, file in self._files)

    def __iter__(self) -> Iterator[TokenDocument]:
        """Every document that has a token, in order of the files' names."""
        return self.read(Place())

    def read(self, behind: Place) -> Iterator[TokenDocument]:
        """The documents behind the one at a place."""
        eos = self._tokenizer.eos_id
        for at, (name, file) in list(enumerate(self._files))[behind.file :]:
            tokens, spans = _open(file, self._tokenizer)
            for number, (begin, end) in enumerate(spans):
                ids = tokens[begin:end]
                # Megatron's files may hold it and flat ones do; taken off here, each
                # document gets one when it is copied.
                if len(ids) and ids[-1] == eos:
                    ids = ids[:-1]
                if len(ids) and (at, number + 1) > (behind.file, behind.line):
                    place, held_out = Place(at, number + 1), at >= self._held_out
                    yield TokenDocument(f"{name}:{number}", ids, file.named, number, place, held_out)


def check_ids(document: TokenDocument, tokenizer: Tokenizer) -> None:
    """UserError, which names file and document, where an id is none of the tokenizer's."""
    # The extremes are enough, and numpy finds them without a loop.
    for id in (int(document.ids.min()), int(document.ids.max())):
        if not 0 <= id < tokenizer.vocab_size:
            raise UserError(
                f"{document.file}: document {document.number}: id {id} is none of the {tokenizer.vocab_size} of the"
                " tokenizer; `tokenizer.path` must be the tokenizer that made these tokens"
            )


def find_files(paths: Sequence[str]) -> FoundTokens:
    """The token files of `paths`.

    A path is a prefix of `.bin` and `.idx` or one of the two, an `.npy` or `.pt` file, or a directory with such
    files at any depth; or an address of one of these. Names are paths below the directory; below the common one where
    several are given. Raises UserError for a path with none, for half of a pair, for a file that is named twice, and
    for paths and addresses together.
    """
    remote = [is_remote(path) for path in paths]
    if any(remote) and not all(remote):
        raise UserError(f"{paths[remote.index(True)]}: lies in a store and {paths[remote.index(False)]} does not; give"
                        " files of one kind of place")  # fmt: skip
    places = [_stored_files_of(path) if remote[0] else _files_of(Path(path)) for path in paths]
    files = [file for found, _ in places for file in found]
    single = len(paths) == 1 and (
        Path(paths[0]).is_dir() or all(str(f.named).startswith(f"{paths[0]}/") for f in files)
    )
    whole = [str(file.named) if remote[0] or single else str(Path(str(file.named)).absolute()) for file in files]
    # Ids must not depend on where a corpus lies, only on its own folders.
    base = paths[0] if single else os.path.commonpath([PurePosixPath(name).parent for name in whole])
    named: dict[str, TokenFile] = {}
    for file, path in zip(files, whole, strict=True):
        name = PurePosixPath(path).relative_to(PurePosixPath(base)).with_suffix("").as_posix()
        # Ids stand in messages, in JSON and in reports.
        if not name.isprintable():
            raise UserError(f"{path!a}: documents are named by their file, whose name must be printable text")
        if name in named:
            raise UserError(
                f"{path}: documents of this name come from {named[name].named} already; name each file once"
            )
        named[name] = file
    left_out = [
        path if len(paths) == 1 else joined(place, path)
        for place, (_, passed) in zip(paths, places, strict=True)
        for path in passed
    ]
    return FoundTokens(sorted(named.items()), tuple(left_out))


def _files_of(path: Path) -> _Found:
    if path.is_dir():
        return _walked(str(path))
    pair = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    pairs = [file for suffix in (".bin", ".idx") if (file := Path(f"{pair}{suffix}")).is_file()]
    return _paired(str(path), [path] if path.suffix in _ALONE and path.is_file() else pairs), ()


def _stored_files_of(address: str) -> _Found:
    files = [find_file(address)] if address.endswith(_ALONE) else []
    if not any(files):
        pair = address[:-4] if address.endswith((".bin", ".idx")) else address
        files = [find_file(f"{pair}{suffix}") for suffix in (".bin", ".idx")]
    if not any(files):
        return _walked(address)
    return _paired(address, [file for file in files if file is not None]), ()


def _walked(place: str) -> _Found:
    """Of a directory or a prefix, by the same walk that its fingerprint is taken by."""
    walked = walk_place(place)
    found, left_out = ((), ()) if walked is None else (walked.files, walked.left_out)
    return _paired(place, [file for file in found if file.suffix in _ENDINGS]), left_out


def _paired(place: str, ends: Sequence[Path | RemoteFile]) -> list[TokenFile]:
    files = {str(file): file for file in ends}
    if not files:
        raise UserError(
            f"{place}: no token files there (a prefix of .bin and .idx, .npy, .pt, or a directory of these)"
        )
    found: list[TokenFile] = []
    for name, file in files.items():
        if file.suffix in _ALONE:
            found.append(TokenFile(file))
            continue
        other = f"{name[:-4]}{'.idx' if file.suffix == '.bin' else '.bin'}"
        if other not in files:
            beside = other.rpartition("/")[2]
            raise UserError(f"{name}: {beside} is missing beside it; Megatron's shards are a .bin and an .idx")
        if file.suffix == ".idx":
            found.append(TokenFile(files[other], file))
    return found


def _open(file: TokenFile, tokenizer: Tokenizer) -> tuple[TokenIds, Iterator[tuple[int, int]]]:
    if file.index is not None:
        opened = open_pair(file_at_hand(file.index), file.tokens)
        return opened.tokens, opened.spans()
    if file.tokens.suffix == ".pt":
        return _torch(file.tokens, tokenizer)
    if isinstance(file.tokens, RemoteFile):
        streamed = _flat_streamed(file.tokens, tokenizer)
        return streamed, _between(streamed, tokenizer.eos_id, file.tokens, _STREAMED_BLOCK)
    tokens = _flat(file.tokens, tokenizer)
    return tokens, _between(tokens, tokenizer.eos_id, file.tokens, _BLOCK)


def _torch(file: Path | RemoteFile, tokenizer: Tokenizer) -> tuple[TokenIds, Iterator[tuple[int, int]]]:
    """Documents of a file of torch.save, without the end-of-document token that each may begin with."""
    opened, eos = open_torch_tokens(file_at_hand(file)), tokenizer.eos_id
    if opened.begin_id not in (None, eos, tokenizer.bos_id):
        raise UserError(
            f"{file}: its documents begin with id {opened.begin_id}, which neither begins nor ends one of the"
            " tokenizer's; `tokenizer.path` must be the tokenizer that made these tokens"
        )
    tokens = opened.tokens
    if opened.starts is None:
        return tokens, _between(tokens, eos, file, _BLOCK)
    # Models of such files see it in front of a document; here each has one behind it, so that streams are the same.
    spans = ((begin + (begin < end and int(tokens[begin]) == eos), end) for begin, end in opened.spans())
    return tokens, spans


def _between(tokens: TokenIds, eos: int, file: Path | RemoteFile, block: int) -> Iterator[tuple[int, int]]:
    """Documents of a flat file: what lies between two end-of-document tokens, the second one included."""
    begin = 0
    for first in range(0, len(tokens), block):
        # By blocks: the comparison makes a byte for each id, and a file may hold billions.
        for place in np.flatnonzero(tokens[first : first + block] == eos).tolist():
            yield begin, first + place + 1
            begin = first + place + 1
    if len(tokens) and not begin:
        raise UserError(
            f"{file}: holds no end-of-document token (id {eos}), so nothing says where a document ends;"
            " `tokenizer.path` must be the tokenizer that made these tokens"
        )
    if begin < len(tokens):
        yield begin, len(tokens)


def _flat(file: Path, tokenizer: Tokenizer) -> NDArray[np.integer]:
    """Map a flat file: a real `.npy` says what it holds; raw ids, as in OLMo's, are as wide as the vocabulary asks."""
    try:
        with file.open("rb") as opened:
            with_header = opened.read(len(_NUMPY)) == _NUMPY
        size = file.stat().st_size
        if with_header:
            # A `.npy` of objects is a pickle, which would run code.
            tokens = np.load(file, mmap_mode="r", allow_pickle=False)
            if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
                raise UserError(f"{file}: holds {tokens.dtype} of shape {tokens.shape}, not a row of integer token ids")
            return tokens
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: damaged or unreadable ({first_line(error)})") from None
    if not size:
        return np.zeros(0, np.uint16)
    with file.open("rb") as opened:
        dtype = _raw_dtype(file, opened.read(2 * _SAMPLE), size, tokenizer)
    return np.memmap(file, dtype, mode="r")


def _flat_streamed(file: RemoteFile, tokenizer: Tokenizer) -> StreamedTokens:
    """The same of a file in a store."""
    head = file.read(0, 2 * _SAMPLE)
    if not head.startswith(_NUMPY):
        return StreamedTokens(file, _raw_dtype(file, head, file.size, tokenizer))
    opened = io.BytesIO(head)
    try:
        read = read_array_header_1_0 if read_magic(opened) == (1, 0) else read_array_header_2_0
        shape, _, dtype = read(opened)
    except ValueError as error:
        raise UserError(f"{file}: damaged or unreadable ({first_line(error)})") from None
    if len(shape) != 1 or not np.issubdtype(dtype, np.integer):
        raise UserError(f"{file}: holds {dtype} of shape {shape}, not a row of integer token ids")
    if opened.tell() + shape[0] * dtype.itemsize != file.size:
        raise UserError(f"{file}: damaged or cut short ({file.size} bytes do not hold {shape[0]} ids of {dtype})")
    return StreamedTokens(file, dtype, first_byte=opened.tell(), length=shape[0])


def _raw_dtype(file: Path | RemoteFile, head: bytes, size: int, tokenizer: Tokenizer) -> np.dtype[Any]:
    """How wide the ids of a file without a header are, by the vocabulary and its beginning."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    # The vocabulary's size does not tell how wide a tool wrote its ids: some write 32 bits always.
    if dtype == np.uint16 and size % 4 == 0:
        sample = np.frombuffer(head[: len(head) // 2 * 2], np.uint16)
        if len(sample) >= _FEW and not sample[1::2].any():  # every second half is 0: 32 bits an id after all
            dtype = np.dtype(np.uint32)
    if size % dtype.itemsize:
        raise UserError(f"{file}: damaged or cut short ({size} bytes are no whole number of {dtype} ids)")
    return dtype
