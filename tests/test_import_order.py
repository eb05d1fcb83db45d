"""The architecture as a test: imports go one way, and special powers stay in the package that owns them."""

import ast
import graphlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = (
    "config backend dist data model train influence sampler synth reward rl evaluate report cycle cli".split()
)  # synpro_kernels stands before all of them
LAUNCH_VARIABLES = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
}


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
    return Source(name, is_package, ast.parse(text))


def sources(root: Path, top: str) -> list[Source]:
    found = []
    for path in sorted((root / top).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        found.append(parse(".".join(parts[:-1] if is_package else parts), path.read_text(), is_package))
    return found


ENGINE = sources(ROOT, "synpro_engine")
KERNELS = sources(ROOT / "kernels", "synpro_kernels")


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


def wrong_imports(source: Source) -> list[str]:
    """Imports of a package of the engine that stands to the right of the module's own."""
    if not source.package:
        return []  # the root's own modules wire the engine together
    if source.package not in ORDER:
        return [f"{source.name}: package {source.package} has no place in the order"]
    wrong = []
    for line, name in imported(source):
        parts = name.split(".")
        if parts[0] != "synpro_engine" or len(parts) < 2 or parts[1] not in ORDER:
            continue
        if ORDER.index(parts[1]) > ORDER.index(source.package):
            wrong.append(f"{source.name}:{line} imports {name}")
    return wrong


def foreign_imports(source: Source) -> list[str]:
    """Imports of the kernels package that are not torch, triton, the standard library or itself."""
    allowed = {"torch", "triton", "synpro_kernels", "__future__", *sys.stdlib_module_names}
    return [
        f"{source.name}:{line} imports {name}" for line, name in imported(source) if name.split(".")[0] not in allowed
    ]


def import_circle(modules: Sequence[Source]) -> list[str]:
    """Modules that import each other, from one to itself; imports inside functions and for type checkers count."""
    names = {module.name for module in modules}

    def module_of(name: str) -> str:
        while name and name not in names:
            name = name.rpartition(".")[0]
        return name

    graph = {module.name: {module_of(name) for _, name in imported(module)} - {module.name} for module in modules}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def launch_variables(source: Source) -> list[str]:
    """Mentions of torchrun's variables, as text or as keyword (`os.environ.update(RANK=...)`)."""
    found = []
    for node in ast.walk(source.tree):
        named = getattr(node, "value" if isinstance(node, ast.Constant) else "arg", None)
        if isinstance(node, ast.Constant | ast.keyword) and named in LAUNCH_VARIABLES:
            found.append(f"{source.name}:{node.lineno} names {named}")
    return found


def patches(source: Source) -> list[str]:
    """Import hooks, and assignments to attributes of what was imported from torch or megatron."""
    foreign = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                origin = alias.name if isinstance(node, ast.Import) else node.module or ""
                if origin.split(".")[0] in ("torch", "megatron"):
                    bound = alias.name.split(".")[0] if isinstance(node, ast.Import) else alias.name
                    foreign.add(alias.asname or bound)
    found = []
    for node in (node for node in ast.walk(source.tree) if isinstance(node, ast.stmt | ast.expr)):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = [leaf for target in node.targets for leaf in getattr(target, "elts", [target])]
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr") and node.args:
            targets = [ast.Attribute(node.args[0], "_", ast.Store())]
        for target in targets:
            root: ast.expr = target
            while isinstance(root, ast.Attribute | ast.Subscript):
                root = root.value
            if root is not target and isinstance(root, ast.Name) and root.id in foreign:
                found.append(f"{source.name}:{node.lineno} patches {ast.unparse(target)}")
        if isinstance(node, ast.Attribute) and node.attr in ("meta_path", "path_hooks"):
            found.append(f"{source.name}:{node.lineno} touches sys.{node.attr}")
    return found


def test_imports_go_one_way():
    assert [fault for source in ENGINE for fault in wrong_imports(source)] == []


def test_no_modules_import_each_other_in_a_circle():
    assert import_circle(ENGINE) == []


def test_kernels_import_only_torch_triton_and_the_standard_library():
    assert [fault for source in KERNELS for fault in foreign_imports(source)] == []


def test_only_dist_reads_the_launch_variables():
    others = [source for source in (*ENGINE, *KERNELS) if source.package != "dist"]
    assert [fault for source in others for fault in launch_variables(source)] == []


def test_only_backend_patches_torch_and_megatron():
    others = [source for source in (*ENGINE, *KERNELS) if source.package != "backend"]
    assert [fault for source in others for fault in patches(source)] == []


def test_no_root_package_is_called_kernels():
    """transformers imports Hugging Face's `kernels`; an __init__.py there would shadow it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert ENGINE and KERNELS


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (wrong_imports, "import synpro_engine.cycle"),
        (wrong_imports, "def f():\n    from synpro_engine.train import engine"),
        (wrong_imports, "from synpro_engine import report"),
        (wrong_imports, "from ..rl import trainer"),
        (wrong_imports, "import importlib\nimportlib.import_module('synpro_engine.cli.main')"),
        (foreign_imports, "import numpy"),
        (launch_variables, "import os\nrank = os.environ['RANK']"),
        (launch_variables, "import os\nos.environ.update(MASTER_PORT='1')"),
        (patches, "import torch\ntorch.cuda.current_device = None"),
        (patches, "import torch as t\nsetattr(t.Tensor, 'cuda', None)"),
        (patches, "from megatron.core import parallel_state as mpu\nmpu._GROUP = 1"),
        (patches, "from megatron.core.optimizer import X\nX.step, a = 1, 2"),
        (patches, "import sys\nsys.meta_path.insert(0, None)"),
    ],
)
def test_each_check_finds_what_it_looks_for(check, text):
    assert check(parse("synpro_engine.model.example", text))


@pytest.mark.parametrize(
    ("texts", "circle"),
    [
        (["from synpro_engine.model.b import f", "import torch"], ""),
        (["from synpro_engine.model.b import f", "def g():\n    from .a import f"], "ab"),
        (["from . import b", "if TYPE_CHECKING:\n    from .c import X", "import synpro_engine.model.a"], "abc"),
        (["from .b import f", "from .c import f", "from .b import g"], "bc"),  # a only hangs on it
    ],
)
def test_a_circle_of_imports_is_found(texts, circle):
    modules = [parse(f"synpro_engine.model.{name}", text) for name, text in zip("abc", texts, strict=False)]
    assert {name.rpartition(".")[2] for name in import_circle(modules)} == set(circle)


@pytest.mark.parametrize(
    "text",
    [
        "from synpro_engine.model.build import x",
        "from synpro_kernels.linear_logprob import linear_logprob",
        "from . import config",
        "from ..dist import topology",
        "import torch\nx = torch.zeros(1)\nx.grad = None\nself.torch = torch",
    ],
)
def test_what_is_allowed_is_not_reported(text):
    source = parse("synpro_engine.model.example", text)
    assert wrong_imports(source) + patches(source) + launch_variables(source) == []
