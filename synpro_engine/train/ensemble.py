"""The loss and the answers of several models together, by their mean probabilities, without any model's logits kept.

A loss, and a question with given answers, asks each member for the probability of the one token that came. So one
number a token is enough, whatever the number of members: ln of the sum of their probabilities, to which each member is
added after it was loaded, scored and let go. Shape suffixes: B rows, S positions, N labels that are not ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.data import IGNORE, Batch
from synpro_engine.data.choices import QuestionSet
from synpro_engine.dist import Topology, sum_over
from synpro_engine.model.model import Model
from synpro_engine.model.scoring import score_tokens
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.losses import count_labels
from synpro_engine.train.questions import Answer, Answers, answer_logprobs, judged


class TokenMixture:
    """ln of the sum of the members' probabilities of each label of one text on this rank; fp32 [N], mapped from a file.

    All members count alike. `members`: how many are in it. `rows`: of this rank's batches.
    """

    def __init__(self, file: Path, batches: Iterable[Batch]) -> None:
        """batches: this rank's share of the text. file: made anew, 4 N bytes."""
        self.members = self.rows = self._labels = 0
        for batch in batches:
            self.rows += batch.tokens_BS.size(0)
            self._labels += int(count_labels(batch.labels_BS))
        # A file of no bytes cannot be mapped: a rank may have no label of a short text.
        self._sums: npt.NDArray[np.float32] = np.memmap(file, np.float32, "w+", shape=max(1, self._labels))

    @torch.no_grad()
    def add(
        self, model: Model, batches: Iterable[Batch], *, micro_batch: int, passed: Callable[[int], object]
    ) -> tuple[float, float]:
        """Take a member in; its own loss, and that of all members so far: nats a token, over all ranks.

        batches: of the same labels each time, read as this member reads them. micro_batch: rows at once. passed: is
        told of each batch's rows. Collective. UserError where the text has not a single label.
        """
        self.members += 1
        totals = torch.zeros(3, dtype=torch.float64)  # -ln p of the member, of the ensemble, labels
        at = 0
        for batch in batches:
            rows = documents_apart(batch, model.topology.device)
            scored = score_tokens(model, batch.tokens_BS, batch.labels_BS, micro_batch=micro_batch, rows=rows)
            own_N = scored.logprob.float().cpu()[batch.labels_BS.cpu() != IGNORE]
            mean_N = self._taken(at, own_N).double() - math.log(self.members)
            # fp64, for these are long sums.
            totals += torch.stack([-own_N.double().sum(), -mean_N.sum(), torch.tensor(float(len(own_N))).double()])
            at += len(own_N)
            passed(batch.tokens_BS.size(0))
        assert at == self._labels
        return _means(totals, model.topology)

    def _taken(self, at: int, own_N: Tensor) -> Tensor:
        """The sums of the labels from `at` on, with a member's ln p of them taken in."""
        sums_N = torch.from_numpy(self._sums[at : at + len(own_N)])
        sums_N.copy_(own_N if self.members == 1 else torch.logaddexp(sums_N, own_N))
        return sums_N


class QuestionMixture:
    """ln of the sum of the members' probabilities of each token of each answer to a set of questions; fp32.

    An answer is as likely as its tokens are, one after the other, by the mean of the members' probabilities: that of a
    model that makes this mean at each token, and not the mean of what whole answers are worth to each member.
    `rows`: answers that this rank scores.
    """

    def __init__(self, asked: QuestionSet, *, seq_len: int, topology: Topology) -> None:
        """seq_len: the longest row of any member. UserError where an answer leaves no room for a prompt."""
        longest = max(len(answer) for question in asked.questions for answer in question.choices)
        if longest >= seq_len:
            raise UserError(f"an answer of {longest} tokens does not fit windows of {seq_len}, the shortest")
        self.members, self._asked, self._seq_len = 0, asked, seq_len
        self.rows = sum(len(of.choices) for of in asked.questions[topology.dp.rank :: topology.dp.size])
        self._sums: dict[Answer, Tensor] = {}

    def add(self, model: Model, *, micro_batch: int, passed: Callable[[int], object]) -> tuple[Answers, Answers]:
        """Take a member in; its own answers, and those of all members so far. Arguments as of `TokenMixture.add`."""
        self.members += 1
        own = answer_logprobs(model, self._asked, seq_len=self._seq_len, micro_batch=micro_batch, passed=passed)
        before = self._sums
        self._sums = {at: torch.logaddexp(before[at], of) if before else of for at, of in own.items()}
        mean = {at: of.double() - math.log(self.members) for at, of in self._sums.items()}
        return judged(self._asked, own, model.topology), judged(self._asked, mean, model.topology)


def _means(totals: Tensor, topology: Topology) -> tuple[float, float]:
    member, ensemble, labels = sum_over(topology.dp, totals.to(topology.device)).tolist()
    if labels == 0:
        raise UserError("text: not a single token to predict")
    return member / labels, ensemble / labels
