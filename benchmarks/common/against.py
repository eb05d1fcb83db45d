"""Now against then: earlier records, or an earlier commit that takes turns with this tree on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.environment import ROOT
from benchmarks.common.processes import ends_with_us
from benchmarks.common.records import read_lines
from synpro_engine.config import UserError

REGRESSION = 0.05
"""A figure that has fallen by more than this share is flagged."""
Record = Mapping[str, Any]
Figures = Callable[[Iterable[Record]], dict[str, float]]
"""Speeds by what they are of: the higher, the better."""


@dataclass(frozen=True)
class Comparison:
    """One speed now and then."""

    name: str
    now: float
    then: float

    @property
    def regressed(self) -> bool:
        """Whether it has fallen by more than `REGRESSION`."""
        return self.now < (1 - REGRESSION) * self.then

    def __str__(self) -> str:
        flag = "  SLOWER" if self.regressed else ""
        return f"{self.name}: {self.now:.4g} now, {self.then:.4g} then, {self.now / self.then:.3f} of it{flag}"


def with_file(records: Sequence[Record], path: Path, figures: Figures) -> list[Comparison]:
    """Against records of an earlier run. UserError where the file is none, or has nothing of what was measured."""
    now, then = figures(records), figures(read_lines(path))
    found = [Comparison(name, now[name], then[name]) for name in now if name in then]
    if not found:
        raise UserError(f"--against: {path} has no record of what was measured now ({', '.join(now) or 'nothing'})")
    return found


def with_commit(ref: str, module: str, arguments: Sequence[str], figures: Figures, *, turns: int) -> list[Comparison]:
    """This tree and the commit `ref` in turns, each time in a fresh process; the medians of both.

    Both run this tree's benchmark, on the engine and the kernels of their own. arguments: of `python -m module`, which
    takes `--output`. UserError where `ref` is no commit, or cannot run it.
    """
    speeds: dict[str, list[dict[str, float]]] = {"now": [], "then": []}
    with checked_out(ref) as tree, tempfile.TemporaryDirectory() as folder:
        # The benchmark of this tree, found ahead of the other's.
        (Path(folder) / "benchmarks").symlink_to(ROOT / "benchmarks")
        for turn in range(turns):
            for name, place in (("now", ROOT), ("then", tree)):
                print(f"turn {turn + 1} of {turns}: {name}", file=sys.stderr, flush=True)
                output = Path(folder) / f"{name}-{turn}.jsonl"
                speeds[name].append(figures(_run(module, arguments, output, Path(folder), place, name)))
    names = [name for name in speeds["now"][0] if all(name in one for both in speeds.values() for one in both)]
    now, then = ({name: statistics.median(one[name] for one in of) for name in names} for of in speeds.values())
    return [Comparison(name, now[name], then[name]) for name in names]


def _run(module: str, arguments: Sequence[str], output: Path, folder: Path, tree: Path, name: str) -> list[Record]:
    paths = os.pathsep.join([str(folder), str(tree), str(tree / "kernels")])
    command = [sys.executable, "-m", module, *arguments, "--output", str(output)]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
        preexec_fn=ends_with_us(),
    )  # fmt: skip
    # A benchmark's own verdict has a code too; what counts here is whether there are records.
    if not output.exists():
        raise UserError(f"--against: {name} wrote no record ({(done.stderr.strip().splitlines() or ['?'])[-1]})")
    return read_lines(output)


@contextlib.contextmanager
def checked_out(ref: str) -> Iterator[Path]:
    """The tree of a commit, with its compiled ops, for the `with` block. UserError where it is none."""
    # No option of git's, whatever the user typed.
    if ref.startswith("-") or _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").returncode:
        raise UserError(f"--against: {ref} is neither a file nor a commit")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        done = _git("worktree", "add", "--detach", str(tree), ref)
        if done.returncode:
            raise UserError(f"--against: {ref}: {done.stderr.strip().splitlines()[-1]}")
        try:
            _compile(tree, ref)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _compile(tree: Path, ref: str) -> None:
    built = list((ROOT / "kernels" / "synpro_kernels").glob("_C*.so"))
    if not built:
        return  # neither has any
    if _git("diff", "--quiet", ref, "--", "csrc", "setup.py").returncode == 0:
        for path in built:
            shutil.copy(path, tree / "kernels" / "synpro_kernels")
        return
    print(f"compiling csrc of {ref}", file=sys.stderr, flush=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if subprocess.run(command, cwd=tree, capture_output=True, check=False).returncode:
        raise UserError(f"--against: csrc of {ref} does not compile here")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
