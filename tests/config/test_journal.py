"""Growing files: only what was committed counts, and a ledger that was torn or contradicts its files is noticed."""

from pathlib import Path

import pytest

from synpro_engine.config import UserError
from synpro_engine.config.journal import Journal


def _open(folder: Path) -> Journal:
    return Journal(folder / "work" / "a.ledger", folder)


def test_only_what_was_committed_counts(tmp_path: Path) -> None:
    with _open(tmp_path) as journal:
        assert journal.state == {}
        first, second = journal.open(tmp_path / "one"), journal.open(tmp_path / "below" / "two")
        first.write(b"abc")
        second.write(b"defgh")
        journal.commit({"line": 7}, {second: 2})
        first.write(b"lost")
        assert journal.state == {"line": 7}
    with (tmp_path / "work" / "a.ledger").open("ab") as ledger:
        ledger.write(b'{"sizes": {"one": 7')  # torn by a kill
    with _open(tmp_path) as journal:
        assert journal.state == {"line": 7}
        first, second = journal.open(tmp_path / "one"), journal.open(tmp_path / "below" / "two")
        assert (first.size, second.size) == (3, 2)
        first.write(b"d")
        second.write(b"f")
        journal.commit({"line": 9})
    assert (tmp_path / "one").read_bytes() == b"abcd" and (tmp_path / "below" / "two").read_bytes() == b"def"
    with _open(tmp_path) as journal:
        assert journal.state == {"line": 9}


def test_a_file_shorter_than_the_ledger_says_and_a_damaged_ledger_are_named(tmp_path: Path) -> None:
    with _open(tmp_path) as journal:
        journal.open(tmp_path / "one").write(b"abc")
        journal.commit({})
    (tmp_path / "one").write_bytes(b"ab")
    with _open(tmp_path) as journal, pytest.raises(UserError, match="one: shorter than its ledger says"):
        journal.open(tmp_path / "one")
    (tmp_path / "work" / "a.ledger").write_bytes(b"what\n")
    with pytest.raises(UserError, match=r"a\.ledger:1: damaged .*; remove .* to start anew"):
        _open(tmp_path)
