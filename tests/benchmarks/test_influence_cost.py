"""The cost benchmark of influence at toy size: scores agree with the rivals', wrong ones get no ratio."""

import http.client
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common.harness import Sample
from benchmarks.influence_cost import __main__ as program
from benchmarks.influence_cost.group import gains_again, gains_kept, group_steps, in_pairs
from benchmarks.influence_cost.http import ours, scorer, service
from benchmarks.influence_cost.records import Turns, differing
from benchmarks.influence_cost.scoring import DOT, MIDPOINT, TWO, estimators, truths, wrong_scores
from benchmarks.influence_cost.setup import Bench, CostSettings, set_up
from synpro_engine.dist import ParallelConfig, launched

TOY = {
    "vocab": 300, "layers": 1, "d_model": 16, "heads": 2, "ffn": 16, "seq_len": 32, "warmups": 0, "rows": 2,
    "micro_batch": 2, "short_texts": 4, "step_rows": 2, "step_micro_batch": 2, "reference_tokens": 64, "sources": 2,
    "group": 3, "group_steps": 2, "clients": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of random words."""
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(8, size=rng.integers(2, 7))) for _ in range(60)]
    texts = (" ".join(words[i] for i in rng.integers(60, size=80)) for _ in range(90))
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


@pytest.fixture(scope="module")
def bench(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    settings = CostSettings.model_validate_json(json.dumps({**TOY, "rounds": 1, "source": str(source)}))
    with launched(ParallelConfig()) as topology:
        yield set_up(settings, topology, tmp_path_factory.mktemp("models"), lambda text: None)


def test_the_service_scores_every_text_as_we_do_and_refuses_what_is_no_request(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # it starts from any directory
    groups = group_steps(bench)[0]
    with service(bench) as rival:
        theirs = rival.ask(in_pairs(groups))
        assert ours(scorer(bench), groups) == pytest.approx(theirs, abs=1e-5)
        assert ours(scorer(bench, packed=True), groups) == pytest.approx(theirs, abs=1e-5)
        assert max(map(abs, theirs)) > 1e-3 and rival.ask([""]) == [0.0]
        for path, body in (("/influence", b"\x80\x04N."), ("/influence", b'{"text": 1}'), ("/", b'{"text": "a"}')):
            connection = http.client.HTTPConnection("127.0.0.1", rival.port, timeout=20)
            connection.request("POST", path, body)
            assert connection.getresponse().status == 400
            connection.close()
    assert not rival.process.is_running()


def test_keeping_scores_changes_no_gain_and_sends_every_text_through_the_models_once(bench: Bench):
    steps = group_steps(bench)
    (found, kept), (theirs, again) = gains_kept(bench, steps), gains_again(bench, steps)
    assert found == pytest.approx(theirs, abs=1e-5) and len(theirs) == 2 * 2 * 3
    texts = {text for groups in steps for group in groups for text in (*group.completions, group.source)}
    assert kept == len(texts) and again == 2 * 2 * 2 * 3


def test_estimators_with_another_probe_are_found_wrong(bench: Bench):
    given = bench.sequences(2)
    true = truths(bench, given)
    assert all(wrong_scores(each, given, true[name]) is None for name, each in estimators(bench, 2).items())
    swapped = estimators(replace(bench, theta=bench.probe, probe=bench.theta), 2)
    assert all(wrong_scores(swapped[name], given, true[name]) for name in (TWO, DOT, MIDPOINT))


def test_a_ratio_is_taken_turn_by_turn_and_a_wrong_row_has_none():
    def samples(*seconds: float) -> list[Sample]:
        return [Sample(seconds=s, cpu_seconds=s / 2) for s in seconds]

    turns = Turns(part="p", samples={"ours": samples(1, 20, 3), "theirs": samples(2, 60, 12)}, foreign=0.0)
    gain = turns.row("ours", "theirs", "x", at_least=True, limit=3.0)
    assert (gain.ratio.median, gain.ratio.low, gain.ratio.high) == (3.0, 2.5, 3.5) and gain.ask.reached
    cost = turns.row("theirs", "ours", "x", limit=2.9)
    assert cost.ratio == gain.ratio and not cost.ask.reached
    wrong = turns.row("ours", "theirs", "x", at_least=True, limit=3.0, wrong="off")
    assert wrong.ratio is None and wrong.cpu_ratio is None and wrong.status == "wrong" and not wrong.ask.reached


def test_scores_differ_where_one_is_off_or_not_a_number_and_where_all_are_nothing():
    assert differing([0.5, 0.1], [0.5, 0.1 + 1e-6], 1e-5) is None
    assert "off" in differing([0.5, 0.2], [0.5, 0.1], 1e-5)
    for place in (0, 1):
        found = [0.5, 0.1]
        found[place] = float("nan")
        assert "off by nan" in differing(found, [0.5, 0.1], 1e-5)
    assert "nothing to tell" in differing([0.0, 0.0], [0.0, 0.0], 1e-5)


@pytest.mark.slow
def test_every_part_is_measured_recorded_and_shown(bench: Bench, tmp_path: Path):
    page, output = tmp_path / "influence.md", tmp_path / "lines.jsonl"
    page.write_text("before\n<!-- cost -->\nold\n<!-- end of cost -->\nafter\n")
    program.publish(program.run(bench.settings, bench.topology, tmp_path), output, tmp_path)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert {row["passes"] for row in rows} == set(program.PARTS)
    assert all(row["status"] == "ok" and row["ratio"]["median"] > 0 for row in rows)
    asked = {row["contender"]: row["limit"] for row in rows if row["limit"]}
    assert asked == {
        "two_forward": 2.1, "dot at theta": 3.3, "in_run gradient": 1.03, "in_run prefix": 1.03,
        "in_run capture": 1.03, "group, source kept: forwards": 1.8, "in memory": 3.0,
    }  # fmt: skip
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert all(f"| {row['contender']} |" in text for row in rows)


def test_unknown_parts_and_settings_are_users_faults(capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(["--parts", "scoring,nothing"])
    assert ended.value.code == 2
    assert "nothing" in capsys.readouterr().err
    assert program.main(["--set", '{"rows": 0}']) == 2
    assert "rows" in capsys.readouterr().err
