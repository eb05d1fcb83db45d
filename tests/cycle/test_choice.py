"""Layouts to choose from: those that divide, as large as the plan counts them, the best first."""

import itertools
from pathlib import Path

import pytest

from synpro_engine.cli import layout_table
from synpro_engine.cli.main import main
from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.choice import Machine, choices
from synpro_engine.cycle.forecast import forecast
from synpro_engine.cycle.run_layout import IMPORT, PRETRAIN
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.model.build import build_model
from synpro_engine.train.checkpoint import save_checkpoint

LARGE = load_recipe("synpro-1.1b", [])


def test_every_choice_divides_the_model_and_the_batch_and_none_is_left_out() -> None:
    found = {choice.layout for choice in choices(LARGE, 8, Machine())}
    assert len(found) == len(choices(LARGE, 8, Machine()))
    model, batch = LARGE.model, LARGE.pretrain.global_batch
    for tp, pp, cp in itertools.product(range(1, 9), repeat=3):
        divides = (
            8 % (tp * pp * cp) == 0
            and not (model.kv_heads % tp or model.ffn % tp or model.vocab_size % tp or model.layers % pp)
            and batch % (8 // tp // pp // cp) == 0
        )
        here = {layout for layout in found if (layout.tp, layout.pp, layout.vpp, layout.cp) == (tp, pp, 1, cp)}
        assert bool(here) == divides, (tp, pp, cp)


def test_sequences_are_shared_where_they_divide_and_their_keys_are_sent() -> None:
    odd = load_recipe("synpro-1.1b", ["model.seq_len=2052"])  # 4 x 513
    assert {choice.layout.cp for choice in choices(odd, 8, Machine())} == {1, 2}
    found = {c.layout.cp: c for c in choices(LARGE, 4, Machine()) if c.layout.tp == c.layout.pp == 1}
    model, plain, shared = LARGE.model, found[1], found[4]
    tokens = shared.micro_batch * shared.micro_batches * model.seq_len
    assert shared.sent["cp"] == 2 * 3 / 4 * tokens * model.layers * 2 * model.kv_heads * model.head_size * 2
    assert plain.sent["cp"] == 0 and shared.sent["dp"] == plain.sent["dp"]
    assert shared.memory < plain.memory and shared.seconds > plain.seconds


def test_what_teachers_send_is_counted(tmp_path: Path) -> None:
    own = ["model.heads=4", "model.kv_heads=4", "pretrain.in_run=null"]
    recipe = load_recipe("smoke", own)
    wide = recipe.model.model_copy(update={"layers": 3, "d_model": 128, "kv_heads": 2})
    with launched(ParallelConfig()) as topology:
        save_checkpoint(tmp_path / "teacher", build_model(wide, topology))
    taught = load_recipe("smoke", [*own, f"pretrain.distill.teachers=[{tmp_path / 'teacher'}]"])
    for axis in ("tp", "cp"):
        alone, beside = (
            next(c for c in choices(one, 2, Machine()) if getattr(c.layout, axis) == 2) for one in (recipe, taught)
        )
        of = (model := recipe.model).layers * (
            2 * model.d_model if axis == "tp" else 2 * model.kv_heads * model.head_size
        )
        teacher = wide.layers * (wide.d_model if axis == "tp" else wide.kv_heads * wide.head_size)
        assert beside.sent[axis] / alone.sent[axis] == pytest.approx(1 + teacher / of)


@pytest.mark.parametrize(
    "settings", [[], ["parallel.tp=2"], ["pretrain.parallel={tp: 2, sequence_parallel: true}"],
                 ["pretrain.parallel={pp: 2, vpp: 2}"]],
)  # fmt: skip
def test_each_layout_s_settings_ask_for_it_of_the_very_recipe(settings: list[str]) -> None:
    recipe = load_recipe("synpro-1.1b", settings)
    for choice in choices(recipe, 4, Machine()):
        found = load_recipe("synpro-1.1b", [*settings, *layout_table.settings(recipe, choice).split()])
        assert found.layout_of(PRETRAIN, 4) == choice.layout
        assert found.layout_of(IMPORT, 4) == recipe.layout_of(IMPORT, 4)


def test_tensor_parallelism_stays_within_a_machine() -> None:
    assert max(choice.layout.tp for choice in choices(LARGE, 16, Machine(node=4))) == 4


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("parallel.tp=2", "parallel.sequence_parallel=true"),
        ("pretrain.parallel.pp=4",),
        ("pretrain.parallel.cp=2", "pretrain.recompute=full"),
        ("pretrain.recompute=full", "pretrain.offload_layers=8"),
    ],
)
def test_memory_is_what_the_plan_counts(settings: tuple[str, ...]) -> None:
    recipe = load_recipe("synpro-1.1b", settings)
    planned = next(cost for cost in forecast(recipe, 8).costs if cost.stage == PRETRAIN)
    layout = recipe.layout_of(PRETRAIN, 8)
    (here,) = [choice for choice in choices(recipe, 8, Machine()) if choice.layout == layout]
    assert here.memory == pytest.approx(planned.memory)


