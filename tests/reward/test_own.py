"""Rewards from a user's file: by name in a recipe, in the hashes of stages, and told by line where they fail."""

import signal
import time
from pathlib import Path

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.cycle import Recipe, load_recipe
from synpro_engine.cycle.plan import Plan
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.reward import Candidate, Composer, FunctionReward, build_composer
from synpro_engine.reward.own import OwnReward
from synpro_engine.synth import Parsed

FILE = "def longer(candidate):\n    return {body}\n"
GOOD = "len(candidate.parsed.text) / max(1, len(candidate.source))"
CANDIDATE = Candidate(operation="rephrase", source="abcd", raw="ab", parsed=Parsed(ok=True, text="ab"))
WEIGHTS = "reward.rephrase={influence: 1, longer: 0.5}"


def write(path: Path, body: str = GOOD) -> Path:
    path.write_text(FILE.format(body=body))
    return path


def recipe(file: Path, *more: str, name: str = "longer") -> Recipe:
    return load_recipe("smoke", [f"reward.functions={{{name}: '{file}:longer'}}", *more])


def test_a_function_of_the_users_is_a_reward_with_a_weight(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py")
    assert recipe(file, WEIGHTS).reward.weights("rephrase")["longer"] == 0.5
    reward = OwnReward("longer", f"{file}:longer")
    assert Composer([reward], {"rephrase": {"longer": 0.5}}).score([CANDIDATE]).total == [0.25]
    assert reward.version.startswith("mine.py:longer, sha256 ")
    plain = FunctionReward("size", lambda candidate: len(candidate.parsed.text), range=(0.0, 1.0))
    table = Composer([plain], {"rephrase": {"size": 1.0}}).score([CANDIDATE])
    assert [fault.reward for fault in table.faults] == ["size"]


def test_every_edit_makes_the_stages_anew_that_ask_it(tmp_path: Path) -> None:
    file, configs = tmp_path / "mine.py", []
    for body in (GOOD, f"1 + {GOOD}"):
        write(file, body)
        with launched(ParallelConfig()) as topology:
            stages = Plan(recipe(file, WEIGHTS), tmp_path / "run", topology).stages()
            configs.append({stage.name: stage.config for stage in stages})
    changed = {name for name in configs[0] if configs[0][name] != configs[1][name]}
    assert changed == {"round-1/tune-rephrase", "round-1/generate-rephrase"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("1 / 0", "mine.py:2: raised ZeroDivisionError: division by zero"),
        ("'much'", "raised ValueError: could not convert string to float: 'much'"),
        ("None", "raised TypeError: float() argument must be a string or a real number, not 'NoneType'"),
    ],
)
def test_what_a_function_raises_is_a_line(tmp_path: Path, body: str, told: str) -> None:
    reward = OwnReward("longer", f"{write(tmp_path / 'mine.py', body)}:longer")
    with pytest.raises(UserError) as caught:
        reward([CANDIDATE])
    message = str(caught.value)
    assert message.startswith("`reward.functions.longer`: ") and told in message and "\n" not in message


def test_a_function_that_hangs_is_given_up_on_by_its_line_and_leaves_the_clock_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    # What its author is ready for is an error of the function's own, and not the end of everyone's patience.
    file.write_text(
        "import time\ndef longer(candidate):\n    while True:\n        try:\n            time.sleep(9)\n"
        "        except Exception:\n            pass\n"
    )
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        OwnReward("longer", f"{file}:longer", 0.2)([CANDIDATE])
    assert str(caught.value) == f"`reward.functions.longer`: {file}:5: took longer than 0.2 s"
    assert time.monotonic() - began < 5 and signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_job_gives_up_on_a_function_after_the_time_that_its_recipe_says(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "__import__('time').sleep(9)")
    slow = recipe(file, "reward.rephrase={longer: 1}", "reward.function_seconds=0.2").reward
    alone = slow.weighing({"rephrase": {"longer": 1.0}})
    composer = build_composer(alone, influence_of=None, likelihood_of=None, device=torch.device("cpu"))
    with pytest.raises(UserError, match=r"mine.py:2: took longer than 0.2 s"):
        composer.score([CANDIDATE])
    # How long one waits is no part of what comes of it.
    assert slow.recorded() == recipe(file, "reward.rephrase={longer: 1}").reward.recorded()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("reward.functions={longer: nowhere.py:longer}", "`reward.functions.longer`: nowhere.py: cannot be read"),
        ("reward.functions={longer: longer}", "`longer` is no path/to/file.py:NAME"),
        ("reward.functions={quality: '{file}:longer'}", "functions.quality: is the name of another reward"),
        ("reward.functions={longer: '{file}:shorter'}", "has no `shorter`"),
        ("reward.functions={long-er: '{file}:longer'}", "names are letters, digits and `_`"),
        ("reward.rephrase={longest: 1}", "no reward `longest`"),
    ],
)
def test_a_function_that_is_not_there_is_told_before_the_first_stage(tmp_path: Path, override: str, told: str) -> None:
    file = write(tmp_path / "mine.py")
    with pytest.raises(UserError) as caught:
        load_recipe("smoke", [override.replace("{file}", str(file))])
    assert told in str(caught.value) and "\n" not in str(caught.value)
