"""What linear_logprob promises besides numbers: masking, memory, determinism, tracing, messages."""

import pytest
import torch

from synpro_kernels.ops.linear_logprob import linear_logprob, linear_logprob_definition
from synpro_kernels.ops.linear_logprob.op import _linear_logprob, _linear_logprob_backward
from synpro_kernels.testing import peak_growth


def layer(tokens: int = 12, vocab: int = 33, width: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, width), torch.randn(vocab, width)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(0, vocab, (tokens,))


def test_ignored_tokens_give_zero_and_no_gradient_even_when_they_hold_nan(backend):
    hidden, weight, target = layer()
    ignored = torch.arange(12) % 4 == 0
    poisoned = hidden.detach().masked_fill(ignored[:, None], float("nan")).requires_grad_()
    found = linear_logprob(poisoned, weight, target.masked_fill(ignored, -7), ignore_index=-7, entropy=True)
    torch.stack(found).sum().backward()
    for values in found:
        assert (values[ignored] == 0).all() and torch.isfinite(values).all()
    assert (poisoned.grad[ignored] == 0).all() and (poisoned.grad[~ignored] != 0).any()

    grad_of_labelled = torch.autograd.grad(
        sum(x.sum() for x in linear_logprob(hidden[~ignored], weight, target[~ignored], entropy=True)), weight
    )
    assert torch.equal(weight.grad, grad_of_labelled[0])


def test_nan_in_a_labelled_row_is_not_hidden(backend):
    hidden, weight, target = layer()
    broken = hidden.detach().clone()
    broken[3, 0] = float("nan")
    found = linear_logprob(broken, weight, target, entropy=True)
    for values in found:
        assert values[3].isnan() and torch.isfinite(values[:3]).all() and torch.isfinite(values[4:]).all()


def test_a_bias_of_minus_infinity_removes_entries_from_the_vocabulary(backend):
    hidden, weight, target = layer(vocab=1500)
    target = target % 400
    bias = torch.zeros(1500)
    bias[400:] = -torch.inf  # more than a whole C++ block is masked
    found = linear_logprob(hidden, weight, target, bias=bias, entropy=True)
    expected = linear_logprob(hidden, weight[:400], target, entropy=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    grads = torch.autograd.grad(found.entropy.sum() + found.logprob.sum(), [hidden, weight])
    wanted = torch.autograd.grad(expected.entropy.sum() + expected.logprob.sum(), [hidden, weight])
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b)
    masked_first = linear_logprob(
        hidden.detach(), weight.detach().flip(0), 1499 - target, bias=bias.flip(0), entropy=True
    )
    for a, b in zip(masked_first, expected, strict=True):
        torch.testing.assert_close(a, b.detach())


def test_shapes_follow_the_target_and_the_dtype_is_fp32(backend):
    hidden, weight, target = layer()
    found = linear_logprob(hidden.view(3, 4, 8), weight, target.view(3, 4).int())
    assert found.logprob.shape == found.logsumexp.shape == (3, 4) and found.entropy is None
    assert linear_logprob(hidden.bfloat16(), weight.bfloat16(), target).logprob.dtype == torch.float32
    single = linear_logprob(hidden[0], weight, target[0], entropy=True)
    assert single.logprob.shape == () and single.entropy.shape == ()
    none = linear_logprob(hidden[:0], weight, target[:0], entropy=True)
    assert none.logprob.shape == none.entropy.shape == (0,)


def test_unused_and_expanded_output_gradients_are_handled(backend):
    hidden, weight, target = layer()
    for output in ("logprob", "logsumexp", "entropy"):
        mine = getattr(linear_logprob(hidden, weight, target, entropy=True), output)
        definition = getattr(linear_logprob_definition(hidden, weight, target, entropy=True), output)
        got = torch.autograd.grad(mine.sum(), [hidden, weight])  # sum() sends back an expanded scalar
        expected = torch.autograd.grad(definition.sum(), [hidden, weight])
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_frozen_tensors_get_no_gradient_and_the_others_the_same(backend):
    hidden, weight, target = layer()
    both = torch.autograd.grad(linear_logprob(hidden, weight, target).logprob.sum(), [hidden, weight])
    only_hidden = torch.autograd.grad(linear_logprob(hidden, weight.detach(), target).logprob.sum(), hidden)[0]
    only_weight = torch.autograd.grad(linear_logprob(hidden.detach(), weight, target).logprob.sum(), weight)[0]
    assert torch.equal(only_hidden, both[0]) and torch.equal(only_weight, both[1])


