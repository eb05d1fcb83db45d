"""What an optimizer's update costs: AdamW and Muon of the engine beside torch's own, on the same gradients.

`python -m benchmarks.optimizer_step --recipe quickstart` times clipping and update, without forward and backward pass:
each contender has the recipe's pretrained model for itself and fp32 gradients of random numbers. torch's Muon gets the
matrices of the blocks taken apart as ours are, and its fused AdamW the rest; both work on fp32 weights, and that Muon
iterates in bf16 whatever the weights are. The iteration alone stands below: ours (in bf16 and without
Triton too) and torch's, on one stack.

Beside each update stand the operations and bytes that it takes by count, so that contenders which multiply in other
precisions are not compared by time alone.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.against import Earlier, is_commit, told, with_commit
from benchmarks.common.command import again, command_line
from benchmarks.common.environment import environment
from benchmarks.common.harness import Step, clock_for, interleave, summarise
from benchmarks.common.records import write_lines
from benchmarks.common.settings import shape_of
from benchmarks.common.tables import aligned
from synpro_engine.backend import platform
from synpro_engine.config import UserError
from synpro_engine.cycle import Recipe, load_recipe
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.model.build import build_model
from synpro_engine.model.canonical import canonical_shapes
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.optimizer import gather_gradients, set_hyperparameters, update
from synpro_kernels import orthogonalize
from synpro_kernels.ops.newton_schulz import QUINTIC
from synpro_kernels.testing import using

# torch's own Muon, which torch has from 2.9 on.
torch_muon = importlib.import_module("torch.optim._muon") if importlib.util.find_spec("torch.optim._muon") else None
BENCH = "optimizer_step"
_TORCH_MUON = "torch.optim.Muon and AdamW"
# Of an entry. AdamW: decay 1, first moment 3, second 4, denominator 3, step 3; it reads weight, gradient, two moments
# and writes all but the gradient. Muon: decay 1, momentum 3, the look ahead 3, scale and step 3; it reads weight,
# gradient and momentum and writes weight and momentum, and what is orthogonalised goes to the iterations and comes back
# (in their precision). Clipping: square and sum, then a product; it reads twice and writes once.
_ADAMW_FLOPS, _ADAMW_BYTES = 14, 28
_MUON_FLOPS, _MUON_BYTES = 10, 20
_CLIP_FLOPS, _CLIP_BYTES = 3, 12


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 1 where ours has become slower than `--against`, 2 after a user's fault."""
    parser = command_line(BENCH, __doc__, "--output", "--against", "--turns")
    add = parser.add_argument
    add("--recipe", default="quickstart", help="whose pretrained model is updated (default: %(default)s)")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the recipe's")
    add("--rounds", type=int, default=7, help="timed updates of each (default: %(default)s)")
    add("--stack", default="4x1024x4096", help="matrices of the iteration alone (default: %(default)s)")
    given = parser.parse_args(argv)
    try:
        if is_commit(given.against):
            same = again(argv)
            return told(with_commit(given.against, "benchmarks.optimizer_step", same, figures, turns=given.turns))
        earlier = Earlier.read(given.against)
        recipe = load_recipe(given.recipe, given.overrides)
        with launched(ParallelConfig()) as topology:
            dtype = platform.resolve_dtype(recipe.dtype)
            found = {
                "update": measured(updates(recipe, topology, dtype), topology, given.rounds),
                "iteration": measured(iterations(given.stack, topology, dtype), topology, given.rounds),
            }
            record = {
                "bench": BENCH, "model": recipe.name, "dtype": str(dtype).removeprefix("torch."), "stack": given.stack,
                "shape": recipe.model.model_dump(mode="json"),
                "muon": recipe.pretrain.optimizer.muon.model_dump(mode="json"),
                "flops": {"update": muon_flops(recipe), "iteration": stack_flops(given.stack)},
                "counted": {name: vars(counted(recipe, dtype, name)) for name in found["update"]},
                "timings": found, "environment": environment(topology.device),
            }  # fmt: skip
        if given.output:
            write_lines(given.output, [record])
        print(table(found, {name: counted(recipe, dtype, name) for name in found["update"]}))
        print(f"Muon's products of a step: {muon_flops(recipe) / 1e9:.1f} GFLOP, symmetric ones counted by half")
        return told(earlier.compared([record], figures)) if earlier else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def figures(records: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Updates, and iterations of a stack, a second: our own, by model, precision and stack."""
    return {
        f"{what}, {name}: {record['stack'] if what == 'iteration' else _about(record)}, {record['dtype']}":
            1.0 / timing["median"]
        for record in records
        if record.get("bench") == BENCH
        for what, timings in record["timings"].items()
        for name, timing in timings.items()
        if name.startswith(("engine", "orthogonalize"))
    }  # fmt: skip


def _about(record: Mapping[str, Any]) -> str:
    """What is updated, and how."""
    settings = ", ".join(f"{key}={value}" for key, value in record["muon"].items())
    return f"{record['model']} ({shape_of(ModelConfig(**record['shape']))}; Muon {settings})"


def matrices_of(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """The matrices of the blocks by name, taken apart."""
    shapes = canonical_shapes(recipe.model).items()
    return {name: shape for name, shape in shapes if len(shape) == 2 and ".layers." in name}


def muon_flops(recipe: Recipe, *, whole: bool = False) -> float:
    """Operations of the iterations in one step: B M^2 (3 N + M) each for M <= N, or (4 N + 2 M) by whole products."""
    of_n, of_m = (4, 2) if whole else (3, 1)
    sides = [sorted(shape) for shape in matrices_of(recipe).values()]
    return float(recipe.pretrain.optimizer.muon.steps * sum(m * m * (of_n * n + of_m * m) for m, n in sides))


@dataclass(frozen=True)
class Counted:
    """What an update takes by count: entries that each method moves, operations, and bytes that must pass memory.

    flops: of AdamW's and Muon's formulas entry by entry, and of clipping. product_flops: of the iterations' products,
    in the precision `products`; torch's makes symmetric ones whole, ours by half. bytes: each operand of a pass over
    memory once; copies between shards and whole matrices, which one process could do without, are not in it.
    """

    adamw_entries: int
    muon_entries: int
    flops: float
    product_flops: float
    products: str
    bytes: float


def counted(recipe: Recipe, dtype: torch.dtype, contender: str) -> Counted:
    """Of a contender of `updates`, by its name; dtype: of the engine's weights."""
    ours, of_muon = contender.startswith("engine"), "muon" in contender.lower()
    sizes = {name: math.prod(shape) for name, shape in canonical_shapes(recipe.model).items()}
    matrices = matrices_of(recipe) if of_muon else {}
    moved = sum(sizes[name] for name in matrices)
    rest = sum(sizes.values()) - moved
    halves = dtype == torch.bfloat16 or not ours or recipe.pretrain.optimizer.muon.products == "bfloat16"
    element = 2 if halves else 4
    steps = recipe.pretrain.optimizer.muon.steps
    passes = sum(3 * m * n + 4 * m * m for m, n in (sorted(shape) for shape in matrices.values()))
    rounded = 2 * sum(sizes.values()) if ours and dtype == torch.bfloat16 else 0
    return Counted(
        adamw_entries=rest,
        muon_entries=moved,
        flops=float(_ADAMW_FLOPS * rest + _MUON_FLOPS * moved + _CLIP_FLOPS * (rest + moved)),
        product_flops=muon_flops(recipe, whole=not ours) if of_muon else 0.0,
        products="bfloat16" if halves and of_muon else "float32" if of_muon else "",
        bytes=float(
            _ADAMW_BYTES * rest + _MUON_BYTES * moved + _CLIP_BYTES * (rest + moved)
            + element * (2 * moved + steps * passes) + rounded
        ),
    )  # fmt: skip


def stack_flops(stack: str) -> float:
    """The same of five iterations on one stack."""
    batch, *sides = map(int, stack.split("x"))
    m, n = sorted(sides)
    return 5.0 * batch * m * m * (3 * n + m)


def updates(recipe: Recipe, topology: Topology, dtype: torch.dtype) -> dict[str, Step]:
    """A clipped update by each contender, on gradients that are the same in every turn."""
    steps: dict[str, Step] = {}
    for name in ("adamw", "muon"):
        config = recipe.pretrain.optimizer.model_copy(update={"name": name})
        engine = Engine(build_model(recipe.model, topology, dtype=dtype), config)
        for buffer in (buffer for chunk in engine.wrapped for buffer in chunk.buffers):
            buffer.grad_data.normal_()
        steps[f"engine, {name}"] = partial(_engine_step, engine)
    shapes = canonical_shapes(recipe.model)
    for name in ("torch.optim.AdamW", *([_TORCH_MUON] if torch_muon else [])):
        parameters = {key: _with_gradient(shape, topology.device) for key, shape in shapes.items()}
        of_muon = matrices_of(recipe) if name == _TORCH_MUON else {}
        rest = [p for key, p in parameters.items() if key not in of_muon]
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, fused=True)]
        if of_muon:
            optimizers.append(torch.optim.Muon([parameters[key] for key in of_muon]))
        steps[name] = partial(_torch_step, optimizers, list(parameters.values()))
    return steps


