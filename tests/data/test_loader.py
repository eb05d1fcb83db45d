"""The loader: an order that only seed and position decide, exact resume, exact mixtures, each token its turn."""

import dataclasses
import itertools
import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from synpro_engine.config import UserError, load_config
from synpro_engine.data import (
    IGNORE,
    Blend,
    SourceConfig,
    TokenCorpus,
    TokenLoader,
    WindowSource,
    eval_windows,
    mixture_weights,
    repetition_mask,
)

SEQ = 8


def _corpus(documents: int, start: int, seed: int = 0) -> TokenCorpus:
    """Documents of 1 to 30 tokens with ids that occur nowhere else; each ends with 0, the EOS."""
    rng, tokens, offsets = random.Random(seed), [], [0]
    for _ in range(documents):
        length = rng.randrange(30)
        tokens += [*range(start, start + length), 0]
        start += length
        offsets.append(len(tokens))
    return TokenCorpus(
        tokens=np.array(tokens, dtype=np.int32),
        offsets=np.array(offsets),
        eos_id=0,
        text_bytes=1,
        fingerprint="f",
        read_ids=lambda: [f"d{n}" for n in range(documents)],
    )


CORPORA = {"organic": _corpus(40, 1), "synthetic": _corpus(60, 10_000, 1), "web": _corpus(25, 50_000, 2)}
WEIGHTS = {"organic": 3.0, "synthetic": 1.0, "web": 0.7}


def _loader(batch: int = 12, **settings: Any) -> TokenLoader:
    return TokenLoader(CORPORA, WEIGHTS, SEQ, batch, seed=7, **settings)


def _rows(loader: TokenLoader, batches: int) -> list[list[int]]:
    found = [loader.next_batch() for _ in range(batches)]
    return [row for b in found for row in torch.cat([b.tokens_BS, b.labels_BS[:, -1:]], dim=1).tolist()]


def test_the_global_order_is_the_same_for_every_data_parallel_size() -> None:
    whole = _rows(_loader(), 30)
    for size in (2, 3, 4, 12):
        ranks = [_loader(dp_rank=rank, dp_size=size) for rank in range(size)]
        rows = [row for _ in range(30) for loader in ranks for row in _rows(loader, 1)]
        assert rows == whole
        assert all(loader.state_dict() == ranks[0].state_dict() for loader in ranks)


def test_the_global_order_does_not_depend_on_the_batch_size() -> None:
    assert _rows(_loader(batch=4), 30) == _rows(_loader(batch=12), 10) == _rows(_loader(batch=120), 1)


def test_another_seed_gives_another_order() -> None:
    other = TokenLoader(CORPORA, WEIGHTS, SEQ, 12, seed=8)
    assert _rows(other, 3) != _rows(_loader(), 3)


def test_labels_are_the_next_tokens() -> None:
    batch = _loader().next_batch()
    assert batch.tokens_BS.dtype == batch.labels_BS.dtype == torch.int64
    assert batch.tokens_BS.shape == batch.labels_BS.shape == (12, SEQ)
    assert torch.equal(batch.tokens_BS[:, 1:], batch.labels_BS[:, :-1])


def _numbered(corpora: dict[str, TokenCorpus]) -> dict[str, TokenCorpus]:
    """The corpora with each token replaced by its document's number through all of them."""
    found, before = {}, 0
    for name, corpus in corpora.items():
        numbers = np.repeat(np.arange(corpus.num_documents) + before, np.diff(corpus.offsets))
        found[name] = dataclasses.replace(corpus, tokens=numbers)
        before += corpus.num_documents
    return found


def _documents(loader: TokenLoader) -> torch.Tensor:
    document_BS = loader.next_batch().document_BS
    assert document_BS is not None and document_BS.dtype == torch.int64
    return document_BS


