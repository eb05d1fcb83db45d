"""Training that has no memory left says so in one line, with numbers and the settings to change."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.train.trainer import pretrain
from tests.train.test_trainer import CONFIG, SHAPE, held_out, loader_of


def of_the_host() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def of_a_gpu() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.06 GiB is"
        " free. Of the allocated memory 70.33 GiB is allocated by PyTorch. If reserved but unallocated memory is large"
    )


@pytest.mark.parametrize(
    ("runs_out", "cause"),
    [
        (of_the_host, r"DefaultCPUAllocator: can't allocate memory: you tried to allocate 1125899906842624 bytes"),
        (of_a_gpu, r"CUDA out of memory\. Tried to allocate 2\.00 GiB\. GPU 0 has .* of which 1\.06 GiB is free\)"),
    ],
)
def test_what_takes_memory_and_what_makes_it_less_is_told(
    topology: Topology, tmp_path: Path, runs_out: Callable[[], None], cause: str
) -> None:
    loader = loader_of(topology)
    deal = loader.next_batch

    def next_batch() -> Batch:
        runs_out()
        return deal()

    loader.next_batch = next_batch
    counted = r"counted for a rank are \S+ GiB of weights, .* and \S+ GiB for a micro-batch of 2 x 16 tokens"
    mended = (
        r"lower `pretrain\.micro_batch` \(2\) or `model\.seq_len` \(16\), keep less by `pretrain.recompute: full`,"
        r" or .* by `parallel\.tp` \(1\) or"
    )
    with pytest.raises(UserError, match=f"^out of memory .*{cause}.*{counted}: {mended}"):
        pretrain(build_model(SHAPE, topology), CONFIG, loader, tmp_path, held_out=held_out(topology))


def test_another_fault_is_left_as_it_is(topology: Topology, tmp_path: Path) -> None:
    loader = loader_of(topology)

    def next_batch() -> Batch:
        raise RuntimeError("a bug")

    loader.next_batch = next_batch
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        pretrain(build_model(SHAPE, topology), CONFIG, loader, tmp_path, held_out=held_out(topology))
