"""Reading prompts into pages: what several of them begin with is read once, and what is known not again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from synpro_engine.sampler.cache import PAGE, PagePool, page_keys, page_table, pages_for
from synpro_engine.sampler.decode import Decoder, Prefill


class PromptReader:
    """Fills pages of `pool` by `decoder`; `tokens` counts what was read, `known` what was found."""

    def __init__(self, decoder: Decoder, pool: PagePool) -> None:
        self._decoder, self._pool = decoder, pool
        self.tokens = self.known = 0

    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], Tensor]:
        """Each prompt's pages, which the caller releases, and the logits [G, V] behind its last token."""
        keys = [page_keys(prompt) for prompt in prompts]
        held = self._read_beginnings(prompts, keys)
        pages, known = list[list[int]](), list[int]()
        for prompt, names in zip(prompts, keys, strict=True):
            found = self._pool.find(names)
            known.append(len(found) * PAGE)
            pages.append(found + self._pool.take(pages_for(len(prompt)) - len(found)))
        logits_GV = self._forward(prompts, known, pages)
        self.known += sum(known)
        for names, its in zip(keys, pages, strict=True):
            self._pool.publish(names, its[: len(names)])
        self._pool.release(held)
        return pages, logits_GV

    def _read_beginnings(self, prompts: Sequence[Sequence[int]], keys: list[list[bytes]]) -> list[int]:
        """Make whole pages known that several of the prompts begin with; returns them, for the caller to release."""
        held = list[int]()
        # Once for each place at which prompts that begin alike part into several that go on alike.
        while shared := self._shared(keys):
            counts = [len(names) for names in shared.values()]
            found = [self._pool.find(names) for names in shared.values()]
            pages = [some + self._pool.take(count - len(some)) for some, count in zip(found, counts, strict=True)]
            starts = [prompts[index][: count * PAGE] for index, count in zip(shared, counts, strict=True)]
            self._forward(starts, [len(some) * PAGE for some in found], pages)
            for names, its in zip(shared.values(), pages, strict=True):
                self._pool.publish(names, its)
                held += its
        return held

    def _shared(self, keys: list[list[bytes]]) -> dict[int, list[bytes]]:
        """By the first prompt that has it: each beginning, in whole pages, that several have and is not known."""
        by_next = dict[bytes, list[int]]()
        for index, names in enumerate(keys):
            known = sum(1 for _ in takewhile(self._pool.knows, names))
            if known < len(names):
                by_next.setdefault(names[known], []).append(index)
        found = dict[int, list[bytes]]()
        for first, *others in by_next.values():
            if others:
                side_by_side = zip(*(keys[index] for index in (first, *others)), strict=False)
                found[first] = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, side_by_side)]
        return found

    def _forward(
        self, prompts: Sequence[Sequence[int]], known: Sequence[int], pages: Sequence[Sequence[int]]
    ) -> Tensor:
        """Read what is not known of each prompt; the logits [G, V] behind the last tokens."""
        rest = [prompt[start:] for prompt, start in zip(prompts, known, strict=True)]
        longest = max(map(len, rest))
        self.tokens += sum(map(len, rest))
        flat = [token for some in rest for token in (*some, *[0] * (longest - len(some)))]
        flat += [*map(len, rest), *known, *page_table(pages)]
        # One copy to the device: the host waits for each.
        groups = len(prompts)
        sizes = [groups * longest, groups, groups, groups * max(map(len, pages))]
        tokens, length_G, known_G, table = torch.tensor(flat, device=self._decoder.device).split(sizes)
        prefill = Prefill(
            tokens_GS=tokens.view(groups, -1), length_G=length_G, known_G=known_G, page_GX=table.view(groups, -1),
            some_known=any(known),
        )  # fmt: skip
        return self._decoder.prefill(prefill, self._pool)
