"""A sweep whose trials are in PostgreSQL, as those of several machines are: a real server that goes and comes back."""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from synpro_engine.config import UserError, read_json
from synpro_engine.config.errors import TransientError
from synpro_engine.dist.testing import free_ports
from synpro_engine.sweep.study import Study
from tests.jobs import kill, steps_of, wait_for
from tests.sweep.test_kills import begin, finish, records
from tests.sweep.test_study import RANGES, made, search


def _programs() -> Path | None:
    """Where the server's own programs are."""
    found = shutil.which("postgres")
    return None if found is None else Path(found).resolve().parent


def _other_user() -> str | None:
    """As whom to run: the server refuses root."""
    if os.getuid() != 0:
        return None
    return next((one.pw_name for one in pwd.getpwall() if one.pw_name == "postgres"), "nobody")


class Server:
    """A server of its own on loopback."""

    def __init__(self, programs: Path, data: Path) -> None:
        [self.port] = free_ports(1)
        self._programs, self._data, self._user = programs, data, _other_user()
        data.mkdir()
        if self._user is not None:
            shutil.chown(data, self._user)
        self._run("initdb", "--auth", "trust", "--username", "sweeper")
        self.start()
        self.url = f"postgresql://sweeper@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Begin to answer."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-o", options, "-l", str(self._data / "log"), "-w", "start")

    def stop(self) -> None:
        """End, and every connection with it."""
        self._run("pg_ctl", "-m", "immediate", "-w", "stop")

    def _run(self, program: str, *words: str) -> None:
        command = [str(self._programs / program), "-D", str(self._data), *words]
        subprocess.run(command, user=self._user, cwd="/", check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed")
    # Where another user reaches it: directories of tests are closed to all others.
    place = Path("/tmp") / f"synpro-postgres-{os.getpid()}"
    there = Server(programs, place)
    try:
        yield there
    finally:
        there.stop()
        shutil.rmtree(place)


def test_workers_share_trials_and_a_server_that_went_ends_the_call_and_no_trial(server: Server) -> None:
    first, second = (Study(server.url, "sweep", RANGES, search()) for _ in range(2))
    tried = made(first, 0)
    assert second.ask(3) == 1 and first.running() == [1]
    settings = second.settings(1)
    assert second.trials()[0].settings == tried
    server.stop()
    for study in (first, second):
        with pytest.raises(TransientError, match=rf"^--storage postgresql://sweeper@127.0.0.1:{server.port}/postgres"):
            study.report(1, 1, 2.5)
    server.start()
    assert second.settings(1) == settings and not first.report(1, 1, 2.5)
    second.complete(1, 2.0)
    assert [trial.loss for trial in Study(server.url, "sweep", RANGES, search()).trials()] == [2.0, 2.0]


def test_a_driver_that_is_not_installed_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(
        UserError, match=r"its driver is not installed \(.*psycopg2.*\): synpro_engine\[postgres\] brings one"
    ):
        Study("postgresql+psycopg2://me@127.0.0.1:1/db", "sweep", RANGES, search())


@pytest.mark.slow
def test_two_workers_one_of_whom_is_killed_make_every_trial_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, log, place = "1e-3,2e-3,3e-3,4e-3", tmp_path / "log", tmp_path / "swept"
    monkeypatch.setenv("SYNPRO_STORAGE", server.url)
    workers: list[Any] = [begin(place, rates, "log")]
    wait_for(lambda: len(steps_of(place / "trials" / "000")) > 3, workers, log)
    workers.append(begin(place, rates, "log"))
    wait_for(lambda: any(len(steps_of(place / "trials" / f"{n:03d}")) > 3 for n in (1, 2)), workers[1:], log)
    kill(psutil.Process(workers[0].pid))
    workers[0].wait(timeout=60)
    finish(workers[1], log)
    finish(begin(place, rates, "log"), log)
    assert read_json(place / "sweep.json")["storage"] == server.url
    assert [(one["state"], one["step"]) for one in records(place)] == [("complete", 60)] * 4
