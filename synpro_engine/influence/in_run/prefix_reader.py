"""The third way to read examples off a training step: take over the weight-gradient products, example by example.

Linear layers are run as if their weights were frozen, so that Megatron multiplies out activation gradients only; the
weight gradient, needed anyway, is then formed here from the same two factors, one row of the micro-batch after the
other, dotted with v and added to the trainer's buffer (`grad_dot_prefix`). No further product, any number of rows in a
micro-batch; but the sum over tokens is taken in another order, so training's last bits are not those of an unwatched
step (in bf16 they are better ones: an example's gradient is added in fp32 and never rounded to bf16).

The other weights, of norms, biases and the embedding, are cheap enough to be captured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.data import Batch
from synpro_engine.influence.directions import Direction
from synpro_engine.influence.examples import Examples
from synpro_engine.influence.first_order import Capture, stacked, weight_of, whole_sequence
from synpro_engine.model.model import Model
from synpro_engine.train.engine import LossFn
from synpro_engine.train.losses import LabelledBatch, LossTerms
from synpro_kernels import formed_dot, grad_dot_prefix


class PrefixReader:
    """Reads every row of every micro-batch; one example a row."""

    def __init__(self, model: Model, directions: Sequence[Direction]) -> None:
        precise = torch.promote_types(model.dtype, torch.float32)  # as a row's gradient is formed
        self._model, self._count = model, len(directions)
        stacks = stacked(model, directions, matrices=precise)
        self._head = stacks.get(model.output_weight()) if model.topology.is_last_stage else None
        self._linears: list[tuple[int, Any, Tensor]] = []
        for index, chunk in enumerate(model.chunks):
            for module in chunk.modules():
                weight = weight_of(module)
                linear = isinstance(module, (ColumnParallelLinear, RowParallelLinear))
                if linear and weight is not None and weight in stacks:
                    self._linears.append((index, module, stacks[weight]))
        taken_over = {id(module.weight) for _, module, _ in self._linears}
        others = {name for name, parameter in model.named_parameters() if id(parameter) not in taken_over}
        along_others = [Direction({n: t for n, t in v.tensors.items() if n in others}) for v in directions]
        self._capture = Capture(model, along_others)  # it leaves the output layer to the loss
        self._sums: list[Tensor] = []
        self._unread = 0  # rows whose loss has not shown a gradient of the output weight yet

    @contextlib.contextmanager
    def attached(self, loss_fn: LossFn[Any]) -> Iterator[LossFn[Any]]:
        """Take over within the block; use the loss function that it yields, which runs the given one row by row.

        A fused loss then holds an fp32 gradient of the output weight for each row, until the backward pass.
        """

        def freeze(module: Any, _args: Any) -> None:
            module.weight.requires_grad_(False)  # until its forward is over, which decides what its backward computes

        self._sums, self._unread = [], 0
        with self._capture.attached(frozen=False), contextlib.ExitStack() as stack:
            for chunk, module, direction in self._linears:
                stack.enter_context(module.register_forward_pre_hook(freeze))
                stack.enter_context(module.register_forward_hook(self._take_over(chunk, direction)))
            yield loss_fn if self._head is None else self._by_rows(loss_fn, self._head)

    def _row_sums(self, chunk: int, rows: int) -> Tensor:
        """[K, rows] of the micro-batch that a chunk is at."""
        while len(self._sums) <= self._capture.microbatch(chunk):
            device = self._model.topology.device
            self._sums.append(torch.zeros((self._count, rows), dtype=torch.float64, device=device))
        return self._sums[self._capture.microbatch(chunk)]

    def _take_over(self, chunk: int, direction_KOI: Tensor) -> Callable[[Any, tuple[Any, ...], Any], None]:
        topology = self._model.topology

        def run(module: Any, args: tuple[Any, ...], output: Any) -> None:
            module.weight.requires_grad_(True)
            # Held until the backward pass, as Megatron holds it for a weight that is not frozen.
            x, out = args[0].detach(), output[0]
            if not out.requires_grad:  # the first of the trained layers: nothing before it asks for a gradient
                out.requires_grad_(True)
            # Looked up in the forward: by the time of its backward pass, a pipeline is at other micro-batches.
            sums_KB = self._row_sums(chunk, x.size(1))

            def accumulate(grad: Tensor) -> None:
                # Ranks share out a column-parallel layer's outputs and a row-parallel one's inputs. Under sequence
                # parallelism each holds the other factor for its own positions only.
                column = isinstance(module, ColumnParallelLinear)
                x_SBI, grad_SBO = (whole_sequence(x, topology), grad) if column else (x, whole_sequence(grad, topology))
                sums_KB.add_(_accumulate(x_SBI, grad_SBO, direction_KOI, module.weight.main_grad))
                if module.bias is not None:  # beside a frozen weight Megatron gives it no gradient
                    module.bias.main_grad += grad.sum((0, 1), dtype=module.bias.main_grad.dtype)

            out.register_hook(accumulate)

        return run

    def _by_rows(self, loss_fn: LossFn[Any], direction_KVH: Tensor) -> LossFn[Any]:
        """Each row's loss reads an alias of the output weight, whose gradient is then the row's own."""
        model = self._model

        def run(_model: Model, hidden_BSH: Tensor, batch: LabelledBatch) -> LossTerms:
            parts, sums_KB = [], self._row_sums(-1, hidden_BSH.size(0))
            rows = zip(hidden_BSH.split(1), batch.tokens_BS.split(1), batch.labels_BS.split(1), strict=True)
            for row, (hidden, tokens, labels) in enumerate(rows):
                weight = model.output_weight()
                # Each view has a gradient of its own; of the Parameter autograd would show the sum over rows only.
                alias = weight.view_as(weight)
                alias.register_hook(self._adder(sums_KB[:, row], direction_KVH))
                self._unread += 1
                aliased = _Aliased(model.config, model.topology, model.chunks, model.dtype, alias)
                parts.append(loss_fn(aliased, hidden, Batch(tokens, labels)))
            objective = torch.stack([part.objective for part in parts]).sum()
            loss = torch.stack([part.loss for part in parts]).sum()
            extras = {name: torch.stack([part.extras[name] for part in parts]).sum() for name in parts[0].extras}
            return LossTerms(objective=objective, loss=loss, extras=extras)

        return run

    def _adder(self, total_K: Tensor, direction_KVH: Tensor) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            self._unread -= 1
            total_K.add_(formed_dot(gradient, direction_KVH))

        return add

    def sums(self, examples: Sequence[Examples]) -> Tensor:
        """[K, examples], after the step."""
        assert not self._unread, "the loss read the output layer past the model it was given"
        shares = self._capture.shares
        assert len(shares) == len(examples), (len(shares), len(examples))
        captured = [of.sums(part.values_KSB) for of, part in zip(examples, shares, strict=True)]
        if not self._sums:  # a stage without a linear layer along the directions
            return torch.cat(captured, 1)
        return torch.cat([rows + part for rows, part in zip(self._sums, captured, strict=True)], 1)


def _accumulate(x_SBI: Tensor, grad_SBO: Tensor, direction_KOI: Tensor, buffer_OI: Tensor) -> Tensor:
    """Add the weight gradient to the buffer row by row; <each row's own, v_k>, [K, B]."""
    length, rows = x_SBI.shape[:2]
    if x_SBI.is_cuda:  # one launch is worth a copy in the order of the rows
        x_TI, grad_TO = (tensor.transpose(0, 1).flatten(0, 1) for tensor in (x_SBI, grad_SBO))
        boundaries = range(0, rows * length + 1, length)
        return grad_dot_prefix(x_TI, grad_TO, direction_KOI, boundaries, accumulator=buffer_OI)[0]
    pairs = zip(x_SBI.unbind(1), grad_SBO.unbind(1), strict=True)
    parts = [grad_dot_prefix(x, grad, direction_KOI, (0, length), accumulator=buffer_OI)[0] for x, grad in pairs]
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class _Aliased(Model):
    """The same model, whose output weight is another view of it."""

    alias: Tensor

    def output_weight(self) -> Parameter:
        """The alias; whoever differentiates treats it as the parameter."""
        return self.alias  # pyright: ignore[reportReturnType]
