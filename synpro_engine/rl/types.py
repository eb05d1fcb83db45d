"""Records on their way from a prompt to a gradient.

Shape suffixes: B sequences, S positions, N tokens of all completions in a batch (positions with a label, row by row).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from synpro_engine.model.shared_rows import SharedRows
from synpro_engine.model.trunk import Trunk
from synpro_engine.sampler import Completion, Nuclei
from synpro_engine.synth import Candidate, Slice


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A slice of a document as the generator is asked about it."""

    source: Slice
    token_ids: list[int]

    @property
    def key(self) -> str:
        """Names the slice: document and characters."""
        return self.source.key


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One completion of a prompt: what was sampled, what was read from it, what it earned.

    `parts` are unweighted rewards by name, `reward` their weighted sum; `advantage` is the mean of its tokens', 0
    before they are known. `dropped`: a reward of its group is no number, so nothing is learnt from the group. `masked`:
    it was cut off, and nothing is learnt from it.
    """

    prompt: Prompt
    member: int
    completion: Completion
    candidate: Candidate
    reward: float
    parts: dict[str, float]
    advantage: float = 0.0
    dropped: bool = False
    masked: bool = False

    @property
    def teaches(self) -> bool:
        """Whether its tokens count in the loss."""
        return not (self.dropped or self.masked)


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """Completions as the policy's loss reads them; those of one prompt share a row.

    places: where in the rank's rollouts each completion stands, in the order of their tokens; lengths: their tokens.
    tokens_BS: int64, in each row a prompt without its last token, and behind it for each of its completions that last
    token and the completion without its own; padded on the right with 0. labels_BS: int64, the completion's token at
    the position that predicts it, else -100. rows: how that is read. nuclei: the sampler's nuclei of the N tokens, None
    when nothing was cut.

    Real and per token: behaviour_N, log-probability under the policy that ratios are taken to; weight_N, share in the
    loss, 0 for what teaches nothing; reference_N, log-probability under the reference policy; correction_N, by what the
    gain is multiplied, and drift_N, the trainer's log-probability less the sampler's that it is of; advantage_N;
    value_N and return_N, what the critic foretold and learns. trunk: what the policy's frozen first blocks make of the
    rows. None: not known yet, or not wanted.
    """

    places: tuple[int, ...]
    lengths: tuple[int, ...]
    tokens_BS: Tensor
    labels_BS: Tensor
    rows: SharedRows
    behaviour_N: Tensor
    weight_N: Tensor
    nuclei: Nuclei | None
    reference_N: Tensor | None = None
    correction_N: Tensor | None = None
    drift_N: Tensor | None = None
    advantage_N: Tensor | None = None
    value_N: Tensor | None = None
    return_N: Tensor | None = None
    trunk: Trunk | None = None

    def by_completion(self, values_N: Tensor) -> list[Tensor]:
        """Values per token as one tensor for each completion."""
        return list(values_N.split(self.lengths))
