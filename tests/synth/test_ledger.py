"""Units of work on disk: whole after a kill at any byte, and what is damaged is named."""

import json
from pathlib import Path

import pytest

from synpro_engine.config import UserError
from synpro_engine.synth.ledger import PartWriter, read_commits, read_frame


def _records(unit: int) -> list[dict[str, object]]:
    return [{"unit": unit, "text": f"\u2028 line {i}\n é \ud800" * unit} for i in range(3)]


def _write(directory: Path, units: range) -> None:
    with PartWriter(directory, 0) as part:
        for unit in units:
            part.append(unit, _records(unit))


def _read(directory: Path) -> dict[int, list[dict[str, object]]]:
    return {unit: list(read_frame(directory, commit)) for unit, commit in read_commits(directory).items()}


def test_what_is_on_disk_survives_a_cut_at_any_byte(tmp_path: Path) -> None:
    """After a kill the ledger may end anywhere, and the part may hold more than the ledger says."""
    (tmp_path / "whole").mkdir()
    _write(tmp_path / "whole", range(3))
    ledger = (tmp_path / "whole" / "part-00000.ledger").read_bytes()
    part = (tmp_path / "whole" / "part-00000.zst").read_bytes()
    ends = [i + 1 for i, byte in enumerate(ledger) if byte == ord("\n")]
    for cut in range(0, len(ledger) + 1, 7):
        place = tmp_path / str(cut)
        place.mkdir()
        (place / "part-00000.ledger").write_bytes(ledger[:cut])
        (place / "part-00000.zst").write_bytes(part + b"half a frame")
        kept = sum(end <= cut for end in ends)
        assert _read(place) == {unit: _records(unit) for unit in range(kept)}
        _write(place, range(kept, 4))
        assert _read(place) == {unit: _records(unit) for unit in range(4)}


def test_writers_keep_to_their_own_files(tmp_path: Path) -> None:
    with PartWriter(tmp_path, 0) as first, PartWriter(tmp_path, 1) as second:
        first.append(0, _records(0))
        second.append(1, _records(1))
        first.append(2, _records(2))
    assert _read(tmp_path) == {unit: _records(unit) for unit in range(3)}


def test_damage_is_an_error_and_never_other_text(tmp_path: Path) -> None:
    _write(tmp_path, range(2))
    part, ledger = tmp_path / "part-00000.zst", tmp_path / "part-00000.ledger"
    data = bytearray(part.read_bytes())
    data[3] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged at byte 0"):
        _read(tmp_path)
    ledger.write_bytes(b"not a line\n" + ledger.read_bytes())
    with pytest.raises(UserError, match=r"part-00000.ledger:1: damaged"):
        read_commits(tmp_path)
    part.write_bytes(b"")
    ledger.write_bytes(ledger.read_bytes().removeprefix(b"not a line\n"))
    with pytest.raises(UserError, match="shorter than its ledger says"), PartWriter(tmp_path, 0):
        pass


@pytest.mark.parametrize(
    ("field", "value"), [("unit", "1"), ("offset", "0"), ("offset", -1), ("size", None), ("part", "../part-00000.zst")]
)
def test_a_line_of_another_shape_is_named_to_reader_and_writer(tmp_path: Path, field: str, value: object) -> None:
    _write(tmp_path, range(1))
    ledger = tmp_path / "part-00000.ledger"
    ledger.write_text(json.dumps(json.loads(ledger.read_text()) | {field: value}) + "\n")
    with pytest.raises(UserError, match=rf"part-00000.ledger:1: damaged.*{field}"):
        read_commits(tmp_path)
    with pytest.raises(UserError, match=r"part-00000.ledger:1: damaged"), PartWriter(tmp_path, 0):
        pass


def test_a_part_that_is_gone_is_named(tmp_path: Path) -> None:
    _write(tmp_path, range(1))
    (tmp_path / "part-00000.zst").unlink()
    with pytest.raises(UserError, match=r"part-00000.zst: missing"):
        _read(tmp_path)
