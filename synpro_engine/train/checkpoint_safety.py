"""Whether the files of a checkpoint may be read: torch's and Megatron's readers unpickle some of them.

Knows the pickled index of torch.distributed.checkpoint (`.metadata`); loads no tensors. Of the other files, torch reads
`common.pt` with weights_only (its default since 2.6), the `.distcp` slices of tensors likewise, and pickled objects of
single ranks are neither written nor asked for here. The index, however, is read with plain `pickle.load`, which runs
whatever the file names. So it is first read by an unpickler that knows only the classes an index is made of.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError

_INDEX = ".metadata"
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


def check_index(directory: Path) -> None:
    """Raise UserError when the index of the distributed checkpoint in `directory` is damaged or could run code."""
    path = directory / _INDEX
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") not in ("0", "false", "no", "n"):
        raise UserError("environment: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD makes reading checkpoints unsafe; unset it")
    try:
        with path.open("rb") as file:
            _IndexReader(file).load()
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the checkpoint is not complete") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise UserError(f"{path}: not a checkpoint's index ({error})") from None
