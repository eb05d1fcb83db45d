"""Scoring any documents by their influence on a run's model: streaming, resumable, shared out over ranks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import UserError
from synpro_engine.cycle.corpus import open_tokenizer
from synpro_engine.cycle.cycle import Cycle
from synpro_engine.cycle.weights import load_model
from synpro_engine.data import Document, read_documents
from synpro_engine.dist import gather_objects, on_main, progress
from synpro_engine.influence import Influence

_BATCH = 32


def score_documents(cycle: Cycle, documents: str, output: Path) -> None:
    """Append one JSON line per document to `output`: id, influence, loss_theta, loss_probe (nats per token), tokens.

    Documents that `output` already holds are skipped, so an interrupted call goes on. Collective. Raises UserError
    for bad documents (naming file and line; what was scored before them is kept) and when there is no probe yet.
    """
    topology, words = cycle.topology, open_tokenizer(cycle.directory / "tokenize")
    dtype = platform.resolve_dtype(cycle.recipe.dtype)
    theta, probe = (load_model(cycle.directory / stage, topology, dtype) for stage in cycle.probe_pair)
    influence = Influence(theta, probe, start_id=words.eos_id)
    done = on_main(topology, lambda: _repair(output))
    with progress(0, "influence", "documents", topology) as bar:
        for batch in _batches(document for document in read_documents(documents) if document.id not in done):
            mine = batch[topology.dp.rank :: topology.dp.size]
            scores = influence.score([words.encode(document.text) for document in mine])
            lines = [
                {
                    "id": d.id,
                    "influence": s.value,
                    "loss_theta": s.loss_theta,
                    "loss_probe": s.loss_probe,
                    "tokens": s.tokens,
                }
                for d, s in zip(mine, scores, strict=True)
            ]
            gathered = gather_objects(topology.dp, lines)
            if topology.is_main:
                _append(
                    output, [line for part in itertools.zip_longest(*gathered) for line in part if line is not None]
                )
            bar.update(len(batch))


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while batch := list(itertools.islice(documents, _BATCH)):
        yield batch


def _append(output: Path, lines: list[dict[str, object]]) -> None:
    with output.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _repair(output: Path) -> set[str]:
    """Drop a torn last line and return the ids that are there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if not output.is_file():  # not there yet, or a pipe or device: nothing to read back
        return set()
    text = output.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        output.write_text(whole, encoding="utf-8")
    try:
        return {json.loads(line)["id"] for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{output}: exists and does not hold scores; give another --output") from None
