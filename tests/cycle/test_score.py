"""What a killed `influence` leaves is told from anybody else's file."""

import json

from synpro_engine.cycle.score import _is_torn


def test_every_beginning_of_our_lines_is_torn_and_other_lines_are_not() -> None:
    for id, value in (("d7", -0.25), ('quo"te \\ \u2028 \u6f22\n', None), ("", 1e-7)):
        record = {"id": id, "value": value, "tokens": 12, "loss": 3.5, "estimator": "dot"}
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        assert all(_is_torn(line[:cut]) for cut in range(1, len(line)))
    others = ('{"id": "a", "text": "b"}', '{"id": "a"}', '{"id": 7', "[]", "notes", '{"id": "a", "value": 1}', "\x00")
    assert not any(_is_torn(line.encode()) for line in others)
