"""What the engine asks of a tokenizer, and how one is found from a path.

Knows the two kinds there are; knows nothing of models. No tokenizer here ever turns text into a special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from synpro_engine.config import UserError


class Tokenizer(Protocol):
    """Text to ids and back. Ids lie in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int:
        """Largest id + 1: the least number of rows an embedding needs."""
        ...

    @property
    def eos_id(self) -> int:
        """The id put after each document."""
        ...

    @property
    def pad_id(self) -> int:
        """The id that fills batches; the same as `eos_id` where the vocabulary has none of its own."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of whatever decides the ids. Token files carry it and refuse another tokenizer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without any special token, even where the text spells one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special ids give nothing, broken UTF-8 gives U+FFFD."""
        ...

    def special_id(self, literal: str) -> int | None:
        """Return the id of a special token such as `<|im_start|>`, None when the vocabulary has no such."""
        ...

    def save(self, directory: Path) -> Path:
        """Write files into `directory` from which `load_tokenizer(directory)` makes an equal tokenizer."""
        ...


def load_tokenizer(path: str | Path, *, eos: str | None = None, pad: str | None = None) -> Tokenizer:
    """Load a SentencePiece `*.model`, a Hugging Face `tokenizer.json` (any `*.json`), or a directory with either.

    `eos` and `pad` name the tokens to use where the files do not tell, or tell something else.
    Raises UserError when there is no tokenizer, it is damaged, or an end-of-document token cannot be found.
    """
    from synpro_engine.data.hf_tokenizer import HFTokenizer
    from synpro_engine.data.sentencepiece_tokenizer import SentencePieceTokenizer

    file = _tokenizer_file(Path(path))
    return (SentencePieceTokenizer if file.suffix == ".model" else HFTokenizer).from_file(file, eos=eos, pad=pad)


def _tokenizer_file(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: no such tokenizer file or directory")
    if path.is_file():
        if path.suffix not in (".model", ".json"):
            raise UserError(f"{path}: unknown kind of tokenizer; known: *.model (SentencePiece), *.json (tokenizers)")
        return path
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: neither tokenizer.json nor tokenizer.model is in this directory")
