"""Hugging Face `tokenizer.json` (SmolLM2, OLMo-2, dolma2, Llama 3, ...) through the `tokenizers` library.

Knows which tokens are special and keeps them out of text; does not need transformers. Whether every text comes
back exactly is the vocabulary's affair: SmolLM2's, for one, has no token for 21 rare bytes and drops them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers

from synpro_engine.config import UserError, atomic_write_text, json_text

_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")
# Where no file names them. A tokenizer that has chat tokens too (dolma2) still ends documents with the first of these.
_USUAL_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
_USUAL_PAD = ("<|pad|>", "<|padding|>", "<pad>", "[PAD]")


class HFTokenizer:
    """A `tokenizers` tokenizer behind the Tokenizer protocol."""

    def __init__(self, source: str, eos: str, pad: str, chat_template: str | None = None) -> None:
        """`source` is the text of a tokenizer.json; `eos` and `pad` are among its tokens; the template is only kept."""
        self._source, self._eos, self._pad, self._chat_template = source, eos, pad, chat_template
        tokenizer = tokenizers.Tokenizer.from_str(_with_special(source, (eos, pad)))
        # Without this the library cuts special tokens out of the text; with it their letters are plain text.
        tokenizer.encode_special_tokens = True
        # A file may ask for cut or padded results (sentence-embedding models do).
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._special = {t.content: id for id, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self._forbidden = frozenset(self._special.values()) - {_unknown_id(tokenizer)}
        cuts = (f"(?<={re.escape(t[0])})(?={re.escape(t[1:])})" for t in self._special if len(t) > 1)
        self._inside_special = re.compile("|".join(cuts))
        self.eos_id, self.pad_id = self._special[eos], self._special[pad]
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.fingerprint = hashlib.sha256(f"{source}|{eos}|{pad}".encode()).hexdigest()

    @classmethod
    def from_file(cls, path: Path, *, eos: str | None = None, pad: str | None = None) -> Self:
        """Read a tokenizer.json; eos and pad come from the arguments, the files beside it, or the usual names."""
        source = _read_text(path)
        try:
            known = tokenizers.Tokenizer.from_str(source).get_vocab(with_added_tokens=True)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer.json ({str(error).splitlines()[0]})") from None
        eos = eos or _configured(path.parent, "eos_token") or next((t for t in _USUAL_EOS if t in known), None)
        if eos is None:
            raise UserError(f"{path}: no end-of-document token is named or recognised; name one")
        pad = pad or _configured(path.parent, "pad_token") or next((t for t in _USUAL_PAD if t in known), eos)
        for token in (eos, pad):
            if token not in known:
                raise UserError(f"{path}: token {token!r} is not in the vocabulary")
        return cls(source, eos, pad, _configured(path.parent, "chat_template"))

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` (see the protocol)."""
        ids = self._plain(text)
        if self._forbidden.isdisjoint(ids):
            return ids
        # Some vocabularies hold a special token as a word as well (Unigram, or BPE that looks whole words up):
        # cut such words after their first character, so that no piece spells one.
        ids = [id for part in self._inside_special.split(text) for id in self._plain(part)]
        assert self._forbidden.isdisjoint(ids), "a special token of one character is part of the plain vocabulary"
        return ids

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` (see the protocol)."""
        return self._tokenizer.decode([int(id) for id in ids], skip_special_tokens=True)

    def special_id(self, literal: str) -> int | None:
        """Return the id of a special token (see the protocol)."""
        return self._special.get(literal)

    def save(self, directory: Path) -> Path:
        """Write `tokenizer.json` and `tokenizer_config.json` into `directory`; transformers reads them too."""
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "tokenizer.json"
        atomic_write_text(file, self._source)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self._eos, "pad_token": self._pad}
        settings |= {"chat_template": self._chat_template} if self._chat_template else {}
        atomic_write_text(directory / _CONFIG_FILES[0], json_text(settings, ensure_ascii=False, indent=2) + "\n")
        return file


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _configured(directory: Path, key: str) -> str | None:
    """The text that the files beside tokenizer.json give for `eos_token`, `pad_token` or `chat_template`."""
    for name in _CONFIG_FILES:
        file = directory / name
        if file.is_file():
            try:
                value: Any = json.loads(_read_text(file)).get(key)
            except (ValueError, AttributeError):
                raise UserError(f"{file}: not a JSON object") from None
            token = value.get("content") if isinstance(value, dict) else value
            if key == "chat_template" and isinstance(value, list):
                return None  # several named templates; none is used here
            if token is not None and not isinstance(token, str):
                raise UserError(f"{file}: `{key}` must be a string")
            if token:
                return token
    return None


def _with_special(source: str, tokens: Sequence[str]) -> str:
    """Mark `tokens` as special, whatever the file says: one that is not would be made from text."""
    data = json.loads(source)
    added = {entry["content"]: entry for entry in data.get("added_tokens") or []}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for token in tokens:
        if token not in added:
            id = tokenizers.Tokenizer.from_str(source).token_to_id(token)
            added[token] = {"id": id, "content": token, **plain}
        added[token]["special"] = True
    data["added_tokens"] = sorted(added.values(), key=lambda entry: entry["id"])
    return json_text(data, ensure_ascii=False)


def _unknown_id(tokenizer: tokenizers.Tokenizer) -> int | None:
    """The id for what the vocabulary cannot spell: special, and yet a proper part of a text's ids."""
    model: Any = tokenizer.model
    if isinstance(model, tokenizers.models.Unigram):
        return json.loads(tokenizer.to_str())["model"]["unk_id"]
    return tokenizer.token_to_id(model.unk_token) if model.unk_token else None
