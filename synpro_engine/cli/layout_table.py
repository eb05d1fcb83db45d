"""Layouts that could train a recipe's model, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from synpro_engine.cycle.choice import Choice, Machine
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.report.terminal import aligned

_MOST = 16
_HEAD = (
    "layout", "settings", "rows x micro-batches", "GiB a rank", "bubble", "GB sent a step: tp", "cp", "pp", "dp",
    "estimate",
)  # fmt: skip


def lines(recipe: Recipe, found: Sequence[Choice], ranks: int, machine: Machine, room: float | None) -> Iterator[str]:
    """The table, line by line, and how to measure the first. room: bytes of a rank; what needs more stands last."""
    ordered = found if room is None else sorted(found, key=lambda choice: choice.memory > room)
    least = ordered[0].seconds
    parameters = f"{recipe.model.parameter_count() / 1e6:,.1f}M parameters"
    yield f"{recipe.name}: {parameters} on {ranks} rank(s), the quickest first"
    yield from aligned([_HEAD, *(_row(choice, least, room) for choice in ordered[:_MOST])])
    if len(ordered) > _MOST:
        yield f"and {len(ordered) - _MOST} more"
    yield ""
    inside, outside = machine.inside / 1e9, machine.outside / 1e9
    yield (
        f"estimated with {machine.flops / 1e12:,.0f} TFLOP/s a device, {inside:,.0f} GB/s within a machine of"
        f" {machine.node} and {outside:,.0f} between, nothing hidden behind anything; measure the first few:"
    )
    here = min(ranks, machine.node)
    yield f"  synpro launch --nproc-per-node {here} bench pretrain {recipe.name} {settings(ordered[0])}"


def settings(choice: Choice) -> str:
    """As overrides of a recipe."""
    layout = choice.layout
    of = {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vpp, "cp": layout.cp}
    words = [f"parallel.{name}={size}" for name, size in of.items() if size > 1]
    return " ".join([*words, *(["parallel.sequence_parallel=true"] if layout.sequence_parallel else [])])


def _row(choice: Choice, least: float, room: float | None) -> tuple[str, ...]:
    too_much = " (too much)" if room is not None and choice.memory > room else ""
    return (
        str(choice.layout),
        settings(choice) or "-",
        f"{choice.micro_batch} x {choice.micro_batches}",
        f"{choice.memory / 2**30:,.1f}{too_much}",
        f"{choice.bubble:.1%}" if choice.bubble else "-",
        *(f"{choice.sent[axis] / 1e9:,.2f}" if choice.sent[axis] else "-" for axis in ("tp", "cp", "pp", "dp")),
        f"{choice.seconds / least:.2f}",
    )
