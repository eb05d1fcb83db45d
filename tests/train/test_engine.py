"""One step in one process: what is minimised, what is reported, what stays as it was."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.model.shared_rows import SharedRows
from synpro_engine.train.engine import Engine
from synpro_engine.train.evaluation import held_out_loss
from synpro_engine.train.losses import LanguageModelLoss, LossTerms
from synpro_engine.train.optimizer_config import OptimizerConfig, ScheduleConfig

OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-4, clip=0.0)


def batch_of(rows: int = 4, seed: int = 0) -> Batch:
    ids = torch.randint(64, (rows, 17), generator=torch.Generator().manual_seed(seed))
    labels = ids[:, 1:].clone()
    for row in range(rows):
        labels[row, 3 + 4 * row :] = -100
    return Batch(ids[:, :-1], labels)


def labels_in(batch: Batch) -> int:
    return int((batch.labels_BS != -100).sum())


def rows_of(batch: Batch, size: int) -> list[Batch]:
    return [Batch(t, y) for t, y in zip(batch.tokens_BS.split(size), batch.labels_BS.split(size), strict=True)]


def values(model: Model) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gradients(engine: Engine) -> dict[str, Tensor]:
    return {name: p.main_grad.clone() for name, p in engine.model.named_parameters() if p.requires_grad}  # pyright: ignore


def test_the_gradient_is_that_of_the_sum_over_the_denominator(topology: Topology, shape: ModelConfig) -> None:
    batch = batch_of()
    plain = build_model(shape, topology)
    scored = plain.logprobs_from_hidden(plain.hidden(batch.tokens_BS), batch.labels_BS)
    (-scored.logprob.sum() / 7.0).backward()
    engine = Engine(build_model(shape, topology), OPTIMIZER)
    result = engine.step(rows_of(batch, 1), LanguageModelLoss(), denominator=7.0)
    assert result.loss == pytest.approx(-scored.logprob.sum().item() / 7.0, rel=1e-6)
    expected = {name: p.grad for name, p in plain.named_parameters()}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in expected.values() if g is not None))
    assert result.grad_norm == pytest.approx(norm, rel=1e-6)
    for name, gradient in gradients(engine).items():
        theirs = expected[name]
        assert theirs is not None and (gradient - theirs).norm() < 1e-6 * theirs.norm(), name


@pytest.mark.parametrize("tied", [False, True])
def test_every_way_through_the_output_layer_trains_alike(topology: Topology, shape: ModelConfig, tied: bool) -> None:
    """Also where the output weight is the embedding, whose other gradient comes through autograd."""
    shape, batch = shape.model_copy(update={"family": "llama", "tie_embeddings": tied}), batch_of()
    found = []
    for output_layer in ("fused", "recomputed", "materialised"):
        engine = Engine(build_model(shape, topology), OPTIMIZER)
        loss_fn = LanguageModelLoss(1e-2, output_layer=output_layer)
        result = engine.step(rows_of(batch, 2), loss_fn, denominator=labels_in(batch))
        found.append((result.loss, result.extras["z_loss"], gradients(engine)))
    for other in found[1:]:
        assert found[0][:2] == pytest.approx(other[:2], rel=1e-5)
        for name, gradient in found[0][2].items():
            theirs = other[2][name]
            assert (gradient - theirs).norm() < 1e-5 * theirs.norm(), name


def test_accumulation_does_not_depend_on_the_size_of_micro_batches(topology: Topology, shape: ModelConfig) -> None:
    batch, seen = batch_of(), []
    for size in (1, 2, 3, 4):
        engine = Engine(build_model(shape, topology), OPTIMIZER)
        parts = rows_of(batch, size)
        seen.append([engine.step(parts, LanguageModelLoss(1e-2), denominator=labels_in(batch)) for _ in range(2)])
    for results in seen[1:]:
        for one, other in zip(seen[0], results, strict=True):
            assert (other.loss, other.grad_norm) == pytest.approx((one.loss, one.grad_norm), rel=3e-6)
            assert other.extras == pytest.approx(one.extras, rel=3e-6)


def test_the_z_loss_changes_gradients_and_no_reported_loss(topology: Topology, shape: ModelConfig) -> None:
    batch, found = batch_of(), {}
    for weight in (0.0, 0.1):
        model = build_model(shape, topology)
        engine = Engine(model, OPTIMIZER)
        before = held_out_loss(model, [batch])
        result = engine.step([batch], LanguageModelLoss(weight), denominator=labels_in(batch))
        assert result.loss == pytest.approx(before, rel=1e-6)  # held-out loss is pure cross-entropy too
        found[weight] = (result, gradients(engine))
    assert found[0.0][0].loss == found[0.1][0].loss
    assert found[0.0][0].extras == {} and found[0.1][0].extras["z_loss"] > 0
    assert not torch.allclose(found[0.0][1]["output_layer.weight"], found[0.1][1]["output_layer.weight"], rtol=1e-2)


def test_the_z_loss_is_the_mean_squared_normaliser(topology: Topology, shape: ModelConfig) -> None:
    batch, model = batch_of(), build_model(shape, topology)
    with torch.no_grad():
        logits = model.hidden(batch.tokens_BS) @ model.output_weight().T
        expected = 0.5 * logits.logsumexp(-1)[batch.labels_BS != -100].square().sum()
    result = Engine(model, OPTIMIZER).step([batch], LanguageModelLoss(0.5), denominator=1.0)
    assert result.extras["z_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_frozen_parameters_stay_and_cost_no_state(topology: Topology, shape: ModelConfig) -> None:
    model = build_model(shape, topology)
    freeze_but_last(model, 1)
    engine = Engine(model, OPTIMIZER)
    before = values(model)
    for seed in range(2):
        engine.step([batch_of(seed=seed)], LanguageModelLoss(1e-2), denominator=10.0)
    moved = {name for name, value in values(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("decoder.layers.1.")}
    states = sum(len(group["params"]) for group in engine.optimizer.param_groups)
    assert states == len(moved)


@dataclass(frozen=True)
class Scaled:
    """A micro-batch of another kind: the engine only asks for tokens."""

    tokens_BS: Tensor
    scale: float


def test_any_micro_batch_and_loss_will_do(topology: Topology, shape: ModelConfig) -> None:
    def loss_fn(model: Model, hidden_BSH: Tensor, batch: Scaled) -> LossTerms:
        assert hidden_BSH.shape == (*batch.tokens_BS.shape, shape.d_model)
        value = batch.scale * hidden_BSH.square().sum()
        return LossTerms(objective=value, loss=value, extras={"scale": torch.tensor(batch.scale)})

    engine = Engine(build_model(shape, topology), OPTIMIZER)
    tokens = batch_of().tokens_BS
    result = engine.step([Scaled(tokens[:1], 1.0), Scaled(tokens[1:], 3.0)], loss_fn, denominator=2.0)
    assert result.extras == {"scale": 4.0} and result.grad_norm > 0


def test_a_gradient_that_is_not_finite_changes_nothing(topology: Topology, shape: ModelConfig) -> None:
    def broken(model: Model, hidden_BSH: Tensor, batch: Batch) -> LossTerms:
        value = hidden_BSH.sum() * math.nan
        return LossTerms(objective=value, loss=value)

    model = build_model(shape, topology)
    engine = Engine(model, OPTIMIZER)
    engine.step([batch_of()], LanguageModelLoss(), denominator=10.0)
    before = values(model)
    result = engine.step([batch_of()], broken, denominator=10.0)
    assert result.skipped and result.step == 2 and math.isnan(result.grad_norm)
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())
    again = engine.step([batch_of(seed=1)], LanguageModelLoss(), denominator=10.0)
    assert not again.skipped and math.isfinite(again.grad_norm)


def test_weights_decay_but_the_embedding_does_not(topology: Topology, shape: ModelConfig) -> None:
    """Without a gradient AdamW only decays: p <- p (1 - lr wd)."""

    def nothing(model: Model, hidden_BSH: Tensor, batch: Batch) -> LossTerms:
        value = 0.0 * model.logprobs_from_hidden(hidden_BSH, batch.labels_BS).logprob.sum()
        return LossTerms(objective=value, loss=value)

    for changed in ({"tie_embeddings": False}, {"tie_embeddings": True}, {"family": "qwen2"}, {"family": "qwen3"}):
        model = build_model(shape.model_copy(update=changed), topology)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(float(parameter.dim() == 1))  # norms and biases, which start at zero
        engine = Engine(model, OPTIMIZER.model_copy(update={"weight_decay": 0.5}))
        before = values(model)
        engine.step([batch_of()], nothing, denominator=1.0)
        for name, value in values(model).items():
            factor = 1.0 if "word_embeddings" in name else 1.0 - 1e-2 * 0.5
            torch.testing.assert_close(value, before[name] * factor, rtol=1e-6, atol=0.0)


def test_clipping_bounds_the_update_and_not_the_reported_norm(topology: Topology, shape: ModelConfig) -> None:
    batch, moments = batch_of(), {}
    for clip in (0.0, 0.1):
        engine = Engine(build_model(shape, topology), OPTIMIZER.model_copy(update={"clip": clip}))
        result = engine.step([batch], LanguageModelLoss(), denominator=labels_in(batch))
        state = engine.optimizer.chained_optimizers[0].optimizer.state
        norm = math.sqrt(sum(float(s["exp_avg"].double().square().sum()) for s in state.values()))
        moments[clip] = (result.grad_norm, norm / (1 - OPTIMIZER.beta1))
    assert moments[0.0][0] == moments[0.1][0] == pytest.approx(moments[0.0][1], rel=1e-5)
    assert moments[0.1][1] == pytest.approx(0.1, rel=1e-4)


def test_the_schedule_moves_with_the_steps_and_can_begin_anew(topology: Topology, shape: ModelConfig) -> None:
    engine = Engine(build_model(shape, topology), OPTIMIZER, schedule=ScheduleConfig(warmup_steps=4))
    rates = [engine.step([batch_of()], LanguageModelLoss(), denominator=10.0).lr for _ in range(5)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    engine.restart_schedule()
    assert engine.lr == pytest.approx(0.0025) and engine.step_index == 5


def test_an_update_is_seen_at_once_in_the_same_tensors(topology: Topology, shape: ModelConfig) -> None:
    model = build_model(shape, topology)
    engine = Engine(model, OPTIMIZER)
    held = [(parameter, parameter.data_ptr()) for parameter in model.parameters()]
    before = held_out_loss(model, [batch_of()])
    for _ in range(3):
        engine.step([batch_of()], LanguageModelLoss(), denominator=labels_in(batch_of()))
    assert [parameter.data_ptr() for parameter, _ in held] == [pointer for _, pointer in held]
    assert held_out_loss(model, [batch_of()]) < before


def test_an_engine_whose_model_was_taken_over_refuses_to_train(topology: Topology, shape: ModelConfig) -> None:
    model = build_model(shape, topology)
    first = Engine(model, OPTIMIZER)
    second = Engine(model, OPTIMIZER)
    second.step([batch_of()], LanguageModelLoss(), denominator=10.0)
    with pytest.raises(RuntimeError, match="another engine"):
        first.step([batch_of()], LanguageModelLoss(), denominator=10.0)


def test_held_out_loss_weighs_tokens_and_not_batches(topology: Topology, shape: ModelConfig) -> None:
    model, batch = build_model(shape, topology), batch_of()
    whole = held_out_loss(model, [batch])
    parts = rows_of(batch, 1)
    assert held_out_loss(model, parts) == pytest.approx(whole, rel=1e-6)
    empty = replace(parts[0], labels_BS=torch.full_like(parts[0].labels_BS, -100))
    assert held_out_loss(model, [*parts, empty]) == pytest.approx(whole, rel=1e-6)


def test_bf16_weights_follow_fp32_masters(topology: Topology, shape: ModelConfig) -> None:
    """Updates far below bf16's resolution add up in the masters; in bf16 alone they would all be lost."""
    model = build_model(shape, topology, dtype=torch.bfloat16)
    engine = Engine(model, OPTIMIZER.model_copy(update={"lr": 1e-5, "weight_decay": 0.0}))
    for parameter in model.parameters():
        assert parameter.dtype == torch.bfloat16
    norm = model.final_norm_weight()
    assert norm is not None and torch.equal(norm, torch.ones_like(norm))
    for _ in range(3):
        engine.step([batch_of()], LanguageModelLoss(), denominator=labels_in(batch_of()))
    assert torch.equal(norm, torch.ones_like(norm))  # 1 +- 3e-5 rounds to 1
    master = norm.main_param  # pyright: ignore[reportAttributeAccessIssue]
    assert master.dtype == torch.float32
    assert torch.all((master - 1).abs() > 5e-6) and torch.all((master - 1).abs() < 5e-5)


def test_how_rows_are_read_is_asked_once_of_each_micro_batch(topology: Topology, shape: ModelConfig) -> None:
    engine, asked = Engine(build_model(shape, topology), OPTIMIZER), list[int]()
    parts = rows_of(batch_of(), 1)

    def read(batch: Batch) -> SharedRows:
        asked.append(next(number for number, part in enumerate(parts) if part is batch))
        return SharedRows.of_documents(torch.zeros_like(batch.tokens_BS))

    found = engine.step(parts, LanguageModelLoss(), denominator=7.0, rows_of=read)
    assert asked == [0, 1, 2, 3]
    plain = Engine(build_model(shape, topology), OPTIMIZER).step(parts, LanguageModelLoss(), denominator=7.0)
    assert found.loss == pytest.approx(plain.loss, rel=1e-5), "each row is one document"
