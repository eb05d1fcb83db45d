"""The policy and its reference: log-probabilities of completions, under the very distribution that drew them.

Temperature, vocabulary limit and nucleus are the sampler's; a log-probability over the full vocabulary of a token drawn
with top-p would bias every ratio. The reference policy is the policy as it was before tuning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from synpro_engine.data import IGNORE
from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.lora import adapters_of, add_adapters
from synpro_engine.model.model import Model
from synpro_engine.rl.config import SURROGATE_NAMES, ImportanceConfig, TuneConfig
from synpro_engine.rl.nucleus import nucleus_logprob
from synpro_engine.rl.types import RolloutBatch
from synpro_engine.sampler import Nuclei
from synpro_engine.sampler.sampling import bias_vector
from synpro_engine.train.losses import LossTerms
from synpro_kernels import (
    LogProbs,
    PolicyObjective,
    PolicyTokens,
    SurrogateTerms,
    linear_logprob,
    linear_policy_loss,
    policy_loss,
)

RATIO_BIN = "ratio_bin/"
"""Begins the names of a bin's count of ratios among a step's extras."""


def prepare_policy(policy: Model, config: TuneConfig) -> Model | None:
    """Freeze what `config` does not train and return the reference policy, or None where KL has no weight.

    With `config.lora` the policy gets adapters, and the reference is the policy without them, in the same memory.
    """
    if config.train_last_blocks is not None:
        freeze_but_last(policy, config.train_last_blocks)
    if config.lora is not None:
        add_adapters(policy, rank=config.lora.rank, alpha=config.lora.alpha, seed=config.lora.seed)
    return make_reference_policy(policy) if config.kl_beta > 0.0 else None


def make_reference_policy(policy: Model) -> Model:
    """A model that computes what `policy` computes now and keeps doing so while `policy` is trained.

    It costs the memory of the trainable blocks alone: parameters that do not require gradients never change, so they
    are shared (same storage), and the others are copied. Adapters, which add nothing yet, are left out. Call it before
    training; changing what is frozen afterwards would move the copy too.
    """
    assert not any(adapter.lora_b.any() for _, _, adapter in adapters_of(policy)), "the adapters have been trained"
    # No initial weights (seed None): every one of them is copied or shared below.
    reference_policy = build_model(policy.config, policy.topology, dtype=policy.dtype, seed=None)
    source = dict(policy.named_parameters())
    with torch.no_grad():
        for name, copy in reference_policy.named_parameters():
            theirs = source[name]
            copy.requires_grad_(False)
            if theirs.requires_grad:
                copy.copy_(theirs)
            else:
                # An engine moves the storage of trained parameters only, so what is shared stays shared.
                copy.data = theirs.data
    reference_policy.train(False)
    return reference_policy


def sampled_logprobs(
    model: Model,
    hidden_BSH: Tensor,
    labels_BS: Tensor,
    nuclei: Nuclei | None,
    *,
    temperature: float,
    vocab_limit: int | None = None,
    entropy: bool = False,
    biases: Mapping[int, float] | None = None,
) -> LogProbs:
    """Log-probabilities of the labels that are not -100, row by row, fp32 [N]; differentiable in the model.

    `biases`, by id, are added to the logits. With `nuclei`, renormalised over each token's nucleus; else over all ids
    below `vocab_limit` (None: all). The same on all tensor-parallel ranks. Entropy is that of the same distribution,
    in nats.
    """
    labelled_BS = labels_BS != IGNORE
    # Completions alone reach the output layer: prompts are often the larger part of a row.
    hidden_NH, target_N = hidden_BSH[labelled_BS], labels_BS[labelled_BS]
    if nuclei is not None:
        return nucleus_logprob(
            hidden_NH, target_N=target_N, nuclei=nuclei, temperature=temperature, bias=_bias(model, None, biases),
            **model.output_layer(),
        )  # fmt: skip
    return linear_logprob(
        hidden_NH, target=target_N, temperature=temperature, entropy=entropy, **_limited(model, vocab_limit, biases)
    )


def _limited(model: Model, vocab_limit: int | None, biases: Mapping[int, float] | None) -> dict[str, Any]:
    """The output layer and its bias for `linear_logprob`, of ids below the limit: its first rows, where that says it.

    A bias would halve the tiles of its kernels. Where a rank of a group keeps no row, or ids have a bias, it is one.
    """
    layer, vocab, ranks = model.output_layer(), model.config.vocab_size, model.topology.tp.size
    least = vocab // ranks * (ranks - 1)  # so many ids and one more: else the last rank has none
    if biases or vocab_limit is None or not least < vocab_limit < vocab:
        return {**layer, "bias": _bias(model, vocab_limit, biases)}
    return {**layer, "weight": layer["weight"][: vocab_limit - model.vocab_start]}


def _bias(model: Model, vocab_limit: int | None, biases: Mapping[int, float] | None) -> Tensor | None:
    """This rank's part of what is added to the logits: `biases`, and -inf at or above the limit; None for nothing."""
    weight, vocab, start = model.output_weight(), model.config.vocab_size, model.vocab_start
    limited = vocab_limit is not None and vocab_limit < vocab
    whole = bias_vector(biases or {}, vocab, weight.dtype)
    if whole is None and not limited:
        return None
    # On the device, where it can be: this is made for every micro-batch.
    whole = torch.zeros(vocab, device=weight.device) if whole is None else whole.to(weight.device)
    # As a bias of -inf the limit needs nothing of its own in the ops; padding of the vocabulary is never drawn.
    whole[vocab_limit if limited else vocab :] = float("-inf")
    return whole[start : start + len(weight)].to(weight)


