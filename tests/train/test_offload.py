"""Activations that wait on the host: the same bits in every layout, and gone from the device meanwhile."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.data import Batch
from synpro_engine.dist import Layout, ParallelConfig, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model import offload
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig, Recompute
from synpro_engine.model.dropout import dropouts
from synpro_engine.model.dropout_config import DropoutConfig
from synpro_engine.model.model import run_chunk
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.engine import Engine
from synpro_engine.train.footprint import Footprint
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig

DROPPED = DropoutConfig(attention=0.3, residual=0.2, depth=0.4)


def shape(family: str = "olmo2") -> ModelConfig:
    return ModelConfig(
        family=family, layers=4, d_model=32, heads=4, kv_heads=2, ffn=96, vocab_size=64, seq_len=16
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A layout of two ranks (none: two replicas) and what is asked for beside it."""

    layout: dict[str, Any]
    recompute: Recompute = "none"
    layers: int = 3
    drop: bool = False
    half: bool = False
    family: str = "olmo2"


CASES = [
    Case({}),
    Case({}, "mlp", family="qwen3", half=True),
    Case({}, "full", layers=4, family="llama"),
    Case({"tp": 2, "sequence_parallel": True}, drop=True),
    Case({"tp": 2, "sequence_parallel": True}, "full", drop=True),
    Case({"pp": 2, "vpp": 2}, layers=4),
    Case({"pp": 2}, "full", layers=4),
    Case({"cp": 2}),
]


def steps(case: Case, port: int, layers: int) -> tuple[list[float], int]:
    """Losses and gradient norms of two steps of two micro-batches, and the bytes that the last pass sent."""
    with job(ParallelConfig.model_validate(case.layout), port) as topology:
        model = build_model(
            shape(case.family), topology, dtype=torch.bfloat16 if case.half else torch.float32,
            recompute=case.recompute if layers else "none", offload_layers=layers,
        )  # fmt: skip
        engine = Engine(model, OptimizerConfig(lr=1e-2))
        found = []
        for seed in range(2):
            ids = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(seed))
            rows = ids.chunk(topology.dp.size)[topology.dp.rank].split(2 if topology.dp.size == 1 else 1)
            dropped = dropouts(
                DROPPED if case.drop else DropoutConfig(), [len(part) for part in rows],
                first_row=2 * topology.dp.rank, seed=1, step=seed, layers=4, device=topology.device,
            )  # fmt: skip
            result = engine.step(
                [Batch(part[:, :-1], part[:, 1:]) for part in rows], LanguageModelLoss(1e-4), denominator=64.0,
                dropouts=dropped,
            )  # fmt: skip
            found += [result.loss, result.grad_norm]
        chunks: list[Any] = list(model.chunks)
        return found, sum(chunk.offload.moved for chunk in chunks) if layers else 0


def both(case: Case, ports: list[int]) -> list[tuple[list[float], int]]:
    return [steps(case, port, layers) for port, layers in zip(ports, (0, case.layers), strict=True)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layout} {case.recompute}")
def test_losses_and_gradients_are_the_same_bits_in_every_layout(case: Case) -> None:
    sent = []
    for (here, _), (there, moved) in run_ranks(both, 2, case=case, ports=free_ports(2)):
        assert there == here
        assert moved
        sent.append(moved)
    if case.layout == {"pp": 2}:  # of the second stage's two inputs one was received, and is the schedule's
        assert sent[0] == 2 * sent[1]


def kept(recompute: Recompute, layers: int, apart: bool) -> tuple[int, int, int, float]:
    """Of a forward pass: storages that were sent, how many of them are gone, bytes that were sent and are counted.

    The mask, one for all layers, stays.
    """
    with launched(ParallelConfig()) as topology:
        model = build_model(shape("llama"), topology, recompute=recompute, offload_layers=layers)
        sent, masks = list[StorageWeakRef](), list[torch.Tensor]()
        bus: Any = offload._Bus
        out = bus.out

        def watched(self: Any, here: torch.Tensor) -> torch.Tensor:
            sent.append(StorageWeakRef(here.untyped_storage()))
            assert here.data_ptr() not in {tensor.untyped_storage().data_ptr() for tensor in masks}
            return out(self, here)

        def note(_layer: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            mask = kwargs["attention_mask"]
            masks.extend(() if mask is None else (mask,))

        model.chunks[0].decoder.layers[0].register_forward_pre_hook(note, with_kwargs=True)
        tokens = torch.randint(1, 64, (4, 16))
        document = torch.arange(16).div(4, rounding_mode="floor").expand(4, 16) if apart else None
        rows = (
            None if document is None else documents_apart(Batch(tokens, tokens, document, apart=True), topology.device)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bus, "out", watched)
            with torch.no_grad():
                model.hidden(tokens, rows)
            assert not sent, "a pass that keeps nothing sent something"
            hidden = model.hidden(tokens, rows)
        gone = sum(one.expired() for one in sent)
        assert bool(masks) == apart
        [chunk] = model.chunks
        moved = chunk.offload.moved  # pyright: ignore
        hidden.sum().backward()
        said = Footprint(shape("llama"), Layout.of(ParallelConfig(), 1), torch.float32, recompute=recompute,
                         offload_layers=layers)  # fmt: skip
        return len(sent), gone, int(moved), said.offloaded(4, 16)


def of_one_process() -> dict[tuple[Recompute, int, bool], tuple[int, int, int, float]]:
    asked: list[tuple[Recompute, int, bool]] = [
        ("none", 2, False),
        ("none", 2, True),
        ("none", 4, False),
        ("mlp", 4, False),
        ("full", 4, False),
    ]
    return {one: kept(*one) for one in asked}


def test_what_was_sent_is_gone_from_the_device_and_is_as_much_as_is_counted() -> None:
    [found] = run_ranks(of_one_process, 1)
    for (recompute, layers, _), (sent, gone, moved, said) in found.items():
        assert sent >= layers and gone == sent, (recompute, layers)
        assert 0.5 < moved / said < 2, (recompute, layers, moved, said)
        if recompute == "full":  # of each layer its input alone: 4 rows of 16 tokens, 32 wide
            assert (sent, moved) == (4, 4 * 4 * 16 * 32 * 4)
    assert found["none", 4, False][2] == 2 * found["none", 2, False][2]


def sent_for(layers: int) -> tuple[int, int]:
    """How many storages come back before any block runs backward; host copies that a pass without backward leaves."""
    with launched(ParallelConfig()) as topology:
        [chunk] = build_model(shape("llama"), topology, recompute="full", offload_layers=layers).chunks
        bus: Any = offload._Bus
        out, back, hosts, come = bus.out, bus.back, list[StorageWeakRef](), list[int]()

        def watched(self: Any, here: torch.Tensor) -> torch.Tensor:
            host = out(self, here)
            hosts.append(StorageWeakRef(host.untyped_storage()))
            return host

        def counted(self: Any, host: torch.Tensor) -> torch.Tensor:
            come.append(len(hosts))
            return back(self, host)

        at_first = list[int]()
        gc.disable()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bus, "out", watched)
            patch.setattr(bus, "back", counted)
            hidden = run_chunk(chunk, torch.randint(1, 64, (4, 16)))
            assert len(hosts) == layers and not any(one.expired() for one in hosts)
            del hidden
            left = sum(not one.expired() for one in hosts)
            hidden = run_chunk(chunk, torch.randint(1, 64, (4, 16)))
            hidden.register_hook(lambda _: at_first.append(len(come)))
            hidden.sum().backward()
        assert len(come) == layers
        return at_first[0], left


