"""What a model takes of a rank's memory and of a disk, counted from its shape and the layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from synpro_engine.dist import Layout
from synpro_engine.model.config import ModelConfig, Recompute
from synpro_engine.train.optimizer_config import OptimizerName
from synpro_kernels import cached_logits_bytes


@dataclass(frozen=True)
class Footprint:
    """Bytes of one model in `dtype`, on the fullest rank of `layout`.

    Counted is what grows with the model: not the device's own context, nor what an allocator keeps of what was freed.
    Activations are those that the fused operations keep (Triton's, csrc's); plain PyTorch in their place keeps more.
    """

    model: ModelConfig
    layout: Layout
    dtype: torch.dtype
    optimizer: OptimizerName = "adamw"
    recompute: Recompute = "none"
    averages: int = 0
    """Averages of the weights that training keeps."""
    apart: bool = False
    """Whether documents, or completions, that share a row are kept apart, by a mask."""
    offload_layers: int = 0
    """Layers of the whole model whose activations wait on the host."""
    gpu: bool = False
    """Whether it is on a GPU, where a mask, or fp32, takes a key head for each query head."""

    @property
    def weights(self) -> float:
        """To read only, as a reference policy or the models that rewards ask."""
        return self._parameters * self.dtype.itemsize

    @property
    def training(self) -> float:
        """Weights, fp32 gradients, and this rank's part of what the optimizer keeps, which replicas share.

        That is fp32 weights beside half ones, and two moments; for Muon's matrices one. An average is as large as one.
        """
        return self._trained(self._parameters) - 4 * self._of_muon / self.layout.replicas

    def partly(self, blocks: int) -> float:
        """The same where so many blocks from the top train, and the rest is read only."""
        return self.weights - self.weights_of(blocks) + self._trained(self._of_blocks(blocks))

    def weights_of(self, blocks: int) -> float:
        """Of so many blocks, to read only."""
        return self._of_blocks(blocks) * self.dtype.itemsize

    def adapting(self, rank: int, blocks: int) -> float:
        """Weights to read only, and low-rank adapters of that rank on so many blocks, which train in place of them."""
        model = self.model
        query, key = model.heads * model.head_size, model.kv_heads * model.head_size
        # A and B of each product: of q, k and v together, of attention's output, of gates and ups, of the way down.
        sides = 4 * model.d_model + 2 * query + 2 * key + 3 * model.ffn
        return self.weights + self._trained(rank * sides * blocks / (self.layout.pp * self.layout.tp))

    def activations(self, rows: int, length: int) -> float:
        """What the forward passes of `rows` sequences keep for the backward pass.

        By an attention that keeps no matrix of weights. A pipeline's first stage has as many micro-batches in hand as
        there are stages, so that its fewer layers make no difference; more, where the schedule is interleaved. What is
        made again is held for one layer at once.
        Context-parallel ranks keep their shares, and whole sequences' keys and values. A mask is one for all layers of
        a pass, of which an interleaved pipeline's first stage has more in hand. Of layers that wait on the host two are
        here: the one whose turn it is, and the next one; and what a chunk was sent by the stage before.
        """
        first, _ = self._passes
        masks = first * length if self.apart else 0
        _, again = self._of_a_layer()
        of_rows = rows * length / self.layout.cp * (first * self._of_a_pass + again + masks + self._input)  # last norm
        return (of_rows + self._mask_of_share(length)) * self.dtype.itemsize

    def logits(self, rows: int, length: int, *, trains: bool = True) -> float:
        """What the output layer's loss holds beyond `activations` of as many sequences, where it is `fused`.

        A block of logits, and the fp32 gradients of hidden states and, where it trains, of the weight, until the
        backward pass takes them. What that pass makes again is not there yet, and a pipeline's last stage, which has
        all this, has fewer micro-batches in hand than the first.
        """
        tokens, vocab = rows * -(-length // self.layout.cp), -(-self.model.vocab_size // self.layout.tp)
        gradients = 4.0 * self.model.d_model * (tokens + vocab * trains)
        block = cached_logits_bytes(tokens, vocab, on_gpu=self.gpu, itemsize=self.dtype.itemsize)
        first, last = self._passes
        _, again = self._of_a_layer()
        fewer = (first - last) * self._of_a_pass + again
        return max(0.0, block + gradients - tokens * fewer * self.dtype.itemsize)

    @property
    def _passes(self) -> tuple[int, int]:
        """Passes through a chunk of layers that the first stage, and the last one, have in hand at most."""
        pp, vpp = self.layout.pp, self.layout.vpp
        return (pp, 1) if vpp == 1 else (pp * (vpp + 1) - 1, pp * (vpp - 1) + 1)

    @property
    def _of_a_pass(self) -> float:
        """Numbers of a token that a pass through a chunk keeps on the device."""
        kept, _ = self._of_a_layer()
        whole = kept * self.model.layers - max(0, self._waiting - 2 * kept)
        return whole / (self.layout.pp * self.layout.vpp)

    def _mask_of_share(self, length: int) -> float:
        """Numbers of what says which keys a context-parallel share's queries see, of all rows and layers together."""
        cp = self.layout.cp
        # In half precision the kernels of a GPU know it by themselves.
        if cp == 1 or self.apart or (self.gpu and self.dtype != torch.float32):
            return 0.0
        # Of the two of 2 cp chunks that a rank has, one sees n + 1 chunks' keys, and the other 2 cp - n.
        return length**2 * (2 * cp + 1) / (2 * cp) ** 2

    def offloaded(self, rows: int, length: int) -> float:
        """What of `activations` waits on the host."""
        return rows * length / self.layout.cp * self._waiting * self.dtype.itemsize

    @property
    def _waiting(self) -> float:
        """Numbers of a token that wait on the host."""
        if not self.offload_layers:
            return 0.0
        chunks = self.layout.pp * self.layout.vpp
        layers = min(self.model.layers, -(-self.offload_layers // chunks) * chunks)
        # The schedule holds what a chunk was sent, its first layer's input, until the backward pass.
        return self._of_a_layer()[0] * layers - self._input * (chunks - 1)

    @property
    def _input(self) -> float:
        """Numbers of a token that a layer's input has on a rank."""
        return self.model.d_model / (self.layout.tp if self.layout.sequence_parallel else 1)

    def _of_a_layer(self) -> tuple[float, float]:
        """Numbers of a token that one layer keeps, and that are made again for one at a time."""
        model = self.model
        query, key = model.heads * model.head_size, model.kv_heads * model.head_size
        # Inputs of products and norms: q, k and v before rotation, whose v is read there; q and k behind it, and what
        # attention makes of them, with a number a head for its own backward pass.
        attention = 3 * query + 2 * key + model.heads
        copied = self.gpu and key < query and (self.apart or self.dtype == torch.float32)
        # Whole sequences' keys and values on each context-parallel rank; or copies, a key head for each query head.
        attention += 2 * self.layout.cp * (query if copied else key) if copied or self.layout.cp > 1 else key
        if model.qk_norm == "width":
            attention += query + key
        gated = 3 * model.ffn / self.layout.tp
        # What norms take and give is whole on each tensor-parallel rank, unless the sequence is split between them.
        whole = 4 * self._input
        attention /= self.layout.tp
        kept = {"none": attention + gated + whole, "mlp": attention + whole, "full": self._input}[self.recompute]
        again = {"none": 0.0, "mlp": gated, "full": attention + gated + whole}[self.recompute]
        return kept, again

    def teaching(self, tokens: float) -> float:
        """To read only, as a teacher of so many tokens a step, whose hidden states a pipeline's last stage holds."""
        ranks = self.layout.dp * self.layout.cp
        ahead = tokens / ranks * self.model.d_model * self.dtype.itemsize if self.layout.pp > 1 else 0.0
        return self.weights + ahead

    def hidden(self, tokens: float) -> float:
        """One block's output for the data-parallel ranks' tokens together."""
        ranks = self.layout.dp * (self.layout.tp if self.layout.sequence_parallel else 1)
        return tokens / ranks * self.model.d_model * self.dtype.itemsize

    def sampled(self, steps: int, products: torch.dtype) -> float:
        """Muon's momenta of so many steps, on the host until a direction is made of them; ranks share the matrices."""
        return steps * products.itemsize * self._of_muon / self.layout.replicas

    def saved(self, *, optimizer: bool = False) -> float:
        """A checkpoint of the whole model, on disk; the optimizer's part there has fp32 weights in any case."""
        whole = self.model.parameter_count()
        one_moment = self.model.parameter_count(embeddings=False) if self.optimizer == "muon" else 0
        state = (12 + 4 * self.averages) * whole - 4 * one_moment
        return whole * self.dtype.itemsize + (state if optimizer else 0)

    def _of_blocks(self, blocks: int) -> float:
        """Parameters of so many blocks on a rank."""
        each = self.model.parameter_count(embeddings=False) / self.model.layers
        return blocks * each / (self.layout.pp * self.layout.tp)

    def _trained(self, parameters: float) -> float:
        """So many parameters, their fp32 gradients, and a replica's share of AdamW's state."""
        # fp32 parameters are their own masters: Megatron's optimizer updates them in place.
        masters = 0 if self.dtype == torch.float32 else 4
        kept = masters + 8 + 4 * self.averages
        return parameters * (self.dtype.itemsize + 4 + kept / self.layout.replicas)

    @property
    def _parameters(self) -> float:
        """Of the fullest rank: its blocks, and an embedding or an output layer or both."""
        blocks, whole = self.model.parameter_count(embeddings=False), self.model.parameter_count()
        # A tied output layer on another stage is a second copy of the embedding, so that each
        # end holds one table either way.
        tables = (whole - blocks) / (2 if self.layout.pp > 1 and not self.model.tie_embeddings else 1)
        return (blocks / self.layout.pp + tables) / self.layout.tp

    @property
    def _of_muon(self) -> float:
        """Of the same rank: all but embedding and output layer, of which norms and biases are too few to count."""
        blocks = self.model.parameter_count(embeddings=False) / (self.layout.pp * self.layout.tp)
        return blocks if self.optimizer == "muon" else 0.0
