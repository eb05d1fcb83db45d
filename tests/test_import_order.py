"""The architecture as a test: imports go one way, and special powers stay in the package that owns them."""

import ast
import sys
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

import pytest

from docs.site.source_tree import ROOT, Source, engine_sources, imported, kernel_sources, parse

ORDER = (
    "config backend dist remote storage data model train influence sampler synth reward rl evaluate report cycle"
    " sweep cli"
).split()  # synpro_kernels stands before all of them
OPS_BEHIND = {"linear_logprob": {"grad_dot", "policy_loss"}, "linear_distill": {"linear_logprob"}}
"""Ops that another is made with: losses of the output layer tell slopes along directions, and one is a policy's."""
ROOMS = {
    "influence": "estimator config examples batching directions first_order two_forward in_run texts".split(),
    "cycle": (
        "run_layout sections arm_files arm_sections rules recipe recipe_files checkpoints layouts choice rates external"
        " contents settings stages run_lock steps graph arm_stages plan forecast tracing summaries cycle"
        " generation status scoring"
    ).split(),
}
"""Modules and sub-packages of a package, in their order."""
OPEN = {"steps"}
"""Sub-packages whose modules others name one by one, as plan does each kind of stage."""
LAUNCH_VARIABLES = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
}


ENGINE, KERNELS = engine_sources(), kernel_sources()


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


def imports_across_rooms(source: Source) -> list[str]:
    """Imports in a package with rooms, of a room to the right of the module's own or past another room's __init__."""
    _, package, room, *_ = [*source.name.split("."), "", ""]
    if package not in ROOMS or not room:
        return []  # the package's own __init__ shows what its rooms have
    if room not in ROOMS[package]:
        return [f"{source.name}: {room} has no place in the order of {package}"]
    wrong = []
    for line, name in imported(source):
        top, target_package, target, *inner = [*name.split("."), "", ""]
        if (top, target_package) != ("synpro_engine", package) or target == room:
            continue
        place = ROOMS[package].index(target) if target in ROOMS[package] else len(ROOMS[package])
        past_its_front = target not in OPEN and len([part for part in inner if part]) > 1
        if place > ROOMS[package].index(room) or past_its_front:
            wrong.append(f"{source.name}:{line} imports {name}")
    return wrong


def foreign_imports(source: Source) -> list[str]:
    """Imports of the kernels package that are not torch, triton, the standard library or itself."""
    allowed = {"torch", "triton", "synpro_kernels", "__future__", *sys.stdlib_module_names}
    return [
        f"{source.name}:{line} imports {name}" for line, name in imported(source) if name.split(".")[0] not in allowed
    ]


def wrong_rooms(source: Source) -> list[str]:
    """Imports between the rooms of the kernels package that go the wrong way: `common` <- `ops` <- `testing`."""
    _, room, *inner = [*source.name.split("."), ""]
    if room not in ("common", "ops"):
        return []  # the root shows the ops, and `testing` may look at everything
    wrong = []
    for line, name in imported(source):
        top, target, op, *_ = [*name.split("."), "", ""]
        if top != "synpro_kernels" or target == "common":
            continue
        if room == "common" or target != "ops" or op not in (inner[0], *OPS_BEHIND.get(inner[0], ())):
            wrong.append(f"{source.name}:{line} imports {name}")
    return wrong


def circles(modules: Sequence[Source]) -> list[str]:
    """A ring of modules that import each other, inside functions too, or nothing."""
    names = {source.name for source in modules}

    def module_of(name: str) -> str:
        while name and name not in names:
            name = name.rpartition(".")[0]
        return name

    graph = {source.name: {module_of(name) for _, name in imported(source)} - {"", source.name} for source in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
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


def test_rooms_import_one_way():
    assert [fault for source in ENGINE for fault in imports_across_rooms(source)] == []


def test_no_modules_of_the_engine_import_each_other_in_a_circle():
    assert circles(ENGINE) == []


def test_kernels_import_only_torch_triton_and_the_standard_library():
    assert [fault for source in KERNELS for fault in foreign_imports(source)] == []


def test_the_rooms_of_the_kernels_import_one_way():
    assert [fault for source in KERNELS for fault in wrong_rooms(source)] == []


def test_no_modules_of_the_kernels_import_each_other_in_a_circle():
    assert circles(KERNELS) == []


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
    ("name", "text"),
    [
        ("common.example", "from synpro_kernels.ops.grad_dot import grad_dot"),
        ("common.example", "def f():\n    from synpro_kernels.testing import using"),
        ("common.example", "import synpro_kernels"),
        ("ops.grad_dot.example", "import synpro_kernels.ops.linear_logprob.types"),
        ("ops.grad_dot", "from ..linear_logprob import types"),
        ("ops.linear_logprob.example", "from synpro_kernels.testing import using"),
        ("ops.linear_logprob.example", "from synpro_kernels import grad_dot"),
        ("ops.linear_logprob.example", "from synpro_kernels.ops import policy_loss, paged_attention"),
    ],
)
def test_an_import_into_the_wrong_room_is_found(name, text):
    assert len(wrong_rooms(parse(f"synpro_kernels.{name}", text, is_package=name == "ops.grad_dot"))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("common.example", "import torch\nfrom synpro_kernels.common.arithmetic import mm"),
        ("ops.grad_dot.example", "from synpro_kernels.common import launch\nfrom . import tiles"),
        ("ops.linear_logprob.example", "from synpro_kernels.ops.grad_dot import grad_dot"),
        ("testing.example", "from synpro_kernels import grad_dot\nfrom synpro_kernels.ops.grad_dot import tiles"),
    ],
)
def test_an_import_into_a_room_that_is_open_is_not_reported(name, text):
    assert wrong_rooms(parse(f"synpro_kernels.{name}", text)) == []


def test_a_circle_is_found_though_an_import_hides_in_a_function():
    texts = {"a": "from p.b import x", "b": "from p import c", "c": "def f():\n    import p.a"}
    modules = [parse(f"p.{name}", text) for name, text in texts.items()]
    [ring] = circles(modules)
    assert set(ring.split(" <- ")) == {"p.a", "p.b", "p.c"}
    assert circles(modules[:2]) == []


@pytest.mark.parametrize(
    "text",
    [
        "from synpro_engine.influence.first_order import dot",
        "from synpro_engine.influence import Direction",
        "from synpro_engine.influence.batching.windows import by_sequence",
    ],
)
def test_imports_of_a_room_to_the_right_or_past_a_room_s_front_are_found(text):
    assert imports_across_rooms(parse("synpro_engine.influence.directions.example", text))


@pytest.mark.parametrize(
    "text",
    [
        "from synpro_engine.model.build import x",
        "from synpro_kernels import linear_logprob",
        "from . import config",
        "from ..dist import topology",
        "import torch\nx = torch.zeros(1)\nx.grad = None\nself.torch = torch",
    ],
)
def test_what_is_allowed_is_not_reported(text):
    source = parse("synpro_engine.model.example", text)
    assert wrong_imports(source) + patches(source) + launch_variables(source) == []
