"""One optimizer step on any layout: Megatron's schedule, gradient buffers and distributed optimizer behind `step`.

The contract: with loss_fn's sums L_i over all micro-batches i of all data-parallel ranks, the gradient that is applied
is that of sum_i(L_i) / denominator, whatever the layout. Megatron would divide by the number of micro-batches and of
data-parallel ranks; told that losses are sums per token, it divides by neither. Context-parallel ranks are given the
same micro-batches, and each one's sums are of its share of their positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from synpro_engine.backend.spans import OPTIMIZER, span
from synpro_engine.config import UserError
from synpro_engine.dist import broadcast_in, gather_objects
from synpro_engine.model.build import refuse_traps
from synpro_engine.model.dropout import Dropout
from synpro_engine.model.model import Model, run_chunk
from synpro_engine.model.shared_rows import SharedRows
from synpro_engine.model.trunk import Trunk
from synpro_engine.train.averages import WeightAverage
from synpro_engine.train.config import AverageConfig, WeightsOf
from synpro_engine.train.losses import LossTerms, MicroBatch
from synpro_engine.train.muon import Muon
from synpro_engine.train.optimizer import (
    build_optimizer,
    check_rates,
    decay_at,
    gather_gradients,
    lr_factor,
    set_hyperparameters,
    update,
)
from synpro_engine.train.optimizer_config import OptimizerConfig, ScheduleConfig
from synpro_engine.train.owned import check_owned_once
from synpro_engine.train.weight_gather import WeightGather

_STOP = "stop"
M = TypeVar("M", bound=MicroBatch)
LossFn = Callable[[Model, Tensor, M], LossTerms]
RowsOf = Callable[[M], SharedRows | None]
TrunkOf = Callable[[M], Trunk | None]
Accept = Callable[[float, float], bool]
"""Whether a step of this loss and gradient norm may be made."""


class _Pass(NamedTuple, Generic[M]):
    """A micro-batch, how its rows are read, and what is dropped of it."""

    batch: M
    rows: SharedRows | None
    dropout: Dropout | None


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did; equal on every rank.

    step: steps completed, this one included. loss: sum of the reported losses over the denominator. grad_norm: before
    clipping. skipped: loss or gradient was not finite, or not accepted, and nothing changed. extras: sums over all
    micro-batches and ranks. stop: the job was asked to stop, and this is the step after which it does.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    weight_decay: float
    skipped: bool
    extras: dict[str, float]
    stop: bool = False


class Engine:
    """Trains the parameters of `model` that require gradients; the others stay frozen and cost no state.

    Building it moves the trainable parameters into Megatron's contiguous buffers: `Parameter` objects stay the same,
    their storage does not, so take `data_ptr`s afterwards. All its methods are collective over the whole job.
    """

    def __init__(
        self,
        model: Model,
        optimizer: OptimizerConfig,
        *,
        schedule: ScheduleConfig | None = None,
        overlap_gradients: bool = False,
        overlap_weights: bool = False,
        averages: Mapping[WeightsOf, AverageConfig] | None = None,
        given: WeightsOf = "raw",
    ) -> None:
        """averages: what is kept beside the weights. given: what a model that is loaded from a checkpoint becomes.

        overlap_weights: `step` returns while replicas still send each other what they updated; `Model` waits for it.
        """
        # At the door, and not at the step: what is refused here trains without an error, to wrong weights.
        refuse_traps(model)
        self.model = model
        self.optimizer_config = optimizer
        self.schedule = schedule or ScheduleConfig()
        self.step_index = 0  # steps completed
        self.schedule_start = 0  # the step at which the schedule begins
        model.arrive()  # what an older engine has under way: the weights move away from there
        # Before the optimizer, which takes its shards from the buffers that the wrapper makes.
        self.wrapped: list[Any] = _wrap(model, overlap_gradients, overlap_weights)
        self._gather = WeightGather(self.wrapped, behind=overlap_weights)
        self.optimizer = build_optimizer(optimizer, self.wrapped, model.dtype)
        check_owned_once(model, self.optimizer)
        check_rates(model, optimizer)
        self.muon = Muon(model, self.optimizer) if optimizer.name == "muon" else None
        # Here and not at their first step, which may be hours away: memory that is not there shows at once.
        kept = dict(averages or {}).items()
        self.averages = {name: WeightAverage(config, self.optimizer) for name, config in kept}
        self.given: WeightsOf = given
        self._holds: WeightsOf = "raw"
        self._install_hooks(overlap_gradients)

    def _install_hooks(self, overlap_gradients: bool) -> None:
        settings: Any = self.model.megatron_config
        # The schedules read their hooks from the model's settings, which outlive an engine:
        # the newest engine's hooks count.
        settings.finalize_model_grads_func = _finalize_sums
        settings.grad_scale_func = None  # no loss scaling: fp32 and bf16 need none
        # Megatron takes a list from an interleaved pipeline and the bare function from all others.
        hooks = [chunk.no_sync for chunk in self.wrapped] if overlap_gradients else None
        settings.no_sync_func = hooks[0] if hooks and len(hooks) == 1 else hooks

    @property
    def lr(self) -> float:
        """Learning rate of the next step; AdamW's, where matrices have Muon's."""
        return self.optimizer_config.lr * self._lr_factor

    @property
    def weight_decay(self) -> float:
        """Weight decay of the next step, as the settings count it."""
        return decay_at(self.optimizer_config, self.step_index - self.schedule_start)

    @property
    def _lr_factor(self) -> float:
        return lr_factor(self.schedule, self.step_index - self.schedule_start)

    @contextmanager
    def holding(self, weights: WeightsOf) -> Iterator[None]:
        """Within the block the model holds these weights, which are `raw` or kept by this engine. Collective.

        Afterwards it has its own back, bit for bit. An average that no weights were taken into yet is the raw ones.
        """
        average = None if weights == "raw" else self.averages[weights]
        if average is None or average.taken == 0:
            yield
            return
        assert self._holds == "raw", "one after the other"
        self._gather.finish()
        average.exchange()
        self._gather.now()
        self._holds = weights
        try:
            yield
        except BaseException:
            # This rank's own share alone: the others may be at another collective, and the job ends.
            average.exchange()
            raise
        else:
            average.exchange()
            self._gather.now()
        finally:
            self._holds = "raw"

    def restart_schedule(self) -> None:
        """Begin the schedule anew at the present step (steps keep their numbers)."""
        self.schedule_start = self.step_index

    def step(
        self,
        microbatches: Sequence[M],
        loss_fn: LossFn[M],
        *,
        denominator: float,
        rows_of: RowsOf[M] = lambda batch: None,
        trunk_of: TrunkOf[M] = lambda batch: None,
        accept: Accept = lambda loss, grad_norm: True,
        dropouts: Sequence[Dropout] | None = None,
    ) -> StepResult:
        """Accumulate over this data-parallel rank's `microbatches` and update the parameters once.

        denominator: of the whole job, the same on every rank (for a mean over tokens, their number on all ranks).
        In a pipeline every stage is given the same micro-batches, all of one shape; `loss_fn` runs on the last stage.
        Micro-batches are handed to it whole, hidden states as this rank's share has them (`Model.own_columns`).
        rows_of: how a micro-batch's rows are to be read, where they hold several continuations of one beginning.
        trunk_of: what the frozen first blocks make of them, where that is known; without a pipeline.
        accept: asked before the update, where loss and norm are finite; it must say the same on every rank.
        dropouts: what is dropped of each micro-batch, by their order; nothing where not given.
        """
        assert denominator > 0, denominator
        self._check(microbatches)
        with span(OPTIMIZER):
            # Megatron's backward adds to these buffers and never clears them.
            for chunk in self.wrapped:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
        # Beside its micro-batch: a pipeline is at several, and each pass has its own masks. How its rows are read is
        # found once, however many chunks read them.
        dropped = dropouts or [None] * len(microbatches)
        passes = [_Pass(batch, rows_of(batch), dropout) for batch, dropout in zip(microbatches, dropped, strict=True)]
        sums = self._forward_backward(passes, loss_fn, denominator, trunk_of)
        lr, decay = self.lr, self.weight_decay
        set_hyperparameters(self.optimizer, self.optimizer_config, self._lr_factor, decay)
        with span(OPTIMIZER):
            square = gather_gradients(self.optimizer, self.model.topology.device)
        # Before the update: whether loss and gradients are finite must be known, and be the same, on every rank.
        totals, grad_norm = self._over_ranks(sums, square)
        stop = totals.pop(_STOP) > 0
        loss = totals.pop("loss") / denominator
        # A loss may overflow in its sum alone, with gradients that look sound.
        updated = math.isfinite(loss) and math.isfinite(grad_norm) and accept(loss, grad_norm)
        if updated:
            config, muon = self.optimizer_config, self.muon
            with span(OPTIMIZER):
                self._gather.finish()  # of a module that no pass has called since
                first = None if muon is None else partial(muon.step, config.muon)
                updated = update(self.optimizer, config.clip, grad_norm, first=first)
                self._gather.begin()
        # A skipped step counts as well, for its batch is spent: the data's position, the
        # schedule and the step stay in line.
        self.step_index += 1
        if updated:  # of a skipped step the same weights would be taken twice
            with span(OPTIMIZER):
                for average in self.averages.values():
                    average.add(self.step_index)
        return StepResult(
            step=self.step_index,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            weight_decay=decay,
            skipped=not updated,
            extras=totals,
            stop=stop,
        )

    def _forward_backward(
        self,
        passes: Sequence[_Pass[M]],
        loss_fn: LossFn[M],
        denominator: float,
        trunk_of: TrunkOf[M],
    ) -> list[tuple[list[str], Tensor]]:
        """Run the schedule; names and values of each micro-batch's reported sums (on the last stage, else [])."""
        sums: list[tuple[list[str], Tensor]] = []

        def forward(steps: Iterator[_Pass[M]], chunk: Any) -> tuple[Tensor, Any]:
            batch, rows, dropout = next(steps)

            def loss(hidden_BSH: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                # Without the columns that were padded on for sequence parallelism.
                terms = loss_fn(self.model, self.model.unpadded(hidden_BSH, batch.tokens_BS.size(1)), batch)
                assert not {"loss", _STOP} & terms.extras.keys()
                # A copy, for the schedule divides the loss that it is given in place; one of all together, for they are
                # many; fp64, for these are long sums.
                values = [terms.loss, *terms.extras.values()]
                together = torch.stack([value.detach() for value in values]).double()
                sums.append((["loss", *terms.extras], together))
                # The count of tokens is Megatron's way to a denominator; ours is in the loss already.
                return terms.objective / denominator, torch.zeros((), dtype=torch.int), {}

            return run_chunk(chunk, self.model.pad(batch.tokens_BS, rows), rows, trunk_of(batch), dropout), loss

        first = passes[0]
        get_forward_backward_func()(
            forward_step_func=forward,
            # One iterator for each chunk of an interleaved pipeline: all of them go through every micro-batch.
            data_iterator=[iter(passes) for _ in self.wrapped],
            model=list(self.wrapped),
            num_microbatches=len(passes),
            # A stage receives tensors of a shape that it is told here.
            seq_length=self.model.pad(first.batch.tokens_BS, first.rows).size(1),
            micro_batch_size=first.batch.tokens_BS.size(0),
            forward_only=False,
        )
        return sums

    def _over_ranks(self, sums: list[tuple[list[str], Tensor]], square: Tensor) -> tuple[dict[str, float], float]:
        """Add up over micro-batches and replicas, in rank order, and tell every rank the same numbers.

        And the root of `square`, which is equal on every rank. Of a rank alone the step's one wait for the device.
        """
        topology = self.model.topology
        totals: dict[str, float] = {}
        whole = [torch.stack([values for _, values in sums]).sum(0)] if topology.is_last_stage else []
        *here, squared = torch.cat([*whole, square.double()[None]]).tolist()
        if topology.is_last_stage:
            sums_here = dict(zip(sums[0][0], here, strict=True))
            # The wish to stop rides along, so that all ranks fulfil it after the same step and no step waits for it.
            sums_here[_STOP] = float(topology.watch.wish.signal is not None)
            parts = gather_objects(topology.replicas, sums_here)
            # Exact, and from the same parts on every rank: ranks decide by these numbers, and must not part over a last
            # bit.
            totals = {name: math.fsum(part[name] for part in parts) for name in sums_here}
        # Tensor-parallel ranks compute the same loss from all-reduced sums, yet may differ in a
        # last bit: the first one's counts.
        return broadcast_in(topology.tp, gather_objects(topology.pp, totals)[-1]), math.sqrt(squared)

    def _check(self, microbatches: Sequence[MicroBatch]) -> None:
        """Refuse micro-batches that the schedule cannot run, and a model that is another engine's by now."""
        assert self._holds == "raw", f"the model holds the {self._holds} of its weights, which no step may change"
        # A second engine on the same model moves its parameters away; updates of the first would go nowhere.
        for buffer in (buffer for chunk in self.wrapped for buffer in chunk.buffers):
            # By storage and not by identity, since a second engine leaves the Parameter
            # objects and only moves their memory.
            if buffer.params[0].untyped_storage().data_ptr() != buffer.param_data.untyped_storage().data_ptr():
                raise RuntimeError("another engine was built on this model since; only the newest one can train it")
        topology = self.model.topology
        assert microbatches, "a rank without data still needs a micro-batch (with all labels ignored)"
        if topology.pp.size == 1:
            return
        shapes = {tuple(batch.tokens_BS.shape) for batch in microbatches}
        assert len(shapes) == 1, f"a pipeline needs micro-batches of one shape, got {sorted(shapes)}"
        if topology.vpp > 1 and len(microbatches) % topology.pp.size:
            raise UserError(
                f"`{topology.key}.vpp`: {len(microbatches)} micro-batches per rank cannot be divided by "
                f"`{topology.key}.pp` = {topology.pp.size}, which an interleaved schedule needs"
            )


def _wrap(model: Model, overlap_gradients: bool, overlap_weights: bool) -> list[DistributedDataParallel]:
    """Megatron's gradient buffers around each chunk; gradients are kept and summed in fp32."""
    settings: Any = model.megatron_config
    # Gradients are sums over tokens: no division by data-parallel ranks in the buffers, none by micro-batches in the
    # schedule. The buffers read this flag when they are made.
    settings.calculate_per_token_loss = True
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap_gradients,
        # Who gathers then is `WeightGather`, and not the optimizer's update.
        overlap_param_gather=overlap_weights,
        use_distributed_optimizer=True,
        average_in_collective=False,
    )
    # Buckets only for the first chunk, as in Megatron's own training: the reductions of later chunks of an interleaved
    # pipeline hide behind compute without being cut.
    return [
        DistributedDataParallel(config=settings, ddp_config=ddp, module=chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(model.chunks)
    ]


def _finalize_sums(chunks: list[Any], num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    """Megatron's reduction over ranks without its division by a token count."""
    finalize_model_grads(chunks, None, **kwargs)
