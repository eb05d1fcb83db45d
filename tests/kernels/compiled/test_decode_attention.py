"""The kernels of a decoding step as machine code at a large model's shapes: nothing spilt, wide loads, they fit."""

import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from synpro_kernels import DecodeRows, HeadNorm, Slots
from synpro_kernels.common.launch import Call
from synpro_kernels.ops.decode_attention.triton_backend import new_call, prompt_call
from synpro_kernels.ops.decode_attention.triton_heads import heads_call
from synpro_kernels.testing.compile_only import Compiled, compile_call, compile_for
from tests.kernels.compiled.budget import registers, shared_bytes, spills_nothing

GROUPS, MEMBERS, PROMPT, NEW, PAGE = 32, 8, 1024, 256, 32
BATCH = GROUPS * MEMBERS
PAGES = (GROUPS * PROMPT + BATCH * NEW) // PAGE


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def live_rows(fed: int = 1) -> DecodeRows:
    count, sequences = torch.int64, BATCH // fed
    slots = Slots(row_of_slot=meta(BATCH, dtype=count), slot_of_row_B=meta(BATCH, dtype=count), fed=fed)
    return DecodeRows(
        row_of_place=meta(BATCH, dtype=count), place_of_row_B=meta(BATCH, dtype=count),
        prompt_length_G=meta(GROUPS, dtype=count), prompt_page_GX=meta(GROUPS, PROMPT // PAGE, dtype=count),
        new_length_B=meta(BATCH, dtype=count), new_page_SY=meta(sequences, NEW // PAGE, dtype=count),
        prompt_longest=PROMPT, new_longest=NEW, ragged_prompts=True, ragged_new=True,
        slots=slots if fed > 1 else None,
    )  # fmt: skip


def prompt(n: int, r: int, h: int) -> Call:
    keys = meta(PAGES, n, PAGE, h)
    return prompt_call(meta(BATCH, n, r, h), keys, keys, live_rows())


def new(n: int, r: int, h: int, fed: int = 1) -> Call:
    keys, asked = meta(PAGES, n, PAGE, h), meta(BATCH, n, r, h)
    parts = meta(2, BATCH, n, r, h, dtype=torch.float32), meta(2, BATCH, n, r, dtype=torch.float32)
    return new_call(asked, keys, keys, live_rows(fed), *parts)


def heads(n: int, r: int, h: int) -> Call:
    keys, angles = meta(PAGES, n, PAGE, h), meta(BATCH, h, dtype=torch.float32)
    norm = HeadNorm(query_weight=meta(n * r * h), key_weight=meta(n * h), eps=1e-6, by_head=False)
    index = meta(BATCH, dtype=torch.int64)
    return heads_call(meta(BATCH, n * (r + 2) * h), angles, angles, keys, keys, index, index, norm)


# OLMo-2 1B has a query head for each key head; Llama 3.1 8B has four.
CASES: dict[str, Callable[[], Call]] = {
    "prompt, 1B": lambda: prompt(16, 1, 128),
    "prompt, 8B": lambda: prompt(8, 4, 128),
    "new, 1B": lambda: new(16, 1, 128),
    "new, 8B": lambda: new(8, 4, 128),
    "new, 8B, several tokens": lambda: new(8, 4, 128, fed=4),
    "heads, 1B": lambda: heads(16, 1, 128),
    "heads, 8B": lambda: heads(8, 4, 128),
}
CASE = pytest.mark.parametrize("case", CASES)
CAPABILITY = pytest.mark.parametrize("capability", [80, 90, 100])


@cache
def compiled(case: str, capability: int) -> Compiled:
    with compile_for(capability):
        return compile_call(CASES[case]())


@CAPABILITY
@CASE
def test_kernels_fit_and_spill_nothing(case: str, capability: int):
    found = compiled(case, capability).resources
    assert spills_nothing(found)
    assert found.shared_bytes <= shared_bytes(capability)
    # 255 are the most that a thread can have; these leave room for two programs of 128 threads on each quarter.
    assert found.registers <= registers(255), found.registers


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("heads")])
def test_keys_and_values_come_sixteen_bytes_at_a_time(case: str):
    sass = compiled(case, 90).sass
    assert len(re.findall(r"\b(LDGSTS|LDG)\.E\.[A-Z.]*128", sass)) >= 2
