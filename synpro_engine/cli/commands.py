"""What each `synpro` command does: read the recipe, join the job, call the cycle."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from math import lcm
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from synpro_engine.backend.profiling import ProfileRequest, requested, steps_of
from synpro_engine.cli import ensemble_table, judge_table, layout_table, plan_table, run_table, status_table, trace_text
from synpro_engine.cli.options import must_be_writable
from synpro_engine.cli.shares import show
from synpro_engine.config import Config, UserError, atomic_write_text, json_text, load_config, verification
from synpro_engine.config.addresses import is_address
from synpro_engine.config.base import validate
from synpro_engine.config.integrity import Verification
from synpro_engine.config.yaml_core import YAMLFault, parse_yaml
from synpro_engine.cycle import (
    Cycle,
    ModelPair,
    check_judges_of,
    explain_document,
    load_recipe,
    score_documents,
)
from synpro_engine.cycle.choice import Machine, choices
from synpro_engine.cycle.forecast import forecast
from synpro_engine.cycle.generation import generation_status, join_generation_of
from synpro_engine.cycle.rates import Rates, measured_rates
from synpro_engine.cycle.recipe_files import recipe_of_records
from synpro_engine.cycle.run_layout import CONFIG, PRETRAIN
from synpro_engine.cycle.scoring.averaging import average_models
from synpro_engine.cycle.scoring.ensemble import Asked, measure_ensemble
from synpro_engine.cycle.scoring.references import pair_of_checkpoint, pair_of_run
from synpro_engine.cycle.sections import ReferenceConfig
from synpro_engine.cycle.status import run_status
from synpro_engine.cycle.summaries import comparison
from synpro_engine.cycle.tracing import trace_document, trace_token
from synpro_engine.data import ReadConfig
from synpro_engine.dist import ParallelConfig, Topology, broadcast_object, launched, say
from synpro_engine.dist.environment import read_environment
from synpro_engine.influence import EstimatorConfig
from synpro_engine.report import write_comparison
from synpro_engine.storage import all_at_hand
from synpro_engine.storage import place as checked_place
from synpro_engine.train.config import WeightsOf

_FOLLOW_S = 10.0  # between two looks of `status --follow`


@contextmanager
def _cycle(
    recipe: str, overrides: Sequence[str], directory: Path | None, *, models: bool = True, generates: bool = False
) -> Iterator[Cycle]:
    """models: whether any is built, for which the ranks must be divided as the recipe says.

    generates: whether operations are worked with, whose files are run then; a run is read without them.
    """
    recipe_here = load_recipe(recipe, overrides) if generates else recipe_of_records(recipe, overrides, directory)
    if not models:
        recipe_here = recipe_here.undivided()
    with launched(recipe_here.parallel, recipe_here.seed, recipe_here.layouts) as topology:
        # Rank 0's, for the file may have been edited while the ranks came up.
        resolved = broadcast_object(recipe_here, topology)
        with verification(resolved.verify):
            yield Cycle(resolved, directory or Path("runs") / resolved.name, topology)


@dataclass(frozen=True)
class Look:
    """Which steps a profiler looks at, as the user typed it."""

    steps: str
    by: Literal["torch", "nsys"]
    ranks: str
    memory: bool

    @contextmanager
    def at(self, cycle: Cycle) -> Iterator[None]:
        """Look at what the run does in the `with` block. UserError, naming the option, for what is no such thing."""
        first, last = steps_of(self.steps, "--profile")
        if self.ranks != "all" and not re.fullmatch(r"\d{1,6}(,\d{1,6})*", self.ranks):
            raise UserError(f"--profile-ranks: {self.ranks!r} is neither ranks, such as 0,8, nor all")
        ranks = None if self.ranks == "all" else frozenset(map(int, self.ranks.split(",")))
        request = ProfileRequest(
            root=cycle.directory, first=first, last=last, ranks=ranks, by=self.by, memory=self.memory
        )
        with requested(request):
            yield
        # Rank 0 speaks, and knows of its own steps alone.
        if self.by == "torch" and not request.written and (ranks is None or 0 in ranks):
            say(cycle.topology, f"--profile: {self.steps} was not among the steps made by rank 0")
        for path in request.written:
            say(cycle.topology, f"profile: {path}")


def run_until(
    recipe: str,
    overrides: Sequence[str],
    directory: Path | None,
    until: str | None,
    *,
    redo: bool,
    only: Sequence[str] = (),
    look: Look | None = None,
) -> None:
    """Bring the run up to the last stage of a command; None: all of it, and the report. redo, only: see `Cycle.run`."""
    with _cycle(recipe, overrides, directory, generates=True) as cycle:
        with nullcontext() if look is None else look.at(cycle):
            cycle.run(until, redo=redo, only=only)
        say(cycle.topology, f"results are in {cycle.directory}")


def plan(
    recipe: str,
    overrides: Sequence[str],
    *,
    ranks: int | None = None,
    measured: Path | None = None,
    trained: float | None = None,
    sampled: float | None = None,
) -> None:
    """Print what a run will take. trained, sampled: tokens a second; they go before what `measured`, a run, shows."""
    resolved = load_recipe(recipe, overrides)
    rates = Rates() if measured is None else measured_rates(measured)
    rates = Rates(trained=trained or rates.trained, sampled=sampled or rates.sampled)
    fewest = lcm(*(layout.tp * layout.pp * layout.cp for layout in resolved.layouts.values()))
    ranks = ranks or max(read_environment().world_size, fewest)
    for line in plan_table.lines(forecast(resolved, ranks), rates):
        print(line)


def plan_layouts(recipe: str, overrides: Sequence[str], *, ranks: int, memory_gib: float | None, node: int) -> None:
    """Print the layouts that could pretrain on so many ranks."""
    resolved, machine = load_recipe(recipe, overrides), Machine(node=node)
    room = None if memory_gib is None else memory_gib * 2**30
    for line in layout_table.lines(resolved, choices(resolved, ranks, machine), ranks, machine, room):
        print(line)


def generation_status_of(recipe: str, overrides: Sequence[str], directory: Path | None, price: float | None) -> None:
    """Print how far the generation of a run is."""
    resolved = recipe_of_records(recipe, overrides, directory)
    for line in status_table.lines(generation_status(resolved, directory or Path("runs") / resolved.name), price):
        print(line)


def status(recipe: str, overrides: Sequence[str], directory: Path | None, *, follow: bool) -> None:
    """Print how far a run is; follow: again and again, until it is done."""
    resolved = recipe_of_records(recipe, overrides, directory)
    place = directory or Path("runs") / resolved.name
    while True:
        found = run_status(resolved, place)
        print("\n".join(run_table.lines(found)), flush=True)
        if not follow or found.is_done:
            return
        time.sleep(_FOLLOW_S)
        print()


def join_generation(recipe: str, overrides: Sequence[str], directory: Path | None, patience: float) -> None:
    """Take part in what another job generates. patience: minutes to wait while nothing is generated."""
    with _cycle(recipe, overrides, directory, generates=True) as cycle:
        join_generation_of(cycle, patience_s=60 * patience)


def report(recipe: str, overrides: Sequence[str], directory: Path | None, output: Path | None = None) -> None:
    """Write the report of what is there, which lies in its run's directory."""
    if output is not None:
        raise UserError("--output: is for the page of several runs; a run's report.html lies in its --dir")
    if directory is None and (Path(recipe) / CONFIG).is_file():
        raise UserError(f"{recipe}: is a run; name another to compare it with, or its recipe and --dir")
    with _cycle(recipe, overrides, directory, models=False) as cycle:
        cycle.open_directory()
        cycle.write_report()