def policy_objective(config: TuneConfig) -> PolicyObjective:
    """What these settings minimise."""
    return PolicyObjective(
        surrogate=config.surrogate, clip_low=config.clip_low, clip_high=config.clip_high, dual_clip=config.dual_clip,
        kl=config.kl, kl_beta=config.kl_beta if config.kl_in == "loss" else 0.0, entropy_bonus=config.entropy_bonus,
    )  # fmt: skip


class PolicyLoss:
    """The policy's loss of one micro-batch for `train.engine.Engine.step`.

    Reports as `loss` the objective, and as extras the sums of `SurrogateTerms`, those of bins one by one; of the
    divergence none without a reference.
    """

    def __init__(self, config: TuneConfig, vocab_limit: int | None) -> None:
        self._config, self._vocab_limit, self._objective = config, vocab_limit, policy_objective(config)
        # One of the user's own may ask for it; the others that are built in look at a token alone.
        self._by_sequence = config.surrogate == "gspo" or config.surrogate not in SURROGATE_NAMES

    def __call__(self, model: Model, hidden_BSH: Tensor, batch: RolloutBatch) -> LossTerms:
        """Sums over the tokens of `batch`."""
        assert batch.advantage_N is not None, "advantages come before the loss"
        tokens = PolicyTokens(
            behaviour=batch.behaviour_N, advantage=batch.advantage_N, weight=batch.weight_N,
            reference=batch.reference_N, correction=batch.correction_N,
            sequence_gap=self._sequence_gap(model, hidden_BSH, batch) if self._by_sequence else None,
        )  # fmt: skip
        # Within a nucleus some tens of logits decide, and the fused op would make all of them.
        evaluate = self._fused if batch.nuclei is None else self._within_nuclei
        terms = evaluate(model, hidden_BSH, batch, tokens)
        extras = {name: values for name, values in vars(terms).items() if name not in ("objective", "ratio_counts")}
        if batch.reference_N is None:
            del extras["divergence"]  # none is known, which is not one of 0
        extras |= {f"{RATIO_BIN}{n}": count for n, count in enumerate(terms.ratio_counts)}
        if batch.drift_N is not None:
            # Ratios are to the trainer's own policy then, and say nothing of the sampler.
            extras["gap"] = batch.drift_N[batch.weight_N != 0].abs().sum()
        return LossTerms(objective=terms.objective, loss=terms.objective, extras=extras)

    def _fused(self, model: Model, hidden_BSH: Tensor, batch: RolloutBatch, tokens: PolicyTokens) -> SurrogateTerms:
        labelled_BS = batch.labels_BS != IGNORE
        return linear_policy_loss(
            hidden_BSH[labelled_BS], target=batch.labels_BS[labelled_BS], tokens=tokens, objective=self._objective,
            bias=_bias(model, self._vocab_limit, self._config.sampling.biases),
            temperature=self._config.sampling.temperature, into_main_grad=model.output_trains_in_buffers(),
            **model.output_layer(),
        )  # fmt: skip

    def _within_nuclei(
        self, model: Model, hidden_BSH: Tensor, batch: RolloutBatch, tokens: PolicyTokens
    ) -> SurrogateTerms:
        scored = self._scored(model, hidden_BSH, batch)
        assert scored.entropy is not None
        return policy_loss(scored.logprob, scored.entropy, tokens, self._objective)

    @torch.no_grad()
    def _sequence_gap(self, model: Model, hidden_BSH: Tensor, batch: RolloutBatch) -> Tensor:
        """Of each token: the mean log ratio of its completion. A pass over the output layer of its own."""
        gap_N = self._scored(model, hidden_BSH, batch).logprob - batch.behaviour_N
        return torch.cat([row.mean().expand_as(row) for row in batch.by_completion(gap_N)])

    def _scored(self, model: Model, hidden_BSH: Tensor, batch: RolloutBatch) -> LogProbs:
        return sampled_logprobs(
            model, hidden_BSH, batch.labels_BS, batch.nuclei, temperature=self._config.sampling.temperature,
            vocab_limit=self._vocab_limit, biases=self._config.sampling.biases,
        )  # fmt: skip


@torch.no_grad()
def rollout_logprobs(batch: RolloutBatch, model: Model, config: TuneConfig, vocab_limit: int | None) -> Tensor:
    """Log-probabilities of the batch's tokens under `model` as it is now, within the same nuclei, fp32 [N]."""
    return sampled_logprobs(
        # In the policy's own micro-batches: padded alike, equal weights compute alike, and KL begins at 0.
        model, model.hidden(batch.tokens_BS, batch.rows, batch.trunk), batch.labels_BS, batch.nuclei,
        temperature=config.sampling.temperature, vocab_limit=vocab_limit, biases=config.sampling.biases,
    ).logprob  # fmt: skip


def corrected(batch: RolloutBatch, own_N: Tensor, config: ImportanceConfig) -> RolloutBatch:
    """The batch with ratios to the trainer's own log-probabilities `own_N`, and the sampler's error in its weights.

    Each token's gain is multiplied by the trainer's over the sampler's probability, at most `cap` (truncated importance
    sampling, as in IMPALA, arXiv 1802.01561), or has no weight beyond it.
    """
    gap_N = drift_N = own_N - batch.behaviour_N
    if config.level == "sequence":
        gap_N = torch.cat([row.sum().expand_as(row) for row in batch.by_completion(gap_N)])
    # The logarithm is held, too: what is rejected must not be an infinite factor of 0.
    bound = math.log(config.cap)
    correction_N = gap_N.clamp(max=bound).exp()
    weight_N = batch.weight_N
    if config.beyond == "reject":
        weight_N = weight_N * (gap_N.abs() <= bound)
    return replace(batch, behaviour_N=own_N, correction_N=correction_N, drift_N=drift_N, weight_N=weight_N)
