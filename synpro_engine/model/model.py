"""A decoder on this rank: Megatron's chunks behind one small, typed face.

It runs forward and hands out its tensors; reading and writing them all is in `state`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.data import IGNORE
from synpro_engine.dist import Topology
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.context import ContextShare
from synpro_engine.model.dropout import Dropout
from synpro_engine.model.offload import Offload
from synpro_engine.model.shared_rows import RowRotary, SharedRows, check_reads_shared_rows
from synpro_engine.model.trunk import Trunk, only_above
from synpro_engine.model.weights import BlockWeights, HeadCounts, blocks_of
from synpro_kernels import (
    CrossEntropy,
    Distilled,
    LogProbs,
    Teacher,
    linear_cross_entropy,
    linear_distill,
    linear_logprob,
    linear_logprob_definition,
)
from synpro_kernels.common.transfer import to_device


@dataclass(frozen=True)
class Model:
    """One model on one rank. `chunks` are Megatron modules: one, or `topology.vpp` of them when interleaved.

    The last stage's last chunk returns hidden states after the final norm, [b, s, H] with the sequence
    whole, or this rank's share of it under context parallelism; there are no logits. Multiply by `output_weight()`, or
    better, use `logprobs_from_hidden`.
    """

    config: ModelConfig
    topology: Topology
    chunks: list[GPTModel]
    dtype: torch.dtype

    @property
    def megatron_config(self) -> TransformerConfig:
        """Megatron's settings, one object shared by all chunks; schedules read their hooks from it."""
        return self.chunks[0].config

    @cached_property
    def head_counts(self) -> HeadCounts:
        """Attention heads on this tensor-parallel rank."""
        config, size = self.config, self.topology.tp.size
        return HeadCounts(heads=config.heads // size, kv_heads=config.kv_heads // size, head_dim=config.head_size)

    @property
    def share(self) -> ContextShare:
        """What this rank has of each sequence."""
        return ContextShare(self.topology.cp)

    @property
    def vocab_start(self) -> int:
        """First token id of this rank's rows of the vocabulary matrices."""
        # Exact, as `check_layout` has made sure. Ranks hold equal ranges of rows in rank
        # order, as Megatron's embedding does.
        return self.config.vocab_size // self.topology.tp.size * self.topology.tp.rank

    def arrive(self) -> None:
        """Wait for weights that a trainer has under way from other ranks. Not collective.

        Every reader here does, and modules for their own when they are called; who reads weights off `chunks` in
        another way asks first.
        """
        for chunk in self.chunks:
            getattr(chunk, "arrive", _nothing)()

    def blocks(self) -> list[BlockWeights]:
        """The blocks on this rank, in the order of the layers; the modules' own tensors."""
        self.arrive()
        return blocks_of(self.chunks)

    def embedding_weight(self) -> Parameter | None:
        """[V/tp, H] on the first stage, else None."""
        self.arrive()
        chunk: Any = self.chunks[0]
        return chunk.embedding.word_embeddings.weight if chunk.pre_process else None

    def final_norm_weight(self) -> Parameter | None:
        """[H] on the last stage, else None."""
        self.arrive()
        chunk: Any = self.chunks[-1]
        return chunk.decoder.final_layernorm.weight if chunk.post_process else None

    def output_weight(self) -> Parameter:
        """[V/tp, H] of the output layer, on the last stage only; the embedding's own Parameter when both are here."""
        self.arrive()
        chunk: Any = self.chunks[-1]
        assert chunk.post_process, "only the last pipeline stage holds the output layer"
        # Megatron's method knows whether the tied weight is the embedding itself or the last stage's copy of it.
        return chunk.shared_embedding_or_output_weight() if self.config.tie_embeddings else chunk.output_layer.weight

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """This rank's parameters, each once, with Megatron's names (prefixed `chunk<i>.` when interleaved)."""
        self.arrive()
        for index, chunk in enumerate(self.chunks):
            prefix = f"chunk{index}." if len(self.chunks) > 1 else ""
            # torch names a shared Parameter once, by its first place: a tied output layer on the
            # same stage does not come again.
            yield from chunk.named_parameters(prefix=prefix.rstrip("."))

    def parameters(self) -> Iterator[Parameter]:
        """This rank's parameters, each once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def train(self, mode: bool = True) -> None:
        """Set Megatron's training flag on every chunk (recomputation reads it; dropout does not)."""
        for chunk in self.chunks:
            chunk.train(mode)

    def hidden(self, tokens_BS: Tensor, rows: SharedRows | None = None, trunk: Trunk | None = None) -> Tensor:
        """Hidden states after the final norm, [B, S, H] or this rank's share, without a pipeline; differentiable.

        Position i sees tokens 0..i, so padding on the right changes nothing before it; with `rows`, where several
        continuations share a beginning, what they say. `trunk`: what the first blocks made of them before. All
        tensor- and context-parallel ranks must call with the same tokens.
        """
        assert self.topology.pp.size == 1, "a pipeline runs through Megatron's schedule"
        hidden_BSH = run_chunk(self.chunks[0], self.pad(tokens_BS, rows), rows, trunk)
        return self.unpadded(hidden_BSH, tokens_BS.size(1))

    def unpadded(self, hidden_BSH: Tensor, length: int) -> Tensor:
        """Hidden states of rows of `length` tokens without the columns that `pad` added; a share keeps its own."""
        return hidden_BSH[:, :length] if self.topology.cp.size == 1 else hidden_BSH

    def own_columns(self, x_BS: Tensor, fill: int = IGNORE) -> Tensor:
        """What of x, by whole rows, belongs to the hidden states that this rank has of them; padding is `fill`."""
        if self.topology.cp.size == 1:
            return x_BS
        return self.share.of(F.pad(x_BS, (0, -x_BS.size(1) % self._multiple), value=fill), 1)

    @property
    def _multiple(self) -> int:
        """What the length of rows is padded to a multiple of."""
        return self.share.multiple(self.topology.tp.size if self.topology.sequence_parallel else 1)

    def pad(self, tokens_BS: Tensor, rows: SharedRows | None = None) -> Tensor:
        """Move to this rank's device and pad on the right to a length that goes into the ranks' parts."""
        length = tokens_BS.size(1)
        # Continuations that share a row make it longer, and stand where they would stand by themselves.
        longest = length if rows is None else rows.longest
        assert longest <= self.config.seq_len, f"{longest} tokens exceed model.seq_len = {self.config.seq_len}"
        # The padding's content is of no matter: causal attention keeps it from all positions before it.
        return F.pad(to_device(tokens_BS, self.topology.device), (0, -length % self._multiple))

    def logprobs_from_hidden(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        materialised: bool = False,
    ) -> LogProbs:
        """Log-probabilities of `target` (global token ids, -100 ignored) under softmax(hidden W^T / temperature).

        hidden [..., H] and target [...] are the same on all tensor-parallel ranks; results are fp32 [...] and
        whole on each, and so are the gradients. `materialised` holds every logit, for comparison. On the last pipeline
        stage only.
        """
        score = linear_logprob_definition if materialised else linear_logprob
        return score(hidden, target=target, temperature=temperature, entropy=entropy, **self.output_layer())

    def cross_entropy_from_hidden(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        z_loss: float = 0.0,
        along: Tensor | None = None,
        along_tokens: bool = False,
    ) -> CrossEntropy:
        """Sums over `target` of -log p and of the z-loss, with gradients made in the forward pass.

        Arguments as in `logprobs_from_hidden` and `linear_cross_entropy`. The gradient of an output weight that is
        trained in buffers goes there past autograd. On the last pipeline stage only.
        """
        return linear_cross_entropy(
            hidden,
            target=target,
            z_loss=z_loss,
            reduction="sum",
            into_main_grad=self.output_trains_in_buffers(),
            along=along,
            along_tokens=along_tokens,
            **self.output_layer(),
        )

    def distill_from_hidden(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        teachers: Sequence[tuple[Model, Tensor]],
        mixture: Sequence[float] | None = None,
        share: float,
        temperature: float,
        z_loss: float = 0.0,
    ) -> Distilled:
        """Sums as of `cross_entropy_from_hidden`, a share of them the divergence from teachers; see `linear_distill`.

        teachers: models over the same vocabulary in the same layout, each with its hidden states of the same tokens.
        """
        return linear_distill(
            hidden,
            target=target,
            teachers=[Teacher(hidden_k, teacher.output_weight().detach()) for teacher, hidden_k in teachers],
            mixture=mixture,
            share=share,
            temperature=temperature,
            z_loss=z_loss,
            into_main_grad=self.output_trains_in_buffers(),
            **self.output_layer(),
        )

    def output_layer(self) -> dict[str, Any]:
        """weight, vocab_start and group, as the ops of `synpro_kernels` take them. On the last pipeline stage only."""
        tp = self.topology.tp
        group = tp.group if tp.size > 1 else None
        return {"weight": self.output_weight(), "vocab_start": self.vocab_start, "group": group}

    def output_trains_in_buffers(self) -> bool:
        """Whether the output weight's gradient is summed in a trainer's fp32 buffers (Megatron's `main_grad`)."""
        weight = self.output_weight()
        # Set by Megatron's wrapper, so absent on models that nobody trains: those must get a
        # gradient through autograd or none.
        return weight.requires_grad and hasattr(weight, "grad_added_to_main_grad")


def _nothing() -> None: ...


def run_chunk(
    chunk: Any,
    tokens_BS: Tensor,
    rows: SharedRows | None = None,
    trunk: Trunk | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """Call a chunk (bare or wrapped for data parallelism) on whole sequences from position 0, or on shared rows.

    trunk: what its first blocks made of these very tokens and rows, which are then passed over. dropout: what is
    dropped, in this pass and in no other. Returns hidden states: [b, s, H] from the last stage, [s, b, H] (split under
    sequence parallelism) between; under context parallelism of this rank's share.
    """
    bare = getattr(chunk, "module", chunk)
    if dropout is not None:
        assert trunk is None, "what a trunk made was made of everything"
        with bare.dropping.of(dropout):
            return _read(chunk, dropout.tokens(tokens_BS), rows)
    if trunk is not None:
        with only_above(bare, trunk):
            return _read(chunk, tokens_BS, rows, decoder_input=trunk.hidden_SBH)
    return _read(chunk, tokens_BS, rows)


def _read(chunk: Any, tokens_BS: Tensor, rows: SharedRows | None, **given: Tensor) -> Tensor:
    offload: Offload | None = getattr(getattr(chunk, "module", chunk), "offload", None)
    if offload is None:
        return _read_here(chunk, tokens_BS, rows, **given)
    with offload.reading():
        return offload.expected(_read_here(chunk, tokens_BS, rows, **given))


def _read_here(chunk: Any, tokens_BS: Tensor, rows: SharedRows | None, **given: Tensor) -> Tensor:
    bare = getattr(chunk, "module", chunk)
    share: ContextShare = bare.share
    own_BS = share.of(tokens_BS, 1)
    if rows is None:
        positions_BS = share.places(own_BS.size(1), own_BS.device).expand_as(own_BS)
        # No mask: one of [s, s] would be built for every batch only to say what causal attention knows.
        return chunk(own_BS, positions_BS, None, **given)
    rows = rows.padded(tokens_BS.size(1))
    check_reads_shared_rows(bare)
    positions_BS = share.of(rows.position_BS, 1)
    rotary: RowRotary = bare.rotary_pos_emb
    with rotary.at(positions_BS):
        return chunk(own_BS, positions_BS, rows.bias(bare.config.params_dtype, share), **given)
