"""Runs one part in processes of its own, ends them where they take too long, and keeps what came of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common.environment import ROOT
from benchmarks.common.processes import ends_with_us, variables
from benchmarks.common.records import read_lines
from benchmarks.gpu_acceptance.part import Part, Place, Program
from synpro_engine.config import UserError, atomic_write_text

Outcome = Mapping[str, Any]
"""status (`ok`, `failed`, `timed out`, `skipped`), error, seconds, lines, and what it was measured on."""
_GRACE_SECONDS = 10.0


def kept(name: str, place: Place, where: Mapping[str, object]) -> Outcome | None:
    """What the folder has of a part. UserError where that is of another device, or of a dry run among real ones."""
    path = _record(name, place)
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    for key, now in (("dry_run", place.dry), ("device", where["device"])):
        if found[key] != now:
            raise UserError(f"{path}: {key} is {found[key]}, and now {now}: take --again, or another --folder")
    return found


def run(name: str, part: Part, place: Place, where: Mapping[str, object]) -> Outcome:
    """Run it, and write its record last, whole or not at all; one that is skipped has none, and is tried again."""
    about = {"dry_run": place.dry, **where}
    reason = part.missing()
    if reason is not None:
        return {"status": "skipped", "error": reason, "seconds": 0.0, "lines": [], **about}
    log, output = place.folder / f"{name}.log", place.folder / f"{name}.jsonl"
    for old in (log, output, _record(name, place)):
        old.unlink(missing_ok=True)
    for folder in (path for path in place.folder.glob(f"{name}-*") if path.is_dir()):
        shutil.rmtree(folder)  # a run there is finished, and would be gone on with by doing nothing
    begin = time.monotonic()
    faults: list[str] = []
    status = "ok"
    for program in part.programs(place):
        left = part.seconds - (time.monotonic() - begin)
        start = log.stat().st_size if log.exists() else 0
        code = _ended(program, log, left, place)
        if code is None:
            status = "timed out"
            faults.append(f"ended after {part.seconds:.0f} s")
            break
        if code:
            status = "failed"
            faults.append(_last_error(log.read_bytes()[start:].decode(errors="replace")) or f"exit status {code}")
    try:
        records = read_lines(output) if output.exists() else []
        lines = [list(line) for line in part.lines(records, log.read_text(encoding="utf-8", errors="replace"))]
    except (UserError, KeyError, TypeError, ValueError) as error:  # a record that was cut off, or of another form
        status, lines = ("failed" if status == "ok" else status), []
        faults.append(f"records cannot be read: {error!r}")
    if status == "ok" and not lines:
        status = "failed"
        faults.append("it ended well and told nothing")
    seconds = time.monotonic() - begin
    outcome = {"status": status, "error": "; ".join(faults), "seconds": seconds, "lines": lines, **about}
    atomic_write_text(_record(name, place), json.dumps(outcome) + "\n")
    return outcome


def _record(name: str, place: Place) -> Path:
    return place.folder / f"{name}.json"


def _ended(program: Program, log: Path, seconds: float, place: Place) -> int | None:
    """The exit status; None where it was ended because its time was over."""
    more = {**program.variables, **({"CUDA_VISIBLE_DEVICES": ""} if place.dry else {})}
    with log.open("a", encoding="utf-8") as file:
        print("$", *program.arguments, file=file, flush=True)
        try:
            process = subprocess.Popen(
                program.arguments, cwd=ROOT, env=variables(more), stdout=file, stderr=subprocess.STDOUT,
                preexec_fn=ends_with_us(),
            )  # fmt: skip
        except OSError as error:
            print(f"error: {error}", file=file)
            return 127
        try:
            return process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Here too after Ctrl-C: nothing may stay on the GPU.
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it with all that it started: ranks have sessions of their own, which a signal to a group does not reach."""
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for signal in ("terminate", "kill"):
        for one in family:
            try:
                getattr(one, signal)()
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=_GRACE_SECONDS)
    process.wait()


def _last_error(text: str) -> str:
    """The last line that names an error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("$ ")]
    named = [line for line in lines if re.search(r"error\b|Error\b|WRONG|FAILED|failed", line)]
    return (named or lines or [""])[-1][:200]
