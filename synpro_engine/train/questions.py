"""Multiple-choice questions put to a model: which answer it finds likeliest, and how likely the right one is.

Nothing is generated. Of each answer the log-probability behind its prompt is summed over its tokens, in nats; neither
the prompt's tokens nor an end of text count, and a blank between the two does where it joins an answer's first token.
Accuracy is of the answer with the largest sum, or with the largest for each UTF-8 byte, for sums favour short ones
(`acc` and, by bytes for characters, `acc_norm` of EleutherAI's harness, which always counts that blank; Gu et al.,
arXiv 2406.08446, compare such choices). Bits per byte are of the right answers, and move long before accuracy
leaves chance (Bhagia et al., arXiv 2412.04403).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synpro_engine.data import IGNORE
from synpro_engine.data.choices import ChoiceQuestion, QuestionSet
from synpro_engine.dist import Topology, broadcast_object, gather_objects
from synpro_engine.model.model import Model
from synpro_engine.model.scoring import score_tokens

_CALL = 8  # micro-batches in one call: rows of much the same length, and a pipeline stays filled

Answer = tuple[int, int]
"""(number of the question, number of the choice)."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How a set of questions was answered. Accuracies are shares from 0 to 1."""

    accuracy: float
    accuracy_per_byte: float
    bits_per_byte: float
    """Of the right answers, over all of their bytes."""


@dataclass(frozen=True)
class _Row:
    """An answer behind its prompt: ids, and how many of the last ones are the answer's."""

    question: int
    choice: int
    ids: Sequence[int]
    answer: int


def ask(model: Model, asked: QuestionSet, *, seq_len: int, micro_batch: int) -> Answers:
    """Put all questions to the model; each data-parallel replica answers its share of them.

    NaN where a likelihood is not finite, as of weights that diverge; else as `answer_nats`.
    """
    nats = answer_nats(model, asked, seq_len=seq_len, micro_batch=micro_batch)
    return _answers(asked.questions, nats)


def answer_nats(model: Model, asked: QuestionSet, *, seq_len: int, micro_batch: int) -> dict[Answer, float]:
    """-log p of each answer behind its prompt, by the numbers of question and answer.

    seq_len: the longest row; a longer prompt loses its beginning. Collective over the job, the same on every rank.
    """
    return _summed(answer_logprobs(model, asked, seq_len=seq_len, micro_batch=micro_batch), model.topology)


def answer_logprobs(
    model: Model,
    asked: QuestionSet,
    *,
    seq_len: int,
    micro_batch: int,
    passed: Callable[[int], object] = lambda rows: None,
) -> dict[Answer, Tensor]:
    """ln p of each token of the answers that this data-parallel replica is asked, fp32 [tokens] on the host.

    Arguments as of `answer_nats`; passed: is told of so many answers. Collective over the job.
    """
    rows = list(_rows(asked, seq_len, model.topology.dp.rank, model.topology.dp.size))
    # Long ones first, so that rows of a call are of much the same length.
    rows.sort(key=lambda row: (-len(row.ids), row.question, row.choice))
    found: dict[Answer, Tensor] = {}
    for start in range(0, len(rows), _CALL * micro_batch):
        some = rows[start : start + _CALL * micro_batch]
        found |= _score(model, some, micro_batch)
        passed(len(some))
    return found


def judged(asked: QuestionSet, logprobs: Mapping[Answer, Tensor], topology: Topology) -> Answers:
    """What answers of these log-probabilities are worth, each replica's share together; the same on every rank."""
    return _answers(asked.questions, _summed(logprobs, topology))


def _summed(logprobs: Mapping[Answer, Tensor], topology: Topology) -> dict[Answer, float]:
    """-log p of whole answers, all replicas' on every rank."""
    nats = {key: -float(logprob.double().sum()) for key, logprob in logprobs.items()}
    all_nats = {key: value for part in gather_objects(topology.dp, nats) for key, value in part.items()}
    # Those of one rank, for others may have summed in another order.
    return broadcast_object(all_nats, topology)


def _rows(asked: QuestionSet, seq_len: int, rank: int, ranks: int) -> Iterator[_Row]:
    for number in range(rank, len(asked.questions), ranks):
        question = asked.questions[number]
        for choice, answer in enumerate(question.choices):
            # One id more than a window has inputs: the last is a target alone.
            ids = [asked.start_id, *question.before(choice), *answer][-(seq_len + 1) :]
            yield _Row(number, choice, ids, len(answer))


def _score(model: Model, rows: Sequence[_Row], micro_batch: int) -> dict[Answer, Tensor]:
    """ln p of each token of each row's answer."""
    longest = max(len(row.ids) for row in rows) - 1
    tokens_BS = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels_BS = torch.full_like(tokens_BS, IGNORE)
    for at, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        tokens_BS[at, : len(ids) - 1] = ids[:-1]
        labels_BS[at, len(ids) - 1 - row.answer : len(ids) - 1] = ids[-row.answer :]
    device = model.topology.device
    scored = score_tokens(model, tokens_BS.to(device), labels_BS.to(device), micro_batch=micro_batch)
    answered = labels_BS != IGNORE
    per_row = zip(scored.logprob.float().cpu(), answered, strict=True)
    return {(row.question, row.choice): of[where] for row, (of, where) in zip(rows, per_row, strict=True)}


def _answers(questions: Sequence[ChoiceQuestion], nats: Mapping[Answer, float]) -> Answers:
    right = per_byte = 0
    gold_nats: list[float] = []
    for number, question in enumerate(questions):
        mine = [nats[number, choice] for choice in range(len(question.choices))]
        if not all(map(math.isfinite, mine)):
            return Answers(accuracy=math.nan, accuracy_per_byte=math.nan, bits_per_byte=math.nan)
        by_length = [one / size for one, size in zip(mine, question.utf8_bytes, strict=True)]
        # Of equally likely ones the first: an answer may stand there twice.
        right += min(range(len(mine)), key=mine.__getitem__) == question.gold
        per_byte += min(range(len(mine)), key=by_length.__getitem__) == question.gold
        gold_nats.append(mine[question.gold])
    size = sum(question.utf8_bytes[question.gold] for question in questions)
    return Answers(
        accuracy=right / len(questions),
        accuracy_per_byte=per_byte / len(questions),
        bits_per_byte=math.fsum(gold_nats) / (math.log(2) * size),
    )
