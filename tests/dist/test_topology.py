"""Layouts: what the ranks see, and which sizes are refused."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from megatron.core import parallel_state

from synpro_engine.backend.shim import shim_active
from synpro_engine.config import UserError
from synpro_engine.dist import (
    ParallelConfig,
    Topology,
    broadcast_in,
    gather_objects,
    launched,
    on_every_rank,
    on_main,
    sum_over,
)
from synpro_engine.dist.testing import free_ports, job, run_ranks


def _fault(topology: Topology, work: Callable[[], object]) -> str:
    """What this rank is told when `work` fails on rank 0."""
    try:
        on_main(topology, work)
    except UserError as error:
        return str(error)
    return ""


def _refused() -> None:
    raise UserError("no space")


def _two_ranks(tp: int, file: str) -> dict[str, object]:
    os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    with launched(ParallelConfig(tp=tp)) as topology:
        axis = topology.tp if tp == 2 else topology.dp
        return {
            "queues": os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"),
            "unused": [parallel_state._DATA_PARALLEL_GROUP_GLOO, parallel_state._DATA_PARALLEL_GROUP_WITH_CP_GLOO],
            "rank": axis.rank,
            "layout": str(topology.layout),
            "gathered": gather_objects(axis, topology.rank * 10),
            "first": broadcast_in(axis, topology.rank + 5),
            "sum": sum_over(axis, torch.tensor([topology.rank + 1.0])).item(),
            "faults": [_fault(topology, _refused), _fault(topology, (Path(file) / "below").mkdir)],
        }


@pytest.mark.parametrize(("tp", "layout"), [(2, "TP2"), (1, "DP2")])
def test_two_ranks_agree_on_their_layout_and_share_faults_of_rank_0(tp: int, layout: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seen = run_ranks(_two_ranks, 2, tp=tp, file=str(tmp_path / "file"))
    for rank, facts in enumerate(seen):
        assert facts == {
            "queues": "1" if tp == 2 else None, "unused": [None, None], "rank": rank, "layout": layout,
            "gathered": [0, 10], "first": 5, "sum": 3.0,
            "faults": ["no space", f"{tmp_path / 'file' / 'below'}: Not a directory"],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("parallel", "key"),
    [
        (ParallelConfig(tp=2), "tp 2"),
        (ParallelConfig(cp=2), "`parallel`: tp 1 x pp 1 x cp 2 does not divide the 1 process"),
        (ParallelConfig(vpp=2), "parallel.vpp"),
        (ParallelConfig(sequence_parallel=True), "parallel.sequence_parallel"),
    ],
)
def test_a_layout_that_does_not_fit_is_a_user_error(parallel: ParallelConfig, key: str) -> None:
    with pytest.raises(UserError, match=key), launched(parallel):
        pass


def test_a_full_disk_is_told_in_one_line_with_the_file() -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/shard.bin")

    with launched(ParallelConfig()) as topology:
        told = _fault(topology, write)
    assert told == "/data/shard.bin: No space left on device; what was written before stays readable"


def _fails() -> None:
    raise ValueError("rank fault")


def test_a_failing_rank_ends_the_run_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="rank fault"):
        run_ranks(_fails, 2)


def _sees() -> tuple[str | None, bool, bool]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.is_available(), shim_active()


def test_ranks_of_a_test_see_no_gpu_and_the_test_still_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible in ("0", None):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert run_ranks(_sees, 1) == [("", False, True)]
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def _joins(rank: int) -> str:
    if os.environ["RANK"] != str(rank):
        return ""
    with pytest.raises(UserError) as error, launched(ParallelConfig(join_minutes=0.02)):
        pass
    return str(error.value)


def test_a_job_whose_processes_do_not_all_start_names_those_that_are_missing() -> None:
    told = run_ranks(_joins, 3, rank=0)[0]
    assert told == "launch: 2 of 3 processes did not come within 0.02 minutes (`parallel.join_minutes`): rank 1, 2"


def _faults_of_two(file: str) -> list[str]:
    """Which faults a rank raises where rank 0's work fails, and where the other one's does."""

    def of_rank_1() -> object:
        return topology.is_main or Path(file).read_text()

    found = []
    with launched(ParallelConfig()) as topology:
        for work in (
            lambda: on_main(topology, _refused),
            lambda: on_main(topology, Path(file).read_text),
            lambda: on_every_rank(topology, of_rank_1),
        ):
            with pytest.raises(UserError) as error:
                work()
            found.append(type(error.value).__name__)
    return found


def test_every_rank_knows_which_faults_are_a_file_system_s(tmp_path: Path) -> None:
    assert run_ranks(_faults_of_two, 2, file=str(tmp_path / "x")) == 2 * [
        ["SharedError", "SharedTransientError", "SharedTransientError"]
    ]


def _leaves_at_once(ports: list[int]) -> int:
    for port in ports:
        with job(ParallelConfig(), port) as topology:
            on_every_rank(topology, lambda: list(range(100)))
    return len(ports)


@pytest.mark.slow
def test_a_job_can_end_right_after_its_last_collective() -> None:
    assert run_ranks(_leaves_at_once, 2, timeout_s=120.0, ports=free_ports(25)) == [25, 25]
