"""What a part of the acceptance is: its programs, where they run, and the lines that its records and log say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Record = Mapping[str, Any]


class Line(NamedTuple):
    """One figure for people; `asked` and `reached` are empty where nothing is asked."""

    what: str
    figure: str
    unit: str = ""
    asked: str = ""
    reached: str = ""


@dataclass(frozen=True)
class Program:
    """One process of a part."""

    arguments: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a part runs: at tiny shapes on the CPU or not, its folder, and how many GPUs there are (CPU: 1)."""

    dry: bool
    folder: Path
    gpus: int

    def output(self, part: str) -> tuple[str, str]:
        """The option that has a benchmark write its records."""
        return "--output", str(self.folder / f"{part}.jsonl")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part; what it is about stands at its programs."""

    programs: Callable[[Place], list[Program]]
    lines: Callable[[Sequence[Record], str], Iterator[Line]]
    """Of records and log."""
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run here."""
    seconds: float = 540.0

    @property
    def about(self) -> str:
        """One line for people."""
        return (self.programs.__doc__ or "").removesuffix(".")
