"""What one stage takes, and what of it is held when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from synpro_engine.dist import Layout

TRAINED, WEIGHTS, TEACHERS = "weights, gradients, optimizer", "weights that are read", "teachers"
REFERENCE, CRITIC, ACTIVATIONS, LOGITS = "reference policy", "critic", "activations", "a block of logits"
PAGES, ASKED, GENERATOR, JUDGES = "keys and values", "pretrained model and probe", "generator as it came", "judges"
NEEDED = {
    TRAINED: "rollout, update",
    WEIGHTS: "all along",
    TEACHERS: "-",
    REFERENCE: "reference",
    CRITIC: "update",
    ACTIVATIONS: "update",
    LOGITS: "update",
    PAGES: "rollout",
    ASKED: "score",
    GENERATOR: "score",
    JUDGES: "score",
}
"""What a stage holds, and the phases of a step of tuning in which it is needed. `reference` is the pass ahead of the
updates; what is needed in them is there in it too."""
PARKED = frozenset({REFERENCE, ASKED, GENERATOR, JUDGES})
"""What `residency: parked` keeps on the host in other phases."""
_PHASES = ("rollout", "score", "reference", "update")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one stage takes. FLOPs are of the whole job, `held` is of the fullest rank in bytes, `disk` what stays."""

    stage: str
    tokens: float | None = None
    """That pass through a model: trained on, scored or sampled; None where the corpus' size is not known."""
    flops: float = 0.0
    """In matrix products: forward and backward passes, and what is read before sampling."""
    sampled: float = 0.0
    """Tokens drawn one after the other; their FLOPs are not what their time hangs on, and are in `flops` too."""
    held: Mapping[str, float] = field(default_factory=dict)
    """What stands in memory, by one of the names in `NEEDED`."""
    moves: frozenset[str] = frozenset()
    """Of these, what is in a device's memory in the phases that need it alone."""
    waits: float = 0.0
    """What Muon's sampled momenta take of a rank's host, in bytes, until a direction is made of them."""
    offloaded: float = 0.0
    """Activations that wait on a rank's host for the backward pass, in bytes."""
    disk: float = 0.0
    layout: Layout | None = None
    """Of its models; None where it has none."""

    @property
    def memory(self) -> float:
        """Of the fullest rank, in bytes, and in the fullest phase where something moves."""
        return max(map(self.in_phase, _PHASES))

    def in_phase(self, phase: str) -> float:
        """Of the fullest rank in a phase of a step of tuning, in bytes."""
        return sum(size for name, size in self.held.items() if name not in self.moves or phase in NEEDED[name])

    @property
    def parked(self) -> float:
        """Of a rank's host, in bytes, which stay there."""
        return sum(size for name, size in self.held.items() if name in self.moves & PARKED)


def sampled(made: Iterable[Cost]) -> float | None:
    """Tokens that several stages draw; None where that of one is not known."""
    costs = list(made)
    return None if any(cost.tokens is None for cost in costs) else sum(cost.sampled for cost in costs)
