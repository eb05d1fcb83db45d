"""What the engine asks of a tokenizer, and how one is found from a path.

There are two kinds, SentencePiece and Hugging Face's. No tokenizer here ever turns text into a special token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from synpro_engine.config import UserError
from synpro_engine.data.tokenizer_files import TokenizerFiles


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
    def bos_id(self) -> int | None:
        """The id that models of this tokenizer expect before each text; None where they expect none."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer by the generation settings published with the tokenizer; often none."""
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
        """Write files into `directory` from which `load_tokenizer(directory)` makes an equal tokenizer.

        transformers' AutoTokenizer reads them too. What was published beside the tokenizer is among them.
        """
        ...


class PublishedTokenizer(Tokenizer, Protocol):
    """A tokenizer that came from files: it may have a chat template, and knows the tokens that one is made of."""

    @property
    def encoding(self) -> str:
        """Hex SHA-256 of what decides `encode` alone: equal ones give every text the same ids.

        Ends of documents, padding and chats have no part in it, nor has the way in which a file spells its contents.
        """
        ...

    @property
    def files(self) -> TokenizerFiles:
        """What was published beside it."""
        ...

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids that only a template may write: special tokens, and added ones that the chat template spells."""
        ...

    @property
    def model_ids(self) -> Mapping[str, Any]:
        """`bos_token_id`, `eos_token_id` and `pad_token_id` as a model's config.json states them."""
        ...

    @property
    def begins_texts(self) -> bool:
        """Whether transformers puts `bos_id` before a text that it reads with the files that `save` writes."""
        ...

    @property
    def unlike_transformers(self) -> str | None:
        """In what transformers will read text otherwise from the files that `save` writes; None where nothing is."""
        ...

    def encode_prompt(self, parts: Sequence[str]) -> list[int]:
        """Return the ids of a rendered prompt: parts[0], parts[2], ... are a template's, the others plain text.

        Tokens spelt within a template's parts are tokens; within plain text and across a border they are not.
        """
        ...

    def spell(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` with special tokens as they are spelt: `encode_prompt` of it alone is `ids` again.

        Not where plain text among them spells a token.
        """
        ...


def document_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a document as models are trained on it: with its end, and its begin where the tokenizer has one."""
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [*begin, *tokenizer.encode(text), tokenizer.eos_id]


def start_id(tokenizer: Tokenizer) -> int:
    """The id that stands before a text's first token in training: its begin, else the end of the one before."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def check_rows(tokenizer: Tokenizer, rows: int, place: str, hint: str = "") -> None:
    """Refuse a model whose embedding has fewer rows than the tokenizer has ids; UserError begins with `place`.

    More rows than ids are usual (padding): those are never drawn, for samplers get `vocab_size` as their limit.
    """
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{place}: {rows} rows of the embedding are too few for a tokenizer of {tokenizer.vocab_size} ids{hint}"
        )


def load_tokenizer(path: str | Path, *, eos: str | None = None, pad: str | None = None) -> PublishedTokenizer:
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
    # In this order: beside a tokenizer.json a .model is the form it was converted from, and lacks what was added since.
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: neither tokenizer.json nor tokenizer.model is in this directory")
