"""The files of a checkpoint: every rank writes what it holds and reads what it needs, through torch's checkpoints.

`torch.distributed.checkpoint` plans, shares copies out over the ranks, reshards and checks that a tensor is whole. The
index that torch would unpickle is read by `checkpoint_index` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Size, Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from synpro_engine.config import UserError, first_line
from synpro_engine.train.checkpoint_index import UNREADABLE, read_index
from synpro_engine.train.checkpoint_pieces import Piece
from synpro_engine.train.host_memory import HostMemory

Row = tuple[str, list[int], int | None, int, str, int, int]
"""Where a piece was written, in JSON's types: key, offset, number among the key's, bytes; file, offset, length."""


class Share:
    """What this rank writes of a checkpoint's tensors: agreed on by all ranks, then written without any of them."""

    def __init__(
        self,
        directory: Path,
        pieces: Sequence[Piece],
        host: HostMemory | None = None,
        make: Callable[[str], Tensor] | None = None,
    ) -> None:
        """Agree on who writes which of `pieces` below `directory`, which exists and is empty. Collective.

        host: holds a copy of this rank's share from now on, so that the pieces may change before they are written.
        make: gives a piece by its key when its turn to be written comes, and its `data` only says what that will be.
        """
        from_device = host is None and make is None
        self._writer, self._planner = _Writer(directory, from_device=from_device), _SavePlanner(pieces, make)
        # Nothing goes in as a state dict: torch takes a plain tensor there for a whole one, and these are parts.
        dcp.save({}, storage_writer=self._writer, planner=self._planner)
        if host is not None:
            self._planner.hold([item.index for item in self._writer.plan.items], host)

    def write(self) -> list[Row]:
        """Write the files of this rank's share; where in them each piece is. No communication."""
        return self._writer.write_share(self._planner)

    def finish(self, rows: Sequence[Sequence[Row]]) -> None:
        """Write the index of what all ranks wrote. On rank 0, which knows what was to be written."""
        self._writer.write_index(rows)


def read_pieces(directory: Path, *groups: Sequence[Piece]) -> None:
    """Fill the pieces of all `groups` from the checkpoint in `directory`, one group behind another; no communication.

    Within a group no two may be of one place; those of different groups may, and each is filled.
    Raises UserError for files that are damaged, that could run code or leave the directory, or that lack a tensor or
    have it in another shape.
    """
    index = read_index(directory)
    # All are looked up before the first is read, so that a checkpoint of another model leaves the memory as it is.
    for pieces in groups:
        _look_up(directory, index, pieces)
    for pieces in groups:
        _read(directory, index, pieces)


def _look_up(directory: Path, index: Metadata, pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        stored: Any = index.state_dict_metadata.get(piece.key)
        if stored is None or tuple(stored.size) != piece.shape:
            difference = "is missing" if stored is None else f"has shape {tuple(stored.size)} there, {piece.shape} here"
            raise UserError(f"{directory.parent}: does not fit what it is loaded into ({piece.key} {difference})")


def _read(directory: Path, index: Metadata, pieces: Sequence[Piece]) -> None:
    # What `dcp.load` does on one process; its way to leave other ranks out of it differs from version to version.
    reader, planner = dcp.FileSystemReader(directory), _LoadPlanner(pieces)
    planner.set_up_planner({}, index)
    reader.set_up_storage_reader(index, is_coordinator=False)
    try:
        reader.read_data(planner.create_local_plan(), planner).wait()
    except (*UNREADABLE, AssertionError) as error:  # torch asserts what it expects of the files
        raise UserError(f"{directory.parent}: cannot be read ({first_line(error)})") from error


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of the checkpoint in `directory`, each read whole, to the CPU, when asked for.

    UserError as `read_pieces`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._index = directory, read_index(directory)

    def like(self, key: str) -> Tensor:
        """Of its shape and dtype, without its numbers."""
        entry: Any = self._index.state_dict_metadata[key]
        return torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")

    def __getitem__(self, key: str) -> Tensor:
        data = torch.empty_like(self.like(key), device="cpu")
        _read(self._directory, self._index, [Piece(key, data, tuple(data.shape), (0,) * data.dim())])
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.state_dict_metadata)

    def __len__(self) -> int:
        return len(self._index.state_dict_metadata)

    def __contains__(self, key: object) -> bool:
        return key in self._index.state_dict_metadata


