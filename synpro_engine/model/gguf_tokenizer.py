"""The tokenizer inside a GGUF file, as the files that `data.load_tokenizer` and transformers read.

Byte-level BPE with a splitting rule that is known by name; any other is refused, for a wrong split gives wrong ids
without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from synpro_engine.config import UserError, atomic_write_text, brief, first_line, json_text

_PREFIX = "tokenizer.ggml."
# Our names for the special tokens, and the file's; `eot` ends a turn of a chat.
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot"}
_CONTROL, _USER_DEFINED = 3, 4
# How text is cut into words, by the file's name for it; between the two published patterns lie the digits of a word.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: dict[str, list[Any]] = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "llama-bpe": [pre_tokenizers.Split(Regex(_WORDS % "{1,3}"), behavior="isolated")],
    "qwen2": [pre_tokenizers.Split(Regex(_WORDS % ""), behavior="isolated")],
}

Metadata = Callable[[str], Any]
T = TypeVar("T")


def write_tokenizer(path: Path, find: Metadata, directory: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` into `directory`.

    `find` gives the metadata of the GGUF file at `path` by key, None where there is none.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokens = _list_of(str, path, find, "tokens")
    ids = {key: find(f"{_PREFIX}{name}_token_id") for key, name in _NAMED.items()}
    # Without it nothing ends a document, and an id guessed by name may be the end of a chat's turn.
    _need(path, find, "eos_token_id")
    for key, id in ids.items():
        if id is not None and not (type(id) is int and 0 <= id < len(tokens)):
            told = f"`{_PREFIX}{_NAMED[key]}_token_id` = {brief(id)}"
            raise UserError(f"{path}: {told} is not among {len(tokens)} tokens")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    # `eot` has no name among transformers' tokens; it reaches samplers through the generation settings below.
    settings |= {f"{key}_token": tokens[id] for key, id in ids.items() if id is not None and key != "eot"}
    settings["add_bos_token"] = _begins_texts(find)
    template = find("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise UserError(f"{path}: `tokenizer.chat_template` is no text, but {brief(template)}")
    settings |= {"chat_template": template} if template else {}
    ends = sorted({ids[key] for key in ("eos", "eot") if ids[key] is not None})
    generation = {f"{key}_token_id": ids[key] for key in ("bos", "pad")} | {
        "eos_token_id": ends if len(ends) > 1 else ends[0]
    }
    atomic_write_text(directory / "tokenizer.json", build_tokenizer(path, find).to_str())
    for name, content in (("tokenizer_config", settings), ("generation_config", generation)):
        atomic_write_text(directory / f"{name}.json", json_text(content, ensure_ascii=False, indent=2) + "\n")


def build_tokenizer(path: Path, find: Metadata) -> Tokenizer:
    """The byte-level BPE tokenizer in the metadata; UserError for another kind."""
    kind, rule = _need(path, find, "model"), find(f"{_PREFIX}pre")
    if kind != "gpt2" or not isinstance(rule, str) or rule not in _SPLITS:
        raise UserError(
            f"{path}: tokenizer {brief(kind)} with splitting rule {brief(rule)} is not supported (those are gpt2 with "
            f"{', '.join(_SPLITS)}); take the model's Hugging Face directory"
        )
    tokens, kinds = _list_of(str, path, find, "tokens"), _list_of(int, path, find, "token_type")
    if len(kinds) != len(tokens):
        raise UserError(f"{path}: `{_PREFIX}token_type` has {len(kinds)} entries for {len(tokens)} tokens")
    tokenizer: Any = Tokenizer(_bpe(path, find, tokens, whole=rule == "llama-bpe"))
    # Qwen's published tokenizers normalise to NFC, which GGUF has no field for: the rule's name stands for it.
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    # The library's built-in pattern is GPT-2's; where another has cut the text already, it must not cut again.
    by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule in ("gpt-2", "smollm"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_SPLITS[rule], by_byte])
    tokenizer.decoder = decoders.ByteLevel()
    bos_id = find(f"{_PREFIX}bos_token_id")
    if _begins_texts(find) and bos_id is not None:
        bos = (tokens[bos_id], bos_id)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    for word, kind_of_token in zip(tokens, kinds, strict=True):
        if kind_of_token in (_CONTROL, _USER_DEFINED):
            # `normalized` off: a token is looked for in the text as it stands, before NFC.
            tokenizer.add_tokens([AddedToken(word, special=kind_of_token == _CONTROL, normalized=False)])
    return tokenizer


def _bpe(path: Path, find: Metadata, tokens: list[str], *, whole: bool) -> Any:
    merges: list[Any] = [tuple(merge.split(" ", 1)) for merge in _list_of(str, path, find, "merges")]
    # Llama 3 takes a word that is a token whole, though its merges may not lead there.
    settings = {"ignore_merges": True} if whole else {}
    try:
        return models.BPE(vocab={word: id for id, word in enumerate(tokens)}, merges=merges, **settings)
    except Exception as error:  # the library raises bare Exception, and TypeError for a merge of one word
        raise UserError(f"{path}: `{_PREFIX}merges` do not fit the tokens ({first_line(error)})") from None


def _list_of(kind: type[T], path: Path, find: Metadata, key: str) -> list[T]:
    value = _need(path, find, key)
    if not isinstance(value, list) or not all(type(entry) is kind for entry in value):
        raise UserError(f"{path}: `{_PREFIX}{key}` is no list of {kind.__name__}, but {brief(value)}")
    return value


def _begins_texts(find: Metadata) -> bool:
    """Whether a begin-of-text token stands before each text: llama.cpp's rule where a Llama 3 file does not say."""
    add_bos = find(f"{_PREFIX}add_bos_token")
    return find(f"{_PREFIX}pre") == "llama-bpe" if add_bos is None else bool(add_bos)


def _need(path: Path, find: Metadata, key: str) -> Any:
    value = find(_PREFIX + key)
    if value is None:
        raise UserError(f"{path}: `{_PREFIX}{key}` is missing")
    return value
