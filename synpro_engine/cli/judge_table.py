"""What judges see, as tables and as JSON: a row for each kind of fault, a column for each judge of whole texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from synpro_engine.config import atomic_write_text, json_text
from synpro_engine.cycle import Recipe
from synpro_engine.cycle.scoring.judging import Checked
from synpro_engine.reward.agreement import Standing
from synpro_engine.reward.entries import Cost, EntryStanding, KindStanding, SetStanding
from synpro_engine.reward.judges import Calibration
from synpro_engine.reward.measures import Bin

_BLIND = 0.65
"""A judge whose AUC is below it hardly sees a fault."""
_PLOT = 40  # characters from 0 to 1


def lines(found: Checked, recipe: Recipe) -> Iterator[str]:
    """Markdown tables, then what each judge cannot see, and what a judgement took."""
    if found.texts:
        yield from _text_table(found.texts, recipe)
        yield ""
    for standing in found.entries:
        yield from _entry_table(standing, recipe)
        yield ""
    if found.calibration is not None:
        yield from _calibration_lines(found.calibration)
        yield ""
    for judge, blind in _blind(found).items():
        if blind:
            yield f"{_title(judge, recipe)} hardly sees (AUC under {_BLIND}): {', '.join(blind)}"
    for judge, cost in [*found.costs.items(), *((each.judge, each.cost) for each in found.entries)]:
        paid = recipe.reward.cost(judge, cost.asked)
        yield f"{_title(judge, recipe)}: {_cost(cost)}{'' if paid is None else f'; cost {paid:.4f} in all'}"


def _text_table(found: Sequence[Standing], recipe: Recipe) -> Iterator[str]:
    """AUC and agreement; `-` where a judge gave no value."""
    judges = list(dict.fromkeys(standing.judge for standing in found))
    cells = {(standing.fault, standing.judge): standing for standing in found}
    yield f"| planted fault | pairs | {' | '.join(_title(judge, recipe) for judge in judges)} |"
    yield f"|---|---|{'---|' * len(judges)}"
    for fault in dict.fromkeys(standing.fault for standing in found):
        of_fault = [cells[fault, judge] for judge in judges]
        yield f"| {fault} | {of_fault[0].pairs} | {' | '.join(map(_cell, of_fault))} |"


def _title(judge: str, recipe: Recipe) -> str:
    judges = recipe.reward.judges
    if judge == "similarity" and judges.encoder is not None:
        return f"{judge} ({Path(judges.encoder.encoder).name})"
    return f"{judge} ({Path(judges.asked[judge].model).name})" if judge in judges.asked else judge


def _cell(standing: Standing) -> str:
    if standing.auc is None:
        return "-"
    missing = f" ({standing.missing} missing)" if standing.missing else ""
    return f"{standing.auc:.2f} / {standing.agreement:.2f}{missing}"


def _entry_table(standing: EntryStanding, recipe: Recipe) -> Iterator[str]:
    """AUC with its interval by kind; then each set as a whole."""
    yield f"| {_title(standing.judge, recipe)} | n | AUC | 95 % interval | false ones supported |"
    yield "|---|---|---|---|---|"
    for kind in standing.kinds:
        yield f"| {kind.kind} | {kind.n} | {_figure(kind.auc)} | {_interval(kind)} | {_percent(kind.let_through)} |"
    for of_set in standing.sets:
        yield ""
        yield from _set_lines(of_set)


def _set_lines(standing: SetStanding) -> Iterator[str]:
    missing = f", {standing.missing} without a value" if standing.missing else ""
    yield f"{standing.set}: {standing.true} true, {standing.false} false{missing}; AUC {_figure(standing.auc)}"
    if standing.threshold is None or standing.ece is None:
        return
    kept = ", ".join(f"{kind} {_percent(share)}" for kind, share in standing.kept.items())
    yield f"  supported from {standing.threshold:.3f} on (a tenth of the false ones pass): {kept}"
    yield f"  expected calibration error {standing.ece:.3f}; said (|) and found (o), from 0 to 1:"
    for each in standing.bins:
        yield f"  {_plotted(each)} {each.said:.2f} {each.found:.2f} ({each.pairs})"


def _calibration_lines(calibration: Calibration) -> Iterator[str]:
    map_ = f"log-odds over {calibration.temperature:.3g}, plus {calibration.offset:.3g}"
    yield (
        f"calibration {calibration.version}: {map_}; expected calibration error before, and after by"
        " maps that were fitted to other sources:"
    )
    for name, of_set in calibration.measured.items():
        yield f"  {name}: {of_set['before']:.3f}, {of_set['after']:.3f} ({calibration.pairs[name]} pairs)"


def _plotted(each: Bin) -> str:
    line = ["."] * (_PLOT + 1)
    line[round(each.said * _PLOT)] = "|"
    line[round(each.found * _PLOT)] = "o"
    return "".join(line)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _interval(kind: KindStanding) -> str:
    return "-" if kind.low is None else f"{kind.low:.3f} to {kind.high:.3f}"


def _cost(cost: Cost) -> str:
    each = cost.seconds / max(1, cost.judged)
    asked = ", ".join(f"{value / max(1, cost.judged):.1f} {what}" for what, value in cost.asked.items())
    return f"{cost.judged} judged, {each:.4f} s each{f'; {asked} each' if asked else ''}"


def figures(found: Checked) -> dict[str, dict[str, dict[str, Any]]]:
    """{judge: {kind: {"auc", "n", "low", "high"}}}; auc is None where there was nothing to compare."""
    data: dict[str, dict[str, dict[str, Any]]] = {}
    for text in found.texts:
        n = text.pairs - text.missing
        data.setdefault(text.judge, {})[text.fault] = {"auc": text.auc, "n": n, "low": text.low, "high": text.high}
    for entry in found.entries:
        for kind in entry.kinds:
            found_of = {"auc": kind.auc, "n": kind.n, "low": kind.low, "high": kind.high}
            data.setdefault(entry.judge, {})[kind.kind] = found_of
    return data


def _blind(found: Checked) -> dict[str, list[str]]:
    return {
        judge: [kind for kind, of_kind in kinds.items() if of_kind["auc"] is not None and of_kind["auc"] < _BLIND]
        for judge, kinds in figures(found).items()
    }


def write_figures(path: Path, found: Checked) -> None:
    """`figures` as one JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json_text(figures(found), indent=2) + "\n")


def write(path: Path, found: Checked, recipe: Recipe, texts: int, pairs: int) -> None:
    """One JSON object: the judges' settings without secrets, and all standings."""
    judges = recipe.reward.judges.recorded()
    about = {"recipe": recipe.name, "corpus": recipe.corpus.source, "seed": recipe.seed, "texts": texts, "pairs": pairs}
    costs = {judge: asdict(cost) for judge, cost in found.costs.items()}
    data = {
        **about, "generator": recipe.generator.source, "judges": judges, "costs": costs,
        "standings": list(map(asdict, found.texts)), "entries": list(map(asdict, found.entries)),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json_text(data, indent=2) + "\n")
