"""Layouts that could train a recipe's model, as a table for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from synpro_engine.cycle.choice import Choice, Machine
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.report.terminal import aligned

_MOST = 16
_HEAD = (
    "layout", "settings", "rows x micro-batches", "GiB a rank", "bubble", "GB sent a step: tp", "cp", "pp", "dp",
    "estimate",
)  # fmt: skip


def lines(
    asked: Sequence[str], recipe: Recipe, found: Sequence[Choice], ranks: int, machine: Machine, room: float | None
) -> Iterator[str]:
    """The table, line by line, and how to measure the first.

    asked: the recipe as it was given, and its overrides. room: bytes of a rank; what needs more stands last.
    """
    ordered = found if room is None else sorted(found, key=lambda choice: choice.memory > room)
    least = ordered[0].seconds
    parameters = f"{recipe.model.parameter_count() / 1e6:,.1f}M parameters"
    yield f"{recipe.name}: {parameters} on {ranks} rank(s), the quickest first"
    yield from aligned([_HEAD, *(_row(recipe, choice, least, room) for choice in ordered[:_MOST])])
    if len(ordered) > _MOST:
        yield f"and {len(ordered) - _MOST} more"
    yield ""
    inside, outside = machine.inside / 1e9, machine.outside / 1e9
    yield (
        f"estimated with {machine.flops / 1e12:,.0f} TFLOP/s a device, {inside:,.0f} GB/s within a machine of"
        f" {machine.node} and {outside:,.0f} between, nothing hidden behind anything; measure the first few:"
    )
    nodes, first = -(-ranks // machine.node), ordered[0]
    several = f"--nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint HEAD:29500 " if nodes > 1 else ""
    # A pipeline waits the longer the fewer micro-batches it has.
    batches = f"--micro-batches {first.micro_batches}" if first.layout.pp > 1 else ""
    words = " ".join(filter(None, (shlex.join(asked), settings(recipe, first), batches)))
    yield f"  synpro launch {several}--nproc-per-node {-(-ranks // nodes)} bench pretrain {words}"


def settings(recipe: Recipe, choice: Choice) -> str:
    """As overrides of the recipe, in the pretrained model's own section: the generator's layout is another question."""
    layout, own = choice.layout, recipe.pretrain.parallel
    sizes = {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vpp, "cp": layout.cp}
    words = [f"{name}={size}" for name, size in sizes.items() if size > 1]
    words += ["sequence_parallel=true"] if layout.sequence_parallel else []
    if own is not None:  # what it asks for and this layout has not is taken back
        words += [f"{name}=1" for name in ("tp", "pp", "cp") if getattr(own, name) > sizes[name] == 1]
        words += ["vpp=null"] if own.vpp and layout.vpp == 1 else []
        words += ["sequence_parallel=false"] if own.sequence_parallel and not layout.sequence_parallel else []
    elif not words and {recipe.parallel.tp, recipe.parallel.pp, recipe.parallel.cp} != {1}:
        words = ["tp=1"]  # a section of its own, in the place of `parallel`
    return " ".join(f"pretrain.parallel.{word}" for word in words)


def _row(recipe: Recipe, choice: Choice, least: float, room: float | None) -> tuple[str, ...]:
    too_much = " (too much)" if room is not None and choice.memory > room else ""
    return (
        str(choice.layout),
        settings(recipe, choice) or "-",
        f"{choice.micro_batch} x {choice.micro_batches}",
        f"{choice.memory / 2**30:,.1f}{too_much}",
        f"{choice.bubble:.1%}" if choice.bubble else "-",
        *(f"{choice.sent[axis] / 1e9:,.2f}" if choice.sent[axis] else "-" for axis in ("tp", "cp", "pp", "dp")),
        f"{choice.seconds / least:.2f}",
    )
