"""How fast training goes: tokens per second, and the share of the devices' peak that the model's arithmetic uses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from synpro_engine.model.config import ModelConfig


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """FLOPs of one forward and backward for one token of a sequence of `seq_len` tokens.

    6 N + 12 L A S (Chowdhery et al., arXiv 2204.02311, appendix B): N parameters in matrix products (the output layer
    counts, looking up the embedding does not), L layers, A = heads x head width, S positions attended to, without
    credit for the causal half. Recomputation does not count.
    """
    products = config.parameter_count(embeddings=False) + config.vocab_size * config.d_model
    return 6.0 * products + 12.0 * config.layers * config.heads * config.head_size * seq_len


class Throughput:
    """Tokens per second and model FLOPs utilisation between two calls of `measure`.

    `flops_per_token` counts one forward and backward; `peak` is the FLOP/s of one device, or None where unknown.
    """

    def __init__(self, flops_per_token: float, peak: float | None, devices: int) -> None:
        self._flops_per_token = flops_per_token
        self._peak = peak
        self._devices = devices
        self._tokens = 0
        self._start = time.perf_counter()

    def add(self, tokens: int) -> None:
        """Count trained tokens of the whole job."""
        self._tokens += tokens

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time inside the `with` block (evaluation, saving) out of the measurement."""
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin

    def measure(self) -> dict[str, float]:
        """`tokens_per_s`, and `mfu` where the peak is known; starts the next interval."""
        rate = self._tokens / max(1e-9, time.perf_counter() - self._start)
        self._tokens, self._start = 0, time.perf_counter()
        measured = {"tokens_per_s": rate}
        if self._peak is not None:
            measured["mfu"] = rate * self._flops_per_token / (self._peak * self._devices)
        return measured
