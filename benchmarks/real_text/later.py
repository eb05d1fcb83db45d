"""What influence says of the same texts later: whether what helps theta still helps the models that arms end with.

Influence is of the next step. Texts that all pull one way can each be of much use to theta, and of little once some of
them were read. So slices that two arms have texts of are measured, with the texts of both, at theta and where arms end,
each time along a direction that is made there as theta's was.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.multiples import mean
from benchmarks.common.rank_correlation import spearman
from benchmarks.common.tables import markdown
from benchmarks.real_text.study import Study
from synpro_engine.backend import platform
from synpro_engine.config import UserError
from synpro_engine.cycle.graph import Graph
from synpro_engine.cycle.plan import looked_at
from synpro_engine.cycle.run_layout import PRETRAIN, TOKENIZE, Round
from synpro_engine.cycle.settings.dealing import SettingsOf
from synpro_engine.cycle.steps.accepted import texts_made
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.probe import load_probe, probe_stage
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import start_id
from synpro_engine.dist import ParallelConfig, Topology, launched, progress
from synpro_engine.influence import TextInfluence, build_estimator

Record = Mapping[str, Any]
BENCH = "real_text_later"
THETA = "theta"
OF = ("prompted", "tuned")
"""Arms whose texts are measured."""
AT = (THETA, "oracle", *OF)
"""Where: at theta, and at the ends of these arms by their first seed. The oracle has read none of such texts."""
SOURCES = "sources"
_SLICES = 300


def measure(study: Study, done: Collection[str], slices: int = _SLICES) -> Iterator[Record]:
    """A record of each place that is not `done`; theta's scores are made anew, for others are ranked against them.

    UserError where an arm is not at its end.
    """
    if set(AT) <= set(done):
        return
    recipe = study.recipe()
    graph, settings = looked_at(recipe, study.run), SettingsOf(recipe)
    ends = {THETA: PRETRAIN} | {arm: _end(graph, arm, recipe.seeds[0]) for arm in AT[1:]}
    texts = _texts(graph, slices)
    before: dict[str, list[float]] = {}
    with launched(ParallelConfig()) as topology:
        for at, stage in ends.items():
            if at in done and at != THETA:
                continue
            found = _scores(study, settings, study.run / stage, study.place / "later" / at, texts, topology)
            before = before or found
            if at not in done:
                yield {"bench": BENCH, "at": at, "slices": len(texts[SOURCES]), **_told(found, before)}


def _end(graph: Graph, arm: str, seed: int) -> str:
    names = [name for name, one in graph.trainings.items() if one.arm == arm and one.settings.seed == seed]
    if not names:
        raise UserError(f"{graph.directory}: the arm {arm} is not at its end")
    return names[-1]


def _texts(graph: Graph, slices: int) -> dict[str, list[str]]:
    """Of so many slices, spread over all that both arms have texts of: the slice and the first text of each arm."""
    made: dict[str, dict[str, str]] = {}
    sources: dict[str, str] = {}
    for arm in OF:
        [stage] = graph.generated[Round(1, arm)].values()
        for one in texts_made(graph.directory / stage, graph.directory / TOKENIZE, with_sources=True):
            key = one.id.rpartition(":")[0]
            made.setdefault(arm, {}).setdefault(key, one.text)
            sources[key] = one.source
    both = [key for key in sources if all(key in of for of in made.values())]
    if len(both) < 2:
        raise UserError(f"{graph.directory}: {' and '.join(OF)} have not two slices in common")
    chosen = [both[n * len(both) // slices] for n in range(slices)] if len(both) > slices else both
    return {SOURCES: [sources[key] for key in chosen]} | {arm: [made[arm][key] for key in chosen] for arm in OF}


def _scores(
    study: Study, settings: SettingsOf, theta: Path, into: Path, texts: Mapping[str, Sequence[str]], topology: Topology
) -> dict[str, list[float]]:
    """By kind: the influence of each text, in nats per nat of the reference."""
    tokens, evaluate = study.run / TOKENIZE, settings.evaluate
    shutil.rmtree(into, ignore_errors=True)  # half a direction, of a call that was broken off
    into.mkdir(parents=True)
    probe_stage(into, settings.probe, tokens, theta, topology)
    dtype, tokenizer = platform.resolve_dtype(evaluate.dtype), open_tokenizer(tokens, topology)
    model = load_model(theta, topology, dtype)
    along = load_probe(into, model, dtype)
    estimator = build_estimator(evaluate.influence, model, along, start_id=start_id(tokenizer))
    influence = TextInfluence(estimator, tokenizer.encode, same_tokenizer=False)
    size = 16 * evaluate.influence.micro_batch
    found: dict[str, list[float]] = {kind: [] for kind in texts}
    with progress(sum(map(len, texts.values())), f"influence at {into.name}", "texts", topology) as bar:
        for kind, of in texts.items():
            for first in range(0, len(of), size):
                found[kind] += [score.value for score in influence.scores(of[first : first + size])]
                bar.update(len(found[kind]) - first)
    return found


def _told(found: Mapping[str, Sequence[float]], before: Mapping[str, Sequence[float]]) -> Record:
    """Means with their intervals over slices, of each kind and of what the second arm's texts have above the first's.

    ranks: the rank correlation of a kind's influence with that at theta.
    """
    first, second = (found[arm] for arm in OF)
    return {
        "influence": {kind: asdict(mean(values)) for kind, values in found.items()},
        "difference": asdict(mean([own - other for own, other in zip(second, first, strict=True)])),
        "ranks": {kind: spearman(values, before[kind]) for kind, values in found.items()},
    }


def later(records: Sequence[Record]) -> str:
    """What was measured, by place."""
    rows = []
    for one in (one for one in records if one["bench"] == BENCH):
        values = [_interval(one["influence"][kind]) for kind in (SOURCES, *OF)]
        ranks = [f"{one['ranks'][arm]:.2f}" for arm in OF]
        place = THETA if one["at"] == THETA else f"the end of `{one['at']}`"
        rows.append((place, *values, _interval(one["difference"], "+"), *ranks))
    of = (f"of `{arm}`'s texts" for arm in OF)
    headings = ("at", "influence of slices", *of, f"`{OF[1]}` above `{OF[0]}`", *(f"rank, `{arm}`" for arm in OF))
    return markdown(headings, rows) if rows else ""


def _interval(of: Mapping[str, float], sign: str = "") -> str:
    return f"{of['value']:{sign}.4f} ({of['low']:.4f} to {of['high']:.4f})"