def left_of_passes() -> list[int]:
    """By what is made again: host copies that passes without backward leave, where nothing looks for circles."""
    found, out = list[int](), offload._Bus.out
    with launched(ParallelConfig()) as topology:
        for recompute in ("none", "mlp", "full"):
            [chunk] = build_model(shape(), topology, recompute=recompute, offload_layers=3).chunks
            hosts = list[StorageWeakRef]()

            def watched(self: Any, here: torch.Tensor, hosts: list[StorageWeakRef] = hosts) -> torch.Tensor:
                host = out(self, here)
                hosts.append(StorageWeakRef(host.untyped_storage()))
                return host

            gc.disable()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(offload._Bus, "out", watched)
                for _ in range(2):
                    run_chunk(chunk, torch.randint(1, 64, (4, 16)))
            assert hosts
            found.append(sum(not one.expired() for one in hosts))
    return found


def test_a_pass_that_is_never_gone_backward_leaves_nothing_on_the_host() -> None:
    """As an operation outside the blocks that keeps its own output would, with all of the graph before it."""
    assert run_ranks(left_of_passes, 1) == [[0, 0, 0]]


def both_ends() -> list[tuple[int, int]]:
    return [sent_for(2), sent_for(4)]


def test_the_last_layer_s_are_sent_for_where_backward_begins_and_nothing_is_left_of_a_pass_without_one() -> None:
    assert run_ranks(both_ends, 1) == [[(1, 0), (1, 0)]]


def test_the_footprint_knows_no_more_layers_than_there_are_and_keeps_what_stages_receive() -> None:
    alone, stages = (Layout.of(ParallelConfig(pp=pp), pp) for pp in (1, 2))
    for layout in (alone, stages):
        all_of_them, too_many = (
            Footprint(shape(), layout, torch.float32, recompute="full", offload_layers=layers) for layers in (4, 64)
        )
        assert too_many.activations(4, 16) == all_of_them.activations(4, 16) > 0
        assert too_many.offloaded(4, 16) == all_of_them.offloaded(4, 16)
    of_one, of_two = (
        Footprint(shape(), layout, torch.float32, recompute="full", offload_layers=4) for layout in (alone, stages)
    )
    received = 4 * 16 * 32 * 4  # the second stage's first input, fp32
    assert of_one.offloaded(4, 16) - of_two.offloaded(4, 16) == received
    assert of_two.activations(4, 16) - of_one.activations(4, 16) == received


def test_the_footprint_leaves_out_what_waits_on_the_host() -> None:
    layout = Layout.of(ParallelConfig(), 1)
    for recompute in ("none", "mlp", "full"):
        here = Footprint(shape(), layout, torch.float32, recompute=recompute)
        there = Footprint(shape(), layout, torch.float32, recompute=recompute, offload_layers=4)
        assert (
            there.activations(4, 16) < here.activations(4, 16) == there.activations(4, 16) + there.offloaded(4, 16) / 2
        )


def test_what_it_cannot_go_with_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in_run: cannot be asked for with offload_layers"):
        load_recipe("smoke", ["pretrain.offload_layers=1"])
    assert load_recipe("smoke", ["pretrain.offload_layers=1", "pretrain.in_run=null"]).pretrain.offload_layers == 1
    with pytest.raises(UserError, match=r"pretrain\.offload_layers: 64 is above model\.layers \(2\)"):
        load_recipe("smoke", ["pretrain.offload_layers=64", "pretrain.in_run=null"])
    with launched(ParallelConfig()) as topology:
        with pytest.raises(UserError, match=r"`pretrain.offload_layers`: 5 are more than the model's 4 layers"):
            build_model(shape(), topology, offload_layers=5)
