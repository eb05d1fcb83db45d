"""Who competes: each trains the same weights on the same batches by the same optimizer, one step at a time.

All take next-token cross-entropy without a z-loss, clip the gradient's norm, and update by AdamW with the engine's
parameter groups. In bf16 the engine keeps weights in bf16 with fp32 masters; the others keep fp32 weights under
autocast, as such loops do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmarks.pretrain.plain import PlainModel
from synpro_engine.backend import platform
from synpro_engine.cycle import Recipe
from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.hf import hf_config
from synpro_engine.model.state import iter_canonical
from synpro_engine.train.config import OptimizerConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss

OURS, PLAIN = "synpro_engine", "plain-pytorch"
Weights = Mapping[str, Tensor]


class Contender(Protocol):
    """One model with its optimizer."""

    def step(self, batches: Sequence[Batch]) -> float:
        """Train on these micro-batches; the mean loss before the update, nats a token."""
        ...

    def held(self) -> dict[str, int]:
        """Bytes of weights, gradients and what the optimizer keeps, on this rank."""
        ...


class Ours:
    """This engine, in any layout."""

    def __init__(self, recipe: Recipe, topology: Topology) -> None:
        self._topology = topology
        model = build_model(recipe.model, topology, dtype=platform.resolve_dtype(recipe.dtype), seed=0)
        self.engine = Engine(model, recipe.pretrain.optimizer, overlap_gradients=recipe.pretrain.overlap_gradients)
        self._loss = LanguageModelLoss(output_layer=recipe.pretrain.output_layer)

    def step(self, batches: Sequence[Batch]) -> float:
        """See `Contender`."""
        tokens = self._topology.dp.size * sum(batch.tokens_BS.numel() for batch in batches)
        return self.engine.step(batches, self._loss, denominator=float(tokens)).loss

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
            "weights": _bytes(self.engine.model.parameters()),
            "gradients": _bytes(buffer.grad_data for buffer in buffers),
            "optimizer": _bytes(states) + _bytes(masters),
        }


class Loop:
    """A loop as people write it around a module that maps (tokens, labels) to the summed loss."""

    def __init__(
        self, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], config: OptimizerConfig, device: torch.device
    ) -> None:
        self._module, self._loss, self._clip, self._device = module.to(device), loss, config.clip, device
        embedding = [p for name, p in module.named_parameters() if "embed_tokens" in name]
        rest = [p for name, p in module.named_parameters() if "embed_tokens" not in name]
        self._optimizer = torch.optim.AdamW(
            [{"params": rest}, {"params": embedding, "weight_decay": 0.0}],
            lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=config.weight_decay,
            fused=True,
        )  # fmt: skip

    def step(self, batches: Sequence[Batch]) -> float:
        """See `Contender`."""
        tokens = sum(batch.tokens_BS.numel() for batch in batches)
        total = torch.zeros((), device=self._device)
        for batch in batches:
            with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
                loss = self._loss(batch.tokens_BS.to(self._device), batch.labels_BS.to(self._device)) / tokens
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self._module.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(total)

    def held(self) -> dict[str, int]:
        """See `Contender`; gradients as they are within a step."""
        states = [value for state in self._optimizer.state.values() for value in state.values()]
        weights = _bytes(self._module.parameters())
        return {"weights": weights, "gradients": weights, "optimizer": _bytes(states)}


def plain(recipe: Recipe, weights: Weights, topology: Topology, *, compiled: bool = False) -> Contender:
    """Plain PyTorch, eager or by torch.compile."""
    model = PlainModel(recipe.model)
    # A tied head has no name of its own among the weights.
    missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if recipe.model.tie_embeddings else set()), missing
    return Loop(model, torch.compile(model) if compiled else model, recipe.pretrain.optimizer, topology.device)


def transformers(recipe: Recipe, weights: Weights, topology: Topology) -> Contender:
    """The model and loss of transformers, in the steps that its Trainer makes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    told = hf_config(recipe.model, torch.float32, SimpleNamespace(model_ids={}))  # pyright: ignore[reportArgumentType]
    config = AutoConfig.for_model(**told)
    # An id for padding, which some families have by default, would keep its embedding from training.
    config.use_cache, config.pad_token_id = False, None
    module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    missing, unexpected = module.load_state_dict(dict(weights), strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if recipe.model.tie_embeddings else set()), missing

    def loss(tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        # Labels that are shifted already, and a divisor of 1: the loop divides.
        return module(input_ids=tokens_BS, labels=labels_BS, shift_labels=labels_BS, num_items_in_batch=1).loss

    return Loop(module, loss, recipe.pretrain.optimizer, topology.device)


CONTENDERS: dict[str, Callable[[Recipe, Weights, Topology], Contender]] = {
    OURS: lambda recipe, weights, topology: Ours(recipe, topology),
    PLAIN: plain,
    f"{PLAIN}-compiled": lambda recipe, weights, topology: plain(recipe, weights, topology, compiled=True),
    "transformers": transformers,
}


def initial_weights(recipe: Recipe, topology: Topology) -> dict[str, Tensor]:
    """Those that `Ours` begins with, whole and in fp32."""
    model = build_model(recipe.model, topology, seed=0)
    return {name: tensor.clone() for name, tensor in iter_canonical(model)}


def _bytes(tensors: Iterable[Tensor]) -> int:
    seen: dict[int, int] = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(seen.values())
