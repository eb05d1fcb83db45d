"""Bringing updated weights from the data-parallel rank that owns them to all others: at once, or behind the next pass.

Behind it, all of them are sent right after the update, in the order in which a forward pass reads them, and a module
waits for its own when it is called. Megatron's hooks would begin a send in the midst of a pass, so that a pass that not
every rank makes (an evaluation of uneven shares) would wait for ever. Here waiting concerns one rank alone; so whoever
reads weights off a model waits without a word to the others (`Model.arrive`), and none is ever read before it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from synpro_engine.backend.spans import PARAM_GATHER, span

Groups = list[Any]  # Megatron's groups of buckets are not typed


class WeightGather:
    """Of one engine's chunks, wrapped with `overlap_param_gather` where `behind` is asked for."""

    def __init__(self, wrapped: Sequence[DistributedDataParallel], *, behind: bool) -> None:
        self._wrapped, self._behind, self._pending = wrapped, behind, False
        # Buckets are numbered from the last layer on, and chunks as they are read.
        self._groups: Groups = [group for chunk in wrapped for group in reversed(chunk.bucket_groups)]
        for chunk in wrapped:  # an older engine's, which has nothing under way
            vars(chunk.module).pop("arrive", None)
            for hook in vars(chunk.module).pop("arrivals", ()):
                hook.remove()
        for chunk in wrapped if behind else ():
            hooks = list[RemovableHandle]()
            chunk.module.arrive = self.finish  # pyright: ignore[reportArgumentType] - no module
            chunk.module.arrivals = hooks  # pyright: ignore[reportArgumentType]
            chunk.disable_forward_pre_hook(param_sync=False)
            for module in chunk.module.modules():
                own = {id(g): g for p in module.parameters(recurse=False) if (g := chunk.param_to_bucket_group.get(p))}
                if own:
                    hooks.append(module.register_forward_pre_hook(_waiting(list(own.values()))))

    def begin(self) -> None:
        """After an update that has gathered nothing. Collective."""
        if self._behind:
            assert not self._pending
            for group in self._groups:
                group.start_param_sync()
            self._pending = True

    def finish(self) -> None:
        """Return with all weights there. Not collective."""
        if self._pending:
            _wait(self._groups)
            self._pending = False

    def now(self) -> None:
        """Gather anew, after the ranks' own shares were written, and wait. Collective."""
        self.finish()
        for chunk in self._wrapped:
            chunk.start_param_sync(force_sync=True)


def _waiting(groups: Groups) -> Callable[..., None]:
    return lambda *_: _wait(groups)


def _wait(groups: Groups) -> None:
    for group in groups:
        if group.param_gather_handle is not None:
            with span(PARAM_GATHER):  # no part of the pass that it is met in: others' time, and the network's
                group.param_gather_handle.wait()
            group.param_gather_handle = None