def test_two_runs_are_bitwise_equal(backend):
    hidden, weight, target = layer(tokens=700, vocab=2100, width=24)

    def run() -> list[torch.Tensor]:
        found = linear_logprob(hidden, weight, target, entropy=True)
        return [*found, *torch.autograd.grad(sum(x.sum() for x in found), [hidden, weight])]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_the_logits_are_never_held(backend):
    """Peak memory of forward and backward stays under a quarter of one logit matrix; blocks are larger on a GPU."""
    tokens, vocab = (16384, 65536) if backend == "cuda" else (2048, 32768)
    hidden, weight, target = layer(tokens, vocab, width=8)
    linear_logprob(hidden[:8], weight, target[:8], entropy=True).entropy.sum().backward()

    def run() -> None:
        found = linear_logprob(hidden, weight, target, entropy=True)
        (found.logprob.sum() + found.entropy.sum()).backward()

    grown = peak_growth(run, hidden.device.type)
    if grown is None:
        pytest.skip("the kernel does not let the peak be reset")
    assert grown < tokens * vocab, f"{grown / 2**20:.0f} MiB"  # an fp32 matrix of them has four bytes each


def test_torch_compile_traces_the_op_whole():
    hidden, weight, target = layer()

    def loss(hidden, weight, target):
        found = linear_logprob(hidden * 2, weight, target, temperature=0.5, entropy=True)
        return (found.logprob - 0.1 * found.entropy).mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    traced, eager = (function(hidden, weight, target) for function in (compiled, loss))
    torch.testing.assert_close(traced, eager)
    pairs = [torch.autograd.grad(value, [hidden, weight]) for value in (traced, eager)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b)


def test_opcheck_finds_no_fault():
    hidden, weight, target = layer()
    bias = torch.randn(33, requires_grad=True)
    for options in ((None, 1.0, None, -100, 0, True), (bias, 0.5, 3.0, -100, 0, False)):
        torch.library.opcheck(_linear_logprob, (hidden, weight, target, *options))


def test_the_backward_operator_tells_compilers_the_layout_it_returns():
    hidden, weight, target = (tensor.detach() for tensor in layer())
    hidden, weight = hidden.t().contiguous().t(), weight.t().contiguous().t()
    rows = [torch.ones(12) for _ in range(3)]
    for needed in ((True, True, True), (False, True, False)):
        arguments = (hidden, weight, target, torch.zeros(33), *rows, torch.ones(12), None, None, 1.0, None, -100, 0)
        torch.library.opcheck(_linear_logprob_backward, (*arguments, *needed))


def test_the_definition_keeps_fp32_under_autocast():
    hidden, weight, target = layer()
    with torch.autocast("cpu", torch.bfloat16):
        inside = linear_logprob_definition(hidden, weight, target)
    assert torch.equal(inside.logprob, linear_logprob_definition(hidden, weight, target).logprob)


def _arguments(**changed):
    hidden, weight, target = layer()
    return {"hidden": hidden, "weight": weight, "target": target, **changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": torch.ones(12, 8, dtype=torch.int64)}, "hidden: expected floating"),
        ({"hidden": torch.ones(12, 0)}, "with H >= 1"),
        ({"weight": torch.ones(33, 9)}, r"weight: expected \[V, 8\]"),
        ({"weight": torch.ones(0, 8)}, r"weight: expected \[V, 8\]"),
        ({"weight": torch.ones(33, 8).double()}, "weight: expected torch.float32"),
        ({"weight": torch.ones(33, 8, device="meta")}, "weight: expected device cpu"),
        ({"target": torch.zeros(11, dtype=torch.int64)}, r"target: expected shape \(12,\)"),
        ({"target": torch.zeros(12)}, "target: expected int32 or int64"),
        ({"target": torch.full((12,), 33)}, r"target: 33 is outside \[0, 33\)"),
        ({"target": torch.full((12,), -1)}, r"target: -1 is outside \[0, 33\)"),
        ({"vocab_start": 40}, r"is outside \[40, 73\)"),
        ({"vocab_start": -1}, "vocab_start: expected >= 0"),
        ({"bias": torch.zeros(32)}, r"bias: expected shape \(33,\)"),
        ({"bias": torch.zeros(33).double()}, "bias: expected torch.float32"),
        ({"temperature": 0.0}, "temperature: expected"),
        ({"temperature": float("nan")}, "temperature: expected"),
        ({"softcap": -1.0}, "softcap: expected"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        linear_logprob(**_arguments(**changed))
