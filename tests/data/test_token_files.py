"""Corpora that come as tokens: Megatron's files as its own builder writes them, and flat files as OLMo's tools do."""

import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synpro_engine.cli.main import main
from synpro_engine.config import UserError
from synpro_engine.config.journal import Journal
from synpro_engine.cycle.external import fingerprint
from synpro_engine.cycle.run_layout import documents_path
from synpro_engine.cycle.sections import CorpusConfig, TokenizerConfig
from synpro_engine.cycle.settings import TokenizeSettings
from synpro_engine.cycle.steps.gather import token_batches
from synpro_engine.cycle.steps.intake import SPLITS, Intake
from synpro_engine.cycle.steps.stream import no_bar
from synpro_engine.cycle.steps.tokens import Tokens
from synpro_engine.data import (
    Document,
    SplitConfig,
    TokenFiles,
    check_ids,
    open_shards,
    read_documents,
    split_of,
    text_key,
    write_shards,
)
from synpro_engine.data.token_files import find_files
from tests.cli.refusals import refused


class Letters:
    """A tokenizer of `vocab_size` ids: id n is the character n + 31, and 0 ends documents."""

    eos_id = pad_id = 0
    bos_id = None
    end_ids = frozenset({0})

    def __init__(self, vocab_size: int = 100) -> None:
        self.vocab_size, self.fingerprint = vocab_size, f"letters {vocab_size}"

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 31 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(id + 31) for id in ids if id)

    def special_id(self, literal: str) -> int | None:
        raise AssertionError

    def save(self, directory: Path) -> Path:
        raise AssertionError


TEXTS = ["one text", "a second, longer text", "x", "the last"]


