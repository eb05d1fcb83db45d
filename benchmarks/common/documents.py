"""Marked blocks of a documentation page, which programs renew: `<!-- NAME -->`, the text, `<!-- end of NAME -->`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from synpro_engine.config import UserError


def renew(page: Path, blocks: Mapping[str, str]) -> None:
    """Put each text between the marks of its name. UserError where a pair of marks is not there once; nothing is
    written then."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
            raise UserError(f"{page}: it needs one block between `{start}` and `{end}`")
        head, rest = text.split(start)
        text = f"{head}{start}\n{block}\n{end}{rest.split(end)[1]}"
    page.write_text(text, encoding="utf-8")
