"""Directories of safetensors files: read lazily, written one file's worth of memory at a time.

Knows the index that spreads tensors over files; knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from synpro_engine.config import UserError, atomic_write_text, json_text

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
FILE_BYTES = 4 * 2**30


class SafetensorsFiles(Mapping[str, Tensor]):
    """The tensors of a directory's safetensors file or files, read one by one when asked for."""

    def __init__(self, directory: Path) -> None:
        self._file_of = {}
        for file in _weight_files(directory):
            try:
                handle: Any = safe_open(file, framework="pt")  # memory-mapped: costs no memory
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file}: not a readable safetensors file ({error})") from None
            self._file_of |= dict.fromkeys(handle.keys(), handle)

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All shapes, from the headers alone."""
        return {name: tuple(handle.get_slice(name).get_shape()) for name, handle in self._file_of.items()}


def _weight_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    if not index.is_file():
        raise UserError(f"{directory}: neither {_SINGLE} nor {_INDEX} is in this directory")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise UserError(f"{index}: `weight_map` is missing")
    return [directory / name for name in sorted(set(names.values()))]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; UserError names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object")
    return data


def write_tensors(
    directory: Path, tensors: Iterable[tuple[str, Tensor]], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    """Write (name, tensor) pairs, which come in the order of `shapes`, as `FILE_BYTES`-sized files and an index."""
    files = _plan(shapes, dtype.itemsize)
    many = len(files) > 1
    names = {key: f"model-{i:05}-of-{len(files):05}.safetensors" if many else _SINGLE for i, key in enumerate(files, 1)}
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        held[name] = tensor.to("cpu").contiguous()
        if name in files:  # the last tensor of its file
            file = directory / names[name]
            file.touch()
            mode = file.stat().st_mode  # as everything else here: the library's own files are for their owner alone
            save_file(held, file, metadata={"format": "pt"})
            file.chmod(mode)
            held = {}
    if many:
        weight_map = {tensor: names[last] for last, held_there in files.items() for tensor in held_there}
        index = {"metadata": {}, "weight_map": weight_map}
        atomic_write_text(directory / _INDEX, json_text(index, indent=2) + "\n")


def _plan(shapes: Mapping[str, tuple[int, ...]], item_bytes: int) -> dict[str, list[str]]:
    """Files of at most `FILE_BYTES` (one tensor at least): the last tensor's name -> all names."""
    files: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = item_bytes * torch.Size(shape).numel()
        if size > room or not files:
            files.append([])
            room = FILE_BYTES
        files[-1].append(name)
        room -= size
    return {names[-1]: names for names in files}
