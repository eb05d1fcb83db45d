"""The mean of several checkpoints' weights, made tensor by tensor as it is written: no model is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from synpro_engine.config import UserError, verify_artifact
from synpro_engine.model.mean import mean_of
from synpro_engine.train.checkpoint import STATE, CheckpointDraft, checkpoint_manifest, chosen_weights, weights_taken
from synpro_engine.train.checkpoint_files import StoredTensors
from synpro_engine.train.checkpoint_pieces import OPTIMIZER, precise_key
from synpro_engine.train.config import WeightsOf


class SavedWeights:
    """The weights of one finished checkpoint, each read whole when it is asked for. No communication.

    weights: which of a checkpoint with averages; None: those that it hands on. The files are held against the manifest
    first. UserError for what is no sound checkpoint, has adapters beside its weights, or lacks that average.
    """

    def __init__(self, path: Path, weights: WeightsOf | None = None) -> None:
        self.path, self.manifest = path, checkpoint_manifest(path)
        if self.manifest.config.get("adapters"):
            raise UserError(f"{path}: holds adapters beside its weights; they are merged where their tuning ends")
        verify_artifact(path)
        self._weights = chosen_weights(path, self.manifest, weights_taken(path), weights)
        self._stored = StoredTensors(path / STATE)

    @property
    def names(self) -> list[str]:
        """Of the weights, without what an optimizer adds."""
        return [key for key in self._stored if not key.startswith(OPTIMIZER)]

    def like(self, key: str) -> Tensor:
        """Of a weight's shape and dtype, without its numbers."""
        return self._stored.like(key)

    def __getitem__(self, key: str) -> Tensor:
        """As precise as it is kept: fp32 where an optimizer had a master of it."""
        return self._stored[precise_key(key, self._weights, self._stored)]


def average_checkpoints(
    sources: Sequence[SavedWeights],
    shares: Sequence[float],
    output: Path,
    passed: Callable[[int], object],
    extra: Mapping[str, Any],
) -> None:
    """Write the mean of checkpoints of one model as one without an optimizer's state; for a job of one process.

    Types of tensors are the first one's. passed: is told of each tensor. extra: to be kept with it. UserError, which
    names the tensor, where two do not fit or the mean is no finite number, and for a place that cannot be written.
    """
    first = sources[0]
    like = {key: first.like(key) for key in first.names}
    for other in sources[1:]:
        _check_fits(first, other, like)

    def make(key: str) -> Tensor:
        made = mean_of(key, (source[key] for source in sources), shares).to(like[key].dtype)
        passed(1)
        return made

    description = {name: first.manifest.config[name] for name in ("model", "dtype")}
    parents = {str(number): source.path for number, source in enumerate(sources)}
    draft = CheckpointDraft.made(output, like, make, description, parents, extra)
    draft.commit([draft.write()])


def _check_fits(first: SavedWeights, other: SavedWeights, like: dict[str, Tensor]) -> None:
    there = set(other.names)
    for key, tensor in like.items():
        if key not in there:
            raise UserError(f"{other.path}: tensor `{key}` is missing, which {first.path} has")
        shapes = tuple(other.like(key).shape), tuple(tensor.shape)
        if shapes[0] != shapes[1]:
            raise UserError(f"{other.path}: tensor `{key}` has shape {shapes[0]}, in {first.path} it is {shapes[1]}")
    for key in there - like.keys():
        raise UserError(f"{other.path}: tensor `{key}` is not in {first.path}")
