"""Inputs of the attention of decoding: ragged groups in pages that lie in no order and hold more than is filled."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synpro_kernels import DecodeRows, HeadNorm, Slots


class Inputs(NamedTuple):
    """In the order of the op's arguments."""

    query_Bnrh: Tensor
    key_PnTh: Tensor
    value_PnTh: Tensor

    def to(self, dtype: torch.dtype) -> "Inputs":
        return Inputs(*(tensor.to(dtype) for tensor in self))


class Problem(NamedTuple):
    """A batch: members of each group, key heads, query heads per key head and their width, lengths, tokens fed."""

    members: tuple[int, ...]
    heads: tuple[int, int, int]
    prompts: tuple[int, ...]
    new: tuple[int, ...]
    fed: tuple[int, ...] = (1,)
    page: int = 32

    def make(self, dtype: torch.dtype) -> tuple[Inputs, DecodeRows]:
        """Rows are dealt to groups in turn, as they come to lie when sequences end."""
        torch.manual_seed(0)
        n, r, h = self.heads
        left, group_of_row = list(self.members), []
        while any(left):
            for group, count in enumerate(left):
                if count:
                    group_of_row.append(group)
                    left[group] -= 1
        new = [self.new[row % len(self.new)] for row in range(len(group_of_row))]
        fed = [self.fed[row % len(self.fed)] for row in range(len(group_of_row))]
        sequence_of_row = [sequence for sequence, count in enumerate(fed) for _ in range(count)]
        row_of_place, place_of_row = _places([group_of_row[sequence] for sequence in sequence_of_row])
        row_of_slot, slot_of_row = _places(sequence_of_row)
        length = torch.tensor([new[sequence] + at for sequence, count in enumerate(fed) for at in range(count)])
        prompt = torch.tensor(self.prompts)
        filled = [held + count - 1 for held, count in zip(new, fed, strict=True)]
        prompt_page, new_page = _pages(self.page, self.prompts, filled)
        rows = DecodeRows(
            row_of_place=row_of_place, place_of_row_B=place_of_row, prompt_length_G=prompt, prompt_page_GX=prompt_page,
            new_length_B=length, new_page_SY=new_page,
            prompt_longest=int(prompt.max()), new_longest=int(length.max()),
            ragged_prompts=len(set(self.prompts)) > 1, ragged_new=len(set(length.tolist())) > 1,
            slots=Slots(row_of_slot=row_of_slot, slot_of_row_B=slot_of_row, fed=max(fed)) if max(fed) > 1 else None,
        )  # fmt: skip
        query = torch.randn(len(length), n, r, h)
        keys_and_values = _filled(rows, [*self.prompts, *filled], n, self.page, h)
        return Inputs(query, *keys_and_values).to(dtype), rows


