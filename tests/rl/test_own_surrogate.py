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
