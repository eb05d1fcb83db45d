"""Scores of documents from where they are recorded: files of JSON lines, looked up by id.

Memory: 24 bytes for each document of the corpus, whatever the number of lines and the length of ids.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError
from synpro_engine.data.compressed import line_reader

_TOGETHER = 1 << 16


class Score(NamedTuple):
    """A value of a document or of a text within one; several of one document count by their weights."""

    id: str
    value: float
    weight: float


def recorded_scores(path: Path, by: str) -> Iterator[Score]:
    """The scores `by` in a file of JSON lines (plain or compressed); lines that have none are passed over.

    A line has an `id` (or `key`), as ids of a corpus a string or an integer, and a number under `by`, or among its
    `rewards`; `influence` is also what `synpro influence` writes (`value`) and what training's own scores hold
    (`scores`, along `reference`). Its weight is its `tokens`, or 1 where it has none; null among them is no
    score. UserError for a line that is no such record.
    """
    for number, line in line_reader(path):
        try:
            record = json.loads(line)
            id, value = _id(record), _value(record, by)
        except (ValueError, OverflowError, RecursionError, AttributeError):
            raise UserError(f"{path}:{number}: damaged, or no object with `id` and `{by}`") from None
        if id is None:
            raise UserError(f"{path}:{number}: `id` is missing, by which scores are documents'")
        if value is not None:
            yield Score(id, value, _weight(record, f"{path}:{number}"))


def _id(record: Mapping[str, Any]) -> str | None:
    for name in ("id", "key"):
        # As `corpus.id_field` takes them; true counts as an integer in Python.
        id = record.get(name)
        if isinstance(id, str) or (isinstance(id, int) and not isinstance(id, bool)):
            return str(id)
    return None


def _value(record: Mapping[str, Any], by: str) -> float | None:
    value = record.get(by)
    if value is None:
        value = (record.get("rewards") or {}).get(by)
    if value is None and by == "influence":
        value = record.get("value")
        if value is None:
            value = (record.get("scores") or {}).get("reference")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{by}` is no number")
    return float(value) if math.isfinite(value) else None


def _weight(record: Mapping[str, Any], where: str) -> float:
    tokens = record.get("tokens", 1)
    try:
        if not isinstance(tokens, bool) and isinstance(tokens, int | float) and 0 <= float(tokens) < math.inf:
            return float(tokens)
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise UserError(f"{where}: `tokens`, by which scores of a document are averaged, must be a number from 0 on")


def document_scores(documents: Iterable[tuple[int, str]], count: int, scores: Iterable[Score]) -> NDArray[np.float32]:
    """The weighted mean score of each document, [count]; NaN where it has none.

    documents: (document, id of it or of a text within it). Ids are told apart by 64 bits, as in `SeenKeys`.
    """
    pair = np.dtype([("key", np.uint64), ("document", np.int64)])
    known = np.fromiter(((_key(id), number) for number, id in documents), pair)
    known.sort(order="key")
    keys, of = known["key"], known["document"]
    sums, weights = np.zeros(count), np.zeros(count)
    scores = iter(scores)
    while batch := list(islice(scores, _TOGETHER)):
        wanted = np.fromiter((_key(score.id) for score in batch), np.uint64, len(batch))
        first, end = np.searchsorted(keys, wanted, side="left"), np.searchsorted(keys, wanted, side="right")
        # An id stands for several documents where it is that of one that was cut into pieces.
        found = end - first
        at = of[np.arange(found.sum()) + np.repeat(first - np.cumsum(found) + found, found)]
        weight = np.array([score.weight for score in batch])
        np.add.at(sums, at, np.repeat(weight * [score.value for score in batch], found))
        np.add.at(weights, at, np.repeat(weight, found))
    return np.where(weights > 0, sums / np.where(weights > 0, weights, 1.0), np.nan).astype(np.float32)


def _key(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
