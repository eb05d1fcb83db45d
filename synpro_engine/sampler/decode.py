"""A transformer step as plain functions of a model's own parameters: reading prompts, then one token at a time.

Nothing is copied from the model: each product reads the parameter's storage, so an optimizer step is visible to the
next token. All families are here (where norms and biases stand), grouped-query heads, RoPE and tensor parallelism.
Equality with the model's own forward is tested, not assumed.

Shape suffixes: G groups (prompts), S prompt positions, B live rows, H model width, V vocabulary, n key heads, r query
heads per key head, h head width, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.backend.huge_pages import ask_for_huge_pages
from synpro_engine.config import UserError
from synpro_engine.model.layers import attention_of_groups
from synpro_engine.model.parked import check_here
from synpro_engine.model.rotary import cos_sin, inverse_frequencies
from synpro_engine.model.weights import BlockWeights, LowRank, grouped_qkv
from synpro_engine.sampler.cache import PAGE, CacheShape, PagePool
from synpro_kernels import (
    DecodeRows,
    HeadNorm,
    decode_attention,
    rms_norm,
    rotary,
    rotary_tables,
    skinny_linear,
    store_heads,
    swiglu,
)

if TYPE_CHECKING:  # settings and records of this package are read without Megatron
    from synpro_engine.model.model import Model

Attend = Callable[[BlockWeights, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Prompts to be read: tokens_GS right-padded, length_G of them real, behind known_G that are stored already.

    All int64. page_GX: each prompt's pages, the known ones first. `some_known`: whether any is.
    """

    tokens_GS: Tensor
    length_G: Tensor
    known_G: Tensor
    page_GX: Tensor
    some_known: bool


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one decoding step needs beside weights and tokens; the same for every layer. A row is a token that is fed.

    position_B: each row's place in its sequence, for RoPE. page_B and time_B: the page that its keys and values go to
    and their place in it. `rows` counts the fed token in: it is the last that its row sees.
    """

    position_B: Tensor
    page_B: Tensor
    time_B: Tensor
    rows: DecodeRows


class Decoder:
    """The functional transformer over `model`'s parameters on this tensor-parallel rank."""

    def __init__(self, model: Model) -> None:
        if model.topology.pp.size > 1:
            raise UserError(
                f"`{model.topology.key}.pp`: sampling needs all layers on each rank; set `generator.parallel.pp` to 1"
            )
        if model.topology.cp.size > 1:
            raise UserError(
                f"`{model.topology.key}.cp`: sampling needs whole sequences on each rank; set"
                " `generator.parallel.cp` to 1"
            )
        self.config = model.config
        self.tp = model.topology.tp
        self.device = model.topology.device
        self.dtype = model.dtype
        self.counts = model.head_counts
        # Parameters, not their data: an engine moves their storage, and a decoder that is older reads the new one.
        self._model, self._blocks = model, model.blocks()
        self._embedding, self._final_norm = _here(model.embedding_weight()), _here(model.final_norm_weight())
        self._output, self._vocab_start = model.output_weight(), model.vocab_start
        self._frequency = inverse_frequencies(self.config, self.device)
        ask_for_huge_pages(model.parameters())  # each step reads all of them

    def looked_at(self) -> Hashable:
        """See what blocks the model has by now, for adapters come and go; the places of all that a step reads of it.

        What was made of those places (a graph) is good while this is equal.
        """
        self._blocks = self._model.blocks()
        parts = [self._embedding, self._final_norm, self._output]
        parts += [part for block in self._blocks for part in vars(block).values() if isinstance(part, Parameter)]
        adapters = [adapter for block in self._blocks for adapter in block.lora.values()]
        parts += [part for adapter in adapters for part in (adapter.a, adapter.b)]
        return tuple((part.data_ptr(), part.shape) for part in parts), tuple(adapter.scale for adapter in adapters)

    @property
    def cache_shape(self) -> CacheShape:
        """What the cache must hold for this rank."""
        return CacheShape(
            layers=len(self._blocks),
            kv_heads=self.counts.kv_heads,
            head_dim=self.counts.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def prefill(self, given: Prefill, pool: PagePool) -> Tensor:
        """Read prompts, store their keys and values; the logits [G, V] after each prompt's last token."""
        G, S = given.tokens_GS.shape
        position_GS = given.known_G[:, None] + torch.arange(S, device=self.device)
        tables = self._rotation(position_GS)
        real_N = (torch.arange(S, device=self.device) < given.length_G[:, None]).flatten().nonzero()[:, 0]
        page_N = given.page_GX.gather(1, (position_GS // PAGE).clamp(max=given.page_GX.shape[1] - 1)).flatten()[real_N]
        time_N = position_GS.flatten()[real_N] % PAGE
        seen = None
        if given.some_known:
            seen = torch.arange(given.page_GX.shape[1] * PAGE, device=self.device) <= position_GS[:, None, :, None]

        def attend(block: BlockWeights, mixed: Tensor) -> Tensor:
            # Keys are stored rotated: a position's angle never changes, and no later step turns the cache again.
            query_GSnrh, key_GSnh, value_GSnh = self._heads(block, mixed, tables)
            pool.write(block.layer, page_N, time_N, *(part.flatten(0, 1)[real_N] for part in (key_GSnh, value_GSnh)))
            if seen is None:
                key, value = key_GSnh.transpose(1, 2), value_GSnh.transpose(1, 2)
            else:
                # What is known lies in pages alone; all of a prompt is read from there, where it was just written.
                key, value = (part[given.page_GX].transpose(1, 2).flatten(2, 3) for part in pool.of_layer(block.layer))
            query = query_GSnrh.flatten(2, 3).transpose(1, 2)
            # Padding stands behind every real token, so causality hides it from them.
            return attention_of_groups(query, key, value, seen).transpose(1, 2).flatten(2)

        hidden_GSH = self._embed(given.tokens_GS)
        for block in self._blocks:
            hidden_GSH = self._block(block, hidden_GSH, attend)
        # The head for one position a prompt: logits of all would be by far the largest tensor of the pass.
        return self._logits(hidden_GSH[torch.arange(G, device=self.device), given.length_G - 1])

    def step(self, token_B: Tensor, step: Step, pool: PagePool) -> Tensor:
        """Feed the rows' tokens; stores their keys and values and returns the logits [B, V] of what follows each.

        Nothing here reads a tensor on the host, so that a step can be queued before the one in front of it is done.
        """
        return self._logits(self.feed(token_B, step, pool))

    def feed(self, token_B: Tensor, step: Step, pool: PagePool) -> Tensor:
        """The same without the output layer: hidden states [B, H] behind the last block."""
        cos_Bh, sin_Bh = cos_sin(step.position_B, self._frequency)

        def attend(block: BlockWeights, mixed_BF: Tensor) -> Tensor:
            pages = pool.of_layer(block.layer)
            norm = self._head_norm(block, mixed_BF)
            query_Bnrh = store_heads(mixed_BF, cos_Bh, sin_Bh, *pages, step.page_B, step.time_B, norm)
            # Behind the write, for a fed token attends to itself, and to those that its sequence is fed before it.
            return decode_attention(query_Bnrh, *pages, step.rows).flatten(1)

        hidden_BH = self._embed(token_B)
        for block in self._blocks:
            hidden_BH = self._block(block, hidden_BH, attend)
        return hidden_BH

    def _rotation(self, position: Tensor) -> Tensor:
        """cos and sin [2, N, 1, h] of positions in their order, fp32: the tables that training turns heads by."""
        return rotary_tables(position.flatten()[:, None, None].to(torch.float32) * self._frequency)

    def _block(self, block: BlockWeights, hidden: Tensor, attend: Attend) -> Tensor:
        def attention(x: Tensor) -> Tensor:
            mixed = _adapted(skinny_linear(x, block.qkv, block.qkv_bias), x, block.lora.get("qkv"))
            heads = attend(block, mixed)
            return _adapted(skinny_linear(heads, block.proj), heads, block.lora.get("proj"))

        def feed_forward(x: Tensor) -> Tensor:
            gated = swiglu(_adapted(skinny_linear(x, block.fc1), x, block.lora.get("fc1")))
            return _adapted(skinny_linear(gated, block.fc2), gated, block.lora.get("fc2"))

        hidden = self._sublayer(block, block.attention_norm, hidden, attention)
        return self._sublayer(block, block.mlp_norm, hidden, feed_forward)

    def _sublayer(self, block: BlockWeights, norm: Tensor, hidden: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        if block.norm_after:
            # The ranks' parts are summed first: the norm of a part is no part of the norm.
            return hidden + self._norm(self._reduce(f(hidden)), norm)
        return hidden + self._reduce(f(self._norm(hidden, norm)))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, self.config.norm_eps)

    def _reduce(self, partial: Tensor) -> Tensor:
        """Sum what a row-parallel product left on each tensor-parallel rank."""
        if self.tp.size > 1:
            # Twice a layer on every tensor-parallel rank: ranks whose live rows differed would wait here for ever.
            dist.all_reduce(partial, group=self.tp.group)
        return partial

    def _heads(self, block: BlockWeights, mixed: Tensor, tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the fused product into rotated queries [..., n, r, h], rotated keys and values [..., n, h]."""
        query_key, value = grouped_qkv(mixed, self.counts)
        if block.q_norm is not None and block.k_norm is not None:
            if block.norm_by_head:
                parts = ((query_key[..., :-1, :], block.q_norm), (query_key[..., -1:, :], block.k_norm))
                query_key = torch.cat([self._norm(part, weight) for part, weight in parts], -2)
            else:
                query_key = self._full_width_norm(query_key, block.q_norm, block.k_norm)
        # As in training: computed in fp32, rounded once. Queries and keys turn together: half the small operations.
        rotated = rotary(query_key.flatten(0, -4), *tables).unflatten(0, query_key.shape[:-3])
        return rotated[..., :-1, :], rotated[..., -1, :], value

    def _full_width_norm(self, query_key: Tensor, q_norm: Tensor, k_norm: Tensor) -> Tensor:
        """RMSNorm of all ranks' queries together, and of all keys together; [..., n, r + 1, h]."""
        counts, r = self.counts, self.counts.queries_per_group
        scale = torch.rsqrt(self._mean_squares(query_key) + self.config.norm_eps)
        scale = torch.cat((scale[..., :1].expand(*scale.shape[:-1], r), scale[..., 1:]), -1)
        q_weight, k_weight = (w.view(counts.kv_heads, -1, counts.head_dim) for w in (q_norm, k_norm))
        weight = torch.cat((q_weight, k_weight), 1)
        return (query_key.float() * scale[..., None, :, None] * weight).to(query_key.dtype)

    def _mean_squares(self, query_key: Tensor) -> Tensor:
        """Of all ranks' queries and of all their keys, fp32 [..., 2]; from [..., n, r + 1, h]."""
        r = self.counts.queries_per_group
        squares = query_key.float().square().sum((-3, -1))  # [..., r + 1]
        # Queries and keys in one reduction, not two: a step of decoding waits for each.
        sums = torch.stack((squares[..., :r].sum(-1), squares[..., r]), -1)
        self._reduce(sums)
        sums[..., 0] /= self.config.heads * self.counts.head_dim
        sums[..., 1] /= self.config.kv_heads * self.counts.head_dim
        return sums

    def _head_norm(self, block: BlockWeights, mixed_BF: Tensor) -> HeadNorm | None:
        if block.q_norm is None or block.k_norm is None:
            return None
        means_B2 = None
        if self.tp.size > 1 and not block.norm_by_head:
            means_B2 = self._mean_squares(grouped_qkv(mixed_BF, self.counts)[0])
        return HeadNorm(
            query_weight=block.q_norm, key_weight=block.k_norm, eps=self.config.norm_eps, by_head=block.norm_by_head,
            means_B2=means_B2,
        )  # fmt: skip

    def _embed(self, tokens: Tensor) -> Tensor:
        check_here(self._embedding)
        if self.tp.size == 1:
            return F.embedding(tokens, self._embedding)
        local = tokens - self._vocab_start
        elsewhere = (local < 0) | (local >= self._embedding.shape[0])
        # Of the ranks one holds the row and the others add 0, so the sum is exact.
        rows = F.embedding(local.masked_fill(elsewhere, 0), self._embedding)
        return self._reduce(rows.masked_fill(elsewhere[..., None], 0.0))

    def _logits(self, hidden_BH: Tensor) -> Tensor:
        """Final norm and output layer, in fp32 as the log-prob op computes it; gathered over ranks, [B, V]."""
        hidden_BH = self._norm(hidden_BH, self._final_norm)
        logits_BV = skinny_linear(hidden_BH, self._output, wide=True)
        if self.tp.size == 1:
            return logits_BV
        # Of one size, as all_gather wants them: the vocabulary's size is a multiple of the ranks'.
        shards = [torch.empty_like(logits_BV) for _ in range(self.tp.size)]
        dist.all_gather(shards, logits_BV, group=self.tp.group)
        return torch.cat(shards, -1)


def _adapted(product: Tensor, x: Tensor, lora: LowRank | None) -> Tensor:
    """A product of x, with what its adapter adds: like the product, a rank's rows or its part of a sum."""
    if lora is None:
        return product
    return product.add_(skinny_linear(skinny_linear(x, lora.a), lora.b.flatten(0, 1)), alpha=lora.scale)


def _here(weight: Parameter | None) -> Parameter:
    assert weight is not None, "without a pipeline every rank holds embedding and final norm"
    return weight
