"""The index of a checkpoint, read so that it can neither run code nor point outside of the checkpoint.

Torch pickles its index (`.metadata`) and unpickles it plainly, which runs whatever the file names; and where an index
calls a tensor a pickled object, it unpickles that too. So the index is read here, once, by an unpickler that knows only
the classes that an index of tensors is made of, and what it says is held against the files beside it. Torch's reader is
then given this object. It reads the tensors themselves with `weights_only`.
"""

from __future__ import annotations

import io
import itertools
import math
import operator
import os
import pickle
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from synpro_engine.config import UserError, first_line

_INDEX = ".metadata"
_DATA_FILE = re.compile(r"__\d+_\d+\.distcp", re.ASCII)
# What unpickling raises, Python's and torch's, on data that is damaged or refused.
UNREADABLE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, RuntimeError, ArithmeticError),
    *(ValueError, TypeError, LookupError, MemoryError),
)
_ALLOWED = {
    "torch": {"Size", "float64", "float32", "float16", "bfloat16"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "ChunkStorageMetadata"),
        *("TensorStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}


class _IndexReader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        # By exact name, for a module holds more than its classes: `torch.load` or `os.system`
        # under an allowed module would do.
        if global_name not in _ALLOWED.get(module_name, ()):
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which an index never does")
        return super().find_class(module_name, global_name)


def read_index(directory: Path) -> Metadata:
    """The index of the checkpoint's tensors in `directory`.

    Raises UserError when it is missing or damaged, names anything but tensors and their places, or places outside of
    the data files beside it.
    """
    path = directory / _INDEX
    index = None
    try:
        index = _IndexReader(io.BytesIO(path.read_bytes())).load()
        # Inside the `try`: an index that lies about its types may raise anywhere in the
        # comparison, and is damaged all the same.
        fault = _fault(index, directory)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the checkpoint is not complete") from None
    except UNREADABLE as error:
        fault = first_line(error)
    if fault is not None or not isinstance(index, Metadata):
        raise UserError(f"{path}: not the index of a checkpoint ({fault})")
    return index


def _fault(index: Any, directory: Path) -> str | None:
    """What is wrong with what an index says; None when nothing is."""
    # Exact types throughout: a dict or a list of a class of its own could answer differently when torch asks again.
    if type(index) is not Metadata:
        return f"it is a {type(index).__name__}"
    if type(index.state_dict_metadata) is not dict or type(index.storage_data) is not dict:
        return "it lists no tensors"
    # One look at each file, of which a rank writes a few, and not one at each of many thousand tensors.
    with os.scandir(directory) as entries:
        status_of = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    # Bytes of each data file: regular files with the names that torch gives them; links lead elsewhere.
    data = ((name, status) for name, status in status_of.items() if _DATA_FILE.fullmatch(name))
    lengths = {name: status.st_size for name, status in data if stat.S_ISREG(status.st_mode)}
    for key, tensor in index.state_dict_metadata.items():
        if type(key) is not str or type(tensor) is not TensorStorageMetadata:
            return f"{key} is a {type(tensor).__name__}, no tensor"
        if not _fills(tensor.chunks, tensor.size):
            return f"the parts of {key} do not make up its shape"
        for chunk in tensor.chunks:
            place = index.storage_data.get(MetadataIndex(key, chunk.offsets))
            if not _lies_in(place, lengths):
                return f"{key} is not in the files of this checkpoint"
    return None


def _fills(chunks: Sequence[ChunkStorageMetadata], size: Sequence[int]) -> bool:
    if type(chunks) is not list or not all(type(chunk) is ChunkStorageMetadata for chunk in chunks):
        return False
    inside = all(
        len(chunk.offsets) == len(chunk.sizes) == len(size)
        and all(0 <= first <= first + length <= end for first, length, end in zip(chunk.offsets, chunk.sizes, size))  # noqa: B905
        for chunk in chunks
    )
    # The count alone is not enough: parts that overlap and leave a hole of the same size would pass for a whole tensor,
    # and what was in memory at the hole would stay.
    return inside and sum(math.prod(chunk.sizes) for chunk in chunks) == math.prod(size) and _disjoint(chunks)


def _disjoint(chunks: Sequence[ChunkStorageMetadata]) -> bool:
    """Whether no element lies in two: with as many as the tensor has, another one would then be in none."""
    # Sorted by their first row so that the inner loop ends early: trying all pairs would be quadratic in the parts.
    boxes = sorted(
        (tuple(chunk.offsets), tuple(map(operator.add, chunk.offsets, chunk.sizes)))
        for chunk in chunks
        if math.prod(chunk.sizes)
    )
    for at, (first, end) in enumerate(boxes):
        for other_first, other_end in itertools.islice(boxes, at + 1, None):
            if other_first[0] >= end[0]:
                break  # as are all that follow: a model's many parts are mostly ranges of its rows
            if all(a < d and c < b for a, b, c, d in zip(first, end, other_first, other_end, strict=True)):
                return False
    return True


def _lies_in(place: Any, lengths: dict[str, int]) -> bool:
    """Whether it is a range of a data file, without any decoding that an index may also ask for."""
    return (
        type(place) is _StorageInfo
        # By these torch would run decoders over the bytes; its older releases have no such field.
        and not getattr(place, "transform_descriptors", None)
        # A bool is an int to `isinstance`, and a float would pass the comparison below.
        and type(place.offset) is type(place.length) is int
        and place.relative_path in lengths
        and 0 <= place.offset <= place.offset + place.length <= lengths[place.relative_path]
    )
