"""All estimators agree, each to the order it promises; a score depends on its sequence alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.influence import (
    Direction,
    DotInfluence,
    EstimatorConfig,
    FiniteDifferenceInfluence,
    JvpInfluence,
    TwoForwardInfluence,
    build_estimator,
    sequence_logprobs,
)
from synpro_engine.influence.batching import window_batches
from synpro_engine.influence.directions import displaced
from synpro_engine.model.model import Model
from tests.influence.toy import CONFIGS, START, direction_of, model_of, moved, per_example, sequences

GIVEN = sequences(12, seed=1)
LONG = sequences(1, seed=5, longest=200)[0]  # 135 tokens: nine windows, the last one short


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest, topology: Topology) -> Model:
    return model_of(CONFIGS[request.param], topology)


@pytest.fixture(scope="module")
def direction(model: Model) -> Direction:
    return direction_of(model)


def values(estimator: Any, given: list[list[int]] = GIVEN) -> np.ndarray:
    return np.array([score.value for score in estimator.score(given)])


def error(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def test_forward_mode_equals_a_backward_pass_an_example(model: Model, direction: Direction) -> None:
    jvp = values(JvpInfluence(model, direction, start_id=START))
    assert error(jvp, np.array(per_example(model, direction, GIVEN))) < 1e-12


@pytest.mark.parametrize("at", ["theta", "midpoint"])
def test_capture_equals_forward_mode_in_value_and_loss(model: Model, direction: Direction, at: Any) -> None:
    true = JvpInfluence(model, direction, start_id=START, at=at).score(GIVEN)
    for packed in (False, True):
        dot = DotInfluence(model, direction, start_id=START, at=at, packed=packed, micro_batch=5).score(GIVEN)
        assert error(np.array([s.value for s in dot]), np.array([s.value for s in true])) < 1e-5
        assert [s.loss for s in dot] == pytest.approx([s.loss for s in true], abs=2e-6)


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_a_text_is_clipped_by_the_norm_of_its_own_gradient_however_many_windows_it_has(
    model: Model, direction: Direction, rows: int
) -> None:
    given = [*GIVEN[:3], LONG]
    true = np.array(per_example(model, direction, given, clip=1.0))
    assert error(values(DotInfluence(model, direction, start_id=START, clip=1.0, micro_batch=rows), given), true) < 1e-5


@pytest.mark.parametrize("at", ["theta", "midpoint"])
def test_every_estimator_gives_the_loss_where_it_is_taken_and_the_number_of_windows(
    model: Model, direction: Direction, at: Any
) -> None:
    given, place = [*GIVEN, LONG], {"start_id": START, "at": at}
    with displaced(model, direction, -0.5 if at == "midpoint" else 0.0):
        losses = [-logprobs.mean().item() for logprobs in sequence_logprobs(model, given, start_id=START)]
    estimators = [
        DotInfluence(model, direction, **place),
        DotInfluence(model, direction, clip=1.0, **place),
        JvpInfluence(model, direction, **place),
        FiniteDifferenceInfluence(model, direction, step=0.3, **place),
    ]
    for estimator in [*estimators, *[TwoForwardInfluence(model, direction, start_id=START)] * (at == "theta")]:
        scores = estimator.score([*given, []])
        assert [score.loss for score in scores] == pytest.approx([*losses, 0.0], abs=2e-6), type(estimator)
        assert [score.windows for score in scores] == [-(-len(ids) // 16) for ids in [*given, []]]


def test_shares_sum_to_the_score_and_there_is_one_a_token(model: Model, direction: Direction) -> None:
    estimators = [
        TwoForwardInfluence(model, direction, start_id=START),
        DotInfluence(model, direction, start_id=START),
        JvpInfluence(model, direction, start_id=START),
        FiniteDifferenceInfluence(model, direction, start_id=START),
    ]
    for estimator in estimators:
        for ids, score in zip([*GIVEN, []], estimator.score([*GIVEN, []]), strict=True):
            assert score.tokens == len(score.shares) == len(ids)
            assert sum(score.shares) == pytest.approx(score.value, abs=1e-9)


def test_shares_by_loss_token_are_alike_and_those_by_site_are_others(model: Model, direction: Direction) -> None:
    ids = [max(GIVEN, key=len)]
    jvp, differences, dot = (
        np.array(estimator.score(ids)[0].shares)
        for estimator in (
            JvpInfluence(model, direction, start_id=START),
            FiniteDifferenceInfluence(model, direction, start_id=START, step=0.02),
            DotInfluence(model, direction, start_id=START),
        )
    )
    assert error(differences, jvp) < 1e-2
    assert error(dot, jvp) > 0.1


def test_two_forwards_and_the_midpoint_part_as_the_third_power_of_the_displacement(
    model: Model, direction: Direction
) -> None:
    gaps: dict[str, list[float]] = {"midpoint": [], "theta": []}
    for factor in (0.5, 0.25, 0.125):
        v = direction.scaled(factor)
        two = values(TwoForwardInfluence(model, v, start_id=START))
        for at, gap in gaps.items():
            gap.append(float(np.linalg.norm(values(DotInfluence(model, v, start_id=START, at=at)) - two)))
    for order, gap in ((3, gaps["midpoint"]), (2, gaps["theta"])):
        slope = np.log2(gap[0] / gap[-1]) / 2  # of the gap against the displacement, both logarithmic
        assert abs(slope - order) < 0.5, (order, gap)
        assert gap == sorted(gap, reverse=True)


def test_finite_differences_come_nearer_as_the_step_shrinks_until_rounding(model: Model, direction: Direction) -> None:
    jvp = values(JvpInfluence(model, direction, start_id=START))
    errors = [
        error(values(FiniteDifferenceInfluence(model, direction, start_id=START, step=step)), jvp)
        for step in (0.2, 0.1, 0.05, 1e-5)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 1e-2 < errors[3]


def test_half_a_step_from_the_midpoint_is_two_forwards(model: Model, direction: Direction) -> None:
    differences = FiniteDifferenceInfluence(model, direction, start_id=START, at="midpoint", step=0.5)
    two = TwoForwardInfluence(model, direction, start_id=START)
    assert values(differences) == pytest.approx(values(two), abs=5e-6)


def test_finite_differences_are_refused_in_half_precision(topology: Topology) -> None:
    half = model_of(CONFIGS["olmo2"], topology, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"model: finite differences mean nothing in torch.bfloat16"):
        FiniteDifferenceInfluence(half, direction_of(half), start_id=START)


def test_in_half_precision_the_capture_still_ranks_as_fp64_does(topology: Topology) -> None:
    half = model_of(CONFIGS["olmo2"], topology, dtype=torch.bfloat16)
    v = direction_of(half, size=0.2)
    given = sequences(40, seed=3)
    true = values(JvpInfluence(half, v, start_id=START), given)
    dot = values(DotInfluence(half, v, start_id=START), given)
    assert error(dot, true) < 0.1
    assert np.corrcoef(dot, true)[0, 1] > 0.99


ESTIMATORS: dict[str, Any] = {"two forwards": TwoForwardInfluence, "dot": DotInfluence}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_scores_do_not_depend_on_batch_mates_order_padding_or_packing(
    name: str, model: Model, direction: Direction
) -> None:
    def scores(given: list[list[int]], **settings: Any) -> list[Any]:
        return ESTIMATORS[name](model, direction, start_id=START, **settings).score(given)

    alone = [scores([ids])[0] for ids in GIVEN]
    again = scores(GIVEN, micro_batch=4)
    assert again == scores(GIVEN, micro_batch=4), "the same arithmetic gives the same bits"
    others = [
        again,
        scores(GIVEN, micro_batch=12),
        scores(GIVEN[::-1], micro_batch=5)[::-1],
        scores([*sequences(9, seed=8), *GIVEN], micro_batch=7)[9:],
        scores(GIVEN, packed=True, micro_batch=2),
        scores(GIVEN[::-1], packed=True, micro_batch=3)[::-1],
    ]
    for other in others:
        for one, two in zip(alone, other, strict=True):
            assert two.value == pytest.approx(one.value, abs=1e-6)
            assert two.shares == pytest.approx(one.shares, abs=1e-6)


def test_a_sequence_without_tokens_scores_nothing_even_alone(model: Model, direction: Direction) -> None:
    for estimator in ESTIMATORS.values():
        [score] = estimator(model, direction, start_id=START).score([[]])
        assert (score.value, score.tokens, score.shares) == (0.0, 0, ())


def test_several_directions_from_one_pass_are_those_from_a_pass_each(model: Model, direction: Direction) -> None:
    other = direction_of(model, seed=4)
    both = DotInfluence(model, {"one": direction, "other": other}, start_id=START)
    passes: list[int] = []
    with model.chunks[0].register_forward_pre_hook(lambda *_: passes.append(1)):
        found = both.score_each(GIVEN)
        assert passes
        needed = len(passes)
        DotInfluence(model, direction, start_id=START).score(GIVEN)
    assert len(passes) == 2 * needed
    for name, v in (("one", direction), ("other", other)):
        single = values(DotInfluence(model, v, start_id=START))
        assert np.array([score.value for score in found[name]]) == pytest.approx(single, rel=1e-6, abs=1e-8)
    first = both.score(GIVEN)
    assert [score.value for score in first] == [score.value for score in found["one"]]
    assert [score.others for score in first] == [{"other": score.value} for score in found["other"]]
    jvp = build_estimator(EstimatorConfig(estimator="jvp"), model, direction, start_id=START, others={"other": other})
    assert [score.others for score in jvp.score(GIVEN)] == [{} for _ in first]
    with pytest.raises(ValueError, match="a midpoint of its own"):
        DotInfluence(model, {"one": direction, "other": other}, start_id=START, at="midpoint")


def test_a_direction_along_some_parameters_is_zero_along_the_others(model: Model, direction: Direction) -> None:
    names = sorted(direction.tensors)
    parts = [Direction({name: direction.tensors[name] for name in names[i::3]}) for i in range(3)]
    summed = sum(values(DotInfluence(model, part, start_id=START)) for part in parts)
    assert summed == pytest.approx(values(DotInfluence(model, direction, start_id=START)), abs=1e-6)


def test_scoring_leaves_the_model_as_it_was(model: Model, direction: Direction) -> None:
    before = [(p.data_ptr(), p.detach().clone(), p.requires_grad) for p in model.parameters()]
    modules = [module for chunk in model.chunks for module in chunk.modules()]
    hooks = [(dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in modules]
    model.train()
    for packed in (False, True):
        DotInfluence(model, direction, start_id=START, at="midpoint", packed=packed).score(GIVEN)
        TwoForwardInfluence(model, direction, start_id=START, packed=packed).score(GIVEN)
    for parameter, (pointer, value, asked) in zip(model.parameters(), before, strict=True):
        assert parameter.data_ptr() == pointer and torch.equal(parameter, value) and parameter.requires_grad == asked
        assert parameter.grad is None
    assert all(module.training for module in modules)
    assert hooks == [(dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in modules]


def test_a_call_after_the_weights_changed_is_an_error(topology: Topology) -> None:
    model = model_of(CONFIGS["olmo2"], topology)
    dot = DotInfluence(model, direction_of(model), start_id=START)
    dot.score(GIVEN)
    with torch.no_grad():
        model.blocks()[0].qkv.mul_(1.01)
    with pytest.raises(RuntimeError, match="stale"):
        dot.score(GIVEN)


def test_packed_rows_are_fewer_and_hold_every_token_once(model: Model) -> None:
    batches = window_batches(GIVEN, start_id=START, seq_len=16, micro_batch=100, packed=True)
    [alone] = window_batches(GIVEN, start_id=START, seq_len=16, micro_batch=100)
    [packed] = batches
    assert packed.packed and not alone.packed
    assert packed.tokens_BS.size(0) < alone.tokens_BS.size(0)
    assert int((packed.labels_BS != -100).sum()) == sum(map(len, GIVEN))
    for one, other in zip(
        sequence_logprobs(model, GIVEN, start_id=START),
        sequence_logprobs(model, GIVEN, start_id=START, packed=True, micro_batch=2),
        strict=True,
    ):
        assert other.tolist() == pytest.approx(one.tolist(), abs=5e-6)


@pytest.mark.parametrize("name", ["auto", "two_forward", "dot", "jvp", "finite_difference"])
def test_every_estimator_is_there_by_name_and_takes_the_probe_either_way(name: Any, topology: Topology) -> None:
    theta = model_of(CONFIGS["olmo2"], topology)
    at = "theta" if name in ("auto", "two_forward") else "midpoint"
    probe, config = moved(theta), EstimatorConfig(estimator=name, at=at, micro_batch=4)
    as_model, as_direction = (
        build_estimator(config, theta, given, start_id=START) for given in (probe, direction_of(theta))
    )
    assert values(as_model) == pytest.approx(values(as_direction), abs=1e-5)
    assert error(values(as_model), values(TwoForwardInfluence(theta, probe, start_id=START))) < 0.1


def test_settings_that_do_not_go_together_are_user_errors(topology: Topology) -> None:
    with pytest.raises(ValueError, match="packed is not for jvp"):
        EstimatorConfig(estimator="jvp", packed=True)
    half = model_of(CONFIGS["olmo2"], topology, dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"`estimator` finite_difference: .*bfloat16"):
        build_estimator(EstimatorConfig(estimator="finite_difference"), half, direction_of(half), start_id=START)


def test_along_a_gradient_the_default_is_the_clipped_first_order_and_displacements_are_refused(
    topology: Topology,
) -> None:
    model = model_of(CONFIGS["olmo2"], topology)
    gradient = Direction(direction_of(model).tensors, tangent=True)
    expected = DotInfluence(model, gradient, start_id=START, clip=1.0)
    found = build_estimator(EstimatorConfig(), model, gradient, start_id=START)
    assert values(found).tolist() == values(expected).tolist()
    for settings in ({"estimator": "two_forward"}, {"estimator": "finite_difference"}, {"at": "midpoint"}):
        with pytest.raises(UserError, match="needs a displacement of the weights, not a gradient"):
            build_estimator(EstimatorConfig.model_validate(settings), model, gradient, start_id=START)
    with pytest.raises(UserError, match="packed: wants clip 0"):
        build_estimator(EstimatorConfig(packed=True), model, gradient, start_id=START)
    for settings, fault in (
        ({"clip": 1.0}, "clip: is for dot, not for two_forward"),
        ({"at": "midpoint"}, "at: a midpoint is for estimators of first order"),
        ({"estimator": "jvp", "clip": 1.0}, "clip: is for dot, not for jvp"),
    ):
        with pytest.raises(UserError, match=fault):
            build_estimator(EstimatorConfig.model_validate(settings), model, direction_of(model), start_id=START)
    build_estimator(EstimatorConfig(packed=True, clip=0.0), model, gradient, start_id=START)
