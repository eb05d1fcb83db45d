"""The sequences being decoded now: their rows in the cache, their tokens so far, who joins and who leaves.

Time follows live sequences: a finished one leaves at once and its row is filled from the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from synpro_engine.sampler.cache import CacheShape, GrowingRows, decode_rows
from synpro_engine.sampler.config import Completion, Nuclei
from synpro_engine.sampler.decode import Step
from synpro_engine.sampler.sampling import Draw
from synpro_kernels import DecodeRows


@dataclass(kw_only=True)
class LiveSequence:
    """One member of one prompt's group while it grows; `room` is the most tokens it may get."""

    prompt: int
    member: int
    seed: int
    room: int
    group: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    full_logprobs: list[float] = field(default_factory=list)
    nucleus_ids: list[np.ndarray] = field(default_factory=list)

    def completion(self, stop_ids: frozenset[int]) -> Completion:
        """What it has become."""
        nuclei = None
        if self.nucleus_ids:
            # Rows hold one id to thousands, so they lie end to end: a matrix would be as wide as the widest.
            counts = torch.tensor([0] + [len(ids) for ids in self.nucleus_ids])
            nuclei = Nuclei(offsets=counts.cumsum(0), ids=torch.from_numpy(np.concatenate(self.nucleus_ids)))
        return Completion(
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            full_logprobs=self.full_logprobs,
            nuclei=nuclei,
            finished=self.token_ids[-1] in stop_ids,
        )


@dataclass(kw_only=True)
class _Group:
    prompt_length: int
    live: int


class LiveBatch:
    """Live rows and their cache. `sequences[b]` owns row b of `new`; group g owns row g of `prompts`."""

    def __init__(self, shape: CacheShape) -> None:
        self._device = shape.device
        self.sequences: list[LiveSequence] = []
        self.prompts, self.new = GrowingRows(shape), GrowingRows(shape)
        self._groups: list[_Group] = []
        self._rows: DecodeRows | None = None
        """Where the live rows and their prompts lie; None where some have come or gone since."""

    @property
    def groups(self) -> int:
        """Live groups."""
        return len(self._groups)

    def join(self, members: Sequence[Sequence[LiveSequence]], prompt_lengths: Sequence[int]) -> None:
        """Add whole groups; their prompts' rows of the cache are written by the caller, in this order."""
        for sequences, length in zip(members, prompt_lengths, strict=True):
            for sequence in sequences:
                sequence.group = len(self._groups)
            self._groups.append(_Group(prompt_length=length, live=len(sequences)))
            self.sequences.extend(sequences)
        # Once for all that join: growing copies whatever is stored.
        self.prompts.reserve(len(self._groups), max(prompt_lengths))
        self.new.reserve(len(self.sequences), 1)
        self._rows = None

    def next_step(self) -> Step:
        """Inputs for feeding each row's latest token; makes room for it in the cache."""
        lengths = [len(sequence.token_ids) for sequence in self.sequences]
        prompt_lengths = [group.prompt_length for group in self._groups]
        self.new.reserve(len(lengths), max(lengths))
        if self._rows is None:
            groups = [sequence.group for sequence in self.sequences]
            self._rows = decode_rows(groups, prompt_lengths, self._device)
        tokens = [sequence.token_ids[-1] for sequence in self.sequences]
        # Positions go on from a prompt's real length; the padding between the two buffers has none.
        positions = [
            prompt_lengths[sequence.group] + length - 1
            for sequence, length in zip(self.sequences, lengths, strict=True)
        ]
        # One copy to the device: the host waits for each.
        token_B, position_B, length_B = torch.tensor([tokens, positions, lengths], device=self._device)
        return Step(
            token_B=token_B,
            position_B=position_B,
            rows=replace(
                self._rows, new_length_B=length_B, new_longest=max(lengths), ragged_new=min(lengths) < max(lengths)
            ),
        )

    def retire(self, stop_ids: frozenset[int]) -> list[LiveSequence]:
        """Remove and return the sequences that drew a stop id or have no room left."""
        done = [
            row
            for row, sequence in enumerate(self.sequences)
            if sequence.token_ids[-1] in stop_ids or len(sequence.token_ids) >= sequence.room
        ]
        return [self._remove(row) for row in reversed(done)]  # from the end: what moves forward is never done

    def _remove(self, row: int) -> LiveSequence:
        removed, last = self.sequences[row], self.sequences.pop()
        if removed is not last:
            # Its latest token has not been fed yet, so one position fewer is stored.
            self.new.move(len(self.sequences), row, len(last.token_ids) - 1)
            self.sequences[row] = last
        group = self._groups[removed.group]
        group.live -= 1
        if group.live == 0:
            self._remove_group(removed.group)
        self._rows = None
        return removed

    def _remove_group(self, index: int) -> None:
        last = self._groups.pop()
        if index == len(self._groups):
            return
        # Real positions only: what the row held behind them is masked, and finite.
        self.prompts.move(len(self._groups), index, last.prompt_length)
        self._groups[index] = last
        for sequence in self.sequences:
            if sequence.group == len(self._groups):
                sequence.group = index


def record(sequences: Sequence[LiveSequence], drawn: Draw) -> None:
    """Append one drawn token to each of the sequences, which are the rows of `drawn`."""
    values = zip(
        sequences, drawn.token_B.tolist(), drawn.logprob_B.tolist(), drawn.full_logprob_B.tolist(), strict=True
    )
    for sequence, token, logprob, full_logprob in values:
        sequence.token_ids.append(token)
        sequence.logprobs.append(logprob)
        sequence.full_logprobs.append(full_logprob)
    if drawn.nucleus_ids is not None and drawn.nucleus_counts_B is not None:
        ids = drawn.nucleus_ids.to(torch.int32).cpu().numpy()
        ends = np.cumsum(drawn.nucleus_counts_B.cpu().numpy())[:-1]
        for sequence, row in zip(sequences, np.split(ids, ends), strict=True):
            sequence.nucleus_ids.append(row.copy())  # a view would keep the whole batch's ids alive
