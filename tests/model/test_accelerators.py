"""What a GPU's packages are asked within a model, by stand-ins of their signatures: call, layout, numbers."""

import sys

import pytest
import torch
from torch import Tensor

from synpro_engine.backend import platform
from synpro_engine.backend.platform import Choice
from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.layers import FlashAttention, scaled_dot_product
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig
from tests.model.stand_ins import Flash, GradientExtension, transformer_engine

LAYERS, ROWS, S, MICRO_BATCHES = 2, 3, 24, 2
FAMILIES = pytest.mark.parametrize("family", ["llama", "olmo2", "qwen3"])


def gradients(topology: Topology, family: str, *, apart: bool = False) -> list[Tensor]:
    """The loss and all gradients of a step in bf16."""
    shape = ModelConfig(
        family=family, layers=LAYERS, d_model=48, heads=6, kv_heads=2, ffn=64, vocab_size=96, seq_len=S, init_std=0.1
    )  # fmt: skip
    engine = Engine(build_model(shape, topology, dtype=torch.bfloat16), OptimizerConfig(clip=0.0))
    drawn = torch.randint(96, (MICRO_BATCHES, ROWS, S + 1), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(S) // 9).expand(ROWS, S)
    batches = [Batch(ids[:, :-1], ids[:, 1:], documents, apart) for ids in drawn]
    found = engine.step(
        batches, LanguageModelLoss(), denominator=float(drawn[..., 1:].numel()),
        rows_of=lambda batch: documents_apart(batch, topology.device),
    )  # fmt: skip
    buffers = [buffer.grad_data.clone() for chunk in engine.wrapped for buffer in chunk.buffers]
    assert all(bool(one.any()) for one in buffers)
    return [torch.tensor(found.loss), *buffers]


def alike(found: list[Tensor], expected: list[Tensor]) -> None:
    """As near as two ways through bf16 are: a unit of its last place, by which another layout is missed widely."""
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 2**-7 * other.norm()


@FAMILIES
def test_steps_by_flash_attn_are_those_by_torch(
    topology: Topology, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(topology, family)
    package = Flash()
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(platform, "attention", lambda head_dim: Choice("attention", "flash-attn", "a stand-in"))
    alike(gradients(topology, family), expected)
    assert package.calls == [((ROWS, S, 6, 8), (ROWS, S, 2, 8))] * LAYERS * MICRO_BATCHES


def test_queries_that_share_a_sequence_are_the_last_ones_to_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", Flash())
    layer = FlashAttention.__new__(FlashAttention)
    vars(layer)["softmax_scale"] = 0.3
    query, key, value = (torch.randn(9, 2, heads, 8, dtype=torch.bfloat16) for heads in (6, 2, 2))
    whole = scaled_dot_product(query, key, value, 0.3)
    torch.testing.assert_close(layer.attend(query[-4:], key, value), whole[-4:], rtol=2**-7, atol=2**-7)


@FAMILIES
def test_steps_by_transformer_engine_are_those_by_torch(
    topology: Topology, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(topology, family)
    monkeypatch.setattr(platform, "attention", lambda head_dim: Choice("attention", "transformer-engine", "a stand-in"))
    with transformer_engine() as attention:
        alike(gradients(topology, family), expected)
    assert attention.calls == [(S, ROWS, 6, 8)] * LAYERS * MICRO_BATCHES


@pytest.mark.parametrize("uses", ["flash-attn", "transformer-engine"])
def test_documents_that_are_read_apart_are_so_whoever_attends(
    topology: Topology, uses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither kernel is handed a mask; torch's takes these rows, and a causal one would see across documents."""
    expected, together = gradients(topology, "llama", apart=True), gradients(topology, "llama")
    assert (together[1] - expected[1]).norm() > 2**-5 * expected[1].norm()
    package = Flash()
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(platform, "attention", lambda head_dim: Choice("attention", uses, "a stand-in"))
    with transformer_engine() as attention:
        alike(gradients(topology, "llama", apart=True), expected)
    assert not package.calls and not attention.calls


@FAMILIES
def test_weight_gradients_that_an_extension_adds_are_those_without_it(
    topology: Topology, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(topology, family)
    extension = GradientExtension()
    layers = "megatron.core.tensor_parallel.layers"
    monkeypatch.setattr(f"{layers}.fused_weight_gradient_mlp_cuda", extension, raising=False)
    monkeypatch.setattr(f"{layers}._grad_accum_fusion_available", True)
    monkeypatch.setattr(platform, "gradient_fusion", lambda: Choice("gradient fusion", "on", "a stand-in"))
    alike(gradients(topology, family), expected)
    # Queries, keys and values together, what heads give, gates and what they gate, what the layer gives; backwards.
    assert sorted(extension.calls) == sorted([(80, 48), (48, 48), (128, 48), (48, 64)] * LAYERS * MICRO_BATCHES)


def test_the_stand_ins_pass_the_trials_of_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "_ones", lambda *shape, dtype=torch.bfloat16: torch.ones(shape, dtype=dtype))
    for package in (Flash(), GradientExtension()):
        monkeypatch.setitem(sys.modules, package.__name__, package)
    platform.import_fault.cache_clear()
    try:
        with transformer_engine():
            assert platform.flash_attention_fault.__wrapped__(16) is None
            assert platform.engine_attention_fault.__wrapped__(16) is None
            assert platform.gradient_extension_fault.__wrapped__() is None
    finally:
        platform.import_fault.cache_clear()
