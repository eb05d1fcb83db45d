"""The forward with roles for warps: its machine code for sm_90, and its source run by threads in drawn orders."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from synpro_kernels import linear_logprob, linear_logprob_definition
from synpro_kernels.common.launch import Call
from synpro_kernels.ops.linear_logprob import forward, triton_gemm
from synpro_kernels.ops.linear_logprob.dispatch import LINEAR_LOGPROB
from synpro_kernels.ops.linear_logprob.types import LogitSettings, Shard, Stats
from synpro_kernels.testing import nan_filled_empty, using
from synpro_kernels.testing.compile_only import SHARED_LIMIT, compile_call, compile_for
from synpro_kernels.testing.gluon_machine import Fault
from tests.kernels.compiled.budget import spills_nothing

gluon_forward = pytest.importorskip(f"{triton_gemm.__package__}.gluon_forward", exc_type=ImportError)
run = pytest.importorskip("synpro_kernels.testing.gluon_language").run
FORMS, Warps = gluon_forward.FORMS, gluon_forward.Warps

PLAIN = LogitSettings(temperature=1.0, softcap=None, ignore_index=-100, vocab_start=0)
SMALL = {1: Warps(1, 4, 16, 16, 16, 3), 2: Warps(2, 4, 16, 16, 16, 3)}


def shard_of(tokens: int, vocab: int, width: int, *, device: str = "cpu", **settings) -> Shard:
    generator = torch.Generator().manual_seed(tokens + vocab)

    def drawn(rows: int) -> torch.Tensor:
        if device == "meta":
            return torch.empty(rows, width, dtype=torch.bfloat16, device=device)
        return torch.randn(rows, width, generator=generator).to(torch.bfloat16)

    return Shard(
        hidden_TH=drawn(tokens),
        weight_VH=drawn(vocab),
        bias_V=None,
        column_T=torch.arange(tokens, device=device) * 7 % vocab,
        settings=replace(PLAIN, **settings),
        kernels=LINEAR_LOGPROB.named("triton"),
    )


def parts_of(
    shard: Shard, warps: tuple[int, ...], seed: int, *, processors: int = 2, module: ModuleType = gluon_forward
) -> Stats:
    with nan_filled_empty():
        call = module.stats_call(shard, entropy=True, processors=processors, warps=warps)
    return Stats(*run(call, seed))


def results(shard: Shard, parts: Stats) -> forward.Evaluated:
    return forward.finish(triton_gemm._merge_parts(parts), shard, shard.column_T, None)


@pytest.mark.parametrize("entropy", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_the_machine_code_has_the_roles_and_spills_nothing(form, entropy):
    shard, warps = shard_of(8192, 131072, 4096, device="meta"), FORMS[form]
    with compile_for(90):
        compiled = compile_call(gluon_forward.stats_call(shard, entropy=entropy, processors=132, warps=warps))
    found = compiled.resources
    assert spills_nothing(found, 32)
    assert found.shared_bytes <= SHARED_LIMIT[90]
    assert set(found.matrix_instructions) == {"HGMMA"} and f"HGMMA.64x{warps.BN}x16" in compiled.sass
    # A partition for each role but the first, registers dealt out among them, and copies that one warp asks for.
    assert f"partition{warps.GROUPS - 1}(" in compiled.asm["ttgir"]
    assert found.opcodes["USETMAXREG"] > 0 and found.opcodes["UTMALDG"] == 2


@pytest.mark.parametrize("groups", SMALL)
@pytest.mark.parametrize(
    ("tokens", "vocab", "width"), [(40, 100, 64), (65, 16, 32), (16, 17, 16), (7, 130, 48), (33, 257, 16)]
)
def test_results_are_the_definitions_in_every_order(groups, tokens, vocab, width):
    """Tiles, stages and pieces of work in odd numbers; one stage for the whole width; groups that have no tile."""
    shard = shard_of(tokens, vocab, width, temperature=0.7)
    operands = shard.hidden_TH.double(), shard.weight_VH.double(), shard.column_T
    expected = linear_logprob_definition(*operands, temperature=0.7, entropy=True)
    for seed in range(6):
        found = results(shard, parts_of(shard, SMALL[groups], seed, processors=1 + seed % 3))
        for mine, exact in zip(found, expected, strict=False):
            torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_all_orders_give_the_same_bits_at_the_sizes_of_a_gpu(form):
    shard = shard_of(130, 700, 192)
    first, *others = (parts_of(shard, FORMS[form], seed) for seed in range(3))
    assert not any(part.isnan().any() for part in first)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_other_shards_targets_and_nan_stay_where_they_are():
    shard = shard_of(40, 100, 64)
    shard.column_T[3], shard.column_T[5] = -7, 100
    shard.hidden_TH[9, 1] = torch.nan
    parts = triton_gemm._merge_parts(parts_of(shard, SMALL[2], 0))
    assert parts.target_logit[3] == parts.target_logit[5] == 0
    assert parts.sumexp.isnan().nonzero().flatten().tolist() == [9]


FAULTS = {
    "no turns": ("mbarrier.wait(turn.index(group), (number // 2 & 1) ^ (1 - group))", "pass", "before it is filled"),
    "a turn given to oneself": ("turn.index(1 - group)", "turn.index(group)", "hangs|before it is filled|overwritten"),
    "a stage given back while it is read": ("(stage + STAGES - 1) % STAGES", "stage", "overwritten|hangs"),
    "two products left to run": ("num_outstanding=1", "num_outstanding=2", "overwritten"),
    "a last stage that is kept": (
        "mbarrier.arrive(empty.index((number * STEPS + STEPS - 1) % STAGES))",
        "pass",
        "hangs",
    ),
    "stages that are not empty to begin with": ("(step // STAGES & 1) ^ 1", "step // STAGES & 1", "hangs"),
    "operands of the round before": (
        "step // STAGES & 1)\n        acc",
        "(step // STAGES & 1) ^ 1)\n        acc",
        "before it is filled",
    ),
    "bytes that are not announced": ("hidden.block_type.nbytes + ", "", "before it is filled|hangs"),
    "copies that are told elsewhere": (
        "k], ready.index(stage), hidden_ring",
        "k], empty.index(stage), hidden_ring",
        "hangs",
    ),
    "rounds that begin anew": ("        done += last - first\n", "", "hangs|overwritten|before it is filled"),
    "sums that are not waited for": ("num_outstanding=0", "num_outstanding=1", "waited for"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_protocol_is_seen(fault, tmp_path):
    """The machine bites: each change of the source hangs, or reads or writes what it must not, within a few orders."""
    old, new, told = FAULTS[fault]
    source = Path(gluon_forward.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1
    file = tmp_path / "faulty.py"
    file.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    faulty = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faulty)
    with pytest.raises(Fault, match=told):
        for seed in range(20):
            parts_of(shard_of(40, 100, 64), SMALL[2], seed, module=faulty)


def test_the_op_takes_it_where_it_is_asked_for(monkeypatch):
    shard, grids = shard_of(130, 700, 192), []
    monkeypatch.setenv("SYNPRO_PERSISTENT", "in-turn")
    monkeypatch.setattr(triton_gemm, "capability_of", lambda tensor: 90)
    monkeypatch.setattr(triton_gemm, "_processors", lambda tensor: 3)
    monkeypatch.setattr(Call, "launch", lambda call: grids.append(call.grid) or run(call, 0))
    with using("triton"), nan_filled_empty():
        found = linear_logprob(shard.hidden_TH, shard.weight_VH, shard.column_T, entropy=True)
    exact = linear_logprob_definition(shard.hidden_TH.double(), shard.weight_VH.double(), shard.column_T, entropy=True)
    for mine, truth in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-5, atol=1e-5)
    assert grids == [(3,)]


def test_a_form_that_there_is_none_of_is_refused_where_another_kernel_serves_too(monkeypatch):
    monkeypatch.setenv("SYNPRO_PERSISTENT", "yes")
    with using("triton"), pytest.raises(ValueError, match="SYNPRO_PERSISTENT: 'yes' is none of together, in-turn"):
        linear_logprob(torch.zeros(2, 16), torch.zeros(3, 16), torch.zeros(2, dtype=torch.int64))


def test_only_what_it_is_made_for_takes_it():
    usual = shard_of(8192, 4096, 128, device="meta")
    assert gluon_forward.takes(usual, 90)
    for other, capability in (
        (usual, 80), (usual, 100), (shard_of(64, 4096, 128, device="meta"), 90),
        (shard_of(8192, 4096, 120, device="meta"), 90), (shard_of(8192, 4096, 128, device="meta", softcap=30.0), 90),
        (replace(usual, bias_V=torch.empty(4096, device="meta")), 90),
        (replace(usual, hidden_TH=usual.hidden_TH.float(), weight_VH=usual.weight_VH.float()), 90),
    ):  # fmt: skip
        assert not gluon_forward.takes(other, capability)
