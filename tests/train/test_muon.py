"""Muon: equal to torch's on the same gradients, whole matrices however they are cut, AdamW for all else."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks.optimizer_step import torch_muon
from synpro_engine.config import UserError
from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.canonical import Slot, block_slots, unshard
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.lora import add_adapters
from synpro_engine.model.model import Model
from synpro_engine.model.weights import blocks_of
from synpro_engine.train import homes
from synpro_engine.train.engine import Engine
from synpro_engine.train.homes import _dealt
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.muon_update import update_scale
from synpro_engine.train.optimizer import is_of_muon
from synpro_engine.train.optimizer_config import MuonConfig, OptimizerConfig
from synpro_engine.train.owned import check_owned_once
from synpro_kernels import orthogonalize_definition

beside_torch_s = pytest.mark.skipif(torch_muon is None, reason="this torch has no Muon")
MUON = OptimizerConfig(name="muon", lr=1e-2, clip=0.0, muon=MuonConfig(lr=0.02))
TORCH_SCALE = {"spectral": "original", "adamw_rms": "match_rms_adamw"}


def step(engine: Engine, seed: int) -> Any:
    ids = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(seed))
    return engine.step([Batch(ids[:, :-1], ids[:, 1:])], LanguageModelLoss(), denominator=64.0)


def matrix_slots(model: Model) -> list[Slot]:
    slots = [slot for block in blocks_of(model.chunks) for slot in block_slots(model.config, block)]
    return [slot for slot in slots if slot.parameter.dim() == 2]


def taken_apart(model: Model, of: Callable[[Parameter], Tensor]) -> dict[str, Tensor]:
    """Every matrix of the blocks by its canonical name: queries apart from keys, gates from ups."""
    found: dict[str, Tensor] = {}
    for slot in matrix_slots(model):
        found |= zip(slot.names, unshard(model.config, slot.kind, [of(slot.parameter).detach().float()]), strict=True)
    return found


def gradient_of(parameter: Any) -> Tensor:
    return parameter.main_grad


def beside_torch(model: Model, config: OptimizerConfig, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The matrices after some steps of our engine, and of torch's Muon given the same gradients."""
    engine, muon = Engine(model, config), config.muon
    theirs = {name: Parameter(matrix.clone()) for name, matrix in taken_apart(model, Tensor.detach).items()}
    optimizer = torch.optim.Muon(
        theirs.values(), lr=muon.lr, weight_decay=config.weight_decay, momentum=muon.momentum,
        nesterov=muon.nesterov, adjust_lr_fn=TORCH_SCALE[muon.scale],
    )  # fmt: skip
    for seed in range(steps):
        step(engine, seed)
        for name, gradient in taken_apart(model, gradient_of).items():
            theirs[name].grad = gradient.clone()
        optimizer.step()
    return taken_apart(model, Tensor.detach), {name: matrix.detach() for name, matrix in theirs.items()}


