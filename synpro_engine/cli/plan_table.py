"""What a run will take, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from synpro_engine.cycle.forecast import NEEDED, Cost, Forecast
from synpro_engine.cycle.rates import Rates
from synpro_engine.cycle.run_layout import IMPORT, PRETRAIN, Round
from synpro_engine.report.terminal import aligned

_HEAD = ("stage", "layout", "tokens", "sampled", "FLOPs", "GiB a rank", "GB on disk", "time")
_FIRST = f"{Round(1).name}/"


def lines(plan: Forecast, rates: Rates) -> Iterator[str]:
    """The table, line by line, and below it what to know of its numbers."""
    recipe, model = plan.recipe, plan.recipe.model
    parameters = f"{model.parameter_count() / 1e6:,.1f}M parameters"
    ranks = f"{plan.ranks} processes" if plan.ranks > 1 else "1 process"
    yield f"{recipe.name}: {parameters}, {ranks}, {plan.dtype}".replace("torch.", "")
    yield from aligned([_HEAD, *(_row(plan, cost, rates) for cost in plan.costs), _total(plan, rates)])
    yield ""
    yield from aligned(_memory(plan))
    yield ""
    for remark in plan.remarks:
        yield f"note: {remark}"
    recompute = recipe.pretrain.recompute
    kept = "without recomputation" if recompute == "none" else f"with `pretrain.recompute: {recompute}`"
    yield f"note: completions are counted at their longest; activations {kept}"
    if rates.trained is None:
        yield "note: for times give --tokens-per-s and --sampled-per-s, or --measured RUN, a run on as many ranks"


def _memory(plan: Forecast) -> list[tuple[str, ...]]:
    """What of a rank's memory is held by what, up to the end of the first round: a column for each kind of stage."""
    kinds: dict[str, Cost] = {}
    for cost in plan.costs:
        kind = cost.stage.rpartition("/")[2]
        # Continued training is pretraining over again, and an arm's stage another one's.
        in_round = _FIRST in cost.stage and not kind.startswith("continue")
        if cost.memory and (cost.stage in (IMPORT, PRETRAIN) or in_round):
            kinds.setdefault(kind, cost)
    stages = list(kinds.values())
    rows = [("GiB a rank, held by", "in tuning for", *kinds)]
    for name, phases in NEEDED.items():
        sizes = [cost.held.get(name, 0.0) / 2**30 for cost in stages]
        if any(sizes):
            rows.append((name, phases, *(f"{size:,.2f}" if size else "-" for size in sizes)))
    if any(cost.moves for cost in stages):
        rows.append(("at most at once", "", *(f"{cost.memory / 2**30:,.2f}" for cost in stages)))
    return rows


def _row(plan: Forecast, cost: Cost, rates: Rates) -> tuple[str, ...]:
    return (
        cost.stage,
        "-" if cost.layout is None else str(cost.layout),
        "?" if cost.tokens is None else _short(cost.tokens),
        _short(cost.sampled),
        f"{cost.flops:.1e}" if cost.flops else "-",
        f"{cost.memory / 2**30:,.2f}" if cost.memory else "-",
        f"{cost.disk / 1e9:,.2f}" if cost.disk else "-",
        _duration(plan.seconds(cost, rates)),
    )


def _total(plan: Forecast, rates: Rates) -> tuple[str, ...]:
    """Sums, the fullest moment of memory, and the time where that of every stage is known."""
    seconds = [plan.seconds(cost, rates) for cost in plan.costs]
    known = [second for second in seconds if second is not None]
    return (
        "in all",
        "",
        # What only lies on the disk (`tokenize`, `shards`) passes through a model later, and would count twice.
        _short(sum(cost.tokens or 0.0 for cost in plan.costs if cost.layout is not None)),
        _short(sum(cost.sampled for cost in plan.costs)),
        f"{sum(cost.flops for cost in plan.costs):.1e}",
        f"{max(cost.memory for cost in plan.costs) / 2**30:,.2f}",
        f"{sum(cost.disk for cost in plan.costs) / 1e9:,.2f}",
        _duration(sum(known) if len(known) == len(seconds) else None),
    )


def _short(count: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.0f}" if count else "-"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s" if seconds else "-"
