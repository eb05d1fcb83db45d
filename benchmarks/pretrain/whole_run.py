"""Some steps of a run as `synpro pretrain` makes them: what a step goes to, with reading, logs and a checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import numpy as np
import torch

from benchmarks.pretrain.case import Case
from synpro_engine.backend import platform
from synpro_engine.backend.spans import BACKWARD, CHECKPOINT, FORWARD, PIPELINE, SpanClock, listening
from synpro_engine.config import UserError, first_line
from synpro_engine.data import Batch, TokenCorpus, TokenLoader
from synpro_engine.dist import Topology, broadcast_object, gather_objects
from synpro_engine.dist.environment import read_environment
from synpro_engine.model.build import build_model
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.engine import Engine, LossFn
from synpro_engine.train.metrics import MetricsLog
from synpro_engine.train.optimizer_config import ScheduleConfig
from synpro_engine.train.trainer import pretrain
from synpro_engine.train.watcher import Watching

_FIRST, _SAVED, _LAST = 3, 4, 6
"""Steps: the first that is heard, the one behind which a checkpoint is written, and the first that is not heard."""
_DOCUMENT = 512  # tokens


class _Ear:
    """Listens from one step's beginning to another one's, so that each part of a step is heard equally often."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._held, self._begun = device, ExitStack(), 0
        self.seconds: dict[str, float] = {}

    def begin(self, engine: Engine, loader: TokenLoader, log: MetricsLog, resume_step: int | None) -> None:
        """See `Watcher`."""

    def stop(self) -> None:
        """See `Watcher`."""

    def saved(self) -> None:
        """See `Watcher`."""

    def watching(
        self, microbatches: Sequence[Batch], loss_fn: LossFn[Batch], denominator: int
    ) -> AbstractContextManager[Watching]:
        """See `Watcher`."""
        self._begun += 1
        if self._begun == _FIRST:
            self._clock = SpanClock(self._device)
            self._held.enter_context(listening(self._clock))
        elif self._begun == _LAST:
            self._held.close()
            self.seconds = self._clock.seconds()
        return nullcontext(Watching(loss_fn))


def breakdown(case: Case, topology: Topology) -> dict[str, object]:
    """`breakdown`: seconds of a step by part, on this rank; of a checkpoint `checkpoint_seconds`. Collective.

    And of a pipeline `bubble`: what its stages wait, as measured and by the formula. Where one process has no room for
    the run, `breakdown_reason` in their place: the times stand.
    """
    hang = topology.watch.hang
    before = hang.directory
    try:
        return _breakdown(case, topology)
    except (UserError, OSError) as error:
        if topology.world_size > 1:
            raise  # the other ranks wait in a collective
        return {"breakdown_reason": first_line(error)}
    finally:
        hang.directory = before  # the run's own is gone


def _breakdown(case: Case, topology: Topology) -> dict[str, object]:
    recipe, ear = case.recipe, _Ear(topology.device)
    rows = case.micro_batches * recipe.pretrain.micro_batch * topology.dp.size
    config = TrainConfig.model_validate(
        {name: getattr(recipe.pretrain, name) for name in TrainConfig.model_fields}
        | {
            "max_steps": _LAST, "global_batch": rows, "checkpoint_every": _SAVED, "schedule": ScheduleConfig(),
            "eval_every": 0, "tasks_every": 0, "keep_every": 0, "plateau": None, "distill": None, "loggers": (),
            "checkpoint_copy": None, "keep_checkpoints": 1, "async_checkpoints": False,
            # At a full rate on random tokens losses may rise, and no part of a step takes longer for it.
            "divergence": None, "spike": None,
        }
    )  # fmt: skip
    model = build_model(
        recipe.model, topology, dtype=platform.resolve_dtype(recipe.dtype), seed=0,
        recompute=config.recompute, offload_layers=config.offload_layers,
    )  # fmt: skip
    here = read_environment()
    # Of several machines each rank writes its part of the checkpoint to a place that all of them see.
    place = "." if here.local_world_size < here.world_size else None
    with tempfile.TemporaryDirectory(dir=place, prefix="synpro-bench-") as own:
        directory = Path(broadcast_object(own, topology)).absolute() / "run"
        pretrain(model, config, _loader(case, rows, topology), directory, watcher=ear, label="a step's parts")
    seconds, steps = ear.seconds, _LAST - _FIRST
    found: dict[str, object] = {"checkpoint_seconds": seconds.pop(CHECKPOINT, None)}  # None where a step was skipped
    found["breakdown"] = {name: taken / steps for name, taken in seconds.items()}
    if topology.pp.size > 1:
        found["bubble"] = _bubble(seconds, case, topology)
    return found


def _loader(case: Case, rows: int, topology: Topology) -> TokenLoader:
    """Deals random documents."""
    recipe = case.recipe
    tokens = (_LAST + 1) * rows * recipe.model.seq_len + 1
    drawn = np.random.default_rng(0).integers(recipe.model.vocab_size, size=-(-tokens // _DOCUMENT) * _DOCUMENT)
    corpus = TokenCorpus(
        tokens=drawn.astype(np.int32), offsets=np.arange(0, len(drawn) + 1, _DOCUMENT), eos_id=0, text_bytes=1,
        fingerprint="random", read_ids=lambda: map(str, range(len(drawn) // _DOCUMENT)),
    )  # fmt: skip
    return TokenLoader(
        {"random": corpus}, {"random": 1.0}, recipe.model.seq_len, rows, seed=0,
        dp_rank=topology.dp.rank, dp_size=topology.dp.size, mask_repetitions=recipe.pretrain.mask_repetitions,
        separate_documents=recipe.pretrain.separate_documents,
    )  # fmt: skip


def _bubble(seconds: dict[str, float], case: Case, topology: Topology) -> dict[str, float]:
    """The share of a step's passes that stages wait, and what it is by the formula. Collective."""
    # What a stage waits for others, and sends, beside its own work; the last micro-batches' share is the formula's.
    idle = [
        one.get(PIPELINE, 0.0) / (one.get(PIPELINE, 0.0) + one[FORWARD] + one[BACKWARD])
        for one in gather_objects(topology.pp, seconds)
    ]
    stages, micro_batches = topology.pp.size, topology.vpp * case.micro_batches
    return {
        "measured": broadcast_object(sum(idle) / len(idle), topology),
        "formula": (stages - 1) / (micro_batches + stages - 1),
    }
