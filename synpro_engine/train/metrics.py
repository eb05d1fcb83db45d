"""The record of a run: one JSON object per line, and the same numbers for TensorBoard; and how fast training goes.

Only the rank that is given a directory writes. A resumed run first drops what was recorded after the step it resumes
from, so that no step appears twice. Speed is tokens per second, and the share of the devices' peak that the model's
arithmetic uses.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synpro_engine.config import UserError, atomic_write_text, json_text, whole_lines
from synpro_engine.config.errors import Stopped, naming
from synpro_engine.train.trackers import Tracked, Trackers

if TYPE_CHECKING:
    from synpro_engine.model.config import ModelConfig, Recompute

METRICS = "metrics.jsonl"

Value = float | int | str | bool | Mapping[str, Sequence[str]] | Mapping[str, float] | None
"""A mapping: names of things by where they are from."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete records of a metrics file, in order; [] where there is none.

    A last line without its newline is what a killed run leaves, and is dropped; any other damage is a UserError that
    names the line.
    """
    return [record for _, record in _lines(path)] if path.exists() else []


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each complete record as it is written, with its newline, and as it is read."""
    for line in whole_lines(path):
        try:
            record = json.loads(line.text)
        except (ValueError, RecursionError):
            raise UserError(f"{line.where}: not a JSON record") from None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"{line.where}: a metrics record needs an integer `step`")
        yield line.text.decode() + "\n", record


def _up_to(path: Path, step: int, beyond: set[tuple[str, int]]) -> Iterator[str]:
    """The lines of steps up to this one; kinds and steps of the others are added to `beyond`."""
    for text, record in _lines(path):
        if record["step"] <= step:
            yield text
        elif "kind" in record:
            beyond.add((record["kind"], record["step"]))


class MetricsLog:
    """Appends records `{"kind": ..., "step": ..., name: value, ...}` below `directory`; None makes it silent.

    `step` counts completed optimizer steps; losses are nats per token. `resume_step` is the step a resumed run goes on
    from; None begins a new record. tracked: by which trackers, too.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        resume_step: int | None = None,
        tensorboard: bool = True,
        tracked: Tracked | None = None,
    ) -> None:
        self._file = None
        self._board = None
        self._trackers = None
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        path, made_again = directory / METRICS, set[tuple[str, int]]()
        self._path = path
        if path.exists():
            # Steps behind the checkpoint were made and recorded before a kill, and are made again now. Rewritten whole,
            # not truncated: a kill in between must leave either the old record or the new one.
            atomic_write_text(path, () if resume_step is None else _up_to(path, resume_step, made_again))
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            # Only where it is written: the import takes long, and no other rank has a use for it.
            from torch.utils.tensorboard.writer import SummaryWriter

            # Of event files of before, readers pass over all from this step on.
            self._board = SummaryWriter(
                str(directory / "tensorboard"), purge_step=0 if resume_step is None else resume_step + 1
            )

        if tracked is not None and tracked.by:
            self._trackers = Trackers(tracked, directory, resumed=resume_step is not None, seen=made_again)

    def write(self, kind: str, step: int, values: Mapping[str, Value]) -> None:
        """Record `values`; numbers that are not finite become null (JSON has no NaN)."""
        if self._file is None:
            return
        record = {"kind": kind, "step": step, "time": round(time.time(), 3)}
        with naming(self._path):
            self._file.write(json_text(record | dict(values)) + "\n")
            # A record must outlive a kill of the process; what the disk may lose with the machine is
            # not synced, for steps are many.
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                # TensorBoard draws numbers only, and Python counts a bool as one.
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._trackers is not None:
            self._trackers.write(kind, step, values)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        done = self.close(stopped=isinstance(error, Stopped))
        if isinstance(error, Stopped) and not done:
            error.at_once = True

    def close(self, *, stopped: bool = False) -> bool:
        """Flush and close all that is written to; whether trackers got all, for which a stop leaves them seconds."""
        if self._file is not None:
            with naming(self._path):
                self._file.close()
        if self._board is not None:
            self._board.close()
        return self._trackers is None or self._trackers.close(stopped=stopped)


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """FLOPs of one forward and backward for one token of a sequence of `seq_len` tokens.

    6 N + 12 L A S (Chowdhery et al., arXiv 2204.02311, appendix B): N parameters in matrix products (the output layer
    counts, looking up the embedding does not), L layers, A = heads x head width, S positions attended to, without
    credit for the causal half. Recomputation does not count.
    """
    # The output layer counts once even where it is tied to the embedding: looking a row up is no product.
    products = config.parameter_count(embeddings=False) + config.vocab_size * config.d_model
    return 6.0 * products + 12.0 * config.layers * config.heads * config.head_size * seq_len


def hardware_flops_per_token(
    config: ModelConfig, seq_len: int, *, recomputed_output: bool = False, recompute: Recompute = "none"
) -> float:
    """The same with what is computed twice: scores of attention, logits where the output layer is `recomputed`, layers.

    A fused attention's backward pass makes the scores again rather than read them: one product of five more (Dao et
    al., arXiv 2205.14135).
    """
    scores = 2.0 * config.layers * config.heads * config.head_size * seq_len
    layers = 2.0 * config.parameter_count(embeddings=False) + 2 * scores
    again = scores + {"none": 0.0, "mlp": 6.0 * config.layers * config.d_model * config.ffn, "full": layers}[recompute]
    return flops_per_token(config, seq_len) + again + 2.0 * config.vocab_size * config.d_model * recomputed_output


class Throughput:
    """Tokens per second and model FLOPs utilisation between two calls of `measure`.

    `flops_per_token` counts one forward and backward, and the forward passes of teachers; `peak` is the FLOP/s of one
    device, or None where unknown.
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
        # Moving the start is enough: rates are over one interval, which a pause makes shorter.
        self._start += time.perf_counter() - begin

    def measure(self) -> dict[str, float]:
        """`tokens_per_s`, and `mfu` where the peak is known; starts the next interval."""
        rate = self._tokens / max(1e-9, time.perf_counter() - self._start)
        self._tokens, self._start = 0, time.perf_counter()
        measured = {"tokens_per_s": rate}
        if self._peak is not None:
            measured["mfu"] = rate * self._flops_per_token / (self._peak * self._devices)
        return measured
