"""Directories as Hugging Face's `datasets` writes them: which of their `.arrow` files are the dataset.

`save_to_disk` writes `state.json`, which lists the files in their order, and `dataset_info.json`; for several splits a
folder each, and `dataset_dict.json` above them. Rows that were selected or shuffled before are written in their order;
versions up to 1.x could keep an index beside the rows instead, which is refused. A directory of the cache has
`dataset_info.json` and the files `<name>-<split>.arrow` or `<name>-<split>-00000-of-00010.arrow` of all splits, and
beside them what `map` and `filter` made (`cache-*.arrow`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError
from synpro_engine.data.file_names import check_one_split, path_below
from synpro_engine.storage import RemoteFile
from synpro_engine.storage.places import pattern_of

_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
DESCRIPTIONS = (_DICT, _STATE, _INFO)
_MOST_BYTES = 1 << 26
_SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}")


def arrow_files_apart(root: str, files: Mapping[str, Path | RemoteFile], pattern: str = "") -> set[str]:
    """Which `.arrow` files of saved datasets among `files`, by path below `root`, are no part of them.

    pattern: what the `.arrow` files were chosen by; "" for all. UserError, which names the folder or file, where a
    dataset's file that it would match is missing, where rows are chosen by an index, and for several splits of a
    dataset: which of them are meant?
    """
    if not any(path.endswith(".arrow") for path in files):
        return set()
    apart: set[str] = set()
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        if name == _DICT:
            _check_one_split(root, folder, _read(file).get("splits"), files, pattern)
        elif name == _STATE:
            apart.update(_unlisted(root, folder, _read(file), files, pattern))
        elif name == _INFO and path_below(folder, _STATE) not in files:
            apart.update(_of_the_cache(root, folder, _read(file), files, pattern))
    return apart


def _check_one_split(root: str, folder: str, splits: Any, files: Mapping[str, Any], pattern: str) -> None:
    place = path_below(root, folder)
    if not (isinstance(splits, list | None) and all(isinstance(split, str) for split in splits or ())):
        raise UserError(f"{path_below(place, _DICT)}: damaged (`splits` is no list of names)")
    below = {split: path_below(folder, split) + "/" for split in splits or ()}
    of_split = {split: [path for path in files if path.startswith(begin)] for split, begin in below.items()}
    there = {split: paths for split, paths in of_split.items() if paths}
    check_one_split(place, there, pattern, path_below(place, next(iter(there), "")))


def _unlisted(
    root: str, folder: str, state: Mapping[str, Any], files: Mapping[str, Any], pattern: str
) -> Iterator[str]:
    listed = state.get("_data_files")
    if not isinstance(listed, list):
        return  # another program's
    place = path_below(root, folder)
    if state.get("_indices_data_files"):
        raise UserError(f"{place}: its rows are chosen by an index, as old versions of datasets kept one; save it anew")
    names = [entry.get("filename") for entry in listed if isinstance(entry, dict)]
    matches = pattern_of(pattern).fullmatch if pattern else bool
    for name in map(str, names):
        if (path := path_below(folder, name)) not in files and matches(path):
            raise UserError(f"{path_below(place, name)}: is missing; {_STATE} beside it lists it")
    yield from (path for path in _arrow_in(folder, files) if path.rpartition("/")[2] not in names)


def _of_the_cache(
    root: str, folder: str, info: Mapping[str, Any], files: Mapping[str, Any], pattern: str
) -> Iterator[str]:
    splits = info.get("splits")
    if not isinstance(splits, dict):
        return
    of_split: dict[str, list[str]] = {}
    for path in _arrow_in(folder, files):
        stem = _SHARD_NUMBER.sub("", path.removesuffix(".arrow"))
        split = next((split for split in splits if stem.endswith(f"-{split}")), None)
        if split is None:
            yield path  # of `map`, `filter` and the like, or left by a kill
        else:
            of_split.setdefault(split, []).append(path)
    if of_split:
        place, first = path_below(root, folder), min(of_split)
        check_one_split(place, dict(sorted(of_split.items())), pattern, path_below(place, f"*-{first}*.arrow"))


def _arrow_in(folder: str, files: Mapping[str, Any]) -> list[str]:
    return [path for path in files if path.endswith(".arrow") and path.rpartition("/")[0] == folder]


def _read(file: Path | RemoteFile) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = json.loads(opened.read(_MOST_BYTES))
    except (ValueError, RecursionError):
        raise UserError(f"{file}: damaged (not JSON)") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    return data if isinstance(data, dict) else {}
