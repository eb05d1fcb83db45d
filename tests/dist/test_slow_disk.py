"""A disk may be as slow as it likes: ranks that have nothing to write wait outside collectives."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from synpro_engine.data import load_tokenizer
from synpro_engine.dist import ParallelConfig
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.influence import save_direction
from synpro_engine.model import tensor_files
from synpro_engine.model.hf import export_hf
from synpro_engine.train import checkpoint_files
from synpro_engine.train.checkpoint import save_checkpoint
from tests.influence.toy import CONFIGS, direction_of, model_of

MINUTES = 0.1  # for a collective


def slowed(write: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        time.sleep(60 * MINUTES + 2)
        return write(*args, **kwargs)

    return call


def write_slowly(directory: Path, port: int) -> list[str]:
    with job(ParallelConfig(tp=2, timeout_minutes=MINUTES), port) as topology:
        model = model_of(CONFIGS["olmo2"], topology)
        tensor_files.save_file = slowed(tensor_files.save_file)
        save_direction(directory / "direction", model, direction_of(model))
        export_hf(model, directory / "export", load_tokenizer(directory / "tokenizer.json"))
        if topology.rank == 1:
            writer: Any = checkpoint_files.dcp.FileSystemWriter
            writer.write_data = slowed(writer.write_data)
        save_checkpoint(directory / "checkpoint", model)
        return sorted(path.name for path in directory.iterdir() if path.is_dir())


@pytest.mark.slow
def test_writing_may_take_longer_than_a_collective(tmp_path: Path):
    Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    found = run_ranks(write_slowly, 2, directory=tmp_path, port=free_ports(1)[0])
    assert found == [["checkpoint", "direction", "export"]] * 2
