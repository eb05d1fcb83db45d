"""Leases: one worker at a unit, a dead one holds nobody, and what is done is not begun again."""

import os
import subprocess
import sys
import time
from pathlib import Path

from synpro_engine.synth.claims import ALL_DONE, WAIT, Claims
from synpro_engine.synth.leases import Leases, Worker, forget_owners
from synpro_engine.synth.ledger import PartWriter, counts_of


def finish(claims: Claims, leases: Leases, part: PartWriter, unit: int) -> None:
    part.append(unit, [], counts_of([], 1, 0.0))
    leases.done(unit)
    claims.done(unit, 1)


def test_each_unit_has_one_worker_and_all_are_done(tmp_path: Path) -> None:
    with Leases(tmp_path, 60) as one, Leases(tmp_path, 60) as other:
        with PartWriter(tmp_path, one.worker) as first, PartWriter(tmp_path, other.worker) as second:
            sides = [
                (Claims(tmp_path, 7, one, start=0), one, first),
                (Claims(tmp_path, 7, other, start=3), other, second),
            ]
            taken: list[list[int]] = [[], []]
            for turn in range(7):
                claims, leases, part = sides[turn % 2]
                unit = claims.claim()
                assert unit >= 0
                taken[turn % 2].append(unit)
                finish(claims, leases, part, unit)
            assert taken[0][0] == 0 and taken[1][0] == 3
            assert sorted(taken[0] + taken[1]) == list(range(7))
            assert [claims.claim() for claims, _, _ in sides] == [ALL_DONE, ALL_DONE]
            assert [claims.prompts for claims, _, _ in sides] == [7, 7]


def test_what_another_worker_is_at_is_waited_for_until_it_is_given_back(tmp_path: Path) -> None:
    with Leases(tmp_path, 60) as mine:
        claims = Claims(tmp_path, 1, mine, start=0)
        with Leases(tmp_path, 60) as theirs:
            assert theirs.make(0) and claims.claim() == WAIT
        assert claims.claim() == 0


def test_a_worker_that_shows_no_sign_of_life_is_relieved(tmp_path: Path) -> None:
    with Leases(tmp_path, 60) as mine, Leases(tmp_path, 60) as theirs:
        assert theirs.make(0)
        claims = Claims(tmp_path, 1, mine, start=0)
        assert claims.claim() == WAIT
        old = time.time() - 61
        os.utime(tmp_path / "workers" / theirs.worker, (old, old))
        assert claims.claim() == 0
        assert not theirs.make(0)
    # The one that was relieved leaves the lease of its successor alone.
    assert (tmp_path / "leases" / "0" / "0").exists() is False


def test_a_worker_of_this_machine_that_was_killed_is_relieved_at_once(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from synpro_engine.synth.leases import Leases\n"
    script += "with Leases(Path(sys.argv[1]), 600) as leases:\n    print(leases.make(0), flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    with Leases(tmp_path, 600) as mine:
        claims = Claims(tmp_path, 1, mine, start=0)
        assert claims.claim() == WAIT
        process.kill()
        process.wait()
        assert claims.claim() == 0


def test_done_units_of_workers_that_left_are_not_begun_again(tmp_path: Path) -> None:
    with Leases(tmp_path, 60) as theirs, PartWriter(tmp_path, theirs.worker) as part:
        first = Claims(tmp_path, 3, theirs, start=0)
        with Leases(tmp_path, 60) as mine:
            claims = Claims(tmp_path, 3, mine, start=0)  # before anything is done: it learns of it later
            finish(first, theirs, part, first.claim())
            finish(first, theirs, part, first.claim())
            os.unlink(tmp_path / "workers" / theirs.worker)
            assert claims.claim() == 2


def test_owners_of_an_earlier_start_are_forgotten_and_helpers_are_not(tmp_path: Path) -> None:
    with Leases(tmp_path, 60) as owner, Leases(tmp_path, 60, helper=True) as helper:
        # Of another machine: nothing here says whether they live.
        for worker in (owner, helper):
            about = Worker(host="elsewhere", pid=1, helper=worker is helper)
            (tmp_path / "workers" / worker.worker).write_text(about.model_dump_json())
        assert owner.make(0) and helper.make(1)
        with Leases(tmp_path, 60) as mine:
            assert Claims(tmp_path, 2, mine, start=0).claim() == WAIT
        forget_owners(tmp_path)
        with Leases(tmp_path, 60) as mine:
            claims = Claims(tmp_path, 2, mine, start=0)
            assert claims.claim() == 0 and claims.claim() == WAIT


def test_a_helper_whose_directory_is_gone_has_nothing_left_to_do(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with Leases(work, 60, helper=True) as helper:
        claims = Claims(work, 4, helper, start=0)
        work.rename(tmp_path / "gone")
        assert claims.claim() == ALL_DONE and not helper.make(2) and not work.exists()
