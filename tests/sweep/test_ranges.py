"""What is typed after --over is what is tried, and what cannot be is refused in a line that names the key."""

import json

import pytest

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.sweep import Choices, Numbers, ranges_of
from synpro_engine.sweep.ranges import with_settings
from synpro_engine.sweep.study import combinations

SMOKE = load_recipe("smoke")
LR, DECAY, NAME, LAYERS = (
    "pretrain.optimizer.lr", "pretrain.optimizer.weight_decay", "pretrain.optimizer.name", "model.layers",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "range_"),
    [
        (f"{LR}=1e-4..1e-2:log", Numbers(key=LR, low=1e-4, high=1e-2, log=True)),
        (f"{DECAY}=0..3", Numbers(key=DECAY, low=0.0, high=3.0)),
        (f" {DECAY} = .5..1e0 ", Numbers(key=DECAY, low=0.5, high=1.0)),
        (f"{DECAY}=0.1..0.45:0.1", Numbers(key=DECAY, low=0.1, high=0.4, step=0.1)),
        (f"{LAYERS}=1..4", Numbers(key=LAYERS, low=1, high=4)),
        (f"{LAYERS}=1..1e2:log", Numbers(key=LAYERS, low=1, high=100, log=True)),
        (f"{LAYERS}=1..6:2", Numbers(key=LAYERS, low=1, high=5, step=2)),
        (f"{LR}=1e-3,1e-2", Choices(key=LR, values=(1e-3, 1e-2))),
        ("pretrain.mask_repetitions=true,false", Choices(key="pretrain.mask_repetitions", values=(True, False))),
        ("pretrain.plateau=null,null", None),
    ],
)
def test_a_range_is_read_as_it_is_written(text, range_):
    if range_ is None:
        with pytest.raises(UserError, match="given twice"):
            ranges_of([text], SMOKE)
        return
    [found] = ranges_of([text], SMOKE)
    if isinstance(found, Numbers) and isinstance(range_, Numbers):
        assert (found.key, found.log, found.step) == (range_.key, range_.log, range_.step)
    assert found.edges == pytest.approx(range_.edges)
    for value, wanted in zip(found.edges, range_.edges, strict=True):
        assert type(value) is type(wanted)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pretrain.lr=1e-4..1e-2", "unknown key `pretrain.lr`; is `pretrain.optimizer.lr` meant?"),
        ("pretrain.optimizer.weight_decy=0..1", "did you mean `weight_decay`?"),
        (f"{LR}=0..1", f"`{LR}`: Input should be greater than 0"),
        (f"{LR}=0..1:log", f"`{LR}`: a range with :log begins above 0"),
        (f"{LR}=1..1", f"`{LR}`: 1 is not below 1"),
        (f"{LR}=1e-3", f"`{LR}`: one value is no range"),
        (f"{LR}=1e-3..", f"`{LR}`: '1e-3..' is no range"),
        (f"{LR}=1..1e999", f"`{LR}`: 1..1e999 has no end"),
        (f"{LR}=1..2:5", f"`{LR}`: `:5` is neither :log nor a step"),
        (f"{LR}=1..2:1e999", f"`{LR}`: `:1e999` is neither :log nor a step"),
        (f"{LR}=1..2:lin", f"`{LR}`: `:lin` is neither :log nor a step"),
        (f"{LR}=[1],[2]", f"`{LR}`: choices are texts, numbers"),
        (f"{LR}=1,x", f"`{LR}`: Input should be a valid number, got 'x'"),
        (f"{LAYERS}=1.5..4", f"`{LAYERS}`: Input should be a valid integer, got 1.5"),
        (f"{LAYERS}=1..4:0.5", f"`{LAYERS}`: takes whole numbers"),
        (f"{NAME}=adamw,sgd", f"`{NAME}`: Input should be 'adamw' or 'muon', got 'sgd'"),
        (f"{NAME}=1..2", f"`{NAME}`: Input should be 'adamw' or 'muon', got 1"),
        ("model.d_model=64..66", "d_model"),
        ("corpus.max_train_tokens=1000,2000", "`corpus.max_train_tokens` changes what is trained or measured on"),
        ("seed=1,2", "`seed` changes what is trained or measured on"),
        ("pretrain.micro_batch=1,2", "`pretrain.micro_batch` changes nothing of what pretraining comes to"),
        ("rounds=1,2", "`rounds` changes nothing of what pretraining comes to"),
        ("=1..2", "expected KEY=RANGE"),
        (LR, "expected KEY=RANGE"),
    ],
)
def test_what_is_no_range_of_a_setting_is_refused_in_one_line_that_names_it(text, told):
    with pytest.raises(UserError) as fault:
        ranges_of([text], SMOKE)
    assert str(fault.value).startswith(f"--over {text}: ") and told in str(fault.value)


