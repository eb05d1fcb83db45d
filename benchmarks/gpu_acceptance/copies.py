"""What is copied while a model trains, and whether it trains as without: between a GPU and its host, or between GPUs.

    python -m benchmarks.gpu_acceptance.copies --folder DIR                    # activations, checkpoints, parked models
    torchrun --nproc-per-node 2 -m benchmarks.gpu_acceptance.copies --folder DIR    # weights of other GPUs

A copy that comes too late or too soon shows in the weights after some steps, for which two runs without it are the
measure: on a GPU sums may come in any order. Exit status 1 where weights are further apart than these are, a tensor
came back otherwise, or no memory was saved that was to be.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.command import command_line, picked
from benchmarks.common.environment import environment
from benchmarks.common.faults import ended, failure, takes_more
from benchmarks.gpu_acceptance.told import tell
from benchmarks.pretrain.case import Case
from benchmarks.pretrain.contenders import Ours
from synpro_engine.backend import platform
from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.model.build import build_model
from synpro_engine.model.model import Model
from synpro_engine.train.checkpoint import load_checkpoint
from synpro_engine.train.checkpoint_saver import CheckpointSaver
from synpro_engine.train.parking import Parking, Reading

_STEPS = 4
_NO_FURTHER = 2.0  # times as far apart as two runs without are weights that are right
After = Callable[[int, Ours], None]
"""Told of each step once it is made."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What some steps came to, and the most memory of the device that they took (None: on a CPU)."""

    losses: list[float]
    weights: list[Tensor]
    peak_bytes: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 2 after a user's fault."""
    parser = command_line("gpu_acceptance.copies", __doc__, "--output")
    parser.add_argument("--recipe", default="synpro-400m", help="whose model trains (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the recipe's")
    parser.add_argument("--only", default=",".join(WAYS), help="default: %(default)s")
    parser.add_argument("--folder", type=Path, required=True, help="where a checkpoint lies for a while")
    given = parser.parse_intermixed_args(argv)
    names = picked(parser, "--only", given.only, WAYS)
    # Equal bits where they can be had, and products' workspaces accordingly (before CUDA starts).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    bad = False
    try:
        given.folder.mkdir(parents=True, exist_ok=True)
        with launched(ParallelConfig()) as topology, TemporaryDirectory(dir=given.folder) as folder:
            for record in measured(Case(given.recipe, tuple(given.overrides), 2), names, topology, Path(folder)):
                bad |= bool(record["wrong"])
                if topology.is_main:
                    tell(record, given.output, "way")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        torch.use_deterministic_algorithms(False)
    return int(bad)


def measured(case: Case, names: Sequence[str], topology: Topology, folder: Path) -> Iterator[Mapping[str, Any]]:
    """A record for each of these ways that there is on so many ranks, up to one after which the device is done."""
    without = [trained(case, topology) for _ in range(2)]
    around = {"bench": "copies", "recipe": case.recipe_name, "ranks": topology.world_size}
    where = environment(topology.device)
    for name in names:
        way, ranks = WAYS[name]
        if ranks != min(2, topology.world_size):
            continue
        try:
            found = held(*way(case, topology, folder), without)
        except Exception as error:
            if topology.world_size > 1:
                raise  # the other ranks wait in a collective
            found = {"wrong": failure(error)}
        yield {**around, "way": name, **found, "environment": where}
        if not takes_more(topology.device):
            print(ended(topology.device, name), file=sys.stderr)
            return


def held(run: Trained, told: Mapping[str, Any], without: Sequence[Trained]) -> dict[str, Any]:
    """The steps of a way beside two without it. told: what else is to be said; `wrong`, where something is."""
    one, other = without
    apart, apart_without = _apart(run, one), _apart(other, one)
    faults = [told["wrong"]] if told.get("wrong") else []
    if not apart <= _NO_FURTHER * apart_without:  # NaN is wrong too
        faults.append(f"{apart:.3g} apart from steps without it, which are {apart_without:.3g} apart")
    if told.get("saves") and run.peak_bytes and run.peak_bytes >= (other.peak_bytes or 0):
        faults.append(f"takes {run.peak_bytes} bytes at the most, without it {other.peak_bytes}")
    return {
        **told, "apart": apart, "apart_without": apart_without, "losses": run.losses,
        "peak_bytes": run.peak_bytes, "peak_bytes_without": other.peak_bytes, "wrong": "; ".join(faults),
    }  # fmt: skip


