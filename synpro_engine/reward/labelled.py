"""Labelled pairs to train and measure a judge with: records of `source`, `text` and `label`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from synpro_engine.data import ReadConfig
from synpro_engine.data.documents import read_items
from synpro_engine.data.fields import Fault, missing, text_at, value_at
from synpro_engine.data.sources import find_source
from synpro_engine.reward.examples import Example

_FIELDS = ("source", "text", "label")


def read_labelled(source: str) -> Iterator[Example]:
    """The pairs of a corpus file, a directory or one of the embedded sets; label: true or false, or 1 or 0.

    UserError, with file and line, for a record that lacks a field or has another label.
    """
    name = source.rpartition(":")[2].removesuffix("/pairs").rpartition("/")[2].partition(".")[0]

    def example(id: str, fields: dict[str, Any]) -> Example:
        for field in ("source", "text"):
            if field not in fields:
                raise missing(fields, f"`{field}` is missing")
        text = {field: text_at(fields, field) for field in ("source", "text")}
        return Example(text["source"], text["text"], _label(fields), name)

    reading = ReadConfig(make_ids=not source.startswith("embedded:"))
    return (pair for _, pair in read_items(find_source(source), reading, _FIELDS, example, None))


def _label(fields: dict[str, Any]) -> bool:
    value = value_at(fields, "label")
    if value is None:
        raise missing(fields, "`label` is missing: true where `source` supports `text`, else false")
    if value not in (0, 1):
        raise Fault("wrong type", f"`label` must be true or false, found {value!r:.40}")
    return bool(value)
