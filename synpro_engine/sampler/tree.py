"""Reading many prompts that begin alike: each common beginning once, in one sequence without padding.

The prompts are laid out as a tree of tokens, in the order of a walk that visits a token before all that follow it.
Every token stands at its own prompt's position and sees its own beginning alone, so what is read is what each prompt
would give by itself.

Shape suffixes: N tokens of a tree, R rows asked for, Q and K queries and keys of a block, H model width, n key heads,
r query heads per key head, h head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_engine.model.weights import BlockWeights
from synpro_engine.sampler.decode import Decoder

READING = 2
"""Raised where the numbers that are read become others: what is kept of them goes by it. 2: angles in fp32."""
_QUERIES = 256
"""Tokens whose attention is computed together: with more of them most of a block is masked."""


@dataclass(frozen=True, kw_only=True)
class PromptTree:
    """Prompts by their common beginnings; int64 tensors on the CPU.

    token_N: ids, in the walk's order. position_N: each token's place in its prompt. end_N: one past the last token that
    stands below it, so that token i sees j where j <= i < end_N[j]. row_R: where the last token of each prompt stands.
    """

    token_N: Tensor
    position_N: Tensor
    end_N: Tensor
    row_R: Tensor

    def blocks(self) -> Iterator[Block]:
        """The tokens in turn, a block at a time, with the keys that any of them sees."""
        place_N = torch.arange(len(self.token_N))
        for begin in range(0, len(place_N), _QUERIES):
            query_Q = place_N[begin : begin + _QUERIES]
            before = slice(0, begin + len(query_Q))
            seen_QK = (place_N[before] <= query_Q[:, None]) & (query_Q[:, None] < self.end_N[before])
            key_K = seen_QK.any(0).nonzero()[:, 0]
            yield Block(slice(begin, begin + len(query_Q)), key_K, seen_QK[:, key_K])


class Block(NamedTuple):
    """Queries next to each other, the places of the keys that they see, and which of these each of them sees."""

    queries: slice
    key_K: Tensor
    seen_QK: Tensor


def prompt_tree(prompts: Sequence[Sequence[int]]) -> PromptTree:
    """The tree of prompts, none of them empty, with a row for each in the order given."""
    tokens, positions, ends, rows = list[int](), list[int](), list[int](), [0] * len(prompts)
    path: list[int] = []  # where the tokens of the latest prompt stand
    for index in _alike(prompts):
        prompt = prompts[index]
        assert prompt, "an empty prompt has no last token"
        shared = common(prompt, [tokens[place] for place in path])
        for place in path[shared:]:
            ends[place] = len(tokens)
        path = [*path[:shared], *range(len(tokens), len(tokens) + len(prompt) - shared)]
        tokens += prompt[shared:]
        positions += range(shared, len(prompt))
        ends += [0] * (len(prompt) - shared)
        rows[index] = path[-1]
    for place in path:
        ends[place] = len(tokens)
    return PromptTree(
        token_N=torch.tensor(tokens), position_N=torch.tensor(positions), end_N=torch.tensor(ends),
        row_R=torch.tensor(rows),
    )  # fmt: skip


def _alike(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Indices in the order of the ids, in which prompts that begin alike are neighbours."""
    return sorted(range(len(prompts)), key=lambda index: tuple(prompts[index]))


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def passes(prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Indices of prompts to be read together, trees of at most so many tokens; a longer prompt stands alone.

    In the order of their ids, so that what begins alike is read together.
    """
    chosen, size, before = list[int](), 0, list[int]()
    for index in _alike(prompts):
        prompt = prompts[index]
        more = len(prompt) - common(prompt, before)
        if chosen and size + more > most:
            yield chosen
            chosen, size, more = [], 0, len(prompt)
        chosen.append(index)
        size, before = size + more, list(prompt)
    if chosen:
        yield chosen


class TreeReader(Decoder):
    """A model's own parameters, as `Decoder` has them, that read trees of prompts."""

    @torch.no_grad()
    def hidden(self, tree: PromptTree) -> Tensor:
        """Hidden states [R, H] after the final norm, behind each prompt's last token.

        Tensor-parallel ranks call with the same tree.
        """
        tables = self._rotation(tree.position_N.to(self.device))
        blocks = [Block(part, key_K.to(self.device), seen.to(self.device)) for part, key_K, seen in tree.blocks()]

        def attend(block: BlockWeights, mixed: Tensor) -> Tensor:
            query_Nnrh, key_Nnh, value_Nnh = self._heads(block, mixed, tables)
            return torch.cat([_attention(query_Nnrh[part.queries], key_Nnh, value_Nnh, part) for part in blocks])

        hidden_NH = self._embed(tree.token_N.to(self.device))
        for block in self._blocks:
            hidden_NH = self._block(block, hidden_NH, attend)
        return self._norm(hidden_NH[tree.row_R.to(self.device)], self._final_norm)

    @torch.no_grad()
    def logits(self, hidden_RH: Tensor, id_R: Tensor) -> Tensor:
        """The logit [R] of one id behind each of these states, fp32, the same on each tensor-parallel rank."""
        local_R = id_R.to(self.device) - self._vocab_start
        elsewhere_R = (local_R < 0) | (local_R >= self._output.shape[0])
        weight_RH = self._output[local_R.masked_fill(elsewhere_R, 0)].float()
        # One rank holds the row of an id and the others add 0.
        return self._reduce((hidden_RH.float() * weight_RH).sum(-1).masked_fill(elsewhere_R, 0.0))


def _attention(query_Qnrh: Tensor, key_Nnh: Tensor, value_Nnh: Tensor, block: Block) -> Tensor:
    """Attention of a block, [Q, n r h]."""
    Q, n, r, h = query_Qnrh.shape
    # The query heads of a key head as further queries: no kernel has to know of groups, and none copies keys.
    query = query_Qnrh.permute(1, 2, 0, 3).reshape(1, n, r * Q, h)
    key, value = (x[block.key_K].transpose(0, 1)[None] for x in (key_Nnh, value_Nnh))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=block.seen_QK.repeat(r, 1))
    return out.view(n, r, Q, h).permute(2, 0, 1, 3).reshape(Q, -1)
