"""Token ids in a file of `torch.save`, as NanoGPT Slowrun publishes them: `tokens`, and where each document starts.

Such a file is a ZIP archive of plain arrays and a pickle that says what they are. The pickle is read by an unpickler
that knows tensors alone, as stand-ins of ours: it can call nothing else, and torch is not asked. Arrays are mapped.
"""

from __future__ import annotations

import io
import itertools
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError, first_line

_MOST_BYTES = 1 << 20  # of the pickle, which holds names and sizes
_ORDER_BYTES = 16
_LOCAL = struct.Struct("<26xHH")  # of an entry's own header: lengths of its name and of what is extra
_BLOCK = 2**20
_TYPES = {np.dtype(code).name: np.dtype(code) for code in "bBhHiIqQ"}
_STORAGES = {"ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16"}
_STORAGES |= {"IntStorage": "int32", "LongStorage": "int64"}
_UNREADABLE = (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, LookupError, MemoryError)


@dataclass(frozen=True)
class TorchTokens:
    """tokens [T]; starts [D] of documents in them, None where the file does not say; both mapped."""

    tokens: NDArray[np.integer]
    starts: NDArray[np.int64] | None
    begin_id: int | None
    """The id that documents begin with, if the file names one."""

    def spans(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of each document, in order, a block of them at a time."""
        assert self.starts is not None
        for first in range(0, len(self.starts), _BLOCK):
            bounds = self.starts[first : first + _BLOCK + 1].tolist()
            if first + _BLOCK >= len(self.starts):
                bounds.append(len(self.tokens))
            yield from itertools.pairwise(bounds)


def open_torch_tokens(file: Path) -> TorchTokens:
    """Map the tokens of a file; UserError, which names it, for one that is damaged or holds anything else."""
    try:
        with zipfile.ZipFile(file) as archive:
            held = _content(archive)
            if not isinstance(held, dict):
                raise ValueError(f"a {type(held).__name__}, not a dictionary with `tokens`")
            tokens, starts = (_mapped(file, archive, held.get(name)) for name in ("tokens", "doc_starts"))
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{file}: damaged or unreadable, or no file of torch.save ({first_line(error)})") from None
    except (*_UNREADABLE, struct.error, OverflowError) as error:
        raise UserError(f"{file}: holds no token ids as known here ({first_line(error)})") from None
    if tokens is None:
        raise UserError(f"{file}: holds {', '.join(map(repr, held)) or 'nothing'}, and no `tokens`")
    if starts is not None and not _in_order(starts, len(tokens)):
        raise UserError(f"{file}: `doc_starts` are no places in {len(tokens)} tokens, from 0 on and upwards")
    begin = held.get("bos_id")
    return TorchTokens(tokens, starts, begin if type(begin) is int else None)


class _Storage(NamedTuple):
    key: str
    dtype: str | None


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str | None


class _Rebuilt:
    """What a pickle calls. No function: it could set a function's attributes, and so its defaults."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
        # `_rebuild_tensor_v3`, of types that have no storage of their own, names the type behind gradient and hooks.
        dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], str) else None
        return _Tensor(storage, offset, tuple(size), tuple(stride), dtype)


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuilt(),
    ("torch._utils", "_rebuild_tensor_v3"): _Rebuilt(),
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, "UntypedStorage"): "" for module in ("torch", "torch.storage")},
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    **{("torch", name): name for name in _TYPES},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        # By exact name, and never the thing itself: a type is its name here, a tensor a tuple.
        if (module_name, global_name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which no file of tokens does")
        return _KNOWN[module_name, global_name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, str) or not isinstance(key, str):
            raise pickle.UnpicklingError("it names what is no storage")
        return _Storage(key, dtype or None)


def _content(archive: zipfile.ZipFile) -> Any:
    """What the archive's pickle says."""
    name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
    if name is None:
        raise ValueError("no data.pkl is in it; files of torch before 1.6 are not read")
    root = name.removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and _entry(archive, f"{root}byteorder", _ORDER_BYTES) != b"little":
        raise ValueError("its bytes stand in another order")
    return _Reader(io.BytesIO(_entry(archive, name, _MOST_BYTES))).load()


def _entry(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:  # a small one may unpack to gigabytes
        raise ValueError(f"its {name} is compressed")
    if entry.file_size > most:
        raise ValueError(f"its {name} is too large for what describes a few tensors")
    return archive.read(entry)


def _mapped(file: Path, archive: zipfile.ZipFile, tensor: Any) -> NDArray[Any] | None:
    """A tensor as an array that is mapped from the file; None of nothing."""
    if tensor is None:
        return None
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"a {type(tensor).__name__} where token ids are expected")
    dtype = tensor.dtype or tensor.storage.dtype
    if dtype is None or len(tensor.size) != 1 or tensor.stride != (1,):
        raise ValueError(f"a tensor of shape {tensor.size}, not a row of integer token ids")
    root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
    entry, item = archive.getinfo(f"{root}data/{tensor.storage.key}"), _TYPES[dtype]
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its arrays are compressed")
    first, count = tensor.offset * item.itemsize, tensor.size[0]
    if first < 0 or count < 0 or first + count * item.itemsize > entry.file_size:
        raise ValueError("a tensor reaches beyond its storage")
    with file.open("rb") as opened:
        opened.seek(entry.header_offset)
        lengths = _LOCAL.unpack(opened.read(_LOCAL.size))
    begin = entry.header_offset + _LOCAL.size + sum(lengths) + first
    if begin + count * item.itemsize > file.stat().st_size:
        raise ValueError("it is cut short")
    # An empty file cannot be mapped.
    return np.memmap(file, item, mode="r", offset=begin, shape=(count,)) if count else np.zeros(0, item)


def _in_order(starts: NDArray[Any], tokens: int) -> bool:
    if not len(starts) or int(starts[0]) != 0 or int(starts[-1]) >= tokens:
        return False
    # By blocks: of a thousand times as many documents the differences alone would be gigabytes.
    blocks = (starts[first : first + _BLOCK + 1].astype(np.int64) for first in range(0, len(starts), _BLOCK))
    return all(bool((np.diff(block) > 0).all()) for block in blocks)
