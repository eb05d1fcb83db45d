"""Saving and loading models and optimizers so that any layout can go on from any other.

Wraps the files that all ranks write (`checkpoint_files`) into an artifact that appears whole or not at all. In it:
`state/` (torch's distributed checkpoint: tensors alone), `extra.json` (the caller's data and the
engine's counters), `manifest.json` (hashes, the model's shape).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from synpro_engine.config import (
    Manifest,
    Record,
    UserError,
    atomic_write_text,
    check_replaceable,
    first_difference,
    first_line,
    json_text,
    partial_path,
    publish,
    read_manifest,
    read_record,
)
from synpro_engine.config import write_manifest as write_artifact_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.config.errors import TransientError
from synpro_engine.dist import on_every_rank, on_main, verify_shared
from synpro_engine.dist.hashing import hashes_of_written
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.lora import has_adapters
from synpro_engine.model.model import Model
from synpro_engine.train.checkpoint_files import Row, Share, StoredTensors, read_pieces
from synpro_engine.train.checkpoint_pieces import (
    Piece,
    average_pieces,
    averaged,
    model_pieces,
    optimizer_pieces,
    set_updates_made,
    updates_made,
)
from synpro_engine.train.config import WeightsOf
from synpro_engine.train.engine import Engine
from synpro_engine.train.host_memory import HostMemory

KIND = "checkpoint"
STATE = "state"
_EXTRA = "extra.json"
_FORMAT = 2  # of `state/`; 1 was Megatron's, with pickled objects among the tensors
# What two models may differ in and still hold the same tensors with the same meaning.
_NOT_SHAPE = ("seq_len", "published_seq_len", "init_std")

Json = Any


class _Counters(Record):
    """Of an engine: steps made, the step at which its schedule began, updates of its optimizer.

    averages: how many weights each average holds, by name.
    """

    step: int
    schedule_start: int
    updates: int
    averages: dict[str, int] = Field(default={})


class _Extra(Record):
    """What `extra.json` holds; counters are None where a model alone was saved."""

    engine: _Counters | None
    extra: dict[str, Json]


def save_checkpoint(
    path: Path,
    trained: Engine | Model,
    extra: Mapping[str, Json] | None = None,
    *,
    parents: Mapping[str, Path] | None = None,
    seed: int | None = None,
) -> None:
    """Write a checkpoint of a model, or of an engine with its optimizer state. Collective.

    extra: plain JSON data, the same on every rank. An older checkpoint at `path` is replaced. Raises UserError when it
    cannot be written (no space, no permission, something that is no checkpoint at `path`); then `path` does not appear
    and what was there stays.
    """
    topology = trained.model.topology if isinstance(trained, Engine) else trained.topology
    draft = CheckpointDraft.of(path, trained, extra, parents=parents, seed=seed)
    # Ranks that have written and hashed wait for the others outside collectives, however slow a disk is.
    written = on_every_rank(topology, draft.write)
    on_main(topology, lambda: draft.commit(written))


Written = tuple[list[Row], dict[str, str]]
"""What one rank wrote: its pieces' places, and its files' hashes by path below the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class CheckpointDraft:
    """A checkpoint that all ranks agree on and nobody has written. What comes next takes no collective."""

    path: Path
    rank: int
    share: Share
    extra: str
    """The text of `extra.json`."""
    description: Mapping[str, Json]
    parents: Mapping[str, Path]
    seed: int | None

    @classmethod
    def of(
        cls,
        path: Path,
        trained: Engine | Model,
        extra: Mapping[str, Json] | None,
        *,
        parents: Mapping[str, Path] | None,
        seed: int | None,
        host: HostMemory | None = None,
    ) -> CheckpointDraft:
        """As `save_checkpoint` takes it. Collective. With `host`, training may go on at once: it holds a copy."""
        engine = trained if isinstance(trained, Engine) else None
        model = trained.model if isinstance(trained, Engine) else trained
        topology = model.topology
        # Before any rank writes: one that began earlier would have its file removed with the
        # leftovers of an interrupted save.
        on_main(topology, lambda: _prepare(path))
        # Weights stand beside the optimizer's fp32 masters even where both are fp32: whoever wants the model
        # alone reads no optimizer state.
        pieces = model_pieces(model)
        if engine is not None:
            pieces += optimizer_pieces(model, engine.optimizer)
            pieces += average_pieces(model, engine.optimizer, engine.averages)
        with _WriteFaults(partial_path(path)):
            share = Share(partial_path(path) / STATE, pieces, host)
        counters = None
        if engine is not None:
            updates = updates_made(engine.optimizer, topology)
            taken: dict[str, int] = {name: average.taken for name, average in engine.averages.items()}
            counters = _Counters(
                step=engine.step_index, schedule_start=engine.schedule_start, updates=updates, averages=taken
            )
        # As text, for what the caller hands over may be alive, and change before it is written.
        stored = json_text(_Extra(engine=counters, extra=dict(extra or {})).model_dump(), indent=2) + "\n"
        description = {
            "format": _FORMAT,
            "model": model.config.model_dump(mode="json"),
            "dtype": str(model.dtype).removeprefix("torch."),
            "optimizer": False if engine is None else engine.optimizer_config.name,
            "layout": str(topology.layout),
            "adapters": has_adapters(model),
            "weights": "raw" if engine is None else engine.given,
        }
        return cls(
            path=path,
            rank=topology.rank,
            share=share,
            extra=stored,
            description=description,
            parents=parents or {},
            seed=seed,
        )

    @classmethod
    def made(
        cls,
        path: Path,
        like: Mapping[str, Tensor],
        make: Callable[[str], Tensor],
        description: Mapping[str, Json],
        parents: Mapping[str, Path],
        extra: Mapping[str, Json],
    ) -> CheckpointDraft:
        """Of a model's weights that `make` gives by key as they are written, by a job of one process.

        like: tensors of their shapes and dtypes, without numbers. description: of the model, as other checkpoints'.
        extra: what `checkpoint_extra` gives.
        """
        _prepare(path)
        pieces = [Piece(key, data, tuple(data.shape), (0,) * data.dim()) for key, data in like.items()]
        with _WriteFaults(partial_path(path)):
            share = Share(partial_path(path) / STATE, pieces, make=make)
        stored = json_text(_Extra(engine=None, extra=dict(extra)).model_dump(), indent=2) + "\n"
        own = {"format": _FORMAT, "optimizer": False, "layout": "", "adapters": False, "weights": "raw"}
        return cls(
            path=path, rank=0, share=share, extra=stored, description={**description, **own}, parents=parents, seed=None
        )

    def write(self) -> Written:
        """Write this rank's share and hash it; UserError where that cannot be."""
        partial = partial_path(self.path)
        # torch's writer in C++ raises RuntimeError where a file takes no more.
        with _WriteFaults(partial, RuntimeError):
            rows = self.share.write()
            # Each rank hashes what it wrote itself: one thread on rank 0 would keep all others waiting.
            return rows, hashes_of_written(partial, list((partial / STATE).glob(f"__{self.rank}_*")))

    def commit(self, written: Sequence[Written]) -> None:
        """Have the checkpoint appear at `path`, of what every rank has written, in their order. On rank 0."""
        partial = partial_path(self.path)
        hashes = {name: digest for _, of_rank in written for name, digest in of_rank.items()}
        with _WriteFaults(self.path):
            self.share.finish([rows for rows, _ in written])
            # The manifest hashes what lies there, so everything else is written before it.
            atomic_write_text(partial / _EXTRA, self.extra)
            write_artifact_manifest(partial, KIND, self.description, self.parents, self.seed, hashes)
            publish(partial, self.path)


