"""Long work of one rank, and faults of one rank: the others wait as long as it lives, and not a moment longer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from synpro_engine.dist import ParallelConfig, barrier, launched, on_main
from synpro_engine.dist.testing import run_ranks

BRIEF = ParallelConfig(timeout_minutes=0.05)  # 3 s


def _works_long(seconds: float) -> list[Any]:
    with launched(BRIEF) as topology:
        first = on_main(topology, lambda: time.sleep(seconds) or os.getpid(), label="long work")
        if topology.rank == 1:
            time.sleep(seconds)  # its share took longer than the other rank's
        barrier(topology)
        return [first, on_main(topology, lambda: None), dist.get_rank()]


def test_work_of_one_rank_may_take_longer_than_a_collective() -> None:
    found = run_ranks(_works_long, 2, seconds=5.0)
    assert found[0][0] == found[1][0] and [rank[1:] for rank in found] == [[None, 0], [None, 1]]
