import random

import pytest

from synpro_engine.data import Document
from synpro_engine.synth import slice_document


def _text(rng: random.Random) -> str:
    pieces = ["word", "wörter", "。", ". ", "! ", "\n", "\n\n", " ", "\t", "\r\n", "x" * 30, "日本語", "\u2028", "🙂"]
    return "".join(rng.choices(pieces, k=rng.randint(1, 120)))


@pytest.mark.parametrize("max_chars", [1, 7, 60, 7000])
def test_slices_tile_the_document_exactly(max_chars: int) -> None:
    rng = random.Random(max_chars)
    for _ in range(100):
        document = Document("d", _text(rng))
        slices = slice_document(document, max_chars)
        assert "".join(piece.text for piece in slices) == document.text
        assert [piece.start for piece in slices] == [0, *(piece.end for piece in slices[:-1])]
        assert all(0 < len(piece.text) <= max_chars for piece in slices)
        assert all(document.text[piece.start : piece.end] == piece.text for piece in slices)


def test_a_slice_ends_with_a_paragraph_where_one_does() -> None:
    paragraph = "One sentence. Another sentence.\n\n"
    slices = slice_document(Document("d", paragraph * 9), 100)
    assert all(piece.text.endswith("\n\n") for piece in slices)
