"""Scores of training's own examples: exact in every layout, and training never notices."""

import gc
import weakref
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.influence import Direction, Examples, InRun
from synpro_engine.influence.first_order import Capture, plain_logits
from synpro_engine.model.build import freeze_but_last
from synpro_engine.model.model import Model
from synpro_engine.train.config import OutputLayer
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss, LossTerms
from synpro_engine.train.optimizer_config import OptimizerConfig
from tests.influence.toy import CONFIGS, Cases, direction_of, layout_cases, model_of

LAYOUTS = {
    "TP2": ParallelConfig(tp=2),
    "TP2 SP": ParallelConfig(tp=2, sequence_parallel=True),
    "PP2": ParallelConfig(pp=2),
    "PP2 VPP2": ParallelConfig(pp=2, vpp=2),
    "DP2": ParallelConfig(),
    "CP2": ParallelConfig(cp=2),
}
ON_FOUR = {
    "CP2 TP2 SP": ParallelConfig(cp=2, tp=2, sequence_parallel=True),
    "CP2 PP2": ParallelConfig(cp=2, pp=2),
    "CP2 TP2": ParallelConfig(cp=2, tp=2),
    "CP2 PP2 VPP2": ParallelConfig(cp=2, pp=2, vpp=2),
    "CP4": ParallelConfig(cp=4),
    "TP2 PP2 VPP2 SP": ParallelConfig(tp=2, pp=2, vpp=2, sequence_parallel=True),
    "DP2 CP2": ParallelConfig(cp=2),
    "DP2 TP2": ParallelConfig(tp=2),
    "DP2 PP2": ParallelConfig(pp=2),
    "DP2 PP2 VPP2": ParallelConfig(pp=2, vpp=2),
}
ROWS, LENGTH, Z_LOSS = 8, 16, 1e-2


def rows_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels; the masks leave each row another number of labels."""
    ids = torch.randint(64, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    tokens, labels = ids[:, :-1], ids[:, 1:].clone()
    for row in range(ROWS):
        labels[row, 2 * row + 1 :] = -100
    return tokens, labels


LABELS = float(sum(2 * row + 1 for row in range(ROWS)))


def microbatches(step: int, size: int, topology: Topology) -> tuple[list[Batch], list[Examples]]:
    """This rank's rows, `size` a micro-batch, each row an example named after itself."""
    tokens, labels = rows_of(step)
    per_rank = ROWS // topology.dp.size
    mine = range(topology.dp.rank * per_rank, (topology.dp.rank + 1) * per_rank)
    parts = [slice(at, at + size) for at in range(mine.start, mine.stop, size)]
    batches = [Batch(tokens[part], labels[part]) for part in parts]
    keys = [[f"row {row}" for row in range(part.start, part.stop)] for part in parts]
    return batches, [Examples.rows(names, batch) for names, batch in zip(keys, batches, strict=True)]


def train(
    variant: str,
    topology: Topology,
    size: int,
    method: Any,
    *,
    output_layer: OutputLayer = "fused",
    dtype: torch.dtype = torch.float32,
    steps: int = 2,
    watched: Container[int] = range(9),
    overlap: bool = False,
) -> tuple[Engine, list[dict[str, dict[str, float]]], list[tuple[float, ...]]]:
    """Steps of an engine, those in `watched` with `method`, if any: (engine, scores of each, numbers of each step)."""
    model = model_of(CONFIGS[variant], topology, dtype=dtype)
    directions = {"first": direction_of(model), "second": direction_of(model, seed=3)}
    engine = Engine(model, OptimizerConfig(lr=1e-3), overlap_gradients=overlap)
    in_run = None if method is None else InRun(engine, directions, method=method)
    loss_fn, scores, numbers = LanguageModelLoss(Z_LOSS, output_layer=output_layer), [], []
    for step in range(steps):
        batches, examples = microbatches(step, size, topology)
        if in_run is None or step not in watched:
            result = engine.step(batches, loss_fn, denominator=LABELS)
        else:
            with in_run.watch(batches, examples, loss_fn, denominator=LABELS) as seen:
                result = engine.step(batches, seen.loss_fn, denominator=LABELS)
            scores.append({score.key: dict(score.values) for score in seen.scores})
        numbers.append((result.loss, result.grad_norm, result.extras["z_loss"]))
    return engine, scores, numbers


Scores = dict[str, dict[str, float]]


