"""Directories of safetensors files: read lazily, written one file's worth of memory at a time.

An index says which file holds a tensor.
"""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from synpro_engine.config import UserError, atomic_write_text, brief, json_text
from synpro_engine.dist import Topology, on_main

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Safetensors' names of what a weight may be stored in. Integers, booleans and float8 mean nothing without scales.
_WEIGHT_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FILE_BYTES = 4 * 2**30
_ROW_BLOCK = 2**22  # numbers compared at once


class SafetensorsFiles(Mapping[str, Tensor]):
    """The tensors of a directory's safetensors file or files, read one by one when asked for.

    Raises UserError where files and index disagree, or where a tensor is no weight by its type.
    """

    def __init__(self, directory: Path) -> None:
        self._handle_of: dict[str, Any] = {}
        self._path_of: dict[str, Path] = {}
        index = directory / _INDEX
        listed = _listed(index) if index.is_file() else None
        for file in _weight_files(directory, listed):
            # All headers at once, so that a tensor in two files, or in none, is found before anything is loaded.
            self._open(file)
        if listed is not None:
            _check_index(index, listed, self._path_of)

    def _open(self, file: Path) -> None:
        try:
            handle: Any = safe_open(file, framework="pt")  # memory-mapped: costs no memory
        except (OSError, SafetensorError) as error:
            refuse_pointer(file)
            raise UserError(f"{file}: not a readable safetensors file ({error})") from None
        for name in handle.keys():  # noqa: SIM118 - no mapping
            if name in self._path_of:
                raise UserError(f"{file}: tensor `{name}` is in {self._path_of[name].name} too")
            # From the header; float8 and integers would load without an error, as numbers that lack their scales.
            kind = handle.get_slice(name).get_dtype()
            if kind not in _WEIGHT_TYPES:
                told = ", ".join(_WEIGHT_TYPES)
                raise UserError(f"{file}: tensor `{name}` is of type {kind}; weights are read as {told} only")
            self._handle_of[name], self._path_of[name] = handle, file

    def __getitem__(self, name: str) -> Tensor:
        return self._handle_of[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._handle_of)

    def __len__(self) -> int:
        return len(self._handle_of)

    def __contains__(self, name: object) -> bool:
        return name in self._handle_of

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor, from the header."""
        return _WEIGHT_TYPES[self._handle_of[name].get_slice(name).get_dtype()]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All shapes, from the headers alone."""
        return {name: tuple(handle.get_slice(name).get_shape()) for name, handle in self._handle_of.items()}

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers; a few rows of each in memory at a time."""
        a, b = (self._handle_of[name].get_slice(name) for name in (one, other))
        shape = a.get_shape()
        if shape != b.get_shape() or not shape:
            return shape == b.get_shape() and bool(self[one] == self[other])
        rows = max(1, _ROW_BLOCK // max(1, torch.Size(shape[1:]).numel()))
        # Two heads of 128,000 x 4096 in fp64 at once would take 8 GB.
        blocks = (slice(start, start + rows) for start in range(0, shape[0], rows))
        # In fp64, which holds every value of the four types: a head in fp32 may equal an embedding in bf16.
        return all(torch.equal(a[block].double(), b[block].double()) for block in blocks)


def _listed(index: Path) -> dict[str, str]:
    """The index's file of each tensor; every one is below the index' own directory by its name."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index}: `weight_map` is missing")
    for tensor, file in names.items():
        path = PurePosixPath(file) if isinstance(file, str) else None
        # By its name alone. Where a link in the directory leads is up to whoever made it: the hub's cache is all links.
        if path is None or not path.parts or path.is_absolute() or ".." in path.parts or "\0" in file:
            raise UserError(f"{index}: `weight_map.{tensor}`: {brief(file)} is not a file of this directory")
    return names


