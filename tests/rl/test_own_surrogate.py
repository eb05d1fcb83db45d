"""A surrogate from a user's file trains as a built-in one does, and is told by line where it cannot."""

import runpy
from pathlib import Path

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.dist import Topology

_HELPERS = runpy.run_path(str(Path(__file__).with_name("algorithms.py")))
FILE = """\
import torch
from synpro_kernels import Gain

def mine(logprob, tokens, objective):
    ratio = torch.exp(logprob - tokens.behaviour)
    {body}
"""
CLIP = """limited = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    value = torch.minimum(ratio * tokens.advantage, limited * tokens.advantage)
    return Gain(value, ratio, limited * tokens.advantage < ratio * tokens.advantage)"""

REST = """
    return Gain(ratio * tokens.advantage, ratio, ratio > 2)"""


def write(path: Path, body: str = CLIP) -> str:
    path.write_text(FILE.format(body=body))
    return f"{path}:mine"


def test_the_clip_written_by_the_user_is_the_clip(topology: Topology, tmp_path: Path) -> None:
    way, found = {"steps": 3, "updates_per_rollout": 2}, []
    for name, surrogate in (("theirs", write(tmp_path / "mine.py")), ("ours", "clip")):
        config = _HELPERS["config_of"]("grpo", surrogate=surrogate, **way)
        found.append(_HELPERS["toy"]()["run"](topology, tmp_path / name, config)[1])
    for (name, a), (_, b) in zip(*(policy.named_parameters() for policy in found), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_p": 1.0}], ids=str)
def test_gspo_written_by_the_user_is_gspo(topology: Topology, tmp_path: Path, cut: dict[str, float]) -> None:
    ratio = "ratio = torch.exp(tokens.sequence_gap + (logprob - logprob.detach()))\n    "
    surrogate = write(tmp_path / "mine.py", ratio + CLIP)
    way, found = {"steps": 1, "updates_per_rollout": 2, "sampling": {"max_new_tokens": 10, **cut}}, []
    for name, of in (("theirs", surrogate), ("ours", "gspo")):
        config = _HELPERS["config_of"]("gspo", surrogate=of, **way)
        found.append(_HELPERS["toy"]()["run"](topology, tmp_path / name, config)[1])
    for (name, a), (_, b) in zip(*(policy.named_parameters() for policy in found), strict=True):
        assert torch.equal(a, b), name


def test_what_training_does_not_give_is_missed_before_the_first_stage(tmp_path: Path) -> None:
    given = [f"tune.rephrase.surrogate={write(tmp_path / 'mine.py', 'ratio = ratio + tokens.reference' + REST)}"]
    load_recipe("smoke", given)
    with pytest.raises(UserError, match=r"^`tune.rephrase.surrogate`: .*mine.py:6: raised TypeError"):
        load_recipe("smoke", [*given, "tune.rephrase.kl_beta=0"])
    arm = "arms={a: {text: tuned}, b: {text: tuned, tune: {rephrase: {kl_beta: 0.0}}}}"
    with pytest.raises(UserError, match=r"^`arms.b.tune.rephrase.surrogate`: .*mine.py:6: raised TypeError"):
        load_recipe("smoke", [*given, arm])


def test_a_fault_in_training_is_told_by_file_and_line(topology: Topology, tmp_path: Path) -> None:
    surrogate = write(tmp_path / "mine.py", "assert len(ratio) == 5, 'too many'" + REST)
    with pytest.raises(UserError, match=r"^`tune.toy.surrogate`: .*mine.py:6: raised AssertionError: too many$"):
        _HELPERS["toy"]()["run"](topology, tmp_path / "run", _HELPERS["config_of"]("grpo", surrogate=surrogate))


def test_a_checkpoint_belongs_to_the_file_as_it_was(topology: Topology, tmp_path: Path) -> None:
    surrogate = write(tmp_path / "mine.py")
    run, config_of = _HELPERS["toy"]()["run"], _HELPERS["config_of"]
    with pytest.raises(KeyboardInterrupt):
        run(
            topology,
            tmp_path / "run",
            config_of("grpo", steps=3, checkpoint_every=1, surrogate=surrogate),
            kill_after=2,
        )
    write(tmp_path / "mine.py", CLIP.replace("minimum", "maximum"))
    with pytest.raises(UserError, match="surrogate_sha256"):
        run(topology, tmp_path / "run", config_of("grpo", steps=3, checkpoint_every=1, surrogate=surrogate))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return ratio", "`mine` gives Tensor in place of synpro_kernels.Gain"),
        ("return Gain(ratio.sum(), ratio, ratio > 1)", "gives a value of shape () for tokens of shape (5,)"),
        ("return Gain(ratio.detach(), ratio, ratio > 1)", "gives a value without a gradient"),
        ("return Gain(ratio, ratio, 1 / 0)", "mine.py:6: raised ZeroDivisionError"),
    ],
)
def test_a_function_that_is_no_surrogate_is_told_before_the_first_stage(tmp_path: Path, body: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("smoke", [f"tune.rephrase.surrogate={write(tmp_path / 'mine.py', body)}"])
    message = str(caught.value)
    assert message.startswith("`tune.rephrase.surrogate`: ") and told in message and "\n" not in message