def weights_taken(path: Path) -> dict[str, int]:
    """How many weights each average of a checkpoint holds, by name; UserError for one that is missing or damaged."""
    counters = read_record(path / _EXTRA, _Extra).engine
    return {} if counters is None else counters.averages


def checkpoint_extra(path: Path) -> dict[str, Json]:
    """The `extra` of a checkpoint, whose tensors are left alone; UserError for one that is missing or damaged."""
    checkpoint_manifest(path)
    return read_record(path / _EXTRA, _Extra).extra


def load_checkpoint(
    path: Path,
    model: Model,
    engine: Engine | None = None,
    *,
    optimizer_state: bool = True,
    weights: WeightsOf | None = None,
) -> dict[str, Json]:
    """Load weights into `model`, and with an `engine` on it the optimizer state and counters; returns `extra`.

    The layout may differ from the one that saved. With an engine and `optimizer_state=False` the optimizer starts
    afresh from the loaded weights. weights: which to take of a checkpoint with averages; None: those that it was
    written to give. Only from `raw` training goes on as if it had not stopped: behind an average the engine's own
    averages begin anew, as do those that are not there. The files are held against the manifest first (see
    `integrity`). Collective.
    Raises UserError for a missing or damaged checkpoint, one of another model (naming both), or one without the
    optimizer state or the average that was asked for, or with another optimizer's state.
    """
    assert engine is None or engine.model is model
    topology, with_optimizer = model.topology, engine is not None and optimizer_state
    manifest = on_main(topology, lambda: checkpoint_manifest(path))
    verify_shared(path, topology)  # before anything is loaded: damage must leave the model as it is
    stored = on_main(topology, lambda: read_record(path / _EXTRA, _Extra))
    # Every tensor would fit where only a family, an epsilon or a rotary base differs, and other numbers would come out.
    difference = first_difference(manifest.config["model"], model.config.model_dump(mode="json"), _NOT_SHAPE)
    if difference is not None:
        raise UserError(f"{path}: checkpoint of another model: {difference}")
    # Weights that adapters stand beside are those of before training: without them nothing would have been learnt.
    adapters = bool(manifest.config.get("adapters", False))
    if adapters != has_adapters(model):
        held, here = ("holds adapters", "none") if adapters else ("holds no adapters", "some")
        raise UserError(f"{path}: {held}, and the model has {here}; they are merged where their tuning ends")
    if with_optimizer and (not manifest.config.get("optimizer") or stored.engine is None):
        raise UserError(f"{path}: holds no optimizer state (it was saved from a model alone)")
    if engine is not None and with_optimizer:
        _check_optimizer(path, manifest, engine)
    taken = {} if stored.engine is None else stored.engine.averages
    chosen = chosen_weights(path, manifest, taken, weights)
    # From here on the memory of model and optimizer is filled in place: what can be refused has been refused by now.
    # Two groups: of an average both the weights and their masters are read from the same places.
    groups = [model_pieces(model)]
    if engine is not None:
        kept = taken if with_optimizer and chosen == "raw" else {}
        for name, average in engine.averages.items():
            average.taken = kept.get(name, 0)
    if engine is not None and with_optimizer:
        averages = average_pieces(model, engine.optimizer, engine.averages)
        groups.append(optimizer_pieces(model, engine.optimizer) + averages)
    if chosen != "raw":
        stored_keys = on_main(topology, lambda: list(StoredTensors(path / STATE)))
        groups = [averaged(pieces, chosen, stored_keys) for pieces in groups]
    # No rank may fail alone here: the others would wait for it in the next collective.
    on_every_rank(topology, lambda: read_pieces(path / STATE, *groups))
    if engine is not None and stored.engine is not None and with_optimizer:
        # Steps and updates are two counts: a skipped step moves schedule and data, but not AdamW's bias correction.
        set_updates_made(engine.optimizer, stored.engine.updates)
        engine.step_index, engine.schedule_start = stored.engine.step, stored.engine.schedule_start
    elif engine is not None:
        engine.optimizer.reload_model_params()  # fp32 master weights of bf16 parameters
    return stored.extra


