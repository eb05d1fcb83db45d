"""A job that is asked to stop does not wait for helpers of torch's compiler, which the same signal ended."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
from synpro_engine.dist import ParallelConfig, launched
with launched(ParallelConfig()):
    import torch._inductor.config as inductor
    print(inductor.compile_threads)
"""


@pytest.mark.parametrize("said", [None, "3"])
def test_the_compiler_has_no_helpers_unless_the_user_says_so(said: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_COMPILE_THREADS"}
    environment |= {"TORCHINDUCTOR_COMPILE_THREADS": said} if said else {}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [said or "1"]
