"""A run from the outside: bring it up to a stage, report on it, take its models out.

Which stages there are, and in which order, is `plan`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from synpro_engine.config import UserError, nearest, partial_path, read_manifest
from synpro_engine.config.lock import locked, writing
from synpro_engine.cycle.layouts import check_recipe
from synpro_engine.cycle.plan import Plan, planned
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import (
    CORPUS,
    ENVIRONMENT,
    EVALUATE,
    IMPORT,
    JUDGES,
    PRETRAIN,
    REPORT,
    SERVED,
    STACKS,
    TIMES,
    TOKENIZE,
    Round,
)
from synpro_engine.cycle.run_lock import check_claimed, check_place, claim, stale_of, stored_recipe
from synpro_engine.cycle.stages import Stage, needed, run_stage
from synpro_engine.cycle.steps.judging import check_judges
from synpro_engine.cycle.steps.serving import check_servers
from synpro_engine.cycle.steps.training import Training
from synpro_engine.cycle.steps.weights import export_corpus, export_stage
from synpro_engine.cycle.summaries import report_data, write_environment
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.report import closing_summary, write_report
from synpro_engine.train.config import WeightsOf
from synpro_engine.train.trackers import require_trackers
from synpro_engine.train.watcher import Evaluated

_WAITS = "takes as many steps as the longest of the arms in rounds, which are not at their ends yet"


class Cycle:
    """One run: a recipe, its directory and this rank's place."""

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        topology: Topology,
        *,
        evaluated: Evaluated | None = None,
        text: Path | None = None,
    ) -> None:
        """evaluated: is told of the evaluations of pretraining, and may end it.

        text: another run, whose tokens are linked into this one.
        """
        self.recipe, self.directory, self.topology = recipe, directory, topology
        self._plan = Plan(recipe, directory, topology, evaluated, text)

    @contextmanager
    def claimed(
        self,
        *,
        redo: bool = False,
        held_already: bool = False,
        first: Callable[[Collection[str]], None] = lambda stale: None,
    ) -> Iterator[None]:
        """Hold the directory as this recipe's, alone, in the block. Collective.

        redo: whether stages of other settings are removed there; without it they are a UserError.
        held_already: whether the caller holds its lock.
        first: is called with the names of those stages before they are removed, on every rank.
        """
        with ExitStack() as held:
            # The lock is rank 0's, which alone writes what lies in no stage; its process
            # outlives every stage of the job.
            stale = on_main(self.topology, lambda: self._take(held, redo=redo, held_already=held_already))
            self.look()
            first(stale)

            def settle() -> None:
                claim(self.directory, self.recipe, [stage for stage in self.stages() if stage.name in stale])
                for name in stale:
                    say(self.topology, f"[{name}] removed, to be made anew")
                write_environment(self.directory, self.recipe, self.topology)

            on_main(self.topology, settle)
            self.look()  # what was removed says nothing any more
            # Outside of the stages, whose files are those of their manifests.
            self.topology.watch.hang.directory = self.directory / STACKS
            yield

    def _take(self, held: ExitStack, *, redo: bool, held_already: bool) -> list[str]:
        """On rank 0: lock the directory into `held`; the names of its stages of other settings."""
        # On rank 0 alone: listing stages computes nothing and is no collective.
        plan = self.stages()
        self._refuse_equal_arms(plan)
        stages = {stage.name.split("/")[0] for stage in plan}
        partial = {partial_path(Path(name)).name for name in stages}
        # Before the lock, which makes a folder there: somebody else's directory must stay as it is.
        check_place(self.directory, sorted(stages | partial | {ENVIRONMENT, TIMES, REPORT, JUDGES, SERVED}))
        # Before anything is compared or removed: two commands that both find stale
        # stages must not both take them away.
        if not held_already:
            held.enter_context(locked(self.directory))
        return [stage.name for stage in stale_of(self.directory, self.recipe, plan, redo=redo)]

    def _refuse_equal_arms(self, stages: Sequence[Stage]) -> None:
        """One that is another must show now, not days later; a run that is finished with such is left in peace."""
        stored = stored_recipe(self.directory)
        added = self.recipe.arms.keys() - (set() if stored is None else stored.arms.keys())
        if added or (self.recipe.arms and any(not (self.directory / stage.name).exists() for stage in stages)):
            planned(self.recipe, self.topology.world_size)

    def open_directory(self) -> None:
        """Make sure that this recipe's run is there, and change nothing; UserError when it is not. Collective."""
        on_main(self.topology, lambda: check_claimed(self.directory, self.recipe, self.stages()))

    def look(self) -> bool:
        """Look at what finished stages say of those to come; whether there is news. Collective."""
        return self._plan.look()

    def stages(self) -> list[Stage]:
        """All stages of the run, in order, as far as they are known."""
        return list(self._plan.stages())

    def run(self, until: str | None = None, *, redo: bool = False, only: Sequence[str] = ()) -> None:
        """Bring the run up to the stages of command `until`, or through all of them and the report. Collective.

        only: of these arms, with all that they are made from. What the directory holds with the same settings stays;
        what was made with others is made anew where `redo` is given, else a UserError.
        """
        self._check_arms(only)
        if until not in (TOKENIZE, IMPORT):
            on_main(self.topology, lambda: require_trackers(self.recipe.pretrain.loggers))
            # Checked at once for a run that will come to its last stages: days of pretraining must not end at a layout
            # that cannot sample.
            samples = any(stage.command in ("tune", "generate") for stage in self._needed(until, only))
            ranks = self.topology.world_size
            on_main(self.topology, lambda: check_recipe(self.recipe, ranks, samples=samples))  # it reads teachers

        def ask(stale: Collection[str]) -> None:
            stages = [stage.name for stage in self._needed(until, only)]
            check_judges(self.recipe, self.directory, self.topology, stages, anew=stale)
            check_servers(self.recipe, self.directory, self.topology, stages, anew=stale)

        with self.claimed(redo=redo, first=ask):
            self._run(until, only, redo=redo)
            if until in (None, EVALUATE) and (waiting := self._waiting(only)):
                say(self.topology, f"--only {', '.join(waiting)}: not begun, for it {_WAITS}")
            if until is None:
                self.write_report()

    def bring_up(self, until: str) -> None:
        """Within `claimed`: make what is missing up to the stages of command `until`, before any that asks judges.

        Collective.
        """
        self._run(until)

    def _run(self, until: str | None, only: Sequence[str] = (), *, redo: bool = False) -> None:
        done = set[str]()
        while True:
            stages = [stage for stage in self._needed(until, only) if stage.name not in done]
            for stage in stages:
                run_stage(self.directory, stage, self.topology, redo=redo)
            done.update(stage.name for stage in stages)
            # A round that has ended says whether there is another one, and how long those take that go by it.
            if not self.look():
                return

    def _needed(self, until: str | None, only: Sequence[str]) -> list[Stage]:
        """The stages to be run, as far as they are known."""
        waiting = self._waiting(only)
        if waiting and set(waiting) == set(only):
            raise UserError(f"--only {waiting[0]}: {_WAITS}; run those first")
        return needed(self.stages(), until, only)

    def _waiting(self, only: Sequence[str]) -> list[str]:
        """Those of the arms that have no stage yet."""
        begun = {stage.arm for stage in self.stages()}
        return [name for name in only if name not in begun]

    def _check_arms(self, only: Sequence[str]) -> None:
        for name in only:
            if name not in self.recipe.all_arms:
                known = nearest(name, self.recipe.all_arms)
                raise UserError(f"--only {name}: no such arm; there are {', '.join(self.recipe.all_arms)}{known}")

    def write_report(self) -> None:
        """Write `report.html` from what is there. Collective."""

        def write() -> None:
            # Read outside of the lock: finished stages do not change, and those in work are left out.
            data = report_data(self.directory, self.recipe, self.stages())
            with writing(self.directory, wait=True):  # `report` may be called while a run ends
                write_report(data, self.directory / REPORT)
            say(self.topology, closing_summary(data, self.directory / REPORT))

        on_main(self.topology, write, label="report")

    def export(self, stage: str, output: str | Path, weights: WeightsOf | None = None) -> None:
        """Write one stage's weights as a Hugging Face directory, or of `generate` its texts as a corpus. Collective.

        output: a path or an address. weights: None: those that the stage hands on.
        """
        if on_main(self.topology, lambda: (self.directory / stage / CORPUS).is_dir()):
            if weights is not None:
                raise UserError(f"--weights: {stage} has texts and no weights")
            export_corpus(self.directory / stage, str(output), self.topology)
        else:
            export_stage(self.directory, stage, output, self.recipe, self.place_of(stage), weights)

    @property
    def rounds(self) -> dict[Round, dict[str, str]]:
        """All rounds that are known of, of every arm; by operation, the stages that generate in them."""
        return self._plan.generated

    def shards_of(self, this: Round) -> str:
        """The stage with a round's texts as tokens, which is another arm's where both make and choose the same."""
        return self._plan.shards[this]

    def round_of(self, stage: str, source: str) -> Round | None:
        """The round whose text a training stage reads under the name of a source; None where it is none's."""
        arm = self._plan.trainings[stage].arm
        return next((this for this in self.rounds if this.name == source and this.of_arm == arm), None)

    @property
    def training_stages(self) -> tuple[str, ...]:
        """Names of the stages that train the pretrained model, in their order."""
        return tuple(self._plan.trainings)

    def training(self, stage: str) -> Training:
        """What one of them is made from."""
        return self._plan.trainings[stage]

    def place_of(self, stage: str) -> Topology:
        """This rank's place in the layout of a stage, for models that are loaded from it to be read. Collective."""
        layout = self.recipe.layout_of(stage, self.topology.world_size)
        return self.topology if layout is None else self.topology.divided(layout.with_whole_sequences())

    @property
    def probe_pair(self) -> tuple[str, str]:
        """Names of the stages of theta and of the newest finished probe made from it, as rank 0 finds them. Collective.

        Raises UserError when there is no probe yet, and when theta was made anew since: the two would not belong
        together, and their difference would be no influence of anything.
        """
        return on_main(self.topology, self._probe_pair)

    @property
    def newest_theta(self) -> str:
        """Name of the newest finished stage whose weights a round starts from, as rank 0 finds it. Collective.

        Raises UserError when there is none yet.
        """

        def find() -> str:
            for theta, _ in self._pairs():
                if (self.directory / theta).exists():
                    return theta
            raise UserError(f"{self.directory}: no weights yet; `synpro pretrain` makes them")

        return on_main(self.topology, find)

    def _pairs(self) -> Iterator[tuple[str, str]]:
        """Theta and probe of each round of the first arm that has any, the newest first."""
        # Earlier rounds' probes belong to weights that training has left; rounds that a stricter limit left behind are
        # on disk and in no plan.
        planned = {stage.name for stage in self.stages()}
        arms = [name for name, arm in self.recipe.all_arms.items() if arm.in_rounds]
        for number in range(self.recipe.rounds, 0, -1) if arms else ():
            this = Round(number, arms[0])
            first = this.own_probe if this.own_probe in planned else Round(1).probe
            probe = this.probe if number > 1 else first
            if probe in planned:
                yield this.theta, probe
        if not arms:
            yield PRETRAIN, Round(1).probe

    def _probe_pair(self) -> tuple[str, str]:
        for theta, probe in self._pairs():
            if (self.directory / probe).exists():
                made_from = read_manifest(self.directory / probe).parents.get(theta)
                if made_from != read_manifest(self.directory / theta).content_hash:
                    raise UserError(f"{self.directory / probe}: was made from another {theta}; `synpro probe` mends it")
                return theta, probe
        raise UserError(f"{self.directory}: no probe yet; `synpro probe` makes it")
