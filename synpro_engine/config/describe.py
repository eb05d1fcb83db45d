"""Settings in words: every key by its dotted path with its value and description, and where two of them differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from synpro_engine.config.base import Config
from synpro_engine.config.errors import brief
from synpro_engine.config.json_text import json_text


def describe(config: Config, prefix: str = "") -> Iterator[str]:
    """Yield `key = value   description` for each key, sections in the order of their declaration."""
    for name, field in type(config).model_fields.items():
        yield from _describe(getattr(config, name), prefix + name, " ".join((field.description or "").split()))
    for name, value in (config.model_extra or {}).items():  # keys of the user's choice, as names of operations
        yield from _describe(value, prefix + name, "")


def _describe(value: Any, key: str, description: str) -> Iterator[str]:
    if isinstance(value, Config):
        yield from describe(value, key + ".")
    elif isinstance(value, dict) and any(isinstance(entry, Config) for entry in value.values()):
        for name, entry in value.items():
            yield from _describe(entry, f"{key}.{name}", description)
    else:
        # Sections of a list (the answers of a question) are shown whole: they have no names to be set by.
        each = value if isinstance(value, tuple) else ()
        plain = [one.model_dump(mode="json") for one in each if isinstance(one, Config)] or value
        shown = f"{key}={json_text(plain, ensure_ascii=False)}"
        yield f"{shown:<48}  {description}".rstrip()


class Difference(NamedTuple):
    """A key, by its dotted path, with its value in the settings that were stored and in those at hand."""

    key: str
    stored: Any
    given: Any

    def __str__(self) -> str:
        """In words, for a message that has named the place of the stored settings."""
        return f"`{self.key}` is {brief(self.stored)} there, {brief(self.given)} here"


def differences(
    stored: Mapping[str, Any], given: Mapping[str, Any], free: Collection[str] = ()
) -> Iterator[Difference]:
    """The keys at which two nested mappings of plain JSON data differ, in the order of `given`.

    A key that one of them lacks counts as None there. free: keys of the top level that may differ.
    """
    # Keys that only the stored settings have count as well: a setting that was taken back is a change.
    for key in dict.fromkeys((*given, *stored)):
        before, now = stored.get(key), given.get(key)
        if key in free or before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from (below._replace(key=f"{key}.{below.key}") for below in differences(before, now))
        else:
            yield Difference(key, before, now)


def first_difference(
    stored: Mapping[str, Any], given: Mapping[str, Any], free: Collection[str] = ()
) -> Difference | None:
    """The first of `differences`; None where the two agree."""
    return next(differences(stored, given, free), None)
