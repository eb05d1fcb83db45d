"""A configuration in words: every key by its dotted path, its value, and the description beside its declaration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from synpro_engine.config.base import Config
from synpro_engine.config.json_text import json_text


def describe(config: Config, prefix: str = "") -> Iterator[str]:
    """Yield `key = value   description` for each key, sections in the order of their declaration."""
    for name, field in type(config).model_fields.items():
        yield from _describe(getattr(config, name), prefix + name, " ".join((field.description or "").split()))


def _describe(value: Any, key: str, description: str) -> Iterator[str]:
    if isinstance(value, Config):
        yield from describe(value, key + ".")
    elif isinstance(value, dict) and any(isinstance(entry, Config) for entry in value.values()):
        for name, entry in value.items():
            yield from _describe(entry, f"{key}.{name}", description)
    else:
        shown = f"{key}={json_text(value, ensure_ascii=False)}"
        yield f"{shown:<48}  {description}".rstrip()
