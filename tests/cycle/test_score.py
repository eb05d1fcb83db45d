"""What a killed `influence` leaves is told from anybody else's file."""

from synpro_engine.cycle.scoring.score import _is_torn, _line
from synpro_engine.data import Document
from synpro_engine.influence.estimator import SequenceScore


def test_every_beginning_of_our_lines_is_torn_and_other_lines_are_not() -> None:
    for id, value in (("d7", -0.25), ('quo"te \\ \u2028 \u6f22\n', float("nan")), ("one", 1e-7)):
        score = SequenceScore(value=value, tokens=12, windows=2, shares=(), loss=3.5)
        line = _line(Document(id=id, text="x"), score, {"estimator": "dot"}, False).encode()
        assert all(_is_torn(line[:cut]) for cut in range(1, len(line)))
    others = ('{"id": "a", "text": "b"}', '{"id": "a"}', '{"id": 7', "[]", "notes", '{"id": "a", "value": 1}', "\x00")
    assert not any(_is_torn(line.encode()) for line in others)
