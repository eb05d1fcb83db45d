"""The hash of a model's weights: of all tensors by name, in every layout, with a layer in memory at most."""

import hashlib

import pytest
import torch
from torch.nn import Parameter

from synpro_engine.cycle.steps.weights import weights_hash
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model import canonical
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.model.state import canonical_state, iter_by_name

# Twelve layers: by name the eleventh comes before the third.
SHAPE = ModelConfig(layers=12, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_len=16)
MODELS = {
    "olmo2": (SHAPE, torch.float32),
    "qwen2 tied": (SHAPE.model_copy(update={"family": "qwen2", "tie_embeddings": True}), torch.bfloat16),
    "qwen3": (SHAPE.model_copy(update={"family": "qwen3"}), torch.float32),
}
LAYOUTS = (ParallelConfig(), ParallelConfig(tp=2), ParallelConfig(pp=2), ParallelConfig(pp=2, vpp=2))


def _models(topology: Topology) -> dict[str, Model]:
    return {name: build_model(config, topology, dtype=dtype, seed=3) for name, (config, dtype) in MODELS.items()}


def _of_all_at_once(model: Model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(canonical_state(model).items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hashes(ports: list[int]) -> list[dict[str, str]]:
    found = []
    for parallel, port in zip(LAYOUTS, ports, strict=True):
        with job(parallel, port) as topology:
            found.append({name: weights_hash(model) for name, model in _models(topology).items()})
    return found


@pytest.mark.slow
def test_the_hash_is_that_of_all_tensors_sorted_by_name_on_every_rank_of_every_layout() -> None:
    with launched(ParallelConfig()) as topology:
        models = _models(topology)
        alone = {name: _of_all_at_once(model) for name, model in models.items()}
        assert {name: weights_hash(model) for name, model in models.items()} == alone
    assert len(set(alone.values())) == len(MODELS)
    assert run_ranks(_hashes, 2, ports=free_ports(len(LAYOUTS))) == [[alone] * len(LAYOUTS)] * 2


def _numbers(config: ModelConfig, prefix: str) -> int:
    """Numbers in a layer, or in a table outside the layers."""
    shapes = canonical.canonical_shapes(config)
    return sum(torch.Size(shape).numel() for name, shape in shapes.items() if f"{name}.".startswith(f"{prefix}."))


@pytest.mark.parametrize("name", MODELS)
def test_no_more_than_a_layer_is_held_back(name: str) -> None:
    config, dtype = MODELS[name]
    tables_and_layers = canonical.canonical_shapes(config)
    largest = max(_numbers(config, part) for part in {".".join(name.split(".")[:3]) for name in tables_and_layers})
    read: list[Parameter] = []

    def counted(parameter: Parameter) -> torch.Tensor:
        read.append(parameter)
        return parameter.detach()

    with launched(ParallelConfig()) as topology:
        model = build_model(config, topology, dtype=dtype)
        given, most, names = 0, 0, []
        for tensor_name, tensor in iter_by_name(model, read=counted):
            most = max(most, sum(parameter.numel() for parameter in read) - given)
            given += tensor.numel()
            names.append(tensor_name)
    assert names == sorted(tables_and_layers) and 0 < most <= largest