def test_another_order_goes_on_from_the_place_of_the_first_and_from_its_own() -> None:
    first, fresh = _loader(), TokenLoader(CORPORA, WEIGHTS, SEQ, 12, seed=8)
    _rows(first, 20)
    _rows(fresh, 20)
    other = TokenLoader(CORPORA, WEIGHTS, SEQ, 12, seed=8, order_before=7)
    other.load_state_dict(first.state_dict())
    assert other.samples_by_source == first.samples_by_source
    # As many windows of each source on, in the order of its own seed from the beginning.
    place = json.loads(json.dumps(other.state_dict()))
    assert place == fresh.state_dict() | {"seed": 8}
    after = _rows(other, 10)
    assert after == _rows(fresh, 10) != _rows(first, 10)
    resumed = TokenLoader(CORPORA, WEIGHTS, SEQ, 12, seed=8, order_before=7)
    resumed.load_state_dict(place)
    assert _rows(resumed, 10) == after
    with pytest.raises(UserError, match="position has seed 7, this run 8"):
        TokenLoader(CORPORA, WEIGHTS, SEQ, 12, seed=8).load_state_dict(first.state_dict())


def test_a_source_of_weight_0_deals_nothing_more_and_keeps_its_place() -> None:
    loader = _loader()
    _rows(loader, 9)
    before = loader.samples_by_source
    for weights in ({"organic": 3.0, "synthetic": 0.0, "web": 1.0}, {"organic": 1.0, "synthetic": 0.0, "web": 0.0}):
        later = TokenLoader(CORPORA, weights, SEQ, 12, seed=7)
        later.load_state_dict(loader.state_dict())
        _rows(later, 8)
        assert later.samples_by_source["synthetic"] == before["synthetic"]
        given = {name: later.samples_by_source[name] - before[name] for name in CORPORA}
        assert [given[name] for name in weights] == [96 * weight / sum(weights.values()) for weight in weights.values()]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("sources", [["web"], list(CORPORA)])
def test_documents_of_labels_are_what_a_loader_of_documents_numbers_deals(sources: list[str], ranks: int) -> None:
    corpora, weights = ({name: of[name] for name in sources} for of in (CORPORA, WEIGHTS))
    for rank in range(ranks):
        settings: Any = {"weights": weights, "seq_len": SEQ, "global_batch": 12, "seed": 7}
        settings |= {"dp_rank": rank, "dp_size": ranks}
        loader = TokenLoader(corpora, mask_repetitions=True, **settings)
        replay = TokenLoader(_numbered(corpora), **settings)
        for _ in range(30):  # the middle of an epoch after some; documents are of up to four windows
            assert torch.equal(_documents(loader), replay.next_batch().labels_BS)
        resumed = TokenLoader(corpora, **settings)
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        for _ in range(30):
            assert torch.equal(_documents(resumed), replay.next_batch().labels_BS)


def test_a_number_names_the_document_whose_tokens_it_stands_beside() -> None:
    loader, named = _loader(), set()
    for batch in (loader.next_batch() for _ in range(10)):
        assert batch.document_BS is not None
        for label, number in zip(batch.labels_BS.flatten().tolist(), batch.document_BS.flatten().tolist(), strict=True):
            name = "organic" if number < 40 else "synthetic" if number < 100 else "web"
            assert label in CORPORA[name].document_tokens(int(loader.document_id(number)[1:]))
            named.add(name)
    assert named == set(CORPORA)


def test_resume_is_exact_at_every_position_through_json() -> None:
    whole = _rows(_loader(), 40)
    for stop in (0, 1, 7, 23):
        first = _loader()
        _rows(first, stop)
        again = _loader(dp_rank=0, dp_size=1)
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert sum(again.samples_by_source.values()) == 12 * stop
        assert _rows(again, 40 - stop) == whole[12 * stop :]


def test_resume_with_another_layout_and_batch_size_goes_on_in_the_same_order() -> None:
    whole = _rows(_loader(), 20)
    first = _loader(dp_rank=1, dp_size=3)
    _rows(first, 10)
    again = _loader(batch=6)
    again.load_state_dict(first.state_dict())
    assert _rows(again, 20) == whole[120:]


def test_the_state_stays_tiny() -> None:
    loader = _loader()
    _rows(loader, 500)
    assert len(json.dumps(loader.state_dict())) < 1000


