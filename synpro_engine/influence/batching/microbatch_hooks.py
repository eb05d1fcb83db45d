"""Hooks on a model's chunks, and which micro-batch each chunk is at.

A chunk is a part of the model that this rank runs; an interleaved pipeline gives it several. In every schedule a
chunk's k-th forward runs the k-th micro-batch, whatever other chunks and stages do meanwhile, so that counting
forwards is enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from synpro_engine.model.model import Model

Begin = Callable[[int, Tensor], None]


class MicrobatchHooks:
    """Counts each chunk's forwards; `index[c]` is the micro-batch that chunk c is at, -1 before the first."""

    def __init__(self, model: Model) -> None:
        self._model = model
        # A count for each chunk: in an interleaved pipeline one may be at micro-batch 0 while another is at 3.
        self.index = [-1] * len(model.chunks)

    @contextlib.contextmanager
    def counted(self, begin: Begin | None = None) -> Iterator[contextlib.ExitStack]:
        """Count from zero within the block; handles put on the stack are removed at its end.

        `begin(index, tokens_BS)` is called before each forward of a chunk, with the tokens as padded for it.
        """
        self.index = [-1] * len(self._model.chunks)
        # Handles go even when the pass fails: a forgotten hook would count, and rearrange, in the next training step.
        with contextlib.ExitStack() as stack:
            for number, chunk in enumerate(self._model.chunks):
                stack.enter_context(chunk.register_forward_pre_hook(self._next(number, begin)))
            yield stack

    def _next(self, chunk: int, begin: Begin | None) -> Callable[[Any, tuple[Any, ...]], None]:
        def hook(_module: Any, args: tuple[Any, ...]) -> None:
            self.index[chunk] += 1
            if begin is not None:
                begin(self.index[chunk], args[0])

        return hook
