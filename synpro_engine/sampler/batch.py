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
from synpro_engine.sampler.drawing import Drawn
from synpro_engine.sampler.endings import End, Endings, LoopWatch
from synpro_engine.sampler.layout import Fed, PromptPages, Stride, lay_out
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

    @property
    def stored(self) -> int:
        """How many of its tokens were fed, and so the place behind its prompt that its latest one is fed at."""
        return len(self.token_ids) - 1

    @property
    def last_place(self) -> int:
        """The place of the last token that it may be fed: behind that one another is drawn."""
        return self.room - 2

    def draft(self, most: int, least: float) -> list[int]:
        """Its next tokens as far as they can be guessed; see `Drafter.draft`."""
        if self.drafter is None:
            return []
        return self.drafter.draft(min(most, self.last_place - self.stored), least)

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

    def __init__(self, shape: CacheShape, pages: int, pool: PagePool | None = None) -> None:
        """`pages`: as many as may be live at once, in a pool of its own where none is given."""
        self._device = shape.device
        self.pool = pool or PagePool(shape, pages)
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

    def missing(self, drafts: Sequence[Sequence[int]], steps: int) -> int:
        """Pages that are wanted for so many steps, the first of which is fed each sequence's latest token and draft."""
        return sum(count - len(s.pages) for s, count in zip(self.sequences, self._wanted(drafts, steps), strict=True))

    def stride(self, drafts: Sequence[Sequence[int]], steps: int) -> Stride:
        """Inputs for so many steps, the first with each sequence's latest token and draft; takes the pages."""
        return lay_out(*self.feed(drafts, steps), self._device, steps)

    def feed(self, drafts: Sequence[Sequence[int]], steps: int) -> tuple[list[Fed], list[PromptPages]]:
        """What is fed in so many steps, and the groups' prompts; takes the pages."""
        fed = list[Fed]()
        for sequence, count, draft in zip(self.sequences, self._wanted(drafts, steps), drafts, strict=True):
            sequence.pages += self.pool.take(count - len(sequence.pages))
            tokens = [sequence.token_ids[-1], *draft]
            fed.append(Fed(sequence.group, sequence.pages, tokens, sequence.stored, sequence.last_place))
        return fed, [group.pages for group in self._groups]

    def again(self, sequence: LiveSequence) -> Stride:
        """Inputs for feeding one sequence, which was put aside, all but its latest token; takes the pages."""
        sequence.pages = self.pool.take(pages_for(sequence.stored))
        prompt, tokens = self._groups[sequence.group].pages, sequence.token_ids[:-1]
        return lay_out([Fed(0, sequence.pages, tokens, 0, sequence.last_place)], [prompt], self._device)

    def _wanted(self, drafts: Sequence[Sequence[int]], steps: int) -> list[int]:
        # Never fewer than it has: a wrong guess may have brought a page that is not needed yet.
        return [
            max(len(s.pages), pages_for(min(s.stored + len(draft) + steps - 1, s.last_place) + 1))
            for s, draft in zip(self.sequences, drafts, strict=True)
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


def record(sequences: Sequence[LiveSequence], drafts: Sequence[Sequence[int]], drawn: Drawn, endings: Endings) -> int:
    """Append what was drawn for each of the sequences, behind its latest token and draft or in steps without one.

    The rows of a draw are theirs in this order. What stands behind a wrong guess or an end was drawn for nothing; what
    stands behind a nucleus that was looked for among too few is drawn again. Returns the number of tokens appended.

    Raises FloatingPointError for what was drawn from logits that are not finite.
    """
    tokens, logprobs, full_logprobs = drawn.token_N.tolist(), drawn.logprob_N.tolist(), drawn.full_logprob_N.tolist()
    rows, row, appended = sum(len(draft) + 1 for draft in drafts), 0, 0
    for sequence, draft in zip(sequences, drafts, strict=True):
        places = range(row, row + len(draft) + 1) if draft else range(row, len(tokens), rows)
        row += len(draft) + 1
        for at, place in enumerate(places):
            if not drawn.finite_N[place]:
                raise FloatingPointError("the model's logits are not finite: its weights have diverged")
            if drawn.short_N[place]:
                break
            token = tokens[place]
            sequence.append(token, logprobs[place], full_logprobs[place], endings)
            if drawn.nuclei is not None:
                sequence.nucleus_ids.append(drawn.nuclei[place])
            appended += 1
            if sequence.end is not None or draft[at : at + 1] not in ([], [token]):
                break
    return appended
