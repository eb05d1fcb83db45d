"""SentencePiece's `*.model` files, of any kind.

No text becomes one of their control pieces. The library does make user-defined symbols from text
(`spm_train --user_defined_symbols`): here never those that the settings call special, nor, within a prompt, those that
the chat template spells.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import sentencepiece

from synpro_engine.config import UserError, partial_path
from synpro_engine.data.rows import Rows, rows_of
from synpro_engine.data.sentencepiece_pieces import (
    PLAIN,
    SPACE_MARK,
    literal,
    named_id,
    padding_id,
    piece_id,
    special_id,
)
from synpro_engine.data.sentencepiece_proto import unlike_llama, user_defined
from synpro_engine.data.special_tokens import EVERYWHERE, inside
from synpro_engine.data.tokenizer_files import SETTINGS, TokenizerFiles

_APART = "\x02"


class SentencePieceTokenizer:
    """A SentencePiece model behind the PublishedTokenizer protocol."""

    def __init__(self, model: bytes, eos_id: int, pad_id: int, files: TokenizerFiles | None = None) -> None:
        self._model = model
        self.files = files or TokenizerFiles(place=Path())
        self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.vocab_size = processor.get_piece_size()
        bos_id = named_id(processor, self.files, "bos_token", processor.bos_id()) if _wants_bos(self.files) else -1
        self.bos_id = bos_id if bos_id >= 0 else None
        self.end_ids = self.files.end_ids_below(self.vocab_size)
        ids = range(self.vocab_size)
        self._control = {processor.id_to_piece(id): id for id in filter(processor.is_control, ids)}
        unknown = frozenset(filter(processor.is_unknown, ids))
        mark = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        # A model without byte fallback has no way to tell the mark from a space; it keeps its own reading.
        self._mark_ids = mark if processor.unk_id() not in mark else None
        # Special by the settings' word alone: pieces that the library makes from text.
        extra = (piece_id(processor, token) for token in self.files.extra_tokens)
        named = {id for id in (eos_id, pad_id, self.bos_id, *extra) if id is not None}
        self._named = {literal(processor, id): id for id in sorted(named - unknown - {*self._control.values()})}
        letter = next((token for token in self._named if len(token) == 1), None)
        if letter is not None:
            raise UserError(f"{self.files.place}: {letter!r} {PLAIN}")
        self._forbidden = frozenset(self._named.values())
        # Unknown too, whose text in the library is a mark of its own that stood in no document.
        self._special = frozenset([*self._control.values(), *self._forbidden, *unknown])
        templates = "\0".join(self.files.chat_templates.values())
        symbols = user_defined(model) if templates or self._named else []
        self._symbols = {literal(processor, id): id for id in symbols}
        # One character is no mark of a turn, and may stand in a template's own expressions (`loop.index0`).
        spelt = {t: id for t, id in self._symbols.items() if len(t) > 1 and not t.isspace() and t in templates}
        self._in_prompts = spelt | self._named
        self.control_ids = frozenset([*self._control.values(), *self._in_prompts.values()])
        begin = "" if self.bos_id is None else f"|bos {self.bos_id}"
        more = "".join(f"|special {id}" for id in sorted(self._forbidden - {eos_id, pad_id, self.bos_id}))
        self.fingerprint = hashlib.sha256(model + f"|{eos_id}|{pad_id}{begin}{more}".encode()).hexdigest()

    @classmethod
    def from_file(cls, path: Path, *, eos: str | None = None, pad: str | None = None) -> Self:
        """Read a `*.model`; eos and pad are those named, else the settings', else the model's own.

        UserError when it is damaged or without eos.
        """
        model = path.read_bytes()
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise UserError(f"{path}: not a SentencePiece model") from None
        files = TokenizerFiles.read(path.parent, vocabularies=False)
        if eos is None:
            eos_id = named_id(processor, files, "eos_token", processor.eos_id())
        else:
            eos_id = special_id(processor, eos, str(path))
        if eos_id < 0:
            raise UserError(
                f"{path}: the model has no end-of-sentence token; write the one that ends documents as `eos_token`"
                f" into {SETTINGS} beside it"
            )
        pad_id = padding_id(processor, files) if pad is None else special_id(processor, pad, str(path))
        if files.settings:
            usual = {"eos_token": literal(processor, eos_id), "pad_token": None}
            usual |= {"pad_token": literal(processor, pad_id)} if pad_id >= 0 else {}
            files = files.naming(usual, {"eos_token": eos, "pad_token": pad})
        files.check_tokens(lambda token: piece_id(processor, token) is not None)
        files = files if eos is None else files.ending_with(eos_id)
        return cls(model, eos_id, pad_id if pad_id >= 0 else eos_id, files)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` (see the protocol)."""
        ids = self._read(text)
        return ids if self._forbidden.isdisjoint(ids) else self._cut(text)

    def encode_batch(self, texts: Sequence[str]) -> Rows:
        """Return the ids of each text, those of `encode`, encoded outside Python's lock."""
        rows = self._processor.encode(list(texts), num_threads=1)
        if self._mark_ids is not None:
            rows = [self.encode(t) if SPACE_MARK in t else row for t, row in zip(texts, rows, strict=True)]
        if self._forbidden:
            pairs = zip(texts, rows, strict=True)
            rows = [row if self._forbidden.isdisjoint(row) else self.encode(text) for text, row in pairs]
        return rows_of(rows)

    def _read(self, text: str, *, within: bool = False) -> list[int]:
        """The ids as the library reads the text; `within`: as it does what does not begin a document."""
        # The mark's own bytes stand for it; encoded as text, the library would give back a space.
        head, *rest = [text] if self._mark_ids is None else text.split(SPACE_MARK)
        ids = self._encode_within(head) if within else self._processor.encode(head)
        for part in rest:
            ids += [*(self._mark_ids or ()), *self._encode_within(part)]
        return ids

    def _cut(self, text: str) -> list[int]:
        """The ids of a text that spells a special token: cut inside that, and where this is not enough everywhere."""
        for cuts in (inside(self._named), EVERYWHERE):
            head, *rest = cuts.split(text)
            ids = self._read(head) + [id for part in rest for id in self._read(part, within=True)]
            if self._forbidden.isdisjoint(ids):
                return ids
        raise UserError(f"{self.files.place}: this tokenizer cannot keep text from becoming a special token")

    def _encode_within(self, text: str) -> list[int]:
        """The ids of a text that does not begin a document: without the space that some models put first."""
        if not (text and self._puts_a_space_first):
            return self._processor.encode(text)
        # Behind what joins no piece: a symbol, or a control character, which becomes a byte's token.
        apart = next((symbol for symbol in self._symbols if not symbol.isspace()), _APART)
        return self._processor.encode(apart + text)[len(self._processor.encode(apart)) :]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` (see the protocol)."""
        return self._processor.decode([int(id) for id in ids if id not in self._special])

    def spell(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens with it (see the protocol)."""
        runs = groupby(map(int, ids), key=lambda id: id in self._special)
        return "".join(
            "".join(map(self._processor.id_to_piece, run)) if special else self.decode(list(run))
            for special, run in runs
        )

    def special_id(self, literal: str) -> int | None:
        """Return the id of a special token (see the protocol)."""
        return self._control.get(literal, self._named.get(literal))

    @property
    def encoding(self) -> str:
        """Hash of what decides `encode` (see the protocol)."""
        kept_out = "".join(f"|special {id}" for id in sorted(self._forbidden))
        return hashlib.sha256(self._model + kept_out.encode()).hexdigest()

    @property
    def model_ids(self) -> dict[str, Any]:
        """Ids for a model's config.json (see the protocol); one that the model does not have is None."""
        begin = self._processor.bos_id() if self.bos_id is None else self.bos_id
        of_model = {"bos_token_id": begin, "pad_token_id": self._processor.pad_id()}
        ids: dict[str, Any] = {key: id if id >= 0 else None for key, id in of_model.items()}
        ids |= {"eos_token_id": self.eos_id} | ({} if self.pad_id == self.eos_id else {"pad_token_id": self.pad_id})
        return ids | self.files.model_ids_below(self.vocab_size)

    def encode_prompt(self, parts: Sequence[str]) -> list[int]:
        """Return the ids of a rendered prompt (see the protocol); UserError for a model that puts a space first."""
        if self._puts_a_space_first:
            raise UserError(
                f"{self.files.place}: tokenizer.model alone does not tell how chats are spaced; save this tokenizer"
                " with transformers (save_pretrained), which writes tokenizer.json, or choose `chat_format`: plain"
            )
        # What the template's own parts make is all that may be there; anything more would have come from a document.
        wanted = self._controls(id for part in parts[::2] for id in self._joined([part]))
        ids = self._joined(parts)
        if self._controls(ids) != wanted:  # spelt across a border
            ids = [id for number, part in enumerate(parts) for id in self._joined(["", part] if number % 2 else [part])]
        if self._controls(ids) != wanted:  # only after normalisation
            raise UserError(f"{self.files.place}: this tokenizer cannot keep text from becoming tokens of its chats")
        return ids

    def _controls(self, ids: Iterable[int]) -> list[int]:
        return [id for id in ids if id in self.control_ids]

    def _joined(self, parts: Sequence[str]) -> list[int]:
        """The ids of a template's parts and texts in turn.

        Only a template's are split at control tokens, and its symbols are left to the library, as models saw them.
        """
        control = re.compile(f"({'|'.join(map(re.escape, self._control)) or '(?!)'})")
        ids, chunks = list[int](), [""]
        for number, part in enumerate(parts):
            if number % 2:
                head, *rest = self._inside_prompts.split(part)
                chunks = [*chunks[:-1], chunks[-1] + head, *rest]
                continue
            for place, piece in enumerate(control.split(part)):
                if place % 2:
                    ids += [*self._together(chunks), self._control[piece]]
                    chunks = [""]
                else:
                    # Joined before it is encoded: pieces of a word cut at a border would get other ids.
                    chunks[-1] += piece
        return ids + self._together(chunks)

    def _together(self, chunks: Sequence[str]) -> list[int]:
        return [id for chunk in chunks for id in self._read(chunk)]

    @functools.cached_property
    def _inside_prompts(self) -> re.Pattern[str]:
        return inside(self._in_prompts)

    @property
    def _puts_a_space_first(self) -> bool:
        return self._processor.id_to_piece(self._processor.encode("a")[0]).startswith(SPACE_MARK)

    def save(self, directory: Path) -> Path:
        """Write `tokenizer.model`, and what lay beside it or else a tokenizer_config.json, into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "tokenizer.model"
        write_bytes(file, self._model)
        files = self.files if self.files.settings else replace(self.files, settings=self._settings())
        files.write(directory)
        return file

    @property
    def begins_texts(self) -> bool:
        """By the settings, which transformers heeds where there is no tokenizer.json (see the protocol)."""
        return self.bos_id is not None

    @property
    def unlike_transformers(self) -> str | None:
        """In what transformers will read text otherwise (see the protocol)."""
        # Other classes are made for other kinds; of what is published with them their publisher answers.
        usual = ("LlamaTokenizer", "CodeLlamaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
        if not str(self.files.settings.get("tokenizer_class", usual[0])).startswith(usual):
            return None
        return ", ".join(unlike_llama(self._model)) or None

    def _settings(self) -> dict[str, Any]:
        """What makes transformers read the model as it is, where it can: no space added, no token around a text."""
        ids = {"bos_token": self._processor.bos_id(), "eos_token": self.eos_id, "unk_token": self._processor.unk_id()}
        # The end stands in for padding where there is none, and is then not called it.
        ids["pad_token"] = -1 if self.pad_id == self.eos_id and self._processor.pad_id() < 0 else self.pad_id
        return {
            "tokenizer_class": "LlamaTokenizer",
            **{key: self._processor.id_to_piece(id) if id >= 0 else None for key, id in ids.items()},
            "add_prefix_space": self._puts_a_space_first,
            # transformers' older treatment of spaces behind special tokens gives other ids than the model has.
            "legacy": False,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
        }


def _wants_bos(files: TokenizerFiles) -> bool:
    """As the settings say; where they do not, as the classes of transformers that they may name do."""
    usual = str(files.settings.get("tokenizer_class")).startswith(("Llama", "CodeLlama", "Gemma"))
    return usual if files.adds_bos is None else files.adds_bos


def write_bytes(file: Path, data: bytes) -> None:
    """Write a model, whole or not at all."""
    aside = partial_path(file)
    aside.write_bytes(data)
    # By a rename, for a file half written would be a model of another vocabulary, or none.
    aside.replace(file)
