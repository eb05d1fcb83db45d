"""Influence to first order, <grad L(x), v>, by one forward and one backward pass over a batch of sequences.

Every position's share is read off while the backward pass goes by (`capture`), so there is no weight gradient, of an
example or of the batch: the parameters are frozen and linear layers compute activation gradients only. A token's share
is by site: what the layers contribute at the position that predicts it, be it to that token's loss or, by way of
attention, to those of later tokens. (Shares by loss token would need a backward pass each; two forwards and the slow
estimators give those.)

A real step on x would clip its gradient. Where scores are to follow that, weight gradients are formed after all, text
by text (`gradient_norms`), and a score is of the clipped gradient: one norm a text, of all its windows.

Exact under tensor, sequence and pipeline parallelism, of whole sequences: each rank adds up its shards, then the ranks
sum one number a token. The layers' formulas are in `layer_dots`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from synpro_engine.dist import sum_over
from synpro_engine.influence.batching import (
    WindowBatch,
    batches_by_sequence,
    by_sequence,
    forward_backward,
    frozen,
    separate_documents,
    window_batches,
)
from synpro_engine.influence.directions import Direction, check_has_length, clip_factor, displaced
from synpro_engine.influence.estimator import At, Remembered, SequenceScore, SharesBy, score_of
from synpro_engine.influence.first_order.capture import Capture
from synpro_engine.influence.first_order.gradient_norms import GradientNorms
from synpro_engine.influence.first_order.output_layer import output_pass
from synpro_engine.model.model import Model
from synpro_engine.train.parking import Reading

_MICROBATCHES_A_STAGE = 4  # of one schedule: what fills a pipeline


class DotInfluence:
    """<grad L(x), v> for one direction or several, all from one backward pass.

    The model's weights must not change while this lives. At the midpoint theta - v/2 the estimate agrees with two
    forwards up to third order in v; midpoints differ by direction, so there it takes exactly one.
    """

    shares_by: SharesBy = "site"

    def __init__(
        self,
        model: Model,
        directions: Direction | Mapping[str, Direction],
        *,
        start_id: int,
        at: At = "theta",
        micro_batch: int = 16,
        clip: float = 0.0,
        packed: bool = False,
        keep: int = 4096,
    ) -> None:
        """start_id: the id that separates documents, the context of a sequence's first token.

        clip: multiply the score of a sequence by min(1, clip / norm of its mean loss's gradient by the parameters that
        the directions name), as clipping does in a step on it alone; a micro-batch is then of one sequence. 0 for none.
        packed: several sequences in a row of the model's length, for speed. keep: sequences remembered.
        """
        if clip > 0 and packed:
            raise ValueError("packed: a gradient norm is of one text at a time, so not with `clip`")
        named = {"": directions} if isinstance(directions, Direction) else dict(directions)
        if not named:
            raise ValueError("directions: at least one is needed")
        if at == "midpoint" and len(named) > 1:
            raise ValueError("at: every direction has a midpoint of its own; score them one by one, or at theta")
        if at == "midpoint":
            check_has_length(next(iter(named.values())), "at: a midpoint")
        self.names = tuple(named)
        self._model, self._start_id, self._packed, self._clip = model, start_id, packed, clip
        self._micro_batch = micro_batch
        self._to_midpoint = named[self.names[0]] if at == "midpoint" else None
        self._capture = Capture(model, list(named.values()))
        self._remembered = Remembered([model], self._measure, keep)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[SequenceScore]:
        """Scores along the first direction, with the values along the `others`; see `Estimator.score`."""
        return [
            replace(first, others={name: score.value for name, score in zip(self.names[1:], rest, strict=True)})
            for first, *rest in self._remembered(sequences)
        ]

    def reads(self) -> Reading:
        """See `Estimator.reads`."""
        beside = self._to_midpoint.tensors.values() if self._to_midpoint is not None else ()
        return Reading((self._model,), (*self._capture.directions.values(), *beside))

    def score_each(self, sequences: Sequence[Sequence[int]]) -> dict[str, list[SequenceScore]]:
        """Scores by direction."""
        by_sequence = self._remembered(sequences)
        return {name: [scores[k] for scores in by_sequence] for k, name in enumerate(self.names)}

    def _measure(self, sequences: list[Sequence[int]]) -> list[tuple[SequenceScore, ...]]:
        seq_len = self._model.config.seq_len
        # Over what the directions name: a direction is made along what is trained, and training clips the norm of that.
        norms = GradientNorms(self._model, list(self._capture.directions)) if self._clip > 0 else None
        batches, values, factors = self._batches(sequences), [], [1.0] * len(sequences)
        v = self._to_midpoint
        # Around all batches: the midpoint's weights are a copy of the model, made once a call.
        with contextlib.nullcontext() if v is None else displaced(self._model, v, -0.5):
            for run in self._runs(batches):
                values += self._run(run, norms)
                if norms is not None:
                    # A text's norm is known after its last micro-batch, which may be in a later run than its first.
                    ended = [batch.places[-1].window.sequence for batch in run if batch.ends]
                    for index, norm in zip(ended, norms.value().tolist(), strict=True):
                        # The sum of its losses was differentiated; a step is on their mean.
                        factors[index] = clip_factor(self._clip, norm / len(sequences[index]))
        lead = (len(self.names) + 1,)
        parted = by_sequence([len(ids) for ids in sequences], batches, values, lead=lead)
        return [
            tuple(score_of(factor * shares_T, part[-1], seq_len) for shares_T in part[:-1])
            for factor, part in zip(factors, parted, strict=True)
        ]

    def _batches(self, sequences: Sequence[Sequence[int]]) -> list[WindowBatch]:
        start_id, seq_len, size = self._start_id, self._model.config.seq_len, self._micro_batch
        if self._clip > 0:
            return batches_by_sequence(sequences, start_id=start_id, seq_len=seq_len, micro_batch=size)
        return window_batches(sequences, start_id=start_id, seq_len=seq_len, micro_batch=size, packed=self._packed)

    def _runs(self, batches: list[WindowBatch]) -> Iterator[list[WindowBatch]]:
        """What one schedule runs: one micro-batch, or enough to fill a pipeline."""
        stages = self._model.topology.pp.size
        # p stages idle for (p - 1) / (m + p - 1) of the time of m micro-batches: less than a fifth at m = 4 p.
        size = 1 if stages == 1 else _MICROBATCHES_A_STAGE * stages
        for at in range(0, len(batches), size):
            yield batches[at : at + size]

    def _run(self, batches: list[WindowBatch], norms: GradientNorms | None) -> list[Tensor]:
        """[K + 1, B, S] of each micro-batch: shares along each direction, log-probabilities; fp64, on every rank.

        norms: what listens to weight gradients, where these are wanted; else none are formed.
        """
        model, capture = self._model, self._capture
        topology = model.topology
        rows, columns = (max(batch.tokens_BS.size(dim) for batch in batches) for dim in (0, 1))
        run = [batch.padded(rows, columns) for batch in batches]  # of one shape, as a schedule wants them
        logprobs: list[Tensor] = []  # of each micro-batch, on the last stage

        def loss(index: int, hidden_BSH: Tensor) -> Tensor:
            objective, logprob_BS = self._loss(hidden_BSH, run[index].labels_BS.to(topology.device))
            logprobs.append(logprob_BS)
            return objective

        tokens = [batch.tokens_BS for batch in run]
        # Frozen, a weight is multiplied three times (forward, gradient of the input, direction); with norms, four
        # times.
        weight_gradients = frozen(model) if norms is None else norms.attached(tokens, [batch.ends for batch in batches])
        with separate_documents(model, run), weight_gradients, capture.attached(frozen=norms is None):
            forward_backward(model, tokens, loss)
        results = []
        for index in range(len(run)):
            shares_KBS = capture.shares[index].values_KSB.mT[..., : tokens[index].size(1)]
            # Whole on every tensor-parallel rank of the last stage, unlike shares: one of them counts.
            counts = bool(logprobs) and topology.tp.rank == 0
            logprob_BS = logprobs[index] if counts else torch.zeros_like(shares_KBS[0])
            parts = torch.cat([shares_KBS, logprob_BS.double()[None]])
            # The ranks' parts meet once, behind all layers: a number for each token and direction, in fp64.
            results.append(sum_over(topology.pp, sum_over(topology.tp, parts)))
        return results

    def _loss(self, hidden_BSH: Tensor, labels_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(a scalar with the gradient of the summed losses, log-probabilities [B, S]); adds the output's shares."""
        model, capture, (rows, columns) = self._model, self._capture, labels_BS.shape
        tp = model.topology.tp
        output = output_pass(
            # Detached: the pass makes hidden's gradient itself, from the one set of logits.
            hidden_BSH.detach().flatten(0, 1),
            model.output_weight(),
            capture.output_direction(),
            labels_BS.flatten(),
            vocab_start=model.vocab_start,
            group=tp.group if tp.size > 1 else None,
            slope=-1.0,
            weight_gradient=self._clip > 0 and model.output_weight() in capture.directions,
        )
        if len(output.target_KT):
            shares_KBS = (output.mean_KT - output.target_KT).unflatten(1, (rows, columns))
            capture.shares_at(-1).values_KSB[:, :columns] += shares_KBS.mT
        assert output.grad_hidden_TH is not None
        # Its gradients are those that the output pass has made already; autograd goes on from there.
        objective = (hidden_BSH * output.grad_hidden_TH.view_as(hidden_BSH)).sum()
        if output.grad_weight_VH is not None:  # through autograd too: that is where norms are read
            objective = objective + (model.output_weight() * output.grad_weight_VH).sum()
        return objective, output.logprob_T.view(rows, columns)
