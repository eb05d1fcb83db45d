"""What is published beside a tokenizer: its settings, chat templates and generation settings, kept as they came.

Nothing found here is run: code that a file asks for (`auto_map`) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, atomic_write_text, json_text

SETTINGS, GENERATION = "tokenizer_config.json", "generation_config.json"
_TOKENS, _TEMPLATE, _TEMPLATES = "special_tokens_map.json", "chat_template.jinja", "additional_chat_templates"
# Other forms of a vocabulary that tokenizer.json holds too: converters to other formats ask for them.
_ADDED = "added_tokens.json"
_VOCABULARIES = (_ADDED, "vocab.json", "merges.txt", "tokenizer.model")
_END, _IDS = "eos_token_id", ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """The files beside a tokenizer. `settings`, `tokens` and `generation` are JSON objects, empty where not there."""

    place: Path
    """The directory they lie in, for messages."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    """Chat templates that are files, by their names relative to the directory."""
    vocabularies: Mapping[str, bytes] = field(default_factory=dict)
    added: Mapping[str, Any] = field(default_factory=dict)
    """Tokens that added_tokens.json puts behind a vocabulary, with their ids."""

    @classmethod
    def read(cls, directory: Path, *, vocabularies: bool = True) -> TokenizerFiles:
        """Read what there is; without `vocabularies` those stay. UserError names the file that is damaged."""
        # By name, for a glob's order is the file system's.
        templates = [directory / _TEMPLATE, *sorted((directory / _TEMPLATES).glob("*.jinja"))]
        carried = [directory / name for name in _VOCABULARIES if vocabularies]
        settings = _read_object(directory / SETTINGS)
        settings.pop("auto_map", None)  # names Python files, which are not carried along
        generation = _read_object(directory / GENERATION)
        model = {} if generation else _read_object(directory / "config.json")
        # Else the config.json is of something else, such as a run of ours.
        if "model_type" in model:  # transformers takes these where there are no generation settings
            ids = {key: model[key] for key in _IDS if model.get(key) is not None}
            generation = {"_from_model_config": True, **ids} if ids else {}
        return cls(
            place=directory,
            settings=settings,
            tokens=_read_object(directory / _TOKENS),
            generation=generation,
            templates={str(file.relative_to(directory)): read_text(file) for file in templates if file.is_file()},
            vocabularies={file.name: file.read_bytes() for file in carried if file.is_file()},
            added=_read_object(directory / _ADDED),
        )

    def write(self, directory: Path) -> None:
        """Write them all into `directory`."""
        objects = {SETTINGS: self.settings, _TOKENS: self.tokens, GENERATION: self.generation}
        for name, content in objects.items():
            if content:
                atomic_write_text(directory / name, json_text(content, ensure_ascii=False, indent=2) + "\n")
        for name, text in self.templates.items():
            (directory / name).parent.mkdir(exist_ok=True)
            atomic_write_text(directory / name, text)
        for name, data in self.vocabularies.items():
            (directory / name).write_bytes(data)

    def naming(self, usual: Mapping[str, str | None], chosen: Mapping[str, str | None]) -> TokenizerFiles:
        """The same with tokens (`eos_token`, ...) named: the `chosen` ones, and the `usual` where no file names one."""
        # Without a class transformers guesses by the model's type, and may put another
        # pre-tokenizer in place of the file's.
        settings, tokens = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}, dict(self.tokens)
        for key, token in usual.items():
            if name := chosen.get(key) or (token if self.token(key) is None else None):
                settings[key] = name
                tokens |= {key: name} if key in tokens else {}
        return replace(self, settings=settings, tokens=tokens)

    def ending_with(self, id: int) -> TokenizerFiles:
        """The same with `id` among those that end an answer, where there are generation settings."""
        if not self.generation or id in self.end_ids:
            return self
        ends = [id, *sorted(self.end_ids)]
        return replace(self, generation={**self.generation, _END: ends if len(ends) > 1 else id})

    def check_tokens(self, known: Callable[[str], bool]) -> None:
        """UserError for the first token that a file names and the vocabulary lacks.

        transformers would add it behind the vocabulary's end; here its letters would be read as plain text.
        """
        for file, key, token in self._named():
            if not known(token):
                raise UserError(
                    f"{self.place / file}: `{key}`: {token!r} is not in the vocabulary; save the tokenizer with"
                    " transformers (save_pretrained), which puts it into tokenizer.json"
                )

    def _named(self) -> Iterator[tuple[str, str, str]]:
        """File, key and text of tokens."""
        for key in ("bos_token", "eos_token", "pad_token"):
            token = self.token(key)
            if token is not None:
                yield SETTINGS if _content(self.settings.get(key)) else _TOKENS, key, token
        yield from self._listed()
        decoder = self.settings.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise UserError(f"{self.place / SETTINGS}: `added_tokens_decoder` must be an object")
        yield from ((SETTINGS, f"added_tokens_decoder.{id}", str(_content(token))) for id, token in decoder.items())
        yield from ((_ADDED, token, token) for token in self.added)

    def token(self, key: str) -> str | None:
        """The text of the token that `key` (`eos_token`, ...) names; UserError where it is no text."""
        for name, content in ((SETTINGS, self.settings), (_TOKENS, self.tokens)):
            value = _content(content.get(key))
            if value is not None and not isinstance(value, str):
                raise UserError(f"{self.place / name}: `{key}` must be a string")
            if value:
                return value
        return None

    @property
    def extra_tokens(self) -> list[str]:
        """The tokens that are listed as special besides the named ones."""
        return [token for _, _, token in self._listed()]

    def _listed(self) -> Iterator[tuple[str, str, str]]:
        for file, content in ((SETTINGS, self.settings), (_TOKENS, self.tokens)):
            for key in ("additional_special_tokens", "extra_special_tokens"):
                value = content.get(key)
                listed = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
                yield from ((file, key, token) for token in map(_content, listed) if isinstance(token, str))

    @property
    def template_variables(self) -> dict[str, str]:
        """The named special tokens, as chat templates use them (`bos_token`, ...)."""
        keys = [key for content in (self.tokens, self.settings) for key in content if key.endswith("_token")]
        texts = {key: _content(self.settings.get(key)) or _content(self.tokens.get(key)) for key in keys}
        return {key: value for key, value in texts.items() if isinstance(value, str)}

    @property
    def chat_templates(self) -> dict[str, str]:
        """The templates by name; files go before the settings' entry. UserError for an entry that is none."""
        # As in transformers, where a file goes before the settings' entry.
        if self.templates:
            return {"default" if name == _TEMPLATE else Path(name).stem: text for name, text in self.templates.items()}
        entry = self.settings.get("chat_template")
        if entry is None or isinstance(entry, str):
            return {"default": entry} if entry else {}
        try:
            named = {each["name"]: each["template"] for each in entry}
        except (TypeError, KeyError):
            named = {}
        if not named or not all(isinstance(text, str) for pair in named.items() for text in pair):
            raise UserError(f"{self.place / SETTINGS}: `chat_template` must be text or a list of named templates")
        return named

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer by the generation settings; UserError where they are no ids."""
        value = self.generation.get(_END)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        # Exact type, since true is an int to Python and would end answers at id 1.
        if not all(type(id) is int and id >= 0 for id in ids):
            raise UserError(f"{self.place / GENERATION}: `{_END}` must be an id or a list of ids")
        return frozenset(ids)

    def end_ids_below(self, vocab_size: int) -> frozenset[int]:
        """`end_ids`; UserError for one that a vocabulary of this size does not have."""
        beyond = sorted(id for id in self.end_ids if id >= vocab_size)
        if beyond:
            raise UserError(
                f"{self.place}: `{_END}` {beyond[0]} of the generation settings is not among the tokenizer's"
                f" {vocab_size} ids"
            )
        return self.end_ids

    def model_ids_below(self, vocab_size: int) -> dict[str, Any]:
        """`bos_token_id`, `eos_token_id` and `pad_token_id` of the generation settings, those there are.

        Without ids that a vocabulary of this size does not have: transformers would open no model that states them.
        """
        found = {key: self.generation[key] for key in _IDS if key in self.generation}
        return {key: id for key, id in found.items() if type(id) is not int or 0 <= id < vocab_size}

    @property
    def adds_bos(self) -> bool | None:
        """Whether the settings put a begin-of-text token before each text; None where they do not say."""
        value = self.settings.get("add_bos_token")
        return value if isinstance(value, bool) else None


def read_text(path: Path) -> str:
    """A file's text; UserError when it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def _content(value: Any) -> Any:
    """Tokens stand in these files as text or as an object with flags."""
    return value.get("content") if isinstance(value, dict) else value
