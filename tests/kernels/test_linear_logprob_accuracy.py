"""Values and every gradient of linear_logprob against fp64, at odd shapes, on each implementation."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import synpro_kernels.linear_logprob.forward as forward
from synpro_kernels.extension import csrc_status
from synpro_kernels.linear_logprob import LogProbs, linear_logprob, linear_logprob_ref
from synpro_kernels.testing import assert_as_accurate

WIDTH = 120


@dataclass
class Case:
    """Leaf tensors of one layer, and how its logits are made."""

    hidden_TH: Tensor
    weight_VH: Tensor
    target_T: Tensor
    bias_V: Tensor | None = None
    options: dict[str, float] = field(default_factory=dict)

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        tensors = [self.hidden_TH, self.weight_VH] + ([] if self.bias_V is None else [self.bias_V])
        return [tensor.to(dtype).detach().requires_grad_() for tensor in tensors]


def make_case(tokens: int, vocab: int, dtype: torch.dtype, variant: str) -> Case:
    torch.manual_seed(tokens * 10_000 + vocab)
    hidden, weight = torch.randn(tokens, WIDTH), torch.randn(vocab, WIDTH) * WIDTH**-0.5
    target = torch.randint(0, vocab, (tokens,))
    case = Case(hidden.to(dtype), weight.to(dtype), target)
    if variant == "mapped":
        case.bias_V = (0.3 * torch.randn(vocab)).to(dtype)
        case.options = {"temperature": 0.7, "softcap": 1.5}
    elif variant == "some ignored":
        case.target_T = target.masked_fill(torch.arange(tokens) % 3 == 1, -100)
    elif variant == "all ignored":
        case.target_T = torch.full_like(target, -100)
    elif variant == "extreme":
        case.hidden_TH = case.hidden_TH * 3e3
    return case


def plain(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, **options: float) -> LogProbs:
    """What one writes without a kernel: logits in the inputs' dtype, then fp32."""
    logits = F.linear(hidden, weight, bias).float()
    if "softcap" in options:
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    logprobs = F.log_softmax(logits / options.get("temperature", 1.0), -1)
    keep = target != -100
    picked = logprobs.gather(1, target.clamp_min(0)[:, None])[:, 0]
    lse = torch.logsumexp(logits / options.get("temperature", 1.0), -1)
    return LogProbs(*(torch.where(keep, x, 0.0) for x in (picked, lse, -(logprobs.exp() * logprobs).sum(-1))))


def results(function, leaves: list[Tensor], case: Case, output: str) -> list[Tensor]:
    """[output, gradient of each leaf] for a loss that weighs every token's `output` differently."""
    bias = leaves[2] if len(leaves) == 3 else None
    if function is plain:
        found = plain(leaves[0], leaves[1], case.target_T, bias, **case.options)
    else:
        found = function(leaves[0], leaves[1], case.target_T, bias=bias, entropy=True, **case.options)
    value = getattr(found, output)
    weights = torch.linspace(-1.0, 1.5, value.numel(), dtype=value.dtype)
    return [value, *torch.autograd.grad((weights * value).sum(), leaves)]


@pytest.mark.parametrize("output", ["logprob", "logsumexp", "entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("vocab", [1, 2001])
@pytest.mark.parametrize("tokens", [1, 7, 250])
def test_values_and_gradients_are_as_accurate_as_plain_pytorch(implementation, tokens, vocab, dtype, output):
    for variant in ("bare", "mapped", "some ignored", "all ignored", "extreme"):
        case = make_case(tokens, vocab, dtype, variant)
        truth = results(linear_logprob_ref, case.leaves(torch.float64), case, output)
        mine = results(linear_logprob, case.leaves(dtype), case, output)
        usual = results(plain, case.leaves(dtype), case, output)
        for name, a, p, t in zip([output, "d hidden", "d weight", "d bias"], mine, usual, truth, strict=False):
            assert_as_accurate(a, p, t, f"{variant}: {name}")


def test_csrc_equals_the_chunked_path_across_block_borders(monkeypatch):
    """More tokens and more vocabulary than one C++ block, neither a multiple of it."""
    loaded, reason = csrc_status()
    if not loaded:
        pytest.skip(f"csrc: {reason}")
    case = make_case(700, 2600, torch.float32, "mapped")
    leaves = case.leaves(torch.float32)
    for output in ("logprob", "logsumexp", "entropy"):
        compiled = results(linear_logprob, leaves, case, output)
        with monkeypatch.context() as patch:
            patch.setattr(forward, "csrc_loaded", lambda: False)
            chunked = results(linear_logprob, leaves, case, output)
        truth = results(linear_logprob_ref, case.leaves(torch.float64), case, output)
        for a, b, t in zip(compiled, chunked, truth, strict=True):
            assert_as_accurate(a, b, t, output)


def test_definition_passes_gradcheck():
    case = make_case(4, 5, torch.float64, "mapped")
    case.target_T[1] = -100

    def outputs(hidden, weight, bias):
        return tuple(linear_logprob_ref(hidden, weight, case.target_T, bias=bias, entropy=True, **case.options))

    assert torch.autograd.gradcheck(outputs, case.leaves(torch.float64))


def test_op_passes_gradcheck_in_fp64():
    case = make_case(4, 5, torch.float64, "mapped")
    case.target_T[2] = -100

    def outputs(hidden, weight, bias):
        return tuple(linear_logprob(hidden, weight, case.target_T, bias=bias, entropy=True, **case.options))

    assert torch.autograd.gradcheck(outputs, case.leaves(torch.float64))
