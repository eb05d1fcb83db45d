"""A corpus in a store is the corpus that it is on a disk: the same documents, ids, order and fingerprint."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from synpro_engine.config import UserError
from synpro_engine.cycle.external import fingerprint, is_missing, is_put_away
from synpro_engine.data import ReadConfig, TokenFiles, find_source, read_documents, streamed_tokens, token_files
from synpro_engine.data.records import Place, read_records
from synpro_engine.storage import faults, reading
from synpro_engine.storage.opening import store_of
from tests.data.test_token_files import Letters, _build
from tests.s3 import Bucket, Fault, moto, s3  # noqa: F401

TEXTS = [f"document number {number} of them" for number in range(60)]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of all kinds, hidden ones among them."""
    corpus = tmp_path / "corpus"
    (corpus / "B" / "deep").mkdir(parents=True)
    (corpus / "_temporary").mkdir()
    (corpus / "b.jsonl").write_bytes(lines(TEXTS[:10]))
    (corpus / "a.jsonl.zst").write_bytes(zstandard.compress(lines(TEXTS[10:20])))
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[20:40], "n": range(20)}), corpus / "B" / "t.parquet")
    table = pyarrow.table({"text": TEXTS[40:60]})
    with pyarrow.OSFile(str(corpus / "B" / "deep" / "d.arrow"), "wb") as file:
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    (corpus / "README.md").write_text("read me")
    (corpus / "_SUCCESS").touch()
    (corpus / "_temporary" / "x.jsonl").write_bytes(lines(["half"]))
    return corpus


def test_a_prefix_is_read_as_the_folder_that_it_was_copied_from(s3: Bucket, folder: Path) -> None:  # noqa: F811
    address = s3.put_tree(folder, "some/corpus")
    s3.put("some/corpus/B/", b"")  # as consoles mark a folder
    here, there = find_source(folder), find_source(address + "/")
    assert list(read_documents(there)) == list(read_documents(here)) and len(list(read_documents(there))) == 60
    assert there.left_out == here.left_out == ("README.md", "_SUCCESS", "_temporary/")
    assert fingerprint(address) == fingerprint(str(folder))
    assert fingerprint(f"{address}/B/t.parquet") == fingerprint(str(folder / "B" / "t.parquet"))


@pytest.mark.parametrize(
    "pattern",
    [
        *("*.jsonl", "**/*.parquet", "**/*.{parquet,arrow}", "B/**", "*.nothing", "{b,b}.jsonl", "{b,nothing}.jsonl"),
        *("{no,nothing}.jsonl", "{a.jsonl.zst,_SUCCESS}", "{B/t.parquet,b.jsonl}"),
    ],
)
def test_a_pattern_matches_the_same_files_in_a_store_and_on_a_disk(
    s3: Bucket,  # noqa: F811
    folder: Path,
    pattern: str,
) -> None:
    address = s3.put_tree(folder, "p")
    found: list[object] = []
    for root in (str(folder), address):
        try:
            found.append([(d.id, d.text) for d in read_documents(f"{root}/{pattern}")])
            assert fingerprint(f"{root}/{pattern}") == fingerprint(f"{folder}/{pattern}")
        except UserError as fault:
            found.append(str(fault).replace(root, ""))
    assert found[0] == found[1]


def test_of_what_is_in_a_store_only_what_is_asked_for_is_fetched(s3: Bucket, tmp_path: Path) -> None:  # noqa: F811
    wide = pyarrow.table({"text": TEXTS, "other": [text * 5_000 for text in TEXTS]})
    pyarrow.parquet.write_table(wide, tmp_path / "x.parquet", compression="none", use_dictionary=False)
    size = (tmp_path / "x.parquet").stat().st_size
    address = s3.put("x.parquet", (tmp_path / "x.parquet").read_bytes())
    with s3.faults(lambda request: None) as seen:
        assert [d.text for d in read_documents(address)] == TEXTS
    asked = [one.headers["range"].removeprefix("bytes=").split("-") for one in seen if "range" in one.headers]
    assert sum(int(last) - int(first) + 1 for first, last in asked) < size // 10


def test_reading_goes_on_behind_a_place_and_fetches_no_file_before_it(s3: Bucket, folder: Path) -> None:  # noqa: F811
    source = find_source(s3.put_tree(folder, "p"))
    place = Place(3, 4)
    with s3.faults(lambda request: None) as seen:
        rest = [record.line for record in read_records(source, ("text",), place=place)]
    assert rest == [5, 6, 7, 8, 9, 10] and place == Place(3, 10)
    assert {one.path.rpartition("/")[2] for one in seen} == {"b.jsonl"}


