"""The ops of an output layer, each beside the same with every logit held."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import synpro_kernels as sk
from benchmarks.kernels.case import Case, Inputs, Normal, Run, Sizes, bytes_of, wide, with_gradients


def of_the_output_layer(sizes: Sizes, normal: Normal, generator: torch.Generator) -> Iterator[Case]:
    """Log-probs, losses and distillation, of layers as large as the sizes say."""
    hidden, weight = normal(sizes.tokens, sizes.width), normal(sizes.vocab, sizes.width, std=3 / sizes.width**0.5)
    target = torch.randint(sizes.vocab, (sizes.tokens,), generator=generator, device=hidden.device)
    product = 2.0 * sizes.tokens * sizes.width * sizes.vocab
    layer = {"hidden": hidden, "weight": weight, "target": target}
    held = bytes_of(hidden, weight)
    yield Case(
        name="linear_logprob, forward",
        inputs=layer,
        ours=lambda i: (sk.linear_logprob(i["hidden"], i["weight"], i["target"]).logprob,),
        plain=lambda i: (-_cross_entropies(i["hidden"], i["weight"], i["target"]),),
        limit_flops=product,
        limit_bytes=held,
    )
    yield Case(
        name="linear_logprob, with gradients",
        inputs=layer,
        ours=lambda i: with_gradients(
            lambda hidden, weight: -sk.linear_logprob(hidden, weight, i["target"]).logprob.mean(),
            i["hidden"], i["weight"],
        ),
        plain=lambda i: with_gradients(
            lambda hidden, weight: _cross_entropies(hidden, weight, i["target"]).mean(), i["hidden"], i["weight"]
        ),
        limit_flops=3 * product,
        limit_bytes=2 * held,
    )  # fmt: skip
    yield Case(
        name="linear_cross_entropy, with gradients",
        inputs=layer,
        ours=lambda i: with_gradients(
            lambda hidden, weight: sk.linear_cross_entropy(hidden, weight, i["target"]).loss, i["hidden"], i["weight"]
        ),
        plain=lambda i: with_gradients(
            lambda hidden, weight: _cross_entropies(hidden, weight, i["target"]).mean(), i["hidden"], i["weight"]
        ),
        limit_flops=3 * product,
        limit_bytes=2 * held,
    )
    yield _policy(layer, normal, product, held)
    yield _distill(layer, normal, product, held)


def _policy(layer: Inputs, normal: Normal, product: float, held_bytes: float) -> Case:
    """Tokens drawn by a policy a little behind: some ratios are beyond the clip, and their tokens have no gradient.

    Most advantages are above 0, for a sum that cancels would have no digits to be held to.
    """
    with torch.no_grad():
        behaviour = -_cross_entropies(layer["hidden"], layer["weight"], layer["target"])
        behaviour = behaviour + 0.1 * normal(len(behaviour)).float()
    policy = {
        "behaviour": behaviour,
        "advantage": 1 + normal(len(behaviour)).float(),
        "weight_T": torch.ones_like(behaviour),
    }
    objective = sk.PolicyObjective()

    def ours(i: Inputs) -> tuple[Tensor, ...]:
        tokens = sk.PolicyTokens(behaviour=i["behaviour"], advantage=i["advantage"], weight=i["weight_T"])
        return with_gradients(
            lambda hidden, weight: (
                sk.linear_policy_loss(hidden, weight, i["target"], tokens=tokens, objective=objective).objective
            ),
            i["hidden"], i["weight"],
        )  # fmt: skip

    def plain(i: Inputs) -> tuple[Tensor, ...]:
        def loss(hidden: Tensor, weight: Tensor) -> Tensor:
            ratio = torch.exp(-_cross_entropies(hidden, weight, i["target"]) - i["behaviour"])
            held = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
            return -(i["weight_T"] * torch.minimum(ratio * i["advantage"], held * i["advantage"])).sum()

        return with_gradients(loss, i["hidden"], i["weight"])

    return Case(
        name="linear_policy_loss, with gradients",
        inputs={**layer, **policy},
        ours=ours,
        plain=plain,
        limit_flops=3 * product,
        limit_bytes=2 * held_bytes,
    )


def _distill(layer: Inputs, normal: Normal, product: float, held_bytes: float) -> Case:
    """A teacher as large as the student, and half of the loss from it."""
    tokens, width = layer["hidden"].shape
    inputs = {**layer, "teacher": normal(tokens, width), "of_teacher": normal(len(layer["weight"]), width, std=0.1)}

    def ours(i: Inputs) -> tuple[Tensor, ...]:
        teachers = [sk.Teacher(i["teacher"], i["of_teacher"])]
        return with_gradients(
            lambda hidden, weight: sk.linear_distill(hidden, weight, i["target"], teachers=teachers).loss,
            i["hidden"], i["weight"],
        )  # fmt: skip

    def by(loss: Callable[..., Tensor]) -> Run:
        return lambda i: with_gradients(
            lambda hidden, weight: loss(hidden, weight, i["teacher"], i["of_teacher"], i["target"]),
            i["hidden"], i["weight"],
        )  # fmt: skip

    return Case(
        name="linear_distill, with gradients", inputs=inputs, ours=ours, plain=by(_distilled),
        limit_flops=4 * product, limit_bytes=3 * held_bytes,
        rivals={
            "torch.compile": lambda: by(torch.compile(_distilled, dynamic=False)),
            "Liger's chunked divergence": lambda: by(_liger()),
        },
    )  # fmt: skip


def _distilled(hidden: Tensor, weight: Tensor, teacher: Tensor, of_teacher: Tensor, target: Tensor) -> Tensor:
    logits = (hidden @ weight.T).to(wide(hidden))
    with torch.no_grad():
        taught = (teacher @ of_teacher.T).to(wide(hidden)).softmax(-1)
    divergence = F.kl_div(logits.log_softmax(-1), taught, reduction="sum")
    return 0.5 * F.cross_entropy(logits, target, reduction="sum") + 0.5 * divergence


def _liger() -> Callable[..., Tensor]:
    """Its Jensen-Shannon divergence at the end where that is the teacher's from the student; means over the tokens."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    chunked = LigerFusedLinearJSDLoss(weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.0)
    return lambda hidden, weight, teacher, of_teacher, target: (
        len(target) * chunked(hidden, weight, teacher, of_teacher, target)
    )


def _cross_entropies(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    logits = hidden @ weight.T
    return F.cross_entropy(logits.to(wide(hidden)), target, reduction="none")
