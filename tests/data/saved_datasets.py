"""Directories as `datasets` writes them, from pyarrow alone: byte for byte, held to it where it is installed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc


def write_stream(path: Path, table: pyarrow.Table, rows: int = 1000, compression: str | None = None) -> None:
    """An `.arrow` file: a stream of record batches of so many rows."""
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)


def save_to_disk(
    directory: Path,
    table: pyarrow.Table,
    *,
    shards: int = 1,
    split: str | None = "train",
    compression: str | None = None,
) -> Path:
    """As `Dataset.save_to_disk`."""
    directory.mkdir(parents=True)
    shards = min(shards, max(table.num_rows, 0))
    names = [f"data-{at:05d}-of-{shards:05d}.arrow" for at in range(shards)]
    per = [table.num_rows // shards + (at < table.num_rows % shards) for at in range(shards)]
    begin = 0
    for name, count in zip(names, per, strict=True):
        write_stream(directory / name, table.slice(begin, count), compression=compression)
        begin += count
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    (directory / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))
    info: dict[str, Any] = {"citation": "", "description": "", "features": {}, "homepage": "", "license": ""}
    (directory / "dataset_info.json").write_text(json.dumps(info, indent=2))
    return directory


def save_dict(directory: Path, splits: Mapping[str, pyarrow.Table]) -> Path:
    """As `DatasetDict.save_to_disk`."""
    directory.mkdir(parents=True)
    (directory / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    for split, table in splits.items():
        save_to_disk(directory / split, table, split=split)
    return directory


def write_cache(directory: Path, name: str, splits: Mapping[str, Sequence[pyarrow.Table]]) -> Path:
    """As a folder of the cache: the shards of all splits beside each other."""
    directory.mkdir(parents=True)
    for split, shards in splits.items():
        for at, table in enumerate(shards):
            of = "" if len(shards) == 1 else f"-{at:05d}-of-{len(shards):05d}"
            write_stream(directory / f"{name}-{split}{of}.arrow", table)
    named = {split: {"name": split, "num_examples": sum(t.num_rows for t in of)} for split, of in splits.items()}
    (directory / "dataset_info.json").write_text(json.dumps({"dataset_name": name, "splits": named}))
    return directory
