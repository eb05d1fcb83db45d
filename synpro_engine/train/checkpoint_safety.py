"""Whether the files of a checkpoint may be read: torch's and Megatron's readers unpickle some of them.

Knows the files of torch.distributed.checkpoint; loads no weights. Torch reads `common.pt` with weights_only (its
default since 2.6), the `.distcp` slices of tensors likewise, and pickled objects of single ranks are neither written
nor asked for here. The index `.metadata`, however, is read with plain `pickle.load`, which runs whatever the file
names. So it is first read by an unpickler that knows only the classes an index is made of.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from synpro_engine.config import UserError

_INDEX = ".metadata"
_COMMON = "common.pt"
# What torch's and Python's unpicklers raise on data that is damaged or refused.
_UNREADABLE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, RuntimeError),
    *(ValueError, TypeError, LookupError),
)
_ALLOWED = {
    "torch": {
        "Size",
        *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    },
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "BytesStorageMetadata", "ChunkStorageMetadata"),
        *("TensorStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    },
    # Megatron keeps the ranks' writing plans in the index.
    "torch.distributed.checkpoint.planner": {
        *("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"PosixPath"},
    "collections": {"OrderedDict"},
}


class _IndexReader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name not in _ALLOWED.get(module_name, ()):
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which an index never does")
        return super().find_class(module_name, global_name)


def check_readable(directory: Path) -> None:
    """Raise UserError when a pickled file of the distributed checkpoint in `directory` is damaged or could run code."""
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") not in ("0", "false", "no", "n"):
        raise UserError("environment: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD makes reading checkpoints unsafe; unset it")
    _check(directory / _INDEX, lambda file: _IndexReader(file).load())
    _check(directory / _COMMON, lambda file: torch.load(file, map_location="cpu", weights_only=True))


def _check(path: Path, read: Callable[[BinaryIO], Any]) -> None:
    try:
        with path.open("rb") as file:
            read(file)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the checkpoint is not complete") from None
    except _UNREADABLE as error:
        raise UserError(f"{path}: not a file that a checkpoint holds ({str(error).splitlines()[0]})") from error
