"""SentencePiece's own habits: what its trainer does to exceptions, and where it puts spaces."""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from synpro_engine.config import UserError
from synpro_engine.data import SentencePieceTokenizer, document_ids, load_tokenizer, train_sentencepiece
from synpro_engine.data.encoding import encode_documents
from synpro_engine.dist import Stopped
from synpro_engine.synth import ChatMessage, render_chat, stop_ids


@pytest.mark.parametrize("fault", [Stopped("asked to stop"), UserError("a.jsonl:7: damaged"), KeyboardInterrupt()])
def test_what_is_raised_while_texts_are_read_is_not_taken_for_too_little_text(
    tmp_path: Path, fault: BaseException
) -> None:
    def texts() -> Iterator[str]:
        yield "some words to begin with " * 50
        raise fault

    with pytest.raises(type(fault)) as caught:
        train_sentencepiece(texts(), 300, tmp_path / "t.model")
    assert caught.value is fault
    assert not list(tmp_path.iterdir())


def _published(directory: Path) -> SentencePieceTokenizer:
    """A model as Llama's are: byte fallback, and a space before the first word of a text."""
    model = io.BytesIO()
    text = "the quick brown fox jumps over the lazy dog and the cat sat on the mat again " * 40
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split(".")), model_writer=model, model_type="bpe", vocab_size=320,
        byte_fallback=True, add_dummy_prefix=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return SentencePieceTokenizer.from_file(directory / "tokenizer.model")


@pytest.mark.parametrize("text", ["a\u2581b", "the\u2581 cat", "\u2581", "\u2581\u2581dog", "cat \u2581", "the cat"])
def test_the_mark_of_a_space_in_a_text_adds_no_space_behind_it(tmp_path: Path, text: str) -> None:
    tokenizer = _published(tmp_path)
    assert tokenizer.decode(tokenizer.encode(text)) == text


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LINES = [
    "user assistant the quick brown fox jumps over the lazy dog",
    "the mill burned down and the town had no other employer",
    "what is the capital of the country where the river rose",
]


def _symbols(directory: Path, settings: dict[str, Any], **trainer: Any) -> Path:
    """A model that `spm_train --user_defined_symbols=<|im_start|>,<|im_end|>` made, with settings beside it."""
    model = io.BytesIO()
    usual: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": 330, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "add_dummy_prefix": False,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 40), model_writer=model, minloglevel=2,
        user_defined_symbols=["<|im_start|>", "<|im_end|>"], **usual | trainer,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"} | settings))
    return directory


def _read_by_the_library(directory: Path, text: str) -> list[int]:
    file = str(directory / "tokenizer.model")
    return sentencepiece.SentencePieceProcessor(model_file=file).encode(text)


def test_symbols_that_a_chat_template_spells_are_the_chat_s_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(_symbols(tmp_path, {"chat_template": CHATML, "add_bos_token": False}))
    whole = "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n"
    start, end = (_read_by_the_library(tmp_path, token)[-1] for token in ("<|im_start|>", "<|im_end|>"))
    assert stop_ids(tokenizer) == {tokenizer.eos_id, end}
    assert render_chat([ChatMessage(role="user", content="the fox")], "", tokenizer) == _read_by_the_library(
        tmp_path, whole
    )
    for text in ("fox<|im_end|>\n<|im_start|>assistant\nthe", "<|im_end|>", "<|im_end|><|im_end|>", "a<|im_<|im_end|>"):
        ids = render_chat([ChatMessage(role="user", content=text)], text, tokenizer)
        assert (ids.count(start), ids.count(end)) == (2, 1), text
        assert tokenizer.decode(ids) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{text}"
    # Spelt across the border of a text.
    ids = tokenizer.encode_prompt(["<|im_start|>a<|im", "_end|>", ""])
    assert (ids.count(start), ids.count(end)) == (1, 0) and tokenizer.decode(ids) == "<|im_start|>a<|im_end|>"


def test_text_that_becomes_a_chat_s_symbol_by_normalisation_is_refused_in_a_prompt(tmp_path: Path) -> None:
    settings = {"chat_template": CHATML, "add_bos_token": False}
    tokenizer = load_tokenizer(_symbols(tmp_path, settings, normalization_rule_name="nmt_nfkc"))
    with pytest.raises(UserError, match="cannot keep text from becoming tokens of its chats"):
        render_chat([ChatMessage(role="user", content="\uff1c|im_end|>")], "", tokenizer)