def trained(case: Case, topology: Topology, after: After = lambda turn, ours: None) -> Trained:
    """Some steps from the same weights on the same batches, of which each rank has its own."""
    on_gpu = topology.device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    ours = Ours(case.recipe, topology)
    losses = []
    for turn in range(_STEPS):
        losses.append(ours.step(case.batches(topology.world_size * turn + topology.rank)))
        after(turn, ours)
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else None
    return Trained(losses=losses, weights=_weights(ours.engine.model), peak_bytes=peak)


def _weights(model: Model) -> list[Tensor]:
    """Copies on the host."""
    model.arrive()
    return [parameter.detach().to("cpu", torch.float32, copy=True) for parameter in model.parameters()]


def _apart(one: Trained, other: Trained) -> float:
    """How far apart runs of the same steps are: of their weights' norm, or of a loss if that is more."""
    gap = sum(float((a - b).square().sum()) for a, b in zip(one.weights, other.weights, strict=True))
    size = sum(float(b.square().sum()) for b in other.weights)
    losses = max(abs(a - b) / abs(b) for a, b in zip(one.losses, other.losses, strict=True))
    return max((gap / size) ** 0.5, losses, key=lambda value: (value != value, value))


# ---- ways ------------------------------------------------------------------------------------------------------------


def _offloaded(case: Case, topology: Topology, folder: Path) -> tuple[Trained, dict[str, Any]]:
    """Activations of all layers wait on the host."""
    layers = f"pretrain.offload_layers={case.recipe.model.layers}"
    moved = list[int]()

    def count(turn: int, ours: Ours) -> None:
        chunks: list[Any] = list(ours.engine.model.chunks)
        moved.extend(chunk.offload.moved for chunk in chunks)

    run = trained(replace(case, overrides=(*case.overrides, layers)), topology, count)
    wrong = "" if all(moved) else "nothing was sent to the host"
    return run, {"saves": True, "bytes": max(moved), "wrong": wrong}


def _saved(case: Case, topology: Topology, folder: Path) -> tuple[Trained, dict[str, Any]]:
    """A checkpoint is written from a copy on the host while the next steps are made."""
    path, then = folder / "checkpoint", list[Tensor]()
    with CheckpointSaver(topology, background=True) as saver:
        seconds = list[float]()

        def save(turn: int, ours: Ours) -> None:
            if turn:
                return
            then.extend(_weights(ours.engine.model))
            begin = time.perf_counter()
            saver.save(path, ours.engine, {}, parents={}, seed=None, then=_nothing, last=_nothing)
            seconds.append(time.perf_counter() - begin)

        run = trained(case, topology, save)
        saver.finish()
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    loaded = Ours(case.recipe, topology)
    load_checkpoint(path, loaded.engine.model, loaded.engine)
    return run, {"bytes": size, "seconds": seconds[0], **_equal(then, _weights(loaded.engine.model))}


def _parked(case: Case, topology: Topology, folder: Path) -> tuple[Trained, dict[str, Any]]:
    """Two models that are only read take turns on the device between the steps."""
    dtype = platform.resolve_dtype(case.recipe.dtype)
    read = {str(seed): build_model(case.recipe.model, topology, dtype=dtype, seed=seed) for seed in (1, 2)}
    before = [one for model in read.values() for one in _weights(model)]
    for model in read.values():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    parking = Parking({name: Reading((model,)) for name, model in read.items()}, [])
    run = trained(case, topology, lambda turn, ours: parking.needs(str(turn % 2 + 1)))
    moved = parking.take_counts()
    parking.end()
    equal = _equal(before, [one for model in read.values() for one in _weights(model)])
    return run, {"bytes": moved.bytes, "seconds": moved.seconds, **equal}


def _gathered(case: Case, topology: Topology, folder: Path) -> tuple[Trained, dict[str, Any]]:
    """Weights that other ranks updated come behind the next step's first layers, and gradients go behind backward."""
    behind = ("pretrain.overlap_gradients=true", "pretrain.overlap_weights=true")
    return trained(replace(case, overrides=(*case.overrides, *behind)), topology), {}


def _nothing() -> None: ...


def _equal(before: Sequence[Tensor], now: Sequence[Tensor]) -> dict[str, Any]:
    differing = sum(not torch.equal(a, b) for a, b in zip(before, now, strict=True))
    return {"differing": differing, "wrong": f"{differing} tensors came back otherwise" if differing else ""}


WAYS = {
    "offload_layers": (_offloaded, 1), "async_checkpoints": (_saved, 1), "parked": (_parked, 1),
    "overlap_weights": (_gathered, 2),
}  # fmt: skip
"""By the setting that asks for it, and on how many ranks it is asked for here."""


if __name__ == "__main__":
    sys.exit(main())
