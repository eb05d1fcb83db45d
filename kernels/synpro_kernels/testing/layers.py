"""Layers to test log-probs on, what one would write without a kernel, and the comparison of both with fp64.

Shapes: T tokens, H width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_kernels.ops.linear_logprob import IGNORE, LogProbs, linear_logprob, linear_logprob_definition
from synpro_kernels.testing.accuracy import assert_as_accurate

VARIANTS = ("bare", "mapped", "some ignored", "all ignored", "extreme")


@dataclass
class Case:
    """Leaf tensors of one layer, and how its logits are made."""

    hidden_TH: Tensor
    weight_VH: Tensor
    target_T: Tensor
    bias_V: Tensor | None = None
    options: dict[str, float] = field(default_factory=dict)

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        """Hidden, weight and, where there is one, bias as fresh leaves."""
        tensors = [self.hidden_TH, self.weight_VH] + ([] if self.bias_V is None else [self.bias_V])
        return [tensor.to(dtype).detach().requires_grad_() for tensor in tensors]


def make_case(tokens: int, vocab: int, dtype: torch.dtype, variant: str, *, width: int = 120) -> Case:
    """Build a random layer whose logits have about unit variance; `variant` is one of VARIANTS.

    The numbers are the same on every device; the tensors are on the default one, which `with torch.device(...)` sets.
    """
    seed = tokens * 10_000 + vocab
    hidden, weight = drawn((tokens, width), seed), drawn((vocab, width), seed + 1) * width**-0.5
    target = drawn((tokens,), seed + 2, below=vocab)
    case = Case(hidden.to(dtype), weight.to(dtype), target)
    if variant == "mapped":
        case.bias_V = (0.3 * drawn((vocab,), seed + 3)).to(dtype)
        case.options = {"temperature": 0.7, "softcap": 1.5}
    elif variant == "some ignored":
        case.target_T = target.masked_fill(torch.arange(tokens, device=target.device) % 3 == 1, IGNORE)
    elif variant == "all ignored":
        case.target_T = torch.full_like(target, IGNORE)
    elif variant == "extreme":
        case.hidden_TH = case.hidden_TH * 3e3
    return case


def drawn(shape: tuple[int, ...], seed: int, *, below: int | None = None) -> Tensor:
    """Normal numbers, or integers from 0 up to `below`, that depend on the seed alone and not on the device."""
    generator = torch.Generator().manual_seed(seed)
    if below is None:
        values = torch.randn(shape, generator=generator, device="cpu")
    else:
        values = torch.randint(0, below, shape, generator=generator, device="cpu")
    return values.to(torch.get_default_device())


def plain(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, **options: float) -> LogProbs:
    """Compute what one writes without a kernel: logits in the inputs' dtype, then fp32."""
    logits = F.linear(hidden, weight, bias).float()
    if "softcap" in options:
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    logprobs = F.log_softmax(logits / options.get("temperature", 1.0), -1)
    labelled = target != IGNORE
    picked = logprobs.gather(1, target.clamp_min(0)[:, None])[:, 0]
    lse = torch.logsumexp(logits / options.get("temperature", 1.0), -1)
    return LogProbs(*(torch.where(labelled, x, 0.0) for x in (picked, lse, -(logprobs.exp() * logprobs).sum(-1))))


def results(function: Callable[..., Any], leaves: list[Tensor], case: Case) -> dict[str, Tensor]:
    """Every output and every gradient through it, by name, for losses that weigh each token differently."""
    bias = leaves[2] if len(leaves) == 3 else None
    if function is plain:
        logprobs = plain(leaves[0], leaves[1], case.target_T, bias, **case.options)
    else:
        logprobs = function(leaves[0], leaves[1], case.target_T, bias=bias, entropy=True, **case.options)
    named = {}
    for output in ("logprob", "logsumexp", "entropy"):
        value = named[output] = getattr(logprobs, output)
        weights = torch.linspace(-1.0, 1.5, value.numel(), dtype=value.dtype, device=value.device)
        grads = torch.autograd.grad((weights * value).sum(), leaves, retain_graph=True)
        named |= {f"d {output} / d {leaf}": g for leaf, g in zip(("hidden", "weight", "bias"), grads, strict=False)}
    return named


def check_against_fp64(case: Case, dtype: torch.dtype, what: str) -> None:
    """Assert that `linear_logprob`'s outputs and gradients are as near to fp64's as plain PyTorch's in `dtype`.

    With a vocabulary of one entry every gradient is 0 as the difference of two equal terms. Plain PyTorch has it
    exactly; who computes the logit again may round it otherwise, and is held to the size of the terms.
    """
    truth = results(linear_logprob_definition, case.leaves(torch.float64), case)
    actual = results(linear_logprob, case.leaves(dtype), case)
    baseline = results(plain, case.leaves(dtype), case)
    terms = 0.0
    if case.weight_VH.shape[0] == 1:
        logit = (case.hidden_TH.double() @ case.weight_VH.double().t()).abs().max().clamp_min(1.0)
        terms = float(logit * case.hidden_TH.double().abs().sum(0).max().clamp_min(1.0))
    for name, exact in truth.items():
        is_gradient = name.startswith("d ")
        assert_as_accurate(actual[name], baseline[name], exact, f"{what}: {name}", terms=terms if is_gradient else 0.0)
