"""Pieces of a SentencePiece model by their text, and which of them a token that settings name is."""

from __future__ import annotations

from sentencepiece import SentencePieceProcessor

from synpro_engine.config import UserError
from synpro_engine.data.tokenizer_files import TokenizerFiles

# SentencePiece writes spaces as this character, so the character itself would come back as a space.
SPACE_MARK = "\u2581"
PLAIN = "stands for plain text, which texts cannot do without; name another token"


def piece_id(processor: SentencePieceProcessor, token: str) -> int | None:
    """The id of a piece by its text; None where there is none."""
    piece = token.replace(" ", SPACE_MARK)
    id = processor.piece_to_id(piece)
    return id if processor.id_to_piece(id) == piece else None


def literal(processor: SentencePieceProcessor, id: int) -> str:
    """The text that a piece stands for."""
    return processor.id_to_piece(id).replace(SPACE_MARK, " ")


def special_id(processor: SentencePieceProcessor, token: str, place: str) -> int:
    """The id of a token that texts can be kept from making; UserError for another, which begins with `place`."""
    id = piece_id(processor, token)
    if id is None:
        raise UserError(f"{place}: {token!r} is not in the model's vocabulary")
    if processor.is_unknown(id) or (len(token) == 1 and not processor.is_control(id)):
        raise UserError(f"{place}: {token!r} {PLAIN}")
    return id


def named_id(processor: SentencePieceProcessor, files: TokenizerFiles, key: str, own: int) -> int:
    """The id of the token that the settings name by `key`, as transformers takes it; else the model's own."""
    token = files.token(key)
    return own if token is None else special_id(processor, token, f"{files.place}: `{key}`")


def padding_id(processor: SentencePieceProcessor, files: TokenizerFiles) -> int:
    """Likewise for padding; it stands in no text, so any token may be named, and only a control token is taken."""
    id = piece_id(processor, files.token("pad_token") or "")
    return id if id is not None and processor.is_control(id) else processor.pad_id()
