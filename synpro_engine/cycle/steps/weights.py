"""Models in and out of a run's stages.

Each kind of stage keeps its weights in a place of its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from synpro_engine.backend import platform
from synpro_engine.config import UserError, check_replaceable, outside_artifacts, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.checkpoints import checkpoint_of
from synpro_engine.cycle.layouts import check_teacher
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import CORPUS, TOKENIZER, run_of, tokenizer_stage
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.data import Tokenizer, load_tokenizer
from synpro_engine.dist import Topology, broadcast_object, on_main, verify_shared
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import KIND as EXPORT
from synpro_engine.model.hf import export_hf
from synpro_engine.model.model import Model
from synpro_engine.model.state import iter_by_name
from synpro_engine.storage import copy_artifact, is_remote, put_directory, writing_to
from synpro_engine.train.checkpoint import KIND, checkpoint_model_config, load_checkpoint
from synpro_engine.train.config import DistillConfig, WeightsOf


def stage_checkpoint(stage: Path, topology: Topology) -> Path:
    """The weights that a finished stage ended with, or `stage` itself where it is a checkpoint, as rank 0 finds them.

    Collective. UserError when there are none.
    """
    return on_main(topology, lambda: checkpoint_of(stage))


def load_model(
    stage: Path,
    topology: Topology,
    dtype: torch.dtype,
    *,
    like: ModelConfig | None = None,
    weights: WeightsOf | None = None,
) -> Model:
    """The model that a finished stage ended with, frozen. Collective.

    like: the shape it must have; UserError, which names the difference, when it has another. weights: which of a stage
    that kept averages; None: those that it hands on.
    """
    path = stage_checkpoint(stage, topology)
    shape = like or on_main(topology, lambda: checkpoint_model_config(path))
    model = build_model(shape, topology, dtype=dtype, seed=None)
    load_checkpoint(path, model, weights=weights)
    # Nothing that is only read should keep activations for a backward pass; whoever trains it says so.
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def export_stage(
    directory: Path,
    stage: str,
    output: str | Path,
    recipe: Recipe,
    topology: Topology,
    weights: WeightsOf | None = None,
) -> None:
    """Write the weights of `stage` (as in `pretrain` or `round-1/tune-rephrase`). Collective.

    output: a path or an address. weights: as `load_model` takes them. Raises UserError for a stage that is not there or
    holds no weights, and where `output` holds anything but an earlier export, which is replaced.
    """
    path, source = directory / stage, directory / tokenizer_stage(stage)

    def check() -> None:
        if not path.is_dir():
            raise UserError(f"{path}: no such finished stage")
        if not is_remote(output):
            check_replaceable(Path(output), EXPORT)  # an earlier export there is replaced
            # Of the parent: the output itself may be an earlier export, which is an artifact.
            outside_artifacts(Path(output).resolve().parent)

    on_main(topology, check)
    # The checkpoint is verified where it is loaded; the tokenizer lies in another stage.
    verify_shared(source, topology)
    with writing_to(str(output), EXPORT, topology) as directory:
        model = load_model(path, topology, platform.resolve_dtype(recipe.dtype), weights=weights)
        export_hf(model, directory, open_tokenizer(source, topology))


def export_corpus(stage: Path, output: str, topology: Topology) -> None:
    """Copy the corpus that a finished stage generated, with its provenance, to a path or an address. Collective.

    UserError where `output` holds anything but an earlier copy, which is replaced.
    """
    verify_shared(stage, topology)
    corpus = stage / CORPUS
    on_main(
        topology,
        lambda: put_directory(corpus, output) if is_remote(output) else copy_artifact(corpus, Path(output)),
        label="copying",
    )


def weights_hash(model: Model) -> str:
    """Hex SHA-256 of the full weights: the same in every layout and for every way they were saved. Collective.

    Rank 0 makes it while the tensors pass; no rank holds more than a layer of them.
    """
    digest = hashlib.sha256()
    for name, tensor in iter_by_name(model):
        if model.topology.is_main:
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return broadcast_object(digest.hexdigest(), model.topology)


def load_teachers(
    config: DistillConfig | None, tokenizer: Tokenizer, shape: ModelConfig, topology: Topology, dtype: torch.dtype
) -> list[Model]:
    """The models that `pretrain.distill.teachers` names, frozen, in this layout. Collective.

    Raises UserError, which names the key, for one that does not fit.
    """
    found: list[Model] = []
    if config is None:
        return found
    key = "`pretrain.distill.teachers`"
    for place in map(Path, config.teachers):
        theirs = on_main(topology, lambda place=place: load_tokenizer(recorded_tokenizer(place)).fingerprint)
        if theirs != tokenizer.fingerprint:
            raise UserError(f"{key}: {place} was trained with another tokenizer")
        path = stage_checkpoint(place, topology)
        # Before its weights are read, which take long.
        check_teacher(place, on_main(topology, lambda path=path: checkpoint_model_config(path)), shape, topology.layout)
        found.append(load_model(place, topology, dtype))
    return found


def recorded_tokenizer(weights: Path) -> Path:
    """`find_tokenizer`; UserError where there is none."""
    found = find_tokenizer(weights)
    if found is None:
        raise UserError(f"{weights}: no tokenizer is recorded with it; name one with --tokenizer")
    return found


def find_tokenizer(weights: Path) -> Path | None:
    """The tokenizer that belongs to a stage or to a checkpoint inside one.

    It lies in the stage itself or in the one of the same run that the stage was made from. None when it is not there,
    or when that stage was made anew since.
    """
    place = weights.resolve()
    # A stage, a checkpoint in it, or one of several in its folder of checkpoints.
    for stage in (place, place.parent, place.parent.parent):
        if not (stage / MANIFEST).is_file() or (manifest := read_manifest(stage)).kind == KIND:
            continue
        if (stage / TOKENIZER).is_dir():
            return stage / TOKENIZER
        source = tokenizer_stage(manifest.kind)
        holder = run_of(stage, manifest.kind) / source
        if (holder / MANIFEST).is_file() and read_manifest(holder).content_hash == manifest.parents.get(source):
            return holder / TOKENIZER
    return None
