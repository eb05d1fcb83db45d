"""Activations that are made again: the same bits as those that are kept, in every layout, in less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.data import Batch
from synpro_engine.dist import Layout, ParallelConfig, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig, Recompute
from synpro_engine.model.dropout import dropouts
from synpro_engine.model.dropout_config import DropoutConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.footprint import Footprint
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig

FAMILIES = ("llama", "olmo2", "qwen3")
LAYOUTS: list[dict[str, Any]] = [{}, {"tp": 2}, {"tp": 2, "sequence_parallel": True}, {"pp": 2}, {"cp": 2}]
"""Of two ranks; the first is of two replicas."""
WAYS: tuple[Recompute, ...] = ("none", "mlp", "full")
DROPPED = DropoutConfig(embedding=0.2, attention=0.3, residual=0.2, depth=0.4, tokens=0.3, mask_token=5)


def shape(family: str) -> ModelConfig:
    return ModelConfig(
        family=family, layers=4, d_model=32, heads=4, kv_heads=2, ffn=96, vocab_size=64, seq_len=16
    )  # fmt: skip


def _steps(
    topology: Topology, family: str, recompute: Recompute, *, half: bool = False, drop: DropoutConfig | None = None
) -> list[float]:
    """Losses and gradient norms of three steps of two micro-batches."""
    dtype = torch.bfloat16 if half else torch.float32
    engine = Engine(build_model(shape(family), topology, dtype=dtype, recompute=recompute), OptimizerConfig(lr=1e-2))
    found = []
    for seed in range(3):
        ids = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(seed))
        rows = ids.chunk(topology.dp.size)[topology.dp.rank].split(2 if topology.dp.size == 1 else 1)
        dropped = dropouts(
            drop or DropoutConfig(), [len(part) for part in rows], first_row=2 * topology.dp.rank, seed=1,
            step=seed, layers=4, device=topology.device,
        )  # fmt: skip
        result = engine.step(
            [Batch(part[:, :-1], part[:, 1:]) for part in rows], LanguageModelLoss(1e-4), denominator=64.0,
            dropouts=dropped,
        )  # fmt: skip
        found += [result.loss, result.grad_norm]
    return found


Found = dict[tuple[str, Recompute, bool], list[float]]


def _in_layouts(ports: list[int]) -> Found:
    """`_steps` by layout, what is made again, and whether it is dropped from; one job after the other."""
    found: Found = {}
    for layout, port in zip(LAYOUTS, ports, strict=True):
        with job(ParallelConfig.model_validate(layout), port) as topology:
            for recompute in WAYS:
                for drop in (None, DROPPED) if layout in LAYOUTS[2:] else (None,):
                    case = str(layout), recompute, drop is not None
                    found[case] = _steps(topology, "olmo2", recompute, drop=drop)
    return found


@pytest.fixture(scope="module")
def in_layouts() -> list[Found]:
    """By rank."""
    return run_ranks(_in_layouts, 2, ports=free_ports(len(LAYOUTS)))


@pytest.mark.parametrize("recompute", WAYS[1:])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_losses_and_gradients_are_the_same_bits_in_every_layout(
    in_layouts: list[Found], recompute: Recompute, layout: dict[str, Any]
) -> None:
    for found in in_layouts:
        assert found[str(layout), recompute, False] == found[str(layout), "none", False]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_every_family_and_dtype_has_the_same_bits(family: str, half: bool) -> None:
    with launched(ParallelConfig()) as topology:
        kept, *again = (_steps(topology, family, recompute, half=half) for recompute in WAYS)
    assert again == [kept, kept]


@pytest.mark.parametrize("recompute", WAYS[1:])
@pytest.mark.parametrize("layout", LAYOUTS[2:], ids=str)
def test_what_is_made_again_is_dropped_from_as_before(
    in_layouts: list[Found], recompute: Recompute, layout: dict[str, Any]
) -> None:
    """In a pipeline too, where a block runs again after it has read another micro-batch."""
    for found in in_layouts:
        kept = found[str(layout), "none", True]
        assert found[str(layout), recompute, True] == kept != found[str(layout), "none", False]


def _kept(recompute: Recompute) -> tuple[int, float]:
    """Bytes that a forward pass keeps, and those that are counted."""
    with launched(ParallelConfig()) as topology:
        model = build_model(shape("llama"), topology, recompute=recompute)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept = dict[int, int]()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            assert model.hidden(torch.randint(0, 64, (4, 16))).requires_grad
        layout = Layout.of(ParallelConfig(), 1)
        said = Footprint(shape("llama"), layout, torch.float32, recompute=recompute).activations(4, 16)
        return sum(kept.values()), said


def test_less_is_kept_and_the_footprint_says_how_much() -> None:
    found = {recompute: _kept(recompute) for recompute in WAYS}
    assert found["full"][0] < 0.5 * found["mlp"][0] < 0.5 * found["none"][0]
    assert found["full"][1] < found["mlp"][1] < found["none"][1]
    for recompute in ("none", "mlp"):
        assert 0.5 < found[recompute][0] / found[recompute][1] < 2


def test_scores_in_training_are_refused_beside_it_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in_run: cannot be asked for with recompute full"):
        load_recipe("smoke", ["pretrain.recompute=full"])
    assert load_recipe("smoke", ["pretrain.recompute=full", "pretrain.in_run=null"]).pretrain.recompute == "full"
