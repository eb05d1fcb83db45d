"""Scoring any documents by their influence on a run's model: streaming, resumable, shared out over ranks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import UserError, atomic_write_text, read_manifest
from synpro_engine.cycle.corpus import open_tokenizer
from synpro_engine.cycle.cycle import Cycle
from synpro_engine.cycle.weights import load_model
from synpro_engine.data import Document, read_documents
from synpro_engine.dist import gather_objects, on_main, progress
from synpro_engine.influence import Influence, InfluenceScore

_BATCH = 32


def score_documents(cycle: Cycle, documents: str, output: Path) -> None:
    """Append one JSON line per document to `output`.

    A line holds `id`, `influence`, `loss_theta`, `loss_probe` (nats per token), `tokens`, and the content hashes
    `theta` and `probe` of the checkpoints that made it. Documents that `output` already holds are skipped, so an
    interrupted call goes on. Collective. Raises UserError for bad documents (naming file and line; what was scored
    before them is kept), for an `output` that holds something else, and when there is no probe yet.
    """
    topology, words = cycle.topology, open_tokenizer(cycle.directory / "tokenize")
    stages = [cycle.directory / stage for stage in cycle.probe_pair]
    theta_hash, probe_hash = (read_manifest(stage).content_hash for stage in stages)
    made_by = {"theta": theta_hash, "probe": probe_hash}
    done = on_main(topology, lambda: _begin(output, documents, made_by))
    dtype = platform.resolve_dtype(cycle.recipe.dtype)
    theta, probe = (load_model(stage, topology, dtype) for stage in stages)
    influence = Influence(theta, probe, start_id=words.eos_id, keep=0)
    with progress(0, "influence", "documents", topology) as bar:
        for batch in _batches(document for document in read_documents(documents) if document.id not in done):
            mine = batch[topology.dp.rank :: topology.dp.size]
            scores = influence.score([words.encode(document.text) for document in mine])
            lines = [_line(document, score) | made_by for document, score in zip(mine, scores, strict=True)]
            gathered = itertools.zip_longest(*gather_objects(topology.dp, lines))
            ordered = [line for part in gathered for line in part if line is not None]
            on_main(topology, partial(_append, output, ordered))
            bar.update(len(batch))


def _line(document: Document, score: InfluenceScore) -> dict[str, object]:
    return {
        "id": document.id,
        "influence": score.value,
        "loss_theta": score.loss_theta,
        "loss_probe": score.loss_probe,
        "tokens": score.tokens,
    }


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while batch := list(itertools.islice(documents, _BATCH)):
        yield batch


def _append(output: Path, lines: list[dict[str, object]]) -> None:
    with output.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _begin(output: Path, documents: str, made_by: Mapping[str, str]) -> set[str]:
    """The ids that `output` already holds; a last line torn by a kill is dropped, but only from a file of scores."""
    if output.resolve() == Path(documents).resolve():
        raise UserError(f"{output}: is the input; give another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    if not output.is_file():  # not there yet, or a pipe or device: nothing to read back
        return set()
    *whole, torn = output.read_text(encoding="utf-8").split("\n")
    done = {_id_of(line, output, made_by) for line in whole}
    if torn:
        if not whole and not torn.startswith('{"id"'):
            raise UserError(f"{output}: exists and does not hold scores; give another --output")
        atomic_write_text(output, "".join(line + "\n" for line in whole))
    return done


def _id_of(line: str, output: Path, made_by: Mapping[str, str]) -> str:
    try:
        record = json.loads(line)
        theirs = {name: record[name] for name in made_by}
        own = record["id"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{output}: exists and does not hold scores; give another --output") from None
    if theirs != dict(made_by):
        raise UserError(f"{output}: holds scores by another theta or probe; give another --output")
    return own
