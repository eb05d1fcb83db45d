"""Decoding steps as CUDA graphs: recorded once for each bucket of `static`, then replayed by one call of the host."""

from __future__ import annotations

import torch
import torch.distributed as dist

from synpro_engine.config import UserError
from synpro_engine.dist import Axis
from synpro_engine.sampler.cache import PagePool
from synpro_engine.sampler.static import Prepare, Program, Replay

_WARM_UPS = 2
"""Runs ahead of the recording, in which kernels are compiled and libraries take their memory."""


def recorder(tp: Axis) -> Prepare:
    """What records programs; all of them share one pool of memory, since no two are replayed at once.

    UserError where tensor-parallel ranks are not joined by NCCL: no other library's collectives can be recorded.
    """
    if tp.size > 1 and (library := dist.get_backend(tp.group)) != "nccl":
        raise UserError(
            f"`sampler.graphs`: tensor-parallel ranks joined by {library} cannot be recorded; only NCCL can"
        )
    memory = torch.cuda.graph_pool_handle()

    def prepare(program: Program, pool: PagePool) -> Replay:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # From the beginning each time: places beyond the stride's are those of an earlier one, whose pages may be
            # others' by now. What a step stores is the same every time.
            for _ in range(_WARM_UPS):
                program.rewind()
                program.step(pool)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: NCCL's watchdog and writers of checkpoints go on in theirs.
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            program.step(pool)
        program.rewind()
        return graph.replay

    return prepare
