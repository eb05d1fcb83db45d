"""Datasets that Hugging Face's `datasets` saved or cached are read as corpora, row by row, and refused by name."""

import json
import re
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet
import pytest

from synpro_engine.config import UserError
from synpro_engine.data import PromptedConfig, ReadConfig, count_documents, find_source, read_documents, read_tasks
from synpro_engine.data.records import Place, read_records
from tests.data.saved_datasets import save_dict, save_to_disk, write_cache, write_stream

TEXTS = [f"text number {number}" for number in range(2500)]
IDS = [f"d{number}" for number in range(2500)]


def table(count: int = 2500, **columns: object) -> pyarrow.Table:
    return pyarrow.table({"id": IDS[:count], "text": TEXTS[:count], **columns})


def read(source: Path | str, **settings: object) -> list[tuple[str, str]]:
    return [(d.id, d.text) for d in read_documents(source, ReadConfig(**settings))]


WANTED = list(zip(IDS, TEXTS, strict=True))


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("shards", [1, 7])
def test_a_saved_dataset_is_read_in_its_order(tmp_path: Path, shards: int, compression: str | None) -> None:
    saved = save_to_disk(tmp_path / "saved", table(), shards=shards, compression=compression)
    assert read(saved) == WANTED and count_documents(saved) == 2500
    assert find_source(saved).left_out == ("dataset_info.json", "state.json")


@pytest.mark.parametrize(
    "text",
    [
        pyarrow.array(TEXTS, pyarrow.large_string()),
        pyarrow.array(TEXTS, pyarrow.string_view()),
        pyarrow.array(TEXTS).dictionary_encode(),
        pyarrow.array([text.upper() for text in TEXTS]).dictionary_encode(),
    ],
)
def test_text_may_be_stored_in_any_way(tmp_path: Path, text: pyarrow.Array) -> None:
    saved = save_to_disk(tmp_path / "saved", pyarrow.table({"id": IDS, "text": text}), shards=2)
    assert read(saved) == list(zip(IDS, text.to_pylist(), strict=True))


def test_an_ipc_file_is_read_as_a_stream_is(tmp_path: Path) -> None:
    with pyarrow.OSFile(str(tmp_path / "x.arrow"), "wb") as file:
        with pyarrow.ipc.new_file(file, table().schema) as writer:
            writer.write_table(table(), max_chunksize=300)
    assert read(tmp_path / "x.arrow") == WANTED


def test_fields_of_records_and_conversations_are_read(tmp_path: Path) -> None:
    meta = [{"id": f"m{at}", "n": at} for at in range(3)]
    messages = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{at}"}] for at in range(3)]
    rows = pyarrow.table({"body": [{"text": text} for text in TEXTS[:3]], "meta": meta, "messages": messages})
    saved = save_to_disk(tmp_path / "saved", rows)
    assert read(saved, text_field="body.text", id_field="meta.id") == [(f"m{at}", TEXTS[at]) for at in range(3)]
    assert [task.parts[-1].text for task in read_tasks(saved, PromptedConfig())] == ["a0", "a1", "a2"]
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow: `meta` holds lists or records"):
        read(saved, text_field="meta")
    with pytest.raises(UserError, match=r"of-00001\.arrow:1: `text` is missing; .*\(there is `body`, `meta`"):
        read(saved)


def test_without_ids_a_record_is_called_by_its_file_and_row(tmp_path: Path) -> None:
    saved = save_to_disk(tmp_path / "saved", table(5).drop_columns(["id"]), shards=2)
    names = [f"data-0000{shard}-of-00002.arrow:{row}" for shard, row in [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]]
    assert [id for id, _ in read(saved)] == names


def test_null_and_empty_texts_are_bad_records_with_their_row(tmp_path: Path) -> None:
    rows = pyarrow.table({"text": ["one", None, "", "two"]})
    saved = save_to_disk(tmp_path / "saved", rows)
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow:2: `text` must be a string, found NoneType"):
        read(saved)
    bad = []
    found = [d.text for d in read_documents(saved, ReadConfig(on_bad="skip"), bad.append)]
    assert found == ["one", "two"] and [(one.line, one.reason) for one in bad] == [(2, "wrong type"), (3, "empty")]


