"""What the forward and the backward pass share: the scalar settings and the choice of rows."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LogitSettings:
    """How products become logits, and which targets count: logit = softcap * tanh(product / softcap) / temperature."""

    temperature: float
    softcap: float | None
    ignore_index: int
    vocab_start: int
    """Global id of the weight's first row."""

    @property
    def scale(self) -> float:
        """Factor from tanh(product / softcap), or from the product where there is no cap, to the logit."""
        return (self.softcap or 1.0) / self.temperature


class KeptRows:
    """The tokens whose target is not ignored; the others are never computed (prompts and padding cost nothing).

    Costs one device synchronisation, to learn how many there are.
    """

    def __init__(self, target_T: Tensor, ignore_index: int) -> None:
        kept = (target_T != ignore_index).nonzero().squeeze(1)
        self.total = target_T.shape[0]
        self.count = kept.shape[0]
        self._index = None if self.count == self.total else kept

    def take(self, rows: Tensor) -> Tensor:
        """Select the kept rows of [T, ...]; the same tensor where all are kept."""
        return rows if self._index is None else rows.index_select(0, self._index)

    def put(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Place kept rows back into [T, ...], with `fill` in the ignored ones."""
        if self._index is None:
            return rows
        full = rows.new_full((self.total, *rows.shape[1:]), fill)
        return full.index_copy_(0, self._index, rows)
