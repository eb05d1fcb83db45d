"""A run that trains on megadocs: its tokens lead to their texts, and each is counted as what it is."""

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from docs.site.schemas import faults_in
from synpro_engine.cli.main import main
from synpro_engine.cli.trace_text import lines
from synpro_engine.cycle import Cycle, load_recipe
from synpro_engine.cycle.run_layout import STITCHED
from synpro_engine.cycle.steps.stitching import stitched_documents
from synpro_engine.cycle.steps.training import ORGANIC
from synpro_engine.cycle.summaries import report_data
from synpro_engine.cycle.tracing import trace_document, trace_token
from synpro_engine.cycle.tracing.position import finished_steps, open_reading
from synpro_engine.dist import launched

SETTINGS = [
    "pretrain.max_steps=8", "pretrain.plateau=null", "pretrain.in_run=null", "tune={}", "generate.samples=2",
    "generate.max_slices=8", "continued.steps=8", "rounds=2",
    "filter.min_chars=40", "mix.megadocs={generations: 2, order: shuffled}",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cycle]:
    directory = tmp_path_factory.mktemp("runs") / "stitched"
    assert main(["run", "smoke", "--dir", str(directory), *SETTINGS]) == 0
    recipe = load_recipe("smoke", SETTINGS)
    with launched(recipe.parallel) as topology:
        yield Cycle(recipe, directory, topology)


def test_the_report_follows_windows_to_the_texts_within_megadocs(run: Cycle) -> None:
    found = report_data(run.directory, run.recipe, run.stages()).provenance
    window = next(window for window in found.windows if window.source != ORGANIC)
    places = [trace_token(run, window.stage, window.step, window.row, token) for token in range(0, 64, 3)]
    told = {document.id: document for document in window.documents}
    for part in (place.part for place in places if place.part is not None and place.part.offset >= 0):
        document = told.get(part.id)
        assert window.more if document is None else document.organic == (part.operation is None)
        assert document is None or document.organic or document.operation == part.operation
    made = [document for window in found.windows for document in window.documents if not document.organic]
    assert made and all(document.sources for document in made)


def test_what_its_files_hold_is_documented(run: Cycle) -> None:
    assert faults_in(run.directory) == []


def test_a_token_in_a_megadoc_leads_to_what_was_made_or_to_the_source(run: Cycle) -> None:
    stage = "round-2/continue"
    steps = finished_steps(run)[stage]
    kinds = Counter[str]()
    for step, row, token in ((s, r, t) for s in steps for r in (1, 6) for t in (3, 20, 50)):
        found = trace_token(run, stage, step, row, token)
        told = "\n".join(lines(found))
        if found.source == ORGANIC:
            assert found.part is None and found.synthetic is None
            continue
        part = found.part
        assert part is not None and f"part       {part.number} (" in told
        if part.operation is None:
            kinds["organic"] += 1
            assert found.synthetic is None
            text = trace_document(run, part.id).text
        else:
            kinds["made"] += 1
            assert found.synthetic is not None and found.synthetic.record["id"] == part.id
            assert found.synthetic.record["provenance"]["operation"] == part.operation
            text = found.synthetic.record["text"]
        if part.offset >= 0 and found.characters is not None:
            assert text is not None and text[slice(*found.characters)] == found.text
    assert kinds["organic"] > 5 and kinds["made"] > 5


def test_organic_tokens_in_megadocs_count_as_organic_ones_that_are_repeated(run: Cycle) -> None:
    stage = "round-2/continue"
    counted = Counter[tuple[str, str | None]]()
    for name in ("round-1/continue", stage):
        steps = finished_steps(run)[name]
        reading = open_reading(run, name, steps)
        parts = {n.name: list(stitched_documents(run.directory / n.shards / STITCHED)) for n in run.rounds}
        for _ in steps:
            for row in range(reading.loader.global_batch):
                for token in range(reading.loader.seq_len):
                    origin = reading.loader.origin(row, token)
                    if origin.source != ORGANIC:
                        document = parts[origin.source][origin.document]
                        at, offset = document.part_at(origin.offset)
                        kind = document.parts[at].operation
                        if offset < 0 and kind is None:
                            kind = document.parts[at - 1].operation
                        counted[origin.source, kind] += 1
            reading.loader.next_batch()
    result = json.loads((run.directory / stage / "result.json").read_text())
    for name in ("round-1", "round-2"):
        assert result["stitched"][name] == counted[name, None] > 0
        assert all(tokens == counted[name, op] for op, tokens in result["operations"][name].items())
    account = report_data(run.directory, run.recipe, run.stages()).tokens
    assert account is not None
    arm = next(arm for arm in account.arms if arm.synthetic)
    assert arm.stitched == sum(result["stitched"].values())
    assert arm.synthetic == sum(sum(each.values()) for each in result["operations"].values())
    assert arm.organic + arm.synthetic == 16 * reading.loader.global_batch * reading.loader.seq_len
    assert "stood in megadocs" in (run.directory / "report.html").read_text()


def test_a_document_knows_the_megadocs_that_hold_it_and_a_megadoc_its_texts(run: Cycle) -> None:
    stitched = next(stitched_documents(run.directory / "round-1" / "shards" / STITCHED))
    found = trace_document(run, stitched.id)
    assert found.parts == stitched.parts and found.life is not None
    for part in stitched.parts:
        inner = trace_document(run, part.id)
        if part.operation is None:
            [within] = [one for one in inner.within if one.id == stitched.id]
            assert within.tokens == part.tokens
            reads = within.read
            assert stitched.id in "\n".join(lines(inner))
        else:
            assert inner.life is not None and inner.life.tokens == part.tokens
            reads = inner.life.read
        whole = {(read.stage, *place[:2]): place[2] for read in found.life.read for place in read.places}
        for read in reads:
            for step, row, tokens in read.places:
                assert tokens <= whole[read.stage, step, row]
