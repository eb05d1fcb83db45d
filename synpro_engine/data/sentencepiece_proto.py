"""What a SentencePiece model says of itself that the library's processor has no call for."""

from __future__ import annotations

from typing import Any


def user_defined(model: bytes) -> list[int]:
    """The ids of the symbols that training was told of (`--user_defined_symbols`): whole in every text."""
    # Enum SentencePiece.Type, USER_DEFINED.
    return [id for id, piece in enumerate(_parsed(model).pieces) if piece.type == 4]


def unlike_llama(model: bytes) -> list[str]:
    """In what the model reads text otherwise than transformers' class for Llama, which is made for one kind alone."""
    proto = _parsed(model)
    trained, normalised = proto.trainer_spec, proto.normalizer_spec
    kind = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}.get(trained.model_type, "another")
    differs = {
        f"its kind is {kind}": kind != "bpe",
        f"it normalises text ({normalised.name})": bool(normalised.precompiled_charsmap),
        "it has no bytes for unknown characters": not trained.byte_fallback,
        "it removes spaces": normalised.remove_extra_whitespaces,
        "it puts a space before a space that begins a text": normalised.add_dummy_prefix,
        "it marks spaces behind words": trained.treat_whitespace_as_suffix,
    }
    return [reason for reason, there in differs.items() if there]


def _parsed(model: bytes) -> Any:
    # Here, for few need it and it takes long to import.
    from sentencepiece import sentencepiece_model_pb2 as proto

    return proto.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
