"""The modules of the source tree as syntax trees, and what they import: for the architecture's tests and its picture.

Nothing is imported to find out, so this works wherever the files are.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE_ROOT, KERNELS_ROOT = ROOT, ROOT / "kernels"
ENGINE, KERNELS = "synpro_engine", "synpro_kernels"


@dataclass(frozen=True)
class Source:
    """One module: its dotted name, whether it is a package's __init__, and its syntax tree."""

    name: str
    is_package: bool
    tree: ast.Module

    @property
    def package(self) -> str:
        """`model` of synpro_engine.model.build; empty for the modules directly under a root package."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 2 or (len(parts) == 2 and self.is_package) else ""


def parse(name: str, text: str, is_package: bool = False) -> Source:
    """A module from its text."""
    return Source(name, is_package, ast.parse(text))


def sources(root: Path, top: str) -> list[Source]:
    """All modules of the package `top` that lies in `root`, by path."""
    found = []
    for path in sorted((root / top).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        found.append(parse(".".join(parts[:-1] if is_package else parts), path.read_text(encoding="utf-8"), is_package))
    return found


def engine_sources() -> list[Source]:
    """The modules of `synpro_engine`."""
    return sources(ENGINE_ROOT, ENGINE)


def kernel_sources() -> list[Source]:
    """The modules of `synpro_kernels`."""
    return sources(KERNELS_ROOT, KERNELS)


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything the module imports, at its top or inside functions, by statement or by call."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = source.name.split(".")
                parts = parts[: len(parts) - node.level + source.is_package]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node.lineno, str(arg.value)) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def package_imports(modules: Iterable[Source]) -> dict[str, set[str]]:
    """By package of the engine: the other packages, and `synpro_kernels`, that its modules import."""
    modules = list(modules)
    packages = {source.package for source in modules} - {""}
    found: dict[str, set[str]] = {package: set() for package in sorted(packages)}
    for source in modules:
        if not source.package:
            continue  # the root's own modules wire the engine together
        for _, name in imported(source):
            top, package, *_ = [*name.split("."), ""]
            if top == KERNELS:
                found[source.package].add(KERNELS)
            elif top == ENGINE and package in packages:
                found[source.package].add(package)
    return {package: targets - {package} for package, targets in found.items()} | {KERNELS: set()}
