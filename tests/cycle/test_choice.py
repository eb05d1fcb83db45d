"""Layouts to choose from: those that divide, as large as the plan counts them, the best first."""

import pytest

from synpro_engine.cli.main import main
from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.choice import Machine, choices
from synpro_engine.cycle.forecast import forecast
from synpro_engine.cycle.run_layout import PRETRAIN

LARGE = load_recipe("synpro-1.1b", [])


def test_every_choice_divides_the_model_and_the_batch_and_none_is_left_out() -> None:
    found = {choice.layout for choice in choices(LARGE, 8, Machine())}
    assert len(found) == len(choices(LARGE, 8, Machine()))
    model, batch = LARGE.model, LARGE.pretrain.global_batch
    for tp in range(1, 9):
        for pp in range(1, 9):
            divides = (
                8 % (tp * pp) == 0
                and not (model.kv_heads % tp or model.ffn % tp or model.vocab_size % tp or model.layers % pp)
                and batch % (8 // tp // pp) == 0
            )
            here = {layout for layout in found if (layout.tp, layout.pp, layout.vpp) == (tp, pp, 1)}
            assert bool(here) == divides, (tp, pp)


def test_tensor_parallelism_stays_within_a_machine() -> None:
    assert max(choice.layout.tp for choice in choices(LARGE, 16, Machine(node=4))) == 4


@pytest.mark.parametrize(
    "settings", [(), ("parallel.tp=2", "parallel.sequence_parallel=true"), ("pretrain.parallel.pp=4",)]
)
def test_memory_is_what_the_plan_counts(settings: tuple[str, ...]) -> None:
    recipe = load_recipe("synpro-1.1b", settings)
    planned = next(cost for cost in forecast(recipe, 8).costs if cost.stage == PRETRAIN)
    layout = recipe.layout_of(PRETRAIN, 8)
    (here,) = [choice for choice in choices(recipe, 8, Machine()) if choice.layout == layout]
    assert here.memory == pytest.approx(planned.memory)


def test_a_pipeline_waits_by_the_formula_and_the_less_the_more_chunks_it_has() -> None:
    found = {(c.layout.pp, c.layout.vpp, c.layout.tp): c for c in choices(LARGE, 8, Machine())}
    plain, chunked = found[4, 1, 1], found[4, 2, 1]
    assert plain.bubble == pytest.approx(3 / (plain.micro_batches + 3))
    assert chunked.bubble == pytest.approx(3 / (2 * plain.micro_batches + 3))
    assert chunked.sent["pp"] == 2 * plain.sent["pp"]
    assert found[1, 1, 1].sent["tp"] == found[1, 1, 1].sent["pp"] == found[1, 1, 1].bubble == 0
    assert found[1, 1, 8].sent["dp"] == 0


def test_the_quickest_stands_first_and_what_does_not_fit_last(capsys: pytest.CaptureFixture[str]) -> None:
    found = choices(LARGE, 8, Machine())
    assert [choice.seconds for choice in found] == sorted(choice.seconds for choice in found)
    assert main(["plan", "synpro-1.1b", "--layouts", "--ranks", "8", "--memory-gib", "12"]) == 0
    shown = capsys.readouterr().out.splitlines()
    marked = ["(too much)" in line for line in shown if " x " in line and line.startswith(("DP", "TP", "PP"))]
    assert any(marked) and marked == sorted(marked)
    assert shown[-1].strip().startswith("synpro launch --nproc-per-node 8 bench pretrain synpro-1.1b")


def test_no_layout_at_all_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no layout of 3 rank"):
        choices(load_recipe("smoke", []), 3, Machine())
    assert main(["plan", "smoke", "--layouts", "--ranks", "3"]) == 2
    assert "no layout of 3 rank(s) divides" in capsys.readouterr().err
