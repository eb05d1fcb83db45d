"""Docstrings are plain English with some code in backticks, not Markdown: what would be read as markup is escaped."""

from __future__ import annotations

import re
from typing import Any

import griffe

_CODE = re.compile(r"(`+[^`]*`+)")


class PlainDocstrings(griffe.Extension):
    """Lets angle brackets (inner products) and pairs of square ones (places in lists) be what they are."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute, once it is read."""
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(map(_escaped, obj.docstring.value.split("\n")))


def _escaped(line: str) -> str:
    if line.startswith("    "):  # an example, as it is
        return line
    parts = _CODE.split(line)
    parts[::2] = (text.replace("<", "&lt;").replace("][", "]&#91;") for text in parts[::2])
    return "".join(parts)