@beside_torch_s
@pytest.mark.parametrize("scale", ["spectral", "adamw_rms"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_steps_as_torch_s_muon_does_on_the_same_gradients(
    topology: Topology, shape: ModelConfig, monkeypatch: pytest.MonkeyPatch, scale: Any, nesterov: bool
) -> None:
    # torch's iterates in bf16 whatever it is given; all around it is compared in fp32.
    monkeypatch.setattr(
        torch_muon, "_zeropower_via_newtonschulz", lambda grad, abc, steps, eps: orthogonalize_definition(grad, eps=eps)
    )
    config = MUON.model_copy(update={"muon": MuonConfig(lr=0.02, scale=scale, nesterov=nesterov)})
    ours, theirs = beside_torch(build_model(shape, topology), config, 3)
    assert len(ours) == 7 * shape.layers
    for name, matrix in theirs.items():
        assert (ours[name] - matrix).norm() <= 1e-5 * matrix.norm(), name


@beside_torch_s
def test_in_bf16_it_goes_where_torch_s_muon_goes(topology: Topology, shape: ModelConfig) -> None:
    model = build_model(shape, topology, dtype=torch.bfloat16)
    before = taken_apart(model, Tensor.detach)
    ours, theirs = beside_torch(model, MUON.model_copy(update={"weight_decay": 0.0}), 1)
    for name, matrix in theirs.items():
        # Weights of bf16 follow fp32 masters, so that a step of some percent of a weight is seen to some percent.
        moved, expected = ours[name] - before[name], matrix - before[name]
        assert torch.cosine_similarity(moved.flatten(), expected.flatten(), 0) > 0.995, name


@beside_torch_s
def test_products_of_halves_round_no_more_than_torch_s_muon_does(topology: Topology, shape: ModelConfig) -> None:
    """On fp32 weights: both iterate in bf16, and are held to the iteration in fp64."""
    model = build_model(shape, topology)
    before = taken_apart(model, Tensor.detach)
    muon = MuonConfig(lr=0.02, products="bfloat16")
    ours, theirs = beside_torch(model, MUON.model_copy(update={"muon": muon, "weight_decay": 0.0}), 1)
    for name, gradient in taken_apart(model, gradient_of).items():
        truth = 0.02 * update_scale("spectral", *gradient.shape) * orthogonalize_definition(gradient.double())
        errors = [float((before[name] - after[name] - truth).norm() / truth.norm()) for after in (ours, theirs)]
        assert 1e-3 < errors[0] < 2 * errors[1], (name, errors)


def test_a_matrix_moves_by_the_rate_times_its_orthogonalised_gradient(topology: Topology, shape: ModelConfig) -> None:
    muon = MuonConfig(lr=0.02, coefficients="polar_express", steps=8, normalise_rows=True)
    model = build_model(shape, topology)
    engine = Engine(model, MUON.model_copy(update={"muon": muon, "weight_decay": 0.0}))
    before = taken_apart(model, Tensor.detach)
    step(engine, 0)
    after, gradients = taken_apart(model, Tensor.detach), taken_apart(model, gradient_of)
    for name, gradient in gradients.items():
        rows = gradient.double() / gradient.double().norm(dim=1, keepdim=True)
        factor = orthogonalize_definition(rows, steps=8, coefficients="polar_express")
        expected = 0.02 * update_scale("spectral", *gradient.shape) * factor
        assert ((before[name] - after[name]).double() - expected).norm() <= 1e-3 * expected.norm(), name


def test_scales_are_those_of_their_papers() -> None:
    assert update_scale("spectral", 64, 16) == 2.0 and update_scale("spectral", 16, 64) == 1.0
    assert update_scale("adamw_rms", 64, 16) == update_scale("adamw_rms", 16, 64) == pytest.approx(1.6)


@pytest.mark.parametrize("tied", [False, True])
def test_all_but_the_matrices_of_blocks_moves_as_under_adamw(
    topology: Topology, shape: ModelConfig, tied: bool
) -> None:
    shape = shape.model_copy(update={"tie_embeddings": tied})
    moved = {}
    for name in ("adamw", "muon"):
        model = build_model(shape, topology)
        step(Engine(model, MUON.model_copy(update={"name": name})), 0)
        moved[name] = {name: p.detach().clone() for name, p in model.named_parameters()}
        matrices = {id(slot.parameter) for slot in matrix_slots(model)}
        of_muon = {name for name, p in model.named_parameters() if id(p) in matrices}
    assert len(of_muon) == 4 * shape.layers
    for name, value in moved["adamw"].items():
        assert torch.equal(moved["muon"][name], value) == (name not in of_muon), name


def test_a_parameter_whose_name_and_whose_group_disagree_is_no_engine_s(
    topology: Topology, shape: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("decoder.layers.1.mlp.linear_fc1.weight", "decoder.final_layernorm.weight"):
        monkeypatch.setattr("synpro_engine.train.muon.is_of_muon", lambda p, name=name: is_of_muon(p) != (p == name))
        with pytest.raises(UserError, match=rf"`optimizer\.name`: {name} is .*'s by its name, and in the group of"):
            Engine(build_model(shape, topology), MUON)


def test_where_none_of_its_matrices_trains_it_is_refused(topology: Topology, shape: ModelConfig) -> None:
    adapted, vectors = build_model(shape, topology), build_model(shape, topology)
    add_adapters(adapted, rank=2, alpha=4.0, seed=0)
    for name, parameter in vectors.named_parameters():
        parameter.requires_grad_("norm" in name)
    for model in (adapted, vectors):
        with pytest.raises(UserError, match=r"`optimizer\.name`: muon moves matrices of blocks, and none of"):
            Engine(model, MUON)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_trains_and_is_in_no_group_is_named(topology: Topology, shape: ModelConfig, name: str) -> None:
    model = build_model(shape, topology)
    parameters = dict(model.named_parameters())
    left = parameters["decoder.layers.0.mlp.linear_fc1.weight"]
    left.requires_grad_(False)
    engine = Engine(model, MUON.model_copy(update={"name": name}))
    check_owned_once(model, engine.optimizer)
    left.requires_grad_(True)
    with pytest.raises(UserError, match=rf"`optimizer`: holds 0 of {left.numel()} entries of .*\.0\.mlp\.linear_fc1"):
        check_owned_once(model, engine.optimizer)


def test_one_momentum_is_kept_of_a_matrix_and_nothing_of_adamw_s(topology: Topology, shape: ModelConfig) -> None:
    engine = Engine(build_model(shape, topology), MUON)
    step(engine, 0)
    states = engine.optimizer.chained_optimizers[0].optimizer.state
    kinds = {frozenset(state): main.numel() for main, state in states.items()}
    assert set(kinds) == {frozenset({"momentum"}), frozenset({"step", "exp_avg", "exp_avg_sq"})}
    assert all(state[k].shape == main.shape for main, state in states.items() for k in state if k != "step")


def test_a_step_that_is_not_finite_leaves_the_momentum_as_it_was(topology: Topology, shape: ModelConfig) -> None:
    model = build_model(shape, topology)
    engine = Engine(model, MUON)
    step(engine, 0)
    state = engine.optimizer.chained_optimizers[0].optimizer.state
    before = [tensor.clone() for held in state.values() for tensor in held.values()]
    norm = model.final_norm_weight()
    assert norm is not None
    kept = norm.detach().clone()
    norm.data[0] = torch.nan
    assert step(engine, 1).skipped
    norm.data.copy_(kept)
    after = [tensor for held in state.values() for tensor in held.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not step(engine, 2).skipped


def test_work_is_shared_out_by_cost_in_rounds_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "ROUND_ENTRIES", 100)
    shapes = {f"m{i:02}": (4, 5 + i % 3) for i in range(40)} | {"huge": (20, 20)}
    plan = _dealt(shapes, [{}] * 4, lambda key, shape: float(math.prod(shape)))
    assert sorted(key for keys in plan.rounds for key in keys) == sorted(shapes)
    loads = [sum(math.prod(shapes[key]) for key in shapes if plan.home[key] == rank) for rank in range(4)]
    assert max(loads) == 400 and max(loads[1:]) - min(loads[1:]) <= 28  # one has the huge one, and nothing else
    for keys in plan.rounds:
        held = [sum(math.prod(shapes[key]) for key in keys if plan.home[key] == rank) for rank in range(4)]
        assert max(held) <= 100 or "huge" in keys


def test_rounds_do_not_change_a_step(topology: Topology, shape: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for entries in (homes.ROUND_ENTRIES, 1):
        monkeypatch.setattr(homes, "ROUND_ENTRIES", entries)
        model = build_model(shape, topology)
        engine = Engine(model, MUON)
        assert engine.muon is not None
        assert len(engine.muon._homes.rounds) == (1 if entries > 1 else 4 * shape.layers)
        step(engine, 0)
        found.append(taken_apart(model, Tensor.detach))
    for name, matrix in found[0].items():  # stacks of other heights: a library may sum in another order
        torch.testing.assert_close(found[1][name], matrix, rtol=1e-4, atol=1e-6)


def test_a_matrix_of_which_a_part_is_missing_is_no_plan(topology: Topology) -> None:
    rectangle: Any = SimpleNamespace(key="m", shape=(4, 4), offset=(0, 0), extent=(3, 4), saves=True)
    with pytest.raises(AssertionError, match="m: 12 of 16 entries are owned"):
        homes.plan_homes([rectangle], lambda key, shape: 1.0, topology)
