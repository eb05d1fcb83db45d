"""The sequences being decoded now: their pages in the cache, their tokens so far, who joins and who leaves.

Time and memory follow live sequences: a finished one leaves at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from synpro_engine.sampler.cache import CacheShape, PagePool, pages_for
from synpro_engine.sampler.config import Completion, Nuclei
from synpro_engine.sampler.decode import Step
from synpro_engine.sampler.endings import End, Endings, LoopWatch
from synpro_engine.sampler.layout import Fed, PromptPages, lay_out
from synpro_engine.sampler.sampling import Draw
from synpro_engine.sampler.speculate import Drafter


@dataclass(kw_only=True)
class LiveSequence:
    """One member of one prompt's group while it grows; `room` is the most tokens it may get.

    `pages` hold its own positions. All its tokens but the latest were fed, and are stored there.
    """

    prompt: int
    member: int
    seed: int
    room: int
    group: int = -1
    drafter: Drafter | None = None
    pages: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    full_logprobs: list[float] = field(default_factory=list)
    nucleus_ids: list[np.ndarray] = field(default_factory=list)
    loops: LoopWatch | None = None
    end: End | None = None
    stopped_by: str | None = None

    def draft(self, most: int, least: float) -> list[int]:
        """Its next tokens as far as they can be guessed; see `Drafter.draft`."""
        if self.drafter is None:
            return []
        # One token less than there is room for: behind the last guess another is drawn.
        return self.drafter.draft(min(most, self.room - len(self.token_ids) - 1), least)

    def append(self, token: int, logprob: float, full_logprob: float, endings: Endings) -> None:
        """Take what was drawn, and see whether it ends here."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.full_logprobs.append(full_logprob)
        if self.drafter is not None:
            self.drafter.note(token)
        looped = self.loops is not None and self.loops.note(token)
        if token in endings.stop_ids:
            self.end = "id"
        elif (stop := endings.stopped_by(self.token_ids)) is not None:
            self.end, self.stopped_by = "text", stop
        elif looped:
            self.end = "loop"
        elif len(self.token_ids) >= self.room:
            self.end = "length"

    def completion(self) -> Completion:
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
            finished=self.end in ("id", "text"),
            stopped_by=self.stopped_by,
            looped=self.end == "loop",
        )


@dataclass(kw_only=True)
class _Group:
    prompt: int
    pages: PromptPages
    live: int = 0


class LiveBatch:
    """Live sequences and the pages that they and their prompts have in `pool`. The last are those that came last."""

    def __init__(self, shape: CacheShape, pages: int) -> None:
        """`pages`: as many as may be live at once."""
        self._device = shape.device
        self.pool = PagePool(shape, pages)
        self.sequences: list[LiveSequence] = []
        self._groups: list[_Group] = []

    def group_of(self, prompt: int) -> int | None:
        """The live group of the prompt with this index."""
        return next((at for at, group in enumerate(self._groups) if group.prompt == prompt), None)

    def open_group(self, prompt: int, length: int, pages: Sequence[int]) -> int:
        """A group for a prompt whose pages are filled, and are released when its last sequence leaves."""
        self._groups.append(_Group(prompt=prompt, pages=PromptPages(length, pages)))
        return len(self._groups) - 1

    def add(self, sequence: LiveSequence, group: int) -> None:
        """Take a sequence in."""
        sequence.group = group
        self._groups[group].live += 1
        self.sequences.append(sequence)

    def missing(self, drafts: Sequence[Sequence[int]]) -> int:
        """Pages that are wanted for feeding each sequence its latest token and what is guessed behind it."""
        return sum(count - len(s.pages) for s, count in zip(self.sequences, self._wanted(drafts), strict=True))

    def next_step(self, drafts: Sequence[Sequence[int]]) -> Step:
        """Inputs for feeding each sequence its latest token and what is guessed behind it; takes the pages."""
        fed = list[Fed]()
        for sequence, count, draft in zip(self.sequences, self._wanted(drafts), drafts, strict=True):
            sequence.pages += self.pool.take(count - len(sequence.pages))
            tokens = [sequence.token_ids[-1], *draft]
            fed.append(Fed(sequence.group, sequence.pages, tokens, len(sequence.token_ids) - 1))
        return lay_out(fed, [group.pages for group in self._groups], self._device)

    def again(self, sequence: LiveSequence) -> Step:
        """Inputs for feeding one sequence, which was put aside, all but its latest token; takes the pages."""
        tokens = sequence.token_ids[:-1]
        sequence.pages = self.pool.take(pages_for(len(tokens)))
        prompt = self._groups[sequence.group].pages
        return lay_out([Fed(0, sequence.pages, tokens, 0)], [prompt], self._device)

    def _wanted(self, drafts: Sequence[Sequence[int]]) -> list[int]:
        # Never fewer than it has: a wrong guess may have brought a page that is not needed yet.
        return [
            max(len(sequence.pages), pages_for(len(sequence.token_ids) + len(draft)))
            for sequence, draft in zip(self.sequences, drafts, strict=True)
        ]

    def retire(self) -> list[LiveSequence]:
        """Remove and return the sequences that have ended."""
        done = [sequence for sequence in self.sequences if sequence.end is not None]
        for sequence in done:
            self._remove(sequence)
        return done

    def put_aside(self) -> LiveSequence:
        """Take the last sequence out, without its pages: what they held is computed again when it comes back."""
        sequence = self.sequences[-1]
        self._remove(sequence)
        return sequence

    def _remove(self, sequence: LiveSequence) -> None:
        self.sequences = [other for other in self.sequences if other is not sequence]
        self.pool.release(sequence.pages)
        sequence.pages = []
        group = self._groups[sequence.group]
        group.live -= 1
        if group.live == 0:
            self.pool.release(group.pages.pages)
            del self._groups[sequence.group]
            for other in self.sequences:
                other.group -= other.group > sequence.group


def record(sequences: Sequence[LiveSequence], drafts: Sequence[Sequence[int]], drawn: Draw, endings: Endings) -> int:
    """Append what was drawn for each of the sequences, behind its latest token and each token that was guessed.

    The rows of `drawn` are theirs in this order. What stands behind a wrong guess or an end was drawn for nothing.
    Returns the number of tokens appended.
    """
    tokens, logprobs, full_logprobs = drawn.token_B.tolist(), drawn.logprob_B.tolist(), drawn.full_logprob_B.tolist()
    nuclei = _nuclei(drawn)
    row, appended = 0, 0
    for sequence, draft in zip(sequences, drafts, strict=True):
        for at in range(row, row + len(draft) + 1):
            sequence.append(tokens[at], logprobs[at], full_logprobs[at], endings)
            if nuclei is not None:
                sequence.nucleus_ids.append(nuclei[at].copy())  # a view would keep the whole batch's ids alive
            appended += 1
            if sequence.end is not None or draft[at - row : at - row + 1] != [tokens[at]]:
                break
        row += len(draft) + 1
    return appended


def _nuclei(drawn: Draw) -> list[np.ndarray] | None:
    if drawn.nucleus_ids is None or drawn.nucleus_counts_B is None:
        return None
    ids = drawn.nucleus_ids.to(torch.int32).cpu().numpy()
    return np.split(ids, np.cumsum(drawn.nucleus_counts_B.cpu().numpy())[:-1])
