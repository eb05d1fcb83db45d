"""Units of work on disk: whole after a kill at any byte, and what is damaged is named."""

import json
from pathlib import Path

import pytest

from synpro_engine.config import UserError
from synpro_engine.synth.ledger import Ledgers, PartWriter, counts_of, read_commits, read_frame


def _records(unit: int) -> list[dict[str, object]]:
    of = {"reason": None, "completion_tokens": 3, "text_tokens": 2}
    return [{"unit": unit, "text": f"\u2028 line {i}\n é \ud800" * unit, **of} for i in range(3)]


def _append(part: PartWriter, unit: int) -> None:
    part.append(unit, _records(unit), counts_of(_records(unit), 3, 0.5))


def _write(directory: Path, units: range, writer: str = "a0") -> None:
    with PartWriter(directory, writer) as part:
        for unit in units:
            _append(part, unit)


def _read(directory: Path) -> dict[int, list[dict[str, object]]]:
    return {unit: list(read_frame(directory, commit)) for unit, commit in read_commits(directory).items()}


def test_what_is_on_disk_survives_a_cut_at_any_byte(tmp_path: Path) -> None:
    """After a kill the ledger may end anywhere, and the part may hold more than the ledger says."""
    (tmp_path / "whole").mkdir()
    _write(tmp_path / "whole", range(3))
    ledger = (tmp_path / "whole" / "part-a0.ledger").read_bytes()
    part = (tmp_path / "whole" / "part-a0.zst").read_bytes()
    ends = [i + 1 for i, byte in enumerate(ledger) if byte == ord("\n")]
    for cut in range(0, len(ledger) + 1, 7):
        place = tmp_path / str(cut)
        place.mkdir()
        (place / "part-a0.ledger").write_bytes(ledger[:cut])
        (place / "part-a0.zst").write_bytes(part + b"half a frame")
        kept = sum(end <= cut for end in ends)
        assert _read(place) == {unit: _records(unit) for unit in range(kept)}
        _write(place, range(kept, 4), "b1")
        assert _read(place) == {unit: _records(unit) for unit in range(4)}


def test_writers_keep_to_their_own_files(tmp_path: Path) -> None:
    with PartWriter(tmp_path, "a") as first, PartWriter(tmp_path, "b") as second:
        _append(first, 0)
        _append(second, 1)
        _append(first, 2)
    assert _read(tmp_path) == {unit: _records(unit) for unit in range(3)}
    with pytest.raises(FileExistsError), PartWriter(tmp_path, "a"):
        pass


def test_a_unit_that_two_writers_did_counts_once(tmp_path: Path) -> None:
    _write(tmp_path, range(3), "a")
    _write(tmp_path, range(2, 4), "b")
    assert list(_read(tmp_path)) == [0, 1, 2, 3]


def test_a_second_look_finds_what_is_new_and_nothing_twice(tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path)
    with PartWriter(tmp_path, "a") as first:
        _append(first, 0)
        assert [commit.unit for commit in ledgers.fresh()] == [0]
        with PartWriter(tmp_path, "b") as second:
            _append(second, 5)
            _append(first, 1)
            ledger = tmp_path / "part-a.ledger"
            with ledger.open("ab") as file:  # a line on its way
                file.write(b'{"unit": 7')
            assert sorted(commit.unit for commit in ledgers.fresh()) == [1, 5]
            assert list(ledgers.fresh()) == []


def test_damage_is_an_error_and_never_other_text(tmp_path: Path) -> None:
    _write(tmp_path, range(2))
    part, ledger = tmp_path / "part-a0.zst", tmp_path / "part-a0.ledger"
    data = bytearray(part.read_bytes())
    data[3] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged at byte 0"):
        _read(tmp_path)
    part.write_bytes(b"")
    with pytest.raises(UserError, match="damaged at byte 0"):
        _read(tmp_path)
    ledger.write_bytes(b"not a line\n" + ledger.read_bytes())
    with pytest.raises(UserError, match=r"part-a0.ledger:1: damaged"):
        read_commits(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("unit", "1"), ("offset", "0"), ("offset", -1), ("size", None), ("part", "../part-a0.zst")]
)
def test_a_line_of_another_shape_is_named(tmp_path: Path, field: str, value: object) -> None:
    _write(tmp_path, range(1))
    ledger = tmp_path / "part-a0.ledger"
    ledger.write_text(json.dumps(json.loads(ledger.read_text()) | {field: value}) + "\n")
    with pytest.raises(UserError, match=rf"part-a0.ledger:1: damaged.*{field}"):
        read_commits(tmp_path)


def test_a_part_that_is_gone_is_named(tmp_path: Path) -> None:
    _write(tmp_path, range(1))
    (tmp_path / "part-a0.zst").unlink()
    with pytest.raises(UserError, match=r"part-a0.zst: missing"):
        _read(tmp_path)
