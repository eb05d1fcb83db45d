"""Versions of the forms of the files that the engine writes, so that a reader knows what it holds in hands.

A version goes up where a reader of the old form would fail on the new one or misread it: a field that is gone, renamed,
or of another meaning or unit. A field that is added, or a kind of metrics, changes nothing, for readers pass over what
they do not know. What the fields mean stands in the documentation (`docs/files.md`), which is held to this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

# The order matters where one pattern ends like another: `samples/metrics.jsonl` goes before `metrics.jsonl`.
SCHEMAS = {
    "manifest.json": 1,
    "documents/*.jsonl.zst": 1,
    "left_out.jsonl": 1,
    "left_out/*.jsonl": 1,
    "questions/*.jsonl": 1,
    "tasks.json": 1,
    "corpus.json": 1,
    "ids.jsonl": 1,
    "stats.json": 1,
    "samples/metrics.jsonl": 1,
    "metrics.jsonl": 2,
    "in-run-scores.jsonl": 1,
    "result.json": 1,
    "trackers.json": 1,
    "steps.jsonl": 1,
    "docs-*.jsonl.zst": 1,
    "_about/rejects-*.jsonl.zst": 1,
    "_about/yield.json": 1,
    "mixture.json": 1,
    "tokens.json": 1,
    "filters.json": 1,
    "removed.jsonl": 1,
    "megadocs.jsonl.zst": 1,
    "decision.json": 1,
    "results.json": 1,
}
"""By the end of a file's path inside an artifact; of two that fit, the first counts."""
OUTSIDE = {
    "stages.jsonl": 1,
    "environment.json": 1,
    "judges/*/*.jsonl": 1,
    "scores.jsonl": 1,
    "ensemble.json": 1,
    "sweep.json": 1,
    "trials.jsonl": 1,
}
"""Of files that lie in no artifact: three of a run's own, what `synpro influence` and `synpro ensemble` write, whatever
that is called, and two of a sweep."""


def schema_of(path: str) -> str | None:
    """The schema, by its name in `SCHEMAS`, of a file at `path` below an artifact; None for files of other kinds."""
    return next((pattern for pattern in SCHEMAS if PurePosixPath(path).match(pattern)), None)


def schemas_of(paths: Iterable[str]) -> dict[str, int]:
    """The versions of all schemas among an artifact's files, its manifest's with them."""
    found = {schema_of(path) for path in ("manifest.json", *paths)}
    return {name: version for name, version in SCHEMAS.items() if name in found}
