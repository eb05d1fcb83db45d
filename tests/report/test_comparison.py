"""The page of several runs: what differs, in a unit in which they can be compared, and nothing that is alike."""

import dataclasses
import math
from typing import Any

import pytest

from synpro_engine.report import (
    ArmTokens,
    ComparedRun,
    Comparison,
    HeldOutLoss,
    Plateau,
    ReportData,
    render_comparison,
)
from synpro_engine.report.looks import legend_label
from tests.report.conftest import ARMS
from tests.report.test_page import Reader

CONFIG = {"pretrain": {"global_batch": 8, "optimizer": {"lr": 0.001}}, "model": {"seq_len": 64}, "name": "x", "seed": 7}


def of_run(data: ReportData, label: str, tokenizer: str = "a", text: str = "v", **changes: Any) -> ComparedRun:
    optimizer = {"lr": 0.001, **changes}
    config = {**CONFIG, "pretrain": {"global_batch": 8, "optimizer": optimizer}, "name": label}
    return ComparedRun(
        label=label,
        place=f"runs/{label}",
        data=dataclasses.replace(data, config=config),
        tokenizer=tokenizer,
        texts={"validation": text, "reference": text},
    )


def _page(*runs: ComparedRun) -> tuple[Comparison, str]:
    data = Comparison(title="Compared", created="now", runs=runs)
    return data, render_comparison(data)


def test_settings_that_are_alike_are_left_out_and_a_missing_one_is_a_dash(full_report: ReportData) -> None:
    long = "x" * 500
    data, _ = _page(
        of_run(full_report, "a", weight_decay=0.1, note=long + "a"), of_run(full_report, "b", lr=0.002, note=long + "b")
    )
    settings = dict(data.settings)
    assert settings["pretrain.optimizer.lr"] == ("0.001", "0.002")
    assert settings["pretrain.optimizer.weight_decay"] == ("0.1", "–")
    # Differences behind what a cell shows count too.
    assert set(settings) == {f"pretrain.optimizer.{name}" for name in ("lr", "weight_decay", "note")}


def test_what_an_oracle_reads_beyond_the_corpus_is_not_told_as_organic_text(full_report: ReportData) -> None:
    assert full_report.tokens is not None
    oracle = ArmTokens(name="oracle", organic=876_544, synthetic=0, unique=352_256)
    with_it = dataclasses.replace(full_report.tokens, arms=(*full_report.tokens.arms, oracle))
    data, _ = _page(of_run(full_report, "a"), of_run(dataclasses.replace(full_report, tokens=with_it), "b"))
    found = dict(data.tokens)
    assert found["oracle: organic + synthetic"] == ("–", "876,544 + 0 + 352,256 more of organic's kind")
    assert found[f"{ARMS[0]}: organic + synthetic"] == ("876,544 + 352,256",) * 2


def test_runs_of_one_tokenizer_are_compared_per_token_and_of_several_per_byte_alone(full_report: ReportData) -> None:
    one, page = _page(of_run(full_report, "a"), of_run(full_report, "b"))
    assert one.unit == "nats per token" and one.token_losses and not one.warnings
    assert "Nats per token" in page and "bits per byte" not in page.lower().split("<h3>")[0].split("statement")[-1]
    two, page = _page(of_run(full_report, "a"), of_run(full_report, "b", tokenizer="other"))
    assert two.unit == "bits per byte" and not two.token_losses and "Nats per token" not in page
    assert "nats per token" not in page.replace("Perplexity gap, nats", "")
    loss = full_report.arms.held_out[0]
    assert dict(two.losses)[loss.name][0] == f"{loss.nats / math.log(2) / loss.utf8_bytes:.4f}"
    # The curves go by the bytes of the split.
    split = next(one for one in full_report.corpus.splits if one.name == "validation") if full_report.corpus else None
    assert split is not None
    wanted = split.tokens / math.log(2) / split.utf8_bytes
    assert two.runs[0].per_byte("validation") == pytest.approx(wanted)


def test_losses_of_different_text_are_said_to_be_so(full_report: ReportData) -> None:
    data, page = _page(of_run(full_report, "a"), of_run(full_report, "b", text="w"))
    assert "validation and reference texts differ" in data.warnings[0] and "different text" in page


