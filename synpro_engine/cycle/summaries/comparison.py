"""Several runs from their directories, for the page that shows them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from synpro_engine.config import UserError, load_config, read_manifest, read_yaml
from synpro_engine.cycle.plan import looked_at
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import (
    CONFIG,
    TOKENIZE,
    held_out_shards,
    measured_path,
    reference_shards,
    shards_path,
    task_key,
)
from synpro_engine.cycle.summaries.report_data import report_data
from synpro_engine.data import read_shard_stats
from synpro_engine.data.embedded import EMBEDDED_PREFIX
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
        data=report_data(directory, recipe, looked_at(recipe, directory).stages, traced=False),
        tokenizer=_tokenizer(directory),
        texts={"validation": _text(directory, "validation"), "reference": _reference(directory, recipe)},
        tasks={
            name: told
            for name, tasks in recipe.held_out.items()
            if (told := _shards(directory, held_out_shards(name), tasks.source))
        },
        split_alone=[one.source for one in recipe.references.values()] == [None],
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


def _shards(directory: Path, name: str, source: str | None) -> str | None:
    """What tells tasks apart, whatever tokenizer cut them: how many they are, of how many bytes, and of which files."""
    path = measured_path(directory / TOKENIZE, name)
    if not path.exists():
        return None
    stats = read_shard_stats(path)
    # By content: a file may have another name or place. Of what a wheel brings the engine's version stands there, which
    # is no content; its name says which tasks they are.
    files = read_manifest(path.parents[1]).config.get("contents", {}).get(f"{task_key(name)}.source", "")
    embedded = source is not None and source.startswith(EMBEDDED_PREFIX)
    return f"{stats.documents} {stats.text_bytes} {source if embedded else files}"


def _reference(directory: Path, recipe: Recipe) -> str | None:
    """What tells apart what the reference loss is of: documents of the split, tasks, and their weights."""
    of = {
        name: (one.weight, _shards(directory, reference_shards(name, one.source), one.source) if one.source else None)
        for name, one in sorted(recipe.references.items())
    }
    if not (directory / TOKENIZE).exists() or any(
        of[n][1] is None for n, one in recipe.references.items() if one.source
    ):
        return None
    split = any(one.source is None for one in recipe.references.values())
    return f"{_text(directory, 'reference') if split else ''} {of}"
