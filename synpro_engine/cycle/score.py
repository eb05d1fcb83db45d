"""Scoring any documents by their influence: streaming, resumable, shared out over data-parallel ranks.

Knows documents and the file of scores; what a score is, and between which weights, is the estimator's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError
from synpro_engine.cycle.pair import Pair
from synpro_engine.data import BadDocument, Document, count_documents, read_documents
from synpro_engine.dist import Topology, gather_objects, on_main, progress, say
from synpro_engine.influence import EstimatorConfig, SequenceScore

_ROUNDS = 4  # micro-batches a rank scores between two writes: enough to put texts of like length together
_FIRST_ORDER = {"dot": ("at", "clip"), "jvp": ("at",), "finite_difference": ("at", "step")}


def score_documents(
    pair: Pair,
    config: EstimatorConfig,
    documents: str,
    output: Path,
    topology: Topology,
    *,
    shares: bool = False,
    skip_bad: bool = False,
) -> None:
    """Append one JSON line per document to `output`, in the order of the input.

    A line holds `id`, `value` and `loss` (nats per token; null where not finite), `tokens` and the `windows` of the
    model's length that they were cut into, the `estimator` with its settings, and the content hashes `theta` and
    `probe`; with `shares` each token's part of `value`. What `output` holds of the same documents already is kept, so
    an interrupted call goes on, with nothing lost or twice. Collective. Raises UserError for a bad document (naming
    file and line; what was scored before it is kept), unless `skip_bad` leaves those out, and for an `output` that
    holds something else.
    """
    config = pair.resolved(config)
    made_by = _made_by(pair, config)
    known = on_main(topology, lambda: _begin(output, documents, made_by, shares))
    total = on_main(topology, lambda: count_documents(documents))
    estimator, size = pair.estimator(config, topology), _ROUNDS * config.micro_batch * topology.dp.size
    with progress(total, "influence", "documents", topology) as bar:
        skipped = _Skipped(topology, bar.update)
        found = _fresh(read_documents(documents, skipped if skip_bad else None), known, output, bar.update)
        while batch := list(itertools.islice(found, size)):
            mine = batch[topology.dp.rank :: topology.dp.size]
            scores = estimator.score([pair.tokenizer.encode(document.text) for document in mine])
            lines = [_line(document, score, made_by, shares) for document, score in zip(mine, scores, strict=True)]
            gathered = itertools.zip_longest(*gather_objects(topology.dp, lines))
            ordered = [line for part in gathered for line in part if line is not None]
            on_main(topology, partial(_append, output, ordered))
            bar.update(len(batch))
    if skipped.count:
        say(topology, f"skipped {skipped.count} bad document{'s' if skipped.count > 1 else ''}, named above")


class _Skipped:
    """Names each bad document to the user and counts them."""

    def __init__(self, topology: Topology, advance: Callable[[int], object]) -> None:
        self._topology, self._advance, self.count = topology, advance, 0

    def __call__(self, bad: BadDocument) -> None:
        self.count += 1
        say(self._topology, f"skipped: {bad}")
        self._advance(1)


def _made_by(pair: Pair, config: EstimatorConfig) -> dict[str, object]:
    """What the scores depend on, beside the texts. Rows and packing change their last bits only."""
    settings = {name: getattr(config, name) for name in _FIRST_ORDER.get(config.estimator, ())}
    return {"estimator": config.estimator, **settings, **pair.hashes}


def _line(document: Document, score: SequenceScore, made_by: Mapping[str, object], shares: bool) -> str:
    record: dict[str, Any] = {
        "id": document.id,
        "value": _finite(score.value),
        "tokens": score.tokens,
        "windows": score.windows,
        "loss": _finite(score.loss),
        **made_by,
    }
    if shares:
        record["shares"] = [_finite(share) for share in score.shares]
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _append(output: Path, lines: list[str]) -> None:
    with output.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def _fresh(
    documents: Iterator[Document], known: tuple[int, bytes], output: Path, advance: Callable[[int], object]
) -> Iterator[Document]:
    """The documents behind those that `output` holds, which must be the first ones, in order."""
    count, digest = known
    ids = hashlib.blake2b()
    for document in itertools.islice(documents, count):
        _take(ids, document.id)
        advance(1)
    if ids.digest() != digest:
        raise UserError(f"{output}: holds scores of other documents than the input begins with; give another --output")
    yield from documents


def _take(ids: Any, own: str) -> None:
    ids.update(json.dumps(own).encode() + b"\n")


def _begin(output: Path, documents: str, made_by: Mapping[str, object], shares: bool) -> tuple[int, bytes]:
    """How many documents `output` holds, and a digest of their ids; a last line torn by a kill is dropped."""
    if output.resolve() == Path(documents).resolve():
        raise UserError(f"{output}: is the input; give another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    ids, count, end = hashlib.blake2b(), 0, 0
    if not output.is_file():  # not there yet, or a pipe or device: nothing to read back
        return count, ids.digest()
    with output.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                if not count and not line.startswith(b'{"id"'):
                    raise _foreign(output)
                file.truncate(end)
                break
            _take(ids, _id_of(line, output, made_by, shares))
            count, end = count + 1, end + len(line)
    return count, ids.digest()


def _id_of(line: bytes, output: Path, made_by: Mapping[str, object], shares: bool) -> str:
    try:
        record = json.loads(line)
        theirs = {name: record[name] for name in ("theta", "probe", "estimator")}
        own = record["id"]
    except (ValueError, KeyError, TypeError):
        raise _foreign(output) from None
    theirs |= {name: record.get(name) for name in made_by}
    if "windows" not in record:
        raise UserError(f"{output}: holds scores of an older version, which clipped by window; give another --output")
    for name, value in theirs.items():
        if value != made_by[name]:
            raise UserError(f"{output}: holds scores by another {name}; give another --output")
    if ("shares" in record) != shares:
        raise UserError(f"{output}: holds scores with{'out' * shares} shares; give another --output")
    return own


def _foreign(output: Path) -> UserError:
    return UserError(f"{output}: exists and does not hold scores; give another --output")
