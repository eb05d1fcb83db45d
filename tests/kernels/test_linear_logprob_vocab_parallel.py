"""linear_logprob with the vocabulary spread over two real ranks equals the whole layer on one."""

from typing import Any

import torch
import torch.distributed as dist

from synpro_engine.dist.testing import run_ranks
from synpro_kernels.linear_logprob import linear_logprob, linear_logprob_ref

TOKENS, VOCAB, WIDTH, CUT = 37, 601, 24, 310  # shards of 310 and 291 rows


def whole_layer(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    target = torch.randint(0, VOCAB, (TOKENS,)).masked_fill(torch.arange(TOKENS) % 5 == 0, -100)
    return {
        "hidden": torch.randn(TOKENS, WIDTH).to(dtype),
        "weight": torch.randn(VOCAB, WIDTH).to(dtype),
        "bias": torch.randn(VOCAB).to(dtype),
        "target": target,
    }


def run_layer(function: Any, layer: dict[str, torch.Tensor], rows: slice, **options: Any) -> list[torch.Tensor]:
    """[logprob, logsumexp, entropy, d hidden, d weight, d bias] of the rows of one shard."""
    hidden = layer["hidden"].clone().requires_grad_()
    weight, bias = (layer[name][rows].clone().requires_grad_() for name in ("weight", "bias"))
    found = function(hidden, weight, layer["target"], bias=bias, temperature=0.8, softcap=20.0, entropy=True, **options)
    scales = torch.linspace(-1, 1, TOKENS)
    loss = sum(k * (scales * x).sum() for k, x in zip((1.0, 0.3, -0.2), found, strict=True))
    return [x.detach() for x in found] + list(torch.autograd.grad(loss, [hidden, weight, bias]))


def on_each_rank() -> dict[str, Any]:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = slice(0, CUT) if rank == 0 else slice(CUT, VOCAB)
    sharded = {"vocab_start": rows.start, "group": dist.group.WORLD}
    worst = {}
    for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64), ("bf16", torch.bfloat16)):
        layer = whole_layer(dtype)
        expected = run_layer(linear_logprob, layer, slice(0, VOCAB))
        expected[4:] = [grad[rows] for grad in expected[4:]]
        for label, function in (("op", linear_logprob), ("definition", linear_logprob_ref)):
            got = run_layer(function, layer, rows, **sharded)
            worst[name, label] = [
                float((a.double() - b.double()).abs().max() / b.double().abs().max())
                for a, b in zip(got, expected, strict=True)
            ]
    layer = whole_layer(torch.float32)
    masked = dict(layer, bias=layer["bias"].index_fill(0, torch.arange(CUT, VOCAB), -torch.inf))
    masked["target"] = layer["target"].clamp_max(CUT - 1)
    whole = linear_logprob(masked["hidden"], masked["weight"], masked["target"], bias=masked["bias"], entropy=True)
    split = linear_logprob(
        masked["hidden"], masked["weight"][rows], masked["target"], bias=masked["bias"][rows], entropy=True, **sharded
    )
    worst["masked shard", "op"] = [float((a - b).abs().max()) for a, b in zip(split, whole, strict=True)]
    message = ""
    try:
        bad = layer["target"].index_fill(0, torch.tensor([3]), VOCAB)
        linear_logprob(layer["hidden"], layer["weight"][rows], bad, **sharded)
    except ValueError as error:
        message = str(error)
    same = run_layer(linear_logprob, layer, rows, **sharded)
    again = run_layer(linear_logprob, layer, rows, **sharded)
    dist.destroy_process_group()
    return {
        "worst": worst,
        "message": message,
        "repeats": all(torch.equal(a, b) for a, b in zip(same, again, strict=True)),
        "hidden_gradient": same[3].tolist(),
    }


def test_results_and_gradients_equal_the_unsharded_layer():
    ranks = run_ranks(on_each_rank, 2)
    allowed = {"fp32": 5e-6, "fp64": 1e-13, "bf16": 2**-7, "masked shard": 5e-6}
    for rank in ranks:
        for (dtype, label), errors in rank["worst"].items():
            assert max(errors) <= allowed[dtype], f"{dtype} {label}: {errors}"
        assert rank["message"] == f"target: {VOCAB} is held by 0 shards of the group, expected 1"
        assert rank["repeats"]
    assert ranks[0]["hidden_gradient"] == ranks[1]["hidden_gradient"]
