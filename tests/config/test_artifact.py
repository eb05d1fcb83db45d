"""Artifacts appear whole or not at all, and know their parents."""

from pathlib import Path

import pytest

from synpro_engine.config import (
    UserError,
    atomic_write_text,
    new_artifact,
    partial_path,
    publish,
    read_manifest,
    remove_directory,
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
