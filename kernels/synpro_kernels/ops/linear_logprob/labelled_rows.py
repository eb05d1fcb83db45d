"""Which tokens of a batch are computed: those whose target is not ignored."""

from torch import Tensor


class LabelledRows:
    """The tokens whose target is not ignored; the others are never computed (prompts and padding cost nothing).

    Costs one device synchronisation, to learn how many there are.
    """

    def __init__(self, target_T: Tensor, ignore_index: int) -> None:
        labelled = (target_T != ignore_index).nonzero().squeeze(1)
        self.total = target_T.shape[0]
        self.count = labelled.shape[0]
        # Pretraining labels every token: no copy of the hidden states then.
        self._index = None if self.count == self.total else labelled

    def take(self, rows: Tensor) -> Tensor:
        """Select the labelled rows of [T, ...]; the same tensor where all are labelled."""
        return rows if self._index is None else rows.index_select(0, self._index)

    def put(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Place labelled rows back into [T, ...], with `fill` in the ignored ones."""
        if self._index is None:
            return rows
        full = rows.new_full((self.total, *rows.shape[1:]), fill)
        # Each row once, so a copy and no sum: deterministic on CUDA.
        return full.index_copy_(0, self._index, rows)