def test_each_epoch_gives_every_window_once_and_shuffles_anew() -> None:
    corpus = CORPORA["organic"]
    loader = TokenLoader({"organic": corpus}, {"organic": 1.0}, SEQ, 1, seed=0)
    windows = (corpus.num_tokens - 1) // SEQ
    epochs = [_rows(loader, windows) for _ in range(3)]
    assert loader.samples_by_source == {"organic": 3 * windows}
    for rows in epochs:
        targets = [token for row in rows for token in row[1:] if token]
        assert len(set(targets)) == len(targets), "a token was a target twice in an epoch"
        # What is missing is the first token of the stream and the rest after the last whole window.
        assert sum(len(row) - 1 for row in rows) == windows * SEQ > corpus.num_tokens - 1 - SEQ
    assert epochs[0] != epochs[1] != epochs[2]
    assert {tuple(r) for r in epochs[0]} != {tuple(r) for r in epochs[1]}, "documents were not shuffled again"


@pytest.mark.parametrize("length", range(SEQ + 1, 3 * SEQ + 2))
def test_every_window_is_full_whatever_the_size_of_the_corpus(length: int) -> None:
    corpus = dataclasses.replace(CORPORA["organic"], tokens=np.arange(length), offsets=np.array([0, length]))
    loader = TokenLoader({"a": corpus}, {"a": 1.0}, SEQ, 1, seed=0)
    assert {tuple(np.diff(row)) for row in _rows(loader, 6)} == {(1,) * SEQ}


def test_windows_hold_whole_documents_in_a_row_with_eos_between() -> None:
    corpus = CORPORA["web"]
    documents = {tuple(corpus.document_tokens(i).tolist()) for i in range(corpus.num_documents)}
    loader = TokenLoader({"web": corpus}, {"web": 1.0}, corpus.num_tokens - 1, 1, seed=0)
    for _ in range(5):
        (stream,) = _rows(loader, 1)
        ends = [0, *(i + 1 for i, token in enumerate(stream) if token == 0)]
        pieces = [tuple(stream[a:b]) for a, b in itertools.pairwise(ends)]
        assert len(stream) == corpus.num_tokens and set(pieces) == documents


def test_a_source_added_later_starts_at_its_beginning_and_the_others_go_on() -> None:
    def own(name: str, rows: list[list[int]]) -> list[list[int]]:
        low = {"organic": 1, "synthetic": 10_000, "web": 50_000}[name]
        return [row for row in rows if low <= max(row) < low + 10_000]

    two = {name: CORPORA[name] for name in ("organic", "web")}
    first = TokenLoader(two, {"organic": 1.0, "web": 1.0}, SEQ, 10, seed=7)
    before = _rows(first, 20)
    later = TokenLoader(CORPORA, {"organic": 1.0, "web": 1.0, "synthetic": 2.0}, SEQ, 10, seed=7)
    later.load_state_dict(first.state_dict())
    after = _rows(later, 20)
    assert later.samples_by_source == {"organic": 150, "web": 150, "synthetic": 100}
    for name in CORPORA:
        alone = TokenLoader({name: CORPORA[name]}, {name: 1.0}, SEQ, 1, seed=7)
        rows = own(name, before) + own(name, after)
        assert rows == own(name, _rows(alone, later.samples_by_source[name]))


def test_new_shares_hold_from_the_moment_they_are_set() -> None:
    first = TokenLoader(CORPORA, WEIGHTS, SEQ, 100, seed=7)
    _rows(first, 5)
    given = first.samples_by_source
    second = TokenLoader(CORPORA, {"organic": 1.0, "synthetic": 8.0, "web": 1.0}, SEQ, 100, seed=7)
    second.load_state_dict(first.state_dict())
    _rows(second, 1)
    assert {n: second.samples_by_source[n] - given[n] for n in given} == {"organic": 10, "synthetic": 80, "web": 10}


@pytest.mark.parametrize("sources", [1, 2, 3, 5, 8, 20])
def test_mixture_shares_are_exact_to_one_sample_at_every_moment(sources: int) -> None:
    rng = np.random.default_rng(sources)
    for _ in range(10):
        weights = {f"s{i}": float(w) for i, w in enumerate(rng.lognormal(0, 1.5, sources))}
        shares = np.array(list(weights.values())) / sum(weights.values())
        blend, drawn = Blend(weights), np.zeros(sources)
        for position in range(1, 800):
            drawn[int(blend.next()[1:])] += 1
            assert np.abs(drawn - shares * position).max() < 1