def _pages(size: int, *lengths: Sequence[int]) -> list[Tensor]:
    """A table of pages for each list of lengths, in no order; page 0 is nobody's and stands behind the last ones."""
    counts = [[-(-length // size) for length in part] for part in lengths]
    free = iter((torch.randperm(sum(map(sum, counts))) + 1).tolist())
    tables = list[Tensor]()
    for part in counts:
        pages = [[next(free) for _ in range(count)] for count in part]
        tables.append(torch.tensor([row + [0] * (max(part) + 1 - len(row)) for row in pages]))
    return tables


def _filled(rows: DecodeRows, lengths: list[int], n: int, size: int, h: int) -> tuple[Tensor, Tensor]:
    """Keys and values as a cache holds them, zeros behind what is filled; strides are not those of whole tensors."""
    tables = [*rows.prompt_page_GX.tolist(), *rows.new_page_SY.tolist()]
    pool = torch.zeros(2, 2 + max(map(max, tables)), n, size, h)
    for pages, length in zip(tables, lengths, strict=True):
        for at in range(0, length, size):
            count = min(size, length - at)
            pool[:, pages[at // size], :, :count] = torch.randn(2, n, count, h)
    return pool[0], pool[1]


def _places(owner_of_row: list[int]) -> tuple[Tensor, Tensor]:
    """The row at each place, row 0 at empty ones, and the place of each row."""
    most = max(owner_of_row.count(owner) for owner in owner_of_row)
    row_of_place, place_of_row = [0] * (most * (max(owner_of_row) + 1)), list[int]()
    for row, owner in enumerate(owner_of_row):
        place_of_row.append(owner * most + owner_of_row[:row].count(owner))
        row_of_place[place_of_row[-1]] = row
    return torch.tensor(row_of_place), torch.tensor(place_of_row)


PROBLEMS = {
    "one row": Problem((1,), (1, 1, 16), (1,), (1,)),
    "ragged": Problem((3, 1, 2), (2, 3, 32), (70, 1, 33), (1, 17, 4)),
    "equal lengths": Problem((2, 2), (2, 1, 64), (40, 40), (9,)),
    "odd width": Problem((2, 5), (3, 2, 80), (129, 300), (65, 2)),
    "several tokens": Problem((3, 1, 2), (2, 3, 32), (70, 1, 33), (1, 60, 4), (1, 4, 2), 16),
    "several tokens, each sequence": Problem((2,), (1, 2, 16), (5,), (9,), (3,)),
    "a long prompt and many members": Problem((24,), (1, 4, 16), (515,), (3, 70, 1)),
}


class Heads(NamedTuple):
    """In the order of `store_heads`' arguments."""

    mixed_BF: Tensor
    cos_Bh: Tensor
    sin_Bh: Tensor
    key_PnTh: Tensor
    value_PnTh: Tensor
    page_B: Tensor
    time_B: Tensor
    norm: HeadNorm | None

    def to(self, dtype: torch.dtype) -> "Heads":
        """The same in another dtype, with buffers of its own; angles stay fp32 but for fp64."""
        angles = torch.promote_types(dtype, torch.float32)
        norm = self.norm
        if norm is not None:
            weights = norm.query_weight.to(dtype), norm.key_weight.to(dtype)
            norm = HeadNorm(query_weight=weights[0], key_weight=weights[1], eps=norm.eps, by_head=norm.by_head)
        return Heads(
            self.mixed_BF.to(dtype), self.cos_Bh.to(angles), self.sin_Bh.to(angles),
            self.key_PnTh.to(dtype, copy=True), self.value_PnTh.to(dtype, copy=True), self.page_B, self.time_B, norm,
        )  # fmt: skip


def heads(batch: int, n: int, r: int, h: int, norm: str | None) -> Heads:
    """A product's output and a cache of more pages, which must stay what they are; norm: by head, full or None."""
    torch.manual_seed(1)
    angle = (torch.rand(batch, h // 2) * 4000).repeat(1, 2)
    weights = None
    if norm is not None:
        query, key = (h, h) if norm == "by head" else (n * r * h, n * h)
        weights = HeadNorm(
            query_weight=torch.rand(query) + 0.5, key_weight=torch.rand(key) + 0.5, eps=1e-6, by_head=norm == "by head"
        )
    cache = torch.randn(2, batch + 2, n, 12, h)
    place = torch.randperm((batch + 2) * 12)[:batch]  # two rows may have one page
    mixed = 3.0 * torch.randn(batch, n * (r + 2) * h)
    return Heads(mixed, angle.cos(), angle.sin(), cache[0], cache[1], place // 12, place % 12, weights)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (i, i + h/2) by its angle."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[..., :half], sin[..., :half]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def store_heads_definition(given: Heads) -> Tensor:
    """Head by head; writes to the buffers of `given`."""
    mixed_BF, cos_Bh, sin_Bh, key_PnTh, value_PnTh, page_B, time_B, norm = given
    n, h = key_PnTh.shape[1], key_PnTh.shape[3]
    batch, r = len(mixed_BF), mixed_BF.shape[1] // (n * h) - 2
    part = mixed_BF.view(batch, n, r + 2, h)
    query, key, value = part[:, :, :r], part[:, :, r], part[:, :, r + 1]
    if norm is not None and norm.by_head:
        query, key = (
            torch.nn.functional.rms_norm(x, (h,), weight, norm.eps)
            for x, weight in ((query, norm.query_weight), (key, norm.key_weight))
        )
    elif norm is not None:
        query, key = (
            torch.nn.functional.rms_norm(x.flatten(1), (x[0].numel(),), weight, norm.eps).view(x.shape)
            for x, weight in ((query, norm.query_weight), (key, norm.key_weight))
        )
    for row, (page, time) in enumerate(zip(page_B.tolist(), time_B.tolist(), strict=True)):
        key_PnTh[page, :, time] = rotate_pairs(key[row], cos_Bh[row], sin_Bh[row])
        value_PnTh[page, :, time] = value[row]
    return rotate_pairs(query, cos_Bh[:, None, None], sin_Bh[:, None, None])


HEADS = {
    "plain": (3, 2, 1, 16, None),
    "grouped, full width": (5, 3, 2, 32, "full"),
    "by head": (2, 1, 5, 64, "by head"),
    "odd width": (4, 2, 2, 80, "full"),
}
