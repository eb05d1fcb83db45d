"""A checkpoint of a recipe's model with its optimizer: seconds and GB/s of saving and loading, and equal bits after it.

    python -m benchmarks.gpu_acceptance.checkpoint --folder DIR

Loading reads what was just written, so mostly from the page cache. Exit status 1 where a tensor came back otherwise.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.command import command_line
from benchmarks.common.environment import environment
from benchmarks.gpu_acceptance.told import tell
from benchmarks.pretrain.case import Case
from benchmarks.pretrain.contenders import Ours
from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.engine import Engine


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 2 after a user's fault."""
    parser = command_line("gpu_acceptance.checkpoint", __doc__, "--output")
    parser.add_argument("--recipe", default="synpro-400m", help="whose model is saved (default: %(default)s)")
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint lies for a while")
    given = parser.parse_args(argv)
    try:
        given.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=given.folder) as folder, launched(ParallelConfig()) as topology:
            found = measure(Case(given.recipe, (), 1), topology, Path(folder) / "checkpoint")
            record = {"bench": "checkpoint", "recipe": given.recipe, **found}
            record["environment"] = environment(topology.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tell(record, given.output)
    return int(bool(record["wrong"]))


def measure(case: Case, topology: Topology, path: Path) -> Mapping[str, Any]:
    """Train a step, save, load into an engine that trained another one, compare every tensor of both."""
    trained, loaded = (Ours(case.recipe, topology) for _ in range(2))
    trained.step(case.batches(0))
    loaded.step(case.batches(1))
    before = _differing(trained.engine, loaded.engine)
    saving = _seconds(lambda: save_checkpoint(path, trained.engine), topology)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    loading = _seconds(lambda: load_checkpoint(path, loaded.engine.model, loaded.engine), topology)
    after = _differing(trained.engine, loaded.engine)
    faults = ["the two were equal before one was loaded: nothing to tell"] if not before else []
    faults += [f"{after} tensors differ after loading"] if after else []
    return {"bytes": size, "save_seconds": saving, "load_seconds": loading, "wrong": "; ".join(faults)}


def _differing(one: Engine, other: Engine) -> int:
    return sum(not torch.equal(a, b) for a, b in zip(_tensors(one), _tensors(other), strict=True))


def _tensors(engine: Engine) -> list[Tensor]:
    """Weights, their fp32 masters, and what the optimizer keeps of each."""
    states = [state for part in engine.optimizer.chained_optimizers for state in part.optimizer.state.values()]
    kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    masters = [weight for group in engine.optimizer.param_groups for weight in group["params"]]
    return [*engine.model.parameters(), *masters, *kept]


def _seconds(work: Callable[[], object], topology: Topology) -> float:
    on_gpu = topology.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
