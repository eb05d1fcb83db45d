"""What grad_dot and its companions promise besides numbers: invariance, masking, determinism, memory, messages."""

from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_kernels import (
    bias_dot,
    embedding_dot,
    grad_dot,
    grad_dot_prefix,
    pairwise_grad_dot,
    scale_dot,
    segment_sum,
)
from synpro_kernels.ops.grad_dot import op, segments, torch_backend, weight_gradient
from synpro_kernels.ops.grad_dot.op import contract_over_inputs
from synpro_kernels.testing import peak_growth

T, I, O, S = 60, 24, 16, 4  # noqa: E741


def layer(tokens: int = T, inputs: int = I, outputs: int = O) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, grad = torch.randn(tokens, inputs), torch.randn(tokens, outputs)
    return x, grad, torch.randn(outputs, inputs), torch.randint(-1, S, (tokens,))


def close(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> None:
    """Equal to 1e-6 of the largest of `scale` (of `expected`, unless given)."""
    largest = float((expected if scale is None else scale).abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("widths", [(300, 200), (200, 300)], ids=["over inputs", "over outputs"])
def test_a_score_does_not_depend_on_its_batch_mates(backend: str, widths: tuple[int, int]):
    x, grad, direction, ids = layer(700, *widths)
    together, shares = grad_dot(x, grad, direction, ids, segments=S, per_token=True)
    pairs = pairwise_grad_dot(x, grad, ids, segments=S)
    order = torch.argsort(ids, stable=True)[int((ids < 0).sum()) :]
    boundaries = torch.searchsorted(ids[order], torch.arange(S + 1)).tolist()
    prefixed, _ = grad_dot_prefix(x[order], grad[order], direction, boundaries)
    close(prefixed, together)
    for i in range(S):
        own = ids == i
        arguments = x[own], grad[own]
        alone, own_shares = grad_dot(*arguments, direction, ids[own] * 0, segments=1, per_token=True)
        close(alone[0], together[i], together)
        close(own_shares, shares[own])
        close(pairwise_grad_dot(*arguments, ids[own] * 0, segments=1)[0, 0], pairs[i, i])
        close(grad_dot_prefix(*arguments, direction, [0, int(own.sum())])[0][0], prefixed[i], prefixed)


def test_a_segment_sum_does_not_depend_on_batch_mates_or_order_to_the_bit(device: str):
    values, ids = torch.randn(3, 5000) * torch.logspace(-3, 3, 5000), torch.randint(-1, S, (5000,))
    together = segment_sum(values, ids, segments=S)
    order = torch.randperm(5000)
    assert torch.equal(segment_sum(values[:, order], ids[order], segments=S), together)
    for i in range(S):
        assert torch.equal(segment_sum(values[:, ids == i], ids[ids == i] * 0, segments=1)[:, 0], together[:, i])


def test_the_path_for_other_devices_sums_segments_alike():
    values, ids = torch.randn(3, 500), torch.randint(-1, S, (500,))
    values[:, ids < 0] = torch.nan
    expected = torch_backend._sum_in_order(values, ids, S)
    torch.testing.assert_close(torch_backend._sum_by_membership(values, ids, S), expected, rtol=1e-12, atol=1e-12)
    assert torch_backend._sum_by_membership(values, ids, 0).shape == (3, 0)


def test_the_path_for_other_devices_sums_tiles_alike():
    slots, rows = torch.tensor([0, 0, 2, 2, 2, 5]), torch.randn(6, 7, dtype=torch.float64)
    expected = torch_backend._add_in_order(rows, slots, 6)
    torch.testing.assert_close(torch_backend._reduce_runs(rows, slots, 6), expected)
    assert (expected[[1, 3, 4]] == 0).all()


def test_two_runs_are_bitwise_equal(backend: str):
    x, grad, direction, ids = layer(3000, 70, 1100)

    def run() -> list[Tensor]:
        found = list(grad_dot(x, grad, direction, ids, segments=S, per_token=True))
        found += grad_dot_prefix(x, grad, direction, [0, 100, 2900, 3000])
        return [*found, pairwise_grad_dot(x, grad, ids, segments=S)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_nan_of_a_token_reaches_its_own_segment_alone(backend: str):
    x, grad, direction, ids = layer()
    x[ids == -1] = torch.nan
    x[int((ids == 2).nonzero()[0]), 0] = torch.nan
    broken = torch.tensor([False, False, True, False])
    scores, shares = grad_dot(x, grad, direction, ids, segments=S, per_token=True)
    assert torch.equal(scores.isnan(), broken) and int(shares.isnan().sum()) == 1
    pairs = pairwise_grad_dot(x, grad, ids, segments=S)
    assert torch.equal(pairs.isnan(), broken[:, None] | broken[None, :])


def test_several_directions_are_as_many_single_ones(backend: str):
    x, grad, _, ids = layer()
    directions = torch.randn(3, O, I)
    scores, shares = grad_dot(x, grad, directions, ids, segments=S, per_token=True)
    prefixed, _ = grad_dot_prefix(x, grad, directions, [0, 20, T])
    for k in range(3):
        alone = grad_dot(x, grad, directions[k], ids, segments=S, per_token=True)
        close(scores[k], alone.scores)
        close(shares[k], alone.tokens)
        close(prefixed[k], grad_dot_prefix(x, grad, directions[k], [0, 20, T])[0])


def test_shapes_follow_segment_ids_and_strides_do_not_matter(backend: str):
    x, grad, direction, ids = layer()
    flat = grad_dot(x, grad, direction, ids, segments=S, per_token=True)
    wide = torch.zeros(6, 10, 2 * I)
    wide[..., ::2] = x.view(6, 10, I)
    shaped = grad_dot(
        wide[..., ::2], grad.t().contiguous().t().unflatten(0, (6, 10)), direction.t().contiguous().t(),
        ids.view(6, 10).int(), segments=S, per_token=True,
    )  # fmt: skip
    assert shaped.tokens.shape == (6, 10) and shaped.scores.shape == (S,)
    close(shaped.scores, flat.scores)
    close(shaped.tokens.flatten(), flat.tokens)
    single = grad_dot(x[0], grad[0], direction[None], ids[0].abs() * 0, segments=1, per_token=True)
    assert single.scores.shape == (1, 1) and single.tokens.shape == (1,)
    none = grad_dot(x[:0], grad[:0], direction, ids[:0], segments=S, per_token=True)
    assert none.scores.tolist() == [0.0] * S and none.tokens.shape == (0,)
    assert pairwise_grad_dot(x[:0], grad[:0], ids[:0], segments=2).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    scores, total = grad_dot_prefix(x[:0], grad[:0], direction, [0, 0])
    assert scores.tolist() == [0.0] and (total == 0).all()
    assert grad_dot_prefix(x[:0], grad[:0], direction, [0])[0].shape == (0,)
    assert grad_dot(x[:0], grad[:0], direction, ids[:0], segments=0).shape == (0,)


def test_the_wider_side_is_contracted():
    assert contract_over_inputs(outputs=256, inputs=1024) and not contract_over_inputs(outputs=1024, inputs=256)


def test_shards_of_an_embedding_table_add_up(device: str):
    grad, ids = torch.randn(T, 8), torch.randint(-1, S, (T,))
    token, table = torch.randint(0, 30, (T,)), torch.randn(30, 8)
    whole = embedding_dot(grad, token, table, ids, segments=S)
    parts = [embedding_dot(grad, token, table[a:b], ids, segments=S, vocab_start=a) for a, b in ((0, 13), (13, 30))]
    close(parts[0] + parts[1], whole)


def test_the_product_and_the_gradients_are_never_held(backend: str):
    """Each would be 128 MiB: [T, O], and [S, O, I] for the prefix's segments."""
    x, grad, direction, _ = layer(16384, 32, 2048)
    ids, boundaries = torch.arange(16384) // 32, list(range(0, 16385, 32))
    grad_dot(x[:8], grad[:8], direction, ids[:8] * 0, segments=1)
    for run in (
        lambda: grad_dot(x, grad, direction, ids, segments=512),
        lambda: grad_dot_prefix(x, grad, direction, boundaries),
    ):
        grown = peak_growth(run, x.device.type)
        if grown is None:
            pytest.skip("the kernel does not let the peak be reset")
        assert grown < 64 * 2**20, f"{grown / 2**20:.0f} MiB"


def test_torch_compile_traces_the_ops_whole():
    x, grad, direction, ids = layer()

    def scores(x: Tensor, grad: Tensor, direction: Tensor, ids: Tensor) -> Tensor:
        dots = grad_dot(2 * x, grad, direction, ids, segments=S) + pairwise_grad_dot(x, grad, ids, segments=S).sum(0)
        prefixed, total = grad_dot_prefix(x, grad, direction, [0, 10, 30, 40, T])
        return dots + prefixed + total.sum() + bias_dot(grad, direction[:, 0], ids, segments=S)

    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, grad, direction, ids), scores(x, grad, direction, ids))


def test_opcheck_finds_no_fault():
    x, grad, direction, ids = layer()
    check = torch.library.opcheck
    check(op._grad_dot_tokens, (x, grad, direction[None], None))
    fp8 = direction[None].to(torch.float8_e4m3fn), torch.ones(1, O)
    check(op._grad_dot_tokens, (x, grad, *fp8), test_utils="test_faketensor")  # the others add fp8, which torch cannot
    for dtype in (torch.float32, torch.float64):
        check(segments._segment_sum, (torch.randn(2, T, dtype=dtype), ids, S))
    check(op._pairwise_grad_dot, (x, grad, ids, S))
    check(weight_gradient._grad_dot_prefix, (x, grad, direction[None], [0, 10, T], torch.zeros(O, I)))


def _arguments(**changed: Any) -> dict[str, Any]:
    x, grad, direction, ids = layer()
    return {"x": x, "grad_out": grad, "direction": direction, "segment_ids": ids, "segments": S, **changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(T, I, dtype=torch.int64)}, "x: expected floating"),
        ({"x": torch.ones(T, 0)}, r"x: expected floating \[\.\.\., width >= 1\]"),
        ({"grad_out": torch.ones(T - 1, O)}, r"grad_out: expected \(60,\) leading dimensions like x"),
        ({"grad_out": torch.ones(T, O).double()}, "grad_out: expected torch.float32 like x"),
        ({"grad_out": torch.ones(T, O, device="meta")}, "grad_out: expected device cpu"),
        ({"direction": torch.ones(O, I + 1)}, r"direction: expected \[16, 24\] or \[K, 16, 24\]"),
        ({"direction": torch.ones(0, O, I)}, r"direction: expected \[16, 24\] or \[K, 16, 24\]"),
        ({"direction": torch.ones(O, I).bfloat16()}, "direction: expected torch.float32 like x"),
        ({"direction": torch.ones(O, I, device="meta")}, "direction: expected device cpu"),
        ({"segment_ids": torch.zeros(T)}, "segment_ids: expected int32 or int64"),
        ({"segment_ids": torch.zeros(T - 1, dtype=torch.int64)}, r"segment_ids: expected shape \(60,\)"),
        ({"segment_ids": torch.zeros(T, dtype=torch.int64, device="meta")}, "segment_ids: expected device cpu"),
        ({"segment_ids": torch.full((T,), S)}, "segment_ids: expected -1 to 3, got 4"),
        ({"segment_ids": torch.full((T,), -2)}, "segment_ids: expected -1 to 3, got -2"),
        ({"segments": -1}, "segments: expected >= 0"),
        ({"x": torch.ones(T, I, requires_grad=True)}, r"x: requires grad, but .* x\.detach\(\)"),
        ({"grad_out": torch.ones(T, O, requires_grad=True)}, "grad_out: requires grad"),
        ({"direction": torch.ones(O, I, requires_grad=True)}, "direction: requires grad"),
    ],
)
def test_wrong_arguments_are_named(changed: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        grad_dot(**_arguments(**changed))
    if "direction" not in changed:
        arguments = _arguments(**changed)
        del arguments["direction"]
        with pytest.raises(ValueError, match=message):
            pairwise_grad_dot(**arguments)


def test_tensors_that_require_grad_are_taken_where_grad_mode_is_off():
    x, grad, direction, ids = layer()
    with torch.no_grad():
        found = grad_dot(x.requires_grad_(), grad, direction, ids, segments=S)
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(2, 30, I)}, r"x: expected \[T, I\]"),
        ({"boundaries": [0, 30]}, "boundaries: expected offsets that rise from 0 to 60"),
        ({"boundaries": [0, 40, 30, T]}, "boundaries: expected offsets that rise"),
        ({"boundaries": [1, T]}, "boundaries: expected offsets that rise"),
        ({"boundaries": []}, "boundaries: expected offsets that rise"),
        ({"boundaries": [*range(59), T + 1]}, r"got \[0, 1, 2, 3, \.\.\. 58, 61\]"),
        ({"accumulator": torch.zeros(O, I).double()}, "accumulator: expected contiguous torch.float32"),
        ({"accumulator": torch.zeros(I, O).t()}, "accumulator: expected contiguous torch.float32"),
        ({"accumulator": torch.zeros(O, I, requires_grad=True)}, "accumulator: requires grad"),
        ({"accumulator": torch.zeros(O, I, device="meta")}, "accumulator: expected device cpu"),
        ({"direction": torch.ones(O, I).double()}, "direction: expected torch.float32 like x"),
        ({"direction": torch.ones(O, I, device="meta")}, "direction: expected device cpu"),
        ({"direction": torch.ones(I, O)}, r"direction: expected \[16, 24\]"),
        ({"x": torch.ones(T, I, requires_grad=True)}, "x: requires grad"),
    ],
)
def test_wrong_arguments_of_the_prefix_are_named(changed: dict[str, Any], message: str):
    x, grad, direction, _ = layer()
    arguments = {"x": x, "grad_out": grad, "direction": direction, "boundaries": [0, T], **changed}
    with pytest.raises(ValueError, match=message):
        grad_dot_prefix(**arguments)


