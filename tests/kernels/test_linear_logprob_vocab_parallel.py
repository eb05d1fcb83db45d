"""The log-prob ops with the vocabulary spread over real ranks equal the whole layer on one."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from synpro_engine.dist.testing import run_ranks
from synpro_kernels import (
    PolicyObjective,
    PolicyTokens,
    linear_cross_entropy,
    linear_logprob,
    linear_logprob_definition,
    linear_policy_loss,
)

TOKENS, VOCAB, WIDTH = 37, 601, 24
CUTS = {2: (0, 310, 601), 4: (0, 100, 310, 311, 601)}  # uneven shards, one of a single row


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


def fused_losses(layer: dict[str, torch.Tensor], rows: slice, **options: Any) -> list[torch.Tensor]:
    """[loss, its gradients, policy loss, its gradients] of the rows of one shard."""
    found = []
    for entry in ("cross entropy", "policy"):
        leaves = [layer["hidden"].clone(), layer["weight"][rows].clone(), layer["bias"][rows].clone()]
        hidden, weight, bias = (leaf.requires_grad_() for leaf in leaves)
        if entry == "policy":
            given = {name: torch.linspace(low, 1, TOKENS) for name, low in (("advantage", -1), ("weight", 0.1))}
            tokens = PolicyTokens(behaviour=torch.full((TOKENS,), -5.0), **given)
            objective = PolicyObjective(entropy_bonus=0.1)
            terms = linear_policy_loss(
                hidden, weight, layer["target"], bias=bias, tokens=tokens, objective=objective, **options
            )
            loss = terms.objective
        else:
            loss = linear_cross_entropy(hidden, weight, layer["target"], bias=bias, z_loss=0.1, **options).loss
        found += [loss.detach(), *torch.autograd.grad(loss, [hidden, weight, bias])]
    return found


def on_each_rank(world: int) -> dict[str, Any]:
    dist.init_process_group("gloo")
    rank, cuts = dist.get_rank(), CUTS[world]
    rows = slice(cuts[rank], cuts[rank + 1])
    sharded = {"vocab_start": rows.start, "group": dist.group.WORLD}
    worst = {}
    for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64), ("bf16", torch.bfloat16)):
        layer = whole_layer(dtype)
        expected = run_layer(linear_logprob, layer, slice(0, VOCAB))
        expected[4:] = [grad[rows] for grad in expected[4:]]
        for label, function in (("op", linear_logprob), ("definition", linear_logprob_definition)):
            got = run_layer(function, layer, rows, **sharded)
            worst[name, label] = [
                float((a.double() - b.double()).abs().max() / b.double().abs().max())
                for a, b in zip(got, expected, strict=True)
            ]
    layer = whole_layer(torch.float32)
    whole_losses, losses = fused_losses(layer, slice(0, VOCAB)), fused_losses(layer, rows, **sharded)
    for at in (2, 3, 6, 7):
        whole_losses[at] = whole_losses[at][rows]
    worst["fp32", "gradients made in the forward"] = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max())
        for a, b in zip(losses, whole_losses, strict=True)
    ]
    first = cuts[1]
    masked = dict(layer, bias=layer["bias"].index_fill(0, torch.arange(first, VOCAB), -torch.inf))
    masked["target"] = layer["target"].clamp_max(first - 1)
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
    spans = []
    for shift in (-1, 1):  # an overlap, then a gap
        try:
            wrong = {**sharded, "vocab_start": max(0, rows.start + shift * rank)}
            linear_logprob(layer["hidden"], layer["weight"][rows], layer["target"].clamp(0, 5), **wrong)
        except ValueError as error:
            spans.append(str(error).split(":")[0])
    same = run_layer(linear_logprob, layer, rows, **sharded)
    again = run_layer(linear_logprob, layer, rows, **sharded)
    dist.destroy_process_group()
    return {
        "worst": worst,
        "message": message,
        "spans": spans,
        "repeats": all(torch.equal(a, b) for a, b in zip(same, again, strict=True)),
        "hidden_gradient": same[3].tolist(),
    }


@pytest.mark.parametrize("world", [2, 4])
def test_results_and_gradients_equal_the_unsharded_layer(world):
    ranks = run_ranks(on_each_rank, world, world=world)
    allowed = {"fp32": 5e-6, "fp64": 1e-13, "bf16": 2**-7, "masked shard": 5e-6}
    for rank in ranks:
        for (dtype, label), errors in rank["worst"].items():
            assert max(errors) <= allowed[dtype], f"{dtype} {label}: {errors}"
        assert rank["message"] == f"target: {VOCAB} is held by 0 shards of the group, expected 1"
        assert rank["repeats"] and rank["spans"] == ["vocab_start", "vocab_start"]
    assert all(rank["hidden_gradient"] == ranks[0]["hidden_gradient"] for rank in ranks)
