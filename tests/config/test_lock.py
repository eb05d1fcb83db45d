"""One writer a directory: the second is told who the first is, and no dead one keeps anybody out."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError, lock
from synpro_engine.config.lock import is_held, locked, writing

_HOLD = "import sys, time; from pathlib import Path; from synpro_engine.config.lock import locked\n"
_HOLD += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(300)"


def _holder(directory: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(directory)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def _record(directory: Path) -> dict[str, Any]:
    return json.loads(max((directory / "lock").glob("*.json"), key=lambda path: int(path.stem)).read_text())


def test_the_second_is_told_who_works_there_and_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    try:
        with pytest.raises(UserError) as caught, locked(tmp_path):
            pytest.fail("two at once")
        told = str(caught.value)
        for part in (str(tmp_path), f"process {process.pid} on {os.uname().nodename}", time.strftime("%Y-%m-%d")):
            assert part in told
        assert "\n" not in told
        assert is_held(tmp_path)
        process.send_signal(signal.SIGSTOP)  # a stopped process is alive
        with pytest.raises(UserError), locked(tmp_path):
            pytest.fail("two at once")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_held(tmp_path)
        begun = time.monotonic()
        with locked(tmp_path):
            assert time.monotonic() - begun < lock.PATIENCE_S / 2 and _record(tmp_path)["pid"] == os.getpid()
    finally:
        process.kill()
        process.wait()


def test_a_lock_given_back_is_free_and_leaves_one_file(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with locked(tmp_path / "run"):
            assert not _record(tmp_path / "run")["released"]
        assert [path.name for path in (tmp_path / "run" / "lock").iterdir()] == [f"{number}.json"]
        assert _record(tmp_path / "run")["released"] and not is_held(tmp_path / "run")
    assert not is_held(tmp_path)
    with pytest.raises(RuntimeError), locked(tmp_path / "run"):
        raise RuntimeError
    with locked(tmp_path / "run"):
        pass


def _elsewhere(directory: Path, **changes: Any) -> Path:
    """The lock of a process on another machine."""
    with locked(directory):
        record = _record(directory)
    path = directory / "lock" / "1.json"
    path.write_text(json.dumps(record | {"boot": "another", "host": "node-7", "released": False} | changes))
    return path


@pytest.mark.parametrize("flock", [True, False])
def test_another_machines_lock_counts_until_it_shows_no_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 10.0)
    path = _elsewhere(tmp_path, flock=flock)
    beat = "import os, sys, time\nprint(flush=True)\nwhile True: os.utime(sys.argv[1]); time.sleep(0.02)"
    beating = subprocess.Popen([sys.executable, "-c", beat, str(path)], stdout=subprocess.PIPE)
    try:
        assert beating.stdout is not None and beating.stdout.readline()
        with pytest.raises(UserError, match="on node-7"), locked(tmp_path):
            pytest.fail("two at once")
    finally:
        beating.kill()
        beating.wait()
    monkeypatch.setattr(lock, "PATIENCE_S", 1.0)
    with locked(tmp_path):
        assert _record(tmp_path)["pid"] == os.getpid()


def test_a_file_system_without_flock_is_told_by_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 10.0)
    monkeypatch.setattr(lock, "BEAT_S", 0.02)

    def refused(file: int, kind: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", refused)
    with locked(tmp_path):
        time.sleep(0.1)
        with pytest.raises(UserError, match=f"process {os.getpid()}"), locked(tmp_path):
            pytest.fail("two at once")
    with locked(tmp_path):
        pass


def test_a_file_system_without_hard_links_is_locked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    for _ in range(2):
        with locked(tmp_path):
            with pytest.raises(UserError, match=f"process {os.getpid()}"), locked(tmp_path):
                pytest.fail("two at once")
            assert len(list((tmp_path / "lock").iterdir())) == 1


def test_a_lock_that_cannot_be_given_back_hides_no_other_fault(tmp_path: Path) -> None:
    for damage in (Path.unlink, lambda path: path.write_bytes(b"")):
        with pytest.raises(RuntimeError, match="the work's"), locked(tmp_path):
            damage(max((tmp_path / "lock").glob("*.json")))
            raise RuntimeError("the work's")
        for left in (tmp_path / "lock").iterdir():
            left.unlink()


def _contend(directory: Path, start: Any, inside: Any, counts: Any) -> None:
    start.wait()
    for _ in range(8):
        try:
            with locked(directory):
                with inside.get_lock():
                    inside.value += 1
                    counts[1] = max(counts[1], inside.value)
                counts[0] += 1
                with inside.get_lock():
                    inside.value -= 1
        except UserError:
            with counts.get_lock():  # several are refused at once
                counts[2] += 1


def test_of_several_that_take_over_at_once_one_has_it(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    process.kill()
    process.wait()
    context = multiprocessing.get_context("fork")
    start, inside, counts = context.Event(), context.Value("i", 0), context.Array("i", 3)
    contenders = [context.Process(target=_contend, args=(tmp_path, start, inside, counts)) for _ in range(4)]
    for contender in contenders:
        contender.start()
    start.set()
    for contender in contenders:
        contender.join(120)
        assert contender.exitcode == 0
    entered, most, refused = counts
    assert most == 1 and entered > 0 and entered + refused == 32
    assert len(list((tmp_path / "lock").iterdir())) == 1


def test_a_password_of_the_command_is_not_written_into_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["synpro", "sweep", "--storage", "postgresql://me:secret@host/db", "--trials", "3"]
    )
    with locked(tmp_path):
        command = _record(tmp_path)["command"]
    assert command == "synpro sweep --storage postgresql://me:***@host/db --trials 3"


def test_a_damaged_lock_is_named(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    for content in (b"", b"\x80\x00", b"[]", b'{"pid": 1}'):
        (tmp_path / "lock" / "1.json").write_bytes(content)
        with pytest.raises(UserError, match=r"1\.json: damaged lock"), locked(tmp_path):
            pytest.fail("taken")


def test_a_file_has_one_writer_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    with writing(file), pytest.raises(UserError, match=r"scores\.jsonl: another process writes it"), writing(file):
        pytest.fail("two at once")
    with writing(file):
        assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]


def test_who_waits_writes_after_the_other(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from synpro_engine.config.lock import writing\n"
    code += "with writing(Path(sys.argv[1]), wait=True):\n    print('written')"
    with writing(tmp_path):
        other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.0)
    assert other.communicate(timeout=30)[0] == "written\n"
