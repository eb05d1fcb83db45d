"""Dropout whose masks are functions of what they fall on: seed, step, layer, row of the global batch, place in it.

No generator is drawn from and no state is kept, so tensor-, sequence-, pipeline- and data-parallel ranks, micro-batches
of any size and a run that goes on make the same masks. It is there for the one pass that is handed a `Dropout` (see
`run_chunk`): whoever hands over none drops nothing.

Shape suffixes: S positions (a rank's own under sequence and context parallelism), Q those of queries (a rank's own
under context parallelism), B rows, H hidden width, n heads, W outputs of the generator, L layers and one for what is
before them, P places in a layer.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from synpro_engine.dist import Topology
from synpro_engine.model.context import ContextShare
from synpro_engine.model.dropout_config import DropoutConfig
from synpro_engine.model.dropped_attention import dropped_attention
from synpro_engine.model.masks import falls, lanes, output, without, words


class Place(enum.IntEnum):
    """Where a mask falls in a layer; layer 0 is of tokens and embeddings. The numbers are part of the masks."""

    TOKENS = 0
    EMBEDDING = 1
    WEIGHTS = 2
    ATTENTION = 3
    MLP = 4
    ATTENTION_ROW = 5
    MLP_ROW = 6


_ROW_OF = {Place.ATTENTION: Place.ATTENTION_ROW, Place.MLP: Place.MLP_ROW}


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """What is dropped of one micro-batch: by which rates, and the keys of its masks, int64 [L, P, B]."""

    config: DropoutConfig
    key_LPB: Tensor

    @classmethod
    def of(cls, config: DropoutConfig, row_B: Tensor, *, seed: int, step: int, layers: int) -> Dropout:
        """row_B: the rows' numbers in the global batch, int64 on the model's device. layers: of the whole model."""
        row_key_B = output(output(output(torch.zeros_like(row_B), seed), step), row_B)
        places = torch.arange((layers + 1) * len(Place), device=row_B.device)
        return cls(config=config, key_LPB=output(row_key_B, places[:, None]).unflatten(0, (layers + 1, -1)))

    def tokens(self, tokens_BS: Tensor) -> Tensor:
        """Input tokens [B, S] with `mask_token` for some of them."""
        if not self.config.tokens:
            return tokens_BS
        assert self.config.mask_token is not None  # checked by DropoutConfig
        length = tokens_BS.size(1)
        found = lanes(self._key(0, Place.TOKENS)[:, None], words(length, tokens_BS.device), length)
        return tokens_BS.masked_fill(falls(found, self.config.tokens), self.config.mask_token)

    def entries(self, x_SBH: Tensor, layer: int, place: Place, rate: float, position_S: Tensor) -> Tensor:
        """x with some of its entries dropped; position_S: in the sequence."""
        if not rate:
            return x_SBH
        width = x_SBH.size(-1)
        word_W = words(width, x_SBH.device)
        # By position and width alone, never by the length: sequence parallelism pads that.
        counter_S1W = (position_S[:, None] * len(word_W) + word_W)[:, None]
        found = lanes(self._key(layer, place)[:, None], counter_S1W, width)
        return without(x_SBH, falls(found, rate), rate)

    def rows(self, x_SBH: Tensor, layer: int, place: Place) -> Tensor:
        """x with some of its rows dropped whole."""
        rate = self.config.depth * layer / (self.key_LPB.size(0) - 1)
        if not rate:
            return x_SBH
        found = lanes(self._key(layer, place)[:, None], words(1, x_SBH.device), 1)
        return without(x_SBH, falls(found, rate), rate)

    def weights(self, row: int, weights_nQS: Tensor, layer: int, first_head: int, position_Q: Tensor) -> Tensor:
        """One row's weights of attention with some dropped; first_head: the whole model's number of the first."""
        rate, (heads, _, length) = self.config.attention, weights_nQS.shape
        head_n = torch.arange(first_head, first_head + heads, device=weights_nQS.device)
        key_n = output(self._key(layer, Place.WEIGHTS)[row], head_n)
        counter_QW = position_Q[:, None] * 2**32 + words(length, weights_nQS.device)
        return without(weights_nQS, falls(lanes(key_n[:, None, None], counter_QW, length), rate), rate)

    def _key(self, layer: int, place: Place) -> Tensor:
        return self.key_LPB[layer, place]


def dropouts(
    config: DropoutConfig,
    rows: Sequence[int],
    *,
    first_row: int,
    seed: int,
    step: int,
    layers: int,
    device: torch.device,
) -> list[Dropout] | None:
    """One for each micro-batch of a step, None where nothing is dropped.

    rows: how many each has. first_row: of this rank in the global batch; the micro-batches follow each other there.
    """
    if not config.drops:
        return None
    row = torch.arange(first_row, first_row + sum(rows), device=device)
    return [Dropout.of(config, row_B, seed=seed, step=step, layers=layers) for row_B in row.split(list(rows))]


@dataclass(frozen=True)
class _Handed:
    """What a chunk hands its blocks for one pass, as Megatron's `attention_bias`.

    That is an argument which reaches them whole, and is there again where a block runs again in the backward pass, when
    other micro-batches have been read. Nothing here has another use for it.
    """

    dropout: Dropout


class Dropping:
    """Hands the blocks of a chunk what is dropped of the micro-batch that it reads."""

    def __init__(self, topology: Topology) -> None:
        self._now: Dropout | None = None
        self._rank, self._parts = topology.tp.rank, topology.tp.size if topology.sequence_parallel else 1
        self._share = ContextShare(topology.cp)

    @classmethod
    def attached(cls, chunk: Any, topology: Topology) -> Dropping:
        """The one of Megatron's `chunk`."""
        dropping = cls(topology)
        for layer in chunk.decoder.layers:
            layer.dropping = layer.self_attention.core_attention.dropping = BlockDropping(dropping, layer.layer_number)
        # Before the decoder and not within the embedding: who scores the embedding's output must see its gradient.
        chunk.decoder.register_forward_pre_hook(partial(dropping._before_blocks, chunk.pre_process), with_kwargs=True)
        return dropping

    @contextmanager
    def of(self, dropout: Dropout) -> Iterator[None]:
        """While the chunk reads this micro-batch."""
        self._now = dropout
        try:
            yield
        finally:
            self._now = None

    def positions(self, x_SBH: Tensor) -> Tensor:
        """Of the entries that this rank has: sequence parallelism's ranks have parts of one length, in their order."""
        parts = self._share.places(self._parts * x_SBH.size(0), x_SBH.device).chunk(self._parts)
        return parts[self._rank if self._parts > 1 else 0]

    def queries(self, query: Tensor) -> Tensor:
        """Positions of queries [Q, B, n, h], which attention has of all parts."""
        return self._share.places(query.size(0), query.device)

    def first_head(self, heads: int) -> int:
        """Number of this rank's first head, of so many."""
        return self._rank * heads

    def _before_blocks(self, embeds: bool, _module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._now is None:
            return None
        assert kwargs.get("attention_bias") is None
        handed: dict[str, Any] = {"attention_bias": _Handed(self._now)}
        if embeds:
            x_SBH, rate = kwargs["hidden_states"], self._now.config.embedding
            handed["hidden_states"] = self._now.entries(x_SBH, 0, Place.EMBEDDING, rate, self.positions(x_SBH))
        return args, kwargs | handed


class BlockDropping:
    """What one block drops of what it reads; layer: its number in the whole model, from 1."""

    def __init__(self, chunk: Dropping, layer: int) -> None:
        self._chunk, self.layer = chunk, layer
        self._now: Dropout | None = None

    @contextmanager
    def taking(self, handed: Any) -> Iterator[Any]:
        """While the block runs with this `attention_bias`; what is left of it for attention is yielded."""
        if not isinstance(handed, _Handed):
            yield handed
            return
        before, self._now = self._now, handed.dropout
        try:
            yield None
        finally:
            self._now = before

    def branch(self, x_SBH: Tensor, place: Place) -> Tensor:
        """What attention or MLP adds to the residual stream, as much of it as is kept."""
        now = self._now
        if now is None:
            return x_SBH
        x_SBH = now.entries(x_SBH, self.layer, place, now.config.residual, self._chunk.positions(x_SBH))
        return now.rows(x_SBH, self.layer, _ROW_OF[place])

    def attended(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
    ) -> Tensor | None:
        """Attention with dropped weights, [Q, B, n h]; None where none are. Keys and values are of whole sequences.

        Shapes are else as in `CausalAttention.forward`.
        """
        now = self._now
        if now is None or not now.config.attention:
            return None
        position_Q = self._chunk.queries(query)
        head = self._chunk.first_head(query.size(2))
        thin = partial(now.weights, layer=self.layer, first_head=head, position_Q=position_Q)
        return dropped_attention(query, key, value, position_Q, scale, thin, mask)
