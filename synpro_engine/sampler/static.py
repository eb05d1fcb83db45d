"""Decoding steps whose tensors keep shape and place, so that a CUDA graph of one can be replayed (`graphs`).

Live rows, groups and tables of pages are filled up to a few sizes. The rows that fill up are fed token 0, each at a
place of its own in pages that no sequence has; nothing of them is read. A step finds its places and random numbers by a
counter on the device, so a stride is one step over and over, and all that it needs is brought over at its beginning.

Nothing here is CUDA's: run without a graph a step computes the same, and so it is tested.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synpro_engine.sampler.cache import PAGE, CacheShape, PagePool, new_pages, pages_for
from synpro_engine.sampler.config import SamplerConfig
from synpro_engine.sampler.decode import Decoder, Step
from synpro_engine.sampler.drawing import LONGEST_STRIDE, Drawer, Drawn
from synpro_engine.sampler.layout import Fed, Numbers, PromptPages, Sizes, numbers_of
from synpro_engine.sampler.sampling import Draw, Kept
from synpro_engine.sampler.work import Request
from synpro_kernels import DecodeRows

MOST_PROGRAMS = 32
"""Kept at once, the latest used: each holds some memory of the device, the more if it is a graph."""


class Bucket(NamedTuple):
    """What a program is made for: all that its operations depend on beside the numbers in its buffers."""

    sizes: Sizes
    steps: int
    """It has room for."""
    width: int
    """Of the draws' nuclei."""
    way: Hashable
    """Of drawing; see `Drawer.way`."""


class Program:
    """One decoding step of a bucket, over buffers that it keeps."""

    def __init__(self, bucket: Bucket, decoder: Decoder, drawer: Drawer) -> None:
        self.bucket, self._decoder, self._drawer = bucket, decoder, drawer
        rows, groups, members, prompt_pages, new_pages_ = bucket.sizes
        common = [rows, groups * members, rows, groups, groups * prompt_pages, rows * new_pages_]
        device, steps = decoder.device, bucket.steps
        # The steps' places stand last: a stride of fewer steps brings fewer over.
        self._flat = torch.zeros(sum(common) + steps * 4 * rows, dtype=torch.int64, device=device)
        *self._common, places = self._flat.split([*common, steps * 4 * rows])
        self._place_S4B = places.view(steps, 4, rows)
        self._uniform_SB = torch.zeros(steps, rows, dtype=torch.float64, device=device)
        self._token_B, self._at = torch.zeros_like(self._common[0]), self._flat.new_zeros(1)
        kinds = {"token": torch.int64, "logprob": torch.float32, "full": torch.float32, "finite": torch.bool}
        self._found = {name: torch.zeros(steps, rows, dtype=kind, device=device) for name, kind in kinds.items()}
        if drawer.cuts:
            kept = min(bucket.width, drawer.vocabulary(decoder.config.vocab_size))
            self._found["short"] = torch.zeros(steps, rows, dtype=torch.bool, device=device)
            self._found["ids"] = torch.zeros(steps, rows, kept, dtype=torch.int32, device=device)

    def load(self, numbers: Numbers, uniform_NB: Tensor) -> None:
        """Bring over what a stride needs, for as many steps and rows as `uniform_NB` has."""
        flat = torch.tensor([number for part in (*numbers.common, *numbers.places) for number in part])
        self._flat[: len(flat)].copy_(flat)
        steps, rows = uniform_NB.shape
        self._uniform_SB[:steps, :rows].copy_(uniform_NB)
        self.rewind()

    def rewind(self) -> None:
        """Be before the first step."""
        self._at.zero_()
        self._token_B.copy_(self._common[0])

    def step(self, pool: PagePool) -> None:
        """Take the next step: its tokens are fed to the one after it, its draws are kept."""
        _, row_of_place, place_of_row, length_G, prompts, new = self._common
        sizes = self.bucket.sizes
        position_B, page_B, time_B, seen_B = self._place_S4B.index_select(0, self._at)[0].unbind(0)
        step = Step(
            position_B=position_B,
            page_B=page_B,
            time_B=time_B,
            rows=DecodeRows(
                row_of_place=row_of_place, place_of_row_B=place_of_row,
                prompt_length_G=length_G, prompt_page_GX=prompts.view(sizes.groups, -1),
                new_length_B=seen_B, new_page_SY=new.view(sizes.rows, -1),
                # As if all were as long as the tables are wide: no length of the host's may become part of a graph.
                prompt_longest=sizes.prompt_pages * PAGE, ragged_prompts=True,
                new_longest=sizes.new_pages * PAGE, ragged_new=True,
            ),
        )  # fmt: skip
        logits_BV = self._decoder.step(self._token_B, step, pool)
        draw = self._drawer.next(logits_BV, self._uniform_SB.index_select(0, self._at)[0], self.bucket.width)
        self._token_B.copy_(draw.token_B)
        self._keep(draw)
        self._at += 1

    def _keep(self, draw: Draw) -> None:
        parts = {
            "token": draw.token_B, "logprob": draw.logprob_B, "full": draw.full_logprob_B, "finite": draw.finite_B,
        }  # fmt: skip
        if draw.nucleus is not None:
            parts |= {"short": draw.nucleus.short_B, "ids": draw.nucleus.id_BK}
        assert parts.keys() == self._found.keys(), "draws of another kind than there is room for"
        for name, part in parts.items():
            self._found[name].index_copy_(0, self._at, part[None])

    def draws(self, steps: int, rows: int) -> list[Draw]:
        """Of the first steps and rows, as views."""
        found = {name: part[:, :rows] for name, part in self._found.items()}
        return [
            Draw(
                token_B=found["token"][at], logprob_B=found["logprob"][at], full_logprob_B=found["full"][at],
                finite_B=found["finite"][at],
                nucleus=Kept(id_BK=found["ids"][at], short_B=found["short"][at]) if self._drawer.cuts else None,
            )
            for at in range(steps)
        ]  # fmt: skip


