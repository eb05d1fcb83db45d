"""linear_distill's row kernels as machine code at production sizes: nothing spilt, wide loads and stores."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synpro_kernels.common.launch import Call
from synpro_kernels.ops.linear_distill.triton_rows import differentiate_call, mix_call, norms_call
from synpro_kernels.ops.linear_distill.types import Norms, Slopes
from synpro_kernels.testing.compile_only import Compiled, compile_call, compile_for
from tests.kernels.compiled.budget import registers, spills_nothing

TOKENS, VOCAB = 1024, 131072


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def block(vocab: int = VOCAB) -> Tensor:
    return meta(TOKENS, vocab)


def norms(both: bool) -> Call:
    return norms_call(block(), Norms(*(meta(TOKENS) for _ in range(4))), meta(TOKENS, dtype=torch.int64), 0, 0.5, both)


def slopes(temperature: float, *, others: bool, vocab: int = VOCAB, dtype: torch.dtype = torch.bfloat16) -> Call:
    return differentiate_call(
        block(vocab), block(vocab), block(vocab) if others else None, meta(TOKENS, 4), meta(TOKENS, 3),
        meta(TOKENS, dtype=torch.int64), 0, Slopes(inverse_temperature=1 / temperature, pull=0.5, label=0.5), dtype,
    )  # fmt: skip


CASES: dict[str, tuple[int, Callable[[], Call]]] = {
    "norms of a teacher": (64, lambda: norms(False)),
    "norms of a student": (64, lambda: norms(True)),
    "first part of a mean": (48, lambda: mix_call(block(), meta(TOKENS, 3), block(), 0.5, True)),
    "part of a mean": (48, lambda: mix_call(block(), meta(TOKENS, 3), block(), 0.5, False)),
    "slopes": (64, lambda: slopes(1.0, others=False)),
    "slopes, tempered": (80, lambda: slopes(2.0, others=False)),
    "slopes, several teachers": (80, lambda: slopes(2.0, others=True)),
    "slopes in fp32": (80, lambda: slopes(2.0, others=True, dtype=torch.float32)),
    "slopes, an odd vocabulary": (120, lambda: slopes(2.0, others=True, vocab=50257)),
}


def compiled(case: str, capability: int) -> Compiled:
    with compile_for(capability):
        return compile_call(CASES[case][1]())


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("case", CASES)
def test_rows_spill_nothing_and_leave_room_for_several_programs(case: str, capability: int):
    found = compiled(case, capability).resources
    assert spills_nothing(found)
    assert found.registers <= registers(CASES[case][0]), found.registers


@pytest.mark.parametrize("case", [case for case in CASES if "odd" not in case])
def test_logits_come_and_slopes_go_in_wide_words(case: str):
    sass = compiled(case, 90).sass
    assert re.search(r"\bLDG\.E\.[A-Z.]*128", sass)
    assert "norms" in case or re.search(r"\bSTG\.E\.[A-Z.]*(64|128)", sass)
