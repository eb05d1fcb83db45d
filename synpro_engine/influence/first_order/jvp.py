"""The derivative of the loss along a direction in forward mode: slow, to check the fast estimators against.

It gives that of every token's own loss, so its shares are by loss token, as those of two forwards. Megatron's layers
have no forward mode, so it goes through `plain_decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn import Parameter

from synpro_engine.influence.batching import by_sequence, window_batches
from synpro_engine.influence.directions import Direction, check_fits, check_has_length
from synpro_engine.influence.estimator import At, Remembered, SequenceScore, SharesBy, score_of
from synpro_engine.influence.first_order.plain_decoder import check_whole, plain_logprobs
from synpro_engine.model.model import Model
from synpro_engine.train.parking import Reading


class JvpInfluence:
    """<grad L(x), v> by one forward pass with dual numbers: exact up to rounding, which in fp64 is none to speak of.

    One process; all logits are held. It depends on none of the code that the capture runs on but the parameters.
    """

    shares_by: SharesBy = "loss token"

    def __init__(
        self,
        model: Model,
        direction: Direction,
        *,
        start_id: int,
        at: At = "theta",
        micro_batch: int = 16,
        dtype: torch.dtype = torch.float64,
        keep: int = 4096,
    ) -> None:
        """dtype: what is computed in, whatever the model is stored in. ValueError on a split model."""
        check_whole(model)
        check_fits(model, direction)
        if at == "midpoint":
            check_has_length(direction, "at: a midpoint")
        names = {parameter: name for name, parameter in model.named_parameters()}
        self._model, self._start_id, self._micro_batch, self._dtype = model, start_id, micro_batch, dtype
        self._tangents = {p: direction.tensors[name] for p, name in names.items() if name in direction.tensors}
        self._shift = -0.5 if at == "midpoint" else 0.0
        self._remembered = Remembered([model], self._measure, keep)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[SequenceScore]:
        """See `Estimator.score`."""
        return self._remembered(sequences)

    def reads(self) -> Reading:
        """See `Estimator.reads`."""
        return Reading((self._model,), tuple(self._tangents.values()))

    def _measure(self, sequences: list[Sequence[int]]) -> list[SequenceScore]:
        batches = window_batches(
            sequences, start_id=self._start_id, seq_len=self._model.config.seq_len, micro_batch=self._micro_batch
        )
        values = [self._duals(batch.tokens_BS, batch.labels_BS) for batch in batches]
        parted = by_sequence([len(ids) for ids in sequences], batches, values, lead=(2,))
        seq_len = self._model.config.seq_len
        # Log-probabilities were differentiated; influence is of losses.
        return [score_of(-tangent_T, logprob_T, seq_len) for logprob_T, tangent_T in parted]

    @torch.no_grad()
    def _duals(self, tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """Log-probabilities and their derivatives along v, [2, B, S]."""
        device = self._model.topology.device
        # Tangents ride along with the forward pass, so nothing is kept for a backward one (hence no_grad).
        with forward_ad.dual_level():
            duals: dict[Parameter, Tensor] = {}
            for parameter in self._model.parameters():
                duals[parameter] = value = parameter.to(self._dtype)
                if parameter in self._tangents:
                    v = self._tangents[parameter].to(self._dtype)
                    # The midpoint shifts the primal, not the tangent: the slope there is along the whole of v.
                    duals[parameter] = forward_ad.make_dual(value + self._shift * v, v)
            logprob_BS = plain_logprobs(
                self._model, tokens_BS.to(device), labels_BS.to(device), lambda parameter: duals[parameter]
            )
            primal, tangent = forward_ad.unpack_dual(logprob_BS)
            # None where no parameter of the direction is on the way.
            return torch.stack([primal, torch.zeros_like(primal) if tangent is None else tangent])
