"""Records that are read back line by line, and the first difference of two settings."""

from pathlib import Path

import pytest

from synpro_engine.config import Record, UserError, first_difference, read_records, whole_lines


class _Point(Record):
    x: int


def test_a_line_that_a_kill_cut_short_is_passed_over_and_its_place_is_known(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes('{"x": 1}\n{"é": 2}\n{"x": '.encode())
    first, second = whole_lines(path)
    assert (first.text, first.where) == (b'{"x": 1}', f"{path}:1")
    assert path.read_bytes()[second.end :] == b'{"x": '
    path.write_bytes(b"")
    assert list(whole_lines(path)) == []
    with pytest.raises(UserError, match="no such file"):
        list(whole_lines(tmp_path / "none"))


def test_a_finished_file_that_lost_its_end_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"x": 1}\n{"x": 2}\n')
    assert [point.x for point in read_records(path, _Point)] == [1, 2]
    path.write_bytes(b'{"x": 1}\n{"x": 2}')
    with pytest.raises(UserError, match="cut short"):
        list(read_records(path, _Point))


@pytest.mark.parametrize(
    ("stored", "given", "told"),
    [
        ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2}}, None),
        ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}, "`b.c` is 2 there, 3 here"),
        ({"a": 1, "b": 1}, {"b": 2, "a": 2}, "`b` is 1 there, 2 here"),  # the order of what is given
        ({"b": {"c": 2}}, {"b": None}, "`b` is {'c': 2} there, None here"),
        ({"a": 1, "old": 5}, {"a": 1}, "`old` is 5 there, None here"),
        ({"a": 1, "b": {}}, {"a": 1, "b": {"new": None}}, None),  # what is absent counts as None
        ({"free": 1, "b": {"free": 1}}, {"free": 2, "b": {"free": 2}}, "`b.free` is 1 there, 2 here"),
    ],
)
def test_the_first_difference_names_its_key_and_both_values(stored: dict, given: dict, told: str | None) -> None:
    difference = first_difference(stored, given, free=("free",))
    assert (None if difference is None else str(difference)) == told
