"""A checkpoint from a stranger runs nothing and reads nothing but its own files, whatever its index says."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
)

from synpro_engine.config import UserError, write_manifest
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.train import checkpoint
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint

NORM = "decoder.final_layernorm.weight"
DATA = "__0_0.distcp"


class _Payload:
    """What an attacker would pickle: it calls a function of their choice when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def victim(topology: Topology, shape: ModelConfig, tmp_path: Path) -> Model:
    model = build_model(shape, topology)
    save_checkpoint(tmp_path / "c", model)
    return model


def forge(path: Path, model: Model) -> None:
    """Give a changed checkpoint a manifest that holds, as its author would."""
    (path / "manifest.json").unlink()
    description = {"format": checkpoint._FORMAT, "model": model.config.model_dump(mode="json"), "optimizer": False}
    write_manifest(path, checkpoint.KIND, description, {}, None)


def refused(path: Path, model: Model, match: str) -> None:
    forge(path, model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match=match):
        load_checkpoint(path, model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "something was loaded"


def edit_index(path: Path, edit: Callable[[Metadata], Any]) -> None:
    file = path / "state" / ".metadata"
    index = pickle.loads(file.read_bytes())  # noqa: S301 - it was just written here
    edit(index)
    file.write_bytes(pickle.dumps(index))


def test_an_index_that_is_a_payload_does_not_run(victim: Model, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    payload = pickle.dumps(_Payload(mark))
    (tmp_path / "c" / "state" / ".metadata").write_bytes(payload)
    refused(tmp_path / "c", victim, "which an index never does")
    assert not mark.exists()
    pickle.loads(payload)  # noqa: S301 - the attack works where nothing stops it
    assert mark.exists()


def test_a_tensor_declared_a_pickled_object_does_not_run(victim: Model, tmp_path: Path) -> None:
    """Torch unpickles what an index calls bytes, whatever was asked for."""
    state, mark = tmp_path / "c" / "state", tmp_path / "executed"
    buffer = io.BytesIO()
    torch.save(_Payload(mark), buffer)
    (state / "__0_1.distcp").write_bytes(buffer.getvalue())

    def edit(index: Metadata) -> None:
        tensor: Any = index.state_dict_metadata[NORM]
        place = index.storage_data.pop(MetadataIndex(NORM, tensor.chunks[0].offsets))
        place.relative_path, place.offset, place.length = "__0_1.distcp", 0, len(buffer.getvalue())
        index.state_dict_metadata[NORM] = BytesStorageMetadata()
        index.storage_data[MetadataIndex(NORM)] = place

    edit_index(tmp_path / "c", edit)
    refused(tmp_path / "c", victim, "BytesStorageMetadata, which an index never does")
    assert not mark.exists()


@pytest.mark.parametrize("environment", ["0", "1"])
def test_tensor_data_that_is_a_payload_does_not_run(
    victim: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    state, mark = tmp_path / "c" / "state", tmp_path / "executed"
    buffer = io.BytesIO()
    torch.save(_Payload(mark), buffer)
    size = (state / DATA).stat().st_size
    with (state / DATA).open("ab") as file:
        file.write(buffer.getvalue())

    def edit(index: Metadata) -> None:
        for place in index.storage_data.values():
            place.offset, place.length = size, len(buffer.getvalue())

    edit_index(tmp_path / "c", edit)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", environment)
    refused(tmp_path / "c", victim, "cannot be read")
    assert not mark.exists()


@pytest.mark.parametrize("where", ["../outside.distcp", "/absolute", "link", "../c/state/__0_0.distcp", "__0_9.distcp"])
def test_data_outside_of_the_checkpoint_is_not_read(victim: Model, tmp_path: Path, where: str) -> None:
    state, outside = tmp_path / "c" / "state", tmp_path / "outside.distcp"
    outside.write_bytes((state / DATA).read_bytes())
    if where == "link":
        where = "__0_1.distcp"
        (state / where).symlink_to(outside)
    where = str(outside) if where == "/absolute" else where
    edit_index(tmp_path / "c", lambda index: [setattr(p, "relative_path", where) for p in index.storage_data.values()])
    refused(tmp_path / "c", victim, "not in the files of this checkpoint")


@pytest.mark.parametrize(
    "lie", [{"offset": -1}, {"length": 1 << 40}, {"offset": 1 << 40}, {"length": -5}, {"offset": 0.5}, {"length": "7"}]
)
def test_places_beyond_the_files_are_refused(victim: Model, tmp_path: Path, lie: dict[str, Any]) -> None:
    def edit(index: Metadata) -> None:
        place: Any = next(iter(index.storage_data.values()))
        place.__dict__.update(lie)

    edit_index(tmp_path / "c", edit)
    refused(tmp_path / "c", victim, "not in the files of this checkpoint")


def test_data_that_asks_to_be_decoded_is_refused(victim: Model, tmp_path: Path) -> None:
    """Decoders are found by name among the installed packages, and unpack what may be a bomb."""

    def edit(index: Metadata) -> None:
        next(iter(index.storage_data.values())).transform_descriptors = ["stream.zstd"]

    edit_index(tmp_path / "c", edit)
    refused(tmp_path / "c", victim, "not in the files of this checkpoint")


@pytest.mark.parametrize("lie", ["missing", "moved", "larger", "none", "twice", "overlapping"])
def test_a_tensor_whose_parts_are_not_all_there_is_refused(victim: Model, tmp_path: Path, lie: str) -> None:
    def edit(index: Metadata) -> None:
        tensor: Any = index.state_dict_metadata["embedding.word_embeddings.weight"]
        chunk = tensor.chunks[0]
        if lie == "missing":
            tensor.chunks.clear()
        elif lie == "moved":
            chunk.offsets = torch.Size([1, 0])
        elif lie == "larger":
            chunk.sizes = torch.Size([65, 32])
        elif lie == "twice":  # as many elements as the tensor has, and half of it in no part
            chunk.sizes = torch.Size([32, 32])
            tensor.chunks.append(chunk)
        elif lie == "overlapping":
            chunk.sizes = torch.Size([63, 32])
            row = ChunkStorageMetadata(torch.Size([1, 0]), torch.Size([1, 32]))
            tensor.chunks.append(row)
            key = "embedding.word_embeddings.weight"
            index.storage_data[MetadataIndex(key, row.offsets)] = index.storage_data[MetadataIndex(key, chunk.offsets)]
        else:
            tensor.chunks = None

    edit_index(tmp_path / "c", edit)
    refused(tmp_path / "c", victim, "do not make up its shape")


@pytest.mark.parametrize(
    "content", [b"", b"\x80", pickle.dumps({}), pickle.dumps([1] * 5), b"\x80\x04\x8e" + b"\xff" * 7]
)
def test_what_is_no_index_is_refused_by_one_line(victim: Model, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c" / "state" / ".metadata").write_bytes(content)
    refused(tmp_path / "c", victim, r"\.metadata: not the index of a checkpoint \(.+\)$")


def test_what_is_read_is_what_was_checked(victim: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that is exchanged once it was checked is not looked at again."""
    mark, file = tmp_path / "executed", tmp_path / "c" / "state" / ".metadata"
    read = Path.read_bytes

    def read_and_exchange(path: Path) -> bytes:
        data = read(path)
        if path == file:
            path.write_bytes(pickle.dumps(_Payload(mark)))
        return data

    monkeypatch.setattr(Path, "read_bytes", read_and_exchange)
    load_checkpoint(tmp_path / "c", victim)
    assert file.stat().st_size < 200, "it was not exchanged"
    assert not mark.exists()