def whole_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint in `directory` by its key, whole and on the CPU; UserError as `read_pieces`."""
    stored: dict[str, Any] = read_index(directory).state_dict_metadata
    tensors = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in stored.items()}
    read_pieces(directory, [Piece(k, data, tuple(data.shape), (0,) * data.dim()) for k, data in tensors.items()])
    return tensors


class _Writer(dcp.FileSystemWriter):
    """Torch's writer, which only notes what the ranks agree on; then it writes when it is told to, alone.

    So no rank waits in a collective for another one's disk. Equal states have equal files: the path and the random name
    that torch puts into the index are left out.
    """

    plan: SavePlan
    _index: Metadata

    def __init__(self, directory: Path, *, from_device: bool) -> None:
        # Bytes copied ahead from a GPU. None where all is on the host: a thread would ask GPU 0 for them, whatever the
        # rank's is.
        super().__init__(directory, per_thread_copy_ahead=10_000_000 if from_device else 0)

    def storage_meta(self) -> None: ...

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        self.plan = plan
        nothing: Future[list[WriteResult]] = Future()
        nothing.set_result([])
        return nothing

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._index = metadata

    def write_share(self, planner: SavePlanner) -> list[Row]:
        return [_row(written) for written in super().write_data(self.plan, planner).wait()]

    def write_index(self, rows: Sequence[Sequence[Row]]) -> None:
        # Pickle writes a string once for each object: equal ones become one, so that equal indices have equal files.
        one: dict[str, str] = {key: key for key in self._index.state_dict_metadata}
        super().finish(self._index, [[_written(row, one) for row in of_rank] for of_rank in rows])


def _row(written: WriteResult) -> Row:
    place, stored = written.index, written.storage_data
    offset = list(place.offset or ())
    return place.fqn, offset, place.index, written.size_in_bytes, stored.relative_path, stored.offset, stored.length


def _written(row: Row, one: dict[str, str]) -> WriteResult:
    key, offset, number, size, file, at, length = row
    stored = _StorageInfo(one.setdefault(file, file), at, length)
    return WriteResult(MetadataIndex(one[key], Size(offset), number), size, stored)


class _SavePlanner(dcp.DefaultSavePlanner):
    """Offers the pieces; of those that several ranks offer, torch has the one write that has the least to write."""

    def __init__(self, pieces: Sequence[Piece], make: Callable[[str], Tensor] | None = None) -> None:
        super().__init__(flatten_state_dict=False)
        self._make = make
        saved = [piece for piece in pieces if piece.saves]
        self._pieces = {_place(piece): piece for piece in saved}
        assert len(self._pieces) == len(saved), "two pieces of one place"
        self._data: Mapping[MetadataIndex, Tensor] = {place: piece.data for place, piece in self._pieces.items()}

    def create_local_plan(self) -> SavePlan:
        items = []
        for place, piece in self._pieces.items():
            data = TensorWriteData(_chunk(piece), TensorProperties(dtype=piece.data.dtype), Size(piece.shape))
            items.append(WriteItem(place, WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def hold(self, places: Sequence[MetadataIndex], host: HostMemory) -> None:
        """Write these pieces from copies of what they hold now, and forget the others."""
        self._data = dict(zip(places, host.copies([self._data[place] for place in places]), strict=True))

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        data = self._data[index] if self._make is None else self._make(index.fqn)
        if data.device.type != "cpu":
            return data
        # Over a storage of exactly its size: of a view into a larger one torch's writer would make a copy first, and
        # keep all copies until its file is whole.
        return torch.from_numpy(data.reshape(-1).view(torch.uint8).numpy()).view(data.dtype).view(data.shape)


class _LoadPlanner(dcp.DefaultLoadPlanner):
    """Asks for the pieces and has them filled in place."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__(flatten_state_dict=False)
        self._pieces = {_place(piece): piece for piece in pieces}
        # torch tells pieces apart by their places: of two at one, the other's memory would be left as it was.
        assert len(self._pieces) == len(pieces), "two pieces of one place"

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        stored: dict[str, Any] = self.metadata.state_dict_metadata
        # A key has several pieces wherever a flat range was cut into rectangles, and `groupby` joins neighbours only.
        of_key = groupby(sorted(self._pieces, key=lambda place: place.fqn), key=lambda place: place.fqn)
        chunks = {key: [_chunk(self._pieces[place]) for place in places] for key, places in of_key}
        read = (create_read_items_for_chunk_list(key, stored[key], wanted) for key, wanted in chunks.items())
        return LoadPlan([item for items in read for item in items])

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._pieces[index].data


def _place(piece: Piece) -> MetadataIndex:
    return MetadataIndex(piece.key, Size(piece.offset))


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(Size(piece.offset), piece.data.size())
