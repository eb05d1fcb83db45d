"""What every contender does: it trains one model by AdamW, a step at a time; and the loop that people write for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from synpro_engine.data import Batch
from synpro_engine.train.optimizer_config import OptimizerConfig, RatesConfig

Weights = Mapping[str, Tensor]


class Contender(Protocol):
    """One model with its optimizer."""

    def step(self, batches: Sequence[Batch]) -> float:
        """Train on these micro-batches; the mean loss before the update, nats a token."""
        ...

    def held(self) -> dict[str, int]:
        """Bytes of weights, gradients and what the optimizer keeps, on this rank."""
        ...


def adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """torch's, fused, with the engine's two groups: the embedding does not decay. NotImplementedError for `rates`."""
    if config.rates != RatesConfig():
        raise NotImplementedError("`pretrain.optimizer.rates` are the engine's alone")
    embedding = [p for name, p in module.named_parameters() if "embed_tokens" in name]
    rest = [p for name, p in module.named_parameters() if "embed_tokens" not in name]
    return torch.optim.AdamW(
        [{"params": rest}, {"params": embedding, "weight_decay": 0.0}],
        lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=config.weight_decay,
        fused=True,
    )  # fmt: skip


def held(module: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, int]:
    """See `Contender`; gradients as they are within a step."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    weights = bytes_of(module.parameters())
    return {"weights": weights, "gradients": weights, "optimizer": bytes_of(states)}


class Loop:
    """A loop as people write it around a module, by a function from (tokens, labels) to the summed loss."""

    def __init__(
        self, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], config: OptimizerConfig, device: torch.device
    ) -> None:
        self._module, self._loss, self._clip, self._device = module.to(device), loss, config.clip, device
        self._optimizer = adamw(module, config)

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
        """See `Contender`."""
        return held(self._module, self._optimizer)


def bytes_of(tensors: Iterable[object]) -> int:
    """Each memory once."""
    seen: dict[int, int] = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(seen.values())