def defined(model: Model, directions: dict[str, Direction], step: int) -> Scores:
    """<grad of each row's mean objective, v> by direction, in fp64 through the plain decoder, row by row."""
    tokens, labels = rows_of(step)
    weights = {p: p.detach().double().requires_grad_() for p in model.parameters()}
    names = {p: name for name, p in model.named_parameters()}
    found = {}
    for row, (tokens_S, labels_S) in enumerate(zip(tokens, labels, strict=True)):
        logits_SV = plain_logits(model, tokens_S[None], weights.__getitem__)[0][labels_S != -100]
        target = labels_S[labels_S != -100]
        loss = torch.nn.functional.cross_entropy(logits_SV, target) + Z_LOSS * logits_SV.logsumexp(-1).square().mean()
        grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        found[f"row {row}"] = {
            name: sum(float((grads[p] * v.tensors[names[p]].double()).sum()) for p in weights)
            for name, v in directions.items()
        }
    return found


def assert_same(found: Scores, expected: Scores) -> None:
    assert found.keys() <= expected.keys()
    for key, values in found.items():
        assert values == pytest.approx(expected[key], rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


@pytest.fixture(scope="module")
def truth(topology: Topology) -> dict[str, Scores]:
    found = {}
    for variant, config in CONFIGS.items():
        model = model_of(config, topology)
        found[variant] = defined(model, {"first": direction_of(model), "second": direction_of(model, seed=3)}, 0)
    return found


def assert_alike(engine: Engine, numbers: Any, plain: Engine, unwatched: Any, method: str) -> None:
    """Training went as if nobody watched: to the bit, or for `prefix` up to the order of its sums."""
    pairs = list(zip(engine.model.parameters(), plain.model.parameters(), strict=True))
    if method == "prefix":
        assert np.array(numbers) == pytest.approx(np.array(unwatched), rel=1e-5)
        assert all((a - b).norm() <= 1e-5 * b.norm() for a, b in pairs)
    else:
        assert numbers == unwatched
        assert all(torch.equal(a, b) for a, b in pairs)


METHODS = [(1, "gradient"), (1, "capture"), (4, "capture"), (1, "prefix"), (4, "prefix")]
WAYS = [
    *((size, method, "fused") for size, method in (*METHODS, (1, "auto"), (2, "auto"))),
    *((size, method, "recomputed") for size, method in METHODS),
    *((size, method, "materialised") for size, method in METHODS[::2]),
]


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize(("size", "method", "output_layer"), WAYS)
def test_a_score_is_that_of_the_example_s_own_gradient_and_training_does_not_notice(
    variant: str, size: int, method: str, output_layer: OutputLayer, topology: Topology, truth: dict[str, Scores]
) -> None:
    plain, _, unwatched = train(variant, topology, size, None, output_layer=output_layer)
    engine, scores, numbers = train(variant, topology, size, method, output_layer=output_layer)
    assert_same(scores[0], truth[variant])
    assert list(scores[0]) == [f"row {row}" for row in range(ROWS)]
    assert scores[1] != scores[0]
    assert_alike(engine, numbers, plain, unwatched, method)
    assert all(parameter.requires_grad for parameter in engine.model.parameters())


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("method", ["gradient", "capture", "prefix"])
def test_a_watched_step_leaves_nothing_behind(variant: str, method: str, topology: Topology) -> None:
    """Steps that nobody watches, before and after one that is watched, with the same engine."""
    (plain, _, unwatched), (engine, scores, numbers) = (
        train(variant, topology, 1, given, steps=3, watched=(1,)) for given in (None, method)
    )
    assert len(scores) == 1
    assert_alike(engine, numbers, plain, unwatched, method)


@pytest.mark.parametrize("method", ["gradient", "capture", "prefix"])
def test_a_direction_that_is_given_up_is_free_memory_at_once(method: Any, topology: Topology) -> None:
    """Not when Python next looks for cycles: the next direction wants the room, and on a GPU nothing makes it look."""
    model = model_of(CONFIGS["olmo2"], topology)
    engine, direction = Engine(model, OptimizerConfig(lr=1e-3)), direction_of(model)
    batches, examples = microbatches(0, 1, topology)
    kept = [weakref.ref(tensor) for tensor in direction.tensors.values()]
    gc.collect()
    gc.disable()
    try:
        in_run = InRun(engine, direction, method=method)
        with in_run.watch(batches, examples, LanguageModelLoss(Z_LOSS), denominator=LABELS) as seen:
            engine.step(batches, seen.loss_fn, denominator=LABELS)
        assert seen.scores
        stacks = [weakref.ref(one) for one in gc.get_objects() if isinstance(one, Capture)]
        del in_run, seen, direction
        assert not [one for one in (*kept, *stacks) if one() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("variant", CONFIGS)
def test_how_much_was_accumulated_before_an_example_does_not_reach_its_score(variant: str, topology: Topology) -> None:
    engine = Engine(model_of(CONFIGS[variant], topology), OptimizerConfig())
    (batch, *others), _ = microbatches(0, 1, topology)
    batches = [batch, *(others[at % len(others)] for at in range(30)), batch]
    examples = [Examples.rows([str(at)], own) for at, own in enumerate(batches)]
    in_run = InRun(engine, direction_of(engine.model))
    with in_run.watch(batches, examples, LanguageModelLoss(Z_LOSS), denominator=1.0) as step:
        engine.step(batches, step.loss_fn, denominator=1.0)
    assert step.scores[0].values == step.scores[-1].values != step.scores[1].values


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("method", ["gradient", "capture"])
def test_half_precision_trains_as_if_nobody_watched(
    variant: str, method: str, topology: Topology, truth: dict[str, Scores]
) -> None:
    plain, _, unwatched = train(variant, topology, 1, None, dtype=torch.bfloat16)
    engine, scores, numbers = train(variant, topology, 1, method, dtype=torch.bfloat16)
    assert_alike(engine, numbers, plain, unwatched, method)
    found, expected = ([all_of[f"row {row}"]["first"] for row in range(ROWS)] for all_of in (scores[0], truth[variant]))
    assert np.corrcoef(found, expected)[0, 1] > 0.99


def test_parts_of_a_row_add_up_to_it(topology: Topology) -> None:
    cut = torch.full((4, LENGTH), -1)
    cut[:, :5], cut[:, 5:11] = torch.arange(4)[:, None], torch.arange(4, 8)[:, None]
    batches, whole = microbatches(0, 4, topology)
    parts, found = [Examples(keys=tuple("abcdefgh"), example_BS=cut)] * 2, []
    for examples in (whole, parts):
        engine = Engine(model_of(CONFIGS["olmo2"], topology), OptimizerConfig())
        in_run = InRun(engine, direction_of(engine.model))
        with in_run.watch(batches, examples, LanguageModelLoss(), denominator=LABELS) as watched:
            engine.step(batches, watched.loss_fn, denominator=LABELS)
        found.append([(score.tokens, score.values["influence"]) for score in watched.scores])
    rows, pieces = found
    for row in range(4):  # the first micro-batch's rows, of at most 7 labels: all are in the two pieces
        expected = rows[row][0] * rows[row][1]
        assert sum(pieces[at][0] for at in (row, row + 4)) == rows[row][0]
        assert sum(pieces[at][0] * pieces[at][1] for at in (row, row + 4)) == pytest.approx(expected, rel=1e-5)


def test_a_method_is_refused_where_it_cannot_tell_examples_apart(topology: Topology) -> None:
    engine = Engine(model_of(CONFIGS["olmo2"], topology), OptimizerConfig(), overlap_gradients=False)
    v = direction_of(engine.model)
    batches, rows = microbatches(0, 2, topology)
    halves = [Examples(keys=("a", "b"), example_BS=(torch.arange(LENGTH) > 0).long().expand(2, LENGTH))] * 4
    for method, examples, message in (
        ("gradient", rows, "`gradient` wants one example a micro-batch"),
        ("prefix", halves, "`prefix` wants one example a row"),
    ):
        with pytest.raises(ValueError, match=message):
            with InRun(engine, v, method=method).watch(batches, examples, LanguageModelLoss(), denominator=LABELS):
                pass
    overlapped = Engine(model_of(CONFIGS["olmo2"], topology), OptimizerConfig(), overlap_gradients=True)
    with pytest.raises(ValueError, match="does not go with overlapped gradients"):
        InRun(overlapped, v, method="prefix")


@pytest.mark.parametrize(("size", "method"), [(1, "gradient"), (4, "capture"), (4, "prefix")])
@pytest.mark.parametrize("variant", CONFIGS)
def test_a_gradient_made_past_the_readers_never_goes_missing_in_silence(
    variant: str, size: int, method: Any, topology: Topology
) -> None:
    """What the loss is cannot be seen from outside; where it reads the output layer can."""
    engine = Engine(model_of(CONFIGS[variant], topology), OptimizerConfig())
    v, (batches, examples) = direction_of(engine.model), microbatches(0, size, topology)
    fused = LanguageModelLoss()

    def past(_watched: Model, hidden_BSH: torch.Tensor, batch: Batch) -> LossTerms:
        return fused(engine.model, hidden_BSH, batch)

    with pytest.raises((RuntimeError, AssertionError), match="past"):
        with InRun(engine, v, method=method).watch(batches, examples, past, denominator=LABELS) as step:
            engine.step(batches, step.loss_fn, denominator=LABELS)


@pytest.mark.parametrize(("size", "method"), [(1, "gradient"), (4, "capture"), (4, "prefix")])
@pytest.mark.parametrize("variant", CONFIGS)
def test_what_a_loss_adds_and_scales_is_scored_with_it(
    variant: str, size: int, method: Any, topology: Topology, truth: dict[str, Scores]
) -> None:
    engine = Engine(model_of(CONFIGS[variant], topology), OptimizerConfig())
    v, (batches, examples) = direction_of(engine.model), microbatches(0, size, topology)
    fused = LanguageModelLoss(Z_LOSS)

    def scaled(model: Model, hidden_BSH: torch.Tensor, batch: Batch) -> LossTerms:
        terms = fused(model, hidden_BSH, batch)
        return LossTerms(objective=-0.5 * terms.objective, loss=terms.loss)

    with InRun(engine, v, method=method).watch(batches, examples, scaled, denominator=LABELS) as step:
        engine.step(batches, step.loss_fn, denominator=LABELS)
    for score in step.scores:
        expected = -0.5 * truth[variant][score.key]["first"]
        assert score.values["influence"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("size", "method"), [(1, "gradient"), (4, "capture"), (4, "prefix")])
def test_only_the_trained_blocks_can_be_scored(size: int, method: Any, topology: Topology) -> None:
    """Below the first trained block nothing has a gradient; its own layers still do."""
    found = []
    for frozen in (False, True):
        model = model_of(CONFIGS["olmo2"], topology)
        names = {f"decoder.layers.3.{rest}" for rest in ("self_attention.linear_qkv.weight", "mlp.linear_fc2.weight")}
        v = Direction({name: tensor for name, tensor in direction_of(model).tensors.items() if name in names})
        if frozen:
            freeze_but_last(model, 1)
        engine = Engine(model, OptimizerConfig())
        batches, examples = microbatches(0, size, topology)
        with InRun(engine, v, method=method).watch(batches, examples, LanguageModelLoss(), denominator=LABELS) as step:
            engine.step(batches, step.loss_fn, denominator=LABELS)
        found.append([score.values["influence"] for score in step.scores])
    assert found[0] == pytest.approx(found[1], rel=1e-5) and all(found[0])


def test_a_direction_along_frozen_parameters_is_refused(topology: Topology) -> None:
    model = model_of(CONFIGS["olmo2"], topology)
    model.final_norm_weight().requires_grad_(False)
    with pytest.raises(ValueError, match=r"moves what is not trained, such as decoder.final_layernorm.weight"):
        InRun(Engine(model, OptimizerConfig()), direction_of(model))


def watched_in(cases: Cases, ports: list[int], truth: dict[str, Scores]) -> None:
    """In each case every method scores right, and training is left alone."""
    for (layout, variant), port in zip(cases, ports, strict=True):
        with job((LAYOUTS | ON_FOUR)[layout], port) as topology:
            rank = topology.dp.rank
            divided = "DP2" in layout
            rows = [f"row {row}" for row in (range(4 * rank, 4 * rank + 4) if divided else range(ROWS))]
            groups: list[tuple[OutputLayer, int, tuple[str, ...]]] = [
                ("fused", 1, ("gradient", "capture")), ("fused", 2, ("capture", "prefix")),
            ]  # fmt: skip
            if layout in ("TP2 SP", "CP2", *ON_FOUR):
                groups.append(("recomputed", 2, ("capture",)))
            for output_layer, size, methods in groups:
                given: Any = {"output_layer": output_layer, "steps": 1}
                plain, _, unwatched = train(variant, topology, size, None, **given)
                for method in methods:
                    overlap = divided and method != "prefix"
                    engine, scores, numbers = train(variant, topology, size, method, overlap=overlap, **given)
                    assert list(scores[0]) == rows, (layout, variant, method)
                    assert_same(scores[0], truth[variant])
                    assert_alike(engine, numbers, plain, unwatched, method)


@pytest.mark.parametrize("cases", layout_cases(LAYOUTS))
def test_every_layout_scores_alike_and_trains_as_if_nobody_watched(cases: Cases, truth: dict[str, Scores]) -> None:
    run_ranks(watched_in, 2, cases=cases, ports=free_ports(len(cases)), truth=truth)


@pytest.mark.slow
@pytest.mark.parametrize("cases", layout_cases(ON_FOUR))
def test_ranks_that_share_sequences_beside_matrices_or_layers_score_alike(
    cases: Cases, truth: dict[str, Scores]
) -> None:
    run_ranks(watched_in, 4, cases=cases, ports=free_ports(len(cases)), truth=truth)
