"""Artifacts appear whole or not at all, and know their parents."""

import contextlib
import hashlib
import json
import os
import shutil
from importlib import metadata
from pathlib import Path

import pytest

import synpro_engine
from synpro_engine.config import (
    UserError,
    atomic_write_text,
    new_artifact,
    partial_path,
    publish,
    read_manifest,
    remove_directory,
    verification,
    verify_artifact,
    versions,
    write_manifest,
)
from synpro_engine.config import artifact as artifact_module


def _make(path: Path, text: str, parents: dict[str, Path] | None = None) -> None:
    with new_artifact(path, "text", {"text": text}, parents, seed=1) as inside:
        (inside / "deep").mkdir()
        (inside / "deep" / "a.txt").write_text(text)


def test_an_interrupted_artifact_does_not_appear_and_the_next_attempt_starts_clean(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with pytest.raises(RuntimeError), new_artifact(path, "text", {}) as inside:
        (inside / "left-over").write_text("x")
        raise RuntimeError
    assert not path.exists() and partial_path(path).exists()
    _make(path, "whole")
    assert not (path / "left-over").exists() and not partial_path(path).exists()


def test_two_cannot_make_one_artifact_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with new_artifact(path, "text", {}) as inside:
        (inside / "a.txt").write_text("first")
        with pytest.raises(UserError, match="another process writes it"):
            _make(path, "second")
    assert (path / "a.txt").read_text() == "first"
    _make(path, "third")
    assert not (path / "a.txt").exists()


def test_a_file_in_the_way_of_an_artifact_is_named_and_left(tmp_path: Path) -> None:
    partial_path(tmp_path / "made").write_text("mine")
    with pytest.raises(UserError, match=r"made\.partial: is in the way"):
        _make(tmp_path / "made", "text")
    assert partial_path(tmp_path / "made").read_text() == "mine"


def test_the_content_hash_follows_bytes_and_names_and_parents_are_recorded(tmp_path: Path) -> None:
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        _make(tmp_path / name, text)
    hashes = {name: read_manifest(tmp_path / name).content_hash for name in "abc"}
    assert hashes["a"] == hashes["b"] != hashes["c"]
    _make(tmp_path / "child", "x", {"source": tmp_path / "a"})
    assert read_manifest(tmp_path / "child").parents == {"source": hashes["a"]}


def test_a_missing_or_damaged_manifest_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finished artifact"):
        read_manifest(tmp_path)
    atomic_write_text(tmp_path / "manifest.json", "{")
    with pytest.raises(UserError, match="damaged manifest"):
        read_manifest(tmp_path)


def _foreign(path: Path, what: str) -> None:
    """Something at `path` that an artifact of kind `text` must not replace."""
    if what == "file":
        path.write_text("mine")
    elif what == "other kind":
        with new_artifact(path, "checkpoint", {}) as inside:
            (inside / "mine").write_text("mine")
    else:
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "mine").write_text("mine")
        if what == "another program's manifest":
            (path / "manifest.json").write_text('{"name": "a web page", "icons": []}')


def _below(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()}


@pytest.mark.parametrize("what", ["file", "files", "another program's manifest", "other kind"])
def test_what_is_no_artifact_of_the_same_kind_is_never_replaced(tmp_path: Path, what: str) -> None:
    path, partial = tmp_path / "models", tmp_path / "models.partial"
    _foreign(path, what)
    before = _below(tmp_path)
    with pytest.raises(UserError, match=rf"{path}.*not replaced"), new_artifact(path, "text", {}):
        pytest.fail("the work began")
    assert _below(tmp_path) == before
    partial.mkdir()
    write_manifest(partial, "text", {}, {}, None)
    with pytest.raises(UserError, match=rf"{path}.*not replaced"):
        publish(partial, path)
    assert partial.exists() and before.items() <= _below(tmp_path).items()


def test_a_link_is_not_replaced_and_a_directory_without_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, message in ((tmp_path / "link", "not replaced"), (Path(), "by its name"), (Path(".."), "by its name")):
        with pytest.raises(UserError, match=message):
            _make(path, "x")


def test_an_empty_directory_and_an_artifact_of_the_same_kind_are_replaced_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "made"
    path.mkdir()
    for text in ("first", "second"):
        _make(path, text)
        assert (path / "deep" / "a.txt").read_text() == text
        assert [entry.name for entry in tmp_path.iterdir()] == ["made"]


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    _make(tmp_path / "made", "text")
    link, aside = tmp_path / "link", tmp_path / "link.removing"
    for left in (False, True, False):  # by an earlier removal that was killed
        link.symlink_to("made" if left else "nowhere")
        if left:
            aside.symlink_to("made")
        remove_directory(link)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["made"]
    assert (tmp_path / "made" / "deep" / "a.txt").read_text() == "text"