def _build(prefix: Path, dtype: Any, documents: list[list[list[int]]]) -> None:
    """Documents of sequences of ids, by Megatron's own builder."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for sequences in documents:
        builder.add_document(
            torch.tensor([id for sequence in sequences for id in sequence]), [len(sequence) for sequence in sequences]
        )
    builder.finalize(f"{prefix}.idx")


def _found(path: Path | list[Path], tokenizer: Letters | None = None) -> dict[str, list[int]]:
    paths = path if isinstance(path, list) else [path]
    return {d.id: d.ids.tolist() for d in TokenFiles([str(p) for p in paths], tokenizer or Letters())}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16])
@pytest.mark.parametrize("eos", [[], [0]], ids=["bare", "with end-of-document"])
def test_every_type_megatron_writes_is_read_with_its_documents(tmp_path: Path, dtype: Any, eos: list[int]) -> None:
    ids = [Letters().encode(text) for text in TEXTS]
    _build(tmp_path / "a_text_document", dtype, [[document + eos] for document in ids])
    for path in (tmp_path, tmp_path / "a_text_document", tmp_path / "a_text_document.bin"):
        assert _found(path) == {f"a_text_document:{number}": document for number, document in enumerate(ids)}


def test_a_document_of_several_sequences_is_one_and_an_empty_one_keeps_its_number(tmp_path: Path) -> None:
    _build(tmp_path / "a", np.int32, [[[5], [6, 7]], [[0]], [[8, 0]], [[0, 9]]])
    assert _found(tmp_path) == {"a:0": [5, 6, 7], "a:2": [8], "a:3": [0, 9]}


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "float32"), (np.float64, "float64")])
def test_numbers_that_are_no_ids_are_refused(tmp_path: Path, dtype: Any, name: str) -> None:
    _build(tmp_path / "a", dtype, [[[5, 6]]])
    with pytest.raises(UserError, match=rf"a\.idx: holds {name} numbers"):
        _found(tmp_path)
    np.save(tmp_path / "b.npy", np.array([5.0, 0.0]))
    with pytest.raises(UserError, match=r"b\.npy: holds float64"):
        _found(tmp_path / "b.npy")


def test_sub_folders_and_several_paths_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, name in enumerate(("b/tokens", "a/z/tokens", "a/tokens", "c")):
        _build(tmp_path / name, np.int32, [[[number + 5]]])
    np.array([50, 0], np.uint16).tofile(tmp_path / "a" / "part-0.npy")
    (tmp_path / "a" / "part-0.csv.gz").write_bytes(b"what OLMo writes beside it")
    whole = {"a/part-0:0": [50], "a/tokens:0": [7], "a/z/tokens:0": [6], "b/tokens:0": [5], "c:0": [8]}
    assert list(_found(tmp_path).items()) == list(whole.items())
    several = _found([tmp_path / "c", tmp_path / "a", tmp_path / "b" / "tokens"])
    assert several == whole  # the names do not depend on how they were given
    with pytest.raises(UserError, match=r"name each file once"):
        _found([tmp_path / "a", tmp_path / "a" / "tokens"])


def test_token_files_are_those_that_a_fingerprint_is_taken_of(tmp_path: Path) -> None:
    root, real = tmp_path / "corpus", tmp_path / "elsewhere"
    np.array([5, 0], np.uint16).tofile(_parent(real / "linked.npy"))
    np.array([6, 0], np.uint16).tofile(_parent(root / "a.npy"))
    (root / "link").symlink_to(real)
    before = fingerprint(str(root))
    for hidden in (root / ".ipynb_checkpoints" / "a.npy", root / "._a.npy", root / "_b" / "b.npy"):
        np.array([7, 0], np.uint16).tofile(_parent(hidden))
    (root / "up").symlink_to(root)
    assert _found(root) == {"a:0": [6], "link/linked:0": [5]}
    assert fingerprint(str(root)) == before
    assert TokenFiles([str(root)], Letters()).left_out == ("._a.npy", ".ipynb_checkpoints/", "_b/", "up/")
    several = TokenFiles([str(root / "a.npy"), str(real)], Letters(), [str(root)])
    assert several.left_out == ("._a.npy", ".ipynb_checkpoints/", "_b/", "up/")
    (real / "linked.npy").write_bytes(b"\5\0\1\0\0\0")
    assert fingerprint(str(root)) != before and len(_found(root)) == 2
    (real / "linked.npy").unlink()
    (root / "dead.npy").symlink_to(real / "linked.npy")
    with pytest.raises(UserError, match=r"dead\.npy: damaged or unreadable"):
        _found(root)


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _raw(dtype: Any) -> Callable[[Path, list[int]], None]:
    return lambda path, ids: np.array(ids, dtype).tofile(path)


def _saved(dtype: Any) -> Callable[[Path, list[int]], None]:
    def save(path: Path, ids: list[int]) -> None:
        with io.BytesIO() as buffer:
            np.save(buffer, np.array(ids, dtype))
            path.write_bytes(buffer.getvalue())

    return save


@pytest.mark.parametrize(
    ("write", "vocab_size"),
    [
        (_raw("<u2"), 100),
        (_raw("<u4"), 100),  # 32 bits although 16 would do
        (_raw("<u4"), 100_278),
        (_saved("<u2"), 100),
        (_saved("<u4"), 100_278),
        (_saved("<i8"), 100),
        (_saved(">i4"), 100),
        (_saved("|u1"), 100),
    ],
)
def test_flat_files_are_split_at_the_end_of_documents(
    tmp_path: Path, write: Callable[[Path, list[int]], None], vocab_size: int
) -> None:
    ids = [Letters().encode(text) for text in TEXTS]
    if vocab_size > 2**16:
        ids[1][3] = vocab_size - 1
    write(tmp_path / "part-00.npy", sum(([*document, 0] for document in ids), [0])[:-1])  # the last one is cut off
    assert _found(tmp_path, Letters(vocab_size)) == {f"part-00:{n + 1}": document for n, document in enumerate(ids)}


def test_a_flat_file_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    np.full(100, 7, np.uint16).tofile(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"a\.npy: holds no end-of-document token \(id 0\)"):
        _found(tmp_path)


@pytest.mark.parametrize("id", [100, -1])
def test_an_id_that_is_not_the_tokenizers_names_file_and_document(tmp_path: Path, id: int) -> None:
    _build(tmp_path / "s" / "a", np.int32, [[[5, 6]], [[7, id, 8]]])
    with pytest.raises(UserError, match=rf"s/a\.idx: document 1: id {id} is none of the 100"):
        for document in TokenFiles([str(tmp_path)], Letters()):
            check_ids(document, Letters())


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    def broken(name: str, change: Callable[[bytes], bytes], message: str) -> None:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(change(whole))
        with pytest.raises(UserError, match=message) as caught:
            _found(tmp_path)
        assert "\n" not in str(caught.value)
        (tmp_path / name).write_bytes(whole)

    _build(tmp_path / "a", np.int32, [[[5, 6], [7]], [[8]]])
    np.save(tmp_path / "b.npy", np.array([5, 0]))
    np.array([5, 0], np.uint16).tofile(tmp_path / "c.npy")
    broken("a.bin", lambda data: data[:-4], r"a\.idx: its sequences are not those of .*a\.bin")
    broken("a.bin", lambda data: data[:-1], r"a\.bin: damaged or cut short")
    broken("a.idx", lambda data: data[:-8], r"a\.idx: damaged or cut short")
    broken("a.idx", lambda data: data[:20], r"a\.idx: cut short")
    broken("a.idx", lambda data: b"", r"a\.idx: cut short")
    broken("a.idx", lambda data: b"x" + data[1:], r"a\.idx: not an index")
    broken("a.idx", lambda data: data[:17] + b"\x09" + data[18:], r"a\.idx: unknown type 9")
    for place in range(34, (tmp_path / "a.idx").stat().st_size):  # every byte of lengths, pointers and documents
        flip = lambda data, at=place: data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]  # noqa: E731
        broken("a.idx", flip, r"a\.idx: its sequences")
    broken("b.npy", lambda data: data[:40], r"b\.npy: damaged")
    broken("b.npy", lambda data: data[:-3], r"b\.npy: damaged")
    broken("c.npy", lambda data: data[:-1], r"c\.npy: damaged or cut short")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(UserError, match=r"a\.idx: a\.bin is missing"):
        _found(tmp_path)
    for path in (tmp_path / "nothing", tmp_path / "x.npy"):
        with pytest.raises(UserError, match="no token files there"):
            find_files([str(path)])


def _copied(into: Path, shards: Path, shares: SplitConfig, *, drop: bool) -> dict[str, list[Document]]:
    """What one pass over token files writes, by split."""
    source = TokenFiles([str(shards)], Letters())
    corpus = CorpusConfig(shards=str(shards), split=shares, deduplicate="exact" if drop else "none")
    settings = TokenizeSettings(corpus=corpus, tokenizer=TokenizerConfig(threads=2), vocab_size=100, seed=3)
    tokens = Tokens(into, into / "work", settings, no_bar)

    def batches(sinks: Any, journal: Journal, on_bytes: Any) -> Any:
        intake = Intake(journal, into, into / "work", corpus, 3)
        return token_batches(source, Letters(), 2, intake, sinks, on_bytes)

    read = tokens.read(Letters(), source.bytes, batches)
    tokens.finish(Letters(), read["text_bytes"])
    found = {split: list(read_documents(documents_path(into, split))) for split in SPLITS}
    assert {split: len(its) for split, its in found.items()} == read["account"]["documents"]
    return found


def test_copied_shards_hold_the_ids_and_the_texts(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(40)]
    ids = {f"a:{number}": Letters().encode(text) for number, text in enumerate(texts)}
    _build(tmp_path / "in" / "a", np.int64, [[[*document, 0]] for document in ids.values()])
    found = _copied(tmp_path, tmp_path / "in", SplitConfig(train=0.4, reference=0.3, validation=0.3), drop=True)
    spelt = {document.id: document.text for document in itertools.chain(*found.values())}
    assert spelt == dict(zip(ids, texts, strict=True))
    for split, documents in found.items():
        copied = open_shards(tmp_path / "shards" / split)
        assert write_shards(documents, Letters(), tmp_path / "text" / split).tokens == copied.num_tokens
        made = open_shards(tmp_path / "text" / split)
        assert np.array_equal(made.tokens, copied.tokens) and np.array_equal(made.offsets, copied.offsets)
        assert [copied.document_id(n) for n in range(copied.num_documents)] == [d.id for d in documents]


@pytest.mark.parametrize("drop", [True, False])
def test_texts_of_shards_are_placed_counted_and_listed_as_those_of_documents_are(tmp_path: Path, drop: bool) -> None:
    texts = [f"text {n} of some" for n in range(40)]
    spelt = [*texts, "   ", *(f"{text}  " for text in texts[:9])]  # the same but for white space
    _build(tmp_path / "in" / "sub" / "a", np.uint16, [[[*Letters().encode(text), 0]] for text in spelt])
    shares = SplitConfig(train=0.4, reference=0.3, validation=0.3)
    found = _copied(tmp_path, tmp_path / "in", shares, drop=drop)
    for split, its in found.items():
        assert all(split_of(text_key(document.text), shares, 3) == split for document in its)
    copied = sorted(document.text for document in itertools.chain(*found.values()))
    assert copied == sorted(texts if drop else [*texts, *spelt[41:]])
    listed = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert [(bad["file"], bad["line"]) for bad in listed] == [("sub/a.idx", n) for n in range(40, 50 if drop else 41)]
    assert [bad["reason"] for bad in listed] == ["empty", *(["repeated text"] * 9 if drop else [])]


def test_a_run_takes_shards_in_place_of_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["tokenize", "smoke", "--dir", str(first)]) == 0
    shards = f"corpus.shards={first / 'tokenize' / 'shards'}"
    tokenizer = f"tokenizer.path={first / 'tokenize' / 'tokenizer'}"
    assert "`tokenizer.path`: is missing" in refused(capsys, "tokenize", "smoke", shards, "--dir", str(second))
    split = "corpus.split={train: 0.5, reference: 0.25, validation: 0.25}"
    assert main(["pretrain", "smoke", shards, tokenizer, split, "pretrain.max_steps=2", "--dir", str(second)]) == 0
    held = {
        split: {d.text for d in read_documents(second / "tokenize" / "documents" / f"{split}.jsonl.zst")}
        for split in ("train", "reference", "validation")
    }
    assert all(held.values()) and not held["train"] & held["validation"] and not held["train"] & held["reference"]
    organic = {
        document.text
        for split in held
        for document in read_documents(first / "tokenize" / "documents" / f"{split}.jsonl.zst")
    }
    assert set().union(*held.values()) <= organic
    train = open_shards(second / "tokenize" / "shards" / "train")
    assert train.num_tokens <= 20_000 and train.document_id(0).startswith(
        ("train/tokens:", "reference/", "validation/")
    )


@pytest.mark.slow
def test_a_whole_cycle_runs_from_token_ids_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["tokenize", "smoke", "--dir", str(first)]) == 0
    ids = np.fromfile(first / "tokenize" / "shards" / "train" / "tokens.bin", np.uint16)
    (tmp_path / "flat").mkdir()
    ids.astype(np.uint32).tofile(tmp_path / "flat" / "part-0.npy")
    settings = [f"corpus.shards={tmp_path / 'flat'}", f"tokenizer.path={first / 'tokenize' / 'tokenizer'}"]
    settings += ["corpus.split={train: 0.5, reference: 0.25, validation: 0.25}", "pretrain.max_steps=10"]
    settings += ["generate.max_slices=6", "continued.steps=4", "continued.synthetic_epochs=6.0"]
    assert main(["run", "smoke", *settings, "--dir", str(second)]) == 0
    assert str(tmp_path / "flat") in (second / "report.html").read_text()
    assert (second / "evaluate" / "results.json").exists()
