"""The text of a tokenizer.json, read and rewritten where the `tokenizers` library has no call for it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Set
from typing import Any

import tokenizers

from synpro_engine.config import json_text


@functools.lru_cache(maxsize=1)  # asked for twice by each that is loaded, and takes half a second
def vocabulary_of(source: str) -> dict[str, int]:
    """Words and added tokens with their ids."""
    return tokenizers.Tokenizer.from_str(source).get_vocab(with_added_tokens=True)


def bare(source: str) -> tokenizers.Tokenizer:
    """Without the cutting and padding that a file may ask for (sentence-embedding models' do)."""
    tokenizer = tokenizers.Tokenizer.from_str(source)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_before_texts(data: Mapping[str, Any]) -> str | None:
    """The token that the post-processor puts before a text, the first one of several; None where it puts none there."""
    # The post-processor alone, with a vocabulary of one word: a text that every file has an id for, and quick to read.
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    found = tokenizers.Tokenizer.from_str(
        json_text({"post_processor": data.get("post_processor"), "added_tokens": [], "model": model})
    ).encode("a")
    return found.tokens[0] if found.sequence_ids[0] is None else None


def words(data: Mapping[str, Any]) -> set[str]:
    """The vocabulary without added tokens: a mapping to ids, or Unigram's list of words with scores."""
    return {word if isinstance(word, str) else word[0] for word in data["model"]["vocab"]}


def within_texts(source: str) -> str:
    """The tokenizer for what does not begin a text: without the space that some put first."""
    data = json.loads(source)
    data |= {key: _within_text(data.get(key)) for key in ("normalizer", "pre_tokenizer")}
    return json_text(data, ensure_ascii=False)


def _within_text(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer, as tokenizer.json has it, without what puts a space at the head of a text."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        key = "normalizers" if "normalizers" in part else "pretokenizers"
        return part | {key: [kept for each in part[key] if (kept := _within_text(each)) is not None]}
    never = {"prepend_scheme": "never", "add_prefix_space": False}
    return part | {key: value for key, value in never.items() if key in part}


def with_special(data: dict[str, Any], vocabulary: Mapping[str, int], tokens: Iterable[str], letters: Set[str]) -> str:
    """Mark `tokens` as special, whatever the file says: one that is not would be made from text.

    `letters` become words like others.
    """
    listed = data.get("added_tokens") or []
    added = {entry["content"]: dict(entry) for entry in listed if entry["content"] not in letters}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for token in tokens:
        added.setdefault(token, {"id": vocabulary[token], "content": token, **plain})["special"] = True
    marked = data | {"added_tokens": sorted(added.values(), key=lambda entry: entry["id"])}
    return json_text(marked, ensure_ascii=False)


def unknown_id(tokenizer: tokenizers.Tokenizer) -> int | None:
    """The id for what the vocabulary cannot spell: special, and yet a proper part of a text's ids."""
    model: Any = tokenizer.model
    if isinstance(model, tokenizers.models.Unigram):
        # The library's Unigram keeps this number to itself, and gives it only where it is written out.
        return json.loads(tokenizer.to_str())["model"]["unk_id"]
    return tokenizer.token_to_id(model.unk_token) if model.unk_token else None
