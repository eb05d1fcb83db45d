"""What scoring given sequences costs, over one plain forward of the same sequences in the same micro-batches.

Knows the two estimators that training uses and a plain second opinion on their scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.common import harness
from benchmarks.common.harness import Step
from benchmarks.influence_cost.records import CostRow, differing, take_turns
from benchmarks.influence_cost.setup import Bench
from synpro_engine.influence import (
    Direction,
    DotInfluence,
    Estimator,
    TwoForwardInfluence,
    displacement,
    mean_gradient,
    sequence_logprobs,
)
from synpro_engine.influence.directions import clip_factor, displaced
from synpro_engine.influence.first_order import plain_logprobs
from synpro_engine.model.model import Model

PLAIN, PEAK = "plain forward", "matmul peak"
TWO, STORED, DOT, MIDPOINT = "two_forward", "two_forward, probe as a direction", "dot at theta", "dot at midpoint"
CLIPPED, CLIP = "dot at theta, clipped", 1.0
CHECKED = 2
"""Sequences that the plain paths look at."""
TOLERANCE = 1e-5
"""Nats per token; an influence of the probe here is some hundredths."""


def estimators(bench: Bench, micro_batch: int, *, packed: bool = False) -> dict[str, Estimator]:
    """Each measures anew what it has measured before (`keep` is 0)."""
    v = displacement(bench.theta, bench.probe)
    how = {"start_id": bench.start_id, "micro_batch": micro_batch, "packed": packed, "keep": 0}
    return {
        TWO: TwoForwardInfluence(bench.theta, bench.probe, **how),
        STORED: TwoForwardInfluence(bench.theta, v, **how),
        DOT: DotInfluence(bench.theta, v, **how),
        MIDPOINT: DotInfluence(bench.theta, v, at="midpoint", **how),
    }


def measure(bench: Bench) -> list[CostRow]:
    """Full windows: each estimator over the plain forward."""
    settings, given = bench.settings, bench.sequences(bench.settings.rows)
    found = estimators(bench, settings.micro_batch)
    v = displacement(bench.theta, bench.probe)
    found[CLIPPED] = DotInfluence(bench.theta, v, start_id=bench.start_id, clip=CLIP, keep=0)
    true = truths(bench, given[:CHECKED])
    wrong = {name: wrong_scores(each, given[:CHECKED], true[name]) for name, each in found.items()}
    peak, peak_flops = harness.measured_peak(bench.topology.device, bench.theta.dtype)
    steps: dict[str, Step] = {PLAIN: forward(bench, bench.theta, given), PEAK: peak}
    turns = take_turns(bench, "scoring", steps | {name: scoring(each, given) for name, each in found.items()})
    products = {TWO: (2.0, 2.1), STORED: (2.0, None), DOT: (3.0, 3.3), MIDPOINT: (3.0, None), CLIPPED: (4.0, None)}
    flops, what = (
        settings.forward_flops([len(ids) for ids in given]),
        f"{len(given)} sequences of {len(given[0])} tokens",
    )
    plain = turns.row(PLAIN, PLAIN, f"{what}, {settings.micro_batch} at once", flops=flops, arithmetic=1.0)
    rows = [plain, turns.row(PEAK, PLAIN, "a product of large matrices", flops=peak_flops)]
    for name, (arithmetic, limit) in products.items():
        rows.append(
            turns.row(
                name, PLAIN, what, wrong=wrong[name], limit=limit, arithmetic=arithmetic, flops=arithmetic * flops
            )
        )
    return rows


def measure_packing(bench: Bench) -> list[CostRow]:
    """Short texts of mixed length: tokens a second packed, over those of a row each."""
    settings = bench.settings
    texts = bench.texts(settings.short_texts, 1, low=10, high=max(11, settings.seq_len // 4))
    given = [bench.tokenizer.encode(text)[: settings.seq_len] for text in texts]
    # Packed rows are full: fewer of them hold as many tokens at once.
    apart, packed = estimators(bench, settings.text_batch), estimators(bench, settings.micro_batch, packed=True)
    steps, wrong = {}, {}
    for name in (TWO, DOT):
        steps |= {name: scoring(apart[name], given), f"{name}, packed": scoring(packed[name], given)}
        true = [score.value for score in apart[name].score(given)]
        wrong[name] = wrong_scores(packed[name], given, true)
    turns = take_turns(bench, "packing", steps)
    lengths = sorted(map(len, given))
    what = f"{len(given)} texts of {lengths[0]} to {lengths[-1]} tokens, {sum(lengths)} in all"
    return [turns.row(f"{name}, packed", name, what, wrong=wrong[name], at_least=True) for name in (TWO, DOT)]


def forward(bench: Bench, model: Model, given: Sequence[Sequence[int]]) -> Step:
    """Log-probabilities of sequences, in the micro-batches of the estimators."""
    size = bench.settings.micro_batch
    return lambda _turn: sequence_logprobs(model, given, start_id=bench.start_id, micro_batch=size)


def scoring(estimator: Estimator, given: Sequence[Sequence[int]]) -> Step:
    """Scores of sequences."""
    return lambda _turn: estimator.score(given)


# ---- a second opinion ------------------------------------------------------------------------------------------------


def wrong_scores(estimator: Estimator, given: Sequence[Sequence[int]], true: Sequence[float]) -> str | None:
    """Why an estimator's scores are wrong, or None."""
    return differing([score.value for score in estimator.score(given)], true, TOLERANCE)


def truths(bench: Bench, given: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Losses of both models by plain PyTorch in fp64; dot products with gradients that were formed."""
    v = displacement(bench.theta, bench.probe)
    losses = [[_plain_loss(bench, model, ids) for ids in given] for model in (bench.theta, bench.probe)]
    two = [before - after for before, after in zip(*losses, strict=True)]
    here = [gradient_dot(bench, bench.theta, ids, v) for ids in given]
    clipped = [clip_factor(CLIP, _norm(bench, ids)) * value for ids, value in zip(given, here, strict=True)]
    with displaced(bench.theta, v, -0.5):
        middle = [gradient_dot(bench, bench.theta, ids, v) for ids in given]
    return {TWO: two, STORED: two, DOT: here, MIDPOINT: middle, CLIPPED: clipped}


@torch.no_grad()
def _plain_loss(bench: Bench, model: Model, ids: Sequence[int]) -> float:
    [batch] = bench.windows([ids], 1)
    tokens, labels = (t.to(bench.topology.device) for t in (batch.tokens_BS, batch.labels_BS))
    return -float(plain_logprobs(model, tokens, labels, lambda weight: weight.detach().double()).sum()) / len(ids)


def gradient_dot(bench: Bench, model: Model, ids: Sequence[int], v: Direction) -> float:
    """<grad L(x), v> of one sequence, with the whole gradient held."""
    gradient = mean_gradient(model, bench.windows([ids], 1))
    return sum(float((gradient.tensors[name].double() * tensor.double()).sum()) for name, tensor in v.tensors.items())


def _norm(bench: Bench, ids: Sequence[int]) -> float:
    gradient = mean_gradient(bench.theta, bench.windows([ids], 1))
    return float(torch.cat([tensor.flatten().double() for tensor in gradient.tensors.values()]).norm())
