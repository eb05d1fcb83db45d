"""Memory that was not there: told in one line, with what training takes of it and the settings that make it less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from synpro_engine.config import UserError, first_line
from synpro_engine.model.model import Model
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.footprint import Footprint

_CPU = "DefaultCPUAllocator: can't allocate memory"  # torch has no type for it


@contextmanager
def telling_out_of_memory(
    model: Model, config: TrainConfig, seq_len: int, teachers: Sequence[Model] = ()
) -> Iterator[None]:
    """Training of `model` in the block; UserError where the device or the host has no memory left for it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _CPU in str(error):
            raise UserError(_told(error, model, config, seq_len, teachers)) from error
        raise


def _told(error: BaseException, model: Model, config: TrainConfig, seq_len: int, teachers: Sequence[Model]) -> str:
    topology, layout = model.topology, model.topology.layout
    averages, apart = len(config.averages), config.separate_documents
    taken = Footprint(
        model.config,
        layout,
        model.dtype,
        config.optimizer.name,
        config.recompute,
        averages,
        apart,
        config.offload_layers,
        gpu=topology.device.type == "cuda",
    )
    tokens = config.global_batch * seq_len
    taught = sum(Footprint(one.config, layout, one.dtype).teaching(tokens) for one in teachers)
    beside = f", {_gib(taught)} of `pretrain.distill.teachers`" if teachers else ""
    rows, kept = config.micro_batch, taken.activations(config.micro_batch, seq_len)
    kept += taken.logits(rows, seq_len) if config.output_layer == "fused" else 0.0
    less = [f"`pretrain.micro_batch` ({rows})"] if rows > 1 else []
    less += [f"`model.seq_len` ({model.config.seq_len})"]
    again = "" if config.recompute == "full" else ", keep less by `pretrain.recompute: full`"
    if config.recompute == "full" and config.offload_layers < model.config.layers:
        again = f", have more wait on the host by `pretrain.offload_layers` ({config.offload_layers})"
    sizes = {"tp": layout.tp, "pp": layout.pp, "cp": layout.cp}
    more = [f"`{topology.key}.{name}` ({size})" for name, size in sizes.items()]
    fused = "" if config.output_layer == "fused" else "; `pretrain.output_layer: fused` holds no logits"
    return (
        f"out of memory ({_cause(error)}); counted for a rank are {_gib(taken.training)} of weights, gradients and"
        f" optimizer{beside} and {_gib(kept)} for a micro-batch of {rows} x {seq_len} tokens:"
        f" lower {' or '.join(less)}{again}, or divide model or sequences over more ranks by {' or '.join(more)}{fused}"
    )


def _cause(error: BaseException) -> str:
    said = first_line(error)
    # The rest of torch's message is advice on its allocator.
    return said if _CPU in said else ". ".join(said.split(". ")[:3]).rstrip(".")


def _gib(size: float) -> str:
    return f"{size / 2**30:.2g} GiB"
