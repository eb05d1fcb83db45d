"""Token files of torch.save: read as NanoGPT Slowrun publishes them, mapped, and never as code."""

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.data import TokenFiles, torch_tokens
from synpro_engine.data.torch_tokens import open_torch_tokens

EOS = 50
DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12], [13]]


class Numbers:
    """Ids below 60, of which 50 ends documents; all that reading files asks of a tokenizer."""

    eos_id, bos_id, vocab_size = EOS, None, 60


def published(path: Path, documents: list[list[int]], dtype: torch.dtype = torch.uint16, **more: Any) -> Path:
    """As the contest's prepare_data.py writes it: each document begins with the end-of-document token."""
    rows = [[EOS, *document] for document in documents]
    starts = np.cumsum([0, *map(len, rows)])[:-1]
    data = {
        "tokens": torch.tensor([id for row in rows for id in row], dtype=torch.int64).to(dtype),
        "doc_starts": torch.from_numpy(starts),
        "bos_id": EOS,
        "seq_shuffle_seed": 43,
        "seq_size": 2049,
    }
    torch.save(data | more, path)
    return path


def read(path: Path, **more: Any) -> dict[str, list[int]]:
    return {found.id: found.ids.tolist() for found in TokenFiles([str(path)], Numbers(), **more)}


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint32])
def test_documents_are_those_that_were_written_without_their_begin(dtype: torch.dtype, tmp_path: Path) -> None:
    path = published(tmp_path / "fineweb_train.pt", DOCUMENTS, dtype)
    wanted = {f"fineweb_train:{number}": document for number, document in enumerate(DOCUMENTS)}
    assert read(path) == read(tmp_path) == wanted
    opened = open_torch_tokens(path)
    assert isinstance(opened.tokens, np.memmap) and isinstance(opened.starts, np.memmap)
    assert opened.tokens.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5])
