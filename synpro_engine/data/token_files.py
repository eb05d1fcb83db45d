"""Corpora that come as token ids: Megatron's `.bin`/`.idx`, flat `.npy` files as OLMo's tools write them, `.pt` files.

Every id must be one of the tokenizer's. Files are mapped into memory and read in order; nothing is held.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError, first_line
from synpro_engine.data.megatron_index import open_megatron
from synpro_engine.data.records import Place
from synpro_engine.data.tokenizer import Tokenizer
from synpro_engine.data.torch_tokens import open_torch_tokens

_ALONE = (".npy", ".pt")
_NUMPY = b"\x93NUMPY"
_BLOCK = 2**24
_SAMPLE, _FEW = 2**16, 16


@dataclass(frozen=True, slots=True)
class TokenDocument:
    """One document's ids, a view [tokens of it] without an end-of-document token at its end.

    The id is `<file>:<number>`: the file's path below the given one, without its suffix, and the document's number in
    that file, from 0.
    """

    id: str
    ids: NDArray[np.integer]
    file: Path
    number: int
    place: Place
    """As `read` takes it."""
    held_out: bool = False
    """Whether it is from the files that are held out."""


class TokenFiles:
    """All documents of one or several paths (see `find_files`), as often as they are asked for."""

    def __init__(self, paths: Sequence[str], tokenizer: Tokenizer, held_out: Sequence[str] = ()) -> None:
        """tokenizer: the one that made the ids. UserError for a path without token files, and for damaged ones.

        held_out: paths of more files, which are read behind the others, and whose names begin with `validation/`.
        """
        self._files, self._tokenizer = find_files(paths), tokenizer
        self._held_out = len(self._files)
        self._files += [(f"validation/{name}", file) for name, file in (find_files(held_out) if held_out else [])]
        for _, file in self._files:  # a damaged one should end this before hours were spent on the others
            _open(file, tokenizer)

    @property
    def files(self) -> int:
        """How many there are."""
        return len(self._files)

    @property
    def bytes(self) -> int:
        """Size of all tokens on the disk."""
        return sum(
            (file.with_suffix(".bin") if file.suffix == ".idx" else file).stat().st_size for _, file in self._files
        )

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
                    yield TokenDocument(f"{name}:{number}", ids, file, number, place, held_out)


def check_ids(document: TokenDocument, tokenizer: Tokenizer) -> None:
    """UserError, which names file and document, where an id is none of the tokenizer's."""
    # The extremes are enough, and numpy finds them without a loop.
    for id in (int(document.ids.min()), int(document.ids.max())):
        if not 0 <= id < tokenizer.vocab_size:
            raise UserError(
                f"{document.file}: document {document.number}: id {id} is none of the {tokenizer.vocab_size} of the"
                " tokenizer; `tokenizer.path` must be the tokenizer that made these tokens"
            )


def find_files(paths: Sequence[str]) -> list[tuple[str, Path]]:
    """The token files of `paths`, each with the name that its documents' ids begin with, sorted by that name.

    A path is a prefix of `.bin` and `.idx` or one of the two, an `.npy` or `.pt` file, or a directory with such files
    at any depth. Names are paths below the directory; below the common one where several are given. Of Megatron's pair
    the index is returned. Raises UserError for a path with none, for half of a pair, and for a file that is named
    twice.
    """
    files = [file for path in paths for file in _files_of(Path(path))]
    single = Path(paths[0]).is_dir() and len(paths) == 1
    # Ids must not depend on where a corpus lies, only on its own folders.
    base = paths[0] if single else os.path.commonpath([file.parent.absolute() for file in files])
    named: dict[str, Path] = {}
    for file in files:
        name = (file if single else file.absolute()).relative_to(base).with_suffix("").as_posix()
        # Ids stand in messages, in JSON and in reports.
        if not name.isprintable():
            raise UserError(f"{str(file)!a}: documents are named by their file, whose name must be printable text")
        if name in named:
            raise UserError(f"{file}: documents of this name come from {named[name]} already; name each file once")
        named[name] = file
    return sorted(named.items())


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".bin", ".idx", *_ALONE) and file.is_file())
    else:
        pair = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
        pairs = [file for suffix in (".bin", ".idx") if (file := Path(f"{pair}{suffix}")).is_file()]
        files = [path] if path.suffix in _ALONE and path.is_file() else pairs
    if not files:
        raise UserError(f"{path}: no token files there (a prefix of .bin and .idx, .npy, .pt, or a directory of these)")
    for file in files:
        if file.suffix in _ALONE:
            continue
        other = file.with_suffix(".idx" if file.suffix == ".bin" else ".bin")
        if not other.is_file():
            raise UserError(f"{file}: {other.name} is missing beside it; Megatron's shards are a .bin and an .idx")
    return [file for file in files if file.suffix != ".bin"]


def _open(file: Path, tokenizer: Tokenizer) -> tuple[NDArray[np.integer], Iterator[tuple[int, int]]]:
    if file.suffix == ".idx":
        opened = open_megatron(file.with_suffix(""))
        return opened.tokens, opened.spans()
    if file.suffix == ".pt":
        return _torch(file, tokenizer)
    tokens = _flat(file, tokenizer)
    return tokens, _between(tokens, tokenizer.eos_id, file)


def _torch(file: Path, tokenizer: Tokenizer) -> tuple[NDArray[np.integer], Iterator[tuple[int, int]]]:
    """Documents of a file of torch.save, without the end-of-document token that each may begin with."""
    opened, eos = open_torch_tokens(file), tokenizer.eos_id
    if opened.begin_id not in (None, eos, tokenizer.bos_id):
        raise UserError(
            f"{file}: its documents begin with id {opened.begin_id}, which neither begins nor ends one of the"
            " tokenizer's; `tokenizer.path` must be the tokenizer that made these tokens"
        )
    tokens = opened.tokens
    if opened.starts is None:
        return tokens, _between(tokens, eos, file)
    # Models of such files see it in front of a document; here each has one behind it, so that streams are the same.
    spans = ((begin + (begin < end and int(tokens[begin]) == eos), end) for begin, end in opened.spans())
    return tokens, spans


def _between(tokens: NDArray[np.integer], eos: int, file: Path) -> Iterator[tuple[int, int]]:
    """Documents of a flat file: what lies between two end-of-document tokens, the second one included."""
    begin = 0
    for first in range(0, len(tokens), _BLOCK):
        # By blocks of 16 million ids: the comparison makes a byte for each, and a file may hold billions.
        for place in np.flatnonzero(tokens[first : first + _BLOCK] == eos).tolist():
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
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    # The vocabulary's size does not tell how wide a tool wrote its ids: some write 32 bits always.
    if dtype == np.uint16 and size % 4 == 0:
        sample = np.memmap(file, np.uint16, mode="r")[:_SAMPLE]
        if len(sample) >= _FEW and not sample[1::2].any():  # every second half is 0: 32 bits an id after all
            dtype = np.dtype(np.uint32)
    if size % dtype.itemsize:
        raise UserError(f"{file}: damaged or cut short ({size} bytes are no whole number of {dtype} ids)")
    return np.memmap(file, dtype, mode="r")
