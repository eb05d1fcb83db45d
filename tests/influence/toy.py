"""Small models whose every weight is a function of its name, alike in all layouts, and sequences to score."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synpro_engine.data import TokenCorpus, TokenLoader
from synpro_engine.dist import Topology
from synpro_engine.influence.batching import window_batches
from synpro_engine.influence.directions import Direction, displacement
from synpro_engine.influence.first_order import plain_logprobs
from synpro_engine.model.build import build_model
from synpro_engine.model.canonical import canonical_shapes, is_norm
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.model.state import load_canonical

START = 0
SHAPE: Any = {"layers": 4, "d_model": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab_size": 64, "seq_len": 16}
CONFIGS = {
    "olmo2": ModelConfig(family="olmo2", **SHAPE),
    "tied llama": ModelConfig(family="llama", tie_embeddings=True, **SHAPE),
    "qwen2": ModelConfig(family="qwen2", **SHAPE),
    "qwen3": ModelConfig(family="qwen3", **SHAPE | {"head_dim": 12}),
}


Cases = list[tuple[str, str]]


def layout_cases(layouts: Iterable[str]) -> list[Any]:
    """Parameters of a test, each a list of (layout, variant): one variant in every layout; and, slow, other ones.

    Those are all that there are where tensor-parallel ranks share out a block and its sequence; elsewhere what a block
    holds is no matter, and one more must do.
    """
    layouts = list(layouts)
    others = [
        (layout, v) for layout in layouts for v in CONFIGS if v == "tied llama" or ("SP" in layout and v != "olmo2")
    ]
    return [
        pytest.param([(layout, "olmo2") for layout in layouts], id="olmo2"),
        pytest.param(others, id="other blocks", marks=pytest.mark.slow),
    ]


def full_weights(config: ModelConfig, seed: int, size: float = 1.0) -> dict[str, Tensor]:
    """Norms around one, the rest around zero; with another seed and a small size, a change to add to them."""
    found = {}
    for index, (name, shape) in enumerate(canonical_shapes(config).items()):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        noise = torch.randn(shape, generator=generator)
        found[name] = 0.15 * size * noise + (1.0 if is_norm(name) and size == 1.0 else 0.0)
    return found


def model_of(config: ModelConfig, topology: Topology, seed: int = 1, dtype: torch.dtype = torch.float32) -> Model:
    model = build_model(config, topology, seed=None, dtype=dtype)
    load_canonical(model, full_weights(config, seed))
    return model


def moved(model: Model, seed: int = 2, size: float = 0.05) -> Model:
    """theta': another model, at full_weights(1) - full_weights(seed, size)."""
    before, change = full_weights(model.config, 1), full_weights(model.config, seed, size)
    other = build_model(model.config, model.topology, seed=None, dtype=model.dtype)
    load_canonical(other, {name: before[name] - change[name] for name in before})
    return other


def direction_of(model: Model, seed: int = 2, size: float = 0.05) -> Direction:
    return displacement(model, moved(model, seed, size))


def sequences(count: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    """Random tokens, of 1 to `longest`; the model's windows hold 16."""
    rng = np.random.default_rng(seed)
    return [rng.integers(64, size=rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def walks(seed: int, topology: Topology, batch: int = 4) -> TokenLoader:
    """Windows of arithmetic walks over the vocabulary: there is something to learn in them."""
    rng = np.random.default_rng(seed)
    texts = [(rng.integers(63) + np.arange(rng.integers(1, 41)) * (seed % 3 + 1)) % 63 + 1 for _ in range(40)]
    corpus = TokenCorpus(
        tokens=np.concatenate([[*text, START] for text in texts]).astype(np.int32),
        offsets=np.cumsum([0, *(len(text) + 1 for text in texts)]),
        eos_id=START,
        text_bytes=1,
        fingerprint="walks",
        read_ids=lambda: [str(i) for i in range(40)],
    )
    dp = topology.dp
    return TokenLoader({"text": corpus}, {"text": 1.0}, SHAPE["seq_len"], batch, seed, dp_rank=dp.rank, dp_size=dp.size)


def loss_of(model: Model, ids: list[int], weights: dict[Any, Tensor]) -> Tensor:
    """Mean cross-entropy of one sequence through the plain decoder, window by window; differentiable in `weights`."""
    batches = window_batches([ids], start_id=START, seq_len=model.config.seq_len, micro_batch=1)
    losses = [-plain_logprobs(model, b.tokens_BS, b.labels_BS, weights.__getitem__).sum() for b in batches]
    return torch.stack(losses).sum() / len(ids)


def per_example(model: Model, direction: Direction, given: list[list[int]], clip: float = 0.0) -> list[float]:
    """<grad L(x), v> by one backward pass a sequence in fp64: the definition; with `clip`, of clipped gradients."""
    weights = {p: p.detach().double().requires_grad_() for p in model.parameters()}
    v = torch.cat([direction.tensors[name].double().flatten() for name, _ in model.named_parameters()])
    found = []
    for ids in given:
        grads = torch.autograd.grad(loss_of(model, ids, weights), list(weights.values()))
        gradient = torch.cat([g.flatten() for g in grads])
        factor = min(1.0, clip / float(gradient.norm())) if clip else 1.0
        found.append(factor * float(gradient @ v))
    return found
