"""Warnings of other libraries that say nothing a user of this engine can act on."""

from __future__ import annotations

import logging
import warnings

# Each with what it is about; anything that is not listed here is still shown.
_KNOWN = (
    "Apex is not installed",  # optional; `synpro doctor` says what serves instead
    "Transformer Engine and Apex are not installed",
    r".*torch\.jit\.script_method.* is deprecated",  # Megatron's
    r".*(reduce_scatter_tensor|all_gather_into_tensor|_reduce_scatter_base|_all_gather_base).* is deprecated",
    r".*`load_state_dict` is deprecated",
    "The .grad attribute of a Tensor that is not a leaf",
    "TypedStorage is deprecated",
    "full scope is deprecated",  # of CUDA graphs, which are not used
    "MimoModelConfig is experimental",  # and not used
)
# The same by the logger that it comes from.
_LOGGED = {
    "megatron.core.distributed.distributed_data_parallel": "full_param_layout not provided",  # it makes its own
    "megatron.core.transformer.transformer_layer": "Unknown MLP type",  # ours, which needs nothing more
    "torch.utils.cpp_extension": "No CUDA runtime is found",  # a toolkit on a machine without a GPU
}


def silence_known_warnings() -> None:
    """Keep the known notices of Megatron and torch off the terminal; safe to call again."""
    for message in _KNOWN:
        warnings.filterwarnings("ignore", message=message)
    for name in _LOGGED:
        # A filter and no level: everything else that these loggers say is still shown.
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return _LOGGED[record.name] not in record.getMessage()
