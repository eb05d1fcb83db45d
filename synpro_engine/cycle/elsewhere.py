"""Stages that are there under the name of another arm: what arms have in common is not made anew in another order.

A stage that several arms share has the first one's name. Where that arm goes, or another one comes before it, the same
stage would be looked for under another name, and its hours spent again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from synpro_engine.config import read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.graph import Graph
from synpro_engine.cycle.run_layout import round_folders
from synpro_engine.cycle.stages import Stage, half_done, would_differ

_COMMON = re.compile(r"round-\d+/(probe|shards|(tune|generate)-.+)$")
"""Names of what arms may share; each trains and is evaluated by itself."""


def found_elsewhere(graph: Graph) -> dict[str, str]:
    """The first stage that is not there, but finished under a name that no other one has: {its name: that name}."""
    for stage in graph.stages:
        if not _COMMON.search(stage.name) or (graph.directory / stage.name).exists():
            continue
        if not half_done(graph.directory, stage):
            for name in _finished(graph.directory, stage):
                if graph.asked_for.get(name, stage.name) == stage.name and _is_it(graph, stage, name):
                    return {stage.name: name}
    return {}


def _finished(directory: Path, stage: Stage) -> Iterator[str]:
    """Names of all finished stages of a stage's kind."""
    kind = stage.name.rpartition("/")[2]
    for folder in round_folders(directory):
        if (folder / kind / MANIFEST).exists():
            yield str((folder / kind).relative_to(directory))


def _is_it(graph: Graph, stage: Stage, name: str) -> bool:
    """Whether it was made as the stage would be, from parents that are there."""
    if not all((graph.directory / parent / MANIFEST).exists() for parent in stage.parents):
        return False
    manifest = read_manifest(graph.directory / name)
    # Who looks from outside knows no digests of files.
    config = {key: value for key, value in manifest.config.items() if graph.knows_contents or key != "contents"}
    return not would_differ(graph.directory, stage, config, manifest.parents)
