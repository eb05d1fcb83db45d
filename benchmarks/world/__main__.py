"""Every arm of the study in a world of facts: which should win, and whether influence as a reward finds it.

`python -m benchmarks.world` makes worlds by seeds, trains every arm in each and writes a record of each training;
called again it goes on where it was. An hour on two cores for eight seeds. `--tune` finds the settings of tuned
repetition, on worlds of other seeds. `--from FILE --docs docs` renews docs/evidence.md from records alone.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.command import command_line
from benchmarks.common.documents import renew
from benchmarks.common.environment import commit, environment
from benchmarks.common.records import read_lines, write_lines
from benchmarks.world.page import blocks, draw
from benchmarks.world.ranking import Ranking
from benchmarks.world.spread import spread
from benchmarks.world.study import Study, tune_repetition
from benchmarks.world.trainings import Trainings
from benchmarks.world.world import World
from synpro_engine.dist import ParallelConfig, Topology, launched

Record = Mapping[str, Any]
_OTHER_WORLDS = 1000
"""Added to the seed of worlds that settings are tuned on."""


def seed_records(seed: int, place: Path, known: Sequence[Record], topology: Topology, truths: bool) -> Iterator[Record]:
    """What is not known yet of one seed's arms, and of what each action is worth."""
    trainings = Trainings(World(seed), place, topology)
    study, done = Study(trainings), {(one["bench"], one.get("name")) for one in known if one["seed"] == seed}
    wanted: list[tuple[str, str, Callable[[], Any]]] = [("world", name, make) for name, make in study.arms().items()]
    wanted += [("world_action", name, make) for name, make in study.truths()] if truths else []
    missing = [one for one in wanted if one[:2] not in done]
    if missing and ("world", "theta") in done:
        trainings.make_theta()  # it may have been removed, and is the same again
    for bench, name, make in missing:
        yield {"bench": bench, "seed": seed, "name": name, **make()}
    shutil.rmtree(place, ignore_errors=True)


def _spread_records(seed: int, place: Path, known: Sequence[Record], topology: Topology) -> Iterator[Record]:
    """The noise of scores in one world, unless it is known."""
    if not any(one["bench"] == "world_spread" and one["seed"] == seed for one in known):
        yield {"bench": "world_spread", "seed": seed, **spread(Trainings(World(seed), place, topology))}
        shutil.rmtree(place, ignore_errors=True)


def _where() -> dict[str, object]:
    return environment(torch.device("cpu"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    parser = command_line("world", __doc__, "--docs", "--output")
    parser.add_argument("--dir", type=Path, default=Path("runs/world"), help="of the trainings in hand")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="to share seeds out over processes")
    parser.add_argument("--truths", type=int, default=3, help="seeds on which each action is trained on alone")
    parser.add_argument("--tune", action="store_true", help="try repetition's settings alone, on another world")
    parser.add_argument(
        "--ranking", type=int, nargs="+", metavar="STEPS",
        help="in place of arms: what each action is worth after up to so many steps, and other scores than influence's",
    )  # fmt: skip
    parser.add_argument("--spread", action="store_true", help="in place of arms: the noise of scores in groups")
    parser.add_argument("--from", dest="given", type=Path, metavar="FILE", help="records to show, in place of a run")
    given = parser.parse_args(arguments)
    output = given.given or given.output or given.dir / "records.jsonl"
    if given.tune:
        with launched(ParallelConfig()) as topology:
            seed = _OTHER_WORLDS + given.first_seed
            trainings = Trainings(World(seed), given.dir / f"seed-{seed}", topology)
            for record in tune_repetition(trainings):
                write_lines(output, [{"bench": "world_grid", "seed": seed, **record, "environment": _where()}])
    elif not given.given:
        with launched(ParallelConfig()) as topology:
            for seed in range(given.first_seed, given.first_seed + given.seeds):
                known = read_lines(output) if output.exists() else []
                if others := {one["environment"]["commit"] for one in known} - {commit()["commit"]}:
                    print(f"{output}: has records of other commits too: {', '.join(map(str, others))}", file=sys.stderr)
                place = given.dir / f"seed-{seed}"
                if given.spread:
                    records = _spread_records(seed, place, known, topology)
                elif given.ranking:
                    ranking = Ranking(Trainings(World(seed), place, topology))
                    records = ranking.records([one for one in known if one["seed"] == seed], given.ranking)
                else:
                    records = seed_records(seed, place, known, topology, seed <= given.truths)
                for record in records:
                    write_lines(output, [{**record, "environment": _where()}])
    records = read_lines(output)
    tables = blocks(records)
    print("\n\n".join(tables.values()))
    if given.docs:
        renew(given.docs / "evidence.md", tables)
        draw(records, given.docs / "images" / "world.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
