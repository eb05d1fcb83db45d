"""The reference: a page for each package, with all its modules as their docstrings describe them.

Made from the folders that are there, so that a module that moves takes its place on the page with it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from docs.site.source_tree import ENGINE, ENGINE_ROOT, KERNELS, KERNELS_ROOT, ROOT

_ROOTS = {ENGINE: ENGINE_ROOT, KERNELS: KERNELS_ROOT}


def packages() -> list[str]:
    """Dotted names of all packages, each before those inside it."""
    found = []
    for top, root in _ROOTS.items():
        folders = sorted(path.parent.relative_to(root) for path in (root / top).rglob("__init__.py"))
        found += [".".join(folder.parts) for folder in folders]
    return found


def page_address(package: str) -> str:
    """Where the page of a package stands."""
    return f"api/{package}.md"


def api_address(path: str) -> str | None:
    """Where a module or a package, by its path in the repository, is described; None for other files."""
    for top, root in _ROOTS.items():
        inside = Path(path.removesuffix(".py"))
        base = root.relative_to(ROOT)
        if inside.is_relative_to(base / top) and (ROOT / path).exists():
            parts = inside.relative_to(base).parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name in packages():
                return page_address(name)
            return f"{page_address(name.rpartition('.')[0])}#{name}" if path.endswith(".py") else None
    return None


def page(package: str) -> str:
    """The Markdown of a package's page, for mkdocstrings to fill in."""
    parts = [f"# {package.removeprefix(ENGINE + '.')}", _directive(package, 1, _defined(package))]
    shown = list(_shown(package))
    if shown:
        parts.append("To be imported from here: " + ", ".join(f"[`{name}`][{package}.{name}]" for name in shown) + ".")
    inner = [name for name in packages() if name.rpartition(".")[0] == package]
    if inner:
        parts.append("Packages in it: " + ", ".join(f"[`{name}`]({name}.md)" for name in inner) + ".")
    parts += [_directive(name, 2) for name in modules(package)]
    return "\n\n".join(parts) + "\n"


def modules(package: str) -> list[str]:
    """Dotted names of a package's own modules that are not private."""
    folder = _folder(package)
    return [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]


def _folder(package: str) -> Path:
    return _ROOTS[package.partition(".")[0]].joinpath(*package.split("."))


def _directive(name: str, level: int, members: list[str] | None = None) -> str:
    """`members`: those shown, none for an empty list; all that are not private by default."""
    options = ["show_root_heading: true", f"heading_level: {level}"] if level > 1 else []
    options += [] if members is None else [f"members: {members or 'false'}"]
    return "\n".join([f"::: {name}", "    options:", *(f"      {option}" for option in options)])


def _defined(package: str) -> list[str]:
    """Functions and classes that stand in the package's own file, and not in one of its modules."""
    tree = ast.parse((_folder(package) / "__init__.py").read_text(encoding="utf-8"))
    named = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return [name for name in named if not name.startswith("_")]


def _shown(package: str) -> Iterator[str]:
    """What the package says it has (`__all__`)."""
    tree = ast.parse((_folder(package) / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            yield from ast.literal_eval(node.value)


def nav() -> list[dict[str, object]]:
    """The reference's part of the site's menu: packages of the engine, each with those inside it, and the kernels."""
    entries: list[dict[str, object]] = []
    for top in (name for name in packages() if name.count(".") == (0 if name.startswith(KERNELS) else 1)):
        below = [name for name in packages() if name.startswith(f"{top}.")]
        short = top.removeprefix(ENGINE + ".")
        inside: list[dict[str, str]] = [{name.removeprefix(top + "."): page_address(name)} for name in below]
        entries.append({short: [{short: page_address(top)}, *inside] if below else page_address(top)})
    return [{ENGINE: page_address(ENGINE)}, *entries]
