"""Directions: what they are made from, in every layout, and that what is stored comes back."""

import gc
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError, remove_directory, write_manifest
from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.influence import (
    Direction,
    DotInfluence,
    ProbeConfig,
    displacement,
    load_direction,
    mean_gradient,
    next_step_direction,
    next_step_directions,
    probe_direction,
    run_probe,
    save_direction,
)
from synpro_engine.influence.directions import NextAdamW, NextStep, NoDirectionError, displaced, inner, next_step, walk
from synpro_engine.influence.first_order import plain_logprobs
from synpro_engine.model.build import build_model
from synpro_engine.model.model import Model
from synpro_engine.model.state import canonical_state
from synpro_engine.model.tensor_files import SafetensorsFiles
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.divergence import DivergedError
from synpro_engine.train.engine import Engine
from synpro_engine.train.evaluation import held_out_loss
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import MuonConfig, OptimizerConfig, OptimizerName, RatesConfig, ScheduleConfig
from tests.influence.toy import CONFIGS, START, Cases, direction_of, layout_cases, model_of, moved, sequences, walks

Full = dict[str, torch.Tensor]
PROBE = ProbeConfig(steps=3, lr=3e-3, global_batch=4, micro_batch=2)


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


def full(model: Model, direction: Direction) -> Full:
    """Unsharded, by Hugging Face names, on every rank."""
    of = {parameter: direction.tensors[name] for name, parameter in model.named_parameters()}
    return canonical_state(model, read=of.__getitem__)


def assert_same(found: Full, expected: Full, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= tolerance * tensor.norm() + 1e-12, name


def batches(topology: Topology, rows: int = 4) -> list[Batch]:
    """This rank's micro-batches of 8 rows; the masks leave each row another number of labels."""
    ids = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(5))
    tokens, labels = ids[:, :-1], ids[:, 1:].clone()
    for row in range(8):
        labels[row, 2 * row + 1 :] = -100
    per_rank = 8 // topology.dp.size
    mine = slice(topology.dp.rank * per_rank, (topology.dp.rank + 1) * per_rank)
    return [Batch(t, y) for t, y in zip(tokens[mine].split(rows), labels[mine].split(rows), strict=True)]


def optimizer(name: OptimizerName) -> OptimizerConfig:
    rates = RatesConfig(embedding=2.0, vectors=0.5)
    return OptimizerConfig(name=name, lr=1e-3, rates=rates, eps=1e-3, muon=MuonConfig(lr=1e-2))


def trained(variant: str, topology: Topology, name: OptimizerName = "adamw") -> Engine:
    engine = Engine(model_of(CONFIGS[variant], topology), optimizer(name))
    for _ in range(2):
        engine.step(batches(topology, 2), LanguageModelLoss(), denominator=64.0)
    return engine


def made(variant: str, topology: Topology, stored: Path) -> dict[str, Full]:
    """Directions of every kind as full tensors; what `stored` holds is read, not made."""
    model = model_of(CONFIGS[variant], topology)
    engine = trained(variant, topology)
    gradient = mean_gradient(engine.model, batches(topology, 2))
    found = {"gradient": mean_gradient(model, batches(topology)), "read": load_direction(stored, model)}
    upcoming = [batches(topology, 2), [Batch(b.tokens_BS, b.tokens_BS) for b in batches(topology, 2)]]
    live = {"live gradient": gradient, "next step": next_step_direction(engine, batches(topology, 2), upcoming)}
    by_muon = trained(variant, topology, "muon")
    muon = full(by_muon.model, next_step_direction(by_muon, batches(topology, 2), upcoming))
    walked = model_of(CONFIGS[variant], topology)
    config = PROBE.model_copy(update={"steps": 2, "lr": 1e-3})
    v = probe_direction(by_muon_at(stored), walked, walks(2, topology), config, optimizer=optimizer("muon"))
    # The gradient of a model in training leaves nothing in its next step.
    engine.step(batches(topology, 2), LanguageModelLoss(), denominator=64.0)
    done = {"trained": Direction({name: p.detach() for name, p in engine.model.named_parameters()})}
    return (
        {name: full(model, v) for name, v in found.items()}
        | {name: full(engine.model, v) for name, v in (live | done).items()}
        | {"next step by muon": muon, "walk by muon": full(walked, v)}
    )


def by_muon_at(stored: Path) -> Path:
    return stored.with_name(f"{stored.name} by muon")


