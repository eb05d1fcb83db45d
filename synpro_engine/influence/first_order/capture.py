"""Hooks that score every position of a batch while autograd passes by: no weight gradient, no second pass.

When a layer has seen its input and its output gradient, its share (`layer_dots`) is added to the micro-batch it belongs
to. That holds for any loss; the output layer's part is added by whoever computes the loss, since logits exist only
there, block by block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from torch import Tensor, nn
from torch.nn import Parameter

from synpro_engine.influence.batching import MicrobatchHooks
from synpro_engine.influence.directions import Direction, check_fits
from synpro_engine.influence.first_order.layer_dots import Site, bias_of, bias_site, site_of, weight_of
from synpro_engine.model.model import Model


@dataclass(frozen=True)
class Shares:
    """One micro-batch: its tokens as padded for the model, and what this rank adds to each position's share.

    Summed over the tensor and pipeline axes, `values_KSB` (fp64) are the shares of every position in <grad, v_k>, grad
    being that of the loss that was differentiated. They are by position of the *site*: that of a layer's input and
    output, whatever later token's loss the gradient came from.
    """

    tokens_BS: Tensor
    values_KSB: Tensor


class Capture:
    """Collects `shares`, one `Shares` a micro-batch in the order of the forwards, for directions on one model."""

    def __init__(self, model: Model, directions: Sequence[Direction]) -> None:
        """Linear layers are scored in the model's dtype, as they are multiplied; norms in fp32."""
        assert not model.megatron_config.recompute_granularity, "recomputation would run layers twice"
        self._model = model
        self._hooks = MicrobatchHooks(model)
        self.count = len(directions)
        self.directions = stacked(model, directions, matrices=model.dtype)
        self.shares: list[Shares] = []

    def output_direction(self) -> Tensor:
        """[K, V, H] of the output layer, on the last stage, or [0, V, H] where no direction names it.

        Tied weights are scored there and at the embedding.
        """
        weight = self._model.output_weight()
        return self.directions.get(weight, weight.detach().new_empty((0, *weight.shape)))

    def microbatch(self, chunk: int) -> int:
        """Index of the micro-batch that a chunk of this rank is at."""
        return self._hooks.index[chunk]

    def shares_at(self, chunk: int) -> Shares:
        """Those of the micro-batch that a chunk of this rank is at."""
        return self.shares[self.microbatch(chunk)]

    def _begin(self, index: int, tokens_BS: Tensor) -> None:
        """An interleaved rank's other chunks come to the same micro-batch later."""
        if index == len(self.shares):
            # fp64: shares of hundreds of sites, of both signs, are added up here.
            shape = (self.count, *tokens_BS.t().shape)
            self.shares.append(Shares(tokens_BS, torch.zeros(shape, dtype=torch.float64, device=tokens_BS.device)))

    @contextlib.contextmanager
    def attached(self, *, frozen: bool) -> Iterator[None]:
        """Listen within the block. `frozen`: no parameter requires a gradient; they begin at the embedding's output."""

        def as_leaf(_module: Any, _args: Any, out: Tensor) -> Tensor:
            # With all weights frozen no output would ask for a gradient; behind this leaf all activations do.
            return out.detach().requires_grad_(True)

        self.shares = []
        # Given here: hooks that knew us would keep us, and copies of directions, until Python looks for cycles.
        with self._hooks.counted(self._begin) as stack:
            for number, chunk in enumerate(self._model.chunks):
                for module in chunk.modules():
                    # Before the listener: a module's hooks run in order, and what it must see is the new leaf.
                    if frozen and isinstance(module, LanguageModelEmbedding):
                        stack.enter_context(module.register_forward_hook(as_leaf))
                    for site in self._sites(module):
                        hook = self._listener(number, site)
                        # Megatron calls the embedding with keywords.
                        stack.enter_context(module.register_forward_hook(hook, with_kwargs=True))
            yield

    def _sites(self, module: nn.Module) -> Iterator[Site]:
        weight, bias = weight_of(module), bias_of(module)
        if weight is not None and weight in self.directions:
            site = site_of(module, self.directions[weight], self._model.topology)
            if site is not None:
                yield site
        if bias is not None and bias in self.directions:
            yield bias_site(self.directions[bias])

    def _listener(self, chunk: int, site: Site) -> Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]:
        def listen(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x = args[0] if args else kwargs["input_ids"]
            out = output[0] if isinstance(output, tuple) else output  # Megatron's linear layers return a bias too
            if out.requires_grad:
                # A view, so that nothing of the graph is kept beyond the backward pass. The micro-batch is looked up
                # now: by the time of its backward pass, a pipeline has begun others.
                x, shares = x.detach(), self.shares_at(chunk)
                # `_add` returns None; anything else would replace the gradient.
                out.register_hook(lambda grad: self._add(shares, site(x, grad)))

        return listen

    def _add(self, shares: Shares, part_KSB: Tensor) -> None:
        values_KSB = shares.values_KSB
        length = part_KSB.size(1)
        # Under sequence parallelism some sites see this rank's positions only.
        # The ranks hold equal parts of the positions, in rank order.
        start = self._model.topology.tp.rank * length if length < values_KSB.size(1) else 0
        values_KSB[:, start : start + length] += part_KSB


def stacked(model: Model, directions: Sequence[Direction], *, matrices: torch.dtype) -> dict[Parameter, Tensor]:
    """[K, *shape] of every parameter that a direction names; `matrices` in this dtype, vectors as they were given."""
    for direction in directions:
        check_fits(model, direction)
    stacks: dict[Parameter, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors = [direction.tensors.get(name) for direction in directions]
        if any(tensor is not None for tensor in tensors):
            # 0 for a direction that does not name the parameter, so that all K share one product.
            whole = [torch.zeros_like(parameter) if tensor is None else tensor.detach() for tensor in tensors]
            cast = [tensor.to(matrices) if tensor.dim() == 2 else tensor for tensor in whole]
            stacks[parameter] = cast[0][None] if len(cast) == 1 else torch.stack(cast)  # one is not copied
    return stacks
