"""Training that goes on in another layout of the same job is the training of one process."""

from pathlib import Path

import pytest

from synpro_engine.dist import Layout, ParallelConfig, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from tests.train.test_layouts import LAYOUTS, engine_of, train

STEPS = 2
TRAINED_IN = ("PP2", "TP2 SP", "DP2 overlap", "CP2", "PP2")


def _trained(directory: Path) -> dict[str, list[tuple[float, ...]]]:
    """Losses and norms by model; each layout goes on from the checkpoint of the one before, with AdamW's moments."""
    numbers: dict[str, list[tuple[float, ...]]] = {"olmo2": [], "tied llama": []}
    with launched(ParallelConfig()) as job:
        for index, name in enumerate(TRAINED_IN):
            place = job.divided(Layout.of(LAYOUTS[name], job.world_size)) if job.world_size > 1 else job
            for variant, found in numbers.items():
                engine = engine_of(variant, place, seed=index, overlap=name.endswith("overlap"))
                if index:
                    load_checkpoint(directory / f"{variant} {index - 1}", engine.model, engine)
                found += train(engine, range(STEPS * index, STEPS * (index + 1)))
                save_checkpoint(directory / f"{variant} {index}", engine)
    return numbers


def test_a_job_trains_on_in_layout_after_layout_as_one_process_does(tmp_path: Path) -> None:
    alone = _trained(tmp_path / "one")
    for numbers in run_ranks(_trained, 2, directory=tmp_path / "two"):
        for variant, expected in alone.items():
            assert len(expected) == STEPS * len(TRAINED_IN)
            assert numbers[variant] == [pytest.approx(step, rel=1e-4) for step in expected], variant
