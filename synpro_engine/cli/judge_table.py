"""What judges see, as a table and as JSON: a row for each planted fault, a column for each judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from synpro_engine.config import atomic_write_text, json_text
from synpro_engine.cycle import Recipe
from synpro_engine.reward.agreement import Standing
from synpro_engine.reward.judges import EncoderConfig


def lines(found: Sequence[Standing], recipe: Recipe) -> Iterator[str]:
    """A Markdown table: AUC and agreement; `-` where a judge gave no value."""
    judges = list(dict.fromkeys(standing.judge for standing in found))
    cells = {(standing.fault, standing.judge): standing for standing in found}
    yield f"| planted fault | pairs | {' | '.join(_title(judge, recipe) for judge in judges)} |"
    yield f"|---|---|{'---|' * len(judges)}"
    for fault in dict.fromkeys(standing.fault for standing in found):
        of_fault = [cells[fault, judge] for judge in judges]
        yield f"| {fault} | {of_fault[0].pairs} | {' | '.join(map(_cell, of_fault))} |"


def _title(judge: str, recipe: Recipe) -> str:
    config = getattr(recipe.reward.judges, judge, None)
    if config is None:
        return judge
    return f"{judge} ({Path(config.encoder if isinstance(config, EncoderConfig) else config.model).name})"


def _cell(standing: Standing) -> str:
    if standing.auc is None:
        return "-"
    missing = f" ({standing.missing} missing)" if standing.missing else ""
    return f"{standing.auc:.2f} / {standing.agreement:.2f}{missing}"


def write(path: Path, found: Sequence[Standing], recipe: Recipe, texts: int) -> None:
    """One JSON object: the judges' settings without secrets, and all standings."""
    judges = recipe.reward.judges.recorded()
    about = {"recipe": recipe.name, "corpus": recipe.corpus.source, "seed": recipe.seed, "texts": texts}
    data = {**about, "generator": recipe.generator.source, "judges": judges, "standings": list(map(asdict, found))}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json_text(data, indent=2) + "\n")
