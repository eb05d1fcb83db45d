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
from benchmarks.common.processes import alone, ends_with_us
from benchmarks.common.records import read_lines
from synpro_engine.config import UserError
from synpro_engine.dist.environment import read_environment

REGRESSION = 0.05
"""A figure that has fallen by more than this share is flagged."""
Record = Mapping[str, Any]
Figures = Callable[[Iterable[Record]], dict[str, float | None]]
"""Speeds by what they are of, settings and sizes included: the higher, the better. None of what failed or was wrong."""
_MACHINE = ("device", "threads")


@dataclass(frozen=True)
class Comparison:
    """One speed now and then; None where there was none to measure."""

    name: str
    now: float | None
    then: float | None

    @property
    def regressed(self) -> bool:
        """Whether it has fallen by more than `REGRESSION`, or is gone."""
        return self.now is None or (self.then is not None and self.now < (1 - REGRESSION) * self.then)

    def __str__(self) -> str:
        if self.now is None:
            return f"{self.name}: FAILED or wrong now"
        if self.then is None:
            return f"{self.name}: {self.now:.4g} now, nothing then"
        flag = "  SLOWER" if self.regressed else ""
        return f"{self.name}: {self.now:.4g} now, {self.then:.4g} then, {self.now / self.then:.3f} of it{flag}"


@dataclass(frozen=True)
class Earlier:
    """The records of a file, as they were before anything was measured: what is measured may be appended there."""

    path: Path
    records: Sequence[Record]

    @classmethod
    def read(cls, against: str | None) -> Earlier | None:
        """None where `--against` was not given. UserError where the file is none."""
        return None if against is None else cls(Path(against), read_lines(Path(against)))

    def compared(self, records: Sequence[Record], figures: Figures) -> list[Comparison]:
        """What was measured now against what the file has of it, whatever more that holds.

        UserError where it has nothing of it, or what it has is of another device or number of threads.
        """
        now = figures(records)
        earlier = [one for one in self.records if not now.keys().isdisjoint(figures([one]))]
        then = figures(earlier)
        if all(then.get(name) is None for name in now):
            what = ", ".join(now) or "nothing"
            raise UserError(f"--against: {self.path} has no record of what was measured now ({what})")
        for key in _MACHINE:
            here, there = ({str(one["environment"][key]) for one in of} for of in (records, earlier))
            if there - here:
                told = f"{', '.join(sorted(there))} there, {', '.join(sorted(here))} here"
                raise UserError(f"--against: {self.path}: was measured elsewhere ({key}: {told})")
        return [Comparison(name, now[name], then.get(name)) for name in now]


def with_commit(ref: str, module: str, arguments: Sequence[str], figures: Figures, *, turns: int) -> list[Comparison]:
    """This tree and the commit `ref` in turns, each time in a fresh process; the medians of both.

    Both run this tree's benchmark, on the engine and the kernels of their own. arguments: of `python -m module`, which
    takes `--output`, read where this process was begun. UserError where `ref` is no commit, or nothing can be compared.
    """
    alone(read_environment().world_size)
    turns_of: dict[str, list[dict[str, float | None]]] = {"now": [], "then": []}
    with checked_out(ref) as tree, tempfile.TemporaryDirectory() as folder:
        # The benchmark of this tree, found ahead of the other's.
        (Path(folder) / "benchmarks").symlink_to(ROOT / "benchmarks")
        for turn in range(turns):
            for name, place in (("now", ROOT), ("then", tree)):
                print(f"turn {turn + 1} of {turns}: {name}", file=sys.stderr, flush=True)
                output = Path(folder) / f"{name}-{turn}.jsonl"
                turns_of[name].append(figures(_run(module, arguments, output, Path(folder), place, name)))
    names = dict.fromkeys(name for both in turns_of.values() for one in both for name in one)
    found = [Comparison(name, *(_median([one.get(name) for one in of]) for of in turns_of.values())) for name in names]
    if all(one.then is None for one in found):
        raise UserError(f"--against: {ref} measures nothing of it ({', '.join(names) or 'no figure in any turn'})")
    return found


def is_commit(against: str | None) -> bool:
    """Whether `--against` names no file, and so a commit. UserError where it is empty, as an unset variable is."""
    if against == "":
        raise UserError("--against: names neither a file nor a commit")
    return against is not None and not Path(against).exists()


def told(found: Iterable[Comparison]) -> int:
    """Print comparisons; the exit status: 1 where one has become slower."""
    found = list(found)
    print(*found, sep="\n", end="\n" if found else "")
    return int(any(one.regressed for one in found))


def _median(of_turns: Sequence[float | None]) -> float | None:
    """None where a turn has none."""
    values = [value for value in of_turns if value is not None]
    return statistics.median(values) if len(values) == len(of_turns) else None


def _run(module: str, arguments: Sequence[str], output: Path, folder: Path, tree: Path, name: str) -> list[Record]:
    # Ahead of what was there, which may hold the packages themselves.
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = os.pathsep.join([str(folder), str(tree), str(tree / "kernels"), *map(os.path.abspath, before)])
    # Nothing, by children either, is looked for in the folder that we are in, which may be this tree's.
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
    # First, for behind a `--` nothing is an option.
    command = [sys.executable, "-m", module, "--output", str(output), *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, preexec_fn=ends_with_us()
    )
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