Replay = Callable[[], None]
Prepare = Callable[[Program, PagePool], Replay]
"""Of a program that is loaded and at its beginning: what takes a step each time. Leaves it at its beginning."""


def eagerly(program: Program, pool: PagePool) -> Replay:
    """Each step as it is."""
    return lambda: program.step(pool)


class StaticSteps:
    """Programs by bucket, over pages that stay where they are from one call of the sampler to the next.

    They are dropped when what they were made over has moved: the model's weights (a new engine, other adapters) or the
    pages.
    """

    def __init__(self, decoder: Decoder, config: SamplerConfig, prepare: Prepare) -> None:
        self._decoder, self._config, self._prepare = decoder, config, prepare
        self._weights: Hashable = None
        self._pages: list[Tensor] | None = None
        self._programs = OrderedDict[Bucket, tuple[Program, Replay]]()
        self._spare = list[int]()
        """Pages of the rows that fill up."""
        self.made = 0
        """Programs, of all calls."""

    def drop(self) -> None:
        """Forget all programs and the pages they were made over."""
        self._programs.clear()
        self._pages = None

    def begin(self, request: Request, most: int) -> PagePool:
        """The pool of a call, of which `most` pages may be live; whole from its start, so that it need not grow."""
        weights, shape = self._decoder.looked_at(), self._decoder.cache_shape
        if weights != self._weights:
            self.drop()
        self._weights, self._request = weights, request
        rows = max(self._config.max_batch, request.group_size)
        self._tables = _table_sizes(request, self._decoder.config.seq_len)
        prompt_pages, own_pages = self._tables
        # A page for each sequence beside, as prompts are let in only where there is one.
        bound = rows * (own_pages + 1) + min(rows, len(request.prompts)) * prompt_pages
        spare = pages_for(filled_up(rows))
        pool = PagePool(shape, min(most, bound) + spare, self._clean_pages(shape, min(most, bound) + spare))
        self._spare = pool.take(spare)
        return pool

    def _clean_pages(self, shape: CacheShape, count: int) -> list[Tensor]:
        if self._pages is None or self._pages[0].shape[1] < count:
            self.drop()
            self._pages = [new_pages(shape, count) for _ in range(shape.layers)]
        else:
            for pages in self._pages:  # what a call left may not be finite, where it ended in an error
                pages.zero_()
        return self._pages

    def take(
        self, fed: Sequence[Fed], prompts: Sequence[PromptPages], uniform_NB: Tensor, drawer: Drawer, pool: PagePool
    ) -> Drawn | None:
        """Take the steps of a stride, as `Drawer.take` does; rows that are short are as they were before it.

        None, and nothing is taken, where the pages have moved, as they may for a completion that is live alone.
        """
        if self._pages is None or pool.addresses != tuple(pages.data_ptr() for pages in self._pages):
            self.drop()
            return None
        steps, rows = uniform_NB.shape
        bucket = self._bucket(rows, len(prompts), drawer)
        made = self._programs.pop(bucket, None)
        program = Program(bucket, self._decoder, drawer) if made is None else made[0]
        program.load(numbers_of(*self._filled(fed, prompts, bucket.sizes), steps, bucket.sizes), uniform_NB)
        if made is None:
            made = program, self._prepare(program, pool)
            self.made += 1
        self._programs[bucket] = made
        if len(self._programs) > MOST_PROGRAMS:
            self._programs.popitem(last=False)
        for _ in range(steps):
            made[1]()
        return drawer.bring(program.draws(steps, rows))

    def _bucket(self, rows: int, groups: int, drawer: Drawer) -> Bucket:
        sizes = Sizes(filled_up(rows), _power_of_2(groups), _power_of_2(self._request.group_size), *self._tables)
        steps = min(self._config.stride or LONGEST_STRIDE, drawer.most_steps)
        return Bucket(sizes, steps, drawer.width, drawer.way)

    def _filled(
        self, fed: Sequence[Fed], prompts: Sequence[PromptPages], sizes: Sizes
    ) -> tuple[list[Fed], list[PromptPages]]:
        """With the rows and groups that fill up; those groups have the shortest of prompts."""
        prompts = [*prompts, *[PromptPages(1, self._spare[:1])] * (sizes.groups - len(prompts))]
        count = Counter(one.group for one in fed)
        # In the shortest groups first: a row of a real one reads its prompt along.
        empty = (at for at in reversed(range(sizes.groups)) for _ in range(sizes.members - count[at]))
        places = range(sizes.rows - len(fed))
        more = [
            Fed(group, [self._spare[at // PAGE]], [0], at % PAGE, at % PAGE)
            for at, group in zip(places, empty, strict=False)
        ]
        assert len(fed) + len(more) == sizes.rows, "groups have no places for so many rows"
        return [*fed, *more], prompts


def filled_up(rows: int) -> int:
    """The size that so many rows are filled up to: 1, 2, 3, 4, 6, 8, 12, 16 and so on, at most half as many more."""
    whole = _power_of_2(rows)
    return whole * 3 // 4 if whole > 2 and rows <= whole * 3 // 4 else whole


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _table_sizes(request: Request, seq_len: int) -> tuple[int, int]:
    """Pages of the longest prompt and completion, filled up, so that calls of like lengths have the same."""
    longest, most = max(map(len, request.prompts), default=1), max(request.most, default=1)
    return _power_of_2(pages_for(longest)), _power_of_2(pages_for(min(most, seq_len)))
