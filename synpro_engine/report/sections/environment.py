"""What the run ran on, and which implementation each part used."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the run ran on. `implementations` maps a part (attention, optimizer, ...) to what it used and why."""

    device: str
    layout: str  # e.g. "1 process" or "TP 2 x DP 1"
    versions: Mapping[str, str] = field(default_factory=dict)
    implementations: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    git_commit: str | None = None
    tuned: Mapping[str, str] = field(default_factory=dict)  # settings that a sweep found, and which it was
