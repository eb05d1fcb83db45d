"""What a stage of many measurements has measured so far: a stopped or killed one goes on and measures the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from synpro_engine.config import Record, append_lines, json_text, parse_record, whole_lines
from synpro_engine.dist import Stopped, Topology, asked_to_stop, on_main

T = TypeVar("T")


class _Piece(Record):
    name: str
    value: Any


class Pieces:
    """Plain JSON values by name, in a file of the unfinished stage to which rank 0 adds each as it comes."""

    def __init__(self, path: Path, topology: Topology) -> None:
        """Collective. A last line that a kill cut short does not count."""
        self._path, self._topology = path, topology
        self._found: dict[str, Any] = on_main(topology, self._read)
        self._asked: set[str] = set()

    def __call__(self, name: str, measure: Callable[[], T]) -> T:
        """What `measure` says, alike on all ranks, or said before a stop. Collective.

        Raises Stopped before it measures where the job was asked to stop, and ValueError for a name that was asked for
        already: the second piece would silently be given what is the first one's.
        """
        if name in self._asked:
            raise ValueError(f"{name}: names two pieces")
        self._asked.add(name)
        if name not in self._found:
            if asked_to_stop(self._topology):
                raise Stopped(f"{self._path.parent}: stopped on the way; what was measured is kept")
            value = measure()
            line = json_text({"name": name, "value": value}) + "\n"
            on_main(self._topology, lambda: append_lines(self._path, [line]))
            self._found[name] = value
        return self._found[name]

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        found, end = dict[str, Any](), 0
        for line in whole_lines(self._path):
            piece = parse_record(line.text, _Piece, line.where)
            found[piece.name], end = piece.value, line.end
        with self._path.open("rb+") as file:
            file.truncate(end)
        return found
