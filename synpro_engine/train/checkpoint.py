"""Saving and loading models and optimizers so that any layout can go on from any other.

Knows Megatron's distributed checkpoints (each rank writes its own shards, `fully_reshardable` optimizer state) and
wraps them into an artifact that appears whole or not at all; does not know loops. In it: `state/` (Megatron's files),
`extra.json` (the caller's data and the engine's counters), `manifest.json` (hashes, the model's shape).
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint.api import CheckpointException

from synpro_engine.backend.checkpoint_fixes import save_without_manager
from synpro_engine.config import (
    Manifest,
    UserError,
    atomic_write_text,
    check_replaceable,
    partial_path,
    publish,
    read_manifest,
    remove_directory,
)
from synpro_engine.config import write_manifest as write_artifact_manifest
from synpro_engine.config.artifact import MANIFEST, REMOVING, hash_directory
from synpro_engine.dist import Topology, barrier, on_main
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.train.checkpoint_safety import check_readable
from synpro_engine.train.engine import Engine

KIND = "checkpoint"
_STATE = "state"
_EXTRA = "extra.json"
# Layers get keys of their own: stacked ones must all be there, and frozen layers have no optimizer state.
_MODEL_METADATA = {"non_homogeneous_layers": True}
_OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
# What two models may differ in and still hold the same tensors with the same meaning.
_NOT_SHAPE = ("seq_len", "init_std")

Json = Any


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
    engine = trained if isinstance(trained, Engine) else None
    model = trained.model if isinstance(trained, Engine) else trained
    topology, partial = model.topology, partial_path(path)
    on_main(topology, lambda: _prepare(path))
    _save_state(partial / _STATE, _sharded_state(model, engine, loading=False))
    counters = None if engine is None else {"step": engine.step_index, "schedule_start": engine.schedule_start}
    description = {
        "model": model.config.model_dump(mode="json"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "optimizer": engine is not None,
        "layout": topology.layout,
    }

    def finish() -> None:
        with _WriteFaults(path):
            text = json.dumps({"engine": counters, "extra": dict(extra or {})}, indent=2)
            atomic_write_text(partial / _EXTRA, text + "\n")
            write_artifact_manifest(partial, KIND, description, parents or {}, seed)
            publish(partial, path)

    on_main(topology, finish)


def load_checkpoint(
    path: Path, model: Model, engine: Engine | None = None, *, optimizer_state: bool = True
) -> dict[str, Json]:
    """Load weights into `model`, and with an `engine` on it the optimizer state and counters; returns `extra`.

    The layout may differ from the one that saved. With an engine and `optimizer_state=False` the optimizer starts
    afresh from the loaded weights. Collective. Raises UserError for a missing or damaged checkpoint, one of another
    model (naming both), or one without the optimizer state that was asked for.
    """
    assert engine is None or engine.model is model
    with_optimizer = engine is not None and optimizer_state
    manifest, stored = on_main(model.topology, lambda: _read_description(path))
    _check_model(path, manifest, model.config)
    if with_optimizer and not manifest.config["optimizer"]:
        raise UserError(f"{path}: holds no optimizer state (it was saved from a model alone)")
    state = _sharded_state(model, engine if with_optimizer else None, loading=True)
    try:
        loaded: Any = dist_checkpointing.load(state, str(path / _STATE))
    except (CheckpointingException, CheckpointException, KeyError) as error:
        raise UserError(f"{path}: does not fit what it is loaded into ({_first_line(error)})") from error
    _take_weights(model, loaded)
    if engine is not None:
        _take_engine(engine, loaded, stored["engine"] if with_optimizer else None)
    return stored["extra"]


def checkpoint_model_config(path: Path) -> ModelConfig:
    """Shape of the model in a checkpoint; UserError when there is none. Not collective."""
    return ModelConfig.model_validate(_checkpoint_manifest(path).config["model"])


def step_path(directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return directory / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The steps after which the checkpoint at a `step_path` was written."""
    return int(path.name.removeprefix("step-"))


def newest_checkpoint(directory: Path, topology: Topology) -> Path | None:
    """The complete checkpoint of the highest step below `directory`, as rank 0 sees it. Collective."""
    return on_main(topology, lambda: (_complete(directory) or [None])[-1])