class _WithoutNext(Blend):
    """Deals nothing one by one."""

    def next(self) -> str:
        raise AssertionError("is not asked")


@pytest.mark.parametrize("sources", [1, 2, 3, 4, 7, 20])
def test_samples_are_skipped_as_they_would_be_dealt(sources: int) -> None:
    rng = np.random.default_rng(sources)
    for weights_n in (
        *rng.lognormal(0, 2.5, (12, sources)), *rng.integers(1, 5, (12, sources)), np.ones(sources),
        np.array([1.0, *[1e-5] * (sources - 1)]), np.array([3.0, *[0.0] * (sources - 1)]),
    ):  # fmt: skip
        weights = {f"s{i}": float(w) for i, w in enumerate(weights_n)}
        dealt, skipped, begun = Blend(weights), _WithoutNext(weights), 0
        for samples in (*rng.integers(0, 40, 20).tolist(), 1500, 1):
            for _ in range(samples):
                dealt.next()
            skipped.skip(samples)
            begun += samples
            assert skipped.drawn == dealt.drawn, (weights, begun)
            # From the beginning too.
            whole = _WithoutNext(weights)
            whole.skip(begun)
            assert whole.drawn == dealt.drawn, (weights, begun)


def test_samples_of_years_are_skipped_in_no_time() -> None:
    blend, halves = (_WithoutNext({"a": 0.7310586, "b": 0.2, "c": 0.0689414, "d": 1e-4}) for _ in range(2))
    blend.skip(10**9 + 7)
    halves.skip(123_456_789)
    halves.skip(10**9 + 7 - 123_456_789)
    assert halves.drawn == blend.drawn and sum(blend.drawn.values()) == 10**9 + 7


def test_weights_come_from_tokens_epochs_or_the_recipe() -> None:
    def weights(*settings: dict[str, float]) -> dict[str, float]:
        names = ("organic", "synthetic")
        configs = [SourceConfig(name=n, path="p", **s) for n, s in zip(names, settings, strict=True)]
        return mixture_weights(configs, CORPORA)

    organic, synthetic = CORPORA["organic"].num_tokens, CORPORA["synthetic"].num_tokens
    assert weights({}, {}) == {"organic": organic, "synthetic": synthetic}
    assert weights({"epochs": 4.0}, {}) == {"organic": 4 * organic, "synthetic": synthetic}
    assert weights({"weight": 0.25}, {"weight": 0.75}) == {"organic": 0.25, "synthetic": 0.75}
    with pytest.raises(UserError, match="`synthetic` has no weight"):
        weights({"weight": 0.25}, {})
    with pytest.raises(UserError, match="used twice"):
        mixture_weights([SourceConfig(name="organic", path="p")] * 2, CORPORA)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight": 1.0, "epochs": 2.0}, "not both"),
        ({"weight": 0.0}, "`weight`: Input should be greater than 0"),
        ({"epochs": "two"}, "`epochs`"),
        ({"wieght": 1.0}, "did you mean `weight`"),
    ],
)
def test_bad_source_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(SourceConfig, {"name": "a", "path": "b", **settings})


def test_relative_epochs_are_reached_together() -> None:
    configs = [SourceConfig(name="organic", path="p", epochs=4.0), SourceConfig(name="synthetic", path="p")]
    corpora = {name: CORPORA[name] for name in ("organic", "synthetic")}
    loader = TokenLoader(corpora, mixture_weights(configs, corpora), SEQ, 50, seed=0)
    _rows(loader, 20)
    epochs = {name: samples / corpora[name].num_tokens for name, samples in loader.samples_by_source.items()}
    assert epochs["organic"] / epochs["synthetic"] == pytest.approx(4.0, rel=0.03)


def test_what_gives_no_meaningful_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"`organic`: .* do not fill one window"):
        TokenLoader({"organic": CORPORA["organic"]}, {"organic": 1.0}, CORPORA["organic"].num_tokens, 1, seed=0)
    with pytest.raises(UserError, match="does not divide over 5"):
        _loader(dp_rank=0, dp_size=5)
    other = dataclasses.replace(CORPORA["web"], fingerprint="g")
    with pytest.raises(UserError, match="same tokenizer"):
        TokenLoader({**CORPORA, "web": other}, WEIGHTS, SEQ, 12, seed=7)