def chosen_weights(path: Path, manifest: Manifest, taken: Mapping[str, int], wanted: WeightsOf | None) -> str:
    """Which weights to read; UserError for an average that is not kept there. One that holds nothing yet is `raw`."""
    chosen = wanted or str(manifest.config.get("weights", "raw"))
    if chosen != "raw" and chosen not in taken:
        raise UserError(f"{path}: holds no {chosen} of its weights (`pretrain.{chosen}` keeps one)")
    return chosen if taken.get(chosen) else "raw"


def _check_optimizer(path: Path, manifest: Manifest, engine: Engine) -> None:
    """Another optimizer's moments are of other parameters; UserError names both."""
    stored = manifest.config["optimizer"]
    saved = "adamw" if stored is True else stored  # True: of before there were two
    wanted = engine.optimizer_config.name
    if saved != wanted:
        raise UserError(f"{path}: holds the state of {saved}, but `optimizer.name` is {wanted}")


def checkpoint_model_config(path: Path) -> ModelConfig:
    """Shape of the model in a checkpoint; UserError when there is none. Not collective."""
    return ModelConfig.model_validate(checkpoint_manifest(path).config["model"])


def _prepare(path: Path) -> None:
    check_replaceable(path, KIND)
    partial = partial_path(path)
    with _WriteFaults(partial):
        if partial.exists():
            shutil.rmtree(partial)  # what an interrupted save left
        (partial / STATE).mkdir(parents=True)


class _WriteFaults:
    """Turns a file system that refuses (or torch's report of one) into a TransientError."""

    def __init__(self, path: Path, *also: type[Exception]) -> None:
        self._path, self._also = path, also

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # A CheckpointException carries the faults of all ranks and is raised on every one of
        # them, so that none goes on alone.
        if isinstance(error, (OSError, CheckpointException, *self._also)):
            failures = error.failures if isinstance(error, CheckpointException) else {}
            cause = next((fault for fault, _ in failures.values()), error)  # torch's message has every rank's traceback
            raise TransientError(f"{self._path}: cannot be written ({first_line(cause)})") from error


def checkpoint_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint that this version reads; UserError for anything else at `path`. Not collective."""
    manifest = read_manifest(path)
    if manifest.kind != KIND:
        raise UserError(f"{path}: is a {manifest.kind}, not a checkpoint")
    if manifest.config.get("format") != _FORMAT:
        raise UserError(f"{path}: checkpoint of another version of the engine, in a format that this one does not read")
    try:
        ModelConfig.model_validate(manifest.config.get("model"))
    except ValueError:
        raise UserError(f"{path / MANIFEST}: damaged manifest (it describes no model)") from None
    return manifest