def test_a_text_that_is_not_utf8_is_one_bad_row(tmp_path: Path) -> None:
    offsets = pyarrow.py_buffer(b"".join(at.to_bytes(4, "little") for at in (0, 3, 5, 8)))
    text = pyarrow.StringArray.from_buffers(3, offsets, pyarrow.py_buffer(b"one\xff\xfetwo"))
    saved = save_to_disk(tmp_path / "saved", pyarrow.table({"text": text}))
    with pytest.raises(UserError, match=r"\.arrow:2: not UTF-8"):
        read(saved)
    assert [text for _, text in read(saved, on_bad="skip")] == ["one", "two"]


def test_an_empty_dataset_is_a_corpus_without_documents(tmp_path: Path) -> None:
    for number, saved in enumerate((save_to_disk(tmp_path / "none", table(0)), tmp_path / "one")):
        if number:  # older versions wrote one file of no rows
            saved.mkdir()
            write_stream(saved / "data-00000-of-00001.arrow", table(0))
            (saved / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
        with pytest.raises(UserError, match=r"no documents|no corpus file"):
            read(saved)


def test_of_several_splits_one_is_named(tmp_path: Path) -> None:
    saved = save_dict(tmp_path / "saved", {"train": table(10), "test": table(3)})
    with pytest.raises(UserError, match=rf"{saved}: holds the splits train, test; name one, as {saved}/train"):
        find_source(saved)
    assert read(saved / "train") == WANTED[:10] and read(saved / "test") == WANTED[:3]
    alone = save_dict(tmp_path / "alone", {"train": table(10)})
    assert [text for _, text in read(alone)] == TEXTS[:10]


def test_a_folder_of_the_cache_is_read_without_what_map_and_filter_made(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c" / "0.0.0" / "hash", "name", {"train": [table(10), table(20).slice(10)]})
    write_stream(cache / "cache-0123456789abcdef.arrow", pyarrow.table({"indices": [3, 1, 2]}))
    write_stream(cache / "tmpabcdef.arrow", table(5))
    assert read(tmp_path / "c") == WANTED[:20]
    told = find_source(cache).remark
    assert "cache-0123456789abcdef.arrow" in told and "tmpabcdef.arrow" in told
    (cache / "name-train-00000-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"name-train-00000-of-00002\.arrow: is missing; others say that there are 2"):
        find_source(cache)


def test_of_several_splits_in_the_cache_one_is_named_by_a_pattern(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", "name", {"train": [table(10), table(20).slice(10)], "test": [table(3)]})
    told = re.escape(f"{cache}: holds the splits test, train; name one, as {cache}/*-test*.arrow")
    with pytest.raises(UserError, match=told):
        find_source(cache)
    assert [text for _, text in read(f"{cache}/*-test*.arrow")] == TEXTS[:3]
    assert [text for _, text in read(f"{cache}/name-train-*.arrow")] == TEXTS[:20]
    with pytest.raises(UserError, match=told):
        find_source(f"{cache}/*.arrow")


def test_a_pattern_reads_of_a_saved_dataset_what_its_folder_holds(tmp_path: Path) -> None:
    saved = save_dict(tmp_path / "saved", {"train": table(10), "unsupervised": table(3)})
    write_stream(saved / "train" / "cache-0123.arrow", table(5))
    with pytest.raises(UserError, match=rf"{saved}: holds the splits train, unsupervised; name one, as {saved}/train"):
        find_source(f"{saved}/**/*.arrow")
    for pattern in (f"{saved}/train/*.arrow", f"{saved}/t*/**"):
        assert read(pattern) == WANTED[:10]
        assert any(path.endswith("cache-0123.arrow") for path in find_source(pattern).left_out)
    both = read(f"{saved}/{{train,unsupervised}}/*.arrow", make_ids=True)
    assert [text for _, text in both] == TEXTS[:10] + TEXTS[:3]
    parts = save_to_disk(tmp_path / "parts", table(10), shards=2)
    (parts / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow: is missing; state\.json beside it lists it"):
        find_source(f"{parts}/*.arrow")
    assert read(f"{parts}/*00000-of*.arrow") == WANTED[:5]


def test_a_dataset_that_is_not_what_its_state_says_is_refused(tmp_path: Path) -> None:
    saved = save_to_disk(tmp_path / "saved", table(10), shards=2)
    write_stream(saved / "cache-0123.arrow", table(5))
    assert read(saved) == WANTED[:10] and "cache-0123.arrow" in find_source(saved).left_out
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(UserError, match=f"{saved}: its rows are chosen by an index"):
        find_source(saved)
    (saved / "state.json").write_text(json.dumps(state))
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow: is missing; state\.json beside it lists it"):
        find_source(saved)
    (saved / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json: damaged \(not JSON\)"):
        find_source(saved)


def test_a_pattern_misses_the_shards_that_it_would_match(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", "name", {"train": [table(4).slice(at, 1) for at in range(4)]})
    assert len(read(f"{cache}/*-train-*.arrow", make_ids=True)) == 4
    (cache / "name-train-00002-of-00004.arrow").unlink()
    with pytest.raises(UserError, match=r"name-train-00002-of-00004\.arrow: is missing; others say that there are 4"):
        find_source(f"{cache}/*-train-*.arrow")
    assert len(read(f"{cache}/*-0000{{0..1}}-of-*.arrow", make_ids=True)) == 2


@pytest.mark.parametrize("splits", [5, [5], {"train": 1}])
def test_splits_that_are_no_names_are_told(tmp_path: Path, splits: object) -> None:
    saved = save_dict(tmp_path / "saved", {"train": table(3)})
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(UserError, match=r"dataset_dict\.json: damaged \(`splits` is no list of names\)"):
        find_source(saved)


def test_text_that_is_no_utf_8_hides_no_other_column(tmp_path: Path) -> None:
    bad = pyarrow.array([b"\xff", b"b"]).view(pyarrow.string())
    beyond = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 10**6], pyarrow.int32()), ["a", "b"], safe=False)
    worse = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 10**6], pyarrow.int32()), bad, safe=False)
    for number, columns in enumerate([{"id": bad, "text": beyond}, {"id": ["c", "d"], "text": worse}]):
        write_stream(tmp_path / f"{number}.arrow", pyarrow.table(columns))
        with pytest.raises(UserError, match=rf"{number}\.arrow:1: damaged or truncated Arrow file .*out of bounds"):
            read(tmp_path / f"{number}.arrow", on_bad="skip")
    write_stream(tmp_path / "row.arrow", pyarrow.table({"id": ["c", "d"], "text": bad}))
    assert read(tmp_path / "row.arrow", on_bad="skip") == [("d", "b")]


def test_a_file_that_is_cut_anywhere_is_no_shorter_file(tmp_path: Path) -> None:
    write_stream(tmp_path / "whole.arrow", table(50), rows=10)
    data = (tmp_path / "whole.arrow").read_bytes()
    # Behind a batch too, where a stream without its end looks whole.
    for size in [*range(0, len(data) - 1, 97), len(data) - 8, len(data) - 1]:
        (tmp_path / "cut.arrow").write_bytes(data[:size])
        with pytest.raises(UserError, match=r"cut\.arrow:\d+: damaged or truncated Arrow file"):
            read(tmp_path / "cut.arrow", on_bad="skip")


def test_no_flipped_bit_reads_other_memory(tmp_path: Path) -> None:
    """Each byte in turn: what is read is text, or the file is refused; the process lives."""
    write_stream(tmp_path / "whole.arrow", table(4), rows=2)
    data = (tmp_path / "whole.arrow").read_bytes()
    outcomes = set()
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 0x81
        (tmp_path / "broken.arrow").write_bytes(broken)
        try:
            outcomes.add(len(read(tmp_path / "broken.arrow", on_bad="skip", make_ids=True)) <= 4)
        except UserError:
            outcomes.add("refused")
    assert outcomes <= {True, "refused"} and "refused" in outcomes


def test_reading_goes_on_behind_a_place_and_tells_its_bytes(tmp_path: Path) -> None:
    saved = save_to_disk(tmp_path / "saved", table(), shards=3)
    source, told = find_source(saved), []
    place = Place(1, 700)
    lines = [r.line for r in read_records(source, ("text",), place=place, on_bytes=told.append)]
    assert len(lines) == 2500 - 834 - 700 and place == Place(2, 833)
    assert sum(told) == sum(file.stat().st_size for file in source.files)


def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    long = pyarrow.table({"text": [f"{number} " + "x" * 2000 for number in range(40_000)]})  # 80 MB
    write_stream(tmp_path / "long.arrow", long)
    del long
    tracemalloc.start()
    before = pyarrow.total_allocated_bytes()
    most = 0
    for _ in read_documents(tmp_path / "long.arrow", ReadConfig(make_ids=True)):
        most = max(most, pyarrow.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6 and most < 20e6


@pytest.mark.parametrize("row_group_size", [1_000, 20_000])
def test_memory_grows_neither_with_a_parquet_file_nor_with_its_row_groups(tmp_path: Path, row_group_size: int) -> None:
    path, long = tmp_path / "long.parquet", pyarrow.table({"text": [f"{n} " + "x" * 2000 for n in range(20_000)]})
    pyarrow.parquet.write_table(
        long, path, row_group_size=row_group_size, compression="none", use_dictionary=False
    )  # 40 MB
    del long
    before = pyarrow.total_allocated_bytes()
    documents = read_documents(path, ReadConfig(make_ids=True))
    assert max(pyarrow.total_allocated_bytes() - before for _ in documents) < 20e6


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_memory_does_not_grow_with_how_much_a_row_weighs(tmp_path: Path, kind: str) -> None:
    path, long = tmp_path / f"long.{kind}", pyarrow.table({"text": [f"{n} " + "x" * (1 << 20) for n in range(100)]})
    if kind == "parquet":
        # In pages of a few rows: one is read as a whole.
        pyarrow.parquet.write_table(long, path, compression="none", use_dictionary=False, write_batch_size=4)
    else:
        write_stream(path, long, rows=4)
    del long
    tracemalloc.start()
    before = pyarrow.total_allocated_bytes()
    documents = read_documents(path, ReadConfig(make_ids=True))
    most = max(pyarrow.total_allocated_bytes() - before for _ in documents)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 30e6 and peak < 30e6


@pytest.mark.slow
def test_what_datasets_itself_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"id": IDS, "text": TEXTS})
    dataset.save_to_disk(tmp_path / "plain", num_shards=3)
    assert read(tmp_path / "plain") == WANTED
    # Rows that are selected or shuffled are written in their order; no index is left beside them.
    shuffled = dataset.shuffle(seed=1).select(range(100))
    shuffled.save_to_disk(tmp_path / "shuffled")
    assert [text for _, text in read(tmp_path / "shuffled")] == shuffled["text"][:]
    datasets.DatasetDict({"train": dataset, "test": dataset.select([3])}).save_to_disk(tmp_path / "dict")
    assert read(tmp_path / "dict" / "train") == WANTED and read(tmp_path / "dict" / "test") == WANTED[3:4]
    with pytest.raises(UserError, match="holds the splits train, test"):
        find_source(tmp_path / "dict")
    dataset.select([]).save_to_disk(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no documents|no corpus file"):
        read(tmp_path / "empty")
    pyarrow.parquet.write_table(table(), tmp_path / "rows.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files={"train": str(tmp_path / "rows.parquet")}, cache_dir=str(tmp_path / "cache")
    )
    loaded["train"].filter(lambda row: row["id"] == "d1")  # leaves a file in the cache
    [info] = (tmp_path / "cache").rglob("dataset_info.json")
    assert read(info.parent) == WANTED
    # What this module's own writer makes is the same, byte for byte.
    save_to_disk(tmp_path / "ours", dataset.data.table, shards=3, split=None)
    for at in range(3):
        name = f"data-0000{at}-of-00003.arrow"
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    ours, theirs = (json.loads((tmp_path / of / "state.json").read_text()) for of in ("ours", "plain"))
    assert ours.keys() == theirs.keys() and ours["_data_files"] == theirs["_data_files"]
