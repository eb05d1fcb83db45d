"""Directions on disk: full fp32 tensors by their Hugging Face names, written and read in any layout.

Knows files and shards; what a direction means is in `direction`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.config import UserError, check_replaceable, new_artifact, read_manifest, verify_artifact
from synpro_engine.dist import on_every_rank, on_main
from synpro_engine.influence.direction import Direction
from synpro_engine.model import layout
from synpro_engine.model.model import Model
from synpro_engine.model.state import check_shapes, iter_canonical, local_slots
from synpro_engine.model.tensor_files import SafetensorsFiles, write_tensors

KIND = "direction"


def save_direction(
    path: Path,
    model: Model,
    direction: Direction,
    *,
    parents: Mapping[str, Path] | None = None,
    seed: int | None = None,
) -> None:
    """Write `direction` as full fp32 tensors by their Hugging Face names, with a manifest. Collective over the model.

    parents: artifacts it was made from. Raises UserError on every rank when something else lies at `path`, and when it
    cannot be written; then nothing appears there.
    """
    on_main(model.topology, lambda: check_replaceable(path, KIND))
    of = {parameter: direction.tensors.get(name) for name, parameter in model.named_parameters()}

    def read(parameter: Parameter) -> Tensor:
        tensor = of[parameter]
        return torch.zeros_like(parameter, dtype=torch.float32) if tensor is None else tensor

    tensors = iter_canonical(model, read=read, dtype=torch.float32)
    fault: UserError | OSError | None = None
    if model.topology.is_main:
        try:
            _write(path, model, tensors, direction.tangent, parents or {}, seed)
        except (UserError, OSError) as error:
            fault = error
    for _ in tensors:  # each is gathered from all ranks, so all go through them, whether or not rank 0 could write
        pass
    on_main(model.topology, lambda: _raise(fault))


def _write(
    path: Path,
    model: Model,
    tensors: Iterator[tuple[str, Tensor]],
    tangent: bool,
    parents: Mapping[str, Path],
    seed: int | None,
) -> None:
    config = {"model": model.config.model_dump(mode="json"), "tangent": tangent}
    shapes = layout.canonical_shapes(model.config)
    with new_artifact(path, KIND, config, parents, seed) as partial:
        try:
            write_tensors(partial, tensors, shapes, torch.float32)
        except SafetensorError as error:  # its writer wraps what the file system says
            raise UserError(f"{path}: cannot be written ({error})") from error


def _raise(fault: Exception | None) -> None:
    if fault is not None:
        raise fault


def is_tangent(path: Path) -> bool:
    """Whether a stored direction is a gradient's, which has no length; UserError where its manifest does not say."""
    found = read_manifest(path).config.get("tangent")
    if not isinstance(found, bool):
        raise UserError(f"{path}: damaged direction (its manifest does not say whether it is a `tangent`)")
    return found


def load_direction(path: Path, model: Model) -> Direction:
    """Read this rank's share of what `save_direction` wrote, in fp32, in any layout. Collective.

    Raises UserError for a missing or damaged artifact, or one of another model.
    """

    def check() -> bool:
        manifest = read_manifest(path)
        if manifest.kind != KIND:
            raise UserError(f"{path}: is a {manifest.kind}, not a direction")
        verify_artifact(path)
        check_shapes(layout.canonical_shapes(model.config), SafetensorsFiles(path).shapes(), str(path))
        return is_tangent(path)

    tangent = on_main(model.topology, check)
    tp = model.topology.tp
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}

    def read() -> None:
        full = SafetensorsFiles(path)
        for slot in local_slots(model):
            share = layout.shard(model.config, slot.kind, [full[name] for name in slot.names], tp.rank, tp.size)
            tensors[names[slot.parameter]] = share.to(model.topology.device, copy=True)

    on_every_rank(model.topology, read)  # all have read when it returns: the caller may remove the files
    return Direction(tensors, tangent=tangent)