def compare(overrides: Sequence[str], directories: Sequence[Path], directory: Path | None, output: Path | None) -> None:
    """Write the page of several runs to `output`. overrides, directory: what does not go with that, if given."""
    given = [*overrides, *([f"--dir {directory}"] if directory is not None else [])]
    if given:
        raise UserError(f"report: of several runs {given[0]} says nothing; each is taken as it is")
    path = output or Path("comparison.html")
    must_be_writable(path, "--output")
    write_comparison(comparison(directories), path)
    print(f"written: {path.resolve()}")


class JobConfig(Config):
    """What scoring with checkpoints takes beside them: the keys that a recipe has for the same."""

    parallel: ParallelConfig = ParallelConfig()
    verify: Verification = "once"
    influence: EstimatorConfig = EstimatorConfig()
    corpus: ReadConfig = ReadConfig()


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Which weights to measure influence with, as the user named them."""

    arguments: tuple[str, ...]
    """A recipe and its overrides; with checkpoints, overrides alone."""
    directory: Path | None
    checkpoint: str | None
    """A place of either kind; so is `probe`."""
    probe: str | None
    tokenizer: Path | None
    references: tuple[str, ...] = ()
    """Files of reference tasks in place of a probe, or mappings as in a recipe's `references`."""


def influence(
    weights: Weights,
    settings: Mapping[str, object],
    documents: str,
    output: Path | None,
    explain: str | None,
    *,
    reading: Mapping[str, object],
    shares: bool,
) -> None:
    """Score documents, or explain one.

    settings, reading: what was given of the estimator's settings and of how records are read; they replace a recipe's.
    """
    if not documents:
        raise UserError("--input: the documents to score are missing")
    if output is None and explain is None:
        raise UserError("--output: give a file for the scores, or --explain ID to look at one document")
    with TemporaryDirectory(prefix="synpro-") as folder, _pair(weights, Path(folder), output) as found:
        pair, base, corpus, topology = found
        config = validate(EstimatorConfig, {**base.model_dump(), **settings}, "options")
        read = validate(ReadConfig, {**corpus.model_dump(include=set(ReadConfig.model_fields)), **reading}, "options")
        if explain is not None:
            explanation = explain_document(pair, config, documents, explain, topology, reading=read)
            if topology.is_main:
                show(explanation, sys.stdout)
        elif output is not None:
            score_documents(pair, config, documents, output, topology, reading=read, shares=shares)


