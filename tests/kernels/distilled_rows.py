"""Rows of logits for linear_distill's row kernels, and the comparison of what a backend makes of them with fp64."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synpro_kernels.ops.linear_distill import torch_rows
from synpro_kernels.ops.linear_distill.types import Kernels, Norms, Slopes
from synpro_kernels.testing import assert_as_accurate

TORCH = Kernels(torch_rows.norms_, torch_rows.mix_, torch_rows.differentiate)


class Rows(NamedTuple):
    """tokens and vocabulary, columns of a block, temperature, teachers, and the logits' standard deviation."""

    tokens: int
    vocab: int
    width: int
    temperature: float = 1.0
    teachers: int = 1
    std: float = 3.0


CASES = [
    Rows(1, 1, 1), Rows(5, 7, 3), Rows(3, 1030, 1024, 2.0), Rows(17, 130, 130, 0.5, 2), Rows(4, 4100, 4100, 3.0, 3),
    Rows(2, 9000, 4096, 1.0, 2), Rows(3, 257, 64, 1.5, 1, 60.0),
]  # fmt: skip


def logits(rows: Rows) -> tuple[Tensor, list[Tensor], Tensor]:
    """The student's [C, V], the teachers', and targets, of which some are another rank's."""
    generator = torch.Generator("cpu").manual_seed(sum(rows[:3]))

    def normal() -> Tensor:
        drawn = torch.randn((rows.tokens, rows.vocab), generator=generator, device="cpu")
        return (rows.std * drawn).to(torch.empty(0).device)

    target = torch.randint(rows.vocab, (rows.tokens,), generator=generator, device="cpu").to(torch.empty(0).device)
    target[1::3] -= rows.vocab  # before this rank's columns
    return normal(), [normal() for _ in range(rows.teachers)], target


def blocks(whole_CV: Tensor, width: int) -> list[Tensor]:
    """Its columns as contiguous blocks."""
    return [part.contiguous() for part in whole_CV.split(width, 1)]


def made(
    kernels: Kernels, rows: Rows, student_CV: Tensor, teachers: list[Tensor], target_C: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Norms, divergence and slopes, as the walk makes them of blocks; slopes as `dtype`."""
    inverse, both, like = 1 / rows.temperature, rows.temperature != 1, student_CV.new_zeros(0)

    def normed(whole_CV: Tensor, both: bool) -> Norms:
        norms, start = Norms.empty(rows.tokens, like), 0
        for block in blocks(whole_CV, rows.width):
            kernels.norms_(block, norms, target_C, start, inverse, both)
            start += block.shape[1]
        return norms

    coefficients = []
    for one in teachers:
        norms = normed(one, False)
        scale = 1 / len(teachers) / norms.tempered
        coefficients.append(torch.stack((norms.maximum, scale, scale.log()), 1))
    others: list[Any] = [None] * len(blocks(student_CV, rows.width))
    for number, one in enumerate(teachers[:-1]):
        others = others if number else [torch.empty_like(block) for block in blocks(one, rows.width)]
        for block, into in zip(blocks(one, rows.width), others, strict=True):
            kernels.mix_(block, coefficients[number], into, inverse, number == 0)
    norms = normed(student_CV, both)
    sumexp = norms.sumexp if both else norms.tempered
    of_student = torch.stack((norms.maximum, norms.tempered.log(), 0.6 / norms.tempered, 0.4 / sumexp), 1)
    slopes = Slopes(inverse_temperature=inverse, pull=0.6, label=0.4)
    divergence, start, found = like.new_zeros(rows.tokens), 0, []
    for block, last, before in zip(
        *(blocks(one, rows.width) for one in (student_CV, teachers[-1])), others, strict=True
    ):
        slope = kernels.differentiate(
            block, last, before, of_student, coefficients[-1], target_C, start, slopes, divergence, dtype
        )
        assert slope.dtype == dtype
        found.append(slope)
        start += block.shape[1]
    return {
        "norms": norms.maximum + sumexp.log(), "tempered norms": norms.tempered.log(), "target": norms.target_logit,
        "divergence": divergence, "slopes": torch.cat(found, 1),
    }  # fmt: skip


def check_rows(kernels: Kernels, rows: Rows, dtype: torch.dtype = torch.float32) -> None:
    """Assert that a backend is as near to fp64 as PyTorch's ops in fp32 are."""
    student, teachers, target = logits(rows)
    truth = made(TORCH, rows, student.double(), [one.double() for one in teachers], target, torch.float64)
    plain = made(TORCH, rows, student.clone(), [one.clone() for one in teachers], target, dtype)
    found = made(kernels, rows, student.clone(), [one.clone() for one in teachers], target, dtype)
    # Sums of terms of both signs, each as large as a logit at most.
    size = float(student.abs().max())
    for name, exact in truth.items():
        terms = size if name == "divergence" else 0.0
        assert_as_accurate(found[name], plain[name], exact, f"{rows}: {name}", terms=terms)


def spoilt_rows(kernels: Kernels) -> tuple[Tensor, Tensor]:
    """Divergence and slopes of rows with -inf (the teacher's, both's, the student's), with NaN (two), and with none."""
    rows = Rows(6, 70, 33, 2.0)
    student, [teacher], target = logits(rows)
    teacher[0, 10:40] = teacher[1, 10:40] = student[1, 10:40] = student[2, 10:40] = -math.inf
    student[3, 50] = teacher[4, 50] = math.nan
    found = made(kernels, rows, student, [teacher], target.clamp(max=5), torch.float32)
    return found["divergence"], found["slopes"]
