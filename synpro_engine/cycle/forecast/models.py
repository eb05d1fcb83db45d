"""The models of a run by their shapes, as a rank holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from synpro_engine.backend import platform
from synpro_engine.config import UserError
from synpro_engine.cycle.layouts import check_trained, teacher_shapes
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import IMPORT, PRETRAIN
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.pretrained import read_shape
from synpro_engine.train.footprint import Footprint
from synpro_engine.train.metrics import flops_per_token


@dataclass(frozen=True, kw_only=True)
class Models:
    """Those that several stages share. One whose shape is not known takes nothing, and `remarks` say so."""

    theta: Footprint
    teachers: tuple[Footprint, ...]
    """Those that pretraining learns from; each is whole in the student's layout, on all data-parallel ranks."""
    judge: Footprint
    """Theta, or its probe, beside a generator."""
    generator: Footprint | None
    in_job: Mapping[str, Footprint]
    """By their connections, judges that are models in the job: those that are one model are loaded once."""
    remarks: tuple[str, ...]

    @property
    def per_token(self) -> float:
        """FLOPs of a forward and a backward pass of the pretrained model."""
        return flops_per_token(self.theta.model, self.theta.model.seq_len)

    @property
    def per_token_taught(self) -> float:
        """FLOPs of the teachers' forward passes."""
        length = self.theta.model.seq_len  # the student's, which they read
        return sum(flops_per_token(teacher.model, length) for teacher in self.teachers) / 3

    @classmethod
    def of(cls, recipe: Recipe, ranks: int) -> Models:
        """Those of a recipe on so many ranks; UserError for blocks or layers that a generator has not to train."""
        dtype, remarks = platform.resolve_dtype(recipe.dtype), list[str]()

        def shape_of(key: str, source: str, seq_len: int | None) -> ModelConfig | None:
            try:
                return read_shape(source, seq_len)
            except UserError as error:
                remarks.append(f"`{key}`: {error}; what it takes is left out")
                return None

        config, pretrain = recipe.generator, recipe.pretrain
        shape = config.model or shape_of("generator.source", config.source, config.seq_len)
        if shape is not None:
            check_trained(recipe, shape)
        own, generators = (recipe.layout_of(stage, ranks) for stage in (PRETRAIN, IMPORT))
        assert own is not None and generators is not None
        teachers = teacher_shapes(recipe)
        faults = [found for _, found in teachers if isinstance(found, UserError)]
        remarks += [f"`pretrain.distill.teachers`: {fault}; what it takes is left out" for fault in faults]
        rewards = [
            own.reward for own in (recipe, *map(recipe.of_arm, recipe.arms))
        ]  # an arm may have judges of its own
        judges = {judge.connection: (name, judge) for of in rewards for name, judge in of.judges.in_job.items()}
        asked = {
            one: shape_of(f"reward.judges.{name}.model", judge.model, judge.seq_len)
            for one, (name, judge) in judges.items()
        }
        kept, apart = len(pretrain.averages), pretrain.separate_documents
        return cls(
            theta=Footprint(
                recipe.model,
                own,
                dtype,
                pretrain.optimizer.name,
                pretrain.recompute,
                kept,
                apart,
                pretrain.offload_layers,
                gpu=platform.trains_on_gpu(dtype),
            ),
            teachers=tuple(Footprint(found, own, dtype) for _, found in teachers if not isinstance(found, UserError)),
            judge=Footprint(recipe.model, generators, dtype),
            # It is tuned on rows of several completions, which a mask keeps apart.
            generator=None
            if shape is None
            else Footprint(shape, generators, dtype, apart=True, gpu=platform.trains_on_gpu(dtype)),
            in_job={one: Footprint(found, generators, dtype) for one, found in asked.items() if found is not None},
            remarks=tuple(remarks),
        )