def test_a_kill_during_a_removal_leaves_no_part_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, aside = tmp_path / "made", tmp_path / "made.removing"

    def killed(directory: Path) -> None:
        (directory / "manifest.json").unlink()
        raise KeyboardInterrupt

    _make(path, "old")
    monkeypatch.setattr(artifact_module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_directory(path)
    monkeypatch.undo()
    assert not path.exists() and (aside / "deep").exists()
    _make(path, "new")  # the rest of the old one goes along
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]
    aside.mkdir()
    remove_directory(path)
    remove_directory(path)
    assert not list(tmp_path.iterdir())


def test_a_kill_while_an_older_artifact_is_deleted_leaves_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(directory: Path) -> None:
        raise KeyboardInterrupt

    _make(tmp_path / "made", "old")
    monkeypatch.setattr(artifact_module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        _make(tmp_path / "made", "new")
    assert (tmp_path / "made" / "deep" / "a.txt").read_text() == "new" and read_manifest(tmp_path / "made")


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_change_of_any_file_is_noticed_and_named(tmp_path: Path) -> None:
    path = tmp_path / "made"
    _make(path, "some text")
    verify_artifact(path)
    whole = {file: file.read_bytes() for file in (path / "deep" / "a.txt", path / "manifest.json")}
    for file, data in whole.items():
        for damage in (_flip, Path.unlink, lambda file: file.write_bytes(b""), lambda file: file.write_bytes(b"\x80")):
            damage(file)
            with pytest.raises(UserError, match=file.name) as caught:
                verify_artifact(path)
            assert "\n" not in str(caught.value)
            file.write_bytes(data)
    for position in range(len(whole[path / "manifest.json"]) - 1):  # the last is a newline, which means nothing
        data = bytearray(whole[path / "manifest.json"])
        data[position] ^= 1
        (path / "manifest.json").write_bytes(data)
        changed = json.loads(whole[path / "manifest.json"]) != _json(data)
        with pytest.raises(UserError, match=r"manifest\.json") if changed else contextlib.nullcontext():
            verify_artifact(path)
    (path / "manifest.json").write_bytes(whole[path / "manifest.json"])
    (path / "more").write_text("x")
    with pytest.raises(UserError, match=r"more: was put there later"):
        verify_artifact(path)


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_files_are_hashed_once_for_each_change_and_a_copy_is_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    plain = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, name: hashed.append(Path(f.name).name) or plain(f, name))
    with new_artifact(tmp_path / "a", "text", {}) as inside:
        (inside / "one").write_text("1")
        with new_artifact(inside / "nested", "text", {}) as deeper:
            (deeper / "two").write_text("2")
    assert sorted(hashed) == ["manifest.json", "one", "two"]  # the outer manifest takes what the inner one hashed
    hashed.clear()
    verify_artifact(tmp_path / "a")
    verify_artifact(tmp_path / "a" / "nested")
    assert not hashed
    times = (tmp_path / "a" / "one").stat()
    (tmp_path / "a" / "one").write_text("7")
    os.utime(tmp_path / "a" / "one", ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times does
    with pytest.raises(UserError, match="one: was changed"):
        verify_artifact(tmp_path / "a")
    (tmp_path / "a" / "one").write_text("1")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for expected in (["manifest.json", "one", "two"], []):
        hashed.clear()
        verify_artifact(tmp_path / "b")
        assert sorted(hashed) == expected
    verify_artifact(tmp_path / "b" / "nested")  # what was hashed as a part of the outer one is known of the inner one
    assert not hashed
    for mode, expected in (("always", 3), ("never", 0)):
        hashed.clear()
        with verification(mode):
            verify_artifact(tmp_path / "b")
        assert len(hashed) == expected


def test_a_damaged_memory_of_hashes_costs_time_and_nothing_else(tmp_path: Path) -> None:
    _make(tmp_path / "a", "text")
    record = tmp_path / "a" / ".verified.json"
    whole = record.read_bytes()
    for position in range(len(whole)):
        record.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        verify_artifact(tmp_path / "a")
    _flip(tmp_path / "a" / "deep" / "a.txt")
    with pytest.raises(UserError):
        verify_artifact(tmp_path / "a")


def test_a_manifest_of_an_older_version_is_refused_by_a_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(
        '{"kind": "x", "content_hash": "0", "parents": {}, "config": {}, "seed": 1}'
    )
    with pytest.raises(UserError, match=r"manifest\.json: damaged manifest, or one of another version"):
        read_manifest(tmp_path)


def test_a_checkout_that_is_not_installed_knows_its_own_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    assert versions()["synpro_engine"] == synpro_engine.__version__
