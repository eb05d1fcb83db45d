"""Several runs from their directories, for the page that shows them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from synpro_engine.config import UserError, load_config, read_manifest, read_yaml
from synpro_engine.cycle.plan import looked_at
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import CONFIG, REFERENCES, TOKENIZE, shards_path
from synpro_engine.cycle.summaries.report_data import report_data
from synpro_engine.data import read_shard_stats
from synpro_engine.report import ComparedRun, Comparison


def comparison(directories: Sequence[Path]) -> Comparison:
    """What the page shows of two runs or more, finished or not. UserError for a directory that holds none."""
    places = [directory.resolve() for directory in directories]
    for at, place in enumerate(places):
        if place in places[:at]:
            raise UserError(f"{directories[at]}: is named twice; a run is compared with others")
    # By the last part of their paths, and where that is the same by all of it.
    names = [place.name for place in places]
    labels = [
        place.name if names.count(place.name) == 1 else str(path)
        for place, path in zip(places, directories, strict=True)
    ]
    runs = tuple(_run(path, label) for path, label in zip(directories, labels, strict=True))
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Comparison(title=f"Compared: {', '.join(labels)}", created=created, runs=runs)


def _run(directory: Path, label: str) -> ComparedRun:
    if not (directory / CONFIG).is_file():
        raise UserError(f"{directory}: no run is there; name directories of runs, as runs/quickstart")
    try:
        recipe = load_config(Recipe, read_yaml(directory / CONFIG))
    except UserError as error:
        raise UserError(f"{directory / CONFIG}: is not a run's of this version of synpro_engine ({error})") from None
    return ComparedRun(
        label=label,
        place=str(directory),
        data=report_data(directory, recipe, looked_at(recipe, directory).stages),
        tokenizer=_tokenizer(directory),
        texts={"validation": _text(directory, "validation"), "reference": _reference(directory, recipe)},
    )


def _tokenizer(directory: Path) -> str | None:
    """The fingerprint of the tokenizer; None while nothing is tokenised."""
    shards = shards_path(directory / TOKENIZE, "train")
    return read_shard_stats(shards).tokenizer if shards.exists() else None


def _text(directory: Path, split: str) -> str | None:
    """The hash of a split's documents."""
    if not (directory / TOKENIZE).exists():
        return None
    return read_manifest(directory / TOKENIZE).files.get(f"documents/{split}.jsonl.zst")


def _reference(directory: Path, recipe: Recipe) -> str | None:
    """What tells apart what the reference loss is of: documents of the split, tasks, and their weights."""
    weights = {name: one.weight for name, one in recipe.references.items()}
    stage = directory / REFERENCES
    tasks = read_manifest(stage).files.get("tasks.json") if stage.exists() else None
    shards = sorted((p, h) for p, h in read_manifest(stage).files.items() if p.endswith("tokens.bin")) if tasks else []
    return f"{_text(directory, 'reference')} {weights} {shards}"
