"""Records on their way from a prompt to a gradient.

Shape suffixes: B sequences, S positions, N tokens of all completions in a batch (positions with a label, row by row).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

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

    `parts` are unweighted rewards by name, `reward` their weighted sum; `advantage` is relative to its group.
    `dropped`: a reward of its group is no number, so nothing is learnt from the group.
    """

    prompt: Prompt
    member: int
    completion: Completion
    candidate: Candidate
    reward: float
    parts: dict[str, float]
    advantage: float
    dropped: bool = False


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """Completions as the policy's loss reads them.

    tokens_BS: int64, prompt and completion without its last token, padded on the right with 0.
    labels_BS: int64, the completion's token at the position that predicts it, else -100.
    behaviour_N, advantage_N, weight_N fp32: per token, as `synpro_kernels.grpo_loss` takes them.
    reference_N: fp32, or None without a reference policy.
    nuclei: the sampler's nuclei of the N tokens, None when nothing was cut.
    """

    tokens_BS: Tensor
    labels_BS: Tensor
    behaviour_N: Tensor
    advantage_N: Tensor
    weight_N: Tensor
    reference_N: Tensor | None
    nuclei: Nuclei | None
