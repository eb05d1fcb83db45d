"""A stage's weights as a Hugging Face directory, with the tokenizer that belongs to them."""

from __future__ import annotations

from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import UserError, check_replaceable, outside_artifacts
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import tokenizer_stage
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.dist import Topology, on_main, verify_shared
from synpro_engine.model.hf import KIND, export_hf


def export_stage(directory: Path, stage: str, output: Path, recipe: Recipe, topology: Topology) -> None:
    """Write the weights of `stage` (as in `pretrain` or `round-1/tune-rephrase`). Collective.

    Raises UserError for a stage that is not there or holds no weights, and where `output` holds anything but an earlier
    export, which is replaced.
    """
    path, source = directory / stage, directory / tokenizer_stage(stage)

    def check() -> None:
        if not path.is_dir():
            raise UserError(f"{path}: no such finished stage")
        check_replaceable(output, KIND)  # an earlier export there is replaced
        outside_artifacts(output.resolve().parent)

    on_main(topology, check)
    verify_shared(source, topology)
    model = load_model(path, topology, platform.resolve_dtype(recipe.dtype))
    export_hf(model, output, open_tokenizer(source, topology))
