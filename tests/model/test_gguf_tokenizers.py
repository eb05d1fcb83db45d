"""Tokenizers inside GGUF files of Llama 3 and Qwen give the ids that transformers gives."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from synpro_engine.config import UserError
from synpro_engine.data import load_tokenizer
from synpro_engine.model.gguf_tokenizer import write_tokenizer

TEXTS = (
    "It's 1871, and THEY'RE 12345 years old.", "  two  spaces\n\n\tand\r\n tabs ", "x=3.14159;//a_b",
    "\u00e9 e\u0301 \u6f22\u5b57 \U0001f600!?",
    "1234567890", " 'd don't 'S\n", "", " ", "\u0e44\u0e17\u0e22 \u0663\u0664\u0665 \u216b",
)  # fmt: skip


def _split(rule: str) -> Any:
    pattern = {"llama-bpe": TikTokenConverter().pattern}.get(rule)
    if pattern is None:
        return Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    own = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([own, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _trained(rule: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Words and merges of a small vocabulary that the published rule cuts."""
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _split(rule)
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<begin>", "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*TEXTS, "1871 1872 123 456 12 they're the old years"] * 20, trainer)
    found = tokenizer.get_vocab()
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    return sorted(found, key=found.__getitem__), merges


def _theirs(rule: str, words: list[str], merges: list[tuple[str, str]]) -> Any:
    vocab = {word: id for id, word in enumerate(words)}
    if rule == "qwen2":
        return Qwen2Tokenizer(vocab=vocab, merges=merges, unk_token=None, pad_token="<end>", eos_token="<end>")
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = _split(rule), decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("rule", ["llama-bpe", "qwen2"])
def test_a_published_splitting_rule_gives_transformers_ids(rule: str, tmp_path: Path) -> None:
    words, merges = _trained(rule)
    words.append(whole := "\u0120published")  # no merge leads here
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule, "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(words) - 2),
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
    }  # fmt: skip
    write_tokenizer(tmp_path / "x.gguf", metadata.get, tmp_path / "out")
    ours, theirs = load_tokenizer(tmp_path / "out"), _theirs(rule, words, merges)
    assert (words.index(whole) in ours.encode("a published word")) == (rule == "llama-bpe")
    for text in (*TEXTS, "a published word"):
        ids = theirs.encode(text)
        assert ours.encode(text) == list(getattr(ids, "ids", ids)), text
    assert ours.bos_id == (0 if rule == "llama-bpe" else None)  # a Llama 3 file need not say that texts begin with one


DAMAGED: dict[str, tuple[Any, str]] = {
    "tokens": ("many", "tokens` is no list of str, but 'many'"),
    "tokens of numbers": ([1, 2], r"tokens` is no list of str, but \[1, 2\]"),
    "merges": ([7], "merges` is no list of str"),
    "merges of one": (["a"], "merges` do not fit the tokens"),
    "merges of strangers": (["<no> <such>"], "merges` do not fit the tokens"),
    "token_type": ([3], "token_type` has 1 entries for 4 tokens"),
    "token_type of texts": (["3"] * 4, "token_type` is no list of int"),
    "eos_token_id": ("1", "eos_token_id` = '1' is not among 4 tokens"),
    "bos_token_id": (True, "bos_token_id` = True is not among 4 tokens"),
    "pre": (["gpt-2"], r"splitting rule \['gpt-2'\] is not supported"),
    "chat_template": (["x"], r"`tokenizer.chat_template` is no text, but \['x'\]"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_tokenizer_is_refused_in_one_line_that_names_the_key(tmp_path: Path, case: str) -> None:
    value, message = DAMAGED[case]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<b>", "<e>", "a", "b"], "tokenizer.ggml.merges": [],
        "tokenizer.ggml.token_type": [3, 3, 1, 1], "tokenizer.ggml.eos_token_id": 1,
    }  # fmt: skip
    write_tokenizer(tmp_path / "x.gguf", metadata.get, tmp_path / "out")
    key = case.split(" ")[0]
    metadata["tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}"] = value
    with pytest.raises(UserError, match=message) as error:
        write_tokenizer(tmp_path / "x.gguf", metadata.get, tmp_path / "out")
    assert str(error.value).startswith(str(tmp_path / "x.gguf")) and "\n" not in str(error.value)
