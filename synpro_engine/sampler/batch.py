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
from synpro_engine.sampler.speculate import Drafter
from synpro_kernels import DecodeRows


@dataclass(kw_only=True)
class LiveSequence:
    """One member of one prompt's group while it grows; `room` is the most tokens it may get."""

    prompt: int
    member: int
    seed: int
    room: int
    group: int
    drafter: Drafter | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    full_logprobs: list[float] = field(default_factory=list)
    nucleus_ids: list[np.ndarray] = field(default_factory=list)

    def draft(self, most: int, least: float) -> list[int]:
        """Its next tokens as far as they can be guessed; see `Drafter.draft`."""
        if self.drafter is None:
            return []
        # One token less than there is room for: behind the last guess another is drawn.
        return self.drafter.draft(min(most, self.room - len(self.token_ids) - 1), least)

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

    def next_step(self, drafts: Sequence[Sequence[int]]) -> Step:
        """Inputs for feeding each sequence's latest token and what is guessed behind it; makes room in the cache."""
        prompt_lengths, fed = [group.prompt_length for group in self._groups], [1 + len(draft) for draft in drafts]
        tokens, positions, lengths = list[int](), list[int](), list[int]()
        for sequence, draft in zip(self.sequences, drafts, strict=True):
            tokens += [sequence.token_ids[-1], *draft]
            here = range(len(sequence.token_ids), len(sequence.token_ids) + 1 + len(draft))
            lengths += here
            # Positions go on from a prompt's real length; the padding between the two buffers has none.
            positions += [prompt_lengths[sequence.group] + length - 1 for length in here]
        self.new.reserve(len(self.sequences), max(lengths))
        rows, alike = self._rows, len(tokens) == len(self.sequences)
        if rows is None or not alike:
            groups = [sequence.group for sequence, count in zip(self.sequences, fed, strict=True) for _ in range(count)]
            rows = decode_rows(groups, prompt_lengths, fed, self._device)
            self._rows = rows if alike else None
        # One copy to the device: the host waits for each.
        token_B, position_B, length_B = torch.tensor([tokens, positions, lengths], device=self._device)
        return Step(
            token_B=token_B,
            position_B=position_B,
            rows=replace(rows, new_length_B=length_B, new_longest=max(lengths), ragged_new=min(lengths) < max(lengths)),
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


def record(
    sequences: Sequence[LiveSequence], drafts: Sequence[Sequence[int]], drawn: Draw, stop_ids: frozenset[int]
) -> int:
    """Append what was drawn for each of the sequences, behind its latest token and each token that was guessed.

    The rows of `drawn` are theirs in this order. What stands behind a wrong guess or a stop id was drawn for nothing.
    Returns the number of tokens appended.
    """
    tokens, logprobs, full_logprobs = drawn.token_B.tolist(), drawn.logprob_B.tolist(), drawn.full_logprob_B.tolist()
    nuclei = _nuclei(drawn)
    row, appended = 0, 0
    for sequence, draft in zip(sequences, drafts, strict=True):
        for at in range(row, row + len(draft) + 1):
            sequence.token_ids.append(tokens[at])
            sequence.logprobs.append(logprobs[at])
            sequence.full_logprobs.append(full_logprobs[at])
            if nuclei is not None:
                sequence.nucleus_ids.append(nuclei[at].copy())  # a view would keep the whole batch's ids alive
            if sequence.drafter is not None:
                sequence.drafter.note(tokens[at])
            appended += 1
            if tokens[at] in stop_ids or draft[at - row : at - row + 1] != [tokens[at]]:
                break
        row += len(draft) + 1
    return appended


def _nuclei(drawn: Draw) -> list[np.ndarray] | None:
    if drawn.nucleus_ids is None or drawn.nucleus_counts_B is None:
        return None
    ids = drawn.nucleus_ids.to(torch.int32).cpu().numpy()
    return np.split(ids, np.cumsum(drawn.nucleus_counts_B.cpu().numpy())[:-1])
