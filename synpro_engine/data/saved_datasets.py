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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError
from synpro_engine.storage import RemoteFile

_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
DESCRIPTIONS = (_DICT, _STATE, _INFO)
_MOST_BYTES = 1 << 26
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.arrow")


def arrow_files_apart(root: str, files: Mapping[str, Path | RemoteFile]) -> set[str]:
    """Which `.arrow` files of saved datasets among `files`, by path below `root`, are no part of them.

    UserError, which names the folder or file, where a dataset's file is missing, where rows are chosen by an index, and
    for several splits of a dataset: which of them are meant?
    """
    if not any(path.endswith(".arrow") for path in files):
        return set()
    apart: set[str] = set()
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        if name == _DICT:
            _one_split(root, folder, _read(file).get("splits"), files)
        elif name == _STATE:
            apart.update(_unlisted(root, folder, _read(file), files))
        elif name == _INFO and _join(folder, _STATE) not in files:
            apart.update(_of_the_cache(root, folder, _read(file), files))
    return apart


def _one_split(root: str, folder: str, splits: Any, files: Mapping[str, Any]) -> None:
    if not (isinstance(splits, list | None) and all(isinstance(split, str) for split in splits or ())):
        raise UserError(f"{_join(_join(root, folder), _DICT)}: damaged (`splits` is no list of names)")
    there = [split for split in splits or () if any(path.startswith(_join(folder, split) + "/") for path in files)]
    if len(there) > 1:
        place = _join(root, folder)
        raise UserError(f"{place}: holds the splits {', '.join(there)}; name one, as {_join(place, there[0])}")


def _unlisted(root: str, folder: str, state: Mapping[str, Any], files: Mapping[str, Any]) -> Iterator[str]:
    listed = state.get("_data_files")
    if not isinstance(listed, list):
        return  # another program's
    place = _join(root, folder)
    if state.get("_indices_data_files"):
        raise UserError(f"{place}: its rows are chosen by an index, as old versions of datasets kept one; save it anew")
    names = [entry.get("filename") for entry in listed if isinstance(entry, dict)]
    for name in names:
        if _join(folder, str(name)) not in files:
            raise UserError(f"{_join(place, str(name))}: is missing; {_STATE} beside it lists it")
    yield from (path for path in _arrow_in(folder, files) if path.rpartition("/")[2] not in names)


def _of_the_cache(root: str, folder: str, info: Mapping[str, Any], files: Mapping[str, Any]) -> Iterator[str]:
    splits = info.get("splits")
    if not isinstance(splits, dict):
        return
    of_split: dict[str, list[str]] = {}
    for path in _arrow_in(folder, files):
        name = path.rpartition("/")[2]
        shard = _SHARD.fullmatch(name)
        stem = shard[1] if shard else name.removesuffix(".arrow")
        split = next((split for split in splits if stem.endswith(f"-{split}")), None)
        if split is None:
            yield path  # of `map`, `filter` and the like, or left by a kill
            continue
        of_split.setdefault(split, []).append(path)
        if shard is not None:
            wanted = {_join(folder, f"{shard[1]}-{at:05d}-of-{shard[3]}.arrow") for at in range(int(shard[3]))}
            for missing in sorted(wanted - files.keys()):
                raise UserError(f"{_join(root, missing)}: is missing beside {name}")
    if len(of_split) > 1:
        place, first = _join(root, folder), min(of_split)
        told = f"holds the splits {', '.join(sorted(of_split))}; name one, as {_join(place, f'*-{first}*.arrow')}"
        raise UserError(f"{place}: {told}")


def check_shards(root: str, files: Mapping[str, Any], matches: Callable[[str], object]) -> None:
    """Refuse `.arrow` files of a pattern, by path below `root`, of which one is missing that their names count.

    matches: whether the pattern has a path; one that it leaves out is not missed. UserError names the file.
    """
    named = ((path.rpartition("/")[0], _SHARD.fullmatch(path.rpartition("/")[2])) for path in files)
    for folder, stem, count in sorted({(folder, shard[1], shard[3]) for folder, shard in named if shard}):
        for at in range(int(count)):
            path = _join(folder, f"{stem}-{at:05d}-of-{count}.arrow")
            if path not in files and matches(path):
                raise UserError(f"{_join(root, path)}: is missing; others say that there are {int(count)}")


def _arrow_in(folder: str, files: Mapping[str, Any]) -> list[str]:
    return [path for path in files if path.endswith(".arrow") and path.rpartition("/")[0] == folder]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _read(file: Path | RemoteFile) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = json.loads(opened.read(_MOST_BYTES))
    except (ValueError, RecursionError):
        raise UserError(f"{file}: damaged (not JSON)") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    return data if isinstance(data, dict) else {}
