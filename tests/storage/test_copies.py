"""Artifacts in both directions: whole copies of what was meant, and nothing that was there before is lost."""

import errno
import fcntl
import os
import pwd
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from synpro_engine.config import UserError, write_manifest
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.storage import at_hand, put_directory, writing_to
from synpro_engine.storage.fetching import cache_folder, file_at_hand
from synpro_engine.storage.stores import find_file
from tests.s3 import Bucket, Fault, Request, moto, s3  # noqa: F401


def artifact(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    write_manifest(path, "model", {}, {}, None)
    return path


def test_an_export_that_fails_leaves_nothing_at_its_place(s3: Bucket) -> None:  # noqa: F811
    with launched(ParallelConfig()) as topology:
        with pytest.raises(UserError, match="no model"), writing_to(s3.address("models"), "model", topology):
            assert s3.listed() == ["models/.begun"]
            raise UserError("no model")
    assert not s3.listed()


def test_a_user_without_a_home_is_told_to_name_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "SYNPRO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UserError, match=r"^SYNPRO_CACHE: is not set, and this user has no home"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "synpro_engine"
    monkeypatch.setenv("SYNPRO_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.mark.parametrize("mark", [b"a copy was begun here", b'{"files": ["x"]}', b'{"files": 5}', b"\xff"])
def test_other_artifacts_below_a_place_are_never_removed(s3: Bucket, tmp_path: Path, mark: bytes) -> None:  # noqa: F811
    one = artifact(tmp_path / "one", weights="1")
    put_directory(one, s3.address("models/one"))
    s3.put("models/.begun", mark)
    before = s3.listed()
    with pytest.raises(UserError, match=r"/models/one/manifest\.json: is no part of a model at"):
        put_directory(one, s3.address("models"))
    assert s3.listed() == before


def test_a_copy_takes_the_place_of_an_earlier_or_interrupted_one_alone(s3: Bucket, tmp_path: Path) -> None:  # noqa: F811
    old, new = artifact(tmp_path / "old", a="1", b="2"), artifact(tmp_path / "new", b="3", c="4")
    put_directory(old, s3.address("m"))

    def refusing(request: Request) -> Fault | None:
        return Fault(403, "AccessDenied") if request.method == "PUT" and "/m/c" in request.path else None

    with s3.faults(refusing), pytest.raises(UserError, match="m/c: access denied"):
        put_directory(new, s3.address("m"))
    assert sorted(s3.listed()) == ["m/.begun", "m/a", "m/b"]
    put_directory(new, s3.address("m"))
    assert sorted(s3.listed()) == ["m/b", "m/c", "m/manifest.json"]
    s3.put("m/notes", b"mine")
    with pytest.raises(UserError, match="m/notes: is no part of a model at"):
        put_directory(old, s3.address("m"))
    s3.put("n/manifest.json", b"{no JSON")
    with pytest.raises(UserError, match="n: is an artifact of kind unknown; it is not replaced"):
        put_directory(old, s3.address("n"))


def test_places_of_any_name_are_brought_apart(s3: Bucket) -> None:  # noqa: F811
    s3.put("partial/partial/x", b"1")
    assert (at_hand(s3.address("partial")) / "partial" / "x").read_bytes() == b"1"
    assert (at_hand(s3.address("partial/partial")) / "x").read_bytes() == b"1"
    assert at_hand(s3.address("partial/partial/x")).read_bytes() == b"1"
    s3.put("a/a", b"2")
    assert (at_hand(s3.address("a")) / "a").read_bytes() == at_hand(s3.address("a/a")).read_bytes() == b"2"


def test_two_that_bring_the_same_over_nfs_wait_for_each_other(
    s3: Bucket,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flock = fcntl.flock

    def as_nfs(file: int, kind: int) -> None:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY and kind & fcntl.LOCK_EX:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", as_nfs)
    s3.put("m/weights", b"1" * 1000)
    with s3.faults(lambda request: Fault(bytes_per_s=2000) if request.path.endswith("/weights") else None):
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(at_hand, 2 * [s3.address("m")]))
    assert found[0] == found[1] and (found[0] / "weights").read_bytes() == b"1" * 1000


def test_a_file_is_brought_as_it_was_listed_or_not_at_all(s3: Bucket) -> None:  # noqa: F811
    file = find_file(s3.put("x.idx", b"1"))
    assert file is not None
    s3.put("x.idx", b"2")
    with pytest.raises(UserError, match=r"x\.idx: was changed"):
        file_at_hand(file)
