"""Layouts: what the ranks see, and which sizes are refused."""

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, broadcast_in, gather_objects, launched, on_main, sum_over
from synpro_engine.dist.testing import run_ranks


def _two_ranks(tp: int) -> dict[str, object]:
    with launched(ParallelConfig(tp=tp)) as topology:
        axis = topology.tp if tp == 2 else topology.dp
        try:
            on_main(topology, lambda: (_ for _ in ()).throw(UserError("no space")))
            fault = ""
        except UserError as error:
            fault = str(error)
        return {
            "rank": axis.rank,
            "layout": topology.layout,
            "gathered": gather_objects(axis, topology.rank * 10),
            "first": broadcast_in(axis, topology.rank + 5),
            "sum": sum_over(axis, torch.tensor([topology.rank + 1.0])).item(),
            "fault": fault,
        }


@pytest.mark.parametrize(("tp", "layout"), [(2, "TP2"), (1, "DP2")])
def test_two_ranks_agree_on_their_layout_and_share_a_user_error(tp: int, layout: str) -> None:
    seen = run_ranks(_two_ranks, 2, tp=tp)
    for rank, facts in enumerate(seen):
        assert facts == {
            "rank": rank, "layout": layout, "gathered": [0, 10], "first": 5, "sum": 3.0, "fault": "no space",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("parallel", "key"),
    [
        (ParallelConfig(tp=2), "tp 2"),
        (ParallelConfig(vpp=2), "parallel.vpp"),
        (ParallelConfig(sequence_parallel=True), "parallel.sequence_parallel"),
    ],
)
def test_a_layout_that_does_not_fit_is_a_user_error(parallel: ParallelConfig, key: str) -> None:
    with pytest.raises(UserError, match=key), launched(parallel):
        pass


def _fails() -> None:
    raise ValueError("rank fault")


def test_a_failing_rank_ends_the_run_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="rank fault"):
        run_ranks(_fails, 2)
