"""The tokenizer inside a GGUF file, as the files that `data.load_tokenizer` and transformers read.

Knows byte-level BPE and its splitting rules by name; refuses any other, for a wrong split gives wrong ids
without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from synpro_engine.config import UserError, atomic_write_text, json_text

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4

Metadata = Callable[[str], Any]


def write_tokenizer(path: Path, find: Metadata, directory: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `directory`.

    `find` gives the metadata of the GGUF file at `path` by key, None where there is none.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokens = _need(path, find, "tokens")
    eos_id = int(_need(path, find, "eos_token_id"))
    pad_id = find(f"{_PREFIX}padding_token_id")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokens[eos_id],
        "pad_token": tokens[eos_id if pad_id is None else int(pad_id)],
    }
    template = find("tokenizer.chat_template")
    settings |= {"chat_template": template} if template else {}
    atomic_write_text(directory / "tokenizer.json", build_tokenizer(path, find).to_str())
    atomic_write_text(directory / "tokenizer_config.json", json_text(settings, ensure_ascii=False, indent=2) + "\n")


def build_tokenizer(path: Path, find: Metadata) -> Tokenizer:
    """The byte-level BPE tokenizer in the metadata; UserError for another kind."""
    kind, rule = _need(path, find, "model"), find(f"{_PREFIX}pre")
    if kind != "gpt2" or rule not in ("smollm", "gpt-2"):
        raise UserError(f"{path}: tokenizer `{kind}` with splitting rule `{rule}` is not supported")
    words: list[str] = _need(path, find, "tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _need(path, find, "merges")]
    bpe = models.BPE(vocab={word: id for id, word in enumerate(words)}, merges=merges)
    tokenizer: Any = Tokenizer(bpe)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if rule == "smollm" else []
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, split])
    tokenizer.decoder = decoders.ByteLevel()
    for word, kind_of_token in zip(words, _need(path, find, "token_type"), strict=True):
        if kind_of_token in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(word, special=kind_of_token == _CONTROL, normalized=False)])
    return tokenizer


def _need(path: Path, find: Metadata, key: str) -> Any:
    value = find(_PREFIX + key)
    if value is None:
        raise UserError(f"{path}: `{_PREFIX}{key}` is missing")
    return value
