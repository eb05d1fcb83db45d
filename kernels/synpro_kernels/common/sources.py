"""Which sources compiled ops were built from. Standard library alone, for `setup.py` runs this file by itself."""

import hashlib
from pathlib import Path


def sources_digest(csrc: Path) -> str:
    """16 hex digits of SHA-256 over names and contents of the C++ files in the directory."""
    digest = hashlib.sha256()
    for path in sorted([*csrc.glob("*.cpp"), *csrc.glob("*.h")]):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]
