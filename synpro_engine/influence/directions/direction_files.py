"""Directions on disk: full fp32 tensors by their Hugging Face names, written and read in any layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.config import UserError, read_manifest
from synpro_engine.dist import on_every_rank, on_main, shared_artifact, verify_shared
from synpro_engine.influence.directions.direction import Direction
from synpro_engine.model import canonical
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
    tensors_of = {parameter: direction.tensors.get(name) for name, parameter in model.named_parameters()}

    def read(parameter: Parameter) -> Tensor:
        tensor = tensors_of[parameter]
        # 0 is what a missing name means; written out, so that a file has every tensor of its model.
        return torch.zeros_like(parameter, dtype=torch.float32) if tensor is None else tensor

    # In the manifest: whether its length means anything decides which estimators take the file.
    config = {"model": model.config.model_dump(mode="json"), "tangent": direction.tangent}
    with shared_artifact(model.topology, path, KIND, config, parents, seed) as directory:
        tensors = iter_canonical(model, read=read, dtype=torch.float32)
        write_tensors(directory, tensors, canonical.canonical_shapes(model.config), torch.float32, model.topology)


def is_tangent(path: Path) -> bool:
    """Whether a stored direction is a gradient's, which has no length; UserError where its manifest does not say."""
    tangent = read_manifest(path).config.get("tangent")
    if not isinstance(tangent, bool):
        raise UserError(f"{path}: damaged direction (its manifest does not say whether it is a `tangent`)")
    return tangent


def load_direction(path: Path, model: Model) -> Direction:
    """Read this rank's share of what `save_direction` wrote, in fp32, in any layout. Collective.

    Raises UserError for a missing or damaged artifact, or one of another model.
    """

    def check() -> bool:
        check_shapes(canonical.canonical_shapes(model.config), SafetensorsFiles(path).shapes(), str(path))
        return is_tangent(path)

    # Hashes are compared before a tensor is read: a damaged direction would score without a word.
    manifest = verify_shared(path, model.topology)
    if manifest.kind != KIND:
        raise UserError(f"{path}: is a {manifest.kind}, not a direction")
    # One rank reads the headers, and what it raises is raised on all of them.
    tangent = on_main(model.topology, check)
    tp = model.topology.tp
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}

    def read() -> None:
        full = SafetensorsFiles(path)
        for slot in local_slots(model):
            share = canonical.shard(model.config, slot.kind, [full[name] for name in slot.names], tp.rank, tp.size)
            tensors[names[slot.parameter]] = share.to(model.topology.device, copy=True)

    on_every_rank(model.topology, read)  # all have read when it returns: the caller may remove the files
    return Direction(tensors, tangent=tangent)
