"""Influence of texts: the estimator that settings ask for, and what it says under the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from synpro_engine.config import UserError
from synpro_engine.influence.batching import sequence_logprobs
from synpro_engine.influence.config import EstimatorConfig
from synpro_engine.influence.directions import Direction, displacement
from synpro_engine.influence.estimator import Estimator, SequenceScore
from synpro_engine.influence.first_order import DotInfluence, JvpInfluence
from synpro_engine.influence.two_forward import FiniteDifferenceInfluence, TwoForwardInfluence
from synpro_engine.model.model import Model
from synpro_engine.train.parking import Reading


def build_estimator(
    config: EstimatorConfig,
    theta: Model,
    probe: Model | Direction,
    *,
    start_id: int,
    keep: int = 4096,
    others: Mapping[str, Direction] | None = None,
) -> Estimator:
    """The estimator of `config` for theta and its probe, given as a model or as a direction, as theta - theta' is.

    start_id: the id that separates documents. keep: sequences remembered. others: further directions, by name, whose
    values each score brings with it (`SequenceScore.others`). Raises UserError where the setting does not fit the
    layout, the weights' precision or the directions.
    """
    try:
        config = config.resolved(tangent=isinstance(probe, Direction) and probe.tangent)
        several = others if others and config.estimator == "dot" and config.at == "theta" else {}
        return _built(config, theta, probe, start_id, keep, several)
    # Estimators know tensors, not settings: what does not fit is named here by the key that can be changed.
    except ValueError as error:
        raise UserError(f"`estimator` {config.estimator}: {error}") from error


def _built(
    config: EstimatorConfig,
    theta: Model,
    probe: Model | Direction,
    start_id: int,
    keep: int,
    others: Mapping[str, Direction],
) -> Estimator:
    size, packed, at = config.micro_batch, config.packed, config.at
    if config.estimator == "two_forward":
        return TwoForwardInfluence(theta, probe, start_id=start_id, micro_batch=size, packed=packed, keep=keep)
    # These estimators need theta' for this difference alone and hold no reference to it.
    v = displacement(theta, probe) if isinstance(probe, Model) else probe
    if config.estimator == "dot":
        clip, named = config.clip or 0.0, {"": v, **others}
        return DotInfluence(
            theta, named, start_id=start_id, at=at, micro_batch=size, clip=clip, packed=packed, keep=keep
        )
    if config.estimator == "jvp":
        return JvpInfluence(theta, v, start_id=start_id, at=at, micro_batch=size, keep=keep)
    return FiniteDifferenceInfluence(theta, v, start_id=start_id, at=at, step=config.step, micro_batch=size, keep=keep)


class TextInfluence:
    """Influence of texts under the pretrained model's own tokenizer.

    The generator may have another tokenizer: then the text stands between the two. Where both encode alike
    (`same_tokenizer`), what the generator's made of a text need not be made again.
    """

    def __init__(self, estimator: Estimator, encode: Callable[[str], list[int]], *, same_tokenizer: bool) -> None:
        self._estimator, self._encode, self._same = estimator, encode, same_tokenizer

    def reads(self) -> Reading:
        """See `Estimator.reads`."""
        return self._estimator.reads()

    def __call__(self, texts: Sequence[str], ids: Sequence[Sequence[int] | None] = ()) -> list[float]:
        """I of each text; `ids` are what the generator's tokenizer makes of it, where that is known."""
        return [score.value for score in self.scores(texts, ids)]

    def scores(self, texts: Sequence[str], ids: Sequence[Sequence[int] | None] = ()) -> Sequence[SequenceScore]:
        """The same with all that the estimator says of each."""
        spellings = ids if self._same and ids else [None] * len(texts)
        pairs = zip(texts, spellings, strict=True)
        sequences = [self._encode(text) if token_ids is None else token_ids for text, token_ids in pairs]
        return self._estimator.score(sequences)


def text_likelihood(
    model: Model, encode: Callable[[str], list[int]], *, start_id: int, micro_batch: int = 16
) -> Callable[[Sequence[str]], list[float]]:
    """Mean negative log-likelihood of texts under `model`, nats per token; infinite for a text without tokens."""

    def likelihood(texts: Sequence[str]) -> list[float]:
        scored = sequence_logprobs(model, [encode(t) for t in texts], start_id=start_id, micro_batch=micro_batch)
        return [-logprobs.mean().item() if len(logprobs) else float("inf") for logprobs in scored]

    return likelihood
