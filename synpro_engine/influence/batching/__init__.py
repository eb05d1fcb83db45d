"""Token sequences of any length as micro-batches, and how these pass through a model in any layout.

Knows windows, rows, hooks and Megatron's schedule; does not know directions, nor what is computed over the rows.
"""

from synpro_engine.influence.batching.microbatch_hooks import MicrobatchHooks
from synpro_engine.influence.batching.packing import separate_documents
from synpro_engine.influence.batching.passes import forward_backward, frozen, own_gradients, sequence_logprobs
from synpro_engine.influence.batching.windows import WindowBatch, batches_by_sequence, by_sequence, window_batches

__all__ = [
    "MicrobatchHooks",
    "WindowBatch",
    "batches_by_sequence",
    "by_sequence",
    "forward_backward",
    "frozen",
    "own_gradients",
    "separate_documents",
    "sequence_logprobs",
    "window_batches",
]
