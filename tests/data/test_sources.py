"""Which files are read, in which order, and that nothing is left out in silence."""

import json
import os
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from synpro_engine.config import UserError
from synpro_engine.data import ReadConfig, find_source, read_documents


def _write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_folders_are_read_through_by_path(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/2.ndjson", "a/10.jsonl", "a/deep/er/x.json", "B/1.jsonl", "a.jsonl"):
        _write(tmp_path / name, f"text of {name}")
    # Name by name, by code point: capitals first, 10 before 2, a folder where its name stands.
    order = ["B/1.jsonl", "a/10.jsonl", "a/2.ndjson", "a/deep/er/x.json", "a.jsonl", "b.jsonl"]
    documents = list(read_documents(tmp_path))
    assert [d.text for d in documents] == [f"text of {name}" for name in order]
    assert [d.id for d in documents] == [f"{name}:1" for name in order]
    assert find_source(tmp_path).remark == ""


def test_an_empty_name_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "a.jsonl", "text")
    with pytest.raises(UserError, match="no name"):
        find_source("")


@pytest.mark.parametrize(
    "name", [".hidden.jsonl", "_b.jsonl", "_temporary/0/part.jsonl", ".cache/x.jsonl", "README.md"]
)
def test_what_is_not_read_is_told_of(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "docs.jsonl", "text")
    _write(tmp_path / name, "hidden text")
    source = find_source(tmp_path)
    assert [d.text for d in read_documents(source)] == ["text"]
    [told] = source.left_out
    assert name.startswith(told) and source.remark == f"{tmp_path}: not read: {told}"
    assert told.endswith("/") == ("/" in name)


def test_many_files_that_are_not_read_make_one_line(tmp_path: Path) -> None:
    _write(tmp_path / "docs.jsonl", "text")
    for number in range(12):
        (tmp_path / f"{number:02}.md5").touch()
    assert find_source(tmp_path).remark.endswith("00.md5, 01.md5, 02.md5, 03.md5, 04.md5 and 7 more")
    assert len(find_source(tmp_path).left_out) == 12


