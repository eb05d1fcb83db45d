"""What a launcher's variables may say, and what is refused by the name of the variable."""

import os

import pytest

from synpro_engine.cli.main import main
from synpro_engine.dist.environment import LaunchEnvironment, gloo_interface, read_environment

_CLEAR = (
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT SLURM_STEP_NUM_TASKS OMPI_COMM_WORLD_SIZE"
    " PMI_SIZE TORCHELASTIC_USE_AGENT_STORE"
).split()
_TWO = "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500"


def _set(monkeypatch: pytest.MonkeyPatch, variables: str) -> None:
    for name in _CLEAR:
        monkeypatch.delenv(name, raising=False)
    for name, value in (pair.split("=") for pair in variables.split()):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ("WORLD_SIZE=2", "WORLD_SIZE set, but not RANK, LOCAL_RANK, LOCAL_WORLD_SIZE"),
        ("WORLD_SIZE=0", "WORLD_SIZE set, but not RANK"),
        ("RANK=0", "RANK set, but not WORLD_SIZE"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0", "but not LOCAL_WORLD_SIZE"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2", "WORLD_SIZE=2 needs MASTER_ADDR"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=10.0.0.1", "needs MASTER_PORT"),
        (f"{_TWO} MASTER_PORT=port", "MASTER_PORT is 'port', not a number"),
        (f"{_TWO} MASTER_PORT=70000", "MASTER_PORT=70000 does not fit the range of ports"),
        (f"{_TWO} WORLD_SIZE=0", "WORLD_SIZE is '0', not a number from 1 on"),
        (f"{_TWO} WORLD_SIZE=two", "WORLD_SIZE is 'two'"),
        (f"{_TWO} RANK=-1", "RANK is '-1', not a number"),
        (f"{_TWO} RANK=1.0", "RANK is '1.0', not a number"),
        (f"{_TWO} RANK=5", "RANK=5 does not fit WORLD_SIZE=2"),
        ("RANK=5 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1", "RANK=5 does not fit WORLD_SIZE=1"),
        (f"{_TWO} LOCAL_RANK=2", "LOCAL_RANK=2 does not fit LOCAL_WORLD_SIZE=2"),
        (f"{_TWO} LOCAL_WORLD_SIZE=3", "LOCAL_WORLD_SIZE=3 does not fit WORLD_SIZE=2"),
        ("SLURM_STEP_NUM_TASKS=4", "SLURM_STEP_NUM_TASKS=4, but RANK"),
        ("OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_SIZE=2, but RANK"),
    ],
)
def test_variables_that_make_no_job_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: str, told: str
) -> None:
    _set(monkeypatch, variables)
    assert main(["report", "smoke", "--dir", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: environment: ") and told in error and error.count("\n") == 1
    assert not os.path.exists("nowhere")


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ("", LaunchEnvironment()),
        ("SLURM_STEP_NUM_TASKS=1", LaunchEnvironment()),
        ("MASTER_ADDR=10.0.0.1 MASTER_PORT=1", LaunchEnvironment()),
        ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1", LaunchEnvironment()),
        (f"{_TWO} SLURM_STEP_NUM_TASKS=2", LaunchEnvironment(1, 2, 1, 2)),
    ],
)
def test_variables_that_do_are_read(monkeypatch: pytest.MonkeyPatch, variables: str, place: LaunchEnvironment) -> None:
    _set(monkeypatch, variables)
    assert read_environment() == place


@pytest.mark.parametrize(
    ("variables", "interface"),
    [
        ("", "lo"),
        (_TWO, "lo"),
        (f"{_TWO} LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=127.0.0.1", "lo"),
        (f"{_TWO} LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=::1", "lo"),
        (f"{_TWO} LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=localhost", "lo"),
        (f"{_TWO} LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=no.such.host.invalid", None),
    ],
)
def test_the_loopback_interface_serves_only_ranks_of_one_machine(
    monkeypatch: pytest.MonkeyPatch, variables: str, interface: str | None
) -> None:
    _set(monkeypatch, variables)
    assert gloo_interface(read_environment()) == interface
