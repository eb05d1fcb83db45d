"""The fp64 truth that linear_logprob's contenders are held to, and their verdicts.

Outputs are compared for every token; gradients on rows that hit both ends, random places and (for the weight) targets,
which keeps the truth affordable at T 8192, V 131072.
Shapes: T tokens, H width, V vocabulary, C tokens of a chunk, R and S the compared rows of hidden and of weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common.records import Verdict, judge
from benchmarks.linear_logprob.problem import ENTROPY_SHARE, Inputs, Outputs, join, outputs_of_logits

_CHUNK_BYTES = 256 << 20


class Gradients(NamedTuple):
    """The compared rows of both gradients."""

    hidden_RH: Tensor
    weight_SH: Tensor


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All outputs, and the compared gradients of the objective with and without entropy."""

    outputs: Outputs
    gradients: dict[bool, Gradients]


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """The truth in fp64, and the plain path of the inputs' own dtype, whose error is the yardstick."""

    rows_R: Tensor
    columns_S: Tensor
    truth: Evaluation
    plain: Evaluation

    @classmethod
    def of(cls, inputs: Inputs, *, rows: int = 64, columns: int = 128) -> Oracle:
        """Evaluate the problem by definition in both precisions."""
        hidden, weight, target = inputs
        rows_R = _spread_rows(hidden.shape[0], rows, target.new_empty(0))
        columns_S = _spread_rows(weight.shape[0], columns, target)
        exact = Inputs(hidden.detach().double(), weight.detach().double(), target)
        same = Inputs(hidden.detach(), weight.detach(), target)
        truth = _evaluate(exact, rows_R, columns_S, precise=torch.float64)
        plain = _evaluate(same, rows_R, columns_S, precise=torch.promote_types(hidden.dtype, torch.float32))
        return cls(rows_R=rows_R, columns_S=columns_S, truth=truth, plain=plain)

    def verdicts(self, outputs: Outputs, grad_hidden: Tensor | None, grad_weight: Tensor | None) -> list[Verdict]:
        """Judge all that was computed; gradients where they are given (which are also checked to be finite)."""
        found = []
        for what in ("logprob", "logsumexp", "entropy"):
            actual = getattr(outputs, what)
            if actual is not None:
                plain, truth = getattr(self.plain.outputs, what), getattr(self.truth.outputs, what)
                found.append(judge(what, actual, plain, truth))
        if outputs.loss is not None:
            found.append(self._loss_verdict(outputs.loss))
        kind = outputs.entropy is not None
        plain, truth = self.plain.gradients[kind], self.truth.gradients[kind]
        for what, grad, rows, k in (
            ("grad_hidden", grad_hidden, self.rows_R, 0),
            ("grad_weight", grad_weight, self.columns_S, 1),
        ):
            if grad is not None:
                # One value that is not finite, anywhere, spoils the compared rows too.
                spoil = torch.where(torch.isfinite(grad).all(), 0.0, torch.nan)
                found.append(judge(what, grad[rows] + spoil.to(grad.dtype), plain[k], truth[k]))
        return found

    def _loss_verdict(self, loss: Tensor) -> Verdict:
        """A mean hides errors that cancel, the plain path's too: its yardstick is the plain path's mean error."""
        plain_T, truth_T = self.plain.outputs.logprob, self.truth.outputs.logprob
        assert plain_T is not None and truth_T is not None
        truth = -truth_T.mean()
        return judge("loss", loss, truth + (plain_T - truth_T).abs().mean(), truth)


def _spread_rows(count: int, wanted: int, always: Tensor) -> Tensor:
    """Indices of both ends, of some of `always`, and of random places; sorted, no more than `wanted`."""
    ends = torch.arange(min(wanted // 4, count))
    generator = torch.Generator().manual_seed(count)
    anywhere = torch.randint(count, (wanted // 4,), generator=generator)
    chosen = torch.cat([ends, count - 1 - ends, always[: wanted // 4].cpu(), anywhere])
    return chosen.unique().to(always.device)


def _evaluate(inputs: Inputs, rows_R: Tensor, columns_S: Tensor, *, precise: torch.dtype) -> Evaluation:
    """Evaluate by definition, chunks of tokens at a time, differentiating the logits with autograd."""
    hidden, weight, target = inputs
    size = max(1, _CHUNK_BYTES // (weight.shape[0] * precise.itemsize))
    parts: list[Outputs] = []
    columns: dict[bool, list[Tensor]] = {False: [], True: []}
    rows: dict[bool, list[Tensor]] = {False: [], True: []}
    for start in range(0, hidden.shape[0], size):
        chunk = slice(start, start + size)
        logits_CV = (hidden[chunk] @ weight.t()).requires_grad_()
        outputs = outputs_of_logits(logits_CV, target[chunk], entropy=True, precise=precise)
        own_R = rows_R[(rows_R >= start) & (rows_R < start + size)] - start
        for kind in (False, True):
            dlogits_CV = _logit_gradient(outputs, logits_CV, hidden.shape[0], entropy=kind)
            columns[kind].append(dlogits_CV[:, columns_S])
            rows[kind].append(dlogits_CV[own_R] @ weight)
        parts.append(Outputs(*(None if part is None else part.detach() for part in outputs)))
    joined = join(parts)
    grads = {kind: Gradients(torch.cat(rows[kind]), torch.cat(columns[kind]).t() @ hidden) for kind in rows}
    return Evaluation(outputs=joined, gradients=grads)


def _logit_gradient(outputs: Outputs, logits_CV: Tensor, tokens: int, *, entropy: bool) -> Tensor:
    assert outputs.logprob is not None and outputs.entropy is not None
    objective = -outputs.logprob.sum() - (ENTROPY_SHARE * outputs.entropy.sum() if entropy else 0.0)
    return torch.autograd.grad(objective / tokens, logits_CV, retain_graph=not entropy)[0]
