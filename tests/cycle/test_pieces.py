from pathlib import Path

import pytest

from synpro_engine.cycle.steps.pieces import Pieces
from synpro_engine.dist import ParallelConfig, launched


def test_what_is_kept_is_not_measured_again_and_a_name_is_of_one_piece(tmp_path: Path) -> None:
    path, measured = tmp_path / "pieces.jsonl", list[float]()

    def measure() -> float:
        measured.append(0.1 + 0.2)
        return measured[-1]

    with launched(ParallelConfig()) as topology:
        first = Pieces(path, topology)
        assert first("a", measure) == 0.1 + 0.2
        with pytest.raises(ValueError, match="a: names two pieces"):
            first("a", measure)
        with path.open("a") as file:
            file.write('{"name": "b", "val')  # as a kill leaves it
        again = Pieces(path, topology)
        assert again("a", measure) == 0.1 + 0.2 and again("b", measure) == 0.1 + 0.2
        assert len(measured) == 2 and len(path.read_text().splitlines()) == 2
