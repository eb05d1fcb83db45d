"""Directories and files that appear whole or not at all, with a manifest that says where they come from.

Written aside, synced, then renamed. What is inside an artifact is the business of whoever makes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field

from synpro_engine.config.base import Config
from synpro_engine.config.errors import UserError
from synpro_engine.config.integrity import confirm, hash_files, hash_json, sha256_file, stale_files
from synpro_engine.config.json_text import json_text
from synpro_engine.config.lock import writing
from synpro_engine.config.schemas import schemas_of
from synpro_engine.version import VERSION

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # what is not whole yet
REMOVING = ".removing"  # what is being deleted, and may be found half-deleted, carries this name


class Manifest(Config):
    """What an artifact is and what it was made from. Hashes are hex SHA-256."""

    kind: str
    """A run's stage has its name here; others say what they are (`checkpoint`, `direction`, `shards`, ...)."""
    content_hash: str
    """Of `files`: the artifact's identity."""
    files: dict[str, str]
    """Hash of every file, by its path below the artifact."""
    parents: dict[str, str]
    """Content hash of each artifact that it was made from, by its name there."""
    config: dict[str, Any]
    """Settings that it depends on."""
    seed: int | None
    """That it was made with; None where it takes none."""
    versions: dict[str, str]
    """Of Python and of the packages that can change a result, when it was finished."""
    schemas: dict[str, int] = Field(default={})
    """Versions of the forms of its files, by the end of their paths (see `schemas`)."""
    check: str
    """Hash of all the rest of the manifest."""


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    names = ("torch", "megatron-core", "triton", "numpy", "sentencepiece", "tokenizers")
    # Our own from the source: a checkout on PYTHONPATH runs where nothing, or an older one, is installed.
    installed = {"python": platform.python_version(), "synpro_engine": VERSION}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def fsync_path(path: Path) -> None:
    """Push a file or a directory entry to the disk."""
    # Read-only is enough to sync, and the only way to open a directory.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write a text file, given whole or in pieces, so that a reader sees the old or the new one, never a part."""
    # In the same directory, for a rename is atomic within one file system only.
    aside = path.with_name(path.name + PARTIAL)
    with aside.open("w", encoding="utf-8") as file:
        file.writelines((text,) if isinstance(text, str) else text)
        file.flush()
        # Before the rename: a file system may otherwise put the new name on the disk first, and the content never.
        os.fsync(file.fileno())
    aside.replace(path)
    fsync_path(path.parent)


def partial_path(path: Path) -> Path:
    """Where an artifact is written until it is whole; long stages may keep their work there and resume."""
    return path.with_name(path.name + PARTIAL)


def write_manifest(
    directory: Path,
    kind: str,
    config: Mapping[str, Any],
    parents: Mapping[str, Path],
    seed: int | None,
    known: Mapping[str, str] | None = None,
) -> None:
    """Hash what lies in `directory` and write its manifest; `parents` are finished artifacts.

    known: hashes, by path below `directory`, of files that were just written and need not be read again.
    """
    hashes = hash_files(directory, MANIFEST, known)
    manifest = {
        "kind": kind,
        "content_hash": hash_json(hashes),
        "files": hashes,
        # By content and not by path: a run may be moved, and a stage made anew with equal
        # content changes nothing after it.
        "parents": {name: read_manifest(parent).content_hash for name, parent in parents.items()},
        "config": dict(config),
        "seed": seed,
        "versions": versions(),
        "schemas": schemas_of(hashes),
    }
    # Of all the rest, so that a manifest that somebody edited to fit a changed file is noticed too.
    manifest["check"] = hash_json(manifest)
    atomic_write_text(directory / MANIFEST, json_text(manifest, indent=2, ensure_ascii=False) + "\n")


def check_replaceable(path: Path, kind: str) -> None:
    """Refuse a place where an artifact of this kind would overwrite something else; changes nothing.

    Fine are: nothing there, an empty directory, a finished artifact of the same kind. Raises UserError for others.
    """
    if path.name in ("", ".."):
        raise UserError(f"{path}: give a directory by its name")
    if not os.path.lexists(path):
        return
    # A link is refused though it leads to a directory: a rename would replace the link, or what it leads to.
    if path.is_symlink() or not path.is_dir():
        raise UserError(f"{path}: exists and is not a directory; it is not replaced")
    if any(path.iterdir()):
        there = _kind_of(path)
        if there != kind:
            what = "holds files that are no finished artifact" if there is None else f"is an artifact of kind {there}"
            raise UserError(f"{path}: {what}; it is not replaced by a new {kind}")


