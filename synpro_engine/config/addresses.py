"""How an address in an object store is told from a path, before anything knows of stores."""

from __future__ import annotations

import re
from pathlib import Path

# One slash too: pathlib makes `s3:/bucket` of an address. One letter is a drive, and `embedded:name` has no slash.
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,3}")


def is_address(place: str | Path) -> bool:
    """Whether a place is written as an address; `file://` is one too until it is made a path."""
    return ADDRESS.match(str(place)) is not None


def spelled(place: str | Path) -> str:
    """An address as it was typed, where a path was made of it."""
    return ADDRESS.sub(lambda found: f"{found[1]}:///" if found[1] == "file" else f"{found[1]}://", str(place), count=1)
