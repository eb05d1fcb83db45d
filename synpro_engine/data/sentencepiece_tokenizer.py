"""SentencePiece: training a byte-exact BPE vocabulary from text, and using any `*.model`.

Trained with the settings that make `decode(encode(text)) == text` true for every text of Unicode.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import sentencepiece

from synpro_engine.config import UserError, partial_path
from synpro_engine.data.rows import Rows, rows_of
from synpro_engine.data.tokenizer_files import TokenizerFiles

# SentencePiece writes spaces as this character, so the character itself would come back as a space.
_APART = "\x02"
_SPACE_MARK = "\u2581"
_LINE_CHARS = 4096
_SMALLEST = 300  # 256 bytes, three special tokens and some characters


class SentencePieceTokenizer:
    """A SentencePiece model behind the PublishedTokenizer protocol."""

    def __init__(self, model: bytes, eos_id: int, pad_id: int, files: TokenizerFiles | None = None) -> None:
        self._model = model
        self.files = files or TokenizerFiles(place=Path())
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.vocab_size = self._processor.get_piece_size()
        self.bos_id = self._processor.bos_id() if self._processor.bos_id() >= 0 and _wants_bos(self.files) else None
        self.end_ids = self.files.end_ids
        begin = "" if self.bos_id is None else f"|bos {self.bos_id}"
        self.fingerprint = hashlib.sha256(model + f"|{eos_id}|{pad_id}{begin}".encode()).hexdigest()
        control = [id for id in range(self.vocab_size) if self._processor.is_control(id)]
        # Unknown too, whose text in the library is a mark of its own that stood in no document.
        self._special = frozenset([*control, *filter(self._processor.is_unknown, range(self.vocab_size))])
        mark = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        # A model without byte fallback has no way to tell the mark from a space; it keeps its own reading.
        self._mark_ids = mark if self._processor.unk_id() not in mark else None
        self._control = {self._processor.id_to_piece(id): id for id in control}
        self.control_ids = frozenset(control)

    @classmethod
    def from_file(cls, path: Path, *, eos: str | None = None, pad: str | None = None) -> Self:
        """Read a `*.model`; eos and pad are the model's own unless named. UserError when damaged or without eos."""
        model = path.read_bytes()
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise UserError(f"{path}: not a SentencePiece model") from None
        eos_id = processor.eos_id() if eos is None else _control_id(processor, eos, path)
        pad_id = processor.pad_id() if pad is None else _control_id(processor, pad, path)
        if eos_id < 0:
            raise UserError(f"{path}: the model has no end-of-sentence token; name one that ends documents")
        files = TokenizerFiles.read(path.parent, vocabularies=False)
        if files.settings:
            usual = {"eos_token": processor.id_to_piece(eos_id), "pad_token": None}
            usual |= {"pad_token": processor.id_to_piece(pad_id)} if pad_id >= 0 else {}
            files = files.naming(usual, {"eos_token": eos, "pad_token": pad})
        return cls(model, eos_id, pad_id if pad_id >= 0 else eos_id, files)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` (see the protocol)."""
        if self._mark_ids is None:
            return self._processor.encode(text)
        # The mark's own bytes stand for it; encoded as text, the library would give back a space.
        head, *rest = text.split(_SPACE_MARK)
        ids = self._processor.encode(head)
        for part in rest:
            ids += self._mark_ids + self._encode_within(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> Rows:
        """Return the ids of each text, those of `encode`, encoded outside Python's lock."""
        rows = self._processor.encode(list(texts), num_threads=1)
        if self._mark_ids is not None:
            rows = [self.encode(t) if _SPACE_MARK in t else row for t, row in zip(texts, rows, strict=True)]
        return rows_of(rows)

    def _encode_within(self, text: str) -> list[int]:
        """The ids of a text that does not begin a document: without the space that some models put first."""
        if not (text and self._puts_a_space_first):
            return self._processor.encode(text)
        # Behind a control character, which becomes a byte's token and so joins no piece.
        return self._processor.encode(_APART + text)[len(self._processor.encode(_APART)) :]

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
        """Return the id of a control token (see the protocol)."""
        id = self._processor.piece_to_id(literal)
        return id if self._processor.is_control(id) else None

    @property
    def encoding(self) -> str:
        """Hash of what decides `encode` (see the protocol)."""
        return hashlib.sha256(self._model).hexdigest()

    @property
    def model_ids(self) -> dict[str, Any]:
        """Ids for a model's config.json (see the protocol); one that the model does not have is None."""
        of_model = {"bos_token_id": self._processor.bos_id(), "pad_token_id": self._processor.pad_id()}
        ids: dict[str, Any] = {key: id if id >= 0 else None for key, id in of_model.items()}
        ids |= {"eos_token_id": self.eos_id} | ({} if self.pad_id == self.eos_id else {"pad_token_id": self.pad_id})
        return ids | self.files.model_ids

    def encode_prompt(self, parts: Sequence[str]) -> list[int]:
        """Return the ids of a rendered prompt (see the protocol); UserError for a model that puts a space first."""
        if self._puts_a_space_first:
            raise UserError(
                f"{self.files.place}: tokenizer.model alone does not tell how chats are spaced; save this tokenizer"
                " with transformers (save_pretrained), which writes tokenizer.json, or choose `chat_format`: plain"
            )
        # Only a template's parts are split at tokens: in a document's text the same letters stay letters.
        tokens = re.compile(f"({'|'.join(map(re.escape, self._control))})")
        ids, text = [], ""
        for number, part in enumerate(parts):
            for place, piece in enumerate([part] if number % 2 else tokens.split(part)):
                if place % 2:
                    ids += [*self.encode(text), self._control[piece]]
                # Joined before it is encoded, as models saw it: pieces of a word cut at a border would get other ids.
                text = "" if place % 2 else text + piece
        return ids + self.encode(text)

    @property
    def _puts_a_space_first(self) -> bool:
        return self._processor.id_to_piece(self._processor.encode("a")[0]).startswith(_SPACE_MARK)

    def save(self, directory: Path) -> Path:
        """Write `tokenizer.model`, and what lay beside it or else a tokenizer_config.json, into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "tokenizer.model"
        _write_bytes(file, self._model)
        files = self.files if self.files.settings else replace(self.files, settings=self._settings())
        files.write(directory)
        return file

    def _settings(self) -> dict[str, Any]:
        """What makes transformers read the model as it is: no space added, no token before or after a text."""
        ids = {"bos_token": self._processor.bos_id(), "eos_token": self.eos_id, "unk_token": self._processor.unk_id()}
        ids["pad_token"] = self._processor.pad_id() if self.pad_id == self.eos_id else self.pad_id
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


def _control_id(processor: sentencepiece.SentencePieceProcessor, literal: str, path: Path) -> int:
    id = processor.piece_to_id(literal)
    if not processor.is_control(id):
        raise UserError(f"{path}: {literal!r} is not a control token of this model")
    return id


def _write_bytes(file: Path, data: bytes) -> None:
    aside = partial_path(file)
    aside.write_bytes(data)
    # By a rename, for a file half written would be a model of another vocabulary, or none.
    aside.replace(file)


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
    _write_bytes(path, model.getvalue())
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
