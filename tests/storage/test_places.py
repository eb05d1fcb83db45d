"""What counts as a place, and that no secret in one is taken or shown."""

import re
from pathlib import Path

import pytest

from synpro_engine.config import UserError, load_config
from synpro_engine.config.errors import without_credentials
from synpro_engine.cycle.sections import CorpusConfig
from synpro_engine.storage import is_remote, joined, local_path, place
from synpro_engine.storage.places import expanded, pattern_of, split_pattern


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("data/corpus", "data/corpus"),
        ("embedded:sotu", "embedded:sotu"),
        ("c:/x", "c:/x"),
        ("file:///data/a b", "/data/a b"),
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
        ("s3://bucket", "s3://bucket"),
        ("gs://b.u-c_k/x/y.jsonl", "gs://b.u-c_k/x/y.jsonl"),
        ("hf://datasets/org/name@main/data/**/*.parquet", "hf://datasets/org/name@main/data/**/*.parquet"),
        ("s3://bucket/user@host/x", "s3://bucket/user@host/x"),
    ],
)
def test_a_place_is_a_path_or_an_address(given: str, found: str) -> None:
    assert place(given) == found
    assert is_remote(found) == found.startswith(("s3:", "gs:", "hf:"))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("http://host/x.jsonl", "http:// is no place that is known"),
        ("az://container/x", "az:// is no place that is known"),
        ("file://host/x", "goes on with the whole path"),
        ("s3://", "an address is s3://, a bucket"),
        ("s3:/bucket/x", "an address is s3://, a bucket"),
        ("s3://bucket/../x", "no `.` and `..`"),
    ],
)
def test_what_is_no_place_is_refused(given: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        place(given)


SECRETS = [
    "s3://AKIAEXAMPLE:hush/hush+hush@bucket/x.jsonl",
    "s3://AKIAEXAMPLE:hush@bucket/x.jsonl",
    "s3://hush@bucket/x.jsonl",
    "hf://user:hush@datasets/org/name/x.parquet",
    "s3://bucket/x.jsonl?X-Amz-Signature=hush",
    "gs://bucket/x.jsonl?access_token=hush#hush",
]


@pytest.mark.parametrize("given", SECRETS)
def test_an_address_with_a_secret_is_refused_without_showing_it(given: str) -> None:
    with pytest.raises(ValueError, match="environment") as fault:
        place(given)
    assert "hush" not in str(fault.value)
    with pytest.raises(UserError, match="`source`: ") as refused:
        load_config(CorpusConfig, {"source": given})
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("given", SECRETS)
def test_a_text_that_names_such_an_address_is_printed_without_the_secret(given: str) -> None:
    if not given.startswith("s3://hush"):  # a name alone is nothing that could be told from a bucket
        assert "hush" not in without_credentials(f"synpro run my.yaml corpus.source={given} --dir x")


def test_a_url_without_its_host_is_printed_without_its_query() -> None:
    told = "Max retries exceeded with url: /x?X-Amz-Signature=hush (Caused by NewConnectionError)"
    assert without_credentials(told) == "Max retries exceeded with url: /x?*** (Caused by NewConnectionError)"


def test_a_path_of_this_machine_is_wanted_where_no_store_will_do() -> None:
    assert local_path("file:///a/b") == "/a/b" and local_path("a/b") == "a/b"
    with pytest.raises(ValueError, match=r"s3://bucket/model: is read from this machine's disk only"):
        local_path("s3://bucket/model")


def test_places_are_joined_in_their_own_way() -> None:
    assert joined("s3://bucket/runs", "pretrain") == "s3://bucket/runs/pretrain"
    assert joined("/runs", "pretrain") == str(Path("/runs/pretrain"))


def test_braces_stand_for_numbers_and_names() -> None:
    assert expanded("a{08..11}.gz") == ["a08.gz", "a09.gz", "a10.gz", "a11.gz"]
    assert expanded("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    with pytest.raises(ValueError, match="braces hold names"):
        expanded("{a}")
    with pytest.raises(ValueError, match="smaller number first"):
        expanded("{9..1}")


@pytest.mark.parametrize(
    ("pattern", "root", "matching", "others"),
    [
        ("s3://b/p/*.jsonl.zst", "s3://b/p", ["a.jsonl.zst"], ["sub/a.jsonl.zst", "a.jsonl"]),
        ("s3://b/**/*.parquet", "s3://b", ["a.parquet", "x/y/a.parquet"], ["a.parquet.crc"]),
        ("/d/*/train-*.arrow", "/d", ["x/train-1.arrow"], ["train-1.arrow", "x/y/train-1.arrow"]),
        ("d/{en,de}/**", "d", ["en/a", "de/x/y"], ["fr/a", "en"]),
        ("*.jsonl", ".", ["a.jsonl"], ["x/a.jsonl"]),
        ("/d/a+(b)*.json", "/d", ["a+(b)1.json"], ["aab1.json"]),
    ],
)
def test_a_star_stays_in_its_folder_and_two_lead_through_all(
    pattern: str, root: str, matching: list[str], others: list[str]
) -> None:
    found, wild = split_pattern(pattern)
    assert found == root
    assert [path for path in matching + others if pattern_of(wild).fullmatch(path)] == matching
