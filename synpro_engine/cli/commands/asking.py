"""Commands that print what a run will take or how far it is, what can be set, and what the machine has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import lcm
from pathlib import Path

from synpro_engine.cli import layout_table, plan_table, run_table, status_table
from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.choice import Machine, choices
from synpro_engine.cycle.forecast import forecast
from synpro_engine.cycle.generation import generation_status
from synpro_engine.cycle.rates import Rates, measured_rates
from synpro_engine.cycle.recipe_files import recipe_of_records
from synpro_engine.cycle.status import run_status
from synpro_engine.dist.environment import read_environment

_FOLLOW_S = 10.0  # between two looks of `status --follow`


def plan(
    recipe: str,
    overrides: Sequence[str],
    *,
    ranks: int | None = None,
    measured: Path | None = None,
    trained: float | None = None,
    sampled: float | None = None,
) -> None:
    """Print what a run will take. trained, sampled: tokens a second; they go before what `measured`, a run, shows."""
    resolved = load_recipe(recipe, overrides)
    rates = Rates() if measured is None else measured_rates(measured)
    rates = Rates(trained=trained or rates.trained, sampled=sampled or rates.sampled)
    fewest = lcm(*(layout.tp * layout.pp * layout.cp for layout in resolved.layouts.values()))
    ranks = ranks or max(read_environment().world_size, fewest)
    for line in plan_table.lines(forecast(resolved, ranks), rates):
        print(line)


def plan_layouts(recipe: str, overrides: Sequence[str], *, ranks: int, memory_gib: float | None, node: int) -> None:
    """Print the layouts that could pretrain on so many ranks."""
    resolved, machine = load_recipe(recipe, overrides), Machine(node=node)
    room = None if memory_gib is None else memory_gib * 2**30
    found = choices(resolved, ranks, machine)
    for line in layout_table.lines([recipe, *overrides], resolved, found, ranks, machine, room):
        print(line)


def status(recipe: str, overrides: Sequence[str], directory: Path | None, *, follow: bool) -> None:
    """Print how far a run is; follow: again and again, until it is done."""
    resolved = recipe_of_records(recipe, overrides, directory)
    place = directory or Path("runs") / resolved.name
    while True:
        found = run_status(resolved, place)
        print("\n".join(run_table.lines(found)), flush=True)
        if not follow or found.is_done:
            return
        time.sleep(_FOLLOW_S)
        print()


def generation_status_of(recipe: str, overrides: Sequence[str], directory: Path | None, price: float | None) -> None:
    """Print how far the generation of a run is."""
    resolved = recipe_of_records(recipe, overrides, directory)
    for line in status_table.lines(generation_status(resolved, directory or Path("runs") / resolved.name), price):
        print(line)


def keys(recipe: str, overrides: Sequence[str]) -> None:
    """Print every key of a recipe with its value and what it means."""
    from synpro_engine.config.describe import describe

    for line in describe(load_recipe(recipe, overrides)):
        print(line)


def doctor() -> None:
    """Print the table of choices; UserError where something that is required cannot be imported."""
    from synpro_engine.backend.doctor import diagnose, import_faults

    choices = diagnose()
    widths = [max(len(text) for text in column) for column in zip(*((c.part, c.uses) for c in choices), strict=True)]
    for choice in choices:
        print(f"{choice.part:<{widths[0]}}  {choice.uses:<{widths[1]}}  {choice.why}".rstrip())
    if faults := import_faults():
        raise UserError(f"broken here: {'; '.join(faults)}")
