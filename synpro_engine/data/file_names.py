"""What the names of a corpus' files say: how many shards a set has, and which splits lie in a folder.

As Hugging Face's hub and cache, and published corpora have them: `train-00000-of-00003.parquet` (older ones with a
hash behind the number), `c4-train.00000-of-01024.json.gz`, `test.jsonl`, `validation/0000.parquet`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count

from synpro_engine.config import UserError
from synpro_engine.storage.places import expanded, pattern_of

_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
_HASH = r"(?:-[0-9a-f]{16})?"
_SUFFIX = r"(?:\.[a-z]\w*)+"
_SHARD = re.compile(rf"((?:.*[-._/])?)(\d{{5}})-of-(\d{{5}})({_HASH})({_SUFFIX})", re.IGNORECASE | re.DOTALL)
_SPLIT_FILE = re.compile(
    rf"((?:.*[-._])?)({'|'.join(_SPLITS)})((?:[-._]?\d+(?:-of-\d+{_HASH})?)?)({_SUFFIX})", re.IGNORECASE | re.DOTALL
)


def check_names(root: str, paths: Iterable[str], pattern: str) -> None:
    """Refuse the files of a directory or pattern, by path below `root`, that hold several splits, or a set with a gap.

    A gap is what their names count and the pattern ("" for all) would match. UserError names the folder or the file.
    """
    paths = list(paths)
    _check_splits(root, paths, pattern)
    _check_shards(root, paths, pattern)


def check_one_split(place: str, of_split: Mapping[str, Sequence[str]], pattern: str, example: str) -> None:
    """UserError, with a name for one of them, where a folder's files (paths by split) are of several splits.

    Not where a pattern's braces name each: text of a test must not be trained on by a slip, but may be at will.
    """
    if len(of_split) < 2:
        return
    alone = [pattern_of(one) for one in expanded(pattern)] if pattern else []
    together = [sum(any(map(one.fullmatch, paths)) for paths in of_split.values()) for one in alone]
    if not pattern or max(together) > 1:
        raise UserError(f"{place}: holds the splits {', '.join(of_split)}; name one, as {example}")


def path_below(folder: str, name: str) -> str:
    """The path of what is called `name` below a folder; either may be ""."""
    return f"{folder}/{name}" if folder and name else folder or name


def _check_splits(root: str, paths: Sequence[str], pattern: str) -> None:
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    examples: dict[tuple[str, str, str], str] = {}
    for path in paths:
        *folders, name = path.split("/")
        for depth, part in enumerate([*folders, name]):
            if (told := _split_file(part) if depth == len(folders) else _split_folder(part)) is not None:
                folder, (before, split, files) = "/".join(folders[:depth]), told
                found.setdefault((folder, before), {}).setdefault(split, []).append(path)
                examples.setdefault((folder, before, split), files)
    for (folder, before), of_split in sorted(found.items()):
        place, first = path_below(root, folder), "train" if "train" in of_split else min(of_split)
        example = path_below(place, examples[folder, before, first])
        check_one_split(place, dict(sorted(of_split.items())), pattern, example)


def _split_folder(name: str) -> tuple[str, str, str] | None:
    return ("", name, name) if name.lower() in _SPLITS else None


def _split_file(name: str) -> tuple[str, str, str] | None:
    """(what stands before the split, the split, a pattern of its files) by a file's name; None where it tells none."""
    found = _SPLIT_FILE.fullmatch(name)
    if found is None:
        return None
    before, split, number, suffix = found.groups()
    return before, split, before + split + re.sub(r"\d.*", "*", number) + suffix


def _check_shards(root: str, paths: Sequence[str], pattern: str) -> None:
    matches = pattern_of(pattern).fullmatch if pattern else bool
    sets: dict[tuple[str, str, str], dict[int, str]] = {}
    for path in paths:
        if found := _SHARD.fullmatch(path):
            before, number, total, named, suffix = found.groups()
            sets.setdefault((before, total, suffix), {})[int(number)] = named
    for (before, total, suffix), there in sorted(sets.items()):
        behind = f"-of-{total}{there[min(there)]}{suffix}"
        for number in range(int(total)):
            path = f"{before}{number:05d}{behind}"
            if number not in there and matches(path):
                last = next(number for number in count(min(there)) if number + 1 not in there)
                raise UserError(
                    f"{path_below(root, path)}: is missing; others say that there are {int(total)}; braces name those"
                    f" that are meant, as {{{min(there):05d}..{last:05d}}}{behind}"
                )
