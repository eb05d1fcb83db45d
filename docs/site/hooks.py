"""What mkdocs calls while it builds the site (named in `mkdocs.yml`).

A mark such as `<!-- made: packages -->` in a page is replaced by what `_MADE` makes. A link to a file of the repository
leads to where the site has that file; one that leads nowhere is a warning, which a strict build ends with.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.site import api, pictures, schemas
from docs.site.pages import attached, kernel_readmes, mirrored, path_of, with_site_links
from docs.site.source_tree import ROOT

_log = get_plugin_logger("docs_site")
_MARK = re.compile(r"<!-- made: ([\w-]+) -->")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add to the menu what is found in the repository."""
    kernels: list[Any] = [{address.split("/")[1].removesuffix(".md"): address} for address in kernel_readmes().values()]
    assert config.nav is not None
    config.nav += [{"Kernels' maths": kernels}, {"Reference": api.nav()}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in `docs/`."""
    for path, address in mirrored().items():
        files.append(File.generated(config, address, content=(ROOT / path).read_text(encoding="utf-8")))
    for path, address in attached().items():
        files.append(File.generated(config, address, abs_src_path=str(ROOT / path)))
    for package in api.packages():
        files.append(File.generated(config, api.page_address(package), content=api.page(package)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them, and what is made from the code in its place."""
    address = page.file.src_uri
    if address.startswith("api/"):
        return markdown
    markdown = with_site_links(markdown, path_of(address), address, _log.warning)
    return _MARK.sub(lambda mark: _made(mark[1], page), markdown)


def _made(name: str, page: Page) -> str:
    if name not in _MADE:
        _log.warning("%s: nothing makes `%s`", page.file.src_uri, name)
        return ""
    return _MADE[name](page)


def _packages(page: Page) -> str:
    here = page.file.dest_uri
    return pictures.packages(lambda package: posixpath.relpath(f"api/{package}/", posixpath.dirname(here) or ".") + "/")


@cache
def _stages() -> list[Any]:
    return pictures.smoke_stages()


_MADE: dict[str, Callable[[Page], str]] = {
    "packages": _packages,
    "stages": lambda page: pictures.stages(_stages()),
    "stages-table": lambda page: pictures.stages_table(_stages()),
    "schemas": lambda page: schemas.markdown(),
}
