"""Log-probabilities of token sequences of any length, whatever windows and micro-batches they are computed in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from synpro_engine.influence.batching.packing import separate_documents
from synpro_engine.influence.batching.windows import by_sequence, window_batches
from synpro_engine.model.model import Model
from synpro_engine.model.scoring import score_tokens


def sequence_logprobs(
    model: Model, sequences: Sequence[Sequence[int]], *, start_id: int, micro_batch: int = 16, packed: bool = False
) -> list[Tensor]:
    """Log-prob of every token of every sequence: float64 [len] on the CPU each, in nats.

    A sequence longer than the model's `seq_len` is scored in consecutive windows, each with its own context.
    `packed` puts several windows into a row, for speed; scores agree up to rounding. Collective over the tensor and
    pipeline axes, which must call with the same sequences.
    """
    seq_len = model.config.seq_len
    batches = window_batches(sequences, start_id=start_id, seq_len=seq_len, micro_batch=micro_batch, packed=packed)
    logprobs = []
    for batch in batches:
        with separate_documents(model, [batch]):
            scored = score_tokens(model, batch.tokens_BS, batch.labels_BS, micro_batch=batch.tokens_BS.size(0))
        logprobs.append(scored.logprob)
    return by_sequence([len(ids) for ids in sequences], batches, logprobs)