@contextmanager
def _pair(
    weights: Weights, folder: Path, output: Path | None
) -> Iterator[tuple[ModelPair, EstimatorConfig, ReadConfig, Topology]]:
    """The models to measure with, the estimator's settings and how to read records, from a run or from checkpoints.

    folder: where directions of references are kept if there is no `output` to put them beside.
    """
    kept = output is not None and (output.is_file() or not output.exists())  # nothing lies beside a pipe
    place = output.with_name(output.name + ".directions") if output is not None and kept else folder / "directions"
    references = _named_texts(weights.references, "--reference")
    if references and weights.probe is not None:
        raise UserError("--reference: stands in place of --probe; give one or the other")
    if weights.checkpoint is None and weights.probe is None:
        if not weights.arguments or "=" in weights.arguments[0]:
            raise UserError("influence: give a RECIPE, whose run holds the models, or --checkpoint and --probe")
        if weights.tokenizer is not None:
            raise UserError("--tokenizer: goes with --checkpoint; a run has its own")
        with _cycle(weights.arguments[0], weights.arguments[1:], weights.directory) as cycle:
            cycle.open_directory()
            place = broadcast_object(place, cycle.topology)  # each rank has a temporary folder of its own
            pair = pair_of_run(cycle, references, place) if references else ModelPair.of_run(cycle)
            yield pair, cycle.recipe.influence, cycle.recipe.corpus, cycle.place_of(PRETRAIN)
        return
    if weights.checkpoint is None or (weights.probe is None and not references):
        raise UserError("--checkpoint and --probe: one says theta, the other theta'; give both, or --reference")
    if weights.directory is not None or (weights.arguments and "=" not in weights.arguments[0]):
        raise UserError("--checkpoint and --probe: stand in place of a RECIPE and its --dir; give one or the other")
    config = load_config(JobConfig, {}, weights.arguments)
    with verification(config.verify), launched(config.parallel) as job:
        place = broadcast_object(place, job)
        [theta] = all_at_hand([weights.checkpoint], job)
        if weights.probe is None:
            rows = config.influence.micro_batch
            pair = pair_of_checkpoint(theta, references, place, weights.tokenizer, job, rows=rows)
        else:
            [probe] = all_at_hand([weights.probe], job)
            pair = ModelPair.of_paths(theta, probe, weights.tokenizer, job)
        yield pair, config.influence, config.corpus, job.with_whole_sequences()


def _named_texts(given: Sequence[str], option: str) -> dict[str, ReferenceConfig]:
    """Texts or tasks by the names of their files without endings, each a file or a mapping of its settings."""
    found: dict[str, ReferenceConfig] = {}
    for text in given:
        try:
            settings = parse_yaml(text) if text.startswith("{") else {"source": text}
        except YAMLFault as fault:
            raise UserError(f"{option} {text}: not valid YAML ({fault})") from None
        reference = validate(ReferenceConfig, settings, f"{option} {text}")
        if reference.source is None:
            raise UserError(f"{option} {text}: key `source` is missing")
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(reference.source).name.partition(".")[0])
        if name in ("", *found):
            raise UserError(f"{option} {text}: another one has that name; texts are told apart by file names")
        found[name] = reference
    return found


def export(
    recipe: str,
    overrides: Sequence[str],
    directory: Path | None,
    stage: str,
    output: str,
    weights: WeightsOf | None = None,
) -> None:
    """Write one stage's weights as a Hugging Face directory, or the texts that it generated as a corpus.

    output: a path or an address. weights: None takes those that the stage hands on.
    """
    with _cycle(recipe, overrides, directory) as cycle:
        cycle.open_directory()
        cycle.export(stage, output, weights)


