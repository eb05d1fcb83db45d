"""Which tokens of a batch are computed: those whose target is not ignored."""

import torch
from torch import Tensor

from synpro_kernels.common.transfer import to_device


class LabelledRows:
    """The tokens whose target is not ignored; the others are never computed (prompts and padding cost nothing).

    How many these are is known at once where the targets are on the host; for a GPU's own, the host waits.
    """

    def __init__(self, target_T: Tensor, ignore_index: int, device: torch.device) -> None:
        """`device`: of the tokens, to which `target` (the labelled ones' targets) goes."""
        labelled = _where_not(target_T, ignore_index)
        self.total = target_T.shape[0]
        self.count = labelled.shape[0]
        # Pretraining labels every token: no copy of the hidden states then.
        every = self.count == self.total
        self._index = None if every else to_device(labelled, device)
        self._given = target_T if every else target_T[labelled]
        self._ignore_index = ignore_index
        self.target = to_device(self._given, device)

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

    def check_within(self, start: int, stop: int) -> None:
        """Raise ValueError for a target outside of [start, stop): it would silently score as logit 0."""
        if self.count == 0:
            return
        if self._given.device.type == "cpu":
            array = self._given.numpy()
            lowest, highest = int(array.min()), int(array.max())
        else:
            lowest, highest = torch.stack(self._given.aminmax()).tolist()
        if lowest < start or highest >= stop:
            wrong, ignored = lowest if lowest < start else highest, self._ignore_index
            raise ValueError(f"target: {wrong} is outside [{start}, {stop}) and is not ignore_index ({ignored})")


def _where_not(target_T: Tensor, ignore_index: int) -> Tensor:
    if target_T.device.type == "cpu":
        return torch.from_numpy((target_T.numpy() != ignore_index).nonzero()[0])
    return (target_T != ignore_index).nonzero().squeeze(1)
