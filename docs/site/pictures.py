"""The pictures of the documentation, and the tables beside them, from the code that they show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from docs.site.graph import without_implied
from docs.site.source_tree import KERNELS, engine_sources, kernel_sources, package_imports
from docs.site.svg import Box, draw

if TYPE_CHECKING:
    from synpro_engine.cycle.stages import Stage


def packages(page_of: Callable[[str], str] = lambda package: "") -> str:
    """Who imports whom, as SVG. page_of: where a box leads, by dotted name of its package."""
    modules = engine_sources()
    counts = Counter(source.package for source in modules) | Counter({KERNELS: len(kernel_sources())})
    edges = without_implied({name: sorted(below) for name, below in package_imports(modules).items()})
    boxes = {
        name: Box(
            title=name,
            note=f"{counts[name]} modules",
            kind="kernels" if name == KERNELS else "engine",
            href=page_of(name if name == KERNELS else f"synpro_engine.{name}"),
        )
        for name in edges
    }
    return draw(boxes, edges, title="Packages of the engine; an arrow leads to a package that is imported")


def smoke_stages() -> list[Stage]:
    """The stages of the smoke recipe, as a run would make them."""
    # Here, for it brings torch: the rest of the documentation is made without.
    from synpro_engine.cycle import load_recipe
    from synpro_engine.cycle.plan import Plan
    from synpro_engine.dist import ParallelConfig, launched

    with launched(ParallelConfig()) as topology:
        return list(Plan(load_recipe("smoke"), Path("runs/smoke"), topology).stages())


def stages(found: Sequence[Stage]) -> str:
    """From which stages each is made, as SVG."""
    parents = {stage.name: list(stage.parents) for stage in found}
    kept = without_implied(parents)
    below: Mapping[str, list[str]] = {
        name: [stage.name for stage in found if name in kept[stage.name]] for name in parents
    }
    boxes = {
        stage.name: Box(title=stage.name, note=f"synpro {stage.command}", kind=_kind(stage.name)) for stage in found
    }
    return draw(boxes, below, title="Stages of a run; an arrow leads from a stage to one that is made from it")


def _kind(name: str) -> str:
    return "round" if "/" in name else "once"


def stages_table(found: Sequence[Stage]) -> str:
    """All inputs of each stage, those too that the picture leaves out, as Markdown."""
    rows = [
        f"| `{stage.name}` | `synpro {stage.command}` | {', '.join(f'`{parent}`' for parent in stage.parents)} |"
        for stage in found
    ]
    return "\n".join(["| stage | brought up by | made from |", "|---|---|---|", *rows])
