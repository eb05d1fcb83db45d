"""Places that a user names: paths of this machine, and addresses in object stores. Nothing is opened here.

An address is `s3://bucket/key`, `gs://bucket/key`, `hf://datasets/org/name/path` or `file:///path`. Credentials are
refused wherever they stand in one: addresses are recorded and printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, StringConstraints

from synpro_engine.config.addresses import ADDRESS, is_address


class Store(NamedTuple):
    """What a kind of address needs: the package with fsspec's file system, and our extra that installs it."""

    package: str
    extra: str


STORES = {"s3": Store("s3fs", "s3"), "gs": Store("gcsfs", "gs"), "hf": Store("huggingface_hub", "hf")}
KNOWN = "s3://, gs://, hf:// and file://"
_PARTS = re.compile(r"([a-z0-9]+)://([^/]*)(?:/(.*))?", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")


def is_remote(text: str | Path) -> bool:
    """Whether a checked place lies in an object store."""
    return is_address(text)


def place(text: str) -> str:
    """A place as it is written from here on: an address without a last slash, or a path, also for `file://`.

    ValueError, which quotes nothing that may be secret, for an address of an unknown kind, or one with credentials.
    """
    found = ADDRESS.match(text)
    if found is None:
        return text
    scheme = found[1].lower()
    if scheme == "file":
        if not text.startswith("file:///"):
            raise ValueError("a file:// address goes on with the whole path, as file:///data/corpus")
        return text.removeprefix("file://")
    if scheme not in STORES:
        raise ValueError(f"{scheme}:// is no place that is known; there are paths, {KNOWN}")
    parts = _PARTS.fullmatch(text)
    if parts is None or not parts[2]:
        raise ValueError(f"an address is {scheme}://, a bucket, and what is in it")
    # Before anything is shown of it: keys and secrets may hold any character, slashes too.
    if not _BUCKET.fullmatch(parts[2]) or re.match(r"[^/]*:[^@]*@", parts[3] or ""):
        raise ValueError(
            f"{scheme}:// is not followed by a bucket's name alone; credentials stand in the environment, and never in"
            " an address"
        )
    if "?" in text or "#" in text:
        raise ValueError(f"a {scheme}:// address has no query string; credentials stand in the environment")
    if any(part in (".", "..") for part in (parts[3] or "").split("/")):
        raise ValueError(f"a {scheme}:// address has no `.` and `..` in it")
    return text.rstrip("/")


def local_path(text: str) -> str:
    """A path of this machine, also for `file://`; ValueError for an address in a store."""
    found = place(text)
    if is_remote(found):
        raise ValueError(f"{found}: is read from this machine's disk only; copy it there first")
    return found


def joined(base: str, name: str) -> str:
    """The place called `name` (which may have slashes) below another one."""
    return f"{base.rstrip('/')}/{name}" if is_remote(base) else str(Path(base, name))


def place_name(text: str) -> str:
    """The last part of a place."""
    return text.rstrip("/").rpartition("/")[2]


Place = Annotated[str, StringConstraints(min_length=1), AfterValidator(place)]
"""A setting that takes paths and addresses."""
LocalPlace = Annotated[str, StringConstraints(min_length=1), AfterValidator(local_path)]
"""A setting that takes paths alone."""


def expanded(pattern: str) -> list[str]:
    """What braces stand for: `{a,b}` each of them, `{00..11}` each number, as wide as the first. As in shells.

    ValueError for braces that hold neither.
    """
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [head + choice + rest for choice in _choices(found[1]) for rest in expanded(tail)]


def _choices(inside: str) -> Iterable[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2])
        if last < first or last - first >= 10**6:
            raise ValueError(f"{{{inside}}}: give the smaller number first, and fewer than a million")
        return (str(number).zfill(len(numbers[1])) for number in range(first, last + 1))
    if "," not in inside:
        raise ValueError(f"{{{inside}}}: braces hold names with commas between, or numbers as 000..099")
    return inside.split(",")


def split_pattern(text: str) -> tuple[str, str]:
    """(what is before the first part with `*` or braces in it, the rest); the rest is "" where there is none."""
    wild = re.search(r"[*{]", text)
    if wild is None:
        return text, ""
    cut = text.rfind("/", 0, wild.start())
    return (text[:cut] or "/" if cut >= 0 else ".", text[cut + 1 :])


def pattern_of(wild: str) -> re.Pattern[str]:
    """What relative paths must fully match: `*` stays within one folder, `**` as a whole part leads through any."""
    return re.compile("|".join(f"(?:{_regex(one)})" for one in expanded(wild)), re.DOTALL)


def folders_of(wild: str) -> re.Pattern[str]:
    """What relative paths of folders must fully match for a path below them to match `wild`."""
    found = (regex for one in expanded(wild) for regex in _folder_regexes(one.split("/")))
    return re.compile("|".join(dict.fromkeys(found)) or "(?!)", re.DOTALL)


def _folder_regexes(parts: Sequence[str]) -> Iterator[str]:
    for depth, part in enumerate(parts):
        begin = "/".join(map(_segment, parts[:depth]))
        if begin:
            yield begin
        if part == "**":
            yield f"{begin}/.+" if begin else ".+"
            return


def _regex(wild: str) -> str:
    *folders, last = wild.split("/")
    begin = "".join("(?:[^/]+/)*" if part == "**" else f"{_segment(part)}/" for part in folders)
    return begin + ("(?:[^/]+/)*[^/]+" if last == "**" else _segment(last))


def _segment(part: str) -> str:
    return "[^/]*".join(map(re.escape, part.split("*")))
