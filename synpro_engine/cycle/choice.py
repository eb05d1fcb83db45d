"""Which layouts could train a recipe's model on so many ranks: what each holds, sends and waits for.

Counted, as `forecast` is, and put in the order of a rough estimate of a step's time. The estimate is there to leave out
what cannot be good; the first few are for measuring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from synpro_engine.backend import platform
from synpro_engine.config import UserError
from synpro_engine.cycle.layouts import check_pretraining, teacher_shapes
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import PRETRAIN
from synpro_engine.dist import Layout, LayoutConfig
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.footprint import Footprint
from synpro_engine.train.metrics import flops_per_token

_CHUNKS = (None, 2, 4)  # of a stage, in an interleaved schedule
_OVERHEAD = 0.1  # of a step that is neither products nor waiting: norms, the optimizer, the host


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the estimate takes of a cluster; bytes and FLOP a second of one device, as they are reached."""

    node: int = 8
    """Ranks of a machine; tensor parallelism stays within one."""
    flops: float = 4e14
    inside: float = 3e11
    """Between devices of a machine."""
    outside: float = 4e10
    """Between machines."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One layout. Bytes are of the fullest rank; what is sent is by axis, in one optimizer step."""

    layout: Layout
    micro_batch: int
    micro_batches: int
    """Of a rank in a step."""
    memory: float
    bubble: float
    """Share of a step in which a stage of the pipeline has nothing to do: (p - 1) / (v m + p - 1)."""
    sent: dict[str, float]
    seconds: float
    """Of a step, estimated."""


def choices(recipe: Recipe, ranks: int, machine: Machine) -> list[Choice]:
    """All that can train it, the quickest by the estimate first. UserError where there is none."""
    found = sorted(_all(recipe, ranks, machine), key=lambda choice: choice.seconds)
    if not found:
        raise UserError(
            f"no layout of {ranks} rank(s) divides `model` and `pretrain.global_batch` = {recipe.pretrain.global_batch}"
        )
    return found


def _all(recipe: Recipe, ranks: int, machine: Machine) -> Iterator[Choice]:
    for parallel in _divisions(ranks, machine):
        # In the pretrained model's own section: the generator's layout is another question.
        pretrain = recipe.pretrain.model_copy(update={"parallel": parallel})
        asked = recipe.model_copy(update={"pretrain": pretrain})
        try:
            check_pretraining(asked, ranks)
        except UserError:
            continue  # it does not divide
        layout = asked.layout_of(PRETRAIN, ranks)
        assert layout is not None
        yield _counted(recipe, layout, machine)


def _divisions(ranks: int, machine: Machine) -> Iterator[LayoutConfig]:
    for tp in _divisors(ranks):
        if tp > machine.node:
            continue
        for pp in _divisors(ranks // tp):
            for cp in _divisors(ranks // (tp * pp)):
                for vpp in _CHUNKS if pp > 1 else (None,):
                    yield LayoutConfig(tp=tp, pp=pp, vpp=vpp, sequence_parallel=tp > 1, cp=cp)


def _counted(recipe: Recipe, layout: Layout, machine: Machine) -> Choice:
    model, pretrain, dtype = recipe.model, recipe.pretrain, platform.resolve_dtype(recipe.dtype)
    rows = pretrain.global_batch // layout.dp
    micro_batch = min(pretrain.micro_batch, rows)
    count = -(-rows // micro_batch)
    footprint = Footprint(
        model,
        layout,
        dtype,
        pretrain.optimizer.name,
        pretrain.recompute,
        len(pretrain.averages),
        pretrain.separate_documents,
        pretrain.offload_layers,
        gpu=platform.trains_on_gpu(dtype),
    )
    teachers = [shape for _, shape in teacher_shapes(recipe) if isinstance(shape, ModelConfig)]
    memory = footprint.training
    memory += footprint.activations(micro_batch, model.seq_len) + footprint.logits(micro_batch, model.seq_len)
    step = pretrain.global_batch * model.seq_len
    memory += sum(Footprint(shape, layout, dtype).teaching(step) for shape in teachers)
    sent = _sent_within(recipe, layout, teachers, micro_batch * model.seq_len, count)
    # fp32 gradients to those who update them, weights back.
    sent["dp"] = (4 + dtype.itemsize) * _others(layout.replicas) * footprint.weights / dtype.itemsize
    bubble = (layout.pp - 1) / (layout.vpp * count + layout.pp - 1)
    return Choice(
        layout=layout,
        micro_batch=micro_batch,
        micro_batches=count,
        memory=memory,
        bubble=bubble,
        sent=sent,
        seconds=_seconds(model, layout, machine, teachers, rows * model.seq_len, sent, bubble),
    )


def _others(size: int) -> float:
    """What a ring of so many sends of a whole, in a scatter or a gather."""
    return (size - 1) / size


def _sent_within(
    recipe: Recipe, layout: Layout, teachers: Sequence[ModelConfig], tokens: int, count: int
) -> dict[str, float]:
    """Bytes of a step within a model, by axis: of `count` micro-batches of so many tokens, whole ones."""
    model, itemsize = recipe.model, platform.resolve_dtype(recipe.dtype).itemsize
    # Forward and backward, and forward once more where layers run again; teachers go forward alone.
    passes = 3 if recipe.pretrain.recompute == "full" else 2
    summed = shared = onwards = 0.0
    for shape, of_hidden, of_keys in ((model, 2, passes), *((shape, 1, 1) for shape in teachers)):
        hidden = tokens / layout.cp * shape.d_model * itemsize
        keys_and_values = 2 * tokens * shape.kv_heads * shape.head_size * itemsize / layout.tp
        summed += of_hidden * shape.layers / layout.pp * hidden
        shared += of_keys * shape.layers / layout.pp * keys_and_values
        onwards += of_hidden * hidden
    return {
        # Two sums in each layer and direction; a ring sends each twice, as a scatter and a gather do.
        "tp": 2 * 2 * _others(layout.tp) * summed * count,
        # Gathered forward, and where a layer runs again; their gradients are scattered in the backward pass.
        "cp": _others(layout.cp) * shared * count,
        # Forward to the next stage and, but for teachers, back from it, for every chunk.
        "pp": onwards * layout.vpp * count / (layout.tp if layout.sequence_parallel else 1) * (layout.pp > 1),
    }


def _seconds(
    model: ModelConfig,
    layout: Layout,
    machine: Machine,
    teachers: Sequence[ModelConfig],
    tokens: int,
    sent: Mapping[str, float],
    bubble: float,
) -> float:
    """Of a step, in which a replica reads so many tokens."""
    taught = sum(flops_per_token(shape, model.seq_len) for shape in teachers) / 3  # they read, and learn nothing
    flops = tokens / layout.cp * (flops_per_token(model, model.seq_len) + taught) / (layout.tp * layout.pp)
    busy = flops / machine.flops * (1 + _OVERHEAD) + sent["tp"] / machine.inside
    # Ranks that share a sequence stand next to each other, behind those of tensor parallelism.
    busy += sent["cp"] / (machine.outside if layout.tp * layout.cp > machine.node else machine.inside)
    several = layout.replicas * layout.tp * layout.pp > machine.node
    return busy / (1 - bubble) + (sent["pp"] + sent["dp"]) / (machine.outside if several else machine.inside)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