def prune_checkpoints(directory: Path, keep: int, topology: Topology) -> None:
    """Remove all but the newest `keep` checkpoints below `directory`, and what a kill left of others. Collective."""
    assert keep >= 1

    def remove() -> None:
        for left in directory.glob(f"step-*{REMOVING}"):
            shutil.rmtree(left)
        for path in _complete(directory)[:-keep]:
            remove_directory(path)

    on_main(topology, remove)


def _complete(directory: Path) -> list[Path]:
    """Checkpoints by step. One without a manifest is no more than the rest of an interrupted copy or removal."""
    named = [path for path in directory.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    found = [path for path in named if (path / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def _prepare(path: Path) -> None:
    check_replaceable(path, KIND)
    partial = partial_path(path)
    with _WriteFaults(partial):
        if partial.exists():
            shutil.rmtree(partial)  # what an interrupted save left
        (partial / _STATE).mkdir(parents=True)


def _save_state(directory: Path, state: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {}
    if "async_strategy" in inspect.signature(dist_checkpointing.save).parameters:
        arguments["async_strategy"] = "mcore"  # since 0.19 another package is the default
    save_without_manager()
    with _WriteFaults(directory):
        dist_checkpointing.save(state, str(directory), **arguments)


class _WriteFaults:
    """Turns a file system that refuses (or torch's report of one) into a UserError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, CheckpointException)):
            raise UserError(f"{self._path}: cannot be written ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _sharded_state(model: Model, engine: Engine | None, *, loading: bool) -> dict[str, Any]:
    """Megatron's description of what this rank holds, tensors only.

    Its layers add empty pickled objects (`_extra_state`), which are dropped: there is nothing in them, and reading them
    would unpickle.
    """
    names = ["model"] if len(model.chunks) == 1 else [f"model{index}" for index in range(len(model.chunks))]
    state: dict[str, Any] = {}
    for name, chunk in zip(names, model.chunks, strict=True):
        described = chunk.sharded_state_dict(metadata=dict(_MODEL_METADATA))
        objects, tensors = extract_matching_values(described, lambda entry: isinstance(entry, ShardedObject))
        assert isinstance(objects, dict) and not any(_carries_data(entry.data) for entry in objects.values())
        state[name] = tensors
    if engine is not None:
        state["optimizer"] = engine.optimizer.sharded_state_dict(
            dict(state), is_loading=loading, metadata=dict(_OPTIMIZER_METADATA)
        )
    return state


def _carries_data(extra_state: Any) -> bool:
    return extra_state is not None and not (isinstance(extra_state, torch.Tensor) and extra_state.numel() == 0)


def _read_description(path: Path) -> tuple[Manifest, dict[str, Any]]:
    manifest = _checkpoint_manifest(path)
    if hash_directory(path) != manifest.content_hash:
        raise UserError(f"{path}: damaged checkpoint (its files are not those of its manifest)")
    check_readable(path / _STATE)
    return manifest, json.loads((path / _EXTRA).read_text(encoding="utf-8"))


def _checkpoint_manifest(path: Path) -> Manifest:
    manifest = read_manifest(path)
    if manifest.kind != KIND:
        raise UserError(f"{path}: is a {manifest.kind}, not a checkpoint")
    return manifest


def _check_model(path: Path, manifest: Manifest, config: ModelConfig) -> None:
    theirs, ours = manifest.config["model"], config.model_dump(mode="json")
    differences = [
        f"{key} {theirs.get(key)} there, {ours[key]} here"
        for key in ours
        if key not in _NOT_SHAPE and theirs.get(key) != ours[key]
    ]
    if differences:
        raise UserError(f"{path}: checkpoint of another model: {'; '.join(differences)}")


@torch.no_grad()
def _take_weights(model: Model, loaded: Mapping[str, Any]) -> None:
    for index, chunk in enumerate(model.chunks):
        state = loaded["model" if len(model.chunks) == 1 else f"model{index}"]
        for name, parameter in chunk.named_parameters():
            parameter.copy_(state[name])


def _take_engine(engine: Engine, loaded: Mapping[str, Any], counters: Mapping[str, int] | None) -> None:
    if counters is None:
        engine.optimizer.reload_model_params()  # fp32 master weights of bf16 parameters
    else:
        engine.optimizer.load_state_dict(loaded["optimizer"])
        engine.step_index, engine.schedule_start = counters["step"], counters["schedule_start"]
    barrier(engine.model.topology)
