"""Answers kept on disk, so that no question is paid for twice, by whichever process asked it.

Each process appends to a file of its own and reads those of the others: no locks, which network file systems have in
name only, and a kill leaves at most half a line, which is passed over. Keys are hashes and values are numbers: neither
texts nor replies are kept. A first line says what was asked; what is kept is what was answered, before any calibration.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import BinaryIO

from synpro_engine.config import json_text


class AnswerCache:
    """Values by key, in memory and, where there is a directory, in `*.jsonl` there. For many threads."""

    def __init__(self, directory: Path | None, *, about: str) -> None:
        """directory: made when the first answer is written. about: whose answers they are, the first line of a file."""
        self._about = about
        self._directory, self._values, self._lock = directory, dict[bytes, float](), threading.Lock()
        self._read_to: dict[str, int] = {}  # bytes of each file that are known
        self._own = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._file: BinaryIO | None = None

    def refresh(self) -> None:
        """Take over what other processes have written since."""
        if self._directory is None or not self._directory.is_dir():
            return
        for path in self._directory.glob("*.jsonl"):
            if path.name != self._own and path.stat().st_size > self._read_to.get(path.name, 0):
                self._take(path)

    def _take(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._read_to.get(path.name, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written, or cut off by a kill; the next look begins here
                self._read_to[path.name] = self._read_to.get(path.name, 0) + len(line)
                if (answer := _answer(line)) is not None:
                    self._values[answer[0]] = answer[1]

    def get(self, key: bytes) -> float | None:
        """The value of a key, None where it has none."""
        return self._values.get(key)

    def put(self, key: bytes, value: float) -> None:
        """Keep a finite value. Raises OSError for a disk that refuses it."""
        assert math.isfinite(value), "what is no answer must not be kept as one"
        with self._lock:
            self._values[key] = value
            if self._directory is None:
                return
            if self._file is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                # Unbuffered: a whole line goes to the system at once, and outlives this process.
                self._file = (self._directory / self._own).open("ab", buffering=0)
                self._file.write(json_text({"about": self._about}).encode() + b"\n")
            self._file.write(json_text({"key": key.hex(), "value": value}).encode() + b"\n")


def _answer(line: bytes) -> tuple[bytes, float] | None:
    """One line; None for a damaged one. A lost answer is asked for again, which no reader has to be told."""
    try:
        record = json.loads(line)
        key, value = bytes.fromhex(record["key"]), float(record["value"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (key, value) if math.isfinite(value) else None
