"""Whether the layouts that a recipe asks for can run it: asked before its first stage, for the last is days away."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from synpro_engine.backend import platform
from synpro_engine.config import UserError
from synpro_engine.cycle.checkpoints import checkpoint_of
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import IMPORT, PRETRAIN
from synpro_engine.cycle.sections import GeneratorConfig
from synpro_engine.dist import Layout
from synpro_engine.model.config import ModelConfig, check_layout
from synpro_engine.model.pretrained import read_shape
from synpro_engine.train.checkpoint import checkpoint_model_config

_TEACHERS = "`pretrain.distill.teachers`"


def check_recipe(recipe: Recipe, ranks: int, *, samples: bool = True) -> None:
    """Refuse a recipe that so many ranks cannot finish, before its first stage has run; UserError names the key.

    samples: whether the run comes to its generator.
    """
    check_pretraining(recipe, ranks)
    for own in map(recipe.of_arm, recipe.arms):
        check_pretraining(own, ranks)
    for own in map(recipe.of_arm, recipe.all_arms) if samples else ():
        _check_synthesis(own, ranks)


def check_pretraining(recipe: Recipe, ranks: int) -> None:
    """Refuse a recipe whose pretraining and probe so many ranks cannot divide; UserError names the key."""
    layout = recipe.layout_of(PRETRAIN, ranks)
    assert layout is not None
    check_layout(recipe.model, layout)
    if recipe.model.tie_embeddings and recipe.pretrain.optimizer.rates.output != 1:
        raise UserError(
            "`pretrain.optimizer.rates.output`: the output layer is tied to the embedding, whose `embedding` it goes by"
        )
    pretrain, probe, walks = recipe.pretrain, recipe.probe, recipe.probe.kind == "walk"
    _check_batch(layout, "pretrain.global_batch", pretrain.global_batch, "pretrain.micro_batch", pretrain.micro_batch)
    # A direction is made of the steps to come, batches of pretraining, and trains on none.
    batch = ("probe.global_batch", probe.global_batch) if walks else ("pretrain.global_batch", pretrain.global_batch)
    _check_batch(layout, *batch, "probe.micro_batch", probe.micro_batch, trains=walks)
    for place, teacher in teacher_shapes(recipe):
        # One that is not there may be finished by the time it is read, or was put away behind the stage.
        check_teacher(Path(place), None if isinstance(teacher, UserError) else teacher, recipe.model, layout)


def teacher_shapes(recipe: Recipe) -> list[tuple[str, ModelConfig | UserError]]:
    """Each teacher's place as the recipe names it, and its shape, or why that cannot be read."""
    found: list[tuple[str, ModelConfig | UserError]] = []
    for place in recipe.pretrain.distill.teachers if recipe.pretrain.distill is not None else ():
        try:
            found.append((place, checkpoint_model_config(checkpoint_of(Path(place)))))
        except UserError as error:
            found.append((place, error))
    return found


def check_teacher(place: Path, teacher: ModelConfig | None, student: ModelConfig, layout: Layout) -> None:
    """Refuse a teacher that a student of this layout cannot learn from; UserError. None: its shape is not known."""
    if teacher is None:
        return
    if teacher.vocab_size != student.vocab_size:
        rows = teacher.vocab_size
        raise UserError(f"{_TEACHERS}: {place} has a vocabulary of {rows}, this model one of {student.vocab_size}")
    if teacher.seq_len < student.seq_len:
        length = teacher.seq_len
        raise UserError(f"{_TEACHERS}: {place} reads {length} tokens at most, this model {student.seq_len}")
    check_layout(teacher, layout, f"{_TEACHERS}: {place}: its {{}}")


