"""Texts and tasks as the user names them on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from synpro_engine.config import UserError
from synpro_engine.config.base import validate
from synpro_engine.config.yaml_core import YAMLFault, parse_yaml
from synpro_engine.cycle.sections import ReferenceConfig


def named_texts(given: Sequence[str], option: str) -> dict[str, ReferenceConfig]:
    """Texts or tasks by the names of their files without endings, each a file or a mapping of its settings."""
    found: dict[str, ReferenceConfig] = {}
    for text in given:
        try:
            settings = parse_yaml(text) if text.startswith("{") else {"source": text}
        except YAMLFault as fault:
            raise UserError(f"{option} {text}: not valid YAML ({fault})") from None
        reference = validate(ReferenceConfig, settings, f"{option} {text}")
        if reference.source is None:
            raise UserError(f"{option} {text}: key `source` is missing")
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(reference.source).name.partition(".")[0])
        if name in ("", *found):
            raise UserError(f"{option} {text}: another one has that name; texts are told apart by file names")
        found[name] = reference
    return found
