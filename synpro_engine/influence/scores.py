"""Influence of token sequences by two forwards: I(x) = L(x; theta) - L(x; theta').

L is the mean token cross-entropy, without z-loss, over exactly the tokens of x. Positive: what the probe
learnt from the reference data also lowers the loss on x, so training on x should help the reference
(SynPro, arXiv 2605.17849). Knows token ids only; texts and tokenizers are the caller's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synpro_engine.influence.sequences import sequence_logprobs
from synpro_engine.model.model import Model


@dataclass(frozen=True)
class InfluenceScore:
    """The influence of one sequence. Losses are nats per token; `value` = loss_theta - loss_probe."""

    value: float
    loss_theta: float
    loss_probe: float
    tokens: int
    shares: tuple[float, ...]
    """Each token's part of `value`; they sum to it."""


class Influence:
    """Scores sequences against one displacement theta -> theta'; a sequence that comes again is not computed again.

    theta, probe: models of one shape on one topology, whose weights must not change while this lives (a call
    after a change is an error, for the kept scores would be stale). Every rank of the tensor and pipeline axes
    must call `score` with the same sequences; data-parallel ranks may score different ones.
    """

    def __init__(self, theta: Model, probe: Model, *, start_id: int, micro_batch: int = 16, keep: int = 4096) -> None:
        """start_id: the id that separates documents, the context of a sequence's first token.

        keep: scores remembered for sequences that come again (a group's source, say); the oldest go first.
        """
        if theta.config != probe.config:
            raise ValueError("theta and probe must be models of the same configuration")
        self._models = (theta, probe)
        self._start_id = start_id
        self._micro_batch = micro_batch
        self._keep = keep
        self._known: dict[bytes, InfluenceScore] = {}
        self._fingerprint = self._weights()
        self.forwards = 0
        """Sequences that went through both models so far (a kept one does not count again)."""

    def _weights(self) -> list[float]:
        """Sums over some hundred entries of every parameter: an optimizer step moves them, whatever wrote it.

        (A tensor's version counter does not see writes through another view of its storage, as optimizers make.)
        """
        parameters = [p.detach().flatten() for model in self._models for p in model.parameters()]
        return torch.stack([p[:: max(1, len(p) // 256)].double().sum() for p in parameters]).tolist()

    def score(self, sequences: Sequence[Sequence[int]]) -> list[InfluenceScore]:
        """Score token-id sequences of any length; an empty sequence scores 0 with 0 tokens."""
        if self._weights() != self._fingerprint:
            raise RuntimeError("the weights changed since this Influence was made: its kept scores are stale")
        keys = [hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes()).digest() for ids in sequences]
        fresh = {key: ids for key, ids in zip(keys, sequences, strict=True) if key not in self._known}
        if fresh:
            sides = [
                sequence_logprobs(model, list(fresh.values()), start_id=self._start_id, micro_batch=self._micro_batch)
                for model in self._models
            ]
            self._known.update(zip(fresh, map(_score, *sides), strict=True))
            self.forwards += len(fresh)
        found = [self._known[key] for key in keys]
        for key in list(self._known)[: max(0, len(self._known) - self._keep)]:
            del self._known[key]
        return found


def _score(theta: Tensor, probe: Tensor) -> InfluenceScore:
    if not len(theta):
        return InfluenceScore(0.0, 0.0, 0.0, 0, ())
    shares = (probe - theta) / len(theta)
    loss_theta, loss_probe = -theta.mean().item(), -probe.mean().item()
    return InfluenceScore(loss_theta - loss_probe, loss_theta, loss_probe, len(theta), tuple(shares.tolist()))


class TextInfluence:
    """Influence of texts under the pretrained model's own tokenizer.

    The generator may have another tokenizer: then the text stands between the two. Where both share one
    (`same_tokenizer`), the generator's token ids go to the model as they are.
    """

    def __init__(self, influence: Influence, encode: Callable[[str], list[int]], *, same_tokenizer: bool) -> None:
        self._influence, self._encode, self._same = influence, encode, same_tokenizer

    def __call__(self, texts: Sequence[str], ids: Sequence[Sequence[int] | None] = ()) -> list[float]:
        """I of each text; `ids` are the generator's tokens that spell it, where there are such."""
        given = ids if self._same and ids else [None] * len(texts)
        sequences = [self._encode(text) if own is None else own for text, own in zip(texts, given, strict=True)]
        return [score.value for score in self._influence.score(sequences)]


def text_likelihood(
    model: Model, encode: Callable[[str], list[int]], *, start_id: int, micro_batch: int = 16
) -> Callable[[Sequence[str]], list[float]]:
    """Mean negative log-likelihood of texts under `model`, nats per token; infinite for a text without tokens."""

    def of(texts: Sequence[str]) -> list[float]:
        scored = sequence_logprobs(model, [encode(t) for t in texts], start_id=start_id, micro_batch=micro_batch)
        return [-logprobs.mean().item() if len(logprobs) else float("inf") for logprobs in scored]

    return of
