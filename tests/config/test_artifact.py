"""Artifacts appear whole or not at all, and know their parents."""

from pathlib import Path

import pytest

from synpro_engine.config import UserError, atomic_write_text, new_artifact, partial_path, read_manifest


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
