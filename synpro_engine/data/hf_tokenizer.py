"""Hugging Face `tokenizer.json` (SmolLM2, OLMo-2, dolma2, Llama 3, ...) through the `tokenizers` library.

Text never becomes a special token. transformers is not needed. Whether every text comes back exactly depends on the
vocabulary: SmolLM2's, for one, has no token for 21 rare bytes and drops them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers

from synpro_engine.config import UserError, atomic_write_text, first_line, hash_json
from synpro_engine.data.rows import Rows, rows_of
from synpro_engine.data.special_tokens import EVERYWHERE, inside
from synpro_engine.data.tokenizer_files import SETTINGS, TokenizerFiles, read_text
from synpro_engine.data.tokenizer_json import (
    bare,
    token_before_texts,
    unknown_id,
    vocabulary_of,
    with_special,
    within_texts,
    words,
)

# Where no file names them. A tokenizer that has chat tokens too (dolma2) still ends documents with the first of these.
_USUAL_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
_USUAL_PAD = ("<|pad|>", "<|padding|>", "<pad>", "[PAD]")


class HFTokenizer:
    """A `tokenizers` tokenizer behind the PublishedTokenizer protocol."""

    def __init__(self, source: str, eos: str, pad: str, files: TokenizerFiles | None = None) -> None:
        """`source` is the text of a tokenizer.json; `eos` and `pad` are among its tokens; `files` lay beside it."""
        self.files = files or TokenizerFiles(place=Path())
        # The text as it came is what is saved again: the library would write it in its own form and version.
        self._source, self._eos, self._pad = source, eos, pad
        data, vocabulary = json.loads(source), vocabulary_of(source)
        listed = {entry["content"] for entry in data.get("added_tokens") or [] if entry["special"]}
        bos, begin = self.files.token("bos_token"), _begin(self.files, data)
        named = dict.fromkeys(t for t in (eos, pad, bos, begin, *self.files.extra_tokens) if t in vocabulary)
        # Padding stands in no text. Where it is a letter too (`!`), texts must go on having that letter.
        letter = len(pad) == 1 and pad not in (eos, bos, begin) and pad in words(data)
        plain = {pad} if letter else set[str]()
        # A token that only the settings call special is a plain one to the library, and text
        # that spells it would become it.
        marked = (listed | plain).issuperset(named) and listed.isdisjoint(plain)
        self._marked = source if marked else with_special(data, vocabulary, named.keys() - plain, plain)
        tokenizer = bare(self._marked)
        # Without this the library cuts special tokens out of the text; with it their letters are plain text.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token.content: id for id, token in added.items() if token.special}
        unknown = unknown_id(tokenizer)
        # Not the unknown id, which is special and yet what text without a piece of its own becomes.
        self._forbidden = frozenset(self._special.values()) - {unknown}
        self._inside_special = inside(self._special)
        # A template's own tokens need not be marked special: Qwen3's `<think>` is not.
        templates = "\0".join(self.files.chat_templates.values())
        spelt = {t.content: id for id, t in added.items() if t.content in templates and not t.content.isspace()}
        self._control = self._special | spelt
        self.control_ids = frozenset(self._control.values()) - {unknown}
        self.eos_id, self.pad_id = self._special[eos], vocabulary[pad]
        self._named_bos_id, self.bos_id = self._special.get(bos or ""), self._special.get(begin or "")
        # The largest id and not the number of tokens: vocabularies have gaps, and a model needs a row for the last one.
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_ids = self.files.end_ids_below(self.vocab_size)
        self._is_forbidden = np.isin(np.arange(self.vocab_size), list(self._forbidden))
        # What goes beyond the file's own special tokens decides ids too.
        more = sorted(set(named) - listed - {eos, pad}) + ([] if self.bos_id is None else [f"bos {begin}"])
        self.fingerprint = hashlib.sha256("|".join((source, eos, pad, *more)).encode()).hexdigest()
        self._check_letters({eos: "eos_token", bos: "bos_token"})

    def _check_letters(self, keys: Mapping[str | None, str]) -> None:
        for token, id in self._special.items():
            if len(token) == 1 and id in self._forbidden and id in self._plain(token):
                key = keys.get(token, "added_tokens")
                raise UserError(
                    f"{self.files.place}: `{key}`: {token!r} is a letter of the vocabulary, which texts cannot do"
                    " without; name another token"
                )

    @classmethod
    def from_file(cls, path: Path, *, eos: str | None = None, pad: str | None = None) -> Self:
        """Read a tokenizer.json; eos and pad come from the arguments, the files beside it, or the usual names."""
        source, files = read_text(path), TokenizerFiles.read(path.parent)
        try:
            vocabulary = vocabulary_of(source)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer.json ({first_line(error)})") from None
        chosen = {"eos_token": eos, "pad_token": pad}
        for token in chosen.values():
            if token is not None and token not in vocabulary:
                raise UserError(f"{path}: token {token!r} is not in the vocabulary")
        eos = eos or files.token("eos_token") or next((t for t in _USUAL_EOS if t in vocabulary), None)
        if eos is None:
            raise UserError(
                f"{path}: no end-of-document token is named or recognised; write the one that ends documents as"
                f" `eos_token` into {SETTINGS} beside it"
            )
        usual = files.token("pad_token") or next((t for t in _USUAL_PAD if t in vocabulary), None)
        # A begin-of-text that only the post-processor has is put before every text by whoever reads an export.
        begin = files.token("bos_token") or token_before_texts(json.loads(source))
        files = files.naming({"bos_token": begin, "eos_token": eos, "pad_token": usual}, chosen)
        files.check_tokens(vocabulary.__contains__)
        # A chosen end must reach the files that models are exported with, which may name others.
        files = files.ending_with(vocabulary[eos]) if chosen["eos_token"] else files
        return cls(source, eos, pad or usual or eos, files)

    @property
    def encoding(self) -> str:
        """Hash of what decides `encode` (see the protocol)."""
        # As the library writes it: files of its versions spell one vocabulary in several ways.
        data = json.loads(self._tokenizer.to_str())
        words = self._tokenizer.get_vocab(with_added_tokens=False)
        # Special tokens decide nothing, for text never becomes one; but those that are words as well are cut (`_cut`).
        data["added_tokens"] = [t for t in data["added_tokens"] if not t["special"] or t["content"] in words]
        for name in ("version", "truncation", "padding", "post_processor", "decoder"):
            data.pop(name, None)
        return hash_json(data)

    @property
    def model_ids(self) -> dict[str, Any]:
        """Ids for a model's config.json (see the protocol); one that no file names is None."""
        pad_id = None if self.files.token("pad_token") is None else self.pad_id
        named = {"bos_token_id": self._named_bos_id, "eos_token_id": self.eos_id, "pad_token_id": pad_id}
        return named | self.files.model_ids_below(self.vocab_size)

    @property
    def begins_texts(self) -> bool:
        """By its post-processor alone, for transformers drops the settings' word (see the protocol)."""
        return self.bos_id is not None and self._tokenizer.post_processor is not None

    @property
    def unlike_transformers(self) -> None:
        """Nothing: both read tokenizer.json (see the protocol)."""
        return

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` (see the protocol)."""
        ids = self._plain(text)
        return ids if self._forbidden.isdisjoint(ids) else self._cut(text)

    def encode_batch(self, texts: Sequence[str]) -> Rows:
        """Return the ids of each text, those of `encode`, encoded outside Python's lock."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        lists = [encoding.ids for encoding in encodings]
        rows = rows_of(lists)
        if not self._is_forbidden[rows.tokens].any():
            return rows
        return rows_of(
            [
                ids if self._forbidden.isdisjoint(ids) else self._cut(text)
                for ids, text in zip(lists, texts, strict=True)
            ]
        )

    def _cut(self, text: str) -> list[int]:
        # Some vocabularies hold a special token as a word as well (Unigram, or BPE that looks whole words up):
        # cut such words after their first character, so that no piece spells one.
        # Slower and with other ids than the text as a whole has, so only where it is needed.
        for cuts in (self._inside_special, EVERYWHERE):
            head, *rest = cuts.split(text)
            later = (self._within.encode(part, add_special_tokens=False).ids for part in rest)
            ids = [*self._plain(head), *chain.from_iterable(later)]
            if self._forbidden.isdisjoint(ids):
                return ids
        raise UserError(f"{self.files.place}: this tokenizer cannot keep text from becoming a special token")

    @functools.cached_property
    def _within(self) -> tokenizers.Tokenizer:
        """A tokenizer for what does not begin a text: without the space that some put first."""
        tokenizer = bare(within_texts(self._marked))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _plain(self, text: str) -> list[int]:
        # Without the file's post-processor: begin and end are put by `document_ids`, once, for every tokenizer alike.
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_prompt(self, parts: Sequence[str]) -> list[int]:
        """Return the ids of a rendered prompt (see the protocol)."""
        # What the template's own parts make is all that may be there; anything more would have come from a document.
        wanted = self._controls(id for part in parts[::2] for id in self._markup([part]))
        # As one string, which is how models saw it; only where plain text spells a token is it cut inside that.
        chunks = [""]
        for number, part in enumerate(parts):
            first, *rest = self._inside_control.split(part) if number % 2 else [part]
            chunks[-1] += first
            chunks += rest
        ids = self._markup(chunks)
        if self._controls(ids) != wanted:  # spelt across a border, or only after normalisation
            ids = []
            for number, part in enumerate(parts):
                if number % 2:
                    ids += [id for piece in self._inside_control.split(part) for id in self.encode(piece)]
                else:
                    ids += self._markup(["", part])
        if self._controls(ids) != wanted:
            raise UserError(f"{self.files.place}: this tokenizer cannot keep text from becoming tokens of its chats")
        return ids

    def _controls(self, ids: Iterable[int]) -> list[int]:
        return [id for id in ids if id in self.control_ids]

    def _markup(self, chunks: Sequence[str]) -> list[int]:
        """The ids of chunks in which tokens are spelt; a later chunk reads as it does in the middle of a text."""
        first, *rest = chunks
        ids = self._reader.encode(first, add_special_tokens=False).ids
        for chunk in rest:
            # Behind a special token, whose id is dropped: some tokenizers add a space at the head of a text,
            # which a later chunk must not get.
            ids += self._reader.encode(self._eos + chunk, add_special_tokens=False).ids[1:]
        return ids

    @functools.cached_property
    def _reader(self) -> tokenizers.Tokenizer:
        """A second tokenizer, which does read special tokens; only prompts need it."""
        return bare(self._marked)

    @functools.cached_property
    def _inside_control(self) -> re.Pattern[str]:
        return inside(self._control)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` (see the protocol)."""
        return self._tokenizer.decode([int(id) for id in ids], skip_special_tokens=True)

    def spell(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens with it (see the protocol)."""
        return self._tokenizer.decode([int(id) for id in ids], skip_special_tokens=False)

    def special_id(self, literal: str) -> int | None:
        """Return the id of a special token (see the protocol)."""
        return self._special.get(literal)

    def save(self, directory: Path) -> Path:
        """Write `tokenizer.json` and what lay beside it into `directory`; transformers reads them too."""
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "tokenizer.json"
        atomic_write_text(file, self._source)
        self.files.write(directory)
        return file


def _begin(files: TokenizerFiles, data: Mapping[str, Any]) -> str | None:
    """What texts begin with: as the file's post-processor does it, and as the settings say where it has none.

    transformers 5 drops the settings' word where there is a tokenizer.json; transformers 4 does for most classes.
    """
    if data.get("post_processor") is not None:
        return token_before_texts(data)
    return files.token("bos_token") if files.adds_bos else None