def test_hidden_files_are_read_when_they_are_named(tmp_path: Path) -> None:
    assert [d.id for d in read_documents(_write(tmp_path / "_b.jsonl", "text"))] == ["_b.jsonl:1"]
    _write(tmp_path / ".corpus" / "b.jsonl", "text")
    assert [d.id for d in read_documents(tmp_path / ".corpus")] == ["b.jsonl:1"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    _write(real / "1.jsonl", "linked")
    corpus = tmp_path / "corpus"
    _write(corpus / "a.jsonl", "own")
    (corpus / "link").symlink_to(real)
    (corpus / "up").symlink_to(corpus)
    (real / "round").symlink_to(corpus)
    (corpus / "z.jsonl").symlink_to(real / "1.jsonl")
    source = find_source(corpus)
    assert [d.id for d in read_documents(source)] == ["a.jsonl:1", "link/1.jsonl:1", "z.jsonl:1"]
    assert source.left_out == ("link/round/", "up/")


def test_a_dead_link_and_a_pipe_are_no_silence(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", "own")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert find_source(tmp_path).left_out == ("pipe.jsonl",)
    with pytest.raises(UserError, match=r"pipe\.jsonl: is neither a file nor a directory"):
        find_source(tmp_path / "pipe.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonl:1: cannot be read \(No such file"):
        list(read_documents(tmp_path))


SHARDS = [f"train-0000{number}-of-00003.parquet" for number in range(3)]
HASHED = [f"train-0000{number}-of-00003-{number}0e9f4b1c2d3a576.parquet" for number in range(3)]
C4 = [f"en/c4-train.0000{number}-of-00003.json.gz" for number in range(3)]


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        _write(root / name)
    return root


@pytest.mark.parametrize(
    ("names", "place", "splits", "one"),
    [
        ([*SHARDS, "test-00000-of-00001.parquet"], "", "test, train", "train-*.parquet"),
        ([*HASHED, "validation-00000-of-00001-0123456789abcdef.parquet"], "", "train, validation", "train-*.parquet"),
        ([*C4, "en/c4-validation.00000-of-00001.json.gz"], "/en", "train, validation", "c4-train.*.json.gz"),
        (["a/train.jsonl", "a/dev.jsonl", "b.jsonl"], "/a", "dev, train", "train.jsonl"),
        (["train/00.jsonl.zst", "train/01.jsonl.zst", "val.jsonl.zst"], "", "train, val", "train"),
        (["x/test/0000.parquet", "x/validation/0000.parquet"], "/x", "test, validation", "test"),
    ],
)
def test_of_several_splits_that_names_tell_one_is_named(
    tmp_path: Path, names: list[str], place: str, splits: str, one: str
) -> None:
    root = _touch(tmp_path / "data", *names)
    told = rf"^{root}{place}: holds the splits {splits}; name one, as {re.escape(f'{root}{place}/{one}')}$"
    for source in (str(root), f"{root}/**", f"{tmp_path}/d*/**"):
        with pytest.raises(UserError, match=told):
            find_source(source)
    assert 0 < len(find_source(f"{root}{place}/{one}").files) < len(names)


@pytest.mark.parametrize(
    "names",
    [
        ["train-travel.jsonl", "test-drives.jsonl"],  # words of a title
        ["a-train.jsonl", "b-test.jsonl", "a/train.jsonl", "b/test.jsonl"],  # of two corpora
        ["train-00000-of-00001.parquet", "README.md", "test.md"],
    ],
)
def test_names_that_tell_no_two_splits_of_a_corpus_are_read_together(tmp_path: Path, names: list[str]) -> None:
    root = _touch(tmp_path, *names)
    assert len(find_source(root).files) == sum(not name.endswith(".md") for name in names)


def test_several_splits_are_read_where_a_pattern_names_each(tmp_path: Path) -> None:
    root = _touch(tmp_path, *SHARDS, "test-00000-of-00001.parquet", "x/train/1.jsonl", "x/test/1.jsonl")
    assert len(find_source(f"{root}/{{train,test}}-*.parquet").files) == 4
    assert len(find_source(f"{root}/x/{{train,test}}/*").files) == 2
    with pytest.raises(UserError, match="holds the splits test, train"):
        find_source(f"{root}/{{x,y}}/*/*")


@pytest.mark.parametrize("names", [SHARDS, HASHED, C4, ["00000-of-00003.jsonl.zst", "", "00002-of-00003.jsonl.zst"]])
def test_a_shard_that_the_names_of_others_count_is_missed(tmp_path: Path, names: list[str]) -> None:
    root = _touch(tmp_path, names[0], names[2])
    braces = re.escape("{00000..00000}-of-00003")
    for source in (str(root), f"{root}/**"):
        with pytest.raises(UserError, match=rf"00001-of-00003\S*: is missing; others say .* are 3; .* as {braces}"):
            find_source(source)
    for source in (f"{root}/**/*{{00000,00002}}*", f"{root}/{{{names[0]},{names[2]}}}"):
        assert len(find_source(source).files) == 2
    if names[1]:
        assert len(find_source(_touch(root, names[1])).files) == 3


def test_a_file_that_braces_name_must_be_there(tmp_path: Path) -> None:
    root = _touch(tmp_path, "p-00.jsonl", "p-01.jsonl", "p-03.jsonl")
    with pytest.raises(UserError, match=rf"^{root}/p-02\.jsonl: no such file$"):
        find_source(f"{root}/p-{{00..03}}.jsonl")
    assert [file.name for file in find_source(f"{root}/p-{{03,00,03}}.jsonl").files] == ["p-00.jsonl", "p-03.jsonl"]
    with pytest.raises(UserError, match="no such file or directory"):
        find_source(f"{root}/q-{{00..03}}.jsonl")


def test_a_list_in_braces_may_be_longer_than_a_name_of_a_file(tmp_path: Path) -> None:
    names = [f"a-rather-long-name-{number:03}" for number in range(40)]
    root = _touch(tmp_path, *(f"{name}.jsonl" for name in names))
    assert len(find_source(f"{root}/{{{','.join(names)}}}.jsonl").files) == 40
    assert len(find_source(f"{root}/{{{','.join(names)}}}*").files) == 40
    with pytest.raises(UserError, match="no such file or directory"):
        find_source(f"{root}/{'-'.join(names)}.jsonl")


@pytest.mark.parametrize(
    ("pattern", "looked_into"),
    [
        ("*.jsonl", [""]),
        ("a*/*.jsonl", ["", "a", "ab"]),
        ("{a,c}/{x,y}/*.jsonl", ["", "a", "a/x"]),
        ("a/**/*.jsonl", ["a", "a/x", "a/z", "a/z/deep"]),
        ("*/z/**", ["", "a", "a/z", "a/z/deep", "ab", "b"]),
    ],
)
def test_a_pattern_looks_into_no_folder_that_it_does_not_lead_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, looked_into: list[str]
) -> None:
    _touch(tmp_path, "1.jsonl", "a/x/1.jsonl", "a/z/deep/1.jsonl", "ab/1.jsonl", "b/1.jsonl", "a/1.jsonl")
    listdir, listed = os.listdir, []
    monkeypatch.setattr(os, "listdir", lambda path: (listed.append(path), listdir(path))[1])
    find_source(f"{tmp_path}/{pattern}")
    assert [str(path) for path in listed] == [str(tmp_path / name) for name in looked_into]


def test_made_ids_stay_when_other_files_are_added(tmp_path: Path) -> None:
    _write(tmp_path / "sub" / "b.jsonl", "one", "two")
    before = {d.text: d.id for d in read_documents(tmp_path)}
    assert before == {"one": "sub/b.jsonl:1", "two": "sub/b.jsonl:2"}
    _write(tmp_path / "a.jsonl", "three")
    _write(tmp_path / "sub" / "a.jsonl", "four")
    assert before.items() <= {d.text: d.id for d in read_documents(tmp_path)}.items()
    assert [d.id for d in read_documents(tmp_path / "sub" / "b.jsonl")] == ["b.jsonl:1", "b.jsonl:2"]


def test_a_file_name_that_is_not_utf8_still_gives_ids(tmp_path: Path) -> None:
    _write(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), "text")
    [document] = read_documents(tmp_path)
    assert document.id == "caf\\xe9.jsonl:1" and document.id.encode()


