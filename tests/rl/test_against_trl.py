"""The losses against TRL's own code on the same log-probabilities (extra `oracles`)."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_kernels import PolicyObjective, PolicyTokens, policy_loss

trl = pytest.importorskip("trl", reason="TRL is an oracle that `make test-all` installs")
ROWS, LONGEST, PROMPT = 6, 9, 2
LENGTHS = torch.tensor([9, 1, 4, 7, 9, 3])
MASK = torch.arange(LONGEST) < LENGTHS[:, None]


def drawn() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logprob, old, reference = (torch.randn(ROWS, LONGEST, dtype=torch.float64, generator=generator) for _ in range(3))
    advantage = torch.randn(ROWS, dtype=torch.float64, generator=generator)
    return {
        "logprob": 0.5 * logprob - 3.0, "old": 0.5 * logprob - 3.0 + 0.3 * old,
        "reference": 0.5 * logprob - 3.0 + 0.3 * reference, "advantage": advantage,
    }  # fmt: skip


def theirs(loss_type: str, level: str, given: dict[str, Tensor], **settings: Any) -> tuple[float, Tensor]:
    """TRL's loss and its gradient of the log-probabilities, of one batch on one device."""
    logprob = given["logprob"].clone().requires_grad_()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprob, torch.zeros_like(logprob), None),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x),
        args=SimpleNamespace(
            delta=settings.get("delta"), use_bias_correction_kl=False, steps_per_generation=1,
            gradient_accumulation_steps=1,
        ),
        model=SimpleNamespace(training=True), _metrics={"train": _Lists()}, beta=settings["beta"],
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level=level, loss_type=loss_type, epsilon_low=settings["low"],
        epsilon_high=settings["high"], current_gradient_accumulation_steps=1, max_completion_length=LONGEST,
        vllm_importance_sampling_correction=False, _entropy_bonus_enabled=False,
    )  # fmt: skip
    prompt = torch.zeros(ROWS, PROMPT, dtype=torch.long)
    inputs = {
        "prompt_ids": prompt, "prompt_mask": prompt + 1, "completion_ids": torch.zeros(ROWS, LONGEST).long(),
        "completion_mask": MASK.long(), "advantages": given["advantage"], "old_per_token_logps": given["old"],
        "ref_per_token_logps": given["reference"], "num_items_in_batch": MASK.sum(),
    }  # fmt: skip
    loss = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    return float(loss.detach()), torch.autograd.grad(loss, logprob)[0]


class _Lists(dict[str, list[Any]]):
    def __missing__(self, key: str) -> list[Any]:
        return self.setdefault(key, [])


def ours(given: dict[str, Tensor], aggregation: str, objective: PolicyObjective) -> tuple[float, Tensor]:
    logprob = given["logprob"].clone().requires_grad_()
    each = {"token": 1.0 / LENGTHS.double().sum(), "constant": 1.0 / (ROWS * LONGEST)}.get(
        aggregation, 1.0 / (LENGTHS.double() * ROWS)
    )
    gap = ((given["logprob"] - given["old"]) * MASK).sum(1) / LENGTHS
    rows = {
        "advantage": given["advantage"],
        "weight": each * torch.ones(ROWS, dtype=torch.float64),
        "sequence_gap": gap,
    }
    tokens = PolicyTokens(
        behaviour=given["old"][MASK], reference=given["reference"][MASK],
        **{name: values[:, None].expand(ROWS, LONGEST)[MASK] for name, values in rows.items()},
    )  # fmt: skip
    loss = policy_loss(logprob[MASK], torch.zeros(int(MASK.sum())).double(), tokens, objective).objective
    return float(loss.detach()), torch.autograd.grad(loss, logprob)[0]


@pytest.mark.parametrize(
    ("loss_type", "level", "aggregation", "settings"),
    [
        ("grpo", "token", "sequence", {}),
        ("bnpo", "token", "token", {"kl_beta": 0.04}),
        ("dapo", "token", "token", {"clip_high": 0.28}),
        ("dr_grpo", "token", "constant", {"kl_beta": 0.1}),
        ("grpo", "sequence", "sequence", {"surrogate": "gspo", "clip_low": 0.03, "clip_high": 0.04}),
        ("cispo", "token", "token", {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.5}),
    ],
)
def test_losses_and_their_gradients_are_trls(
    loss_type: str, level: str, aggregation: str, settings: dict[str, Any]
) -> None:
    given, objective = drawn(), PolicyObjective(**settings)
    # TRL's upper end of CISPO is a ratio, and not a distance from 1.
    high = objective.clip_high + (1.0 if loss_type == "cispo" else 0.0)
    expected, slope = theirs(loss_type, level, given, low=objective.clip_low, high=high, beta=objective.kl_beta)
    found, gradient = ours(given, aggregation, objective)
    assert found == pytest.approx(expected, rel=1e-10)
    assert torch.allclose(gradient, slope, rtol=1e-9, atol=1e-13) and gradient.any()
