"""Files are hashed once, by all ranks together."""

from pathlib import Path

import pytest

from synpro_engine.config import UserError, sha256_file, verification, verify_artifact
from synpro_engine.dist import ParallelConfig, Stopped, Topology, hashing, launched, shared_artifact, verify_shared
from synpro_engine.dist.testing import free_ports, job, run_ranks

SIZES = {f"file-{i}": 1000 * (i + 1) for i in range(7)}


def counted() -> list[str]:
    """Names of the files that this rank will hash from now on."""
    names: list[str] = []
    digest = hashing._sha256
    hashing._sha256 = lambda path, read: (names.append(path.name), digest(path, read))[1]
    return names


def make_and_verify(place: Path, port: int) -> list[list[str]]:
    with job(ParallelConfig(), port) as topology:
        made = counted()
        with shared_artifact(topology, place, "numbers", {}) as directory:
            if topology.is_main:
                for name, size in SIZES.items():
                    (directory / name).write_bytes(bytes(size))
        found = [list(made)]
        verify_shared(place, topology)
        found.append(made[len(found[0]) :])
        with verification("always"):
            verify_shared(place, topology)
        return [*found, made[len(found[0]) :]]


def test_new_files_and_copies_are_shared_out_and_what_is_known_is_not_read_again(tmp_path: Path):
    first, second = run_ranks(make_and_verify, 2, place=tmp_path / "a", port=free_ports(1)[0])
    for ours, theirs in ((first[0], second[0]), (first[2], second[2])):
        assert sorted(ours + theirs) == sorted(SIZES) and len(ours) in (3, 4)
    assert first[1] == second[1] == []
    manifest = verify_artifact(tmp_path / "a")
    assert manifest.files == {name: sha256_file(tmp_path / "a" / name) for name in SIZES}


def make_where_only_rank_0_sees(root: Path, port: int) -> dict[str, str]:
    with job(ParallelConfig(), port) as topology:
        place = root / str(topology.rank)
        place.mkdir()
        with shared_artifact(topology, place / "a", "numbers", {}) as directory:
            if topology.is_main:
                for name, size in SIZES.items():
                    (directory / name).write_bytes(bytes(size))
        return verify_artifact(root / "0" / "a").files


def test_files_that_another_rank_does_not_see_yet_are_hashed_by_rank_0(tmp_path: Path):
    first, second = run_ranks(make_where_only_rank_0_sees, 2, root=tmp_path, port=free_ports(1)[0])
    assert first == second and first.keys() == SIZES.keys()


def refused(place: Path, port: int) -> list[str]:
    told = []
    with job(ParallelConfig(), port) as topology:
        for _ in range(2):  # the first refusal leaves the job whole
            with pytest.raises(UserError) as error:
                verify_shared(place, topology)
            told.append(str(error.value))
    return told


def test_a_changed_file_is_refused_on_every_rank(tmp_path: Path):
    run_ranks(make_and_verify, 2, place=tmp_path / "a", port=free_ports(1)[0])
    (tmp_path / "a" / "file-3").write_bytes(b"\1" * SIZES["file-3"])
    found = run_ranks(refused, 2, place=tmp_path / "a", port=free_ports(1)[0])
    assert all("file-3: was changed or damaged" in told for rank in found for told in rank)


def test_a_wish_to_stop_ends_the_checking_of_files_and_not_their_making(tmp_path: Path):
    def make(topology: Topology, name: str) -> None:
        with shared_artifact(topology, tmp_path / name, "numbers", {}) as directory:
            (directory / "file").write_bytes(bytes(1000))

    with launched(ParallelConfig()) as topology:
        make(topology, "before")
        topology.watch.wish.wish("SIGTERM")
        make(topology, "after")
        with verification("always"), pytest.raises(Stopped, match="after: stopped while it was checked"):
            verify_shared(tmp_path / "after", topology)
        verify_shared(tmp_path / "before", topology)  # nothing is read
