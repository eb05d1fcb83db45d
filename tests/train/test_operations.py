"""How many operations a layer of a training step is, and how often the host waits for one."""

import warnings
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig, Recompute
from synpro_engine.model.layers import FullWidthRMSNorm
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig
from synpro_kernels.common.extension import csrc_loaded
from tests.counting import WAITS, Counted, Waited

with_csrc = pytest.mark.skipif(not csrc_loaded(), reason="counted with compiled ops; their definitions are many")


def made(topology: Topology, family: str, layers: int, microbatches: int) -> tuple[Counter[str], int]:
    """Operations of a step in bf16, views aside, and waits."""
    shape = ModelConfig(
        family=family, layers=layers, d_model=64, heads=4, kv_heads=2, ffn=96, vocab_size=96, seq_len=64
    )  # fmt: skip
    engine = Engine(build_model(shape, topology, dtype=torch.bfloat16), OptimizerConfig(clip=0.0))
    ids = torch.randint(96, (2, 33), generator=torch.Generator().manual_seed(0))
    batches = [Batch(ids[:, :-1], ids[:, 1:])] * microbatches
    engine.step(batches, LanguageModelLoss(1e-4), denominator=64.0)  # which makes the optimizer's state
    with Counted() as counted, Waited() as waited:
        engine.step(batches, LanguageModelLoss(1e-4), denominator=64.0)
    return counted.made, waited.times + sum(counted.made[name] for name in WAITS)


@with_csrc
@pytest.mark.parametrize("family", ["llama", "olmo2", "qwen3"])
def test_a_layer_is_54_operations_forward_and_backward_and_a_step_waits_once(topology: Topology, family: str) -> None:
    # What two layers more take in one micro-batch more: heads, ends and the optimizer cancel.
    (few, _), (deep, waits) = made(topology, family, 2, 1), made(topology, family, 4, 1)
    (more, _), (deeper, more_waits) = made(topology, family, 2, 2), made(topology, family, 4, 2)
    each = ((deeper.total() - deep.total()) - (more.total() - few.total())) / 2
    assert each <= 54, (deeper - deep) - (more - few)
    assert more_waits == waits == 1, "the step's: its sums and its gradient's norm"


ASKED: Any = vars(torch._C.TensorBase)["is_cuda"].__get__


class SaidToBeOnCuda(TorchFunctionMode):
    """Every tensor that is asked says so, and lies where it lies: what branches by the answer goes the GPU's way."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func == ASKED else func(*args, **(kwargs or {}))


@with_csrc
@pytest.mark.parametrize("said", [False, True])
def test_a_norm_of_all_heads_is_as_few_operations_where_tensors_are_said_to_be_on_cuda(
    topology: Topology, said: bool
) -> None:
    shape = ModelConfig(family="olmo2", layers=1, d_model=64, heads=4, kv_heads=4, ffn=96, vocab_size=96, seq_len=64)
    model = build_model(shape, topology, dtype=torch.bfloat16)
    norms = [module for chunk in model.chunks for module in chunk.modules() if isinstance(module, FullWidthRMSNorm)]
    mixed = torch.randn(32, 2, 4, 3 * 16, dtype=torch.bfloat16).requires_grad_()
    assert len(norms) == 2
    for norm, of in zip(norms, mixed.chunk(3, -1)[:2], strict=True):
        upon = torch.ones(32, 2, 4, 16, dtype=torch.bfloat16)
        with SaidToBeOnCuda() if said else nullcontext(), Counted() as counted:
            assert of.is_cuda == said
            torch.autograd.grad(norm(of), [of, norm.weight], upon)
        names = Counter({name: times for name, times in counted.made.items() if "synpro_csrc" in name})
        assert names == {"synpro_csrc::rms_norm": 1, "synpro_csrc::rms_norm_backward": 1}
        assert counted.made.total() <= 4, "beside both a copy of the heads, which lie in a wider product, and its view"


@with_csrc
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_cos_and_sin_are_made_for_all_layers_at_once(topology: Topology, recompute: Recompute, apart: bool) -> None:
    """Of rows whose documents are read apart, by each micro-batch; of plain ones, by the first pass of all."""
    shape = ModelConfig(layers=3, d_model=64, heads=4, kv_heads=2, ffn=96, vocab_size=96, seq_len=64)
    engine = Engine(build_model(shape, topology, dtype=torch.bfloat16, recompute=recompute), OptimizerConfig(clip=0.0))
    ids = torch.randint(96, (2, 33), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(32) // 9).expand(2, 32)
    batches = [Batch(ids[:, :-1], ids[:, 1:], documents, apart)] * 2

    def step() -> Counter[str]:
        with Counted() as counted:
            engine.step(
                batches, LanguageModelLoss(), denominator=64.0,
                rows_of=lambda batch: documents_apart(batch, topology.device),
            )  # fmt: skip
        return counted.made

    first, second = step(), step()
    for name in ("aten::cos", "aten::sin"):
        assert (first[name], second[name]) == ((2, 2) if apart else (1, 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_a_step_waits_once(topology: Topology) -> None:
    shape = ModelConfig(layers=2, d_model=64, heads=4, kv_heads=2, ffn=96, vocab_size=96, seq_len=64)
    engine = Engine(build_model(shape, topology, dtype=torch.bfloat16), OptimizerConfig())
    ids = torch.randint(96, (2, 33), generator=torch.Generator().manual_seed(0))
    batches = [Batch(ids[:, :-1], ids[:, 1:], (torch.arange(32) // 9).expand(2, 32), apart=True)] * 2

    def step() -> None:
        engine.step(
            batches, LanguageModelLoss(1e-4), denominator=64.0,
            rows_of=lambda batch: documents_apart(batch, topology.device),
        )  # fmt: skip

    step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(one.message) for one in told) == 1
