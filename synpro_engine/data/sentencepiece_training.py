"""Training a byte-exact BPE vocabulary from text, with SentencePiece.

With the settings that make `decode(encode(text)) == text` true for every text of Unicode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from synpro_engine.config import UserError
from synpro_engine.data.sentencepiece_tokenizer import SentencePieceTokenizer, write_bytes

_LINE_CHARS = 4096
_SMALLEST = 300  # 256 bytes, three special tokens and some characters


def train_sentencepiece(texts: Iterable[str], vocab_size: int, path: Path) -> SentencePieceTokenizer:
    """Train a BPE vocabulary of exactly `vocab_size` pieces on `texts` and write it to `path` (`*.model`).

    Ids 0, 1, 2 are <unk>, </s> (end of document) and <pad>; the next 256 are bytes, so nothing is unknown.
    The same texts give the same bytes. Raises UserError when the texts hold too little for such a vocabulary.
    """
    if vocab_size < _SMALLEST:
        raise UserError(f"a vocabulary of {vocab_size} pieces is too small: {_SMALLEST} are the least (256 are bytes)")
    model, raised = io.BytesIO(), list[BaseException]()

    def lines() -> Iterator[str]:
        try:
            yield from _lines(texts)
        except BaseException as error:  # a damaged source, a wish to stop: the trainer makes a RuntimeError of it
            raised.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(), model_writer=model, model_type="bpe", vocab_size=vocab_size,
            unk_id=0, eos_id=1, pad_id=2, bos_id=-1,
            # Text comes back byte by byte: no Unicode normalisation, no space added, merged or stripped.
            byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
            character_coverage=0.9999, max_sentence_length=8 * _LINE_CHARS,
            num_threads=1,  # part of the model file, so a choice by the machine would change its hash
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        if raised:
            raise raised[0] from None
        raise UserError(f"{vocab_size} pieces {_why_not(str(error))}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, model.getvalue())
    return SentencePieceTokenizer.from_file(path)


def _why_not(message: str) -> str:
    """What SentencePiece says about a size that does not fit, in words about the text."""
    if most := re.search(r"value <= (\d+)", message):
        return f"are more than this text supports ({most[1]} at the most)"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"are too few for the different characters of this text ({least[1]} at the least)"
    return f"cannot be made from this text ({message.splitlines()[-1].strip()})"


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines in pieces of bounded length: the trainer leaves out longer ones without an error."""
    for text in texts:
        for line in text.split("\n"):
            yield from (line[start : start + _LINE_CHARS] for start in range(0, len(line), _LINE_CHARS))
