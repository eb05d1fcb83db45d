"""Two machines, as two network namespaces with a wire between them: ranks meet without being told an interface."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PROGRAM = """
import os
from synpro_engine.dist import ParallelConfig, gather_objects, launched, on_main
with launched(ParallelConfig()) as topology:
    on_main(topology, lambda: None)
    print(gather_objects(topology.dp, topology.rank), os.environ["GLOO_SOCKET_IFNAME"])
"""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two namespaces: 10.77.0.1 behind the interface `wire0`, 10.77.0.2 behind `wire1`."""
    names = [f"synpro-{uuid.uuid4().hex[:8]}-{i}" for i in range(2)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "wire0", "netns", names[0], "type", "veth", "peer", "name", "wire1", "netns", names[1])
        for i, name in enumerate(names):
            _ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", f"wire{i}")
            for interface in ("lo", f"wire{i}"):
                _ip("-n", name, "link", "set", interface, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_ranks_of_two_machines_meet_over_the_wire(machines: list[str]) -> None:
    common = os.environ | {
        "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.77.0.1",
        "MASTER_PORT": "29500", "PYTHONPATH": f"{_ROOT}:{_ROOT / 'kernels'}",
    }  # fmt: skip
    common.pop("GLOO_SOCKET_IFNAME", None)
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", _PROGRAM],
            env=common | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, name in enumerate(machines)
    ]  # fmt: skip
    try:
        found = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [told for told, _ in found] == ["[0, 1] wire0\n", "[0, 1] wire1\n"], found
