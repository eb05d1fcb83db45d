"""The front door: what `synpro_engine` itself offers, and that offering it costs nothing."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import synpro_engine

ROOT = Path(__file__).parents[1]
TREE = ast.parse((ROOT / "synpro_engine" / "__init__.py").read_text())


def typed() -> dict[str, str]:
    """The names that type checkers see, with the modules they are imported from there."""
    blocks = [node for node in TREE.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", synpro_engine.__all__)
def test_a_public_name_is_the_object_of_its_home_and_says_what_it_is(name: str) -> None:
    value = getattr(synpro_engine, name)
    assert value is getattr(import_module(typed()[name]), name)
    assert (value.__doc__ or "").strip(), name
    assert getattr(synpro_engine, name) is value


def test_type_checkers_listings_and_users_see_the_same_names() -> None:
    assert sorted(typed()) == sorted(synpro_engine.__all__) == sorted(set(synpro_engine.__all__))
    assert len(synpro_engine.__all__) <= 30, "the front door stays small: the packages have the rest"
    assert {*synpro_engine.__all__, "__version__"} <= set(dir(synpro_engine))


def test_importing_the_package_loads_neither_torch_nor_megatron_and_starts_nothing() -> None:
    show = (
        "import os, sys, threading, warnings; before = dict(os.environ), list(warnings.filters), len(sys.meta_path)\n"
        "import synpro_engine; dir(synpro_engine); synpro_engine.__version__\n"
        "heavy = {'torch', 'megatron', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "after = dict(os.environ), list(warnings.filters), len(sys.meta_path) - 1\n"
        "print(sorted(heavy), before == after, threading.active_count())"
    )
    assert run(show) == "[] True 1"


def test_a_name_loads_its_own_home_alone() -> None:
    assert run("import sys, synpro_engine; synpro_engine.UserError; print('torch' in sys.modules)") == "False"


def test_all_names_come_with_one_import_in_a_new_process() -> None:
    assert run("from synpro_engine import *; print(tune.__module__)") == "synpro_engine.rl.trainer"


def test_an_unknown_name_is_told_with_the_nearest_one() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'pretrian' \(did you mean `pretrain`\?\)"):
        _ = synpro_engine.pretrian  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError, match="load_recipes"):
        from synpro_engine import load_recipes  # noqa: F401 # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(synpro_engine, "zzzz")


def test_packages_are_still_modules_of_the_package() -> None:
    assert run("from synpro_engine import cycle; print(cycle.__name__)") == "synpro_engine.cycle"
