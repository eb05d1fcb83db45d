"""Every fault of a store ends right, or in one line that names what was asked for; no secret is in it."""

import io
import json
import re
import threading
import time

import pytest

from synpro_engine.config import UserError
from synpro_engine.data import find_source, read_documents
from synpro_engine.remote import patience
from synpro_engine.storage import faults, reading
from synpro_engine.storage.reading import RemoteFile
from synpro_engine.storage.stores import find_file, find_files
from tests.s3 import PAGE, SECRET, Bucket, Fault, Request, moto, s3  # noqa: F401

CONTENT = bytes(range(256)) * 4096 * 3  # 3 MiB


def gets(requests: list[Request]) -> list[Request]:
    return [one for one in requests if one.method == "GET" and "range" in one.headers]


def found(address: str) -> RemoteFile:
    file = find_file(address)
    assert file is not None
    return file


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file of a few MiB is many."""
    monkeypatch.setattr(reading, "BLOCK", 1 << 20)


def test_a_file_is_read_in_blocks_and_once(s3: Bucket, small_blocks: None) -> None:  # noqa: F811
    file = found(s3.put("a/x.bin", CONTENT))
    with s3.faults(lambda request: None) as seen, file.open("rb") as opened:
        assert opened.read() == CONTENT
    assert [one.first_byte for one in gets(seen)] == [0, 1 << 20, 2 << 20]


def test_a_connection_that_is_cut_is_gone_on_with_from_where_it_broke(
    s3: Bucket,  # noqa: F811
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faults, "FIRST_PATIENCE_S", 60.0)
    file = found(s3.put("x.bin", CONTENT))
    # No answer is ever longer: whoever asks for a whole block again and again never gets it.
    with s3.faults(lambda request: Fault(cut_after=100_000) if request.method == "GET" else None) as seen:
        with file.open("rb") as opened:
            assert opened.read() == CONTENT
    assert len(gets(seen)) > len(CONTENT) // 100_000


def test_a_slow_answer_is_waited_for(s3: Bucket) -> None:  # noqa: F811
    file = found(s3.put("x.bin", CONTENT[:200_000]))
    begun = time.monotonic()
    with s3.faults(lambda request: Fault(bytes_per_s=200_000)), file.open("rb") as opened:
        assert opened.read() == CONTENT[:200_000]
    assert time.monotonic() - begun > 0.8


def test_a_store_that_is_asked_too_often_is_asked_again_later(s3: Bucket) -> None:  # noqa: F811
    address = s3.put("x.bin", CONTENT[:1000])
    refused = threading.Semaphore(3)
    slow = Fault(503, "SlowDown")
    with s3.faults(lambda request: slow if refused.acquire(blocking=False) else None):
        with found(address).open("rb") as opened:
            assert opened.read() == CONTENT[:1000]
    assert not refused.acquire(blocking=False)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault(503, "SlowDown"), "no answer (told by the test: SlowDown)"),
        (Fault(500, "InternalError"), "no answer (told by the test: InternalError)"),
        (Fault(403, "AccessDenied"), "access denied (told by the test: AccessDenied)"),
        (Fault(403, "ExpiredToken"), "access denied (told by the test: ExpiredToken)"),
        (Fault(404, "NoSuchKey"), "not found (told by the test: NoSuchKey)"),
    ],
)
def test_a_fault_that_stays_is_one_line_with_the_key(
    s3: Bucket,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    told: str,
) -> None:
    monkeypatch.setattr(faults, "PATIENCE_S", 0.5)
    file = found(s3.put("a/x.bin", CONTENT[:1000]))
    with s3.faults(lambda request: fault if request.method == "GET" else None):
        with pytest.raises(UserError, match=re.escape(f"s3://{s3.name}/a/x.bin: {told}")) as refused:
            with file.open("rb") as opened:
                opened.read()
    assert SECRET not in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_was_changed_is_not_read_on_as_another(s3: Bucket, small_blocks: None) -> None:  # noqa: F811
    file = found(s3.put("x.bin", CONTENT))
    with file.open("rb") as opened:
        assert opened.read(10) == CONTENT[:10]
        time.sleep(0.3)  # the block that is ahead has come
        s3.put("x.bin", CONTENT[::-1])
        with pytest.raises(UserError, match=r"x\.bin: was changed while it was read"):
            opened.read()
    with pytest.raises(UserError, match=r"x\.bin: was changed while it was read"):
        file.read(0, 10)


def test_an_answer_longer_than_asked_is_not_taken(s3: Bucket, small_blocks: None) -> None:  # noqa: F811
    file = found(s3.put("x.bin", CONTENT))
    with s3.faults(lambda request: request.headers.pop("range", None) and None):  # as of a gateway that knows none
        with pytest.raises(UserError, match=r"x\.bin: its store answers with more than was asked for"):
            with file.open("rb") as opened:
                opened.read()


@pytest.mark.parametrize("ranges", [False, True])
def test_a_change_is_seen_where_reads_carry_no_version(
    s3: Bucket,  # noqa: F811
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
    ranges: bool,
) -> None:
    monkeypatch.setattr(reading, "_BY_VERSION", set[str]())
    file = found(s3.put("x.bin", CONTENT))
    with s3.faults(lambda request: request.headers.pop("if-match", None) and None):
        with file.open_ranges() if ranges else file.open("rb") as opened:
            assert opened.read(10) == CONTENT[:10]
            time.sleep(0.3)  # the block that is ahead has come
            s3.put("x.bin", CONTENT[::-1])
            with pytest.raises(UserError, match=r"x\.bin: was changed while it was read"):
                if ranges:
                    opened.seek(2 << 20)
                    opened.read(10)
                else:
                    opened.read()


def test_a_store_that_answered_is_waited_for_longer_for_every_file(
    s3: Bucket,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faults, "FIRST_PATIENCE_S", 0.0)
    file = found(s3.put("x.bin", CONTENT[:1000]))
    refused = threading.Semaphore(2)
    with s3.faults(lambda request: Fault(503, "SlowDown") if refused.acquire(blocking=False) else None):
        assert file.read(0, 10) == CONTENT[:10]


def test_what_a_store_says_does_not_command_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_FIRST_S", 0.01)
    attempts = faults.Attempts("s3://bucket/x", 60.0)
    for _ in range(faults._TOLD_AFTER):
        attempts.failed(TimeoutError("slow \x1b[2J"))
    assert r"no answer (slow \x1b[2J)" in capsys.readouterr().err


def test_what_is_not_there_is_told_from_what_may_not_be_seen(s3: Bucket) -> None:  # noqa: F811
    s3.put("p/a.jsonl", b'{"text": "one"}\n')
    with pytest.raises(UserError, match=rf"s3://{s3.name}/q: no such file or directory"):
        find_source(s3.address("q"))
    with pytest.raises(UserError, match=r"s3://nowhere-at-all/q: not found \(.*bucket.*\)"):
        find_source("s3://nowhere-at-all/q")
    denied = Fault(403, "AccessDenied")
    with s3.faults(lambda request: denied if "list-type" in request.path else None):
        with pytest.raises(UserError, match=r"/p: access denied .*may read and not list names a file"):
            find_source(s3.address("p"))
        # Names need no listing.
        assert [d.text for d in read_documents(s3.address("p/a.jsonl"))] == ["one"]
        s3.put("p/b.jsonl", b'{"text": "two"}\n')
        assert [d.text for d in read_documents(s3.address("p/{a,b}.jsonl"))] == ["one", "two"]
        # As S3 answers of a key that is not there whoever may not list.
        with s3.faults(lambda request: denied if "c.jsonl" in request.path else None):
            with pytest.raises(UserError, match=r"p/c\.jsonl: access denied"):
                find_source(s3.address("p/{a,c}.jsonl"))


def test_a_bucket_of_another_region_is_read(s3: Bucket) -> None:  # noqa: F811
    """S3 answers with a redirect that names the region, unless a request is signed for it."""
    file_content = b'{"text": "far away"}\n'
    address = s3.put("a.jsonl", file_content)

    def elsewhere(request: Request) -> Fault | None:
        if "/eu-west-1/s3/" in request.headers.get("authorization", ""):
            return None
        return Fault(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"})

    with s3.faults(elsewhere):
        assert [d.text for d in read_documents(address)] == ["far away"]


def test_a_store_without_its_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synpro_engine.storage.opening.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://b/x: gcsfs is not installed \(pip install 'synpro_engine\[gs\]'\)"):
        find_source("gs://b/x")


def test_many_files_are_listed_in_pages(s3: Bucket) -> None:  # noqa: F811
    for number in range(PAGE + 3):
        s3.put(f"p/{number:05d}.jsonl", b"")
    with s3.faults(lambda request: None) as seen:
        assert len(find_files(s3.address("p"))) == PAGE + 3
    assert len(seen) == 2
    # A page that fails is no shorter list.
    calls = iter(range(100))
    with s3.faults(lambda request: Fault(500, "InternalError") if next(calls) == 1 else None):
        assert len(find_files(s3.address("p"))) == PAGE + 3


def test_credentials_are_told_to_nobody(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    endpoint = f"http://user:hush-hush@127.0.0.1:{s3.proxy.server_address[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with s3.faults(lambda request: Fault(403, f"AccessDenied {SECRET} {endpoint}")):
        with pytest.raises(UserError) as refused:
            find_source(s3.address("x"))
    assert SECRET not in str(refused.value) and "hush" not in str(refused.value)


def test_a_file_that_is_closed_early_waits_for_nothing(s3: Bucket) -> None:  # noqa: F811
    file = found(s3.put("x.bin", CONTENT))
    with s3.faults(lambda request: Fault(503, "SlowDown") if request.first_byte else None):
        opened = file.open("rb")
        assert opened.read(10) == CONTENT[:10]
        begun = time.monotonic()
        opened.close()
    assert time.monotonic() - begun < 1.0
    with pytest.raises(ValueError, match="closed"):
        opened.read(1)
    assert isinstance(opened, io.BufferedReader) and json.dumps(str(file))