def test_an_own_id_may_not_be_one_that_was_made(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "t"}\n{"id": "b.jsonl:1", "text": "u"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl:2: id 'b\.jsonl:1' was used before"):
        list(read_documents(tmp_path))


def test_ids_that_are_not_unique_can_be_made_anew(tmp_path: Path) -> None:
    """As encyclopedias number their pages in each language."""
    rows = [{"id": "12", "text": "a page"}]
    for language in ("de", "en"):
        (tmp_path / language).mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / language / "0.parquet")
        _write(tmp_path / f"{language}.jsonl", "more")
    with pytest.raises(UserError, match=r"en/0\.parquet:1: id '12' was used before; .*`make_ids`"):
        list(read_documents(tmp_path))
    ids = [document.id for document in read_documents(tmp_path, ReadConfig(make_ids=True))]
    assert ids == ["de/0.parquet:1", "de.jsonl:1", "en/0.parquet:1", "en.jsonl:1"]
    with pytest.raises(ValueError, match="exclude each other"):
        ReadConfig(make_ids=True, id_field="id")


@pytest.mark.parametrize(
    "record, reading, id",
    [
        ({"text": "t", "id": 7}, {}, "7"),
        ({"text": "t", "id": -(10**30)}, {}, "-1" + "0" * 30),
        ({"text": "t", "id": None}, {}, "b.jsonl:1"),
        ({"body": {"raw": "t"}, "m": {"i.d": {"x": 0}}}, {"text_field": "body.raw", "id_field": "m.i.d.x"}, "0"),
        ({"text.en": "t", "a": {"b": "x"}, "a.b": "y"}, {"text_field": "text.en", "id_field": "a.b"}, "y"),
    ],
)
def test_fields_are_found_by_path_and_integers_are_decimal_text(
    tmp_path: Path, record: dict[str, object], reading: dict[str, str], id: str
) -> None:
    (tmp_path / "b.jsonl").write_text(json.dumps(record) + "\n")
    [document] = read_documents(tmp_path, ReadConfig(**reading))
    assert (document.id, document.text) == (id, "t")


@pytest.mark.parametrize(
    "reading, message",
    [
        ({"text_field": "content"}, "`content` is missing; `text_field` names another field (there is `text`, `meta`)"),
        ({"text_field": "meta"}, "`meta` must be a string, found dict"),
        ({"id_field": "meta.uid"}, "`meta.uid` is missing; `id_field` names another field"),
        ({"id_field": "meta.none"}, "`meta.none` must be a string or an integer, found NoneType"),
        ({"id_field": "text.id"}, "`text.id` is missing"),
    ],
)
def test_a_field_that_is_asked_for_must_be_there(tmp_path: Path, reading: dict[str, str], message: str) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "t", "meta": {"id": 1, "none": null}}\n')
    with pytest.raises(UserError) as caught:
        list(read_documents(tmp_path, ReadConfig(**reading)))
    assert str(caught.value).startswith(f"{tmp_path}/b.jsonl:1: {message}")