def test_a_position_of_another_run_is_refused() -> None:
    state = _loader().state_dict()
    fewer = {name: CORPORA[name] for name in ("organic", "web")}
    others = {
        "has seed 7": TokenLoader(CORPORA, WEIGHTS, SEQ, 12, seed=1),
        "has seq_len 8": TokenLoader(CORPORA, WEIGHTS, SEQ + 1, 12, seed=7),
        "has source `synthetic`": TokenLoader(fewer, dict.fromkeys(fewer, 1.0), SEQ, 12, seed=7),
        "`web` is not the corpus": TokenLoader({**CORPORA, "web": _corpus(26, 50_000)}, WEIGHTS, SEQ, 12, seed=7),
    }
    for message, loader in others.items():
        with pytest.raises(UserError, match=message):
            loader.load_state_dict(state)


def _repeats(tokens: list[int], max_period: int, min_repeats: int) -> bool:
    """The definition, spelt out."""
    return any(
        tokens[i : i + p * min_repeats] == tokens[i : i + p] * min_repeats
        for p in range(1, max_period + 1)
        for i in range(len(tokens) - p * min_repeats + 1)
    )


def test_the_repetition_filter_finds_what_its_definition_says() -> None:
    rng = random.Random(0)
    for period, repeats in ((1, 5), (3, 4), (4, 2), (13, 32)):
        rows = []
        for _ in range(60):
            unit = [rng.randrange(10_000) for _ in range(rng.randrange(1, period + 2))]
            run = unit * (repeats + rng.randrange(-1, 2)) + unit[: rng.randrange(len(unit))]
            lead = [rng.randrange(10_000) for _ in range(rng.randrange(10))]
            rows.append((lead + run + [rng.randrange(10_000) for _ in range(700)])[:600])
        expected = [_repeats(row, period, repeats) for row in rows]
        assert repetition_mask(np.array(rows), max_period=period, min_repeats=repeats).tolist() == expected
        assert 0 < sum(expected) < len(rows)


def test_windows_too_short_to_repeat_are_kept() -> None:
    assert not repetition_mask(np.zeros((3, 20), dtype=np.int64)).any()
    assert repetition_mask(np.zeros((3, 32), dtype=np.int64)).all()


def test_repetitive_windows_lose_their_labels_and_nothing_else_changes() -> None:
    tokens = np.concatenate([np.arange(1, 2001), np.full(200, 5), [0]])
    corpus = TokenCorpus(
        tokens=tokens, offsets=np.array([0, len(tokens)]), eos_id=0, text_bytes=1, fingerprint="f", read_ids=list
    )
    plain, masked = (TokenLoader({"a": corpus}, {"a": 1.0}, 50, 44, seed=0, mask_repetitions=m) for m in (False, True))
    a, b = plain.next_batch(), masked.next_batch()
    lost = (b.labels_BS == IGNORE).all(dim=1)
    assert torch.equal(a.tokens_BS, b.tokens_BS) and torch.equal(a.labels_BS[~lost], b.labels_BS[~lost])
    assert torch.equal(lost, torch.from_numpy(repetition_mask(a.tokens_BS.numpy()))) and lost.sum() == 4


@pytest.mark.parametrize(
    "ranks, batch_size, max_tokens", [(1, 4, None), (2, 3, None), (3, 1, 101), (4, 5, 8), (2, 2, 1)]
)
def test_each_held_out_token_is_a_target_exactly_once(ranks: int, batch_size: int, max_tokens: int | None) -> None:
    corpus = CORPORA["web"]
    batches = [
        list(eval_windows(corpus, SEQ, batch_size=batch_size, max_tokens=max_tokens, dp_rank=r, dp_size=ranks))
        for r in range(ranks)
    ]
    assert len({len(own) for own in batches}) == 1, "ranks would wait for each other in collectives"
    rows = [
        (tokens, labels)
        for turn in zip(*batches, strict=True)
        for batch in turn
        for tokens, labels in zip(batch.tokens_BS.tolist(), batch.labels_BS.tolist(), strict=True)
    ]
    assert all(len(tokens) == len(labels) == SEQ for tokens, labels in rows)
    pairs = [pair for tokens, labels in rows for pair in zip(tokens, labels, strict=True) if pair[1] != IGNORE]
    stream = corpus.tokens.tolist()[:max_tokens]
    assert [label for _, label in pairs] == stream
    assert [token for token, _ in pairs] == [corpus.eos_id, *stream[:-1]]