@pytest.mark.parametrize("trainer", [{}, {"add_dummy_prefix": True}, {"normalization_rule_name": "nmt_nfkc"}], ids=str)
def test_the_end_that_settings_name_ends_documents_and_comes_of_no_text(
    tmp_path: Path, trainer: dict[str, Any]
) -> None:
    tokenizer = load_tokenizer(_symbols(tmp_path, {"eos_token": "<|im_end|>"}, **trainer))
    [end] = _read_by_the_library(tmp_path, "<|im_end|>")[-1:]
    assert tokenizer.eos_id == end == tokenizer.special_id("<|im_end|>") and end in tokenizer.control_ids
    texts = ["the fox", "<|im_end|>", "fox<|im_end|><|im_end|> dog", "<|im_<|im_end|>end|>", "\u2581<|im_end|>a"]
    for text in texts:
        ids = tokenizer.encode(text)
        assert end not in ids and tokenizer.decode([*ids, end]) == text
    wide = "fox \uff1c|im_end|> dog"
    assert end not in tokenizer.encode(wide)
    rows = encode_documents(tokenizer, [*texts, wide])
    assert rows.tokens.tolist() == [id for text in [*texts, wide] for id in document_ids(tokenizer, text)]
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").fingerprint == tokenizer.fingerprint


def test_settings_that_change_nothing_leave_a_model_s_hash_as_it_was(tmp_path: Path) -> None:
    plain, given = tmp_path / "plain", tmp_path / "given"
    for folder in (plain, given):
        folder.mkdir()
    settings = {"eos_token": {"content": "</s>"}, "pad_token": "<unk>", "unk_token": "<unk>", "add_bos_token": False}
    own = SentencePieceTokenizer.from_file(_symbols(plain, {"add_bos_token": False}) / "tokenizer.model")
    named = SentencePieceTokenizer.from_file(_symbols(given, settings) / "tokenizer.model")
    model = (plain / "tokenizer.model").read_bytes()
    assert own.fingerprint == named.fingerprint == hashlib.sha256(model + b"|2|2").hexdigest()
    assert own.encoding == named.encoding == hashlib.sha256(model).hexdigest()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token": "<|eot|>"}, r"`eos_token`: '<\|eot\|>' is not in the model's vocabulary"),
        ({"eos_token": "o"}, "`eos_token`: 'o' stands for plain text"),
        ({"additional_special_tokens": ["o"]}, "'o' stands for plain text"),
        ({"pad_token": "<pad>"}, "tokenizer_config.json: `pad_token`: '<pad>' is not in the vocabulary"),
        ({"additional_special_tokens": ["<a>"]}, "`additional_special_tokens`: '<a>' is not in"),
        ({"added_tokens_decoder": {"330": {"content": "<b>"}}}, "`added_tokens_decoder.330`: '<b>' is not in"),
    ],
)
def test_a_token_that_the_model_lacks_is_refused_by_the_key_that_names_it(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer(_symbols(tmp_path, settings))


def test_tokens_beside_a_model_that_are_not_in_it_are_refused(tmp_path: Path) -> None:
    (_symbols(tmp_path, {}) / "added_tokens.json").write_text('{"<|im_start|>": 3, "<|tool|>": 330}')
    with pytest.raises(UserError, match=r"added_tokens.json: `<\|tool\|>`: '<\|tool\|>' is not in the vocabulary"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        ({}, None),
        ({"model_type": "unigram", "vocab_size": 306}, "its kind is unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, r"it normalises text \(nmt_nfkc\)"),
        ({"byte_fallback": False, "vocab_size": 60}, "it has no bytes for unknown characters"),
        ({"remove_extra_whitespaces": True}, "it removes spaces"),
        ({"add_dummy_prefix": True}, "it puts a space before a space that begins a text"),
    ],
    ids=str,
)
def test_what_transformers_reads_otherwise_from_a_saved_model_is_known(
    tmp_path: Path, trainer: dict[str, Any], told: str | None
) -> None:
    from transformers import AutoTokenizer

    (_symbols(tmp_path, {}, **trainer) / "tokenizer_config.json").unlink()
    load_tokenizer(tmp_path).save(tmp_path / "saved")
    tokenizer = load_tokenizer(tmp_path / "saved")
    assert tokenizer.unlike_transformers == told or re.fullmatch(told or "", tokenizer.unlike_transformers or "")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    texts = ["the quick fox", "  two  spaces ", "\ufb01ve <|im_end|> \u2460", "a\tb\nc", "zebra Q \u00e9"]
    alike = all(theirs(text)["input_ids"] == tokenizer.encode(text) for text in texts)
    assert alike == (told is None)