def test_memory_does_not_grow_with_a_file(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(reading, "BLOCK", 1 << 20)
    text = "x" * 2000
    address = s3.put("x.jsonl", lines([f"{number} {text}" for number in range(8_000)]))  # 16 MB
    find_source(address)  # what the libraries hold once is no part of it
    s3.put("y.jsonl", lines(["one"]))
    assert len(list(read_documents(s3.address("y.jsonl")))) == 1
    tracemalloc.start()
    assert sum(1 for _ in read_documents(address)) == 8_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_a_fingerprint_is_taken_once_while_the_store_shows_the_same_files(s3: Bucket, folder: Path) -> None:  # noqa: F811
    address = s3.put_tree(folder, "p")
    before = fingerprint(address)
    with s3.faults(lambda request: None) as seen:
        assert fingerprint(address) == before
    assert len([one for one in seen if one.method == "GET" and "list-type" not in one.path]) == 0
    s3.put("p/b.jsonl", lines([*TEXTS[:9], "another text of as many bytes"[: len(TEXTS[9])].ljust(len(TEXTS[9]))]))
    assert fingerprint(address) != before
    s3.put("p/b.jsonl", lines(TEXTS[:10]))
    assert fingerprint(address) == before


def test_a_fingerprint_is_of_names_below_the_place_that_was_given(s3: Bucket, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "q" / "text").mkdir(parents=True)
    (tmp_path / "q" / "text" / "a.jsonl").write_bytes(lines(TEXTS))
    s3.put_tree(tmp_path / "q", "q")
    for name in ("q/text/a.jsonl", "q/text", "q"):
        assert fingerprint(s3.address(name)) == fingerprint(str(tmp_path / name))


def test_what_was_put_away_or_cannot_be_reached_counts_as_it_was_read(
    s3: Bucket,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = s3.put("p/a.jsonl", lines(TEXTS))
    assert not is_missing(address) and not is_put_away(address)
    with s3.faults(lambda request: Fault(403, "AccessDenied")):
        with pytest.raises(UserError, match="access denied"):
            is_missing(address)
        assert is_put_away(address)
    assert "what was read of it before counts" in capsys.readouterr().err
    s3.remove("p/a.jsonl")
    assert is_missing(address) and is_put_away(address)
    monkeypatch.setattr(faults, "FIRST_PATIENCE_S", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store_of.cache_clear()
    assert is_put_away(address)
    assert f"{address}: no answer (" in capsys.readouterr().err


def test_token_files_in_a_store_are_those_on_the_disk(
    s3: Bucket,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamed_tokens, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(token_files, "_STREAMED_BLOCK", 300)
    rng = np.random.default_rng(0)
    documents = [[[*rng.integers(1, 90, size).tolist(), 0]] for size in rng.integers(1, 700, 40)]
    ids = np.concatenate([np.array(document[0]) for document in documents])
    root = tmp_path / "tokens"
    _build(root / "sub" / "a", np.int32, documents)
    _build(root / "b", np.uint16, documents[:7])
    ids.astype(np.uint16).tofile(root / "raw.npy")
    ids.astype(np.uint32).tofile(root / "sub" / "wide.npy")
    np.save(root / "header.npy", ids)
    ids.astype(np.uint16).tofile(root / "._raw.npy")
    address = s3.put_tree(root, "t")
    names = ("", "/b", "/sub/a.bin", "/header.npy", "/raw.npy")
    for paths in [[name] for name in names] + [["/b", "/sub/a"]]:
        here = TokenFiles([f"{root}{path}" for path in paths], Letters())
        there = TokenFiles([f"{address}{path}" for path in paths], Letters())
        assert [(d.id, d.ids.tolist()) for d in there] == [(d.id, d.ids.tolist()) for d in here]
        assert (there.bytes, there.files, there.left_out) == (here.bytes, here.files, here.left_out)
    here, there, place = TokenFiles([str(root)], Letters()), TokenFiles([address], Letters()), Place(1, 20)
    assert [d.id for d in there.read(place)] == [d.id for d in here.read(place)]
    for name in ("", "/b", "/header.npy"):
        assert fingerprint(f"{address}{name}") == fingerprint(f"{root}{name}")
    s3.remove("t/b.idx")
    with pytest.raises(UserError, match=r"t/b\.bin: b\.idx is missing beside it"):
        TokenFiles([address], Letters())
    with pytest.raises(UserError, match=r"lies in a store and .* does not"):
        TokenFiles([address, str(root)], Letters())
    s3.put("cut.npy", (root / "header.npy").read_bytes()[:-3])
    with pytest.raises(UserError, match=r"cut\.npy: damaged or cut short"):
        TokenFiles([s3.address("cut.npy")], Letters())


def test_bad_records_name_their_address_and_line(s3: Bucket) -> None:  # noqa: F811
    address = s3.put("p/a.jsonl", b'{"text": "one"}\n{"text": 2}\n')
    with pytest.raises(UserError, match=rf"s3://{s3.name}/p/a\.jsonl:2: `text` must be a string"):
        list(read_documents(s3.address("p")))
    s3.put("p/b.jsonl.zst", zstandard.compress(lines(TEXTS))[:-5])
    with pytest.raises(UserError, match=r"p/b\.jsonl\.zst:\d+: damaged or truncated file"):
        list(read_documents(s3.address("p"), ReadConfig(on_bad="skip")))
    s3.put("c.parquet", b"PAR1 and no more than that")
    with pytest.raises(UserError, match=r"c\.parquet:1: damaged or truncated parquet"):
        list(read_documents(s3.address("c.parquet")))
    assert address
