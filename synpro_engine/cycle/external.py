"""What a run reads from outside its directory, told apart by content: so that a changed input is noticed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from synpro_engine.config import versions
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.data import walk_files

_EDGE = 2**20


def fingerprint(source: str | Sequence[str] | None) -> str:
    """Hex digest of names, sizes, and first and last MiB of files, hidden ones aside; "" for None.

    source: a file, a directory, the prefix of a `.bin` and an `.idx`, or several of these. Cheap enough to take at
    every start, and the same for a copy on another machine. An edit in the middle of a large file that keeps its size
    is not seen. What is not a path (`embedded:...`, `random`) stands for itself with the version of the package; a
    missing path too, for whoever opens it says so.
    """
    if source is None:
        return ""
    if not isinstance(source, str):
        return hashlib.sha256("".join(map(fingerprint, source)).encode()).hexdigest()
    path, digest = Path(source), hashlib.sha256()
    if is_missing(source):
        return hashlib.sha256(f"{source} {versions().get('synpro_engine')}".encode()).hexdigest()
    if path.exists():
        # By the same walk that reads a corpus, so that what is not read does not count.
        files = [path] if path.is_file() else walk_files(path)[0]
    else:
        files, path = _pair(source), path.parent
    for file in files:
        if not file.exists():  # a link that leads nowhere: whoever opens it says so
            continue
        # Names below the source, for it may be moved; sizes, for the middle of a large file is not read.
        digest.update(os.fsencode(file.relative_to(path)) + f"\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_EDGE))
            stream.seek(max(_EDGE, file.stat().st_size - _EDGE))
            digest.update(stream.read(_EDGE))
    return digest.hexdigest()


def is_missing(source: str | Sequence[str] | None) -> bool:
    """Whether nothing lies at the paths that `source` gives."""
    if source is None:
        return False
    if not isinstance(source, str):
        return all(map(is_missing, source))
    return not any(path.exists() for path in (Path(source), *_pair(source)))


def is_put_away(source: str | Sequence[str] | None) -> bool:
    """The same of what may lie somewhere: what a wheel brings, and a generator that is random, do not."""
    return is_missing(source) and source != "random" and not str(source).startswith("embedded:")


def task_keys(recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that name files of tasks: of references, and of held-out tasks."""
    references = (f"references.{name}.source" for name, one in recipe.references.items() if one.source is not None)
    return tuple(references), tuple(f"held_out.{name}.source" for name in recipe.held_out)


def judge_files(recipe: Recipe) -> dict[str, str]:
    """By the keys of judges, and of their calibrations, that are files: the rewards that they measure."""
    reward, keys = recipe.reward, dict[str, str]()
    if reward.faithfulness_judge is not None:
        keys["reward.faithfulness_judge"] = "faithfulness"
    if reward.judges.encoder is not None:
        keys["reward.judges.similarity.encoder"] = "similarity"
    keys |= {f"reward.judges.{name}.model": name for name in reward.judges.in_job}
    calibrated = [name for name, judge in reward.judges.asked.items() if judge.calibration is not None]
    return keys | {f"reward.judges.{name}.calibration": name for name in calibrated}


def _pair(prefix: str) -> list[Path]:
    """Megatron's two files of token ids."""
    return [Path(f"{prefix}.bin"), Path(f"{prefix}.idx")]