def test_a_token_s_origin_is_the_place_in_its_document_that_holds_it_and_so_are_a_row_s_spans() -> None:
    loader, dealt = _loader(), _loader()
    dealt.skip(9)
    for _ in range(9):
        loader.next_batch()
    for _ in range(4):  # some of them past the end of an epoch
        origins = [[loader.origin(row, token) for token in range(SEQ)] for row in range(12)]
        spans, sources = [loader.row_spans(row) for row in range(12)], loader.row_sources()
        batch, same = loader.next_batch(), dealt.next_batch()
        assert torch.equal(batch.tokens_BS, same.tokens_BS), "skipping is dealing unseen"
        for row, tokens in enumerate(origins):
            for origin, id in zip(tokens, batch.tokens_BS[row].tolist(), strict=True):
                assert CORPORA[origin.source].document_tokens(origin.document)[origin.offset] == id
            told = [(document, at) for document, first, stop in spans[row] for at in range(first, stop)]
            assert told == [(origin.document, origin.offset) for origin in tokens]
            assert {origin.source for origin in tokens} == {sources[row]}


def test_the_readings_of_documents_are_the_rows_that_hold_their_tokens_and_how_many() -> None:
    loader, documents = _loader(), [5, 0, 2]
    for _ in range(3):
        loader.next_batch()
    found = {}
    for name, corpus in CORPORA.items():
        lengths = np.diff(corpus.offsets).tolist()
        spans = {(n, part): (n, *ends) for n in documents for part, ends in enumerate(((0, 3), (3, lengths[n])))}
        halves = loader.readings(name, spans, 60)
        found[name] = loader.readings(name, {n: (n, 0, lengths[n]) for n in documents}, 60)
        for n in documents:  # of both parts together what it is of the whole
            parts = Counter(dict.fromkeys([(batch, row) for batch, row, _ in found[name][n]], 0))
            for batch, row, tokens in halves[n, 0] + halves[n, 1]:
                parts[batch, row] += tokens
            assert parts == {(batch, row): tokens for batch, row, tokens in found[name][n]}
    counted: Counter[tuple[str, int, int, int]] = Counter()
    for batch in range(60):
        for row in range(12):
            for origin in (loader.origin(row, token) for token in range(SEQ)):
                counted[origin.source, origin.document, batch, row] += 1
        loader.next_batch()
    told = {(name, n, *at): tokens for name, of in found.items() for n, read in of.items() for *at, tokens in read}
    assert told == {key: tokens for key, tokens in counted.items() if key[1] in documents} and len(told) > 50


@pytest.mark.parametrize("windows", [0, 1, 7, 40, 200])
def test_tokens_by_kind_are_those_of_the_windows_that_were_given(windows: int) -> None:
    corpus = CORPORA["web"]
    # Documents in two parts where they are long enough, of a kind each.
    cuts = [a + 4 for a, b in itertools.pairwise(corpus.offsets.tolist()) if b - a > 4]
    offsets_P = np.array(sorted([*corpus.offsets.tolist(), *cuts]))
    kinds_P = np.arange(len(offsets_P) - 1) % 3
    source = WindowSource("web", corpus, SEQ, 7)
    counted = np.zeros(4, np.int64)
    for index in range(windows):
        places = [source.place(index, token) for token in range(SEQ)]
        at = [int(corpus.offsets[document]) + offset for document, offset in places]
        kinds = kinds_P[np.searchsorted(offsets_P, at, side="right") - 1]
        counted += np.bincount(kinds, minlength=4)
    assert source.tokens_given(windows, offsets_P, kinds_P, 4).tolist() == counted.tolist()