def _with_gradient(shape: tuple[int, ...], device: torch.device) -> Parameter:
    parameter = Parameter(torch.randn(shape, device=device) * 0.02)
    parameter.grad = torch.randn(shape, device=device)
    return parameter


def _engine_step(engine: Engine, turn: int) -> None:
    config, muon = engine.optimizer_config, engine.muon
    set_hyperparameters(engine.optimizer, config, 1.0, config.weight_decay)
    first = None if muon is None else partial(muon.step, config.muon)
    norm = math.sqrt(float(gather_gradients(engine.optimizer, engine.model.topology.device)))
    update(engine.optimizer, config.clip, norm, first=first)


def _torch_step(optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[Parameter], turn: int) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()


def iterations(stack: str, topology: Topology, dtype: torch.dtype) -> dict[str, Step]:
    """Five quintic iterations on one stack of matrices, in halves where the model is."""
    matrices = torch.randn(*map(int, stack.split("x")), device=topology.device).to(dtype)
    [abc] = QUINTIC

    def plain(turn: int) -> Tensor:
        x = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
        x = x / x.norm(dim=(-2, -1), keepdim=True)
        for _ in range(5):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=abc[1], alpha=abc[2]), x, beta=abc[0])
        return x

    def by_pytorch(turn: int) -> Tensor:
        with using("torch"):
            return orthogonalize(matrices)

    steps: dict[str, Step] = {
        "orthogonalize": lambda turn: orthogonalize(matrices),
        "orthogonalize, bf16": lambda turn: orthogonalize(matrices, dtype=torch.bfloat16),
        "orthogonalize, PyTorch": by_pytorch,
        "whole products, batched": plain,
    }
    if torch_muon:
        one = partial(torch_muon._zeropower_via_newtonschulz, ns_coefficients=abc, ns_steps=5, eps=1e-7)
        steps["torch's, one by one (bf16)"] = lambda turn: [one(matrix) for matrix in matrices]
    return steps


def measured(steps: Mapping[str, Step], topology: Topology, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds by contender, who take turns."""
    samples = interleave(steps, clock_for(topology.device), rounds=rounds, warmups=2)
    return {name: vars(summarise(found)) for name, found in samples.items()}


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]], counts: Mapping[str, Counted]) -> str:
    """What was measured, for people, with what each update takes by count."""
    lines: list[tuple[str, ...]] = [("what", "by", "ms", "quartiles", "cpu ms", "GFLOP", "MB", "products")]
    for what, timings in found.items():
        for name, timing in timings.items():
            median, low, high, cpu = (1e3 * timing[key] for key in ("median", "low", "high", "cpu_median"))
            count = counts.get(name) if what == "update" else None
            told = ("", "", "") if count is None else (
                f"{(count.flops + count.product_flops) / 1e9:.3f}", f"{count.bytes / 1e6:.1f}", count.products or "none"
            )  # fmt: skip
            lines.append((what, name, f"{median:.2f}", f"{low:.2f}-{high:.2f}", f"{cpu:.2f}", *told))
    return "\n".join(aligned(lines, right=range(2, 7)))


if __name__ == "__main__":
    sys.exit(main())