def test_documents_are_the_same_by_blocks_of_any_size(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published(tmp_path / "a.pt", DOCUMENTS)
    whole = read(path)
    monkeypatch.setattr(torch_tokens, "_BLOCK", block)
    assert read(path) == whole


def test_a_part_of_a_larger_storage_is_that_part(tmp_path: Path) -> None:
    everything = torch.arange(40, dtype=torch.int32)
    torch.save({"tokens": everything[7:19], "doc_starts": torch.tensor([0, 5])}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt") == {"a:0": list(range(7, 12)), "a:1": list(range(12, 19))}


def test_without_starts_documents_end_where_their_token_says(tmp_path: Path) -> None:
    torch.save({"tokens": torch.tensor([1, 2, EOS, 3, EOS, 4])}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt") == {"a:0": [1, 2], "a:1": [3], "a:2": [4]}


def test_held_out_files_come_behind_the_others_under_a_name_of_their_own(tmp_path: Path) -> None:
    train, held = published(tmp_path / "train.pt", DOCUMENTS), published(tmp_path / "val.pt", DOCUMENTS[:2])
    found = list(TokenFiles([str(train)], Numbers(), [str(held)]))
    assert [(one.id, one.held_out) for one in found] == [
        *((f"train:{number}", False) for number in range(4)), ("validation/val:0", True), ("validation/val:1", True),
    ]  # fmt: skip
    again = TokenFiles([str(train)], Numbers(), [str(held)]).read(found[3].place)
    assert [one.id for one in again] == ["validation/val:0", "validation/val:1"]


class Runs:
    """What a hostile file would do when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    torch.save({"tokens": torch.tensor([1, 2]), "more": Runs(tmp_path / "made")}, bad)
    with pytest.raises(UserError, match=r"bad.pt: holds no token ids .*it names posix.mkdir"):
        open_torch_tokens(bad)
    assert not (tmp_path / "made").exists()


def _with_pickle(source: Path, target: Path, index: bytes, **others: bytes) -> Path:
    """The archive with another pickle in it, and other entries by their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            kind = name.partition("/")[2].replace("/", "_")
            new.writestr(name, index if kind == "data.pkl" else others.get(kind, old.read(name)))
    return target


TENSOR = ("STORAGE", 0, (3,), (1,), False, OrderedDict())


def _pickled(value: Any) -> bytes:
    """What pushes a value, without beginning and end."""
    return pickle.dumps(value, 2)[2:-1]


def _index(arguments: Any) -> bytes:
    """The pickle of {"tokens": a tensor that is rebuilt of these arguments}, as torch writes it."""
    stored = b"(" + _pickled("storage") + b"ctorch\nLongStorage\n" + _pickled("0") + _pickled("cpu") + b"K\x03tQ"
    pushed = b"".join(stored if one == "STORAGE" else _pickled(one) for one in arguments)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pushed + b"tR"
    return b"\x80\x02}" + _pickled("tokens") + tensor + b"s."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("STORAGE", 0, (4,), (1,), False, OrderedDict()), "beyond its storage"),
        (("STORAGE", 1, (3,), (1,), False, OrderedDict()), "beyond its storage"),
        (("STORAGE", -1, (3,), (1,), False, OrderedDict()), "beyond its storage"),
        (("STORAGE", 0, (-1,), (1,), False, OrderedDict()), "beyond its storage"),
        (("STORAGE", 0, (3, 1), (1, 1), False, OrderedDict()), "not a row of integer"),
        (("STORAGE", 0, (3,), (0,), False, OrderedDict()), "not a row of integer"),
        (("elsewhere", 0, (3,), (1,), False, OrderedDict()), "no token ids"),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(arguments: Any, message: str, tmp_path: Path) -> None:
    torch.save({"tokens": torch.tensor([1, 2, 3])}, tmp_path / "good.pt")
    good = _with_pickle(tmp_path / "good.pt", tmp_path / "same.pt", _index(TENSOR))
    assert open_torch_tokens(good).tokens.tolist() == [1, 2, 3]
    bad = _with_pickle(tmp_path / "good.pt", tmp_path / "bad.pt", _index(arguments))
    with pytest.raises(UserError, match=rf"bad.pt: .*{message}"):
        open_torch_tokens(bad)


@pytest.mark.parametrize("state", [{"more": 1}, (None, {"__defaults__": (1,)})])
def test_a_file_changes_nothing_that_reads_the_next_one(state: Any, tmp_path: Path) -> None:
    """BUILD sets attributes of whatever lies on the pickle's stack."""
    torch.save({"tokens": torch.tensor([1, 2, 3])}, tmp_path / "good.pt")
    index = b"\x80\x02}" + _pickled("more") + b"ctorch._utils\n_rebuild_tensor_v2\n" + _pickled(state) + b"bs."
    with pytest.raises(UserError, match=r"bad.pt: holds no token ids as known here \("):
        open_torch_tokens(_with_pickle(tmp_path / "good.pt", tmp_path / "bad.pt", index))


def test_entries_that_would_unpack_to_more_are_not_read(tmp_path: Path) -> None:
    torch.save({"tokens": torch.tensor([1, 2, 3])}, tmp_path / "good.pt")
    large = _with_pickle(tmp_path / "good.pt", tmp_path / "large.pt", _index(TENSOR), byteorder=b"little" * 9)
    with pytest.raises(UserError, match=r"large.pt: .*byteorder is too large"):
        open_torch_tokens(large)
    with zipfile.ZipFile(tmp_path / "good.pt") as old, zipfile.ZipFile(tmp_path / "packed.pt", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match=r"packed.pt: .* is compressed"):
        open_torch_tokens(tmp_path / "packed.pt")


def test_files_that_are_damaged_or_hold_anything_else_are_named_in_a_line(tmp_path: Path) -> None:
    good = published(tmp_path / "good.pt", DOCUMENTS)
    cases: dict[str, Any] = {
        "list": [1, 2], "nothing": {}, "text": {"tokens": "abc"}, "floats": {"tokens": torch.ones(3)},
        "order": {"tokens": torch.tensor([1, 2, 3]), "doc_starts": torch.tensor([0, 2, 1])},
        "begin": {"tokens": torch.tensor([1, 2, 3]), "doc_starts": torch.tensor([1, 2])},
        "beyond": {"tokens": torch.tensor([1, 2, 3]), "doc_starts": torch.tensor([0, 3])},
    }  # fmt: skip
    for name, data in cases.items():
        torch.save(data, tmp_path / f"{name}.pt")
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "bytes.pt").write_bytes(b"no archive")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"tokens": [1]}))
    for name in (*cases, "cut", "bytes", "pickle"):
        with pytest.raises(UserError, match=rf"{name}.pt: ") as told:
            open_torch_tokens(tmp_path / f"{name}.pt")
        assert "\n" not in str(told.value)


def test_tokens_of_another_tokenizer_are_known_by_their_begin(tmp_path: Path) -> None:
    path = published(tmp_path / "a.pt", DOCUMENTS, bos_id=7)
    with pytest.raises(UserError, match="documents begin with id 7, which neither begins nor ends"):
        read(path)