class SeveralConfig(Config):
    """What commands on several finished models take beside them: the keys that a recipe has for the same."""

    parallel: ParallelConfig = ParallelConfig()
    verify: Verification = "once"


def average(
    arguments: Sequence[str],
    output: str,
    *,
    shares: Sequence[float],
    weights: WeightsOf | None,
    tokenizer: Path | None,
) -> None:
    """Write the mean of models. arguments: their places, and overrides of `SeveralConfig`. output: a place."""
    places, config = _several(arguments)
    with verification(config.verify), launched(config.parallel) as topology:
        average_models(places, shares, output, tokenizer, weights, topology)


def ensemble(
    arguments: Sequence[str], asked: Asked, texts: Sequence[str], tokenizer: Path | None, output: Path | None
) -> None:
    """Print the losses of models alone and together; output: a JSON file to write. arguments, texts: as typed."""
    places, config = _several(arguments)
    must_be_writable(output, "--output")
    asked = replace(asked, texts=_named_texts(texts, "--text"))
    with (
        TemporaryDirectory(prefix="synpro-") as folder,
        verification(config.verify),
        launched(config.parallel) as job,
    ):
        topology = job.with_whole_sequences()
        # Rank 0's, for each rank has a folder of its own; ranks on other machines need it to be shared.
        place = broadcast_object(Path(folder), topology)
        found = measure_ensemble(places, asked, tokenizer, place, topology)
        if topology.is_main:
            for line in ensemble_table.lines(found):
                print(line)
            if output is not None:
                atomic_write_text(output, json_text(found.model_dump(mode="json"), indent=2) + "\n")


def _several(arguments: Sequence[str]) -> tuple[list[str], SeveralConfig]:
    """Places of models, and settings among them as KEY=VALUE."""
    places: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        if is_address(argument):
            try:
                places.append(checked_place(argument))
            except ValueError as error:
                raise UserError(str(error)) from None
        else:
            (places if "=" not in argument or Path(argument).exists() else overrides).append(argument)
    return places, load_config(SeveralConfig, {}, overrides)


def judge_check(
    recipe: str,
    overrides: Sequence[str],
    *,
    judges: Sequence[str],
    texts: int,
    pairs: int,
    figures: Path | None,
    output: Path | None,
    calibrate: Path | None,
) -> None:
    """Print what the recipe's judges see; judges: no others; figures, output: JSON files, see `judge_table`.

    calibrate: a file to write for the one judge that is named.
    """
    for path, option in ((figures, "--json"), (output, "--output"), (calibrate, "--calibrate")):
        must_be_writable(path, option)
    resolved = load_recipe(recipe, overrides)
    with verification(resolved.verify), launched(resolved.parallel, resolved.seed) as job:
        topology = job.with_whole_sequences()
        found = check_judges_of(resolved, judges, texts, pairs, topology, calibrate=calibrate is not None)
        if topology.is_main:
            for line in judge_table.lines(found, resolved):
                print(line)
            if figures is not None:
                judge_table.write_figures(figures, found)
            if output is not None:
                judge_table.write(output, found, resolved, texts, pairs)
            if calibrate is not None and found.calibration is not None:
                found.calibration.write(calibrate)
                print(f"written: {calibrate}, for `reward.judges.{found.calibration.judge}.calibration`")


def trace(
    recipe: str,
    overrides: Sequence[str],
    directory: Path | None,
    wanted: str | tuple[str, int, int, int],
    *,
    arm: str | None = None,
    as_json: bool,
) -> None:
    """Print where a document, by its id, or a token (stage, step, row, place in the row) is from.

    arm: of a document, whose texts.
    """
    with _cycle(recipe, overrides, directory, models=False) as cycle:
        cycle.open_directory()
        found = trace_document(cycle, wanted, arm) if isinstance(wanted, str) else trace_token(cycle, *wanted)
        if cycle.topology.is_main:
            lines = [json_text(asdict(found), indent=2)] if as_json else trace_text.lines(found)
            for line in lines:
                print(line)


def keys(recipe: str, overrides: Sequence[str]) -> None:
    """Print every key of a recipe with its value and what it means."""
    from synpro_engine.config.describe import describe

    for line in describe(load_recipe(recipe, overrides)):
        print(line)


def doctor() -> None:
    """Print the table of choices."""
    from synpro_engine.backend.doctor import diagnose, import_faults

    choices = diagnose()
    widths = [max(len(text) for text in column) for column in zip(*((c.part, c.uses) for c in choices), strict=True)]
    for choice in choices:
        print(f"{choice.part:<{widths[0]}}  {choice.uses:<{widths[1]}}  {choice.why}".rstrip())
    for fault in import_faults():
        print(f"broken: {fault}")
