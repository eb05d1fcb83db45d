"""linear_distill: losses and gradients are those of the definition with every logit held, alone and cut over ranks."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from synpro_engine.dist.testing import run_ranks
from synpro_kernels import IGNORE, Distilled, Teacher, linear_cross_entropy, linear_distill, linear_distill_definition
from synpro_kernels.ops.linear_distill import walk
from synpro_kernels.testing import assert_as_accurate, peak_growth

CASES = {
    "one token": {"tokens": 1, "vocab": 7},
    "as hard labels": {"tokens": 50, "vocab": 301, "share": 0.0},
    "teachers alone": {"tokens": 50, "vocab": 301, "share": 1.0},
    "cool": {"tokens": 90, "vocab": 1001, "temperature": 0.5},
    "warm, with a z-loss": {"tokens": 90, "vocab": 1001, "temperature": 3.0, "z_loss": 0.05},
    "two teachers": {"tokens": 33, "vocab": 1030, "count": 2},
    "three teachers": {"tokens": 70, "vocab": 257, "count": 3, "temperature": 2.0},
    "three teachers by weight": {"tokens": 33, "vocab": 1100, "count": 3, "mixture": (3.0, 0.5, 1.0)},
    "blocks and a piece": {"tokens": 19, "vocab": 2049, "temperature": 1.5},
    "some ignored": {"tokens": 70, "vocab": 257, "ignored": 3},
    "large logits": {"tokens": 30, "vocab": 257, "scale": 30.0},
}


class Problem:
    """Student, teachers and labels of a case, made in fp32 and rounded to the dtype that is asked for."""

    def __init__(
        self, tokens: int, vocab: int, count: int = 1, ignored: int = 0, scale: float = 1.0, **options: Any
    ) -> None:
        generator = torch.Generator("cpu").manual_seed(tokens + vocab)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device="cpu").to(torch.empty(0).device)

        self.hidden, self.weight = scale * normal(tokens, 24), normal(vocab, 24) / 3
        widths = [16 + 8 * k for k in range(count)]
        self.teachers = [Teacher(scale * normal(tokens, width), normal(vocab, width) / 3) for width in widths]
        self.target = torch.randint(vocab, (tokens,), generator=generator, device="cpu").to(self.hidden.device)
        if ignored:
            self.target[::ignored] = IGNORE
        self.options: dict[str, Any] = {"share": 0.4, **options}

    def leaves(self, dtype: torch.dtype, like: torch.dtype) -> tuple[list[Tensor], list[Teacher]]:
        """Numbers rounded to `dtype`, in `like`."""
        student = [each.to(dtype).to(like).requires_grad_() for each in (self.hidden, self.weight)]
        return student, [Teacher(*(each.to(dtype).to(like) for each in one)) for one in self.teachers]


def plain(hidden: Tensor, weight: Tensor, target: Tensor, *, teachers: list[Teacher], **options: Any) -> Tensor:
    """As a user writes it: products in the tensors' own dtype, the rest in fp32."""
    share, tau, keep = options["share"], options.get("temperature", 1.0), target != IGNORE
    logits = (hidden[keep] @ weight.t()).float()
    parts = options.get("mixture", [1.0] * len(teachers))
    each = [part * ((h[keep] @ w.t()).float() / tau).softmax(-1) for (h, w), part in zip(teachers, parts, strict=True)]
    taught = torch.stack(each).sum(0) / sum(parts)
    loss = (1 - share) * torch.nn.functional.cross_entropy(logits, target[keep], reduction="sum")
    loss = loss + options.get("z_loss", 0.0) * logits.logsumexp(-1).square().sum()
    return loss + share * tau**2 * torch.nn.functional.kl_div((logits / tau).log_softmax(-1), taught, reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at_once", [None, 16])
def test_losses_and_gradients_are_as_accurate_as_plain_pytorch(backend, case, dtype, at_once, monkeypatch):
    if at_once is not None:
        monkeypatch.setattr(walk, "_chunk", lambda *of: at_once)
    problem = Problem(**CASES[case])
    found, plainly, truth = [], [], []
    for into, like, run in ((found, dtype, "ours"), (plainly, dtype, "plain"), (truth, torch.float64, "truth")):
        student, teachers = problem.leaves(dtype, like)
        if run == "plain":
            parts = Distilled(plain(*student, problem.target, teachers=teachers, **problem.options), *[None] * 3)
        else:
            op = linear_distill if run == "ours" else linear_distill_definition
            parts = op(*student, problem.target, teachers=teachers, **problem.options)
        into += [parts.loss.detach(), *torch.autograd.grad(2.0 * parts.loss, student)]
        if run != "plain":
            into.extend(parts[1:])
    for name, ours, theirs, exact in zip(("loss", "hidden", "weight"), found, plainly, truth, strict=False):
        assert_as_accurate(ours, theirs.to(ours.dtype), exact, f"{case}: {name}", terms=float(exact.abs().max()))
    for name, ours, exact in zip(("cross-entropy", "z-loss", "divergence"), found[3:], truth[3:], strict=True):
        assert math.isclose(
            float(ours), float(exact), rel_tol=1e-2 if dtype == torch.bfloat16 else 1e-4, abs_tol=1e-4
        ), name


def test_without_teachers_share_it_is_cross_entropy(backend):
    problem = Problem(tokens=40, vocab=201)
    (hidden, weight), teachers = problem.leaves(torch.float32, torch.float32)
    found = linear_distill(hidden, weight, problem.target, teachers=teachers, share=0.0, z_loss=0.1)
    expected = linear_cross_entropy(hidden, weight, problem.target, z_loss=0.1, reduction="sum")
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(
        *(torch.autograd.grad(one.loss, (hidden, weight)) for one in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_student_that_is_its_teacher_is_at_rest(backend):
    problem = Problem(tokens=40, vocab=201)
    (hidden, weight), _ = problem.leaves(torch.float32, torch.float32)
    found = linear_distill(
        hidden, weight, problem.target, teachers=[Teacher(hidden.detach(), weight.detach())], share=1.0, temperature=2.0
    )
    assert abs(float(found.divergence.detach())) < 1e-4
    assert all(float(grad.abs().max()) < 1e-5 for grad in torch.autograd.grad(found.loss, (hidden, weight)))


def test_what_is_ignored_is_not_read_and_nothing_to_learn_is_zero(backend):
    problem = Problem(tokens=9, vocab=31)
    (hidden, weight), teachers = problem.leaves(torch.float32, torch.float32)
    target = torch.full_like(problem.target, IGNORE)
    teachers[0].hidden[:] = math.nan
    found = linear_distill(hidden, weight, target, teachers=teachers)
    assert float(found.loss.detach()) == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(found.loss, (hidden, weight)))


def test_gradients_are_made_once_and_only_where_they_are_wanted(backend):
    problem = Problem(tokens=9, vocab=31)
    (hidden, weight), teachers = problem.leaves(torch.float32, torch.float32)
    whole = torch.autograd.grad(
        linear_distill(hidden, weight, problem.target, teachers=teachers).loss, (hidden, weight)
    )
    for index in range(2):
        given = [each if place == index else each.detach() for place, each in enumerate((hidden, weight))]
        found = linear_distill(*given, problem.target, teachers=teachers)
        (alone,) = torch.autograd.grad(found.loss, given[index], retain_graph=True)
        assert torch.equal(alone, whole[index])
        with pytest.raises(RuntimeError, match="backward can run once"):
            torch.autograd.grad(found.loss, given[index])
    with torch.no_grad():
        assert not linear_distill(hidden, weight, problem.target, teachers=teachers).loss.requires_grad


def test_the_weight_s_gradient_goes_into_megatron_s_buffer_unrounded(backend):
    problem = Problem(tokens=9, vocab=31)
    (hidden, parameter), teachers = problem.leaves(torch.bfloat16, torch.bfloat16)
    weight: Any = parameter  # which Megatron gives attributes of its own
    weight.main_grad, weight.grad_added_to_main_grad = torch.ones(weight.shape), False
    loss = linear_distill(hidden, weight, problem.target, teachers=teachers, into_main_grad=True).loss
    loss.backward()
    (exact, _), exact_teachers = problem.leaves(torch.bfloat16, torch.float64)
    matrix = weight.detach().double().requires_grad_()
    truth = linear_distill_definition(exact, matrix, problem.target, teachers=exact_teachers).loss
    (expected,) = torch.autograd.grad(truth, matrix)
    assert weight.grad_added_to_main_grad
    torch.testing.assert_close((weight.main_grad - 1).double(), expected, rtol=2e-2, atol=2e-3)


def test_what_does_not_fit_is_refused_by_name(device):
    problem = Problem(tokens=9, vocab=31)
    (hidden, weight), [teacher] = problem.leaves(torch.float32, torch.float32)
    for teachers, options, name in (
        ([], {}, "teachers"),
        ([Teacher(teacher.hidden[:5], teacher.weight)], {}, r"teachers\[0\].hidden"),
        ([teacher, Teacher(teacher.hidden, teacher.weight[:30])], {}, r"teachers\[1\].weight"),
        ([Teacher(hidden, weight)], {}, r"teachers\[0\]: expected constants"),
        ([teacher], {"share": 1.5}, "share"),
        ([teacher], {"temperature": 0.0}, "temperature"),
        ([teacher], {"z_loss": -1.0}, "z_loss"),
        ([teacher], {"mixture": [0.5, 0.5]}, "mixture: expected 1 numbers"),
        ([teacher, teacher], {"mixture": [1.0, 0.0]}, "mixture"),
    ):
        with pytest.raises(ValueError, match=name):
            linear_distill(hidden, weight, problem.target, teachers=teachers, **options)
    with pytest.raises(ValueError, match=r"target: 31 is outside \[0, 31\)"):
        linear_distill(hidden, weight, torch.full_like(problem.target, 31), teachers=[teacher])


def test_nan_in_a_token_shows_in_its_gradients_and_in_no_other_token_s(backend):
    problem = Problem(tokens=9, vocab=1100, count=2)
    (hidden, weight), teachers = problem.leaves(torch.float32, torch.float32)
    for spoilt in (hidden, teachers[0].hidden, teachers[1].hidden):
        held = spoilt.detach()[3, 2].clone()
        spoilt.detach()[3, 2] = math.nan
        found = linear_distill(hidden, weight.detach(), problem.target, teachers=teachers, temperature=2.0)
        (gradient,) = torch.autograd.grad(found.loss, hidden)
        assert found.divergence.isnan() and found.loss.isnan()
        assert gradient.isnan().any(1).nonzero().flatten().tolist() == [3]
        spoilt.detach()[3, 2] = held


def test_results_are_the_same_bits_again_and_whatever_the_threads(backend):
    problem = Problem(tokens=70, vocab=1100, count=2)

    def run() -> list[Tensor]:
        student, teachers = problem.leaves(torch.float32, torch.float32)
        found = linear_distill(*student, problem.target, teachers=teachers, temperature=2.0)
        return [found.loss.detach(), found.divergence, *torch.autograd.grad(found.loss, student)]

    threads, first = torch.get_num_threads(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    torch.set_num_threads(1)
    try:
        # PyTorch's own products and sums are cut by threads; what stands between them is not.
        for a, b in zip(first, run(), strict=True):
            torch.testing.assert_close(a, b)
    finally:
        torch.set_num_threads(threads)


def test_no_logits_beyond_the_chunk_are_held(backend):
    tokens, vocab = 4096, 4096
    problem = Problem(tokens=tokens, vocab=vocab, count=3)
    student, teachers = problem.leaves(torch.float32, torch.float32)
    target = problem.target
    linear_distill(*student, target, teachers=teachers)
    grown = peak_growth(lambda: linear_distill(*student, target, teachers=teachers), str(student[0].device.type))
    if grown is not None:
        held = sum(4 * each.numel() for each in student)
        # Three models' are 192 MiB whole; on a CPU 64 MiB are held of them at once, and what PyTorch's rows take aside.
        limit = {"csrc": 1.1, "torch": 1.75, "cuda": 16.0}[backend] * (64 << 20)
        assert grown <= limit + held + (4 << 20), f"{grown / 2**20:.0f} MiB"


def _cut(world: int) -> list[list[float]]:
    """Loss, its parts, and every number of the gradients, of a vocabulary cut unevenly over the ranks."""
    rank = int(dist.get_rank()) if world > 1 else 0
    problem = Problem(
        tokens=40, vocab=101, count=3, temperature=2.0, z_loss=0.02, ignored=7, mixture=(1.0, 2.0, 1.0)
    )  # fmt: skip
    edges = [0, 37, 101] if world == 2 else [0, 101]
    rows = slice(edges[rank], edges[rank + 1])
    (hidden, weight), teachers = problem.leaves(torch.float32, torch.float32)
    part = weight.detach()[rows].clone().requires_grad_()
    found = linear_distill(
        hidden, part, problem.target, teachers=[Teacher(h, w[rows]) for h, w in teachers], vocab_start=rows.start,
        group=dist.group.WORLD if world > 1 else None, **problem.options,
    )  # fmt: skip
    gradients = torch.autograd.grad(found.loss, (hidden, part))
    return [[float(each.detach()) for each in found], *(each.flatten().tolist() for each in gradients)]


def _on_ranks() -> list[list[float]]:
    dist.init_process_group("gloo")
    try:
        return _cut(2)
    finally:
        dist.destroy_process_group()


def test_a_vocabulary_that_is_cut_over_ranks_changes_nothing():
    whole = _cut(1)
    first, second = run_ranks(_on_ranks, 2)
    for ranks in (first, second):
        torch.testing.assert_close(torch.tensor(ranks[0]), torch.tensor(whole[0]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.tensor(ranks[1]), torch.tensor(whole[1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(first[2] + second[2]), torch.tensor(whole[2]), rtol=1e-4, atol=1e-5)