def test_a_reference_loss_that_is_not_the_splits_has_no_bytes_and_is_not_drawn(full_report: ReportData) -> None:
    corpus = full_report.corpus
    assert corpus is not None
    splits = (*corpus.splits, dataclasses.replace(corpus.splits[1], name="reference"))
    data = dataclasses.replace(full_report, corpus=dataclasses.replace(corpus, splits=splits))
    two = (of_run(data, "a"), of_run(data, "b", tokenizer="other"))
    assert "Pretraining, reference loss" in [
        panel.title for panel in Comparison(title="", created="", runs=two).panels()
    ]
    tasks = tuple(dataclasses.replace(run, split_alone=False) for run in two)
    of_tasks, page = _page(*tasks)
    assert tasks[0].per_byte("reference") is None and tasks[0].per_byte("validation") is not None
    assert "Pretraining, reference loss" not in [panel.title for panel in of_tasks.panels()]
    assert "not drawn, in a, b" in page
    same = dataclasses.replace(of_tasks, runs=(tasks[0], dataclasses.replace(tasks[1], tokenizer="a")))
    assert "Pretraining, reference loss" in [panel.title for panel in same.panels()] and not same.warnings


def test_a_run_that_is_not_that_far_differs_in_nothing_yet_and_held_out_tasks_do(full_report: ReportData) -> None:
    begun = dataclasses.replace(
        of_run(full_report, "b"), tokenizer=None, texts={"validation": None, "reference": None}, tasks={}
    )
    one = dataclasses.replace(of_run(full_report, "a"), tasks={"sums": "10 200"})
    data, _ = _page(one, begun)
    assert data.one_tokenizer and data.warnings == []
    data, _ = _page(one, dataclasses.replace(of_run(full_report, "b"), tasks={"sums": "9 180"}))
    assert "sums texts differ" in data.warnings[0]


def test_runs_that_read_documents_apart_are_told_from_those_that_do_not(full_report: ReportData) -> None:
    apart = {**CONFIG, "pretrain": {"global_batch": 8, "separate_documents": True}}
    one, two = (of_run(dataclasses.replace(full_report), label) for label in "ab")
    two = dataclasses.replace(two, data=dataclasses.replace(two.data, config=apart))
    data, page = _page(one, two)
    assert "do not see each other in b (" in data.warnings[0] and "measured so too" in page
    assert not _page(two, dataclasses.replace(two, label="c"))[0].warnings


@pytest.mark.parametrize("label", ["_old", "a\x01b", "\udcff\udcfe"])
def test_lines_are_named_whatever_their_directories_are_called(full_report: ReportData, label: str) -> None:
    _, page = _page(of_run(full_report, "a"), of_run(full_report, label))
    legend = page.split("<svg")[1].split("</svg>")[0]
    assert legend_label(label) in legend and "\x01" not in page and page.encode()


def test_losses_are_means_over_seeds_with_their_error_and_count(full_report: ReportData) -> None:
    rows = tuple(
        HeldOutLoss(name="arm", nats=nats, tokens=100, utf8_bytes=100, seed=seed)
        for seed, nats in ((1, 300.0), (2, 304.0))
    )
    arms = dataclasses.replace(full_report.arms, held_out=rows)
    data, _ = _page(of_run(dataclasses.replace(full_report, arms=arms), "a"), of_run(full_report, "b"))
    assert dict(data.token_losses)["arm"] == ("3.0200 ± 0.0200 (2)", "–")


def test_the_page_is_whole_and_holds_no_script_and_no_address(full_report: ReportData) -> None:
    hostile = of_run(full_report, "<script>alert(1)</script>")
    _, page = _page(of_run(full_report, "a"), hostile)
    read = Reader(page)
    assert read.open == [] and "script" not in read.tags
    assert "http://" not in page and "https://" not in page
    # Pretraining on the reference text, and each arm on the validation text.
    assert page.count("<svg") == 3


def test_runs_that_have_hardly_begun_are_compared_all_the_same(full_report: ReportData) -> None:
    begun = ReportData(title="begun", recipe="quickstart", pretraining=dataclasses.replace(full_report.pretraining))
    plateau = Plateau(step=3, stopped=False, reason="budget")
    begun = dataclasses.replace(begun, pretraining=dataclasses.replace(begun.pretraining, plateau=plateau, curves=()))
    data, page = _page(of_run(begun, "a"), of_run(begun, "b", tokenizer="other"))
    assert Reader(page).open == [] and "not run yet" in page
    assert dict(data.overview)["plateau"][0] == "step 3, 1.54k tokens; the budget ended first"
