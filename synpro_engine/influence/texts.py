"""Influence and likelihood of texts: what the estimators say of token sequences, under the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from synpro_engine.influence.batching import sequence_logprobs
from synpro_engine.influence.estimator import Estimator
from synpro_engine.model.model import Model


class TextInfluence:
    """Influence of texts under the pretrained model's own tokenizer.

    The generator may have another tokenizer: then the text stands between the two. Where both share one
    (`same_tokenizer`), the generator's token ids go to the model as they are.
    """

    def __init__(self, influence: Estimator, encode: Callable[[str], list[int]], *, same_tokenizer: bool) -> None:
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
