"""Compiled ops are used where they were built from the sources that lie beside them, and from no others."""

from pathlib import Path

import pytest

from synpro_kernels.common import extension
from synpro_kernels.common.sources import sources_digest


def test_ops_of_other_sources_are_not_used_and_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded, told = extension.csrc_status()
    if not loaded:
        pytest.skip(f"csrc: {told}")
    assert extension._CSRC.is_dir(), "this is a checkout"
    (tmp_path / "register.cpp").write_text("// another one\n")
    monkeypatch.setattr(extension, "_CSRC", tmp_path)
    loaded, told = extension.csrc_status.__wrapped__()
    assert not loaded and told.endswith("was built from other sources: run `make setup`")
    # Nobody can say so of a wheel, which has no sources beside it.
    monkeypatch.setattr(extension, "_CSRC", tmp_path / "none")
    assert extension.csrc_status.__wrapped__()[0]


def test_any_edit_of_a_source_is_another_digest(tmp_path: Path) -> None:
    found = set[str]()
    for name, text in (("a.cpp", "1"), ("a.cpp", "2"), ("b.h", "2"), ("c.md", "3")):
        (tmp_path / name).write_text(text)
        found.add(sources_digest(tmp_path))
    assert len(found) == 3, "what is not compiled does not count"
