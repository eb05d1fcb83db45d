"""Which pages the site has beside those in `docs/`, and where a link between files of the repository leads on it.

Paths are of the repository, with slashes; addresses are of the site, as mkdocs writes them before it makes HTML.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from docs.site.api import api_address
from docs.site.source_tree import ROOT

LINK = re.compile(r"(?<=\]\()[^()\s]+(?=\))|(?<=\]: )\S+$", re.MULTILINE)
"""The target of a link or an image in Markdown, where it stands or in a list of references at the end."""
_MIRRORED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}


def kernel_readmes() -> dict[str, str]:
    """Addresses of the ops' own pages, by path."""
    found = sorted(ROOT.glob("kernels/synpro_kernels/ops/*/README.md"))
    return {path.relative_to(ROOT).as_posix(): f"kernels/{path.parent.name}.md" for path in found}


def mirrored() -> dict[str, str]:
    """Addresses of the pages that are files outside of `docs/`, by path."""
    return _MIRRORED | kernel_readmes()


def address_of(path: str) -> str | None:
    """Where a file or package of the repository stands on the site; None for what is not there, and other folders."""
    if path.startswith("docs/") and (ROOT / path).is_file():
        return path.removeprefix("docs/")
    return mirrored().get(path) or api_address(path) or (f"source/{path}" if (ROOT / path).is_file() else None)


def path_of(address: str) -> str:
    """The file that a page is made from."""
    return {there: path for path, there in mirrored().items()}.get(address, f"docs/{address}")


def is_outside(link: str) -> bool:
    """Whether a link leads to the world, or within its own page."""
    return link.startswith(("#", "mailto:")) or "://" in link


def target_of(link: str, path: str) -> str:
    """The path, from the repository's root, that a link in the file `path` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link.partition("#")[0]))


def with_site_links(markdown: str, path: str, address: str, refuse: Callable[[str], object]) -> str:
    """The text of the file `path` with its links as they must be on its page; `refuse` is told of each that is lost."""

    def moved(match: re.Match[str]) -> str:
        link = match[0]
        if is_outside(link):
            return link
        there = address_of(target_of(link, path))
        if there is None:
            refuse(f"{path}: {link} is not on the site")
            return link
        page, _, anchor = there.partition("#")
        anchor = link.partition("#")[2] or anchor
        return posixpath.relpath(page, posixpath.dirname(address) or ".") + (f"#{anchor}" if anchor else "")

    return LINK.sub(moved, markdown)


def attached() -> dict[str, str]:
    """Addresses of the files that pages lead to and that are no pages themselves, by path: the site has a copy."""
    found = {}
    for document in documents():
        path = document.relative_to(ROOT).as_posix()
        for link in LINK.findall(document.read_text(encoding="utf-8")):
            target = "" if is_outside(link) else target_of(link, path)
            address = address_of(target)
            if address is not None and address == f"source/{target}":
                found[target] = address
    return found


def documents() -> Iterator[Path]:
    """The files that people read: those of `docs/`, and those that the site shows beside them."""
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from (ROOT / path for path in mirrored())