@pytest.fixture(scope="module")
def stored(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("directions")
    for variant, config in CONFIGS.items():
        model = model_of(config, topology)
        save_direction(directory / variant, model, direction_of(model), seed=7)
        save_checkpoint(by_muon_at(directory / variant), trained(variant, topology, "muon"))
    return directory


def test_displaced_moves_the_weights_and_gives_their_own_storage_back(topology: Topology) -> None:
    model = model_of(CONFIGS["tied llama"], topology)
    other = moved(model)
    before = [(p.data_ptr(), p.detach().clone()) for p in model.parameters()]
    with pytest.raises(ZeroDivisionError):
        with displaced(model, displacement(model, other), -1.0):
            for here, there in zip(model.parameters(), other.parameters(), strict=True):
                assert (here - there).abs().max() < 1e-7
            raise ZeroDivisionError
    for parameter, (pointer, value) in zip(model.parameters(), before, strict=True):
        assert parameter.data_ptr() == pointer and torch.equal(parameter, value)


def test_directions_are_taken_off_each_other_only_when_they_fit(topology: Topology) -> None:
    model = model_of(CONFIGS["olmo2"], topology)
    one, other = direction_of(model), direction_of(model, seed=3)
    name = "decoder.final_layernorm.weight"
    assert torch.equal(one.minus(other).tensors[name], one.tensors[name] - other.tensors[name])
    assert torch.equal(one.scaled(0.5).tensors[name], 0.5 * one.tensors[name])
    with pytest.raises(ValueError, match="other: a direction over other parameters"):
        one.minus(Direction({name: one.tensors[name]}))
    with pytest.raises(ValueError, match="this rank has no parameter nowhere"):
        DotInfluence(model, Direction({"nowhere": torch.zeros(1)}), start_id=START)
    with pytest.raises(ValueError, match=rf"direction: {name} is \(32,\) on cpu, got \(3,\) on cpu"):
        DotInfluence(model, Direction({name: torch.zeros(3)}), start_id=START)


@pytest.mark.parametrize("variant", CONFIGS)
def test_the_mean_gradient_is_autograd_s_and_the_sgd_step_with_it_lowers_the_loss(
    variant: str, topology: Topology
) -> None:
    model = model_of(CONFIGS[variant], topology)
    weights = {p: p.detach().double().requires_grad_() for p in model.parameters()}
    parts = [plain_logprobs(model, b.tokens_BS, b.labels_BS, weights.__getitem__).sum() for b in batches(topology)]
    expected = torch.autograd.grad(-torch.stack(parts).sum() / 64, list(weights.values()))
    found = mean_gradient(model, batches(topology))
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        assert (found.tensors[name] - gradient).norm() <= 1e-5 * gradient.norm()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_reference_has_its_direction_and_that_of_all_is_a_sum_of_them(topology: Topology) -> None:
    engine = trained("olmo2", topology)
    first, second = batches(topology)
    references, weights = {"a": [first], "b": [second]}, {"a": 1.0, "b": 3.0}
    upcoming = [batches(topology)[:1]]
    found = dict(next_step_directions(engine, references, upcoming, weights=weights))
    assert list(found) == [None, "a", "b"]

    def flat(name: str | None) -> torch.Tensor:
        return torch.cat([tensor.flatten() for tensor in full(engine.model, found[name]).values()])

    # Lengths are fixed by <g_k, v_k> = 1, so that how much of each is in the sum is left open.
    both = torch.stack([flat("a"), flat("b")], dim=1)
    parts = torch.linalg.lstsq(both, flat(None)[:, None]).solution[:, 0]
    assert (both @ parts - flat(None)).norm() <= 1e-4 * flat(None).norm() and (parts > 0).all()
    alone = dict(next_step_directions(engine, {"a": [first]}, upcoming, weights={"a": 5.0}))
    assert list(alone) == [None]
    assert_same(full(engine.model, alone[None]), full(engine.model, next_step_direction(engine, [first], upcoming)))


def test_the_direction_of_several_references_is_that_of_their_weighted_mean_loss(topology: Topology) -> None:
    engine = trained("olmo2", topology)
    first, second = batches(topology)
    n, m = (int((batch.labels_BS != -100).sum()) for batch in (first, second))
    upcoming = [batches(topology)[:1]]
    [(_, mean), *_] = next_step_directions(
        engine, {"a": [first], "b": [second]}, upcoming, weights={"a": float(n), "b": float(m)}
    )
    # By their labels: the mean over all of them together.
    assert_same(full(engine.model, mean), full(engine.model, next_step_direction(engine, [first, second], upcoming)))


def test_a_reference_without_a_label_is_a_user_error(topology: Topology) -> None:
    [batch] = batches(topology, 8)
    with pytest.raises(UserError, match="not a single token"):
        mean_gradient(model_of(CONFIGS["olmo2"], topology), [Batch(batch.tokens_BS, batch.labels_BS.fill_(-100))])


def test_along_adam_s_direction_the_score_is_the_drop_of_the_reference_loss_by_a_real_step(
    topology: Topology,
) -> None:
    """An epsilon that rules the denominator keeps the second moment, which the example moves too, out of it."""
    settings = OptimizerConfig(lr=0.1, eps=1000.0, clip=0.0, weight_decay=0.0)
    [reference] = batches(topology, 8)
    [ids] = sequences(1, seed=5, longest=12)
    tokens, labels = torch.tensor([[START, *ids[:-1]]]), torch.tensor([ids])

    def engine() -> Engine:
        made = Engine(model_of(CONFIGS["olmo2"], topology), settings)
        for _ in range(2):
            made.step([reference], LanguageModelLoss(), denominator=64.0)
        return made

    losses = []
    for given in (labels, torch.full_like(labels, -100)):
        stepped = engine()
        stepped.step([Batch(tokens, given)], LanguageModelLoss(), denominator=float(len(ids)))
        losses.append(held_out_loss(stepped.model, [reference]))
    before = engine()
    gradient = mean_gradient(before.model, [reference])
    adamw, rate = NextAdamW(before), before.lr
    parts = {name: adamw.part_of(name, g) for name, g in gradient.tensors.items()}
    divided = {name: adamw.whole_of(name, g / adamw.denominator(name, g.square())) for name, g in parts.items()}
    v = Direction(divided).scaled(rate * adamw.gradient_share)
    [score] = DotInfluence(before.model, v, start_id=START).score([ids])
    assert score.value == pytest.approx(losses[1] - losses[0], rel=0.05)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("steps", [0, 2])
def test_the_next_step_written_out_is_the_one_that_the_engine_takes(steps: int, name: Any, topology: Topology) -> None:
    rates = RatesConfig(embedding=0.5, vectors=3.0)
    settings = OptimizerConfig(name=name, lr=1e-2, rates=rates, clip=0.5, weight_decay=0.0)
    engine = Engine(model_of(CONFIGS["tied llama"], topology), settings)
    for _ in range(steps):
        engine.step(batches(topology, 2)[:2], LanguageModelLoss(), denominator=64.0)
    taking, gradient = NextStep(engine), mean_gradient(engine.model, batches(topology))
    assert inner(engine.model, gradient, gradient) > 0.25  # it is clipped
    expected = dict(taking.update(gradient))
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    engine.step(batches(topology), LanguageModelLoss(), denominator=64.0)
    with pytest.raises(RuntimeError, match="asked of an engine at"):  # its moments are of another step by now
        dict(taking.update(mean_gradient(engine.model, batches(topology))))
    for name, p in engine.model.named_parameters():
        taken = before[name] - p.detach()
        assert (expected[name] - taken).norm() <= 2e-4 * taken.norm(), name


@pytest.mark.parametrize(("steps", "references", "copies"), [(1, 1, 3.0), (2, 1, 3.0), (1, 2, 5.0)])
def test_a_next_step_s_direction_is_made_in_three_copies_of_the_model_and_more_for_more_references(
    steps: int, references: int, copies: float, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    def live() -> int:
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    # A vocabulary that makes the output layer half of it: what is left of one parameter shows.
    shape = CONFIGS["olmo2"].model_copy(update={"vocab_size": 2048})
    engine = Engine(build_model(shape, topology), optimizer("adamw"))
    engine.step(batches(topology, 2), LanguageModelLoss(), denominator=64.0)
    given = {str(number): batches(topology, 2) for number in range(references)}
    upcoming = [batches(topology, 2) for _ in range(steps)]
    size = 4 * sum(parameter.numel() for parameter in engine.model.parameters())
    gc.collect()
    before, seen = live(), list[float]()

    def watched(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            found = real(*arguments, **options)
            seen.append((live() - before) / size)
            return found

        return call

    for name in ("mean_gradient", "mean_direction", "inner"):
        monkeypatch.setattr(next_step, name, watched(getattr(next_step, name)))
    next(next_step_directions(engine, given, upcoming, weights=dict.fromkeys(given, 1.0)))
    # Squares, a gradient, and what is behind a typical step or the direction; while a gradient is made, nothing else.
    assert copies - 0.1 < max(seen) < copies + 0.1, seen
    assert seen[0] < 1.1, seen


def test_a_step_along_the_next_step_s_direction_lowers_the_reference_loss_by_its_length(topology: Topology) -> None:
    engine, reference = Engine(model_of(CONFIGS["olmo2"], topology), OptimizerConfig(lr=1e-8)), batches(topology, 8)
    v = next_step_direction(engine, reference, [batches(topology)[:1]])
    before = held_out_loss(engine.model, reference)
    with displaced(engine.model, v, -1e-3):
        drop = before - held_out_loss(engine.model, reference)
    assert drop == pytest.approx(1e-3, rel=0.05)
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_gradients_that_are_not_finite_show_no_direction_and_leave_the_weights(topology: Topology) -> None:
    engine = trained("olmo2", topology)
    table = engine.model.embedding_weight()
    assert table is not None
    with torch.no_grad():
        table[7] = torch.inf
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    clean = [Batch(b.tokens_BS.where(b.tokens_BS != 7, 8), b.labels_BS) for b in batches(topology, 8)]
    poisoned = [Batch(b.tokens_BS.clone().fill_(7), b.labels_BS) for b in clean]
    with pytest.raises(NoDirectionError, match="show no direction"):
        next_step_direction(engine, clean, [poisoned])
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())


def test_at_a_rate_of_zero_there_is_still_a_direction(topology: Topology) -> None:
    """Where a schedule ends at 0 the weights go nowhere by themselves, and what helps the reference helps it still."""
    found = []
    for schedule in (ScheduleConfig(kind="cosine", total_steps=1, floor=0.0), ScheduleConfig()):
        engine = Engine(model_of(CONFIGS["olmo2"], topology), OptimizerConfig(lr=1e-12), schedule=schedule)
        engine.step_index = 1
        v = next_step_direction(engine, batches(topology, 8), [batches(topology)[:1]])
        found.append((engine.lr, full(engine.model, v)))
    assert found[0][0] == 0.0 < found[1][0]
    assert_same(found[0][1], found[1][1])


def test_words_that_training_never_saw_do_not_rule_the_direction(topology: Topology) -> None:
    """Their second moment is 0: divided by it alone, their part of the direction would be without bound."""
    engine = Engine(model_of(CONFIGS["olmo2"], topology), OptimizerConfig(lr=1e-3))
    known = [Batch(b.tokens_BS.clamp(max=50), b.labels_BS) for b in batches(topology)]
    for _ in range(30):
        engine.step(known, LanguageModelLoss(), denominator=64.0)
    table = engine.model.embedding_weight()
    v = next_step_direction(engine, batches(topology), [known])
    name = next(name for name, parameter in engine.model.named_parameters() if parameter is table)
    norms = v.tensors[name].norm(dim=1)
    assert norms[51:].max() > 0 and norms[51:].max() < 20 * norms[1:51].median()


@pytest.fixture(scope="module")
def theta(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("theta") / "theta"
    save_checkpoint(path, trained("olmo2", topology))
    return path


def test_a_probe_s_direction_is_its_displacement_and_leaves_theta(topology: Topology, theta: Path) -> None:
    config = CONFIGS["olmo2"]
    before, after, model = (model_of(config, topology, seed=9) for _ in range(3))
    run_probe(theta, after, walks(2, topology), PROBE)
    run_probe(theta, before, walks(2, topology), PROBE.model_copy(update={"lr": 1e-30}))
    found = probe_direction(theta, model, walks(2, topology), PROBE)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert_same(full(model, found), full(before, displacement(before, after)), 1e-4)


def test_a_probe_that_diverges_is_a_fault_before_it_is_used(topology: Topology, theta: Path) -> None:
    model = model_of(CONFIGS["olmo2"], topology)
    with pytest.raises(DivergedError, match=r"probe diverged: it ends with \d+ skipped step\(s\), last made: step 1, "):
        probe_direction(theta, model, walks(2, topology), PROBE.model_copy(update={"lr": 1e30}))


def test_a_control_takes_off_what_any_training_does(topology: Topology, theta: Path) -> None:
    model = model_of(CONFIGS["olmo2"], topology)
    same = probe_direction(theta, model, walks(2, topology), PROBE, control=walks(2, topology))
    assert all(not tensor.any() for tensor in same.tensors.values())
    alone = probe_direction(theta, model, walks(2, topology), PROBE)
    control = probe_direction(theta, model, walks(1, topology), PROBE)
    both = probe_direction(theta, model, walks(2, topology), PROBE, control=walks(1, topology))
    assert_same(full(model, both), full(model, alone.minus(control)), 1e-6)


def test_momentum_zeroed_gives_another_direction(topology: Topology, theta: Path) -> None:
    model = model_of(CONFIGS["olmo2"], topology)
    kept, zeroed = (
        probe_direction(theta, model, walks(2, topology), PROBE.model_copy(update={"keep_momentum": keep}))
        for keep in (True, False)
    )
    difference = kept.minus(zeroed)
    assert all(tensor.any() for tensor in difference.tensors.values())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_walk_with_kept_momentum_takes_the_steps_that_training_would_on_its_text(
    topology: Topology, theta: Path, stored: Path, name: OptimizerName
) -> None:
    theta = theta if name == "adamw" else by_muon_at(stored / "olmo2")
    muon = MuonConfig(lr=2.0, momentum=0.8, nesterov=False, steps=7, scale="adamw_rms")
    made = OptimizerConfig(name=name, lr=0.5, beta1=0.6, beta2=0.8, eps=1e-3, clip=0.1, muon=muon)
    training, probe = (model_of(CONFIGS["olmo2"], topology, seed=9) for _ in range(2))
    rates = {"lr": PROBE.lr, "muon": muon.model_copy(update={"lr": 4.0 * PROBE.lr})}
    engine = Engine(training, made.model_copy(update={**rates, "weight_decay": PROBE.weight_decay}))
    load_checkpoint(theta, training, engine)
    walk(engine, walks(2, topology), PROBE)
    run_probe(theta, probe, walks(2, topology), PROBE, optimizer=made)
    assert all(torch.equal(a, b) for a, b in zip(probe.parameters(), training.parameters(), strict=True))


@pytest.mark.parametrize("keep", [True, False])
def test_a_walk_of_a_theta_of_muon_moves_every_direction_of_a_matrix_alike(
    topology: Topology, stored: Path, keep: bool
) -> None:
    made = optimizer("muon").model_copy(update={"muon": MuonConfig(lr=1e-2, coefficients="polar_express", steps=8)})
    one = ProbeConfig(steps=1, lr=1e-4, global_batch=4, micro_batch=2, keep_momentum=keep, weight_decay=0.0)
    model, theta = model_of(CONFIGS["olmo2"], topology), by_muon_at(stored / "olmo2")
    v = probe_direction(theta, model, walks(2, topology), one, optimizer=made)
    matrix = v.tensors["decoder.layers.1.self_attention.linear_proj.weight"]
    sizes = torch.linalg.svdvals(matrix.double())
    # Rates as they were to each other: a tenth of both.
    assert sizes[:-1].allclose(torch.tensor(1e-3).double(), rtol=0.1), sizes


def test_a_walk_goes_on_with_no_moments_of_another_optimizer(topology: Topology, theta: Path) -> None:
    with pytest.raises(UserError, match=r"holds the state of adamw, but `optimizer\.name` is muon"):
        run_probe(theta, model_of(CONFIGS["olmo2"], topology), walks(2, topology), PROBE, optimizer=optimizer("muon"))


def test_in_half_precision_the_master_weights_know_steps_that_the_weights_lose(
    topology: Topology, tmp_path: Path
) -> None:
    half = model_of(CONFIGS["olmo2"], topology, dtype=torch.bfloat16)
    save_checkpoint(tmp_path / "theta", Engine(half, OptimizerConfig()))
    small = PROBE.model_copy(update={"lr": 1e-5, "weight_decay": 0.0, "keep_momentum": False})
    found = probe_direction(tmp_path / "theta", half, walks(2, topology), small)
    after = model_of(CONFIGS["olmo2"], topology, dtype=torch.bfloat16)
    run_probe(tmp_path / "theta", after, walks(2, topology), small)
    coarse = displacement(half, after)
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    assert (coarse.tensors[name] == 0).float().mean() > 0.5
    assert (found.tensors[name] == 0).float().mean() < 0.1


def test_a_stored_direction_is_refused_by_another_model_and_when_damaged(
    topology: Topology, stored: Path, tmp_path: Path
) -> None:
    model = model_of(CONFIGS["olmo2"], topology)
    with pytest.raises(UserError, match=r"tied llama: tensor `.*` is"):
        load_direction(stored / "tied llama", model)
    save_direction(tmp_path / "v", model, direction_of(model))
    weights = tmp_path / "v" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    with pytest.raises(UserError, match=r"v/model.safetensors: was changed or damaged"):
        load_direction(tmp_path / "v", model)
    save_direction(tmp_path / "t", model, direction_of(model))
    write_manifest(tmp_path / "t", "direction", {}, {}, None)
    with pytest.raises(UserError, match="does not say whether it is a `tangent`"):
        load_direction(tmp_path / "t", model)
    save_checkpoint(tmp_path / "w", model)
    with pytest.raises(UserError, match="is a checkpoint, not a direction"):
        load_direction(tmp_path / "w", model)
    with pytest.raises(UserError, match="is an artifact of kind checkpoint"):
        save_direction(tmp_path / "w", model, direction_of(model))


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_stored_direction_comes_back_bit_for_bit(variant: str, topology: Topology, stored: Path) -> None:
    model = model_of(CONFIGS[variant], topology)
    back, given = load_direction(stored / variant, model), direction_of(model)
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in given.tensors.items())
    assert back.tensors.keys() == given.tensors.keys()


EXACT = ("gradient", "read", "live gradient")
LAYOUTS = {
    "TP2 SP": ParallelConfig(tp=2, sequence_parallel=True),
    "PP2": ParallelConfig(pp=2),
    "PP2 VPP2": ParallelConfig(pp=2, vpp=2),
    "DP2": ParallelConfig(),
    "CP2": ParallelConfig(cp=2),
}


def made_in(cases: Cases, ports: list[int], stored: Path) -> list[Any]:
    found = []
    for (layout, variant), port in zip(cases, ports, strict=True):
        with job(LAYOUTS[layout], port) as topology:
            whole = made(variant, topology, stored / variant)
            found.append({kind: {n: t.numpy() for n, t in v.items()} for kind, v in whole.items()})
    return found


@pytest.mark.parametrize("cases", layout_cases(LAYOUTS))
def test_every_layout_makes_the_same_directions(cases: Cases, topology: Topology, stored: Path) -> None:
    expected = {variant: made(variant, topology, stored / variant) for variant in {variant for _, variant in cases}}
    results = run_ranks(made_in, 2, cases=cases, ports=free_ports(len(cases)), stored=stored)
    for result in results:
        for (_, variant), kinds in zip(cases, result, strict=True):
            for kind, tensors in kinds.items():
                found = {name: torch.from_numpy(array) for name, array in tensors.items()}
                assert_same(found, expected[variant][kind], 1e-5 if kind in EXACT else 1e-4)


def _read_then_remove(stored: Path) -> bool:
    """Rank 1 reads a stored direction slowly, and rank 0 removes the files as soon as it has its own share.

    Whether what was read is what was written.
    """
    with launched(ParallelConfig()) as topology:
        model = model_of(CONFIGS["tied llama"], topology)
        if topology.rank == 1:
            opened = SafetensorsFiles.__init__

            def slowly(self: SafetensorsFiles, directory: Path) -> None:
                time.sleep(2)
                opened(self, directory)

            SafetensorsFiles.__init__ = slowly
        found, written = load_direction(stored, model), direction_of(model)
        if topology.is_main:
            remove_directory(stored)
        return all(torch.equal(found.tensors[name], tensor) for name, tensor in written.tensors.items())


def test_files_may_go_as_soon_as_a_direction_is_read(tmp_path: Path, stored: Path) -> None:
    copy = shutil.copytree(stored / "tied llama", tmp_path / "direction")
    assert run_ranks(_read_then_remove, 2, stored=copy) == [True, True]


def test_the_gradient_of_a_sequence_has_its_own_norm_as_influence_on_it(topology: Topology) -> None:
    model = model_of(CONFIGS["olmo2"], topology)
    [ids] = sequences(1, seed=5, longest=12)
    tokens, labels = torch.tensor([[START, *ids[:-1]]]), torch.tensor([ids])
    gradient = mean_gradient(model, [Batch(tokens, labels)])
    squared = sum(float(tensor.double().square().sum()) for tensor in gradient.tensors.values())
    [score] = DotInfluence(model, gradient, start_id=START).score([ids])
    assert score.value == pytest.approx(squared, rel=1e-5)
