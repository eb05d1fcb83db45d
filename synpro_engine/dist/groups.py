"""The process groups that Megatron keeps in globals, by layout: made once each, and one layout's at a time in force."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed as dist

from synpro_engine.backend.megatron_globals import put_globals, taken_globals
from synpro_engine.dist.layout import Layout


class AxisGroups(NamedTuple):
    """This rank's group along each axis of a layout; `replicas` is the data- and context-parallel one."""

    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    dp: dist.ProcessGroup
    cp: dist.ProcessGroup
    replicas: dist.ProcessGroup


class Groups:
    """Megatron's groups of one job. Groups take memory and threads, and on GPUs seconds to make: they are kept."""

    def __init__(self, seed: int, timeout_minutes: float) -> None:
        """seed: of Megatron's random streams, which differ between ranks."""
        self._seed, self._timeout_minutes = seed, timeout_minutes
        self._unset = taken_globals()
        self._made: dict[tuple[int, int, int, int], dict[str, Any]] = {}
        self.in_force: Layout | None = None

    def use(self, layout: Layout) -> AxisGroups:
        """Put a layout in force; this rank's groups in it. Collective where it is new."""
        from megatron.core import parallel_state, tensor_parallel

        sizes = (layout.tp, layout.pp, layout.vpp, layout.cp)
        if sizes not in self._made:
            put_globals(self._unset)
            parallel_state.initialize_model_parallel(
                layout.tp,
                layout.pp,
                layout.vpp if layout.vpp > 1 else None,
                context_parallel_size=layout.cp,
                distributed_timeout_minutes=self._timeout_minutes,  # pyright: ignore[reportArgumentType]
                create_gloo_process_groups=False,  # a second set of groups, over gloo, that nothing here uses
            )
            self._made[sizes] = taken_globals()
        put_globals(self._made[sizes])
        # Tensors of the shapes that the models before had.
        parallel_state.get_global_memory_buffer().buffer.clear()
        # The streams go by a rank's place. Nothing in training draws from them, so that to begin anew is no loss.
        tensor_parallel.model_parallel_cuda_manual_seed(self._seed, force_reset_rng=True)
        self.in_force = layout
        state: Any = parallel_state
        return AxisGroups(
            tp=state.get_tensor_model_parallel_group(),
            pp=state.get_pipeline_model_parallel_group(),
            dp=state.get_data_parallel_group(),
            cp=state.get_context_parallel_group(),
            replicas=state.get_data_parallel_group(with_context_parallel=True),
        )