def test_wrong_arguments_of_the_closed_forms_are_named():
    _, grad, _, ids = layer()
    v, token, table = torch.ones(O), torch.zeros(T, dtype=torch.int64), torch.ones(9, O)
    for message, call in {
        r"direction: expected \[16\] or \[K, 16\]": lambda: bias_dot(grad, v[:-1], ids, segments=S),
        "direction: expected torch.float32 like grad_out": lambda: bias_dot(grad, v.double(), ids, segments=S),
        "grad_out: requires grad": lambda: bias_dot(grad.clone().requires_grad_(), v, ids, segments=S),
        r"grad_out: expected \(60, 16\) like normalised": lambda: scale_dot(grad, grad[:, 1:], v, ids, segments=S),
        "token_ids: expected int32 or int64": lambda: embedding_dot(grad, token.float(), table, ids, segments=S),
        "token_ids: expected 0 to 8, got 9": lambda: embedding_dot(grad, token + 9, table, ids, segments=S),
        r"direction: expected \[9, 16\]": lambda: embedding_dot(grad, token, table[:, :-1], ids, segments=S),
        r"direction: expected \[1, 16\]": lambda: embedding_dot(grad, token, table[0], ids, segments=S),
        "values: expected floating": lambda: segment_sum(token, ids, segments=S),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