def test_a_pipeline_waits_by_the_formula_and_the_less_the_more_chunks_it_has() -> None:
    whole = [choice for choice in choices(LARGE, 8, Machine()) if choice.layout.cp == 1]
    found = {(c.layout.pp, c.layout.vpp, c.layout.tp): c for c in whole}
    plain, chunked = found[4, 1, 1], found[4, 2, 1]
    assert plain.bubble == pytest.approx(3 / (plain.micro_batches + 3))
    assert chunked.bubble == pytest.approx(3 / (2 * plain.micro_batches + 3))
    assert chunked.sent["pp"] == 2 * plain.sent["pp"]
    assert found[1, 1, 1].sent["tp"] == found[1, 1, 1].sent["pp"] == found[1, 1, 1].bubble == 0
    assert found[1, 1, 8].sent["dp"] == 0


def test_the_quickest_stands_first_and_what_does_not_fit_last(capsys: pytest.CaptureFixture[str]) -> None:
    found = choices(LARGE, 8, Machine())
    assert [choice.seconds for choice in found] == sorted(choice.seconds for choice in found)
    assert main(["plan", "synpro-1.1b", "--layouts", "--ranks", "8", "--memory-gib", "8"]) == 0
    shown = capsys.readouterr().out.splitlines()
    marked = ["(too much)" in line for line in shown if " x " in line and line.startswith(("DP", "CP", "TP", "PP"))]
    assert any(marked) and marked == sorted(marked)
    assert shown[-1].strip().startswith("synpro launch --nproc-per-node 8 bench pretrain synpro-1.1b")


def test_the_command_that_measures_a_layout_is_of_the_recipe_as_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text("base: synpro-1.1b\nname: mine\n")
    asked = [str(tmp_path / "my.yaml"), "model.layers=32"]
    assert main(["plan", *asked, "--layouts", "--ranks", "64", "--memory-gib", "20"]) == 0
    [*_, command] = capsys.readouterr().out.splitlines()
    assert "synpro launch --nnodes 8 --rdzv-backend c10d --rdzv-endpoint HEAD:29500 --nproc-per-node 8 bench" in command
    assert f"bench pretrain {' '.join(asked)} " in command
    assert ("pretrain.parallel.pp=" in command) == ("--micro-batches" in command)
    assert main(["plan", *asked, "--layouts", "--tokens-per-s", "1e6"]) == 2
    assert main(["plan", *asked, "--node", "4"]) == 2
    assert "plan: --node says nothing without --layouts" in capsys.readouterr().err


def test_no_layout_at_all_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no layout of 3 rank"):
        choices(load_recipe("smoke", []), 3, Machine())
    assert main(["plan", "smoke", "--layouts", "--ranks", "3"]) == 2
    assert "no layout of 3 rank(s) divides" in capsys.readouterr().err
