"""Scores from each segment's own block keep their digits where differences of a running total lose them."""

import pytest
import torch

from benchmarks.cancellation import errors
from synpro_kernels.common.dispatch import BackendName
from synpro_kernels.common.extension import csrc_status
from synpro_kernels.testing import using


@pytest.mark.parametrize("backend", ["csrc", "torch"])
def test_scores_do_not_lose_digits_with_examples_or_depth(backend: BackendName):
    loaded, reason = csrc_status()
    if backend == "csrc" and not loaded:
        pytest.skip(f"csrc: {reason}")
    with using(backend):
        for tokens, examples, depth in ((64, 8, 0), (64, 128, 0), (1, 1024, 0), (64, 16, 100)):
            assert errors(tokens=tokens, examples=examples, depth=depth).own_block < 2e-7


def test_half_precision_operands_add_no_error_of_their_own():
    assert errors(tokens=64, examples=16, depth=4, dtype=torch.bfloat16).own_block < 2e-7


def test_differences_of_a_running_total_lose_digits_as_it_grows():
    """The experiment can tell: the error follows the accumulator's norm over the scores' (README.md)."""
    for tokens, examples, depth in ((64, 8, 0), (64, 16, 4), (64, 16, 64), (1, 256, 64)):
        lost = errors(tokens=tokens, examples=examples, depth=depth)
        # In between lie what AMD's and Intel's products give, which sum in different orders.
        assert 1e-8 * lost.growth < lost.running < 15e-8 * lost.growth
