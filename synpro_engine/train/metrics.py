"""The record of a run: one JSON object per line, and the same numbers for TensorBoard.

Only the rank that is given a directory writes. A resumed run first drops what was recorded after the step it resumes
from, so that no step appears twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, atomic_write_text, json_text, whole_lines

METRICS = "metrics.jsonl"

Value = float | int | str | bool | Mapping[str, Sequence[str]] | None
"""A mapping: names of things by where they are from."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete records of a metrics file, in order; [] where there is none.

    A last line without its newline is what a killed run leaves, and is dropped; any other damage is a UserError that
    names the line.
    """
    if not path.exists():
        return []
    records = []
    for line in whole_lines(path):
        try:
            record = json.loads(line.text)
        except (ValueError, RecursionError):
            raise UserError(f"{line.where}: not a JSON record") from None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"{line.where}: a metrics record needs an integer `step`")
        records.append(record)
    return records


class MetricsLog:
    """Appends records `{"kind": ..., "step": ..., name: value, ...}` below `directory`; None makes it silent.

    `step` counts completed optimizer steps; losses are nats per token. `resume_step` is the step a resumed run goes on
    from; None begins a new record.
    """

    def __init__(self, directory: Path | None, *, resume_step: int | None = None, tensorboard: bool = True) -> None:
        self._file = None
        self._board = None
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / METRICS
        _truncate(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(
                str(directory / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1
            )

    def write(self, kind: str, step: int, values: Mapping[str, Value]) -> None:
        """Record `values`; numbers that are not finite become null (JSON has no NaN)."""
        if self._file is None:
            return
        record = {"kind": kind, "step": step, "time": round(time.time(), 3)}
        self._file.write(json_text(record | dict(values)) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close both files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _truncate(path: Path, resume_step: int | None) -> None:
    if not path.exists():
        return
    before = [] if resume_step is None else [record for record in read_metrics(path) if record["step"] <= resume_step]
    atomic_write_text(path, "".join(json_text(record) + "\n" for record in before))
