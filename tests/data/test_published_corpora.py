"""Records and files in the form in which corpora are published, each read with what its documentation would suggest."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from synpro_engine.config import UserError
from synpro_engine.data import Document, ReadConfig, read_documents

WARC = "<urn:uuid:1b0b5c8c-5b0e-4d0f-8a52-0b0d6f0c8a{:02d}>"


def _zstd(data: bytes) -> bytes:
    return zstandard.compress(data)


def dclm_record(n: int) -> dict[str, Any]:
    return {
        "bff_contained_ngram_count_before_dedupe": 0,
        "language_id_whole_page_fasttext": {"en": 0.93},
        "metadata": {"Content-Length": "3112", "Content-Type": "text/html", "WARC-Record-ID": WARC.format(n)},
        "previous_word_count": 120,
        "text": f"page {n}\nof DCLM",
        "url": f"http://example.org/{n}",
        "warcinfo": "robots: classic\r\nhostname: host",
        "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob": 0.02,
    }


def _c4(n: int) -> dict[str, Any]:
    return {"text": f"page {n} of C4", "timestamp": "2019-04-25T12:57:54Z", "url": f"https://example.org/{n}"}


def _fineweb(n: int) -> dict[str, Any]:
    return {
        "text": f"page {n} of FineWeb",
        "id": WARC.format(n),
        "dump": "CC-MAIN-2013-20",
        "url": f"http://example.org/{n}",
        "date": "2013-05-18T05:48:54Z",
        "file_path": "s3://commoncrawl/crawl-data/x.warc.gz",
        "language": "en",
        "language_score": 0.95,
        "token_count": 12,
    }


def _dolma(n: int) -> dict[str, Any]:
    return {
        "id": f"gutenberg-{n}",
        "text": f"book {n} of Dolma",
        "source": "books",
        "added": "2023-04-11T09:57:03.044571",
        "created": "2000-01-01T00:00:00",
        "metadata": {"provenance": f"books-0001.json.gz:{n}"},
    }


def _redpajama_1(n: int) -> dict[str, Any]:
    return {"text": f"paper {n} of RedPajama", "meta": {"arxiv_id": f"0704.000{n}", "language": "en"}}


def _redpajama_2(n: int) -> dict[str, Any]:
    return {
        "url": f"http://example.org/{n}",
        "date_download": "2018-10-15T16:00:00Z",
        "digest": f"sha1:{n:032d}",
        "length": 20,
        "nlines": 1,
        "raw_content": f"page {n} of RedPajama",
        "cc_segment": "crawl-data/x.warc.wet.gz",
    }


LINES: dict[str, tuple[str, Callable[[bytes], bytes], Callable[[int], dict[str, Any]], ReadConfig, str]] = {
    "dclm": ("global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst", _zstd, dclm_record,
             ReadConfig(id_field="metadata.WARC-Record-ID"), WARC),
    "dclm, ids made": ("shard_00000000_processed.jsonl.zstd", _zstd, dclm_record, ReadConfig(), ""),
    "c4": ("en/c4-train.00000-of-00001.json.gz", gzip.compress, _c4, ReadConfig(), ""),
    "c4, unpacked": ("en/c4-train.00000-of-00001.json", bytes, _c4, ReadConfig(), ""),
    "dolma": ("books/books-0000.json.gz", gzip.compress, _dolma, ReadConfig(), "gutenberg-{}"),
    "dolma, zstd": ("data/shard.jsonl.zst", _zstd, _dolma, ReadConfig(), "gutenberg-{}"),
    "redpajama 1": ("arxiv/arxiv_0.jsonl", bytes, _redpajama_1, ReadConfig(id_field="meta.arxiv_id"), "0704.000{}"),
    "redpajama 2": ("documents/2018-43/0000/en_head.json.gz", gzip.compress, _redpajama_2,
                    ReadConfig(text_field="raw_content", id_field="digest"), "sha1:{:032d}"),
    "reddit": ("RC_2023-01.zst", _zstd, lambda n: {"id": f"k{n}", "body": f"comment {n}", "score": 1},
               ReadConfig(text_field="body"), "k{}"),
    "bzip2": ("dump.jsonl.bz2", bz2.compress, _c4, ReadConfig(), ""),
    "xz": ("dump.ndjson.xz", lzma.compress, _c4, ReadConfig(), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_records_of_published_corpora_are_read_from_their_folders(tmp_path: Path, name: str) -> None:
    path, pack, record, reading, id = LINES[name]
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    halves = [b"".join(json.dumps(record(n)).encode() + b"\n" for n in part) for part in ((1, 2), (3,))]
    # As shards are often joined: two frames, members or streams, which are one file.
    file.write_bytes(b"".join(map(pack, halves)))
    (tmp_path / "README.md").write_text("about it")
    wanted = [
        Document(id.format(n) if id else f"{path}:{n}", next(v for k, v in record(n).items() if k in TEXT))
        for n in (1, 2, 3)
    ]
    assert list(read_documents(tmp_path, reading)) == wanted


TEXT = ("text", "raw_content", "body")


def test_fineweb_rows_are_read_and_ids_may_be_nested_or_made(tmp_path: Path) -> None:
    rows = [_fineweb(n) for n in range(3)]
    path = tmp_path / "data" / "CC-MAIN-2013-20" / "000_00000.parquet"
    path.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(read_documents(tmp_path)) == [Document(WARC.format(n), f"page {n} of FineWeb") for n in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dclm_record(n) for n in range(3)]), path)
    documents = list(read_documents(tmp_path, ReadConfig(id_field="metadata.WARC-Record-ID")))
    assert documents == [Document(WARC.format(n), f"page {n}\nof DCLM") for n in range(3)]
    assert [d.id for d in read_documents(path)] == ["000_00000.parquet:1", "000_00000.parquet:2", "000_00000.parquet:3"]


def _frame(window_log: int, data: bytes) -> bytes:
    """A Zstandard frame of one raw block that declares a window of 2**window_log bytes, as `zstd --long` does."""
    assert len(data) < 2**17
    block = (len(data) << 3 | 1).to_bytes(3, "little") + data
    return b"\x28\xb5\x2f\xfd" + bytes([0, (window_log - 10) << 3]) + block


@pytest.mark.parametrize("window_log", [27, 28, 31])
def test_zstd_frames_with_large_windows_are_read(tmp_path: Path, window_log: int) -> None:
    lines = b'{"id": "a", "text": "t"}\n'
    (tmp_path / "docs.jsonl.zst").write_bytes(_frame(window_log, lines))
    assert list(read_documents(tmp_path)) == [Document("a", "t")]


def test_a_real_compressor_with_a_window_of_256_mib_is_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, hash_log=12, chain_log=12, enable_ldm=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = packer.compress(b'{"id": "a", "text": "t"}\n') + packer.flush()
    assert zstandard.get_frame_parameters(data).window_size == 2**28
    (tmp_path / "docs.zst").write_bytes(data)
    assert list(read_documents(tmp_path)) == [Document("a", "t")]


def test_skippable_frames_are_skipped(tmp_path: Path) -> None:
    """Parallel compressors and seekable files put such frames beside those that hold text."""
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
    frames = [skipped, _zstd(b'{"id": "a", "text": "t"}\n'), skipped, _zstd(b'{"id": "b", "text": "u"}\n'), skipped]
    (tmp_path / "docs.jsonl.zst").write_bytes(b"".join(frames))
    assert [d.id for d in read_documents(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("suffix, pack", [(".bz2", bz2.compress), (".xz", lzma.compress), (".zstd", _zstd)])
@pytest.mark.parametrize("lost", [1, 40])
def test_every_compression_notices_a_cut(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], lost: int
) -> None:
    lines = b"".join(b'{"id": "%d", "text": "some text %d"}\n' % (n, n * n) for n in range(500))
    (tmp_path / f"docs.jsonl{suffix}").write_bytes(pack(lines)[:-lost])
    with pytest.raises(UserError, match=r"docs\.jsonl\.\w+:\d+: damaged or truncated"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("suffix", [".zst", ".gz", ".bz2", ".xz"])
def test_a_compressed_file_without_a_byte_is_damaged(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"docs.jsonl{suffix}").touch()
    (tmp_path / "a.jsonl").write_text('{"text": "t"}\n')
    with pytest.raises(UserError, match=r"docs\.jsonl\.\w+:1: damaged or truncated"):
        list(read_documents(tmp_path))


def test_byte_order_marks_and_line_ends_of_windows_are_no_fault(tmp_path: Path) -> None:
    """Also in the middle of a file, where two were joined; capitals in the suffix as well."""
    line = b'\xef\xbb\xbf{"text": "t\\r\\n"}\r\n'
    (tmp_path / "DOCS.JSONL").write_bytes(line + b"\r\n" + line)
    assert [(d.id, d.text) for d in read_documents(tmp_path)] == [("DOCS.JSONL:1", "t\r\n"), ("DOCS.JSONL:3", "t\r\n")]


def test_a_json_document_that_is_no_line_per_record_says_so(tmp_path: Path) -> None:
    (tmp_path / "docs.json").write_text('[\n  {"text": "t"}\n]\n')
    with pytest.raises(UserError, match=r"docs\.json:1: malformed JSON .*each line holds one JSON object"):
        list(read_documents(tmp_path))
