"""Which layouts could train a recipe's model on so many ranks: what each holds, sends and waits for.

Counted, as `forecast` is, and put in the order of a rough estimate of a step's time. The estimate is there to leave out
what cannot be good; the first few are for measuring.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    model, dtype = recipe.model, platform.resolve_dtype(recipe.dtype)
    pretrain = recipe.pretrain
    kept, apart = len(pretrain.averages), pretrain.separate_documents
    footprint = Footprint(
        model,
        layout,
        dtype,
        pretrain.optimizer.name,
        pretrain.recompute,
        kept,
        apart,
        pretrain.offload_layers,
        gpu=platform.trains_on_gpu(dtype),
    )
    rows = recipe.pretrain.global_batch // layout.dp
    micro_batch = min(recipe.pretrain.micro_batch, rows)
    count = -(-rows // micro_batch)
    tokens = micro_batch * model.seq_len  # of one micro-batch, whole
    step = recipe.pretrain.global_batch * model.seq_len
    shapes = [shape for _, shape in teacher_shapes(recipe) if isinstance(shape, ModelConfig)]

    def hidden(shape: ModelConfig) -> float:
        return tokens / layout.cp * shape.d_model * dtype.itemsize

    def keys_and_values(shape: ModelConfig) -> float:
        return 2 * tokens * shape.kv_heads * shape.head_size * dtype.itemsize / layout.tp

    sizes = {"tp": layout.tp, "cp": layout.cp, "dp": layout.replicas}
    around = {axis: (size - 1) / size for axis, size in sizes.items()}
    passes, own_layers = 3 if pretrain.recompute == "full" else 2, model.layers / layout.pp
    # Teachers go forward alone.
    summed = 2 * own_layers * hidden(model) + sum(shape.layers / layout.pp * hidden(shape) for shape in shapes)
    shared = passes * own_layers * keys_and_values(model)
    shared += sum(shape.layers / layout.pp * keys_and_values(shape) for shape in shapes)
    onwards = (2 * hidden(model) + sum(map(hidden, shapes))) * layout.vpp * count
    sent = {
        # Two sums forward and two backward in each layer; a ring sends each twice, as a scatter and a gather do.
        "tp": 2 * 2 * around["tp"] * summed * count,
        # Gathered forward, and where a layer runs again; their gradients are scattered in the backward pass.
        "cp": around["cp"] * shared * count,
        # Forward to the next stage and, but for teachers, back from it, for every chunk.
        "pp": onwards / (layout.tp if layout.sequence_parallel else 1) * (layout.pp > 1),
        # fp32 gradients to those who update them, weights back.
        "dp": (4 + dtype.itemsize) * around["dp"] * footprint.weights / dtype.itemsize,
    }
    bubble = (layout.pp - 1) / (layout.vpp * count + layout.pp - 1)
    taught = sum(flops_per_token(shape, model.seq_len) for shape in shapes) / 3  # they read, and learn nothing
    own = rows * model.seq_len / layout.cp  # tokens of a rank in a step
    products = own * (flops_per_token(model, model.seq_len) + taught) / (layout.tp * layout.pp)
    several = layout.replicas * layout.tp * layout.pp > machine.node
    outside = machine.outside if several else machine.inside
    busy = products / machine.flops * (1 + _OVERHEAD) + sent["tp"] / machine.inside
    # Ranks that share a sequence stand next to each other, behind those of tensor parallelism.
    busy += sent["cp"] / (machine.outside if layout.tp * layout.cp > machine.node else machine.inside)
    return Choice(
        layout=layout,
        micro_batch=micro_batch,
        micro_batches=count,
        memory=footprint.training
        + footprint.activations(micro_batch, model.seq_len)
        + footprint.logits(micro_batch, model.seq_len)
        + sum(Footprint(shape, layout, dtype).teaching(step) for shape in shapes),
        bubble=bubble,
        sent=sent,
        seconds=busy / (1 - bubble) + (sent["pp"] + sent["dp"]) / outside,
    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
