"""How a job's processes are divided: what a recipe asks for, and what that makes of so many of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pydantic import Field

from synpro_engine.config import Config, UserError


class LayoutConfig(Config):
    """How the ranks divide a model; data parallelism takes what is left of them."""

    tp: int = Field(default=1, ge=1)
    """Tensor-parallel size: ranks that share each matrix."""
    pp: int = Field(default=1, ge=1)
    """Pipeline-parallel size: consecutive stages of layers."""
    vpp: int | None = Field(default=None, ge=2)
    """Model chunks per pipeline stage (interleaved schedule); needs pp >= 2."""
    sequence_parallel: bool = False
    """Split activations along the sequence between tensor-parallel ranks; needs tp >= 2."""
    cp: int = Field(default=1, ge=1)
    """Context-parallel size: ranks that share each sequence, in pretraining and the probe. What reads without training
    and what samples has whole sequences: there these ranks are data-parallel."""


class ParallelConfig(LayoutConfig):
    """How the ranks divide every model that has no layout of its own, and how long they wait for each other."""

    timeout_minutes: float = Field(default=30, gt=0)
    """Longest wait within one collective, after which the job ends. Long work of one rank is waited for elsewhere, as
    long as that rank is alive."""
    join_minutes: float = Field(default=10, gt=0)
    """Longest wait for all processes of the job to start."""
    silence_minutes: float = Field(default=5, gt=0)
    """A rank that others wait for is taken for dead when it has shown no sign of life for so long."""
    hang_minutes: float = Field(default=20, gt=0)
    """Training of several ranks ends, and names the rank that is behind, when a part of a step takes longer than that
    and than ten times the longest one so far. Less than `timeout_minutes`, which names a rank that waits."""


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel axes. `vpp` is 1 without an interleaved schedule."""

    dp: int
    tp: int
    pp: int
    vpp: int
    sequence_parallel: bool
    key: str = field(default="parallel", compare=False)
    """The section of the settings that asks for it, for messages."""
    cp: int = 1

    @classmethod
    def of(cls, parallel: LayoutConfig, world: int, key: str = "parallel") -> Layout:
        """What `parallel` makes of `world` processes; UserError, by `key`, where it does not go into them."""
        size = parallel.tp * parallel.pp * parallel.cp
        if world % size:
            by_context = f" x cp {parallel.cp}" if parallel.cp > 1 else ""
            raise UserError(
                f"`{key}`: tp {parallel.tp} x pp {parallel.pp}{by_context} does not divide the {world} process(es) of"
                " this job"
            )
        # Megatron refuses these two as well, in a traceback that names no setting.
        if parallel.vpp and parallel.pp < 2:
            raise UserError(f"`{key}.vpp`: an interleaved schedule needs pp >= 2")
        if parallel.sequence_parallel and parallel.tp < 2:
            raise UserError(f"`{key}.sequence_parallel`: needs tp >= 2")
        return cls(
            dp=world // size,
            tp=parallel.tp,
            pp=parallel.pp,
            vpp=parallel.vpp or 1,
            sequence_parallel=parallel.sequence_parallel,
            key=key,
            cp=parallel.cp,
        )

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights: they share the batch and its sequences, and what the optimizer keeps."""
        return self.dp * self.cp

    def with_whole_sequences(self) -> Layout:
        """The same ranks for models that are only read: what shared a sequence shares the batch."""
        return replace(self, dp=self.replicas, cp=1)

    def __str__(self) -> str:
        """In short, as in `DP2 TP2`."""
        sizes = {"DP": self.dp, "CP": self.cp, "TP": self.tp, "PP": self.pp, "VPP": self.vpp}
        return " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "1 process"