def _weight_files(directory: Path, listed: Mapping[str, str] | None) -> list[Path]:
    single = directory / _SINGLE
    if listed is None:
        if not single.is_file():
            raise UserError(f"{directory}: neither {_SINGLE} nor {_INDEX} is here (pickled weights are not read)")
        return [single]
    files = [directory / name for name in sorted(set(listed.values()))]
    for file in files:
        if not os.path.isfile(file):  # a name that no file can have raises nothing here
            raise UserError(f"{file}: no such file, but {_INDEX} has tensors there")
    # transformers takes the single file and ignores the index; which one was meant cannot be told.
    if single.is_file() and single not in files:
        raise UserError(f"{single}: stands beside an {_INDEX} that knows other files; which are the weights?")
    return files


def refuse_pointer(file: Path) -> None:
    """UserError where `file` is what git leaves in place of a large file that it has not fetched."""
    with file.open("rb") as opened:
        if opened.read(24) == b"version https://git-lfs.":
            raise UserError(f"{file}: only git's pointer to the file, not the file itself (`git lfs pull` fetches it)")


def _check_index(index: Path, listed: Mapping[str, str], file_of: Mapping[str, Path]) -> None:
    for name, file in listed.items():
        if name not in file_of or file_of[name] != index.parent / file:
            where = f"in {file_of[name].name}" if name in file_of else "in no file"
            raise UserError(f"{index}: tensor `{name}` is to be in {file}, and is {where}")
    for name, file in file_of.items():
        if name not in listed:
            raise UserError(f"{file}: tensor `{name}` is not in {index.name}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; UserError names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except RecursionError:
        raise UserError(f"{path}: not readable as JSON (its brackets are nested too deeply)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object")
    return data


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once each: of two values, one would win in silence."""
    unique = dict(pairs)
    if len(unique) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {brief(name)} stands there twice")
    return unique


def write_tensors(
    directory: Path,
    tensors: Iterator[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    topology: Topology,
    *,
    stoppable: bool = False,
) -> None:
    """Write (name, tensor) pairs, which come in the order of `shapes`, as `FILE_BYTES`-sized files and an index.

    All ranks call and iterate; rank 0 writes, and the others wait for each file outside collectives. Raises UserError
    on every rank where a file cannot be written; where it is `stoppable`, Stopped when the job is asked to stop.
    """
    files = _plan(shapes, dtype.itemsize)
    several = len(files) > 1
    names = [f"model-{i:05}-of-{len(files):05}.safetensors" if several else _SINGLE for i in range(1, len(files) + 1)]
    for name, tensor_names in zip(names, files, strict=True):
        held: dict[str, Tensor] = {}
        # Every rank takes each tensor, though rank 0 alone keeps them: gathering is collective.
        for tensor, value in islice(tensors, len(tensor_names)):
            if topology.is_main:
                # safetensors refuses views with gaps; a file's worth of tensors is held, and no more.
                held[tensor] = value.to("cpu").contiguous()
        write = functools.partial(save_tensors, directory / name, held)
        on_main(topology, write, label=f"writing {name}" if stoppable else None)
    if several:
        weight_map = {tensor: name for name, within in zip(names, files, strict=True) for tensor in within}
        index = json_text({"metadata": {}, "weight_map": weight_map}, indent=2) + "\n"
        on_main(topology, lambda: atomic_write_text(directory / _INDEX, index))


def save_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write one safetensors file; UserError where it cannot be written."""
    file.touch()
    mode = file.stat().st_mode  # as everything else here: the library's own files are for their owner alone
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # it wraps what the file system says
        raise UserError(f"{file}: cannot be written ({error})") from error
    file.chmod(mode)


def _plan(shapes: Mapping[str, tuple[int, ...]], item_bytes: int) -> list[list[str]]:
    """The tensors of each file, which has at most `FILE_BYTES`, or one tensor."""
    files: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = item_bytes * torch.Size(shape).numel()
        # Whole tensors only; one that is larger than a file has a file to itself.
        if size > room or not files:
            files.append([])
            room = FILE_BYTES
        files[-1].append(name)
        room -= size
    return files
