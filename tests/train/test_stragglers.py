"""A rank that computes slower than the others is named, with its machine, once."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from synpro_engine.data import Batch, TokenLoader
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.model import Model
from synpro_engine.train import stragglers
from synpro_engine.train.config import StragglerConfig
from synpro_engine.train.engine import Engine, LossFn
from synpro_engine.train.losses import LossTerms
from synpro_engine.train.metrics import METRICS, MetricsLog, read_metrics
from synpro_engine.train.trainer import pretrain
from synpro_engine.train.watcher import Watching
from tests.train import test_trainer as toy

PAUSE_S = 0.5


class Slow:
    """Looks on, and has one rank's forward pass take longer."""

    def __init__(self, here: bool) -> None:
        self._here = here

    def begin(self, engine: Engine, loader: TokenLoader, log: MetricsLog, resume_step: int | None) -> None:
        """Nothing to begin."""

    def stop(self) -> None:
        """Nothing to keep."""

    def saved(self) -> None:
        """Nothing was kept."""

    @contextmanager
    def watching(self, microbatches: Sequence[Batch], loss_fn: LossFn[Batch], denominator: int) -> Iterator[Watching]:
        def slower(model: Model, hidden_BSH: Tensor, batch: Batch) -> LossTerms:
            time.sleep(PAUSE_S if self._here else 0.0)
            return loss_fn(model, hidden_BSH, batch)

        yield Watching(slower)


def _train(directory: str, slow: int, cp: int = 1) -> list[str]:
    """What is said on the way."""
    said = list[str]()
    stragglers.say = lambda topology, text: said.append(text)
    config = toy.CONFIG.model_copy(update={"stragglers": StragglerConfig(every=2, ratio=2.0), "plateau": None})
    with launched(ParallelConfig(cp=cp)) as topology:
        pretrain(
            build_model(toy.SHAPE, topology), config, toy.loader_of(topology), Path(directory),
            held_out=toy.held_out(topology), watcher=Slow(topology.rank == slow),
        )  # fmt: skip
    return said


@pytest.mark.parametrize("slow", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_rank_that_the_others_wait_for_is_named_once(slow: int, tmp_path: Path) -> None:
    said, _ = run_ranks(_train, 2, directory=str(tmp_path), slow=slow)
    looks = [record for record in read_metrics(tmp_path / METRICS) if record["kind"] == "ranks"]
    assert [record["step"] for record in looks] == [2, 4, 6]
    assert all(record["rank"] == slow and record["seconds"] > PAUSE_S > record["median"] for record in looks)
    assert len(said) == 1 and said[0].startswith(f"step 4: rank {slow} on {looks[0]['host']} is slow: ")


def test_ranks_that_share_sequences_are_compared_as_one_and_their_first_is_named(tmp_path: Path) -> None:
    """They wait for each other, so that either may seem the slower, and half of all ranks may."""
    said, *_ = run_ranks(_train, 4, directory=str(tmp_path), slow=3, cp=2)
    looks = [record for record in read_metrics(tmp_path / METRICS) if record["kind"] == "ranks"]
    assert [(record["step"], record["rank"]) for record in looks] == [(2, 2), (4, 2), (6, 2)]
    assert all(record["seconds"] > PAUSE_S > record["median"] for record in looks)
    assert len(said) == 1 and "rank 2 on" in said[0] and "or one of the 1 that compute with it" in said[0]


def test_a_job_of_one_rank_waits_for_nobody(tmp_path: Path, topology: Any) -> None:
    toy.train(topology, tmp_path, toy.CONFIG.model_copy(update={"stragglers": StragglerConfig(every=1)}))
    assert not [record for record in read_metrics(tmp_path / METRICS) if record["kind"] == "ranks"]