def outside_artifacts(path: Path) -> None:
    """Refuse a path at or inside a finished artifact, whose files are those of its manifest; UserError names it."""
    for place in (path.resolve(), *path.resolve().parents):
        # Other programs' manifest.json are no concern of ours.
        if (place / MANIFEST).is_file() and (kind := _kind_of(place)) is not None:
            raise UserError(f"{path}: lies inside {place}, a finished {kind}; nothing is written there")


def _kind_of(path: Path) -> str | None:
    """Kind of the artifact at `path`; None where the manifest is missing, damaged or of another program."""
    try:
        return read_manifest(path).kind
    except UserError:
        return None


def _move_aside(path: Path) -> Path:
    """Take a directory or a link, if there is one, from its name in one step; what an earlier one left is deleted."""
    aside = path.with_name(path.name + REMOVING)
    _delete(aside)
    if os.path.lexists(path):
        path.rename(aside)
        fsync_path(path.parent)
    return aside


def _delete(path: Path) -> None:
    """Delete a directory, or a link to one, which stays; nothing there is no error."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def remove_directory(path: Path) -> None:
    """Delete a directory, or a link to one, so that a kill on the way never leaves a part of it under its name.

    It is first renamed to `<name>.removing`; one that is left of an earlier, interrupted removal is deleted too.
    Nothing there is no error.
    """
    _delete(_move_aside(path))


def publish(partial: Path, path: Path) -> None:
    """Make a finished directory, with its manifest, visible under its name, durably.

    An older artifact of the same kind there is replaced. Raises UserError, and leaves both alone, when something
    else lies there.
    """
    # Asked again at the end: hours may have passed since the beginning, and somebody may have put files there.
    check_replaceable(path, read_manifest(partial).kind)
    # Content before the name: what is visible under the final name must be whole after a power cut.
    for place in (*partial.rglob("*"), partial):  # folders too, which hold their files' names
        if place.is_file() or place.is_dir():
            fsync_path(place)
    aside = _move_aside(path)
    partial.rename(path)
    fsync_path(path.parent)
    _delete(aside)


@contextlib.contextmanager
def new_artifact(
    path: Path,
    kind: str,
    config: Mapping[str, Any],
    parents: Mapping[str, Path] | None = None,
    seed: int | None = None,
) -> Iterator[Path]:
    """Yield a directory to fill; on a clean exit it is hashed, described and renamed to `path`.

    What an earlier, interrupted attempt left in the partial directory is removed first. On an exception the
    partial directory stays for inspection and `path` does not appear. Raises UserError, before anything is done, for
    a `path` that holds something else than an artifact of this kind, and when another process is making one there.
    """
    check_replaceable(path, kind)
    partial = partial_path(path)
    if os.path.lexists(partial) and not partial.is_dir():
        raise UserError(f"{partial}: is in the way of {path}, which is made there")
    partial.mkdir(parents=True, exist_ok=True)
    with writing(partial):
        # Its content and not the directory itself, which holds the lock of this block.
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield partial
        # Not in a `finally`: after an exception nothing may look finished.
        write_manifest(partial, kind, config, parents or {}, seed)
        publish(partial, path)


def read_manifest(path: Path) -> Manifest:
    """Read an artifact's manifest; UserError when it is missing or damaged. The files are not looked at."""
    file = path / MANIFEST
    try:
        read = json.loads(file.read_bytes())
        manifest = Manifest.model_validate(read)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not a finished artifact ({MANIFEST} is missing)") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file}: damaged manifest, or one of another version of synpro_engine") from None
    # Of what was read, not of the model: keys that another version knows are part of the hash.
    if manifest.check != hash_json({name: value for name, value in read.items() if name != "check"}):
        raise UserError(f"{file}: damaged manifest (it was changed after it was written)")
    return manifest


def verify_artifact(path: Path) -> Manifest:
    """Read an artifact's manifest and make sure that its files are those that were written (see `integrity`).

    Raises UserError, which names the file, for one that is missing, changed or added.
    """
    manifest = read_manifest(path)
    stale = stale_files(path, manifest.files, MANIFEST)
    confirm(path, manifest.files, stale, {name: sha256_file(path / name) for name in stale})
    return manifest