def _check_batch(layout: Layout, key: str, size: int, micro_key: str, micro: int, *, trains: bool = True) -> None:
    """A batch goes into data-parallel ranks, and in a pipeline each rank's part into equal micro-batches."""
    rows = _rows(layout, key, size)
    step = min(micro, rows)
    if layout.pp > 1 and rows % step:
        raise UserError(
            f"`{micro_key}`: {micro} does not divide the {rows} sequences of a rank (`{key}` over {layout.dp}"
            f" data-parallel ranks), as a pipeline (`{layout.key}.pp`) needs"
        )
    if layout.vpp > 1 and trains and rows // step % layout.pp:
        raise UserError(
            f"`{micro_key}`: {micro} makes {rows // step} micro-batches of the {rows} sequences of a rank; an"
            f" interleaved schedule (`{layout.key}.vpp`) needs a multiple of `{layout.key}.pp` = {layout.pp}"
        )


def _rows(layout: Layout, key: str, size: int, remark: str = "") -> int:
    """Each data-parallel rank's share: as large as any other's, since they meet in collectives at each micro-batch."""
    if size % layout.dp:
        raise UserError(
            f"`{key}`: {size} cannot be divided by {layout.dp} data-parallel ranks, which `{layout.key}` leaves{remark}"
        )
    return size // layout.dp


def _check_synthesis(recipe: Recipe, ranks: int) -> None:
    layout = recipe.layout_of(IMPORT, ranks)
    assert layout is not None
    if layout.pp > 1:
        hint = "`pretrain.parallel.pp` gives one to the pretrained model alone"
        raise UserError(f"`{layout.key}.pp`: the generator samples without a pipeline, so it takes pp 1; {hint}")
    shape, key = recipe.generator.model, "`generator.model.{}`"
    if shape is None and layout.tp > 1:  # otherwise nothing is cut, and to look into its files may take seconds
        shape, key = _shape_of(recipe.generator), "`generator.source`: its {}"
    if shape is not None:
        check_layout(shape, layout, key)
        check_trained(recipe, shape)
    if recipe.reward.uses("influence"):
        check_layout(recipe.model, layout)  # it judges texts beside the generator, divided as that one is
        estimator = recipe.influence.estimator
        if estimator == "jvp" and layout.tp > 1:
            raise UserError(f"`influence.estimator`: jvp takes whole models, and `{layout.key}.tp` is {layout.tp}")
        if estimator == "finite_difference" and platform.resolve_dtype(recipe.dtype) == torch.bfloat16:
            raise UserError("`influence.estimator`: finite_difference means nothing in bfloat16; give `dtype: float32`")
    shared = recipe.layouts[layout.key].cp > 1
    hint = "`pretrain.parallel.cp` leaves the generator as it is"
    remark = f" (those of `{layout.key}.cp` are data-parallel here; {hint})" if shared else ""
    for name, tune in recipe.tune.items():
        _rows(layout, f"tune.{name}.prompts_per_step", tune.prompts_per_step, remark)


def check_trained(recipe: Recipe, generator: ModelConfig) -> None:
    """UserError where more blocks are to be tuned than there are, or adapters are as wide as what they stand for."""
    for name, tune in recipe.tune.items():
        critic = None if tune.critic is None else tune.critic.train_last_blocks
        for part, blocks in (("train_last_blocks", tune.train_last_blocks), ("critic.train_last_blocks", critic)):
            if blocks is not None and blocks > generator.layers:
                raise UserError(
                    f"`tune.{name}.{part}`: {blocks} is more than the generator's {generator.layers} blocks"
                )
        for part in ("embedding", "output") if tune.lora is not None or tune.train_last_blocks is not None else ():
            if getattr(tune.optimizer.rates, part) != 1:
                raise UserError(f"`tune.{name}.optimizer.rates.{part}`: the generator's {part} does not train")
        if tune.lora is not None and tune.lora.rank >= generator.d_model:
            raise UserError(
                f"`tune.{name}.lora.rank`: {tune.lora.rank} is not below the generator's width {generator.d_model}"
            )


def _shape_of(generator: GeneratorConfig) -> ModelConfig | None:
    """Of a generator from files; None where they cannot be read, which its import tells, or need not any more."""
    with suppress(UserError):
        return read_shape(generator.source, generator.seq_len)
    return None
