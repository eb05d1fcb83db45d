"""Who competes: each trains the same weights on the same batches by the same optimizer, one step at a time.

All take next-token cross-entropy without a z-loss, clip the gradient's norm, and update by AdamW with the engine's
parameter groups. In bf16 the engine keeps weights in bf16 with fp32 masters; the others keep fp32 weights under
autocast, as such loops do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.pretrain import rivals
from benchmarks.pretrain.loop import Contender, Loop, Weights, bytes_of
from benchmarks.pretrain.plain import PlainModel
from synpro_engine.backend import platform
from synpro_engine.cycle import Recipe
from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.state import iter_canonical
from synpro_engine.train.engine import Engine, StepResult
from synpro_engine.train.losses import LanguageModelLoss

OURS, PLAIN = "synpro_engine", "plain-pytorch"


class Ours:
    """This engine, in any layout."""

    def __init__(self, recipe: Recipe, topology: Topology) -> None:
        self._topology = topology
        model = build_model(
            recipe.model,
            topology,
            dtype=platform.resolve_dtype(recipe.dtype),
            seed=0,
            recompute=recipe.pretrain.recompute,
            offload_layers=recipe.pretrain.offload_layers,
        )
        self.engine = Engine(
            model,
            recipe.pretrain.optimizer,
            overlap_gradients=recipe.pretrain.overlap_gradients,
            overlap_weights=recipe.pretrain.overlap_weights,
        )
        self._loss = LanguageModelLoss(output_layer=recipe.pretrain.output_layer)

    def step(self, batches: Sequence[Batch]) -> float:
        """See `Contender`."""
        return self.made(batches).loss

    def made(self, batches: Sequence[Batch]) -> StepResult:
        """A step on as many tokens on every replica."""
        tokens = self._topology.dp.size * sum(batch.tokens_BS.numel() for batch in batches)
        return self.engine.step(batches, self._loss, denominator=float(tokens))

    def held(self) -> dict[str, int]:
        """See `Contender`."""
        buffers = [buffer for chunk in self.engine.wrapped for buffer in chunk.buffers]
        states = [
            value
            for part in self.engine.optimizer.chained_optimizers
            for state in part.optimizer.state.values()
            for value in state.values()
        ]
        # fp32 copies of half-precision weights are what the optimizer steps on; fp32 weights are stepped on in place.
        half = self.engine.model.dtype != torch.float32
        masters = [p for g in self.engine.optimizer.param_groups for p in g["params"]] if half else []
        return {
            "weights": bytes_of(self.engine.model.parameters()),
            "gradients": bytes_of(buffer.grad_data for buffer in buffers),
            "optimizer": bytes_of(states) + bytes_of(masters),
        }


def plain(recipe: Recipe, weights: Weights, topology: Topology, *, compiled: bool = False) -> Contender:
    """Plain PyTorch, eager or by torch.compile."""
    model = PlainModel(recipe.model)
    # A tied head has no name of its own among the weights.
    missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if recipe.model.tie_embeddings else set()), missing
    return Loop(model, torch.compile(model) if compiled else model, recipe.pretrain.optimizer, topology.device)


CONTENDERS: dict[str, Callable[[Recipe, Weights, Topology], Contender]] = {
    OURS: lambda recipe, weights, topology: Ours(recipe, topology),
    PLAIN: plain,
    f"{PLAIN}-compiled": lambda recipe, weights, topology: plain(recipe, weights, topology, compiled=True),
    "transformers": rivals.transformers,
    "transformers-trainer": rivals.trainer,
    "liger": rivals.liger,
    "torchtitan": rivals.torchtitan,
}
"""Each is there where it can be imported; who cannot run gets a row that says why."""


def initial_weights(recipe: Recipe, topology: Topology) -> dict[str, Tensor]:
    """Those that `Ours` begins with, whole and in fp32."""
    model = build_model(recipe.model, topology, seed=0)
    return {name: tensor.clone() for name, tensor in iter_canonical(model)}
