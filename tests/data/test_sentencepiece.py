"""SentencePiece's own habits: what its trainer does to exceptions, and where it puts spaces."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece

from synpro_engine.config import UserError
from synpro_engine.data import SentencePieceTokenizer, train_sentencepiece
from synpro_engine.dist import Stopped


@pytest.mark.parametrize("fault", [Stopped("asked to stop"), UserError("a.jsonl:7: damaged"), KeyboardInterrupt()])
def test_what_is_raised_while_texts_are_read_is_not_taken_for_too_little_text(
    tmp_path: Path, fault: BaseException
) -> None:
    def texts() -> Iterator[str]:
        yield "some words to begin with " * 50
        raise fault

    with pytest.raises(type(fault)) as caught:
        train_sentencepiece(texts(), 300, tmp_path / "t.model")
    assert caught.value is fault
    assert not list(tmp_path.iterdir())


def _published(directory: Path) -> SentencePieceTokenizer:
    """A model as Llama's are: byte fallback, and a space before the first word of a text."""
    model = io.BytesIO()
    text = "the quick brown fox jumps over the lazy dog and the cat sat on the mat again " * 40
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split(".")), model_writer=model, model_type="bpe", vocab_size=320,
        byte_fallback=True, add_dummy_prefix=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return SentencePieceTokenizer.from_file(directory / "tokenizer.model")


@pytest.mark.parametrize("text", ["a\u2581b", "the\u2581 cat", "\u2581", "\u2581\u2581dog", "cat \u2581", "the cat"])
def test_the_mark_of_a_space_in_a_text_adds_no_space_behind_it(tmp_path: Path, text: str) -> None:
    tokenizer = _published(tmp_path)
    assert tokenizer.decode(tokenizer.encode(text)) == text