@pytest.mark.parametrize(
    ("span", "values"),
    [
        ("0.1..0.3:0.1", (0.1, 0.2, 0.3)),
        ("0.1..0.35:0.1", (0.1, 0.2, 0.3)),
        ("0.1..0.3:0.2", (0.1, 0.3)),
        ("0.9..0.95:0.01", (0.9, 0.91, 0.92, 0.93, 0.94, 0.95)),
        ("1e-7..4e-7:1e-7", (1e-7, 2e-7, 3e-7, 4e-7)),
        ("0..1:0.5", (0.0, 0.5, 1.0)),
    ],
)
def test_numbers_of_a_range_with_a_step_have_the_decimals_that_were_typed(span, values):
    [found] = ranges_of([f"{DECAY}={span}"], SMOKE)
    assert found.values == values and found.edges == (values[0], values[-1])
    assert all(isinstance(value, float) for value in found.values)


def test_two_ranges_of_a_setting_are_refused():
    with pytest.raises(UserError, match=f"`{LR}` has a range already"):
        ranges_of([f"{LR}=1..2", f"{LR}=2..3"], SMOKE)


def test_a_recipe_with_other_settings_differs_in_these_alone():
    other = with_settings(SMOKE, {LR: 0.5, "pretrain.plateau.window": 9}, "here")
    assert other.pretrain.optimizer.lr == 0.5 and other.pretrain.plateau.window == 9
    assert with_settings(other, {LR: SMOKE.at(LR), "pretrain.plateau.window": 4}, "here") == SMOKE
    assert SMOKE.pretrain.optimizer.lr == 3e-3


def test_a_grid_has_every_combination_once_and_needs_ranges_that_can_be_counted():
    ranges = ranges_of([f"{LAYERS}=1..3", f"{DECAY}=0..1:0.5", f"{NAME}=adamw,muon"], with_settings(
        SMOKE, {"pretrain.in_run": None, "probe.kind": "walk", "probe.keep_momentum": False}, "here"
    ))  # fmt: skip
    found = [tuple(each.values()) for each in combinations(ranges)]
    assert len(set(found)) == len(found) == 3 * 3 * 2 and (3, 1.0, "muon") in found
    with pytest.raises(UserError, match=f"`{LR}`: a grid needs choices"):
        combinations(ranges_of([f"{LR}=1e-4..1e-2:log"], SMOKE))


def test_settings_that_a_sweep_found_cannot_be_others_in_the_recipe_that_names_it():
    found = {"sweep": "x", "trial": 0, "trials": 1, "measured": "reference", "loss": 1.0, "settings": {LR: 3e-3}}
    assert load_recipe("smoke", [f"tuned={json.dumps(found)}"]).tuned is not None
    with pytest.raises(UserError, match=f"{LR}: is 0.5, but `tuned` says that a sweep found 0.003"):
        load_recipe("smoke", [f"tuned={json.dumps(found)}", f"{LR}=0.5"])
    with pytest.raises(UserError, match=r"no setting `pretrain\.nothing`"):
        load_recipe("smoke", [f"tuned={json.dumps(found | {'settings': {'pretrain.nothing': 1}})}"])
