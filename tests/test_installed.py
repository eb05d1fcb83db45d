"""What is installed is what the checkout has: a wheel and a source distribution, built from a copy of the tree."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"synpro_engine": ROOT / "synpro_engine", "synpro_kernels": ROOT / "kernels" / "synpro_kernels"}
# Used where they are there, and work.
TRIED = {
    *("flash_attn", "fused_weight_gradient_mlp_cuda", "mlflow", "optuna", "py3langid", "rensa", "sqlalchemy"),
    *("trackio", "transformer_engine", "triton", "wandb"),
}
ENVIRONMENT = {**os.environ, "SYNPRO_BUILD_CSRC": "0", "PYTHONDONTWRITEBYTECODE": "1"}
# A project that pip builds in place leaves build folders behind: the build works on a copy.
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def run(command: list[str | Path], where: Path, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=where, env={**ENVIRONMENT, **variables}, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def tracked() -> set[str]:
    """The files of the checkout that git knows or would take, as paths from its root."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("compares with git's list of files, and this is no git checkout")
    found = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT).split("\0")
    return {name for name in found if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("source")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([*PIP, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder, source], folder)
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed") / "site"
    run([*PIP, "install", "--no-deps", "--no-index", "--target", folder, wheel], folder.parent)
    return folder


def test_a_wheel_holds_the_packages_files_and_no_others(wheel: Path) -> None:
    expected = set()
    for package, folder in PACKAGES.items():
        inside = (Path(name) for name in tracked() if (ROOT / name).is_relative_to(folder))
        expected |= {str(package / (ROOT / path).relative_to(folder)) for path in inside if path.name != "README.md"}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected
    for package in PACKAGES:
        assert f"{package}/py.typed" in found


def test_a_source_distribution_holds_all_that_is_tracked(source: Path, tmp_path: Path) -> None:
    build = "import setuptools.build_meta as backend, sys; backend.build_sdist(sys.argv[1])"
    run([sys.executable, "-c", build, tmp_path], source)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        found = {member.name.partition("/")[2] for member in file if member.isfile()}
    assert {name for name in tracked() if not name.startswith(".")} <= found


def test_every_package_that_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {canonical(re.split(r"[^\w.-]", line)[0]) for line in project["dependencies"]}
    providers = packages_distributions()
    own = {*sys.stdlib_module_names, *PACKAGES, *TRIED}
    for file in (file for folder in PACKAGES.values() for file in folder.rglob("*.py")):
        for name in imported(file) - own:
            assert declared & set(map(canonical, providers[name])), f"{file}: {name}"


def imported(file: Path) -> set[str]:
    """Top-level names of the packages that a file imports anywhere."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def test_what_is_imported_is_what_was_installed(installed: Path) -> None:
    show = "import synpro_engine, synpro_kernels; print(synpro_engine.__file__, synpro_kernels.__file__)"
    found = run([sys.executable, "-c", show], installed.parent, PYTHONPATH=str(installed)).split()
    assert all(Path(file).is_relative_to(installed) for file in found)


def test_the_command_the_metadata_and_the_attribute_tell_one_version(installed: Path) -> None:
    def told(*command: str | Path) -> str:
        return run([*command], installed.parent, PYTHONPATH=str(installed)).strip()

    # The attribute is the checkout's own: a wheel that was given another version would differ from it.
    expected = re.findall(r'^VERSION = "(.+)"$', (ROOT / "synpro_engine" / "version.py").read_text(), re.M)
    show = "import synpro_engine, importlib.metadata as m; print(synpro_engine.__version__, m.version('synpro_engine'))"
    assert told(sys.executable, "-c", show).split() == expected * 2
    assert told(installed / "bin" / "synpro", "--version") == f"synpro_engine {expected[0]}"


@pytest.mark.slow
def test_an_installed_package_does_not_take_the_commit_of_a_repository_around_it_for_its_own(installed: Path) -> None:
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "--message", "theirs"]
    run(["git", "init", "--quiet"], installed.parent)
    run(commit, installed.parent)
    show = "from synpro_engine.cycle.summaries.environment import git_commit; print(git_commit())"
    assert run([sys.executable, "-c", show], installed.parent, PYTHONPATH=str(installed)).strip() == "None"
    head = run(["git", "rev-parse", "HEAD"], ROOT)
    assert run([sys.executable, "-c", show], ROOT, PYTHONPATH=f"{ROOT}:{ROOT / 'kernels'}") == head


@pytest.mark.slow
def test_the_installed_command_runs_the_smoke_cycle_to_its_report(installed: Path, tmp_path: Path) -> None:
    command = [installed / "bin" / "synpro", "run", "smoke", "--dir", tmp_path / "run"]
    run(command, tmp_path, PYTHONPATH=str(installed), OMP_NUM_THREADS="1")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for template in (ROOT / "synpro_engine" / "report" / "sections").glob("*.html.j2"):
        assert f'id="{template.name.partition(".")[0]}"' in page
    assert (tmp_path / "run" / "environment.json").is_file()
