"""Repetitions and orders by score: each pass has what it is told, in every layout, and a position keeps its meaning."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synpro_engine.config import UserError, load_config
from synpro_engine.data import (
    Curriculum,
    CurriculumConfig,
    Score,
    TokenCorpus,
    TokenLoader,
    WindowSource,
    document_scores,
    recorded_scores,
)

SEQ, SEED = 8, 7


def _corpus(documents: int, start: int, seed: int) -> TokenCorpus:
    """Documents of 1 to 30 tokens with ids that occur nowhere else; each ends with 0, the EOS."""
    rng, tokens, offsets = random.Random(seed), [], [0]
    for _ in range(documents):
        length = rng.randrange(30)
        tokens += [*range(start, start + length), 0]
        start += length
        offsets.append(len(tokens))
    return TokenCorpus(
        tokens=np.array(tokens, np.int32), offsets=np.array(offsets), eos_id=0, text_bytes=1, fingerprint="f",
        read_ids=lambda: [f"d{n}" for n in range(documents)],
    )  # fmt: skip


D = 40
CORPORA = {"organic": _corpus(D, 1, 0), "round-1": _corpus(60, 10_000, 1)}
LENGTHS = np.diff(CORPORA["organic"].offsets)
SCORES = np.random.default_rng(3).permutation(D).astype(np.float32)
BY_RANK = {"repeats": (0.25, 1.0, 1.0, 3.5)}
SETTINGS: list[dict[str, Any]] = [
    BY_RANK,
    {"repeats": 0.5},
    {"repeats": 2.0, "order": "sorted"},
    {**BY_RANK, "order": "bucketed", "descending": True},
    {**BY_RANK, "order": "late_high"},
    {"order": "late_high", "late_share": 0.5, "late_from": 2},
    {**BY_RANK, "order": "sorted", "max_epochs": 9},
]


def _curriculum(settings: dict[str, Any], name: str = "organic") -> Curriculum:
    documents = CORPORA[name].num_documents
    scores = np.resize(SCORES, documents) + np.arange(documents) // D * D
    return Curriculum(CurriculumConfig(**settings), scores, documents, SEED, name)


def _source(settings: dict[str, Any]) -> WindowSource:
    return WindowSource("organic", CORPORA["organic"], SEQ, SEED, _curriculum(settings))


def _loader(settings: dict[str, Any], batch: int = 12, **others: Any) -> TokenLoader:
    curricula = {name: _curriculum(settings, name) for name in CORPORA}
    return TokenLoader(CORPORA, {"organic": 3.0, "round-1": 1.0}, SEQ, batch, SEED, curricula=curricula, **others)


def _rows(loader: TokenLoader, batches: int) -> list[list[int]]:
    found = [loader.next_batch() for _ in range(batches)]
    return [row for b in found for row in torch.cat([b.tokens_BS, b.labels_BS[:, -1:]], dim=1).tolist()]


def test_a_curriculum_that_asks_for_nothing_reads_as_none() -> None:
    curriculum = Curriculum(CurriculumConfig(), None, D, SEED, "organic")
    plain, same = (WindowSource("organic", CORPORA["organic"], SEQ, SEED, c) for c in (None, curriculum))
    for index in range(300):
        assert np.array_equal(plain.window(index)[0], same.window(index)[0]), index


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_order_is_the_same_in_every_layout_and_after_every_interruption(settings: dict[str, Any]) -> None:
    batches = 14
    whole = _rows(_loader(settings), batches)
    for size in (2, 3):
        ranks = [_loader(settings, dp_rank=rank, dp_size=size) for rank in range(size)]
        assert [row for _ in range(batches) for loader in ranks for row in _rows(loader, 1)] == whole
    assert _rows(_loader(settings, batch=4), 3 * batches) == whole
    for stop in (0, 1, 5, 13):
        first, again, skipped = _loader(settings), _loader(settings, batch=6), _loader(settings)
        _rows(first, stop)
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        skipped.skip(stop)
        assert skipped.state_dict() == first.state_dict()
        assert _rows(again, 2 * (batches - stop)) == _rows(skipped, batches - stop) == whole[12 * stop :]


@pytest.mark.parametrize("settings", SETTINGS[:-1])
def test_a_document_is_read_as_often_as_its_bucket_says(settings: dict[str, Any]) -> None:
    curriculum, passes = _curriculum(settings), 8
    read = sum(curriculum.copies(number) for number in range(passes))
    rank = np.argsort(np.argsort(SCORES))
    each = settings.get("repeats", 1.0)
    wanted = np.array(each if isinstance(each, tuple) else (each,) * 4)[rank * 4 // D] * passes
    if "late_from" in settings:
        wanted = np.where(rank >= D // 2, wanted, 2)
    assert np.abs(read - wanted).max() < 1
    # A quarter of them in each pass, and not all of them in every fourth.
    assert all(curriculum.copies(number)[rank < D // 4].any() for number in range(2)) or "late_from" in settings


def test_the_copies_of_a_pass_are_its_documents_and_none_stands_right_behind_itself() -> None:
    for settings in SETTINGS:
        curriculum = _curriculum(settings)
        for number in range(3):
            documents = curriculum.at(number).documents
            assert np.array_equal(np.bincount(documents, minlength=D), curriculum.copies(number))
            assert not (documents[1:] == documents[:-1]).any()


def test_tokens_of_a_pass_are_those_of_its_copies_on_average() -> None:
    for settings in SETTINGS[:5]:
        curriculum = _curriculum(settings)
        tokens = [int((curriculum.copies(n) * LENGTHS).sum()) for n in range(40)]
        assert np.mean(tokens) == pytest.approx(curriculum.tokens_per_pass(LENGTHS), rel=0.02)
        source = _source(settings)
        assert [source.first_window(n + 1) - source.first_window(n) for n in range(40)] == [
            (each - 1) // SEQ for each in tokens
        ]


def _scores_of(source: WindowSource, epoch: int) -> list[float]:
    """The scores of the documents of all tokens of an epoch, in the order in which windows are given out."""
    windows = range(source.first_window(epoch), source.first_window(epoch + 1))
    return [float(SCORES[source.place(index, token)[0]]) for index in windows for token in range(SEQ)]


@pytest.mark.parametrize("descending", [False, True])
def test_sorted_documents_come_by_their_score(descending: bool) -> None:
    scores = _scores_of(_source({"order": "sorted", "descending": descending}), 1)
    assert scores == sorted(scores, reverse=descending) and len(set(scores)) > 30


@pytest.mark.parametrize("descending", [False, True])
def test_buckets_follow_each_other_and_are_shuffled_inside(descending: bool) -> None:
    source = _source({"order": "bucketed", "buckets": 4, "descending": descending})
    scores = np.array(_scores_of(source, 0))
    buckets = (scores * 4 // D).astype(int)
    # A window across a border has tokens of both.
    steps = np.diff(buckets[::SEQ]) * (-1 if descending else 1)
    assert (steps >= 0).all() and buckets[0] == (3 if descending else 0)
    inside = scores[buckets == 1]
    assert list(inside) != sorted(inside) and list(inside) != sorted(inside, reverse=True)
    assert _scores_of(source, 0) != _scores_of(source, 1)


def test_high_scores_are_held_back_to_the_end_of_a_pass_or_from_a_pass_on() -> None:
    ends = np.array(_scores_of(_source({"order": "late_high", "late_share": 0.25}), 0))
    late = ends >= 0.75 * D
    tokens = int(LENGTHS[SCORES >= 0.75 * D].sum())
    # Of the one window across the border, which stands among the others, some tokens are of late documents.
    assert late[-(tokens - 2 * SEQ) :].all() and late[: len(late) - tokens - 2 * SEQ].sum() < SEQ
    source = _source({"order": "late_high", "late_share": 0.5, "late_from": 2})
    assert min(_scores_of(source, 1)) < D / 2
    for epoch in (2, 3, 20):
        assert min(_scores_of(source, epoch)) >= D / 2


def test_no_document_is_read_more_often_than_it_may_and_a_stage_that_would_is_refused() -> None:
    settings = {**BY_RANK, "max_epochs": 3}
    source, read = _source(settings), np.zeros(D, np.int64)
    with pytest.raises(UserError, match=r"source `organic`: has text for \d+ windows of 8 tokens and no more"):
        source.window(10**6)
    windows = source._firsts[-1]
    for index in range(windows):
        for token in range(SEQ):
            document, offset = source.place(index, token)
            read[document] += offset == 0
    assert read.max() == 3 and windows > 2 * int(LENGTHS.sum()) // SEQ
    curricula = {"organic": _curriculum(settings)}
    loader = TokenLoader({"organic": CORPORA["organic"]}, {"organic": 1.0}, SEQ, 2, SEED, curricula=curricula)
    loader.check_supply(windows // 2)
    with pytest.raises(UserError, match="raise it, or take fewer steps"):
        loader.check_supply(windows // 2 + 1)
    loader.skip(5)
    loader.check_supply(windows // 2 - 5)
    with pytest.raises(UserError, match="take fewer steps"):
        loader.check_supply(windows // 2 - 4)


def test_what_batches_hold_is_traced_and_counted_under_a_curriculum() -> None:
    loader = _loader({**BY_RANK, "order": "bucketed"})
    for _ in range(3):
        loader.next_batch()
    documents, counted, found = [5, 0, 2, 30], Counter[tuple[str, int, int, int]](), {}
    for name, corpus in CORPORA.items():
        lengths = np.diff(corpus.offsets).tolist()
        found[name] = loader.readings(name, {n: (n, 0, lengths[n]) for n in documents}, 40)
    for batch in range(40):
        origins = [[loader.origin(row, token) for token in range(SEQ)] for row in range(12)]
        tokens_BS = loader.next_batch().tokens_BS
        for row, each in enumerate(origins):
            for origin, id in zip(each, tokens_BS[row].tolist(), strict=True):
                assert CORPORA[origin.source].document_tokens(origin.document)[origin.offset] == id
                counted[origin.source, origin.document, batch, row] += 1
    told = {(name, n, *at): tokens for name, of in found.items() for n, read in of.items() for *at, tokens in read}
    assert told == {key: tokens for key, tokens in counted.items() if key[1] in documents} and len(told) > 50
    source, kinds_D = _source(BY_RANK), np.arange(D) % 3
    for windows in (0, 1, 50, 333):
        given = np.zeros(3, np.int64)
        for index in range(windows):
            given += np.bincount(kinds_D[source.window(index)[1][:-1]], minlength=3)
        assert source.tokens_given(windows, CORPORA["organic"].offsets, kinds_D, 3).tolist() == given.tolist()


def test_a_run_takes_up_a_curriculum_where_it_trains_on_and_keeps_to_it() -> None:
    organic = {"organic": CORPORA["organic"]}

    def loader(settings: dict[str, Any] | None) -> TokenLoader:
        curricula = {} if settings is None else {"organic": _curriculum(settings)}
        return TokenLoader(organic, {"organic": 1.0}, SEQ, 6, SEED, curricula=curricula)

    plain, fresh, on = loader(None), loader(BY_RANK), loader(BY_RANK)
    _rows(plain, 7)
    on.load_state_dict(plain.state_dict())
    assert on.samples_by_source == {"organic": 42}
    origin, first = on.origin(0, 0), _rows(on, 5)
    assert first == _rows(fresh, 5) and (origin.window, len(first)) == (42, 30)
    again = loader(BY_RANK)
    again.load_state_dict(json.loads(json.dumps(on.state_dict())))
    assert _rows(again, 9) == _rows(fresh, 9)
    assert again.documents_at(on.state_dict()) == on.documents_at(on.state_dict())
    with pytest.raises(UserError, match="source `organic` was read by another curriculum before"):
        loader({"repeats": 2.0}).load_state_dict(on.state_dict())
    with pytest.raises(UserError, match="another curriculum"):
        loader(None).load_state_dict(on.state_dict())


@pytest.mark.parametrize("before", [0, 1, 30, 70, 100, 1000])
def test_what_was_read_before_a_curriculum_was_taken_up_counts_among_a_documents_readings(before: int) -> None:
    settings, most = {**BY_RANK, "max_epochs": 5}, 5
    corpora, weights = {"organic": CORPORA["organic"]}, {"organic": 1.0}
    plain = TokenLoader(corpora, weights, SEQ, 1, SEED)
    curricula = {"organic": _curriculum(settings)}
    loader = TokenLoader(corpora, weights, SEQ, 1, SEED + 1, curricula=curricula, order_before=SEED)
    read = np.zeros(D, np.int64)

    def count(dealt: TokenLoader) -> None:
        for token in range(SEQ):
            origin = dealt.origin(0, token)
            read[origin.document] += origin.offset == 0

    for _ in range(before):
        count(plain)
        plain.next_batch()
    loader.load_state_dict(plain.state_dict())
    with pytest.raises(UserError, match=r"has text for \d+ windows of 8 tokens and no more") as told:
        loader.check_supply(10**6)
    left = int(str(told.value).split(" windows")[0].rpartition(" ")[2])
    loader.check_supply(left)
    again = TokenLoader(corpora, weights, SEQ, 1, SEED + 1, curricula=curricula, order_before=SEED)
    for at in range(left):
        if at == left // 2:  # and so it does where the run goes on behind an interruption
            again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
            loader = again
        count(loader)
        loader.next_batch()
    per_epoch = (int(LENGTHS.sum()) - 1) // SEQ
    assert read.max() <= max(most, -(-before // per_epoch))
    assert left > 0 or before >= (most - 1) * per_epoch
    assert left == 0 or read.max() >= most - 1
    # The curriculum that was handed over stays as it was, for others that read by it.
    assert curricula["organic"].passes_before == 0


def test_a_position_far_on_is_found_without_the_passes_before_it() -> None:
    source = _source({**BY_RANK, "order": "sorted"})
    index = source.first_window(2000) + 3
    assert source.epoch_of(index) == (2000, 3) and source._current is None
    assert np.array_equal(source.window(index)[0], _source({**BY_RANK, "order": "sorted"}).window(index)[0])


def test_documents_without_a_score_are_as_the_median() -> None:
    scores = np.where(np.arange(D) % 2, np.arange(D), np.nan)
    curriculum = Curriculum(CurriculumConfig(repeats=(0.0, 1.0, 0.0)), scores, D, SEED, "organic")
    read = curriculum.copies(0) > 0
    # Twenty without one stand between the ten lowest and the ten highest.
    assert read[0::2].sum() >= 13 and not read[1::2][:6].any() and not read[1::2][-6:].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": [1.0, -1.0]}, "repeats: numbers from 0 to 1000"),
        ({"repeats": [0.0, 0.0]}, "repeats: numbers from 0 to 1000"),
        ({"repeats": [1.0, 2.0], "buckets": 3}, "repeats: 2 numbers for 3 buckets"),
        ({"order": "bucketed"}, "buckets: is missing"),
        ({"order": "sideways"}, "`order`"),
        ({"late_from": 3}, "late_from: goes with `order: late_high` alone"),
        ({"max_epochs": 0}, "`max_epochs`"),
        ({"repeats": "often"}, "`repeats`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(CurriculumConfig, settings)


def test_repeats_that_leave_less_than_a_window_are_refused() -> None:
    with pytest.raises(UserError, match=r"tokens a pass \(`repeats`\) do not fill one window"):
        _source({"repeats": 0.01})
    with pytest.raises(UserError, match="do not fill one window"):
        _source({"order": "late_high", "late_share": 0.01, "late_from": 1, "repeats": 0.1})


LINES: list[dict[str, Any]] = [
    {"id": "d1", "value": 2.0, "tokens": 7, "loss": 3.1},
    {"key": "d2", "step": 3, "tokens": 3, "scores": {"reference": 1.0}},
    {"key": "d2", "step": 9, "tokens": 1, "scores": {"reference": 5.0}},
    {"key": "d2", "step": 9, "tokens": 1, "scores": {"reference": None}},
    {"id": "d3", "rewards": {"influence": -1.0, "quality": 4}},
    {"id": "d4", "influence": 0.5},
    {"id": "elsewhere", "value": 9.0},
    {"id": "whole", "value": 7.0},
]


def test_scores_are_found_in_all_forms_in_which_the_engine_records_them(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    documents = [(n, f"d{n}") for n in range(6)] + [(6, "whole"), (7, "whole")]
    found = document_scores(documents, 8, recorded_scores(path, "influence"))
    assert found.dtype == np.float32
    assert np.array_equal(found, [np.nan, 2.0, 2.0, -1.0, 0.5, np.nan, 7.0, 7.0], equal_nan=True)
    quality = document_scores(documents, 8, recorded_scores(path, "quality"))
    assert np.flatnonzero(~np.isnan(quality)).tolist() == [3]


def test_lines_of_one_document_count_by_their_tokens_whatever_their_form(tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"value": 2.0}, {"influence": 2.0}, {"influence": 2.0, "rewards": None}, {"rewards": {"influence": 2.0}},
        {"scores": {"reference": 2.0}}, {"value": 2.0, "scores": None},
    ]  # fmt: skip
    path = tmp_path / "scores.jsonl"
    for id in ("17", 17):
        for form in forms:
            lines = [{"id": id, **form, "tokens": 3}, {"id": id, "value": 6.0}, {"id": id, "value": 99, "tokens": 0}]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            assert document_scores([(0, "17")], 1, recorded_scores(path, "influence")) == [3.0]
    path.write_text('{"id": 1, "tokens": [5, 6], "rewards": null}\n')
    assert not list(recorded_scores(path, "influence")), "a line without a score"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "damaged"),
        ("[1]", "damaged"),
        ('{"value": 1}', "`id` is missing"),
        ('{"id": "a", "value": "x"}', "damaged"),
        ('{"id": true, "value": 1}', "`id` is missing"),
        ('{"id": "a", "rewards": [1]}', "damaged"),
        pytest.param('{"id": "a", "value": ' + "9" * 400 + "}", "damaged", id="a value beyond floats"),
        ('{"id": "a", "scores": {"reference": 0.1}, "tokens": null}', "`tokens`, by which"),
        ('{"id": "a", "scores": {"reference": 0.1}, "tokens": "x"}', "`tokens`, by which"),
        ('{"id": "a", "value": 0.1, "tokens": NaN}', "`tokens`, by which"),
        ('{"id": "a", "value": 0.1, "tokens": Infinity}', "`tokens`, by which"),
        ('{"id": "a", "value": 0.1, "tokens": -1}', "`tokens`, by which"),
        ('{"id": "a", "value": 0.1, "tokens": true}', "`tokens`, by which"),
        pytest.param('{"id": "a", "value": 1, "tokens": ' + "9" * 400 + "}", "`tokens`", id="tokens beyond floats"),
    ],
)
def test_a_line_that_is_no_score_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"id": "a", "value": 1.0}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"scores.jsonl:2: .*{message}"):
        list(recorded_scores(path, "influence"))


def test_many_scores_of_many_documents_are_their_weighted_means() -> None:
    rng = np.random.default_rng(0)
    ids, values, weights = rng.integers(0, 500, 200_000), rng.normal(size=200_000), rng.integers(1, 9, 200_000)
    scores = (Score(f"d{i}", v, w) for i, v, w in zip(ids.tolist(), values.tolist(), weights.tolist(), strict=True))
    found = document_scores(((n, f"d{n}") for n in range(500)), 500, scores)
    sums, of = np.bincount(ids, weights=values * weights), np.bincount(ids, weights=weights)
    assert np.allclose(found, sums / of, rtol=1e-5, atol=1e-6)
