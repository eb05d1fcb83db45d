"""A run whose documents are repeated and ordered by the scores that it makes: what each step was given, and why."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

import synpro_engine.train.run as training
from docs.site.schemas import faults_in
from synpro_engine.cli.main import main
from synpro_engine.config import UserError
from synpro_engine.cycle import Cycle, load_recipe
from synpro_engine.cycle.forecast import forecast
from synpro_engine.cycle.run_layout import CORPUS, STITCHED
from synpro_engine.cycle.settings import SettingsOf
from synpro_engine.cycle.steps.stitching import stitched_documents
from synpro_engine.cycle.steps.training import mixture
from synpro_engine.cycle.summaries import report_data
from synpro_engine.cycle.tracing import trace_document, trace_token
from synpro_engine.cycle.tracing.position import finished_steps, open_reading
from synpro_engine.data import Batch, TokenCorpus, document_scores, recorded_scores
from synpro_engine.dist import launched
from synpro_engine.influence.in_run import SCORES
from synpro_engine.synth import DOCUMENTS, lines_of
from synpro_engine.train.engine import StepResult

ARM = "round-1/continue"
SETTINGS = [
    "pretrain.max_steps=10", "pretrain.plateau=null", "pretrain.checkpoint_every=4", "pretrain.in_run.every=1",
    "pretrain.in_run.refresh=4", "tune={}", "generate.max_slices=16",
    "continued={steps: 24, synthetic_share: 0.4}",
    "mix.organic={scores: in_run, repeats: [0.0, 1.0, 3.0]}",
    "mix.synthetic={by: influence, order: sorted, repeats: [0.5, 1.5]}",
    "mix.megadocs={generations: 1, order: source_last}",
]  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """A run, and by (stage, step) the global batch that each of its steps was given, by the last try that made it."""

    cycle: Cycle
    given: dict[tuple[str, int], Batch]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("runs") / "ordered"
    given: dict[tuple[str, int], Batch] = {}
    fatal = [(ARM, 20)]
    step, split = training.PretrainRun.step, Batch.split

    def watched(self: training.PretrainRun) -> StepResult:
        made = str(self.directory.relative_to(directory)).replace(".partial", ""), self.engine.step_index + 1

        def keep(batch: Batch, micro_batch: int, *, equal: bool) -> list[Batch]:
            given[made] = batch
            return split(batch, micro_batch, equal=equal)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Batch, "split", keep)
            result = step(self)
        if made in fatal:
            fatal.remove(made)
            raise UserError("the end of this try")
        return result

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training.PretrainRun, "step", watched)
        ends = [main(["run", "smoke", "--dir", str(directory), *SETTINGS]) for _ in range(2)]
    assert ends == [2, 0]
    recipe = load_recipe("smoke", SETTINGS)
    with launched(recipe.parallel) as topology:
        yield Watched(Cycle(recipe, directory, topology), given)


def test_what_its_files_hold_is_documented(run: Watched) -> None:
    assert faults_in(run.cycle.directory) == []


def test_each_step_was_given_what_the_trace_says_across_an_interruption(run: Watched) -> None:
    sources = Counter[str]()
    for at, ((stage, step), batch) in enumerate(sorted(run.given.items(), key=lambda item: item[0])):
        row, token = at % 8, 11 * at % 64
        found = trace_token(run.cycle, stage, step, row, token)
        assert found.id == batch.tokens_BS[row, token]
        sources[f"{stage} {found.source}"] += 1
    assert {f"{ARM} round-1", f"{ARM} organic", "repeat organic", "pretrain organic"} == set(sources)


def test_arms_read_organic_documents_by_the_scores_that_pretraining_made(run: Watched) -> None:
    directory = run.cycle.directory
    kept = np.load(directory / "repeat" / "scores" / "organic.npy", allow_pickle=False)
    reading = open_reading(run.cycle, "repeat", finished_steps(run.cycle)["repeat"])
    corpus = reading.corpora["organic"]
    ids = enumerate(corpus.read_ids())
    again = document_scores(ids, corpus.num_documents, recorded_scores(directory / "pretrain" / SCORES, "influence"))
    assert np.array_equal(kept, again, equal_nan=True) and np.isfinite(kept).sum() > 10
    assert np.array_equal(kept, np.load(directory / ARM / "scores" / "organic.npy", allow_pickle=False), equal_nan=True)
    rank = np.argsort(np.argsort(np.where(np.isnan(kept), np.nanmedian(kept), kept), kind="stable"))
    read = np.zeros(corpus.num_documents, np.int64)
    for _ in reading.steps:
        for row in range(8):
            for token in range(64):
                read[reading.loader.origin(row, token).document] += 1
        reading.loader.next_batch()
    third = rank * 3 // len(rank)
    per_token = [read[third == n].sum() / np.diff(corpus.offsets)[third == n].sum() for n in range(3)]
    assert per_token[0] == 0 and per_token[2] > 1.5 * per_token[1] > 0
    # Pretraining itself has all of it, as it had without.
    first = open_reading(run.cycle, "pretrain", finished_steps(run.cycle)["pretrain"]).loader
    assert "curriculum" not in first.state_dict()["sources"]["organic"]


def test_a_rounds_documents_come_by_the_reward_of_the_texts_in_them(run: Watched) -> None:
    directory, rewards = run.cycle.directory, dict[str, float]()
    for operation in ("rephrase", "reformat"):
        for _, line in lines_of(directory / "round-1" / f"generate-{operation}" / CORPUS, DOCUMENTS):
            record = json.loads(line)
            rewards[record["id"]] = record["rewards"]["influence"]
    documents = list(stitched_documents(directory / "round-1" / "shards" / STITCHED))
    kept = np.load(directory / ARM / "scores" / "round-1.npy", allow_pickle=False)
    for score, document in zip(kept.tolist(), documents, strict=True):
        own = [rewards[part.id] for part in document.parts if part.operation is not None]
        assert min(own) - 1e-6 <= score <= max(own) + 1e-6
    reading = open_reading(run.cycle, ARM, finished_steps(run.cycle)[ARM])
    order = []
    for _ in range(3):
        for row in range(8):
            origin = reading.loader.origin(row, 0)
            if origin.source == "round-1":
                order.append(kept[origin.document])
        reading.loader.next_batch()
    assert order == sorted(order) and len(order) > 5


def test_what_was_read_is_counted_as_it_was_dealt(run: Watched) -> None:
    result = json.loads((run.cycle.directory / ARM / "result.json").read_text())
    dealt = result["samples"]["round-1"] * 64
    assert sum(result["operations"]["round-1"].values()) + result["stitched"]["round-1"] == dealt > 0
    account = report_data(run.cycle.directory, run.cycle.recipe, run.cycle.stages()).tokens
    assert account is not None and all(arm.organic + arm.synthetic == 24 * 8 * 64 for arm in account.arms)
    document = next(stitched_documents(run.cycle.directory / "round-1" / "shards" / STITCHED))
    life = trace_document(run.cycle, document.id).life
    assert life is not None and life.fate == "kept"


def test_settings_of_the_mix_reach_the_stages_that_read_and_no_other() -> None:
    plain = SettingsOf(load_recipe("smoke"))
    assert not {"organic", "synthetic"} & (
        plain.pretrain.recorded().keys() | plain.arm(5, synthetic=True).recorded().keys()
    )
    own = SettingsOf(
        load_recipe("smoke", ["mix.organic={scores: in_run, order: sorted}", "mix.synthetic={repeats: 2.0}"])
    )
    assert own.pretrain.recorded() == plain.pretrain.recorded(), "pretraining makes these scores, and goes by none"
    arms = [own.arm(5, synthetic=synthetic).recorded() for synthetic in (True, False)]
    assert arms[0]["organic"]["order"] == arms[1]["organic"]["order"] == "sorted" and "scores" not in arms[0]["organic"]
    assert arms[0]["synthetic"]["repeats"] == 2.0 and "synthetic" not in arms[1]
    filed = SettingsOf(load_recipe("smoke", ["mix.organic={scores: s.jsonl, order: sorted}"]))
    assert filed.pretrain.recorded()["organic"]["order"] == "sorted"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["mix.organic={order: sorted}"], "mix.organic.*scores: is missing"),
        (["mix.organic={scores: in_run}"], "scores: nothing goes by them"),
        (["mix.organic={scores: in_run, order: sorted}", "pretrain.in_run=null"], "which is not set"),
        (["mix.organic={scores: in_run, order: sorted, by: quality}"], "in_run has scores `influence`"),
        (["mix.synthetic={by: kindness, order: sorted}"], "mix.synthetic.by: .*gives `kindness` no weight"),
        (["mix.synthetic={by: structure, order: sorted}"], "reward.reformat gives `structure` no weight"),
        (["mix.synthetic={order: sorted}", "generate.rewards=[quality]"], "leaves `influence` out"),
    ],
)  # fmt: skip
def test_scores_that_are_not_made_are_refused_before_anything_begins(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("smoke", settings)


def test_a_pass_counts_in_the_mixture_with_its_repetitions() -> None:
    recipe = load_recipe("smoke")
    corpora = {
        name: TokenCorpus(
            tokens=np.zeros(size, np.int32), offsets=np.array([0, size]), eos_id=0, text_bytes=1, fingerprint="f",
            read_ids=lambda: ["a"],
        )
        for name, size in {"organic": 600, "round-1": 100, "round-2": 300}.items()
    }  # fmt: skip
    weights = mixture(corpora, recipe.continued, {"organic": 1200.0, "round-1": 50.0})
    assert weights == {"organic": 1200.0, "round-1": 50.0, "round-2": 300.0}


def test_the_plan_says_where_documents_would_be_read_too_often() -> None:
    def remarks(*overrides: str) -> list[str]:
        found = forecast(load_recipe("smoke", list(overrides)), 1).remarks
        return [remark for remark in found if "max_epochs" in remark]

    # 60 + 15 steps of 512 tokens, of 20,000.
    assert remarks() == remarks("mix.organic={max_epochs: 2}") == []
    [told] = remarks("mix.organic={max_epochs: 1}")
    assert "allow 20,000 organic tokens in all, and training asks for 38,400" in told
    # Pretraining alone begins two passes, and goes by no scores that it makes.
    assert remarks("mix.organic={max_epochs: 3, scores: in_run, repeats: [1.0, 2.0]}") == []
    [told] = remarks("mix.organic={max_epochs: 2, scores: in_run, repeats: [1.0, 2.0]}")
    assert "allow 0 organic tokens behind up to 2 passes of pretraining, and training asks for 7,680" in told
    assert remarks("mix.organic={max_epochs: 2, scores: s.jsonl, repeats: [0.0, 2.0]}")
